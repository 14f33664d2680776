//! Torn tails and damage: each case of the recovery table on real files, a sweep over every byte, and noise.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, Open};
use trilith_wal::{Options, Replay, Wal, WalError};

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// A log of one batch per entry; the length of each entry's data is given.
fn log_of(lens: &[usize], segment_bytes: u64) -> (SimDisk, Options) {
    let disk = SimDisk::new();
    let options = sim_options(&disk, segment_bytes);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    for (i, len) in lens.iter().enumerate() {
        let index = i as u64 + 1;
        wal.append([entry(1, index, &data_of(index, *len))], Some(&hard_state(1, 1, index)), true);
        wal.flush().unwrap();
    }
    drop(wal);
    (disk, options)
}

fn last_segment(options: &Options) -> PathBuf {
    segments(&*options.disk, &options.dir).pop().unwrap()
}

/// Replaces a file's bytes, durably.
fn replace(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path, Open::Existing).unwrap();
    file.set_len(0).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

/// Changes the newest segment and opens the log.
fn after_change(
    (disk, options): &(SimDisk, Options),
    after: u64,
    change: impl FnOnce(&mut Vec<u8>),
) -> (SimDisk, Result<Replay, WalError>) {
    let disk = disk.fork();
    let options = Options { disk: std::sync::Arc::new(disk.clone()), ..options.clone() };
    let path = last_segment(&options);
    let mut bytes = read_file(&disk, &path);
    change(&mut bytes);
    replace(&disk, &path, &bytes);
    let result = Wal::open(options, after).map(|(_, replay)| replay);
    (disk, result)
}

fn assert_refused(result: Result<Replay, WalError>, letter: char, at: usize) {
    match result {
        Err(WalError::Corrupt { case, offset, path, what }) => {
            assert_eq!((case, offset), (letter, at as u64), "{what}");
            let text = WalError::Corrupt { case, offset, path: path.clone(), what }.to_string();
            assert!(
                text.contains(path.to_str().unwrap()) && text.contains(&format!("offset {at}")),
                "{text}"
            );
            assert!(text.contains("remove this member"), "it says how to rejoin: {text}");
        }
        other => panic!("expected case {letter}, got {other:?}"),
    }
}

fn assert_cut(disk: &SimDisk, result: Result<Replay, WalError>, entries: usize) {
    let replay = result.unwrap();
    assert_eq!(replay.entries.len(), entries);
    for e in &replay.entries {
        let data = e.data.as_deref().unwrap();
        assert_eq!(data, data_of(e.index.unwrap(), data.len()));
    }
    let dir = PathBuf::from("member/wal");
    let broken = disk.list(&dir).unwrap().into_iter().any(|p| p.to_str().unwrap().ends_with(".wal.broken"));
    assert!(broken, "a copy of the torn segment is kept");
    parse_dir(disk, &dir);
}

fn lose(bytes: &mut [u8], sector_of: usize) {
    let start = sector_of / SECTOR * SECTOR;
    bytes[start..start + SECTOR].fill(0);
}

/// Where the batch of an entry begins: one block for the head, then one per short entry.
fn batch(index: usize) -> usize {
    index * BLOCK
}

#[test]
fn case_a_a_head_is_never_torn() {
    let log = log_of(&[100; 3], 64 << 10);
    assert_refused(after_change(&log, 0, |b| b[..BLOCK].fill(0)).1, 'A', 0);
    assert_refused(after_change(&log, 0, |b| b.fill(0)).1, 'A', 0);
    assert_refused(after_change(&log, 0, |b| b.truncate(0)).1, 'A', 0);
    assert_refused(after_change(&log, 0, |b| b[20] ^= 1).1, 'A', 16);
}

#[test]
fn case_b_a_clean_end() {
    let log = log_of(&[100; 3], 64 << 10);
    assert_eq!(after_change(&log, 0, |_| ()).1.unwrap().entries.len(), 3);
    let (_, cut_short) = after_change(&log, 0, |b| b.truncate(4 * BLOCK));
    assert_eq!(cut_short.unwrap().entries.len(), 3);
    assert_eq!(after_change(&log, 0, |b| b.truncate(4 * BLOCK + 3)).1.unwrap().entries.len(), 3);
}

#[test]
fn case_c_only_the_last_segment_can_be_torn() {
    let (disk, options) = log_of(&[3000; 20], 32 << 10);
    let first = segments(&disk, &options.dir).remove(0);
    let mut bytes = read_file(&disk, &first);
    lose(&mut bytes, batch(3) + SECTOR);
    replace(&disk, &first, &bytes);
    assert_refused(Wal::open(options, 0).map(|(_, r)| r), 'C', batch(3));
}

