//! Flipped bytes: a read gives right data, or an error that names file, page and field. Never wrong data, never a
//! panic.

use std::os::unix::fs::FileExt;
use std::path::Path;

use trilith_disk::sim::SimDisk;

use super::durable::{TempDir, checkpoint};
use super::model::*;
use super::rng::Rng;
use crate::{Options, Store, StoreError};

fn names_the_place(error: &StoreError, file: &Path) {
    let StoreError::Corrupt { path, field, .. } = error else { panic!("another error: {error}") };
    assert_eq!(path, file);
    assert!(!field.is_empty() && error.to_string().contains("db: page "), "{error}");
}

/// Reads everything; right data or an error.
fn read_all(store: &Store, model: &Model) -> Result<(), StoreError> {
    for tree in TREES {
        let mut expected = model.iter().filter(|((t, _), _)| *t == tree as u8);
        let mut cursor = store.view().seek(tree, b"")?;
        while let Some(value) = cursor.value()? {
            let ((_, key), right) = expected.next().expect("an entry that the model has");
            assert_eq!(cursor.key().unwrap(), [&key.0[..], &key.1[..]].concat());
            assert_eq!(&value[..], &right[..]);
            cursor.next()?;
        }
        assert!(expected.next().is_none(), "entries are missing");
    }
    Ok(())
}

/// Flips `flips` random bytes of a small store, one at a time, and reads everything. `flip` flips bits of a byte.
fn sweep(options: &Options, usual_seed: u64, flips: usize, flip: &dyn Fn(u64, u8)) {
    let mut rng = Rng(seed(usual_seed));
    let mut store = Store::open(options.clone()).unwrap();
    let (mut model, mut before) = (Model::new(), Model::new());
    for _ in 0..3 {
        before = model.clone();
        for _ in 0..250 {
            change(&mut rng, &mut store, &mut model, 250, true);
        }
        checkpoint(&mut store);
    }
    let (bytes, number) = (store.size_bytes() as usize, store.checkpoint_number());
    drop(store);
    let (mut noticed, mut in_extents, mut older) = (0, 0, 0);
    for _ in 0..flips {
        let (at, mask) = (rng.below(bytes) as u64, 1 << rng.below(8));
        flip(at, mask);
        let store = Store::open(options.clone()).expect("the checkpoint before is whole");
        // A damaged meta or root page leaves the checkpoint before.
        let fell_back = store.checkpoint_number() != number;
        older += usize::from(fell_back);
        if let Err(error) = read_all(&store, if fell_back { &before } else { &model }) {
            names_the_place(&error, &options.path);
            noticed += 1;
            in_extents += usize::from(matches!(error, StoreError::Corrupt { field: "extent checksum", .. }));
        }
        flip(at, mask);
    }
    assert!(noticed > flips / 40 && older > flips / 400, "the sweep met pages in use: {noticed}, {older}");
    assert!(in_extents > flips / 100, "the sweep met long keys and values: {in_extents}");
    read_all(&Store::open(options.clone()).unwrap(), &model).unwrap();
}

#[test]
fn flipped_bytes_are_noticed() {
    let disk = SimDisk::new();
    let flip = |at, mask| disk.corrupt(Path::new("d/db"), at, mask).unwrap();
    sweep(&sim_options(&disk), 6, model_ops(3000), &flip);
}

#[test]
fn flipped_bytes_are_noticed_through_a_map() {
    let dir = TempDir::new("flips");
    let options = dir.options(true);
    let flip = |at, mask| {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&options.path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ mask], at).unwrap();
    };
    sweep(&options, 8, model_ops(1500), &flip);
}

#[test]
fn changes_of_a_damaged_store_lose_nothing_else() {
    let mut rng = Rng(7);
    let disk = SimDisk::new();
    let mut store = Store::open(sim_options(&disk)).unwrap();
    let mut model = Model::new();
    for _ in 0..800 {
        change(&mut rng, &mut store, &mut model, 800, true);
    }
    checkpoint(&mut store);
    let (bytes, number) = (store.size_bytes() as usize, store.checkpoint_number());
    drop(store);
    for _ in 0..60 {
        let damaged = disk.fork();
        let at = 6 * 4096 + rng.below(bytes - 6 * 4096) as u64;
        damaged.corrupt(Path::new("d/db"), at, 1).unwrap();
        let Ok(mut store) = Store::open(sim_options(&damaged)) else { continue };
        if store.checkpoint_number() != number {
            continue;
        }
        let mut model = model.clone();
        for _ in 0..100 {
            let tree = TREES[rng.below(TREES.len())];
            let (key, value) = (random_key(&mut rng, tree, 800), random_value(&mut rng));
            match store.insert(tree, &key, &value) {
                Ok(()) => drop(model.insert(model_key(tree, &key), value)),
                Err(StoreError::Stopped { .. }) => break,
                Err(error) => names_the_place(&error, Path::new("d/db")),
            }
            let key = random_key(&mut rng, tree, 800);
            match store.remove(tree, &key) {
                Ok(there) => assert_eq!(model.remove(&model_key(tree, &key)).is_some(), there),
                Err(StoreError::Stopped { .. }) => break,
                Err(error) => names_the_place(&error, Path::new("d/db")),
            }
        }
        for ((tree, key), value) in &model {
            let tree = TREES.into_iter().find(|t| *t as u8 == *tree).unwrap();
            match store.view().get(tree, &[&key.0[..], &key.1[..]].concat()) {
                Ok(found) => assert_eq!(found.as_deref(), Some(&value[..])),
                Err(error) => names_the_place(&error, Path::new("d/db")),
            }
        }
    }
}
