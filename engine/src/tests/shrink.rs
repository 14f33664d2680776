//! The file shrinks by itself: by how much, with what is being read and written meanwhile, and through crashes.

use trilith_disk::sim::{SimDisk, Survivors};

use super::durable::{TempDir, checkpoint};
use super::model::*;
use super::rng::Rng;
use crate::{Root, Store, TreeId};

/// One thing that the shrinking asks for, if it asks for any; whether it did.
pub(crate) fn shrink_a_little(store: &mut Store, pages: usize) -> bool {
    if let Some(scan) = store.begin_shrink_scan() {
        store.finish_shrink_scan(scan.run());
        return true;
    }
    store.shrink_step(pages).unwrap()
}

/// Does what the shrinking asks for until it asks for nothing; checkpoints that it took.
fn shrink_fully(store: &mut Store) -> usize {
    let mut checkpoints = 0;
    for _ in 0..100_000 {
        if store.shrink_wants_checkpoint() {
            checkpoint(store);
            checkpoints += 1;
        } else if !shrink_a_little(store, 16) && !store.shrink_wants_checkpoint() {
            assert!(store.shrink_rests(), "nothing to do, but not at rest");
            return checkpoints;
        }
    }
    panic!("the shrinking comes to no end");
}

/// Entries of about the given size; the bytes of keys and values.
fn fill(store: &mut Store, model: &mut Model, rng: &mut Rng, entries: usize, value: usize) {
    for n in 0..entries {
        for tree in [TreeId::Key, TreeId::Index] {
            let key = match tree {
                TreeId::Key => [&(n as u64).to_be_bytes()[..], b"_\0\0\0\0\0\0\0\0"].concat(),
                _ => [format!("user/{}", n * 7919 % entries).as_bytes(), &[0; 12]].concat(),
            };
            let len = if tree == TreeId::Key { value / 2 + rng.below(value) } else { 12 };
            let bytes: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
            store.insert(tree, &key, &bytes).unwrap();
            model.insert(model_key(tree, &key), bytes);
        }
        if n % 500 == 0 {
            store.publish();
        }
        if store.checkpoint_due() {
            checkpoint(store);
        }
    }
    checkpoint(store);
}

fn remove_most(store: &mut Store, model: &mut Model, rng: &mut Rng, keep_one_in: usize) {
    for (tree, key) in model.keys().cloned().collect::<Vec<_>>() {
        if rng.below(keep_one_in) > 0 {
            let tree_id = TREES.into_iter().find(|id| *id as u8 == tree).unwrap();
            assert!(store.remove(tree_id, &[&key.0[..], &key.1[..]].concat()).unwrap());
            model.remove(&(tree, key));
        }
        if store.checkpoint_due() {
            checkpoint(store);
        }
    }
    checkpoint(store);
}

fn logical_bytes(model: &Model) -> u64 {
    model.iter().map(|((_, key), value)| (key.0.len() + key.1.len() + value.len()) as u64).sum()
}

fn shrinks(options: crate::Options, entries: usize, value: usize) {
    let mut rng = Rng(seed(31));
    let mut store = Store::open(options.clone()).unwrap();
    let mut model = Model::new();
    fill(&mut store, &mut model, &mut rng, entries, value);
    shrink_fully(&mut store);
    let full = store.file_bytes();
    remove_most(&mut store, &mut model, &mut rng, 10);
    let checkpoints = shrink_fully(&mut store);
    store.check().unwrap();
    assert_equal(store.view(), &model);
    let (live, file) = (logical_bytes(&model), store.file_bytes());
    // Entries have a head of 11 bytes, and 2 MiB are no matter.
    let entries = model.len() as u64;
    let allowed = (live + 11 * entries) * 13 / 10 + (3 << 20);
    println!("{full} bytes, then {live} live in {file}, after {checkpoints} checkpoints");
    assert!(file <= allowed, "{full} bytes, then {live} live in {file}");
    assert!(checkpoints <= 60, "{checkpoints} checkpoints");
    assert_eq!(store.size_bytes().next_multiple_of(64 * 4096).max(file), file);
    // Asked for, it goes to the end.
    store.shrink_now();
    assert!(!store.shrink_rests());
    shrink_fully(&mut store);
    store.check().unwrap();
    let file = store.file_bytes();
    assert!(file <= (live + 11 * entries) * 115 / 100 + (1 << 20), "{live} live in {file}");
    drop(store);
    let store = Store::open(options).unwrap();
    store.check().unwrap();
    assert_equal(store.view(), &model);
    assert_eq!(store.file_bytes(), file);
}

