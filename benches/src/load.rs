//! A closed loop of requests: so many connections, so many requests in flight, for a time or a number of keys.
//!
//! The client runs on one thread and checks that every answer decodes, so what it measures is the server.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use trilith_proto::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse};

use crate::client::{Client, frame, path};
use crate::host::{self, Usage};
use crate::rng::Rng;
use crate::{Error, Result};

/// Bytes of each value: with keys of 8 bytes what etcd's own benchmark calls a small record.
pub const VALUE_BYTES: usize = 256;
/// Latencies are counted in tenths of a microsecond.
const TICKS_PER_MICROSECOND: u64 = 10;
const NANOSECONDS_PER_TICK: u64 = 100;

/// The server that is asked, or the members of a cluster.
#[derive(Debug, Clone)]
pub struct Server<'s> {
    /// Where its members listen; connections take them in turn.
    pub addresses: Vec<SocketAddr>,
    /// Their processes.
    pub pids: Vec<u32>,
    /// A folder on the device that they write to.
    pub folder: &'s Path,
}

impl<'s> Server<'s> {
    /// A server alone.
    pub fn alone(address: SocketAddr, pid: u32, folder: &'s Path) -> Server<'s> {
        Server { addresses: vec![address], pids: vec![pid], folder }
    }

    /// What all its processes use together, and the bytes written to its device.
    fn usage(&self) -> Result<(Usage, u64)> {
        Ok((host::usage_of(&self.pids)?, host::device_written(self.folder)?))
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Put a random key.
    Put,
    /// Read a random key, at a linearizable point.
    Range,
    /// Read a random key from the member's own state.
    RangeSerializable,
}

/// The pairs of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// Keys: their numbers in eight digits.
    pub keys: u64,
    /// Bytes of each value. They are random, so that nobody gains by compressing them.
    pub value_bytes: usize,
}

impl Data {
    /// So many keys with values of [`VALUE_BYTES`].
    pub const fn small(keys: u64) -> Data {
        Data { keys, value_bytes: VALUE_BYTES }
    }
}

/// How many requests are under way, over how many connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Connections.
    pub connections: usize,
    /// Requests in flight over all of them.
    pub in_flight: usize,
}

/// What a run measured.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Requests answered in the measured time.
    pub requests: u64,
    /// Requests a second.
    pub rate: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// CPU seconds of the server per 1000 requests.
    pub cpu_per_1000: f64,
    /// Bytes written to the device under the server's folder per 1000 requests.
    pub written_per_1000: f64,
}

/// The key of a number: 8 bytes.
pub fn key(number: u64) -> Bytes {
    Bytes::from(format!("{number:08}"))
}

fn request(work: Work, number: u64, value: &Bytes) -> (&'static str, Bytes) {
    let key = key(number);
    match work {
        Work::Put => (path::PUT, frame(&PutRequest { key, value: value.clone(), ..Default::default() })),
        Work::Range => (path::RANGE, frame(&RangeRequest { key, ..Default::default() })),
        Work::RangeSerializable => {
            (path::RANGE, frame(&RangeRequest { key, serializable: true, ..Default::default() }))
        }
    }
}

/// State that all loops of a run share.
struct Run {
    work: Work,
    keys: u64,
    value: Bytes,
    /// Counts up through the keys, once; else keys are drawn at random until `stop`.
    sequence: Option<Cell<u64>>,
    stop: Cell<bool>,
    measuring: Cell<bool>,
    requests: Cell<u64>,
    latencies: RefCell<Histogram<u64>>,
}

impl Run {
    fn new(work: Work, data: Data, sequence: bool) -> Result<Rc<Run>> {
        let mut rng = Rng::new(data.value_bytes as u64);
        Ok(Rc::new(Run {
            work,
            keys: data.keys,
            value: (0..data.value_bytes).map(|_| rng.next_u64() as u8).collect(),
            sequence: sequence.then(|| Cell::new(0)),
            stop: Cell::new(false),
            measuring: Cell::new(sequence),
            requests: Cell::new(0),
            latencies: RefCell::new(Histogram::new_with_bounds(1, 60_000_000 * TICKS_PER_MICROSECOND, 3)?),
        }))
    }

