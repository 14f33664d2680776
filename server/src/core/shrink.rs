//! Keeps the store's file short, without anybody asking; and sooner, and to the last page, when somebody does.
//!
//! The store says what there is to do (`trilith_engine`): a walk to be run on a thread that may block, steps on the
//! core's thread, checkpoints. Here they are paced: a step keeps the core from its callers for a fraction of a
//! millisecond, with a pause after it; checkpoints come at intervals. Who asks for the file to be made shorter waits here,
//! and nobody waits for him.
//!
//! It must never read a clock, and never hold up a request.

use std::time::Duration;

use tokio::sync::oneshot;
use trilith_engine::{ShrinkPlan, ShrinkScan, StoreError};

use super::shared::Handle;
use super::{Core, Fatal};
use crate::status::{self, Status};

/// Pages that a step takes, and the pause after it: at most 32 MiB a second, for a twentieth of the core's time.
const STEP_PAGES: usize = 16;
const STEP_PAUSE: Duration = Duration::from_millis(2);
/// The same when somebody waits.
const STEP_PAUSE_ASKED: Duration = Duration::from_micros(500);
/// From one checkpoint to the next that is written for this alone.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(1);
const CHECKPOINT_PAUSE_ASKED: Duration = Duration::from_millis(20);

/// How far the core is with it.
#[derive(Debug, Default)]
pub(super) struct Shrinking {
    /// When the next step may be taken.
    step_at: Duration,
    /// A walk is being run.
    pub(super) scanning: bool,
    /// Those who asked, to be answered when the file is as short as it gets.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Core {
    /// A walk over the store, to run on a thread that may block, if one is due. Its outcome comes back by
    /// `shrink_scanned`.
    pub fn begin_shrink_scan(&mut self) -> Option<ShrinkScan> {
        if self.awaits_install() {
            return None;
        }
        let scan = self.store.begin_shrink_scan();
        self.shrinking.scanning |= scan.is_some();
        scan
    }

    /// Takes what a walk has found.
    pub fn shrink_scanned(&mut self, outcome: Result<ShrinkPlan, StoreError>) {
        self.shrinking.scanning = false;
        self.store.finish_shrink_scan(outcome);
    }

    /// Takes in who asks.
    pub(super) fn take_defragments(&mut self, asked: &mut Vec<oneshot::Sender<()>>) {
        if !asked.is_empty() {
            self.store.shrink_now();
            self.shrinking.waiting.append(asked);
        }
    }

    /// Takes a step if its time has come, and answers those who asked when there is nothing left to do.
    pub(super) fn shrink(&mut self) -> Result<(), Fatal> {
        if self.now >= self.shrinking.step_at && self.store.shrink_has_work() {
            if self.store.shrink_step(STEP_PAGES)? {
                self.note_store_changed();
                self.store.publish();
            }
            let pause = if self.shrinking.waiting.is_empty() { STEP_PAUSE } else { STEP_PAUSE_ASKED };
            self.shrinking.step_at = self.now + pause;
        }
        if self.store.shrink_rests() {
            for asked in self.shrinking.waiting.drain(..) {
                // Whoever has gone away meanwhile does not mind.
                let _ = asked.send(());
            }
        }
        Ok(())
    }

    /// When the next step is due; None if there is none.
    pub(super) fn shrink_deadline(&self) -> Option<Duration> {
        self.store.shrink_has_work().then_some(self.shrinking.step_at)
    }

    /// Whether a checkpoint is due since the file cannot get shorter without; `began` is when the last one began.
    pub(super) fn shrink_wants_checkpoint(&self, began: Duration) -> bool {
        let asked = !self.shrinking.waiting.is_empty();
        let pause = if asked { CHECKPOINT_PAUSE_ASKED } else { CHECKPOINT_PAUSE };
        self.store.shrink_wants_checkpoint() && self.now >= began + pause
    }
}

impl Handle {
    /// Has the store's file made as short as it gets, and waits until it is. Requests go on meanwhile, and calls at
    /// the same time share the work.
    pub async fn defragment(&self) -> Result<(), Status> {
        let (answer, answered) = oneshot::channel();
        self.ask_to_defragment(answer)?;
        answered.await.map_err(|_| status::STOPPED)
    }
}
