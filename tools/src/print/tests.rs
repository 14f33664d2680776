//! Fixed answers in every format. The texts of the simple, JSON, fields and protobuf formats were compared with etcd's
//! own client where its releases 3.4 and 3.7 agree.

use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::response_op::Response;
use trilith_proto::mvccpb::{Event, KeyValue};

use super::*;

fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader {
        cluster_id: 14841639068965178418,
        member_id: 10276657743932975437,
        revision,
        raft_term: 2,
    })
}

fn pair(key: &'static [u8], value: &'static [u8]) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision: 2,
        mod_revision: 4,
        version: 2,
        lease: 7587848390499041807,
    }
}

fn printed(format: &str, hex: bool, answer: Answer<'_>) -> String {
    String::from_utf8(Printer::new(format, hex).unwrap().render(&answer).unwrap()).unwrap()
}

const JSON_HEADER: &str =
    r#"{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"revision":5,"raft_term":2}"#;
const JSON_PAIR: &str = r#"{"key":"Zm9v","create_revision":2,"mod_revision":4,"version":2,"value":"YjxhPgA=","lease":7587848390499041807}"#;
const FIELDS_HEADER: &str = "\"ClusterID\" : 14841639068965178418\n\"MemberID\" : 10276657743932975437\n\"Revision\" : 5\n\"RaftTerm\" : 2\n";
const FIELDS_PAIR: &str = "\"Key\" : \"foo\"\n\"CreateRevision\" : 2\n\"ModRevision\" : 4\n\"Version\" : 2\n\
                           \"Value\" : \"b<a>\\x00\"\n\"Lease\" : 7587848390499041807\n";

#[test]
fn a_range_in_every_format() {
    let answer =
        pb::RangeResponse { header: header(5), kvs: vec![pair(b"foo", b"b<a>\0")], more: true, count: 3 };
    let get = || Answer::Get(&answer);
    assert_eq!(printed("simple", false, get()), "foo\nb<a>\0\n");
    assert_eq!(printed("simple", true, get()), "\\x66\\x6f\\x6f\n\\x62\\x3c\\x61\\x3e\\x00\n");
    let json = format!("{{\"header\":{JSON_HEADER},\"kvs\":[{JSON_PAIR}],\"more\":true,\"count\":3}}\n");
    assert_eq!(printed("json", false, get()), json);
    assert_eq!(printed("json", true, get()), json);
    let fields = format!("{FIELDS_HEADER}{FIELDS_PAIR}\"More\" : true\n\"Count\" : 3\n");
    assert_eq!(printed("fields", false, get()), fields);
    assert!(
        printed("fields", true, get())
            .starts_with("\"ClusterID\" : cdf818194e3a8c32\n\"MemberID\" : 8e9e05c52164694d\n")
    );
    let protobuf = Printer::new("protobuf", false).unwrap().render(&get()).unwrap();
    assert_eq!(pb::RangeResponse::decode(protobuf.as_slice()), Ok(answer.clone()));
    let refused = Printer::new("table", false).unwrap().render(&get());
    assert_eq!(refused, Err(Failure::bad_feature("table not supported as output format")));
    assert_eq!(Printer::new("xml", false).unwrap_err(), Failure::bad_feature("unsupported output format"));
    let values = Printer { format: Format::Simple, hex: false, value_only: true };
    assert_eq!(values.render(&get()).unwrap(), b"b<a>\0\n");
    let binary = pb::RangeResponse { kvs: vec![pair(b"\xff", b"\xfe\n")], ..Default::default() };
    assert_eq!(
        Printer::new("simple", false).unwrap().render(&Answer::Get(&binary)).unwrap(),
        b"\xff\n\xfe\n\n"
    );
}

