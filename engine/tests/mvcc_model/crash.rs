//! A run with compactions, cut at operations of its disk: whatever of a removal a checkpoint caught, the walk that begins
//! anew ends with what etcd's rule says, entry by entry.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use trilith_disk::sim::{SimDisk, Survivors};
use trilith_engine::{Options, Revision, Store};

use crate::check_whole_trees;
use crate::model::Model;
use crate::mvcc_common::Random;

/// A checkpoint of the recorded run.
struct Point {
    /// Operations of the disk when it was acknowledged.
    acknowledged_at: usize,
    number: u64,
    model: Rc<Model>,
}

fn open(disk: &SimDisk) -> Store {
    let path = PathBuf::from("d/db");
    let disk = Arc::new(disk.clone());
    Store::open(Options { path, disk, map: false, dirty_bytes_max: 1 << 20, compress: true }).unwrap()
}

fn put(random: &mut Random, store: &mut Store, model: &mut Model) {
    let key = format!("key/{}", random.below(40));
    let at = Revision { main: model.revision + 1, sub: 0 };
    let mut txn = store.txn();
    if random.one_in(5) {
        let range = trilith_engine::KeyRange { start: key.as_bytes(), end: None };
        let deleted = model.delete_range(at, range);
        assert_eq!(txn.delete_range(range).unwrap(), deleted);
    } else {
        let size = if random.one_in(20) { 6000 } else { 200 };
        let value = vec![b'v'; random.below(size)];
        model.put(at, key.as_bytes(), &value, 0);
        txn.put(key.as_bytes(), &value, 0).unwrap();
    }
}

/// Puts and deletes, compactions to recent revisions, their removal in small steps, and checkpoints in the middle.
fn record(disk: &SimDisk, random: &mut Random) -> Vec<Point> {
    let mut store = open(disk);
    let mut model = Model::new();
    let mut points =
        vec![Point { acknowledged_at: disk.op_count(), number: 0, model: Rc::new(model.clone()) }];
    let mut doomed = None;
    for number in 1..=12 {
        for _ in 0..random.below(150) {
            put(random, &mut store, &mut model);
        }
        if random.below(3) > 0 && model.revision > model.compacted {
            let revision = random.between(model.compacted.max(model.revision - 60) + 1, model.revision);
            store.compact(revision).unwrap();
            model.compact(revision);
        }
        for _ in 0..random.below(12) {
            store.publish();
            if doomed.is_none() {
                doomed = store.begin_compaction().unwrap().map(|job| job.run().unwrap());
            }
            if let Some(piece) = &mut doomed {
                store.remove_doomed(piece, random.below(60)).unwrap();
                doomed = doomed.filter(|piece| !piece.is_done());
            }
        }
        store.set_applied(number, 1);
        store.publish();
        let job = store.begin_checkpoint().unwrap();
        if let Some(piece) = &mut doomed {
            store.remove_doomed(piece, 30).unwrap();
            doomed = doomed.filter(|piece| !piece.is_done());
        }
        let done = job.run().unwrap();
        points.push(Point { acknowledged_at: disk.op_count(), number, model: Rc::new(model.clone()) });
        store.finish_checkpoint(done).unwrap();
    }
    points
}

fn remove_all(store: &mut Store) {
    while let Some(job) = store.begin_compaction().unwrap() {
        let mut doomed = job.run().unwrap();
        while !doomed.is_done() {
            store.remove_doomed(&mut doomed, 50).unwrap();
        }
        store.publish();
    }
}

/// Opens what the cut left, ends what it had begun, and compares; goes on, compacts once more, and compares.
fn verify(random: &mut Random, cut: &SimDisk, points: &[Point], ops: usize) {
    let mut store = open(cut);
    let found = store.applied().0;
    let acknowledged =
        points.iter().filter(|point| point.acknowledged_at <= ops).map(|point| point.number).max();
    assert!(Some(found) >= acknowledged, "cut at {ops}: acknowledged {acknowledged:?}, found {found}");
    let point = points.iter().find(|point| point.number == found).expect("a checkpoint of the run");
    let mut model = Model::clone(&point.model);
    remove_all(&mut store);
    store.check().unwrap();
    check_whole_trees(store.view(), &model);
    for _ in 0..2 {
        for _ in 0..40 {
            put(random, &mut store, &mut model);
        }
        let revision = model.revision - 5;
        store.compact(revision).unwrap();
        model.compact(revision);
        store.publish();
        remove_all(&mut store);
        check_whole_trees(store.view(), &model);
    }
    store.check().unwrap();
}

#[test]
fn a_compaction_that_was_cut_ends_as_if_it_had_not_been() {
    let mut random = Random::from_environment();
    let disk = SimDisk::new();
    let points = record(&disk, &mut random);
    for ops in points[0].acknowledged_at..=disk.op_count() {
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(ops as u64)] {
            verify(&mut random, &disk.crash(ops, survivors), &points, ops);
        }
    }
}
