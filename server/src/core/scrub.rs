//! The scrub's pace, and what becomes of damage.
//!
//! A thread that may block reads the store piece by piece, slowly: a whole pass takes a day, or goes on at a piece a
//! second where the store is small. Whatever damage it finds, or a reader met, is logged with file, page, field and tree, and
//! raises CORRUPT for this member: from then on it serves nothing that might be wrong.
//!
//! Must never read a page on the core's own thread.

use std::time::Duration;

use trilith_engine::{Root, Scrub};
use trilith_proto::etcdserverpb::AlarmType;

use super::Core;

/// What is read at a time, in bytes: the root is held for that long.
const PIECE_BYTES: u64 = 1 << 20;
/// From one piece to the next, at most.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a pass takes where that means shorter pauses.
const PASS: Duration = Duration::from_secs(24 * 60 * 60);

/// The walk over the store.
#[derive(Debug, Default)]
pub(super) struct Scrubbing {
    /// None while a piece is being read.
    idle: Option<Scrub>,
    begun: bool,
    next_at: Duration,
}

/// A piece of the walk: to run on a thread that may block.
#[derive(Debug)]
pub struct ScrubJob {
    scrub: Scrub,
    root: Root,
    ended_pass: bool,
}

impl ScrubJob {
    /// Reads the piece. Its outcome goes to `Core::scrub_finished`.
    pub fn run(mut self) -> ScrubJob {
        self.ended_pass = self.scrub.run(&self.root, PIECE_BYTES).ended_pass;
        self
    }
}

impl Core {
    /// The next piece, if it is time for it and none is being read.
    pub fn begin_scrub(&mut self) -> Option<ScrubJob> {
        let scrubbing = &mut self.scrubbing;
        if self.now < scrubbing.next_at {
            return None;
        }
        let first = !std::mem::replace(&mut scrubbing.begun, true);
        let scrub = scrubbing.idle.take().or_else(|| first.then(Scrub::default))?;
        Some(ScrubJob { scrub, root: self.store.reader().root(), ended_pass: false })
    }

    /// Takes note of a piece that was read.
    pub fn scrub_finished(&mut self, job: ScrubJob) {
        if job.ended_pass {
            log::debug!(bytes = self.store.size_in_use_bytes(); "the whole store has been read and compared");
        }
        self.scrubbing.idle = Some(job.scrub);
        self.scrubbing.next_at = self.now + pause(self.store.size_in_use_bytes());
        self.watch_damage();
    }

    /// Raises CORRUPT for damage that somebody found.
    pub(super) fn watch_damage(&mut self) {
        for damage in self.store.take_damage() {
            let (tree, page, error) = (damage.tree.name(), damage.page, damage.what.as_str());
            log::error!(tree, page, error; "the store is damaged");
            self.raise_alarm(AlarmType::Corrupt);
        }
    }
}

fn pause(bytes: u64) -> Duration {
    let pieces = u32::try_from(bytes / PIECE_BYTES + 1).unwrap_or(u32::MAX);
    PAUSE_MAX.min(PASS / pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_takes_a_day_or_goes_on_at_a_piece_a_second() {
        assert_eq!(pause(0), PAUSE_MAX);
        assert_eq!(pause(80 << 30), PAUSE_MAX);
        let pieces = 1 << 20;
        let pass = pause(pieces * PIECE_BYTES) * pieces as u32;
        assert!(pass <= PASS && pass > PASS / 100 * 99, "{pass:?}");
    }
}
