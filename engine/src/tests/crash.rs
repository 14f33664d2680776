//! A recorded run with several checkpoints, cut at every operation of the disk: what is found after the cut is one
//! of the checkpoints, never older than the last one that was acknowledged, and the store goes on from there.

use trilith_disk::sim::{SimDisk, Survivors};

use super::durable::checkpoint;
use super::model::*;
use super::rng::Rng;
use crate::Store;

/// A checkpoint of the recorded run.
pub(super) struct Point {
    /// Operations of the disk when it was acknowledged.
    pub(super) acknowledged_at: usize,
    pub(super) model: Model,
    pub(super) applied: u64,
}

/// Records a run; the checkpoints, the empty store first.
fn record(disk: &SimDisk, rng: &mut Rng, checkpoints: u64) -> Vec<Point> {
    let mut store = Store::open(sim_options(disk)).unwrap();
    let mut model = Model::new();
    let mut points = vec![Point { acknowledged_at: disk.op_count(), model: model.clone(), applied: 0 }];
    for n in 1..=checkpoints {
        for _ in 0..rng.below(120) + 1 {
            change(rng, &mut store, &mut model, 300, n % 4 != 0);
        }
        store.set_applied(n, 1);
        store.publish();
        let (frozen, job) = (model.clone(), store.begin_checkpoint().unwrap());
        for _ in 0..rng.below(40) {
            change(rng, &mut store, &mut model, 300, true);
        }
        if rng.chance(2) {
            store.publish();
        }
        let done = job.run().unwrap();
        points.push(Point { acknowledged_at: disk.op_count(), model: frozen, applied: n });
        store.finish_checkpoint(done).unwrap();
    }
    points
}

/// Opens what the cut left, and compares.
fn open_cut<'p>(cut: &SimDisk, points: &'p [Point], ops: usize) -> (Store, &'p Point) {
    let store = Store::open(sim_options(cut)).unwrap_or_else(|e| panic!("cut at {ops}: {e}"));
    let applied = store.applied().0;
    let acknowledged = points.iter().filter(|p| p.acknowledged_at <= ops).map(|p| p.applied).max();
    assert!(Some(applied) >= acknowledged, "cut at {ops}: acknowledged {acknowledged:?}, found {applied}");
    let point = points.iter().find(|p| p.applied == applied).unwrap();
    store.check().unwrap_or_else(|e| panic!("cut at {ops}: {e}"));
    assert_equal(store.view(), &point.model);
    (store, point)
}

/// Opens what the cut left, and compares; then goes on for two more checkpoints and opens once more.
pub(super) fn verify(cut: &SimDisk, points: &[Point], ops: usize, seed: u64) {
    let (mut store, point) = open_cut(cut, points, ops);
    let (mut rng, mut model) = (Rng(seed), point.model.clone());
    for _ in 0..2 {
        for _ in 0..60 {
            change(&mut rng, &mut store, &mut model, 300, false);
        }
        checkpoint(&mut store);
        store.check().unwrap_or_else(|e| panic!("cut at {ops}, going on: {e}"));
    }
    drop(store);
    let store = Store::open(sim_options(cut)).unwrap();
    store.check().unwrap();
    assert_equal(store.view(), &model);
}

#[test]
fn every_cut_finds_a_checkpoint() {
    let mut rng = Rng(seed(5));
    let disk = SimDisk::new();
    let points = record(&disk, &mut rng, model_ops(24_000) as u64 / 2000);
    for ops in 0..=disk.op_count() {
        for survivors in [
            Survivors::None,
            Survivors::All,
            Survivors::Random(ops as u64),
            Survivors::Random(!0 - ops as u64),
        ] {
            let cut = disk.crash(ops, survivors);
            assert!(
                !open_cut(&cut, &points, ops).0.lost_bitmaps(),
                "cut at {ops}: a bitmap was written over"
            );
            verify(&cut, &points, ops, ops as u64);
        }
    }
}

