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
    fn noted<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
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
            (_, true) => self.long(node, node.page().long_key(i).0),
        }
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
        let Some(mut node) = self.top(root)? else { return Ok(None) };
        while !node.page().is_leaf() {
            let i = self.covering(&node, key)?;
            node = self.child(&node, i)?;
        }
        let (i, found) = self.lower_bound(&node, key)?;
        Ok(found.then_some((node, i)))
    }
}
