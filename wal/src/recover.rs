//! Reading a log back: replay, and the decision what the end of its written part means.
//!
//! Promises: a record's data is used only after its checksum was found right. A torn tail is cut, damage to bytes
//! that were durable refuses to start, and [`CASES`] says which is which. Nothing here writes.
//!
//! # Why the table is right
//!
//! What the writer guarantees, on all its I/O paths:
//!
//! 1. A segment reads as zeros when it gets its name, but for its head, and both are durable by then. So whatever
//!    a power cut leaves of later writes, each sector of 512 bytes is either as written or all zeros.
//! 2. Batches begin and end at blocks of 4 KiB, and no block is written by two of them. Every batch ends with a
//!    crc record. So no write can harm a record that was acknowledged before it began.
//! 3. Batch N is submitted only after all batches up to N - 4 are durable, and acknowledged only after all
//!    batches up to N are. So if anything of batch N is on the disk, all batches up to N - 4 are durable in full.
//! 4. A segment gets its name only after everything in the segment before it is durable.
//!
//! From 4: nothing but the last segment can be torn (C). From 1: in a torn batch the first record that cannot be
//! read has a sector that was lost, and what its surviving sectors hold is as it was written; a bad record without
//! a lost sector was harmed later (D). From 3: five whole batches after the bad one prove that it was durable (E);
//! up to four prove nothing, since the bad batch may have been in flight with them and was not acknowledged then.
//! If the caller's own durable state holds entries from beyond the tear, they had been durable in the log (F).
//! What is left may be a tear, and nothing that was acknowledged can be shown to be missing (G).
//!
//! What this cannot tell apart: a lost sector in one of the last four batches that was durable once (the device
//! lost it later), and damage to a record there whose own data has a sector of zeros. etcd's reader has the same
//! limit for the whole last segment.
//!
//! etcd's own logs have no blocks and no closing crc records: for them 1 holds by its zeroing, 2 only in the form
//! that a sector is rewritten with the same bytes before, and E never applies.

use std::path::Path;

use bytes::Bytes;
use prost::Message;
use trilith_proto::raftpb::{self, EntryType};
use trilith_proto::walpb;

use crate::names::Name;
use crate::record::{self, BLOCK_BYTES, Fault, Frame, Record, fields};
use crate::{MAX_IN_FLIGHT, Metadata, Replay, WalError};

/// What power cuts tear writes at.
const SECTOR_BYTES: usize = 512;
/// The first byte of every message that a record carries: they are proto2 with a first field that is a number.
const FIRST_DATA_BYTE: u8 = 0x08;

/// What every segment begins with.
const HEAD: [u64; 2] = [record::CRC, record::METADATA];

/// What to do with the end of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is well.
    Clean,
    /// Write zeros from the first bad record on, and go on there.
    Cut,
    /// Refuse to start.
    Refuse,
}

/// What was found where reading a segment stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Findings {
    /// The segment's head (crc record and metadata) was read.
    pub(crate) head: bool,
    /// A zero length (or the end of the file), and nothing but zeros after it.
    pub(crate) clean: bool,
    /// It is the newest segment.
    pub(crate) last: bool,
    /// A sector that never reached the disk explains what was found.
    pub(crate) lost_sector: bool,
    /// More whole batches follow than can have been in flight with the bad one.
    pub(crate) beyond_window: bool,
    /// Entries after this place are known to have been durable.
    pub(crate) below_mark: bool,
}

/// A row of the table: the first whose test holds decides.
pub(crate) struct Case {
    pub(crate) letter: char,
    pub(crate) test: fn(&Findings) -> bool,
    pub(crate) verdict: Verdict,
    pub(crate) why: &'static str,
}

