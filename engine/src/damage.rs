//! Damage that was found in the file: by whoever read it, or by the scrub.
//!
//! Promises: what is found is kept until it is taken, once for each page, and never more than a bounded number of
//! findings; that there was damage is never forgotten. Looking whether there is any costs one load.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::{StoreError, TreeId};

/// Pages that are told apart. Beyond so many damaged ones another adds nothing.
const PAGES_MAX: usize = 1000;

/// A page or an extent that does not hold what was written there, or cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The tree that it belongs to.
    pub tree: TreeId,
    /// Its number, or the extent's first.
    pub page: u64,
    /// The error: it names file, page and field.
    pub what: String,
}

#[derive(Debug, Default)]
struct Found {
    pages: BTreeSet<u64>,
    fresh: Vec<Damage>,
}

/// What has been found in a file.
#[derive(Debug, Default)]
pub(crate) struct Damages {
    any: AtomicBool,
    found: Mutex<Found>,
}

impl Damages {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().expect("no holder of this lock panics")
    }

    /// Keeps an error if it is damage: a reader cannot tell others.
    #[cold]
    pub(crate) fn note(&self, tree: TreeId, error: &StoreError) {
        if let StoreError::Corrupt { page, .. } = error {
            self.add(tree, *page, error);
        }
    }

    /// Keeps damage, unless the page's is known.
    pub(crate) fn add(&self, tree: TreeId, page: u64, error: &StoreError) {
        let mut found = self.found();
        if found.pages.len() < PAGES_MAX && found.pages.insert(page) {
            found.fresh.push(Damage { tree, page, what: error.to_string() });
            self.any.store(true, Ordering::Release);
        }
    }

    /// What was found since the last call.
    pub(crate) fn take(&self) -> Vec<Damage> {
        match self.any.swap(false, Ordering::Acquire) {
            true => std::mem::take(&mut self.found().fresh),
            false => Vec::new(),
        }
    }

    /// Whatever is still damaged shall be found anew.
    pub(crate) fn forget(&self) {
        let mut found = self.found();
        let fresh: BTreeSet<u64> = found.fresh.iter().map(|damage| damage.page).collect();
        found.pages = fresh;
    }
}
