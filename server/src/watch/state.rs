//! The hub's books: streams, their watchers and queues. Pure: no lock, no thread, no clock, no store.
//!
//! Invariants: a watcher is either in `synced` or in its stream's `lagging`, never in both. A watcher's deliveries
//! that are queued are older than everything it still has to catch up, because a round begins only when the queue
//! is empty and a lagging watcher gets nothing queued.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::task::Waker;

use bytes::Bytes;
use trilith_engine::Change;
use trilith_proto::etcdserverpb::WatchCreateRequest;
use trilith_proto::etcdserverpb::watch_create_request::FilterType;

use super::catchup::{Done, Round, RoundWatcher};
use super::matcher::{Interval, Matcher};

/// Bytes of changes queued for one stream before its watchers fall back to lagging.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// What a queued change costs beside its key and value.
const CHANGE_OVERHEAD_BYTES: usize = 128;
/// Lagging watchers of a stream that catch up together.
const ROUND_WATCHERS_MAX: usize = 512;

/// The id in answers that name no watcher.
const NO_WATCHER: i64 = -1;

/// A watcher was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// Its id within the stream.
    pub watch_id: i64,
    /// The store's revision at that moment.
    pub revision: i64,
}

/// A watcher was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// etcd's text for the cancel reason.
    pub reason: &'static str,
    /// The store's revision at that moment.
    pub revision: i64,
}

/// Something to send for a watcher.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The watcher's id, or -1 for the whole stream.
    pub watch_id: i64,
    /// The client wants the pairs before the changes.
    pub prev_kv: bool,
    /// The client can take a response in parts.
    pub fragment: bool,
    /// What there is to say.
    pub what: What,
}

/// The body of a [`Delivery`].
#[derive(Debug, Clone)]
pub enum What {
    /// Changes, in revision order, never a part of a revision's. `revision` goes into the header.
    Changes {
        /// Of the changes themselves, or of the store when catching up.
        revision: i64,
        /// At least one.
        changes: Vec<Change>,
    },
    /// The watcher wanted revisions that are gone; it has ended.
    Compacted {
        /// The compaction that it lost against.
        compact_revision: i64,
    },
    /// Everything up to this revision has been delivered.
    Progress {
        /// The store's revision.
        revision: i64,
    },
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Filters {
    no_put: bool,
    no_delete: bool,
}

impl Filters {
    pub(super) fn pass(self, change: &Change) -> bool {
        if change.deleted { !self.no_delete } else { !self.no_put }
    }
}

#[derive(Debug)]
struct Watcher {
    interval: Interval,
    filters: Filters,
    /// As the client asked for; 0 when it did not.
    start: i64,
    /// Changes below this revision are not for this watcher (any more).
    next: i64,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// No change was queued since the last progress tick.
    quiet: bool,
}

#[derive(Debug, Default)]
struct Stream {
    watchers: BTreeMap<i64, Watcher>,
    lagging: BTreeSet<i64>,
    next_id: i64,
    queue: Vec<Delivery>,
    queue_bytes: usize,
    waker: Option<Waker>,
}

/// A watcher: its stream, its id there.
type WatcherKey = (u64, i64);

/// What a stream's task is to do.
#[derive(Debug)]
pub(super) enum Work {
    None,
    Deliveries(Vec<Delivery>),
    Round(Round),
}

#[derive(Debug)]
pub(super) struct State {
    /// The newest revision published here.
    revision: i64,
    streams: HashMap<u64, Stream>,
    next_stream: u64,
    synced: Matcher<WatcherKey>,
    /// Scratch of `publish`: who gets which change of a transaction.
    hits: Vec<(WatcherKey, usize)>,
}

impl State {
    pub(super) fn new(revision: i64) -> State {
        State { revision, streams: HashMap::new(), next_stream: 0, synced: Matcher::new(), hits: Vec::new() }
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        (self.streams.len(), self.streams.values().map(|stream| stream.watchers.len()).sum())
    }

    pub(super) fn open(&mut self) -> u64 {
        let key = self.next_stream;
        self.next_stream += 1;
        self.streams.insert(key, Stream::default());
        key
    }

    pub(super) fn close(&mut self, key: u64) {
        let Some(stream) = self.streams.remove(&key) else { return };
        for (&id, watcher) in &stream.watchers {
            if !stream.lagging.contains(&id) {
                self.synced.remove((key, id), &watcher.interval);
            }
        }
    }

