//! The engine beside redb and LMDB: the same entries, in the same run, in processor time.
//!
//! Criterion knows elapsed time only, which tells little on a busy machine; `benches/engine.rs` has that. Every so many
//! puts comes a sync of everything: our checkpoint, a transaction of redb's with a sync, LMDB's sync of the file.
//!
//! Times are of this thread's processor use (Linux), with what the kernel did for it, so that other processes matter
//! little. The three take turns in each round; the figures are medians.
//!
//! `TMPDIR=/dev/shm cargo run --release --manifest-path benches/engine/Cargo.toml --target-dir target -- [KEYS] [ROUNDS]
//! [ENGINE]` (in memory, since waiting for a disk is no part of the figures)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trilith_engine_bench::{
    BATCH, Engine, Lmdb, Ours, Outcome, Redb, SCANNED, SYNC_EVERY, VALUE_BYTES, random,
};

/// Nanoseconds for each, engine and kind of work, one per round.
type Figures = BTreeMap<(usize, &'static str, &'static str), Vec<f64>>;

fn main() -> Outcome<()> {
    let mut words = std::env::args().skip(1);
    let keys = words.next().map_or(Ok(50_000), |word| word.parse())?;
    let rounds = words.next().map_or(Ok(3), |word| word.parse())?;
    let only = words.next();
    let folder = std::env::temp_dir().join(format!("trilith-engine-bench-{}", std::process::id()));
    let mut figures = Figures::new();
    let done = all(&folder, keys, rounds, only.as_deref(), &mut figures);
    std::fs::remove_dir_all(&folder)?;
    report(&figures);
    done?;
    Ok(())
}

fn all(folder: &Path, keys: usize, rounds: usize, only: Option<&str>, figures: &mut Figures) -> Outcome<()> {
    for _ in 0..rounds {
        round::<Ours>(folder, keys, only, figures)?;
        round::<Lmdb>(folder, keys, only, figures)?;
        round::<Redb>(folder, keys, only, figures)?;
    }
    Ok(())
}

fn round<E: Engine>(folder: &Path, keys: usize, only: Option<&str>, figures: &mut Figures) -> Outcome<()> {
    if only.is_some_and(|name| name != E::NAME) {
        return Ok(());
    }
    let folder: PathBuf = folder.join(E::NAME);
    std::fs::create_dir_all(&folder)?;
    let mut work = Work { engine: E::create(&folder)?, keys, state: 1, figures };
    work.puts(["put, ascending keys", "sync after them, per put"], |i, _| (i as u64).to_be_bytes())?;
    work.puts(["put, random keys", "sync after them, per put "], |_, random| (random as u64).to_be_bytes())?;
    work.gets()?;
    work.scan()?;
    drop(work);
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

struct Work<'f, E> {
    engine: E,
    keys: usize,
    state: u64,
    figures: &'f mut Figures,
}

impl<E: Engine> Work<'_, E> {
    fn random(&mut self) -> usize {
        random(&mut self.state) % self.keys
    }

    fn note(&mut self, order: usize, what: &'static str, figure: f64) {
        self.figures.entry((order, what, E::NAME)).or_default().push(figure);
    }

    fn puts(
        &mut self,
        [put, sync]: [&'static str; 2],
        choose: impl Fn(usize, usize) -> [u8; 8],
    ) -> Outcome<()> {
        let value = [b'v'; VALUE_BYTES];
        let (mut putting, mut syncing) = (Duration::ZERO, Duration::ZERO);
        let mut at = 0;
        while at < self.keys {
            let end = self.keys.min(at + SYNC_EVERY);
            let chosen: Vec<[u8; 8]> = (at..end).map(|i| choose(i, self.random())).collect();
            let start = used();
            for batch in chosen.chunks(BATCH) {
                self.engine.put(batch, &value)?;
            }
            putting += used() - start;
            let start = used();
            self.engine.sync()?;
            syncing += used() - start;
            at = end;
        }
        let order = if put.contains("ascending") { 0 } else { 2 };
        self.note(order, put, putting.as_nanos() as f64 / self.keys as f64);
        self.note(order + 1, sync, syncing.as_nanos() as f64 / self.keys as f64);
        Ok(())
    }

    fn gets(&mut self) -> Outcome<()> {
        let chosen: Vec<[u8; 8]> = (0..self.keys).map(|_| (self.random() as u64).to_be_bytes()).collect();
        self.engine.get(&chosen)?;
        let start = used();
        let bytes = self.engine.get(&chosen)?;
        let took = used() - start;
        assert!(bytes >= chosen.len() * VALUE_BYTES, "every key is there");
        self.note(4, "get, random keys", took.as_nanos() as f64 / self.keys as f64);
        Ok(())
    }

    /// Every byte of every value is read, eight at a time.
    fn scan(&mut self) -> Outcome<()> {
        let mut best = f64::MAX;
        for _ in 0..5 {
            let (mut bytes, mut sum) = (0, 0u64);
            let start = used();
            self.engine.scan(SCANNED, &mut |pair| {
                bytes += pair.len();
                let (words, rest) = pair.as_chunks::<8>();
                sum = words.iter().fold(sum, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
                sum = sum.wrapping_add(rest.len() as u64);
            })?;
            let took = used() - start;
            std::hint::black_box(sum);
            assert!(bytes >= self.keys.min(SCANNED) * VALUE_BYTES, "every pair is there");
            best = best.min(took.as_nanos() as f64 / bytes as f64);
        }
        self.note(5, "scan, GB/s of pairs", 1.0 / best);
        Ok(())
    }
}

/// Processor time of this thread so far.
fn used() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default())
}

fn report(figures: &Figures) {
    println!("nanoseconds of processor time each, if nothing else is said; median (least to most)");
    for ((_, what, name), found) in figures {
        let mut sorted = found.clone();
        sorted.sort_by(f64::total_cmp);
        let (first, middle, last) = (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        let digits = if what.starts_with("scan") { 2 } else { 0 };
        println!("{what:<28} {name:<8} {middle:>8.digits$} ({first:.digits$} to {last:.digits$})");
    }
}
