//! A snapshot from the leader takes the store's place.
//!
//! The transport has stored the leader's database as `INDEX.snap.db`. A thread that may block makes a store of it beside
//! the one in use, whole and durable; only then raft hears of the snapshot. When raft takes it, its mark goes into the log,
//! and when that is durable the new store gets the name of the old one. So a stop at any point leaves the old store
//! with a log that fits, or the mark and a new store that only has to be renamed, which the next start does.
//!
//! Meanwhile the member goes on: it votes, and serves what it has. Entries that do not fit its log are not shown to raft,
//! which would ask for another snapshot.
//!
//! Must never replace a store by one that its log has not the mark of.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trilith_disk::Disk;
use trilith_engine::bolt::{Import, import};
use trilith_engine::{Store, StoreError};
use trilith_proto::raftpb;
use trilith_raft::RaftError;
use trilith_wal::Replay;

use super::{Config, Core, Fatal};
use crate::apply::alarm::Alarms;
use crate::apply::{members, restore_leases};

/// The new store, until it takes the place of the old one.
const NEW: &str = "db.snap";
/// What the transport stores ends with this.
pub const STORED: &str = ".snap.db";

/// How far a snapshot is.
#[derive(Debug, Default)]
pub(super) enum Installing {
    #[default]
    Idle,
    /// Its database is stored.
    Stored(Box<raftpb::Message>),
    /// A store is being made of it.
    Making(Box<raftpb::Message>),
    /// Whole and durable; raft has not taken it yet.
    Made(Box<raftpb::Message>),
}

/// The making of a store, to be run on a thread that may block. What comes of it goes to `Core::install_made`.
#[derive(Debug)]
pub struct InstallJob {
    config: Config,
    from: PathBuf,
    to: PathBuf,
    metadata: raftpb::SnapshotMetadata,
}

/// The file that the transport stores for a snapshot of that index.
pub fn stored_snapshot(snap_dir: &Path, index: u64) -> PathBuf {
    snap_dir.join(format!("{index:016x}{STORED}"))
}

fn metadata(message: &raftpb::Message) -> raftpb::SnapshotMetadata {
    message.snapshot.clone().and_then(|snapshot| snapshot.metadata).unwrap_or_default()
}

impl InstallJob {
    /// Makes the store; the error says why there is none.
    pub fn run(self) -> Result<(), String> {
        self.make().inspect_err(|_| {
            // The error tells more than a file that cannot be removed.
            let _ = remove(self.config.disk.as_ref(), &self.to);
        })
    }

    fn make(&self) -> Result<(), String> {
        let disk = self.config.disk.as_ref();
        remove(disk, &self.to).map_err(|error| format!("{}: {error}", self.to.display()))?;
        let options = Import {
            disk: Arc::clone(&self.config.disk),
            from: self.from.clone(),
            to: self.to.clone(),
            skip_hash_check: true,
            bump_revision: 0,
            memory: self.config.memory_budget / 4,
        };
        let imported = import(&options, &mut |_, _| {}).map_err(|error| error.to_string())?;
        let (index, term) = (self.metadata.index(), self.metadata.term());
        if imported.applied.0 != index {
            let applied = imported.applied.0;
            return Err(format!("the database is of entry {applied}, the snapshot of entry {index}"));
        }
        self.complete(index, term).map_err(|error| error.to_string())
    }

    /// What the database need not have. Both checkpoints of the new store are whole then.
    fn complete(&self, index: u64, term: u64) -> Result<(), StoreError> {
        let mut store = Store::open(super::boot::store_options(&self.config, &self.to))?;
        members::put_conf_state(&mut store, &self.metadata.conf_state.clone().unwrap_or_default())?;
        store.set_applied(index, term);
        store.publish();
        let job = store.begin_checkpoint().expect("no other checkpoint is running, and none has failed");
        store.finish_checkpoint(job.run()?).map(|_| ())
    }
}

fn remove(disk: &dyn Disk, path: &Path) -> std::io::Result<()> {
    if disk.exists(path) { disk.remove(path) } else { Ok(()) }
}