/// The table of recovery cases (docs/format-wal.md, "WAL: torn tail or damage").
#[rustfmt::skip]
pub(crate) const CASES: [Case; 7] = [
    Case { letter: 'A', test: |f| !f.head, verdict: Verdict::Refuse,
        why: "the segment's head cannot be read, which was durable before the segment got its name" },
    Case { letter: 'B', test: |f| f.clean, verdict: Verdict::Clean,
        why: "nothing but zeros follows" },
    Case { letter: 'C', test: |f| !f.last, verdict: Verdict::Refuse,
        why: "a later segment exists, so everything in this one was durable" },
    Case { letter: 'D', test: |f| !f.lost_sector, verdict: Verdict::Refuse,
        why: "no sector is missing, so the record was written whole and changed later" },
    Case { letter: 'E', test: |f| f.beyond_window, verdict: Verdict::Refuse,
        why: "more batches follow than can have been in flight, so the record was durable" },
    Case { letter: 'F', test: |f| f.below_mark, verdict: Verdict::Refuse,
        why: "the store holds entries from after this place, so the log held them durably" },
    Case { letter: 'G', test: |_| true, verdict: Verdict::Cut,
        why: "a write that was under way and not acknowledged" },
];

/// The row that decides.
pub(crate) fn judge(findings: &Findings) -> &'static Case {
    CASES.iter().find(|c| (c.test)(findings)).unwrap_or(&CASES[CASES.len() - 1])
}

/// Where reading a segment stopped, and what that means.
#[derive(Debug)]
pub(crate) struct Stop {
    /// End of the last good record.
    pub(crate) at: usize,
    pub(crate) verdict: Verdict,
}

/// Why a record was not taken.
enum Bad<'a> {
    Zero,
    Fault(Fault),
    Checksum(Record<'a>),
}

/// Reads segments one after the other.
#[derive(Debug)]
pub(crate) struct Reader {
    /// The index that the caller holds the state of; or that of a snapshot that the log goes on behind.
    after: u64,
    /// What is known of the entries up to there.
    history: History,
    /// The running value; None before the first crc record.
    crc: Option<u32>,
    metadata: Option<Metadata>,
    hard_state: raftpb::HardState,
    entries: Vec<raftpb::Entry>,
    snapshots: Vec<walpb::Snapshot>,
    /// Index of the entry (or snapshot mark) read last.
    pub(crate) last_index: u64,
}

impl Reader {
    pub(crate) fn new(after: u64, first: &Name) -> Reader {
        Reader {
            after,
            history: History::default(),
            crc: None,
            metadata: None,
            hard_state: raftpb::HardState::default(),
            entries: Vec::new(),
            snapshots: Vec::new(),
            last_index: first.index.saturating_sub(1),
        }
    }

    /// The running value over everything read.
    pub(crate) fn crc(&self) -> u32 {
        self.crc.unwrap_or(0)
    }

    pub(crate) fn into_replay(self, dir: &Path) -> Result<Replay, WalError> {
        let missing = || WalError::Missing { path: dir.to_owned(), what: "the log has no metadata".into() };
        let metadata = self.metadata.ok_or_else(missing)?;
        let Reader { after, history, hard_state, entries, snapshots, last_index, .. } = self;
        let earlier = history.up_to(after);
        Ok(Replay { metadata, after, earlier, hard_state, entries, snapshots, last_index })
    }

