//! Compaction: marks a revision at once, and removes what it superseded bit by bit.
//!
//! What stays after a compaction to R is etcd's rule (K9): of the entries with main <= R, per user key the newest,
//! except that a newest that is a tombstone stays only if its main is R itself. The others are doomed.
//!
//! A walk over the store finds them, in pieces: a [`CompactionJob`] reads a published root on any thread
//! (`doomed`), and the writer takes out of its own, newer state what the job has listed, as much at a time as its
//! caller can spare. Doomed is for ever: no later put or compaction brings an entry back, so a list does not
//! grow wrong while it waits; an entry that is gone already is passed over.
//!
//! *What a crash leaves.* An entry goes from tree `Key` first and from `Index` later, so the index names all that is
//! left to do, and perhaps more. A walk that begins anew after a restart therefore goes by the index. A walk that
//! this process begins after it has seen the one before to its end finds both trees agreeing, and may look only at
//! what was written since, if that is little.
//!
//! A walk goes on to its own target when a later compaction is marked meanwhile; the next walk takes that up. So each
//! has an end however fast they follow each other.

use std::sync::Arc;

use super::codec::{self, RevisionKey};
use super::doomed::{CompactionJob, Doomed, Limit, Position};
use super::hash::CompactionHash;
use super::read::inconsistent;
use super::{COMPACT_REVISION, Revision};
use crate::edit_bulk::Successor;
use crate::root::State;
use crate::{Store, StoreError, TreeId, View};

pub(super) const SCHEDULED: &[u8] = b"scheduledCompactRev";
pub(super) const FINISHED: &[u8] = b"finishedCompactRev";

/// What the writer knows of the removal.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    /// The walk under way.
    walk: Option<Walk>,
    /// Nothing is left of any walk, and this process knows it: `Key` and `Index` name the same entries.
    settled: bool,
    /// What `compact_step` has not removed yet.
    piece: Option<Doomed>,
    /// X9: the compact revision before, and that of a compaction which was marked when the one before had ended: the job
    /// that looks for what it supersedes hashes first what is there.
    hash: Option<(i64, i64)>,
}

/// A walk: what it compacts to, and where its next piece begins.
#[derive(Debug)]
struct Walk {
    target: i64,
    position: Position,
    /// To be kept when it ends.
    hash: Option<CompactionHash>,
}

impl View<'_> {
    /// The last compaction that has removed everything; -1 if there was none.
    pub fn finished_compaction(&self) -> Result<i64, StoreError> {
        let Some(mark) = self.get(TreeId::Meta, FINISHED)? else { return Ok(-1) };
        let (revision, _) = RevisionKey::parse(&mark)
            .ok_or_else(|| inconsistent(TreeId::Meta, "malformed revision", FINISHED))?;
        Ok(revision.main)
    }
}

