//! A disk without room: what would take space is refused, the rest is served, and all is well again when there is room.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Bed, config, decode, delete, get_range, op_delete, op_put, op_txn, put, text, txn};
use trilith_disk::sim::{SimDisk, Survivors};
use trilith_proto::etcdserverpb as pb;
use trilith_server::core::Config;
use trilith_server::service;
use trilith_server::status;

fn errors(bed: &mut Bed) -> Vec<String> {
    let handle = bed.handle.clone();
    let call = async move { service::maintenance::status(&handle, pb::StatusRequest {}).await };
    decode::<pb::StatusResponse>(bed.run(call).unwrap()).errors
}

/// Writes until the disk has no room for the store, which is noticed by a checkpoint; how many keys.
fn fill(bed: &mut Bed) -> usize {
    bed.disk.set_limit(Some(bed.disk.used() + (64 << 10)));
    for n in 0..2000 {
        let full = bed.handle.is_disk_full();
        match bed.try_put(put(&format!("k{n:04}"), &"v".repeat(2000))) {
            Ok(_) => assert!(!full),
            Err(error) => {
                assert_eq!((error, full), (status::NO_SPACE, true));
                return n;
            }
        }
        bed.now += Duration::from_millis(1);
    }
    panic!("the disk took everything");
}

/// Segments that hold the whole test, and values that take their space: this one is on the store.
fn roomy(disk: &SimDisk) -> Config {
    Config {
        wal_segment_bytes: 8 << 20,
        checkpoint_log_bytes: 100 << 10,
        compress_values: false,
        ..config(disk)
    }
}

fn count(bed: &mut Bed) -> usize {
    bed.range(get_range("k", "l")).unwrap().kvs.len()
}

#[test]
fn a_full_store_refuses_what_takes_space_and_recovers_by_itself() {
    let disk = SimDisk::new();
    let mut bed = Bed::with(roomy(&disk), disk.clone()).unwrap();
    bed.grant(7, 60).unwrap();
    let keys = fill(&mut bed);
    assert!(keys > 10);
    assert_eq!(errors(&mut bed), ["trilith: no space left on the disk"]);
    for _ in 0..3 {
        bed.pass(Duration::from_secs(5));
        assert_eq!(bed.try_put(put("k0000", "x")).unwrap_err(), status::NO_SPACE);
        assert_eq!(bed.grant(8, 60).unwrap_err(), status::NO_SPACE);
        let nested = op_txn(vec![], vec![op_put("a", "b")]);
        assert_eq!(bed.txn(txn(vec![nested], vec![])).unwrap_err(), status::NO_SPACE);
        assert_eq!(count(&mut bed), keys, "reads are served");
        assert_eq!(bed.keep_alive(7).ttl, 60);
    }
    bed.delete(delete("k0000", "")).unwrap();
    bed.txn(txn(vec![op_delete("k0001", "")], vec![])).unwrap();
    bed.revoke(7).unwrap();
    let revision = bed.revision();
    bed.compact(revision, false).unwrap();
    bed.disk.set_limit(None);
    bed.pass(Duration::from_secs(9));
    assert_eq!(errors(&mut bed), [""; 0]);
    bed.put("k0000", "again");
    assert_eq!(count(&mut bed), keys - 1);
    let cut = bed.disk.crash(bed.disk.op_count(), Survivors::None);
    drop(bed);
    let mut bed = Bed::with(roomy(&cut), cut.clone()).unwrap();
    assert_eq!(count(&mut bed), keys - 1);
    let first = &bed.range(get_range("k0000", "k0001")).unwrap().kvs[0];
    assert_eq!(text(&first.value), "again");
}

#[test]
fn every_cut_of_a_run_with_a_full_disk_keeps_what_was_acknowledged() {
    let disk = SimDisk::new();
    let mut bed = Bed::with(roomy(&disk), disk.clone()).unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let from = disk.op_count();
        disk.set_limit(Some(disk.used() + (32 << 10)));
        for n in 0..1500 {
            if bed.try_put(put(&format!("k{round}-{n:04}"), &"v".repeat(2000))).is_err() {
                break;
            }
            acknowledged.push(disk.op_count());
            bed.now += Duration::from_millis(1);
        }
        assert!(disk.op_count() > from, "round {round}");
        assert!(bed.handle.is_disk_full(), "round {round}: the disk took everything");
        disk.set_limit(None);
        bed.pass(Duration::from_secs(9));
        assert!(!bed.handle.is_disk_full());
    }
    let step = disk.op_count() / 60;
    for cut in (0..=disk.op_count()).step_by(step.max(1)) {
        let least = acknowledged.iter().filter(|ops| **ops <= cut).count();
        let cut_disk = disk.crash(cut, Survivors::Random(cut as u64));
        let mut bed = Bed::with(roomy(&cut_disk), cut_disk.clone()).unwrap();
        let found = count(&mut bed);
        assert!(found >= least, "cut at {cut}: {found} of {least}");
    }
}