#[test]
fn writes_show_what_was_there() {
    let put = pb::PutResponse { header: header(5), prev_kv: Some(pair(b"foo", b"b<a>\0")) };
    assert_eq!(printed("simple", false, Answer::Put(&put)), "OK\nfoo\nb<a>\0\n");
    let json = format!("{{\"header\":{JSON_HEADER},\"prev_kv\":{JSON_PAIR}}}\n");
    assert_eq!(printed("json", false, Answer::Put(&put)), json);
    let fields = printed("fields", false, Answer::Put(&put));
    assert!(
        fields.starts_with(FIELDS_HEADER)
            && fields.contains("\"PrevKey\" : \"foo\"\n\"PrevCreateRevision\" : 2\n")
    );
    let delete =
        pb::DeleteRangeResponse { header: header(5), deleted: 1, prev_kvs: vec![pair(b"foo", b"b<a>\0")] };
    assert_eq!(printed("simple", false, Answer::Delete(&delete)), "1\nfoo\nb<a>\0\n");
    let json = format!("{{\"header\":{JSON_HEADER},\"deleted\":1,\"prev_kvs\":[{JSON_PAIR}]}}\n");
    assert_eq!(printed("json", false, Answer::Delete(&delete)), json);
    assert_eq!(printed("json", false, Answer::Put(&pb::PutResponse::default())), "{}\n");
}

#[test]
fn a_transaction_shows_each_answer() {
    let inner = |response| pb::ResponseOp { response: Some(response) };
    let revision = Some(pb::ResponseHeader { revision: 5, ..Default::default() });
    let answer = pb::TxnResponse {
        header: header(5),
        succeeded: true,
        responses: vec![
            inner(Response::ResponsePut(pb::PutResponse { header: revision, prev_kv: None })),
            inner(Response::ResponseRange(pb::RangeResponse { header: revision, ..Default::default() })),
            inner(Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                deleted: 2,
                ..Default::default()
            })),
        ],
    };
    assert_eq!(printed("simple", false, Answer::Txn(&answer)), "SUCCESS\n\nOK\n\n\n2\n");
    let json = format!(
        "{{\"header\":{JSON_HEADER},\"succeeded\":true,\"responses\":[\
         {{\"Response\":{{\"response_put\":{{\"header\":{{\"revision\":5}}}}}}}},\
         {{\"Response\":{{\"response_range\":{{\"header\":{{\"revision\":5}}}}}}}},\
         {{\"Response\":{{\"response_delete_range\":{{\"deleted\":2}}}}}}]}}\n"
    );
    assert_eq!(printed("json", false, Answer::Txn(&answer)), json);
    let inner = "\"ClusterID\" : 0\n\"MemberID\" : 0\n\"Revision\" : 5\n\"RaftTerm\" : 0\n";
    let none = "\"ClusterID\" : 0\n\"MemberID\" : 0\n\"RaftTerm\" : 0\n";
    let fields = format!(
        "{FIELDS_HEADER}\"Succeeded\" : true\n{inner}{inner}\"More\" : false\n\"Count\" : 0\n{none}\"Deleted\" : 2\n"
    );
    assert_eq!(printed("fields", false, Answer::Txn(&answer)), fields);
    assert_eq!(printed("simple", false, Answer::Txn(&pb::TxnResponse::default())), "FAILURE\n");
}

