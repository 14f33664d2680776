//! The published root, and what reads from one.
//!
//! Promises: taking a root locks nothing and waits for nobody. A root keeps its pages: those in memory by its
//! references, those on disk by its pin on the generation, which keeps the checkpoint from reusing them.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::cursor::Cursor;
use crate::mvcc::CompactionHash;
use crate::search::{Tree, TreeRoot};
use crate::source::Source;
use crate::{COUNTERS, StoreError, TREES, TreeId};

/// Held by every root that may refer to pages of the checkpoint of this number.
#[derive(Debug)]
pub(crate) struct Generation(pub(crate) u64);

/// Everything that a root is.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) trees: [TreeRoot; TREES],
    pub(crate) counters: [u64; COUNTERS],
    pub(crate) applied: (u64, u64),
    /// The batch that ended with publishing this state; for the writer's own state, the one being built.
    pub(crate) batch: u64,
    pub(crate) generation: Arc<Generation>,
    /// Of the last compactions that this process has seen to their ends.
    pub(crate) hashes: Arc<[CompactionHash]>,
    pub(crate) source: Arc<Source>,
}

impl State {
    pub(crate) fn tree(&self, id: TreeId) -> (Tree<'_>, &TreeRoot) {
        (Tree { source: &self.source, id }, &self.trees[id as usize])
    }
}

/// A published root: cheap to clone, keeps its pages for as long as it lives, locks nothing. Send + Sync.
#[derive(Debug, Clone)]
pub struct Root(pub(crate) Arc<State>);

impl Root {
    /// What it holds, to read from.
    pub fn view(&self) -> View<'_> {
        View { state: &self.0 }
    }

    /// Raft index and term of the last entry applied to it.
    pub fn applied(&self) -> (u64, u64) {
        self.0.applied
    }
}

/// Takes the newest published root, from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader(pub(crate) Arc<ArcSwap<State>>);

impl Reader {
    /// The newest published root.
    pub fn root(&self) -> Root {
        Root(self.0.load_full())
    }
}

/// Something to read from: a published root, or the writer's own unpublished state.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub(crate) state: &'a State,
}

impl<'a> View<'a> {
    /// The value of a key. Errors: Io, Corrupt.
    pub fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Value<'a>>, StoreError> {
        let (tree, root) = self.state.tree(tree);
        tree.get(root, key)
    }

    /// Bytes of the value of a key, without reading a long one. Errors: Io, Corrupt.
    pub fn value_len(&self, tree: TreeId, key: &[u8]) -> Result<Option<usize>, StoreError> {
        let (tree, root) = self.state.tree(tree);
        tree.value_len(root, key)
    }

    /// At the first entry with a key >= `key`. Errors: Io, Corrupt.
    pub fn seek(&self, tree: TreeId, key: &[u8]) -> Result<Cursor<'a>, StoreError> {
        let (tree, root) = self.state.tree(tree);
        Cursor::at_or_after(tree, root, key)
    }

    /// At the last entry with a key < `key`. Errors: Io, Corrupt.
    pub fn seek_before(&self, tree: TreeId, key: &[u8]) -> Result<Cursor<'a>, StoreError> {
        let (tree, root) = self.state.tree(tree);
        Cursor::before(tree, root, key)
    }

    /// At the last entry. Errors: Io, Corrupt.
    pub fn last(&self, tree: TreeId) -> Result<Cursor<'a>, StoreError> {
        let (tree, root) = self.state.tree(tree);
        Cursor::last(tree, root)
    }

    /// One of the [`COUNTERS`] numbers that belong to the root; 0 before it is set.
    pub fn counter(&self, slot: usize) -> u64 {
        self.state.counters[slot]
    }
}

/// Bytes of a key or value: borrowed from a page where possible.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    /// In a page or node that the view keeps.
    Page(&'a [u8]),
    /// In a buffer that this value keeps.
    Shared(Arc<[u8]>, std::ops::Range<usize>),
}

impl std::ops::Deref for Value<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Value::Page(bytes) => bytes,
            Value::Shared(bytes, range) => &bytes[range.clone()],
        }
    }
}
