//! Range and RangeStream: rules R1 to R16 of the reference, and H1, H2, H4 for the headers.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Bed, decode, get, get_range, keys, put, revision_of, text};
use trilith_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use trilith_proto::etcdserverpb::{self as pb, RangeRequest};
use trilith_server::service;
use trilith_server::status::{self, Status};

/// a at 2 (lease 7), b at 3 and 5, c at 4, d at 6 and gone at 7, e at 8.
fn bed() -> Bed {
    let mut bed = Bed::new();
    bed.grant(7, 600).unwrap();
    bed.try_put(pb::PutRequest { lease: 7, ..put("a", "9") }).unwrap();
    for (key, value) in [("b", "x"), ("c", "1"), ("b", "5"), ("d", "x")] {
        bed.put(key, value);
    }
    bed.delete(common::delete("d", "")).unwrap();
    bed.put("e", "7");
    bed
}

fn all() -> RangeRequest {
    get_range("a", "\0")
}

fn sorted(target: SortTarget, order: SortOrder) -> RangeRequest {
    RangeRequest { sort_target: target as i32, sort_order: order as i32, ..all() }
}

#[test]
fn requests_and_answers() {
    let mut bed = bed();
    #[rustfmt::skip]
    let rows: Vec<(&str, RangeRequest, &str, bool, i64)> = vec![
        // rule, request, keys, more, count
        ("R2 one key", get("b"), "b", false, 1),
        ("R2 missing key", get("bb"), "", false, 0),
        ("R2 half open", get_range("a", "c"), "a b", false, 2),
        ("R2 from key", get_range("b", "\0"), "b c e", false, 3),
        ("R2 all keys", get_range("\0", "\0"), "a b c e", false, 4),
        ("R2 end before start", get_range("c", "a"), "", false, 0),
        ("R2 end is start", get_range("b", "b"), "", false, 0),
        ("R3 negative revision", RangeRequest { revision: -3, ..all() }, "a b c e", false, 4),
        ("R3 old revision", RangeRequest { revision: 6, ..all() }, "a b c d", false, 4),
        ("R3 before the delete", RangeRequest { revision: 2, ..all() }, "a", false, 1),
        ("R6 count only", RangeRequest { count_only: true, limit: 1, min_mod_revision: 5, ..all() }, "", false, 4),
        ("R7 limit", RangeRequest { limit: 3, ..all() }, "a b c", true, 4),
        ("R7 limit is all", RangeRequest { limit: 4, ..all() }, "a b c e", false, 4),
        ("R7 negative limit", RangeRequest { limit: -1, ..all() }, "a b c e", false, 4),
        ("R7 limit with ascending keys", RangeRequest { limit: 2, ..sorted(SortTarget::Key, SortOrder::Ascend) }, "a b", true, 4),
        ("R8 descending keys", RangeRequest { limit: 2, ..sorted(SortTarget::Key, SortOrder::Descend) }, "e c", true, 4),
        ("R8 by mod revision", sorted(SortTarget::Mod, SortOrder::Descend), "e b c a", false, 4),
        ("R8 by create revision", sorted(SortTarget::Create, SortOrder::Ascend), "a b c e", false, 4),
        ("R8 by version", RangeRequest { limit: 1, ..sorted(SortTarget::Version, SortOrder::Descend) }, "b", true, 4),
        ("R8 by value", RangeRequest { limit: 1, ..sorted(SortTarget::Value, SortOrder::Ascend) }, "c", true, 4),
        ("R9 no order, other target", RangeRequest { limit: 1, ..sorted(SortTarget::Value, SortOrder::None) }, "b", true, 4),
        ("R9 without limit", sorted(SortTarget::Value, SortOrder::None), "c b e a", false, 4),
        ("R10 key without order", sorted(SortTarget::Key, SortOrder::None), "a b c e", false, 4),
        ("R11 min mod", RangeRequest { min_mod_revision: 5, ..all() }, "b e", false, 4),
        ("R11 max mod", RangeRequest { max_mod_revision: 4, ..all() }, "a c", false, 4),
        ("R11 min create", RangeRequest { min_create_revision: 4, ..all() }, "c e", false, 4),
        ("R11 all bounds", RangeRequest { min_mod_revision: 4, max_mod_revision: 5, max_create_revision: 3, ..all() }, "b", false, 4),
        ("R11 filters and limit", RangeRequest { limit: 1, min_mod_revision: 5, ..all() }, "b", true, 4),
    ];
    for serializable in [false, true] {
        for (rule, request, want, more, count) in &rows {
            let request = RangeRequest { serializable, ..request.clone() };
            let response = bed.range(request).unwrap_or_else(|e| panic!("{rule}: {e}"));
            assert_eq!(
                (keys(&response).as_str(), response.more, response.count),
                (*want, *more, *count),
                "{rule}"
            );
            assert_eq!(revision_of(&response.header), 8, "R4: {rule}");
        }
    }
}

