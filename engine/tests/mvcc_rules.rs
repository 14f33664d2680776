//! The rules of etcd's MVCC one by one. The letters are those of the project's table of behaviours: R range, P put,
//! D delete, T transaction, C compaction, K bucket `key`, L lease, X hashes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod mvcc_common;

use mvcc_common::{ALL, Folder, checkpoint, compact, delete, list, one, put};
use prost::Message;
use trilith_engine::{BUCKETS, Change, KeyRange, Revision, Store, StoreError, TreeId};
use trilith_proto::mvccpb::KeyValue;

fn store() -> (Folder, Store) {
    let folder = Folder::new();
    let store = folder.open(true);
    (folder, store)
}

fn range<'k>(start: &'k str, end: &'k str) -> KeyRange<'k> {
    KeyRange { start: start.as_bytes(), end: Some(end.as_bytes()) }
}

fn listed(store: &Store, range: KeyRange<'_>, revision: i64) -> Vec<String> {
    list(store.view(), range, revision).unwrap()
}

/// `main.sub +key` or `main.sub -key` for each change.
fn told(changes: impl IntoIterator<Item = Change>) -> Vec<String> {
    let told = changes.into_iter().map(|change| {
        let (at, sign) = (change.revision, if change.deleted { '-' } else { '+' });
        format!("{}.{} {sign}{}", at.main, at.sub, change.key.escape_ascii())
    });
    told.collect()
}

fn history(store: &Store, from: i64, to: i64) -> Vec<String> {
    told(store.view().changes(from, to).unwrap().map(Result::unwrap))
}

fn refusal<T>(result: Result<T, StoreError>) -> &'static str {
    match result.err() {
        Some(StoreError::Compacted) => "compacted",
        Some(StoreError::Future) => "future",
        other => panic!("{other:?}"),
    }
}

#[test]
fn k5_the_empty_store_is_at_revision_1() {
    let (_folder, store) = store();
    assert_eq!(store.view().revision(), 1);
    assert_eq!(store.view().compact_revision(), -1);
    assert_eq!(listed(&store, ALL, 0), [""; 0]);
    assert_eq!(history(&store, 0, i64::MAX), [""; 0]);
}

#[test]
fn r2_intervals() {
    let (_folder, mut store) = store();
    for key in ["a", "a\0", "ab", "b", "ba", "c"] {
        put(&mut store, key, "", 0);
    }
    let keys = |range| -> Vec<String> {
        let keys = store.view().keys(range, 0).unwrap();
        keys.map(|key| key.unwrap().key.escape_ascii().to_string()).collect()
    };
    assert_eq!(keys(one(b"a")), ["a"]);
    assert_eq!(keys(one(b"aa")), [""; 0]);
    assert_eq!(keys(one(b"")), [""; 0]);
    assert_eq!(keys(range("a", "b")), ["a", "a\\x00", "ab"]);
    assert_eq!(keys(range("a\0", "ba")), ["a\\x00", "ab", "b"]);
    assert_eq!(keys(range("b", "")), ["b", "ba", "c"]);
    assert_eq!(keys(range("b", "b")), [""; 0]);
    assert_eq!(keys(range("b", "a")), [""; 0]);
    assert_eq!(keys(ALL).len(), 6);
    // R5.
    assert_eq!(store.view().keys(ALL, 0).unwrap().remaining().unwrap(), 6);
    assert_eq!(store.view().keys(one(b"ab"), 0).unwrap().remaining().unwrap(), 1);
    let mut rest = store.view().keys(ALL, 0).unwrap();
    rest.next();
    assert_eq!(rest.remaining().unwrap(), 5);
}

#[test]
fn r3_revisions_of_reads() {
    let (_folder, mut store) = store();
    for value in ["1", "2", "3"] {
        put(&mut store, "k", value, 0);
    }
    assert_eq!(listed(&store, ALL, 1), [""; 0]);
    assert_eq!(listed(&store, ALL, 2), ["k 2.0 2 1 0"]);
    assert_eq!(listed(&store, one(b"k"), 3), ["k 3.0 2 2 0"]);
    assert_eq!(listed(&store, ALL, 0), ["k 4.0 2 3 0"]);
    assert_eq!(listed(&store, ALL, -7), ["k 4.0 2 3 0"]);
    assert_eq!(refusal(store.view().keys(ALL, 5)), "future");
    store.compact(3).unwrap();
    assert_eq!(refusal(store.view().keys(one(b"k"), 2)), "compacted");
    assert_eq!(listed(&store, ALL, 3), ["k 3.0 2 2 0"]);
}

