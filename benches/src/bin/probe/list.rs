//! Memory taken by lists of everything, read at the same time.

use std::path::Path;
use std::time::{Duration, Instant};

use trilith_benches::client::path;
use trilith_benches::load::{self, Data};
use trilith_benches::{Result, host};
use trilith_proto::etcdserverpb::RangeRequest;

use crate::Contestant;

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Keys.
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 2000)]
    value_bytes: usize,
    /// Lists at once.
    #[arg(long, default_value_t = 4)]
    lists: usize,
}

pub(crate) async fn run(args: &Args, contestants: &[Contestant], folder: &Path) -> Result<()> {
    let data = Data { keys: args.keys, value_bytes: args.value_bytes };
    for contestant in contestants {
        let mut running = contestant.start(folder).await?;
        load::fill(running.server(), data).await?;
        // What loading has left is no list's.
        running.member.kill()?;
        running.member = running.launch.start().await?;
        let before = host::usage(running.member.pid())?.anonymous_bytes;
        let begin = Instant::now();
        let mut tasks = Vec::new();
        for _ in 0..args.lists {
            let mut client = running.client().await?;
            let list = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
            tasks.push(tokio::task::spawn_local(async move { client.drain(path::RANGE, &list).await }));
        }
        let mut most = before;
        let mut bytes = 0;
        for mut task in tasks {
            loop {
                tokio::select! {
                    done = &mut task => {
                        bytes += done??;
                        break;
                    }
                    () = tokio::time::sleep(Duration::from_millis(5)) => {
                        most = most.max(host::usage(running.member.pid())?.anonymous_bytes);
                    }
                }
            }
        }
        println!(
            "{}: {} lists of {} MB at once in {:.2} s; anonymous memory {} MB before, {} MB at most: {:.1} MB a list",
            contestant.name,
            args.lists,
            bytes / args.lists as u64 / 1_000_000,
            begin.elapsed().as_secs_f64(),
            before / 1_000_000,
            most / 1_000_000,
            most.saturating_sub(before) as f64 / 1e6 / args.lists as f64
        );
        running.member.kill()?;
    }
    Ok(())
}
