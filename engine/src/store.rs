//! The single writer.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::check::{check_pages, walk};
use crate::checkpoint::{CheckpointDone, CheckpointInfo, CheckpointJob, Durable};
use crate::edit::{Edit, Garbage, own};
use crate::edit_bulk::{SortedKeys, Successor};
use crate::extent::Extent;
use crate::node::Node;
use crate::page::PAGE;
use crate::root::{Generation, Reader, State, View};
use crate::search::TreeRoot;
use crate::shrink::{Shrink, ideal_pages};
use crate::space::Space;
use crate::{Damage, KEY_MAX, Options, StoreError, TreeId, VALUE_MAX};

/// No store comes near; what is computed with revisions does not overflow below it.
const REVISION_MAX: u64 = 1 << 62;
/// How many written nodes each batch frees: about 20 us.
const FREED_PER_BATCH: usize = 64;

/// Pages that a checkpoint gave up.
#[derive(Debug)]
struct Held {
    /// The checkpoint: the one before it is the last that uses them.
    by: u64,
    extents: Vec<(u64, u32)>,
}

/// The single writer. Everything it does becomes visible to readers with `publish`.
#[derive(Debug)]
pub struct Store {
    /// The writer's own state: the published one and the batch being built.
    pub(crate) state: State,
    published: Arc<ArcSwap<State>>,
    /// Whether the state differs from the published one.
    changed: bool,
    /// Whether the published root has nodes that a finished checkpoint wrote: the next one must not freeze it.
    relinked: bool,
    /// What the batch being built stopped using; and the published batches since the last checkpoint froze a root.
    batch_garbage: Garbage,
    garbage: Garbage,
    /// The running checkpoint froze the root of this batch.
    frozen: Option<u64>,
    /// The map of the file; the running checkpoint has it.
    space: Option<Space>,
    durable: Durable,
    next_checkpoint: u64,
    /// What checkpoints gave up and nobody may use yet, oldest first.
    held: VecDeque<Held>,
    /// The generations that roots may hold, oldest first; the last is the newest checkpoint's.
    generations: VecDeque<Arc<Generation>>,
    /// Nodes that the last checkpoint wrote: freed a few at a time, since there may be very many.
    retired: Vec<Arc<Node>>,
    /// The last checkpoint was abandoned for lack of room.
    no_space: bool,
    high_water: u64,
    used_pages: u64,
    /// Memory taken when the running checkpoint began, or the first of those that found no room.
    memory_at_begin: usize,
    dirty_bytes: usize,
    pub(crate) dirty_bytes_max: usize,
    compress: bool,
    pub(crate) shrink: Shrink,
    /// What MVCC keeps between transactions.
    pub(crate) mvcc: crate::mvcc::Writer,
    /// How far the removal of superseded revisions is.
    pub(crate) removal: crate::mvcc::Removal,
}

impl Store {
    /// Opens or makes the store; the newest whole checkpoint is its state.
    /// Errors: Locked, Unsupported, Corrupt when no checkpoint of the file is whole, Io.
    pub fn open(options: Options) -> Result<Store, StoreError> {
        let opened = crate::open::open(&options)?;
        for (field, counter) in crate::mvcc::COUNTED.into_iter().zip(opened.meta.counters) {
            if counter > REVISION_MAX {
                return Err(opened.source.corrupt(opened.durable.slot, field, REVISION_MAX, counter));
            }
        }
        // What kept an older checkpoint from being taken is no part of this one.
        opened.source.damages().take();
        opened.source.damages().forget();
        let generation = Arc::new(Generation(opened.durable.checkpoint));
        let mut state = State {
            trees: opened.meta.trees(),
            counters: opened.meta.counters,
            applied: opened.meta.applied,
            batch: 0,
            generation: generation.clone(),
            hashes: Arc::new([]),
            source: opened.source,
        };
        let published = Arc::new(ArcSwap::from_pointee(state.clone()));
        state.batch = 1;
        let (high_water, used_pages) = (opened.space.high_water(), opened.space.used_pages());
        Ok(Store {
            state,
            published,
            changed: false,
            relinked: false,
            batch_garbage: Garbage::default(),
            garbage: Garbage::default(),
            frozen: None,
            space: Some(opened.space),
            next_checkpoint: opened.next_checkpoint,
            held: VecDeque::from([Held { by: opened.durable.checkpoint, extents: opened.held }]),
            durable: opened.durable,
            generations: VecDeque::from([generation]),
            retired: Vec::new(),
            no_space: false,
            high_water,
            used_pages,
            memory_at_begin: 0,
            dirty_bytes: 0,
            dirty_bytes_max: options.dirty_bytes_max,
            compress: options.compress,
            shrink: Shrink::default(),
            mvcc: Default::default(),
            removal: Default::default(),
        })
    }

