//! How the file follows the data: most keys are deleted and compacted, and nobody asks for anything more.

use std::path::Path;
use std::time::{Duration, Instant};

use trilith_benches::Result;
use trilith_benches::client::path;
use trilith_benches::load::{self, Data, Work};
use trilith_proto::etcdserverpb::{CompactionRequest, CompactionResponse};

use crate::Contestant;

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Keys; nine of ten are deleted.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    /// Seconds that are waited.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Delete nine keys in a row instead of at random places.
    #[arg(long)]
    in_a_row: bool,
}

pub(crate) async fn run(args: &Args, contestants: &[Contestant], folder: &Path) -> Result<()> {
    let data = Data { keys: args.keys, value_bytes: args.value_bytes };
    for contestant in contestants {
        let running = contestant.start(folder).await?;
        load::fill(running.server(), data).await?;
        let before = running.status().await?.db_size;
        let chosen: fn(u64) -> bool = match args.in_a_row {
            true => |n| n % 10 != 0,
            // A number that shares no factor with ten spreads the survivors.
            false => |n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & 0xffff >= 6554,
        };
        let live = (0..data.keys).filter(|n| !chosen(*n)).count() as u64 * (8 + args.value_bytes as u64);
        crate::delete(&running, data, chosen).await?;
        let revision = running.status().await?.header.map_or(0, |header| header.revision);
        let request = CompactionRequest { revision, physical: true };
        running.client().await?.call::<_, CompactionResponse>(path::COMPACT, &request).await?;
        println!(
            "\n{}: dbSize {} MB; deleted and compacted, {} MB of keys and values are left",
            contestant.name,
            before / 1_000_000,
            live / 1_000_000
        );
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(args.seconds) {
            // A little traffic, as there always is.
            let (warm, time) = (Duration::ZERO, Duration::from_secs(5));
            let shape = load::Shape { connections: 1, in_flight: 1 };
            let trickle = load::run(running.server(), Work::Range, shape, data, warm, time).await?;
            let status = running.status().await?;
            println!(
                "  {:3.0} s: dbSize {:4} MB ({:.2} of the data), in use {:4} MB; a read's p99 {:.0} us",
                begin.elapsed().as_secs_f64(),
                status.db_size / 1_000_000,
                status.db_size as f64 / live as f64,
                status.db_size_in_use / 1_000_000,
                trickle.p99_us,
            );
        }
        running.member.kill()?;
    }
    Ok(())
}
