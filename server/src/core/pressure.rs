//! What the core does when space runs out.
//!
//! A checkpoint that finds no room on the disk is no end of the member: the log has everything that the store's file
//! has not, so nothing is lost, and the next checkpoint tries again after a pause. That one tells whether there is
//! room again.
//!
//! Must never take any other error for a lack of room.

use std::time::Duration;

use trilith_engine::StoreError;

use super::Core;

/// From an attempt that found no room to the next; doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// The member's want of space.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// When the store's file may be tried again; None while it has room.
    retry_at: Option<Duration>,
    pause: Duration,
}

impl Core {
    /// Whether a checkpoint is to be tried because the last one found no room; None when that is no question.
    pub(super) fn retries_checkpoint(&self) -> Option<bool> {
        self.pressure.retry_at.map(|at| self.now >= at)
    }

    /// A checkpoint found no room, and has changed nothing.
    pub(super) fn store_is_full(&mut self, error: &StoreError) {
        let pressure = &mut self.pressure;
        if pressure.retry_at.is_none() {
            log::warn!(error:%; "no space for the store: what it has not written stays in the log");
            pressure.pause = PAUSE_MIN;
        }
        pressure.retry_at = Some(self.now + pressure.pause);
        pressure.pause = (pressure.pause * 2).min(PAUSE_MAX);
    }

    /// A checkpoint is durable.
    pub(super) fn store_has_room(&mut self) {
        if self.pressure.retry_at.take().is_some() {
            log::info!("there is space for the store again");
        }
    }
}
