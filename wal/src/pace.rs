//! How fast segments are zeroed ahead, and whether at all: as fast as the log is written, and a little earlier.
//!
//! Zeroing a segment at full speed would keep the disk from the syncs that callers wait for, so the worker follows
//! the writer. It never waits once a segment is asked for, and never when it is told to stop.
//!
//! A sync of blocks that were only allocated also writes the file system's journal, some 12 KiB. That is dear beside a
//! batch of one block and little beside a large one, while zeroing writes every byte once more: so blocks are not
//! zeroed while batches are large.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The worker may be this far ahead of the writer.
const LEAD_BYTES: u64 = 16 << 20;
/// The writer tells its place once for as many bytes.
const TELL_BYTES: u64 = 1 << 20;
/// The writer's place when the worker is not to wait.
const AT_ONCE: u64 = u64::MAX;
/// Batches are large from this average on, in bytes.
const LARGE_BATCH_BYTES: u64 = 64 << 10;
/// The average is taken over this much of the log.
const AVERAGE_BYTES: u64 = 1 << 20;

/// What the worker knows of the writer.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// How much of its segment the writer has used.
    used: u64,
    /// Batches are large: nothing is to be zeroed.
    large: bool,
}

/// Where the writer is and how it writes, shared by writer and worker.
#[derive(Debug, Clone)]
pub(crate) struct Place(Arc<(Mutex<Seen>, Condvar)>);

impl Place {
    pub(crate) fn new() -> Place {
        Place(Arc::new((Mutex::new(Seen { used: 0, large: false }), Condvar::new())))
    }

    fn tell(&self, used: u64, large: bool) {
        let (place, moved) = &*self.0;
        // Nobody panics with the lock held.
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Seen { used, large };
        moved.notify_one();
    }

    /// Waits until the writer has used this much of its segment, or batches are large, or there is no time to
    /// wait. Whether batches are large then.
    pub(crate) fn wait_for(&self, used: u64) -> bool {
        let (place, moved) = &*self.0;
        let held = place.lock().unwrap_or_else(PoisonError::into_inner);
        let held = moved.wait_while(held, |seen| !seen.large && seen.used < used);
        // An error is the poison of a lock that is not used for anything else.
        held.unwrap_or_else(PoisonError::into_inner).large
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
    large: bool,
    large_bytes: u64,
    average_bytes: u64,
    /// What was written since the average was taken last.
    bytes: u64,
    batches: u64,
}

impl Pace {
    /// In a small segment, and with small batches, less is large.
    pub(crate) fn new(place: Place, segment_bytes: u64, batch_bytes: u64) -> Pace {
        Pace {
            place,
            told: 0,
            large: false,
            large_bytes: LARGE_BATCH_BYTES.min(batch_bytes),
            average_bytes: AVERAGE_BYTES.min(segment_bytes / 4),
            bytes: 0,
            batches: 0,
        }
    }

    /// The writer has submitted a batch.
    pub(crate) fn batch(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.batches += 1;
        if self.bytes >= self.average_bytes {
            let large = self.bytes / self.batches >= self.large_bytes;
            (self.bytes, self.batches) = (0, 0);
            if large != self.large {
                self.large = large;
                self.place.tell(self.told, large);
            }
        }
    }

    /// Whether batches are large.
    pub(crate) fn large(&self) -> bool {
        self.large
    }

    /// The writer has used this much of its segment, or wants to.
    pub(crate) fn used(&mut self, used: u64) {
        if used >= self.told.saturating_add(TELL_BYTES) {
            self.told = used;
            self.place.tell(used, self.large);
        }
    }

    /// What is asked for is needed now.
    pub(crate) fn hurry(&mut self) {
        self.told = AT_ONCE;
        self.place.tell(AT_ONCE, self.large);
    }

    /// The writer begins a segment.
    pub(crate) fn begin(&mut self) {
        self.told = 0;
        self.place.tell(0, self.large);
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
        let mut pace = Pace::new(place.clone(), SEGMENT, 1 << 20);
        let worker = std::thread::spawn(move || {
            assert!(!place.wait_for(3 * TELL_BYTES) && !place.wait_for(AT_ONCE));
        });
        pace.used(TELL_BYTES / 2);
        pace.used(4 * TELL_BYTES);
        pace.hurry();
        worker.join().unwrap();
    }

    #[test]
    fn large_batches_end_the_wait_and_small_ones_bring_it_back() {
        let place = Place::new();
        let mut pace = Pace::new(place.clone(), SEGMENT, 1 << 20);
        let waiting = place.clone();
        let worker = std::thread::spawn(move || waiting.wait_for(SEGMENT));
        for _ in 0..AVERAGE_BYTES / LARGE_BATCH_BYTES {
            assert!(!pace.large());
            pace.batch(LARGE_BATCH_BYTES);
        }
        assert!(worker.join().unwrap() && pace.large());
        for _ in 0..AVERAGE_BYTES / 4096 {
            pace.batch(4096);
        }
        assert!(!pace.large() && !place.wait_for(0));
    }
}
