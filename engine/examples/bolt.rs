//! bbolt files from the command line: checks one, makes a store of one, makes one of a store. Each prints what the file
//! or the store holds, and what it took.
//!
//! `cargo run --release -p trilith-engine --example bolt -- check FILE`
//! `... -- import FILE STORE [MIB OF MEMORY]`
//! `... -- export STORE FILE`
//! `... -- fill STORE KEYS VALUE_BYTES`

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use trilith_disk::RealDisk;
use trilith_engine::bolt::{BoltFile, Export, Import, import};
use trilith_engine::{KeyRange, Options, Store};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let begin = Instant::now();
    match words.as_slice() {
        ["check", file] => check(file)?,
        ["import", file, store] => make(file, store, 256)?,
        ["import", file, store, memory] => make(file, store, memory.parse()?)?,
        ["export", store, file] => export(store, file)?,
        ["fill", store, keys, bytes] => fill(store, keys.parse()?, bytes.parse()?)?,
        _ => {
            return Err(
                "check FILE, import FILE STORE, export STORE FILE, or fill STORE KEYS VALUE_BYTES".into()
            );
        }
    }
    println!("took {:.3} s", begin.elapsed().as_secs_f64());
    Ok(())
}

fn open(path: &str) -> Result<Store, Box<dyn std::error::Error>> {
    let (path, disk) = (path.into(), Arc::new(RealDisk));
    Ok(Store::open(Options { path, disk, map: true, dirty_bytes_max: 64 << 20, compress: true })?)
}

fn check(path: &str) -> Outcome {
    let file = BoltFile::open(&RealDisk, Path::new(path))?;
    println!(
        "pages of {} bytes, {} bytes, hash: {:?}",
        file.page_size(),
        file.size(),
        file.verify(&mut |_| ())?
    );
    file.check()?;
    for bucket in file.buckets()? {
        let (mut entries, mut count) = (file.entries(&bucket)?, 0);
        while entries.next()?.is_some() {
            count += 1;
        }
        println!("{}: {count}", bucket.name.escape_ascii());
    }
    Ok(())
}

fn make(file: &str, store: &str, memory: usize) -> Outcome {
    let options = Import {
        disk: Arc::new(RealDisk),
        from: file.into(),
        to: store.into(),
        skip_hash_check: false,
        bump_revision: 0,
        memory: memory << 20,
    };
    let begin = Instant::now();
    let imported = import(&options, &mut |_, _| ())?;
    let rate = imported.entries as f64 / begin.elapsed().as_secs_f64();
    println!("{imported:?}: {rate:.0} entries/s");
    let store = open(&options.to.to_string_lossy())?;
    store.check()?;
    let view = store.view();
    let live = view.keys(KeyRange { start: b"\0", end: Some(b"") }, 0)?.count();
    let (hash, compacted, revision) = view.hash_kv(0)?;
    println!("live {live}");
    println!("hashkv {hash} {compacted} {revision}");
    Ok(())
}

fn export(store: &str, file: &str) -> Outcome {
    let root = open(store)?.reader().root();
    let begin = Instant::now();
    let export = Export::new(root.clone())?;
    let (total, measured) = (export.total_bytes(), begin.elapsed().as_secs_f64());
    println!("{total} bytes, measured in {measured:.3} s");
    let begin = Instant::now();
    let mut chunks = Export::new(root)?;
    let mut bytes = 0;
    while let Some(chunk) = chunks.next_chunk()? {
        bytes += chunk.len();
    }
    let rate = bytes as f64 / begin.elapsed().as_secs_f64() / 1e6;
    println!("{bytes} bytes to nowhere at {rate:.0} MB/s, measuring included");
    Ok(export.save(&RealDisk, Path::new(file), &mut |_| ())?)
}

fn fill(path: &str, keys: u64, bytes: usize) -> Outcome {
    let mut store = open(path)?;
    let mut state = 7u64;
    for i in 0..keys {
        let mut value = vec![0; bytes];
        for word in value.chunks_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&(state ^ state >> 29).to_le_bytes()[..word.len()]);
        }
        let mut txn = store.txn();
        txn.put(
            format!("/registry/pods/{:012x}", i.wrapping_mul(0x9e37_79b9) & 0xffff_ffff).as_bytes(),
            &value,
            0,
        )?;
        txn.end();
        if i % 100 == 99 || i + 1 == keys {
            store.publish();
            if store.checkpoint_due() || i + 1 == keys {
                let job = store.begin_checkpoint().ok_or("a checkpoint is running")?;
                store.finish_checkpoint(job.run()?)?;
            }
        }
    }
    println!("revision {}", store.view().revision());
    Ok(())
}
