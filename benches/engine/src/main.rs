//! The engine beside redb and LMDB: the same entries, in the same run, in processor time.
//!
//! Each of the three holds what etcd needs: a tree from revision to pair, and an index from key and revision to what a
//! put must know of the version before. A put looks up the newest version of its key and adds an entry to both; 100 puts
//! are one transaction, which readers see at once and which is not synced, since the log is. Every so many puts comes a
//! sync of everything: our checkpoint, a transaction of redb's with a sync, LMDB's sync of the file.
//!
//! Times are of this thread's processor use (Linux), with what the kernel did for it, so that other processes matter
//! little. The three take turns in each round; the figures are medians.
//!
//! `TMPDIR=/dev/shm cargo run --release --manifest-path benches/engine/Cargo.toml --target-dir target -- [KEYS] [ROUNDS]
//! [ENGINE]` (in memory, since waiting for a disk is no part of the figures)

mod lmdb;
mod ours;
mod redb;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whatever goes wrong ends the run.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Puts that become visible together.
const BATCH: usize = 100;
/// Puts between two syncs.
const SYNC_EVERY: usize = 200_000;
const VALUE_BYTES: usize = 256;
const SCANNED: usize = 100_000;

/// A store under test.
pub trait Engine: Sized {
    /// How it is called in the table.
    const NAME: &'static str;

    /// An empty one in an empty folder.
    fn create(folder: &Path) -> Outcome<Self>;

    /// Puts all the keys with the same value, as one transaction.
    fn put(&mut self, keys: &[[u8; 8]], value: &[u8]) -> Outcome<()>;

    /// Makes everything before it durable.
    fn sync(&mut self) -> Outcome<()>;

    /// The newest pair of each key; their length in bytes.
    fn get(&self, keys: &[[u8; 8]]) -> Outcome<usize>;

    /// Hands the first `count` pairs in order of revision to `each`.
    fn scan(&self, count: usize, each: &mut dyn FnMut(&[u8])) -> Outcome<()>;
}

/// Key of a pair: main revision, `_`, sub.
pub fn revision_key(main: u64, sub: u64) -> [u8; 17] {
    let mut key = [b'_'; 17];
    key[..8].copy_from_slice(&main.to_be_bytes());
    key[9..].copy_from_slice(&sub.to_be_bytes());
    key
}

/// Key of an index entry: the key, then main and sub.
pub fn index_key(key: &[u8; 8], main: u64) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(key);
    bytes[8..16].copy_from_slice(&main.to_be_bytes());
    bytes
}

/// What stands in the index for an engine that is not ours, in as many bytes: version, and revision of creation.
pub fn index_value(version: u32, created: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..3].copy_from_slice(&version.to_le_bytes()[..3]);
    bytes[3..].copy_from_slice(&created.to_le_bytes()[..5]);
    bytes
}

/// Version and revision of creation.
pub fn parse_index_value(bytes: &[u8]) -> (u32, u64) {
    let (mut version, mut created) = ([0; 4], [0; 8]);
    version[..3].copy_from_slice(&bytes[..3]);
    created[..5].copy_from_slice(&bytes[3..8]);
    (u32::from_le_bytes(version), u64::from_le_bytes(created))
}

/// A pair as etcd encodes it, near enough: key, value and three numbers.
pub fn pair(buffer: &mut Vec<u8>, key: &[u8; 8], value: &[u8], main: u64, version: u32, created: u64) {
    buffer.clear();
    buffer.extend_from_slice(key);
    buffer.extend_from_slice(&main.to_le_bytes()[..5]);
    buffer.extend_from_slice(&index_value(version, created));
    buffer.extend_from_slice(value);
}

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
        round::<ours::Ours>(folder, keys, only, figures)?;
        round::<lmdb::Lmdb>(folder, keys, only, figures)?;
        round::<redb::Redb>(folder, keys, only, figures)?;
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
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % self.keys
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
