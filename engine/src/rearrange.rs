//! Moving and packing nodes: what the writer does where a walk (`repack.rs`) found that pages could stand closer
//! together.
//!
//! To move a page is to change nothing in it: it comes into memory, and the next checkpoint writes it to the lowest free
//! place. To pack neighbours is to write their cells, in the same order, into fewer nodes.
//!
//! Promises: the content of the tree stays as it is, and an error leaves it as it is, too. What the walk found is
//! looked at again first.

use std::sync::Arc;

use crate::StoreError;
use crate::edit::Edit;
use crate::node::{Child, Node};
use crate::page::{KEY_INLINE_MAX, PAGE, Place, SLOT_BYTES, branch_cell_bytes};
use crate::repack::{FULL, Work, unwanted};
use crate::search::{KEY_ORDER, TreeRoot};
use crate::source::NodeRef;

/// How the cells of neighbours will be laid out.
struct Packing {
    /// Where new nodes begin, but for the first: which of the neighbours, and which of its cells.
    starts: Vec<(usize, usize)>,
    /// The keys that part the new nodes.
    separators: Vec<Vec<u8>>,
    /// Of branches: the key of each cell, one after the other; of the very first none.
    keys: Vec<Vec<u8>>,
}

impl Edit<'_> {
    /// Packs neighbours, or takes those of them into memory that stand behind the cut. How many pages it took.
    /// Errors: Io, Corrupt.
    pub(crate) fn rearrange(
        &mut self,
        root: &mut TreeRoot,
        work: &Work,
        cut: u64,
    ) -> Result<usize, StoreError> {
        if let TreeRoot::Disk(link) = root {
            *root = TreeRoot::Memory(self.take_root(&link.clone())?);
        }
        let TreeRoot::Memory(top) = root else { return Ok(1) };
        let before = *self.dirty_bytes;
        let mut taken = 1;
        if top.page().level() <= work.level {
            let top = self.own(top);
            self.take_unwanted(top, cut)?;
        } else {
            taken = self.rearrange_below(top, work, cut)?;
            self.lower_root(root);
        }
        Ok(taken.max(self.dirty_bytes.saturating_sub(before) / PAGE))
    }

    fn rearrange_below(&mut self, node: &mut Arc<Node>, work: &Work, cut: u64) -> Result<usize, StoreError> {
        let i = self.tree().covering(&NodeRef::Dirty(node), &work.key)?;
        let branch = self.own(node);
        if branch.page().level() > work.level + 1 {
            let child = self.child_mut(branch, i)?;
            return self.rearrange_below(child, work, cut);
        }
        let count = work.count.min(branch.page().count() - i);
        let mut left = count;
        if self.may_pack(branch, i, count)? {
            left = self.pack(branch, i, count)?;
        }
        for i in i..i + left {
            self.take_behind(branch, i, cut)?;
        }
        Ok(count)
    }

    fn take_unwanted(&mut self, node: &mut Node, cut: u64) -> Result<(), StoreError> {
        let extents = unwanted(node.page(), cut);
        if extents.is_empty() { Ok(()) } else { self.take_longs(node, |extent| extents.contains(&extent)) }
    }

    /// Takes a child into memory if it stands behind the cut, and what it refers to if that had better be written anew.
    fn take_behind(&mut self, branch: &mut Node, i: usize, cut: u64) -> Result<(), StoreError> {
        let child = self.tree().child(&NodeRef::Dirty(branch), i)?;
        let refers = !unwanted(child.page(), cut).is_empty();
        let stands = matches!(branch.child(i), Place::Disk(link) if link.page >= cut);
        drop(child);
        if stands || refers {
            let child = self.child_mut(branch, i)?;
            if refers {
                let child = self.own(child);
                self.take_unwanted(child, cut)?;
            }
        }
        Ok(())
    }

    /// Whether neighbours seem to fill fewer pages.
    fn may_pack(&self, branch: &Node, i: usize, count: usize) -> Result<bool, StoreError> {
        let mut used = 0;
        for i in i..i + count {
            used += self.tree().child(&NodeRef::Dirty(branch), i)?.page().used_bytes();
        }
        Ok(used.div_ceil(FULL) < count)
    }

    /// Packs children `i` to `i + count`; how many there are now.
    fn pack(&mut self, branch: &mut Node, i: usize, count: usize) -> Result<usize, StoreError> {
        let Some(packing) = self.packing(branch, i, count)? else { return Ok(count) };
        let is_leaf = branch.page().level() == 1;
        for at in 0..count {
            let child = self.child_mut(branch, i + at)?;
            let child = self.own(child);
            match is_leaf {
                // No extent may be needed on both sides of a split.
                true => {
                    for (_, cell) in packing.starts.iter().filter(|start| start.0 == at && start.1 > 0) {
                        self.part_longs(child, |i| i < *cell, None)?;
                    }
                }
                // Keys of branches are moved one by one.
                false => self.take_longs(child, |_| true)?,
            }
        }
        // Nothing fails from here on.
        let mut neighbours = Vec::with_capacity(count);
        for _ in 1..count {
            neighbours.push(self.drop_child(branch, i + 1));
        }
        let hole = Arc::new(self.bare_node(branch.page().level() - 1));
        let place = branch.child_in_memory(i).expect("it was taken into memory");
        neighbours.insert(0, Child::Memory(std::mem::replace(branch.child_at_mut(place), hole)));
        let neighbours = neighbours.into_iter().map(own_child).collect();
        let packed = match is_leaf {
            true => self.pack_leaves(neighbours, &packing.starts),
            false => self.pack_branches(neighbours, &packing.starts, packing.keys),
        };
        let left = packed.len();
        *self.dirty_bytes -= (count - left) * PAGE;
        for (at, node) in packed.into_iter().enumerate() {
            match at {
                0 => *branch.child_at_mut(place) = Arc::new(node),
                _ => {
                    let separator = &packing.separators[at - 1];
                    self.count_long(separator, KEY_INLINE_MAX);
                    branch.insert_child(i + at, separator, Child::Memory(Arc::new(node)));
                }
            }
        }
        Ok(left)
    }

    /// Lays out the cells of neighbours; None if that frees no page, or their parent has no room for the new keys.
    fn packing(&self, branch: &Node, i: usize, count: usize) -> Result<Option<Packing>, StoreError> {
        let (tree, parent) = (self.tree(), NodeRef::Dirty(branch));
        let is_leaf = branch.page().level() == 1;
        let mut packing = Packing { starts: Vec::new(), separators: Vec::new(), keys: Vec::new() };
        let (mut filled, mut room) = (0, branch.page().free_bytes());
        let mut before: Option<(NodeRef<'_>, usize)> = None;
        for at in 0..count {
            let node = tree.child(&parent, i + at)?;
            if let Some((before, _)) = &before {
                room += branch.page().cell_bytes(i + at) + SLOT_BYTES;
                tree.must_part(before, &node, &tree.key(&parent, i + at)?)?;
            }
            for cell in 0..node.page().count() {
                let key = match (is_leaf, cell, at) {
                    (true, ..) | (_, 0, 0) => Vec::new(),
                    (false, 0, _) => tree.key(&parent, i + at)?.to_vec(),
                    (false, ..) => tree.key(&node, cell)?.to_vec(),
                };
                let bytes = match is_leaf {
                    true => node.page().cell_bytes(cell) + SLOT_BYTES,
                    false => branch_cell_bytes(key.len()),
                };
                filled += bytes;
                if let Some((before, last)) = &before
                    && filled > FULL
                {
                    let separator = match is_leaf {
                        true => tree.order().separator(&tree.key(before, *last)?, &tree.key(&node, cell)?),
                        false => Some(key.clone()),
                    };
                    let separator = separator.ok_or_else(|| tree.malformed(&node, KEY_ORDER, cell))?;
                    let needed = branch_cell_bytes(separator.len());
                    if needed > room {
                        return Ok(None);
                    }
                    room -= needed;
                    packing.starts.push((at, cell));
                    packing.separators.push(separator);
                    filled = bytes;
                }
                packing.keys.push(key);
                before = Some((node.clone(), cell));
            }
        }
        Ok(Some(packing).filter(|packing| packing.starts.len() + 1 < count))
    }

    fn pack_leaves(&mut self, leaves: Vec<Node>, starts: &[(usize, usize)]) -> Vec<Node> {
        let mut starts = starts.iter().peekable();
        let mut new = || self.bare_node(0);
        let (mut packed, mut target) = (Vec::new(), new());
        for (at, mut leaf) in leaves.into_iter().enumerate() {
            let mut moved = 0;
            while let Some((_, cell)) = starts.next_if(|start| start.0 == at) {
                if *cell > moved {
                    let mut rest = new();
                    leaf.move_tail(cell - moved, &mut rest);
                    leaf.move_tail(0, &mut target);
                    (leaf, moved) = (rest, *cell);
                }
                packed.push(std::mem::replace(&mut target, new()));
            }
            leaf.move_tail(0, &mut target);
        }
        packed.push(target);
        packed
    }

    fn pack_branches(
        &mut self,
        branches: Vec<Node>,
        starts: &[(usize, usize)],
        keys: Vec<Vec<u8>>,
    ) -> Vec<Node> {
        let level = branches[0].page().level();
        let mut starts = starts.iter().peekable();
        let mut keys = keys.into_iter();
        let (mut packed, mut target) = (Vec::new(), self.bare_node(level));
        for (at, mut branch) in branches.into_iter().enumerate() {
            for cell in 0..branch.page().count() {
                let (child, released) = branch.remove_child(0);
                *self.dirty_bytes -= released.blob_bytes;
                if starts.next_if(|start| **start == (at, cell)).is_some() {
                    packed.push(std::mem::replace(&mut target, self.bare_node(level)));
                }
                let key = keys.next().expect("a key was noted for each cell");
                let (i, key) = match target.page().count() {
                    0 => (0, &b""[..]),
                    count => (count, &key[..]),
                };
                self.count_long(key, KEY_INLINE_MAX);
                target.insert_child(i, key, child);
            }
        }
        packed.push(target);
        packed
    }
}

/// A child that was taken out of its parent after the batch had made it its own.
fn own_child(child: Child) -> Node {
    match child {
        Child::Memory(node) => Arc::into_inner(node).expect("nobody else holds a node of this batch"),
        Child::Disk(_) => unreachable!("it was taken into memory"),
    }
}
