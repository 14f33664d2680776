//! The end of the log in memory, as raft reads it.
//!
//! Holds the entries after a compacted index, without gaps and with terms that never fall, and knows the term of
//! the compacted index itself. What raft reads here is not always durable yet; the driver tells raft what is.
//! Entries are dropped only once they are applied, and only when the tail is larger than its owner allows, so that
//! a slow peer finds them as long as possible. An older entry is `Compacted`: this file never reads the disk.

use std::collections::VecDeque;

use raft::eraftpb::{Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

/// The tail of the log, with the state that raft starts from.
pub(crate) struct LogStorage {
    start: RaftState,
    compacted: (u64, u64),
    tail: VecDeque<Entry>,
    bytes: usize,
}

/// Memory that an entry takes in the tail, in bytes.
pub(crate) fn cost(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.data.len() + entry.context.len()
}

impl LogStorage {
    /// A log that holds nothing after the compacted (index, term).
    pub(crate) fn new(start: RaftState, compacted: (u64, u64)) -> LogStorage {
        LogStorage { start, compacted, tail: VecDeque::new(), bytes: 0 }
    }

    /// Index of the first entry that is here, were it there.
    pub(crate) fn first(&self) -> u64 {
        self.compacted.0 + 1
    }

    /// Index of the last entry; the compacted index when there is none.
    pub(crate) fn last(&self) -> u64 {
        self.compacted.0 + self.tail.len() as u64
    }

    /// Term of an entry that is here or was compacted last.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.compacted.0 {
            return Some(self.compacted.1);
        }
        self.get(index).map(|entry| entry.term)
    }

    /// Appends entries; those that stand from the first one's index on give way.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.compacted.0 && first.index <= self.last() + 1,
            "raft entry {} does not follow the log {}..={}",
            first.index,
            self.first(),
            self.last()
        );
        while self.last() >= first.index {
            let entry = self.tail.pop_back().expect("the last index is above the compacted one");
            self.bytes -= cost(&entry);
        }
        let mut next = (first.index, self.tail.back().map_or(self.compacted.1, |entry| entry.term));
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

    /// Drops the oldest entries up to `applied` until the tail takes `limit` bytes at most.
    pub(crate) fn trim(&mut self, applied: u64, limit: usize) {
        while self.bytes > limit && self.compacted.0 < applied {
            let Some(entry) = self.tail.pop_front() else { return };
            self.bytes -= cost(&entry);
            self.compacted = (entry.index, entry.term);
        }
    }

    fn get(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.first())?;
        self.tail.get(usize::try_from(at).ok()?)
    }
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
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 || low > high {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let from = (low - self.first()) as usize;
        let to = (high - self.first()) as usize;
        let mut entries = Vec::with_capacity(if limit == u64::MAX { to - from } else { 0 });
        let mut bytes = 0;
        for entry in self.tail.range(from..to) {
            // One entry always goes, however large.
            bytes += cost(entry) as u64;
            if bytes > limit && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
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

    /// Snapshots travel outside of raft's log; until one is at hand a peer that needs one waits.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
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
        assert_eq!(storage.first(), 5);
        storage.trim(6, 0);
        assert_eq!((storage.first(), storage.last(), storage.term_of(6)), (7, 7, Some(3)));
        storage.trim(7, 0);
        assert_eq!((storage.last(), storage.term_of(7), storage.bytes), (7, Some(3), 0));
        storage.append(vec![entry(8, 3, 1)]);
        assert_eq!(read(&storage, 8, 9, None), Ok(vec![8]));
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
