//! The note on a node or a blob where a checkpoint put it.
//!
//! Promises: a mark is made once, by the running checkpoint, and stays unless that checkpoint is abandoned. The
//! checkpoint's thread and the writer use it, one after the other; readers never look.

use std::sync::{Mutex, MutexGuard};

/// A place in the file, and the number of the checkpoint that wrote there.
#[derive(Debug)]
pub(crate) struct Mark<T>(Mutex<Option<(u64, T)>>);

impl<T> Default for Mark<T> {
    fn default() -> Mark<T> {
        Mark(Mutex::new(None))
    }
}

impl<T: Copy> Mark<T> {
    fn cell(&self) -> MutexGuard<'_, Option<(u64, T)>> {
        self.0.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn get(&self) -> Option<T> {
        self.cell().map(|(_, place)| place)
    }

    pub(crate) fn is_set(&self) -> bool {
        self.cell().is_some()
    }

    pub(crate) fn set(&self, checkpoint: u64, place: T) {
        let before = self.cell().replace((checkpoint, place));
        assert!(before.is_none(), "what is in memory is written once");
    }

    /// Takes back the mark of a checkpoint that was abandoned.
    pub(crate) fn clear(&self, abandoned: u64) {
        let mark = self.cell().take();
        assert!(
            mark.is_none_or(|(checkpoint, _)| checkpoint == abandoned),
            "an earlier one's marks are gone"
        );
    }
}
