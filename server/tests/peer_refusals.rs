//! What the peer port answers: paths, methods, checks and texts, row by row.
#![allow(clippy::unwrap_used)]

mod peers;

use std::sync::atomic::Ordering;

use peers::{Answer, Node, Proxy, ask, block_on, files, message};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use trilith_proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest};
use trilith_proto::leasepb::{LeaseInternalRequest, LeaseInternalResponse};
use trilith_proto::raftpb::{Message, MessageType, Snapshot, SnapshotMetadata};
use trilith_server::apply::members::Member;
use trilith_server::core::PeerEvent;

const FROM: (&str, &str) = ("X-Server-From", "2");
const VERSION: (&str, &str) = ("X-Server-Version", "3.7.1");
const LEAST: (&str, &str) = ("X-Min-Cluster-Version", "3.0.0");
const ID: (&str, &str) = ("X-Etcd-Cluster-ID", "c1");
const TO: (&str, &str) = ("X-Raft-To", "1");
const GOOD: [(&str, &str); 5] = [FROM, VERSION, LEAST, ID, TO];

/// The good headers but for one, which is another or none.
fn but<'h>(name: &'h str, value: Option<&'h str>) -> Vec<(&'h str, &'h str)> {
    let mut headers: Vec<_> = GOOD.into_iter().filter(|(other, _)| *other != name).collect();
    headers.extend(value.map(|value| (name, value)));
    headers
}

async fn node() -> Node {
    let node = Node::new(1);
    let nowhere = Proxy::new(node.address).await;
    node.transport.set_members(vec![nowhere.remote(2)], [3]);
    *node.core.members.lock().unwrap() =
        vec![Member { id: 1, peer_urls: vec!["http://a:1".into()], name: "a".into(), ..Member::default() }];
    node
}

fn is(answer: &Answer, code: u16, body: &str, what: &str) {
    assert_eq!((answer.code, answer.text().as_str()), (code, body), "{what}");
    if code >= 400 && !body.starts_with('{') {
        assert_eq!(answer.header("Content-Type"), Some("text/plain; charset=utf-8"), "{what}");
        assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"), "{what}");
    }
}

#[test]
fn paths_and_methods() {
    block_on(async {
        let node = node().await;
        for path in ["/", "/raft/", "/raft/x", "/members/", "/leases/", "/leases/x", "/version/", "/health"] {
            is(&ask(node.address, "GET", path, &[], b"").await, 404, "404 page not found\n", path);
        }
        for (path, wrong, allow) in [
            ("/raft", "GET", Some("POST")),
            ("/raft/snapshot", "PUT", Some("POST")),
            ("/raft/stream/msgapp/2", "POST", Some("GET")),
            ("/members", "POST", Some("GET")),
            ("/members/promote/1", "GET", Some("POST")),
            ("/members/hashkv", "POST", Some("GET")),
            ("/version", "POST", Some("GET")),
            ("/downgrade/enabled", "DELETE", Some("GET")),
            ("/leases", "GET", None),
            ("/leases/internal", "GET", None),
        ] {
            let answer = ask(node.address, wrong, path, &[], b"").await;
            is(&answer, 405, "Method Not Allowed\n", path);
            assert_eq!(answer.header("Allow"), allow, "{path}");
            assert_eq!(answer.header("X-Etcd-Cluster-Id"), None, "{path}");
        }
    });
}

#[test]
fn h1_h2_h5_versions_and_cluster_ids() {
    block_on(async {
        let mut node = node().await;
        let vote = message(MessageType::MsgVote, 2, 1).encode_to_vec();
        for (method, path) in
            [("POST", "/raft"), ("POST", "/raft/snapshot"), ("GET", "/raft/stream/message/2")]
        {
            for (headers, text) in [
                (vec![], "incompatible version\n"),
                (but("X-Server-Version", None), "incompatible version\n"),
                (but("X-Server-Version", Some("2.3.8")), "incompatible version\n"),
                (but("X-Server-Version", Some("nonsense")), "incompatible version\n"),
                (but("X-Min-Cluster-Version", Some("3.8.0")), "incompatible version\n"),
                (but("X-Min-Cluster-Version", Some("x")), "incompatible version\n"),
                (but("X-Etcd-Cluster-ID", Some("c2")), "cluster ID mismatch\n"),
                (but("X-Etcd-Cluster-ID", Some("0")), "cluster ID mismatch\n"),
                (but("X-Etcd-Cluster-ID", None), "cluster ID mismatch\n"),
            ] {
                let answer = ask(node.address, method, path, &headers, &vote).await;
                is(&answer, 412, text, &format!("{path} {headers:?}"));
                assert_eq!(answer.header("X-Etcd-Cluster-Id"), Some("c1"));
                let version = answer.header("X-Server-Version");
                assert_eq!(version, path.starts_with("/raft/stream").then_some("3.7.1"));
            }
        }
        // The oldest that will do, and a newer one than this member.
        for version in ["3.0.0", "3.4.23", "4.1.0"] {
            let headers = but("X-Server-Version", Some(version));
            is(&ask(node.address, "POST", "/raft", &headers, &vote).await, 204, "", version);
            assert_eq!(node.message().await, message(MessageType::MsgVote, 2, 1));
        }
    });
}

