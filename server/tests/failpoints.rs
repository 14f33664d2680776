//! Failpoints set over HTTP in a member that runs, and what comes of them. Built with the feature `failpoints` only.

#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use trilith_proto::etcdserverpb::watch_request::RequestUnion;
use trilith_proto::etcdserverpb::{
    RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};

use support::{Client, Folder, Member, block_on, spawn_with};

const PAUSE: Duration = Duration::from_millis(400);

struct Points(SocketAddr);

impl Points {
    /// Status and body.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.0).unwrap();
        let len = body.len();
        write!(socket, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn set(&self, name: &str, term: &str) {
        assert_eq!(self.ask("PUT", &format!("/{name}"), term), (204, String::new()), "{name}={term}");
    }

    fn count(&self, name: &str) -> String {
        let (code, text) = self.ask("GET", &format!("/{name}/count"), "");
        assert_eq!(code, 200, "{name}");
        text
    }
}

fn start(folder: &Folder, flags: &[&str], terms: &str) -> (Member, Points) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let http = address.to_string();
    let member = spawn_with(folder, flags, &[("GOFAIL_HTTP", &http), ("GOFAIL_FAILPOINTS", terms)]);
    member.wait_for("ready to serve client requests");
    (member, Points(address))
}

async fn value(client: &Client, key: &str) -> Option<String> {
    let request = RangeRequest { key: key.to_owned().into(), ..Default::default() };
    let answer: RangeResponse = client.call("/etcdserverpb.KV/Range", &request).await;
    answer.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

#[test]
fn points_are_listed_set_and_off_again() {
    let folder = Folder::new("failpoints-list");
    let (member, points) = start(&folder, &[], "afterCommit=off;walAfterSync=1*print");
    let (code, list) = points.ask("GET", "/", "");
    assert_eq!(code, 200);
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines.is_sorted() && lines.len() > 20, "{list}");
    assert!(lines.contains(&"afterCommit=off") && lines.contains(&"walBeforeSync="), "{list}");
    assert_eq!(points.ask("GET", "/afterCommit", ""), (200, "off\n".to_owned()));
    assert_eq!(points.count("walAfterSync"), "1");
    points.set("walBeforeSync", "50%sleep(\"1ms\")->off");
    assert_eq!(points.ask("GET", "/walBeforeSync", ""), (200, "50%sleep(\"1ms\")->off\n".to_owned()));
    assert_eq!(points.ask("DELETE", "/walBeforeSync", "").0, 204);
    assert_eq!(points.ask("GET", "/walBeforeSync", ""), (200, "\n".to_owned()));
    assert_eq!(points.ask("PUT", "/failpoints", "beforeCommit=print;afterCommit=print").0, 204);
    assert_eq!(points.ask("GET", "/beforeCommit", "").1, "print\n");
    for (method, path, body, code) in [
        ("PUT", "/nope", "print", 404),
        ("GET", "/nope", "", 404),
        ("GET", "/nope/count", "", 404),
        ("DELETE", "/nope", "", 404),
        ("PUT", "/beforeCommit", "nope", 400),
        ("PUT", "/failpoints", "nope=print", 400),
        ("POST", "/beforeCommit", "print", 405),
        ("GET", "nope", "", 400),
    ] {
        assert_eq!(points.ask(method, path, body).0, code, "{method} {path}");
    }
    member.stop();
    let (code, lines) = spawn_with(&folder, &[], &[("GOFAIL_FAILPOINTS", "nope=print")]).wait();
    assert_eq!(code, Some(1), "{lines:?}");
    assert_eq!(lines, ["etcd: failpoint: nope does not exist"]);
}

/// Each point that a put passes holds it up, on both paths to the disk.
#[test]
fn a_put_waits_for_points_that_sleep() {
    for io in ["auto", "sync"] {
        let folder = Folder::new(&format!("failpoints-sleep-{io}"));
        let (member, points) = start(&folder, &[&format!("--trilith-wal-io={io}")], "");
        block_on(async {
            let client = Client::connect(member.address).await;
            for name in [
                "raftBeforeSave",
                "walBeforeSync",
                "walAfterSync",
                "raftAfterSave",
                "raftBeforeAdvance",
                "beforeApplyOneEntryNormal",
                "beforeWritebackBuf",
                "afterWritebackBuf",
                "trilithBeforeAnswers",
            ] {
                points.set(name, &format!("1*sleep({})", PAUSE.as_millis()));
                let began = Instant::now();
                client.put(name, "x").await;
                assert!(began.elapsed() >= PAUSE, "{io}: {name}: {:?}", began.elapsed());
                assert_eq!(points.count(name), "1", "{io}: {name}");
            }
        });
        member.stop();
    }
}

