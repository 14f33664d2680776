//! The first start on a data directory that etcd left: its database becomes a store, its log stays.
//!
//! The store is made beside the database, and takes its name when it is durable and fits the log; the database stays
//! under another name. A stop at any point leaves etcd's directory as it was, or a store that is whole and only has to
//! be renamed, which the next start does. What this version could not carry on (auth, several members, entries that it
//! does not know) is found before anything is renamed.

use std::path::{Path, PathBuf};

use prost::Message;
use trilith_disk::Open;
use trilith_engine::bolt::{Import, Kind, import, kind_of};
use trilith_engine::{Store, TreeId};
use trilith_proto::raftpb;
use trilith_wal::{Replay, Wal};

use super::boot::{log_options, open_log};
use super::{Config, Fatal};
use crate::apply::command::{self, Command};
use crate::apply::members;

/// The store while it is made, and until it takes the database's place.
const NEW: &str = "db.trilith";
/// What the database is called afterwards.
const KEPT: &str = "db.etcd";

/// Makes a store of a database of etcd's, if that is what stands there.
pub(super) fn adopt(config: &Config, path: &Path, wal_dir: &Path) -> Result<(), Fatal> {
    let disk = config.disk.as_ref();
    let failed = |error: std::io::Error| Fatal::Boot(format!("{}: {error}", path.display()));
    let new = path.with_file_name(NEW);
    if !disk.exists(path) {
        if disk.exists(&new) {
            log::info!("the conversion of etcd's database was cut off before its last step: it is done now");
            rename(config, &new, path).map_err(failed)?;
        }
        return Ok(());
    }
    if kind_of(disk, path).map_err(failed)? != Kind::Bolt {
        return Ok(());
    }
    // Held until the end: a running etcd has it.
    let database = disk.open(path, Open::ReadOnly).map_err(failed)?;
    database.lock().map_err(failed)?;
    let kept = kept_name(config, path);
    log::info!(
        "{} is a database of etcd's: it is converted to {}, then renamed to {} and kept",
        path.display(),
        new.display(),
        kept.display()
    );
    let made = make(config, path, &new, wal_dir);
    if made.is_err() && disk.exists(&new) {
        // The error tells more than a file that cannot be removed.
        let _ = disk.remove(&new);
    }
    let (applied, revision) = made?;
    rename(config, path, &kept).map_err(failed)?;
    rename(config, &new, path).map_err(failed)?;
    log::info!(
        "etcd's database is converted: revision {revision}, entry {applied}; the log goes on from there"
    );
    Ok(())
}