    fn stream(&mut self, key: u64) -> &mut Stream {
        self.streams.get_mut(&key).expect("a stream is closed only by the drop of its owner")
    }

    /// Starts a watcher. `store_revision` is the store's, which may be ahead of what was published here.
    pub(super) fn create(
        &mut self,
        key: u64,
        request: &WatchCreateRequest,
        store_revision: i64,
    ) -> Result<Created, Refused> {
        let revision = store_revision.max(self.revision);
        let refused = |reason| Refused { reason, revision };
        if request.start_revision < 0 {
            return Err(refused("etcdserver: mvcc: required revision has been compacted"));
        }
        let interval = interval_of(request);
        if let Some(end) = &interval.end
            && !end.is_empty()
            && interval.start >= end
        {
            return Err(refused("mvcc: watcher range is empty"));
        }
        let published = self.revision;
        let stream = self.stream(key);
        let mut watch_id = request.watch_id;
        if watch_id == 0 {
            while stream.watchers.contains_key(&stream.next_id) {
                stream.next_id += 1;
            }
            watch_id = stream.next_id;
            stream.next_id += 1;
        } else if stream.watchers.contains_key(&watch_id) {
            return Err(refused("mvcc: duplicate watch ID provided on the WatchStream"));
        }
        let next = if request.start_revision == 0 { revision + 1 } else { request.start_revision };
        let watcher = Watcher {
            filters: Filters {
                no_put: request.filters.contains(&(FilterType::Noput as i32)),
                no_delete: request.filters.contains(&(FilterType::Nodelete as i32)),
            },
            start: request.start_revision,
            next,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            quiet: true,
            interval: interval.clone(),
        };
        stream.watchers.insert(watch_id, watcher);
        if next > published {
            self.synced.insert((key, watch_id), &interval);
        } else {
            stream.lagging.insert(watch_id);
            // A progress answer for all that still waits would speak for this one too.
            stream.queue.retain(|delivery| delivery.watch_id != NO_WATCHER);
        }
        Ok(Created { watch_id, revision })
    }

    /// Ends a watcher and forgets what was queued for it.
    pub(super) fn cancel(&mut self, key: u64, watch_id: i64) -> Option<i64> {
        let revision = self.revision;
        self.remove_watcher(key, watch_id).then_some(revision)
    }

    fn remove_watcher(&mut self, key: u64, watch_id: i64) -> bool {
        let stream = self.stream(key);
        let Some(watcher) = stream.watchers.remove(&watch_id) else { return false };
        stream.queue.retain(|delivery| delivery.watch_id != watch_id);
        stream.queue_bytes = stream.queue.iter().map(Delivery::bytes).sum();
        if !stream.lagging.remove(&watch_id) {
            self.synced.remove((key, watch_id), &watcher.interval);
        }
        true
    }

    /// Queues what concerns synced watchers; the tasks to wake afterwards.
    pub(super) fn publish(&mut self, changes: &[Change]) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for txn in changes.chunk_by(|a, b| a.revision.main == b.revision.main) {
            let revision = txn[0].revision.main;
            assert!(revision > self.revision, "revision {revision} published after {}", self.revision);
            self.revision = revision;
            if self.synced.is_empty() {
                continue;
            }
            let mut hits = std::mem::take(&mut self.hits);
            for (n, change) in txn.iter().enumerate() {
                self.synced.matches(&change.key, |watcher| hits.push((watcher, n)));
            }
            if txn.len() > 1 {
                hits.sort_unstable();
            }
            for of_watcher in hits.chunk_by(|a, b| a.0 == b.0) {
                let changes = of_watcher.iter().map(|&(_, n)| &txn[n]);
                if let Some(waker) = self.deliver(of_watcher[0].0, revision, changes) {
                    wakers.push(waker);
                }
            }
            hits.clear();
            self.hits = hits;
        }
        wakers
    }

    /// What was not published up to a revision is to be read from the store by whoever it concerns; the tasks to wake.
    pub(super) fn restore(&mut self, revision: i64) -> Vec<Waker> {
        let published = self.revision;
        self.revision = published.max(revision);
        let mut wakers = Vec::new();
        for (&key, stream) in &mut self.streams {
            for (&id, watcher) in &mut stream.watchers {
                let next = watcher.next.max(published + 1);
                if next > revision || stream.lagging.contains(&id) {
                    continue;
                }
                watcher.next = next;
                self.synced.remove((key, id), &watcher.interval);
                stream.lagging.insert(id);
                wakers.extend(stream.waker.take());
            }
        }
        wakers
    }

