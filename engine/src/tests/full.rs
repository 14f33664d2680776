//! A disk that is full at times: checkpoints that find no room are abandoned, nothing is lost, reads go on, and the
//! store works again when there is room, without being opened again.

use trilith_disk::sim::{SimDisk, Survivors};

use super::crash::{Point, verify};
use super::durable::checkpoint;
use super::model::*;
use super::rng::Rng;
use crate::{CheckpointDone, CheckpointJob, Options, Root, Store, StoreError, TreeId};

/// Lets the disk take so many more bytes, at random: often none, sometimes enough.
fn limit(rng: &mut Rng, disk: &SimDisk) {
    let more = [0, 4096 * rng.below(8), 4096 * rng.below(200), 1 << 20][rng.below(4)];
    disk.set_limit(Some(disk.used() + more as u64));
}

/// Nothing is compressed: what is written needs room in any case.
fn plain(disk: &SimDisk) -> Options {
    Options { compress: false, ..sim_options(disk) }
}

enum Stage {
    Idle,
    Begun(CheckpointJob),
    Run(CheckpointDone),
}

#[test]
fn checkpoints_on_a_disk_that_is_full_at_times_equal_the_model() {
    let mut rng = Rng(seed(20));
    let disk = SimDisk::new();
    let mut store = Store::open(sim_options(&disk)).unwrap();
    let mut model = Model::new();
    let (mut published, mut frozen, mut durable) = (Model::new(), Model::new(), Model::new());
    let (mut stage, mut pinned) = (Stage::Idle, Vec::<(Root, Model)>::new());
    let (mut abandoned, mut written) = (0, 0);
    for op in 0..model_ops(30_000) {
        change(&mut rng, &mut store, &mut model, 1500, op / 4000 % 2 == 0);
        if rng.chance(20) {
            store.publish();
            published = model.clone();
        }
        if rng.chance(100) {
            stage = match stage {
                Stage::Idle => match store.begin_checkpoint() {
                    // One was finished in the middle of this batch.
                    None => Stage::Idle,
                    Some(job) => {
                        frozen = published.clone();
                        Stage::Begun(job)
                    }
                },
                Stage::Begun(job) => {
                    limit(&mut rng, &disk);
                    let done = job.run().unwrap();
                    if done.durable.is_ok() {
                        durable = frozen.clone();
                    }
                    Stage::Run(done)
                }
                Stage::Run(done) => {
                    let finished = store.finish_checkpoint(done);
                    assert_eq!(store.no_space(), finished.is_err());
                    match finished {
                        Ok(_) => written += 1,
                        Err(error) => {
                            assert!(error.is_no_space(), "{error}");
                            abandoned += 1;
                            assert!(store.dirty_bytes() > 0, "what is not written stays dirty");
                        }
                    }
                    store.check().unwrap();
                    Stage::Idle
                }
            };
        }
        if rng.chance(1000) {
            assert_equal(store.view(), &model);
            assert_equal(store.reader().root().view(), &published);
            pinned.push((store.reader().root(), published.clone()));
            if pinned.len() > 3 {
                let (root, model) = pinned.remove(rng.below(pinned.len()));
                assert_equal(root.view(), &model);
            }
        }
        if rng.chance(5000) {
            pinned.clear();
            stage = Stage::Idle;
            drop(store);
            store = Store::open(sim_options(&disk)).unwrap();
            store.check().unwrap();
            assert_equal(store.view(), &durable);
            (model, published) = (durable.clone(), durable.clone());
        }
    }
    assert!(abandoned > 10 && written > 10, "{abandoned} abandoned, {written} written");
}

/// Records a run on a disk that is full at times.
fn record(disk: &SimDisk, rng: &mut Rng) -> Vec<Point> {
    let mut store = Store::open(plain(disk)).unwrap();
    let mut model = Model::new();
    let mut points = vec![Point { acknowledged_at: disk.op_count(), model: model.clone(), applied: 0 }];
    let mut abandoned = 0;
    for n in 1..=16 {
        // Enough for the file to grow again and again.
        for _ in 0..rng.below(80) + 60 {
            change(rng, &mut store, &mut model, 3000, true);
        }
        store.set_applied(n, 1);
        store.publish();
        limit(rng, disk);
        let (frozen, job) = (model.clone(), store.begin_checkpoint().unwrap());
        for _ in 0..rng.below(20) {
            change(rng, &mut store, &mut model, 300, true);
        }
        let done = job.run().unwrap();
        let acknowledged_at = disk.op_count();
        match store.finish_checkpoint(done) {
            Ok(_) => points.push(Point { acknowledged_at, model: frozen, applied: n }),
            Err(error) => {
                assert!(error.is_no_space(), "{error}");
                abandoned += 1;
            }
        }
        disk.set_limit(None);
    }
    assert!(abandoned > 2 && points.len() > 4, "{abandoned} abandoned, {} written", points.len());
    points
}

