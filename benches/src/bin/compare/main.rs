//! A real etcd and ours in turn on the same disk, under the same load, and a table of ratios.
//!
//! `cargo run --release -p trilith-benches --bin compare` takes some ten minutes; `--rounds`, `--seconds` and
//! `--memory-keys 0` make it shorter. Client and server share the machine, so read the ratios: each is the median over
//! the rounds of what the two did within the same minute. CPU per request is the steadiest of them. `--members 3` compares clusters.

mod cluster;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use trilith_benches::load::{self, Data, Measured, Server, Shape, Work};
use trilith_benches::member::{Launch, Member, Scratch, our_binary, unused};
use trilith_benches::{Result, block_on, host};

use table::{Cell, Memory, Results};

/// Bytes that one put of 8 + 256 bytes takes in etcd's log, with the entry around it and the padding after it.
const LOG_RECORD_BYTES: usize = 320;
const MILLISECONDS_PER_SECOND: f64 = 1000.0;

const ALONE: Shape = Shape { connections: 1, in_flight: 1 };
const ONE_CONNECTION: Shape = Shape { connections: 1, in_flight: 100 };
const CROWD: Shape = Shape { connections: 100, in_flight: 1000 };

const PUTS: [(&str, Work, Shape); 3] = [
    ("put, 1 client", Work::Put, ALONE),
    ("put, 100 in flight on 1 connection", Work::Put, ONE_CONNECTION),
    ("put, 1000 in flight on 100", Work::Put, CROWD),
];
const RANGES: [(&str, Work, Shape); 4] = [
    ("linearizable range, 1 client", Work::Range, ALONE),
    ("linearizable range, 1000 in flight on 100", Work::Range, CROWD),
    ("serializable range, 1 client", Work::RangeSerializable, ALONE),
    ("serializable range, 1000 in flight on 100", Work::RangeSerializable, CROWD),
];
/// Before the name of a line that is measured after 100,000 puts in a row.
const BURST: &str = "after a burst, ";

#[derive(Debug, Parser)]
#[command(about = "Compares the speed of ours with a real etcd's")]
struct Args {
    /// Rounds; each measures every server once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measured seconds for each line.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds of load before that.
    #[arg(long, default_value_t = 0.7)]
    warm: f64,
    /// Only the lines whose name holds this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Keys of the load.
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Keys with which memory and the start after SIGKILL are measured, once; 0 leaves it out.
    #[arg(long, default_value_t = 1_000_000)]
    memory_keys: u64,
    /// Members of each: 1 compares servers alone, 3 clusters of three.
    #[arg(long, default_value_t = 1)]
    members: usize,
    /// Values of --trilith-wal-io, each a server of its own in the table; empty for a server without the flag.
    #[arg(long, default_value = "auto")]
    wal_io: String,
    /// The real etcd.
    #[arg(long, default_value = "/usr/bin/etcd")]
    etcd: PathBuf,
    /// Our server; the one beside this program when it is not given.
    #[arg(long)]
    ours: Option<PathBuf>,
    /// Where the data goes: the disk that is measured.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
}

/// A server in the table.
#[derive(Debug, Clone)]
struct Contestant {
    name: String,
    binary: PathBuf,
    flags: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        eprintln!("this is a build without optimisation: its figures say little");
    }
    let scratch = Scratch::new(&args.folder, "compare")?;
    println!("{}", host::describe(&scratch.path));
    block_on(compare(&args, &scratch.path))
}

fn contestants(args: &Args) -> Vec<Contestant> {
    let etcd = Contestant {
        name: "etcd".into(),
        binary: args.etcd.clone(),
        // A million keys with their history outgrow its usual 2 GiB.
        flags: vec!["--quota-backend-bytes=8589934592".into(), "--log-level=error".into()],
    };
    let binary = args.ours.clone().unwrap_or_else(our_binary);
    let ours = args.wal_io.split(',').map(|io| Contestant {
        name: if io.is_empty() { "ours".into() } else { format!("ours, {io}") },
        binary: binary.clone(),
        flags: match io {
            "" => Vec::new(),
            io => vec![format!("--trilith-wal-io={io}")],
        },
    });
    std::iter::once(etcd).chain(ours).collect()
}

async fn compare(args: &Args, folder: &Path) -> Result<()> {
    let contestants = contestants(args);
    let mut results = Results::new(contestants.iter().map(|c| c.name.clone()).collect());
    for round in 0..args.rounds {
        let fio = fio(folder)?;
        results.fio.push(fio);
        println!(
            "round {} of {}: fio {fio:.0} fdatasyncs/s of {LOG_RECORD_BYTES} bytes",
            round + 1,
            args.rounds
        );
        // Nobody is always the first: what the machine does beside us changes over a round.
        for turn in 0..contestants.len() {
            let at = (turn + round) % contestants.len();
            match args.members {
                1 => one_round(args, &contestants[at], at, folder, &mut results).await?,
                _ => cluster::one_round(args, &contestants[at], at, folder, &mut results).await?,
            }
        }
    }
    if args.memory_keys > 0 && args.members == 1 {
        for (at, contestant) in contestants.iter().enumerate() {
            let memory = memory(args, contestant, folder).await?;
            results.memory.push((at, memory));
        }
    }
    print!("{}", results.render());
    Ok(())
}

