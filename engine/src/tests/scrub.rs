//! The scrub finds what is damaged and nothing else.

use std::os::unix::fs::FileExt;
use std::path::Path;

use trilith_disk::sim::SimDisk;

use super::durable::{TempDir, checkpoint};
use super::model::*;
use super::rng::Rng;
use crate::page::{PAGE, Place};
use crate::search::Tree;
use crate::{Damage, Root, Scrub, Store, StoreError, TreeId};

/// A whole pass over the newest root, in pieces; bytes read.
fn pass(store: &Store, scrub: &mut Scrub, piece: u64) -> u64 {
    let mut read = 0;
    for _ in 0..100_000 {
        let done = scrub.run(&store.reader().root(), piece);
        read += done.bytes;
        if done.ended_pass {
            return read;
        }
    }
    panic!("the pass does not end");
}

/// Bytes of the file that a root refers to: the tree, the page to be named, and where they are.
type Target = (TreeId, u64, std::ops::Range<u64>);

fn targets(root: &Root) -> Vec<Target> {
    let mut targets = Vec::new();
    for id in TreeId::ALL {
        let (tree, top) = root.0.tree(id);
        let mut nodes: Vec<_> = tree.top(top).unwrap().into_iter().collect();
        while let Some(node) = nodes.pop() {
            let start = node.page().id() * PAGE as u64;
            targets.push((id, node.page().id(), start..start + PAGE as u64));
            for (_, _, long) in node.page().longs() {
                let at = long.extent.page * PAGE as u64 + u64::from(long.at);
                targets.push((id, long.extent.page, at..at + u64::from(long.stored)));
            }
            if !node.page().is_leaf() {
                nodes.extend((0..node.page().count()).map(|i| {
                    assert!(matches!(node.page().child(i), Place::Disk(_)));
                    Tree { source: tree.source, id }.child(&node, i).unwrap()
                }));
            }
        }
    }
    targets
}

#[test]
fn flipped_bits_are_found_and_named() {
    let mut rng = Rng(seed(40));
    let disk = SimDisk::new();
    let mut store = Store::open(sim_options(&disk)).unwrap();
    let mut model = Model::new();
    for _ in 0..6000 {
        change(&mut rng, &mut store, &mut model, 3000, true);
    }
    checkpoint(&mut store);
    let targets = targets(&store.reader().root());
    let mut scrub = Scrub::default();
    let read = pass(&store, &mut scrub, 50_000);
    assert_eq!(store.take_damage(), []);
    assert!(read > store.size_in_use_bytes() / 2 && read < store.size_in_use_bytes() * 3 / 2, "{read}");
    let path = Path::new("d/db");
    for _ in 0..model_ops(120) {
        let (tree, page, bytes) = targets[rng.below(targets.len())].clone();
        let at = bytes.start + rng.below((bytes.end - bytes.start) as usize) as u64;
        let mask = 1 << rng.below(8);
        disk.corrupt(path, at, mask).unwrap();
        pass(&store, &mut scrub, 1 << (10 + rng.below(12)));
        let found = store.take_damage();
        let [damage] = &found[..] else { panic!("{tree:?}, page {page}, byte {at}: {found:?}") };
        assert_eq!((damage.tree, damage.page), (tree, page), "byte {at}: {damage:?}");
        assert!(damage.what.contains("d/db: page ") && damage.what.contains("checksum"), "{damage:?}");
        disk.corrupt(path, at, mask).unwrap();
    }
    // Several at once: those below a damaged branch are found when it is whole again.
    for _ in 0..40 {
        let (_, _, bytes) = &targets[rng.below(targets.len())];
        disk.corrupt(path, bytes.start, 1).unwrap();
    }
    pass(&store, &mut scrub, 1 << 20);
    assert!(!store.take_damage().is_empty());
}

/// Pages are given up, written anew and cut while the scrub reads from roots of before.
#[test]
fn a_healthy_store_under_traffic_gives_no_alarm() {
    let mut rng = Rng(seed(41));
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let mut model = Model::new();
    let mut scrub = Scrub::default();
    let (mut passes, mut pieces) = (0, 0);
    for round in 0..model_ops(30_000) / 60 {
        let root = store.reader().root();
        for _ in 0..rng.below(3) {
            for _ in 0..rng.below(100) {
                change(&mut rng, &mut store, &mut model, 1500, round / 60 % 2 == 0);
            }
            if rng.chance(2) {
                checkpoint(&mut store);
            }
        }
        store.publish();
        let job = if rng.chance(2) { store.begin_checkpoint() } else { None };
        passes += usize::from(scrub.run(&root, rng.below(200_000) as u64).ended_pass);
        pieces += 1;
        if let Some(job) = job {
            let done = job.run().unwrap();
            scrub.run(&root, 50_000);
            store.finish_checkpoint(done).unwrap();
        }
        assert_eq!(store.take_damage(), [], "round {round}");
    }
    assert!(passes > 5 && pieces > 10 * passes, "{passes} passes, {pieces} pieces");
}

#[test]
fn damage_that_a_reader_meets_is_told_once() {
    let disk = SimDisk::new();
    let options = crate::Options { dirty_bytes_max: 0, ..sim_options(&disk) };
    let mut store = Store::open(options).unwrap();
    store.insert(TreeId::Auth, b"k", &[7; 100]).unwrap();
    checkpoint(&mut store);
    let page = store.root_page(TreeId::Auth).unwrap();
    disk.corrupt(Path::new("d/db"), page * PAGE as u64 + 3000, 1).unwrap();
    // Twice, since the cache keeps the page that was read last.
    for n in 0..2u8 {
        let _ = store.view().get(TreeId::Auth, &[n]);
    }
    assert!(matches!(store.view().get(TreeId::Auth, b"k"), Err(StoreError::Corrupt { .. })));
    let found = store.take_damage();
    assert_eq!(found.iter().map(|d| (d.tree, d.page)).collect::<Vec<_>>(), [(TreeId::Auth, page)]);
    assert!(store.view().get(TreeId::Auth, b"k").is_err());
    assert_eq!(store.take_damage(), []);
}

/// What was verified once is not trusted for ever.
#[test]
fn after_the_scrub_nobody_trusts_a_page_that_went_bad() {
    let dir = TempDir::new("scrub");
    let mut store = Store::open(dir.options(true)).unwrap();
    for n in 0..2000u64 {
        store.insert(TreeId::Meta, &n.to_be_bytes(), &[1; 100]).unwrap();
    }
    checkpoint(&mut store);
    let root = store.reader().root();
    assert!(root.view().get(TreeId::Meta, &77u64.to_be_bytes()).unwrap().is_some());
    let page = store.root_page(TreeId::Meta).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(dir.0.join("db")).unwrap();
    file.write_all_at(&[0xff; 2], page * PAGE as u64 + 4090).unwrap();
    pass(&store, &mut Scrub::default(), 1 << 20);
    let [Damage { tree: TreeId::Meta, page: found, .. }] = store.take_damage()[..] else { panic!() };
    assert_eq!(found, page);
    let read = root.view().get(TreeId::Meta, &77u64.to_be_bytes()).map(|value| value.is_some());
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
}