    /// Queues one transaction's changes for one synced watcher, or lets it lag when its stream's queue is full.
    fn deliver<'c>(
        &mut self,
        (key, watch_id): WatcherKey,
        revision: i64,
        changes: impl Iterator<Item = &'c Change>,
    ) -> Option<Waker> {
        let stream = self.streams.get_mut(&key).expect("a synced watcher has a stream");
        let watcher = stream.watchers.get_mut(&watch_id).expect("a synced watcher is in its stream");
        if revision < watcher.next {
            return None;
        }
        let changes: Vec<Change> = changes.filter(|change| watcher.filters.pass(change)).cloned().collect();
        if changes.is_empty() {
            return None;
        }
        watcher.quiet = false;
        let delivery = Delivery {
            watch_id,
            prev_kv: watcher.prev_kv,
            fragment: watcher.fragment,
            what: What::Changes { revision, changes },
        };
        let bytes = delivery.bytes();
        // A delivery that is too large by itself may wait alone: catching up could not cut it either.
        if stream.queue_bytes > 0 && stream.queue_bytes + bytes > QUEUE_BYTES_MAX {
            watcher.next = revision;
            let interval = watcher.interval.clone();
            stream.lagging.insert(watch_id);
            self.synced.remove((key, watch_id), &interval);
        } else {
            stream.queue_bytes += bytes;
            stream.queue.push(delivery);
        }
        stream.waker.take()
    }

    pub(super) fn request_progress(&mut self, key: u64) {
        let revision = self.revision;
        let stream = self.stream(key);
        let all_synced = stream.lagging.is_empty() && !stream.watchers.is_empty();
        if all_synced && stream.watchers.values().all(|watcher| watcher.start <= revision) {
            stream.queue_progress(NO_WATCHER, revision);
        }
    }

    pub(super) fn tick_progress(&mut self, key: u64) {
        let revision = self.revision;
        let stream = self.stream(key);
        let mut quiet = Vec::new();
        for (&id, watcher) in &mut stream.watchers {
            if !watcher.progress_notify {
                continue;
            }
            if watcher.quiet && watcher.start <= revision && !stream.lagging.contains(&id) {
                quiet.push(id);
            }
            watcher.quiet = true;
        }
        for id in quiet {
            stream.queue_progress(id, revision);
        }
    }

    /// What the stream's task is to do next; with nothing to do, its waker is kept.
    pub(super) fn take_work(&mut self, key: u64, waker: &Waker) -> Work {
        let stream = self.stream(key);
        if !stream.queue.is_empty() {
            stream.queue_bytes = 0;
            return Work::Deliveries(std::mem::take(&mut stream.queue));
        }
        if stream.lagging.is_empty() {
            match &mut stream.waker {
                Some(kept) => kept.clone_from(waker),
                None => stream.waker = Some(waker.clone()),
            }
            return Work::None;
        }
        // Those that are furthest behind go together; the others wait for the next round.
        let mut lagging: Vec<(i64, i64)> =
            stream.lagging.iter().map(|id| (stream.watchers[id].next, *id)).collect();
        lagging.sort_unstable();
        lagging.truncate(ROUND_WATCHERS_MAX);
        let watchers = lagging.into_iter().map(|(next, watch_id)| {
            let watcher = &stream.watchers[&watch_id];
            RoundWatcher {
                watch_id,
                next,
                interval: watcher.interval.clone(),
                filters: watcher.filters,
                prev_kv: watcher.prev_kv,
                fragment: watcher.fragment,
            }
        });
        Work::Round(Round::new(watchers.collect()))
    }

    /// Moves the round's watchers on; those that have everything that was published join the synced ones.
    pub(super) fn finish_round(&mut self, key: u64, done: &Done) {
        for &watch_id in &done.compacted {
            self.remove_watcher(key, watch_id);
        }
        let published = self.revision;
        let stream = self.streams.get_mut(&key).expect("a stream is closed only by the drop of its owner");
        for &(watch_id, next, sent) in &done.advanced {
            let watcher =
                stream.watchers.get_mut(&watch_id).expect("only the stream's task ends its watchers");
            debug_assert!(next >= watcher.next);
            watcher.next = next;
            watcher.quiet &= !sent;
            if next > published {
                stream.lagging.remove(&watch_id);
                self.synced.insert((key, watch_id), &watcher.interval);
            }
        }
    }
}

