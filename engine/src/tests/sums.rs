//! Sums of intervals against a scan, what is noted of nodes in memory, and how many pages it takes.

use std::sync::atomic::Ordering;

use trilith_disk::sim::SimDisk;

use super::model::{Model, TREES, change, model_ops, random_key, seed, sim_options};
use super::rng::Rng;
use crate::page::Sums;
use crate::sums::weight;
use crate::{Store, TreeId, View};

/// By looking at every entry.
fn scan(view: View<'_>, tree: TreeId, from: Option<&[u8]>, to: Option<&[u8]>, holes: &[Vec<u8>]) -> Sums {
    let order = crate::order::Order::of(tree);
    let mut sums = Sums::default();
    let mut cursor = view.seek(tree, from.unwrap_or_default()).unwrap();
    while let Some(key) = cursor.key() {
        if to.is_some_and(|to| order.compare(key, to).is_ge()) {
            break;
        }
        if !holes.iter().any(|hole| hole == key) {
            let value = cursor.value().unwrap().unwrap();
            sums.count += 1;
            sums.bytes += (key.len() + value.len()) as u64;
            sums.crc = crc32c::crc32c_append(crc32c::crc32c_append(sums.crc, key), &value);
            sums.live += if tree == TreeId::Index { weight(&value) } else { 0 };
        }
        cursor.next().unwrap();
    }
    sums
}

fn checkpoint(store: &mut Store) {
    store.publish();
    let job = store.begin_checkpoint().unwrap();
    store.finish_checkpoint(job.run().unwrap()).unwrap();
}

fn check_interval(rng: &mut Rng, view: View<'_>) {
    let tree = TREES[rng.below(TREES.len())];
    let bound = |rng: &mut Rng| (!rng.chance(5)).then(|| random_key(rng, tree, 900));
    let (from, to) = (bound(rng), bound(rng));
    let (from, to) = (from.as_deref(), to.as_deref());
    assert_eq!(view.sums(tree, from, to).unwrap(), scan(view, tree, from, to, &[]), "{tree:?}");
    let mut holes = Vec::new();
    let mut cursor = view.seek(tree, from.unwrap_or_default()).unwrap();
    let one_in = 1 + rng.below(200);
    while let Some(key) = cursor.key() {
        if to.is_some_and(|to| crate::order::Order::of(tree).compare(key, to).is_ge()) {
            break;
        }
        if rng.chance(one_in) {
            holes.push(key.to_vec());
        }
        cursor.next().unwrap();
    }
    let found = view.sums_without(tree, from, to, &holes).unwrap();
    assert_eq!(found, scan(view, tree, from, to, &holes), "{tree:?} without {}", holes.len());
}

#[test]
fn sums_equal_a_scan() {
    let mut rng = Rng(seed(11));
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let mut model = Model::new();
    let mut held = store.reader().root();
    for op in 0..model_ops(12_000) {
        change(&mut rng, &mut store, &mut model, 900, op / 3000 % 2 == 0);
        match rng.below(400) {
            0..8 => store.publish(),
            8 => checkpoint(&mut store),
            9 => held = store.reader().root(),
            10..16 => check_interval(&mut rng, store.view()),
            16..19 => check_interval(&mut rng, store.reader().root().view()),
            19 => check_interval(&mut rng, held.view()),
            // What is noted must be forgotten with the next change below: `check` compares.
            20 => {
                for tree in TreeId::ALL {
                    store.view().sums(tree, None, None).unwrap();
                }
            }
            21 => store.check().unwrap(),
            _ => {}
        }
    }
    store.check().unwrap();
}

#[test]
fn sums_survive_checkpoints_and_reopening() {
    let (mut rng, disk) = (Rng(seed(12)), SimDisk::new());
    let mut store = Store::open(sim_options(&disk)).unwrap();
    let mut model = Model::new();
    for _ in 0..3000 {
        change(&mut rng, &mut store, &mut model, 900, true);
    }
    let before = TREES.map(|tree| store.view().sums(tree, None, None).unwrap());
    checkpoint(&mut store);
    drop(store);
    let store = Store::open(sim_options(&disk)).unwrap();
    store.check().unwrap();
    assert_eq!(TREES.map(|tree| store.view().sums(tree, None, None).unwrap()), before);
    for _ in 0..20 {
        check_interval(&mut rng, store.view());
    }
}