#[test]
fn p5_versions_and_create_revisions() {
    let (_folder, mut store) = store();
    put(&mut store, "k", "same", 0);
    put(&mut store, "k", "same", 0);
    assert_eq!(listed(&store, ALL, 0), ["k 3.0 2 2 0"]);
    delete(&mut store, one(b"k"));
    put(&mut store, "k", "same", 0);
    assert_eq!(listed(&store, ALL, 0), ["k 5.0 5 1 0"]);
    let kv = KeyValue::decode(&*store.view().kv(Revision { main: 3, sub: 0 }).unwrap()).unwrap();
    let expected = KeyValue {
        key: "k".into(),
        value: "same".into(),
        create_revision: 2,
        mod_revision: 3,
        version: 2,
        lease: 0,
    };
    assert_eq!(kv, expected);
}

#[test]
fn p6_d5_l11_leases_are_attached_and_detached() {
    let (_folder, mut store) = store();
    put(&mut store, "b", "", 7);
    put(&mut store, "a", "", 7);
    put(&mut store, "c", "", -1);
    assert_eq!(store.view().lease_keys(7).unwrap(), ["a", "b"]);
    assert_eq!(store.view().lease_keys(-1).unwrap(), ["c"]);
    put(&mut store, "a", "", 7);
    put(&mut store, "b", "", 8);
    put(&mut store, "c", "", 0);
    assert_eq!(store.view().lease_keys(7).unwrap(), ["a"]);
    assert_eq!(store.view().lease_keys(8).unwrap(), ["b"]);
    assert_eq!(store.view().lease_keys(-1).unwrap(), [""; 0]);
    delete(&mut store, ALL);
    assert_eq!(store.view().lease_keys(7).unwrap(), [""; 0]);
    assert_eq!(store.view().lease_keys(8).unwrap(), [""; 0]);
    put(&mut store, "a", "", 0);
    assert_eq!(store.view().lease_keys(7).unwrap(), [""; 0]);
}

#[test]
fn d2_a_delete_of_nothing_changes_nothing() {
    let (_folder, mut store) = store();
    put(&mut store, "k", "", 0);
    assert_eq!(delete(&mut store, one(b"none")), (0, vec![]));
    assert_eq!(delete(&mut store, range("l", "")), (0, vec![]));
    assert_eq!(store.view().revision(), 2);
}

#[test]
fn d3_deletes_count_subs_in_key_order() {
    let (_folder, mut store) = store();
    for key in ["c", "a", "b", "d"] {
        put(&mut store, key, "", 0);
    }
    let (deleted, changes) = delete(&mut store, range("a", "d"));
    assert_eq!(deleted, 3);
    assert_eq!(told(changes.clone()), ["6.0 -a", "6.1 -b", "6.2 -c"]);
    // K4: a tombstone's pair holds only the key.
    assert_eq!(changes[1].kv, KeyValue { key: "b".into(), ..Default::default() }.encode_to_vec());
    assert_eq!(listed(&store, ALL, 0), ["d 5.0 5 1 0"]);
    assert_eq!(listed(&store, ALL, 5).len(), 4);
}

#[test]
fn t11_t12_a_transaction_reads_its_own_writes_at_one_revision() {
    let (_folder, mut store) = store();
    put(&mut store, "a", "", 0);
    put(&mut store, "b", "", 0);
    let mut txn = store.txn();
    assert_eq!((txn.revision(), txn.view().revision()), (3, 3));
    assert_eq!(txn.delete_range(one(b"none")).unwrap(), 0);
    assert_eq!((txn.revision(), txn.view().revision()), (3, 3));
    txn.put(b"c", b"", 0).unwrap();
    assert_eq!((txn.revision(), txn.view().revision()), (4, 4));
    txn.delete_range(one(b"a")).unwrap();
    txn.put(b"b", b"", 0).unwrap();
    assert_eq!(list(txn.view(), ALL, 0).unwrap(), ["b 4.2 3 2 0", "c 4.0 4 1 0"]);
    // T4: a put and a delete of one key can stand in one transaction.
    txn.delete_range(one(b"c")).unwrap();
    assert_eq!(told(txn.end()), ["4.0 +c", "4.1 -a", "4.2 +b", "4.3 -c"]);
    assert_eq!(listed(&store, ALL, 0), ["b 4.2 3 2 0"]);
    assert_eq!(history(&store, 4, 4), ["4.0 +c", "4.1 -a", "4.2 +b", "4.3 -c"]);
    assert!(store.txn().end().is_empty());
    assert_eq!(store.view().revision(), 4);
}

