//! Counters of the log: bytes, syncs, and how long syncs took.

/// Upper bounds of the buckets in microseconds. Those from 1 ms on are etcd's for
/// `etcd_disk_wal_fsync_duration_seconds` (0.001 * 2^n, 14 of them); the finer ones before are ours.
pub const SYNC_BUCKETS_MICROS: [u64; 20] = [
    16, 32, 64, 128, 256, 512, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000,
    1_024_000, 2_048_000, 4_096_000, 8_192_000,
];

/// How often a sync took how long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncTimes {
    /// Syncs per bucket of [`SYNC_BUCKETS_MICROS`], not cumulative; the last one counts those above all bounds.
    pub counts: [u64; SYNC_BUCKETS_MICROS.len() + 1],
    /// All times together, in microseconds.
    pub sum_micros: u64,
}

impl SyncTimes {
    pub(crate) fn record(&mut self, micros: u64) {
        self.counts[SYNC_BUCKETS_MICROS.partition_point(|bound| *bound < micros)] += 1;
        self.sum_micros += micros;
    }

    /// How many syncs were measured.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Counters since the log was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of batches written and durable, with their padding.
    pub bytes_written: u64,
    /// Batches made durable by a sync of their own.
    pub syncs: u64,
    /// Times of those syncs; on io_uring of write and sync together, which are one call there. Empty on a
    /// simulated disk, which has no clock.
    pub sync_times: SyncTimes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_bucket_with_the_next_bound() {
        let mut times = SyncTimes::default();
        for micros in [0, 16, 17, 1_000, 1_001, 8_192_000, 8_192_001] {
            times.record(micros);
        }
        assert_eq!((times.counts[0], times.counts[1], times.counts[6], times.counts[7]), (2, 1, 1, 1));
        assert_eq!((times.counts[19], times.counts[20], times.count()), (1, 1, 7));
        for n in 0..14 {
            assert!(SYNC_BUCKETS_MICROS.contains(&(1_000 << n)), "etcd's bucket {n}");
        }
    }
}