impl Stream {
    fn queue_progress(&mut self, watch_id: i64, revision: i64) {
        let what = What::Progress { revision };
        let delivery = Delivery { watch_id, prev_kv: false, fragment: false, what };
        self.queue_bytes += delivery.bytes();
        self.queue.push(delivery);
    }
}

impl Delivery {
    /// What it costs to hold it.
    pub(super) fn bytes(&self) -> usize {
        match &self.what {
            What::Changes { changes, .. } => changes.iter().map(change_bytes).sum(),
            What::Compacted { .. } | What::Progress { .. } => CHANGE_OVERHEAD_BYTES,
        }
    }
}

pub(super) fn change_bytes(change: &Change) -> usize {
    CHANGE_OVERHEAD_BYTES + change.key.len() + change.kv.len()
}

/// The keys that a request names, copied out of the request's buffer.
fn interval_of(request: &WatchCreateRequest) -> Interval {
    let start = match &*request.key {
        [] => Bytes::from_static(&[0]),
        key => Bytes::copy_from_slice(key),
    };
    let end = match &*request.range_end {
        [] => None,
        [0] => Some(Bytes::new()),
        end => Some(Bytes::copy_from_slice(end)),
    };
    Interval { start, end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_engine::Revision;

    fn request(key: &'static str, end: &'static [u8]) -> WatchCreateRequest {
        WatchCreateRequest {
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(end),
            ..WatchCreateRequest::default()
        }
    }

    fn change(main: i64, sub: i64, key: &'static str, bytes: usize) -> Change {
        let kv = Bytes::from(vec![0; bytes]);
        Change {
            revision: Revision { main, sub },
            deleted: false,
            key: Bytes::from_static(key.as_bytes()),
            kv,
        }
    }

    fn deliveries(state: &mut State, stream: u64) -> Vec<(i64, String)> {
        let Work::Deliveries(deliveries) = state.take_work(stream, Waker::noop()) else { return vec![] };
        let text = |delivery: Delivery| match delivery.what {
            What::Changes { revision, changes } => {
                let subs: Vec<_> = changes.iter().map(|c| c.revision.sub.to_string()).collect();
                (delivery.watch_id, format!("{revision}:{}", subs.join(",")))
            }
            What::Progress { revision } => (delivery.watch_id, format!("progress {revision}")),
            What::Compacted { compact_revision } => {
                (delivery.watch_id, format!("compacted {compact_revision}"))
            }
        };
        deliveries.into_iter().map(text).collect()
    }

    #[test]
    fn w1_ids_count_from_zero_and_skip_what_is_taken() {
        let mut state = State::new(1);
        let stream = state.open();
        let mut id = |wanted: i64| {
            let request = WatchCreateRequest { watch_id: wanted, ..request("k", b"") };
            state
                .create(stream, &request, 1)
                .map(|created| created.watch_id)
                .map_err(|refused| refused.reason)
        };
        assert_eq!([id(0), id(1), id(2), id(0), id(7), id(0)], [0, 1, 2, 3, 7, 4].map(Ok));
        assert_eq!(id(7), Err("mvcc: duplicate watch ID provided on the WatchStream"));
        // Ids are per stream.
        let other = state.open();
        assert_eq!(state.create(other, &request("k", b""), 1).unwrap().watch_id, 0);
    }

    #[test]
    fn w2_w3_ranges_and_starts_that_are_refused() {
        let mut state = State::new(5);
        let stream = state.open();
        for (key, end, start, reason) in [
            ("b", &b"a"[..], 0, "mvcc: watcher range is empty"),
            ("b", b"b", 0, "mvcc: watcher range is empty"),
            ("b", b"", -1, "etcdserver: mvcc: required revision has been compacted"),
        ] {
            let request = WatchCreateRequest { start_revision: start, ..request(key, end) };
            assert_eq!(state.create(stream, &request, 5), Err(Refused { reason, revision: 5 }));
        }
        // An empty key is the smallest one, a zero byte as the end is no end.
        state.create(stream, &request("", b"\0"), 5).unwrap();
        state.create(stream, &request("", b""), 5).unwrap();
        state.publish(&[change(6, 0, "x", 0), change(6, 1, "\0", 0)]);
        assert_eq!(deliveries(&mut state, stream), [(0, "6:0,1".to_owned()), (1, "6:1".to_owned())]);
    }

    #[test]
    fn w4_a_start_in_the_future_waits_for_its_revision() {
        let mut state = State::new(5);
        let stream = state.open();
        let request = WatchCreateRequest { start_revision: 8, ..request("k", b"") };
        state.create(stream, &request, 5).unwrap();
        state.request_progress(stream);
        for revision in 6..10 {
            state.publish(&[change(revision, 0, "k", 0)]);
        }
        // W18: no progress for a watcher that has not begun.
        assert_eq!(deliveries(&mut state, stream), [(0, "8:0".to_owned()), (0, "9:0".to_owned())]);
        state.request_progress(stream);
        assert_eq!(deliveries(&mut state, stream), [(-1, "progress 9".to_owned())]);
    }

    #[test]
    fn w17_w18_progress() {
        let mut state = State::new(5);
        let stream = state.open();
        state.request_progress(stream);
        assert_eq!(deliveries(&mut state, stream), [], "no watchers, no answer");
        let notify = WatchCreateRequest { progress_notify: true, ..request("k", b"") };
        state.create(stream, &notify, 5).unwrap();
        state.create(stream, &request("k", b""), 5).unwrap();
        state.tick_progress(stream);
        assert_eq!(deliveries(&mut state, stream), [(0, "progress 5".to_owned())]);
        state.publish(&[change(6, 0, "k", 0)]);
        state.tick_progress(stream);
        let got = deliveries(&mut state, stream);
        assert_eq!(
            got,
            [(0, "6:0".to_owned()), (1, "6:0".to_owned())],
            "an event stands for a progress answer"
        );
        state.publish(&[change(7, 0, "other", 0)]);
        state.tick_progress(stream);
        assert_eq!(deliveries(&mut state, stream), [(0, "progress 7".to_owned())]);
        // One watcher that lags keeps the whole stream quiet.
        let past = WatchCreateRequest { start_revision: 2, ..request("z", b"") };
        state.create(stream, &past, 7).unwrap();
        state.request_progress(stream);
        assert_eq!(deliveries(&mut state, stream), []);
    }

    #[test]
    fn a_full_queue_makes_watchers_lag_at_a_whole_revision() {
        let mut state = State::new(1);
        let stream = state.open();
        state.create(stream, &request("a", b"z"), 1).unwrap();
        let half = QUEUE_BYTES_MAX / 2;
        state.publish(&[change(2, 0, "k", half)]);
        state.publish(&[change(3, 0, "k", half / 2), change(3, 1, "l", half / 2)]);
        state.publish(&[change(4, 0, "k", 1)]);
        assert_eq!(deliveries(&mut state, stream), [(0, "2:0".to_owned())]);
        let Work::Round(round) = state.take_work(stream, Waker::noop()) else { panic!("not lagging") };
        assert!(format!("{round:?}").contains("next: 3"), "{round:?}");
        // A single delivery of any size is let through an empty queue.
        let other = state.open();
        state.create(other, &request("k", b""), 4).unwrap();
        state.publish(&[change(5, 0, "k", 2 * QUEUE_BYTES_MAX)]);
        assert_eq!(deliveries(&mut state, other), [(0, "5:0".to_owned())]);
    }

    #[test]
    fn w21_a_restored_store_is_caught_up_with() {
        let mut state = State::new(1);
        let stream = state.open();
        state.create(stream, &request("k", b""), 1).unwrap();
        let future = WatchCreateRequest { start_revision: 30, ..request("k", b"") };
        state.create(stream, &future, 1).unwrap();
        state.publish(&[change(2, 0, "k", 0)]);
        assert!(state.restore(20).is_empty(), "nobody waits");
        assert_eq!(deliveries(&mut state, stream), [(0, "2:0".to_owned())], "what was queued comes first");
        let Work::Round(round) = state.take_work(stream, Waker::noop()) else { panic!("not lagging") };
        let round = format!("{round:?}");
        assert!(round.contains("next: 3") && !round.contains("next: 30"), "{round}");
        state.publish(&[change(21, 0, "k", 0), change(30, 0, "k", 0)]);
        assert_eq!(deliveries(&mut state, stream), [(1, "30:0".to_owned())]);
    }

    #[test]
    fn w8_a_canceled_watcher_gets_nothing_more() {
        let mut state = State::new(1);
        let stream = state.open();
        state.create(stream, &request("k", b""), 1).unwrap();
        state.publish(&[change(2, 0, "k", 0)]);
        assert_eq!(state.cancel(stream, 0), Some(2));
        assert_eq!(state.cancel(stream, 0), None);
        state.publish(&[change(3, 0, "k", 0)]);
        assert_eq!(deliveries(&mut state, stream), []);
        assert!(state.synced.is_empty());
    }
}
