//! HashKV equals what a real etcd (3.4.23) answered for the same history. `mvcc_golden.txt` holds the history with
//! the answers; `mvcc_golden.py` wrote it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod mvcc_common;

use mvcc_common::{Folder, checkpoint, compact};
use trilith_engine::{KeyRange, Store, Txn};

fn words<const N: usize>(line: &str) -> [&str; N] {
    let words: Vec<&str> = line.split(' ').skip(1).collect();
    words.try_into().unwrap_or_else(|_| panic!("{N} words in: {line}"))
}

fn change(txn: &mut Txn<'_>, line: &str) {
    if line.starts_with("put ") {
        let [key, value, lease] = words(line);
        let value = if value == "-" { "" } else { value };
        txn.put(key.as_bytes(), value.as_bytes(), lease.parse().unwrap()).unwrap();
    } else {
        let [start, end] = words(line);
        let end = match end {
            "-" => None,
            "*" => Some(&b""[..]),
            end => Some(end.as_bytes()),
        };
        txn.delete_range(KeyRange { start: start.as_bytes(), end }).unwrap();
    }
}

/// Runs the history; after each line `restart` may exchange the store.
fn replay(mut store: Store, mut restart: impl FnMut(Store, usize) -> Store) {
    let mut lines = include_str!("mvcc_golden.txt").lines().enumerate();
    let mut hashes = 0;
    while let Some((number, line)) = lines.next() {
        match line.split(' ').next().unwrap() {
            "txn" => {
                let mut txn = store.txn();
                for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "end") {
                    change(&mut txn, line);
                }
            }
            "put" | "delete" => change(&mut store.txn(), line),
            "compact" => {
                let [revision] = words(line);
                compact(&mut store, revision.parse().unwrap());
            }
            "hashkv" => {
                let [revision, hash, compacted] = words(line);
                let revision: i64 = revision.parse().unwrap();
                let at = if revision == 0 { store.view().revision() } else { revision };
                let expected = (hash.parse().unwrap(), compacted.parse().unwrap(), at);
                assert_eq!(store.view().hash_kv(revision).unwrap(), expected, "line {}", number + 1);
                hashes += 1;
            }
            word => panic!("line {}: {word}", number + 1),
        }
        store = restart(store, number);
    }
    assert_eq!(hashes, 70);
}

#[test]
fn hash_kv_is_etcds() {
    // X8.
    let folder = Folder::new();
    replay(folder.open(true), |store, _| store);
}

#[test]
fn hash_kv_is_etcds_across_restarts() {
    let folder = Folder::new();
    replay(folder.open(true), |mut store, number| {
        if number % 40 != 0 {
            return store;
        }
        checkpoint(&mut store);
        drop(store);
        folder.open(number % 80 == 0)
    });
}