    /// Hands out published roots.
    pub fn reader(&self) -> Reader {
        Reader(self.published.clone())
    }

    /// From now on the readers of another store read this one, beginning with what is published here; roots that they have
    /// taken stay as they are.
    pub fn publish_to(&mut self, readers: &Reader) {
        readers.0.store(self.published.load_full());
        self.published = readers.0.clone();
    }

    /// The writer's own state, published or not.
    pub fn view(&self) -> View<'_> {
        View { state: &self.state }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Keeps what a compaction that has ended found.
    pub(crate) fn keep_hash(&mut self, hash: crate::mvcc::CompactionHash) {
        self.state.hashes = crate::mvcc::with_hash(&self.state.hashes, hash);
        self.changed = true;
    }

    /// What readers see.
    pub(crate) fn published(&self) -> Arc<State> {
        self.published.load_full()
    }

    pub(crate) fn edit(&mut self, tree: TreeId) -> (Edit<'_>, &mut TreeRoot) {
        self.changed = true;
        let edit = Edit {
            source: &self.state.source,
            id: tree,
            batch: self.state.batch,
            garbage: &mut self.batch_garbage,
            dirty_bytes: &mut self.dirty_bytes,
        };
        (edit, &mut self.state.trees[tree as usize])
    }

    /// Inserts or replaces. Errors: TooLong, Io, Corrupt, Stopped; the tree is then as it was.
    pub fn insert(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.may_insert(key.len(), value.len())?;
        let (mut edit, root) = self.edit(tree);
        edit.insert(root, key, value)
    }

    /// The same, quicker if the key is greater than all others. Errors: as of `insert`.
    pub(crate) fn append(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.may_insert(key.len(), value.len())?;
        let (mut edit, root) = self.edit(tree);
        if edit.append(root, key, value)? { Ok(()) } else { edit.insert(root, key, value) }
    }

