//! Catching up: one bounded read of the store's history for a stream's lagging watchers.

use trilith_engine::{Change, StoreError, View};

use super::matcher::{Interval, Matcher};
use super::state::{Delivery, Filters, What, change_bytes};

/// A round ends after this many changes read, or bytes found for watchers; never within a revision. Few enough that
/// whatever else the thread does waits for a millisecond at most.
const ROUND_CHANGES_MAX: usize = 1000;
const ROUND_BYTES_MAX: usize = 1 << 20;

/// Where changes of the past come from.
pub(super) trait History {
    fn revision(&self) -> i64;
    /// The last compaction, or -1.
    fn compact_revision(&self) -> i64;
    /// Hands out the changes with main revision in [from, to], in order, until `each` says false.
    fn scan(&self, from: i64, to: i64, each: &mut dyn FnMut(Change) -> bool) -> Result<(), StoreError>;
}

impl History for View<'_> {
    fn revision(&self) -> i64 {
        View::revision(self)
    }

    fn compact_revision(&self) -> i64 {
        View::compact_revision(self)
    }

    fn scan(&self, from: i64, to: i64, each: &mut dyn FnMut(Change) -> bool) -> Result<(), StoreError> {
        for change in self.changes(from, to)? {
            if !each(change?) {
                break;
            }
        }
        Ok(())
    }
}

/// A lagging watcher, as far as a round needs to know it.
#[derive(Debug)]
pub(super) struct RoundWatcher {
    pub(super) watch_id: i64,
    pub(super) next: i64,
    pub(super) interval: Interval,
    pub(super) filters: Filters,
    pub(super) prev_kv: bool,
    pub(super) fragment: bool,
}

/// A round to be run.
#[derive(Debug)]
pub(super) struct Round {
    watchers: Vec<RoundWatcher>,
}

/// A round that was run.
#[derive(Debug, Default)]
pub(super) struct Done {
    deliveries: Vec<Delivery>,
    /// Watchers that want what is gone: ended.
    pub(super) compacted: Vec<i64>,
    /// Watcher, its next revision, and whether changes were found for it.
    pub(super) advanced: Vec<(i64, i64, bool)>,
}

impl Done {
    pub(super) fn into_deliveries(self) -> Vec<Delivery> {
        self.deliveries
    }
}

impl Round {
    pub(super) fn new(watchers: Vec<RoundWatcher>) -> Round {
        Round { watchers }
    }

    /// Reads on from the watcher that is furthest behind.
    pub(super) fn run(self, history: &impl History) -> Result<Done, StoreError> {
        trilith_failpoint::hit("beforeSyncWatchers");
        let mut done = Done::default();
        let compact_revision = history.compact_revision();
        let (gone, watchers): (Vec<_>, Vec<_>) =
            self.watchers.into_iter().partition(|watcher| watcher.next < compact_revision);
        for watcher in gone {
            done.compacted.push(watcher.watch_id);
            done.deliveries.push(watcher.delivery(What::Compacted { compact_revision }));
        }
        let revision = history.revision();
        let Some(from) = watchers.iter().map(|watcher| watcher.next).min() else { return Ok(done) };
        let (found, read_to) = read(history, &watchers, from, revision)?;
        for (watcher, changes) in watchers.into_iter().zip(found) {
            let sent = !changes.is_empty();
            done.advanced.push((watcher.watch_id, watcher.next.max(read_to + 1), sent));
            if sent {
                done.deliveries.push(watcher.delivery(What::Changes { revision, changes }));
            }
        }
        Ok(done)
    }
}

/// The changes for each watcher, and the last revision that was read whole.
fn read(
    history: &impl History,
    watchers: &[RoundWatcher],
    from: i64,
    to: i64,
) -> Result<(Vec<Vec<Change>>, i64), StoreError> {
    let mut found: Vec<Vec<Change>> = vec![Vec::new(); watchers.len()];
    if from > to {
        return Ok((found, to));
    }
    let mut matcher = Matcher::new();
    for (n, watcher) in watchers.iter().enumerate() {
        matcher.insert(n, &watcher.interval);
    }
    let (mut reading, mut changes, mut bytes) = (from, 0, 0);
    let mut read_to = to;
    history.scan(from, to, &mut |change| {
        let main = change.revision.main;
        if main != reading {
            if changes >= ROUND_CHANGES_MAX || bytes >= ROUND_BYTES_MAX {
                read_to = main - 1;
                return false;
            }
            reading = main;
        }
        changes += 1;
        matcher.matches(&change.key, |n| {
            if main >= watchers[n].next && watchers[n].filters.pass(&change) {
                bytes += change_bytes(&change);
                found[n].push(change.clone());
            }
        });
        true
    })?;
    Ok((found, read_to))
}

impl RoundWatcher {
    fn delivery(&self, what: What) -> Delivery {
        Delivery { watch_id: self.watch_id, prev_kv: self.prev_kv, fragment: self.fragment, what }
    }
}