fn rename(config: &Config, from: &Path, to: &Path) -> Result<(), Fatal> {
    let renamed = config.disk.rename(from, to);
    let synced = renamed.and_then(|()| config.disk.sync_dir(&config.snap_dir()));
    synced.map_err(|error| Fatal::Boot(format!("{}: {error}", from.display())))
}

/// At the start: a new store takes the old one's place if the log has its mark, and goes otherwise, like all that was
/// stored. The store to go on with.
pub(super) fn complete(config: &Config, store: Store, replay: Option<&Replay>) -> Result<Store, Fatal> {
    let disk = config.disk.as_ref();
    let (dir, path) = (config.snap_dir(), config.store_path());
    let new = dir.join(NEW);
    let failed = |error: std::io::Error| Fatal::Boot(format!("{}: {error}", dir.display()));
    let marks = replay.map_or(&[][..], |replay| &replay.snapshots);
    let applied = store.applied().0;
    let mut store = store;
    if disk.exists(&new) {
        let offered = Store::open(super::boot::store_options(config, &new)).map(|store| store.applied());
        let is_marked = |(index, term): &(u64, u64)| {
            marks.iter().any(|mark| (mark.index, mark.term) == (Some(*index), Some(*term)))
        };
        match offered {
            Ok(offered) if offered.0 > applied && is_marked(&offered) => {
                log::info!(index = offered.0; "the installation of a snapshot was cut off before its last step: it is done now");
                drop(store);
                rename(config, &new, &path)?;
                store = Store::open(super::boot::store_options(config, &path))?;
            }
            _ => disk.remove(&new).map_err(failed)?,
        }
    }
    for path in disk.list(&dir).map_err(failed)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(STORED) || name.starts_with(&format!("{NEW}.import")) {
            disk.remove(&path).map_err(failed)?;
        }
    }
    Ok(store)
}

impl Core {
    /// Takes a MsgSnap whose database is stored.
    pub(super) fn take_snapshot(&mut self, message: raftpb::Message) -> Result<(), Fatal> {
        let index = metadata(&message).index();
        match self.node.needs_snapshot(&message) {
            Ok(true) if matches!(self.installing, Installing::Idle) => {
                log::info!(index, from:% = format!("{:x}", message.from()); "a snapshot came: a store is made of it");
                self.installing = Installing::Stored(Box::new(message));
                return Ok(());
            }
            // The one before it is as good; the leader sees that soon.
            Ok(true) => log::info!(index; "a snapshot came while another is being installed: it is dropped"),
            Ok(false) => self.offer(message)?,
            Err(error) => log::warn!(error:%; "a peer's snapshot is dropped"),
        }
        if !self.is_installing(index) {
            self.forget_stored(index);
        }
        Ok(())
    }

