//! Checkpoints and reopening, against the model; on the simulated disk and on real files.

use std::path::PathBuf;
use std::sync::Arc;

use trilith_disk::RealDisk;
use trilith_disk::sim::SimDisk;

use super::model::*;
use super::rng::Rng;
use super::shrink::shrink_a_little;
use crate::{CheckpointInfo, CheckpointJob, Options, Root, Store, StoreError, TreeId};

/// A folder of its own that goes with the test.
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> TempDir {
        let path = std::env::temp_dir().join(format!("trilith-engine-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub(crate) fn options(&self, map: bool) -> Options {
        Options {
            path: self.0.join("db"),
            disk: Arc::new(RealDisk),
            map,
            dirty_bytes_max: 1 << 20,
            compress: true,
        }
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn checkpoint(store: &mut Store) -> CheckpointInfo {
    store.publish();
    let done = store.begin_checkpoint().unwrap().run().unwrap();
    store.finish_checkpoint(done).unwrap()
}

/// Where a checkpoint stands while the writer goes on.
enum Stage {
    Idle,
    Begun(CheckpointJob),
    Written(crate::CheckpointDone),
}

fn run_model(options: &Options, usual_seed: u64, ops: usize) {
    let mut rng = Rng(seed(usual_seed));
    let mut store = Store::open(options.clone()).unwrap();
    let mut model = Model::new();
    // What the published root, the frozen root and the newest checkpoint hold.
    let (mut published, mut frozen, mut durable) = (Model::new(), Model::new(), Model::new());
    // A checkpoint was finished in the middle of the batch that is still being built.
    let (mut stage, mut just_finished) = (Stage::Idle, false);
    let mut pinned: Vec<(Root, Model)> = Vec::new();
    for op in 0..ops {
        change(&mut rng, &mut store, &mut model, 3000, op / 4000 % 2 == 0);
        store.set_applied(op as u64, 1);
        store.set_counter(3, op as u64 * 2);
        if rng.chance(20) {
            store.publish();
            published = model.clone();
            just_finished = false;
        }
        if rng.chance(400) {
            stage = match stage {
                Stage::Idle => {
                    if just_finished {
                        assert!(store.begin_checkpoint().is_none(), "the root has nodes that are written");
                        store.publish();
                        published = model.clone();
                    }
                    frozen = published.clone();
                    let job = store.begin_checkpoint().unwrap();
                    assert!(store.begin_checkpoint().is_none(), "one at a time");
                    Stage::Begun(job)
                }
                Stage::Begun(job) => {
                    let done = job.run().unwrap();
                    durable = frozen.clone();
                    Stage::Written(done)
                }
                Stage::Written(done) => {
                    let before = store.reader().root();
                    store.finish_checkpoint(done).unwrap();
                    just_finished = Arc::ptr_eq(&before.0, &store.reader().root().0);
                    store.check().unwrap();
                    Stage::Idle
                }
            };
        }
        match rng.below(3000) {
            0 => store.shrink_now(),
            1..=150 => _ = shrink_a_little(&mut store, 1 + rng.below(8)),
            _ => {}
        }
        if rng.chance(10) {
            let tree = TREES[rng.below(TREES.len())];
            assert_near(store.view(), &model, tree, &random_key(&mut rng, tree, 3000));
        }
        if rng.chance(1500) {
            assert_equal(store.view(), &model);
            assert_equal(store.reader().root().view(), &published);
            pinned.push((store.reader().root(), published.clone()));
            if pinned.len() > 3 {
                let (root, model) = pinned.remove(rng.below(pinned.len()));
                assert_equal(root.view(), &model);
            }
        }
        if rng.chance(4000) {
            pinned.clear();
            (stage, just_finished) = (Stage::Idle, false);
            drop(store);
            store = Store::open(options.clone()).unwrap();
            store.check().unwrap();
            assert_equal(store.view(), &durable);
            assert_eq!(store.view().counter(3), store.applied().0 * 2);
            (model, published) = (durable.clone(), durable.clone());
        }
    }
    store.publish();
    drop(stage);
    for (root, model) in pinned {
        assert_equal(root.view(), &model);
    }
}

#[test]
fn checkpoints_on_a_simulated_disk_equal_the_model() {
    run_model(&sim_options(&SimDisk::new()), 2, model_ops(30_000));
}

#[test]
fn checkpoints_through_a_map_equal_the_model() {
    let dir = TempDir::new("map");
    run_model(&dir.options(true), 3, model_ops(40_000));
}

#[test]
fn checkpoints_through_reads_equal_the_model() {
    let dir = TempDir::new("pread");
    run_model(&dir.options(false), 4, model_ops(20_000));
}

#[test]
fn pages_are_used_again_and_the_file_stays_small() {
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let mut sizes = Vec::new();
    for round in 0..60u64 {
        for n in 0..200u64 {
            store.insert(TreeId::Meta, &n.to_be_bytes(), &[round as u8; 100]).unwrap();
        }
        store.insert(TreeId::Meta, b"large", &vec![round as u8; 50_000]).unwrap();
        checkpoint(&mut store);
        store.check().unwrap();
        sizes.push(store.size_bytes());
    }
    assert_eq!(sizes[10..].iter().max(), sizes[10..].iter().min(), "the size has settled: {sizes:?}");
    // Three generations of 8 pages and 13 of the large value, and what is set aside.
    assert!(store.size_bytes() <= (6 + 3 * 22) * 4096 + 13 * 4096, "{} bytes", store.size_bytes());
    assert_eq!(store.dirty_bytes(), 0);
}

#[test]
fn a_pinned_root_stays_readable_across_many_checkpoints() {
    let dir = TempDir::new("pinned");
    let mut store = Store::open(dir.options(true)).unwrap();
    let put = |store: &mut Store, round: u64| {
        for n in 0..500u64 {
            let value = vec![round as u8; if n == 77 { 30_000 } else { 90 }];
            store.insert(TreeId::Meta, &n.to_be_bytes(), &value).unwrap();
        }
        checkpoint(store);
    };
    put(&mut store, 1);
    let root = store.reader().root();
    for round in 2..20 {
        put(&mut store, round);
    }
    let mut cursor = root.view().seek(TreeId::Meta, b"").unwrap();
    let mut entries = 0;
    while let Some(value) = cursor.value().unwrap() {
        assert!(value.iter().all(|b| *b == 1));
        entries += 1;
        cursor.next().unwrap();
    }
    assert_eq!(entries, 500);
    let pinned = store.size_bytes();
    drop(cursor);
    drop(root);
    for round in 20..40 {
        put(&mut store, round);
    }
    assert!(store.size_bytes() <= pinned, "the pages of the dropped root are used again");
}

#[test]
fn the_file_is_cut_and_grows_again_but_never_under_a_reader() {
    let dir = TempDir::new("cut");
    let mut store = Store::open(Options { compress: false, ..dir.options(true) }).unwrap();
    let fill = |store: &mut Store, byte: u8| {
        for n in 0..300u64 {
            store
                .insert(TreeId::Meta, &n.to_be_bytes(), &vec![byte; if n % 9 == 0 { 60_000 } else { 700 }])
                .unwrap();
        }
        checkpoint(store);
    };
    let remove = |store: &mut Store| {
        for n in 1..300u64 {
            assert!(store.remove(TreeId::Meta, &n.to_be_bytes()).unwrap());
        }
    };
    for round in 1..4 {
        fill(&mut store, round);
        let full = store.file_bytes();
        let root = store.reader().root();
        remove(&mut store);
        for _ in 0..5 {
            checkpoint(&mut store);
        }
        assert_eq!(store.file_bytes(), full, "a reader may need it all");
        let mut cursor = root.view().seek(TreeId::Meta, b"").unwrap();
        let mut entries = 0;
        while let Some(value) = cursor.value().unwrap() {
            assert!(value.iter().all(|b| *b == round));
            entries += 1;
            cursor.next().unwrap();
        }
        assert_eq!(entries, 300);
        drop(cursor);
        drop(root);
        for byte in 0..3 {
            // Written anew at the lowest free place.
            store.insert(TreeId::Meta, &[0; 8], &[byte; 60_000]).unwrap();
            checkpoint(&mut store);
        }
        let length = std::fs::metadata(dir.0.join("db")).unwrap().len();
        assert_eq!(length, store.file_bytes());
        assert!(length < 1 << 20 && full > 2 << 20, "{length} of {full} bytes are left");
        assert_eq!(store.view().get(TreeId::Meta, &[0; 8]).unwrap().unwrap().len(), 60_000);
        store.check().unwrap();
    }
    drop(store);
    Store::open(dir.options(true)).unwrap().check().unwrap();
}

#[test]
fn readers_on_other_threads_see_whole_batches() {
    let dir = TempDir::new("threads");
    let mut store = Store::open(dir.options(true)).unwrap();
    let reader = store.reader();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = 0;
            while !stop.load(order) {
                let root = reader.root();
                let mut cursor = root.view().seek(TreeId::Meta, b"").unwrap();
                let mut round = None;
                while let Some(value) = cursor.value().unwrap() {
                    assert_eq!(*round.get_or_insert(value[0]), value[0], "one batch");
                    cursor.next().unwrap();
                }
                seen += 1;
            }
            seen
        });
        for round in 0..60u8 {
            for n in 0..300u64 {
                store.insert(TreeId::Meta, &n.to_be_bytes(), &[round; 100]).unwrap();
            }
            store.publish();
            if round % 3 == 0 {
                let job = store.begin_checkpoint().unwrap();
                let done = scope.spawn(|| job.run().unwrap()).join().unwrap();
                store.finish_checkpoint(done).unwrap();
            }
        }
        stop.store(true, order);
        assert!(watch.join().unwrap() > 0);
    });
    store.check().unwrap();
}

