//! Times counts and hashes beside the scans that give the same, in processor time of this thread (Linux): the first
//! call, and each of those that follow.
//!
//! `cargo run --release -p trilith-engine --example sums_bench -- [KEYS] [VALUE_BYTES]`

use std::sync::Arc;
use std::time::Duration;

use trilith_disk::RealDisk;
use trilith_engine::{KeyRange, Options, Root, Store, StoreError, TreeId};

/// Changes that are published together.
const BATCH: usize = 100;
const ALL: KeyRange<'static> = KeyRange { start: b"", end: Some(b"") };

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let keys = arguments.next().map_or(Ok(1_000_000), |word| word.parse())?;
    let value_bytes = arguments.next().map_or(Ok(256), |word| word.parse())?;
    let folder = std::env::temp_dir().join(format!("trilith-sums-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("db");
    let store = Store::open(Options {
        path,
        disk: Arc::new(RealDisk),
        map: true,
        dirty_bytes_max: usize::MAX,
        compress: true,
    })?;
    let done = run(store, keys, &vec![b'v'; value_bytes]);
    std::fs::remove_dir_all(&folder)?;
    Ok(done?)
}

fn run(mut store: Store, keys: usize, value: &[u8]) -> Result<(), StoreError> {
    puts(&mut store, 0..keys, value)?;
    let root = store.reader().root();
    println!("{keys} keys, nothing on disk yet");
    ask(&root, true)?;
    println!("after {BATCH} more puts");
    puts(&mut store, 0..BATCH, value)?;
    ask(&store.reader().root(), false)?;
    println!("after a checkpoint");
    checkpoint(&mut store)?;
    ask(&store.reader().root(), false)?;
    println!("once a compaction has settled");
    store.compact(store.view().revision())?;
    while !store.compact_step(1 << 20)? {
        store.publish();
    }
    store.publish();
    checkpoint(&mut store)?;
    ask(&store.reader().root(), false)?;
    for changes in [1000, 10_000, 100_000] {
        println!("after {changes} more puts");
        puts(&mut store, 0..changes.min(keys), value)?;
        ask(&store.reader().root(), false)?;
    }
    Ok(())
}

fn puts(store: &mut Store, numbers: std::ops::Range<usize>, value: &[u8]) -> Result<(), StoreError> {
    for number in numbers {
        let key = (number as u64).wrapping_mul(0x9e3779b97f4a7c15).to_be_bytes();
        let mut txn = store.txn();
        txn.put(&key, value, 0)?;
        txn.end();
        if number % BATCH == BATCH - 1 {
            store.publish();
        }
    }
    Ok(())
}

fn checkpoint(store: &mut Store) -> Result<(), StoreError> {
    if let Some(job) = store.begin_checkpoint() {
        store.finish_checkpoint(job.run()?)?;
    }
    Ok(())
}

fn ask(root: &Root, scans: bool) -> Result<(), StoreError> {
    let view = root.view();
    timed("count", || view.keys(ALL, 0)?.remaining())?;
    timed("count of the upper half", || {
        view.keys(KeyRange { start: b"\x80", end: Some(b"") }, 0)?.remaining()
    })?;
    timed("hash_kv", || view.hash_kv(0))?;
    timed("hash", || view.hash())?;
    if scans {
        timed("count by passing every key", || Ok(view.keys(ALL, 0)?.count()))?;
        timed("checksum by passing every entry of the history", || {
            let (mut crc, mut cursor) = (0, view.seek(TreeId::Key, b"")?);
            while let Some(key) = cursor.key() {
                crc = crc32c::crc32c_append(crc, key);
                crc =
                    crc32c::crc32c_append(crc, &cursor.value()?.unwrap_or(trilith_engine::Value::Page(b"")));
                cursor.next()?;
            }
            Ok(crc)
        })?;
    }
    Ok(())
}

/// One call, and what each of some more takes: the first may note sums that the others find.
fn timed<R: std::fmt::Debug>(name: &str, work: impl Fn() -> Result<R, StoreError>) -> Result<(), StoreError> {
    let start = used();
    let result = work()?;
    let first = used() - start;
    let (start, calls) = (used(), if first < Duration::from_millis(1) { 1000 } else { 5 });
    for _ in 0..calls {
        work()?;
    }
    let again = (used() - start) / calls;
    println!("  {name:<50} {first:>12.1?} {again:>12.1?}  {result:?}");
    Ok(())
}

/// Processor time of this thread so far.
fn used() -> Duration {
    // The kernel adds up when the thread steps aside.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default())
}