    fn offer(&mut self, message: raftpb::Message) -> Result<(), Fatal> {
        match self.node.offer_snapshot(message) {
            Ok(()) => Ok(()),
            Err(error @ RaftError::Message { .. }) => {
                log::warn!(error:%; "a peer's snapshot is dropped");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn is_installing(&self, index: u64) -> bool {
        match &self.installing {
            Installing::Idle => false,
            Installing::Stored(message) | Installing::Making(message) | Installing::Made(message) => {
                metadata(message).index() == index
            }
        }
    }

    /// A file that stays does no harm but to the disk's room; the next start looks again.
    fn forget_stored(&self, index: u64) {
        let path = stored_snapshot(&self.config.snap_dir(), index);
        if let Err(error) = remove(self.config.disk.as_ref(), &path) {
            log::warn!(error:%, path:% = path.display(); "a snapshot's file cannot be removed");
        }
    }

    /// Whether raft must not see these entries, since they follow a snapshot that is being installed.
    pub(super) fn waits_for_snapshot(&self, message: &raftpb::Message) -> bool {
        !matches!(self.installing, Installing::Idle)
            && message.r#type() == raftpb::MessageType::MsgApp
            && message.index() > self.node.status().last
    }

    /// The store to be made of a snapshot, if there is one to make.
    pub fn begin_install(&mut self) -> Option<InstallJob> {
        let Installing::Stored(message) = &mut self.installing else { return None };
        let message = std::mem::take(message);
        let metadata = metadata(&message);
        self.installing = Installing::Making(message);
        let dir = self.config.snap_dir();
        let (from, to) = (stored_snapshot(&dir, metadata.index()), dir.join(NEW));
        Some(InstallJob { config: self.config.clone(), from, to, metadata })
    }

    /// Takes note of a store that was made, or was not: then the leader sends another snapshot.
    pub fn install_made(&mut self, outcome: Result<(), String>) {
        let Installing::Making(message) = std::mem::take(&mut self.installing) else { return };
        let index = metadata(&message).index();
        match outcome {
            Ok(()) => self.installing = Installing::Made(message),
            Err(error) => log::error!(error, index; "no store can be made of the leader's snapshot"),
        }
        self.forget_stored(index);
    }

    /// Whether nothing may begin that works on the store in use, since it is about to be replaced.
    pub(super) fn awaits_install(&self) -> bool {
        matches!(self.installing, Installing::Made(_))
    }

    /// Offers raft a snapshot whose store is made, when nothing works on the one in use. Whether it did.
    pub(super) fn offer_made(&mut self) -> Result<bool, Fatal> {
        if !self.awaits_install() || !self.node.takes_snapshots() || self.works_on_store() {
            return Ok(false);
        }
        let Installing::Made(message) = std::mem::take(&mut self.installing) else { return Ok(false) };
        let index = metadata(&message).index();
        self.offer(*message)?;
        self.node.poll(&mut self.out)?;
        match self.out.snapshot.take() {
            Some(taken) if taken.index() == index => self.install(&taken)?,
            Some(taken) => {
                let taken = taken.index();
                return Err(Fatal::Boot(format!("raft took snapshot {taken}, and was offered {index}")));
            }
            None => {
                log::info!(index; "a snapshot is not needed any more");
                let new = self.config.snap_dir().join(NEW);
                remove(self.config.disk.as_ref(), &new)
                    .map_err(|error| Fatal::Boot(format!("{}: {error}", new.display())))?;
            }
        }
        Ok(true)
    }

    /// Puts the new store in the place of the old one. Blocks for the log's sync and the folder's: the member has
    /// nothing else to do that would be newer than what it had.
    fn install(&mut self, taken: &raftpb::SnapshotMetadata) -> Result<(), Fatal> {
        self.node.flush()?;
        // Of the old store; what was committed is in the new one.
        self.out.committed.clear();
        let (dir, path) = (self.config.snap_dir(), self.config.store_path());
        rename(&self.config, &dir.join(NEW), &path)?;
        let mut store = Store::open(super::boot::store_options(&self.config, &path))?;
        store.publish_to(&self.store.reader());
        self.store = store;
        self.take_over_store()?;
        self.node.poll(&mut self.out)?;
        self.node.applied(taken.index());
        self.publish_facts();
        log::info!(index = taken.index(), revision = self.store.view().revision(); "a snapshot from the leader is installed");
        Ok(())
    }

    /// What is kept beside the store follows it.
    fn take_over_store(&mut self) -> Result<(), Fatal> {
        let view = self.store.view();
        self.conf_state = members::conf_state(view)?;
        self.alarms = Alarms::restore(view)?;
        let revision = view.revision();
        let restored = {
            let mut lessor = self.shared.lessor();
            lessor.clear();
            restore_leases(&self.store, &mut lessor)
        };
        restored.map_err(|error| Fatal::Boot(format!("{}: {error}", self.config.store_path().display())))?;
        self.shared.hub().restore(revision);
        self.compaction.restart();
        self.checkpoints.restart();
        self.store_has_room();
        self.version_changed()?;
        self.members_changed()?;
        Ok(())
    }
}