    /// Takes every good record of a segment and judges the place where they end.
    pub(crate) fn read(&mut self, name: &Name, last: bool, file: &[u8]) -> Result<Stop, WalError> {
        let mut at = 0;
        let mut taken = 0;
        let bad = loop {
            match record::parse(file, at) {
                Frame::End => break Bad::Zero,
                Frame::Bad(fault) => break Bad::Fault(fault),
                Frame::Record(record) => {
                    if !self.checksum_holds(&record) {
                        break Bad::Checksum(record);
                    }
                    if HEAD.get(taken).is_some_and(|kind| *kind != record.kind) {
                        break Bad::Fault(Fault {
                            what: "the segment's head is not crc record and metadata",
                            at,
                        });
                    }
                    taken += 1;
                    self.take(name, at, &record)?;
                    at = record.end;
                }
            }
        };
        let findings = Findings {
            head: taken >= HEAD.len(),
            clean: matches!(bad, Bad::Zero) && all_zero(&file[at..]),
            last,
            lost_sector: lost_sector(file, at, &bad),
            beyond_window: whole_batches_after(file, at, &bad) > MAX_IN_FLIGHT,
            below_mark: self.after > self.last_index,
        };
        let case = judge(&findings);
        let what = match &bad {
            Bad::Zero => "a record is missing",
            Bad::Fault(fault) => fault.what,
            Bad::Checksum(_) => "a record's checksum is wrong",
        };
        match case.verdict {
            Verdict::Refuse => Err(WalError::Corrupt {
                path: name.path.clone(),
                offset: at as u64,
                case: case.letter,
                what: format!("{what}; {}", case.why),
            }),
            verdict => {
                if verdict == Verdict::Cut {
                    let path = name.path.display();
                    log::warn!("write-ahead log: {path} ends torn at offset {at} ({what}; {})", case.why);
                }
                Ok(Stop { at, verdict })
            }
        }
    }

    /// Moves the running value over the record if the record agrees with it.
    fn checksum_holds(&mut self, record: &Record<'_>) -> bool {
        let next = match (self.crc, record.kind) {
            (None, record::CRC) => record.crc,
            (None, _) => return false,
            (Some(crc), record::CRC) => crc,
            (Some(crc), _) => crc32c::crc32c_append(crc, record.data),
        };
        if next == record.crc {
            self.crc = Some(next);
        }
        next == record.crc
    }

