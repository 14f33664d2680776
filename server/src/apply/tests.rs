//! What entries leave in the store, and what nobody waits for.

use std::sync::Arc;

use trilith_disk::sim::SimDisk;
use trilith_engine::View;
use trilith_proto::etcdserverpb::alarm_request::AlarmAction;
use trilith_proto::etcdserverpb::request_op::Request as Op;
use trilith_proto::etcdserverpb::response_op::Response;
use trilith_proto::raftpb;

use super::*;

pub(super) fn store() -> Store {
    let options = trilith_engine::Options {
        path: "db".into(),
        disk: Arc::new(SimDisk::new()),
        map: false,
        dirty_bytes_max: 1 << 20,
        compress: true,
    };
    Store::open(options).unwrap()
}

struct Bench {
    store: Store,
    lessor: Mutex<Lessor>,
    changes: Vec<Change>,
    alarms: Alarms,
    quota: Quota,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            store: store(),
            lessor: Mutex::new(Lessor::new(2)),
            changes: Vec::new(),
            alarms: Alarms::default(),
            quota: Quota::new(0),
        }
    }

    fn apply(&mut self, command: Command, wanted: bool) -> Answer {
        let mut cx = Context {
            header: pb::ResponseHeader { cluster_id: 1, member_id: 2, raft_term: 3, revision: 0 },
            now: Duration::ZERO,
            wanted,
            lessor: &self.lessor,
            alarms: &mut self.alarms,
            quota: self.quota,
            keeps_checkpoints: false,
            changes: &mut self.changes,
        };
        match apply(&mut self.store, command, &mut cx).unwrap() {
            Applied::Done(answer) | Applied::AfterCompaction(answer) => answer,
            Applied::OverQuota => Err(status::NO_SPACE),
        }
    }
}

fn tree(view: View<'_>, tree: TreeId) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut cursor = view.seek(tree, b"").unwrap();
    let mut entries = Vec::new();
    while let Some(key) = cursor.key().map(<[u8]>::to_vec) {
        entries.push((key, cursor.value().unwrap().unwrap().to_vec()));
        cursor.next().unwrap();
    }
    entries
}

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() }
}

#[test]
fn t15_i4_ranges_that_nobody_waits_for_are_not_read() {
    let mut bench = Bench::new();
    let ops = [
        Op::RequestPut(put("a")),
        Op::RequestRange(pb::RangeRequest { key: "a".into(), ..Default::default() }),
    ];
    let success = ops.map(|op| pb::RequestOp { request: Some(op) }).to_vec();
    let request = Command::Txn(pb::TxnRequest { success, ..Default::default() });
    for (wanted, responses) in [(true, 2), (false, 0)] {
        let reply = bench.apply(request.clone(), wanted).unwrap();
        let response = pb::TxnResponse::decode(reply.message()).unwrap();
        assert_eq!(response.responses.len(), responses);
        if let Some(Response::ResponseRange(range)) =
            response.responses.get(1).and_then(|op| op.response.clone())
        {
            assert_eq!(range.count, 1);
        }
    }
    assert_eq!((bench.store.view().revision(), bench.changes.len()), (3, 2), "the effects are the same");
    let range = Command::Range(pb::RangeRequest { key: "a".into(), ..Default::default() });
    assert!(!bench.apply(range.clone(), true).unwrap().message().is_empty());
    assert!(bench.apply(range, false).unwrap().message().is_empty());
}

#[test]
fn lease_records_are_etcds() {
    let mut bench = Bench::new();
    bench.apply(Command::LeaseGrant(pb::LeaseGrantRequest { id: 0x1234, ttl: 60 }), true).unwrap();
    let record = leasepb::Lease { id: 0x1234, ttl: 60, remaining_ttl: 0 }.encode_to_vec();
    assert_eq!(tree(bench.store.view(), TreeId::Lease), [(0x1234_i64.to_be_bytes().to_vec(), record)]);
    let checkpoints = vec![
        pb::LeaseCheckpoint { id: 0x1234, remaining_ttl: 20 },
        pb::LeaseCheckpoint { id: 5, remaining_ttl: 1 },
    ];
    let checkpoint = Command::LeaseCheckpoint(pb::LeaseCheckpointRequest { checkpoints });
    for (version, left) in [("3.5.0", 60), ("3.6.0", 20)] {
        let request = membershippb::ClusterVersionSetRequest { ver: version.into() };
        bench.apply(Command::ClusterVersionSet(request), true).unwrap();
        bench.apply(checkpoint.clone(), true).unwrap();
        let mut restored = Lessor::new(2);
        restore_leases(&bench.store, &mut restored).unwrap();
        assert_eq!(restored.ttl(0x1234, Duration::ZERO), Some((60, left)), "L12 {version}");
        assert_eq!(bench.lessor.lock().unwrap().ttl(0x1234, Duration::ZERO), Some((60, 20)), "L12 {version}");
    }
    bench.apply(Command::Put(pb::PutRequest { lease: 0x1234, ..put("a") }), true).unwrap();
    bench.apply(Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 0x1234 }), true).unwrap();
    assert_eq!(tree(bench.store.view(), TreeId::Lease), []);
    assert!(bench.changes[1].deleted && bench.changes[1].key == "a");
}

