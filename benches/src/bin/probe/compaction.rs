//! Puts a second with a compaction every few seconds, and without, in turn.

use std::path::Path;
use std::time::Duration;

use trilith_benches::Result;
use trilith_benches::client::path;
use trilith_benches::load::{self, Data, Work};
use trilith_proto::etcdserverpb::{CompactionRequest, CompactionResponse};

use crate::{CROWD, Contestant, Running};

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Rounds; each measures both ways once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measured seconds of each way.
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
        for round in 0..args.rounds {
            // What the last round left is removed before anything is measured.
            compact(&running, true).await?;
            let mut rates = [0.0; 2];
            for turn in 0..2 {
                let compacting = (turn + round) % 2 == 1;
                rates[usize::from(compacting)] = measure(args, &running, data, compacting).await?;
            }
            println!(
                "{}: {:.0} puts/s without, {:.0} with a compaction every {} s: {:.3}",
                contestant.name,
                rates[0],
                rates[1],
                args.every,
                rates[1] / rates[0]
            );
            ratios.push(rates[1] / rates[0]);
        }
        ratios.sort_by(f64::total_cmp);
        println!("{}: median of the ratios {:.3}", contestant.name, ratios[ratios.len() / 2]);
        running.member.kill()?;
    }
    Ok(())
}

async fn measure(args: &Args, running: &Running, data: Data, compacting: bool) -> Result<f64> {
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
