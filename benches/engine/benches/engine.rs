//! The engine beside redb and LMDB with criterion: a put, a point read and a scan, in elapsed time.
//!
//! `TMPDIR=/dev/shm cargo bench --manifest-path benches/engine/Cargo.toml --target-dir target` (`main.rs` has the same in
//! processor time)

use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use trilith_engine_bench::{BATCH, Engine, Lmdb, Ours, Outcome, Redb, SYNC_EVERY, VALUE_BYTES, random};

const KEYS: usize = 50_000;
const SCANNED: usize = 10_000;
const VALUE: [u8; VALUE_BYTES] = [b'v'; VALUE_BYTES];

/// An engine with its folder, which goes with it.
struct Loaded<E> {
    engine: Option<E>,
    folder: PathBuf,
    state: u64,
    puts: usize,
}

impl<E: Engine> Loaded<E> {
    /// With all keys, everything synced.
    fn new() -> Outcome<Loaded<E>> {
        let folder =
            std::env::temp_dir().join(format!("trilith-criterion-{}-{}", E::NAME, std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let mut engine = E::create(&folder)?;
        let keys: Vec<[u8; 8]> = (0..KEYS as u64).map(u64::to_be_bytes).collect();
        for batch in keys.chunks(BATCH) {
            engine.put(batch, &VALUE)?;
        }
        engine.sync()?;
        Ok(Loaded { engine: Some(engine), folder, state: 1, puts: 0 })
    }

    fn engine(&mut self) -> &mut E {
        self.engine.as_mut().expect("there until the drop")
    }

    fn keys(&mut self) -> Vec<[u8; 8]> {
        (0..BATCH).map(|_| ((random(&mut self.state) % KEYS) as u64).to_be_bytes()).collect()
    }

    /// The time of so many transactions; syncs in between do not count.
    fn puts(&mut self, transactions: u64) -> Outcome<Duration> {
        let mut took = Duration::ZERO;
        for _ in 0..transactions {
            let keys = self.keys();
            let start = Instant::now();
            self.engine().put(&keys, &VALUE)?;
            took += start.elapsed();
            self.puts += BATCH;
            if self.puts.is_multiple_of(SYNC_EVERY) {
                self.engine().sync()?;
            }
        }
        Ok(took)
    }
}

impl<E> Drop for Loaded<E> {
    fn drop(&mut self) {
        self.engine = None;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

type Group<'g> = BenchmarkGroup<'g, WallTime>;

fn each(criterion: &mut Criterion, name: &str, elements: usize, benches: [fn(&mut Group<'_>); 3]) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(elements as u64)).sample_size(20);
    benches.into_iter().for_each(|bench| bench(&mut group));
    group.finish();
}

fn put<E: Engine>(group: &mut Group<'_>) {
    let mut loaded = Loaded::<E>::new().expect("an empty folder");
    group.bench_function(E::NAME, |bencher| {
        bencher.iter_custom(|transactions| loaded.puts(transactions).expect("room for the puts"));
    });
}

fn get<E: Engine>(group: &mut Group<'_>) {
    let mut loaded = Loaded::<E>::new().expect("an empty folder");
    group.bench_function(E::NAME, |bencher| {
        bencher.iter_custom(|rounds| {
            (0..rounds).fold(Duration::ZERO, |took, _| {
                let keys = loaded.keys();
                let start = Instant::now();
                let bytes = loaded.engine().get(&keys).expect("a store that was just written");
                let took = took + start.elapsed();
                assert!(bytes >= BATCH * VALUE_BYTES, "every key is there");
                took
            })
        });
    });
}

fn scan<E: Engine>(group: &mut Group<'_>) {
    let mut loaded = Loaded::<E>::new().expect("an empty folder");
    group.bench_function(E::NAME, |bencher| {
        bencher.iter(|| {
            let mut bytes = 0;
            let scanned =
                loaded.engine().scan(SCANNED, &mut |pair| bytes += std::hint::black_box(pair).len());
            scanned.expect("a store that was just written");
            assert!(bytes >= SCANNED * VALUE_BYTES, "every pair is there");
        });
    });
}

fn all(criterion: &mut Criterion) {
    each(criterion, "put, random keys", BATCH, [put::<Ours>, put::<Lmdb>, put::<Redb>]);
    each(criterion, "get, random keys", BATCH, [get::<Ours>, get::<Lmdb>, get::<Redb>]);
    each(criterion, "scan", SCANNED, [scan::<Ours>, scan::<Lmdb>, scan::<Redb>]);
}

criterion_group!(benches, all);
criterion_main!(benches);
