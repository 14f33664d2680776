//! The bytes of a node in memory: its own, or shared with its copies; and spare ones.
//!
//! A leaf is copied in order to be changed, so it has bytes of its own. A branch is mostly copied because a child in
//! its side table is another one now: its cells stay, and so the copies share their bytes until a cell changes.
//!
//! Promises: whoever edits bytes has them alone. Spare bytes are counted as those of nodes are, and are no more than
//! [`SPARE_MAX`] pages. What stands between slots and cells has no meaning, and may be left from another page.

use std::sync::Arc;

use crate::memory::{Memory, Taken};
use crate::node::NODE_BYTES;
use crate::page::{PAGE, PageBytes, PageMut, PageView};

/// So many pages are kept. A batch gives back about as many as it takes, and larger batches have other costs.
pub(crate) const SPARE_MAX: usize = 512;

/// A page's bytes.
#[derive(Debug)]
pub(crate) enum Sheet {
    Own(Box<PageBytes>),
    Shared(Arc<PageBytes>),
}

impl Sheet {
    #[inline]
    pub(crate) fn bytes(&self) -> &PageBytes {
        match self {
            Sheet::Own(bytes) => bytes,
            Sheet::Shared(bytes) => bytes,
        }
    }

    #[inline]
    pub(crate) fn edit(&mut self) -> PageMut<'_> {
        PageMut(match self {
            Sheet::Own(bytes) => bytes,
            Sheet::Shared(bytes) => Arc::make_mut(bytes),
        })
    }
}

/// Bytes of nodes that nobody holds any more, to be used again: they are in the processor's caches, and the allocator
/// need not ask the system for them.
#[derive(Debug, Default)]
pub(crate) struct Spare(Vec<(Box<PageBytes>, Taken)>);

impl Spare {
    /// Bytes for a new node, to be written by whoever gets them.
    pub(crate) fn sheet(&mut self, level: u8, memory: &Memory) -> (Sheet, Taken) {
        if level > 0 {
            return (Sheet::Shared(Arc::new([0; PAGE])), memory.take(NODE_BYTES));
        }
        let (bytes, taken) = self.0.pop().unwrap_or_else(|| (Box::new([0; PAGE]), memory.take(NODE_BYTES)));
        (Sheet::Own(bytes), taken)
    }

    /// The same bytes for another node.
    pub(crate) fn copy(&mut self, sheet: &Sheet, memory: &Memory) -> (Sheet, Taken) {
        let from = match sheet {
            Sheet::Own(from) => from,
            Sheet::Shared(from) => return (Sheet::Shared(from.clone()), memory.take(NODE_BYTES)),
        };
        let (bytes, taken) = match self.0.pop() {
            None => (from.clone(), memory.take(NODE_BYTES)),
            Some((mut bytes, taken)) => {
                PageMut(&mut bytes).copy_of(PageView(&from[..]));
                (bytes, taken)
            }
        };
        (Sheet::Own(bytes), taken)
    }

    /// Keeps the bytes of a node that is gone.
    pub(crate) fn put(&mut self, sheet: Sheet, taken: Taken) {
        if let Sheet::Own(bytes) = sheet
            && self.0.len() < SPARE_MAX
        {
            self.0.push((bytes, taken));
        }
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
