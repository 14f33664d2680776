//! Leases on a whole member: rules L1 to L11, V3, H6 of the reference. The lessor's own tests stand beside it.
#![allow(clippy::unwrap_used)]

mod common;

use std::pin::pin;
use std::time::Duration;

use common::{Bed, delete, get_range, keys, put, revision_of, text};
use trilith_proto::etcdserverpb::{LeaseKeepAliveRequest, PutRequest};
use trilith_server::service;
use trilith_server::status;

const SECOND: Duration = Duration::from_secs(1);

fn attach(bed: &mut Bed, key: &str, lease: i64) {
    bed.try_put(PutRequest { lease, ..put(key, "v") }).unwrap();
}

#[test]
fn l1_l2_l3_grants() {
    let mut bed = Bed::new();
    for ttl in [-1, 0, 1, 2] {
        let granted = bed.grant(0, ttl).unwrap();
        assert_eq!((granted.ttl, granted.error.as_str()), (2, ""), "L1: {ttl}");
        assert!(granted.id > 0, "L3");
    }
    assert_eq!(bed.grant(5, 60).unwrap().id, 5);
    assert_eq!(bed.grant(5, 60), Err(status::LEASE_EXIST), "L3");
    assert_eq!(bed.grant(6, 9_000_000_001), Err(status::LEASE_TTL_TOO_LARGE), "L2");
    let granted = bed.grant(6, 9_000_000_000).unwrap();
    assert_eq!((granted.ttl, revision_of(&granted.header)), (9_000_000_000, 1), "H1");
}

#[test]
fn l4_leases_end_by_themselves() {
    let mut bed = Bed::new();
    bed.grant(1, 5).unwrap();
    bed.grant(2, 60).unwrap();
    attach(&mut bed, "b", 1);
    attach(&mut bed, "a", 1);
    attach(&mut bed, "c", 2);
    bed.pass(SECOND * 4);
    assert_eq!(bed.time_to_live(1).keys, ["a", "b"]);
    bed.pass(SECOND * 2);
    assert_eq!(bed.leases(), [2]);
    assert_eq!(keys(&bed.range(get_range("\0", "\0")).unwrap()), "c");
    assert_eq!(bed.revision(), 5, "L11: one revision for all keys");
    let root = bed.handle.root();
    let order: Vec<_> = root.view().changes(5, 5).unwrap().map(|c| text(&c.unwrap().key)).collect();
    assert_eq!(order, ["a", "b"], "L11: in byte order");
}

#[test]
fn l4_many_leases_end() {
    let mut bed = Bed::new();
    for id in 1..=700 {
        bed.grant(id, 2).unwrap();
    }
    bed.pass(SECOND * 4);
    assert_eq!(bed.leases(), [0_i64; 0]);
}

#[test]
fn l6_keep_alives() {
    let mut bed = Bed::new();
    bed.grant(1, 5).unwrap();
    attach(&mut bed, "a", 1);
    for _ in 0..5 {
        bed.pass(SECOND * 4);
        let response = bed.keep_alive(1);
        assert_eq!((response.ttl, response.id, revision_of(&response.header)), (5, 1, 2), "H6");
    }
    assert_eq!(bed.keep_alive(99).ttl, 0, "L6: missing");

    // Just past its end and not revoked: the answer waits for the revocation.
    bed.now += SECOND * 5;
    let handle = bed.handle.clone();
    let request = LeaseKeepAliveRequest { id: 1 };
    let mut call = pin!(async move { service::lease::keep_alive(&handle, request).await });
    bed.core.step(bed.now).unwrap();
    let first = bed.poll(call.as_mut());
    let response = match first {
        Some(response) => response,
        None => bed.run(call),
    };
    let response: trilith_proto::etcdserverpb::LeaseKeepAliveResponse = common::decode(response.unwrap());
    assert_eq!(response.ttl, 0, "L6: expired");
    assert_eq!(bed.get("a"), None);
}

#[test]
fn l8_l10_times_and_lists() {
    let mut bed = Bed::new();
    bed.grant(1, 30).unwrap();
    bed.grant(2, 10).unwrap();
    attach(&mut bed, "a", 2);
    bed.pass(Duration::from_millis(1500));
    let response = bed.time_to_live(2);
    assert_eq!((response.id, response.granted_ttl, response.ttl), (2, 10, 8), "L8: whole seconds");
    assert_eq!(response.keys, ["a"]);
    let missing = bed.time_to_live(3);
    assert_eq!((missing.id, missing.granted_ttl, missing.ttl, missing.keys.len()), (3, 0, -1, 0), "L8");
    assert_eq!(bed.leases(), [2, 1], "L10");
}

#[test]
fn l11_revocations() {
    let mut bed = Bed::new();
    assert_eq!(bed.revoke(1), Err(status::LEASE_NOT_FOUND));
    bed.grant(1, 60).unwrap();
    let revoked = bed.revoke(1).unwrap();
    assert_eq!(revision_of(&revoked.header), 1, "L11: no keys, no revision");
    bed.grant(1, 60).unwrap();
    for key in ["c", "a", "b"] {
        attach(&mut bed, key, 1);
    }
    bed.delete(delete("b", "")).unwrap();
    let revoked = bed.revoke(1).unwrap();
    assert_eq!(revision_of(&revoked.header), 6);
    assert_eq!(bed.range(get_range("\0", "\0")).unwrap().count, 0);
    assert_eq!(bed.revoke(1), Err(status::LEASE_NOT_FOUND));
}

#[test]
fn v3_leases_start_anew_after_a_restart() {
    let mut bed = Bed::new();
    bed.grant(1, 10).unwrap();
    attach(&mut bed, "a", 1);
    bed.pass(SECOND * 8);
    for kill in [false, true] {
        bed = if kill { bed.kill() } else { bed.restart() };
        let response = bed.time_to_live(1);
        assert_eq!((response.granted_ttl, response.keys.len()), (10, 1));
        assert!(response.ttl >= 10, "L5: the whole TTL and an election timeout: {}", response.ttl);
        bed.pass(SECOND * 8);
        assert!(bed.get("a").is_some());
    }
    bed.pass(SECOND * 4);
    assert_eq!(bed.get("a"), None);
}
