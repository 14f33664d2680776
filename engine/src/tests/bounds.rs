//! Pages whose keys are not those that the branches above lead to, under right checksums: whoever reads such a page for
//! the first time gets an error, whichever way led there; all else is read.

use std::collections::BTreeMap;

use trilith_disk::sim::SimDisk;

use super::durable::{TempDir, checkpoint};
use super::fuzz::{Sound, on_disk};
use super::model::sim_options;
use crate::page::{PAGE, PageView};
use crate::search::{KEY_BOUNDS, Tree};
use crate::source::NodeRef;
use crate::{Options, Scrub, Store, StoreError, TreeId};

const TREE: TreeId = TreeId::Auth;
/// Of what is in common, so that the heads say nothing and branches are narrow.
const SHARED: usize = 700;

fn key(n: u32) -> Vec<u8> {
    [&[b'k'; SHARED][..], &n.to_be_bytes()].concat()
}

/// A leaf: its page, and the keys in it.
struct Leaf {
    page: usize,
    keys: Vec<Vec<u8>>,
}

fn leaves<'a>(tree: &Tree<'a>, node: NodeRef<'a>, into: &mut Vec<Leaf>) {
    let page = node.page();
    if page.is_leaf() {
        let keys = (0..page.count()).map(|i| page.key(i).0.to_vec()).collect();
        return into.push(Leaf { page: page.id() as usize, keys });
    }
    (0..page.count()).for_each(|i| leaves(tree, tree.child(&node, i).unwrap(), into));
}

/// A store with a tree of four levels, and its leaves from left to right.
fn store() -> (Sound, Vec<Leaf>) {
    let disk = SimDisk::new();
    let mut store = Store::open(sim_options(&disk)).unwrap();
    for n in 1..=200 {
        store.insert(TREE, &key(n * 10), b"value").unwrap();
    }
    checkpoint(&mut store);
    let (tree, root) = store.state().tree(TREE);
    let top = tree.top(root).unwrap().unwrap();
    assert!(top.page().level() >= 3);
    let mut found = Vec::new();
    leaves(&tree, top, &mut found);
    (Sound::of(&disk, store), found)
}

/// The bytes of the store with another key in a cell of a leaf.
fn with_key(sound: &Sound, leaf: &Leaf, cell: usize, key: &[u8]) -> Vec<u8> {
    let mut bytes = sound.bytes.clone();
    let page = &mut bytes[leaf.page * PAGE..][..PAGE];
    let place = PageView(page).key_range(cell).0;
    page[place].copy_from_slice(key);
    assert_eq!(PageView(page).validate(), Ok(()), "the page alone is sound");
    sound.put_right(&mut bytes);
    bytes
}

fn is_out_of_bounds<T>(read: Result<T, StoreError>, leaf: &Leaf) -> bool {
    match read {
        Ok(_) => false,
        Err(StoreError::Corrupt { page, field: KEY_BOUNDS, .. }) if page == leaf.page as u64 => true,
        Err(error) => panic!("another error: {error}"),
    }
}

type Read = fn(&mut Store, &[u8]) -> Result<(), StoreError>;

const READS: [(&str, Read); 4] = [
    ("get", |store, key| store.view().get(TREE, key).map(drop)),
    ("seek", |store, key| store.view().seek(TREE, key).map(drop)),
    ("seek_before", |store, key| store.view().seek_before(TREE, key).map(drop)),
    ("scan", |store, _| {
        let mut cursor = store.view().seek(TREE, b"")?;
        while cursor.key().is_some() {
            cursor.next()?;
        }
        Ok(())
    }),
];

