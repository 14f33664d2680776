//! Transports among themselves: every kind of message, snapshots, members that come, move and go.
#![allow(clippy::unwrap_used)]

mod peers;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peers::{
    Bound, CLUSTER, Folder, Node, PATIENCE, append, block_on, connect, files, message, snapshot, store,
    url_of,
};
use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, Open};
use trilith_engine::bolt::{Export, Import, import};
use trilith_proto::raftpb::{Message, MessageType};
use trilith_server::apply::members::Member;
use trilith_server::config::url::Url;
use trilith_server::core::PeerEvent;
use trilith_server::peer::{
    Listener, Options, PeerError, Remote, Transport, fetch_downgrade_enabled, fetch_members, fetch_version,
};
use trilith_server::tls::Connector;

/// R2, but for MsgSnap, which has a way of its own.
const KINDS: [i32; 13] = [2, 3, 4, 5, 6, 8, 9, 13, 14, 15, 16, 17, 18];

fn of_kind(kind: i32, from: u64, to: u64) -> Message {
    let mut full = append(from, to, 40, 100);
    full.r#type = Some(kind);
    full.context = Some(Bytes::from_static(b"context"));
    full.reject = Some(true);
    full.reject_hint = Some(kind as u64);
    full
}

#[test]
fn all_kinds_of_messages_reach_everybody() {
    block_on(async {
        let mut nodes: Vec<Node> = (1..=3).map(Node::new).collect();
        connect(&mut nodes).await;
        for from in &nodes {
            let all = nodes.iter().filter(|to| to.id != from.id);
            let sent = all.flat_map(|to| KINDS.map(|kind| of_kind(kind, from.id, to.id)));
            from.transport.send(sent.collect());
        }
        for node in &mut nodes {
            let mut heard = Vec::new();
            while heard.len() < 2 * KINDS.len() {
                heard.push(node.message().await);
            }
            for from in (1..=3).filter(|from| *from != node.id) {
                let mut mine: Vec<_> = heard.iter().filter(|m| m.from() == from).cloned().collect();
                mine.sort_by_key(|message| message.r#type);
                assert_eq!(mine, KINDS.map(|kind| of_kind(kind, from, node.id)));
            }
        }
        for node in &nodes {
            node.transport.stop().await;
        }
    });
}

#[test]
fn each_stream_keeps_its_order() {
    block_on(async {
        let mut nodes = [Node::new(1), Node::new(2)];
        connect(&mut nodes).await;
        let [a, b] = &mut nodes;
        for index in 0..3000 {
            let heartbeat = Message { commit: Some(index), ..message(MessageType::MsgHeartbeat, 1, 2) };
            a.transport.send(vec![append(1, 2, index, 300), heartbeat]);
        }
        let (mut appends, mut heartbeats) = (0, 0);
        while appends < 3000 || heartbeats < 3000 {
            let heard = b.message().await;
            if heard.r#type() == MessageType::MsgApp {
                assert_eq!(heard, append(1, 2, appends, 300));
                appends += 1;
            } else {
                assert_eq!(heard.commit(), heartbeats);
                heartbeats += 1;
            }
        }
    });
}

