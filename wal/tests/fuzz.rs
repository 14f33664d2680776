//! Logs that were changed in every way: no panic, no entry that was never appended, no memory at will.
//!
//! The long form is the same with more time: see the crate trilith-fuzz.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{OWNER, Rec, crc32c, entry, hard_state, parse_segment, read_file, segments, sim_options};
use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, Open};
use trilith_fuzz::Rng;
use trilith_proto::{raftpb, walpb};
use trilith_wal::{Options, Wal, WalError};

const BLOCK: usize = 4096;
const SEGMENT_BYTES: u64 = 32 << 10;
const MEMORY_BYTES: u64 = 512 << 20;
const SECONDS: u64 = 5;

/// Entries as they were appended: term, index, data.
type Appended = Vec<(u64, u64, Vec<u8>)>;

/// A log as our writer leaves it.
fn written(rng: &mut Rng) -> (SimDisk, Options, Appended) {
    let disk = SimDisk::new();
    let options = sim_options(&disk, SEGMENT_BYTES);
    let mut wal = Wal::create(options.clone(), OWNER).unwrap();
    let mut appended = Appended::new();
    let (mut term, mut index) = (1, 0);
    for _ in 0..1 + rng.below(20) {
        if index > 3 && rng.one_in(10) {
            term += 1;
            index -= 2;
        }
        for _ in 0..rng.below(5) {
            index += 1;
            let len = rng.pick(&[0, 1, 30, 200, 470, 1500, 5000]) + rng.below(8);
            let mut data = rng.bytes(len);
            if rng.one_in(4) {
                data.iter_mut().skip(10).for_each(|b| *b = 0);
            }
            wal.append([entry(term, index, &data)], Some(&hard_state(term, 1, index - 1)), rng.one_in(2));
            appended.push((term, index, data));
        }
        match rng.below(6) {
            // A checkpoint's mark names an entry as it stands; any other is that of an installed snapshot.
            0 => {
                let of = appended.iter().rfind(|e| e.1 == index).map_or(0, |e| e.0);
                wal.append_snapshot(&mark(index, of));
            }
            1..4 => drop(wal.flush().unwrap()),
            _ => {}
        }
    }
    wal.flush().unwrap();
    (disk, options, appended)
}

fn mark(index: u64, term: u64) -> walpb::Snapshot {
    walpb::Snapshot { index: Some(index), term: Some(term), conf_state: None }
}

/// What a reader that holds the state at `after` finds when the first `count` entries are there.
fn replayed(appended: &Appended, count: usize, after: u64) -> Vec<&(u64, u64, Vec<u8>)> {
    let mut log: Vec<&(u64, u64, Vec<u8>)> = Vec::new();
    for e in appended[..count].iter().filter(|e| e.1 > after) {
        log.retain(|before| before.1 < e.1);
        log.push(e);
    }
    log
}

fn flat(entries: &[raftpb::Entry]) -> Appended {
    let data = |e: &raftpb::Entry| e.data.as_deref().unwrap_or(&[]).to_vec();
    entries.iter().map(|e| (e.term.unwrap(), e.index.unwrap(), data(e))).collect()
}

fn write(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path, Open::OpenOrCreate).unwrap();
    file.set_len(0).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

