//! Txn: rules T1 to T14 of the reference, H3 for the headers within.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Bed, bytes, delete, get, inner, inner_range, keys, op, op_delete, op_get, op_put, op_txn, put,
    revision_of, text, txn,
};
use trilith_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use trilith_proto::etcdserverpb::request_op::Request as Op;
use trilith_proto::etcdserverpb::response_op::Response;
use trilith_proto::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use trilith_server::status::{self, Status};

const DUPLICATE: Status = status::DUPLICATE_KEY;

fn compare(key: &str, target: CompareTarget, result: CompareResult, union: Option<TargetUnion>) -> Compare {
    Compare {
        result: result as i32,
        target: target as i32,
        key: bytes(key),
        range_end: bytes(""),
        target_union: union,
    }
}

fn puts(count: usize) -> Vec<RequestOp> {
    (0..count).map(|i| op_put(&format!("k{i}"), "v")).collect()
}

#[test]
fn t1_t2_checks_in_order() {
    let mut bed = Bed::new();
    let no_key = compare("", CompareTarget::Version, CompareResult::Equal, None);
    let many = vec![no_key.clone(); 129];
    let empty = RequestOp { request: None };
    let bad_range = op(Op::RequestRange(RangeRequest { sort_order: 9, ..get("a") }));
    #[rustfmt::skip]
    let rows: Vec<(&str, TxnRequest, Option<Status>)> = vec![
        ("T1 128 ops", txn(puts(128), vec![]), None),
        ("T1 129 ops", txn(puts(129), vec![]), Some(status::TOO_MANY_OPS)),
        ("T1 compares", TxnRequest { compare: many, ..Default::default() }, Some(status::TOO_MANY_OPS)),
        ("T1 failure", txn(vec![], puts(129)), Some(status::TOO_MANY_OPS)),
        ("T1 nested within what is left", txn(vec![op_txn(puts(127), vec![])], vec![]), None),
        ("T1 nested beyond", txn(vec![op_txn(puts(128), vec![])], vec![]), Some(status::TOO_MANY_OPS)),
        ("T1 nested, other branch counts", txn(vec![op_txn(puts(100), vec![])], puts(29)), Some(status::TOO_MANY_OPS)),
        ("T2 count before keys", TxnRequest { compare: vec![no_key.clone()], ..txn(puts(129), vec![]) }, Some(status::TOO_MANY_OPS)),
        ("T2 compare before ops", TxnRequest { compare: vec![no_key], ..txn(vec![bad_range.clone()], vec![]) }, Some(status::EMPTY_KEY)),
        ("T2 range", txn(vec![bad_range.clone()], vec![op_put("", "x")]), Some(status::INVALID_SORT_OPTION)),
        ("T2 put", txn(vec![], vec![op_put("", "x")]), Some(status::EMPTY_KEY)),
        ("T2 put value", txn(vec![op(Op::RequestPut(PutRequest { ignore_value: true, ..put("a", "x") }))], vec![]), Some(status::VALUE_PROVIDED)),
        ("T2 delete", txn(vec![op_delete("", "")], vec![]), Some(status::EMPTY_KEY)),
        ("T2 empty op", txn(vec![empty.clone()], vec![]), Some(status::KEY_NOT_FOUND)),
        ("T2 nested", txn(vec![op_txn(vec![], vec![empty.clone()])], vec![]), Some(status::KEY_NOT_FOUND)),
        ("T2 checks before duplicates", txn(vec![op_put("a", "1"), op_put("a", "2"), empty], vec![]), Some(status::KEY_NOT_FOUND)),
    ];
    for (rule, request, want) in rows {
        assert_eq!(bed.txn(request).err(), want, "{rule}");
    }
}

