//! Compaction beside puts: what is removed, when a physical one answers, and how little at a time is done where the machine
//! is slow.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::pin::pin;
use std::time::Duration;

use common::{Bed, config, decode};
use trilith_disk::sim::SimDisk;
use trilith_proto::etcdserverpb as pb;
use trilith_server::core::{Config, Retention};
use trilith_server::service;

/// Revisions of the keys in tree `Key`.
fn history(bed: &Bed) -> Vec<(i64, String)> {
    let root = bed.handle.root();
    let changes = root.view().changes(0, i64::MAX).unwrap();
    let changes = changes.map(|change| change.unwrap());
    changes.map(|change| (change.revision.main, String::from_utf8(change.key.to_vec()).unwrap())).collect()
}

fn finished(bed: &Bed) -> i64 {
    bed.handle.root().view().finished_compaction().unwrap()
}

/// Puts so many revisions over 50 keys.
fn load(bed: &mut Bed, revisions: usize) -> i64 {
    for i in 0..revisions {
        bed.put(&format!("key{}", i % 50), "value");
    }
    bed.revision()
}

/// What stays of such a history after a compaction to a revision that is none of a tombstone.
fn kept(before: &[(i64, String)], revision: i64) -> Vec<(i64, String)> {
    let newer = |at: i64, key: &str| before.iter().any(|(r, k)| *r > at && *r <= revision && k == key);
    before.iter().filter(|(at, key)| *at > revision || !newer(*at, key)).cloned().collect()
}

#[test]
fn c3_a_physical_compaction_under_load_answers_when_all_is_removed() {
    let mut bed = Bed::new();
    // A machine on which a slice of any size takes ten milliseconds.
    bed.slice = Duration::from_millis(10);
    let revision = load(&mut bed, 2000);
    let before = history(&bed);
    let request = pb::CompactionRequest { revision, physical: true };
    let handle = bed.handle.clone();
    let mut call = pin!(service::kv::compact(&handle, request));
    let (mut sizes, mut puts) = (Vec::new(), 0);
    let answer = loop {
        if let Some(answer) = bed.poll(call.as_mut()) {
            break answer;
        }
        assert!(finished(&bed) < revision, "it is not over");
        let size = history(&bed).len();
        bed.put("other", "value");
        puts += 1;
        sizes.push(size + 1 - history(&bed).len());
        bed.now += Duration::from_millis(10);
        assert!(puts < 10_000, "the compaction does not end");
    };
    let header = decode::<pb::CompactionResponse>(answer.unwrap()).header.unwrap();
    assert_eq!((header.revision, finished(&bed)), (revision, revision));
    let found: Vec<_> = history(&bed).into_iter().filter(|(_, key)| key != "other").collect();
    assert_eq!(found, kept(&before, revision));
    // The first slices are as large as they are before anything was measured; then they shrink.
    assert!(sizes.len() > 20, "{sizes:?}");
    assert!(sizes[sizes.len() / 2..].iter().all(|size| *size <= 100), "{sizes:?}");
    // Between two slices that took 10 ms the callers have the core for a multiple of that.
    let pauses = sizes.iter().filter(|size| **size == 0).count();
    assert!(pauses > sizes.len() / 2, "{sizes:?}");
}

#[test]
fn compactions_that_follow_each_other_are_each_brought_to_an_end() {
    let mut bed = Bed::new();
    load(&mut bed, 1000);
    let before = history(&bed);
    let handle = bed.handle.clone();
    let mut calls: Vec<_> = [300, 600, 900]
        .into_iter()
        .map(|revision| {
            let request = pb::CompactionRequest { revision, physical: true };
            Box::pin(service::kv::compact(&handle, request))
        })
        .collect();
    for call in &mut calls {
        // Proposed, and not waited for.
        assert!(bed.poll(call.as_mut()).is_none());
    }
    for (call, revision) in calls.iter_mut().zip([300, 600, 900]) {
        let answer = loop {
            if let Some(answer) = bed.poll(call.as_mut()) {
                break answer;
            }
            bed.now += Duration::from_millis(1);
            bed.step().unwrap();
        };
        decode::<pb::CompactionResponse>(answer.unwrap());
        assert!(finished(&bed) >= revision);
    }
    assert_eq!(finished(&bed), 900);
    assert_eq!(history(&bed), kept(&before, 900));
}

#[test]
fn a_compaction_cut_at_any_slice_goes_on_after_a_restart() {
    for slices in [0, 1, 2, 5, 9] {
        let mut bed = Bed::new();
        bed.slice = Duration::from_millis(10);
        let revision = load(&mut bed, 1500);
        let before = history(&bed);
        bed.compact(revision, false).unwrap();
        for _ in 0..slices {
            bed.now += Duration::from_millis(200);
            bed.step().unwrap();
        }
        // In order, so that a checkpoint holds the half of it; then without.
        let mut bed = bed.restart().kill();
        for _ in 0..1000 {
            bed.now += Duration::from_millis(200);
            bed.step().unwrap();
        }
        assert_eq!(finished(&bed), revision, "after {slices} slices");
        assert_eq!(history(&bed), kept(&before, revision), "after {slices} slices");
    }
}

/// C7: the history gets short without anybody asking for it.
#[test]
fn c7_a_member_compacts_by_itself() {
    let disk = SimDisk::new();
    let by = |retention| Config { retention, ..config(&disk.clone()) };
    let mut bed = Bed::with(by(Retention::Revisions(100)), disk.clone()).unwrap();
    let revision = load(&mut bed, 300);
    bed.pass(Duration::from_secs(299));
    assert_eq!(finished(&bed), -1);
    bed.pass(Duration::from_secs(10));
    assert_eq!((finished(&bed), bed.revision()), (revision - 100, revision));
    assert_eq!(history(&bed).first().unwrap().0, revision - 149);
    drop(bed);
    let disk = SimDisk::new();
    let config = Config { retention: Retention::Period(Duration::from_secs(100)), ..config(&disk) };
    let mut bed = Bed::with(config, disk).unwrap();
    let old = load(&mut bed, 200);
    bed.pass(Duration::from_secs(50));
    load(&mut bed, 20);
    bed.pass(Duration::from_secs(60));
    // What it saw when it began: there was nothing.
    assert!(finished(&bed) <= 1, "{}", finished(&bed));
    bed.pass(Duration::from_secs(100));
    assert!((old..=old + 20).contains(&finished(&bed)), "{}", finished(&bed));
}
