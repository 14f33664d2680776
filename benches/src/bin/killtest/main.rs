//! Kills a server under load, again and again, and looks whether it kept its word.
//!
//! `killtest --rounds 200` prints its seed. Each round: 64 clients write and read, SIGKILL at a random moment, a new
//! start on the same folder (sometimes killed as well), and the check of everything that was answered.
//! `killtest --members 3` does worse to a cluster, see `cluster.rs`; with `--rolling` everybody is restarted in order.
//! `killtest --million` measures the start with a million keys instead.

mod check;
mod cluster;
mod cluster_load;
mod writes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use trilith_benches::client::{Client, path};
use trilith_benches::member::{Launch, Member, Scratch, our_binary};
use trilith_benches::rng::{Rng, fresh_seed};
use trilith_benches::{Result, block_on, host, load};
use trilith_proto::etcdserverpb::*;

use check::Model;
use writes::Round;

const MILLION: u64 = 1_000_000;
/// A lease that outlives the run.
const LEASE_SECONDS: i64 = 100_000;

#[derive(Debug, Parser)]
#[command(about = "Kills our server under load and checks what is there afterwards")]
struct Args {
    /// Rounds of load, kill, restart and check.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Seed of the run; a fresh one when it is not given. The moments of the kills are the machine's.
    #[arg(long)]
    seed: Option<u64>,
    /// Clients at once.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// The server; ours beside this program when it is not given.
    #[arg(long)]
    server: Option<PathBuf>,
    /// The values of --trilith-wal-io that take turns; empty for a server that does not know the flag.
    #[arg(long, default_value = "uring,sync")]
    wal_io: String,
    /// Longest time from the start of the load to the kill, in milliseconds.
    #[arg(long, default_value_t = 250)]
    load_ms_max: u64,
    /// Where the data goes.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Members of a cluster; 1 is a server alone.
    #[arg(long, default_value_t = 1)]
    members: usize,
    /// A folder with a file system for each member of a cluster, at m0, m1, ...: they are filled, too.
    #[arg(long)]
    disks: Option<PathBuf>,
    /// Restart the members of a cluster in order, one after the other: no request may fail.
    #[arg(long)]
    rolling: bool,
    /// Load a million keys, kill, and measure the next starts.
    #[arg(long)]
    million: bool,
}

impl Args {
    fn launch(&self, scratch: &Scratch) -> Result<Launch> {
        let server = self.server.clone().unwrap_or_else(our_binary);
        Launch::new(&server, scratch.path.clone(), &[])
    }

