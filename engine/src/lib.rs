//! The storage engine: copy-on-write B+trees under one published root, and MVCC on top.
#![allow(missing_docs, unused_variables, clippy::todo, dead_code)]

use std::path::PathBuf;
use std::sync::Arc;

use trilith_disk::Disk;

mod mvcc;

pub use mvcc::*;

/// The trees under the root. All but Index and LeaseKey are etcd's buckets, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TreeId {
    Key = 0,
    /// Ours: user key then revision (8 + 4 bytes, big endian), ordered by key and then by revision.
    Index = 1,
    /// Ours: lease id (8 bytes, big endian) then user key: what is attached to a lease.
    LeaseKey = 2,
    Meta = 3,
    Lease = 4,
    Alarm = 5,
    Auth = 6,
    AuthUsers = 7,
    AuthRoles = 8,
    Members = 9,
    MembersRemoved = 10,
    Cluster = 11,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub path: PathBuf,
    pub disk: Arc<dyn Disk>,
    /// Read clean pages through a memory map; else through pread and a bounded cache (always so on a simulated disk).
    pub map: bool,
    /// A checkpoint is due when dirty nodes hold this many bytes.
    pub dirty_bytes_max: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    #[error("mvcc: required revision is a future revision")]
    Future,
}

/// The single writer. Everything it does becomes visible to readers with `publish`.
#[derive(Debug)]
pub struct Store {}

/// A published root: cheap to clone, keeps its pages for as long as it lives, locks nothing. Send + Sync.
#[derive(Debug, Clone)]
pub struct Root {}

/// Takes the newest published root, from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {}

impl Reader {
    pub fn root(&self) -> Root {
        todo!()
    }
}

/// Something to read from: a published root, or the writer's own unpublished state.
#[derive(Debug, Clone, Copy)]
pub struct View<'a>(std::marker::PhantomData<&'a ()>);

/// Bytes of a value: borrowed from a page where possible.
#[derive(Debug)]
pub enum Value<'a> {
    Page(&'a [u8]),
    Shared(Arc<[u8]>, std::ops::Range<usize>),
}

impl std::ops::Deref for Value<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        todo!()
    }
}

// ---------------------------------------------------------------- trees (store side)

impl<'a> View<'a> {
    pub fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Value<'a>>, StoreError> {
        todo!()
    }
    /// At the first entry with a key >= `key`.
    pub fn seek(&self, tree: TreeId, key: &[u8]) -> Result<Cursor<'a>, StoreError> {
        todo!()
    }
    /// At the last entry with a key < `key`.
    pub fn seek_before(&self, tree: TreeId, key: &[u8]) -> Result<Cursor<'a>, StoreError> {
        todo!()
    }
}

/// A position in a tree: at an entry, or past an end.
#[derive(Debug)]
pub struct Cursor<'a>(std::marker::PhantomData<&'a ()>);

impl<'a> Cursor<'a> {
    pub fn key(&self) -> Option<&[u8]> {
        todo!()
    }
    pub fn value(&self) -> Result<Option<Value<'a>>, StoreError> {
        todo!()
    }
    pub fn next(&mut self) -> Result<(), StoreError> {
        todo!()
    }
    pub fn prev(&mut self) -> Result<(), StoreError> {
        todo!()
    }
}

impl Store {
    /// Opens or makes the store; the newest whole checkpoint is its state.
    pub fn open(options: Options) -> Result<Store, StoreError> {
        todo!()
    }
    pub fn reader(&self) -> Reader {
        todo!()
    }
    /// The writer's own state, published or not.
    pub fn view(&self) -> View<'_> {
        todo!()
    }
    /// Inserts or replaces.
    pub fn insert(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        todo!()
    }
    /// Whether the key was there.
    pub fn remove(&mut self, tree: TreeId, key: &[u8]) -> Result<bool, StoreError> {
        todo!()
    }
    /// Raft index and term of the last applied entry; part of the root and of the checkpoint's meta page.
    pub fn set_applied(&mut self, index: u64, term: u64) {
        todo!()
    }
    pub fn applied(&self) -> (u64, u64) {
        todo!()
    }
    /// Makes everything since the last call visible to readers, atomically.
    pub fn publish(&mut self) {
        todo!()
    }
    pub fn checkpoint_due(&self) -> bool {
        todo!()
    }
    /// Freezes the published root for writing out. None while one is running. The job may run on any thread;
    /// the writer goes on meanwhile and hands the outcome to `finish_checkpoint`.
    pub fn begin_checkpoint(&mut self) -> Option<CheckpointJob> {
        todo!()
    }
    /// Takes note of a durable checkpoint: dirty nodes become clean, pages become free one checkpoint later.
    pub fn finish_checkpoint(&mut self, done: CheckpointDone) -> Result<CheckpointInfo, StoreError> {
        todo!()
    }
    /// Page high-water mark times page size.
    pub fn size_bytes(&self) -> u64 {
        todo!()
    }
    /// The same without free pages.
    pub fn size_in_use_bytes(&self) -> u64 {
        todo!()
    }
}

#[derive(Debug)]
pub struct CheckpointJob {}

impl CheckpointJob {
    /// Writes, syncs, writes the meta page, syncs. Blocks: not for the writer's thread.
    pub fn run(self) -> Result<CheckpointDone, StoreError> {
        todo!()
    }
}

#[derive(Debug)]
pub struct CheckpointDone {}

/// What the newest durable checkpoint and the one before it hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckpointInfo {
    pub applied_index: u64,
    pub applied_term: u64,
    pub previous_applied_index: u64,
}

impl Root {
    pub fn view(&self) -> View<'_> {
        todo!()
    }
    pub fn applied(&self) -> (u64, u64) {
        todo!()
    }
}
