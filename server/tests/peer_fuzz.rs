//! Requests that were changed blindly, at a port that goes on serving.
#![allow(clippy::unwrap_used)]

mod peers;

use peers::{Node, append, ask, message, raw};
use prost::Message as _;
use trilith_fuzz::{Rng, mutate, run};
use trilith_proto::raftpb::MessageType;
use trilith_server::peer::Remote;

fn request(rng: &mut Rng) -> Vec<u8> {
    let vote = message(MessageType::MsgVote, 2, 1).encode_to_vec();
    let snapshot = message(MessageType::MsgSnap, 2, 1).encode_to_vec();
    let mut with_database = (snapshot.len() as u64).to_be_bytes().to_vec();
    with_database.extend(&snapshot);
    with_database.extend(rng.bytes(3000));
    let (line, body) = match rng.below(9) {
        0 => ("POST /raft", vote),
        1 => ("POST /raft", append(2, 1, 5, 500).encode_to_vec()),
        2 => ("POST /raft/snapshot", with_database),
        3 => ("GET /raft/stream/msgapp/2", vec![]),
        4 => ("GET /raft/stream/message/2", vec![]),
        5 => ("GET /members/hashkv", b"{\"revision\":5}".to_vec()),
        6 => ("POST /leases", vec![8, 7]),
        7 => ("POST /leases/internal", vec![10, 2, 8, 7]),
        _ => ("POST /members/promote/5", vec![]),
    };
    let mut request = format!(
        "{line} HTTP/1.1\r\nHost: x\r\nX-Server-From: 2\r\nX-Server-Version: 3.7.1\r\nX-Min-Cluster-Version: \
         3.0.0\r\nX-Etcd-Cluster-ID: c1\r\nX-Raft-To: 1\r\nX-PeerURLs: http://127.0.0.1:1\r\nConnection: close\r\n"
    )
    .into_bytes();
    if rng.one_in(3) {
        request.extend(format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len()).bytes());
        request.extend(&body);
        request.extend(b"\r\n0\r\n\r\n");
    } else {
        request.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
        request.extend(&body);
    }
    request
}

#[test]
fn no_request_stops_the_port() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut node = runtime.block_on(async {
        let node = Node::new(1);
        node.transport.set_members(vec![Remote { id: 2, urls: vec![] }], [3]);
        node
    });
    let mut answered = 0;
    let rounds = run("requests at the peer port", 3, 1 << 30, |rng| {
        let mut bytes = request(rng);
        if !rng.one_in(8) {
            mutate(&mut bytes, 32, rng);
        }
        runtime.block_on(async {
            let answer = raw(node.address, &bytes).await;
            assert!(
                answer.is_empty() || answer.starts_with(b"HTTP/1."),
                "{:?}",
                String::from_utf8_lossy(&answer)
            );
            answered += u64::from(!answer.is_empty());
            while node.heard.try_recv().is_ok() {}
        });
    });
    assert!(answered > rounds / 4, "{answered} of {rounds} were answered");
    runtime.block_on(async {
        let answer = ask(node.address, "GET", "/version", &[], b"").await;
        assert_eq!(answer.code, 200);
        node.transport.stop().await;
        // What was cut off goes, as soon as the thread that wrote it notices.
        let whole = || peers::files(&node.folder.0).iter().all(|name| name.ends_with(".snap.db"));
        let begin = std::time::Instant::now();
        while !whole() {
            assert!(begin.elapsed() < peers::PATIENCE, "{:?}", peers::files(&node.folder.0));
            tokio::task::yield_now().await;
        }
    });
}
