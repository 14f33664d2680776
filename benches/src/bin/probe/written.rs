//! Bytes written to the disk per byte of keys and values, at full load.

use std::path::Path;
use std::time::Duration;

use trilith_benches::Result;
use trilith_benches::load::{self, Data, Work};

use crate::{CROWD, Contestant};

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Rounds; each measures every server once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measured seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Keys of the load.
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
}

pub(crate) async fn run(args: &Args, contestants: &[Contestant], folder: &Path) -> Result<()> {
    let data = Data { keys: args.keys, value_bytes: args.value_bytes };
    for round in 0..args.rounds {
        for turn in 0..contestants.len() {
            let contestant = &contestants[(turn + round) % contestants.len()];
            let running = contestant.start(folder).await?;
            let (warm, time) = (Duration::from_secs(5), Duration::from_secs(args.seconds));
            let measured = load::run(running.server(), Work::Put, CROWD, data, warm, time).await?;
            let bytes_per_put = measured.written_per_1000 / 1000.0;
            println!(
                "{}: {:.0} puts/s, p99 {:.1} ms, {:.2} bytes written per byte",
                contestant.name,
                measured.rate,
                measured.p99_us / 1000.0,
                bytes_per_put / (8 + args.value_bytes) as f64
            );
            running.member.kill()?;
        }
    }
    Ok(())
}
