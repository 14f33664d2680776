//! What a part of a tree holds, without reading it: entries, bytes, checksum of the content, live keys.
//!
//! A link has the sums of the page it leads to; a node in memory notes its own when somebody asks. So the sums of any
//! interval are put together from the links between two descents: pages read grow with the height of the tree.
//!
//! Promises: the sums are those of a full scan. Nobody waits for another who counts the same node. It never reads a
//! page that is wholly inside the interval, and never the bytes of a long key or value.

use std::ops::{Deref, Range};

use crate::extent::Long;
use crate::node::Node;
use crate::page::{CellValue, PageView, Place, Sums, VALUE_INLINE_MAX};
use crate::search::{Tree, TreeRoot};
use crate::source::NodeRef;
use crate::{StoreError, TreeId, View};

/// The first byte of a value of tree `Index`: what its entry adds to the number of live keys, the entries before it of
/// the same user key given. A put of a key that was live adds none.
pub(crate) const PUT_AGAIN: u8 = 0;
/// A put of a key that was not live, or of which nothing older is left: one more.
pub(crate) const PUT_FIRST: u8 = 1;
/// A tombstone behind a put: one less.
pub(crate) const TOMBSTONE: u8 = 2;
/// A tombstone of which nothing older is left: none.
pub(crate) const TOMBSTONE_FIRST: u8 = 3;

/// What an entry of tree `Index` adds to the number of live keys.
pub(crate) fn weight(value: &[u8]) -> i64 {
    match value.first() {
        Some(&PUT_FIRST) if value.len() <= VALUE_INLINE_MAX => 1,
        Some(&TOMBSTONE) if value.len() <= VALUE_INLINE_MAX => -1,
        _ => 0,
    }
}

/// The sums of a node and all below it.
pub(crate) fn of_node(node: &Node) -> Sums {
    // Without a bound the walk cannot stop early.
    of_node_within(node, &mut usize::MAX.clone()).unwrap_or_default()
}

/// The same, if it takes no more than `steps` cells to find out; the steps taken are subtracted, and what was found
/// out on the way stays noted.
fn of_node_within(node: &Node, steps: &mut usize) -> Option<Sums> {
    if let Some(sums) = node.sums.get() {
        return Some(*sums);
    }
    let count = node.page().count();
    *steps = steps.checked_sub(count)?;
    let mut sums = Sums::default();
    if node.page().is_leaf() {
        sums = cells(node.page(), Some(node), 0..count);
    } else {
        for i in 0..count {
            sums = sums.then(match node.child(i) {
                Place::Disk(link) => link.sums,
                Place::Memory(place) => of_node_within(node.child_at(place), steps)?,
            });
        }
    }
    // Another reader may have been faster, with the same.
    let _ = node.sums.set(sums);
    Some(sums)
}

/// The sums of some cells of a leaf; `node` has what is not on disk.
fn cells(page: PageView<'_>, node: Option<&Node>, range: Range<usize>) -> Sums {
    let counts = page.tree() == TreeId::Index as u8;
    let mut sums = Sums::default();
    for i in range {
        let (key, long_key) = page.key(i);
        let value = page.value(i);
        sums.count += 1;
        if let CellValue::Inline(range) = &value
            && counts
        {
            sums.live += weight(&page.0[range.clone()]);
        }
        if let (false, CellValue::Inline(range)) = (long_key, &value) {
            let value = &page.0[range.clone()];
            sums.bytes += (key.len() + value.len()) as u64;
            sums.crc = crc32c::crc32c_append(crc32c::crc32c_append(sums.crc, key), value);
            continue;
        }
        sums = sums.then(if long_key { long(node, page.long_key(i).0) } else { short(key) });
        sums = sums.then(match value {
            CellValue::Inline(range) => short(&page.0[range]),
            CellValue::Long(place, _) => long(node, place),
        });
    }
    sums
}

fn short(bytes: &[u8]) -> Sums {
    Sums { bytes: bytes.len() as u64, crc: crc32c::crc32c(bytes), ..Sums::default() }
}

fn long(node: Option<&Node>, place: Place<Long>) -> Sums {
    match (place, node) {
        (Place::Disk(long), _) => Sums { bytes: u64::from(long.len), crc: long.crc, ..Sums::default() },
        (Place::Memory(place), Some(node)) => {
            let blob = node.blob(place);
            Sums { bytes: blob.bytes.len() as u64, crc: blob.crc(), ..Sums::default() }
        }
        (Place::Memory(_), None) => unreachable!("pages on disk name no memory: checked when first read"),
    }
}

/// Why a walk ended early.
enum Halt {
    Steps,
    Store(StoreError),
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Halt {
        Halt::Store(error)
    }
}

/// A walk over an interval of a tree that hands out the sums of its parts, in key order.
struct Walk<'w, 'a> {
    tree: Tree<'a>,
    /// So many cells of nodes may still be looked at.
    steps: &'w mut usize,
    part: &'w mut dyn FnMut(Sums),
}

/// Part of a tree: the keys from the first bound on and below the second; and which of them to leave out, ascending.
#[derive(Clone, Copy)]
struct Part<'p, H> {
    from: Option<&'p [u8]>,
    to: Option<&'p [u8]>,
    holes: &'p [H],
}