#[test]
fn case_d_a_changed_record_is_damage() {
    let log = log_of(&[3000; 3], 64 << 10);
    for at in [0, 7, 8, 12, 40, 1000, 3000] {
        for index in 1..=3 {
            let (_, result) = after_change(&log, 0, |b| b[batch(index) + at] ^= 0x10);
            assert_refused(result, 'D', batch(index));
        }
    }
    // A length that points beyond the file, and noise right behind the last record.
    let (_, result) = after_change(&log, 0, |b| b[batch(3) + 5] ^= 1);
    assert_refused(result, 'D', batch(3));
    assert_refused(after_change(&log, 0, |b| b[batch(4) + 100] = 1).1, 'D', batch(4));
}

#[test]
fn case_e_five_batches_prove_that_the_bad_one_was_durable() {
    let log = log_of(&[3000; 10], 64 << 10);
    for at in [0, SECTOR, 2500] {
        let (_, result) = after_change(&log, 0, |b| lose(b, batch(5) + at));
        assert_refused(result, 'E', batch(5));
    }
    let (_, result) = after_change(&log, 0, |b| b[batch(5)..batch(6)].fill(0));
    assert_refused(result, 'E', batch(5));
}

#[test]
fn case_f_the_store_knows_that_it_was_durable() {
    let log = log_of(&[3000; 10], 64 << 10);
    for (after, refused) in [(0, false), (8, false), (9, true), (10, true)] {
        let (disk, result) = after_change(&log, after, |b| lose(b, batch(9) + SECTOR));
        if refused {
            assert_refused(result, 'F', batch(9));
        } else {
            assert_cut(&disk, result, 8 - after as usize);
        }
    }
}

#[test]
fn case_g_a_torn_tail_is_cut() {
    let log = log_of(&[3000; 10], 64 << 10);
    // Any sector of a batch with at most four batches in flight after it; later ones may have reached the disk.
    for index in 6..=10 {
        for at in (0..3000).step_by(SECTOR) {
            let (disk, result) = after_change(&log, 0, |b| lose(b, batch(index) + at));
            assert_cut(&disk, result, index - 1);
        }
        let (disk, result) = after_change(&log, 0, |b| b[batch(index)..batch(index) + BLOCK].fill(0));
        match index {
            10 => assert_eq!(result.unwrap().entries.len(), 9, "a batch that never came is no tear"),
            _ => assert_cut(&disk, result, index - 1),
        }
    }
    // Several lost sectors in several batches.
    let (disk, result) = after_change(&log, 0, |b| {
        lose(b, batch(7) + 1000);
        lose(b, batch(8));
        lose(b, batch(10) + 2000);
    });
    assert_cut(&disk, result, 6);
    // A file that ends inside a record: a log that grew as it was written.
    for len in [batch(10) + 4, batch(10) + 9, batch(10) + 700, batch(10) + 2999] {
        let (disk, result) = after_change(&log, 0, |b| b.truncate(len));
        assert_cut(&disk, result, 9);
    }
}

#[test]
fn a_lost_filler_costs_no_record() {
    // The record ends exactly at a sector, so that the closing crc record has sectors of its own.
    for len in 400..480 {
        let log = log_of(&[len; 2], 64 << 10);
        let (_, result) = after_change(&log, 0, |b| b[batch(2) + SECTOR..batch(2) + BLOCK].fill(0));
        let found = result.map(|r| r.entries.len());
        assert!(matches!(found, Ok(2)), "{len}: {found:?}");
    }
}

#[test]
fn etcds_torn_tail_is_cut() {
    // etcd's batches are not padded: one large write over many sectors, some of which were lost.
    let name = "0000000000000000-0000000000000000.wal";
    let golden = include_bytes!("data/0000000000000000-0000000000000000.wal");
    let records = parse_segment(golden, &mut 0);
    let big = records.iter().rfind(|r| r.data.len() > 3000).unwrap();
    let before = records.iter().filter(|r| r.kind == 2 && r.at < big.at).count();
    for at in (big.at + 2 * SECTOR..big.at + 6 * SECTOR).step_by(SECTOR) {
        let disk = SimDisk::new();
        let options = sim_options(&disk, 64 << 10);
        let mut bytes = golden.to_vec();
        lose(&mut bytes, at);
        disk.open(&options.dir.join(name), Open::CreateNew).unwrap().write_all_at(&bytes, 0).unwrap();
        let (_, replay) = Wal::open(options, 0).unwrap();
        assert_eq!(replay.entries.len(), before);
    }
}