#[test]
fn h3_j6_without_streams_messages_are_posted() {
    block_on(async {
        let (a, mut b) = (Node::new(1), Node::new(2));
        a.transport.add_remotes(vec![b.remote()]);
        a.transport.send(KINDS.map(|kind| of_kind(kind, 1, 2)).to_vec());
        let mut heard = Vec::new();
        while heard.len() < KINDS.len() {
            heard.push(b.message().await);
        }
        heard.sort_by_key(|message| message.r#type);
        assert_eq!(heard, KINDS.map(|kind| of_kind(kind, 1, 2)));
        // The receiver knows nobody, but was told by the request where its sender is.
        let mut a = a;
        b.transport.send(vec![message(MessageType::MsgAppResp, 2, 1)]);
        assert_eq!(a.message().await, message(MessageType::MsgAppResp, 2, 1));
    });
}

#[test]
fn members_come_move_and_go() {
    block_on(async {
        let (mut a, mut b) = (Node::new(1), Node::new(2));
        let both = [a.remote(), b.remote()];
        assert_eq!(a.transport.active_since(2), None);
        // The first of its URLs leads nowhere.
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let urls = vec![url_of(dead), url_of(b.address)];
        a.transport.set_members(vec![both[0].clone(), Remote { id: 2, urls }], []);
        b.transport.set_members(both.to_vec(), []);
        a.is_read_by(&mut b).await;
        b.is_read_by(&mut a).await;
        while a.transport.active_since(2).is_none() {
            tokio::task::yield_now().await;
        }

        // It moves: a new process on another port.
        b.transport.stop().await;
        a.hears_of(PeerEvent::Unreachable(2)).await;
        drop(b);
        let mut b = Node::new(2);
        b.transport.set_members(both.to_vec(), []);
        a.transport.set_members(vec![both[0].clone(), b.remote()], []);
        a.is_read_by(&mut b).await;
        b.is_read_by(&mut a).await;
        a.transport.send(vec![append(1, 2, 1, 10)]);
        assert_eq!(b.message().await, append(1, 2, 1, 10));

        // It is removed: its streams end, and it hears why.
        a.transport.set_members(vec![a.remote()], [2]);
        b.hears_of(PeerEvent::ToldRemoved).await;
        assert!(a.transport.active_since(2).is_none() && !a.transport.is_read_by(2));
        a.transport.send(vec![append(1, 2, 2, 10)]);
    });
}

#[test]
fn p3_p4_a_removed_sender_is_told_by_the_answer_to_its_post() {
    block_on(async {
        let (mut a, b) = (Node::new(1), Node::new(2));
        b.transport.set_members(vec![], [1]);
        a.transport.add_remotes(vec![b.remote()]);
        a.transport.send(vec![message(MessageType::MsgVote, 1, 2)]);
        a.hears_of(PeerEvent::ToldRemoved).await;
    });
}

#[test]
fn what_cannot_be_delivered_is_reported() {
    block_on(async {
        let mut a = Node::new(1);
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        a.transport.add_remotes(vec![Remote { id: 2, urls: vec![url_of(dead)] }]);
        a.transport.send(vec![message(MessageType::MsgVote, 1, 2)]);
        a.hears_of(PeerEvent::Unreachable(2)).await;
        // No member at all, and URLs that make no sense.
        for urls in [vec![], vec!["nonsense".to_owned()], vec!["https://127.0.0.1:1".to_owned()]] {
            a.transport.set_members(vec![Remote { id: 3, urls }], []);
            a.transport.send(vec![message(MessageType::MsgVote, 1, 3)]);
            a.hears_of(PeerEvent::Unreachable(3)).await;
        }
        a.transport.send(vec![message(MessageType::MsgVote, 1, 99)]);
        // A snapshot without a store, one for nobody, one to nowhere.
        a.transport.send(vec![message(MessageType::MsgSnap, 1, 3)]);
        a.hears_of(PeerEvent::SnapshotSent { to: 3, delivered: false }).await;
        let root = store(1).reader().root();
        for to in [99, 2] {
            a.transport.add_remotes(vec![Remote { id: 2, urls: vec![url_of(dead)] }]);
            a.transport.send_snapshot(snapshot(1, to, 5), root.clone());
            a.hears_of(PeerEvent::SnapshotSent { to, delivered: false }).await;
        }
    });
}

#[test]
fn n1_n4_n5_a_snapshot_goes_over_whole() {
    block_on(async {
        let mut nodes = [Node::new(1), Node::new(2)];
        connect(&mut nodes).await;
        let [a, b] = &mut nodes;
        let built = store(300);
        a.transport.send_snapshot(snapshot(1, 2, 0x1f), built.reader().root());
        assert_eq!(b.message().await, snapshot(1, 2, 0x1f));
        a.hears_of(PeerEvent::SnapshotSent { to: 2, delivered: true }).await;
        assert_eq!(files(&b.folder.0), ["000000000000001f.snap.db"]);

        // The file is what a snapshot of that root is, but for the hash at its end.
        let mut export = Export::new(built.reader().root()).unwrap();
        let mut expected = Vec::new();
        while let Some(chunk) = export.next_chunk().unwrap() {
            expected.extend_from_slice(&chunk);
        }
        let read = std::fs::read(b.folder.0.join("000000000000001f.snap.db")).unwrap();
        assert!(read == expected[..expected.len() - 32] && read.len() > 6_000_000);
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("d")).unwrap();
        disk.open(Path::new("d/snap"), Open::CreateNew).unwrap().write_all_at(&read, 0).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let options = Import {
            disk,
            from: "d/snap".into(),
            to: "d/db".into(),
            skip_hash_check: true,
            bump_revision: 0,
            memory: 0,
        };
        import(&options, &mut |_, _| ()).unwrap();
    });
}

#[test]
fn what_a_process_did_not_receive_to_the_end_is_removed_by_the_next() {
    block_on(async {
        let folder = Folder::new();
        for name in ["0000000000000005.snap.db.3.part", "0000000000000005.snap.db", "db", "db.part"] {
            std::fs::write(folder.0.join(name), b"x").unwrap();
        }
        let listener = Listener::bind(&[Url::parse("http://127.0.0.1:0").unwrap()], None).unwrap();
        let node = Node::new(9);
        let options = Options::new(1, CLUSTER, vec![], folder.0.clone());
        let _transport = Transport::start(options, listener, node.core.clone());
        assert_eq!(files(&folder.0), ["0000000000000005.snap.db", "db", "db.part"]);
    });
}

