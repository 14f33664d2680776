//! The log as raft reads it: its end in memory, the rest on the disk.
//!
//! Holds the entries after a compacted index, without gaps and with terms that never fall, and knows the term of each
//! of them and of the compacted index itself. The newest stand in memory (the tail); what raft reads there is not
//! always durable yet; the driver tells raft what is. Entries leave the tail only once they are applied, and only when
//! it is larger than its owner allows. Older ones are fetched: raft is told that they are on their way, the owner reads
//! them back from the log, and they are kept here for a while, since a member that lags behind asks for the next ones.
//!
//! This file never reads the disk.

use std::cell::RefCell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::Fetch;

/// Fetched stretches of the log that are kept: as many members may lag behind without reading anything twice.
const FETCHED_MAX: usize = 4;
/// Stretches that may be asked for; more are asked for again by raft itself.
const WANTED_MAX: usize = 16;

/// The log, with the state that raft starts from.
pub(crate) struct LogStorage {
    start: RaftState,
    /// (index, term) of the entry that was compacted last: what comes before is of no use to anybody.
    compacted: (u64, u64),
    /// Where terms begin, (first index, term), of the entries between the compacted one and the tail.
    terms: VecDeque<(u64, u64)>,
    /// (index, term) of the entry before the tail's first.
    before: (u64, u64),
    tail: VecDeque<Entry>,
    bytes: usize,
    /// What a snapshot of the owner's state holds: (index, term) applied last, and the group as of there.
    applied: (u64, u64),
    pub(crate) conf_state: ConfState,
    fetches: RefCell<Fetches>,
}

/// Entries before the tail that raft asked for.
#[derive(Default)]
struct Fetches {
    wanted: VecDeque<Wanted>,
    /// The first of `wanted` is being read.
    running: bool,
    /// Oldest first.
    fetched: VecDeque<Vec<Entry>>,
}

struct Wanted {
    low: u64,
    context: GetEntriesContext,
}

/// Memory that an entry takes in the tail, in bytes.
pub(crate) fn cost(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.data.len() + entry.context.len()
}

impl LogStorage {
    /// A log that holds nothing after the compacted (index, term).
    pub(crate) fn new(start: RaftState, compacted: (u64, u64)) -> LogStorage {
        LogStorage {
            conf_state: start.conf_state.clone(),
            start,
            compacted,
            terms: VecDeque::new(),
            before: compacted,
            tail: VecDeque::new(),
            bytes: 0,
            applied: (0, 0),
            fetches: RefCell::default(),
        }
    }

    /// Index of the first entry that is here or on the disk, were it there.
    pub(crate) fn first(&self) -> u64 {
        self.compacted.0 + 1
    }

    /// Index of the first entry of the tail, were it there.
    fn tail_first(&self) -> u64 {
        self.before.0 + 1
    }

    /// Index of the last entry; the compacted index when there is none.
    pub(crate) fn last(&self) -> u64 {
        self.before.0 + self.tail.len() as u64
    }