#[test]
fn t3_t4_duplicates() {
    let mut bed = Bed::new();
    let a = || op_put("a", "1");
    let gone = |end: &str| op_delete("a", end);
    #[rustfmt::skip]
    let rows: Vec<(&str, TxnRequest, bool)> = vec![
        // rule, request, refused
        ("T3 twice", txn(vec![a(), a()], vec![]), true),
        ("T3 twice in failure", txn(vec![], vec![a(), a()]), true),
        ("T3 in both branches", txn(vec![a()], vec![a()]), false),
        ("T3 put and delete", txn(vec![a(), gone("")], vec![]), true),
        ("T3 delete and put", txn(vec![gone(""), a()], vec![]), true),
        ("T3 within a deleted interval", txn(vec![op_delete("0", "b"), a()], vec![]), true),
        ("T3 at its end", txn(vec![op_delete("0", "a"), a()], vec![]), false),
        ("T3 deletes overlap", txn(vec![gone(""), op_delete("0", "b")], vec![]), false),
        ("T3 ranges", txn(vec![a(), op_get("a"), op_get("a")], vec![]), false),
        ("T3 delete from a key on", txn(vec![gone("\0"), op_put("b", "1")], vec![]), false),
        ("T3 delete from that key on", txn(vec![gone("\0"), a()], vec![]), false),
        ("T3 nested put", txn(vec![a(), op_txn(vec![a()], vec![])], vec![]), true),
        ("T3 nested put in the failure", txn(vec![a(), op_txn(vec![], vec![a()])], vec![]), true),
        ("T3 nested branches coincide", txn(vec![op_txn(vec![a()], vec![a()])], vec![]), false),
        ("T3 put, nested delete", txn(vec![a(), op_txn(vec![gone("")], vec![])], vec![]), true),
        ("T3 delete, nested put", txn(vec![op_txn(vec![], vec![a()]), gone("")], vec![]), true),
        ("T3 sibling puts", txn(vec![op_txn(vec![a()], vec![]), op_txn(vec![], vec![a()])], vec![]), true),
        ("T4 put, then a sibling's delete", txn(vec![op_txn(vec![a()], vec![]), op_txn(vec![gone("")], vec![])], vec![]), false),
        ("T4 delete, then a sibling's put", txn(vec![op_txn(vec![gone("")], vec![]), op_txn(vec![a()], vec![])], vec![]), true),
        ("T4 both branches of one", txn(vec![op_txn(vec![a()], vec![gone("")])], vec![]), false),
    ];
    for (rule, request, refused) in rows {
        let want = refused.then_some(DUPLICATE);
        assert_eq!(bed.txn(request).err(), want, "{rule}");
    }
}

#[test]
fn t5_t6_t7_compares() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    let mut bed = Bed::new();
    bed.grant(9, 600).unwrap();
    bed.try_put(PutRequest { lease: 9, ..put("a", "m") }).unwrap();
    bed.put("b", "m");
    bed.put("b", "n");
    let value = |v: &str| Some(TargetUnion::Value(bytes(v)));
    let version = |v| Some(TargetUnion::Version(v));
    let interval = |key: &str, end: &str, compare: Compare| Compare {
        key: bytes(key),
        range_end: bytes(end),
        ..compare
    };
    #[rustfmt::skip]
    let rows: Vec<(&str, Compare, bool)> = vec![
        ("value", compare("a", Value, Equal, value("m")), true),
        ("value greater", compare("a", Value, Greater, value("l")), true),
        ("value less", compare("a", Value, Less, value("m")), false),
        ("value is compared by bytes", compare("a", Value, Less, value("ma")), true),
        ("value not equal", compare("a", Value, NotEqual, value("m")), false),
        ("version", compare("b", Version, Equal, version(2)), true),
        ("create", compare("b", Create, Equal, Some(TargetUnion::CreateRevision(3))), true),
        ("mod", compare("b", Mod, Greater, Some(TargetUnion::ModRevision(3))), true),
        ("lease", compare("a", Lease, Equal, Some(TargetUnion::Lease(9))), true),
        ("T5 missing, value", compare("z", Value, Equal, value("")), false),
        ("T5 missing, value, not equal", compare("z", Value, NotEqual, value("x")), false),
        ("T5 missing, version", compare("z", Version, Equal, version(0)), true),
        ("T5 missing, version, less", compare("z", Version, Less, version(1)), true),
        ("T5 missing, create", compare("z", Create, Greater, Some(TargetUnion::CreateRevision(0))), false),
        ("T6 all keys", interval("a", "c", compare("", Value, Greater, value("l"))), true),
        ("T6 one key does not", interval("a", "c", compare("", Value, Equal, value("m"))), false),
        ("T6 from a key on", interval("a", "\0", compare("", Version, Greater, version(0))), true),
        ("T6 empty interval is a missing key", interval("x", "z", compare("", Version, Equal, version(0))), true),
        ("T6 empty interval, value", interval("x", "z", compare("", Value, NotEqual, value("m"))), false),
        ("T7 no union, number", compare("a", Version, Greater, None), true),
        ("T7 no union, value", compare("a", Value, Greater, None), true),
        ("T7 another union", compare("a", Version, Greater, value("m")), true),
        ("T7 unknown result", Compare { result: 9, ..compare("a", Version, Equal, version(5)) }, true),
        ("T7 unknown target", Compare { target: 9, ..compare("a", Version, Equal, version(5)) }, true),
        ("T7 unknown target, not equal", Compare { target: 9, ..compare("a", Version, NotEqual, version(5)) }, false),
    ];
    for (rule, compare, want) in rows {
        let request = TxnRequest { compare: vec![compare], ..Default::default() };
        assert_eq!(bed.txn(request).unwrap().succeeded, want, "{rule}");
    }
}

