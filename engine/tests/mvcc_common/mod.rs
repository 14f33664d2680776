//! What the MVCC tests share: stores in a folder of their own, and a random generator that a seed repeats.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use trilith_disk::RealDisk;
use trilith_engine::{Change, KeyRange, Options, Store, StoreError, View};

/// A temporary folder that goes with the test.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("trilith-mvcc-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn open(&self, map: bool) -> Store {
        open(&self.0, map)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(folder: &Path, map: bool) -> Store {
    let path = folder.join("db");
    Store::open(Options { path, disk: Arc::new(RealDisk), map, dirty_bytes_max: 1 << 30, compress: true })
        .unwrap()
}

/// Publishes, and writes everything to the disk.
pub(crate) fn checkpoint(store: &mut Store) {
    store.publish();
    let job = store.begin_checkpoint().expect("no other checkpoint is running");
    store.finish_checkpoint(job.run().unwrap()).unwrap();
}

pub(crate) fn one(key: &[u8]) -> KeyRange<'_> {
    KeyRange { start: key, end: None }
}

pub(crate) const ALL: KeyRange<'static> = KeyRange { start: b"", end: Some(b"") };

pub(crate) fn put(store: &mut Store, key: &str, value: &str, lease: i64) -> Vec<Change> {
    let mut txn = store.txn();
    txn.put(key.as_bytes(), value.as_bytes(), lease).unwrap();
    txn.end()
}

pub(crate) fn delete(store: &mut Store, range: KeyRange<'_>) -> (i64, Vec<Change>) {
    let mut txn = store.txn();
    let deleted = txn.delete_range(range).unwrap();
    (deleted, txn.end())
}

/// Compacts and removes everything superseded, a few revisions at a time.
pub(crate) fn compact(store: &mut Store, revision: i64) {
    store.compact(revision).unwrap();
    while !store.compact_step(3).unwrap() {}
}

/// `key modified.sub create version lease` of each live key.
pub(crate) fn list(view: View<'_>, range: KeyRange<'_>, revision: i64) -> Result<Vec<String>, StoreError> {
    view.keys(range, revision)?
        .map(|key| {
            let key = key?;
            let (name, at) = (key.key.escape_ascii().to_string(), key.modified);
            Ok(format!("{name} {}.{} {} {} {}", at.main, at.sub, key.create_revision, key.version, key.lease))
        })
        .collect()
}

/// splitmix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The seed stands in `TRILITH_MODEL_SEED`, or is a new one; it is printed.
    pub(crate) fn from_environment() -> Random {
        let seed = std::env::var("TRILITH_MODEL_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
        println!("seed: TRILITH_MODEL_SEED={seed}");
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
