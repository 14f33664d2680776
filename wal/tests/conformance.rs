//! The format and the behaviour that every I/O path has in common.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, RealDisk};
use trilith_proto::raftpb::{self, EntryType};
use trilith_proto::walpb;
use trilith_wal::{EntryRef, IoChoice, Options, Ticket, Wal, WalError};

fn mark(index: u64, term: u64) -> walpb::Snapshot {
    let conf_state = raftpb::ConfState { voters: vec![3], auto_leave: Some(false), ..Default::default() };
    walpb::Snapshot { index: Some(index), term: Some(term), conf_state: Some(conf_state) }
}

fn append_run(wal: &mut Wal, from: u64, to: u64, len: usize) {
    for index in from..=to {
        let data = data_of(index, len);
        wal.append([entry(1, index, &data)], Some(&hard_state(1, 9, index - 1)), true);
    }
}

fn assert_run(entries: &[raftpb::Entry], from: u64, to: u64, len: usize) {
    assert_eq!(entries.iter().map(|e| e.index.unwrap()).collect::<Vec<_>>(), (from..=to).collect::<Vec<_>>());
    for entry in entries {
        assert_eq!(entry.data.as_deref().unwrap(), data_of(entry.index.unwrap(), len));
    }
}

#[test]
fn a_new_log_is_what_etcd_writes() {
    on_every_path(1 << 20, |options| {
        let (disk, dir) = (options.disk.clone(), options.dir.clone());
        assert!(!Wal::exists(&*disk, &dir));
        let wal = Wal::create(options.clone(), OWNER).unwrap();
        assert!(Wal::exists(&*disk, &dir));
        let records = parse_dir(&*disk, &dir).concat();
        let kinds: Vec<u64> = records.iter().map(|r| r.kind).collect();
        assert_eq!(kinds, [4, 1, 5, 4]);
        assert_eq!((records[0].crc, records[0].data.len()), (0, 0));
        assert_eq!(records[1].fields(), [(1, Ok(OWNER.node_id)), (2, Ok(OWNER.cluster_id))]);
        assert_eq!(records[2].data, [8, 0, 16, 0], "an empty mark has its zero fields");
        let name = segments(&*disk, &dir)[0].file_name().unwrap().to_owned();
        assert_eq!(name, "0000000000000000-0000000000000000.wal");
        assert!(matches!(Wal::create(options.clone(), OWNER), Err(WalError::Exists { .. })));
        drop(wal);
        let (_, replay) = Wal::open(options, 0).unwrap();
        assert_eq!((replay.metadata, replay.entries.len(), replay.snapshots.len()), (OWNER, 0, 1));
    });
}

#[test]
fn everything_comes_back() {
    on_every_path(1 << 20, |options| {
        let mut wal = Wal::create(options.clone(), OWNER).unwrap();
        let conf = EntryRef { kind: EntryType::EntryConfChange, term: 1, index: 1, data: b"conf" };
        let empty = entry(2, 2, b"");
        let first = wal.append([conf, empty], Some(&hard_state(2, 5, 1)), true);
        assert_eq!(first, Ticket(1));
        assert_eq!(wal.flush().unwrap(), first);
        append_run(&mut wal, 3, 40, 300);
        let ticket = wal.append_snapshot(&mark(40, 1));
        assert_eq!(wal.flush().unwrap(), ticket);
        assert!(wal.stats().syncs >= 2 && wal.stats().bytes_written.is_multiple_of(4096));
        drop(wal);
        let records = parse_dir(&*options.disk, &options.dir).concat();
        let entries: Vec<_> = records.iter().filter(|r| r.kind == 2).collect();
        let bytes = Err(b"conf".to_vec());
        assert_eq!(entries[0].fields(), [(1, Ok(1)), (2, Ok(1)), (3, Ok(1)), (4, bytes)]);
        assert_eq!(entries[1].fields(), [(1, Ok(0)), (2, Ok(2)), (3, Ok(2))], "zero fields, no empty data");
        let (mut wal, replay) = Wal::open(options.clone(), 2).unwrap();
        assert_run(&replay.entries, 3, 40, 300);
        assert_eq!(replay.hard_state, hard_state(1, 9, 39));
        assert_eq!(
            replay.snapshots,
            [walpb::Snapshot { index: Some(0), term: Some(0), conf_state: None }, mark(40, 1)]
        );
        append_run(&mut wal, 41, 50, 10);
        wal.flush().unwrap();
        drop(wal);
        parse_dir(&*options.disk, &options.dir);
        let (_, replay) = Wal::open(options, 40).unwrap();
        assert_run(&replay.entries, 41, 50, 10);
    });
}

