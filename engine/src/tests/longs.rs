//! Long keys and values: the room they take, and who owns their extents.

use std::collections::BTreeMap;

use trilith_disk::sim::SimDisk;

use super::durable::checkpoint;
use super::model::{Model, assert_equal, model_key, seed, sim_options};
use super::rng::Rng;
use crate::{Options, Store, TreeId};

fn noise(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.next() as u8).collect()
}

fn put(store: &mut Store, model: &mut Model, key: u64, value: Vec<u8>) {
    store.insert(TreeId::Meta, &key.to_be_bytes(), &value).unwrap();
    model.insert(model_key(TreeId::Meta, &key.to_be_bytes()), value);
}

fn remove(store: &mut Store, model: &mut Model, key: u64) {
    store.remove(TreeId::Meta, &key.to_be_bytes()).unwrap();
    model.remove(&model_key(TreeId::Meta, &key.to_be_bytes()));
}

fn value_bytes(model: &Model) -> u64 {
    model.values().map(|value| value.len() as u64).sum()
}

/// The same on disk, and in a store that is opened anew.
fn settled(disk: &SimDisk, mut store: Store, model: &Model) -> Store {
    checkpoint(&mut store);
    store.check().unwrap();
    assert_equal(store.view(), model);
    drop(store);
    let store = Store::open(sim_options(disk)).unwrap();
    store.check().unwrap();
    assert_equal(store.view(), model);
    store
}

#[test]
fn values_of_a_kilobyte_share_pages() {
    let (disk, mut rng, mut model) = (SimDisk::new(), Rng(1), Model::new());
    let mut store = Store::open(sim_options(&disk)).unwrap();
    for key in 0..2000 {
        put(&mut store, &mut model, key, noise(&mut rng, 1024));
    }
    let store = settled(&disk, store, &model);
    // Beside the value: 47 bytes of cell and slot, and the rest of the last page of each 64 KiB.
    let bound = value_bytes(&model) * 110 / 100;
    assert!(store.size_in_use_bytes() < bound, "{} of {bound}", store.size_in_use_bytes());
}

#[test]
fn slow_appends_leave_no_extent_each() {
    let (disk, mut rng, mut model) = (SimDisk::new(), Rng(2), Model::new());
    let mut store = Store::open(sim_options(&disk)).unwrap();
    for key in 0..300 {
        put(&mut store, &mut model, key, noise(&mut rng, 1100));
        checkpoint(&mut store);
        store.check().unwrap();
    }
    let store = settled(&disk, store, &model);
    let bound = value_bytes(&model) * 125 / 100;
    assert!(store.size_in_use_bytes() < bound, "{} of {bound}", store.size_in_use_bytes());
}

#[test]
fn dead_space_is_bounded() {
    let (disk, mut rng, mut model) = (SimDisk::new(), Rng(seed(3)), Model::new());
    let mut store = Store::open(sim_options(&disk)).unwrap();
    for round in 0..12 {
        for _ in 0..400 {
            let key = rng.below(1500) as u64;
            if round % 3 == 2 || rng.chance(3) {
                remove(&mut store, &mut model, key);
            } else {
                let len = 513 + rng.below(3000);
                put(&mut store, &mut model, key, noise(&mut rng, len));
            }
        }
        checkpoint(&mut store);
        let extents = store.extent_usage();
        for (extent, live) in &extents {
            assert!(*extent <= 4096 || live * 2 >= *extent, "round {round}: {live} of {extent} bytes");
        }
        let bytes: u64 = extents.iter().map(|(extent, _)| extent).sum();
        assert!(bytes < value_bytes(&model) * 2, "round {round}: {bytes} for {}", value_bytes(&model));
    }
    settled(&disk, store, &model);
}

/// A leaf that a running checkpoint has frozen is split, replaced in part and merged: at the end each extent that was
/// written has one owner or none.
#[test]
fn a_leaf_changed_under_a_checkpoint_shares_no_extent() {
    for seed in 0..60 {
        println!("seed {seed}");
        let (disk, mut rng, mut model) = (SimDisk::new(), Rng(seed), Model::new());
        let mut store = Store::open(sim_options(&disk)).unwrap();
        for key in 0..40 + rng.below(60) as u64 {
            put(&mut store, &mut model, key * 100, noise(&mut rng, 600));
        }
        for _ in 0..4 {
            store.publish();
            let job = store.begin_checkpoint().unwrap();
            for _ in 0..rng.below(80) {
                let key = rng.below(10_000) as u64;
                match rng.below(3) {
                    0 => put(&mut store, &mut model, key / 100 * 100, noise(&mut rng, 700)),
                    1 => remove(&mut store, &mut model, key / 100 * 100),
                    _ => put(&mut store, &mut model, key, noise(&mut rng, 150)),
                }
                if rng.chance(20) {
                    store.publish();
                }
            }
            store.finish_checkpoint(job.run().unwrap()).unwrap();
            store.check().unwrap();
            assert_equal(store.view(), &model);
        }
        settled(&disk, store, &model);
    }
}

/// Long keys in branches: what parts two children may be long, too.
#[test]
fn long_separators_are_packed_with_their_branch() {
    let (disk, mut model) = (SimDisk::new(), Model::new());
    let mut store = Store::open(sim_options(&disk)).unwrap();
    let mut keys = BTreeMap::new();
    for n in 0..400u64 {
        let mut key = vec![b'k'; 1500];
        key.extend_from_slice(&(n * 7919 % 400).to_be_bytes());
        keys.insert(key.clone(), n);
        store.insert(TreeId::Meta, &key, b"short").unwrap();
        model.insert(model_key(TreeId::Meta, &key), b"short".to_vec());
        if n % 50 == 0 {
            checkpoint(&mut store);
            store.check().unwrap();
        }
    }
    let mut store = settled(&disk, store, &model);
    for (key, n) in keys {
        if n % 5 != 0 {
            assert!(store.remove(TreeId::Meta, &key).unwrap());
            model.remove(&model_key(TreeId::Meta, &key));
        }
    }
    settled(&disk, store, &model);
}

/// Compressed and plain stores have the same content, and may be opened either way.
#[test]
fn compression_is_seen_in_the_size_only() {
    let (disk, mut model) = (SimDisk::new(), Model::new());
    let options = |compress| Options { compress, ..sim_options(&disk) };
    let text = |n: u64| format!("{{\"name\":\"object-{n}\",\"kind\":\"Pod\"}}").repeat(60).into_bytes();
    let mut store = Store::open(options(false)).unwrap();
    for key in 0..200 {
        put(&mut store, &mut model, key, text(key));
    }
    let store = settled(&disk, store, &model);
    let plain = store.size_in_use_bytes();
    assert!(plain > value_bytes(&model), "{plain} bytes");
    drop(store);
    let mut store = Store::open(options(true)).unwrap();
    assert_equal(store.view(), &model);
    for key in 0..200 {
        put(&mut store, &mut model, key, text(key + 7));
    }
    let store = settled(&disk, store, &model);
    let small = store.size_in_use_bytes();
    assert!(small < plain / 4, "{small} of {plain} bytes");
    drop(store);
    assert_equal(Store::open(options(false)).unwrap().view(), &model);
}
