//! The trees against ordered maps: random operations, and every invariant on the way.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use trilith_disk::sim::SimDisk;

use super::rng::Rng;
use crate::order::Order;
use crate::{Options, Root, Store, TreeId, View};

/// A key that sorts in a plain map as it does in its tree.
pub(crate) type ModelKey = (Vec<u8>, Vec<u8>);
pub(crate) type Model = BTreeMap<(u8, ModelKey), Vec<u8>>;

pub(crate) const TREES: [TreeId; 4] = [TreeId::Key, TreeId::Index, TreeId::Meta, TreeId::Auth];

pub(crate) fn model_key(tree: TreeId, key: &[u8]) -> (u8, ModelKey) {
    let at = match Order::of(tree) {
        Order::Bytes => key.len(),
        Order::KeyThenRevision => key.len().saturating_sub(12),
    };
    (tree as u8, (key[..at].to_vec(), key[at..].to_vec()))
}

/// A random key of a tree; `space` bounds how many there are.
pub(crate) fn random_key(rng: &mut Rng, tree: TreeId, space: usize) -> Vec<u8> {
    let n = rng.below(space);
    match tree {
        TreeId::Key => {
            let mut key = (n as u64).to_be_bytes().to_vec();
            key.extend_from_slice(b"_\0\0\0\0\0\0\0\0");
            key
        }
        TreeId::Index => {
            let mut key = format!("user/{}", n / 7).into_bytes();
            pad(&mut key, n / 7);
            key.extend_from_slice(&(n as u64 % 7).to_be_bytes());
            key.extend_from_slice(&[0; 4]);
            key
        }
        _ => {
            let mut key = format!("{}", n * 7919 % space).into_bytes();
            pad(&mut key, n);
            key
        }
    }
}

/// Some keys are long, and some of those differ only at their end or only in their length.
fn pad(key: &mut Vec<u8>, n: usize) {
    match n % 23 {
        0 => key.resize(700 + n % 200, b'x'),
        1 => {
            let own = std::mem::replace(key, vec![b'z'; 955 + n % 2000]);
            key.extend_from_slice(&own);
        }
        2 => key.resize(955 + n % 10, b'y'),
        _ => {}
    }
}

pub(crate) fn random_value(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(40) {
        0 => rng.below(20_000),
        1 | 2 => 508 + rng.below(10),
        3..=5 => rng.below(3000),
        _ => rng.below(60),
    };
    // Half of them can be compressed.
    if rng.chance(2) {
        return (0..len).map(|_| rng.next() as u8).collect();
    }
    let byte = rng.next() as u8;
    (0..len).map(|i| byte.wrapping_add(i as u8)).collect()
}

fn full_key(key: &ModelKey) -> Vec<u8> {
    [&key.0[..], &key.1[..]].concat()
}

/// Every entry of a view equals the model's, forwards and backwards.
pub(crate) fn assert_equal(view: View<'_>, model: &Model) {
    for tree in TREES {
        let expected: Vec<_> = model.iter().filter(|((t, _), _)| *t == tree as u8).collect();
        let mut cursor = view.seek(tree, b"").unwrap();
        for ((_, key), value) in &expected {
            assert_eq!(cursor.key(), Some(&full_key(key)[..]));
            assert_eq!(&cursor.value().unwrap().unwrap()[..], &value[..]);
            cursor.next().unwrap();
        }
        assert_eq!(cursor.key(), None);
        for ((_, key), _) in expected.iter().rev() {
            cursor.prev().unwrap();
            assert_eq!(cursor.key(), Some(&full_key(key)[..]));
        }
        cursor.prev().unwrap();
        assert_eq!(cursor.key(), None);
        cursor.next().unwrap();
        assert_eq!(cursor.key().map(<[u8]>::to_vec), expected.first().map(|((_, key), _)| full_key(key)));
        assert_eq!(
            view.last(tree).unwrap().key().map(<[u8]>::to_vec),
            expected.last().map(|((_, key), _)| full_key(key))
        );
    }
}

/// Point reads and seeks around a random key equal the model's.
pub(crate) fn assert_near(view: View<'_>, model: &Model, tree: TreeId, key: &[u8]) {
    let at = model_key(tree, key);
    let in_tree = |entry: Option<(&(u8, ModelKey), &Vec<u8>)>| {
        entry.filter(|((t, _), _)| *t == tree as u8).map(|((_, key), value)| (full_key(key), value.clone()))
    };
    let found = view.get(tree, key).unwrap().map(|v| v.to_vec());
    assert_eq!(found.as_ref(), model.get(&at));
    let entry = |cursor: crate::Cursor<'_>| {
        let key = cursor.key()?.to_vec();
        assert_eq!(&cursor.key_value().unwrap().unwrap()[..], &key[..]);
        Some((key, cursor.value().unwrap().unwrap().to_vec()))
    };
    assert_eq!(entry(view.seek(tree, key).unwrap()), in_tree(model.range(at.clone()..).next()));
    assert_eq!(entry(view.seek_before(tree, key).unwrap()), in_tree(model.range(..at).next_back()));
}