#[test]
fn tickets_become_durable_in_order_and_without_flush() {
    on_every_path(1 << 20, |options| {
        let mut wal = Wal::create(options.clone(), OWNER).unwrap();
        let mut last = Ticket(0);
        for index in 1..=200u64 {
            let data = data_of(index, 100);
            let ticket = wal.append([entry(1, index, &data)], None, true);
            assert!(ticket >= last);
            last = ticket;
            assert!(wal.poll().unwrap() <= ticket);
        }
        while wal.poll().unwrap() < last {
            let fd = wal.event_fd().expect("a simulated disk is through at once");
            let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
        }
        drop(wal);
        assert_run(&Wal::open(options, 0).unwrap().1.entries, 1, 200, 100);
    });
}

#[test]
fn a_commit_alone_rides_along() {
    on_every_path(1 << 20, |options| {
        let mut wal = Wal::create(options.clone(), OWNER).unwrap();
        wal.append([entry(1, 1, b"x")], Some(&hard_state(1, 1, 0)), true);
        wal.flush().unwrap();
        let syncs = wal.stats().syncs;
        let ticket = wal.append([], Some(&hard_state(1, 1, 1)), false);
        assert_eq!(ticket, Ticket(2));
        assert_eq!(wal.poll().unwrap(), Ticket(1));
        assert_eq!(wal.stats().syncs, syncs, "it causes no batch");
        let same = wal.append([entry(1, 2, b"y")], None, true);
        assert_eq!(same, ticket);
        wal.flush().unwrap();
        wal.append([], Some(&hard_state(1, 1, 2)), false);
        wal.flush().unwrap();
        drop(wal);
        let records = parse_dir(&*options.disk, &options.dir).concat();
        let states: Vec<_> =
            records.iter().filter(|r| r.kind == 3).map(|r| r.fields()[2].1.clone()).collect();
        assert_eq!(states, [Ok(0), Ok(1), Ok(2)]);
    });
}

#[test]
fn segments_are_cut_and_chained() {
    on_every_path(64 << 10, |options| {
        let mut wal = Wal::create(options.clone(), OWNER).unwrap();
        append_run(&mut wal, 1, 300, 1000);
        wal.flush().unwrap();
        // One record that is larger than a segment, then small ones.
        append_run(&mut wal, 301, 301, 200_000);
        append_run(&mut wal, 302, 310, 1000);
        wal.flush().unwrap();
        drop(wal);
        let by_segment = parse_dir(&*options.disk, &options.dir);
        let names = segments(&*options.disk, &options.dir);
        assert!(names.len() > 5);
        let mut next = 1;
        for (i, (records, path)) in by_segment.iter().zip(&names).enumerate() {
            let kinds: Vec<u64> = records.iter().map(|r| r.kind).take(3).collect();
            assert_eq!(kinds, if i == 0 { [4, 1, 5] } else { [4, 1, 3] });
            let first = if i == 0 { 0 } else { next };
            let name = format!("{i:016x}-{first:016x}.wal");
            assert_eq!(path.file_name().unwrap().to_str().unwrap(), name);
            next += records.iter().filter(|r| r.kind == 2).count() as u64;
        }
        let (mut wal, replay) = Wal::open(options.clone(), 100).unwrap();
        assert_run(&replay.entries[..200], 101, 300, 1000);
        assert_run(&replay.entries[200..201], 301, 301, 200_000);
        assert_run(&replay.entries[201..], 302, 310, 1000);
        append_run(&mut wal, 311, 400, 1000);
        wal.flush().unwrap();
        drop(wal);
        parse_dir(&*options.disk, &options.dir);
        assert_run(&Wal::open(options, 305).unwrap().1.entries, 306, 400, 1000);
    });
}

#[test]
fn released_segments_are_recycled() {
    on_every_path(64 << 10, |options| {
        let options = Options { max_segments: 3, ..options };
        let mut wal = Wal::create(options.clone(), OWNER).unwrap();
        for round in 0..20 {
            append_run(&mut wal, round * 50 + 1, round * 50 + 50, 1000);
            wal.flush().unwrap();
            wal.release_to(round * 50 + 40).unwrap();
        }
        drop(wal);
        let names = segments(&*options.disk, &options.dir);
        assert!(names.len() <= 3, "{names:?}");
        assert!(!names[0].ends_with("0000000000000000-0000000000000000.wal"));
        let (mut wal, replay) = Wal::open(options.clone(), 990).unwrap();
        assert_run(&replay.entries, 991, 1000, 1000);
        append_run(&mut wal, 1001, 1200, 1000);
        wal.flush().unwrap();
        drop(wal);
        parse_dir(&*options.disk, &options.dir);
        match Wal::open(options.clone(), 5) {
            Err(WalError::Missing { .. }) => {}
            other => panic!("entries after 5 are gone: {other:?}"),
        }
        assert_run(&Wal::open(options, 990).unwrap().1.entries, 991, 1200, 1000);
    });
}