/// The store loses most of its content, and the file its tail.
#[test]
fn every_cut_around_the_cut_of_the_file_finds_a_checkpoint() {
    let mut rng = Rng(seed(21));
    let disk = SimDisk::new();
    let mut store = Store::open(crate::Options { compress: false, ..sim_options(&disk) }).unwrap();
    let mut model = Model::new();
    let mut points = vec![Point { acknowledged_at: disk.op_count(), model: model.clone(), applied: 0 }];
    let mut lengths = Vec::new();
    for n in 1..=9 {
        match n {
            1 => put_large(&mut rng, &mut store, &mut model, 0..150),
            2 => remove_many(&mut rng, &mut store, &mut model),
            _ => put_large(&mut rng, &mut store, &mut model, 0..n),
        }
        store.set_applied(n, 1);
        checkpoint(&mut store);
        points.push(Point { acknowledged_at: disk.op_count(), model: model.clone(), applied: n });
        lengths.push(store.file_bytes());
    }
    assert!(lengths[8] * 2 < lengths[1], "the file was cut: {lengths:?}");
    for ops in 0..=disk.op_count() {
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(ops as u64)] {
            let cut = disk.crash(ops, survivors);
            assert!(!open_cut(&cut, &points, ops).0.lost_bitmaps(), "cut at {ops}: a bitmap was lost");
            verify(&cut, &points, ops, ops as u64);
        }
    }
}

fn put_large(rng: &mut Rng, store: &mut Store, model: &mut Model, keys: std::ops::Range<u64>) {
    for n in keys {
        let key = n.to_be_bytes();
        let value = vec![rng.next() as u8; 600 + rng.below(9000)];
        store.insert(crate::TreeId::Meta, &key, &value).unwrap();
        model.insert(model_key(crate::TreeId::Meta, &key), value);
    }
}

fn remove_many(rng: &mut Rng, store: &mut Store, model: &mut Model) {
    for key in model.keys().cloned().collect::<Vec<_>>() {
        // What stays is the beginning, and is written anew by every checkpoint that follows.
        if key.1.0 > 2u64.to_be_bytes().to_vec() || rng.chance(3) {
            assert!(store.remove(crate::TreeId::Meta, &key.1.0).unwrap());
            model.remove(&key);
        }
    }
}

/// Cuts right before a sync, when the most is at stake: often enough that a meta page survives whole beside torn
/// pages, if it could.
#[test]
fn cuts_before_syncs_find_a_checkpoint() {
    let mut rng = Rng(seed(10));
    let disk = SimDisk::new();
    let points = record(&disk, &mut rng, 5);
    let syncs: Vec<usize> = (0..disk.op_count()).filter(|op| disk.is_sync(*op)).collect();
    for ops in &syncs[syncs.len() - 6..] {
        for _ in 0..model_ops(2500) / 5 {
            let (store, _) = open_cut(&disk.crash(*ops, Survivors::Random(rng.next())), &points, *ops);
            assert!(store.took_the_newest(), "cut at {ops}: a meta page was there before its pages");
        }
    }
}

/// A checkpoint is cut off, and the newest that is durable is damaged as well: the one before is still whole. So it
/// is when the store was opened again in between, and knows what to hold from the bitmaps only.
#[test]
fn the_checkpoint_before_is_whole_while_the_next_is_written() {
    for seed in 0..30 {
        println!("seed {seed}");
        let mut rng = Rng(seed);
        let mut disk = SimDisk::new();
        let points = record(&disk, &mut rng, if seed % 2 == 0 { 7 } else { 6 });
        if seed % 2 == 1 {
            disk = disk.fork();
            let mut store = Store::open(sim_options(&disk)).unwrap();
            let mut model = points[6].model.clone();
            for _ in 0..100 {
                change(&mut rng, &mut store, &mut model, 300, true);
            }
            checkpoint(&mut store);
        }
        // The last two operations of a checkpoint are its meta page and the sync.
        let cut = disk.crash(disk.op_count() - 2, Survivors::All);
        let store = Store::open(sim_options(&cut)).unwrap();
        assert_eq!(store.applied().0, 6);
        let meta = store.meta_slot();
        drop(store);
        cut.corrupt(std::path::Path::new("d/db"), meta * 4096 + rng.below(4096) as u64, 2).unwrap();
        let (store, _) = open_cut(&cut, &points[..6], 0);
        assert_eq!(store.applied().0, 5);
        drop(store);
        verify(&cut, &points[..6], 0, seed);
    }
}

