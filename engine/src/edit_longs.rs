//! Long keys and values of a node that is being changed: what happens to the extents that it owns.
//!
//! An extent belongs to one node. When it is sparse, or a split would leave cells that need it on both sides, what is
//! needed of it is read into memory, to be written anew by the next checkpoint, and the extent is given up. So no counts
//! are kept on disk, and what is dead in extents is never more than what is alive, the last page of each left out.
//!
//! Promises: an error leaves the node as it was.

use std::sync::Arc;

use crate::edit::Edit;
use crate::extent::{Extent, Part, Usage, count_in};
use crate::node::{Blob, Node};
use crate::{StoreError, Value};

/// An extent of so few pages is written anew with what is new if more than an eighth of it is empty: a page that takes one
/// long value from checkpoint to checkpoint would own an extent for each.
const SMALL_PAGES: u32 = 4;
/// So many of them at a time.
const GATHERED_MAX: usize = 4;

impl Edit<'_> {
    /// Takes the long parts of a node of this batch that live in the wanted extents into memory, and gives the extents up.
    /// Errors: Io, Corrupt.
    pub(crate) fn take_longs(
        &mut self,
        node: &mut Node,
        wanted: impl Fn(Extent) -> bool,
    ) -> Result<(), StoreError> {
        self.take_some(node, |_, extent| wanted(extent))
    }

    fn take_some(
        &mut self,
        node: &mut Node,
        wanted: impl Fn(usize, Extent) -> bool,
    ) -> Result<(), StoreError> {
        let mut taken: Vec<(usize, Part, Extent, Arc<[u8]>)> = Vec::new();
        for (i, part, long) in node.page().longs().filter(|(i, _, long)| wanted(*i, long.extent)) {
            let bytes = match self.tree().noted(self.source.long(&long))? {
                Value::Page(bytes) => bytes.into(),
                Value::Shared(bytes, _) => bytes,
            };
            taken.push((i, part, long.extent, bytes));
        }
        let mut extents = Vec::new();
        for (i, part, extent, bytes) in taken {
            *self.dirty_bytes += bytes.len();
            node.set_blob(i, part, Blob::new(bytes, self.source.memory()));
            extents.push(extent);
        }
        self.give_up(node, &mut extents);
        Ok(())
    }

    /// Gives up those of the extents that no cell of the node refers to any more; the others stay in the list, once.
    fn give_up(&mut self, node: &Node, extents: &mut Vec<Extent>) {
        if extents.is_empty() {
            return;
        }
        extents.sort_unstable();
        extents.dedup();
        let usages = node.page().usages();
        extents.retain(|extent| {
            let needed = usages.iter().any(|usage| usage.extent == *extent);
            if !needed {
                self.garbage.extents.push((extent.page, extent.pages));
            }
            needed
        });
    }

    /// After cells of the node that referred to these extents are gone.
    pub(crate) fn settle(&mut self, node: &mut Node, mut extents: Vec<Extent>) {
        self.give_up(node, &mut extents);
        if extents.is_empty() {
            return;
        }
        let mut usages = node.page().usages();
        usages.retain(|usage| extents.contains(&usage.extent) && usage.extent.is_sparse(usage.live));
        self.try_to_take(node, &usages);
    }

    /// Before a long part is added: takes small extents with empty room into memory, so that the next checkpoint
    /// writes them together with the new part.
    pub(crate) fn gather_small(&mut self, node: &mut Node) {
        let mut usages = node.page().usages();
        usages.retain(|Usage { extent, live }| extent.pages <= SMALL_PAGES && live * 8 < extent.bytes() * 7);
        usages.truncate(GATHERED_MAX);
        self.try_to_take(node, &usages);
    }

    /// What cannot be read stays where it is, and whoever reads it gets the error: nothing depends on the taking.
    fn try_to_take(&mut self, node: &mut Node, usages: &[Usage]) {
        if usages.is_empty() {
            return;
        }
        let wanted = |extent| usages.iter().any(|usage| usage.extent == extent);
        if let Err(error) = self.take_longs(node, wanted) {
            log::warn!("long keys or values could not be read, and stay where they are: {error}");
        }
    }

    /// Before the node is split: an extent that is needed on both sides is left to the side that needs more of it, or to
    /// none if that side alone would leave it sparse. The cell `gone` does not count. Errors: Io, Corrupt.
    pub(crate) fn part_longs(
        &mut self,
        node: &mut Node,
        is_left: impl Fn(usize) -> bool,
        gone: Option<usize>,
    ) -> Result<(), StoreError> {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for (i, _, long) in node.page().longs().filter(|(i, ..)| Some(*i) != gone) {
            count_in(if is_left(i) { &mut left } else { &mut right }, &long);
        }
        let live = |usages: &[Usage], extent| usages.iter().find(|u| u.extent == extent).map(|u| u.live);
        let take = |i: usize, extent: Extent| match (live(&left, extent), live(&right, extent)) {
            (Some(left), Some(right)) if Some(i) != gone => {
                extent.is_sparse(left.max(right)) || is_left(i) == (left < right)
            }
            _ => false,
        };
        if left.is_empty() || right.is_empty() {
            return Ok(());
        }
        self.take_some(node, take)
    }
}