#[test]
fn unix_sockets_serve_as_well() {
    block_on(async {
        let folder = Folder::new();
        let url = format!("unix://{}/peer.sock", folder.0.display());
        let mut b = Node::new(2);
        // A socket that an earlier process left is no obstacle.
        drop(std::os::unix::net::UnixListener::bind(folder.0.join("peer.sock")).unwrap());
        let listener = Listener::bind(&[Url::parse(&url).unwrap()], None).unwrap();
        let options = Options::new(3, CLUSTER, vec![url.clone()], folder.0.join("snap"));
        let c = Transport::start(options, listener, b.core.clone());
        let mut a = Node::new(1);
        a.transport.set_members(vec![Remote { id: 3, urls: vec![url.clone()] }], []);
        a.transport.send(vec![message(MessageType::MsgVote, 1, 3)]);
        assert_eq!(b.message().await, message(MessageType::MsgVote, 1, 3));
        // It answers where the request said that the sender is.
        c.send(vec![message(MessageType::MsgVoteResp, 3, 1)]);
        assert_eq!(a.message().await, message(MessageType::MsgVoteResp, 3, 1));
        assert_eq!(fetch_version(&dialer(), &url, PATIENCE).await.unwrap().etcdserver, "3.7.1");
    });
}

/// Knows no certificates.
fn dialer() -> Connector {
    Connector::default()
}

#[test]
fn addresses_that_are_taken_are_refused_by_name() {
    block_on(async {
        let error = Listener::bind(&[Url::parse("https://127.0.0.1:0").unwrap()], None).unwrap_err();
        let text = "cannot listen on TLS for https://127.0.0.1:0: KeyFile and CertFile are not presented";
        assert_eq!(error.to_string(), text);
        let bound = Bound::new(1);
        let url = url_of(bound.address);
        let error = Listener::bind(&[Url::parse(&url).unwrap()], None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("listen tcp {}: bind: ", bound.address)), "{error}");
        // A file of another kind is not removed.
        let folder = Folder::new();
        let path = folder.0.join("precious");
        std::fs::write(&path, "x").unwrap();
        let url = Url::parse(&format!("unix://{}", path.display())).unwrap();
        let error = Listener::bind(&[url], None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("listen unix {}: bind: ", path.display())), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    });
}

fn member(id: u64) -> Member {
    Member { id, peer_urls: vec![format!("http://m{id}:2380")], name: format!("m{id}"), ..Member::default() }
}

#[test]
fn j1_j4_a_joining_member_asks() {
    block_on(async {
        let (a, empty) = (Node::new(1), Node::new(2));
        let members = vec![member(1), member(u64::MAX)];
        *a.core.members.lock().unwrap() = members.clone();
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let urls = [url_of(dead), url_of(empty.address), url_of(a.address)];
        assert_eq!(fetch_members(&dialer(), &urls, PATIENCE).await.unwrap(), (CLUSTER, members));
        let error = fetch_members(&dialer(), &urls[..2], PATIENCE).await.unwrap_err();
        assert!(matches!(error, PeerError::Answer { .. }), "{error}");
        assert!(matches!(fetch_members(&dialer(), &[], PATIENCE).await, Err(PeerError::NoUrls)));
        let versions = fetch_version(&dialer(), &urls[2], PATIENCE).await.unwrap();
        assert_eq!((&*versions.etcdcluster, &*versions.storage), ("3.7.0", "3.7.0"));
        assert!(matches!(fetch_version(&dialer(), &urls[0], PATIENCE).await, Err(PeerError::Connect { .. })));
        assert!(fetch_downgrade_enabled(&dialer(), &urls, PATIENCE).await.unwrap());
        // Somebody who accepts and says nothing costs the time that was given, and no more.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = url_of(silent.local_addr().unwrap());
        let error = fetch_version(&dialer(), &url, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, PeerError::Timeout { .. }), "{error}");
    });
}

#[test]
fn l7_l8_m9_the_leader_is_asked() {
    block_on(async {
        let (a, b) = (Node::new(1), Node::new(2));
        *b.core.members.lock().unwrap() = vec![member(5)];
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let urls = [url_of(dead), url_of(b.address)];
        let refusal = |error| match error {
            PeerError::Refused { code, text, .. } => (code, text),
            other => panic!("{other}"),
        };
        let t = &a.transport;
        assert_eq!(t.lease_keep_alive(&urls, 7, PATIENCE).await.unwrap(), 60);
        let error = t.lease_keep_alive(&urls, 8, PATIENCE).await.unwrap_err();
        assert_eq!(refusal(error), (404, "lease not found".to_owned()));
        let error = t.lease_keep_alive(&urls, 9, PATIENCE).await.unwrap_err();
        assert_eq!(refusal(error), (400, "not a primary lessor".to_owned()));
        let error = t.lease_keep_alive(&urls[..1], 7, Duration::from_millis(200)).await.unwrap_err();
        assert!(matches!(error, PeerError::Timeout { .. } | PeerError::Connect { .. } | PeerError::NoUrls));
        let found = t.lease_time_to_live(&urls, 7, true, PATIENCE).await.unwrap();
        let found = found.lease_time_to_live_response.unwrap();
        assert_eq!((found.id, found.ttl, found.granted_ttl, found.keys.len()), (7, 33, 60, 1));
        assert_eq!(refusal(t.lease_time_to_live(&urls, 8, true, PATIENCE).await.unwrap_err()).0, 404);
        assert_eq!(t.promote(&urls, 5, Some("secret"), PATIENCE).await.unwrap(), [member(5)]);
        let error = t.promote(&urls, 5, None, PATIENCE).await.unwrap_err();
        assert_eq!(refusal(error), (404, "membership: ID not found".to_owned()));
    });
}