impl Store {
    /// Marks the compaction (meta/scheduledCompactRev): revisions below are refused at once. Errors: Compacted,
    /// Future. What it supersedes is removed by [`Store::begin_compaction`] and what follows on that.
    pub fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        let (compacted, current) = (self.view().compact_revision(), self.view().revision());
        if revision <= compacted {
            return Err(StoreError::Compacted);
        }
        if revision > current {
            return Err(StoreError::Future);
        }
        let finished = self.view().finished_compaction()? >= compacted;
        if self.removal.walk.is_none() && finished {
            self.removal.settled = true;
        }
        if finished {
            self.removal.hash = Some((compacted, revision));
        }
        let mark = RevisionKey::new(Revision { main: revision, sub: 0 }, false);
        self.insert(TreeId::Meta, SCHEDULED, &mark)?;
        self.set_counter(COMPACT_REVISION, (revision + 1) as u64);
        Ok(())
    }

    /// The next piece of work of a compaction: a job that may run on any thread, one at a time, and whose outcome
    /// goes to [`Store::remove_doomed`]. None when all published compactions have removed everything. Goes on by
    /// itself after a restart.
    pub fn begin_compaction(&mut self) -> Result<Option<CompactionJob>, StoreError> {
        let published = self.reader().root().0;
        self.compaction_in(published, Limit::PIECE)
    }

    fn compaction_in(
        &mut self,
        state: Arc<State>,
        limit: Limit,
    ) -> Result<Option<CompactionJob>, StoreError> {
        let finished = self.view().finished_compaction()?;
        let removal = &mut self.removal;
        let mut hash = None;
        let target = View { state: &state }.compact_revision();
        let walk = match &mut removal.walk {
            // A root from before its target lacks what supersedes.
            Some(walk) if walk.target > target => return Ok(None),
            Some(walk) => {
                // Handed out before: some of what it found may be gone from `Key`, and only the index names the rest.
                if let Position::Since(_) = walk.position {
                    walk.position = Position::Index(Vec::new());
                }
                walk
            }
            None => {
                if finished >= target {
                    return Ok(None);
                }
                let settled = std::mem::replace(&mut removal.settled, false);
                let position =
                    if settled { Position::Since(finished.max(0)) } else { Position::Index(Vec::new()) };
                hash = removal.hash.take();
                removal.walk.insert(Walk { target, position, hash: None })
            }
        };
        Ok(Some(CompactionJob { state, target: walk.target, position: walk.position.clone(), limit, hash }))
    }

    /// Removes what a job has listed, until the work allowed is spent: an entry counts as 1, a leaf that is touched as
    /// 16. How much it was; `Doomed::is_done` says whether that was all. Then meta/finishedCompactRev is
    /// written, if it was the last piece. Errors: Io, Corrupt, Stopped.
    pub fn remove_doomed(&mut self, doomed: &mut Doomed, work: usize) -> Result<usize, StoreError> {
        let mut left = work.max(1);
        let lists = [
            (TreeId::Key, None, &mut doomed.history),
            (TreeId::Index, Some(codec::as_first as Successor), &mut doomed.index),
        ];
        for (tree, successor, list) in lists {
            while left > 0 && list.removed < list.keys.len() {
                list.removed = self.remove_sorted(tree, &list.keys, successor, list.removed, &mut left)?;
            }
        }
        if doomed.is_listed() {
            return Ok(work.max(1) - left);
        }
        // A piece of another walk than the one under way was only work done twice.
        if let Some(walk) = &mut self.removal.walk
            && walk.target == doomed.target
            && walk.position == doomed.from
        {
            walk.hash = walk.hash.or(doomed.hash);
            match doomed.next.take() {
                Some(next) => walk.position = next,
                None => self.end_walk(doomed.target)?,
            }
        }
        doomed.done = true;
        Ok(work.max(1) - left)
    }

    fn end_walk(&mut self, target: i64) -> Result<(), StoreError> {
        let mark = RevisionKey::new(Revision { main: target, sub: 0 }, false);
        self.insert(TreeId::Meta, FINISHED, &mark)?;
        if let Some(hash) = self.removal.walk.take().and_then(|walk| walk.hash) {
            self.keep_hash(hash);
        }
        self.removal.settled = true;
        Ok(())
    }

    /// Looks for superseded entries, or removes some of those found, in the writer's own state: for callers that
    /// have no other thread. `budget` bounds the entries of a step by its order of magnitude. True when nothing is
    /// left to do.
    pub fn compact_step(&mut self, budget: usize) -> Result<bool, StoreError> {
        let mut doomed = match self.removal.piece.take() {
            Some(doomed) => doomed,
            None => {
                let state = Arc::new(self.state().clone());
                match self.compaction_in(state, Limit::of(budget))? {
                    None => return Ok(true),
                    Some(job) => job.run()?,
                }
            }
        };
        self.remove_doomed(&mut doomed, budget)?;
        if !doomed.is_done() {
            self.removal.piece = Some(doomed);
        }
        Ok(self.view().finished_compaction()? >= self.view().compact_revision())
    }
}
