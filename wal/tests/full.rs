//! A full disk: reported early, survived without loss, and left by itself.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use trilith_disk::sim::{SimDisk, Survivors};
use trilith_disk::{Disk, Open};
use trilith_wal::{Options, Ticket, Wal, WalError};

const SEGMENT_BYTES: u64 = 1 << 20;

/// Appends and polls one entry.
fn append(wal: &mut Wal, index: u64, len: usize) -> Ticket {
    let data = data_of(index, len);
    let ticket = wal.append([entry(1, index, &data)], Some(&hard_state(1, 1, index - 1)), true);
    wal.poll().unwrap();
    ticket
}

fn assert_entries(options: &Options, after: u64, last: u64) {
    let (_, replay) = Wal::open(options.clone(), after).unwrap();
    let indexes: Vec<u64> = replay.entries.iter().map(|e| e.index.unwrap()).collect();
    assert_eq!(indexes, (after + 1..=last).collect::<Vec<_>>());
    for e in &replay.entries {
        let data = e.data.as_deref().unwrap();
        assert!(data == data_of(e.index.unwrap(), data.len()));
    }
    parse_dir(&*options.disk, &options.dir);
}

#[test]
fn a_full_disk_is_reported_early_and_loses_nothing() {
    let disk = SimDisk::new();
    let options = sim_options(&disk, SEGMENT_BYTES);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    assert_eq!(disk.used(), SEGMENT_BYTES, "a segment has its space from the start");
    disk.set_limit(Some(disk.used() + SEGMENT_BYTES - 1));
    let mut last = 0;
    while !wal.is_full() {
        last += 1;
        append(&mut wal, last, 3000);
    }
    let used = last * 4096;
    assert!(
        (SEGMENT_BYTES / 4..SEGMENT_BYTES / 3).contains(&used),
        "there is room for what is under way: {used}"
    );
    assert_eq!(disk.used(), SEGMENT_BYTES, "a try in vain leaves nothing");
    // What comes all the same fills the segment, then waits.
    let mut newest = wal.flush().unwrap();
    while wal.poll().unwrap() == newest {
        last += 1;
        newest = append(&mut wal, last, 3000);
    }
    for _ in 0..100 {
        last += 1;
        newest = append(&mut wal, last, 3000);
        wal.retry().unwrap();
    }
    let durable = wal.poll().unwrap();
    assert!(durable < newest && wal.is_full());
    assert!(matches!(wal.flush(), Err(WalError::Full { .. })));
    // A power cut finds everything that was acknowledged, and starts on a full disk.
    let cut = disk.crash(disk.op_count(), Survivors::None);
    cut.set_limit(Some(cut.used()));
    let after_cut = Options { disk: std::sync::Arc::new(cut.clone()), ..options.clone() };
    let (again, replay) = Wal::open(after_cut, 0).unwrap();
    assert_eq!(replay.entries.len() as u64, last - 100 - 1);
    drop(again);
    // A little more space is not enough; enough is.
    disk.set_limit(Some(disk.used() + SEGMENT_BYTES - 1));
    wal.retry().unwrap();
    assert!(wal.poll().unwrap() == durable && wal.is_full());
    disk.set_limit(Some(disk.used() + SEGMENT_BYTES));
    assert_eq!(wal.poll().unwrap(), durable, "nothing is tried before it is asked for");
    wal.retry().unwrap();
    assert_eq!(wal.flush().unwrap(), newest);
    disk.set_limit(None);
    wal.retry().unwrap();
    assert!(!wal.is_full());
    drop(wal);
    assert_entries(&options, 0, last);
}

#[test]
fn released_segments_are_the_way_out() {
    let disk = SimDisk::new();
    let options = Options { max_segments: 50, ..sim_options(&disk, SEGMENT_BYTES) };
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    let mut last = 0;
    while segments(&disk, &options.dir).len() < 4 {
        last += 1;
        append(&mut wal, last, 3000);
    }
    disk.set_limit(Some(disk.used()));
    while !wal.is_full() {
        last += 1;
        append(&mut wal, last, 3000);
    }
    let used = disk.used();
    // As after a checkpoint, again and again: the log goes on within the space that it has.
    for _ in 0..3000 {
        wal.release_to(last - 5).unwrap();
        last += 1;
        append(&mut wal, last, 3000);
        assert!(!wal.is_full() && disk.used() <= used);
    }
    wal.flush().unwrap();
    drop(wal);
    assert_entries(&options, last - 5, last);
}