#[test]
fn no_flipped_byte_gives_wrong_data_or_a_shorter_log() {
    let log = log_of(&[1, 200, 470, 3000, 64, 5000, 30], 64 << 10);
    let path = last_segment(&log.1);
    let bytes = read_file(&log.0, &path);
    let records = parse_segment(&bytes, &mut 0);
    assert_eq!(segments(&log.0, &log.1.dir).len(), 1);
    let whole = after_change(&log, 0, |_| ()).1.unwrap();
    let (mut refused, mut right) = (0, 0);
    let mut flip = |at: usize, mask: u8| {
        let disk = log.0.fork();
        let options = Options { disk: std::sync::Arc::new(disk.clone()), ..log.1.clone() };
        disk.corrupt(&path, at as u64, mask).unwrap();
        match Wal::open(options, 0) {
            Err(
                WalError::Corrupt { path: named, offset, .. }
                | WalError::MetadataConflict { path: named, offset },
            ) => {
                // A flip in a crc record may leave a shorter one, and shows right behind it then.
                assert!(named == path && offset <= at as u64 + 16, "byte {at}: {named:?} {offset}");
                refused += 1;
            }
            Err(e) => panic!("byte {at}, mask {mask:#x}: {e}"),
            Ok((_, replay)) => {
                assert_eq!(replay.entries, whole.entries, "byte {at}, mask {mask:#x}");
                assert_eq!(replay.hard_state, whole.hard_state, "byte {at}, mask {mask:#x}");
                right += 1;
            }
        }
    };
    for record in &records {
        // The length, the type (which the checksum does not cover) and the checksum: every flip there is.
        for at in record.at..record.at + 16 {
            (1..=255).for_each(|mask| flip(at, mask));
        }
        for at in record.at + 16..record.end {
            // The body of a filler is padding.
            let padding = record.kind == 4 && at >= record.at + 24;
            if !padding || at.is_multiple_of(5) {
                flip(at, 1 << (at % 8));
            }
        }
    }
    for at in (records.last().unwrap().end..bytes.len()).step_by(7) {
        flip(at, 1);
    }
    assert!(refused > 18_000 && right > 5_000, "{refused} refused, {right} right");
}

#[test]
fn noise_never_panics_and_never_leaves_a_gap() {
    let seed = 5;
    eprintln!("seed {seed}");
    let mut rng = Rng::new(seed);
    let log = log_of(&[100, 2000, 40, 700, 5000], 40 << 10);
    for round in 0..3000 {
        let (_, result) = after_change(&log, rng.below(4), |bytes| mutate(bytes, &mut rng));
        if let Ok(replay) = result {
            let indexes: Vec<_> = replay.entries.iter().map(|e| e.index.unwrap()).collect();
            assert!(indexes.windows(2).all(|w| w[0] + 1 == w[1]), "round {round}: {indexes:?}");
            for e in &replay.entries {
                let data = e.data.as_deref().unwrap();
                assert!(data == data_of(e.index.unwrap(), data.len()), "round {round}: entry {:?}", e.index);
            }
        }
    }
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let below = |rng: &mut Rng, n: usize| rng.below(n as u64) as usize;
    for _ in 0..1 + rng.below(4) {
        let len = bytes.len().max(16);
        bytes.resize(len, 0);
        let at = below(rng, len - 8);
        match rng.below(7) {
            0 => bytes[at] ^= rng.next() as u8,
            1 => {
                let n = below(rng, 600).min(len - at);
                let noise = rng.bytes(n);
                bytes[at..at + n].copy_from_slice(&noise);
            }
            2 => bytes.truncate(at),
            3 => bytes[at / SECTOR * SECTOR..].iter_mut().take(SECTOR).for_each(|b| *b = 0),
            4 => {
                let (from, to) = (below(rng, len / BLOCK + 1) * BLOCK, below(rng, len / BLOCK + 1) * BLOCK);
                let block: Vec<u8> = bytes[from.min(len)..].iter().take(BLOCK).copied().collect();
                let end = (to + block.len()).min(len);
                bytes[to.min(len)..end].copy_from_slice(&block[..end - to.min(len)]);
            }
            5 => bytes[at / 8 * 8..][..8].copy_from_slice(&(rng.next() >> rng.below(64)).to_le_bytes()),
            _ => {
                let n = below(rng, 3 * BLOCK);
                *bytes = rng.bytes(n);
            }
        }
    }
}
