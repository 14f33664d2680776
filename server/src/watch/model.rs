//! Model test of the hub: random changes, watchers and reading speeds; every watcher gets exactly its part of the
//! history, in order, whole transactions at a time. The seed is printed when it fails.

use std::collections::BTreeMap;
use std::task::Waker;

use bytes::Bytes;
use trilith_engine::{Change, Revision, StoreError};
use trilith_proto::etcdserverpb::WatchCreateRequest;

use super::catchup::History;
use super::state::{Delivery, State, What, Work};

/// splitmix64: enough for a test, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// The store: all changes ever. `visible` may be ahead of what was published to the hub.
struct Log {
    changes: Vec<Change>,
    visible: i64,
    compacted: i64,
}

impl History for Log {
    fn revision(&self) -> i64 {
        self.visible
    }

    fn compact_revision(&self) -> i64 {
        self.compacted
    }

    fn scan(&self, from: i64, to: i64, each: &mut dyn FnMut(Change) -> bool) -> Result<(), StoreError> {
        assert!(from >= self.compacted && to <= self.visible, "scan of [{from}, {to}]");
        let wanted = self.changes.iter().filter(|c| c.revision.main >= from && c.revision.main <= to);
        for change in wanted {
            if !each(change.clone()) {
                break;
            }
        }
        Ok(())
    }
}

/// What a client knows of a watcher.
struct Client {
    start: i64,
    range: (u8, Option<u8>),
    no_put: bool,
    got: Vec<Change>,
    /// The watcher was ended: by its client (it may lack a tail) or by a compaction.
    ended: bool,
    progress: i64,
}

struct World {
    random: Random,
    log: Log,
    state: State,
    published: i64,
    /// Stream and watcher id -> client.
    clients: BTreeMap<(u64, i64), Client>,
    ended: Vec<Client>,
    streams: Vec<u64>,
    value_bytes: usize,
}

impl World {
    fn new(seed: u64, value_bytes: usize) -> World {
        let mut state = State::new(1);
        let streams = (0..3).map(|_| state.open()).collect();
        let log = Log { changes: Vec::new(), visible: 1, compacted: -1 };
        World {
            random: Random(seed),
            log,
            state,
            published: 1,
            clients: BTreeMap::new(),
            ended: Vec::new(),
            streams,
            value_bytes,
        }
    }

    fn write(&mut self) {
        self.log.visible += 1;
        let main = self.log.visible;
        let subs = if self.random.below(4) == 0 { 1 + self.random.below(6) } else { 1 };
        for sub in 0..subs {
            let key = Bytes::copy_from_slice(&[b'a' + self.random.below(8) as u8]);
            let deleted = self.random.below(4) == 0;
            let kv = Bytes::from(vec![0; self.random.below(self.value_bytes as u64) as usize]);
            self.log.changes.push(Change { revision: Revision { main, sub: sub as i64 }, deleted, key, kv });
        }
    }

    fn publish(&mut self) {
        let to = self.published + 1 + self.random.below((self.log.visible - self.published) as u64) as i64;
        let (from, changes) = (self.published, &self.log.changes);
        let batch: Vec<_> =
            changes.iter().filter(|c| c.revision.main > from && c.revision.main <= to).cloned().collect();
        self.state.publish(&batch);
        self.published = to;
    }

    fn create(&mut self) {
        let stream = self.streams[self.random.below(3) as usize];
        let key = b'a' + self.random.below(8) as u8;
        let end = match self.random.below(3) {
            0 => None,
            1 => Some(0),
            _ => Some(key + 1 + self.random.below(5) as u8),
        };
        let start = if self.random.below(2) == 0 {
            0
        } else {
            1 + self.random.below(self.log.visible as u64 + 5) as i64
        };
        let no_put = self.random.below(5) == 0;
        let request = WatchCreateRequest {
            key: Bytes::copy_from_slice(&[key]),
            range_end: end.map_or(Bytes::new(), |end| Bytes::copy_from_slice(&[end])),
            start_revision: start,
            filters: if no_put { vec![0] } else { vec![] },
            progress_notify: true,
            ..WatchCreateRequest::default()
        };
        let created = self.state.create(stream, &request, self.log.visible).unwrap();
        assert_eq!(created.revision, self.log.visible);
        let start = if start == 0 { created.revision + 1 } else { start };
        let client = Client { start, range: (key, end), no_put, got: vec![], ended: false, progress: 0 };
        assert!(self.clients.insert((stream, created.watch_id), client).is_none());
    }

    fn cancel(&mut self) {
        let n = self.random.below(self.clients.len() as u64 + 1) as usize;
        let Some(&(stream, id)) = self.clients.keys().nth(n) else { return };
        assert!(self.state.cancel(stream, id).is_some());
        assert!(self.state.cancel(stream, id).is_none());
        let mut client = self.clients.remove(&(stream, id)).unwrap();
        client.ended = true;
        self.ended.push(client);
    }

