//! Changing a tree: insert and remove by copying the path.
//!
//! Promises: nothing that a published root can reach is changed; every page, extent or node that the tree stops
//! using is noted in the [`Garbage`]. An error leaves the tree with the content it had. It never allocates a
//! place on disk: that is the checkpoint's.

use std::collections::HashSet;
use std::sync::Arc;

use crate::extent::Extent;
use crate::node::{Child, Node, Released};
use crate::page::{CellValue, HEADER, Link, PAGE, Place, SLOT_BYTES, branch_cell_bytes, leaf_cell_bytes};
use crate::page::{KEY_INLINE_MAX, VALUE_INLINE_MAX};
use crate::search::{KEY_ORDER, Tree, TreeRoot};
use crate::sheet::Spare;
use crate::source::{NodeRef, Source};
use crate::{StoreError, TreeId};

/// Below this use a node is merged with a sibling, if both together leave room.
pub(crate) const MERGE_BELOW: usize = (PAGE - HEADER) / 4;
const MERGED_MAX: usize = (PAGE - HEADER) * 3 / 4;

/// What the trees stopped using.
///
/// A node that the running checkpoint froze may be written after the writer has replaced it. Then its page is garbage,
/// and so are the extents written with it, but for those that a copy of the node takes over.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    /// Pages on disk: first page and how many.
    pub(crate) extents: Vec<(u64, u32)>,
    pub(crate) nodes: Vec<Arc<Node>>,
    /// Bytes of nodes, to be used again. (That of the batch being built is in use.)
    pub(crate) spare: Spare,
}

impl Garbage {
    /// A batch is published: of what it replaced, only what the running checkpoint froze can still be written.
    pub(crate) fn publish(&mut self, batch: &mut Garbage, frozen: Option<u64>) {
        let is_frozen = |made_in: u64| frozen.is_some_and(|frozen| made_in <= frozen);
        self.extents.append(&mut batch.extents);
        // Parents first, as they were replaced: what a parent held is held by nobody when its turn comes.
        for node in batch.nodes.drain(..) {
            if is_frozen(node.batch) {
                self.nodes.push(node);
            } else {
                node.recycle(&mut batch.spare);
            }
        }
    }

    /// The running checkpoint is durable: what it wrote has pages now. The extents go to the orphans.
    pub(crate) fn resolve(&mut self, orphans: &mut HashSet<Extent>) {
        let extents = &mut self.extents;
        self.nodes.retain(|node| match node.written.get() {
            None => true,
            Some(link) => {
                extents.push((link.page, 1));
                orphans.extend(node.blobs().filter_map(|blob| blob.written.get()).map(|long| long.extent));
                false
            }
        });
    }
}

/// The writer's hand on one tree.
#[derive(Debug)]
pub(crate) struct Edit<'s> {
    pub(crate) source: &'s Source,
    pub(crate) id: TreeId,
    /// The batch being built.
    pub(crate) batch: u64,
    pub(crate) garbage: &'s mut Garbage,
    pub(crate) dirty_bytes: &'s mut usize,
}

/// A node was split: the new one stands right of it, from this key on.
struct Split {
    separator: Vec<u8>,
    right: Arc<Node>,
}