#[test]
fn attributes_are_those_of_members_that_are_there() {
    let mut bench = Bench::new();
    let member = members::Member { id: 0xab, peer_urls: vec!["http://a:1".into()], ..Default::default() };
    members::put(&mut bench.store, &member).unwrap();
    let attributes = membershippb::Attributes { name: "n".into(), client_urls: vec!["http://a:2".into()] };
    for id in [0xab, 0x99] {
        let request = membershippb::ClusterMemberAttrSetRequest {
            member_id: id,
            member_attributes: Some(attributes.clone()),
        };
        bench.apply(Command::ClusterMemberAttrSet(request), false).unwrap();
    }
    let json = br#"{"id":171,"peerURLs":["http://a:1"],"name":"n","clientURLs":["http://a:2"]}"#.to_vec();
    assert_eq!(
        tree(bench.store.view(), TreeId::Members),
        [(b"ab".to_vec(), json)],
        "unknown ids are passed over"
    );
}

#[test]
fn versions_and_conf_state_are_etcds() {
    let mut bench = Bench::new();
    let version =
        |ver: &str| Command::ClusterVersionSet(membershippb::ClusterVersionSetRequest { ver: ver.into() });
    bench.apply(version("3.7.0"), false).unwrap();
    assert_eq!(tree(bench.store.view(), TreeId::Cluster), [(b"clusterVersion".to_vec(), b"3.7.0".to_vec())]);
    assert_eq!(
        bench.store.view().get(TreeId::Meta, b"storageVersion").unwrap().as_deref(),
        Some(&b"3.7.0"[..]),
        "X17"
    );
    let state =
        raftpb::ConfState { voters: vec![u64::MAX, 3], auto_leave: Some(false), ..Default::default() };
    members::put_conf_state(&mut bench.store, &state).unwrap();
    let json = br#"{"voters":[18446744073709551615,3],"auto_leave":false}"#;
    assert_eq!(bench.store.view().get(TreeId::Meta, b"confState").unwrap().as_deref(), Some(&json[..]), "M1");
    assert_eq!(members::conf_state(bench.store.view()).unwrap(), state);
    let mut cx = Context {
        header: pb::ResponseHeader::default(),
        now: Duration::ZERO,
        wanted: false,
        lessor: &bench.lessor,
        alarms: &mut bench.alarms,
        quota: bench.quota,
        keeps_checkpoints: false,
        changes: &mut bench.changes,
    };
    let error = apply(&mut bench.store, version("three"), &mut cx).unwrap_err().to_string();
    assert!(error.contains("\"three\""), "{error}");
}

fn alarm(action: AlarmAction, member_id: u64, alarm: i32) -> Command {
    Command::Alarm(pb::AlarmRequest { action: action as i32, member_id, alarm })
}

/// Member and type of each alarm of the answer.
fn named(answer: Answer) -> Vec<(u64, i32)> {
    let response = pb::AlarmResponse::decode(answer.unwrap().message()).unwrap();
    response.alarms.iter().map(|found| (found.member_id, found.alarm)).collect()
}