#[test]
fn a_watch_waits_for_a_point_that_sleeps() {
    let folder = Folder::new("failpoints-watch");
    let (member, points) = start(&folder, &[], "");
    block_on(async {
        let client = Client::connect(member.address).await;
        client.put("k", "1").await;
        for name in ["beforeSyncWatchers", "beforeSendWatchResponse"] {
            points.set(name, &format!("1*sleep({})", PAUSE.as_millis()));
            let create = WatchCreateRequest { key: "k".into(), start_revision: 2, ..Default::default() };
            let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            let began = Instant::now();
            let mut stream = client.open("/etcdserverpb.Watch/Watch", &request, false).await;
            while stream.next::<WatchResponse>().await.unwrap().events.is_empty() {}
            assert!(began.elapsed() >= PAUSE, "{name}: {:?}", began.elapsed());
            assert_eq!(points.count(name), "1", "{name}");
        }
    });
    member.stop();
}

/// What ended before it was in the log is gone; what ended later is there after a restart. No put of them was answered.
#[test]
fn a_process_ends_where_a_point_panics() {
    for (name, survives) in [
        ("raftBeforeSave", false),
        ("raftAfterSave", true),
        ("beforeApplyOneEntryNormal", true),
        ("trilithBeforeAnswers", true),
    ] {
        let folder = Folder::new(&format!("failpoints-panic-{name}"));
        let (member, points) = start(&folder, &[], "");
        block_on(async {
            let client = Client::connect(member.address).await;
            client.put("before", "1").await;
            points.set(name, "panic(\"by a test\")");
            let put = tokio::task::spawn_local(async move { client.put("k", "2").await });
            assert!(put.await.is_err(), "{name}: nothing is answered");
        });
        let (code, lines) = member.wait();
        assert_eq!(code, Some(2), "{name}: {lines:#?}");
        assert!(lines.contains(&format!("failpoint panic: {name} by a test")), "{lines:#?}");
        let (member, _) = start(&folder, &[], "");
        block_on(async {
            let client = Client::connect(member.address).await;
            assert_eq!(value(&client, "before").await.as_deref(), Some("1"), "{name}");
            assert_eq!(value(&client, "k").await.is_some(), survives, "{name}");
        });
        member.stop();
    }
}

/// The entry up to which the store of a member that does not run has everything.
fn applied(folder: &Folder) -> u64 {
    let options = trilith_engine::Options {
        path: folder.0.join("member/snap/db"),
        disk: std::sync::Arc::new(trilith_disk::RealDisk),
        map: false,
        dirty_bytes_max: 1 << 20,
        compress: true,
    };
    trilith_engine::Store::open(options).unwrap().applied().0
}

/// The checkpoint at the end of a member, cut off before and after each of its steps, costs nothing.
#[test]
fn a_checkpoint_that_ends_halfway_loses_nothing() {
    let folder = Folder::new("failpoints-checkpoint");
    let points = [("beforeCommit", false), ("trilithBeforeMeta", false), ("afterCommit", true)];
    for (round, (name, is_written)) in points.into_iter().enumerate() {
        let before = if round == 0 { 0 } else { applied(&folder) };
        let (member, points) = start(&folder, &[], "");
        block_on(async {
            let client = Client::connect(member.address).await;
            for earlier in 0..round {
                assert!(value(&client, &format!("k{earlier}")).await.is_some(), "{name}: {earlier}");
            }
            client.put(&format!("k{round}"), vec![b'x'; 100_000]).await;
        });
        points.set(name, "panic");
        member.signal(rustix::process::Signal::TERM);
        let (code, lines) = member.wait();
        assert_eq!(code, Some(2), "{name}: {lines:#?}");
        assert_eq!(applied(&folder) > before, is_written, "{name}: {before}, {}", applied(&folder));
    }
    let (member, _) = start(&folder, &[], "");
    block_on(async {
        let client = Client::connect(member.address).await;
        for round in 0..3 {
            assert_eq!(value(&client, &format!("k{round}")).await.map(|value| value.len()), Some(100_000));
        }
    });
    member.stop();
}
