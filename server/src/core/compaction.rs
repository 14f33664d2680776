//! The removal of what compactions supersede, paced so that nobody waits for it.
//!
//! The search runs on a thread that may block (`begin_compaction` hands out the job). What it finds is removed here,
//! on the core's thread, in slices between the steps: whoever drives the core measures each slice, and the next is
//! sized by what the ones before took, so that it lasts about [`SLICE`] on this machine under this load. After a
//! slice the core is left to its callers for a multiple of the time that it took.
//!
//! It must never read a clock: times are handed in.

use std::time::Duration;

use tokio::sync::oneshot;
use trilith_engine::{CompactionJob, Doomed, StoreError};

use super::{Core, Fatal};
use crate::apply::Answer;
use crate::status::Status;

/// How long a slice should take: what a put may have to wait at most on account of a compaction.
const SLICE: Duration = Duration::from_micros(250);
/// How much work a slice may have at least and at most, as `Store::remove_doomed` counts it: whatever was measured.
const WORK_MIN: usize = 64;
const WORK_MAX: usize = 64 << 10;
/// Before anything was measured.
const WORK_FIRST: usize = 1024;
/// The pause after a slice, in times of what it took: while the core has other work, when somebody waits for the
/// end of the compaction, and when nothing else is to be done.
const PAUSE_BUSY: u32 = 12;
const PAUSE_WANTED: u32 = 4;
const PAUSE_IDLE: u32 = 1;

/// How far the removal is.
#[derive(Debug)]
pub(super) struct Compaction {
    stage: Stage,
    /// When the next slice may be removed.
    resume_at: Duration,
    /// Work that takes as long as a slice should.
    work: usize,
    /// Work of the last slice.
    last: usize,
    /// Log entries applied when the last slice was removed.
    applied: u64,
    /// C3: those who wait until everything up to a revision is removed.
    waiting: Vec<(i64, oneshot::Sender<Answer>, Answer)>,
}

#[derive(Debug)]
enum Stage {
    /// There is nothing to remove.
    Idle,
    /// There may be something.
    Wanted,
    /// A job is looking for it.
    Searching,
    Removing(Box<Doomed>),
}

impl Compaction {
    /// Whether something is left from before a restart is for the store to say.
    pub(super) fn new() -> Compaction {
        Compaction {
            stage: Stage::Wanted,
            resume_at: Duration::ZERO,
            work: WORK_FIRST,
            last: 0,
            applied: 0,
            waiting: Vec::new(),
        }
    }

    /// A compaction was marked.
    pub(super) fn want(&mut self) {
        if let Stage::Idle = self.stage {
            self.stage = Stage::Wanted;
        }
    }

    /// Whether a job is looking for what to remove.
    pub(super) fn is_searching(&self) -> bool {
        matches!(self.stage, Stage::Searching)
    }

    /// Another store has taken the place of the one that was searched.
    pub(super) fn restart(&mut self) {
        self.stage = Stage::Wanted;
    }

    /// To be answered when everything up to the revision is removed.
    pub(super) fn answer_after(&mut self, revision: i64, sender: oneshot::Sender<Answer>, answer: Answer) {
        self.waiting.push((revision, sender, answer));
    }

    /// When the core should be driven on account of this; None: no sooner than otherwise.
    pub(super) fn deadline(&self) -> Option<Duration> {
        matches!(self.stage, Stage::Removing(_)).then_some(self.resume_at)
    }
}

impl Core {
    /// The next search of a compaction, to run on a thread that may block, if there is one and none is running. Its
    /// outcome comes back by `compaction_found`.
    pub fn begin_compaction(&mut self) -> Result<Option<CompactionJob>, Fatal> {
        if !matches!(self.compaction.stage, Stage::Wanted) || self.awaits_install() {
            return Ok(None);
        }
        let job = self.store.begin_compaction()?;
        self.compaction.stage = if job.is_some() { Stage::Searching } else { Stage::Idle };
        if job.is_none() {
            self.answer_compacted()?;
        }
        Ok(job)
    }

    /// Takes what a search has found. One that met damage, or could not read, is given up until the next compaction: the
    /// removal is no reason to stop serving.
    pub fn compaction_found(&mut self, outcome: Result<Doomed, StoreError>) {
        self.compaction.stage = match outcome {
            Ok(doomed) => Stage::Removing(Box::new(doomed)),
            Err(error) => {
                log::error!(error:%; "superseded revisions cannot be looked for, and stay");
                let status = Status::from(error);
                for (_, sender, _) in self.compaction.waiting.drain(..) {
                    self.answers.push((sender, Err(status.clone())));
                }
                self.send_answers();
                self.watch_damage();
                Stage::Idle
            }
        };
    }

    /// Removes a slice of what was found, if its time has come; whether it did. The caller measures how long that took
    /// and says so to `slice_took`.
    pub fn remove_slice(&mut self) -> Result<bool, Fatal> {
        let compaction = &mut self.compaction;
        let Stage::Removing(doomed) = &mut compaction.stage else { return Ok(false) };
        if self.now < compaction.resume_at {
            return Ok(false);
        }
        trilith_failpoint::hit("compactBeforeCommitBatch");
        compaction.last = self.store.remove_doomed(doomed, compaction.work)?;
        trilith_failpoint::hit("compactAfterCommitBatch");
        if doomed.is_done() {
            compaction.stage = Stage::Wanted;
        }
        self.note_store_changed();
        self.store.publish();
        self.answer_compacted()?;
        Ok(true)
    }

    /// How long the last slice took, and with it how large the next one should be.
    pub fn slice_took(&mut self, took: Duration) {
        let (applied, _) = self.store.applied();
        let compaction = &mut self.compaction;
        // Half of what this slice says, half of what those before it said.
        let nanos = took.as_nanos().max(1);
        let fitting = compaction.last as u128 * SLICE.as_nanos() / nanos;
        let fitting = usize::try_from(fitting).unwrap_or(WORK_MAX);
        compaction.work = ((compaction.work + fitting) / 2).clamp(WORK_MIN, WORK_MAX);
        let pause = if applied == compaction.applied {
            PAUSE_IDLE
        } else if !compaction.waiting.is_empty() {
            PAUSE_WANTED
        } else {
            PAUSE_BUSY
        };
        compaction.applied = applied;
        compaction.resume_at = self.now + took * (1 + pause);
    }

    /// C3: answers those whose compaction has removed everything.
    fn answer_compacted(&mut self) -> Result<(), Fatal> {
        if self.compaction.waiting.is_empty() {
            return Ok(());
        }
        let finished = self.store.view().finished_compaction()?;
        for (revision, sender, answer) in std::mem::take(&mut self.compaction.waiting) {
            if revision <= finished {
                self.answers.push((sender, answer));
            } else {
                self.compaction.waiting.push((revision, sender, answer));
            }
        }
        self.send_answers();
        Ok(())
    }
}