#[test]
fn a_member_that_ends_on_a_full_disk_starts_again() {
    let disk = SimDisk::new();
    let mut bed = Bed::with(roomy(&disk), disk.clone()).unwrap();
    let keys = fill(&mut bed);
    bed.core.close(bed.now).unwrap();
    let job = bed.core.begin_last_checkpoint().expect("something is not in a checkpoint");
    bed.core.checkpoint_finished(job.run()).unwrap();
    bed.core.flush().unwrap();
    drop(bed);
    disk.set_limit(None);
    let mut bed = Bed::with(roomy(&disk), disk.clone()).unwrap();
    assert_eq!(count(&mut bed), keys);
    bed.put("k", "v");
}

/// What was proposed does not fit into the log any more: the end is one in order all the same, with a last checkpoint, and
/// nothing that was acknowledged is lost.
#[test]
fn a_member_that_ends_with_a_full_log_writes_its_last_checkpoint() {
    let disk = SimDisk::new();
    let small = || Config { wal_segment_bytes: 64 << 10, ..config(&disk) };
    let mut bed = Bed::with(small(), disk.clone()).unwrap();
    bed.put("k-acknowledged", "v");
    disk.set_limit(Some(disk.used() + (8 << 10)));
    let value = "v".repeat(50_000);
    let mut calls: Vec<_> =
        (0..20).map(|n| Box::pin(service::kv::put(&bed.handle, put(&format!("k{n}"), &value)))).collect();
    calls.retain_mut(|call| bed.poll(call.as_mut()).is_none());
    for _ in 0..20 {
        bed.step().unwrap();
    }
    let before = calls.len();
    calls.retain_mut(|call| bed.poll(call.as_mut()).is_none());
    let acknowledged = before - calls.len();
    assert!(!calls.is_empty(), "the log took everything");
    bed.core.close(bed.now).unwrap();
    disk.set_limit(None);
    let job = bed.core.begin_last_checkpoint().expect("something is not in a checkpoint");
    bed.core.checkpoint_finished(job.run()).unwrap();
    bed.core.flush().unwrap();
    let cut = disk.crash(disk.op_count(), Survivors::None);
    drop((calls, bed));
    let mut bed = Bed::with(Config { wal_segment_bytes: 64 << 10, ..config(&cut) }, cut.clone()).unwrap();
    assert!(count(&mut bed) > acknowledged);
    assert_eq!(bed.get("k-acknowledged").unwrap(), "v");
}

/// A checkpoint is slow and writers are fast: they wait, and memory stays within the budget.
#[test]
fn proposals_wait_for_the_memory_that_a_checkpoint_frees() {
    let disk = SimDisk::new();
    let budget = 16 << 20;
    let config = Config { memory_budget: budget, checkpoint_log_bytes: 1 << 20, ..config(&disk) };
    let mut bed = Bed::with(config, disk).unwrap();
    let (mut job, mut pending, mut acknowledged) = (None, Vec::new(), 0);
    bed.put("small", "x");
    let started = bed.now;
    for n in 0..200u32 {
        let value = "v".repeat(100_000);
        let mut call = Box::pin(service::kv::put(&bed.handle, put(&format!("k{n:03}"), &value)));
        assert!(bed.poll(call.as_mut()).is_none());
        pending.push(call);
        for _ in 0..4 {
            bed.core.step(bed.now).unwrap();
            job = job.or_else(|| bed.core.begin_checkpoint());
        }
        pending.retain_mut(|call| bed.poll(call.as_mut()).is_none());
        acknowledged = n + 1 - pending.len() as u32;
        bed.now += Duration::from_millis(1);
    }
    assert!(job.is_some() && (50..190).contains(&acknowledged), "{acknowledged} went through");
    // Reads do not wait.
    let handle = bed.handle.clone();
    let call = service::kv::range(&handle, common::get("small"));
    let mut call = std::pin::pin!(call);
    let read = (0..10_000).find_map(|_| {
        bed.core.step(bed.now).unwrap();
        bed.poll(call.as_mut())
    });
    assert!(matches!(read, Some(Ok(_))));
    bed.core.checkpoint_finished(job.take().unwrap().run()).unwrap();
    for mut call in pending {
        bed.run(call.as_mut()).unwrap();
    }
    assert!(bed.now - started < Duration::from_secs(5), "nobody waited for his time to be up");
}
