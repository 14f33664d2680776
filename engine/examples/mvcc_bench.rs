//! Times the store alone: no log, no raft, no network. One line per kind of work, in processor time of the writer's
//! thread (Linux), so that a busy machine does not blur it.
//!
//! `cargo run --release -p trilith-engine --example mvcc_bench -- [KEYS] [VALUE_BYTES]`

use std::sync::Arc;
use std::time::Duration;

use trilith_disk::RealDisk;
use trilith_engine::{KeyRange, Options, Store, StoreError};

/// Changes that are published together, as a loaded server would.
const BATCH: usize = 100;
/// Work of a slice of a compaction: what a server comes to on a machine like the one of the published figures.
const SLICE: usize = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let keys = arguments.next().map_or(Ok(200_000), |word| word.parse())?;
    let value_bytes = arguments.next().map_or(Ok(256), |word| word.parse())?;
    let folder = std::env::temp_dir().join(format!("trilith-mvcc-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("db");
    let store = Store::open(Options {
        path,
        disk: Arc::new(RealDisk),
        map: true,
        dirty_bytes_max: usize::MAX,
        compress: true,
    })?;
    let done = Bench { store, keys, value: vec![b'v'; value_bytes], state: 1 }.run();
    std::fs::remove_dir_all(&folder)?;
    Ok(done?)
}

struct Bench {
    store: Store,
    keys: usize,
    value: Vec<u8>,
    state: u64,
}

fn key(number: usize) -> [u8; 8] {
    (number as u64).wrapping_mul(0x9e3779b97f4a7c15).to_be_bytes()
}

impl Bench {
    fn run(mut self) -> Result<(), StoreError> {
        let keys = self.keys;
        self.puts("put, new keys", |i, _| i)?;
        self.puts("put, random keys", |_, random| random % keys)?;
        self.puts("put, one key", |_, _| 0)?;
        self.checkpoint()?;
        self.puts("put, random keys, after a checkpoint", |_, random| random % keys)?;
        self.reads("get, random keys")?;
        self.lists(100)?;
        self.compact()?;
        self.puts("put, one key", |_, _| 0)?;
        self.compact()?;
        let start = used();
        let (hash, ..) = self.store.view().hash_kv(0)?;
        report(&format!("hash_kv {hash:08x}, per key"), keys, start);
        Ok(())
    }

    fn random(&mut self) -> usize {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 33) as usize
    }

    fn puts(&mut self, name: &str, choose: impl Fn(usize, usize) -> usize) -> Result<(), StoreError> {
        let start = used();
        for batch in 0..self.keys / BATCH {
            for i in 0..BATCH {
                let random = self.random();
                let mut txn = self.store.txn();
                txn.put(&key(choose(batch * BATCH + i, random)), &self.value, 0)?;
                std::hint::black_box(txn.end());
            }
            self.store.publish();
        }
        report(name, self.keys, start);
        Ok(())
    }

    fn reads(&mut self, name: &str) -> Result<(), StoreError> {
        let root = self.store.reader().root();
        let start = used();
        let mut bytes = 0;
        for _ in 0..self.keys {
            let key = key(self.random() % self.keys);
            let view = root.view();
            for found in view.keys(KeyRange { start: &key, end: None }, 0)? {
                bytes += view.kv(found?.modified)?.len();
            }
        }
        std::hint::black_box(bytes);
        report(name, self.keys, start);
        Ok(())
    }

    fn lists(&mut self, limit: usize) -> Result<(), StoreError> {
        let root = self.store.reader().root();
        let start = used();
        let mut count = 0;
        for _ in 0..1000 {
            let start = key(self.random() % self.keys);
            for found in root.view().keys(KeyRange { start: &start, end: Some(b"") }, 0)?.take(limit) {
                found?;
                count += 1;
            }
        }
        report("list, per key", count, start);
        let start = used();
        let all = root.view().keys(KeyRange { start: b"", end: Some(b"") }, 0)?.remaining()?;
        report("count all, per key", all as usize, start);
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        let start = used();
        if let Some(job) = self.store.begin_checkpoint() {
            self.store.finish_checkpoint(job.run()?)?;
        }
        report("checkpoint, per change", self.keys * 3, start);
        Ok(())
    }

    /// The search, which a server runs on another thread, and the removal on the writer's, in slices.
    fn compact(&mut self) -> Result<(), StoreError> {
        let revision = self.store.view().revision();
        self.store.compact(revision)?;
        self.store.publish();
        let (mut entries, mut searching, mut removing, mut longest) =
            (0, Duration::ZERO, Duration::ZERO, Duration::ZERO);
        loop {
            let start = used();
            let Some(job) = self.store.begin_compaction()? else { break };
            let mut doomed = job.run()?;
            searching += used() - start;
            entries += doomed.entries();
            while !doomed.is_done() {
                let start = used();
                self.store.remove_doomed(&mut doomed, SLICE)?;
                self.store.publish();
                let took = used() - start;
                removing += took;
                longest = longest.max(took);
            }
        }
        let each = |time: Duration| time.as_nanos() as f64 / entries.max(1) as f64;
        println!(
            "{:<40} {:>8.0} ns each ({entries})",
            "compact, search, per removed revision",
            each(searching)
        );
        println!(
            "{:<40} {:>8.0} ns each ({entries})",
            "compact, writer, per removed revision",
            each(removing)
        );
        println!("{:<40} {:>8} us", "compact, longest slice", longest.as_micros());
        Ok(())
    }
}

/// Processor time of this thread so far.
fn used() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default())
}

fn report(name: &str, count: usize, start: Duration) {
    let each = (used() - start).as_nanos() as f64 / count.max(1) as f64;
    println!("{name:<40} {each:>8.0} ns each ({count})");
}