#[test]
fn t8_compares_see_the_state_before() {
    let mut bed = Bed::new();
    let missing = compare("a", CompareTarget::Version, CompareResult::Equal, Some(TargetUnion::Version(0)));
    let nested =
        TxnRequest { compare: vec![missing], ..txn(vec![op_put("b", "then")], vec![op_put("b", "else")]) };
    let response = bed.txn(txn(vec![op_put("a", "1"), op(Op::RequestTxn(nested))], vec![])).unwrap();
    let Response::ResponseTxn(inner) = inner(&response, 1) else { panic!("a transaction") };
    assert!(inner.succeeded);
    assert_eq!(revision_of(&inner.header), 0, "H3: a present but empty header");
    assert_eq!(bed.get("b").unwrap(), "then");
}

#[test]
fn t9_t10_the_taken_path_is_checked_first() {
    let mut bed = Bed::new();
    bed.put("a", "1");
    let range_at = |revision| op(Op::RequestRange(RangeRequest { revision, ..get("a") }));
    let with = |request: PutRequest| op(Op::RequestPut(request));
    #[rustfmt::skip]
    let rows: Vec<(&str, RequestOp, Option<Status>)> = vec![
        ("T9 the revision it will make", range_at(3), Some(status::FUTURE_REV)),
        ("T9 lease", with(PutRequest { lease: 5, ..put("z", "") }), Some(status::LEASE_NOT_FOUND)),
        ("T9 ignored value", with(PutRequest { ignore_value: true, ..put("z", "") }), Some(status::KEY_NOT_FOUND)),
        ("T9 ignored lease", with(PutRequest { ignore_lease: true, ..put("z", "") }), Some(status::KEY_NOT_FOUND)),
        ("T9 keeping what the transaction deletes", op_txn(vec![op_delete("a", "\0"), with(PutRequest { ignore_value: true, ..put("a", "") })], vec![]), Some(status::KEY_NOT_FOUND)),
        ("T9 nested", op_txn(vec![range_at(3)], vec![]), Some(status::FUTURE_REV)),
        ("T10 -1, never compacted", range_at(-1), None),
        ("T10 -2", range_at(-2), Some(status::COMPACTED)),
    ];
    for (rule, bad, want) in rows {
        let (before, refused) = (bed.revision(), want.is_some());
        let response = bed.txn(txn(vec![op_put("b", "1"), bad], vec![]));
        assert_eq!(response.err(), want, "{rule}");
        assert_eq!(bed.revision(), before + i64::from(!refused), "{rule}");
    }
    assert_eq!(bed.get("b").unwrap(), "1");
    let untaken = txn(vec![op_put("c", "1")], vec![range_at(99)]);
    bed.txn(untaken).expect("the other branch is not checked");
    bed.compact(3, true).unwrap();
    assert_eq!(bed.txn(txn(vec![range_at(2), op_put("b", "1")], vec![])).err(), Some(status::COMPACTED));
    assert_eq!(
        bed.txn(txn(vec![range_at(-1), op_put("b", "1")], vec![])).err(),
        Some(status::COMPACTED),
        "T10"
    );
    assert_eq!(
        bed.txn(txn(vec![range_at(2)], vec![])).err(),
        Some(status::COMPACTED),
        "also when it only reads"
    );
}

