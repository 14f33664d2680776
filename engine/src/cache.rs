//! A bounded cache of clean pages, for files that are not mapped.
//!
//! Promises: it holds no more bytes than it was made for (one entry per shard more at most); what it holds has been
//! verified by its owner. An entry lives as long as somebody uses it, evicted or not.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

const SHARDS: usize = 16;

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<u64, Entry>,
    /// The clock's hand goes round in this order.
    clock: VecDeque<u64>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    bytes: Arc<[u8]>,
    used: bool,
}

/// The cache; pages by number.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: Vec<Mutex<Shard>>,
    /// What each shard may hold.
    shard_bytes: usize,
}

impl Cache {
    /// A cache of so many bytes.
    pub(crate) fn new(bytes: usize) -> Cache {
        Cache { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), shard_bytes: bytes / SHARDS }
    }

    fn shard(&self, page: u64) -> MutexGuard<'_, Shard> {
        self.shards[page as usize % SHARDS].lock().expect("no holder of this lock panics")
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        (0..SHARDS as u64).map(|n| self.shard(n).bytes).sum()
    }

    pub(crate) fn get(&self, page: u64) -> Option<Arc<[u8]>> {
        let mut shard = self.shard(page);
        let entry = shard.entries.get_mut(&page)?;
        entry.used = true;
        Some(entry.bytes.clone())
    }

    pub(crate) fn put(&self, page: u64, bytes: Arc<[u8]>) {
        let mut shard = self.shard(page);
        if shard.entries.contains_key(&page) {
            return;
        }
        shard.bytes += bytes.len();
        shard.entries.insert(page, Entry { bytes, used: false });
        shard.clock.push_back(page);
        while shard.bytes > self.shard_bytes && shard.clock.len() > 1 {
            shard.evict();
        }
    }

    /// Forgets a page that is about to be written anew.
    pub(crate) fn forget(&self, page: u64) {
        let mut shard = self.shard(page);
        if let Some(entry) = shard.entries.remove(&page) {
            shard.bytes -= entry.bytes.len();
            shard.clock.retain(|p| *p != page);
        }
    }
}

impl Shard {
    /// Gives each entry that was used since the last round one more round, and drops the first that was not.
    fn evict(&mut self) {
        while let Some(page) = self.clock.pop_front() {
            let entry = self.entries.get_mut(&page).expect("the clock and the entries hold the same pages");
            if !std::mem::take(&mut entry.used) {
                self.bytes -= entry.bytes.len();
                self.entries.remove(&page);
                return;
            }
            self.clock.push_back(page);
        }
    }
}
