//! Rounds over clusters: puts and linearizable reads at all members, one client at the leader.

use std::path::Path;

use trilith_benches::Result;
use trilith_benches::cluster::Cluster;
use trilith_benches::load::{Data, Server, Work, fill};
use trilith_benches::member::{Member, unused};

use crate::table::Results;
use crate::{ALONE, Args, CROWD, Contestant, Shape, measure};

const LINES: [(&str, Work, Shape); 4] = [
    ("put, 1 client at the leader", Work::Put, ALONE),
    ("put, 1000 in flight on 100 at all members", Work::Put, CROWD),
    ("linearizable range, 1 client at the leader", Work::Range, ALONE),
    ("linearizable range, 1000 in flight on 100 at all members", Work::Range, CROWD),
];

/// A new cluster, its load, its end.
pub(crate) async fn one_round(
    args: &Args,
    contestant: &Contestant,
    at: usize,
    folder: &Path,
    results: &mut Results,
) -> Result<()> {
    let folder = unused(folder, "cluster")?;
    let flags: Vec<&str> = contestant.flags.iter().map(String::as_str).collect();
    let mut cluster = Cluster::new(&contestant.binary, &folder, args.members, &flags, false).await?;
    cluster.ready().await?;
    let leader = cluster.leader().await?;
    let mut addresses: Vec<_> = cluster.launches.iter().map(|launch| launch.client).collect();
    // Whoever has one connection has it to the first.
    addresses.swap(0, leader);
    let pids = cluster.members.iter().flatten().map(Member::pid).collect();
    let server = Server { addresses, pids, folder: &folder };
    fill(server.clone(), Data::small(args.keys)).await?;
    let mut measured = Vec::new();
    measure(args, server, "", &LINES, &mut measured).await?;
    if cluster.leader().await? != leader {
        println!("  {}: the leader changed during the round", contestant.name);
    }
    for number in 0..args.members {
        cluster.kill(number)?;
    }
    for (line, cell) in measured {
        results.add(at, line, cell);
    }
    Ok(())
}