#[test]
fn a_record_longer_than_a_segment_waits_for_its_space_too() {
    let disk = SimDisk::new();
    let options = sim_options(&disk, 64 << 10);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    disk.set_limit(Some(disk.used() + (128 << 10)));
    append(&mut wal, 1, 300_000);
    append(&mut wal, 2, 10);
    assert!(wal.is_full() && matches!(wal.flush(), Err(WalError::Full { .. })));
    disk.set_limit(Some(disk.used() + (512 << 10)));
    wal.retry().unwrap();
    wal.flush().unwrap();
    drop(wal);
    assert_entries(&options, 0, 2);
}

#[test]
fn a_torn_log_opens_on_a_full_disk() {
    let disk = SimDisk::new();
    let options = sim_options(&disk, SEGMENT_BYTES);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    for index in 1..=20 {
        append(&mut wal, index, 3000);
    }
    wal.flush().unwrap();
    drop(wal);
    let path = segments(&disk, &options.dir).remove(0);
    let file = disk.open(&path, Open::Existing).unwrap();
    file.write_all_at(&[0; 512], 20 * 4096 + 512).unwrap();
    disk.set_limit(Some(disk.used()));
    let (mut wal, replay) = Wal::open(options.clone(), 0).unwrap();
    assert_eq!(replay.entries.len(), 19);
    assert!(disk.list(&options.dir).unwrap().iter().all(|p| p.extension().unwrap() == "wal"), "no copy");
    append(&mut wal, 20, 3000);
    wal.flush().unwrap();
    drop(wal);
    assert_entries(&options, 0, 20);
}

#[test]
fn there_is_no_making_of_a_log_without_space() {
    let disk = SimDisk::new();
    let options = sim_options(&disk, SEGMENT_BYTES);
    disk.set_limit(Some(SEGMENT_BYTES - 1));
    let error = Wal::create(options.clone(), OWNER).unwrap_err();
    assert!(matches!(error, WalError::Io { .. }) && !Wal::exists(&disk, &options.dir), "{error}");
    disk.set_limit(None);
    Wal::create(options, OWNER).unwrap();
}

/// Bytes that reach the disk for each byte of batches, with batches of that size.
fn written_per_byte(batch: usize) -> f64 {
    let disk = SimDisk::new();
    let options = sim_options(&disk, 8 << 20);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    let (mut index, before) = (0, disk.bytes_written());
    while wal.stats().bytes_written < 64 << 20 {
        index += 1;
        append(&mut wal, index, batch);
        wal.release_to(index - 1).unwrap();
    }
    let ratio = (disk.bytes_written() - before) as f64 / wal.stats().bytes_written as f64;
    drop(wal);
    assert_entries(&options, index - 1, index);
    ratio
}

#[test]
fn large_batches_are_written_once_and_small_ones_on_zeros() {
    let (small, large) = (written_per_byte(3000), written_per_byte(100_000));
    assert!((1.9..2.2).contains(&small) && (1.0..1.1).contains(&large), "{small} and {large}");
}

#[test]
fn batches_grow_and_shrink_on_every_path() {
    on_every_path(12 << 20, |options| {
        let options = Options { max_segments: 3, ..options };
        let mut wal = Wal::create(options.clone(), OWNER).unwrap();
        let mut last = 0;
        for round in 0..6 {
            let (count, len) = if round % 2 == 0 { (120, 150_000) } else { (600, 1000) };
            for _ in 0..count {
                last += 1;
                append(&mut wal, last, len);
                if len < 10_000 && last % 8 == 0 {
                    wal.flush().unwrap();
                }
            }
            wal.flush().unwrap();
            if round == 3 {
                drop(wal);
                assert_entries(&options, last - 700, last);
                wal = Wal::open(options.clone(), last - 700).unwrap().0;
            }
            wal.release_to(last.saturating_sub(700)).unwrap();
        }
        drop(wal);
        assert_entries(&options, last - 700, last);
    });
}