    /// Inserts an entry whose value depends on the one before it, if that is a matter of one leaf: `decide` gets key and
    /// value of that one, and writes the value into `value`. None: nothing has changed. Errors: as of `insert`, and
    /// those of `decide`.
    pub(crate) fn insert_behind<T>(
        &mut self,
        tree: TreeId,
        key: &[u8],
        value: &mut Vec<u8>,
        decide: impl FnOnce(&[u8], &[u8], &mut Vec<u8>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.may_insert(key.len(), 0)?;
        let (mut edit, root) = self.edit(tree);
        edit.insert_behind(root, key, value, decide)
    }

    fn may_insert(&self, key: usize, value: usize) -> Result<(), StoreError> {
        self.state.source.check_running()?;
        for (what, len, max) in [("key", key, KEY_MAX), ("value", value, VALUE_MAX)] {
            if len > max {
                return Err(StoreError::TooLong { what, len, max });
            }
        }
        Ok(())
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

    /// Removes those keys of the list that the tree holds, from `from` on, until the list or the work allowed is at
    /// its end; where it stopped. What follows a removed entry and has its stem gets the value that `successor` says.
    /// Errors: Io, Corrupt, Stopped; a part may be gone by then.
    pub(crate) fn remove_sorted(
        &mut self,
        tree: TreeId,
        keys: &SortedKeys,
        successor: Option<Successor>,
        from: usize,
        work: &mut usize,
    ) -> Result<usize, StoreError> {
        self.state.source.check_running()?;
        let (mut edit, root) = self.edit(tree);
        edit.remove_sorted(root, keys, successor, from, work)
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
        self.relinked = false;
        self.garbage.publish(&mut self.batch_garbage, self.frozen);
        self.state.batch += 1;
        self.changed = false;
        for _ in 0..FREED_PER_BATCH {
            let Some(node) = self.retired.pop() else { break };
            node.free(&mut self.retired, &mut self.batch_garbage.spare);
        }
    }

    /// Whether a checkpoint is being written.
    pub(crate) fn is_checkpointing(&self) -> bool {
        self.frozen.is_some()
    }

    /// Bytes of nodes that no checkpoint has written.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty_bytes
    }

    /// Bytes that nodes take in memory, with the long keys and values beside them: dirty ones, those that a checkpoint
    /// is writing or has written and that are not freed yet, and those that only readers' roots still hold.
    pub fn memory_bytes(&self) -> usize {
        self.state.source.memory().bytes()
    }

    /// What a checkpoint that is running, or found no room, has been joined by in memory since it began. None
    /// when there is none: then what is in memory is not about to be freed.
    pub fn memory_since_checkpoint(&self) -> Option<usize> {
        let waits = self.frozen.is_some() || self.no_space;
        waits.then(|| self.memory_bytes().saturating_sub(self.memory_at_begin))
    }

    /// Whether dirty nodes hold as much as the options allow, and no checkpoint is running.
    pub fn checkpoint_due(&self) -> bool {
        self.frozen.is_none() && self.dirty_bytes >= self.dirty_bytes_max
    }

    /// Freezes the published root for writing out. None while one is running, when one has been finished and nothing
    /// published since, and after an error. The job may run
    /// on any thread; the writer goes on meanwhile and hands the outcome to `finish_checkpoint`. (A job that is
    /// dropped instead of run, or fails, was the last until the store is opened again.)
    pub fn begin_checkpoint(&mut self) -> Option<CheckpointJob> {
        self.state.source.check_running().ok().filter(|()| !self.relinked)?;
        let mut space = self.space.take()?;
        self.release_held(&mut space);
        let state = self.published.load_full();
        self.frozen = Some(state.batch);
        assert!(self.garbage.nodes.is_empty(), "all was resolved when it finished");
        let freed = std::mem::take(&mut self.garbage.extents);
        let checkpoint = self.next_checkpoint;
        self.next_checkpoint += 1;
        let retired = std::mem::take(&mut self.retired);
        self.batch_garbage.spare.clear();
        if !self.no_space {
            self.memory_at_begin = self.memory_bytes();
        }
        let (durable, compress) = (self.durable.clone(), self.compress);
        Some(CheckpointJob { state, space, durable, checkpoint, compress, freed, retired })
    }

    /// Lets go of what checkpoint T gave up, once T + 1 is durable and no root is left that may see it: such roots
    /// were published before T was finished, so their generation is below T.
    fn release_held(&mut self, space: &mut Space) {
        while self.generations.len() > 1 && Arc::get_mut(&mut self.generations[0]).is_some() {
            self.generations.pop_front();
        }
        let oldest = self.generations[0].0;
        while self.held.front().is_some_and(|held| held.by < self.durable.checkpoint && held.by <= oldest) {
            for (first, pages) in self.held.pop_front().map(|held| held.extents).unwrap_or_default() {
                space.release(first, pages);
            }
        }
    }

    /// Takes note of a durable checkpoint: dirty nodes become clean, pages become free one checkpoint later.
    ///
    /// Errors: of the kind `StoreError::is_no_space`, when it was abandoned: what was dirty still is, and the next
    /// checkpoint tries again. Until one succeeds every change stays in memory: the caller's to bound.
    pub fn finish_checkpoint(&mut self, done: CheckpointDone) -> Result<CheckpointInfo, StoreError> {
        assert_eq!(self.frozen, Some(done.state.batch), "the outcome of the running checkpoint");
        self.frozen = None;
        self.no_space = done.durable.is_err();
        self.durable = match done.durable {
            Ok(durable) => durable,
            Err(error) => {
                self.space = Some(done.space);
                self.garbage.extents.extend(done.freed);
                // No checkpoint will write what roots before the next one held.
                self.retired.append(&mut self.garbage.nodes);
                self.retire(&done.state);
                return Err(error);
            }
        };
        (self.high_water, self.used_pages) = (done.space.high_water(), done.space.used_pages());
        self.held.push_back(Held { by: self.durable.checkpoint, extents: done.freed });
        self.shrink.checkpoint(done.space.room(), ideal_pages(&done.state.trees));
        self.space = Some(done.space);
        let mut orphans = HashSet::new();
        self.garbage.resolve(&mut orphans);
        self.batch_garbage.resolve(&mut orphans);
        self.dirty_bytes = 0;
        let mut relink =
            Relink { batch: self.state.batch, garbage: &mut self.batch_garbage, orphans: &mut orphans };
        for root in &mut self.state.trees {
            self.dirty_bytes += relink.root(root);
        }
        self.batch_garbage.extents.extend(orphans.iter().map(|extent| (extent.page, extent.pages)));
        self.state.generation = Arc::new(Generation(self.durable.checkpoint));
        self.generations.push_back(self.state.generation.clone());
        self.retire(&done.state);
        drop(done.state);
        self.relinked = true;
        // Between batches readers get the clean nodes at once, so that the written ones can go.
        if !self.changed {
            self.changed = true;
            self.publish();
        }
        Ok(self.durable.info())
    }

    /// The nodes of a root that was frozen are freed a few at a time.
    fn retire(&mut self, frozen: &State) {
        for root in &frozen.trees {
            if let TreeRoot::Memory(node) = root {
                self.retired.push(node.clone());
            }
        }
    }

    /// Whether the last checkpoint found no room on the disk. Nothing is lost by that; the next one tries again.
    pub fn no_space(&self) -> bool {
        self.no_space
    }

    /// What the newest durable checkpoint and the one before it hold.
    pub fn checkpoint_info(&self) -> CheckpointInfo {
        self.durable.info()
    }

    /// Number of the newest durable checkpoint; they ascend.
    pub fn checkpoint_number(&self) -> u64 {
        self.durable.checkpoint
    }

    /// What readers and the scrub found damaged since the last call. Cheap when there is nothing.
    pub fn take_damage(&self) -> Vec<Damage> {
        self.state.source.damages().take()
    }

    /// Walks every tree and verifies every invariant; between checkpoints also that each page in use is reached
    /// exactly once. Reads the whole store: for tests and tools.
    /// Errors: the first invariant that does not hold, as Corrupt; Io.
    pub fn check(&self) -> Result<(), StoreError> {
        let mut extents = Vec::new();
        walk(&self.state.source, &self.state.trees, &mut extents)?;
        let Some(space) = &self.space else { return Ok(()) };
        for garbage in [&self.garbage, &self.batch_garbage] {
            extents.extend_from_slice(&garbage.extents);
        }
        check_pages(&self.state.source, space, &extents)
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.state.source.file_pages() * PAGE as u64
    }

    /// Page high-water mark of the newest checkpoint times page size.
    pub fn size_bytes(&self) -> u64 {
        self.high_water * PAGE as u64
    }

    /// The same without free pages.
    pub fn size_in_use_bytes(&self) -> u64 {
        self.used_pages * PAGE as u64
    }
}

#[cfg(test)]
impl Store {
    /// The page of the durable meta page.
    pub(crate) fn meta_slot(&self) -> u64 {
        self.durable.slot
    }