    /// The flags of the n-th start.
    fn flags(&self, start: usize) -> Vec<String> {
        let choices: Vec<&str> = self.wal_io.split(',').filter(|choice| !choice.is_empty()).collect();
        match choices.len() {
            0 => Vec::new(),
            n => vec![format!("--trilith-wal-io={}", choices[start % n])],
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let mut scratch = Scratch::new(&args.folder, "killtest")?;
    println!("killtest: seed {seed}; {}", host::describe(&scratch.path));
    let server = args.server.clone().unwrap_or_else(our_binary);
    let outcome = match args.million {
        true => block_on(million(&args, &scratch)),
        false if args.members > 1 => cluster::run(&cluster::Plan {
            server: &server,
            folder: args.disks.as_deref().unwrap_or(&scratch.path),
            may_fill: args.disks.is_some(),
            members: args.members,
            rounds: args.rounds,
            clients: args.clients,
            seed,
            rolling: args.rolling,
        }),
        false => block_on(rounds(&args, seed, &scratch)),
    };
    if outcome.is_err() {
        scratch.keep();
        eprintln!("seed {seed} failed; data and log are in {}", scratch.path.display());
    }
    outcome
}

async fn rounds(args: &Args, seed: u64, scratch: &Scratch) -> Result<()> {
    let begin = Instant::now();
    let mut rng = Rng::new(seed);
    let mut launch = args.launch(scratch)?;
    let mut model = Model::new();
    let (mut acknowledged, mut found, mut lost) = (0, 0, 0);
    let mut slowest = Duration::ZERO;
    let mut starts = 0;
    let mut member = start(args, &mut launch, &mut starts).await?.0;
    for round in 1..=args.rounds {
        let outcome = async {
            let state = load_and_kill(args, member, launch.client, &model, &mut rng, round).await?;
            if rng.chance(20) {
                kill_while_starting(args, &mut launch, &mut starts, &mut rng).await?;
            }
            let (next, time) = start(args, &mut launch, &mut starts).await?;
            let clients = connect(launch.client, 4).await?;
            let (writes, reads) = (state.writes.take(), state.reads.take());
            let tally = model.check(&clients, &writes, &reads, state.shown.get()).await?;
            check_lease(&mut clients[0].clone(), round).await?;
            Ok::<_, trilith_benches::Error>((next, time, tally))
        };
        let (next, time, tally) = outcome.await.map_err(|e| format!("round {round}: {e}"))?;
        member = next;
        slowest = slowest.max(time);
        acknowledged += tally.acknowledged;
        found += tally.unanswered_found;
        lost += tally.unanswered_lost;
        if round % 20 == 0 {
            println!("  round {round}: {acknowledged} acknowledged writes, revision {}", model.revision);
        }
    }
    member.kill()?;
    println!(
        "killtest: {} rounds, {starts} starts, {acknowledged} acknowledged writes all there; of those without an \
         answer {found} were done and {lost} not; slowest start {:.0} ms; seed {seed}; {:.1} s",
        args.rounds,
        slowest.as_secs_f64() * 1e3,
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn start(args: &Args, launch: &mut Launch, starts: &mut usize) -> Result<(Member, Duration)> {
    launch.flags = args.flags(*starts);
    *starts += 1;
    let mut member = launch.spawn()?;
    let time = member.ready().await?;
    Ok((member, time))
}

async fn kill_while_starting(
    args: &Args,
    launch: &mut Launch,
    starts: &mut usize,
    rng: &mut Rng,
) -> Result<()> {
    launch.flags = args.flags(*starts);
    *starts += 1;
    let member = launch.spawn()?;
    tokio::time::sleep(Duration::from_micros(rng.below(80_000))).await;
    member.kill()
}

async fn connect(address: SocketAddr, count: usize) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        clients.push(Client::connect(address).await?);
    }
    Ok(clients)
}

/// Clients on the server for a random time, then its end.
async fn load_and_kill(
    args: &Args,
    member: Member,
    address: SocketAddr,
    model: &Model,
    rng: &mut Rng,
    number: usize,
) -> Result<Rc<Round>> {
    let round = Rc::new(Round::default());
    round.shown.set(model.revision);
    let clients = connect(address, args.clients).await?;
    grant_lease(&mut clients[0].clone(), number).await?;
    let compaction = rng.chance(30).then(|| (clients[0].clone(), model.revision));
    let mut tasks = Vec::new();
    for (i, client) in clients.into_iter().enumerate() {
        let name = format!("r{number}c{i}");
        let rng = Rng::new(rng.next_u64());
        tasks.push(tokio::task::spawn_local(writes::client(client, round.clone(), rng, name)));
    }
    let time = Duration::from_micros(rng.between(15_000, args.load_ms_max as i64 * 1000) as u64);
    tokio::time::sleep(time / 2).await;
    if let Some((mut client, revision)) = compaction {
        let request = CompactionRequest { revision, physical: false };
        // Refused when the last compaction was at the same revision; whatever it says, nothing may be lost.
        client.unary(path::COMPACT, &request).await?;
    }
    tokio::time::sleep(time / 2).await;
    member.kill()?;
    for task in tasks {
        task.await?;
    }
    if let Some(disorder) = round.disorder.borrow().as_ref() {
        return Err(disorder.clone().into());
    }
    Ok(round)
}

async fn grant_lease(client: &mut Client, id: usize) -> Result<()> {
    let request = LeaseGrantRequest { ttl: LEASE_SECONDS, id: id as i64 };
    let granted: LeaseGrantResponse = client.call(path::LEASE_GRANT, &request).await?;
    (granted.ttl == LEASE_SECONDS).then_some(()).ok_or_else(|| format!("granted {granted:?}").into())
}

/// Every granted lease is there.
async fn check_lease(client: &mut Client, newest: usize) -> Result<()> {
    let leases: LeaseLeasesResponse = client.call(path::LEASE_LEASES, &LeaseLeasesRequest {}).await?;
    let mut ids: Vec<i64> = leases.leases.iter().map(|lease| lease.id).collect();
    ids.sort_unstable();
    let expected: Vec<i64> = (1..=newest as i64).collect();
    (ids == expected).then_some(()).ok_or_else(|| format!("leases {ids:?} for 1 to {newest}").into())
}

async fn million(args: &Args, scratch: &Scratch) -> Result<()> {
    let mut launch = args.launch(scratch)?;
    let mut starts = 0;
    let (mut member, _) = start(args, &mut launch, &mut starts).await?;
    let server = load::Server::alone(launch.client, member.pid(), &launch.folder);
    let loaded = load::fill(server, load::Data::small(MILLION)).await?;
    print_memory("loaded", member.pid())?;
    println!(
        "  loaded at {:.0} puts/s, {:.0} bytes written per put",
        loaded.rate,
        loaded.written_per_1000 / 1e3
    );
    for _ in 0..4 {
        member.kill()?;
        let (next, time) = start(args, &mut launch, &mut starts).await?;
        member = next;
        let flags = launch.flags.join(" ");
        println!(
            "  start after SIGKILL to the first linearizable read: {:.0} ms ({flags})",
            time.as_secs_f64() * 1e3
        );
        print_memory("restarted", member.pid())?;
        let mut client = Client::connect(launch.client).await?;
        let request = RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            count_only: true,
            ..Default::default()
        };
        let all: RangeResponse = client.call(path::RANGE, &request).await?;
        if all.count != MILLION as i64 {
            return Err(format!("{} keys of {MILLION} are there", all.count).into());
        }
    }
    member.kill()
}

fn print_memory(when: &str, pid: u32) -> Result<()> {
    let usage = host::usage(pid)?;
    println!(
        "  {when}: {} MB resident, {:.0} bytes of anonymous memory per key",
        usage.rss_bytes >> 20,
        usage.anonymous_bytes as f64 / MILLION as f64
    );
    Ok(())
}