#[test]
fn x1_alarms_are_kept_as_in_etcd() {
    use AlarmAction::{Activate, Deactivate, Get};
    let mut bench = Bench::new();
    assert_eq!(named(bench.apply(alarm(Activate, 7, 0), true)), []);
    assert_eq!(named(bench.apply(alarm(Activate, 7, 1), true)), [(7, 1)]);
    assert_eq!(named(bench.apply(alarm(Activate, 7, 1), true)), [(7, 1)], "it stands already");
    assert_eq!(named(bench.apply(alarm(Activate, 300, 2), true)), [(300, 2)]);
    assert_eq!(named(bench.apply(alarm(Activate, 0, 9), true)), [(0, 9)], "V2: unknown types are kept");
    assert_eq!(named(bench.apply(alarm(Get, 5, 0), true)), [(7, 1), (300, 2), (0, 9)]);
    assert_eq!(named(bench.apply(alarm(Get, 5, 2), true)), [(300, 2)]);
    let kept = [(vec![8, 7, 16, 1], vec![]), (vec![8, 0xac, 2, 16, 2], vec![]), (vec![16, 9], vec![])];
    assert_eq!(tree(bench.store.view(), TreeId::Alarm), kept);
    assert_eq!(named(bench.apply(alarm(Deactivate, 0, 1), true)), [], "0 is no wildcard");
    assert_eq!(named(bench.apply(alarm(Deactivate, 7, 2), true)), []);
    assert_eq!(named(bench.apply(alarm(Deactivate, 7, 1), true)), [(7, 1)]);
    let restored = Alarms::restore(bench.store.view()).unwrap();
    assert_eq!(
        restored.list().map(|found| alarm::text(&found)).collect::<Vec<_>>(),
        ["memberID:300 alarm:CORRUPT", "alarm:9"]
    );
    let unknown = pb::AlarmRequest { action: 3, member_id: 300, alarm: 2 };
    assert_eq!(named(bench.apply(Command::Alarm(unknown), true)), []);
    assert_eq!(named(bench.apply(alarm(Deactivate, 300, 2), true)), [(300, 2)]);
    assert_eq!(named(bench.apply(alarm(Deactivate, 0, 9), true)), [(0, 9)]);
    assert_eq!(tree(bench.store.view(), TreeId::Alarm), []);
}

fn commands() -> Vec<(&'static str, Command)> {
    let put = pb::PutRequest { key: "k".into(), ..Default::default() };
    let op = |request| pb::RequestOp { request: Some(request) };
    let txn = |op| Command::Txn(pb::TxnRequest { failure: vec![op], ..Default::default() });
    let delete = pb::DeleteRangeRequest { key: "none".into(), ..Default::default() };
    vec![
        ("put", Command::Put(put.clone())),
        ("txn with a put", txn(op(Op::RequestPut(put)))),
        ("grant", Command::LeaseGrant(pb::LeaseGrantRequest { id: 9, ttl: 9 })),
        ("delete", Command::DeleteRange(delete.clone())),
        ("txn with a delete", txn(op(Op::RequestDeleteRange(delete)))),
        ("compaction", Command::Compaction(pb::CompactionRequest { revision: 1, physical: false })),
        ("revoke", Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 1 })),
        ("checkpoint", Command::LeaseCheckpoint(pb::LeaseCheckpointRequest::default())),
        ("range", Command::Range(pb::RangeRequest { key: "k".into(), ..Default::default() })),
    ]
}

#[test]
fn x2_x3_alarms_refuse_what_they_refuse_in_etcd() {
    for (kind, refused, status) in [(1, 3, status::NO_SPACE), (2, 7, status::CORRUPT)] {
        let mut bench = Bench::new();
        bench.apply(Command::LeaseGrant(pb::LeaseGrantRequest { id: 1, ttl: 9 }), false).unwrap();
        // Of whatever member it is.
        bench.apply(alarm(AlarmAction::Activate, 77, kind), false).unwrap();
        let revision = bench.store.view().revision();
        let hits: Vec<&str> = commands()
            .into_iter()
            .filter_map(|(name, command)| {
                (bench.apply(command, true).err() == Some(status.clone())).then_some(name)
            })
            .collect();
        let all = ["put", "txn with a put", "grant", "delete", "txn with a delete", "compaction", "revoke"];
        let mut expected = all[..refused].to_vec();
        if kind == 2 {
            expected.push("range");
        }
        assert_eq!(hits, expected, "{status}");
        assert_eq!(bench.store.view().revision(), revision, "nothing has changed");
        bench.apply(alarm(AlarmAction::Deactivate, 77, kind), false).unwrap();
        bench.apply(commands().swap_remove(0).1, true).unwrap();
    }
}