impl<'a> Walk<'_, 'a> {
    fn node<H: Deref<Target = [u8]>>(&mut self, node: &NodeRef<'a>, part: Part<'_, H>) -> Result<(), Halt> {
        let page = node.page();
        if page.is_leaf() {
            return self.leaf(node, part);
        }
        let first = part.from.map_or(Ok(0), |from| self.tree.covering(node, from))?;
        let last = part.to.map_or(Ok(page.count() - 1), |to| self.tree.covering(node, to))?;
        let mut rest = part.holes;
        for i in first..=last {
            let mut inside = 0;
            while inside < rest.len() && (i == last || self.tree.covering(node, &rest[inside])? <= i) {
                inside += 1;
            }
            let (holes, behind) = rest.split_at(inside);
            rest = behind;
            let from = part.from.filter(|_| i == first);
            let to = part.to.filter(|_| i == last);
            self.child(node, i, Part { from, to, holes })?;
        }
        Ok(())
    }

    fn child<H: Deref<Target = [u8]>>(
        &mut self,
        node: &NodeRef<'a>,
        i: usize,
        part: Part<'_, H>,
    ) -> Result<(), Halt> {
        if part.from.is_some() || part.to.is_some() || !part.holes.is_empty() {
            return self.node(&self.tree.child(node, i)?, part);
        }
        match (node.page().child(i), node) {
            (Place::Disk(link), _) => (self.part)(link.sums),
            (Place::Memory(place), NodeRef::Dirty(node)) => self.whole(node.child_at(place))?,
            (Place::Memory(_), _) => unreachable!("pages on disk name no memory: checked when first read"),
        }
        Ok(())
    }

    fn whole(&mut self, node: &Node) -> Result<(), Halt> {
        let sums = of_node_within(node, self.steps).ok_or(Halt::Steps)?;
        (self.part)(sums);
        Ok(())
    }

    fn leaf<H: Deref<Target = [u8]>>(&mut self, node: &NodeRef<'a>, part: Part<'_, H>) -> Result<(), Halt> {
        let page = node.page();
        let bound = |key| self.tree.lower_bound(node, key);
        let mut at = part.from.map_or(Ok(0), |from| bound(from).map(|(i, _)| i))?;
        let end = part.to.map_or(Ok(page.count()), |to| bound(to).map(|(i, _)| i))?;
        *self.steps = self.steps.checked_sub(end.saturating_sub(at)).ok_or(Halt::Steps)?;
        let memory = match node {
            NodeRef::Dirty(node) => Some(*node),
            _ => None,
        };
        for hole in part.holes {
            if let (i, true) = self.tree.lower_bound(node, hole)? {
                (self.part)(cells(page, memory, at..i));
                at = i + 1;
            }
        }
        (self.part)(cells(page, memory, at..end));
        Ok(())
    }

    fn tree<H: Deref<Target = [u8]>>(&mut self, root: &'a TreeRoot, part: Part<'_, H>) -> Result<(), Halt> {
        let empty = match (part.from, part.to) {
            (Some(from), Some(to)) => self.tree.order().compare(from, to).is_ge(),
            _ => false,
        };
        if empty {
            return Ok(());
        }
        if part.from.is_none() && part.to.is_none() && part.holes.is_empty() {
            match root {
                TreeRoot::Empty => {}
                TreeRoot::Disk(link) => (self.part)(link.sums),
                TreeRoot::Memory(node) => self.whole(node)?,
            }
            return Ok(());
        }
        match self.tree.top(root)? {
            None => Ok(()),
            Some(top) => self.node(&top, part),
        }
    }
}

impl View<'_> {
    fn walk<H: Deref<Target = [u8]>>(
        &self,
        tree: TreeId,
        part: Part<'_, H>,
        steps: &mut usize,
        visit: &mut dyn FnMut(Sums),
    ) -> Result<bool, StoreError> {
        let (tree, root) = self.state.tree(tree);
        match (Walk { tree, steps, part: visit }).tree(root, part) {
            Ok(()) => Ok(true),
            Err(Halt::Steps) => Ok(false),
            Err(Halt::Store(error)) => Err(error),
        }
    }

    /// The sums of the entries with from <= key < to (None: from the beginning, to the end), without those whose keys
    /// are listed: ascending, and all within the interval.
    pub(crate) fn sums_without<H: Deref<Target = [u8]>>(
        &self,
        tree: TreeId,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        holes: &[H],
    ) -> Result<Sums, StoreError> {
        let mut sums = Sums::default();
        let part = Part { from, to, holes };
        self.walk(tree, part, &mut usize::MAX.clone(), &mut |part| sums = sums.then(part))?;
        Ok(sums)
    }

    /// The sums of the entries with from <= key < to.
    pub(crate) fn sums(
        &self,
        tree: TreeId,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
    ) -> Result<Sums, StoreError> {
        self.sums_without::<&[u8]>(tree, from, to, &[])
    }

    /// How many user keys are live whose entries in tree `Index` are those with from <= key < to. None if that takes
    /// more than `steps` cells to find out; the steps taken are subtracted.
    pub(crate) fn live(
        &self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        steps: &mut usize,
    ) -> Result<Option<i64>, StoreError> {
        let mut live = 0;
        let part = Part::<&[u8]> { from, to, holes: &[] };
        let whole = self.walk(TreeId::Index, part, steps, &mut |part| live += part.live)?;
        Ok(whole.then_some(live))
    }
}