/// Opens a changed log. What opens has entries without gaps and with terms that never fall, takes more, and opens again
/// with the same and that.
fn open(options: &Options, after: u64) -> Option<Appended> {
    let (mut wal, replay) = match Wal::open(options.clone(), after) {
        Ok(opened) => opened,
        Err(
            WalError::Corrupt { .. }
            | WalError::Gap { .. }
            | WalError::MetadataConflict { .. }
            | WalError::Missing { .. },
        ) => return None,
        Err(e) => panic!("no error that bytes on disk can cause: {e}"),
    };
    let mut found = flat(&replay.entries);
    // A mark that names no entry is that of a snapshot: the log goes on behind it.
    let begins = replay.after;
    let marked = replay.snapshots.iter().any(|mark| mark.index == Some(begins));
    assert!(begins == after || begins > after && marked);
    for (place, e) in (1..).zip(&found) {
        assert_eq!(Some(e.1), begins.checked_add(place), "entries follow each other");
    }
    assert!(found.windows(2).all(|w| w[0].0 <= w[1].0), "terms never fall");
    let last = found.last().map_or((1, begins), |e| (e.0, e.1));
    // An index at the end of its range has no successor.
    if let Some(next) = last.1.checked_add(1) {
        wal.append([entry(last.0, next, b"more")], None, true);
        wal.flush().unwrap();
        drop(wal);
        found.push((last.0, next, b"more".to_vec()));
        let (_, again) = Wal::open(options.clone(), after).unwrap();
        assert!(flat(&again.entries) == found, "a second start finds the same");
        found.pop();
    }
    Some(found)
}

