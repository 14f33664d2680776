//! The short ways of a put, each against an ordered map, with a count that says that it was taken: appending, inserting
//! behind another entry, the search by heads, bytes that nodes share.

use std::sync::atomic::Ordering::Relaxed;

use trilith_disk::sim::SimDisk;

use super::durable::checkpoint;
use super::model::*;
use super::rng::Rng;
use crate::order::Order;
use crate::page::*;
use crate::{Root, Store, StoreError, TreeId};

/// How often puts of the store were appended, and inserted behind another entry.
fn taken(store: &Store) -> [u64; 2] {
    [0, 1].map(|way: usize| store.state().source.short_puts[way].load(Relaxed))
}

/// Publishes, writes checkpoints and starts again now and then.
fn between(
    rng: &mut Rng,
    disk: &SimDisk,
    store: Store,
    model: &Model,
    old: &mut Vec<(Root, Model)>,
) -> Store {
    let mut store = store;
    if rng.chance(20) {
        store.publish();
    }
    if rng.chance(700) {
        store.check().unwrap();
        checkpoint(&mut store);
        old.push((store.reader().root(), model.clone()));
    }
    if rng.chance(2500) {
        old.drain(..).for_each(|(root, model)| assert_equal(root.view(), &model));
        checkpoint(&mut store);
        drop(store);
        store = Store::open(sim_options(disk)).unwrap();
    }
    store
}

fn ascending(n: u64, rng: &mut Rng) -> Vec<u8> {
    let mut key = n.to_be_bytes().to_vec();
    if rng.chance(60) {
        key.resize(900 + rng.below(200), b'l');
    }
    key
}

#[test]
fn appended_entries_equal_an_ordered_map() {
    let (mut rng, disk) = (Rng(seed(41)), SimDisk::new());
    let mut store = Store::open(sim_options(&disk)).unwrap();
    let (mut model, mut old) = (Model::new(), Vec::new());
    let (mut next, mut count, mut short) = (0, 0, 0);
    for _ in 0..model_ops(12_000) {
        let is_last = !rng.chance(12);
        let n = if is_last { next + 1 + rng.next() % 3 } else { rng.next() % (next + 1) };
        let (key, value) = (ascending(n, &mut rng), random_value(&mut rng));
        let before = taken(&store)[0];
        let greatest = model.last_key_value().is_none_or(|(last, _)| *last < model_key(TreeId::Meta, &key));
        store.append(TreeId::Meta, &key, &value).unwrap();
        model.insert(model_key(TreeId::Meta, &key), value);
        let appended = taken(&store)[0] - before;
        assert!(appended == 0 || greatest && appended == 1, "only what is greatest is appended");
        (next, count, short) = (next.max(n), count + u64::from(greatest), short + appended);
        assert_near(store.view(), &model, TreeId::Meta, &key);
        store = between(&mut rng, &disk, store, &model, &mut old);
    }
    store.check().unwrap();
    assert_equal(store.view(), &model);
    old.into_iter().for_each(|(root, model)| assert_equal(root.view(), &model));
    // The rest began a new leaf, or found no node in memory.
    assert!(short * 10 > count * 7, "{short} of {count} were appended");
}

/// What an entry is that depends on the one before it.
fn following(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut made = crc32c::crc32c_append(crc32c::crc32c(key), value).to_be_bytes().to_vec();
    made.resize(4 + value.len() % 90, b'f');
    made
}

#[test]
fn entries_inserted_behind_others_equal_an_ordered_map() {
    let (mut rng, disk) = (Rng(seed(42)), SimDisk::new());
    let mut store = Store::open(sim_options(&disk)).unwrap();
    let (mut model, mut old, mut room) = (Model::new(), Vec::new(), Vec::new());
    let (mut short, mut refused) = (0, 0);
    for op in 0..model_ops(12_000) {
        let key = random_key(&mut rng, TreeId::Index, 4000);
        let at = model_key(TreeId::Index, &key);
        let before = model.range(..at.clone()).next_back();
        let before = before.map(|((_, key), value)| ([&key.0[..], &key.1[..]].concat(), value.clone()));
        let (count, fails) = (taken(&store)[1], rng.chance(30));
        let mut asked = false;
        let done = store.insert_behind(TreeId::Index, &key, &mut room, |of, value, room| {
            asked = true;
            let (key, expected) = before.as_ref().expect("there is an entry before it");
            assert_eq!((of, value), (&key[..], &expected[..]), "the entry before it, operation {op}");
            if fails {
                return Err(StoreError::Inconsistent("refused".into()));
            }
            *room = following(of, value);
            Ok(op)
        });
        let was_short = taken(&store)[1] - count;
        match done {
            Ok(Some(told)) => {
                assert!(told == op && was_short == 1 && !model.contains_key(&at));
                let (of, value) = before.unwrap();
                model.insert(at, following(&of, &value));
                short += 1;
            }
            Ok(None) => {
                assert_eq!(was_short, 0);
                let is_there = store.view().get(TreeId::Index, &key).unwrap().map(|value| value.to_vec());
                assert_eq!(is_there.as_ref(), model.get(&at), "nothing has changed");
                let value = random_value(&mut rng);
                store.insert(TreeId::Index, &key, &value).unwrap();
                model.insert(at, value);
            }
            Err(error) => {
                assert!(fails && asked && was_short == 0, "{error}");
                refused += 1;
            }
        }
        assert_near(store.view(), &model, TreeId::Index, &key);
        if rng.chance(4) {
            let key = random_key(&mut rng, TreeId::Index, 4000);
            let was_there = model.remove(&model_key(TreeId::Index, &key)).is_some();
            assert_eq!(store.remove(TreeId::Index, &key).unwrap(), was_there);
        }
        store = between(&mut rng, &disk, store, &model, &mut old);
    }
    store.check().unwrap();
    assert_equal(store.view(), &model);
    old.into_iter().for_each(|(root, model)| assert_equal(root.view(), &model));
    assert!(short > model_ops(12_000) / 4 && refused > 20, "{short} were short, {refused} refused");
}