impl<'s> Edit<'s> {
    pub(crate) fn tree(&self) -> Tree<'s> {
        Tree { source: self.source, id: self.id }
    }

    /// Lets go of what cells of the node referred to that are gone.
    pub(crate) fn release(&mut self, node: &mut Node, released: Released) {
        *self.dirty_bytes -= released.blob_bytes;
        self.settle(node, released.extents);
    }

    pub(crate) fn own<'n>(&mut self, node: &'n mut Arc<Node>) -> &'n mut Node {
        own(node, self.batch, self.garbage)
    }

    /// A tree's root from disk, for changing.
    pub(crate) fn take_root(&mut self, link: &Link) -> Result<Arc<Node>, StoreError> {
        let page = self.tree().root_page(link)?;
        Ok(self.take_page(page, link))
    }

    /// A page from disk, for changing.
    fn take_page(&mut self, page: NodeRef<'_>, link: &Link) -> Arc<Node> {
        let (memory, spare) = (self.source.memory(), &mut self.garbage.spare);
        let node = Node::from_disk(page.page(), self.batch, memory, spare);
        self.garbage.extents.push((link.page, 1));
        *self.dirty_bytes += PAGE;
        Arc::new(node)
    }

    /// A child for changing: in memory, if need be from disk.
    pub(crate) fn child_mut<'n>(
        &mut self,
        node: &'n mut Node,
        i: usize,
    ) -> Result<&'n mut Arc<Node>, StoreError> {
        let place = match node.child(i) {
            Place::Memory(place) => place,
            Place::Disk(link) => {
                let page = self.tree().child(&NodeRef::Dirty(node), i)?;
                let child = self.take_page(page, &link);
                node.adopt(i, child)
            }
        };
        Ok(node.child_at_mut(place))
    }

    fn new_node(&mut self, level: u8) -> Node {
        *self.dirty_bytes += PAGE;
        self.bare_node(level)
    }

    /// An empty node that is not counted as dirty.
    pub(crate) fn bare_node(&mut self, level: u8) -> Node {
        Node::new(self.id, level, self.batch, self.source.memory(), &mut self.garbage.spare)
    }

    pub(crate) fn count_long(&mut self, part: &[u8], inline_max: usize) {
        if part.len() > inline_max {
            *self.dirty_bytes += part.len();
        }
    }

    fn count_entry(&mut self, key: &[u8], value: &[u8]) {
        self.count_long(key, KEY_INLINE_MAX);
        self.count_long(value, VALUE_INLINE_MAX);
    }

    /// Inserts or replaces.
    pub(crate) fn insert(&mut self, root: &mut TreeRoot, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if let TreeRoot::Disk(link) = root {
            *root = TreeRoot::Memory(self.take_root(&link.clone())?);
        }
        let TreeRoot::Memory(top) = root else {
            let mut leaf = self.new_node(0);
            self.count_entry(key, value);
            leaf.insert_entry(0, key, value);
            *root = TreeRoot::Memory(Arc::new(leaf));
            return Ok(());
        };
        if let Some(split) = self.insert_below(top, key, value, true)? {
            let mut branch = self.new_node(top.page().level() + 1);
            branch.insert_child(0, b"", Child::Memory(top.clone()));
            self.count_long(&split.separator, KEY_INLINE_MAX);
            branch.insert_child(1, &split.separator, Child::Memory(split.right));
            *root = TreeRoot::Memory(Arc::new(branch));
        }
        Ok(())
    }

    /// `edge`: the node is the last of its level.
    fn insert_below(
        &mut self,
        node: &mut Arc<Node>,
        key: &[u8],
        value: &[u8],
        edge: bool,
    ) -> Result<Option<Split>, StoreError> {
        if node.page().is_leaf() {
            return self.insert_leaf(node, key, value, edge);
        }
        let i = self.tree().covering(&NodeRef::Dirty(node), key)?;
        let branch = self.own(node);
        let last = i + 1 == branch.page().count();
        let child = self.child_mut(branch, i)?;
        match self.insert_below(child, key, value, edge && last)? {
            None => Ok(None),
            // The child has been split: failing now would lose its right half.
            Some(split) => {
                self.insert_branch(branch, i + 1, split, edge).inspect_err(|e| self.source.stop(e))
            }
        }
    }

    fn insert_leaf(
        &mut self,
        node: &mut Arc<Node>,
        key: &[u8],
        value: &[u8],
        edge: bool,
    ) -> Result<Option<Split>, StoreError> {
        let (i, found) = self.tree().lower_bound(&NodeRef::Dirty(node), key)?;
        if found
            && let CellValue::Inline(range) = node.page().value(i)
            && range.len() == value.len()
        {
            self.own(node).edit().overwrite(range, value);
            return Ok(None);
        }
        let free = node.page().free_bytes() + if found { node.page().cell_bytes(i) + SLOT_BYTES } else { 0 };
        let split = match free < leaf_cell_bytes(key.len(), value.len()) {
            false => None,
            true if found => {
                let mut without = node.copy(self.batch, &mut self.garbage.spare);
                without.remove_entry(i);
                Some(self.leaf_split(&without, i, key, value, edge)?)
            }
            true => Some(self.leaf_split(node, i, key, value, edge)?),
        };
        let leaf = self.own(node);
        if let Some((at, _)) = &split {
            // Where a cell will stand when the new one is in, too.
            let is_left = |cell| cell + usize::from(!found && cell >= i) < *at;
            self.part_longs(leaf, is_left, found.then_some(i))?;
        }
        if found {
            let released = leaf.remove_entry(i);
            self.release(leaf, released);
        }
        let Some((at, separator)) = split else {
            self.insert_fitting(leaf, i, key, value);
            return Ok(None);
        };
        self.before_entry(leaf, key, value);
        Ok(Some(self.split_leaf(leaf, at, separator, (i, key, value))))
    }

    /// Inserts an entry that fits.
    pub(crate) fn insert_fitting(&mut self, leaf: &mut Node, i: usize, key: &[u8], value: &[u8]) {
        self.before_entry(leaf, key, value);
        leaf.insert_entry(i, key, value);
    }

    /// Before an entry is added to the leaf.
    fn before_entry(&mut self, leaf: &mut Node, key: &[u8], value: &[u8]) {
        if key.len() > KEY_INLINE_MAX || value.len() > VALUE_INLINE_MAX {
            self.gather_small(leaf);
            self.count_entry(key, value);
        }
    }

    /// Where a full leaf is split to take a new entry at `i`: how many entries, the new one counted, stay left;
    /// and the key that parts them.
    fn leaf_split(
        &self,
        node: &Node,
        i: usize,
        key: &[u8],
        value: &[u8],
        edge: bool,
    ) -> Result<(usize, Vec<u8>), StoreError> {
        let at = split_point(node, i, leaf_cell_bytes(key.len(), value.len()), edge);
        let tree = self.tree();
        let node = NodeRef::Dirty(node);
        let separator = if i + 1 == at {
            tree.order().separator(key, &tree.key(&node, i)?)
        } else if i == at {
            tree.order().separator(&tree.key(&node, at - 1)?, key)
        } else {
            let right = if i < at { at - 1 } else { at };
            tree.order().separator(&tree.key(&node, right - 1)?, &tree.key(&node, right)?)
        };
        Ok((at, separator.ok_or_else(|| tree.malformed(&node, KEY_ORDER, at))?))
    }

    fn split_leaf(
        &mut self,
        leaf: &mut Node,
        at: usize,
        separator: Vec<u8>,
        (i, key, value): (usize, &[u8], &[u8]),
    ) -> Split {
        let mut right = self.new_node(0);
        if i < at {
            leaf.move_tail(at - 1, &mut right);
            leaf.insert_entry(i, key, value);
        } else {
            leaf.move_tail(at, &mut right);
            right.insert_entry(i - at, key, value);
        }
        Split { separator, right: Arc::new(right) }
    }

    /// Puts the right half of a split child at `i` of its parent, which may split in turn.
    fn insert_branch(
        &mut self,
        branch: &mut Node,
        i: usize,
        split: Split,
        edge: bool,
    ) -> Result<Option<Split>, StoreError> {
        let Split { separator: key, right: child } = split;
        self.must_fit_between(branch, i, &key)?;
        let child = Child::Memory(child);
        if branch.fits_child(key.len()) {
            self.count_long(&key, KEY_INLINE_MAX);
            branch.insert_child(i, &key, child);
            branch.edit().set_run_position(i + 1);
            return Ok(None);
        }
        let at = split_point(branch, i, branch_cell_bytes(key.len()), edge);
        self.part_longs(branch, |cell| cell + usize::from(cell >= i) < at, None)?;
        let mut right = self.new_node(branch.page().level());
        if i == at {
            branch.move_tail(at, &mut right);
            right.insert_child(0, b"", child);
            return Ok(Some(Split { separator: key, right: Arc::new(right) }));
        }
        let first = if i < at { at - 1 } else { at };
        let separator = self.tree().key(&NodeRef::Dirty(branch), first)?.to_vec();
        branch.move_tail(first, &mut right);
        let released = right.blank_first_key();
        self.release(&mut right, released);
        self.count_long(&key, KEY_INLINE_MAX);
        let (into, i) = if i < at { (branch, i) } else { (&mut right, i - at) };
        into.insert_child(i, &key, child);
        into.edit().set_run_position(i + 1);
        Ok(Some(Split { separator, right: Arc::new(right) }))
    }

    /// The keys of a child lie where its parent says: so does one that parts it. Errors: Corrupt if not; Io.
    fn must_fit_between(&self, branch: &Node, i: usize, key: &[u8]) -> Result<(), StoreError> {
        let (tree, node) = (self.tree(), NodeRef::Dirty(branch));
        if i > branch.page().first_keyed() {
            tree.must_precede(&node, i - 1, key)?;
        }
        if i < branch.page().count() { tree.must_follow(&node, i, key) } else { Ok(()) }
    }

    /// Removes a key that the tree holds. (The caller has looked: a key that is not there copies no path.)
    pub(crate) fn remove(&mut self, root: &mut TreeRoot, key: &[u8]) -> Result<(), StoreError> {
        if let TreeRoot::Disk(link) = root {
            *root = TreeRoot::Memory(self.take_root(&link.clone())?);
        }
        let TreeRoot::Memory(top) = root else { return Ok(()) };
        self.remove_below(top, key)?;
        self.lower_root(root);
        Ok(())
    }

    /// After children of the root are gone.
    pub(crate) fn lower_root(&mut self, root: &mut TreeRoot) {
        while let TreeRoot::Memory(top) = root {
            let (count, leaf) = (top.page().count(), top.page().is_leaf());
            if count > 1 || (leaf && count == 1) {
                break;
            }
            *self.dirty_bytes -= PAGE;
            *root = if count == 0 {
                TreeRoot::Empty
            } else {
                match self.own(top).remove_child(0).0 {
                    Child::Disk(link) => TreeRoot::Disk(link),
                    Child::Memory(node) => TreeRoot::Memory(node),
                }
            };
        }
    }

    fn remove_below(&mut self, node: &mut Arc<Node>, key: &[u8]) -> Result<(), StoreError> {
        if node.page().is_leaf() {
            let (i, found) = self.tree().lower_bound(&NodeRef::Dirty(node), key)?;
            assert!(found, "the caller has seen the key");
            let leaf = self.own(node);
            let released = leaf.remove_entry(i);
            self.release(leaf, released);
            return Ok(());
        }
        let i = self.tree().covering(&NodeRef::Dirty(node), key)?;
        let branch = self.own(node);
        let child = self.child_mut(branch, i)?;
        self.remove_below(child, key)?;
        let (count, used) = (child.page().count(), child.page().used_bytes());
        if count == 0 {
            *self.dirty_bytes -= PAGE;
            self.drop_child(branch, i);
            return Ok(());
        }
        if used < MERGE_BELOW {
            self.merge(branch, i);
        }
        Ok(())
    }

    /// Takes a child out of its parent; the first cell left has no key.
    pub(crate) fn drop_child(&mut self, branch: &mut Node, i: usize) -> Child {
        let (child, released) = branch.remove_child(i);
        self.release(branch, released);
        if i == 0 && branch.page().count() > 0 {
            let released = branch.blank_first_key();
            self.release(branch, released);
        }
        child
    }

    /// Merges an underfull child with a sibling, if both together leave room for more.
    pub(crate) fn merge(&mut self, branch: &mut Node, i: usize) {
        let count = branch.page().count();
        if count > 1 {
            self.merge_pair(branch, if i + 1 < count { i } else { i - 1 });
        }
    }

    /// Merges two children, if both together leave room for more. Whether it did.
    pub(crate) fn merge_pair(&mut self, branch: &mut Node, left: usize) -> bool {
        self.try_merge(branch, left).unwrap_or_else(|error| {
            // What was to be removed is gone, and the tree is whole; whoever reads the sibling gets the error.
            log::warn!("a sibling could not be read, and stays as it is: {error}");
            false
        })
    }

    /// An error changes nothing.
    fn try_merge(&mut self, branch: &mut Node, left: usize) -> Result<bool, StoreError> {
        let tree = self.tree();
        let parent = NodeRef::Dirty(branch);
        let (a, b) = (tree.child(&parent, left)?, tree.child(&parent, left + 1)?);
        let separator = tree.key(&parent, left + 1)?;
        let level = a.page().level();
        let extra = if level > 0 { branch_cell_bytes(separator.len()) } else { 0 };
        if a.page().used_bytes() + b.page().used_bytes() + extra > MERGED_MAX {
            return Ok(false);
        }
        tree.must_part(&a, &b, &separator)?;
        let separator = separator.to_vec();
        drop((a, b));
        self.child_mut(branch, left)?;
        self.child_mut(branch, left + 1)?;
        let Child::Memory(mut right) = self.drop_child(branch, left + 1) else {
            unreachable!("child_mut put it in memory")
        };
        let right = self.own(&mut right);
        let target = self.child_mut(branch, left)?;
        let target = self.own(target);
        if level > 0 {
            // The first cell of the right node has no key; what parted the two is its key now.
            let (first, _) = right.remove_child(0);
            self.count_long(&separator, KEY_INLINE_MAX);
            target.insert_child(target.page().count(), &separator, first);
        }
        right.move_tail(0, target);
        *self.dirty_bytes -= PAGE;
        Ok(true)
    }
}

