//! Removing many keys of a tree in one pass.
//!
//! A sorted list of keys goes down the tree as a whole: each leaf is found once, and loses all that it is to lose
//! at once. A leaf that loses everything is let go as it is, without being copied. Work is counted, so that a
//! caller who shares the writer's thread can stop in time and go on later.
//!
//! Promises: a key of the list that the tree does not hold is passed over; an error leaves a whole tree that has lost
//! some of the keys and nothing else. What it lets go is noted as `edit` does it.

use std::ops::Range;
use std::sync::Arc;

use crate::StoreError;
use crate::cursor::Cursor;
use crate::edit::{Edit, MERGE_BELOW};
use crate::node::{Child, Node};
use crate::order::Order;
use crate::page::{CellValue, PAGE, Place};
use crate::search::{KEY_ORDER, Tree, TreeRoot};
use crate::source::NodeRef;

/// What a leaf counts for beside its keys, in keys: finding it, copying it, and writing it later.
const LEAF_WORK: usize = 16;
/// So many bytes of long keys and values that are taken into memory count for a key.
const TAKEN_BYTES: usize = 256;

/// Keys in the order of their tree, in one buffer.
#[derive(Debug, Default)]
pub(crate) struct SortedKeys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl SortedKeys {
    /// Appends a key that is greater than the last.
    pub(crate) fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all keys.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn get(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[start..self.ends[i]]
    }

    /// The first of the run that is not below the bound: near its beginning as a rule.
    fn first_from(&self, run: Range<usize>, order: Order, bound: &[u8]) -> usize {
        let below = |i: usize| order.compare(self.get(i), bound).is_lt();
        let (mut low, mut stride) = (run.start, 1);
        while low + stride < run.end && below(low + stride) {
            low += stride;
            stride *= 2;
        }
        let mut high = (low + stride).min(run.end);
        while low < high {
            let middle = (low + high) / 2;
            if below(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// The value that an entry gets once the entry before it, with the same stem, is gone: as long as the one it has. None:
/// that one stays.
pub(crate) type Successor = fn(&[u8]) -> Option<Vec<u8>>;

/// A place in a page, and what is to stand there.
type Overwrite = (Range<usize>, Vec<u8>);

/// What becomes of a child.
#[derive(PartialEq, Eq)]
enum Outcome {
    Unchanged,
    Changed,
    Dropped,
}

/// A removal on its way down.
struct Removal<'k> {
    keys: &'k SortedKeys,
    successor: Option<Successor>,
    /// Left to be spent.
    work: &'k mut usize,
    /// Room: the cells of a leaf that go.
    cells: Vec<usize>,
    /// Keys of the list that were the last of their leaf: what follows them stands elsewhere.
    open: Vec<usize>,
}

impl<'k> Removal<'k> {
    fn new(keys: &'k SortedKeys, successor: Option<Successor>, work: &'k mut usize) -> Removal<'k> {
        Removal { keys, successor, work, cells: Vec::new(), open: Vec::new() }
    }

    /// A leaf had its part of the run.
    fn spend(&mut self, run: &Range<usize>) {
        *self.work = self.work.saturating_sub(LEAF_WORK + run.len());
    }

    /// Looks for the keys of a run in a leaf.
    fn find<'a>(&mut self, tree: &Tree<'a>, leaf: &NodeRef<'a>, run: Range<usize>) -> Result<(), StoreError> {
        self.spend(&run);
        self.cells.clear();
        let (mut at, mut last) = (0, run.start);
        for i in run {
            if at == leaf.page().count() {
                break;
            }
            let key = self.keys.get(i);
            // Often a leaf loses all it has, or many in a row.
            let found = tree.compare(leaf, at, key)?.is_eq();
            let (cell, found) = if found { (at, true) } else { tree.lower_bound(leaf, key)? };
            if found {
                if self.cells.last().is_some_and(|before| *before >= cell) {
                    return Err(tree.malformed(leaf, KEY_ORDER, cell));
                }
                self.cells.push(cell);
                last = i;
            }
            at = cell + usize::from(found);
        }
        if self.cells.last().is_some_and(|cell| cell + 1 == leaf.page().count()) {
            self.open.push(last);
        }
        Ok(())
    }
}

/// Reads whatever removing these keys will need, so that it is verified and in memory by then.
pub(crate) fn touch(tree: &Tree<'_>, root: &TreeRoot, keys: &SortedKeys) -> Result<(), StoreError> {
    let mut work = 0;
    let mut removal = Removal::new(keys, None, &mut work);
    match tree.top(root)? {
        Some(top) => touch_below(tree, &top, &mut removal, 0..keys.len()),
        None => Ok(()),
    }
}

fn touch_below(
    tree: &Tree<'_>,
    node: &NodeRef<'_>,
    removal: &mut Removal<'_>,
    mut run: Range<usize>,
) -> Result<(), StoreError> {
    if node.page().is_leaf() {
        removal.find(tree, node, run)?;
        // What stays may have to be written anew.
        let mut left = node.page().longs().filter(|(i, ..)| removal.cells.binary_search(i).is_err());
        return left.try_for_each(|(_, _, long)| tree.source.long(&long).map(drop));
    }
    while !run.is_empty() {
        let (i, end) = part_of_child(tree, node, removal.keys, run.clone())?;
        touch_below(tree, &tree.child(node, i)?, removal, run.start..end)?;
        run.start = end;
    }
    Ok(())
}

/// The child that covers the first key of the run, and where its part of the run ends.
fn part_of_child<'a>(
    tree: &Tree<'a>,
    branch: &NodeRef<'a>,
    keys: &SortedKeys,
    run: Range<usize>,
) -> Result<(usize, usize), StoreError> {
    let i = tree.covering(branch, keys.get(run.start))?;
    if i + 1 == branch.page().count() {
        return Ok((i, run.end));
    }
    let bound = tree.key(branch, i + 1)?;
    Ok((i, keys.first_from(run, tree.order(), &bound)))
}