#[test]
fn refusals() {
    let mut bed = bed();
    bed.compact(5, true).unwrap();
    let rows: Vec<(&str, RangeRequest, Status)> = vec![
        ("R1 empty key", RangeRequest::default(), status::EMPTY_KEY),
        ("R1 key before sort", RangeRequest { sort_order: 9, ..Default::default() }, status::EMPTY_KEY),
        ("R1 order", RangeRequest { sort_order: 9, ..all() }, status::INVALID_SORT_OPTION),
        ("R1 target", RangeRequest { sort_target: 9, ..all() }, status::INVALID_SORT_OPTION),
        ("R3 future", RangeRequest { revision: 9, ..all() }, status::FUTURE_REV),
        ("R3 compacted", RangeRequest { revision: 4, ..all() }, status::COMPACTED),
        ("R3 count only", RangeRequest { revision: 4, count_only: true, ..all() }, status::COMPACTED),
    ];
    for (rule, request, want) in rows {
        assert_eq!(bed.range(request), Err(want), "{rule}");
    }
    let at_compaction = bed.range(RangeRequest { revision: 5, ..all() }).unwrap();
    assert_eq!(keys(&at_compaction), "a b c", "R3: the compacted revision itself is readable");
}

#[test]
fn pairs_are_whole() {
    let mut bed = bed();
    let response = bed.range(get_range("a", "c")).unwrap();
    let [a, b] = response.kvs.as_slice() else { panic!("two pairs") };
    assert_eq!(
        (a.create_revision, a.mod_revision, a.version, text(&a.value), a.lease),
        (2, 2, 1, "9".into(), 7)
    );
    assert_eq!(
        (b.create_revision, b.mod_revision, b.version, text(&b.value), b.lease),
        (3, 5, 2, "5".into(), 0)
    );
    let facts = bed.handle.facts();
    let header = response.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id), (facts.cluster_id, facts.member_id), "H1");
    assert_eq!(header.raft_term, facts.applied_term, "H2");
    assert_eq!((facts.member_id, facts.cluster_id), (0x8e9e_05c5_2164_694d, 0xcdf8_1819_4e3a_8c32), "M2");
}

#[test]
fn r12_keys_only() {
    let mut bed = bed();
    let request = RangeRequest { keys_only: true, ..get("a") };
    let response = bed.range(request.clone()).unwrap();
    assert_eq!((response.count, response.kvs.len()), (1, 1));
    let kv = &response.kvs[0];
    assert_eq!((text(&kv.key), kv.create_revision, kv.mod_revision, kv.version), ("a".into(), 2, 2, 1));
    assert_eq!((text(&kv.value), kv.lease), (String::new(), 0), "the index knows of no lease");
    let by_value = RangeRequest { sort_target: SortTarget::Value as i32, ..request };
    let response = bed.range(by_value).unwrap();
    assert_eq!((text(&response.kvs[0].value), response.kvs[0].lease), (String::new(), 7));
    let none = bed.range(RangeRequest { keys_only: true, ..get("zz") }).unwrap();
    assert_eq!(none.count, 0);
}

