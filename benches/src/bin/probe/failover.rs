//! How long nobody can write after the leader of a cluster of three was killed.
//!
//! The time runs from the kill to the first answer to a put, which a client sends to the two others again and again.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use trilith_benches::Result;
use trilith_benches::client::{Client, path};
use trilith_benches::cluster::Cluster;
use trilith_proto::etcdserverpb::{PutRequest, PutResponse};

use crate::{Contestant, start_cluster};

/// One try; a member without a leader answers nothing for longer.
const TRY: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Leaders that are killed, of each.
    #[arg(long, default_value_t = 11)]
    kills: usize,
}

pub(crate) async fn run(args: &Args, contestants: &[Contestant], folder: &Path) -> Result<()> {
    for contestant in contestants {
        let mut cluster = start_cluster(contestant, folder).await?;
        let mut gaps = Vec::new();
        for _ in 0..args.kills {
            gaps.push(one(&mut cluster).await?.as_millis());
        }
        gaps.sort_unstable();
        println!(
            "{}: no writes for {} ms (median of {}), {} to {} ms; the election timeout is 1000 ms",
            contestant.name,
            gaps[gaps.len() / 2],
            gaps.len(),
            gaps[0],
            gaps[gaps.len() - 1]
        );
    }
    Ok(())
}

async fn one(cluster: &mut Cluster) -> Result<Duration> {
    let leader = cluster.leader().await?;
    put(cluster, leader, PATIENCE).await?;
    cluster.kill(leader)?;
    let began = Instant::now();
    let mut at = leader;
    loop {
        at = (at + 1) % cluster.members.len();
        if at == leader {
            continue;
        }
        if put(cluster, at, TRY).await.is_ok() {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err("nobody takes a put any more".into());
        }
        sleep(Duration::from_millis(1)).await;
    }
    let gap = began.elapsed();
    cluster.ready().await?;
    Ok(gap)
}

async fn put(cluster: &Cluster, at: usize, patience: Duration) -> Result<()> {
    let address = cluster.launches[at].client;
    let call = async {
        let request = PutRequest { key: "key".into(), value: "value".into(), ..PutRequest::default() };
        Client::connect(address).await?.call::<_, PutResponse>(path::PUT, &request).await
    };
    timeout(patience, call).await.map_err(|_| "no answer in time")??;
    Ok(())
}
