//! Finding a key: the descent through one tree, for readers and for the writer.
//!
//! Promises: no allocation and no lock on the way down, except for long keys and cached pages. It never changes a
//! node.

use std::cmp::Ordering;

use crate::extent::Long;
use crate::node::Node;
use crate::order::Order;
use crate::page::{CellValue, Link, Place};
use crate::source::{NodeRef, Source};
use crate::{StoreError, TreeId, Value};

/// What is wrong where keys do not ascend.
pub(crate) const KEY_ORDER: &str = "key order";

/// The root of one tree.
#[derive(Debug, Clone, Default)]
pub(crate) enum TreeRoot {
    #[default]
    Empty,
    Disk(Link),
    Memory(std::sync::Arc<Node>),
}

/// One tree, to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tree<'a> {
    pub(crate) source: &'a Source,
    pub(crate) id: TreeId,
}

impl<'a> Tree<'a> {
    pub(crate) fn order(&self) -> Order {
        Order::of(self.id)
    }

    /// Tells of damage, whatever the reader makes of the error.
    #[inline]
    pub(crate) fn noted<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        read.inspect_err(|error| self.source.damages().note(self.id, error))
    }

    /// The root's node; None for an empty tree.
    pub(crate) fn top(&self, root: &'a TreeRoot) -> Result<Option<NodeRef<'a>>, StoreError> {
        Ok(match root {
            TreeRoot::Empty => None,
            TreeRoot::Memory(node) => Some(NodeRef::Dirty(node)),
            TreeRoot::Disk(link) => Some(self.noted(self.source.page(link, self.id as u8, None))?),
        })
    }

    /// A child of a branch.
    #[inline]
    pub(crate) fn child(&self, node: &NodeRef<'a>, i: usize) -> Result<NodeRef<'a>, StoreError> {
        match (node.page().child(i), node) {
            (Place::Memory(place), NodeRef::Dirty(node)) => Ok(NodeRef::Dirty(node.child_at(place))),
            (Place::Disk(link), _) => {
                self.noted(self.source.page(&link, self.id as u8, Some(node.page().level() - 1)))
            }
            (Place::Memory(_), _) => unreachable!("pages on disk name no memory: checked when first read"),
        }
    }

    fn long(&self, node: &NodeRef<'a>, place: Place<Long>) -> Result<Value<'a>, StoreError> {
        match (place, node) {
            (Place::Memory(place), NodeRef::Dirty(node)) => Ok(Value::Page(&node.blob(place).bytes)),
            (Place::Disk(long), _) => self.noted(self.source.long(&long)),
            (Place::Memory(_), _) => unreachable!("pages on disk name no memory: checked when first read"),
        }
    }

    /// The whole key of a cell.
    pub(crate) fn key(&self, node: &NodeRef<'a>, i: usize) -> Result<Value<'a>, StoreError> {
        match node.page().key_range(i) {
            (range, false) => Ok(node.slice(range)),
            (range, true) => {
                let key = self.long(node, node.page().long_key(i).0)?;
                let begins = key.starts_with(&node.page().0[range]);
                if begins { Ok(key) } else { Err(self.malformed(node, "beginning of a long key", i)) }
            }
        }
    }

    /// Cells of a page, or of two, are not what they must be beside each other; `found`: which cell. Tells of it.
    #[cold]
    pub(crate) fn malformed(&self, node: &NodeRef<'_>, field: &'static str, found: usize) -> StoreError {
        let error = self.source.corrupt(node.page().id(), field, 0, found as u64);
        self.source.damages().note(self.id, &error);
        error
    }

    /// The key of a cell is less than a key. Errors: Corrupt if it is not; Io.
    pub(crate) fn must_precede(&self, node: &NodeRef<'a>, i: usize, key: &[u8]) -> Result<(), StoreError> {
        let less = self.compare(node, i, key)?.is_lt();
        if less { Ok(()) } else { Err(self.malformed(node, KEY_ORDER, i)) }
    }

    /// The key of a cell is greater than a key, or of a leaf equal. Errors: Corrupt if it is not; Io.
    pub(crate) fn must_follow(&self, node: &NodeRef<'a>, i: usize, key: &[u8]) -> Result<(), StoreError> {
        let order = self.compare(node, i, key)?;
        let follows = order.is_gt() || order.is_eq() && node.page().is_leaf();
        if follows { Ok(()) } else { Err(self.malformed(node, KEY_ORDER, i)) }
    }

    /// The key stands between the cells of two neighbours. Errors: Corrupt if not; Io.
    pub(crate) fn must_part(
        &self,
        left: &NodeRef<'a>,
        right: &NodeRef<'a>,
        key: &[u8],
    ) -> Result<(), StoreError> {
        let (last, first) = (left.page().count() - 1, right.page().first_keyed());
        if last >= left.page().first_keyed() {
            self.must_precede(left, last, key)?;
        }
        if first < right.page().count() { self.must_follow(right, first, key) } else { Ok(()) }
    }

    /// The value of a leaf's cell.
    pub(crate) fn value(&self, node: &NodeRef<'a>, i: usize) -> Result<Value<'a>, StoreError> {
        match node.page().value(i) {
            CellValue::Inline(range) => Ok(node.slice(range)),
            CellValue::Long(place, _) => self.long(node, place),
        }
    }

    /// How a cell's key compares with `key`.
    #[inline]
    pub(crate) fn compare(&self, node: &NodeRef<'a>, i: usize, key: &[u8]) -> Result<Ordering, StoreError> {
        let (found, long) = node.page().key(i);
        if !long {
            return Ok(self.order().compare(found, key));
        }
        match self.order().compare_prefix(found, key) {
            Some(order) => Ok(order),
            None => Ok(self.order().compare(&self.key(node, i)?, key)),
        }
    }

    /// In a leaf: the first entry with a key >= `key`, and whether it is equal.
    #[inline]
    pub(crate) fn lower_bound(&self, node: &NodeRef<'a>, key: &[u8]) -> Result<(usize, bool), StoreError> {
        let std::ops::Range { start: mut low, end: mut high } = node.page().narrow(key);
        while low < high {
            let middle = (low + high) / 2;
            match self.compare(node, middle, key)? {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok((middle, true)),
                Ordering::Greater => high = middle,
            }
        }
        Ok((low, false))
    }

    /// In a branch: the child that covers `key`.
    #[inline]
    pub(crate) fn covering(&self, node: &NodeRef<'a>, key: &[u8]) -> Result<usize, StoreError> {
        // The first cell has no key: it covers everything before the second.
        let std::ops::Range { start: mut low, end: mut high } = node.page().narrow(key);
        while low < high {
            let middle = (low + high) / 2;
            if self.compare(node, middle, key)?.is_le() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low - 1)
    }

    /// The value of a key.
    pub(crate) fn get(&self, root: &'a TreeRoot, key: &[u8]) -> Result<Option<Value<'a>>, StoreError> {
        let found = self.find(root, key)?;
        found.map(|(leaf, i)| self.value(&leaf, i)).transpose()
    }

    /// Bytes of the value of a key; a long one is not touched.
    pub(crate) fn value_len(&self, root: &'a TreeRoot, key: &[u8]) -> Result<Option<usize>, StoreError> {
        let found = self.find(root, key)?;
        Ok(found.map(|(leaf, i)| match leaf.page().value(i) {
            CellValue::Inline(range) => range.len(),
            CellValue::Long(_, len) => len as usize,
        }))
    }

    /// The leaf and the cell that hold a key.
    #[inline]
    fn find(&self, root: &'a TreeRoot, key: &[u8]) -> Result<Option<(NodeRef<'a>, usize)>, StoreError> {
        let Some(leaf) = self.leaf(root, key)? else { return Ok(None) };
        let (i, found) = self.lower_bound(&leaf, key)?;
        Ok(found.then_some((leaf, i)))
    }

    /// The leaf and the cell of the last entry before a key, if that entry stands in the leaf that covers the key.
    #[inline]
    pub(crate) fn find_before(
        &self,
        root: &'a TreeRoot,
        key: &[u8],
    ) -> Result<Option<(NodeRef<'a>, usize)>, StoreError> {
        let Some(leaf) = self.leaf(root, key)? else { return Ok(None) };
        let (i, _) = self.lower_bound(&leaf, key)?;
        Ok(i.checked_sub(1).map(|i| (leaf, i)))
    }

    /// The leaf that covers a key.
    #[inline]
    fn leaf(&self, root: &'a TreeRoot, key: &[u8]) -> Result<Option<NodeRef<'a>>, StoreError> {
        let Some(mut node) = self.top(root)? else { return Ok(None) };
        while !node.page().is_leaf() {
            let i = self.covering(&node, key)?;
            node = self.child(&node, i)?;
        }
        Ok(Some(node))
    }
}
