//! Compaction: marks a revision at once, and removes what it superseded step by step.
//!
//! What stays after a compaction to R is etcd's rule (K9): of the entries with main <= R, per user key the newest,
//! except that a newest that is a tombstone stays only if its main is R itself.
//!
//! The removal walks tree `Key` over the revisions from F, the last compaction that finished, to R, both included:
//! - each entry there removes its predecessor, the entry of the same user key just before it in the index;
//! - a tombstone there with main < R goes itself, too.
//!
//! Why that is the rule. Let x be an entry with main <= R, and let everything up to F be as the rule for F says.
//! If x has a successor (the next entry of its key) with main <= R, that successor lies at or after F: else the
//! rule for F would have removed x. So the walk meets the successor, finds x just before it (nothing lies between,
//! and the walk removes entries of a key only in their order), and removes it. If x has no such successor, it is
//! the newest of its key; no entry that the walk meets has it as its predecessor, so it stays, unless it is a
//! tombstone. A tombstone below F is not there, one from F (F itself included: the last compaction left it) to R-1
//! is met and removed, and one at R stays.
//!
//! The walk is idempotent: an entry that is gone already had its predecessor removed before. So a restart begins
//! again at F, and a compaction to a later revision takes over the walk of one that is still running: what was
//! done for R is right for the later one, except for tombstones at R, so the walk goes back to R if it passed it.
//! The work is proportional to what was written between F and R, however many keys there are.

use super::codec::{self, RevisionKey};
use super::read::inconsistent;
use super::{COMPACT_REVISION, Revision};
use crate::{Store, StoreError, TreeId, View};

pub(super) const SCHEDULED: &[u8] = b"scheduledCompactRev";
pub(super) const FINISHED: &[u8] = b"finishedCompactRev";

/// So many entries are collected before their predecessors are removed.
const BATCH: usize = 256;

/// Where a compaction stands: the first revision that it did not look at yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk(Revision);

/// Entries that the walk met, with their user keys one after the other.
#[derive(Debug, Default)]
struct Batch {
    entries: Vec<(Revision, bool, usize)>,
    keys: Vec<u8>,
}

impl View<'_> {
    /// The last compaction that has removed everything; -1 if there was none.
    pub(super) fn finished_compaction(&self) -> Result<i64, StoreError> {
        let Some(mark) = self.get(TreeId::Meta, FINISHED)? else { return Ok(-1) };
        let (revision, _) = RevisionKey::parse(&mark)
            .ok_or_else(|| inconsistent(TreeId::Meta, "malformed revision", FINISHED))?;
        Ok(revision.main)
    }
}

impl Store {
    /// Marks the compaction (meta/scheduledCompactRev): revisions below are refused at once. Errors: Compacted,
    /// Future. Superseded revisions go in `compact_step`.
    pub fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        let (compacted, current) = (self.view().compact_revision(), self.view().revision());
        if revision <= compacted {
            return Err(StoreError::Compacted);
        }
        if revision > current {
            return Err(StoreError::Future);
        }
        if let Some(Walk(next)) = &mut self.mvcc.walk {
            *next = (*next).min(Revision { main: compacted, sub: 0 });
        }
        let mark = RevisionKey::new(Revision { main: revision, sub: 0 }, false);
        self.insert(TreeId::Meta, SCHEDULED, &mark)?;
        self.set_counter(COMPACT_REVISION, (revision + 1) as u64);
        Ok(())
    }

    /// Looks at up to `budget` revisions (at least one) and removes what they supersede: one of them removes two at
    /// most, and all together no more than were written. True when nothing is left to do (meta/finishedCompactRev
    /// is then written). Resumes by itself after a restart.
    pub fn compact_step(&mut self, budget: usize) -> Result<bool, StoreError> {
        let target = self.view().compact_revision();
        let finished = self.view().finished_compaction()?;
        if finished >= target {
            return Ok(true);
        }
        let mut left = budget.max(1);
        let mut batch = Batch::default();
        while left > 0 {
            let start = self.mvcc.walk.map_or(Revision { main: finished.max(0), sub: 0 }, |walk| walk.0);
            let limit = left.min(BATCH);
            self.collect(&mut batch, start, target, limit)?;
            self.remove_superseded(&batch, target)?;
            if batch.entries.len() < limit {
                let mark = RevisionKey::new(Revision { main: target, sub: 0 }, false);
                self.insert(TreeId::Meta, FINISHED, &mark)?;
                self.mvcc.walk = None;
                return Ok(true);
            }
            let last = batch.entries[batch.entries.len() - 1].0;
            self.mvcc.walk = Some(Walk(Revision { sub: last.sub + 1, ..last }));
            left -= limit;
        }
        Ok(false)
    }

    /// Fills the batch with the entries of tree `Key` from `start` up to main revision `target`.
    fn collect(
        &self,
        batch: &mut Batch,
        start: Revision,
        target: i64,
        limit: usize,
    ) -> Result<(), StoreError> {
        batch.entries.clear();
        batch.keys.clear();
        let mut cursor = self.view().seek(TreeId::Key, &RevisionKey::new(start, false))?;
        while batch.entries.len() < limit {
            let Some(entry) = cursor.key() else { break };
            let (revision, tombstone) =
                RevisionKey::parse(entry).ok_or_else(|| inconsistent(TreeId::Key, "malformed key", entry))?;
            if revision.main > target {
                break;
            }
            let pair = cursor.value()?;
            let key = pair
                .as_deref()
                .and_then(|pair| Some(&pair[codec::key_of_pair(pair)?]))
                .ok_or_else(|| inconsistent(TreeId::Key, "malformed pair", entry))?;
            batch.keys.extend_from_slice(key);
            batch.entries.push((revision, tombstone, key.len()));
            cursor.next()?;
        }
        Ok(())
    }

    fn remove_superseded(&mut self, batch: &Batch, target: i64) -> Result<(), StoreError> {
        let mut keys = batch.keys.as_slice();
        let mut probe = Vec::new();
        for &(revision, tombstone, key_len) in &batch.entries {
            let (key, rest) = keys.split_at(key_len);
            keys = rest;
            codec::index_key(&mut probe, key, revision);
            if let Some((superseded, live)) = self.view().newest_before(key_len, &probe)? {
                self.remove_version(key, superseded, live.is_none(), &mut probe)?;
                self.make_first(key, revision, &mut probe)?;
            }
            if tombstone && revision.main < target {
                self.remove_version(key, revision, true, &mut probe)?;
            }
        }
        Ok(())
    }

    /// Nothing older of the key is left: the entry counts for what was removed. (What follows a tombstone is a put,
    /// and counts as the first of its key anyway.)
    fn make_first(&mut self, key: &[u8], revision: Revision, probe: &mut Vec<u8>) -> Result<(), StoreError> {
        codec::index_key(probe, key, revision);
        let first = self.view().get(TreeId::Index, probe)?.and_then(|value| codec::as_first(&value));
        match first {
            Some(value) => self.insert(TreeId::Index, probe, &value),
            None => Ok(()),
        }
    }

    fn remove_version(
        &mut self,
        key: &[u8],
        revision: Revision,
        tombstone: bool,
        probe: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        codec::index_key(probe, key, revision);
        let indexed = self.remove(TreeId::Index, probe)?;
        let stored = self.remove(TreeId::Key, &RevisionKey::new(revision, tombstone))?;
        if indexed && stored {
            return Ok(());
        }
        Err(inconsistent(TreeId::Key, "index and history disagree", probe))
    }
}
