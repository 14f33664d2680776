//! Put, DeleteRange, Compact: rules P1 to P7, D1 to D6, C1 to C6, H1, Z1 of the reference.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Bed, bytes, delete, get, get_range, keys, put, revision_of, text};
use trilith_proto::etcdserverpb::{PutRequest, RangeRequest};
use trilith_server::status::{self, Status};

#[test]
fn p1_to_p3_refusals() {
    let mut bed = Bed::new();
    bed.put("a", "1");
    let rows: Vec<(&str, PutRequest, Status)> = vec![
        ("P1 key", PutRequest { ignore_value: true, ..put("", "x") }, status::EMPTY_KEY),
        (
            "P1 value",
            PutRequest { ignore_value: true, ignore_lease: true, lease: 1, ..put("a", "x") },
            status::VALUE_PROVIDED,
        ),
        ("P1 lease", PutRequest { ignore_lease: true, lease: 1, ..put("a", "x") }, status::LEASE_PROVIDED),
        ("P2", PutRequest { lease: 5, ..put("a", "x") }, status::LEASE_NOT_FOUND),
        (
            "P2 before P3",
            PutRequest { lease: 5, ignore_value: true, ..put("z", "") },
            status::LEASE_NOT_FOUND,
        ),
        ("P3 value", PutRequest { ignore_value: true, ..put("z", "") }, status::KEY_NOT_FOUND),
        ("P3 lease", PutRequest { ignore_lease: true, ..put("z", "x") }, status::KEY_NOT_FOUND),
        ("Z1", put("a", &"x".repeat(1_572_864)), status::REQUEST_TOO_LARGE),
    ];
    for (rule, request, want) in rows {
        assert_eq!(bed.try_put(request), Err(want), "{rule}");
    }
    assert_eq!(bed.revision(), 2, "refused puts change nothing");
    let max = 1_572_864 - 64;
    bed.put("a", &"x".repeat(max));
    assert_eq!(bed.get("a").unwrap().len(), max);
}

#[test]
fn p4_to_p7_puts() {
    let mut bed = Bed::new();
    let first = bed.try_put(PutRequest { prev_kv: true, ..put("a", "1") }).unwrap();
    assert_eq!((revision_of(&first.header), first.prev_kv), (2, None), "P4, P7");
    let second = bed.try_put(PutRequest { prev_kv: true, ..put("a", "1") }).unwrap();
    let prev = second.prev_kv.unwrap();
    assert_eq!((revision_of(&second.header), prev.mod_revision, text(&prev.value)), (3, 2, "1".into()), "P4");
    assert_eq!(bed.put("a", "2").prev_kv, None, "P4");
    let kv = bed.range(get("a")).unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 4, 3), "P5");
    bed.delete(delete("a", "")).unwrap();
    bed.put("a", "3");
    let kv = bed.range(get("a")).unwrap().kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (6, 6, 1), "P5: a new life");
}

#[test]
fn p6_leases_of_puts() {
    let mut bed = Bed::new();
    bed.grant(7, 600).unwrap();
    bed.try_put(PutRequest { lease: 7, ..put("a", "1") }).unwrap();
    let of = |bed: &mut Bed| {
        let kv = bed.range(get("a")).unwrap().kvs.remove(0);
        (text(&kv.value), kv.lease, bed.time_to_live(7).keys)
    };
    assert_eq!(of(&mut bed), ("1".into(), 7, vec![bytes("a")]));
    bed.try_put(PutRequest { ignore_lease: true, ..put("a", "2") }).unwrap();
    assert_eq!(of(&mut bed), ("2".into(), 7, vec![bytes("a")]));
    bed.put("a", "3");
    assert_eq!(of(&mut bed), ("3".into(), 0, vec![]));
    bed.try_put(PutRequest { ignore_value: true, lease: 7, ..put("a", "") }).unwrap();
    assert_eq!(of(&mut bed), ("3".into(), 7, vec![bytes("a")]));
    bed.try_put(PutRequest { ignore_value: true, ignore_lease: true, ..put("a", "") }).unwrap();
    assert_eq!(of(&mut bed), ("3".into(), 7, vec![bytes("a")]));
    bed.delete(delete("a", "")).unwrap();
    assert_eq!(bed.time_to_live(7).keys, Vec::<bytes::Bytes>::new(), "D5");
}

#[test]
fn d1_to_d4_deletes() {
    let mut bed = Bed::new();
    for key in ["a", "b", "c", "d"] {
        bed.put(key, key);
    }
    assert_eq!(bed.delete(delete("", "")), Err(status::EMPTY_KEY), "D1");
    for (key, end) in [("x", ""), ("x", "y"), ("c", "a"), ("e", "\0")] {
        let none = bed.delete(delete(key, end)).unwrap();
        assert_eq!((none.deleted, revision_of(&none.header), bed.revision()), (0, 5, 5), "D2: {key} {end}");
    }
    let mut request = delete("b", "d");
    request.prev_kv = true;
    let some = bed.delete(request).unwrap();
    let prev: Vec<_> = some.prev_kvs.iter().map(|kv| (text(&kv.key), kv.mod_revision)).collect();
    assert_eq!((some.deleted, revision_of(&some.header)), (2, 6), "D3");
    assert_eq!(prev, [("b".into(), 3), ("c".into(), 4)], "D4");
    let root = bed.handle.root();
    let changes: Vec<_> = root.view().changes(6, 6).unwrap().map(Result::unwrap).collect();
    let subs: Vec<_> = changes.iter().map(|c| (c.revision.sub, c.deleted, text(&c.key))).collect();
    assert_eq!(subs, [(0, true, "b".into()), (1, true, "c".into())], "D3");
    assert_eq!(bed.delete(delete("\0", "\0")).unwrap().deleted, 2);
    assert_eq!(bed.range(get_range("\0", "\0")).unwrap().count, 0);
}

#[test]
fn c1_c3_c6_compactions() {
    let mut bed = Bed::new();
    assert_eq!(bed.compact(-1, true), Err(status::COMPACTED), "C1");
    assert_eq!(revision_of(&bed.compact(0, true).unwrap().header), 1, "C1: once, on a fresh store");
    assert_eq!(bed.compact(0, true), Err(status::COMPACTED), "C1");
    for i in 0..500 {
        bed.put("a", &i.to_string());
        bed.put(&format!("b{i}"), "x");
    }
    assert_eq!(bed.revision(), 1001);
    assert_eq!(bed.compact(1002, false), Err(status::FUTURE_REV), "C1");
    let done = bed.compact(1001, true).unwrap();
    assert_eq!(revision_of(&done.header), 1001, "C6");
    let left = bed.handle.root().view().changes(2, 1001).unwrap().count();
    assert_eq!(left, 501, "C3: one revision of each key is left when the answer comes");
    assert_eq!(bed.compact(1001, true), Err(status::COMPACTED), "C1");
    assert_eq!(bed.range(RangeRequest { revision: 1000, ..get("a") }), Err(status::COMPACTED));
    assert_eq!(bed.get("a").unwrap(), "499");
}

#[test]
fn a_compaction_goes_on_after_a_restart() {
    let mut bed = Bed::new();
    for i in 0..2000 {
        bed.put("a", &i.to_string());
    }
    bed.compact(2001, false).unwrap();
    let mut bed = bed.kill();
    bed.pass(std::time::Duration::from_secs(2));
    let left = bed.handle.root().view().changes(2, 2001).unwrap().count();
    assert_eq!((left, bed.get("a").unwrap().as_str()), (1, "1999"));
    assert_eq!(keys(&bed.range(get_range("a", "b")).unwrap()), "a");
}