#[test]
fn readers_see_what_is_published() {
    let (_folder, mut store) = store();
    let reader = store.reader();
    put(&mut store, "k", "1", 0);
    assert_eq!(reader.root().view().revision(), 1);
    store.publish();
    let old = reader.root();
    put(&mut store, "k", "2", 0);
    store.compact(3).unwrap();
    while !store.compact_step(100).unwrap() {}
    store.publish();
    assert_eq!(list(old.view(), ALL, 0).unwrap(), ["k 2.0 2 1 0"]);
    assert_eq!(old.view().compact_revision(), -1);
    assert_eq!(list(reader.root().view(), ALL, 0).unwrap(), ["k 3.0 2 2 0"]);
}

#[test]
fn c1_compaction_errors() {
    let (_folder, mut store) = store();
    put(&mut store, "k", "", 0);
    assert_eq!(refusal(store.compact(-1)), "compacted");
    assert_eq!(refusal(store.compact(3)), "future");
    store.compact(0).unwrap();
    assert_eq!(store.view().compact_revision(), 0);
    assert_eq!(refusal(store.compact(0)), "compacted");
    assert!(store.compact_step(1).unwrap());
    store.compact(2).unwrap();
    assert_eq!(refusal(store.compact(2)), "compacted");
    assert_eq!(store.view().compact_revision(), 2);
    assert_eq!(store.view().revision(), 2);
}

#[test]
fn k9_c4_what_a_compaction_keeps() {
    let (_folder, mut store) = store();
    put(&mut store, "a", "", 0); // 2
    put(&mut store, "b", "", 0); // 3
    put(&mut store, "a", "", 0); // 4
    delete(&mut store, one(b"b")); // 5
    put(&mut store, "c", "", 0); // 6
    delete(&mut store, one(b"c")); // 7
    put(&mut store, "a", "", 0); // 8
    put(&mut store, "c", "", 0); // 9
    compact(&mut store, 7);
    // The tombstone of b lies below 7 and goes; that of c lies at 7 and stays.
    assert_eq!(history(&store, 0, 100), ["4.0 +a", "7.0 -c", "8.0 +a", "9.0 +c"]);
    assert_eq!(listed(&store, ALL, 7), ["a 4.0 2 2 0"]);
    assert_eq!(listed(&store, ALL, 8), ["a 8.0 2 3 0"]);
    compact(&mut store, 8);
    assert_eq!(history(&store, 0, 100), ["8.0 +a", "9.0 +c"]);
    delete(&mut store, ALL); // 10
    compact(&mut store, 10);
    assert_eq!(history(&store, 0, 100), ["10.0 -a", "10.1 -c"]);
    put(&mut store, "a", "", 0); // 11
    compact(&mut store, 11);
    assert_eq!(history(&store, 0, 100), ["11.0 +a"]);
    assert_eq!(store.view().revision(), 11);
}

#[test]
fn c4_a_put_and_a_delete_at_the_compact_revision() {
    let (_folder, mut store) = store();
    let mut txn = store.txn();
    txn.put(b"k", b"", 0).unwrap();
    txn.delete_range(one(b"k")).unwrap();
    drop(txn);
    compact(&mut store, 2);
    assert_eq!(history(&store, 0, 100), ["2.1 -k"]);
}

#[test]
fn c5_marks_of_a_compaction() {
    let (_folder, mut store) = store();
    for _ in 0..10 {
        put(&mut store, "k", "", 0);
    }
    let mark =
        |store: &Store, key: &[u8]| store.view().get(TreeId::Meta, key).unwrap().map(|mark| mark.to_vec());
    let at = |main: u8| Some([&[0, 0, 0, 0, 0, 0, 0, main, b'_'][..], &[0; 8]].concat());
    store.compact(5).unwrap();
    assert_eq!(mark(&store, b"scheduledCompactRev"), at(5));
    assert!(!store.compact_step(1).unwrap());
    assert_eq!(mark(&store, b"finishedCompactRev"), None);
    assert!(store.compact_step(100).unwrap());
    assert_eq!(mark(&store, b"finishedCompactRev"), at(5));
    assert!(store.compact_step(100).unwrap());
    // One that is still running comes to its end before a later one takes over, as in etcd.
    store.compact(7).unwrap();
    assert!(!store.compact_step(1).unwrap());
    store.compact(9).unwrap();
    assert_eq!(mark(&store, b"scheduledCompactRev"), at(9));
    let mut marks = vec![mark(&store, b"finishedCompactRev")];
    while !store.compact_step(1).unwrap() {
        marks.push(mark(&store, b"finishedCompactRev"));
    }
    marks.push(mark(&store, b"finishedCompactRev"));
    marks.dedup();
    assert_eq!(marks, [at(5), at(7), at(9)]);
    assert_eq!(history(&store, 0, 100), ["9.0 +k", "10.0 +k", "11.0 +k"]);
}

