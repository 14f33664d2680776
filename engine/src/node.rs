//! Nodes in memory: pages that no checkpoint has written yet.
//!
//! A node is a page's bytes with a side table for what is not on disk either: children of a branch, and long keys
//! and values. Nodes form a persistent tree: whoever changes a node that an older root may hold copies it first.
//!
//! Promises: a node that is reachable from a published root never changes, but for the notes where the checkpoint
//! wrote it and what its sums are. The side tables hold exactly what the cells name. Whatever changes a node or lets
//! one below it be changed forgets its sums.

use std::sync::{Arc, OnceLock};

use crate::TreeId;
use crate::extent::{Extent, Long, Part, count_in};
use crate::mark::Mark;
use crate::memory::{Memory, Taken};
use crate::order::Order;
use crate::page::{
    CellValue, KEY_INLINE_MAX, Link, PAGE, PageBytes, PageMut, PageView, Place, Sums, VALUE_INLINE_MAX,
    branch_cell_bytes,
};
use crate::sheet::{Sheet, Spare};

/// A long key or value in memory.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) bytes: Arc<[u8]>,
    /// Where the running checkpoint put it.
    pub(crate) written: Mark<Long>,
    /// CRC-32C of the bytes, once somebody asked.
    crc: OnceLock<u32>,
    _taken: Taken,
}

impl Blob {
    pub(crate) fn new(bytes: Arc<[u8]>, memory: &Memory) -> Arc<Blob> {
        let _taken = memory.take(bytes.len() + size_of::<Blob>());
        Arc::new(Blob { bytes, written: Mark::default(), crc: OnceLock::new(), _taken })
    }

    /// CRC-32C of the bytes.
    pub(crate) fn crc(&self) -> u32 {
        // Not `get_or_init`: nobody waits for another here.
        self.crc.get().copied().unwrap_or_else(|| {
            let crc = crc32c::crc32c(&self.bytes);
            let _ = self.crc.set(crc);
            crc
        })
    }
}

/// A child of a branch: a page on disk, or a node.
#[derive(Debug, Clone)]
pub(crate) enum Child {
    Disk(Link),
    Memory(Arc<Node>),
}

const CHUNK: usize = 4;
type Chunk = [Option<Arc<Node>>; CHUNK];

/// The children of a branch that are in memory. In chunks, so that copying a branch touches few reference counts; small
/// ones, since those of chunks are in the processor's caches more often than those of children.
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

/// A page in memory. The fields that a descent and a copy look at come first, in two lines of the processor's caches.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Node {
    /// The batch that made it: the writer may change it in place until that batch is published.
    pub(crate) batch: u64,
    sheet: Sheet,
    children: Children,
    blobs: Vec<Option<Arc<Blob>>>,
    /// What it and the nodes below it hold, once somebody asked.
    pub(crate) sums: OnceLock<Sums>,
    taken: Taken,
    /// Where the running checkpoint put it.
    pub(crate) written: Mark<Link>,
}

/// What a node takes in memory: its page, itself, and something for side tables, of which most nodes have none.
pub(crate) const NODE_BYTES: usize = PAGE + size_of::<Node>() + 64;

/// What a removed cell referred to, for the caller to let go.
#[derive(Debug, Default)]
pub(crate) struct Released {
    /// For each long part on disk its extent, to which other cells may refer as well.
    pub(crate) extents: Vec<Extent>,
    /// Bytes of the long parts in memory.
    pub(crate) blob_bytes: usize,
}

impl Released {
    fn add(&mut self, node: &mut Node, place: Place<Long>) {
        match place {
            Place::Disk(long) => self.extents.push(long.extent),
            Place::Memory(place) => self.blob_bytes += node.take_blob(place).bytes.len(),
        }
    }
}

impl Node {
    /// An empty node. A tree never keeps one.
    pub(crate) fn new(tree: TreeId, level: u8, batch: u64, memory: &Memory, spare: &mut Spare) -> Node {
        let (mut sheet, taken) = spare.sheet(level, memory);
        sheet.edit().init(tree as u8, level, Order::of(tree));
        Node::with(sheet, taken, batch)
    }

    /// A page from disk, to be changed.
    pub(crate) fn from_disk(page: PageView<'_>, batch: u64, memory: &Memory, spare: &mut Spare) -> Node {
        let (mut sheet, taken) = spare.sheet(page.level(), memory);
        sheet.edit().copy_of(page);
        Node::with(sheet, taken, batch)
    }

    fn with(sheet: Sheet, taken: Taken, batch: u64) -> Node {
        Node {
            sheet,
            children: Children::default(),
            blobs: Vec::new(),
            batch,
            written: Mark::default(),
            sums: OnceLock::new(),
            taken,
        }
    }

    /// The same content as a node of another batch.
    pub(crate) fn copy(&self, batch: u64, spare: &mut Spare) -> Node {
        let (sheet, taken) = spare.copy(&self.sheet, self.taken.memory());
        Node {
            children: self.children.clone(),
            blobs: self.blobs.clone(),
            sums: self.sums.clone(),
            ..Node::with(sheet, taken, batch)
        }
    }

    /// Lets go of a node; if nobody else holds it, its bytes become spare.
    pub(crate) fn recycle(self: Arc<Node>, spare: &mut Spare) {
        if let Some(node) = Arc::into_inner(self) {
            spare.put(node.sheet, node.taken);
        }
    }