    /// Term of an entry that is here or on the disk, or was compacted last.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        if index == self.compacted.0 {
            return Some(self.compacted.1);
        }
        if index > self.before.0 {
            return self.get(index).map(|entry| entry.term);
        }
        let at = self.terms.partition_point(|(first, _)| *first <= index);
        at.checked_sub(1).filter(|_| index > self.compacted.0).map(|at| self.terms[at].1)
    }

    /// The log on the disk holds older entries, too: where terms begin, (first index, term). They reach to the entry before
    /// the tail, or to the one before that.
    pub(crate) fn set_history(&mut self, terms: &[(u64, u64)]) {
        let Some(oldest) = terms.first().copied().filter(|oldest| oldest.0 < self.compacted.0) else {
            return;
        };
        let newest = self.compacted;
        self.terms = terms.iter().copied().filter(|(first, _)| *first <= newest.0).collect();
        if self.terms.back().is_some_and(|(_, term)| *term != newest.1) {
            self.terms.push_back(newest);
        }
        self.compacted = oldest;
    }

    /// Appends entries; those that stand from the first one's index on give way.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.before.0 && first.index <= self.last() + 1,
            "raft entry {} does not follow the log {}..={}",
            first.index,
            self.tail_first(),
            self.last()
        );
        while self.last() >= first.index {
            let entry = self.tail.pop_back().expect("the last index is above the compacted one");
            self.bytes -= cost(&entry);
        }
        let mut next = (first.index, self.tail.back().map_or(self.before.1, |entry| entry.term));
        self.tail.reserve(entries.len());
        for entry in entries {
            assert!(entry.index == next.0, "raft entry {} where {} is due", entry.index, next.0);
            assert!(
                entry.term >= next.1,
                "raft entry {} of term {} after term {}",
                entry.index,
                entry.term,
                next.1
            );
            next = (entry.index + 1, entry.term);
            self.bytes += cost(&entry);
            self.tail.push_back(entry);
        }
    }

    /// Drops the oldest entries up to `applied` from the tail until it takes `limit` bytes at most.
    pub(crate) fn trim(&mut self, applied: u64, limit: usize) {
        while self.bytes > limit && self.before.0 < applied {
            let Some(entry) = self.tail.pop_front() else { return };
            self.bytes -= cost(&entry);
            if self.terms.back().is_none_or(|(_, term)| *term != entry.term) {
                self.terms.push_back((entry.index, entry.term));
            }
            self.before = (entry.index, entry.term);
        }
    }

    /// Nobody gets entries up to `index` any more, nor those after it that are applied and that the disk has lost.
    pub(crate) fn compact(&mut self, index: u64) {
        let Some(term) = self.term_of(index).filter(|_| index > self.compacted.0) else { return };
        self.trim(index, 0);
        self.compacted = (index, term);
        while self.terms.get(1).is_some_and(|(first, _)| *first <= index + 1) {
            self.terms.pop_front();
        }
        if index >= self.before.0 {
            self.terms.clear();
        }
    }

    /// Everything up to (index, term) stands in a snapshot, and nothing of the log here counts any more.
    pub(crate) fn reset(&mut self, index: u64, term: u64) {
        let start = std::mem::take(&mut self.start);
        let conf_state = std::mem::take(&mut self.conf_state);
        *self = LogStorage { conf_state, ..LogStorage::new(start, (index, term)) };
    }

    /// The owner has applied everything up to this entry.
    pub(crate) fn note_applied(&mut self, index: u64) {
        if let Some(term) = self.term_of(index) {
            self.applied = (index, term);
        }
    }

    fn get(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.tail_first())?;
        self.tail.get(usize::try_from(at).ok()?)
    }

    /// The next stretch to be read back. Its outcome goes to `fetched`.
    pub(crate) fn begin_fetch(&mut self) -> Option<Fetch> {
        let to = self.tail_first();
        let fetches = self.fetches.get_mut();
        if fetches.running {
            return None;
        }
        let from = fetches.wanted.front()?.low;
        fetches.running = true;
        Some(Fetch { from, to, terms: self.terms.iter().copied().collect() })
    }

    /// Takes what was read back, None when it cannot be; then nobody gets it, nor what comes before it. What raft is to
    /// be told, if anything.
    pub(crate) fn fetched(&mut self, entries: Option<Vec<Entry>>) -> Option<GetEntriesContext> {
        let fetches = self.fetches.get_mut();
        fetches.running = false;
        let wanted = fetches.wanted.pop_front()?;
        match entries {
            Some(entries) if entries.first().is_some_and(|entry| entry.index == wanted.low) => {
                fetches.fetched.push_back(entries);
                if fetches.fetched.len() > FETCHED_MAX {
                    fetches.fetched.pop_front();
                }
            }
            _ => self.compact(self.before.0),
        }
        Some(wanted.context)
    }

    /// What was read back is of no use any more, as when this member does not lead.
    pub(crate) fn forget_fetched(&mut self) {
        let fetches = self.fetches.get_mut();
        fetches.fetched.clear();
        fetches.wanted.truncate(usize::from(fetches.running));
    }

    /// Entries before the tail: what was fetched, or the wish that they be.
    fn older(&self, low: u64, high: u64, limit: u64, context: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        let mut fetches = self.fetches.borrow_mut();
        for stretch in &fetches.fetched {
            let first = stretch.first().map_or(u64::MAX, |entry| entry.index);
            if (first..first.saturating_add(stretch.len() as u64)).contains(&low) {
                let from = (low - first) as usize;
                let to = stretch.len().min((high - first) as usize);
                return Ok(limited(stretch[from..to].iter(), limit));
            }
        }
        if !context.can_async() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let is_new = fetches.wanted.iter().all(|wanted| wanted.low != low);
        if is_new && fetches.wanted.len() < WANTED_MAX {
            fetches.wanted.push_back(Wanted { low, context });
        }
        Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))
    }
}