#[test]
fn c4_a_compaction_taken_over_drops_the_tombstones_of_the_first() {
    let (_folder, mut store) = store();
    put(&mut store, "k", "", 0);
    delete(&mut store, one(b"k")); // 3
    put(&mut store, "l", "", 0); // 4
    for steps in 0..4 {
        let base = store.view().revision();
        put(&mut store, "k", "", 0);
        delete(&mut store, one(b"k"));
        put(&mut store, "l", "", 0);
        store.compact(base + 2).unwrap();
        for _ in 0..steps {
            store.compact_step(1).unwrap();
        }
        compact(&mut store, base + 3);
        assert_eq!(history(&store, 0, 100), [format!("{}.0 +l", base + 3)], "after {steps} steps");
    }
}

#[test]
fn k8_a_compaction_goes_on_after_a_restart() {
    let (folder, mut store) = store();
    for i in 0..100 {
        put(&mut store, &format!("k{}", i % 7), "", 0);
    }
    store.compact(90).unwrap();
    assert!(!store.compact_step(40).unwrap());
    checkpoint(&mut store);
    drop(store);
    let mut store = folder.open(true);
    assert_eq!((store.view().revision(), store.view().compact_revision()), (101, 90));
    assert_eq!(refusal(store.view().keys(ALL, 89)), "compacted");
    while !store.compact_step(10).unwrap() {}
    let kept: Vec<String> = (84..=101).map(|main| format!("{main}.0 +k{}", (main - 2) % 7)).collect();
    assert_eq!(history(&store, 0, i64::MAX), kept);
}

#[test]
fn a_key_with_many_versions_is_found_at_each_revision() {
    let (_folder, mut store) = store();
    put(&mut store, "a", "", 0);
    for _ in 0..500 {
        put(&mut store, "k", "", 0);
    }
    put(&mut store, "l", "", 0);
    for revision in 3..=502 {
        let found = ["a 2.0 2 1 0".to_string(), format!("k {revision}.0 3 {} 0", revision - 2)];
        assert_eq!(listed(&store, ALL, revision), found);
        assert_eq!(listed(&store, one(b"k"), revision), found[1..]);
    }
    assert_eq!(listed(&store, ALL, 503).len(), 3);
}

#[test]
fn w13_changes_come_in_order_of_revisions() {
    let (_folder, mut store) = store();
    let mut made = put(&mut store, "b", "1", 0);
    made.extend(put(&mut store, "a", "2", 3));
    made.extend(delete(&mut store, ALL).1);
    let mut txn = store.txn();
    txn.put(b"z", b"3", 0).unwrap();
    txn.put(b"y", b"", 0).unwrap();
    made.extend(txn.end());
    let read: Vec<Change> = store.view().changes(0, 5).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, made);
    assert_eq!(history(&store, 3, 4), ["3.0 +a", "4.0 -a", "4.1 -b"]);
    assert_eq!(history(&store, 6, 9), [""; 0]);
}

