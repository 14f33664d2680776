//! MVCC on top of the trees: revision keys, the user-key index, transactions, compaction, hashes.
#![allow(missing_docs, unused_variables, clippy::todo, dead_code)]

use bytes::Bytes;

use crate::{Store, StoreError, Value, View};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Revision {
    pub main: i64,
    pub sub: i64,
}

/// An interval of user keys. `end` None is one key; Some(empty) is every key >= start; else half open.
/// (From the wire: an empty range_end is None, a single zero byte is Some(empty).)
#[derive(Debug, Clone, Copy)]
pub struct KeyRange<'k> {
    pub start: &'k [u8],
    pub end: Option<&'k [u8]>,
}

/// What the index knows of a live key at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMeta<'a> {
    pub key: std::borrow::Cow<'a, [u8]>,
    pub modified: Revision,
    pub create_revision: i64,
    pub version: i64,
    pub lease: i64,
}

/// A change that a transaction made, in order: what watchers see.
#[derive(Debug, Clone)]
pub struct Change {
    pub revision: Revision,
    pub deleted: bool,
    pub key: Bytes,
    /// The mvccpb.KeyValue as stored (for a tombstone: only the key).
    pub kv: Bytes,
}

impl<'a> View<'a> {
    /// Current revision: main of the last transaction; 1 for an empty store.
    pub fn revision(&self) -> i64 {
        todo!()
    }
    /// Last compaction (scheduled or done); -1 if never.
    pub fn compact_revision(&self) -> i64 {
        todo!()
    }
    /// Live keys of the interval at `revision` (<= 0: the current one, inside a transaction its own), in key
    /// order. Errors: Compacted, Future.
    pub fn keys(&self, range: KeyRange<'_>, revision: i64) -> Result<Keys<'a>, StoreError> {
        todo!()
    }
    /// The stored mvccpb.KeyValue bytes of a revision that `keys` named.
    pub fn kv(&self, revision: Revision) -> Result<Value<'a>, StoreError> {
        todo!()
    }
    /// Every change with main revision in [from, to], in revision order: for watchers that catch up.
    pub fn changes(&self, from: i64, to: i64) -> Result<Changes<'a>, StoreError> {
        todo!()
    }
    /// Keys attached to a lease, in byte order.
    pub fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, StoreError> {
        todo!()
    }
    /// etcd's HashKV at a revision (0: current): hash, compact revision, hash revision. (behaviours.md X8, X9)
    pub fn hash_kv(&self, revision: i64) -> Result<(u32, i64, i64), StoreError> {
        todo!()
    }
    /// etcd's Hash over all buckets (X7).
    pub fn hash(&self) -> Result<u32, StoreError> {
        todo!()
    }
}

/// Iterator of `View::keys`; owns its bounds.
#[derive(Debug)]
pub struct Keys<'a>(std::marker::PhantomData<&'a ()>);

impl<'a> Iterator for Keys<'a> {
    type Item = Result<KeyMeta<'a>, StoreError>;
    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}

/// Iterator of `View::changes`.
#[derive(Debug)]
pub struct Changes<'a>(std::marker::PhantomData<&'a ()>);

impl Iterator for Changes<'_> {
    type Item = Result<Change, StoreError>;
    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}

impl Store {
    /// Begins a transaction: its changes share main revision current + 1, subs count from 0.
    pub fn txn(&mut self) -> Txn<'_> {
        todo!()
    }
    /// Marks the compaction (meta/scheduledCompactRev): revisions below are refused at once. Errors: Compacted,
    /// Future. Superseded revisions go in `compact_step`.
    pub fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        todo!()
    }
    /// Removes up to `budget` superseded revisions. True when nothing is left to do (meta/finishedCompactRev is
    /// then written). Resumes by itself after a restart.
    pub fn compact_step(&mut self, budget: usize) -> Result<bool, StoreError> {
        todo!()
    }
}

/// A transaction on the writer. Dropping it ends it: the revision moves when something changed.
#[derive(Debug)]
pub struct Txn<'s>(&'s mut Store);

impl Txn<'_> {
    /// Reads see the transaction's own writes.
    pub fn view(&self) -> View<'_> {
        todo!()
    }
    /// The revision that its answers carry: main of its changes, or the current one while there are none.
    pub fn revision(&self) -> i64 {
        todo!()
    }
    /// Writes a new version of the key; detaches it from its old lease and attaches it to `lease` unless 0.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: i64) -> Result<(), StoreError> {
        todo!()
    }
    /// Deletes the live keys of the interval in key order; how many.
    pub fn delete_range(&mut self, range: KeyRange<'_>) -> Result<i64, StoreError> {
        todo!()
    }
    /// Ends the transaction and hands out its changes.
    pub fn end(self) -> Vec<Change> {
        todo!()
    }
}
