//! Puts a second with a compaction every few seconds, and without before and after that.

use std::path::Path;
use std::time::Duration;

use trilith_benches::Result;
use trilith_benches::client::path;
use trilith_benches::load::{self, Data, Work};
use trilith_proto::etcdserverpb::{CompactionRequest, CompactionResponse};

use crate::{CROWD, Contestant, Running};

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Rounds; each measures without, with and without compactions.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measured seconds of each.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Seconds from one compaction to the next.
    #[arg(long, default_value_t = 10)]
    every: u64,
    /// Keys of the load.
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
}

pub(crate) async fn run(args: &Args, contestants: &[Contestant], folder: &Path) -> Result<()> {
    for contestant in contestants {
        let running = contestant.start(folder).await?;
        let data = Data::small(args.keys);
        load::fill(running.server(), data).await?;
        let mut ratios = Vec::new();
        for _ in 0..args.rounds {
            // A store that gets older gets slower: what is compared with stands before and after.
            let before = measure(args, &running, data, false).await?;
            let compacting = measure(args, &running, data, true).await?;
            let after = measure(args, &running, data, false).await?;
            let ratio = compacting / ((before + after) / 2.0);
            println!(
                "{}: {before:.0} puts/s, {compacting:.0} with a compaction every {} s, {after:.0}: {ratio:.3}",
                contestant.name, args.every
            );
            ratios.push(ratio);
        }
        ratios.sort_by(f64::total_cmp);
        println!("{}: median of the ratios {:.3}", contestant.name, ratios[ratios.len() / 2]);
        running.member.kill()?;
    }
    Ok(())
}

async fn measure(args: &Args, running: &Running, data: Data, compacting: bool) -> Result<f64> {
    // What was written before is removed before anything is measured, and the warm-up is as long as the time from one
    // compaction to the next: so each that is measured has as much to do as it always would.
    compact(running, true).await?;
    let (warm, time) = (Duration::from_secs(args.every), Duration::from_secs(args.seconds));
    let load = load::run(running.server(), Work::Put, CROWD, data, warm, time);
    if !compacting {
        return Ok(load.await?.rate);
    }
    let compactions = async {
        loop {
            tokio::time::sleep(Duration::from_secs(args.every)).await;
            if let Err(error) = compact(running, false).await {
                return error;
            }
        }
    };
    tokio::select! {
        measured = load => Ok(measured?.rate),
        error = compactions => Err(error),
    }
}

/// To the current revision.
async fn compact(running: &Running, physical: bool) -> Result<()> {
    let revision = running.status().await?.header.map_or(0, |header| header.revision);
    let request = CompactionRequest { revision, physical };
    let answer = running.client().await?.unary(path::COMPACT, &request).await?;
    // Nothing was written since the last one: nothing is left to compact.
    if !answer.message.contains("has been compacted") {
        answer.decode::<CompactionResponse>()?;
    }
    Ok(())
}
