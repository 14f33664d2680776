//! Compactions that nobody asks for: by age, or by a number of revisions (C7).
//!
//! Only the leader proposes them; every member takes samples, so that a new leader need not begin anew. It must never
//! read a clock: times are handed in.

use std::collections::VecDeque;
use std::time::Duration;

use trilith_proto::etcdserverpb as pb;

use super::Core;
use super::waiters::Waiter;
use crate::apply::Answer;
use crate::apply::command::Command;
use crate::status;

/// Between compactions by revision.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);
/// Compactions by age come no more seldom than this, however much is kept.
const PERIOD_MAX: Duration = Duration::from_secs(3600);
/// Samples of the revision in such an interval.
const SAMPLES: u32 = 10;

/// How much of the history is kept: --auto-compaction-mode and --auto-compaction-retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// All of it.
    All,
    /// What is not older than this.
    Period(Duration),
    /// So many revisions.
    Revisions(i64),
}

/// Where it stands.
#[derive(Debug)]
pub(super) struct AutoCompaction {
    retention: Retention,
    /// Revisions at the times of the last samples, oldest first.
    samples: VecDeque<i64>,
    /// When the next sample is due, or the next compaction by revision.
    due: Duration,
    /// When a compaction last succeeded, or everything began; and how long after that the next is due.
    last: Duration,
    wait: Duration,
    /// The revision of the last one that succeeded, by revision.
    compacted: i64,
    under_way: bool,
}

impl AutoCompaction {
    pub(super) fn new(retention: Retention) -> AutoCompaction {
        let (due, wait) = match retention {
            Retention::Revisions(_) => (REVISION_INTERVAL, Duration::ZERO),
            Retention::Period(period) => (Duration::ZERO, period),
            Retention::All => (Duration::MAX, Duration::ZERO),
        };
        let samples = VecDeque::new();
        AutoCompaction { retention, samples, due, last: Duration::ZERO, wait, compacted: 0, under_way: false }
    }

    /// The revision to compact to, if it is time.
    fn target(&mut self, now: Duration, revision: i64, leads: bool) -> Option<i64> {
        if now < self.due || self.under_way {
            return None;
        }
        match self.retention {
            Retention::All => None,
            Retention::Revisions(kept) => {
                self.due = now + REVISION_INTERVAL;
                Some(revision.saturating_sub(kept)).filter(|to| leads && *to > 0 && *to != self.compacted)
            }
            Retention::Period(period) => {
                let interval = period.min(PERIOD_MAX);
                let between = interval / SAMPLES;
                self.due = now + between;
                let target = self.samples.front().copied().filter(|_| leads && now >= self.last + self.wait);
                if target.is_some() {
                    self.wait = interval;
                }
                let most = (period.as_nanos() / between.as_nanos().max(1)) as usize + 1;
                self.samples.push_back(revision);
                if self.samples.len() > most {
                    self.samples.pop_front();
                }
                target
            }
        }
    }
}

impl Core {
    /// Proposes a compaction, if one is due.
    pub(super) fn compact_by_itself(&mut self) {
        let (now, revision, leads) = (self.now, self.store.view().revision(), self.is_primary());
        let Some(revision) = self.auto_compaction.target(now, revision, leads) else { return };
        self.auto_compaction.under_way = true;
        log::info!(revision; "starting auto compaction");
        let request = pb::CompactionRequest { revision, physical: false };
        self.propose_own(Waiter::AutoCompaction(revision), &Command::Compaction(request));
    }

    /// What came of it. After a failure the next sample tries again.
    pub(super) fn compacted_by_itself(&mut self, revision: i64, answer: &Answer) {
        let state = &mut self.auto_compaction;
        state.under_way = false;
        match answer {
            Err(status) if *status != status::COMPACTED => {
                log::warn!(revision, error:? = status; "failed auto compaction");
            }
            _ => {
                (state.last, state.compacted) = (self.now, revision);
                log::info!(revision; "completed auto compaction");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// What is compacted to, and in which minute, of a history with a revision every second that is watched ten
    /// times a minute.
    fn run(retention: Retention, minutes: u32, leads: impl Fn(u32) -> bool) -> Vec<(u32, i64)> {
        let mut state = AutoCompaction::new(retention);
        let mut done = Vec::new();
        for tick in 0..minutes * 10 {
            let now = MINUTE / 10 * tick;
            let revision = 1 + now.as_secs() as i64;
            if let Some(to) = state.target(now, revision, leads(tick / 10)) {
                done.push((tick / 10, to));
                (state.last, state.compacted) = (now, to);
            }
        }
        done
    }

    // The oldest sample that is kept is one interval older than the period when the next compaction is due, as in etcd.
    #[test]
    fn c7_by_age_the_first_after_a_period_then_one_an_interval() {
        let found = run(Retention::Period(10 * MINUTE), 41, |_| true);
        assert_eq!(found, [(10, 1), (20, 541), (30, 1141), (40, 1741)]);
        // More than an hour: samples every six minutes, a compaction an hour.
        let found = run(Retention::Period(120 * MINUTE), 301, |_| true);
        assert_eq!(found, [(120, 1), (180, 3241), (240, 6841), (300, 10441)]);
    }

    #[test]
    fn c7_by_revision_every_five_minutes_if_there_are_so_many() {
        assert_eq!(run(Retention::Revisions(400), 16, |_| true), [(10, 201), (15, 501)]);
        assert_eq!(run(Retention::All, 1000, |_| true), []);
    }

    #[test]
    fn c7_only_a_leader_compacts_and_a_new_one_has_samples() {
        assert_eq!(run(Retention::Revisions(400), 16, |minute| minute > 12), [(15, 501)]);
        assert_eq!(run(Retention::Period(10 * MINUTE), 31, |minute| minute >= 15), [(15, 241), (25, 841)]);
    }
}
