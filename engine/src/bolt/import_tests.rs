//! Imports: against what a real etcd says, against the store that the file was made of, damaged, and cut off.

use std::path::Path;
use std::sync::Arc;

use trilith_disk::sim::{SimDisk, Survivors};
use trilith_disk::{Disk, Open};

use super::tests::{SNAPSHOT, bytes_of, disk_with, facts, rounds, seed, store_on};
use super::*;
use crate::tests::rng::Rng;
use crate::{KeyRange, Options, Store, TreeId, View};

fn import_on(disk: &SimDisk, bump_revision: u64, memory: usize) -> Result<Imported, BoltError> {
    let options = Import {
        disk: Arc::new(disk.clone()),
        from: "d/snapshot".into(),
        to: "d/db".into(),
        skip_hash_check: false,
        bump_revision,
        memory,
    };
    let mut last = 0;
    import(&options, &mut |done, total| {
        assert!(last <= done && done <= total, "progress goes forward");
        last = done;
    })
}

fn open_on(disk: &SimDisk) -> Store {
    let disk = Arc::new(disk.clone());
    Store::open(Options { path: "d/db".into(), disk, map: false, dirty_bytes_max: 1 << 20, compress: true })
        .unwrap()
}

fn names(disk: &SimDisk) -> Vec<String> {
    let paths = disk.list(Path::new("d")).unwrap();
    paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn tree(view: View<'_>, id: TreeId) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    let mut cursor = view.seek(id, b"").unwrap();
    while let Some(key) = cursor.key() {
        all.push((key.to_vec(), cursor.value().unwrap().unwrap().to_vec()));
        cursor.next().unwrap();
    }
    all
}

fn count(view: View<'_>, prefix: &str) -> usize {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    view.keys(KeyRange { start: prefix.as_bytes(), end: Some(&end) }, 0).unwrap().count()
}

#[test]
fn what_a_real_etcd_saved_has_its_hashes_and_keys() {
    let disk = disk_with(SNAPSHOT);
    let imported = import_on(&disk, 0, 0).unwrap();
    assert_eq!(names(&disk), ["db", "snapshot"]);
    let mut store = open_on(&disk);
    store.check().unwrap();
    let status = &facts("status")[0];
    assert_eq!(imported.revision.to_string(), status[1]);
    assert_eq!(imported.entries.to_string(), status[2]);
    assert!(imported.applied.0 > 300 && imported.applied == store.applied() && imported.left_out.is_empty());
    for fact in facts("hashkv") {
        let (hash, compacted, _) = store.view().hash_kv(fact[0].parse().unwrap()).unwrap();
        assert_eq!([hash.to_string(), compacted.to_string()], fact[1..], "HashKV at {}", fact[0]);
    }
    for fact in facts("count") {
        assert_eq!(count(store.view(), fact[0]).to_string(), fact[1], "keys below {}", fact[0]);
    }
    // Two leases are left; every live key that names one is attached to it.
    let all = KeyRange { start: b"\0", end: Some(b"") };
    for lease in [1000, 1001, 1002] {
        let view = store.view();
        let named = view.keys(all, 0).unwrap().map(Result::unwrap).filter(|key| key.lease == lease);
        let named: Vec<_> = named.map(|key| key.key.into_owned()).collect();
        assert_eq!(view.lease_keys(lease).unwrap(), named);
        assert_eq!(named.is_empty(), lease == 1002);
    }
    // It goes on from there.
    store.txn().delete_range(KeyRange { start: b"/registry/", end: Some(b"/registry0") }).unwrap();
    store.compact(imported.revision + 1).unwrap();
    while !store.compact_step(100).unwrap() {}
    assert_eq!(count(store.view(), "/registry/"), 0);
    store.check().unwrap();
}

/// A history with everything in it.
fn history(rng: &mut Rng, store: &mut Store, transactions: usize) {
    for _ in 0..transactions {
        let mut txn = store.txn();
        for _ in 0..=rng.below(3) {
            let key = format!("key/{}", rng.below(40));
            if rng.chance(4) {
                let end = format!("key/{}", rng.below(40));
                let end = (rng.chance(3) && key < end).then_some(end.as_bytes());
                txn.delete_range(KeyRange { start: key.as_bytes(), end }).unwrap();
            } else {
                let longest = if rng.chance(10) { 9000 } else { 60 };
                let value = vec![rng.next() as u8; rng.below(longest)];
                txn.put(key.as_bytes(), &value, rng.below(4) as i64).unwrap();
            }
        }
        txn.end();
        if rng.chance(60) {
            let (low, high) = (store.view().compact_revision().max(0), store.view().revision());
            let at = low + 1 + rng.below((high - low).max(1) as usize) as i64;
            if store.compact(at).is_ok() {
                // Perhaps only a part of it is done.
                for _ in 0..rng.below(20) {
                    store.compact_step(1 + rng.below(20)).unwrap();
                }
            }
        }
    }
    store.insert(TreeId::Members, b"8e9e05c52164694d", b"{}").unwrap();
    store.set_applied(rng.next() >> 30, 1 + rng.next() % 9);
    store.publish();
}

#[test]
fn an_export_imported_is_the_same_store() {
    let mut rng = Rng(seed(31));
    for _ in 0..rounds(12) {
        let here = SimDisk::new();
        let mut store = store_on(&here);
        let transactions = rng.below(500);
        history(&mut rng, &mut store, transactions);
        let root = store.reader().root();
        let there = disk_with(&bytes_of(Export::new(root.clone()).unwrap()));
        let imported = import_on(&there, 0, 0).unwrap();
        let mut copy = open_on(&there);
        copy.check().unwrap();
        for id in TreeId::ALL.into_iter().filter(|id| *id != TreeId::Index) {
            assert!(tree(copy.view(), id) == tree(root.view(), id), "{id:?}");
        }
        assert_eq!(copy.applied(), root.applied());
        let (a, b) = (root.view(), copy.view());
        assert_eq!((a.revision(), a.compact_revision()), (b.revision(), b.compact_revision()));
        assert_eq!((a.revision(), a.compact_revision()), (imported.revision, imported.compact_revision));
        assert_eq!(a.hash_kv(0).unwrap(), b.hash_kv(0).unwrap());
        // In the middle of a compaction the index still names what the history has lost already.
        for store in [&mut store, &mut copy] {
            while !store.compact_step(100).unwrap() {}
            store.publish();
        }
        for id in TreeId::ALL {
            assert!(tree(copy.view(), id) == tree(store.view(), id), "{id:?} after the compaction");
        }
    }
}

#[test]
fn a_revision_that_is_lifted_compacts_what_was_before() {
    let disk = disk_with(SNAPSHOT);
    let before = {
        let disk = disk_with(SNAPSHOT);
        import_on(&disk, 0, 0).unwrap()
    };
    let imported = import_on(&disk, 1_000_000, 0).unwrap();
    assert_eq!(imported.revision, before.revision + 1_000_000);
    assert_eq!(imported.compact_revision, imported.revision);
    let mut store = open_on(&disk);
    store.check().unwrap();
    let all = KeyRange { start: b"\0", end: Some(b"") };
    assert!(store.view().keys(all, before.revision).is_err(), "compacted");
    assert_eq!(count(store.view(), "/registry/").to_string(), facts("count")[0][1]);
    while !store.compact_step(100).unwrap() {}
    assert_eq!(count(store.view(), "/registry/").to_string(), facts("count")[0][1]);
    let mut txn = store.txn();
    txn.put(b"k", b"v", 0).unwrap();
    assert_eq!(txn.revision(), imported.revision + 1);
    txn.end();
    store.check().unwrap();
}

#[test]
fn an_index_larger_than_the_memory_is_sorted_in_files() {
    let here = SimDisk::new();
    let mut store = store_on(&here);
    let mut rng = Rng(seed(41));
    for _ in 0..300 {
        let mut txn = store.txn();
        for _ in 0..100 {
            let key = format!("/a/rather/long/key/as/kubernetes/has/them/{:020}", rng.next());
            txn.put(key.as_bytes(), b"", 1 + rng.below(5) as i64).unwrap();
        }
        txn.end();
    }
    store.publish();
    let root = store.reader().root();
    let there = disk_with(&bytes_of(Export::new(root.clone()).unwrap()));
    let before = there.op_count();
    import_on(&there, 0, 0).unwrap();
    assert!(there.op_count() > before);
    assert_eq!(names(&there), ["db", "snapshot"], "the sorted runs are gone");
    let copy = open_on(&there);
    copy.check().unwrap();
    for id in [TreeId::Key, TreeId::Index, TreeId::LeaseKey] {
        assert!(tree(copy.view(), id) == tree(root.view(), id), "{id:?}");
    }
}

#[test]
fn entries_that_etcd_would_not_write_are_refused_by_name() {
    for (tree, key, value, problem) in [
        (TreeId::Key, &b"short"[..], &b""[..], "bucket key: entry short: the key is no revision"),
        (TreeId::Key, b"\0\0\0\0\0\0\0\x02-\0\0\0\0\0\0\0\0", b"", "the key is no revision"),
        (TreeId::Key, b"\0\0\0\0\0\0\0\0_\0\0\0\0\0\0\0\0", b"", "the revision is out of range"),
        (TreeId::Key, b"\0\0\0\0\0\0\0\x02_\xff\0\0\0\0\0\0\0", b"", "the revision is out of range"),
        (TreeId::Key, b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0", b"\x0a\x05abc", "no pair"),
        (TreeId::Key, b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0", b"\x18\x02\x0a\x01k", "no pair"),
        (TreeId::Key, b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0", b"\x0a\x01k\x18\x03", "of another revision"),
        (TreeId::Key, b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0t", b"\x0a", "no pair"),
        (TreeId::Key, b"\x7f\0\0\0\0\0\0\0_\0\0\0\0\0\0\0\0", b"", "the revision is out of range"),
        (
            TreeId::Key,
            b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0",
            b"\x0a\x01k\x10\x03\x18\x02",
            "numbers are out",
        ),
        (TreeId::Meta, b"scheduledCompactRev", b"soon", "malformed revision at scheduledCompactRev"),
    ] {
        let here = SimDisk::new();
        let mut store = store_on(&here);
        store.insert(tree, key, value).unwrap();
        store.publish();
        let there = disk_with(&bytes_of(Export::new(store.reader().root()).unwrap()));
        let error = import_on(&there, 0, 0).unwrap_err().to_string();
        assert!(error.contains(problem), "{problem:?} expected: {error}");
        assert_eq!(names(&there), ["snapshot"], "nothing is left of it");
    }
}

#[test]
fn damage_and_truncation_leave_no_store() {
    let mut rng = Rng(seed(43));
    for _ in 0..rounds(60) {
        let mut bytes = SNAPSHOT.to_vec();
        match rng.below(3) {
            0 => bytes.truncate(rng.below(SNAPSHOT.len())),
            _ => {
                let at = rng.below(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
            }
        }
        let disk = disk_with(&bytes);
        let error = import_on(&disk, 0, 0).unwrap_err().to_string();
        assert!(error.contains("d/snapshot"), "{error}");
        assert_eq!(names(&disk), ["snapshot"]);
    }
    let disk = disk_with(SNAPSHOT);
    import_on(&disk, 0, 0).unwrap();
    let again = import_on(&disk, 0, 0).unwrap_err().to_string();
    assert!(again.contains("d/db: make"), "a store that is there is never replaced: {again}");
}

#[test]
fn a_power_cut_leaves_no_store_or_the_whole_one() {
    let disk = disk_with(SNAPSHOT);
    let file = disk.open(Path::new("d/snapshot"), Open::Existing).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("d")).unwrap();
    let first = disk.op_count();
    import_on(&disk, 0, 0).unwrap();
    let expected = tree(open_on(&disk).view(), TreeId::Index);
    let mut whole = 0;
    for op in first..=disk.op_count() {
        for survivors in [Survivors::None, Survivors::All] {
            let after = disk.crash(op, survivors);
            if after.exists(Path::new("d/db")) {
                let store = open_on(&after);
                store.check().unwrap();
                assert!(tree(store.view(), TreeId::Index) == expected, "cut at {op}");
                whole += 1;
            } else {
                // What is left is in nobody's way.
                import_on(&after, 0, 0).unwrap();
            }
        }
    }
    assert!(whole > 0);
}