#[test]
fn a_range_beyond_the_budget_is_the_same() {
    let mut bed = Bed::new();
    let value = "v".repeat(1000);
    for i in 0..300 {
        bed.put(&format!("k{i:03}"), &value);
    }
    let response = bed.range(get_range("k", "l")).unwrap();
    assert_eq!((response.kvs.len(), response.count), (300, 300));
    let response = bed.range(RangeRequest { limit: 5, ..get_range("k1", "k2") }).unwrap();
    assert_eq!(
        (keys(&response).as_str(), response.more, response.count),
        ("k100 k101 k102 k103 k104", true, 100)
    );
}

fn stream(bed: &mut Bed, request: RangeRequest) -> Result<Vec<pb::RangeResponse>, Status> {
    let handle = bed.handle.clone();
    let mut stream = bed.run(async move { service::kv::range_stream(&handle, request).await })?;
    let mut chunks = Vec::new();
    loop {
        let (chunk, rest) = bed.run(stream.next_chunk())?;
        let Some(chunk) = chunk else { return Ok(chunks) };
        let message: pb::RangeStreamResponse = decode(chunk);
        chunks.push(message.range_response.unwrap());
        stream = rest;
    }
}

#[test]
fn r15_r16_streams() {
    let mut bed = Bed::new();
    for i in 0..100 {
        bed.put(&format!("k{i:02}"), "v");
    }
    for (name, request) in [
        ("all", get_range("k", "l")),
        ("limit", RangeRequest { limit: 25, ..get_range("k", "l") }),
        ("limit is all", RangeRequest { limit: 100, ..get_range("k", "l") }),
        ("limit within the first chunk", RangeRequest { limit: 3, ..get_range("k", "l") }),
        ("old revision", RangeRequest { revision: 40, ..get_range("k", "l") }),
        ("keys only", RangeRequest { keys_only: true, ..get_range("k", "l") }),
        ("count only", RangeRequest { count_only: true, ..get_range("k", "l") }),
        ("none", get_range("x", "y")),
        ("one", get("k50")),
        ("a target without an order", RangeRequest { sort_target: 1, ..get_range("k", "l") }),
    ] {
        let chunks = stream(&mut bed, request.clone()).unwrap();
        let (last, before) = chunks.split_last().unwrap();
        for chunk in before {
            assert_eq!((&chunk.header, chunk.more, chunk.count), (&None, false, 0), "{name}");
        }
        let kvs: Vec<_> = chunks.iter().flat_map(|chunk| chunk.kvs.clone()).collect();
        let merged = pb::RangeResponse { kvs, ..last.clone() };
        let plain = RangeRequest { sort_target: 0, ..request };
        assert_eq!(merged, bed.range(plain).unwrap(), "R16: {name}");
    }
    let sizes: Vec<_> = stream(&mut bed, get_range("k", "l")).unwrap().iter().map(|c| c.kvs.len()).collect();
    assert_eq!(sizes, [10, 20, 40, 30], "R15: small chunks double");

    for (request, want) in [
        (RangeRequest::default(), status::EMPTY_KEY),
        (RangeRequest { sort_order: 9, ..all() }, status::INVALID_SORT_OPTION),
        (sorted(SortTarget::Key, SortOrder::Descend), status::RANGE_STREAM_SORT),
        (sorted(SortTarget::Mod, SortOrder::Ascend), status::RANGE_STREAM_SORT),
        (RangeRequest { min_mod_revision: 1, ..all() }, status::RANGE_STREAM_FILTER),
        (RangeRequest { revision: 1000, ..all() }, status::FUTURE_REV),
    ] {
        assert_eq!(stream(&mut bed, request), Err(want));
    }
}