#[test]
fn events_are_shown_with_what_was_there() {
    let gone = KeyValue { key: "foo".into(), mod_revision: 5, ..Default::default() };
    let events = vec![
        Event { r#type: 0, kv: Some(pair(b"foo", b"b<a>\0")), prev_kv: None },
        Event { r#type: 1, kv: Some(gone), prev_kv: Some(pair(b"foo", b"b<a>\0")) },
    ];
    let answer = pb::WatchResponse { header: header(5), events, ..Default::default() };
    let watch = || Answer::Watch(&answer);
    assert_eq!(printed("simple", false, watch()), "PUT\nfoo\nb<a>\0\nDELETE\nfoo\nb<a>\0\nfoo\n\n");
    let json = format!(
        "{{\"Header\":{JSON_HEADER},\"Events\":[{{\"kv\":{JSON_PAIR}}},\
         {{\"type\":1,\"kv\":{{\"key\":\"Zm9v\",\"mod_revision\":5}},\"prev_kv\":{JSON_PAIR}}}],\
         \"CompactRevision\":0,\"Canceled\":false,\"Created\":false}}\n"
    );
    assert_eq!(printed("json", false, watch()), json);
    let fields = printed("fields", false, watch());
    assert!(
        fields.starts_with(&format!(
            "{FIELDS_HEADER}\"Type\" : PUT\n{FIELDS_PAIR}\"Type\" : DELETE\n\"PrevKey\""
        ))
    );
    let protobuf = Printer::new("protobuf", false).unwrap().render(&watch()).unwrap();
    assert_eq!(pb::WatchResponse::decode(protobuf.as_slice()), Ok(answer.clone()));
}

#[test]
fn leases_are_shown() {
    let members = JSON_HEADER.trim_start_matches('{').trim_end_matches('}');
    let grant = pb::LeaseGrantResponse { header: header(5), id: 31, ttl: 100, error: String::new() };
    assert_eq!(
        printed("simple", false, Answer::Grant(&grant)),
        "lease 000000000000001f granted with TTL(100s)\n"
    );
    let json = format!("{{{members},\"ID\":31,\"TTL\":100,\"Error\":\"\"}}\n");
    assert_eq!(printed("json", false, Answer::Grant(&grant)), json);
    assert_eq!(
        printed("fields", false, Answer::Grant(&grant)),
        format!("{FIELDS_HEADER}\"ID\" : 31\n\"TTL\" : 100\n")
    );
    let protobuf = Printer::new("protobuf", false).unwrap().render(&Answer::Grant(&grant)).unwrap();
    assert_eq!(pb::ResponseHeader::decode(protobuf.as_slice()).ok(), header(5));

    let revoke = pb::LeaseRevokeResponse { header: header(5) };
    assert_eq!(printed("simple", false, Answer::Revoke(31, &revoke)), "lease 000000000000001f revoked\n");
    assert_eq!(
        printed("json", false, Answer::Revoke(31, &revoke)),
        format!("{{\"header\":{JSON_HEADER}}}\n")
    );

    let alive = pb::LeaseKeepAliveResponse { header: header(5), id: 31, ttl: 100 };
    assert_eq!(
        printed("simple", false, Answer::KeepAlive(&alive)),
        "lease 000000000000001f keepalived with TTL(100)\n"
    );
    assert_eq!(
        printed("json", false, Answer::KeepAlive(&alive)),
        format!("{{{members},\"ID\":31,\"TTL\":100}}\n")
    );

    let keys = vec!["a".into(), "b".into()];
    let left = pb::LeaseTimeToLiveResponse { header: header(5), id: 31, ttl: 99, granted_ttl: 100, keys };
    let show = |format, answer, keys| printed(format, false, Answer::TimeToLive { answer, keys });
    let text = "lease 000000000000001f granted with TTL(100s), remaining(99s)";
    assert_eq!(show("simple", &left, false), format!("{text}\n"));
    assert_eq!(show("simple", &left, true), format!("{text}, attached keys([a b])\n"));
    let json =
        format!("{{{members},\"id\":31,\"ttl\":99,\"granted-ttl\":100,\"keys\":[\"YQ==\",\"Yg==\"]}}\n");
    assert_eq!(show("json", &left, true), json);
    let gone = pb::LeaseTimeToLiveResponse { id: 31, ttl: -1, ..Default::default() };
    assert_eq!(show("simple", &gone, true), "lease 000000000000001f already expired\n");
    assert_eq!(show("json", &gone, true), "{\"id\":31,\"ttl\":-1,\"granted-ttl\":0,\"keys\":null}\n");

    let leases = pb::LeaseLeasesResponse { header: header(5), leases: vec![pb::LeaseStatus { id: 31 }] };
    assert_eq!(printed("simple", false, Answer::Leases(&leases)), "found 1 leases\n000000000000001f\n");
    assert_eq!(
        printed("json", false, Answer::Leases(&leases)),
        format!("{{{members},\"leases\":[{{\"id\":31}}]}}\n")
    );
    assert_eq!(
        printed("fields", true, Answer::Leases(&leases)).lines().last(),
        Some("\"ID\" : 000000000000001f")
    );
}

#[test]
fn members_are_shown() {
    let member = pb::Member {
        id: 10276657743932975437,
        name: "a&b".into(),
        peer_ur_ls: vec!["http://p:1".into()],
        client_ur_ls: vec!["http://c:1".into(), "http://c:2".into()],
        is_learner: false,
    };
    let new =
        pb::Member { id: 1, is_learner: true, peer_ur_ls: vec!["http://n:1".into()], ..Default::default() };
    let answer = pb::MemberListResponse { header: header(0), members: vec![member, new] };
    let list = || Answer::MemberList(&answer);
    assert_eq!(
        printed("simple", false, list()),
        "8e9e05c52164694d, started, a&b, http://p:1, http://c:1,http://c:2, false\n1, unstarted, , http://n:1, , true\n"
    );
    assert_eq!(
        printed("json", false, list()),
        "{\"header\":{\"cluster_id\":14841639068965178418,\"member_id\":10276657743932975437,\"raft_term\":2},\"members\":[\
         {\"ID\":10276657743932975437,\"name\":\"a\\u0026b\",\"peerURLs\":[\"http://p:1\"],\
         \"clientURLs\":[\"http://c:1\",\"http://c:2\"]},{\"ID\":1,\"peerURLs\":[\"http://n:1\"],\"isLearner\":true}]}\n"
    );
    assert!(printed("json", true, list()).starts_with(
        "{\"header\":{\"cluster_id\":\"cdf818194e3a8c32\",\"member_id\":\"8e9e05c52164694d\",\"raft_term\":2},\
         \"members\":[{\"ID\":\"8e9e05c52164694d\",\"name\""
    ));
    assert_eq!(
        printed("fields", false, list()),
        "\"ClusterID\" : 14841639068965178418\n\"MemberID\" : 10276657743932975437\n\"RaftTerm\" : 2\n\
         \"ID\" : 10276657743932975437\n\"Name\" : \"a&b\"\n\"PeerURL\" : \"http://p:1\"\n\"ClientURL\" : \"http://c:1\"\n\
         \"ClientURL\" : \"http://c:2\"\n\"IsLearner\" : false\n\n\
         \"ID\" : 1\n\"Name\" : \"\"\n\"PeerURL\" : \"http://n:1\"\n\"IsLearner\" : true\n\n"
    );
    assert_eq!(
        printed("table", false, list()),
        "\
┌──────────────────┬───────────┬──────┬────────────┬───────────────────────┬────────────┐
│        ID        │  STATUS   │ NAME │ PEER ADDRS │     CLIENT ADDRS      │ IS LEARNER │
├──────────────────┼───────────┼──────┼────────────┼───────────────────────┼────────────┤
│ 8e9e05c52164694d │   started │  a&b │ http://p:1 │ http://c:1,http://c:2 │      false │
│                1 │ unstarted │      │ http://n:1 │                       │       true │
└──────────────────┴───────────┴──────┴────────────┴───────────────────────┴────────────┘
"
    );
}

#[test]
fn endpoints_are_shown() {
    let status = pb::StatusResponse {
        header: header(5),
        version: "3.7.1".into(),
        db_size: 20480,
        leader: 10276657743932975437,
        raft_index: 9,
        raft_term: 2,
        raft_applied_index: 8,
        errors: vec!["x <y>".into(), "z".into()],
        db_size_in_use: 16384,
        storage_version: "3.7.0".into(),
        db_size_quota: 2147483648,
        downgrade_info: Some(pb::DowngradeInfo::default()),
        ..Default::default()
    };
    let all = [("127.0.0.1:2379".to_owned(), status)];
    assert_eq!(
        printed("simple", false, Answer::Status(&all)),
        "127.0.0.1:2379, 8e9e05c52164694d, 3.7.1, 3.7.0, 20 kB, 16 kB, 20%, 2.1 GB, true, false, 2, 9, 8, x <y>, z, , false\n"
    );
    let json = format!(
        "[{{\"Endpoint\":\"127.0.0.1:2379\",\"Status\":{{\"header\":{JSON_HEADER},\"version\":\"3.7.1\",\"dbSize\":20480,\
         \"leader\":10276657743932975437,\"raftIndex\":9,\"raftTerm\":2,\"raftAppliedIndex\":8,\
         \"errors\":[\"x \\u003cy\\u003e\",\"z\"],\"dbSizeInUse\":16384,\"storageVersion\":\"3.7.0\",\
         \"dbSizeQuota\":2147483648,\"downgradeInfo\":{{}}}}}}]\n"
    );
    assert_eq!(printed("json", false, Answer::Status(&all)), json);
    let fields = printed("fields", false, Answer::Status(&all));
    assert!(
        fields.contains("\"Errors\" : [x <y> z]\n") && fields.ends_with("\"DowngradeEnabled\" : false\n\n"),
        "{fields}"
    );

    let hash = pb::HashKvResponse { header: header(5), hash: 77, compact_revision: -1, hash_revision: 5 };
    let all = [("e".to_owned(), hash)];
    assert_eq!(printed("simple", false, Answer::HashKv(&all)), "e, 77, 5\n");
    let json = format!(
        "[{{\"Endpoint\":\"e\",\"HashKV\":{{\"header\":{JSON_HEADER},\"hash\":77,\"compact_revision\":-1,\"hash_revision\":5}}}}]\n"
    );
    assert_eq!(printed("json", false, Answer::HashKv(&all)), json);
    assert_eq!(
        printed("fields", false, Answer::HashKv(&all)),
        format!("{FIELDS_HEADER}\"Endpoint\" : \"e\"\n\"Hash\" : 77\n\"HashRevision\" : 5\n\n")
    );
    let refused = Printer::new("protobuf", false).unwrap().render(&Answer::HashKv(&all));
    assert_eq!(refused, Err(Failure::bad_feature("protobuf not supported as output format")));

    let health = |endpoint: &str, error: &str| Health {
        endpoint: endpoint.into(),
        took: "1.5ms".into(),
        error: error.into(),
    };
    let all = [health("a", ""), health("b", "no")];
    let text = "a is healthy: successfully committed proposal: took = 1.5ms\n";
    assert_eq!(printed("simple", false, Answer::Health(&all)), text);
    assert_eq!(
        printed("json", false, Answer::Health(&all)),
        "[{\"endpoint\":\"a\",\"health\":true,\"took\":\"1.5ms\"},{\"endpoint\":\"b\",\"health\":false,\"took\":\"1.5ms\",\"error\":\"no\"}]\n"
    );
    assert_eq!(
        printed("fields", false, Answer::Health(&all[1..])),
        "\"Endpoint\" : \"b\"\n\"Health\" : false\n\"Took\" : 1.5ms\n\"Error\" : no\n\n"
    );
}

#[test]
fn downgrades_in_the_formats_that_etcd_has() {
    let answer = pb::DowngradeResponse { header: header(5), version: "3.7".into() };
    let answer = || Answer::Downgrade { action: "enable", answer: &answer };
    assert_eq!(printed("simple", false, answer()), "Downgrade enable success, cluster version 3.7\n");
    let json = format!("{{\"header\":{JSON_HEADER},\"version\":\"3.7\"}}\n");
    assert_eq!(printed("json", false, answer()), json);
    for format in ["fields", "table"] {
        let refused = Printer::new(format, false).unwrap().render(&answer()).unwrap_err();
        assert_eq!(refused.text, format!("{format} not supported as output format"));
    }
}

#[test]
fn alarms_in_every_format() {
    let alarms = vec![
        pb::AlarmMember { member_id: 13668033151171901709, alarm: 1 },
        pb::AlarmMember { member_id: 0, alarm: 2 },
        pb::AlarmMember { member_id: 3, alarm: 9 },
    ];
    let answer = pb::AlarmResponse { header: header(5), alarms: alarms.clone() };
    let simple = "memberID:13668033151171901709 alarm:NOSPACE \nalarm:CORRUPT \nmemberID:3 alarm:9 \n";
    assert_eq!(printed("simple", false, Answer::Alarm(&answer)), simple);
    let list = r#"[{"memberID":13668033151171901709,"alarm":1},{"alarm":2},{"memberID":3,"alarm":9}]"#;
    let json = format!("{{\"header\":{JSON_HEADER},\"alarms\":{list}}}\n");
    assert_eq!(printed("json", false, Answer::Alarm(&answer)), json);
    let fields = "\"MemberID\" : 13668033151171901709\n\"AlarmType\" : NOSPACE\n\n\"MemberID\" : 0\n\
                  \"AlarmType\" : CORRUPT\n\n\"MemberID\" : 3\n\"AlarmType\" : 9\n\n";
    assert_eq!(printed("fields", false, Answer::Alarm(&answer)), format!("{FIELDS_HEADER}{fields}"));
    // After disarming there is no header.
    let disarmed = pb::AlarmResponse { header: None, alarms };
    assert_eq!(printed("json", false, Answer::Alarm(&disarmed)), format!("{{\"alarms\":{list}}}\n"));
    assert_eq!(printed("fields", false, Answer::Alarm(&disarmed)), fields);
    let none = pb::AlarmResponse::default();
    assert_eq!(printed("simple", false, Answer::Alarm(&none)), "");
    assert_eq!(printed("json", false, Answer::Alarm(&none)), "{}\n");
}

/// As 3.7 prints them, which 3.4 does not in every case.
#[test]
fn changes_of_members() {
    let new = pb::Member { id: 0xab, peer_ur_ls: vec!["http://a:1".into()], ..pb::Member::default() };
    let learner = pb::Member { is_learner: true, ..new.clone() };
    let added =
        pb::MemberAddResponse { header: header(0), member: Some(learner.clone()), members: vec![learner] };
    let voter = pb::MemberAddResponse { member: Some(new.clone()), ..added.clone() };
    let removed = pb::MemberRemoveResponse { header: header(0), members: vec![new.clone()] };
    let updated = pb::MemberUpdateResponse { header: header(0), members: vec![new.clone()] };
    let promoted = pb::MemberPromoteResponse { header: header(0), members: vec![new] };
    let moved = pb::MoveLeaderResponse { header: None };
    let cases = [
        (Answer::MemberAdd(&added), "Member               ab added as learner to cluster cdf818194e3a8c32\n"),
        (Answer::MemberAdd(&voter), "Member               ab added to cluster cdf818194e3a8c32\n"),
        (
            Answer::MemberRemove(0xab, &removed),
            "Member               ab removed from cluster cdf818194e3a8c32\n",
        ),
        (
            Answer::MemberUpdate(0xab, &updated),
            "Member               ab updated in cluster cdf818194e3a8c32\n",
        ),
        (
            Answer::MemberPromote(0xab, &promoted),
            "Member               ab promoted in cluster cdf818194e3a8c32\n",
        ),
        (Answer::MoveLeader(0x1a, 0xab, &moved), "Leadership transferred from 1a to ab\n"),
    ];
    for (answer, text) in cases {
        assert_eq!(Printer::new("simple", false).unwrap().render(&answer).unwrap(), text.as_bytes());
        for format in ["fields", "table"] {
            let refused = Printer::new(format, false).unwrap().render(&answer);
            let expected = Failure::bad_feature(format!("{format} not supported as output format"));
            assert_eq!(refused, Err(expected), "{text}");
        }
    }
    assert_eq!(
        printed("json", false, Answer::MemberRemove(0xab, &removed)),
        "{\"header\":{\"cluster_id\":14841639068965178418,\"member_id\":10276657743932975437,\"raft_term\":2},\
         \"members\":[{\"ID\":171,\"peerURLs\":[\"http://a:1\"]}]}\n"
    );
}
