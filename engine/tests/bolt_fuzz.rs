//! Fuzzing of what reads etcd's files: changed blindly, and changed with the hash made right again.
//!
//! Whatever the file holds: no panic, no end that does not come, no memory without bound. What is not refused is a
//! store whose trees are whole.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, Open};
use trilith_engine::bolt::{BoltError, BoltFile, Import, Trailer, import};
use trilith_engine::{KeyRange, Options, Store};
use trilith_fuzz::Rng;

const SNAPSHOT: &[u8] = include_bytes!("bolt/small.snapshot");
const PAGE: usize = 4096;
const HASH: usize = 32;
/// How long each test runs in its short form.
const SECONDS: u64 = 2;
const MEMORY_BYTES: u64 = 1 << 30;

fn disk_with(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("d")).unwrap();
    disk.open(Path::new("d/snapshot"), Open::CreateNew).unwrap().write_all_at(bytes, 0).unwrap();
    disk
}

/// Reads everything; the number of entries.
fn read(disk: &SimDisk) -> Result<usize, BoltError> {
    let file = BoltFile::open(disk, Path::new("d/snapshot"))?;
    let mut count = 0;
    for bucket in file.buckets()? {
        let mut entries = file.entries(&bucket)?;
        while let Some(entry) = entries.next()? {
            assert!(!entry.key.is_empty());
            count += 1;
        }
    }
    file.check()?;
    Ok(count)
}

#[test]
fn a_file_that_was_changed_blindly_is_read_or_refused() {
    let mut refused = 0;
    let rounds = trilith_fuzz::run("bolt, blind", SECONDS, MEMORY_BYTES, |rng| {
        let mut bytes = SNAPSHOT.to_vec();
        trilith_fuzz::mutate(&mut bytes, PAGE, rng);
        let disk = disk_with(&bytes);
        refused += u64::from(read(&disk).is_err());
        if bytes != SNAPSHOT
            && let Ok(file) = BoltFile::open(&disk, Path::new("d/snapshot"))
        {
            assert_ne!(file.verify(&mut |_| ()).unwrap(), Trailer::Right, "the hash sees every change");
        }
    });
    println!("{refused} of {rounds} refused by their structure");
}

/// Changes a header, an element or what an element leads to, in one page.
fn change_structure(bytes: &mut [u8], rng: &mut Rng) {
    let page = (2 + rng.below(bytes.len() / PAGE - 2)) * PAGE;
    let count = usize::from(u16::from_le_bytes([bytes[page + 10], bytes[page + 11]]));
    let element = page + 16 + 16 * rng.below(count.clamp(1, 200));
    let (at, width) = match rng.below(6) {
        0 => (page + rng.pick(&[0, 8, 10, 12]), rng.pick(&[2, 4])),
        1..=3 => (element + rng.pick(&[0, 4, 8, 12]), 4),
        4 => (element + 8, 8),
        // Keys and values.
        _ => (page + rng.below(PAGE - 8), rng.pick(&[1, 8])),
    };
    let number = match rng.below(3) {
        0 => u64::from(bytes[at]).wrapping_add(rng.below(5) as u64).wrapping_sub(2),
        1 => rng.below(bytes.len() / PAGE + 2) as u64,
        _ => rng.number(),
    };
    for (byte, new) in bytes[at..].iter_mut().zip(number.to_le_bytes()).take(width) {
        *byte = new;
    }
}

#[test]
fn a_changed_file_with_a_right_hash_is_refused_or_becomes_a_store_that_is_whole() {
    let (mut refused, mut made) = (0u64, 0u64);
    trilith_fuzz::run("bolt, structure", SECONDS, MEMORY_BYTES, |rng| {
        let mut bytes = SNAPSHOT[..SNAPSHOT.len() - HASH].to_vec();
        for _ in 0..=rng.below(3) {
            change_structure(&mut bytes, rng);
        }
        let hash = Sha256::digest(&bytes);
        bytes.extend_from_slice(&hash);
        let disk = disk_with(&bytes);
        let options = Import {
            disk: Arc::new(disk.clone()),
            from: "d/snapshot".into(),
            to: "d/db".into(),
            skip_hash_check: rng.one_in(2),
            bump_revision: rng.below(2) as u64 * rng.number(),
            memory: 0,
        };
        match import(&options, &mut |_, _| ()) {
            Err(_) => {
                refused += 1;
                let names = disk.list(Path::new("d")).unwrap();
                assert_eq!(names, [Path::new("d/snapshot")], "nothing is left of a refused import");
            }
            Ok(imported) => {
                made += 1;
                let path = "d/db".into();
                let store = Store::open(Options {
                    path,
                    disk: Arc::new(disk),
                    map: false,
                    dirty_bytes_max: 1 << 20,
                    compress: true,
                });
                let mut store = store.unwrap();
                store.check().unwrap();
                assert_eq!(store.view().revision(), imported.revision);
                let all = KeyRange { start: b"", end: Some(b"") };
                for key in store.view().keys(all, 0).unwrap() {
                    store.view().kv(key.unwrap().modified).unwrap();
                }
                store.view().hash_kv(0).unwrap();
                // It goes on from there.
                let mut txn = store.txn();
                txn.put(b"/registry/pods/000", b"v", 0).unwrap();
                txn.delete_range(all).unwrap();
                txn.end();
                store.check().unwrap();
            }
        }
    });
    println!("{refused} refused, {made} imported");
}
