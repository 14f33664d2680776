//! What maintenance costs: a real etcd and ours in turn, under load, while they compact, defragment, send snapshots and
//! long lists, and hash.
//!
//! `probe stall` prints the longest time that a put or a read waited; `probe compaction` what compactions take from
//! the puts; `probe size` how the file follows the data; `probe written` bytes on the disk per byte of data; `probe
//! list` what a long list takes of memory; `probe failover` how long a cluster cannot write after its leader died, and `probe
//! resync` what a member costs that comes back with nothing. `--only etcd` or `--only ours` measures one of the two. Client and
//! server share the machine: what both print in one run can be compared, nothing else.

mod compaction;
mod failover;
mod list;
mod resync;
mod size;
mod stall;
mod written;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use trilith_benches::client::{Client, path};
use trilith_benches::cluster::Cluster;
use trilith_benches::load::{Data, Server, Shape};
use trilith_benches::member::{Launch, Member, Scratch, our_binary, unused};
use trilith_benches::{Result, block_on, host};
use trilith_proto::etcdserverpb::{
    DeleteRangeRequest, RequestOp, StatusRequest, StatusResponse, TxnRequest, TxnResponse, request_op,
};

const CROWD: Shape = Shape { connections: 100, in_flight: 1000 };
/// Deletes in one transaction: etcd takes 128 at most.
const DELETES: u64 = 100;

#[derive(Debug, Parser)]
#[command(about = "Measures what maintenance costs, of ours and of a real etcd")]
struct Args {
    #[command(subcommand)]
    mode: Mode,
    /// Only this one: etcd or ours.
    #[arg(long, global = true)]
    only: Option<String>,
    /// The real etcd.
    #[arg(long, default_value = "/usr/bin/etcd", global = true)]
    etcd: PathBuf,
    /// Our server; the one beside this program when it is not given.
    #[arg(long, global = true)]
    ours: Option<PathBuf>,
    /// A flag for our server; may be given several times.
    #[arg(long, global = true, allow_hyphen_values = true)]
    flag: Vec<String>,
    /// Where the data goes: the disk that is measured.
    #[arg(long, default_value_os_t = std::env::temp_dir(), global = true)]
    folder: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// The longest gap while everything happens at once.
    Stall(stall::Args),
    /// Puts a second, with a compaction every few seconds and without.
    Compaction(compaction::Args),
    /// The file after most of the data was deleted.
    Size(size::Args),
    /// Bytes written to the disk per byte of keys and values.
    Written(written::Args),
    /// Memory taken by long lists that are read at the same time.
    List(list::Args),
    /// Time without writes after the leader of a cluster of three was killed.
    Failover(failover::Args),
    /// Puts while a member of a cluster of three gets the whole store anew.
    Resync(resync::Args),
}

/// A server that is measured.
#[derive(Debug, Clone)]
struct Contestant {
    name: &'static str,
    binary: PathBuf,
    flags: Vec<String>,
}

/// A contestant that runs on an empty folder.
#[derive(Debug)]
struct Running {
    launch: Launch,
    member: Member,
}

impl Contestant {
    async fn start(&self, folder: &Path) -> Result<Running> {
        let data = unused(folder, "server")?;
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let launch = Launch::new(&self.binary, data, &flags)?;
        let member = launch.start().await?;
        Ok(Running { launch, member })
    }
}

/// A cluster of three on an empty folder.
async fn start_cluster(contestant: &Contestant, folder: &Path) -> Result<Cluster> {
    let data = unused(folder, "cluster")?;
    let flags: Vec<&str> = contestant.flags.iter().map(String::as_str).collect();
    let mut cluster = Cluster::new(&contestant.binary, &data, 3, &flags, false).await?;
    cluster.ready().await?;
    Ok(cluster)
}

impl Running {
    fn server(&self) -> Server<'_> {
        Server::alone(self.launch.client, self.member.pid(), &self.launch.folder)
    }

    async fn client(&self) -> Result<Client> {
        Client::connect(self.launch.client).await
    }

    async fn status(&self) -> Result<StatusResponse> {
        self.client().await?.call(path::STATUS, &StatusRequest::default()).await
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        eprintln!("this is a build without optimisation: its figures say little");
    }
    let scratch = Scratch::new(&args.folder, "probe")?;
    println!("{}", host::describe(&scratch.path));
    let contestants = contestants(&args)?;
    block_on(async {
        match &args.mode {
            Mode::Stall(mode) => stall::run(mode, &contestants, &scratch.path).await,
            Mode::Compaction(mode) => compaction::run(mode, &contestants, &scratch.path).await,
            Mode::Size(mode) => size::run(mode, &contestants, &scratch.path).await,
            Mode::Written(mode) => written::run(mode, &contestants, &scratch.path).await,
            Mode::List(mode) => list::run(mode, &contestants, &scratch.path).await,
            Mode::Failover(mode) => failover::run(mode, &contestants, &scratch.path).await,
            Mode::Resync(mode) => resync::run(mode, &contestants, &scratch.path).await,
        }
    })
}

fn contestants(args: &Args) -> Result<Vec<Contestant>> {
    let quota = "--quota-backend-bytes=8589934592".to_owned();
    let mut all = vec![
        Contestant {
            name: "etcd",
            binary: args.etcd.clone(),
            flags: vec![quota.clone(), "--log-level=error".into()],
        },
        Contestant {
            name: "ours",
            binary: args.ours.clone().unwrap_or_else(our_binary),
            flags: std::iter::once(quota).chain(args.flag.iter().cloned()).collect(),
        },
    ];
    if let Some(only) = &args.only {
        all.retain(|contestant| contestant.name == only);
        if all.is_empty() {
            return Err(format!("--only={only}: it is etcd or ours").into());
        }
    }
    Ok(all)
}

/// Deletes the keys below `data.keys` that are chosen, some transactions at a time.
async fn delete(running: &Running, data: Data, chosen: fn(u64) -> bool) -> Result<()> {
    let mut tasks = Vec::new();
    const TASKS: u64 = 16;
    for task in 0..TASKS {
        let mut client = running.client().await?;
        let mut numbers =
            (0..data.keys).filter(move |n| n / DELETES % TASKS == task && chosen(*n)).peekable();
        tasks.push(tokio::task::spawn_local(async move {
            while numbers.peek().is_some() {
                let success = numbers.by_ref().take(DELETES as usize).map(delete_one).collect();
                let request = TxnRequest { success, ..Default::default() };
                client.call::<_, TxnResponse>(path::TXN, &request).await?;
            }
            Ok::<_, trilith_benches::Error>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn delete_one(number: u64) -> RequestOp {
    let request = DeleteRangeRequest { key: trilith_benches::load::key(number), ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestDeleteRange(request)) }
}