#[test]
fn an_open_file_is_locked() {
    let dir = TempDir::new("lock");
    let store = Store::open(dir.options(true)).unwrap();
    let error = Store::open(dir.options(true)).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    drop(store);
    Store::open(dir.options(true)).unwrap();
}

#[test]
fn the_first_error_stops_the_store() {
    let disk = SimDisk::new();
    let mut store = Store::open(sim_options(&disk)).unwrap();
    store.insert(TreeId::Meta, b"a", b"1").unwrap();
    checkpoint(&mut store);
    store.insert(TreeId::Meta, b"a", b"2").unwrap();
    store.publish();
    let job = store.begin_checkpoint().unwrap();
    disk.fail_after(disk.op_count() + 1);
    assert!(matches!(job.run(), Err(StoreError::Io { .. })));
    disk.heal();
    assert!(store.begin_checkpoint().is_none());
    let error = store.insert(TreeId::Meta, b"a", b"3").unwrap_err();
    assert!(error.to_string().contains("simulated disk failure"), "{error}");
    assert_eq!(&store.view().get(TreeId::Meta, b"a").unwrap().unwrap()[..], b"2", "reads go on");
    drop(store);
    let store = Store::open(sim_options(&disk)).unwrap();
    assert_eq!(&store.view().get(TreeId::Meta, b"a").unwrap().unwrap()[..], b"1");
}

#[test]
fn checkpoint_info_tells_both_checkpoints() {
    let disk = SimDisk::new();
    let mut store = Store::open(sim_options(&disk)).unwrap();
    assert_eq!(store.checkpoint_info(), CheckpointInfo::default());
    store.set_applied(5, 1);
    checkpoint(&mut store);
    store.set_applied(9, 2);
    let info = CheckpointInfo { applied_index: 9, applied_term: 2, previous_applied_index: 5 };
    assert_eq!(checkpoint(&mut store), info);
    drop(store);
    let store = Store::open(sim_options(&disk)).unwrap();
    assert_eq!(store.checkpoint_info(), info);
    assert_eq!(store.reader().root().applied(), (9, 2));
}
