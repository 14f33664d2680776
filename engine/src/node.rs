//! Nodes in memory: pages that no checkpoint has written yet.
//!
//! A node is a page's bytes with a side table for what is not on disk either: children of a branch, and long keys
//! and values. Nodes form a persistent tree: whoever changes a node that an older root may hold copies it first.
//!
//! Promises: a node that is reachable from a published root never changes, but for the note where the checkpoint
//! wrote it. The side tables hold exactly what the cells name.

use std::sync::Arc;

use crate::TreeId;
use crate::mark::Mark;
use crate::order::Order;
use crate::page::{
    CellValue, INLINE_MAX, Link, Long, PAGE, PageBytes, PageMut, PageView, Place, branch_cell_bytes,
};

/// A long key or value in memory.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) bytes: Box<[u8]>,
    /// The batch that made it.
    pub(crate) batch: u64,
    /// Where the running checkpoint put it.
    pub(crate) written: Mark<Long>,
}

/// A child of a branch: a page on disk, or a node.
#[derive(Debug, Clone)]
pub(crate) enum Child {
    Disk(Link),
    Memory(Arc<Node>),
}

const CHUNK: usize = 16;
type Chunk = [Option<Arc<Node>>; CHUNK];

/// The children of a branch that are in memory. In chunks, so that copying a branch touches few reference counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Children(Vec<Arc<Chunk>>);

impl Children {
    fn get(&self, place: usize) -> &Arc<Node> {
        self.0[place / CHUNK][place % CHUNK].as_ref().expect("the branch's cell names a child of this table")
    }

    fn get_mut(&mut self, place: usize) -> &mut Arc<Node> {
        let chunk = Arc::make_mut(&mut self.0[place / CHUNK]);
        chunk[place % CHUNK].as_mut().expect("the branch's cell names a child of this table")
    }

    fn add(&mut self, node: Arc<Node>) -> usize {
        for (c, chunk) in self.0.iter_mut().enumerate() {
            if let Some(free) = chunk.iter().position(Option::is_none) {
                Arc::make_mut(chunk)[free] = Some(node);
                return c * CHUNK + free;
            }
        }
        let mut chunk = Chunk::default();
        chunk[0] = Some(node);
        self.0.push(Arc::new(chunk));
        (self.0.len() - 1) * CHUNK
    }

    fn take(&mut self, place: usize) -> Arc<Node> {
        let chunk = Arc::make_mut(&mut self.0[place / CHUNK]);
        chunk[place % CHUNK].take().expect("the branch's cell names a child of this table")
    }

    /// Adds the children that nobody else holds.
    fn dissolve(self, into: &mut Vec<Arc<Node>>) {
        for chunk in self.0 {
            if let Ok(chunk) = Arc::try_unwrap(chunk) {
                into.extend(chunk.into_iter().flatten());
            }
        }
    }

    /// Whether no child is in memory.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|chunk| chunk.iter().all(Option::is_none))
    }
}

/// A page in memory.
#[derive(Debug)]
pub(crate) struct Node {
    page: Box<PageBytes>,
    children: Children,
    blobs: Vec<Option<Arc<Blob>>>,
    /// The batch that made it: the writer may change it in place until that batch is published.
    pub(crate) batch: u64,
    /// Where the running checkpoint put it.
    pub(crate) written: Mark<Link>,
}

/// What a removed cell referred to, for the caller to let go.
#[derive(Debug, Default)]
pub(crate) struct Released {
    pub(crate) extents: Vec<Long>,
    pub(crate) blobs: Vec<Arc<Blob>>,
}

impl Released {
    fn add(&mut self, node: &mut Node, place: Place<Long>) {
        match place {
            Place::Disk(long) => self.extents.push(long),
            Place::Memory(place) => self.blobs.push(node.take_blob(place)),
        }
    }
}

