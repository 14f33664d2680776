//! What the store takes in memory: counted for all nodes and values, and given back.

use trilith_disk::sim::SimDisk;

use super::durable::checkpoint;
use super::model::*;
use super::rng::Rng;
use crate::{Options, Store, TreeId};

const KIB: usize = 1 << 10;

#[test]
fn memory_is_given_back_when_nobody_holds_it() {
    let mut rng = Rng(seed(30));
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    let mut model = Model::new();
    for round in 0..40 {
        let root = store.reader().root();
        for _ in 0..300 {
            change(&mut rng, &mut store, &mut model, 1500, true);
        }
        assert!(store.memory_bytes() >= store.dirty_bytes());
        store.publish();
        let job = store.begin_checkpoint().unwrap();
        assert_eq!(store.memory_since_checkpoint(), Some(0));
        for _ in 0..30 {
            change(&mut rng, &mut store, &mut model, 1500, true);
        }
        store.publish();
        assert!(store.memory_since_checkpoint() > Some(0));
        let done = job.run().unwrap();
        store.finish_checkpoint(done).unwrap();
        assert_eq!(store.memory_since_checkpoint(), None);
        drop(root);
        if round % 4 == 3 {
            // The second one frees what the first one wrote.
            checkpoint(&mut store);
            checkpoint(&mut store);
            assert_eq!((store.dirty_bytes(), store.memory_bytes()), (0, 0), "round {round}");
        }
    }
}

#[test]
fn memory_that_an_old_root_holds_is_counted() {
    let mut store = Store::open(sim_options(&SimDisk::new())).unwrap();
    for n in 0..2000u64 {
        store.insert(TreeId::Meta, &n.to_be_bytes(), &[1; 100]).unwrap();
    }
    store.publish();
    let root = store.reader().root();
    for _ in 0..3 {
        checkpoint(&mut store);
    }
    assert!(store.dirty_bytes() == 0 && store.memory_bytes() > 200 * KIB, "{}", store.memory_bytes());
    drop(root);
    assert_eq!(store.memory_bytes(), 0);
}

/// A store many times larger than what it may hold in memory is written and read: neither nodes nor cache grow
/// beyond their share, if checkpoints are begun when they are due and the writer waits for them when told to.
#[test]
fn a_store_ten_times_the_budget_is_served_within_it() {
    let mut rng = Rng(seed(31));
    let budget = 4096 * KIB;
    let disk = SimDisk::new();
    let options = Options { dirty_bytes_max: budget / 4, ..sim_options(&disk) };
    let mut store = Store::open(options).unwrap();
    let (mut most, mut job) = (0, None);
    let keys = 10 * budget as u64 / 450;
    for n in 0..keys {
        // Half of them in order, half anywhere.
        let key = if n % 2 == 0 { n } else { rng.next() | 1 };
        store.insert(TreeId::Meta, &key.to_be_bytes(), &[n as u8; 480]).unwrap();
        if n % 20 == 0 {
            store.publish();
        }
        if job.is_none() && store.checkpoint_due() {
            store.publish();
            job = store.begin_checkpoint();
        }
        most = most.max(store.memory_bytes());
        let waits =
            store.memory_bytes() >= budget / 4 * 3 && store.memory_since_checkpoint() >= Some(budget / 4);
        // The disk is slow: a checkpoint lasts until the writer has to wait for it.
        if waits && let Some(job) = job.take() {
            let done = job.run().unwrap();
            store.finish_checkpoint(done).unwrap();
        }
    }
    assert!(most < budget, "{most} bytes of {budget}");
    if let Some(job) = job.take() {
        store.finish_checkpoint(job.run().unwrap()).unwrap();
    }
    checkpoint(&mut store);
    assert!(store.size_in_use_bytes() > 10 * budget as u64, "{}", store.size_in_use_bytes());
    let root = store.reader().root();
    let mut cursor = root.view().seek(TreeId::Meta, b"").unwrap();
    let mut entries = 0;
    while let Some(value) = cursor.value().unwrap() {
        assert_eq!(value.len(), 480);
        entries += 1;
        cursor.next().unwrap();
    }
    assert_eq!(entries, keys);
    assert!(store.cached_bytes() <= budget / 4 + 64 * KIB, "{}", store.cached_bytes());
}
