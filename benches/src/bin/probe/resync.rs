//! What it costs the others that a member of three lost everything and is replaced: puts at the leader meanwhile, and how
//! long it takes until the new one serves what the others have.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use trilith_benches::Result;
use trilith_benches::client::{Client, path};
use trilith_benches::load::{self, Data, Server};
use trilith_benches::member::Member;
use trilith_proto::etcdserverpb::{RangeRequest, RangeResponse};

use crate::{Contestant, stall, start_cluster};

const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Megabytes of keys and values.
    #[arg(long, default_value_t = 1000)]
    megabytes: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    /// Seconds of the quiet part.
    #[arg(long, default_value_t = 10)]
    quiet: u64,
}

pub(crate) async fn run(args: &Args, contestants: &[Contestant], folder: &Path) -> Result<()> {
    let data = Data {
        keys: args.megabytes * 1_000_000 / (8 + args.value_bytes as u64),
        value_bytes: args.value_bytes,
    };
    for contestant in contestants {
        let mut cluster = start_cluster(contestant, folder).await?;
        let leader = cluster.leader().await?;
        let address = cluster.launches[leader].client;
        let pids = cluster.members.iter().flatten().map(Member::pid).collect();
        load::fill(Server { addresses: vec![address], pids, folder }, data).await?;
        println!("\n{}: {} keys on three members", contestant.name, data.keys);
        // Connections must be five seconds old before the members may change.
        let time = Duration::from_secs(args.quiet.max(6));
        let quiet = stall::watch(address, data, move || async move {
            sleep(time).await;
            Ok(())
        })?;
        let wiped = (leader + 1) % cluster.members.len();
        cluster.replace(wiped, leader).await?;
        let began = Instant::now();
        cluster.start(wiped)?;
        let back = cluster.launches[wiped].client;
        let meanwhile = stall::watch(address, data, move || async move {
            // Before it serves it cannot be asked.
            while count(back).await.unwrap_or(0) < data.keys as i64 {
                if began.elapsed() > PATIENCE {
                    return Err("the member does not come back".into());
                }
                sleep(PAUSE).await;
            }
            Ok(())
        })?;
        println!("  back in sync after {:.1} s", began.elapsed().as_secs_f64());
        stall::print("quiet", quiet);
        stall::print("meanwhile", meanwhile);
        if cluster.leader().await? != leader {
            println!("  the leader changed");
        }
    }
    Ok(())
}

/// How many keys a member has, by its own state.
async fn count(address: std::net::SocketAddr) -> Result<i64> {
    let request = RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        count_only: true,
        serializable: true,
        ..RangeRequest::default()
    };
    let answer: RangeResponse = Client::connect(address).await?.call(path::RANGE, &request).await?;
    Ok(answer.count)
}