    /// Takes the message of a record whose checksum was right. The checksum does not cover the record's type, so the
    /// message must have exactly the fields that its type has.
    fn take(&mut self, name: &Name, at: usize, record: &Record<'_>) -> Result<(), WalError> {
        let malformed = |what: &str| WalError::Corrupt {
            path: name.path.clone(),
            offset: at as u64,
            case: 'X',
            what: format!("{what}, though its checksum is right"),
        };
        match record.kind {
            record::CRC => {}
            record::METADATA => {
                let Some(([node_id, cluster_id], None)) = fields(record.data) else {
                    return Err(malformed("a metadata record has not the fields of metadata"));
                };
                let found = Metadata { node_id, cluster_id };
                if *self.metadata.get_or_insert(found) != found {
                    return Err(WalError::MetadataConflict { path: name.path.clone(), offset: at as u64 });
                }
            }
            record::ENTRY => {
                let Some(([kind, term, index], data)) = fields(record.data) else {
                    return Err(malformed("an entry record has not the fields of an entry"));
                };
                let Some(kind) = i32::try_from(kind).ok().and_then(|k| EntryType::try_from(k).ok()) else {
                    return Err(malformed("an entry is of an unknown type"));
                };
                // Only a leader's first entry and the end of a joint configuration are empty.
                if term == 0 || kind == EntryType::EntryConfChange && data.is_none() {
                    return Err(malformed("an entry record does not hold an entry"));
                }
                // Of what the store holds already only place and term count.
                let data = data.filter(|_| index > self.after).map(Bytes::copy_from_slice);
                let (r#type, term, index) = (Some(kind.into()), Some(term), Some(index));
                if !self.take_entry(name, at, raftpb::Entry { r#type, term, index, data })? {
                    return Err(malformed("an entry has a lower term than the entry before it"));
                }
            }
            record::HARD_STATE => {
                let Some(([term, vote, commit], None)) = fields(record.data) else {
                    return Err(malformed("a hard state record has not the fields of a hard state"));
                };
                if term == 0 {
                    return Err(malformed("a hard state has no term"));
                }
                self.hard_state =
                    raftpb::HardState { term: Some(term), vote: Some(vote), commit: Some(commit) };
            }
            record::SNAPSHOT => {
                let Some(([index, term], conf_state)) = fields(record.data) else {
                    return Err(malformed("a snapshot record has not the fields of a snapshot mark"));
                };
                let Ok(conf_state) = conf_state.map(raftpb::ConfState::decode).transpose() else {
                    return Err(malformed("a snapshot mark has a malformed configuration"));
                };
                self.take_mark(index, term);
                self.snapshots.push(walpb::Snapshot { index: Some(index), term: Some(term), conf_state });
            }
            other => return Err(malformed(&format!("record type {other} is unknown"))),
        }
        Ok(())
    }

    /// A mark of a checkpoint names an entry that stands before it. One that names another, or none, is that of a snapshot
    /// that a leader sent: the log goes on behind it, and nothing that it held before counts.
    fn take_mark(&mut self, index: u64, term: u64) {
        let installed = match index.checked_sub(self.after) {
            None => false,
            Some(0) => self.history.term_of(index).is_some_and(|known| known != term),
            Some(place) => {
                let held = usize::try_from(place - 1).ok().and_then(|at| self.entries.get(at));
                held.is_none_or(|entry| entry.term != Some(term))
            }
        };
        if installed {
            self.entries.clear();
            self.history = History::default();
            (self.after, self.last_index) = (index, index);
        }
        self.last_index = self.last_index.max(index);
    }

    /// Puts an entry at its place; false if its term is lower than that of the entry before it.
    fn take_entry(&mut self, name: &Name, at: usize, entry: raftpb::Entry) -> Result<bool, WalError> {
        let index = entry.index.unwrap_or(0);
        self.last_index = index;
        if index <= self.after {
            self.history.take(index, entry.term.unwrap_or_default());
            return Ok(true);
        }
        let place = index - self.after - 1;
        if place > self.entries.len() as u64 {
            return Err(WalError::Gap {
                path: name.path.clone(),
                offset: at as u64,
                last: self.after + self.entries.len() as u64,
                found: index,
            });
        }
        self.entries.truncate(place as usize);
        let rises = self.entries.last().is_none_or(|before| before.term <= entry.term);
        self.entries.push(entry);
        Ok(rises)
    }
}

/// The terms of entries that are not kept, as far back as they follow each other without a gap.
#[derive(Debug, Default)]
struct History {
    /// Where terms begin: (first index, term), the first at the first entry.
    terms: Vec<(u64, u64)>,
    /// Index after the last entry.
    next: u64,
}

impl History {
    fn take(&mut self, index: u64, term: u64) {
        if index > self.next {
            self.terms.clear();
        }
        let stay = self.terms.partition_point(|(first, _)| *first < index);
        self.terms.truncate(stay);
        if self.terms.last().is_none_or(|(_, before)| *before != term) {
            self.terms.push((index, term));
        }
        self.next = index.saturating_add(1);
    }

    fn term_of(&self, index: u64) -> Option<u64> {
        let at = self.terms.partition_point(|(first, _)| *first <= index);
        at.checked_sub(1).filter(|_| index < self.next).map(|at| self.terms[at].1)
    }

    /// Nothing when it does not reach that far: there is a gap then.
    fn up_to(self, index: u64) -> Vec<(u64, u64)> {
        if self.next == index.saturating_add(1) { self.terms } else { Vec::new() }
    }
}

/// Compared in pieces, since a segment's unwritten part is long.
fn all_zero(bytes: &[u8]) -> bool {
    bytes.chunks(SECTOR_BYTES).all(|c| *c == [0; SECTOR_BYTES][..c.len()])
}

/// Whether the sector that holds a byte is all zeros, or lies beyond the end of the file.
fn is_lost(file: &[u8], at: usize) -> bool {
    if at >= file.len() {
        return true;
    }
    let start = at / SECTOR_BYTES * SECTOR_BYTES;
    all_zero(&file[start..(start + SECTOR_BYTES).min(file.len())])
}

/// Whether a sector that never reached the disk explains why the record at `at` is bad.
///
/// The sector in which the record begins is not lost if it holds a length. So what the parser read there is as it
/// was written, and must make sense; only what it read in another sector may be missing.
fn lost_sector(file: &[u8], at: usize, bad: &Bad<'_>) -> bool {
    match bad {
        Bad::Zero => {
            let end = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
            all_zero(&file[at..end.min(file.len())])
        }
        Bad::Fault(fault) => is_lost(file, fault.at),
        Bad::Checksum(record) => {
            // A crc record's body does not count, so its header, which was read, is what is wrong.
            let data_begins = match record.data.first() {
                Some(first) => *first == FIRST_DATA_BYTE || is_lost(file, record.data_at),
                None => false,
            };
            let kinds = [record::METADATA, record::ENTRY, record::HARD_STATE, record::SNAPSHOT];
            let mut sectors = (at..record.end).step_by(SECTOR_BYTES).chain([record.end - 1]);
            kinds.contains(&record.kind) && data_begins && sectors.any(|s| is_lost(file, s))
        }
    }
}

/// How many whole batches follow; counting ends one above the number that can have been in flight.
fn whole_batches_after(file: &[u8], at: usize, bad: &Bad<'_>) -> usize {
    let from = if let Bad::Checksum(record) = bad { record.end } else { at };
    let mut at = from.next_multiple_of(BLOCK_BYTES);
    let mut count = 0;
    while at < file.len() && count <= MAX_IN_FLIGHT {
        match batch_end(file, at) {
            Some(end) => {
                count += 1;
                at = end;
            }
            None => at += BLOCK_BYTES,
        }
    }
    count
}

/// The end of the batch that begins at a block, if its records continue each other up to a closing crc record.
fn batch_end(file: &[u8], mut at: usize) -> Option<usize> {
    let mut running: Option<u32> = None;
    while let Frame::Record(record) = record::parse(file, at) {
        match running {
            Some(crc) if record.kind == record::CRC => {
                let closes = record.crc == crc && record.end.is_multiple_of(BLOCK_BYTES);
                return closes.then_some(record.end);
            }
            Some(crc) if crc32c::crc32c_append(crc, record.data) != record.crc => return None,
            None if record.kind == record::CRC => return None,
            _ => running = Some(record.crc),
        }
        at = record.end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table against its meaning, for every combination of findings.
    #[test]
    fn the_table_cuts_only_what_may_be_a_tear() {
        let mut reached = std::collections::BTreeSet::new();
        for bits in 0..64u32 {
            let bit = |n: u32| bits >> n & 1 == 1;
            let f = Findings {
                head: bit(0),
                clean: bit(1),
                last: bit(2),
                lost_sector: bit(3),
                beyond_window: bit(4),
                below_mark: bit(5),
            };
            let case = judge(&f);
            reached.insert(case.letter);
            let may_be_torn = f.last && f.lost_sector && !f.beyond_window && !f.below_mark;
            let expected = match (f.head, f.clean, may_be_torn) {
                (false, _, _) => Verdict::Refuse,
                (true, true, _) => Verdict::Clean,
                (true, false, true) => Verdict::Cut,
                (true, false, false) => Verdict::Refuse,
            };
            assert_eq!(case.verdict, expected, "{f:?} is case {}", case.letter);
        }
        assert_eq!(reached.into_iter().collect::<String>(), "ABCDEFG", "every row is needed");
        assert!(CASES.windows(2).all(|w| w[0].letter < w[1].letter));
    }

    #[test]
    fn messages_have_exactly_their_fields() {
        assert_eq!(fields::<2>(&[8, 1, 16, 2]), Some(([1, 2], None)));
        assert_eq!(fields::<2>(&[8, 1, 16, 2, 26, 1, 9]), Some(([1, 2], Some(&[9u8][..]))));
        for bad in [
            &[][..],
            &[8],
            &[8, 1],
            &[8, 1, 16],
            &[16, 1, 8, 2],
            &[8, 1, 16, 2, 24, 3],
            &[8, 1, 16, 2, 26, 2, 9],
        ] {
            assert_eq!(fields::<2>(bad), None, "{bad:?}");
        }
        assert_eq!(
            fields::<1>(&[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]),
            None,
            "wider than 64 bits"
        );
    }
}