#[test]
fn every_cut_of_a_run_with_a_full_disk_finds_a_checkpoint() {
    let disk = SimDisk::new();
    let points = record(&disk, &mut Rng(seed(21)));
    for ops in 0..=disk.op_count() {
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(ops as u64)] {
            verify(&disk.crash(ops, survivors), &points, ops, ops as u64);
        }
    }
}

#[test]
fn a_store_that_found_no_room_works_again_when_there_is_some() {
    let mut rng = Rng(seed(22));
    let disk = SimDisk::new();
    let mut store = Store::open(plain(&disk)).unwrap();
    let mut model = Model::new();
    for _ in 0..2000 {
        change(&mut rng, &mut store, &mut model, 1500, true);
    }
    checkpoint(&mut store);
    let before = store.checkpoint_info();
    let space = (store.size_bytes(), store.size_in_use_bytes());
    for _ in 0..2000 {
        change(&mut rng, &mut store, &mut model, 1500, true);
    }
    store.set_applied(7, 1);
    store.publish();
    disk.set_limit(Some(0));
    let dirty = store.dirty_bytes();
    for _ in 0..5 {
        let done = store.begin_checkpoint().unwrap().run().unwrap();
        assert!(store.finish_checkpoint(done).unwrap_err().is_no_space());
        assert!(store.no_space());
        assert_eq!((store.checkpoint_info(), store.dirty_bytes()), (before, dirty));
        assert_eq!((store.size_bytes(), store.size_in_use_bytes()), space);
        assert_equal(store.view(), &model);
        store.check().unwrap();
    }
    let held = disk.used();
    disk.set_limit(None);
    assert_eq!(checkpoint(&mut store).applied_index, 7);
    assert!(!store.no_space() && disk.used() > held);
    store.check().unwrap();
    drop(store);
    let store = Store::open(sim_options(&disk)).unwrap();
    store.check().unwrap();
    assert_equal(store.view(), &model);
}

#[test]
fn other_errors_still_stop_the_store() {
    let disk = SimDisk::new();
    let mut store = Store::open(sim_options(&disk)).unwrap();
    store.insert(crate::TreeId::Meta, b"k", b"v").unwrap();
    store.publish();
    disk.set_limit(Some(0));
    disk.fail_after(disk.op_count());
    let job = store.begin_checkpoint().unwrap();
    assert!(!job.run().unwrap_err().is_no_space());
    disk.heal();
    disk.set_limit(None);
    assert!(matches!(store.insert(crate::TreeId::Meta, b"k", b"w"), Err(StoreError::Stopped { .. })));
    assert!(store.begin_checkpoint().is_none());
}

/// Entries for some megabytes.
fn fill(store: &mut Store, value: &[u8]) {
    for n in 0..8000u32 {
        store.insert(TreeId::Key, &n.to_be_bytes(), value).unwrap();
    }
    store.publish();
}

#[test]
fn a_sync_that_finds_no_room_on_the_way_stops_the_store() {
    let disk = SimDisk::new();
    let mut store = Store::open(plain(&disk)).unwrap();
    fill(&mut store, &[1; 400]);
    checkpoint(&mut store);
    fill(&mut store, &[2; 400]);
    let job = store.begin_checkpoint().unwrap();
    let before = disk.op_count();
    disk.fail_syncs(std::io::ErrorKind::StorageFull);
    let error = job.run().unwrap_err();
    assert!(error.is_no_space(), "it is the sync's: {error}");
    let written = |op| !disk.is_sync(op);
    assert!((before..disk.op_count()).all(written), "nothing follows on the sync that failed");
    disk.heal();
    assert!(store.begin_checkpoint().is_none(), "what the sync was for may be lost");
    let error = store.insert(TreeId::Key, b"k", b"v").unwrap_err();
    assert!(matches!(error, StoreError::Stopped { .. }), "{error}");
    drop(store);
    let store = Store::open(plain(&disk)).unwrap();
    assert_eq!(&store.view().get(TreeId::Key, &[0; 4]).unwrap().unwrap()[..], [1; 400]);
    store.check().unwrap();
}

#[test]
fn a_large_checkpoint_is_synced_in_parts() {
    let disk = SimDisk::new();
    let mut store = Store::open(plain(&disk)).unwrap();
    fill(&mut store, &[1; 400]);
    let (before, bytes) = (disk.op_count(), disk.bytes_written());
    checkpoint(&mut store);
    let syncs = (before..disk.op_count()).filter(|op| disk.is_sync(*op)).count() as u64;
    let bytes = disk.bytes_written() - bytes;
    // A part may be as long as a write and what was left before it; the meta page has a sync of its own.
    let longest = (crate::checkpoint::SYNC_BYTES + crate::checkpoint::WRITE_BYTES) as u64;
    assert!(syncs > bytes / longest, "{syncs} syncs of {bytes} bytes");
}