/// One random change of the store and of the model.
pub(crate) fn change(rng: &mut Rng, store: &mut Store, model: &mut Model, space: usize, grow: bool) {
    let tree = TREES[rng.below(TREES.len())];
    let key = random_key(rng, tree, space);
    if rng.chance(if grow { 6 } else { 2 }) {
        let there = model.remove(&model_key(tree, &key)).is_some();
        assert_eq!(store.remove(tree, &key).unwrap(), there);
    } else {
        let value = random_value(rng);
        store.insert(tree, &key, &value).unwrap();
        model.insert(model_key(tree, &key), value);
    }
}

pub(crate) fn sim_options(disk: &SimDisk) -> Options {
    Options {
        path: PathBuf::from("d/db"),
        disk: Arc::new(disk.clone()),
        map: false,
        dirty_bytes_max: 1 << 20,
        compress: true,
    }
}

pub(crate) fn model_ops(short: usize) -> usize {
    std::env::var("TRILITH_MODEL_OPS").ok().and_then(|ops| ops.parse().ok()).unwrap_or(short)
}

/// The seed of a run, printed; `TRILITH_SEED` replaces the usual one.
pub(crate) fn seed(usual: u64) -> u64 {
    let seed = std::env::var("TRILITH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(usual);
    println!("seed {seed}");
    seed
}

#[test]
fn trees_in_memory_equal_ordered_maps() {
    let mut rng = Rng(seed(1));
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let mut model = Model::new();
    let mut old: Vec<(Root, Model)> = Vec::new();
    for op in 0..model_ops(60_000) {
        change(&mut rng, &mut store, &mut model, 3000, op / 8000 % 2 == 0);
        if rng.chance(50) {
            store.publish();
        }
        if rng.chance(10) {
            let tree = TREES[rng.below(TREES.len())];
            assert_near(store.view(), &model, tree, &random_key(&mut rng, tree, 3000));
        }
        if rng.chance(2000) {
            store.check().unwrap();
            store.publish();
            assert_equal(store.view(), &model);
            assert_equal(store.reader().root().view(), &model);
            old.push((store.reader().root(), model.clone()));
            if old.len() > 4 {
                let (root, model) = old.remove(rng.below(old.len()));
                assert_equal(root.view(), &model);
            }
        }
    }
    for (_, key) in model.keys().cloned().collect::<Vec<_>>() {
        let key = full_key(&key);
        for tree in TREES {
            if model.remove(&model_key(tree, &key)).is_some() {
                assert!(store.remove(tree, &key).unwrap());
            }
        }
    }
    store.check().unwrap();
    assert_equal(store.view(), &model);
    assert_eq!(store.dirty_bytes(), 0, "an empty store has no nodes");
    for (root, model) in old {
        assert_equal(root.view(), &model);
    }
}

#[test]
fn appended_pages_are_full() {
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    for n in 0..20_000u64 {
        let mut key = n.to_be_bytes().to_vec();
        key.extend_from_slice(b"_\0\0\0\0\0\0\0\0");
        store.insert(TreeId::Key, &key, &[7; 40]).unwrap();
        if n % 100 == 0 {
            store.publish();
        }
    }
    store.check().unwrap();
    // An entry takes 68 bytes with its slot: 59 to a page, and a few branches on top.
    let pages = store.dirty_bytes() / 4096;
    assert!(pages < 20_000 / 59 + 15, "{pages} pages");
}

#[test]
fn a_run_in_the_middle_fills_its_pages() {
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let key = |user: &str, n: u64| [user.as_bytes(), &n.to_be_bytes(), &[0; 4]].concat();
    for n in 0..20_000u64 {
        store.insert(TreeId::Index, &key("hot", n), &[7; 20]).unwrap();
        if n < 100 {
            store.insert(TreeId::Index, &key(&format!("a{n}"), 1), b"").unwrap();
            store.insert(TreeId::Index, &key(&format!("z{n}"), 1), b"").unwrap();
        }
    }
    store.check().unwrap();
    let pages = store.dirty_bytes() / 4096;
    assert!(pages < 20_000 / 88 + 15, "{pages} pages");
}

#[test]
fn too_long_parts_are_refused() {
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let long = vec![0; crate::VALUE_MAX + 1];
    let error = store.insert(TreeId::Meta, b"k", &long).unwrap_err();
    assert_eq!(error.to_string(), "a value of 67108865 bytes is longer than the limit of 67108864 bytes");
    assert!(store.view().get(TreeId::Meta, b"k").unwrap().is_none());
}