#[test]
fn blind_changes_leave_a_prefix_or_an_error() {
    let mut opened = 0;
    let rounds = trilith_fuzz::run("wal, blind", SECONDS, MEMORY_BYTES, |rng| {
        let (disk, options, appended) = written(rng);
        let paths = segments(&disk, &options.dir);
        for _ in 0..1 + rng.below(2) {
            let path = &paths[rng.below(paths.len())];
            let mut bytes = read_file(&disk, path);
            trilith_fuzz::mutate(&mut bytes, BLOCK, rng);
            write(&disk, path, &bytes);
        }
        let last = appended.last().map_or(0, |e| e.1);
        let after = if rng.one_in(2) { 0 } else { rng.below(last as usize + 1) as u64 };
        if let Some(found) = open(&options, after) {
            opened += 1;
            let is_prefix = |count: &usize| replayed(&appended, *count, after).into_iter().eq(found.iter());
            assert!(
                (0..=appended.len()).rev().any(|count| is_prefix(&count)),
                "{found:?} was never appended"
            );
        }
    });
    assert!(opened * 50 > rounds || rounds < 100, "{opened} of {rounds} logs opened");
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A record in its frame; `odd` ones break a rule of the format and not the checksum.
fn frame(out: &mut Vec<u8>, record: &Rec, odd: bool, rng: &mut Rng) {
    let kind = if odd && rng.one_in(6) { rng.number() } else { record.kind };
    let mut body = vec![8];
    varint(&mut body, kind);
    if !(odd && rng.one_in(8)) {
        body.push(16);
        varint(&mut body, if odd && rng.one_in(8) { rng.number() } else { record.crc.into() });
    }
    if !record.data.is_empty() || rng.one_in(20) {
        body.push(26);
        varint(&mut body, if odd && rng.one_in(4) { rng.number() } else { record.data.len() as u64 });
        body.extend(&record.data);
    }
    if odd && rng.one_in(8) {
        body.extend([32, 1]);
    }
    let len = if odd && rng.one_in(4) { rng.number() & ((1 << 56) - 1) } else { body.len() as u64 };
    let pad = (8 - body.len() % 8) % 8;
    let top = if pad == 0 { 0 } else { 0x80 | pad as u64 };
    let top = if odd && rng.one_in(8) { rng.number() & 0xff } else { top };
    out.extend((len | top << 56).to_le_bytes());
    out.extend(body);
    out.resize(out.len() + pad, 0);
}

/// Numbers of a message as varints, in order.
fn message(numbers: &[u64], rest: Option<&[u8]>, rng: &mut Rng) -> Vec<u8> {
    let mut data = Vec::new();
    for (field, number) in (1u8..).zip(numbers) {
        data.push(field << 3);
        varint(&mut data, *number);
    }
    if let Some(rest) = rest {
        data.push((numbers.len() as u8 + 1) << 3 | 2);
        varint(&mut data, if rng.one_in(10) { rng.number() } else { rest.len() as u64 });
        data.extend(rest);
    }
    data
}

/// A change of the list of records: one taken out, doubled, moved, of another type, or with another message.
fn restructure(records: &mut Vec<Rec>, rng: &mut Rng) {
    let at = rng.below(records.len());
    let other = rng.below(records.len());
    match rng.below(8) {
        0 => drop(records.remove(at)),
        1 => records.insert(other, records[at].clone()),
        2 => records.swap(at, other),
        3 => records[at].kind = rng.pick(&[0, 1, 2, 3, 4, 5, 6, u64::MAX]),
        4 => trilith_fuzz::mutate(&mut records[at].data, 64, rng),
        kind => {
            let small = [rng.below(4) as u64, rng.below(4) as u64, rng.below(40) as u64];
            let numbers = small.map(|n| if rng.one_in(4) { rng.number() } else { n });
            let record = &mut records[at];
            let rest = (rng.below(2) == 0).then_some(&b"rest"[..]);
            record.kind = rng.pick(&[1, 2, 2, 3, 5]);
            record.data = message(&numbers[..2 + kind % 2], rest, rng);
        }
    }
    if records.is_empty() {
        records.push(Rec { kind: 4, crc: 0, data: Vec::new(), at: 0, end: 0 });
    }
}

/// The records as a file, the running value right over all of them, but for what is odd.
fn chained(records: &[Rec], start: u32, rng: &mut Rng) -> Vec<u8> {
    let mut file = Vec::new();
    let mut crc = start;
    let odd = if rng.one_in(2) { rng.below(records.len()) } else { records.len() };
    for (i, record) in records.iter().enumerate() {
        if record.kind != 4 {
            crc = crc32c(crc, &record.data);
        }
        frame(&mut file, &Rec { crc, ..record.clone() }, i == odd, rng);
        if record.kind == 4 && !record.data.is_empty() {
            file.resize(file.len().next_multiple_of(BLOCK), 0);
        }
    }
    file.resize(file.len().max(SEGMENT_BYTES as usize), 0);
    file
}

#[test]
fn changes_with_right_checksums_leave_what_stands_in_the_file_or_an_error() {
    let golden = include_bytes!("data/0000000000000000-0000000000000000.wal");
    let mut opened = 0;
    let rounds = trilith_fuzz::run("wal, structure", SECONDS, MEMORY_BYTES, |rng| {
        let (disk, options, _) = written(rng);
        let paths = segments(&disk, &options.dir);
        let at = rng.below(paths.len());
        let mut start = 0;
        for path in &paths[..at] {
            parse_segment(&read_file(&disk, path), &mut start);
        }
        let mut records = match rng.one_in(5) {
            true => parse_segment(golden, &mut 0),
            false => parse_segment(&read_file(&disk, &paths[at]), &mut start.clone()),
        };
        for _ in 0..rng.below(4) {
            restructure(&mut records, rng);
        }
        let mut bytes = chained(&records, start, rng);
        if rng.one_in(4) {
            trilith_fuzz::mutate(&mut bytes, BLOCK, rng);
        }
        write(&disk, &paths[at], &bytes);
        if rng.one_in(6) {
            let name = format!("{:016x}-{:016x}.wal", rng.number(), rng.number());
            disk.rename(&paths[at], &options.dir.join(name)).unwrap();
        }
        let files: Vec<Vec<u8>> = segments(&disk, &options.dir).iter().map(|p| read_file(&disk, p)).collect();
        let after = if rng.one_in(2) { 0 } else { rng.number() };
        let Some(found) = open(&options, after) else { return };
        opened += 1;
        for (_, index, data) in found.iter().filter(|e| !e.2.is_empty()) {
            let stands = files.iter().any(|file| file.windows(data.len()).any(|w| w == data));
            assert!(stands, "the data of entry {index} stands nowhere");
        }
    });
    assert!(opened * 50 > rounds || rounds < 100, "{opened} of {rounds} logs opened");
}