/// Entries up to the limit in bytes; one always goes, however large.
fn limited<'e>(entries: impl Iterator<Item = &'e Entry>, limit: u64) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += cost(entry) as u64;
        if bytes > limit && !out.is_empty() {
            break;
        }
        out.push(entry.clone());
    }
    out
}

impl Storage for LogStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.start.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 || low > high {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        if low < self.tail_first() && low < high {
            return self.older(low, high, limit, context);
        }
        let from = (low - self.tail_first()) as usize;
        let to = (high - self.tail_first()) as usize;
        Ok(limited(self.tail.range(from..to), limit))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.compacted.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.term_of(index).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Only what it says of itself: the state travels beside raft's log.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let (index, term) = self.applied;
        if index == 0 || index < request_index || index < self.compacted.0 {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        metadata.set_conf_state(self.conf_state.clone());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, bytes: usize) -> Entry {
        Entry { index, term, data: vec![0; bytes].into(), ..Entry::default() }
    }

    fn storage() -> LogStorage {
        let mut storage = LogStorage::new(RaftState::default(), (4, 2));
        storage.append(vec![entry(5, 2, 10), entry(6, 3, 10), entry(7, 3, 10)]);
        storage
    }

    fn read(storage: &LogStorage, low: u64, high: u64, limit: Option<u64>) -> raft::Result<Vec<u64>> {
        let entries = storage.entries(low, high, limit, GetEntriesContext::empty(false))?;
        Ok(entries.iter().map(|entry| entry.index).collect())
    }

    #[test]
    fn knows_its_bounds_and_terms() {
        let storage = storage();
        assert_eq!((storage.first(), storage.last()), (5, 7));
        assert_eq!(storage.term(3), Err(raft::Error::Store(StorageError::Compacted)));
        assert_eq!((storage.term(4), storage.term(5), storage.term(7)), (Ok(2), Ok(2), Ok(3)));
        assert_eq!(storage.term(8), Err(raft::Error::Store(StorageError::Unavailable)));
        assert_eq!(read(&storage, 4, 6, None), Err(raft::Error::Store(StorageError::Compacted)));
        assert_eq!(read(&storage, 5, 9, None), Err(raft::Error::Store(StorageError::Unavailable)));
        assert_eq!(read(&storage, 5, 8, None), Ok(vec![5, 6, 7]));
        assert_eq!(read(&storage, 8, 8, None), Ok(vec![]));
    }

    #[test]
    fn limits_what_it_hands_out_but_never_to_nothing() {
        let storage = storage();
        let one = cost(&entry(5, 2, 10)) as u64;
        assert_eq!(read(&storage, 5, 8, Some(0)), Ok(vec![5]));
        assert_eq!(read(&storage, 5, 8, Some(2 * one)), Ok(vec![5, 6]));
        assert_eq!(read(&storage, 5, 8, Some(2 * one - 1)), Ok(vec![5]));
    }

    #[test]
    fn newer_entries_replace_the_end() {
        let mut storage = storage();
        storage.append(vec![entry(6, 4, 1)]);
        assert_eq!((storage.last(), storage.term_of(6)), (6, Some(4)));
        assert_eq!(storage.bytes, cost(&entry(5, 2, 10)) + cost(&entry(6, 4, 1)));
    }

    #[test]
    fn trims_applied_entries_only_and_only_above_the_limit() {
        let mut storage = storage();
        storage.trim(6, usize::MAX);
        assert_eq!(storage.tail_first(), 5);
        storage.trim(6, 0);
        assert_eq!((storage.tail_first(), storage.last(), storage.first()), (7, 7, 5));
        assert_eq!([4, 5, 6, 7].map(|index| storage.term_of(index)), [2, 2, 3, 3].map(Some));
        storage.trim(7, 0);
        assert_eq!((storage.last(), storage.term_of(7), storage.bytes), (7, Some(3), 0));
        storage.append(vec![entry(8, 3, 1)]);
        assert_eq!(read(&storage, 8, 9, None), Ok(vec![8]));
    }

