//! The write-ahead log, in etcd's format to the byte.
//!
//! A log is a folder of segment files; a segment is a chain of records with a running checksum (docs/format-wal.md).
//! [`Wal`] gathers records into batches, writes each batch with one sync, up to four of them at once, and reports
//! them durable strictly in order. There is no timer: while batches are under way the next one gathers.
//!
//! Promises:
//! - A ticket that [`Wal::poll`] reported is on the disk, with all tickets before it, and stays there.
//! - No block that holds records of a reported ticket is written again, and after the last record there are zeros.
//! - A log left by a crash opens with every reported record, in order, and with nothing that was never appended.
//! - Damage to bytes that were durable is an error that names file and offset; it is never cut away.
//! - After a failed write or sync the log takes nothing more. A full disk is no such failure: no record is written to
//!   a block that has no space yet, so only the next segment can be lacking, and what was gathered waits for it.
//!
//! It must never know what an entry means, block in `append` or `poll`, or retry a failed sync.

mod create;
mod error;
mod io;
mod log_file;
mod names;
mod pace;
mod prepare;
mod read_back;
mod record;
mod recover;
mod segment;
mod stats;
mod uring;

use std::path::PathBuf;
use std::sync::Arc;

use trilith_disk::Disk;
use trilith_proto::{raftpb, walpb};

pub use error::WalError;
pub use log_file::Wal;
pub use read_back::EntryReader;
pub use stats::{SYNC_BUCKETS_MICROS, Stats, SyncTimes};

/// How many batches may be under way together. Recovery relies on it: see `recover`.
pub(crate) const MAX_IN_FLIGHT: usize = 4;

/// Which I/O path writes the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoChoice {
    /// io_uring where the kernel and the file system allow it, else plain calls.
    #[default]
    Auto,
    /// io_uring, or an error that says why not.
    Uring,
    /// pwrite and fdatasync on a thread.
    Sync,
}

/// Where and how a log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the segments.
    pub dir: PathBuf,
    /// The disk that it is on.
    pub disk: Arc<dyn Disk>,
    /// Which I/O path writes it.
    pub io: IoChoice,
    /// Size of a segment, rounded up to blocks of 4 KiB: 64_000_000 as in etcd; tests take less. A record that is
    /// larger gets a segment of its own that is larger.
    pub segment_bytes: u64,
    /// False only with --unsafe-no-fsync.
    pub fsync: bool,
    /// How many segments stay in the folder, those in use among them (--max-wals): of the released ones the oldest
    /// are recycled while there are more, or the disk is full. 0 keeps all, unless the disk is full.
    pub max_segments: usize,
}

/// etcdserverpb.Metadata of the log's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Id of the member.
    pub node_id: u64,
    /// Id of the cluster.
    pub cluster_id: u64,
}

/// An entry to append; borrowed, so that nothing is copied but into the log's buffer.
#[derive(Debug, Clone, Copy)]
pub struct EntryRef<'a> {
    /// Normal, or one of the two kinds of conf change.
    pub kind: raftpb::EntryType,
    /// Term of the entry.
    pub term: u64,
    /// Index of the entry.
    pub index: u64,
    /// Its bytes; empty ones are left out of the record, as etcd does for a leader's first entry.
    pub data: &'a [u8],
}

/// What a log holds after a snapshot mark.
#[derive(Debug, Default)]
pub struct Replay {
    /// The log's owner.
    pub metadata: Metadata,
    /// The newest hard state; all zeros if none was written.
    pub hard_state: raftpb::HardState,
    /// Index of the state that the entries follow: the one asked for, or that of a snapshot that was installed since,
    /// whose mark stands among `snapshots`.
    pub after: u64,
    /// Where terms begin, (first index, term), of entries up to that index that the segments that were read hold: they can
    /// be read back. Empty when there are none, or not without a gap.
    pub earlier: Vec<(u64, u64)>,
    /// Entries with an index above that, without gaps, the first following it.
    pub entries: Vec<raftpb::Entry>,
    /// Every snapshot mark in the segments that were read, in order. Segments that hold only entries up to the
    /// index asked for are not read.
    pub snapshots: Vec<walpb::Snapshot>,
    /// Index of the log's last entry or mark, also when it is not above the one asked for; 0 for an empty log.
    pub last_index: u64,
}

/// Number of a gathered batch; batches become durable in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(pub u64);