impl Node {
    /// An empty node. A tree never keeps one.
    pub(crate) fn new(tree: TreeId, level: u8, batch: u64) -> Node {
        let mut page = Box::new([0; PAGE]);
        PageMut(&mut page).init(tree as u8, level, Order::of(tree));
        Node { page, children: Children::default(), blobs: Vec::new(), batch, written: Mark::default() }
    }

    /// A page from disk, to be changed.
    pub(crate) fn from_disk(bytes: &[u8], batch: u64) -> Node {
        let mut page = Box::new([0; PAGE]);
        page.copy_from_slice(bytes);
        Node { page, children: Children::default(), blobs: Vec::new(), batch, written: Mark::default() }
    }

    /// The same content as a node of another batch.
    pub(crate) fn copy(&self, batch: u64) -> Node {
        Node {
            page: self.page.clone(),
            children: self.children.clone(),
            blobs: self.blobs.clone(),
            batch,
            written: Mark::default(),
        }
    }

    pub(crate) fn page(&self) -> PageView<'_> {
        PageView(&self.page[..])
    }

    pub(crate) fn bytes(&self) -> &PageBytes {
        &self.page
    }

    pub(crate) fn edit(&mut self) -> PageMut<'_> {
        PageMut(&mut self.page)
    }

    pub(crate) fn blob(&self, place: usize) -> &Arc<Blob> {
        self.blobs[place].as_ref().expect("the cell names a blob of this table")
    }

    /// The blobs that the cells name.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Arc<Blob>> {
        self.blobs.iter().flatten()
    }

    fn take_blob(&mut self, place: usize) -> Arc<Blob> {
        self.blobs[place].take().expect("the cell names a blob of this table")
    }

    fn add_blob(&mut self, blob: Arc<Blob>) -> usize {
        match self.blobs.iter().position(Option::is_none) {
            Some(free) => {
                self.blobs[free] = Some(blob);
                free
            }
            None => {
                self.blobs.push(Some(blob));
                self.blobs.len() - 1
            }
        }
    }

    fn add_long(&mut self, bytes: &[u8]) -> Option<usize> {
        if bytes.len() <= INLINE_MAX {
            return None;
        }
        let blob = Blob { bytes: bytes.into(), batch: self.batch, written: Mark::default() };
        Some(self.add_blob(Arc::new(blob)))
    }

    /// Whether a child with a key of this length fits.
    pub(crate) fn fits_child(&self, key: usize) -> bool {
        self.page().free_bytes() >= branch_cell_bytes(key)
    }

    /// Inserts an entry that fits.
    pub(crate) fn insert_entry(&mut self, i: usize, key: &[u8], value: &[u8]) {
        if key.len() <= INLINE_MAX && value.len() <= INLINE_MAX {
            self.edit().insert_short(i, key, value);
        } else {
            let (long_key, long_value) = (self.add_long(key), self.add_long(value));
            self.edit().insert_entry(i, key, long_key, value, long_value);
        }
        self.edit().set_run_position(i + 1);
    }

    /// Inserts a child that fits.
    pub(crate) fn insert_child(&mut self, i: usize, key: &[u8], child: Child) {
        let long_key = self.add_long(key);
        let child = match child {
            Child::Disk(link) => Place::Disk(link),
            Child::Memory(node) => Place::Memory(self.children.add(node)),
        };
        self.edit().insert_child(i, key, long_key, child);
    }

    pub(crate) fn child(&self, i: usize) -> Place<Link> {
        self.page().child(i)
    }

    /// The place of a child, if the node is a branch and the child is in memory.
    pub(crate) fn child_in_memory(&self, i: usize) -> Option<usize> {
        if self.page().is_leaf() {
            return None;
        }
        match self.child(i) {
            Place::Memory(place) => Some(place),
            Place::Disk(_) => None,
        }
    }

    /// The child at a place that a cell names.
    pub(crate) fn child_at(&self, place: usize) -> &Arc<Node> {
        self.children.get(place)
    }

    pub(crate) fn child_at_mut(&mut self, place: usize) -> &mut Arc<Node> {
        self.children.get_mut(place)
    }

    /// Puts a node where the cell had a page on disk.
    pub(crate) fn adopt(&mut self, i: usize, node: Arc<Node>) -> usize {
        let place = self.children.add(node);
        self.edit().set_child(i, Place::Memory(place));
        place
    }

    /// Removes an entry; what it referred to.
    pub(crate) fn remove_entry(&mut self, i: usize) -> Released {
        let released = self.release_key(i);
        let released = self.release_value(i, released);
        self.edit().remove(i);
        released
    }

    /// Removes a child; it, and what the cell's key referred to.
    pub(crate) fn remove_child(&mut self, i: usize) -> (Child, Released) {
        let released = self.release_key(i);
        let child = match self.child(i) {
            Place::Disk(link) => Child::Disk(link),
            Place::Memory(place) => Child::Memory(self.children.take(place)),
        };
        self.edit().remove(i);
        (child, released)
    }

    /// Takes the key away from the first cell of a branch.
    pub(crate) fn blank_first_key(&mut self) -> Released {
        let released = self.release_key(0);
        self.edit().blank_key(0);
        released
    }

    fn release_key(&mut self, i: usize) -> Released {
        let mut released = Released::default();
        if self.page().key(i).1 {
            let (place, _) = self.page().long_key(i);
            released.add(self, place);
        }
        released
    }

    fn release_value(&mut self, i: usize, mut released: Released) -> Released {
        if let CellValue::Long(place, _) = self.page().value(i) {
            released.add(self, place);
        }
        released
    }

    /// Moves the cells from `from` on to the end of another node of the same kind.
    pub(crate) fn move_tail(&mut self, from: usize, to: &mut Node) {
        for i in from..self.page().count() {
            let at = to.page().count();
            to.edit().append_cell(self.page(), i);
            if self.page().key(i).1
                && let (Place::Memory(place), _) = self.page().long_key(i)
            {
                let place = to.add_blob(self.take_blob(place));
                to.set_memory_key(at, place);
            }
            if self.page().is_leaf() {
                if let CellValue::Long(Place::Memory(place), len) = self.page().value(i) {
                    let place = to.add_blob(self.take_blob(place));
                    to.edit().set_long_value(at, Place::Memory(place));
                    debug_assert_eq!(len as usize, to.blob(place).bytes.len());
                }
            } else if let Place::Memory(place) = self.child(i) {
                let place = to.children.add(self.children.take(place));
                to.edit().set_child(at, Place::Memory(place));
            }
        }
        self.edit().truncate(from);
        self.edit().refresh_heads();
        to.edit().refresh_heads();
    }

    fn set_memory_key(&mut self, i: usize, place: usize) {
        self.edit().set_long_key(i, Place::Memory(place));
    }

    /// Frees a node without its children, which are added to those still to be freed.
    pub(crate) fn free(self: Arc<Node>, rest: &mut Vec<Arc<Node>>) {
        if let Ok(node) = Arc::try_unwrap(self) {
            node.children.dissolve(rest);
        }
    }

    /// Replaces what the checkpoint has written by where it is: long keys and values, and children.
    pub(crate) fn relink(&mut self) {
        for i in 0..self.page().count() {
            if self.page().key(i).1
                && let (Place::Memory(place), _) = self.page().long_key(i)
                && let Some(long) = self.blob(place).written.get()
            {
                self.take_blob(place);
                self.edit().set_long_key(i, Place::Disk(long));
            }
            if self.page().is_leaf() {
                if let CellValue::Long(Place::Memory(place), _) = self.page().value(i)
                    && let Some(long) = self.blob(place).written.get()
                {
                    self.take_blob(place);
                    self.edit().set_long_value(i, Place::Disk(long));
                }
            } else if let Place::Memory(place) = self.child(i)
                && let Some(link) = self.child_at(place).written.get()
            {
                self.children.take(place);
                self.edit().set_child(i, Place::Disk(link));
            }
        }
        if self.children.is_empty() {
            self.children = Children::default();
        }
    }
}
