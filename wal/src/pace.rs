//! How fast segments are zeroed ahead: as fast as the log is written, and a little earlier.
//!
//! Zeroing a segment at full speed would keep the disk from the syncs that callers wait for, so the worker follows
//! the writer. It never waits once a segment is asked for, and never when it is told to stop.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The worker may be this far ahead of the writer.
const LEAD_BYTES: u64 = 16 << 20;
/// The writer tells its place once for as many bytes.
const TELL_BYTES: u64 = 1 << 20;
/// The writer's place when the worker is not to wait.
const AT_ONCE: u64 = u64::MAX;

/// The writer's place in its segment, shared by writer and worker.
#[derive(Debug, Clone)]
pub(crate) struct Place(Arc<(Mutex<u64>, Condvar)>);

impl Place {
    pub(crate) fn new() -> Place {
        Place(Arc::new((Mutex::new(0), Condvar::new())))
    }

    fn tell(&self, used: u64) {
        let (place, moved) = &*self.0;
        // Nobody panics with the lock held.
        *place.lock().unwrap_or_else(PoisonError::into_inner) = used;
        moved.notify_one();
    }

    /// Waits until the writer has used this much of its segment, or there is no time to wait.
    pub(crate) fn wait_for(&self, used: u64) {
        let (place, moved) = &*self.0;
        let held = place.lock().unwrap_or_else(PoisonError::into_inner);
        // An error is the poison of a lock that is not used for anything else.
        let _held = moved.wait_while(held, |place| *place < used);
    }
}

/// How much of the segment in use the writer has used before its own part is zeroed from `zeroed` on: the worker
/// goes twice as fast as the writer.
pub(crate) fn rest(zeroed: u64) -> u64 {
    zeroed.saturating_sub(LEAD_BYTES) / 2
}

/// The same for the segment after it, which is begun when a quarter of the one in use is written.
pub(crate) fn next(zeroed: u64, segment_bytes: u64) -> u64 {
    match zeroed.saturating_sub(LEAD_BYTES) {
        0 => 0,
        ahead => segment_bytes / 4 + ahead / 4 * 3,
    }
}

/// The writer's side.
#[derive(Debug)]
pub(crate) struct Pace {
    place: Place,
    told: u64,
}

impl Pace {
    pub(crate) fn new(place: Place) -> Pace {
        Pace { place, told: 0 }
    }

    /// The writer has used this much of its segment, or wants to.
    pub(crate) fn used(&mut self, used: u64) {
        if used >= self.told.saturating_add(TELL_BYTES) {
            self.told = used;
            self.place.tell(used);
        }
    }

    /// What is asked for is needed now.
    pub(crate) fn hurry(&mut self) {
        self.told = AT_ONCE;
        self.place.tell(AT_ONCE);
    }

    /// The writer begins a segment.
    pub(crate) fn begin(&mut self) {
        self.told = 0;
        self.place.tell(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 64_000_000;

    #[test]
    fn the_worker_is_through_before_the_writer() {
        assert_eq!((rest(0), next(0, SEGMENT)), (0, 0));
        assert_eq!((rest(LEAD_BYTES), next(LEAD_BYTES, SEGMENT)), (0, 0));
        for zeroed in (0..SEGMENT).step_by(1 << 20) {
            assert!(
                rest(zeroed) + LEAD_BYTES <= zeroed.max(LEAD_BYTES),
                "the writer never waits for its turn"
            );
        }
        assert!(rest(SEGMENT) < SEGMENT / 2);
        assert!(next(SEGMENT, SEGMENT) + LEAD_BYTES / 2 < SEGMENT);
    }

    #[test]
    fn a_waiting_worker_goes_on_when_the_writer_moves_or_hurries() {
        let place = Place::new();
        let mut pace = Pace::new(place.clone());
        let worker = std::thread::spawn(move || {
            place.wait_for(3 * TELL_BYTES);
            place.wait_for(AT_ONCE);
        });
        pace.used(TELL_BYTES / 2);
        pace.used(4 * TELL_BYTES);
        pace.hurry();
        worker.join().unwrap();
    }
}