    #[test]
    fn what_left_the_tail_is_fetched_and_what_is_compacted_is_gone() {
        let unavailable = Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable));
        let fetch = |storage: &LogStorage, low, high| {
            let entries = storage.entries(low, high, u64::MAX, GetEntriesContext::empty(true))?;
            Ok(entries.iter().map(|entry| entry.index).collect::<Vec<_>>())
        };
        let mut storage = storage();
        storage.trim(6, 0);
        assert_eq!(storage.begin_fetch(), None);
        assert_eq!(fetch(&storage, 5, 8), unavailable);
        assert_eq!(fetch(&storage, 5, 8), unavailable, "asked for already");
        let terms = vec![(5, 2), (6, 3)];
        assert_eq!(storage.begin_fetch(), Some(Fetch { from: 5, to: 7, terms }));
        assert_eq!(storage.begin_fetch(), None, "it is being read");
        assert!(storage.fetched(Some(vec![entry(5, 2, 10), entry(6, 3, 10)])).is_some());
        assert_eq!(fetch(&storage, 5, 8), Ok(vec![5, 6]));
        assert_eq!(fetch(&storage, 6, 8), Ok(vec![6]));
        assert_eq!(fetch(&storage, 7, 8), Ok(vec![7]));
        assert_eq!(storage.begin_fetch(), None);
        storage.forget_fetched();
        assert_eq!(fetch(&storage, 6, 8), unavailable);
        assert!(storage.begin_fetch().is_some() && storage.fetched(None).is_some());
        let compacted = Err(raft::Error::Store(StorageError::Compacted));
        assert_eq!(fetch(&storage, 6, 8), compacted, "the disk has lost it");
        assert_eq!((storage.first(), storage.term_of(6), storage.term_of(5)), (7, Some(3), None));
        storage.compact(7);
        assert_eq!((storage.first(), storage.last(), storage.term_of(7)), (8, 7, Some(3)));
    }

    #[test]
    fn a_log_may_hold_more_than_was_replayed() {
        let mut storage = storage();
        storage.set_history(&[(2, 1), (4, 2)]);
        assert_eq!((storage.first(), storage.tail_first()), (3, 5));
        assert_eq!([2, 3, 4, 5].map(|index| storage.term_of(index)), [1, 1, 2, 2].map(Some));
        let mut storage = super::tests::storage();
        storage.set_history(&[(2, 1)]);
        assert_eq!([2, 3, 4].map(|index| storage.term_of(index)), [1, 1, 2].map(Some), "it ends one before");
        let mut storage = super::tests::storage();
        storage.set_history(&[(4, 2)]);
        assert_eq!((storage.first(), storage.term_of(3)), (5, None), "nothing more");
    }

    #[test]
    fn compaction_keeps_the_terms_of_what_stays() {
        let mut storage = LogStorage::new(RaftState::default(), (0, 0));
        let terms = [1, 1, 2, 2, 4, 4, 4, 9];
        storage.append((1..).zip(terms).map(|(index, term)| entry(index, term, 1)).collect());
        storage.trim(7, 0);
        for compacted in 0..8 {
            storage.compact(compacted);
            for index in 1..=8u64 {
                let known = (index >= compacted).then(|| terms[index as usize - 1]);
                assert_eq!(storage.term_of(index), known, "{index} with {compacted} compacted");
            }
        }
        storage.note_applied(7);
        let snapshot = storage.snapshot(0, 1).unwrap();
        assert_eq!((snapshot.get_metadata().index, snapshot.get_metadata().term), (7, 4));
        assert!(storage.snapshot(8, 1).is_err(), "it is not applied yet");
        storage.reset(20, 9);
        assert_eq!((storage.first(), storage.last(), storage.term_of(20)), (21, 20, Some(9)));
    }

    #[test]
    #[should_panic(expected = "does not follow the log")]
    fn refuses_a_gap() {
        storage().append(vec![entry(9, 3, 1)]);
    }

    #[test]
    #[should_panic(expected = "of term 2 after term 3")]
    fn refuses_a_falling_term() {
        storage().append(vec![entry(8, 2, 1)]);
    }
}