    fn next_key(&self, rng: &mut Rng) -> Option<u64> {
        match &self.sequence {
            Some(next) if next.get() >= self.keys => None,
            Some(next) => Some(next.replace(next.get() + 1)),
            None if self.stop.get() => None,
            None => Some(rng.below(self.keys)),
        }
    }

    /// One request in flight, again and again.
    async fn drive(self: Rc<Run>, mut client: Client, seed: u64) -> Result<()> {
        let mut rng = Rng::new(seed);
        while let Some(number) = self.next_key(&mut rng) {
            let (path, body) = request(self.work, number, &self.value);
            let sent = Instant::now();
            let answer = client.unary_frame(path, body).await?;
            match self.work {
                Work::Put => drop(answer.decode::<PutResponse>()?),
                Work::Range | Work::RangeSerializable => drop(answer.decode::<RangeResponse>()?),
            }
            if self.measuring.get() {
                let ticks = sent.elapsed().as_nanos() as u64 / NANOSECONDS_PER_TICK;
                self.latencies.borrow_mut().saturating_record(ticks);
                self.requests.set(self.requests.get() + 1);
            }
        }
        Ok(())
    }

    async fn start(self: &Rc<Run>, addresses: &[SocketAddr], shape: Shape) -> Result<Vec<Loop>> {
        let mut clients = Vec::with_capacity(shape.connections);
        for address in addresses.iter().cycle().take(shape.connections) {
            clients.push(Client::connect(*address).await?);
        }
        let in_flight = 0..shape.in_flight;
        let drive = |i: usize| self.clone().drive(clients[i % shape.connections].clone(), i as u64 + 1);
        Ok(in_flight.map(|i| tokio::task::spawn_local(drive(i))).collect())
    }

    fn measured(&self, elapsed: Duration, before: (Usage, u64), after: (Usage, u64)) -> Result<Measured> {
        let requests = self.requests.get();
        if requests == 0 {
            return Err(Error::from("no request was answered in the measured time"));
        }
        let latencies = self.latencies.borrow();
        let quantile = |q: f64| latencies.value_at_quantile(q) as f64 / TICKS_PER_MICROSECOND as f64;
        let thousands = requests as f64 / 1000.0;
        Ok(Measured {
            requests,
            rate: requests as f64 / elapsed.as_secs_f64(),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            cpu_per_1000: (after.0.cpu_seconds - before.0.cpu_seconds) / thousands,
            written_per_1000: after.1.saturating_sub(before.1) as f64 / thousands,
        })
    }
}

type Loop = tokio::task::JoinHandle<Result<()>>;

async fn finish(loops: Vec<Loop>) -> Result<()> {
    for one in loops {
        one.await??;
    }
    Ok(())
}

/// Sends requests on random keys for a time after a warm-up, and measures.
pub async fn run(
    server: Server<'_>,
    work: Work,
    shape: Shape,
    data: Data,
    warm: Duration,
    time: Duration,
) -> Result<Measured> {
    let run = Run::new(work, data, false)?;
    let loops = run.start(&server.addresses, shape).await?;
    tokio::time::sleep(warm).await;
    let before = server.usage()?;
    let begin = Instant::now();
    run.measuring.set(true);
    tokio::time::sleep(time).await;
    run.measuring.set(false);
    let elapsed = begin.elapsed();
    let after = server.usage()?;
    run.stop.set(true);
    finish(loops).await?;
    run.measured(elapsed, before, after)
}

/// Puts every key once, in their order, with 1000 in flight over 100 connections.
pub async fn fill(server: Server<'_>, data: Data) -> Result<Measured> {
    let run = Run::new(Work::Put, data, true)?;
    let before = server.usage()?;
    let begin = Instant::now();
    finish(run.start(&server.addresses, Shape { connections: 100, in_flight: 1000 }).await?).await?;
    run.measured(begin.elapsed(), before, server.usage()?)
}