    /// Whether opening had to walk the trees for a lost bitmap; until the next checkpoint.
    pub(crate) fn lost_bitmaps(&self) -> bool {
        self.space.as_ref().is_some_and(|space| space.touched_bitmaps(0).next().is_some())
    }

    /// Whether the newest meta page that is whole was taken; until the next checkpoint begins.
    pub(crate) fn took_the_newest(&self) -> bool {
        self.next_checkpoint == self.durable.checkpoint + 1
    }

    /// Bytes of each extent, and how many of them its page refers to.
    pub(crate) fn extent_usage(&self) -> Vec<(u64, u64)> {
        let mut usages = Vec::new();
        for id in TreeId::ALL {
            let (tree, root) = self.state.tree(id);
            let mut nodes: Vec<_> = tree.top(root).unwrap().into_iter().collect();
            while let Some(node) = nodes.pop() {
                usages.extend(node.page().usages().iter().map(|u| (u.extent.bytes(), u.live)));
                if !node.page().is_leaf() {
                    nodes.extend((0..node.page().count()).map(|i| tree.child(&node, i).unwrap()));
                }
            }
        }
        usages
    }

    /// Bytes in the cache of clean pages.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.state.source.cached_bytes()
    }

    /// The page of a tree's root, if it is on disk.
    pub(crate) fn root_page(&self, tree: TreeId) -> Option<u64> {
        match &self.state.trees[tree as usize] {
            TreeRoot::Disk(link) => Some(link.page),
            _ => None,
        }
    }
}

/// Puts links and references in place of what a checkpoint wrote.
struct Relink<'r> {
    batch: u64,
    garbage: &'r mut Garbage,
    /// Extents that were written with nodes that have been replaced since. A copy of such a node may take its extents
    /// over, but an extent belongs to one node: the first comes, and another keeps its parts in memory.
    orphans: &'r mut HashSet<Extent>,
}

impl Relink<'_> {
    /// Bytes of the nodes that are still dirty.
    fn root(&mut self, root: &mut TreeRoot) -> usize {
        let TreeRoot::Memory(node) = root else { return 0 };
        match node.written.get() {
            None => self.node(node),
            Some(link) => {
                *root = TreeRoot::Disk(link);
                0
            }
        }
    }

    fn node(&mut self, node: &mut Arc<Node>) -> usize {
        let mut dirty_bytes = PAGE;
        if !node.page().is_leaf() || node.blobs().any(|blob| blob.written.is_set()) {
            let own = own(node, self.batch, self.garbage);
            for i in 0..own.page().count() {
                if let Some(place) = own.child_in_memory(i)
                    && !own.child_at(place).written.is_set()
                {
                    dirty_bytes += self.node(own.child_at_mut(place));
                }
            }
            own.relink_children();
            own.relink_longs(|extent, live| !extent.is_sparse(live) && self.orphans.remove(&extent));
        }
        dirty_bytes + node.blobs().map(|blob| blob.bytes.len()).sum::<usize>()
    }
}