/// Every leaf in turn has a key that belongs left or right of it.
fn every_leaf(options: &mut dyn FnMut(&[u8]) -> Options) {
    let (sound, leaves) = store();
    for (n, leaf) in leaves.iter().enumerate() {
        let (last, middle) = (leaf.keys.len() - 1, leaf.keys[leaf.keys.len() / 2].clone());
        let mut changes = BTreeMap::new();
        if n > 0 {
            changes.insert(0, key(1));
        }
        if n + 1 < leaves.len() {
            changes.insert(last, key(u32::MAX));
        }
        for (cell, moved) in changes {
            let options = options(&with_key(&sound, leaf, cell, &moved));
            for (name, read) in READS {
                let mut store = Store::open(options.clone()).unwrap();
                assert!(is_out_of_bounds(read(&mut store, &middle), leaf), "{name}, leaf {n}, cell {cell}");
                let again = read(&mut store, &middle);
                assert!(is_out_of_bounds(again, leaf), "{name} again, leaf {n}, cell {cell}");
                assert_eq!(store.take_damage().len(), 1);
                assert!(store.check().is_err());
            }
            let store = Store::open(options).unwrap();
            for (other, leaf) in leaves.iter().enumerate().filter(|(other, _)| *other != n) {
                for key in &leaf.keys {
                    let found = store.view().get(TREE, key).unwrap();
                    assert_eq!(found.as_deref(), Some(&b"value"[..]), "leaf {other} beside {n}");
                }
            }
        }
    }
}

#[test]
fn a_page_with_keys_of_another_is_refused_by_its_first_reader() {
    every_leaf(&mut |bytes| sim_options(&on_disk(bytes)));
}

#[test]
fn a_mapped_page_with_keys_of_another_is_refused_by_its_first_reader() {
    let dir = TempDir::new("bounds");
    every_leaf(&mut |bytes| {
        let options = dir.options(true);
        std::fs::write(&options.path, bytes).unwrap();
        options
    });
}

/// The scrub finds it, whoever has read the page before, and goes on.
#[test]
fn a_page_with_keys_of_another_is_found_by_the_scrub() {
    let (sound, leaves) = store();
    let scrub = |bytes: &[u8]| {
        let store = Store::open(sim_options(&on_disk(bytes))).unwrap();
        let (mut scrub, root) = (Scrub::default(), store.reader().root());
        // In pieces, so that it comes back to the middle of a tree.
        while !scrub.run(&root, 1 << 15).ended_pass {}
        store.take_damage()
    };
    assert_eq!(scrub(&sound.bytes), []);
    for (n, leaf) in leaves.iter().enumerate() {
        let last = n + 1 == leaves.len();
        let (cell, moved) = if last { (0, key(1)) } else { (leaf.keys.len() - 1, key(u32::MAX)) };
        let damage = scrub(&with_key(&sound, leaf, cell, &moved));
        let [found] = &damage[..] else { panic!("{damage:?}") };
        assert!(found.page == leaf.page as u64 && found.what.contains(KEY_BOUNDS), "{found:?}");
    }
}

/// A writer knows the bounds that the parent tells. Nothing is written then.
#[test]
fn a_page_with_keys_of_another_is_refused_by_the_writer() {
    let (sound, leaves) = store();
    let mut refused = 0;
    for (n, leaf) in leaves.iter().enumerate().take(leaves.len() - 1) {
        let bytes = with_key(&sound, leaf, leaf.keys.len() - 1, &key(u32::MAX));
        let mut store = Store::open(sim_options(&on_disk(&bytes))).unwrap();
        let mut beside = leaf.keys[0].clone();
        beside.push(0);
        refused += usize::from(is_out_of_bounds(store.insert(TREE, &beside, b"new"), leaf));
        assert!(store.check().is_err(), "leaf {n}");
    }
    // All but the last ones of their parents.
    assert!(refused * 3 > leaves.len() * 2, "{refused} of {}", leaves.len());
}

/// A sound store is read alike by ways that know the bounds and ways that do not, and every page becomes a known one.
#[test]
fn pages_that_lie_where_they_should_are_all_known_after_a_scan() {
    let (sound, leaves) = store();
    let disk = on_disk(&sound.bytes);
    let options = Options { dirty_bytes_max: 64 << 20, ..sim_options(&disk) };
    let store = Store::open(options).unwrap();
    let sums = store.view().sums(TREE, Some(&key(55)), Some(&key(1555))).unwrap();
    assert_eq!(sums.count, 150);
    let mut cursor = store.view().seek(TREE, b"").unwrap();
    while cursor.key().is_some() {
        cursor.next().unwrap();
    }
    assert!(store.cached_bytes() > leaves.len() * PAGE);
    let known = store.cached_bytes();
    store.check().unwrap();
    assert_eq!(store.cached_bytes(), known, "the check has read nothing for the first time");
}