/// Crashes upon crashes: each run starts from what the last cut left.
#[test]
fn crashes_in_a_row_find_a_checkpoint() {
    for seed in 0..model_ops(4_000) as u64 / 400 {
        println!("seed {seed}");
        let mut rng = Rng(seed);
        let mut disk = SimDisk::new();
        let mut before = Model::new();
        let mut applied = 0;
        Store::open(sim_options(&disk)).unwrap();
        disk = disk.fork();
        for _ in 0..12 {
            let mut store = Store::open(sim_options(&disk)).unwrap();
            assert_equal(store.view(), &before);
            let mut models = vec![(disk.op_count(), applied, before.clone())];
            let mut model = before.clone();
            for _ in 0..1 + rng.below(3) {
                for _ in 0..rng.below(150) {
                    change(&mut rng, &mut store, &mut model, 300, applied % 5 != 0);
                }
                applied += 1;
                store.set_applied(applied, 1);
                checkpoint(&mut store);
                models.push((disk.op_count(), applied, model.clone()));
            }
            let ops = rng.below(disk.op_count() + 1);
            let acknowledged = models.iter().filter(|m| m.0 <= ops).map(|m| m.1).max().unwrap_or(models[0].1);
            let cut = disk.crash(ops, Survivors::Random(rng.next()));
            let store = Store::open(sim_options(&cut)).unwrap();
            store.check().unwrap();
            applied = store.applied().0;
            assert!(applied >= acknowledged);
            before = models.into_iter().find(|m| m.1 == applied).unwrap().2;
            assert_equal(store.view(), &before);
            drop(store);
            disk = cut.fork();
        }
    }
}

/// The newest checkpoint is damaged: the one before is found whole, and nothing breaks afterwards.
#[test]
fn a_damaged_checkpoint_leaves_the_one_before() {
    let path = std::path::Path::new("d/db");
    for seed in 0..20 {
        println!("seed {seed}");
        let mut rng = Rng(seed);
        let disk = SimDisk::new();
        let points = record(&disk, &mut rng, 6);
        let newest = Store::open(sim_options(&disk)).unwrap();
        assert_eq!(newest.applied().0, 6);
        let meta_slot = newest.meta_slot();
        let root_page = newest.root_page(crate::TreeId::Auth);
        drop(newest);
        let cut = disk.fork();
        // Half of the times its meta page, else one of its root pages.
        let page = if seed % 2 == 0 { meta_slot } else { root_page.unwrap() };
        cut.corrupt(path, page * 4096 + rng.below(4096) as u64, 1 << rng.below(8)).unwrap();
        let store = Store::open(sim_options(&cut)).unwrap();
        assert_eq!(store.applied().0, 5);
        drop(store);
        verify(&cut, &points[..6], disk.op_count(), seed);
    }
}

/// A bitmap is lost: the trees are walked for it.
#[test]
fn a_lost_bitmap_is_rebuilt() {
    let path = std::path::Path::new("d/db");
    for place in [2, 4] {
        let disk = SimDisk::new();
        let points = record(&disk, &mut Rng(9), 5);
        let cut = disk.fork();
        cut.corrupt(path, place * 4096 + 100, 4).unwrap();
        verify(&cut, &points, disk.op_count(), 9);
    }
}