#[test]
fn a_conflict_overwrites_the_tail_and_a_gap_is_an_error() {
    let options = sim_options(&SimDisk::new(), 1 << 20);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    append_run(&mut wal, 1, 10, 50);
    wal.append([entry(2, 6, b"six"), entry(2, 7, b"seven")], None, true);
    wal.flush().unwrap();
    drop(wal);
    let (mut wal, replay) = Wal::open(options.clone(), 3).unwrap();
    let found: Vec<_> = replay.entries.iter().map(|e| (e.term.unwrap(), e.index.unwrap())).collect();
    assert_eq!(found, [(1, 4), (1, 5), (2, 6), (2, 7)]);
    wal.append([entry(2, 9, b"nine")], None, true);
    wal.flush().unwrap();
    drop(wal);
    let error = Wal::open(options.clone(), 3).unwrap_err();
    assert!(matches!(error, WalError::Gap { last: 7, found: 9, .. }), "{error}");
    assert!(Wal::open(options, 8).is_ok(), "a state at 8 bridges the gap");
}

#[test]
fn another_owner_is_an_error() {
    let disk = SimDisk::new();
    let options = sim_options(&disk, 64 << 10);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    append_run(&mut wal, 1, 100, 1000);
    wal.flush().unwrap();
    drop(wal);
    // The same log by another owner; its second segment is put in place of ours.
    let other = Options { dir: "other/wal".into(), ..options.clone() };
    let owner = trilith_wal::Metadata { node_id: OWNER.node_id + 1, ..OWNER };
    let mut wal = Wal::create(other.clone(), owner).unwrap();
    append_run(&mut wal, 1, 100, 1000);
    wal.flush().unwrap();
    drop(wal);
    let (ours, theirs) = (segments(&disk, &options.dir), segments(&disk, &other.dir));
    let first = ours[1].file_name().unwrap();
    assert_eq!(first, theirs[1].file_name().unwrap());
    disk.rename(&theirs[1], &ours[1]).unwrap();
    assert!(Wal::open(options, 0).is_err());
}

#[test]
fn a_second_process_is_refused() {
    let folder = Folder::new();
    let options = Options {
        dir: folder.0.join("wal"),
        disk: std::sync::Arc::new(RealDisk),
        ..sim_options(&SimDisk::new(), 1 << 20)
    };
    let wal = Wal::create(options.clone(), OWNER).unwrap();
    let error = Wal::open(options.clone(), 0).unwrap_err();
    assert!(matches!(error, WalError::Locked { .. }), "{error}");
    drop(wal);
    Wal::open(options, 0).unwrap();
}

#[test]
fn a_simulated_disk_has_no_ring() {
    let options = Options { io: IoChoice::Uring, ..sim_options(&SimDisk::new(), 1 << 20) };
    let error = Wal::create(options, OWNER).unwrap_err();
    assert!(matches!(error, WalError::NoUring { .. }), "{error}");
}

#[test]
fn a_failing_disk_stops_the_log() {
    let disk = SimDisk::new();
    let options = sim_options(&disk, 1 << 20);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    append_run(&mut wal, 1, 3, 50);
    wal.flush().unwrap();
    disk.fail_after(disk.op_count());
    append_run(&mut wal, 4, 5, 50);
    assert!(matches!(wal.poll(), Err(WalError::Io { .. })));
    disk.heal();
    assert!(matches!(wal.poll(), Err(WalError::Stopped(_))), "a sync is never tried again");
    assert!(wal.flush().is_err() && wal.release_to(1).is_err());
    drop(wal);
    assert_run(&Wal::open(options, 0).unwrap().1.entries, 1, 3, 50);
}

#[test]
fn a_large_first_segment_is_zeroed_ahead_of_the_writer() {
    on_every_path(12 << 20, |options| {
        // Only a part of it is zeroed when it is made; a start goes on where the last one stopped.
        drop(Wal::create(options.clone(), OWNER).unwrap());
        let (mut wal, _) = Wal::open(options.clone(), 0).unwrap();
        for index in 1..=10 {
            let data = data_of(index, 1 << 20);
            wal.append([entry(1, index, &data)], None, true);
        }
        wal.flush().unwrap();
        drop(wal);
        assert_run(&Wal::open(options, 0).unwrap().1.entries, 1, 10, 1 << 20);
    });
}