fn launch(contestant: &Contestant, folder: &Path) -> Result<Launch> {
    let data = unused(folder, "server")?;
    let flags: Vec<&str> = contestant.flags.iter().map(String::as_str).collect();
    Launch::new(&contestant.binary, data, &flags)
}

async fn one_round(
    args: &Args,
    contestant: &Contestant,
    at: usize,
    folder: &Path,
    results: &mut Results,
) -> Result<()> {
    let launch = launch(contestant, folder)?;
    let mut measured = Vec::new();
    let mut member = launch.start().await?;
    measure(args, server(&launch, &member), "", &PUTS, &mut measured).await?;
    if RANGES.iter().any(|(name, ..)| name.contains(&args.only) || args.only.starts_with(BURST)) {
        load::fill(server(&launch, &member), Data::small(args.keys)).await?;
        member.kill()?;
        member = launch.start().await?;
        measure(args, server(&launch, &member), "", &RANGES, &mut measured).await?;
        load::fill(server(&launch, &member), Data::small(args.keys)).await?;
        measure(args, server(&launch, &member), BURST, &RANGES, &mut measured).await?;
    }
    let usage = host::usage(member.pid())?;
    member.kill()?;
    let path = log_path_line(&launch);
    println!("  {}: {} MB resident at the end of the round{path}", contestant.name, usage.rss_bytes >> 20);
    for (line, cell) in measured {
        results.add(at, line, cell);
    }
    Ok(())
}

fn server<'s>(launch: &'s Launch, member: &Member) -> Server<'s> {
    Server::alone(launch.client, member.pid(), &launch.folder)
}

async fn measure(
    args: &Args,
    server: Server<'_>,
    when: &str,
    lines: &[(&str, Work, Shape)],
    measured: &mut Vec<(String, Cell)>,
) -> Result<()> {
    for (name, work, shape) in lines {
        let name = format!("{when}{name}");
        if !name.contains(&args.only) {
            continue;
        }
        let (warm, time) = (Duration::from_secs_f64(args.warm), Duration::from_secs_f64(args.seconds));
        let result = load::run(server.clone(), *work, *shape, Data::small(args.keys), warm, time).await?;
        measured.push((name, cell(&result, &server.pids)?));
    }
    Ok(())
}

fn cell(measured: &Measured, pids: &[u32]) -> Result<Cell> {
    Ok(Cell {
        rate: measured.rate,
        p50_us: measured.p50_us,
        p99_us: measured.p99_us,
        cpu_ms_per_1000: measured.cpu_per_1000 * MILLISECONDS_PER_SECOND,
        written_per_1000: measured.written_per_1000,
        rss_bytes: host::usage_of(pids)?.rss_bytes as f64,
    })
}

/// What our server's log says of the path that writes the write-ahead log.
fn log_path_line(launch: &Launch) -> String {
    let text = std::fs::read_to_string(launch.log_path()).unwrap_or_default();
    let names_path =
        |line: &&str| line.contains("wal") && (line.contains("io_uring") || line.contains("\"sync\""));
    text.lines().rfind(names_path).map(|line| format!("; log: {line}")).unwrap_or_default()
}

async fn memory(args: &Args, contestant: &Contestant, folder: &Path) -> Result<Memory> {
    let launch = launch(contestant, folder)?;
    let member = launch.start().await?;
    let loaded = load::fill(server(&launch, &member), Data::small(args.memory_keys)).await?;
    let before = host::usage(member.pid())?;
    member.kill()?;
    let mut starts = Vec::new();
    let mut after = before;
    for _ in 0..3 {
        let mut member = launch.spawn()?;
        starts.push(member.ready().await?.as_secs_f64() * MILLISECONDS_PER_SECOND);
        after = host::usage(member.pid())?;
        member.kill()?;
    }
    let keys = args.memory_keys as f64;
    Ok(Memory {
        keys: args.memory_keys,
        load_rate: loaded.rate,
        written_per_put: loaded.written_per_1000 / 1000.0,
        rss_per_key: before.rss_bytes as f64 / keys,
        anonymous_per_key: before.anonymous_bytes as f64 / keys,
        anonymous_per_key_restarted: after.anonymous_bytes as f64 / keys,
        starts_ms: starts,
    })
}

/// fdatasyncs a second that the disk does right now, one record each, on blocks that were written before.
fn fio(folder: &Path) -> Result<f64> {
    let output = Command::new("fio")
        .args([
            "--name=sync",
            "--rw=write",
            "--fdatasync=1",
            "--ioengine=psync",
            "--size=16m",
            "--overwrite=1",
        ])
        .args(["--time_based", "--runtime=2", "--output-format=terse", "--terse-version=3"])
        .arg(format!("--bs={LOG_RECORD_BYTES}"))
        .arg(format!("--directory={}", folder.display()))
        .output()
        .map_err(|e| format!("fio: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Terse format, version 3: the 49th field is the writes a second.
    let iops = text.lines().find_map(|line| line.split(';').nth(48)?.parse().ok());
    iops.ok_or_else(|| {
        format!("fio ended with {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)).into()
    })
}
