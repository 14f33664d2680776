//! The differential run: random requests to a real etcd and to ours, whose answers, hashes and events must be equal.
//!
//! `differential --ops 100000` prints its seed; `--seed` replays a run. At a difference it prints the answer's first
//! differing field and a short list of requests that still shows it, and ends with 1.

mod compare;
mod generate;
mod op;
mod run;
mod stream;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use trilith_benches::member::{Scratch, our_binary};
use trilith_benches::rng::{Rng, fresh_seed};
use trilith_benches::{Result, block_on};

use generate::Generator;
use op::Op;
use run::{Found, Pair, READS_MAX, Setup};

/// Hashes that are compared over a run.
const HASHES: usize = 100;
/// Watchers that catch up at the end.
const WATCHERS: usize = 40;
/// Ranges that are asked for as streams too, at the end.
const STREAMS: usize = 500;

#[derive(Debug, Parser)]
#[command(about = "Compares ours with a real etcd, request by request")]
struct Args {
    /// Requests to send.
    #[arg(long, default_value_t = 100_000)]
    ops: usize,
    /// Seed of the run; a fresh one when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The real etcd.
    #[arg(long, default_value = "/usr/bin/etcd")]
    etcd: PathBuf,
    /// Our server; the one beside this program when it is not given.
    #[arg(long)]
    ours: Option<PathBuf>,
    /// A further flag for our server; may be given again.
    #[arg(long, allow_hyphen_values = true)]
    ours_flag: Vec<String>,
    /// How often ours is killed and started again on the way.
    #[arg(long, default_value_t = 5)]
    restarts: usize,
    /// Where the data goes.
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
    /// How long to look for a shorter list of requests after a difference.
    #[arg(long, default_value_t = 60)]
    shrink_seconds: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(fresh_seed);
    println!("differential: {} requests, seed {seed}", args.ops);
    for known in compare::known_differences() {
        println!("  known to differ, {known}");
    }
    let mut scratch = Scratch::new(&args.folder, "differential")?;
    let outcome = block_on(differential(&args, seed, &scratch));
    if outcome.is_err() {
        scratch.keep();
        eprintln!("seed {seed} failed; data and logs are in {}", scratch.path.display());
    }
    outcome
}

async fn differential(args: &Args, seed: u64, scratch: &Scratch) -> Result<()> {
    let setup = Setup {
        etcd: args.etcd.clone(),
        ours: args.ours.clone().unwrap_or_else(our_binary),
        ours_flags: args.ours_flag.clone(),
        folder: scratch.path.clone(),
    };
    let begin = Instant::now();
    let mut pair = Pair::start(&setup, "run").await?;
    let mut generator = Generator::new(seed);
    // A restart of ours ends its streams, so a run with restarts compares events at its end only.
    let live = match args.restarts {
        0 => {
            let etcd = watch::collect_live(&pair.etcd.client).await?;
            Some((etcd, watch::collect_live(&pair.ours.client).await?))
        }
        _ => None,
    };
    let mut sent: Vec<Op> = Vec::with_capacity(args.ops);
    let mut hashes = 0;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    while sent.len() < args.ops {
        let batch = next_batch(args, &mut generator, sent.len(), &mut hashes);
        let base = sent.len();
        sent.extend(batch.iter().cloned());
        match pair.exchange(&batch, base).await? {
            Ok(answers) => {
                for (op, answer) in batch.iter().zip(&answers) {
                    generator.learn(op, answer);
                    *kinds.entry(answer.kind()).or_default() += 1;
                }
            }
            Err(found) => {
                sent.truncate(found.op + 1);
                drop(pair);
                return Err(report(args, &setup, sent, found).await);
            }
        }
    }
    let last = watch::mark_end(&mut pair).await?;
    let compacted = generator.compacted;
    let mut events = 0;
    if let Some((etcd, ours)) = live {
        events += watch::compare_live(etcd, ours, compacted).await?;
    }
    let mut rng = Rng::new(seed);
    let parts = stream::compare(&mut pair.ours.client, &mut generator, STREAMS).await?;
    events += watch::compare_catch_up(&pair, &mut rng, WATCHERS, compacted, last).await?;
    for (kind, count) in &kinds {
        println!("  {count:>7} {kind}");
    }
    println!(
        "differential: {} requests, {hashes} hash rounds, {} restarts, {events} events and {parts} parts of \
         streamed ranges equal; revision {last}, \
         compacted {compacted}; seed {seed}; {:.1} s",
        sent.len(),
        kinds.get("restart").copied().unwrap_or(0),
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The next requests that may be made before the answers are known; the last one may be a write.
fn next_batch(args: &Args, generator: &mut Generator, sent: usize, hashes: &mut usize) -> Vec<Op> {
    if sent >= (*hashes + 1) * args.ops / HASHES - 1 {
        *hashes += 1;
        // Right before a hash, so that what was just replayed is hashed.
        let between = HASHES.div_ceil(args.restarts.max(1));
        let restart = args.restarts > 0 && (*hashes + between / 2).is_multiple_of(between);
        let mut batch = if restart { vec![Op::Restart] } else { Vec::new() };
        batch.extend(generator.hash());
        return batch;
    }
    let mut batch = Vec::new();
    loop {
        let op = generator.next_op();
        let read = op.is_read();
        batch.push(op);
        if !read || batch.len() == READS_MAX {
            return batch;
        }
    }
}

async fn report(args: &Args, setup: &Setup, sent: Vec<Op>, found: Found) -> trilith_benches::Error {
    eprintln!("request {} differs: {:?}\n{}", found.op, sent[found.op], found.text);
    let count = sent.len();
    match run::shrink(setup, sent, Duration::from_secs(args.shrink_seconds)).await {
        Ok((ops, found)) => {
            eprintln!("of {count} requests these {} still differ, at the last:", ops.len());
            for op in &ops {
                eprintln!("  {op:?}");
            }
            eprintln!("{}", found.text);
        }
        Err(error) => eprintln!("no shorter list: {error}"),
    }
    format!("request {} differs", found.op).into()
}
