//! A member as a process: start, stop, restart, and the Watch call end to end.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use rustix::process::Signal;
use support::{Client, Folder, Stream, block_on, spawn, start};

use trilith_proto::etcdserverpb::watch_request::RequestUnion;
use trilith_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse, WatchCancelRequest, WatchCreateRequest,
    WatchProgressRequest, WatchRequest, WatchResponse, request_op,
};

fn key(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

fn create(request: WatchCreateRequest) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
}

fn progress() -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) }
}

fn prefix(start: &str, end: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key(start),
        range_end: key(end),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

/// Opens a stream with one watcher and takes its created answer.
async fn watch(client: &Client, request: WatchCreateRequest) -> (Stream, WatchResponse) {
    let mut stream = client.open("/etcdserverpb.Watch/Watch", &create(request), false).await;
    let created: WatchResponse = stream.next().await.unwrap();
    assert!(created.created);
    (stream, created)
}

fn revision(response: &WatchResponse) -> i64 {
    response.header.as_ref().unwrap().revision
}

/// Mod revision, key and type of each event.
fn events(response: &WatchResponse) -> Vec<(i64, String, i32)> {
    let event = |event: &trilith_proto::mvccpb::Event| {
        let kv = event.kv.as_ref().unwrap();
        (kv.mod_revision, String::from_utf8(kv.key.to_vec()).unwrap(), event.r#type)
    };
    response.events.iter().map(event).collect()
}

#[test]
fn starts_stops_and_starts_again() {
    let folder = Folder::new("start");
    let member = spawn(&folder, &["--name=m1"]);
    let lines = member.wait_for("ready to serve client requests");
    assert!(lines.iter().any(|line| line.contains("\"snapshot-catchup-entries\":5000")));
    assert!(lines.iter().any(|line| line.contains("serving client traffic") && line.contains(&member.address.to_string())));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&folder.0).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    // The folder has an owner.
    let (code, second) = spawn(&folder, &[]).wait();
    assert_eq!(code, Some(1));
    assert!(second.last().unwrap().contains("is in use by another process"), "{second:?}");

    block_on(async {
        let client = Client::connect(member.address).await;
        assert_eq!(client.put("a", "1").await, 2);
        let (mut stream, _) = watch(&client, prefix("a", "", 0)).await;
        member.signal(Signal::TERM);
        assert_eq!(stream.next::<WatchResponse>().await.unwrap_err(), "14 etcdserver: server stopped");
    });
    let (code, rest) = member.wait();
    assert_eq!(code, Some(0), "{rest:?}");
    for line in lines.iter().chain(&rest) {
        assert!(!line.contains("\"level\":\"error\""), "{line}");
    }

    // A restart finds its own identity: the flags of the first start do not matter any more.
    let member = start(&folder, &["--name=m1", "--initial-cluster=other=http://localhost:1"]);
    block_on(async {
        let client = Client::connect(member.address).await;
        let request = RangeRequest { key: key("a"), ..RangeRequest::default() };
        let response: RangeResponse = client.call("/etcdserverpb.KV/Range", &request).await;
        assert_eq!(response.kvs[0].value, "1");
        assert_eq!(client.put("a", "2").await, 3);
    });
    member.stop();
}

#[test]
fn what_cannot_start_says_why() {
    let folder = Folder::new("nostart");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let url = format!("--listen-client-urls=http://127.0.0.1:{port}");
    for (flags, error) in [
        (
            &["--name=a", "--initial-cluster=b=http://localhost:2380"][..],
            "couldn't find local name \\\"a\\\"",
        ),
        (&["--data-dir=/proc/nope/x"], "cannot use directory /proc/nope/x"),
        (&[&url], "bind: "),
    ] {
        let (code, lines) = spawn(&folder, flags).wait();
        let errors: Vec<_> = lines.iter().filter(|line| line.starts_with("{\"level\":\"error\"")).collect();
        assert_eq!((code, errors.len()), (Some(1), 1), "{lines:#?}");
        assert!(errors[0].contains(error), "{errors:?}");
    }
}

#[test]
fn watch_from_now_and_from_the_past() {
    let folder = Folder::new("watch");
    let member = start(&folder, &[]);
    block_on(async {
        let client = Client::connect(member.address).await;
        for n in 0..5 {
            assert_eq!(client.put(&format!("k{n}"), "x").await, 2 + n);
        }
        let (mut now, created) = watch(&client, prefix("k", "l", 0)).await;
        assert_eq!((created.watch_id, revision(&created)), (0, 6));
        let (mut past, _) = watch(&client, WatchCreateRequest { prev_kv: true, ..prefix("k", "l", 3) }).await;
        let caught_up: WatchResponse = past.next().await.unwrap();
        let expected: Vec<_> = (1..5).map(|n| (2 + n, format!("k{n}"), 0)).collect();
        assert_eq!((events(&caught_up), revision(&caught_up)), (expected, 6));

        // One transaction, one response; a delete carries key and revision only.
        let put = PutRequest { key: key("k9"), value: key("v"), ..PutRequest::default() };
        let delete = DeleteRangeRequest { key: key("k0"), ..DeleteRangeRequest::default() };
        let success = vec![
            RequestOp { request: Some(request_op::Request::RequestPut(put)) },
            RequestOp { request: Some(request_op::Request::RequestDeleteRange(delete)) },
        ];
        let txn = TxnRequest { success, ..TxnRequest::default() };
        let _: TxnResponse = client.call("/etcdserverpb.KV/Txn", &txn).await;
        for stream in [&mut now, &mut past] {
            let response: WatchResponse = stream.next().await.unwrap();
            let expected = vec![(7, "k9".to_owned(), 0), (7, "k0".to_owned(), 1)];
            assert_eq!((events(&response), revision(&response)), (expected, 7));
            let deleted = response.events[1].kv.as_ref().unwrap();
            assert_eq!((deleted.version, deleted.create_revision, deleted.value.len()), (0, 0, 0));
        }
        client.put("k1", "y").await;
        let response: WatchResponse = past.next().await.unwrap();
        let prev_kv = response.events[0].prev_kv.as_ref().unwrap();
        assert_eq!((&prev_kv.value[..], prev_kv.mod_revision), (&b"x"[..], 3));
        let response: WatchResponse = now.next().await.unwrap();
        assert!(response.events[0].prev_kv.is_none());

        // W18, W8, W9, W10.
        now.send(&progress());
        let response: WatchResponse = now.next().await.unwrap();
        assert_eq!((response.watch_id, revision(&response), response.events.len()), (-1, 8, 0));
        now.send(&WatchRequest { request_union: None });
        now.send(&create(WatchCreateRequest { watch_id: 5, ..prefix("z", "", 0) }));
        let response: WatchResponse = now.next().await.unwrap();
        assert!(response.created && response.watch_id == 5);
        for watch_id in [99, 0] {
            let cancel = RequestUnion::CancelRequest(WatchCancelRequest { watch_id });
            now.send(&WatchRequest { request_union: Some(cancel) });
        }
        let response: WatchResponse = now.next().await.unwrap();
        assert!(response.canceled && response.watch_id == 0 && response.cancel_reason.is_empty());
        now.send.send_data(Bytes::new(), true).unwrap();
        client.put("k1", "z").await;
        client.put("z", "z").await;
        let response: WatchResponse = now.next().await.unwrap();
        assert_eq!((response.watch_id, events(&response)), (5, vec![(10, "z".to_owned(), 0)]));
    });
    member.stop();
}

#[test]
fn watch_below_a_compaction_and_refusals() {
    let folder = Folder::new("compacted");
    let member = start(&folder, &[]);
    block_on(async {
        let client = Client::connect(member.address).await;
        for _ in 0..8 {
            client.put("k", "x").await;
        }
        let compact = CompactionRequest { revision: 5, physical: true };
        let _: CompactionResponse = client.call("/etcdserverpb.KV/Compact", &compact).await;
        // W5: first the normal answer, then the end.
        let (mut stream, created) = watch(&client, prefix("k", "", 4)).await;
        assert!(!created.canceled && created.watch_id == 0 && revision(&created) == 9);
        let end: WatchResponse = stream.next().await.unwrap();
        assert!(end.canceled && end.watch_id == 0 && end.cancel_reason.is_empty());
        assert_eq!((end.compact_revision, revision(&end)), (5, 0));
        // A start at the compacted revision is fine.
        stream.send(&create(prefix("k", "", 5)));
        let created: WatchResponse = stream.next().await.unwrap();
        assert!(created.created && created.watch_id == 1);
        let caught_up: WatchResponse = stream.next().await.unwrap();
        let revisions: Vec<_> = events(&caught_up).into_iter().map(|event| event.0).collect();
        assert_eq!(revisions, [5, 6, 7, 8, 9]);
        for (request, reason) in [
            (prefix("b", "a", 0), "mvcc: watcher range is empty"),
            (prefix("b", "", -1), "etcdserver: mvcc: required revision has been compacted"),
            (
                WatchCreateRequest { watch_id: 1, ..prefix("b", "", 0) },
                "mvcc: duplicate watch ID provided on the WatchStream",
            ),
        ] {
            stream.send(&create(request));
            let refused: WatchResponse = stream.next().await.unwrap();
            assert!(refused.created && refused.canceled && refused.watch_id == -1);
            assert_eq!((&*refused.cancel_reason, refused.compact_revision), (reason, 0));
        }
    });
    member.stop();
}

#[test]
fn a_reader_that_stops_and_goes_on_misses_nothing() {
    let folder = Folder::new("slow");
    let member = start(&folder, &["--trilith-io-threads=2"]);
    block_on(async {
        let writer = Client::connect(member.address).await;
        let reader = Client::connect(member.address).await;
        let request = WatchCreateRequest { fragment: true, ..prefix("k", "l", 0) };
        let (mut stream, _) = watch(&reader, request).await;
        // Far more than its queue and its window hold.
        let (puts, bytes) = (120, 100_000);
        for n in 0..puts {
            writer.put(&format!("k{}", n % 7), vec![n as u8; bytes]).await;
            let _: DeleteRangeResponse = writer
                .call(
                    "/etcdserverpb.KV/DeleteRange",
                    &DeleteRangeRequest { key: key("k1"), ..Default::default() },
                )
                .await;
        }
        let last = writer.put("k-last", "").await;
        let mut seen: Vec<i64> = Vec::new();
        while seen.last() != Some(&last) {
            let response: WatchResponse = stream.next().await.unwrap();
            seen.extend(events(&response).into_iter().map(|event| event.0));
        }
        assert_eq!(seen, (2..=last).collect::<Vec<_>>());
    });
    member.stop();
}

/// Lists of 40 MB each for clients that do not read: what the server holds for each is a few parts.
#[test]
fn a_large_list_is_not_held_for_a_slow_reader() {
    const LISTS: u64 = 8;
    let folder = Folder::new("lists");
    let member = start(&folder, &["--unsafe-no-fsync"]);
    block_on(async {
        let client = Client::connect(member.address).await;
        for i in 0..400 {
            client.put(&format!("k{i:03}"), vec![i as u8; 100_000]).await;
        }
        let all = RangeRequest { key: key("k"), range_end: key("l"), ..RangeRequest::default() };
        let path = "/etcdserverpb.KV/Range";
        let (few, limit) = (RangeRequest { limit: 20, ..all.clone() }, 20);
        let warm: RangeResponse = client.call(path, &few).await;
        assert_eq!((warm.kvs.len(), warm.count), (limit, 400));
        let before = member.anonymous_bytes();
        let mut lists = Vec::new();
        for n in 0..LISTS {
            // An answer has begun when its head is here; each on a connection, so each with a window of its own.
            let reader = Client::connect(member.address).await;
            lists.push(reader.open(path, &all, true).await);
            client.put(&format!("other{n}"), "x").await;
        }
        let held = member.anonymous_bytes().saturating_sub(before);
        assert!(held < LISTS * (8 << 20), "{held} bytes held for {LISTS} lists");
        for mut list in lists.drain(..2) {
            let response: RangeResponse = list.next().await.unwrap();
            assert_eq!((response.kvs.len(), response.count, response.more), (400, 400, false));
            assert!(response.kvs.iter().enumerate().all(|(i, kv)| *kv.value == vec![i as u8; 100_000]));
            assert_eq!(list.next::<RangeResponse>().await.unwrap_err(), "0 ");
        }
    });
    member.stop();
}