#[test]
fn x8_x9_hash_kv_by_hand() {
    let (_folder, mut store) = store();
    let crc = |parts: &[&[u8]]| crc32c::crc32c(&parts.concat());
    assert_eq!(store.view().hash_kv(0).unwrap(), (crc(&[b"key"]), -1, 1));
    let put = put(&mut store, "k", "v", 0);
    let entry = [b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0", put[0].kv.as_ref()].concat();
    assert_eq!(store.view().hash_kv(0).unwrap(), (crc(&[b"key", &entry]), -1, 2));
    assert_eq!(store.view().hash_kv(1).unwrap(), (crc(&[b"key"]), -1, 1));
    let gone = delete(&mut store, one(b"k")).1;
    let tombstone = [b"\0\0\0\0\0\0\0\x03_\0\0\0\0\0\0\0\0t", gone[0].kv.as_ref()].concat();
    assert_eq!(store.view().hash_kv(3).unwrap(), (crc(&[b"key", &entry, &tombstone]), -1, 3));
    assert_eq!(refusal(store.view().hash_kv(4)), "future");
    compact(&mut store, 3);
    assert_eq!(refusal(store.view().hash_kv(2)), "compacted");
    assert_eq!(store.view().hash_kv(0).unwrap(), (crc(&[b"key"]), 3, 3));
}

#[test]
fn x7_hash_skips_what_differs_between_members() {
    let (_folder, mut store) = store();
    let names: Vec<u8> = BUCKETS.iter().flat_map(|(name, _)| name.bytes()).collect();
    assert!(BUCKETS.is_sorted_by_key(|(name, _)| name));
    assert_eq!(store.view().hash().unwrap(), crc32c::crc32c(&names));
    for key in ["consistent_index", "term", "storageVersion"] {
        store.insert(TreeId::Meta, key.as_bytes(), b"x").unwrap();
    }
    assert_eq!(store.view().hash().unwrap(), crc32c::crc32c(&names));
    store.insert(TreeId::Meta, b"confState", b"{}").unwrap();
    store.insert(TreeId::Alarm, b"\x08\x01", b"").unwrap();
    let mut expected = b"alarm\x08\x01".to_vec();
    expected.extend_from_slice(&names[5..]);
    expected.extend_from_slice(b"confState{}");
    assert_eq!(store.view().hash().unwrap(), crc32c::crc32c(&expected));
}

#[test]
fn x9_the_hashes_of_the_last_ten_compactions_are_kept() {
    let (_folder, mut store) = store();
    let crc = |parts: &[&[u8]]| crc32c::crc32c(&parts.concat());
    let at = |store: &Store, revision| store.view().hash_kv(revision).unwrap();
    // One to 0 is no answer to who asks for the current revision.
    compact(&mut store, 0);
    put(&mut store, "k", "v", 0);
    assert_eq!(at(&store, 0), at(&store, 2));
    assert_eq!(at(&store, 0).1, 0);
    for _ in 0..2 {
        put(&mut store, "k", "v", 0);
    }
    // Until it has ended, the answer is as for any revision.
    let (before, _, _) = at(&store, 3);
    store.compact(3).unwrap();
    let marked = at(&store, 3);
    assert_eq!((marked.1, marked.2), (3, 3));
    while !store.compact_step(3).unwrap() {}
    assert_eq!(at(&store, 3), (before, 0, 3));
    let (second, compacted, _) = at(&store, 4);
    assert_eq!(compacted, 3);
    compact(&mut store, 4);
    assert_eq!((at(&store, 3), at(&store, 4)), ((before, 0, 3), (second, 3, 4)));
    store.publish();
    assert_eq!(store.reader().root().view().hash_kv(4).unwrap(), (second, 3, 4));
    // A tombstone at its own revision is kept, so that what is older and dead does not count.
    let gone = delete(&mut store, one(b"k")).1;
    let tombstone = [b"\0\0\0\0\0\0\0\x05_\0\0\0\0\0\0\0\0t", gone[0].kv.as_ref()].concat();
    compact(&mut store, 5);
    assert_eq!(at(&store, 5), (crc(&[b"key", &tombstone]), 4, 5));
    // One that is marked before the one before it has ended is not kept.
    put(&mut store, "k", "v", 0);
    put(&mut store, "k", "v", 0);
    let (sixth, _, _) = at(&store, 6);
    store.compact(6).unwrap();
    compact(&mut store, 7);
    assert_eq!(at(&store, 6), (sixth, 5, 6));
    assert_eq!((at(&store, 7).1, at(&store, 7).2), (7, 7));
    for revision in 8..17 {
        put(&mut store, "k", "v", 0);
        compact(&mut store, revision);
    }
    assert_eq!(refusal(store.view().hash_kv(5)), "compacted");
    assert_eq!(at(&store, 6), (sixth, 5, 6));
    put(&mut store, "k", "v", 0);
    compact(&mut store, 17);
    assert_eq!(refusal(store.view().hash_kv(6)), "compacted");
    assert_eq!((at(&store, 8).1, at(&store, 17).1), (7, 16));
}