/// The node for changing: itself if this batch made it, else a copy in its place.
pub(crate) fn own<'n>(node: &'n mut Arc<Node>, batch: u64, garbage: &mut Garbage) -> &'n mut Node {
    if node.batch != batch {
        let copy = Arc::new(node.copy(batch, &mut garbage.spare));
        garbage.nodes.push(std::mem::replace(node, copy));
    }
    Arc::get_mut(node).expect("no root holds a node of the batch that is being built")
}

/// How many cells stay left when a full page is split to take a cell of `bytes` bytes at `i`; the new one counts.
///
/// Appending at the last page of a level leaves the left page full. So does going on with an ascending run at the end
/// of any page; within a page, what is right of the run goes, if that is the smaller half. Else the halves are of
/// equal size.
fn split_point(node: &Node, i: usize, bytes: usize, edge: bool) -> usize {
    let page = node.page();
    let count = page.count();
    if i == count && (edge || page.run_position() == i) {
        return i;
    }
    let size = |cell: usize| match cell.cmp(&i) {
        std::cmp::Ordering::Less => page.cell_bytes(cell) + SLOT_BYTES,
        std::cmp::Ordering::Equal => bytes,
        std::cmp::Ordering::Greater => page.cell_bytes(cell - 1) + SLOT_BYTES,
    };
    let total = page.used_bytes() + bytes;
    if i > 0 && page.run_position() == i {
        let left: usize = (0..=i).map(size).sum();
        if left >= total / 2 {
            return if left <= PAGE - HEADER { i + 1 } else { i };
        }
    }
    let (mut left, mut at) = (0, 0);
    while at < count {
        let next = left + size(at);
        if at > 0 && (next > PAGE - HEADER || next.abs_diff(total - next) >= left.abs_diff(total - left)) {
            break;
        }
        left = next;
        at += 1;
    }
    at
}