#[test]
fn s3_streams_are_refused_in_this_order() {
    block_on(async {
        let node = node().await;
        for (path, headers, code, text) in [
            ("/raft/stream/other/2", GOOD.to_vec(), 404, "invalid path\n"),
            ("/raft/stream/2", GOOD.to_vec(), 404, "invalid path\n"),
            ("/raft/stream/", GOOD.to_vec(), 404, "invalid path\n"),
            ("/raft/stream/msgapp/2/2", GOOD.to_vec(), 404, "invalid path\n"),
            ("/raft/stream/msgapp/xyz", GOOD.to_vec(), 404, "invalid from\n"),
            ("/raft/stream/message/", GOOD.to_vec(), 404, "invalid from\n"),
            ("/raft/stream/message/11111111111111111", GOOD.to_vec(), 404, "invalid from\n"),
            ("/raft/stream/msgapp/3", GOOD.to_vec(), 410, "removed member\n"),
            ("/raft/stream/msgapp/3", but("X-Raft-To", Some("9")), 410, "removed member\n"),
            ("/raft/stream/msgapp/4", GOOD.to_vec(), 404, "error sender not found\n"),
            ("/raft/stream/msgapp/4", but("X-Raft-To", Some("9")), 404, "error sender not found\n"),
            ("/raft/stream/msgapp/2", but("X-Raft-To", Some("9")), 412, "to field mismatch\n"),
            ("/raft/stream/msgapp/2", but("X-Raft-To", None), 412, "to field mismatch\n"),
        ] {
            let answer = ask(node.address, "GET", path, &headers, b"").await;
            is(&answer, code, text, path);
            assert_eq!(answer.header("X-Etcd-Cluster-Id"), Some("c1"), "{path}");
            assert_eq!(answer.header("X-Server-Version"), Some("3.7.1"), "{path}");
        }
    });
}