    /// One step of a stream's task; whether there was something to do.
    fn step(&mut self, stream: u64) -> bool {
        let deliveries = match self.state.take_work(stream, Waker::noop()) {
            Work::None => return false,
            Work::Deliveries(deliveries) => deliveries,
            Work::Round(round) => {
                let done = round.run(&self.log).unwrap();
                // The writer goes on while a round is read.
                if self.log.visible > self.published && self.random.below(2) == 0 {
                    self.publish();
                }
                self.state.finish_round(stream, &done);
                done.into_deliveries()
            }
        };
        for delivery in deliveries {
            self.receive(stream, delivery);
        }
        true
    }

    fn receive(&mut self, stream: u64, delivery: Delivery) {
        let key = (stream, delivery.watch_id);
        match delivery.what {
            What::Changes { revision, changes } => {
                assert!(changes.last().unwrap().revision.main <= revision);
                let client = self.clients.get_mut(&key).expect("changes for a watcher that is not there");
                assert!(
                    changes[0].revision.main > client.progress,
                    "a change at or below announced progress"
                );
                client.got.extend(changes);
            }
            What::Compacted { compact_revision } => {
                assert_eq!(compact_revision, self.log.compacted);
                let mut client = self.clients.remove(&key).unwrap();
                client.ended = true;
                self.ended.push(client);
            }
            What::Progress { revision } => {
                let all = self.clients.iter_mut().filter(|(k, _)| k.0 == stream);
                let named = all.filter(|(k, _)| delivery.watch_id == -1 || k.1 == delivery.watch_id);
                for (_, client) in named {
                    client.progress = revision;
                    // Catching up may have gone beyond what is announced.
                    let expected = expected(&self.log.changes, client, revision);
                    let got = client.got.partition_point(|change| change.revision.main <= revision);
                    assert_same(&client.got[..got], &expected, "at a progress answer");
                }
            }
        }
    }
}

fn expected(log: &[Change], client: &Client, to: i64) -> Vec<Change> {
    let matches = |key: u8| match client.range {
        (start, None) => key == start,
        (start, Some(0)) => key >= start,
        (start, Some(end)) => key >= start && key < end,
    };
    let wanted = log.iter().filter(|c| c.revision.main >= client.start && c.revision.main <= to);
    wanted.filter(|c| matches(c.key[0]) && (c.deleted || !client.no_put)).cloned().collect()
}

fn assert_same(got: &[Change], expected: &[Change], when: &str) {
    let key = |c: &Change| (c.revision, c.key.clone(), c.deleted);
    for (n, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(key(got), key(expected), "change {n}, {when}");
    }
    assert_eq!(got.len(), expected.len(), "number of changes, {when}");
}

fn run(seed: u64, steps: usize, value_bytes: usize) -> (usize, usize) {
    let mut world = World::new(seed, value_bytes);
    for _ in 0..steps {
        match world.random.below(100) {
            0..40 => world.write(),
            40..60 if world.log.visible > world.published => world.publish(),
            60..64 if world.clients.len() < 12 => world.create(),
            64 => world.cancel(),
            65 => {
                let stream = world.streams[world.random.below(3) as usize];
                world.state.request_progress(stream);
                world.state.tick_progress(stream);
            }
            66 if world.random.below(10) == 0 => {
                let compacted = world.log.compacted.max(0) as u64;
                let room = world.log.visible as u64 - compacted;
                world.log.compacted = (compacted + world.random.below(room + 1) / 4) as i64;
            }
            // Stream 0 reads at once, the others ever more slowly.
            n => {
                for (i, stream) in world.streams.clone().into_iter().enumerate() {
                    if i == 0 || (n == 70 && i == 1) || (n == 71 && world.random.below(12) == 0) {
                        world.step(stream);
                    }
                }
            }
        }
    }
    while world.published < world.log.visible {
        world.publish();
    }
    for stream in world.streams.clone() {
        while world.step(stream) {}
    }
    let mut changes = 0;
    for client in world.clients.values() {
        assert_same(&client.got, &expected(&world.log.changes, client, world.log.visible), "at the end");
        changes += client.got.len();
    }
    for client in &world.ended {
        let all = expected(&world.log.changes, client, world.log.visible);
        assert!(client.ended && client.got.len() <= all.len());
        assert_same(&client.got, &all[..client.got.len()], "of an ended watcher");
    }
    for stream in world.streams {
        world.state.close(stream);
    }
    assert_eq!(world.state.counts(), (0, 0));
    (changes, world.ended.len())
}

#[test]
fn every_watcher_gets_exactly_its_history() {
    let seed = match std::env::var("TRILITH_SEED") {
        Ok(seed) => seed.parse().expect("TRILITH_SEED is a number"),
        Err(_) => std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64),
    };
    eprintln!("TRILITH_SEED={seed}");
    let (mut changes, mut ended) = (0, 0);
    for n in 0..40 {
        // Large values overflow the queues of the slow streams; small ones do not.
        let value_bytes = if n % 2 == 0 { 60_000 } else { 20 };
        let (got, gone) = run(seed.wrapping_add(n), 3000, value_bytes);
        changes += got;
        ended += gone;
    }
    assert!(changes > 1000 && ended > 10, "the run did too little: {changes} changes, {ended} ended");
}
