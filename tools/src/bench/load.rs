//! Sends requests in a closed loop and times them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tokio::time::Instant;
use trilith_proto::etcdserverpb as pb;

use super::report::Recorder;
use crate::client::{Client, status_text};

/// One request.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Put(pb::PutRequest),
    Range(pb::RangeRequest),
    Txn(pb::TxnRequest),
}

/// Makes the request of a number, counted from 0.
pub(super) type Operation = Arc<dyn Fn(u64) -> Op + Send + Sync>;

/// How much to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Requests in flight.
    pub(super) clients: usize,
    pub(super) total: u64,
    /// Requests a second; 0 for no limit.
    pub(super) rate: u64,
}

/// What the clients share.
struct Shared {
    load: Load,
    operation: Operation,
    next: AtomicU64,
    started: Instant,
    recorder: Mutex<Recorder>,
    bar: ProgressBar,
}

/// Sends the whole load over `connections` and gives its figures.
pub(super) async fn drive(
    load: &Load,
    connections: &[Client],
    operation: Operation,
    bar: &ProgressBar,
) -> Recorder {
    let shared = Arc::new(Shared {
        load: *load,
        operation,
        next: AtomicU64::new(0),
        started: Instant::now(),
        recorder: Mutex::new(Recorder::new()),
        bar: bar.clone(),
    });
    let mut clients = JoinSet::new();
    for at in 0..load.clients {
        clients.spawn(send_all(connections[at % connections.len()].clone(), shared.clone()));
    }
    clients.join_all().await;
    let mut recorder = shared.recorder.lock().unwrap_or_else(PoisonError::into_inner);
    recorder.finish(shared.started.elapsed());
    std::mem::take(&mut *recorder)
}

/// One client: takes the next number until there is none left.
async fn send_all(connection: Client, shared: Arc<Shared>) {
    let mut kv = connection.kv();
    loop {
        let at = shared.next.fetch_add(1, Ordering::Relaxed);
        if at >= shared.load.total {
            return;
        }
        if let Some(after) = (at * 1_000_000_000).checked_div(shared.load.rate) {
            tokio::time::sleep_until(shared.started + Duration::from_nanos(after)).await;
        }
        let request = (shared.operation)(at);
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let sent = Instant::now();
        let outcome = match request {
            Op::Put(request) => kv.put(request).await.map(drop),
            Op::Range(request) => kv.range(request).await.map(drop),
            Op::Txn(request) => kv.txn(request).await.map(drop),
        };
        let took = sent.elapsed();
        let mut recorder = shared.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => recorder.success(second, took),
            Err(status) => recorder.error(status_text(&status)),
        }
        drop(recorder);
        shared.bar.inc(1);
    }
}

/// A key of `size` bytes for a number, as etcd's tool makes it: a zigzag varint, then zeros. None if it does not fit.
pub(super) fn key_of(number: u64, size: usize) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(size.max(10));
    let mut rest = number.wrapping_shl(1);
    while rest >= 0x80 {
        key.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    key.push(rest as u8);
    if key.len() > size {
        return None;
    }
    key.resize(size, 0);
    Some(key)
}

/// A number that looks random, and is the same for the same `at`: runs can be repeated. (The finalizer of SplitMix64.)
pub(super) fn random(at: u64) -> u64 {
    let mut z = at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_varints_and_zeros() {
        assert_eq!(key_of(0, 3), Some(vec![0, 0, 0]));
        assert_eq!(key_of(1, 3), Some(vec![2, 0, 0]));
        assert_eq!(key_of(63, 1), Some(vec![126]));
        assert_eq!(key_of(64, 1), None);
        assert_eq!(key_of(64, 4), Some(vec![0x80, 1, 0, 0]));
        assert_eq!(key_of(0, 0), None);
    }

    #[test]
    fn random_numbers_fill_their_range() {
        let mut seen = [0; 10];
        (0..10_000).for_each(|at| seen[(random(at) % 10) as usize] += 1);
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
    }
}