    pub(crate) fn page(&self) -> PageView<'_> {
        PageView(&self.sheet.bytes()[..])
    }

    pub(crate) fn bytes(&self) -> &PageBytes {
        self.sheet.bytes()
    }

    pub(crate) fn edit(&mut self) -> PageMut<'_> {
        self.sums.take();
        self.sheet.edit()
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

    fn add_long(&mut self, bytes: &[u8], inline_max: usize) -> Option<usize> {
        (bytes.len() > inline_max).then(|| self.add_blob(Blob::new(bytes.into(), self.taken.memory())))
    }

    /// Whether a child with a key of this length fits.
    pub(crate) fn fits_child(&self, key: usize) -> bool {
        self.page().free_bytes() >= branch_cell_bytes(key)
    }

    /// Inserts an entry that fits.
    pub(crate) fn insert_entry(&mut self, i: usize, key: &[u8], value: &[u8]) {
        if key.len() <= KEY_INLINE_MAX && value.len() <= VALUE_INLINE_MAX {
            self.edit().insert_short(i, key, value);
        } else {
            let long_key = self.add_long(key, KEY_INLINE_MAX);
            let long_value = self.add_long(value, VALUE_INLINE_MAX);
            self.edit().insert_entry(i, key, long_key, value, long_value);
        }
        self.edit().set_run_position(i + 1);
    }

    /// Inserts a child that fits.
    pub(crate) fn insert_child(&mut self, i: usize, key: &[u8], child: Child) {
        let long_key = self.add_long(key, KEY_INLINE_MAX);
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
        self.sums.take();
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

    /// Removes entries, given in ascending order; what they referred to.
    pub(crate) fn remove_entries(&mut self, cells: &[usize]) -> Released {
        let mut released = Released::default();
        for &i in cells {
            let of_key = self.release_key(i);
            released.extents.extend(of_key.extents);
            released.blob_bytes += of_key.blob_bytes;
            released = self.release_value(i, released);
        }
        self.edit().remove_many(cells);
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

    /// Puts the bytes of a long part into memory in place of where the cell says they are.
    pub(crate) fn set_blob(&mut self, i: usize, part: Part, blob: Arc<Blob>) {
        let place = self.add_blob(blob);
        self.edit().set_long(i, part, Place::Memory(place));
    }

    /// Moves the cells from `from` on to the end of another node of the same kind. The caller has seen to it that no
    /// extent is needed on both sides.
    pub(crate) fn move_tail(&mut self, from: usize, to: &mut Node) {
        let shift = to.page().count();
        let memory: Vec<(usize, Part, usize)> = self.memory_parts().filter(|(i, ..)| *i >= from).collect();
        for i in from..self.page().count() {
            to.edit().append_cell(self.page(), i);
            if let Some(place) = self.child_in_memory(i) {
                let place = to.children.add(self.children.take(place));
                to.edit().set_child(shift + i - from, Place::Memory(place));
            }
        }
        for (i, part, place) in memory {
            to.set_blob(shift + i - from, part, self.take_blob(place));
        }
        self.edit().truncate(from);
        self.edit().refresh_heads();
        to.edit().refresh_heads();
    }

    /// The long parts in memory: cell, part, place in the side table.
    pub(crate) fn memory_parts(&self) -> impl Iterator<Item = (usize, Part, usize)> {
        // Most nodes have none; then the cells need not be looked at.
        let any = self.blobs().next().is_some();
        let parts = any.then(|| self.page().long_parts()).into_iter().flatten();
        parts.filter_map(|(i, part, place)| match place {
            Place::Memory(place) => Some((i, part, place)),
            Place::Disk(_) => None,
        })
    }

    /// Frees a node without its children, which are added to those still to be freed.
    pub(crate) fn free(self: Arc<Node>, rest: &mut Vec<Arc<Node>>, spare: &mut Spare) {
        if let Ok(node) = Arc::try_unwrap(self) {
            node.children.dissolve(rest);
            spare.put(node.sheet, node.taken);
        }
    }

    /// Replaces the children that the checkpoint has written by where they are.
    pub(crate) fn relink_children(&mut self) {
        for i in 0..self.page().count() {
            if let Some(place) = self.child_in_memory(i)
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

    /// Replaces the long parts that the checkpoint has written by where they are, if `claim` grants the node their
    /// extent (called with the bytes of it that the node refers to). The others stay in memory, not written yet.
    pub(crate) fn relink_longs(&mut self, mut claim: impl FnMut(Extent, u64) -> bool) {
        let written: Vec<(usize, Part, usize, Long)> = self
            .memory_parts()
            .filter_map(|(i, part, place)| Some((i, part, place, self.blob(place).written.get()?)))
            .collect();
        let mut usages = Vec::new();
        written.iter().for_each(|(.., long)| count_in(&mut usages, long));
        usages.retain(|usage| claim(usage.extent, usage.live));
        for (i, part, place, long) in written {
            let blob = self.take_blob(place);
            match usages.iter().any(|usage| usage.extent == long.extent) {
                true => self.edit().set_long(i, part, Place::Disk(long)),
                false => self.set_blob(i, part, Blob::new(blob.bytes.clone(), self.taken.memory())),
            }
        }
    }
}
