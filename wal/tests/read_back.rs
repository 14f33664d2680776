//! Entries read back from a log that goes on, and logs that go on behind a snapshot.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use trilith_disk::Disk;
use trilith_disk::sim::{SimDisk, Survivors};
use trilith_proto::walpb;
use trilith_wal::{Wal, WalError};

const SEGMENT_BYTES: u64 = 64 << 10;

fn append(wal: &mut Wal, term: u64, index: u64, len: usize) {
    let data = data_of(index + 1000 * term, len);
    wal.append([entry(term, index, &data)], Some(&hard_state(term, 1, index.saturating_sub(1))), true);
    wal.poll().unwrap();
}

fn read(wal: &Wal, from: u64, to: u64, terms: &[(u64, u64)], bytes: usize) -> Vec<(u64, u64)> {
    let found = wal.entry_reader(from, to, terms.to_vec(), bytes).unwrap().run().unwrap();
    for entry in &found {
        let data = entry.data.as_deref().unwrap();
        assert!(data == data_of(entry.index.unwrap() + 1000 * entry.term.unwrap(), data.len()));
    }
    found.iter().map(|entry| (entry.index.unwrap(), entry.term.unwrap())).collect()
}

#[test]
fn any_range_comes_back_from_a_log_of_several_segments() {
    let disk = SimDisk::new();
    let mut wal = Wal::create(sim_options(&disk, SEGMENT_BYTES), OWNER).unwrap();
    for index in 1..=100 {
        append(&mut wal, 1, index, 3000);
    }
    wal.flush().unwrap();
    assert!(disk.list(&sim_options(&disk, SEGMENT_BYTES).dir).unwrap().len() > 4);
    for (from, to) in [(1, 2), (1, 101), (50, 60), (100, 101)] {
        let expected: Vec<_> = (from..to).map(|index| (index, 1)).collect();
        assert_eq!(read(&wal, from, to, &[(1, 1)], usize::MAX), expected, "{from}..{to}");
    }
    assert_eq!(read(&wal, 7, 90, &[(1, 1)], 9000), [(7, 1), (8, 1), (9, 1)], "bounded by bytes");
    assert_eq!(read(&wal, 7, 90, &[(1, 1)], 1), [(7, 1)], "but one always comes");
    wal.release_to(60).unwrap();
    assert!(wal.entry_reader(1, 5, vec![(1, 1)], 1).is_none(), "given up");
    assert_eq!(read(&wal, 61, 63, &[(1, 1)], usize::MAX), [(61, 1), (62, 1)]);
    let error = wal.entry_reader(101, 102, vec![(1, 1)], 1).unwrap().run().unwrap_err();
    assert!(matches!(&error, WalError::Missing { .. }) && error.to_string().contains("101"), "{error}");
}

#[test]
fn what_a_later_leader_replaced_never_comes_back() {
    let disk = SimDisk::new();
    let mut wal = Wal::create(sim_options(&disk, SEGMENT_BYTES), OWNER).unwrap();
    for (term, from, to) in [(1, 1, 20), (2, 11, 40), (3, 15, 30)] {
        for index in from..=to {
            append(&mut wal, term, index, 2000);
        }
    }
    wal.flush().unwrap();
    let terms = [(1, 1), (11, 2), (15, 3)];
    let expected: Vec<_> =
        (1..=30).map(|index| (index, [1, 2, 3][terms.partition_point(|t| t.0 <= index) - 1])).collect();
    assert_eq!(read(&wal, 1, 31, &terms, usize::MAX), expected);
    assert_eq!(read(&wal, 12, 31, &terms, 1), [(12, 2)]);
}