impl Edit<'_> {
    /// Removes those keys of the list that the tree holds, from `from` on, until the list or the work allowed is
    /// at its end; where it stopped. It looks at one leaf at least. What follows a removed entry and has its stem
    /// gets the value that `successor` says.
    pub(crate) fn remove_sorted(
        &mut self,
        root: &mut TreeRoot,
        keys: &SortedKeys,
        successor: Option<Successor>,
        from: usize,
        work: &mut usize,
    ) -> Result<usize, StoreError> {
        if let TreeRoot::Disk(link) = root {
            *root = TreeRoot::Memory(self.take_root(&link.clone())?);
        }
        let TreeRoot::Memory(top) = root else { return Ok(keys.len()) };
        let run = from..keys.len();
        let mut removal = Removal::new(keys, successor, work);
        let stopped = if top.page().is_leaf() {
            removal.find(&self.tree(), &NodeRef::Dirty(top), run.clone())?;
            self.remove_cells(top, &mut removal)?;
            run.end
        } else {
            self.remove_run(top, &mut removal, run)?
        };
        let open = removal.open;
        self.lower_root(root);
        if let Some(successor) = successor {
            open.into_iter().try_for_each(|i| self.follow(root, keys.get(i), successor))?;
        }
        Ok(stopped)
    }

    /// Changes the value of what follows a removed key, if it has its stem.
    fn follow(
        &mut self,
        root: &mut TreeRoot,
        removed: &[u8],
        successor: Successor,
    ) -> Result<(), StoreError> {
        let order = self.tree().order();
        let cursor = Cursor::at_or_after(self.tree(), root, removed)?;
        let Some(key) = cursor.key().filter(|key| order.stem(key) == order.stem(removed)) else {
            return Ok(());
        };
        let value = cursor.value()?.and_then(|value| successor(&value));
        let (key, Some(value)) = (key.to_vec(), value) else { return Ok(()) };
        drop(cursor);
        self.insert(root, &key, &value)
    }

    /// Removes a run of keys below a branch; where it stopped.
    fn remove_run(
        &mut self,
        node: &mut Arc<Node>,
        removal: &mut Removal<'_>,
        mut run: Range<usize>,
    ) -> Result<usize, StoreError> {
        let branch = self.own(node);
        // A child that was changed, to be merged when its right neighbour has had its turn.
        let mut before: Option<usize> = None;
        loop {
            let (mut i, end) =
                part_of_child(&self.tree(), &NodeRef::Dirty(branch), removal.keys, run.clone())?;
            if let Some(left) = before
                && left + 1 != i
                && self.is_underfull(branch, left)
                && self.merge_pair(branch, left)
            {
                i -= 1;
            }
            let outcome;
            (outcome, run.start) = self.remove_below_child(branch, i, removal, run.start..end)?;
            before = match outcome {
                Outcome::Unchanged => None,
                Outcome::Dropped => before,
                Outcome::Changed => Some(self.merge_leftwards(branch, i)),
            };
            if run.is_empty() || *removal.work == 0 {
                break;
            }
        }
        if let Some(last) = before
            && self.is_underfull(branch, last)
        {
            self.merge(branch, last);
        }
        Ok(run.start)
    }

    /// One child's part; what became of it, and where it stopped.
    fn remove_below_child(
        &mut self,
        branch: &mut Node,
        i: usize,
        removal: &mut Removal<'_>,
        run: Range<usize>,
    ) -> Result<(Outcome, usize), StoreError> {
        if branch.page().level() == 1 {
            let end = run.end;
            return Ok((self.remove_in_leaf(branch, i, removal, run)?, end));
        }
        let child = self.child_mut(branch, i)?;
        let stopped = self.remove_run(child, removal, run)?;
        if child.page().count() > 0 {
            return Ok((Outcome::Changed, stopped));
        }
        *self.dirty_bytes -= PAGE;
        self.drop_child(branch, i);
        Ok((Outcome::Dropped, stopped))
    }

    fn remove_in_leaf(
        &mut self,
        branch: &mut Node,
        i: usize,
        removal: &mut Removal<'_>,
        run: Range<usize>,
    ) -> Result<Outcome, StoreError> {
        let tree = self.tree();
        let leaf = tree.child(&NodeRef::Dirty(branch), i)?;
        removal.find(&tree, &leaf, run)?;
        if removal.cells.is_empty() {
            return Ok(Outcome::Unchanged);
        }
        if removal.cells.len() == leaf.page().count() {
            self.drop_leaf(branch, i)?;
            return Ok(Outcome::Dropped);
        }
        let leaf = self.child_mut(branch, i)?;
        self.remove_cells(leaf, removal)?;
        Ok(Outcome::Changed)
    }

    /// Removes the cells that were found.
    fn remove_cells(&mut self, leaf: &mut Arc<Node>, removal: &mut Removal<'_>) -> Result<(), StoreError> {
        if removal.cells.is_empty() {
            return Ok(());
        }
        let changed = match removal.successor {
            Some(successor) => self.followers(leaf, &removal.cells, successor)?,
            None => Vec::new(),
        };
        let leaf = self.own(leaf);
        for (place, value) in changed {
            leaf.edit().overwrite(place, &value);
        }
        let released = leaf.remove_entries(&removal.cells);
        let dirty_bytes = *self.dirty_bytes - released.blob_bytes;
        self.release(leaf, released);
        // Long keys and values that were left in sparse extents are in memory now.
        let taken = *self.dirty_bytes - dirty_bytes;
        *removal.work = removal.work.saturating_sub(taken / TAKEN_BYTES);
        Ok(())
    }

    /// New values, and their places, for what follows the removed cells in the leaf and has their stems.
    fn followers(
        &self,
        leaf: &Node,
        cells: &[usize],
        successor: Successor,
    ) -> Result<Vec<Overwrite>, StoreError> {
        let (tree, page) = (self.tree(), leaf.page());
        let order = tree.order();
        let leaf = NodeRef::Dirty(leaf);
        let mut changed = Vec::new();
        for (n, &cell) in cells.iter().enumerate() {
            let next = cell + 1;
            if next == page.count() || cells.get(n + 1) == Some(&next) {
                continue;
            }
            if let CellValue::Inline(place) = page.value(next)
                && let Some(value) = successor(&page.0[place.clone()])
                && order.stem(&tree.key(&leaf, cell)?) == order.stem(&tree.key(&leaf, next)?)
            {
                assert_eq!(value.len(), place.len(), "a successor's value keeps its length");
                changed.push((place, value));
            }
        }
        Ok(changed)
    }

    /// Lets a leaf go with all that it holds, as it is.
    fn drop_leaf(&mut self, branch: &mut Node, i: usize) -> Result<(), StoreError> {
        let leaf = self.tree().child(&NodeRef::Dirty(branch), i)?;
        let usages = leaf.page().usages();
        self.garbage.extents.extend(usages.iter().map(|usage| (usage.extent.page, usage.extent.pages)));
        if let NodeRef::Dirty(leaf) = leaf {
            *self.dirty_bytes -= leaf.blobs().map(|blob| blob.bytes.len()).sum::<usize>();
        }
        match self.drop_child(branch, i) {
            Child::Disk(link) => self.garbage.extents.push((link.page, 1)),
            Child::Memory(leaf) => {
                *self.dirty_bytes -= PAGE;
                if leaf.batch != self.batch {
                    self.garbage.nodes.push(leaf);
                }
            }
        }
        Ok(())
    }

    /// Whether a child in memory has become small enough to be merged.
    fn is_underfull(&self, branch: &Node, i: usize) -> bool {
        match branch.child(i) {
            Place::Memory(place) => branch.child_at(place).page().used_bytes() < MERGE_BELOW,
            Place::Disk(_) => false,
        }
    }

    /// Merges a changed child into its left neighbour, if that has been changed, too, or one of them is underfull;
    /// where it is then. So what is left of many leaves fills few.
    fn merge_leftwards(&mut self, branch: &mut Node, i: usize) -> usize {
        let wanted = i > 0 && (self.is_underfull(branch, i) || branch.child_in_memory(i - 1).is_some());
        if wanted && self.merge_pair(branch, i - 1) { i - 1 } else { i }
    }
}