/// A transaction's puts go these ways, both: one entry behind another in the index, one appended to the history.
#[test]
fn puts_of_transactions_take_the_short_ways() {
    let mut rng = Rng(seed(43));
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let put = |store: &mut Store, n: usize| {
        let mut txn = store.txn();
        txn.put(format!("key/{n:05}").as_bytes(), b"value", 0).unwrap();
        txn.end();
    };
    (0..3000).for_each(|n| put(&mut store, n));
    let before = taken(&store);
    for _ in 0..5000 {
        put(&mut store, rng.below(3000));
        if rng.chance(50) {
            store.publish();
        }
    }
    let now = taken(&store);
    for way in [0, 1] {
        let short = now[way] - before[way];
        assert!((4500..=5000).contains(&short), "way {way}: {short} of 5000");
    }
    store.check().unwrap();
}

/// Pages of every count around the strides that the search counts by, leaves and branches, against comparing each key.
#[test]
fn heads_narrow_to_what_comparing_every_key_finds() {
    let mut rng = Rng(seed(44));
    let (mut narrowed, mut probes) = (0, 0);
    for count in (1..40).chain([63, 64, 65, 80]) {
        for (level, order) in [(0, Order::Bytes), (0, Order::KeyThenRevision), (1, Order::Bytes)] {
            let mut keys: Vec<Vec<u8>> = Vec::new();
            while keys.len() < count {
                let mut key = b"same"[..rng.below(5)].to_vec();
                key.extend((0..rng.below(6)).map(|_| [0, 7, 255][rng.below(3)]));
                if order == Order::KeyThenRevision {
                    key.extend([rng.below(3) as u8; 12]);
                }
                if let Err(i) = keys.binary_search_by(|known| order.compare(known, &key)) {
                    keys.insert(i, key);
                }
            }
            let mut bytes = [0; PAGE];
            let mut page = PageMut(&mut bytes);
            page.init(0, level, order);
            for (i, key) in keys.iter().enumerate() {
                match level {
                    0 => page.insert_short(i, key, b""),
                    _ => page.insert_child(
                        i,
                        if i == 0 { b"" } else { key },
                        None,
                        Place::Disk(Link::default()),
                    ),
                }
            }
            page.refresh_heads();
            let (page, first) = (page.view(), usize::from(level > 0));
            for probe in keys.iter().cloned().chain((0..40).map(|_| vec![rng.next() as u8; 14])) {
                let range = page.narrow(&probe);
                assert!(first <= range.start && range.start <= range.end && range.end <= count.max(first));
                assert!(keys[first..range.start].iter().all(|key| order.compare(key, &probe).is_lt()));
                assert!(keys[range.end..].iter().all(|key| order.compare(key, &probe).is_gt()));
                (narrowed, probes) = (narrowed + count - range.len(), probes + count);
            }
        }
    }
    assert!(narrowed * 10 > probes * 8, "heads leave few cells: {narrowed} of {probes} were passed by");
}

/// A branch and its copy share their bytes until a cell of one changes; an older root never sees that.
#[test]
fn branches_share_their_bytes_until_a_cell_changes() {
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let key = |n: u64| n.to_be_bytes();
    for n in 0..2000 {
        store.insert(TreeId::Meta, &key(2 * n), &[7; 60]).unwrap();
    }
    store.publish();
    let top = |root: &Root| {
        let (tree, root) = root.0.tree(TreeId::Meta);
        tree.top(root).unwrap().unwrap().page().0.as_ptr()
    };
    let before = store.reader().root();
    store.insert(TreeId::Meta, &key(100), &[8; 60]).unwrap();
    store.publish();
    let overwritten = store.reader().root();
    assert_eq!(top(&before), top(&overwritten), "no cell of the branch has changed");
    for n in 0..60 {
        store.insert(TreeId::Meta, &[&key(100)[..], &[n]].concat(), &[9; 60]).unwrap();
    }
    store.publish();
    let split = store.reader().root();
    assert_ne!(top(&before), top(&split), "a leaf was split, so the branch has another cell");
    for (root, value, count) in [(&before, 7, 2000), (&overwritten, 8, 2000), (&split, 8, 2060)] {
        let view = root.view();
        assert_eq!(&view.get(TreeId::Meta, &key(100)).unwrap().unwrap()[..], [value; 60]);
        assert_eq!(view.sums(TreeId::Meta, None, None).unwrap().count, count);
    }
    store.check().unwrap();
}
