//! MVCC: etcd's revisions on top of the trees.
//!
//! Three trees hold one truth. `Key` is etcd's bucket of that name, byte for byte: revision -> stored pair. `Index`
//! says which revisions a user key has, and what a put needs to know of each; `LeaseKey` says what is attached to
//! a lease. All three change together in one transaction and become visible with one publish, so nothing is
//! rebuilt at a start, and a reader of a root never sees half of a transaction.
//!
//! Promises: every change makes a new revision and no revision is ever rewritten; a read at a revision gives the
//! same answer for as long as that revision is not compacted; the entries of `Key` are exactly those that etcd
//! would hold after the same requests, so hashes and snapshots are equal.
//!
//! It must never look at the clock, at raft, or at what a lease means: a lease is a number here. An error from
//! below leaves a transaction half done, so the caller must stop writing to the store after one.

mod codec;
mod compact;
mod doomed;
mod hash;
mod read;
mod rebuild;
mod txn;

pub use doomed::{CompactionJob, Doomed};
pub use hash::BUCKETS;
pub use read::{Changes, Keys};
pub use txn::Txn;

pub(crate) use compact::Removal;
pub(crate) use hash::{CompactionHash, with as with_hash};
pub(crate) use rebuild::{Indexer, index_record, indexed, lift};
pub(crate) use txn::Writer;

use std::borrow::Cow;

use bytes::Bytes;

/// Counters of the root: the current revision (0 in a new store, which is at revision 1), and the compact revision
/// plus one (0 if there never was a compaction).
const CURRENT_REVISION: usize = 0;
const COMPACT_REVISION: usize = 1;
/// Their names, in this order.
pub(crate) const COUNTED: [&str; 2] = ["current revision", "compact revision"];

/// A point in the history of the store. `main` counts transactions, `sub` the changes within one from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Revision {
    /// The transaction.
    pub main: i64,
    /// The change within it.
    pub sub: i64,
}

/// An interval of user keys. `end` None is one key; Some(empty) is every key >= start; else half open.
/// (From the wire: an empty range_end is None, a single zero byte is Some(empty).)
#[derive(Debug, Clone, Copy)]
pub struct KeyRange<'k> {
    /// The first key.
    pub start: &'k [u8],
    /// The first key that does not belong to it any more; see above.
    pub end: Option<&'k [u8]>,
}

/// What the index knows of a live key at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMeta<'a> {
    /// The user key.
    pub key: Cow<'a, [u8]>,
    /// The put that wrote this version; `View::kv` has the pair.
    pub modified: Revision,
    /// Main revision of the put that created the key.
    pub create_revision: i64,
    /// Number of puts since the key was created, from 1.
    pub version: i64,
    /// The lease it is attached to; 0 for none.
    pub lease: i64,
}

/// A change that a transaction made, in order: what watchers see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When it was made.
    pub revision: Revision,
    /// A tombstone.
    pub deleted: bool,
    /// The user key: a slice of `kv`.
    pub key: Bytes,
    /// The mvccpb.KeyValue as stored (for a tombstone: only the key).
    pub kv: Bytes,
}