fn pages_read<R>(store: &Store, read: impl FnOnce(View<'_>) -> R) -> (R, u64) {
    let root = store.reader().root();
    let counter = &root.0.source.pages_read;
    let before = counter.load(Ordering::Relaxed);
    let result = read(root.view());
    (result, counter.load(Ordering::Relaxed) - before)
}

fn one_put(store: &mut Store, key: u64) {
    let mut txn = store.txn();
    txn.put(&key.to_be_bytes(), &[7; 40], 0).unwrap();
}

/// A store of so many keys, half of them written twice, on disk.
fn filled(keys: u64) -> Store {
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    for n in (0..keys).chain((0..keys).step_by(2)) {
        one_put(&mut store, n);
    }
    store
}

#[test]
fn counts_and_hashes_read_a_few_pages() {
    let keys = 40_000;
    let mut store = filled(keys);
    checkpoint(&mut store);
    let range = |start: &'static [u8]| crate::KeyRange { start, end: Some(b"") };
    let count = |view: View<'_>, start| view.keys(range(start), 0).unwrap().remaining().unwrap();
    // Index and history are three levels high.
    let (all, pages) = pages_read(&store, |view| count(view, b""));
    assert_eq!(all, keys);
    assert!(pages <= 9, "{pages} pages");
    let (some, pages) = pages_read(&store, |view| count(view, &[0, 0, 0, 0, 0, 0, 0x30, 0x39]));
    assert_eq!(some, keys - 0x3039);
    assert!(pages <= 9, "{pages} pages");
    // The whole history, and any part of it, before there is a compaction.
    for revision in [0, 2, 12_345, 59_999] {
        let (_, pages) = pages_read(&store, |view| view.hash_kv(revision).unwrap());
        assert!(pages <= 12, "{pages} pages at {revision}");
    }
    // At the current revision once a compaction has settled; and after a few more changes.
    let revision = store.view().revision();
    store.compact(revision).unwrap();
    while !store.compact_step(100_000).unwrap() {}
    checkpoint(&mut store);
    let (_, pages) = pages_read(&store, |view| view.hash_kv(0).unwrap());
    assert!(pages <= 28, "{pages} pages");
    let (_, pages) = pages_read(&store, |view| view.hash().unwrap());
    assert!(pages <= 4, "{pages} pages");
    for n in 0..5 {
        one_put(&mut store, n * 7919);
    }
    checkpoint(&mut store);
    let (_, pages) = pages_read(&store, |view| view.hash_kv(0).unwrap());
    assert!(pages <= 24 + 5 * 6, "{pages} pages");
}

#[test]
fn a_bounded_count_gives_up_and_goes_on_later() {
    let keys = 3000;
    let mut store = filled(keys);
    store.publish();
    let root = store.reader().root();
    let all = crate::KeyRange { start: b"", end: Some(b"") };
    let count = |mut steps: usize| {
        let keys = root.view().keys(all, 0).unwrap();
        (keys.remaining_within(&mut steps).unwrap(), steps)
    };
    assert_eq!(count(50), (None, 50), "the root alone has more cells");
    // Each attempt notes what it has found out, so that this ends.
    let mut attempts = 0;
    while count(300).0.is_none() {
        attempts += 1;
        assert!(attempts < 1000);
    }
    assert!(attempts > 3, "{attempts}");
    assert_eq!(count(300).0, Some(keys));
    let (found, left) = count(300);
    assert_eq!((found, left > 0), (Some(keys), true));
    // At an older revision keys are passed one by one.
    let old = |steps: usize| root.view().keys(all, 100).unwrap().remaining_within(&mut { steps }).unwrap();
    assert_eq!((old(98), old(99)), (None, Some(99)));
}
