//! The write-ahead log, in etcd's format to the byte.
#![allow(missing_docs, unused_variables, clippy::todo)]

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use trilith_disk::Disk;
use trilith_proto::{raftpb, walpb};

/// Which I/O path writes the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoChoice {
    /// io_uring where the kernel allows it, else plain calls.
    #[default]
    Auto,
    Uring,
    Sync,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub io: IoChoice,
    /// 64_000_000 as in etcd; tests take less.
    pub segment_bytes: u64,
    /// False only with --unsafe-no-fsync.
    pub fsync: bool,
    /// Segments to keep after their release (--max-wals); 0 keeps all.
    pub max_segments: usize,
}

/// etcdserverpb.Metadata of the log's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Metadata {
    pub node_id: u64,
    pub cluster_id: u64,
}

/// An entry to append; borrowed, so that nothing is copied but into the log's buffer.
#[derive(Debug, Clone, Copy)]
pub struct EntryRef<'a> {
    pub kind: raftpb::EntryType,
    pub term: u64,
    pub index: u64,
    pub data: &'a [u8],
}

/// What a log holds after a snapshot mark.
#[derive(Debug, Default)]
pub struct Replay {
    pub metadata: Metadata,
    pub hard_state: raftpb::HardState,
    /// Entries with an index above the mark's, without gaps.
    pub entries: Vec<raftpb::Entry>,
    /// Every snapshot mark in the log, in order.
    pub snapshots: Vec<walpb::Snapshot>,
}

/// Number of a gathered batch; batches become durable in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(pub u64);

#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

#[derive(Debug)]
pub struct Wal {}

impl Wal {
    /// Whether the folder holds a log.
    pub fn exists(disk: &dyn Disk, dir: &std::path::Path) -> bool {
        todo!()
    }
    /// Makes a new log: crc, metadata and the empty snapshot mark, durable on return.
    pub fn create(options: Options, metadata: Metadata) -> Result<Wal, WalError> {
        todo!()
    }
    /// Opens a log for appending; repairs a torn tail; refuses corruption. `after` is the snapshot to start from
    /// (index 0 for all); entries up to its index are skipped.
    pub fn open(options: Options, after_index: u64) -> Result<(Wal, Replay), WalError> {
        todo!()
    }
    /// Gathers entries, then a hard state, into the next batch. The batch must become durable before its ticket
    /// is reported; `must_sync` false (only the commit index moved) lets it ride along with the next one.
    pub fn append<'a>(
        &mut self,
        entries: impl IntoIterator<Item = EntryRef<'a>>,
        hard_state: Option<&raftpb::HardState>,
        must_sync: bool,
    ) -> Ticket {
        todo!()
    }
    /// Gathers a snapshot mark.
    pub fn append_snapshot(&mut self, snapshot: &walpb::Snapshot) -> Ticket {
        todo!()
    }
    /// Hands gathered batches to the I/O path as far as slots are free, and reaps completions. Never blocks.
    /// Returns the newest ticket that is durable together with all before it.
    pub fn poll(&mut self) -> Result<Ticket, WalError> {
        todo!()
    }
    /// Blocks until everything gathered is durable: for shutdown and tests.
    pub fn flush(&mut self) -> Result<Ticket, WalError> {
        todo!()
    }
    /// Readable when `poll` has something to do. None when completions come with `poll` itself (simulated disk).
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        todo!()
    }
    /// Entries up to and including this index are no longer needed: segments that hold only such entries are
    /// released, kept as long as max_segments says, then recycled.
    pub fn release_to(&mut self, index: u64) -> Result<(), WalError> {
        todo!()
    }
    /// "io_uring" or "sync".
    pub fn io_name(&self) -> &'static str {
        todo!()
    }
}
