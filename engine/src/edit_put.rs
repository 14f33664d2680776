//! The short ways of a put: one descent, and no cell but the new one is touched.
//!
//! Promises: each does what an insert does, or does nothing and says so. What makes an insert difficult (a leaf that is
//! full, a key that is there already, a tree without nodes in memory) is left to `edit`.

use std::sync::Arc;

use crate::edit::Edit;
use crate::node::Node;
use crate::page::leaf_cell_bytes;
use crate::search::{Tree, TreeRoot};
use crate::source::NodeRef;
use crate::{StoreError, Value};

impl<'s> Edit<'s> {
    /// Appends an entry, if its key is greater than all others and the last leaf has room. Whether it did.
    pub(crate) fn append(
        &mut self,
        root: &mut TreeRoot,
        key: &[u8],
        value: &[u8],
    ) -> Result<bool, StoreError> {
        let TreeRoot::Memory(top) = root else { return Ok(false) };
        let leaf = self.own_leaf(top, |_, branch| Ok(branch.page().count() - 1))?;
        let end = leaf.page().count();
        let fits = leaf.page().free_bytes() >= leaf_cell_bytes(key.len(), value.len());
        if !fits || self.tree().compare(&NodeRef::Dirty(leaf), end - 1, key)?.is_ge() {
            return Ok(false);
        }
        self.insert_fitting(leaf, end, key, value);
        #[cfg(test)]
        self.source.short_puts[0].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(true)
    }

    /// Inserts an entry whose value depends on the entry before it: `decide` gets key and value of that one and writes
    /// the value into `value`. None, if the entry before it stands in another leaf, the key is there already or the leaf
    /// has no room; `decide` may have been asked then, and nothing has changed.
    pub(crate) fn insert_behind<T>(
        &mut self,
        root: &mut TreeRoot,
        key: &[u8],
        value: &mut Vec<u8>,
        decide: impl FnOnce(&[u8], &[u8], &mut Vec<u8>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let TreeRoot::Memory(top) = root else { return Ok(None) };
        let leaf = self.own_leaf(top, |tree, branch| tree.covering(&NodeRef::Dirty(branch), key))?;
        let (decided, i) = {
            let (tree, node) = (self.tree(), NodeRef::Dirty(leaf));
            let (i, false) = tree.lower_bound(&node, key)? else { return Ok(None) };
            let Some(before) = i.checked_sub(1) else { return Ok(None) };
            let (Value::Page(old_key), Value::Page(old)) =
                (tree.key(&node, before)?, tree.value(&node, before)?)
            else {
                return Ok(None);
            };
            (decide(old_key, old, value)?, i)
        };
        if leaf.page().free_bytes() < leaf_cell_bytes(key.len(), value.len()) {
            return Ok(None);
        }
        self.insert_fitting(leaf, i, key, value);
        #[cfg(test)]
        self.source.short_puts[1].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Some(decided))
    }

    /// A leaf, to be changed: down from `top` by the children that `choose` names.
    fn own_leaf<'n>(
        &mut self,
        top: &'n mut Arc<Node>,
        choose: impl Fn(&Tree<'s>, &Node) -> Result<usize, StoreError>,
    ) -> Result<&'n mut Node, StoreError> {
        let tree = self.tree();
        let mut node = self.own(top);
        while !node.page().is_leaf() {
            let i = choose(&tree, node)?;
            let child = self.child_mut(node, i)?;
            node = self.own(child);
        }
        Ok(node)
    }
}