#[test]
fn a_file_of_short_values_shrinks() {
    let dir = TempDir::new("shrink-short");
    shrinks(crate::Options { dirty_bytes_max: 16 << 20, ..dir.options(true) }, 60_000, 250);
}

#[test]
fn a_file_of_long_values_shrinks() {
    let dir = TempDir::new("shrink-long");
    shrinks(crate::Options { dirty_bytes_max: 16 << 20, ..dir.options(true) }, 12_000, 2500);
}

#[test]
fn a_file_read_without_a_map_shrinks() {
    shrinks(sim_options(&SimDisk::new()), 30_000, 250);
}

#[test]
fn a_reader_keeps_its_pages_and_the_file_shrinks_when_it_goes() {
    let dir = TempDir::new("shrink-pinned");
    let mut rng = Rng(seed(32));
    let mut store = Store::open(dir.options(true)).unwrap();
    let mut model = Model::new();
    fill(&mut store, &mut model, &mut rng, 20_000, 250);
    let full = store.file_bytes();
    let pinned: (Root, Model) = (store.reader().root(), model.clone());
    remove_most(&mut store, &mut model, &mut rng, 10);
    store.shrink_now();
    shrink_fully(&mut store);
    assert!(store.file_bytes() + (1 << 20) > full, "the reader may need all of it");
    assert_equal(pinned.0.view(), &pinned.1);
    drop(pinned);
    checkpoint(&mut store);
    shrink_fully(&mut store);
    assert!(store.file_bytes() * 3 < full, "{} of {full}", store.file_bytes());
    assert_equal(store.view(), &model);
    store.check().unwrap();
}

/// A store that is as it should be is left alone, also when all of it changes again and again.
#[test]
fn a_busy_file_of_the_right_length_is_left_alone() {
    let mut rng = Rng(seed(33));
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let mut model = Model::new();
    fill(&mut store, &mut model, &mut rng, 8000, 250);
    let (mut asked, mut steps) = (0, 0);
    for _ in 0..30 {
        for n in 0..8000u64 {
            let key = [&n.to_be_bytes()[..], b"_\0\0\0\0\0\0\0\0"].concat();
            store.insert(TreeId::Key, &key, &[rng.next() as u8; 250]).unwrap();
        }
        asked += usize::from(store.shrink_wants_checkpoint());
        checkpoint(&mut store);
        while shrink_a_little(&mut store, 16) {
            steps += 1;
        }
    }
    assert!(asked <= 6 && steps <= 60, "{asked} checkpoints, {steps} steps");
}

/// The shrinking is cut off at every operation of the disk.
#[test]
fn every_cut_while_the_file_shrinks_finds_a_checkpoint() {
    let mut rng = Rng(seed(34));
    let disk = SimDisk::new();
    let mut store = Store::open(crate::Options { compress: false, ..sim_options(&disk) }).unwrap();
    let mut model = Model::new();
    let entries = model_ops(24_000) / 80;
    for n in 0..entries as u64 {
        let value = vec![n as u8; if n % 5 == 0 { 6000 } else { 700 }];
        store.insert(TreeId::Meta, &n.to_be_bytes(), &value).unwrap();
        model.insert(model_key(TreeId::Meta, &n.to_be_bytes()), value);
    }
    checkpoint(&mut store);
    let removed_at = disk.op_count();
    for n in 0..entries as u64 {
        if n % 8 != 0 {
            store.remove(TreeId::Meta, &n.to_be_bytes()).unwrap();
            model.remove(&model_key(TreeId::Meta, &n.to_be_bytes()));
        }
    }
    store.set_applied(1, 1);
    checkpoint(&mut store);
    let acknowledged_at = disk.op_count();
    let full = store.file_bytes();
    store.shrink_now();
    shrink_fully(&mut store);
    assert!(store.file_bytes() * 2 < full, "{} of {full}", store.file_bytes());
    for ops in removed_at..=disk.op_count() {
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(rng.next())] {
            let cut = disk.crash(ops, survivors);
            let mut store = Store::open(sim_options(&cut)).unwrap();
            store.check().unwrap();
            if ops < acknowledged_at && store.applied().0 == 0 {
                continue;
            }
            assert_eq!(store.applied().0, 1, "cut at {ops}");
            assert_equal(store.view(), &model);
            // It goes on, and the pages are not mixed up.
            store.shrink_now();
            shrink_fully(&mut store);
            store.check().unwrap();
            assert_equal(store.view(), &model);
        }
    }
}
