//! `snapshot restore`: a data directory of ours from a snapshot of etcd's or ours.
//!
//! The history, leases, alarms and users are the snapshot's; the membership is new, and so is the log: one entry for
//! each first member, committed, and the mark that the store has them. The store comes first and gets its new
//! membership in one checkpoint; without a log beside it no member starts on it.

use std::path::{Path, PathBuf};

use prost::Message;
use trilith_engine::bolt::{BoltError, Import, import};
use trilith_engine::{Store, StoreError, TreeId};
use trilith_proto::{raftpb, walpb};
use trilith_wal::{EntryRef, IoChoice, Metadata, Wal};

use super::cluster::Cluster;
use super::files::{MEMORY, bar, disk, open_store, reason};
use crate::exit::Failure;
use crate::flags::Flags;
use crate::gotext::quote;
use crate::terminal::info;

const CALLER: &str = "snapshot/v3_snapshot.go";
/// etcd's size of a log's segment.
const SEGMENT_BYTES: u64 = 64_000_000;
/// The term of the first entries.
const TERM: u64 = 1;

/// How the tools open logs: they write little, and nobody waits.
pub(super) fn log_options(dir: PathBuf) -> trilith_wal::Options {
    trilith_wal::Options {
        dir,
        disk: disk(),
        io: IoChoice::Sync,
        segment_bytes: SEGMENT_BYTES,
        fsync: true,
        max_segments: 0,
    }
}

pub(super) fn restore(snapshot: &Path, flags: &Flags) -> Result<(), Failure> {
    both_or_none(flags)?;
    let cluster = Cluster::new(
        flags.text("name"),
        flags.text("initial-cluster"),
        flags.text("initial-cluster-token"),
        flags.list("initial-advertise-peer-urls"),
    )?;
    let data_dir = match flags.text("data-dir") {
        "" => PathBuf::from(format!("{}.etcd", flags.text("name"))),
        given => PathBuf::from(given),
    };
    let member = data_dir.join("member");
    let wal_dir = match flags.text("wal-dir") {
        "" => member.join("wal"),
        given => PathBuf::from(given),
    };
    let quoted = |path: &Path| quote(path.as_os_str().as_encoded_bytes());
    if data_dir.exists() && !is_empty(&data_dir) {
        let path = quoted(&data_dir);
        return Err(Failure::error(format_args!("data-dir {path} not empty or could not be read")));
    }
    if wal_dir.exists() {
        return Err(Failure::error(format_args!("wal-dir {} exists", quoted(&wal_dir))));
    }
    std::fs::File::open(snapshot).map_err(|error| reason("open", snapshot, &error))?;
    let snap_dir = member.join("snap");
    let say = |message| {
        info(CALLER, message, |line| {
            line.text("path", &snapshot.display().to_string());
            line.text("wal-dir", &wal_dir.display().to_string());
            line.text("data-dir", &data_dir.display().to_string());
            line.text("snap-dir", &snap_dir.display().to_string());
        });
    };
    say("restoring snapshot");
    disk().create_dir_all(&snap_dir).map_err(|error| reason("mkdir", &snap_dir, &error))?;
    let db = snap_dir.join("db");
    if let Err(failure) = fill(snapshot, &db, flags) {
        // The folders go if nothing is in them, so that the next try finds none.
        for dir in [&snap_dir, &member, &data_dir] {
            let _ = std::fs::remove_dir(dir);
        }
        return Err(failure);
    }
    let mut store = open_store(&db)?;
    begin_cluster(&mut store, &cluster).map_err(Failure::error)?;
    drop(store);
    begin_log(wal_dir.clone(), &cluster)?;
    say("restored snapshot");
    Ok(())
}

fn both_or_none(flags: &Flags) -> Result<(), Failure> {
    let missing = match (flags.changed("bump-revision"), flags.changed("mark-compacted")) {
        (true, false) => "mark-compacted",
        (false, true) => "bump-revision",
        _ => return Ok(()),
    };
    Err(Failure::error(format_args!(
        "if any flags in the group [bump-revision mark-compacted] are set they must all be set; missing [{missing}]"
    )))
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn fill(snapshot: &Path, db: &Path, flags: &Flags) -> Result<(), Failure> {
    let bump = u64::try_from(flags.int("bump-revision")).expect("a flag that is not negative");
    let options = Import {
        disk: disk(),
        from: snapshot.to_owned(),
        to: db.to_owned(),
        skip_hash_check: flags.bool("skip-hash-check"),
        bump_revision: if flags.bool("mark-compacted") { bump } else { 0 },
        memory: MEMORY,
    };
    let bar = bar(0);
    let imported = import(&options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let imported = imported.map_err(|error| match error {
        BoltError::HashMissing { .. } => Failure::error("snapshot missing hash but --skip-hash-check=false"),
        error => Failure::error(error),
    })?;
    for bucket in imported.left_out {
        info(CALLER, "left out a bucket that etcd does not have", |line| line.text("bucket", &bucket));
    }
    Ok(())
}

/// Gives the store the new membership, and the index that its new log begins with.
fn begin_cluster(store: &mut Store, cluster: &Cluster) -> Result<(), StoreError> {
    for tree in [TreeId::Members, TreeId::MembersRemoved] {
        let mut keys = Vec::new();
        let mut cursor = store.view().seek(tree, b"")?;
        while let Some(key) = cursor.key() {
            keys.push(key.to_vec());
            cursor.next()?;
        }
        for key in keys {
            store.remove(tree, &key)?;
        }
    }
    for member in &cluster.members {
        store.insert(TreeId::Members, format!("{:x}", member.id).as_bytes(), &member.json())?;
    }
    store.insert(TreeId::Meta, b"confState", &cluster.conf_state_json())?;
    store.set_applied(cluster.members.len() as u64, TERM);
    store.publish();
    let job = store.begin_checkpoint().expect("no other checkpoint is running, and none has failed");
    store.finish_checkpoint(job.run()?).map(|_| ())
}

/// Makes the log: the members' entries, committed, and the mark of the store.
fn begin_log(dir: PathBuf, cluster: &Cluster) -> Result<(), Failure> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    disk().create_dir_all(parent).map_err(|error| reason("mkdir", parent, &error))?;
    let owner = Metadata { node_id: cluster.own, cluster_id: cluster.id };
    let mut log = Wal::create(log_options(dir), owner).map_err(Failure::error)?;
    let changes: Vec<Vec<u8>> = cluster
        .members
        .iter()
        .map(|member| {
            raftpb::ConfChange {
                id: None,
                r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
                node_id: Some(member.id),
                context: Some(member.json().into()),
            }
            .encode_to_vec()
        })
        .collect();
    let entries = (1..).zip(&changes).map(|(index, data)| EntryRef {
        kind: raftpb::EntryType::EntryConfChange,
        term: TERM,
        index,
        data,
    });
    let commit = changes.len() as u64;
    let vote = cluster.members.first().map(|member| member.id);
    log.append(entries, Some(&raftpb::HardState { term: Some(TERM), vote, commit: Some(commit) }), true);
    log.append_snapshot(&walpb::Snapshot {
        index: Some(commit),
        term: Some(TERM),
        conf_state: Some(cluster.conf_state()),
    });
    log.flush().map(|_| ()).map_err(Failure::error)
}