/// Begins to read a stream; the socket after its head.
async fn stream(node: &Node, kind: &str) -> TcpStream {
    let mut socket = TcpStream::connect(node.address).await.unwrap();
    let mut request = format!("GET /raft/stream/{kind}/2 HTTP/1.1\r\nHost: x\r\n");
    for (name, value) in GOOD {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    socket.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    let answer = peers::parse(&head);
    assert_eq!(answer.code, 200);
    assert_eq!(answer.header("Transfer-Encoding"), Some("chunked"));
    assert_eq!(answer.header("X-Server-Version"), Some("3.7.1"));
    assert_eq!(answer.header("X-Etcd-Cluster-Id"), Some("c1"));
    socket
}

#[test]
fn s2_s5_a_stream_begins_at_once_keeps_alive_and_is_replaced_by_a_newer_one() {
    block_on(async {
        let mut node = node().await;
        let mut appends = stream(&node, "msgapp").await;
        let mut first = stream(&node, "message").await;
        let begin = std::time::Instant::now();
        for _ in 0..2 {
            let mut chunk = [0; 6];
            appends.read_exact(&mut chunk).await.unwrap();
            assert_eq!(&chunk, b"1\r\n\0\r\n");
            let mut chunk = [0; 15];
            first.read_exact(&mut chunk).await.unwrap();
            assert_eq!(&chunk, b"A\r\n\0\0\0\0\0\0\0\x02\x08\x08\r\n");
        }
        assert!(begin.elapsed().as_secs() < 5, "T3");
        let mut second = stream(&node, "message").await;
        let mut rest = Vec::new();
        first.read_to_end(&mut rest).await.unwrap_or_default();
        let mut chunk = [0; 15];
        second.read_exact(&mut chunk).await.unwrap();
        assert!(node.transport.is_read_by(2));
        drop(second);
        node.hears_of(PeerEvent::Unreachable(2)).await;
        while node.transport.is_read_by(2) {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn p1_p2_p3_posts() {
    block_on(async {
        let mut node = node().await;
        let address = node.address;
        let post = |body: Vec<u8>| async move { ask(address, "POST", "/raft", &GOOD, &body).await };
        is(&post(vec![0xff, 0xff]).await, 400, "error unmarshalling raft message\n", "broken");
        let removed = message(MessageType::MsgVote, 3, 1).encode_to_vec();
        let text = "{\"message\":\"cannot process message from removed member\"}";
        let answer = post(removed).await;
        is(&answer, 403, text, "removed");
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        let other = message(MessageType::MsgVote, 2, 9).encode_to_vec();
        let text = "{\"message\":\"cannot process message to mismatch member\"}";
        is(&post(other).await, 403, text, "another member's");
        let snapshot = message(MessageType::MsgSnap, 2, 1).encode_to_vec();
        is(&post(snapshot).await, 500, "error processing raft message\n", "a snapshot without its database");
        let vote = message(MessageType::MsgVote, 2, 1).encode_to_vec();
        node.core.full.store(true, Ordering::Relaxed);
        let answer = post(vote.clone()).await;
        is(&answer, 500, "error processing raft message\n", "P4: overflow is no 403");
        node.core.full.store(false, Ordering::Relaxed);
        let answer = post(vote).await;
        is(&answer, 204, "", "good");
        assert_eq!(answer.header("X-Etcd-Cluster-Id"), Some("c1"));
        assert_eq!(node.message().await, message(MessageType::MsgVote, 2, 1));
    });
}

fn snapshot_body(message: &Message, database: &[u8]) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let mut body = (bytes.len() as u64).to_be_bytes().to_vec();
    body.extend(bytes);
    body.extend(database);
    body
}

#[test]
fn n1_n4_snapshots() {
    block_on(async {
        let mut node = node().await;
        let metadata = SnapshotMetadata { index: Some(0xabc), ..SnapshotMetadata::default() };
        let snapshot = Some(Snapshot { data: None, metadata: Some(metadata) });
        let good = Message { snapshot, ..message(MessageType::MsgSnap, 2, 1) };
        let address = node.address;
        let post = |body: Vec<u8>| async move { ask(address, "POST", "/raft/snapshot", &GOOD, &body).await };
        for (body, text) in [
            (vec![], "failed to decode raft message (unexpected EOF)\n"),
            (vec![0; 7], "failed to decode raft message (unexpected EOF)\n"),
            (snapshot_body(&good, b"")[..20].to_vec(), "failed to decode raft message (unexpected EOF)\n"),
            (
                vec![0xff; 8],
                "failed to decode raft message (a message of 18446744073709551615 bytes is longer than 67108864)\n",
            ),
            (snapshot_body(&message(MessageType::MsgApp, 2, 1), b""), "wrong raft message type\n"),
        ] {
            is(&post(body).await, 400, text, text);
        }
        let broken = post(vec![0, 0, 0, 0, 0, 0, 0, 1, 0xff]).await;
        assert!(broken.code == 400 && broken.text().starts_with("failed to decode raft message ("));
        let other = Message { to: Some(7), ..good.clone() };
        is(
            &post(snapshot_body(&other, b"x")).await,
            403,
            "{\"message\":\"cannot process message to mismatch member\"}",
            "another member's",
        );
        node.core.full.store(true, Ordering::Relaxed);
        let answer = post(snapshot_body(&good, b"x")).await;
        let text = "failed to process raft message (the queue of peers' messages is full)\n";
        is(&answer, 500, text, "overflow");
        node.core.full.store(false, Ordering::Relaxed);
        assert!(files(&node.folder.0).is_empty(), "nobody will ever ask for it");
        let database = vec![7; 300_000];
        is(&post(snapshot_body(&good, &database)).await, 204, "", "good");
        assert_eq!(node.message().await, good);
        assert_eq!(files(&node.folder.0), ["0000000000000abc.snap.db"]);
        assert_eq!(std::fs::read(node.folder.0.join("0000000000000abc.snap.db")).unwrap(), database);
        // No folder, no file.
        std::fs::remove_dir_all(&node.folder.0).unwrap();
        let answer = post(snapshot_body(&good, &database)).await;
        assert!(answer.code == 500 && answer.text().starts_with("failed to save KV snapshot ("));
    });
}

#[test]
fn o1_o3_what_members_tell_of_themselves() {
    block_on(async {
        let node = node().await;
        let get = |path: &'static str| async move { ask(node.address, "GET", path, &[], b"").await };
        let answer = get("/raft/probing").await;
        let text = answer.text();
        assert_eq!(answer.header("Content-Type"), Some("text/plain; charset=utf-8"));
        assert!(text.starts_with("{\"OK\":true,\"Now\":\"20") && text.ends_with("Z\"}\n"), "{text}");
        let answer = get("/version").await;
        let text = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
        is(&answer, 200, text, "/version");
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        let answer = get("/members").await;
        is(&answer, 200, "[{\"id\":1,\"peerURLs\":[\"http://a:1\"],\"name\":\"a\"}]\n", "/members");
        assert_eq!(answer.header("X-Etcd-Cluster-Id"), Some("c1"));
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        let answer = get("/downgrade/enabled").await;
        is(&answer, 200, "true", "/downgrade/enabled");
        assert_eq!(answer.header("X-Etcd-Cluster-Id"), Some("c1"));
    });
}

#[test]
fn x8_hashes() {
    block_on(async {
        let node = node().await;
        let get = |headers: &'static [(&'static str, &'static str)], body: &'static [u8]| async move {
            ask(node.address, "GET", "/members/hashkv", headers, body).await
        };
        let text = r#"{"header":{"revision":12},"hash":77,"compact_revision":4,"hash_revision":12}"#;
        is(&get(&[], b"{\"revision\":0}").await, 200, text, "any cluster");
        is(&get(&[ID], b"{}").await, 200, text, "this cluster");
        let answer = get(&[("X-Etcd-Cluster-ID", "c2")], b"{}").await;
        is(&answer, 412, "cluster ID mismatch\n", "another cluster");
        is(&get(&[], b"x").await, 400, "error unmarshalling request\n", "no JSON");
        let text = "mvcc: required revision has been compacted\n";
        is(&get(&[], b"{\"revision\":3}").await, 400, text, "compacted");
        let text = "mvcc: required revision is a future revision\n";
        is(&get(&[], b"{\"revision\":13}").await, 400, text, "future");
    });
}

#[test]
fn m9_promotions() {
    block_on(async {
        let node = node().await;
        for (id, code, text) in [
            ("abc", 404, "member abc not found in cluster\n"),
            ("1/2", 404, "member 1/2 not found in cluster\n"),
            ("", 404, "member  not found in cluster\n"),
            ("1", 404, "membership: ID not found\n"),
            ("6", 412, "membership: can only promote a learner member\n"),
            ("7", 412, "etcdserver: can only promote a learner member which is in sync with leader\n"),
            ("8", 500, "{\"message\":\"Internal Server Error\"}"),
        ] {
            let answer = ask(node.address, "POST", &format!("/members/promote/{id}"), &[], b"").await;
            is(&answer, code, text, id);
            assert_eq!(answer.header("X-Etcd-Cluster-Id"), Some("c1"));
        }
        let answer =
            ask(node.address, "POST", "/members/promote/5", &[("Authorization", "secret")], b"").await;
        is(&answer, 200, "[{\"id\":1,\"peerURLs\":[\"http://a:1\"],\"name\":\"a\"}]\n", "promoted");
    });
}

#[test]
fn l7_l8_o2_leases() {
    block_on(async {
        let node = node().await;
        let post = |path: &'static str, body: Vec<u8>| async move {
            ask(node.address, "POST", path, &[], &body).await
        };
        let renew = |id| LeaseKeepAliveRequest { id }.encode_to_vec();
        let answer = post("/leases", renew(7)).await;
        assert_eq!(answer.header("Content-Type"), Some("application/protobuf"));
        let renewed = LeaseKeepAliveResponse::decode(&*answer.body).unwrap();
        assert_eq!(renewed, LeaseKeepAliveResponse { header: None, id: 7, ttl: 60 });
        let late = "waiting for node to catch up its applied index has timed out\n";
        is(&post("/leases", renew(8)).await, 404, "lease not found\n", "missing");
        is(&post("/leases", vec![]).await, 404, "lease not found\n", "none");
        is(&post("/leases", renew(9)).await, 400, "not a primary lessor\n", "no leader");
        is(&post("/leases", renew(10)).await, 408, late, "late");
        is(&post("/leases", vec![0xff]).await, 400, "error unmarshalling request\n", "broken");
        is(&post("/leases", vec![0; 65 << 10]).await, 413, "request body too large\n", "long");
        let ask_for = |id| {
            let request = Some(LeaseTimeToLiveRequest { id, keys: true });
            LeaseInternalRequest { lease_time_to_live_request: request }.encode_to_vec()
        };
        let answer = post("/leases/internal", ask_for(7)).await;
        let found = LeaseInternalResponse::decode(&*answer.body).unwrap();
        let found = found.lease_time_to_live_response.unwrap();
        assert_eq!((found.id, found.ttl, found.granted_ttl, found.keys.len()), (7, 33, 60, 1));
        assert!(found.header.is_some());
        is(&post("/leases/internal", ask_for(8)).await, 404, "lease not found\n", "missing");
        is(&post("/leases/internal", ask_for(9)).await, 500, "not a primary lessor\n", "no leader");
        is(&post("/leases/internal", ask_for(10)).await, 408, late, "late");
        is(&post("/leases/internal", vec![]).await, 400, "error unmarshalling request\n", "nothing asked");
    });
}
