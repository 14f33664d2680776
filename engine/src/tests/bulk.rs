//! Removing many keys at once, against ordered maps: any set of keys, in steps of any size, between other changes,
//! checkpoints and restarts.

use trilith_disk::sim::SimDisk;

use super::durable::checkpoint;
use super::model::*;
use super::rng::Rng;
use crate::edit_bulk::{SortedKeys, touch};
use crate::order::Order;
use crate::page::VALUE_INLINE_MAX;
use crate::{Store, TreeId};

/// The first byte of a short value is set: as a compaction does it with what it leaves of a key.
fn mark(value: &[u8]) -> Option<Vec<u8>> {
    if value.is_empty() || value.len() > VALUE_INLINE_MAX || value[0] == 0xee {
        return None;
    }
    let mut value = value.to_vec();
    value[0] = 0xee;
    Some(value)
}

/// Some keys of a tree, with some that it does not hold: single ones, runs, or all.
fn choose(rng: &mut Rng, model: &Model, tree: TreeId, space: usize) -> Vec<(u8, ModelKey)> {
    let keys: Vec<_> = model.keys().filter(|(t, _)| *t == tree as u8).cloned().collect();
    let (gap, run) = match rng.below(5) {
        0 => (1, 40),
        1 => (100, 3),
        2 => (300, 300),
        3 => (1, usize::MAX),
        _ => (10, 10),
    };
    let mut chosen: Vec<_> =
        (0..rng.below(20)).map(|_| model_key(tree, &random_key(rng, tree, space))).collect();
    let mut at = rng.below(gap);
    while at < keys.len() {
        let end = at.saturating_add(1 + rng.below(run)).min(keys.len());
        chosen.extend_from_slice(&keys[at..end]);
        at = end + rng.below(gap);
    }
    chosen.sort();
    chosen.dedup();
    chosen
}

/// Removes them from the model; what follows a removed entry of its stem is marked.
fn remove_from(model: &mut Model, tree: TreeId, chosen: &[(u8, ModelKey)]) {
    let mut removed: Option<Vec<u8>> = None;
    let mut changed = Vec::new();
    for (key, value) in
        model.range((tree as u8, ModelKey::default())..).take_while(|((t, _), _)| *t == tree as u8)
    {
        let stem = &key.1.0;
        if chosen.binary_search(key).is_ok() {
            removed = Some(stem.clone());
        } else {
            if Order::of(tree) == Order::KeyThenRevision && removed.as_ref() == Some(stem) {
                changed.extend(mark(value).map(|value| (key.clone(), value)));
            }
            removed = None;
        }
    }
    model.extend(changed);
    for key in chosen {
        model.remove(key);
    }
}

fn remove_many(rng: &mut Rng, store: &mut Store, model: &mut Model, space: usize) {
    let tree = TREES[rng.below(TREES.len())];
    let chosen = choose(rng, model, tree, space);
    let mut list = SortedKeys::default();
    chosen.iter().for_each(|(_, key)| list.push(&[&key.0[..], &key.1[..]].concat()));
    let root = store.reader().root();
    let (view, top) = root.0.tree(tree);
    touch(&view, top, &list).unwrap();
    drop(root);
    let successor = (Order::of(tree) == Order::KeyThenRevision).then_some(mark as _);
    let mut at = 0;
    while at < list.len() {
        let mut work = if rng.chance(2) { rng.below(60) } else { 100_000 };
        let stopped = store.remove_sorted(tree, &list, successor, at, &mut work).unwrap();
        assert!(stopped > at, "it gets on");
        assert!(stopped == list.len() || work == 0, "it stops when the work is done");
        at = stopped;
        if rng.chance(8) {
            store.publish();
        }
    }
    remove_from(model, tree, &chosen);
}

#[test]
fn removing_many_equals_removing_one_by_one() {
    let mut rng = Rng(seed(21));
    let mut disk = SimDisk::new();
    let mut store = Store::open(sim_options(&disk)).unwrap();
    let mut model = Model::new();
    for round in 0..model_ops(60_000) / 500 {
        // Pages on disk, pages in memory, and a root that a reader holds meanwhile.
        for _ in 0..rng.below(1500) {
            change(&mut rng, &mut store, &mut model, 3000, true);
        }
        match rng.below(4) {
            0 => {
                checkpoint(&mut store);
            }
            1 => store.publish(),
            _ => {}
        }
        let before = rng.chance(4).then(|| {
            store.publish();
            (store.reader().root(), model.clone())
        });
        let running = if rng.chance(3) {
            store.publish();
            store.begin_checkpoint()
        } else {
            None
        };
        for _ in 0..1 + rng.below(3) {
            remove_many(&mut rng, &mut store, &mut model, 3000);
        }
        store.check().unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_equal(store.view(), &model);
        if let Some((root, model)) = before {
            assert_equal(root.view(), &model);
        }
        if let Some(job) = running {
            let done = job.run().unwrap();
            store.finish_checkpoint(done).unwrap();
            store.check().unwrap_or_else(|error| panic!("round {round}, after the checkpoint: {error}"));
        }
        if rng.chance(5) {
            checkpoint(&mut store);
            drop(store);
            disk = disk.fork();
            store = Store::open(sim_options(&disk)).unwrap();
            store.check().unwrap();
            assert_equal(store.view(), &model);
        }
    }
}

#[test]
fn what_is_left_of_many_leaves_fills_few() {
    let disk = SimDisk::new();
    let mut store = Store::open(sim_options(&disk)).unwrap();
    let key = |n: u64| [&n.to_be_bytes()[..], b"_\0\0\0\0\0\0\0\0"].concat();
    for n in 0..20_000u64 {
        store.insert(TreeId::Key, &key(n), &[7; 40]).unwrap();
    }
    checkpoint(&mut store);
    // The first half wholly, of the second all but each fourth.
    let mut list = SortedKeys::default();
    (0..20_000).filter(|n| *n < 10_000 || n % 4 != 0).for_each(|n| list.push(&key(n)));
    let (mut at, mut steps) = (0, 0);
    while at < list.len() {
        let mut work = 1000;
        at = store.remove_sorted(TreeId::Key, &list, None, at, &mut work).unwrap();
        store.publish();
        steps += 1;
    }
    assert!(steps > 10, "{steps}");
    store.check().unwrap();
    // 2500 entries are left, 15 in each of 170 leaves of 59. Two such leaves come into one, which has room then for the
    // next to be inserted: half full on the whole.
    let pages = store.dirty_bytes() / 4096;
    assert!(pages < 2500 / 59 * 9 / 4, "{pages} pages");
}
