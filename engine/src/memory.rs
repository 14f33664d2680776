//! How much memory nodes, and the long keys and values beside them, take.
//!
//! Counted where they are made and freed, so it holds for all of them: the writer's, those that the running
//! checkpoint froze, those that wait to be freed, and those that only an old root still holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The count of one store, in bytes. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory(Arc<AtomicUsize>);

/// So many bytes of the count, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    memory: Memory,
    bytes: usize,
}

impl Memory {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self, bytes: usize) -> Taken {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Taken { memory: self.clone(), bytes }
    }
}

impl Taken {
    /// The count that they are of.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