fn rename(config: &Config, from: &Path, to: &Path) -> std::io::Result<()> {
    config.disk.rename(from, to)?;
    config.disk.sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// A name that nothing has yet: no database is ever written over.
fn kept_name(config: &Config, path: &Path) -> PathBuf {
    let names = (1..).map(|n| if n == 1 { KEPT.to_owned() } else { format!("{KEPT}.{n}") });
    let mut paths = names.map(|name| path.with_file_name(name));
    paths.find(|path| !config.disk.exists(path)).expect("the numbers do not end")
}

/// Makes the store; the entry applied last and the revision.
fn make(config: &Config, from: &Path, to: &Path, wal_dir: &Path) -> Result<(u64, i64), Fatal> {
    let disk = config.disk.as_ref();
    let refused = |why: String| Fatal::Boot(format!("{} cannot be taken over: {why}", from.display()));
    if disk.exists(to) {
        disk.remove(to).map_err(|error| refused(format!("{}: {error}", to.display())))?;
    }
    if !Wal::exists(disk, wal_dir) {
        return Err(refused(format!("there is no log in {}", wal_dir.display())));
    }
    let options = Import {
        disk: config.disk.clone(),
        from: from.to_owned(),
        to: to.to_owned(),
        skip_hash_check: true,
        bump_revision: 0,
        memory: config.memory_budget / 4,
    };
    let mut tenth = 0;
    let imported = import(&options, &mut |done, total| {
        let now = done * 10 / total.max(1);
        if now > tenth {
            tenth = now;
            log::info!("converting etcd's database: {}%", now * 10);
        }
    })
    .map_err(|error| refused(error.to_string()))?;
    let mut store = Store::open(trilith_engine::Options {
        path: to.to_owned(),
        disk: config.disk.clone(),
        map: config.map,
        dirty_bytes_max: config.memory_budget / 4,
        compress: config.compress_values,
    })?;
    let applied = imported.applied.0;
    let (log, replay) = open_log(log_options(config, wal_dir.to_owned()), applied, 0)?;
    drop(log);
    check(&store, &replay, applied).map_err(refused)?;
    let term = match imported.applied.1 {
        0 => term_of(&replay, applied).ok_or_else(|| {
            refused(format!("the log does not hold entry {applied}, which it applied last"))
        })?,
        term => term,
    };
    let voters = members::list(store.view())?.iter().map(|member| member.id).collect();
    let conf_state = raftpb::ConfState { voters, auto_leave: Some(false), ..Default::default() };
    members::put_conf_state(&mut store, &conf_state)?;
    store.set_applied(applied, term);
    store.publish();
    let job = store.begin_checkpoint().expect("no other checkpoint is running, and none has failed");
    store.finish_checkpoint(job.run()?)?;
    Ok((applied, imported.revision))
}

/// etcd before 3.5 does not note the term: the log has it.
fn term_of(replay: &Replay, applied: u64) -> Option<u64> {
    let entry = replay.entries.iter().find(|entry| entry.index == Some(applied)).and_then(|entry| entry.term);
    let mark = || replay.snapshots.iter().find(|mark| mark.index == Some(applied))?.term;
    if applied == 0 { Some(0) } else { entry.or_else(mark) }
}

/// Whether this version can carry on from there; the error says why not.
fn check(store: &Store, replay: &Replay, applied: u64) -> Result<(), String> {
    let own = replay.metadata.node_id;
    if replay.after > applied {
        let after = replay.after;
        return Err(format!("its log goes on behind a snapshot of entry {after}, which it does not have"));
    }
    let members = members::list(store.view()).map_err(|error| error.to_string())?;
    if members.len() > 1 {
        return Err(format!("it is of a cluster of {} members; this version serves one", members.len()));
    }
    if let Some(other) = members.iter().find(|member| member.id != own || member.is_learner) {
        return Err(format!("its only member is {:x}, and the log is of member {own:x}", other.id));
    }
    if members.is_empty() && applied > 0 {
        return Err("it names no member".to_owned());
    }
    let auth = store.view().get(TreeId::Auth, b"authEnabled").map_err(|error| error.to_string())?;
    if auth.is_some_and(|value| value.first() == Some(&1)) {
        return Err("auth is enabled, and this version has none".to_owned());
    }
    for entry in &replay.entries {
        let index = entry.index.unwrap_or_default();
        if index > applied {
            known(entry, own).map_err(|why| format!("entry {index} of the log: {why}"))?;
        }
    }
    Ok(())
}

/// Whether an entry can be applied.
fn known(entry: &raftpb::Entry, own: u64) -> Result<(), String> {
    let data = entry.data.clone().unwrap_or_default();
    if entry.r#type() == raftpb::EntryType::EntryNormal {
        if data.is_empty() {
            return Ok(());
        }
        let request = command::decode(data).map_err(|error| error.to_string())?;
        return match request.command {
            None => Ok(()),
            Some(command) if is_served(&command) => Ok(()),
            Some(_) => {
                Err("a request of auth or of a downgrade, which this version does not have".to_owned())
            }
        };
    }
    let change = raftpb::ConfChange::decode(data).map_err(|error| error.to_string())?;
    let adds_itself = change.r#type() == raftpb::ConfChangeType::ConfChangeAddNode && change.node_id() == own;
    let is_change = entry.r#type() == raftpb::EntryType::EntryConfChange;
    if is_change && adds_itself {
        Ok(())
    } else {
        Err("a change of the members; this version serves one".into())
    }
}

fn is_served(command: &Command) -> bool {
    matches!(
        command,
        Command::Range(_)
            | Command::Put(_)
            | Command::DeleteRange(_)
            | Command::Txn(_)
            | Command::Compaction(_)
            | Command::LeaseGrant(_)
            | Command::LeaseRevoke(_)
            | Command::LeaseCheckpoint(_)
            | Command::Alarm(_)
            | Command::Authenticate(_)
            | Command::ClusterVersionSet(_)
            | Command::ClusterMemberAttrSet(_)
    )
}
