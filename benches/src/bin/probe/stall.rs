//! The longest gap that a caller sees while everything happens at once.
//!
//! Callers of three kinds (put, linearizable get, serializable get) run on a thread of their own, four of each, one
//! request after the other. First alone, for what the machine does by itself; then while another thread asks for a
//! physical compaction, a defragmentation, a snapshot, a list of everything and a hash, all at the same time.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use trilith_benches::client::{Client, frame, path};
use trilith_benches::load::{self, Data};
use trilith_benches::rng::Rng;
use trilith_benches::{Result, block_on};
use trilith_proto::etcdserverpb::*;

use crate::Contestant;

/// Callers of each kind.
const CALLERS: usize = 4;
/// Pause of a caller after an answer: a steady load, not a full one.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Megabytes of keys and values that are loaded; every second key is deleted again.
    #[arg(long, default_value_t = 1300)]
    megabytes: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    /// Seconds of the quiet part.
    #[arg(long, default_value_t = 10)]
    quiet: u64,
    /// Rounds of maintenance, one after the other; the first has the most to do.
    #[arg(long, default_value_t = 2)]
    storms: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Put,
    Linearizable,
    Serializable,
}

const KINDS: [(Kind, &str); 3] =
    [(Kind::Put, "put"), (Kind::Linearizable, "linearizable get"), (Kind::Serializable, "serializable get")];

/// Waits of one kind of caller.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waits {
    micros: Vec<u64>,
}

impl Waits {
    pub(crate) fn describe(&mut self) -> String {
        self.micros.sort_unstable();
        let at = |q: f64| self.micros[((self.micros.len() - 1) as f64 * q) as usize] as f64 / 1000.0;
        format!(
            "{:6} answers, p50 {:6.2} ms, p99 {:6.2} ms, p99.9 {:7.2} ms, longest {:7.2} ms",
            self.micros.len(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        )
    }
}

pub(crate) async fn run(args: &Args, contestants: &[Contestant], folder: &Path) -> Result<()> {
    let data = Data {
        keys: args.megabytes * 1_000_000 / (8 + args.value_bytes as u64),
        value_bytes: args.value_bytes,
    };
    for contestant in contestants {
        let running = contestant.start(folder).await?;
        load::fill(running.server(), data).await?;
        crate::delete(&running, data, |n| n % 2 == 1).await?;
        let status = running.status().await?;
        println!(
            "\n{}: {} keys loaded, every second deleted; dbSize {} MB",
            contestant.name,
            data.keys,
            status.db_size / 1_000_000
        );
        let address = running.launch.client;
        let time = Duration::from_secs(args.quiet);
        let quiet = watch(address, data, move || async move {
            tokio::time::sleep(time).await;
            Ok(())
        });
        print("quiet", quiet?);
        for n in 0..args.storms {
            let begin = Instant::now();
            let waits = watch(address, data, move || storm(address))?;
            println!("  maintenance {}, {:.1} s:", n + 1, begin.elapsed().as_secs_f64());
            print("meanwhile", waits);
        }
        let status = running.status().await?;
        let (size, used) = (status.db_size / 1_000_000, status.db_size_in_use / 1_000_000);
        println!("  dbSize {size} MB, in use {used} MB");
        running.member.kill()?;
    }
    Ok(())
}

pub(crate) fn print(when: &str, waits: Vec<Waits>) {
    for ((_, name), mut waits) in KINDS.iter().zip(waits) {
        println!("    {when:9} {name:17} {}", waits.describe());
    }
}

/// Runs callers on a thread of their own until the work, on another one, is done: how long those of each kind waited.
pub(crate) fn watch<W: Future<Output = Result<()>> + 'static>(
    address: SocketAddr,
    data: Data,
    work: impl FnOnce() -> W + Send + 'static,
) -> Result<Vec<Waits>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let callers = std::thread::spawn(move || block_on(callers(address, data, seen)));
    let worker = std::thread::spawn(move || block_on(async move { work().await }));
    let done = worker.join().map_err(|_| "the worker panicked")?;
    stop.store(true, Ordering::Relaxed);
    let waits = callers.join().map_err(|_| "the callers panicked")?;
    done?;
    waits
}

async fn callers(address: SocketAddr, data: Data, stop: Arc<AtomicBool>) -> Result<Vec<Waits>> {
    let mut tasks = Vec::new();
    let waits: Vec<Rc<RefCell<Waits>>> = KINDS.iter().map(|_| Rc::default()).collect();
    let seed = Rc::new(Cell::new(1));
    for ((kind, _), waits) in KINDS.iter().zip(&waits) {
        for _ in 0..CALLERS {
            seed.set(seed.get() + 1);
            let (client, rng) = (Client::connect(address).await?, Rng::new(seed.get()));
            tasks.push(tokio::task::spawn_local(caller(
                client,
                *kind,
                data,
                rng,
                waits.clone(),
                stop.clone(),
            )));
        }
    }
    for task in tasks {
        task.await??;
    }
    Ok(waits.iter().map(|waits| waits.borrow().clone()).collect())
}

async fn caller(
    mut client: Client,
    kind: Kind,
    data: Data,
    mut rng: Rng,
    waits: Rc<RefCell<Waits>>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let value: Vec<u8> = (0..data.value_bytes).map(|_| rng.next_u64() as u8).collect();
    while !stop.load(Ordering::Relaxed) {
        let key = load::key(rng.below(data.keys));
        let (path, request) = match kind {
            Kind::Put => {
                (path::PUT, frame(&PutRequest { key, value: value.clone().into(), ..Default::default() }))
            }
            Kind::Linearizable => (path::RANGE, frame(&RangeRequest { key, ..Default::default() })),
            Kind::Serializable => {
                (path::RANGE, frame(&RangeRequest { key, serializable: true, ..Default::default() }))
            }
        };
        let sent = Instant::now();
        let answer = client.unary_frame(path, request).await?;
        if answer.code != 0 {
            return Err(format!("{path}: {}", answer.message).into());
        }
        waits.borrow_mut().micros.push(sent.elapsed().as_micros() as u64);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Everything at once, each over a connection of its own; how long each took.
async fn storm(address: SocketAddr) -> Result<()> {
    let mut client = Client::connect(address).await?;
    let status: StatusResponse = client.call(path::STATUS, &StatusRequest::default()).await?;
    let revision = status.header.map_or(0, |header| header.revision);
    let compaction = CompactionRequest { revision, physical: true };
    let list = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let tasks = [
        ("compaction", started(address, path::COMPACT, compaction)),
        ("defragment", started(address, path::DEFRAGMENT, DefragmentRequest::default())),
        ("snapshot", started(address, path::SNAPSHOT, SnapshotRequest::default())),
        ("list", started(address, path::RANGE, list)),
        ("hash", started(address, path::HASH_KV, HashKvRequest::default())),
    ];
    for (name, task) in tasks {
        let (time, bytes) = task.await?.map_err(|e| format!("{name}: {e}"))?;
        println!("    {name}: {:.2} s, {} MB", time.as_secs_f64(), bytes / 1_000_000);
    }
    Ok(())
}

type Started = tokio::task::JoinHandle<Result<(Duration, u64)>>;

fn started<M: prost::Message + 'static>(address: SocketAddr, path: &'static str, request: M) -> Started {
    tokio::task::spawn_local(async move {
        let mut client = Client::connect(address).await?;
        let begin = Instant::now();
        let bytes = client.drain(path, &request).await?;
        Ok((begin.elapsed(), bytes))
    })
}