#[test]
fn t11_t12_t13_effects_and_revisions() {
    let mut bed = Bed::new();
    bed.put("a", "1");
    bed.put("b", "1");
    let ops = vec![
        op_get("a"),
        op_delete("x", ""),
        op_put("a", "2"),
        op_get("a"),
        op_delete("a", "c"),
        op_txn(vec![op_put("c", "3")], vec![]),
        op_delete("x", ""),
    ];
    // A put and a delete of one key are refused in one branch, so the delete covers only b.
    let mut ops = ops;
    ops[4] = op_delete("b", "");
    let response = bed.txn(txn(ops, vec![])).unwrap();
    assert_eq!(revision_of(&response.header), 4, "T12");
    let header = response.header.as_ref().unwrap();
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0, "H1");
    assert_eq!(text(&inner_range(&response, 0).kvs[0].value), "1");
    assert_eq!(revision_of(&inner_range(&response, 0).header), 3);
    let Response::ResponseDeleteRange(none) = inner(&response, 1) else { panic!("a delete") };
    assert_eq!((none.deleted, revision_of(&none.header)), (0, 3), "T13: no change yet");
    let Response::ResponsePut(put) = inner(&response, 2) else { panic!("a put") };
    let header = put.header.as_ref().unwrap();
    assert_eq!(
        (header.revision, header.cluster_id, header.member_id, header.raft_term),
        (4, 0, 0, 0),
        "T13, H3"
    );
    assert_eq!(text(&inner_range(&response, 3).kvs[0].value), "2", "T11");
    assert_eq!(revision_of(&inner_range(&response, 3).header), 4);
    let Response::ResponseDeleteRange(none) = inner(&response, 6) else { panic!("a delete") };
    assert_eq!((none.deleted, revision_of(&none.header)), (0, 4), "T13: after changes");
    let root = bed.handle.root();
    let changes: Vec<_> = root.view().changes(4, 4).unwrap().map(Result::unwrap).collect();
    let order: Vec<_> = changes.iter().map(|c| (c.revision.sub, text(&c.key), c.deleted)).collect();
    assert_eq!(order, [(0, "a".into(), false), (1, "b".into(), true), (2, "c".into(), false)], "T12");

    let nothing = bed.txn(txn(vec![op_delete("x", "")], vec![])).unwrap();
    assert_eq!((revision_of(&nothing.header), bed.revision()), (4, 4), "T12: nothing changed");
}

#[test]
fn t14_reads_do_not_go_through_the_log() {
    let mut bed = Bed::new();
    bed.put("a", "1");
    let applied = bed.handle.facts().applied;
    let response = bed.txn(txn(vec![op_get("a"), op_get("b")], vec![])).unwrap();
    assert_eq!((keys(inner_range(&response, 0)).as_str(), inner_range(&response, 1).count), ("a", 0));
    assert_eq!((revision_of(&response.header), revision_of(&inner_range(&response, 0).header)), (2, 2));
    let empty = bed.txn(TxnRequest::default()).unwrap();
    assert!(empty.succeeded && empty.responses.is_empty());
    assert_eq!(bed.handle.facts().applied, applied, "no entry");
    bed.txn(txn(vec![op_txn(vec![op_get("a")], vec![])], vec![])).unwrap();
    assert_eq!(bed.handle.facts().applied, applied + 1, "a nested transaction makes it a write");
}

#[test]
fn a_read_only_transaction_beyond_the_budget_is_the_same() {
    let mut bed = Bed::new();
    let value = "v".repeat(1000);
    for i in 0..200 {
        bed.put(&format!("k{i:03}"), &value);
    }
    let range = RangeRequest { range_end: bytes("l"), ..get("k") };
    let response = bed.txn(txn(vec![op(Op::RequestRange(range))], vec![])).unwrap();
    assert_eq!(inner_range(&response, 0).kvs.len(), 200);
}

#[test]
fn prev_kv_and_failure_branch() {
    let mut bed = Bed::new();
    bed.put("a", "1");
    let exists = compare("a", CompareTarget::Version, CompareResult::Equal, None);
    let mut gone = delete("a", "b");
    gone.prev_kv = true;
    let request = TxnRequest { compare: vec![exists], ..txn(vec![], vec![op(Op::RequestDeleteRange(gone))]) };
    let response = bed.txn(request).unwrap();
    assert!(!response.succeeded);
    let Response::ResponseDeleteRange(deleted) = inner(&response, 0) else { panic!("a delete") };
    assert_eq!((deleted.deleted, text(&deleted.prev_kvs[0].value)), (1, "1".into()));
}
