//! A position in a tree, moving both ways.

use crate::page::CellValue;
use crate::search::{Bounds, KEY_ORDER, Tree, TreeRoot};
use crate::source::NodeRef;
use crate::{StoreError, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Before,
    At,
    After,
}

/// A position in a tree: at an entry, or past an end. From past an end it moves back to the entry there.
///
/// The keys ascend, or there is an error. After one it stands where it stood before.
#[derive(Debug)]
pub struct Cursor<'a> {
    tree: Tree<'a>,
    /// From the root to the leaf; empty for an empty tree. Past an end it stays at the entry there.
    path: Vec<(NodeRef<'a>, usize)>,
    position: Position,
    /// The key of the entry, when it does not stand in the leaf.
    long_key: Option<Value<'a>>,
}

impl<'a> Cursor<'a> {
    /// At the first entry with a key >= `key`, or past the end.
    pub(crate) fn at_or_after(
        tree: Tree<'a>,
        root: &'a TreeRoot,
        key: &[u8],
    ) -> Result<Cursor<'a>, StoreError> {
        let mut cursor = Cursor::descend(tree, root, key)?;
        let Some((leaf, i)) = cursor.path.last_mut() else { return Ok(cursor) };
        let count = leaf.page().count();
        cursor.position = Position::At;
        if *i == count {
            *i = count - 1;
            cursor.next()?;
        } else {
            cursor.load_key()?;
        }
        Ok(cursor)
    }

    /// At the last entry with a key < `key`, or past the beginning.
    pub(crate) fn before(tree: Tree<'a>, root: &'a TreeRoot, key: &[u8]) -> Result<Cursor<'a>, StoreError> {
        let mut cursor = Cursor::descend(tree, root, key)?;
        let Some((_, i)) = cursor.path.last_mut() else { return Ok(cursor) };
        cursor.position = Position::At;
        match *i {
            0 => cursor.prev()?,
            _ => {
                *i -= 1;
                cursor.load_key()?;
            }
        }
        Ok(cursor)
    }

    /// At the last entry of the tree.
    pub(crate) fn last(tree: Tree<'a>, root: &'a TreeRoot) -> Result<Cursor<'a>, StoreError> {
        let mut cursor = Cursor { tree, path: Vec::new(), position: Position::After, long_key: None };
        if let Some(top) = tree.top(root)? {
            cursor.push_edge(top, false)?;
            cursor.position = Position::At;
            cursor.load_key()?;
        }
        Ok(cursor)
    }

    fn descend(tree: Tree<'a>, root: &'a TreeRoot, key: &[u8]) -> Result<Cursor<'a>, StoreError> {
        let mut cursor = Cursor { tree, path: Vec::new(), position: Position::After, long_key: None };
        let Some(mut node) = tree.top(root)? else { return Ok(cursor) };
        cursor.path.reserve_exact(usize::from(node.page().level()) + 1);
        while !node.page().is_leaf() {
            let i = tree.covering(&node, key)?;
            let child = tree.child_within(&node, i, || tree.bounds(root, key, node.page().level()))?;
            cursor.path.push((node, i));
            node = child;
        }
        let (i, _) = tree.lower_bound(&node, key)?;
        cursor.path.push((node, i));
        Ok(cursor)
    }

    /// Goes down from `node` along its first or its last children.
    fn push_edge(&mut self, mut node: NodeRef<'a>, first: bool) -> Result<(), StoreError> {
        loop {
            let i = if first { 0 } else { node.page().count() - 1 };
            let child = match node.page().is_leaf() {
                true => None,
                false => Some(self.tree.child_within(&node, i, || Some(Bounds::of(&self.path)))?),
            };
            self.path.push((node, i));
            match child {
                None => return Ok(()),
                Some(child) => node = child,
            }
        }
    }

    fn load_key(&mut self) -> Result<(), StoreError> {
        let Some((leaf, i)) = self.path.last() else { return Ok(()) };
        self.long_key = if leaf.page().key(*i).1 { Some(self.tree.key(leaf, *i)?) } else { None };
        Ok(())
    }

    /// Key of the entry; None past an end.
    pub fn key(&self) -> Option<&[u8]> {
        if self.position != Position::At {
            return None;
        }
        match (&self.long_key, self.path.last()) {
            (Some(key), _) => Some(key),
            (None, Some((leaf, i))) => Some(leaf.page().key(*i).0),
            (None, None) => None,
        }
    }

    /// Key of the entry, borrowed from the view instead of the cursor where possible.
    pub fn key_value(&self) -> Result<Option<Value<'a>>, StoreError> {
        match self.path.last() {
            Some((leaf, i)) if self.position == Position::At => Ok(Some(self.tree.key(leaf, *i)?)),
            _ => Ok(None),
        }
    }

    /// Value of the entry; None past an end.
    pub fn value(&self) -> Result<Option<Value<'a>>, StoreError> {
        match self.path.last() {
            Some((leaf, i)) if self.position == Position::At => Ok(Some(self.tree.value(leaf, *i)?)),
            _ => Ok(None),
        }
    }

    /// Bytes of the entry's value, which is not read; None past an end.
    pub(crate) fn value_len(&self) -> Option<usize> {
        match self.path.last() {
            Some((leaf, i)) if self.position == Position::At => Some(match leaf.page().value(*i) {
                CellValue::Inline(range) => range.len(),
                CellValue::Long(_, len) => len as usize,
            }),
            _ => None,
        }
    }

    /// Moves to the next entry, or past the end.
    #[allow(clippy::should_implement_trait)] // It moves and may fail, and lends: an iterator cannot.
    pub fn next(&mut self) -> Result<(), StoreError> {
        self.step(Position::Before, Position::After)
    }

    /// Moves to the entry before, or past the beginning.
    pub fn prev(&mut self) -> Result<(), StoreError> {
        self.step(Position::After, Position::Before)
    }

    /// One step away from the end `from` towards the end `to`.
    #[inline]
    fn step(&mut self, from: Position, to: Position) -> Result<(), StoreError> {
        if self.path.is_empty() || self.position == to {
            return Ok(());
        }
        if self.position == from {
            self.load_key()?;
            self.position = Position::At;
            return Ok(());
        }
        let forward = to == Position::After;
        let (leaf, i) = self.path.last_mut().expect("a path that is not empty");
        let inside = if forward { *i + 1 < leaf.page().count() } else { *i > 0 };
        if !inside {
            return self.step_leaf(forward, to);
        }
        let before = *i;
        *i = if forward { *i + 1 } else { *i - 1 };
        if self.long_key.is_none() && !leaf.page().key(*i).1 {
            return Ok(());
        }
        // Of long keys the page does not tell whether they ascend.
        let long_key = self.long_key.take();
        let leaf = leaf.clone();
        let key = long_key.as_deref().unwrap_or_else(|| leaf.page().key(before).0);
        let moved = self.arrive(key, forward);
        if moved.is_err() {
            self.long_key = long_key;
            self.path.last_mut().expect("as before").1 = before;
        }
        moved
    }

    /// Takes the key of the new place, which must be behind `before` in the direction of the step.
    fn arrive(&mut self, before: &[u8], forward: bool) -> Result<(), StoreError> {
        self.load_key()?;
        let Some((leaf, i)) = self.path.last() else { return Ok(()) };
        let key = self.long_key.as_deref().unwrap_or_else(|| leaf.page().key(*i).0);
        let order = self.tree.order().compare(before, key);
        if if forward { order.is_lt() } else { order.is_gt() } {
            return Ok(());
        }
        Err(self.tree.malformed(leaf, KEY_ORDER, *i))
    }

    /// Goes on to the neighbouring leaf.
    fn step_leaf(&mut self, forward: bool, end: Position) -> Result<(), StoreError> {
        let turn = self.path.iter().rposition(|(node, i)| match forward {
            true => *i + 1 < node.page().count(),
            false => *i > 0,
        });
        let Some(depth) = turn else {
            self.position = end;
            return Ok(());
        };
        let (node, i) = &self.path[depth];
        let i = if forward { i + 1 } else { i - 1 };
        let child = self.tree.child_within(node, i, || Some(Bounds::of(&self.path[..depth])))?;
        let old = self.path.split_off(depth + 1);
        let before = std::mem::replace(&mut self.path[depth].1, i);
        let long_key = self.long_key.take();
        let (leaf, last) = old.last().expect("a branch is not the end of a path");
        // Whoever looked for a place between the leaves has not loaded it.
        let moved = self.tree.key(leaf, *last).and_then(|key| {
            self.push_edge(child, forward)?;
            self.arrive(&key, forward)
        });
        if moved.is_err() {
            self.long_key = long_key;
            self.path.truncate(depth + 1);
            self.path[depth].1 = before;
            self.path.extend(old);
        }
        moved
    }
}
