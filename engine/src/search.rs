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
/// What is wrong where a page has keys that its parent's say are elsewhere.
pub(crate) const KEY_BOUNDS: &str = "bounds of the keys";

/// The root of one tree.
#[derive(Debug, Clone, Default)]
pub(crate) enum TreeRoot {
    #[default]
    Empty,
    Disk(Link),
    Memory(std::sync::Arc<Node>),
}

/// The cells of branches that the keys below a node lie between: none is below the first's key, all are below the second's.
/// None: the tree's own end.
#[derive(Debug, Default)]
pub(crate) struct Bounds<'a> {
    from: Option<(NodeRef<'a>, usize)>,
    to: Option<(NodeRef<'a>, usize)>,
}

impl<'a> Bounds<'a> {
    /// Those of what a path from the root leads to.
    pub(crate) fn of(path: &[(NodeRef<'a>, usize)]) -> Bounds<'a> {
        path.iter().fold(Bounds::default(), |bounds, (branch, i)| bounds.of_child(branch, *i))
    }

    /// Those of a child of the branch that has these.
    fn of_child(mut self, branch: &NodeRef<'a>, i: usize) -> Bounds<'a> {
        if i > 0 {
            self.from = Some((branch.clone(), i));
        }
        if i + 1 < branch.page().count() {
            self.to = Some((branch.clone(), i + 1));
        }
        self
    }
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
            TreeRoot::Disk(link) => Some(self.root_page(link)?),
        })
    }

    /// A page; `fits` is asked when it is first read.
    #[inline]
    fn page(
        &self,
        link: &Link,
        level: Option<u8>,
        fits: impl FnOnce(&NodeRef<'a>) -> Result<bool, StoreError>,
    ) -> Result<NodeRef<'a>, StoreError> {
        self.noted(self.source.page(link, self.id as u8, level, fits))
    }

    /// A root on disk.
    pub(crate) fn root_page(&self, link: &Link) -> Result<NodeRef<'a>, StoreError> {
        self.page(link, None, |_| Ok(true))
    }

    /// A child of a branch. What the branch does not tell of the bounds of its keys is not checked.
    #[inline]
    pub(crate) fn child(&self, node: &NodeRef<'a>, i: usize) -> Result<NodeRef<'a>, StoreError> {
        self.child_within(node, i, || None)
    }

    /// A child of a branch; `bounds` tells the branch's own when the child is first read. None: it cannot.
    #[inline]
    pub(crate) fn child_within(
        &self,
        node: &NodeRef<'a>,
        i: usize,
        bounds: impl FnOnce() -> Option<Bounds<'a>>,
    ) -> Result<NodeRef<'a>, StoreError> {
        match (node.page().child(i), node) {
            (Place::Memory(place), NodeRef::Dirty(node)) => Ok(NodeRef::Dirty(node.child_at(place))),
            (Place::Disk(link), _) => {
                let fits = |page: &NodeRef<'a>| self.fits(page, node, i, bounds);
                self.page(&link, Some(node.page().level() - 1), fits)
            }
            (Place::Memory(_), _) => unreachable!("pages on disk name no memory: checked when first read"),
        }
    }

    /// The keys of a child lie where the cells above it say. False: none lies elsewhere, but not all bounds are known.
    /// Errors: Corrupt if they do not.
    #[cold]
    pub(crate) fn fits(
        &self,
        child: &NodeRef<'a>,
        node: &NodeRef<'a>,
        i: usize,
        above: impl FnOnce() -> Option<Bounds<'a>>,
    ) -> Result<bool, StoreError> {
        let inside = i > 0 && i + 1 < node.page().count();
        let above = if inside { None } else { above() };
        let mut known = inside || above.is_some();
        let bounds = above.unwrap_or_default().of_child(node, i);
        let (first, count) = (child.page().first_keyed(), child.page().count());
        if first == count {
            return Ok(known);
        }
        for (bound, cell, is_below) in [(bounds.from, first, false), (bounds.to, count - 1, true)] {
            let Some((branch, at)) = bound else { continue };
            // What cannot be read is damage of its own, and no reason to withhold the rest of the page.
            let compared = self.key(&branch, at).and_then(|key| self.compare(child, cell, &key));
            match compared {
                Ok(order) if order.is_lt() == is_below => {}
                Ok(_) => return Err(self.malformed(child, KEY_BOUNDS, cell)),
                Err(_) => known = false,
            }
        }
        Ok(known)
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
            node = self.child_within(&node, i, || self.bounds(root, key, node.page().level()))?;
        }
        Ok(Some(node))
    }

    /// The bounds of the node of a level that covers a key. None: the way there could not be read again.
    #[cold]
    pub(crate) fn bounds(&self, root: &'a TreeRoot, key: &[u8], level: u8) -> Option<Bounds<'a>> {
        let mut node = self.top(root).ok()??;
        let mut bounds = Bounds::default();
        while node.page().level() > level {
            let i = self.covering(&node, key).ok()?;
            bounds = bounds.of_child(&node, i);
            node = self.child(&node, i).ok()?;
        }
        Some(bounds)
    }
}