#[test]
fn damage_is_an_error_and_no_entry() {
    let disk = SimDisk::new();
    let options = sim_options(&disk, SEGMENT_BYTES);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    for index in 1..=5 {
        append(&mut wal, 1, index, 3000);
    }
    wal.flush().unwrap();
    let path = segments(&disk, &options.dir).remove(0);
    let records = parse_dir(&disk, &options.dir);
    let second = records[0].iter().find(|record| record.kind == 2 && record.index() == 2).unwrap();
    disk.corrupt(&path, second.at as u64 + 100, 0x10).unwrap();
    assert_eq!(read(&wal, 1, 2, &[(1, 1)], 1), [(1, 1)], "before the damage");
    let error = wal.entry_reader(3, 4, vec![(1, 1)], 1).unwrap().run().unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

fn mark(index: u64, term: u64) -> walpb::Snapshot {
    walpb::Snapshot { index: Some(index), term: Some(term), conf_state: None }
}

/// A member gets a snapshot beyond its log, within it, or at its end: what it held before is void. It goes on behind.
#[test]
fn a_log_goes_on_behind_a_snapshot() {
    for (last, installed) in [(10, 30), (40, 30), (30, 30)] {
        let disk = SimDisk::new();
        let options = sim_options(&disk, SEGMENT_BYTES);
        let mut wal = Wal::create(options.clone(), OWNER).unwrap();
        for index in 1..=last {
            append(&mut wal, 1, index, 1000);
        }
        wal.append_snapshot(&mark(installed, 2));
        wal.append([], Some(&hard_state(2, 0, installed)), true);
        wal.flush().unwrap();
        let after_mark = disk.op_count();
        for index in installed + 1..=installed + 3 {
            append(&mut wal, 2, index, 1000);
        }
        wal.flush().unwrap();
        let terms = |ops: usize, after: u64| {
            let disk = disk.crash(ops, Survivors::None);
            let (_, replay) = Wal::open(sim_options(&disk, SEGMENT_BYTES), after).unwrap();
            assert!(after > installed || replay.snapshots.iter().any(|mark| mark.index == Some(installed)));
            let entries: Vec<_> =
                replay.entries.iter().map(|e| (e.index.unwrap(), e.term.unwrap())).collect();
            (entries, replay.last_index)
        };
        // The store may be that of before, that of the snapshot, or the log is opened one before it.
        for after in [5, installed - 1, installed] {
            let context = format!("{last} entries, snapshot {installed}, opened at {after}");
            assert_eq!(terms(after_mark, after), (vec![], installed), "{context}");
            let (entries, end) = terms(disk.op_count(), after);
            let expected: Vec<_> = (installed + 1..=installed + 3).map(|index| (index, 2)).collect();
            assert_eq!((entries, end), (expected, installed + 3), "{context}");
        }
        assert_eq!(terms(disk.op_count(), installed + 2).0, [(installed + 3, 2)]);
    }
}

#[test]
fn a_checkpoints_mark_leaves_the_entries_alone() {
    let disk = SimDisk::new();
    let mut wal = Wal::create(sim_options(&disk, SEGMENT_BYTES), OWNER).unwrap();
    for index in 1..=10 {
        append(&mut wal, 1, index, 100);
    }
    wal.append_snapshot(&mark(7, 1));
    append(&mut wal, 1, 11, 100);
    wal.flush().unwrap();
    drop(wal);
    for after in 0..=10 {
        let disk = disk.fork();
        let (_, replay) = Wal::open(sim_options(&disk, SEGMENT_BYTES), after).unwrap();
        let indexes: Vec<_> = replay.entries.iter().map(|entry| entry.index.unwrap()).collect();
        assert_eq!(indexes, (after + 1..=11).collect::<Vec<_>>());
    }
}

#[test]
fn a_log_opens_with_what_it_has_of_the_past() {
    let disk = SimDisk::new();
    let mut wal = Wal::create(sim_options(&disk, SEGMENT_BYTES), OWNER).unwrap();
    for (term, from, to) in [(1, 1, 60), (4, 51, 100)] {
        for index in from..=to {
            append(&mut wal, term, index, 3000);
        }
    }
    wal.flush().unwrap();
    drop(wal);
    for (after, history) in [(90, 0), (90, 60), (90, 1000), (100, 70), (3, 0)] {
        let options = sim_options(&disk.fork(), SEGMENT_BYTES);
        let (wal, replay) = Wal::open_with_history(options, after, history).unwrap();
        assert_eq!(replay.entries.len() as u64, 100 - after);
        let first = replay.earlier.first().map_or(after + 1, |(first, _)| *first);
        assert!(first <= (after - history.min(after)).max(1), "{after} {history}: from {first}");
        let terms: Vec<_> = [(first, 1), (51, 4)].into_iter().filter(|t| t.0 <= after).collect();
        assert_eq!(replay.earlier, if first > 51 { vec![(first, 4)] } else { terms });
        let expected: Vec<_> = (first..=after).map(|index| (index, if index > 50 { 4 } else { 1 })).collect();
        assert_eq!(read(&wal, first, after + 1, &replay.earlier, usize::MAX), expected);
    }
}
