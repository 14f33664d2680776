//! The transport against a client of its own: frames, statuses, limits, deadlines, slow readers, hostile bytes.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::LocalSet;
use trilith_proto::mvccpb::KeyValue;

use super::server::Stop;
use super::{Call, Options, Replies, Requests, Routes, Server, health, router};
use crate::config::url::Url;
use crate::reply::{Body, Parts, Reply};
use crate::status::{Code, Status};

const LIMIT: usize = 100_000;

/// A small service for tests; counts what its handlers began or sent, and their ends.
#[derive(Debug, Clone, Default)]
struct TestRoutes {
    sent: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

/// Counts its drop.
struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A reply in parts of 5,000 bytes; one that fails breaks off after three.
struct TestParts {
    rest: Bytes,
    fails: bool,
    made: Arc<AtomicUsize>,
    _guard: Guard,
}

impl std::fmt::Debug for TestParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestParts")
    }
}

impl Parts for TestParts {
    fn next(&mut self) -> Option<Result<Bytes, Status>> {
        if self.rest.is_empty() {
            return None;
        }
        if self.made.fetch_add(1, Ordering::SeqCst) == 3 && self.fails {
            return Some(Err(Status::new(Code::DataLoss, "page 7 is damaged")));
        }
        Some(Ok(self.rest.split_to(self.rest.len().min(5000))))
    }
}

fn pair(value: usize) -> KeyValue {
    KeyValue { key: Bytes::from_static(b"k"), value: vec![1; value].into(), ..KeyValue::default() }
}

impl Routes for TestRoutes {
    fn route(&self, path: &str, call: Call) {
        let dropped = self.dropped.clone();
        let sent = self.sent.clone();
        match path {
            "/t.T/Echo" => call.unary(async |message: KeyValue| Ok(Reply::of(&message))),
            "/t.T/Fail" => {
                call.unary(async |_: KeyValue| Err(Status::new(Code::NotFound, "100% gone: \u{e9}")))
            }
            "/t.T/Hang" => {
                call.unary(async move |_: KeyValue| {
                    let _guard = Guard(dropped);
                    sent.fetch_add(1, Ordering::SeqCst);
                    std::future::pending().await
                });
            }
            "/t.T/Parts" => call.unary_in_parts(async move |message: KeyValue| {
                let reply = Reply::of(&message).0;
                let parts =
                    TestParts { rest: reply, fails: message.lease != 0, made: sent, _guard: Guard(dropped) };
                Ok(Body::Parts(Box::new(parts)))
            }),
            // Endless replies of 10,000 bytes.
            "/t.T/Flood" => {
                call.server_streaming(async move |_: KeyValue, replies: &mut Replies| {
                    let _guard = Guard(dropped);
                    while replies.send(Reply::of(&pair(10_000))).await.is_ok() {
                        sent.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                });
            }
            "/t.T/Chat" => call.streaming(async |requests: &mut Requests, replies: &mut Replies| {
                while let Some(message) = requests.next::<KeyValue>().await? {
                    let _ = replies.send(Reply::of(&message)).await;
                }
                Err(Status::new(Code::Aborted, "bye"))
            }),
            "/grpc.health.v1.Health/Watch" => call.server_streaming(health::watch),
            other => call.refuse(router::no_such_method(other)),
        }
    }
}

/// What a client saw of a call.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    http: u16,
    code: u16,
    message: String,
    replies: Vec<Bytes>,
}

struct Client(SendRequest<Bytes>);

impl Client {
    async fn connect(address: SocketAddr) -> Client {
        let socket = TcpStream::connect(address).await.unwrap();
        let (send, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Client(send)
    }

    async fn start(&mut self, path: &str, headers: &[(&str, &str)]) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://h{path}"));
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut ready = self.0.clone().ready().await.unwrap();
        ready.send_request(request.body(()).unwrap(), false).unwrap()
    }

    async fn call(&mut self, path: &str, headers: &[(&str, &str)], body: Bytes) -> Seen {
        let (response, mut stream) = self.start(path, headers).await;
        // The server may have answered and closed the stream before it saw the body.
        let _ = send_all(&mut stream, body).await;
        finish(response).await
    }
}

async fn send_all(stream: &mut SendStream<Bytes>, mut body: Bytes) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(granted) => stream.send_data(body.split_to(granted?.min(body.len())), false)?,
            None => return Ok(()),
        }
    }
    stream.send_data(Bytes::new(), true)
}

async fn finish(response: ResponseFuture) -> Seen {
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_else(|| head.headers.clone());
    let text = |headers: &HeaderMap, name: &str| {
        headers.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(text(&head.headers, "content-type"), "application/grpc");
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        // One that broke off shows what there is of it.
        replies.push(bytes.split_to((5 + len).min(bytes.len())).freeze());
    }
    Seen {
        http: head.status.as_u16(),
        code: text(&trailers, "grpc-status").parse().unwrap(),
        message: text(&trailers, "grpc-message"),
        replies,
    }
}

/// Runs a server and a test against it, on one thread; the server must end after the test.
fn with_server<F: Future<Output = ()>>(
    io_threads: usize,
    test: impl FnOnce(SocketAddr, TestRoutes, watch::Sender<bool>) -> F,
) {
    let options = Options {
        receive_limit: LIMIT,
        max_concurrent_streams: u32::MAX,
        keepalive_interval: Duration::from_secs(7200),
        keepalive_timeout: Duration::from_secs(20),
        io_threads,
    };
    with_options(options, test);
}

fn with_options<F: Future<Output = ()>>(
    options: Options,
    test: impl FnOnce(SocketAddr, TestRoutes, watch::Sender<bool>) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let server = Server::bind(vec![(Url::parse("http://127.0.0.1:0").unwrap(), None)]).unwrap();
        let address = server.local_addrs().unwrap()[0];
        let routes = TestRoutes::default();
        let (stop, stopped) = Stop::new();
        let running = tokio::task::spawn_local(server.run(routes.clone(), options, stopped));
        tokio::time::timeout(Duration::from_secs(60), test(address, routes, stop.clone())).await.unwrap();
        stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
    });
}

fn message(value: usize) -> Bytes {
    Reply::of(&pair(value)).0
}

fn refused(code: Code, message: &str) -> Seen {
    Seen { http: 200, code: code as u16, message: message.to_owned(), replies: vec![] }
}

/// Waits for a condition that other tasks bring about.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn unary_calls_on_one_and_on_several_threads() {
    for io_threads in [1, 3] {
        with_server(io_threads, async |address, _, _| {
            for _ in 0..io_threads {
                let mut client = Client::connect(address).await;
                for size in [0, 1, 20_000, 99_000] {
                    let seen = client.call("/t.T/Echo", &[], message(size)).await;
                    assert_eq!(seen, Seen { replies: vec![message(size)], ..refused(Code::Ok, "") });
                }
                let seen = client.call("/t.T/Fail", &[], message(0)).await;
                assert_eq!(seen, refused(Code::NotFound, "100%25 gone: %C3%A9"));
            }
        });
    }
}

#[test]
fn a_reply_in_parts_is_one_message() {
    with_server(1, async |address, routes, _| {
        let mut client = Client::connect(address).await;
        let seen = client.call("/t.T/Parts", &[], message(99_000)).await;
        assert_eq!(seen, Seen { replies: vec![message(99_000)], ..refused(Code::Ok, "") });
        assert_eq!(routes.sent.load(Ordering::SeqCst), 20);
    });
}

#[test]
fn a_reply_in_parts_that_breaks_off_is_an_error() {
    with_server(1, async |address, _, _| {
        let mut client = Client::connect(address).await;
        let fails = Reply::of(&KeyValue { lease: 1, ..pair(99_000) }).0;
        let seen = client.call("/t.T/Parts", &[], fails.clone()).await;
        assert_eq!(
            seen,
            Seen { replies: vec![fails.slice(..15_000)], ..refused(Code::DataLoss, "page 7 is damaged") }
        );
    });
}

#[test]
fn parts_are_made_as_the_client_takes_them() {
    with_server(1, async |address, routes, _| {
        let mut client = Client::connect(address).await;
        for (end, dropped) in [("canceled", 1), ("late", 2)] {
            routes.sent.store(0, Ordering::SeqCst);
            let headers: &[(&str, &str)] = if end == "late" { &[("grpc-timeout", "300m")] } else { &[] };
            let (response, mut stream) = client.start("/t.T/Parts", headers).await;
            let large = KeyValue { value: vec![1; 95_000].into(), ..pair(0) };
            send_all(&mut stream, Reply::of(&large).0).await.unwrap();
            let (_, mut body) = response.await.unwrap().into_parts();
            // The window is 65,535 bytes: that, one part on its way and one ahead.
            until(|| routes.sent.load(Ordering::SeqCst) >= 15).await;
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            assert!(routes.sent.load(Ordering::SeqCst) <= 16, "it runs ahead of its client");
            if end == "late" {
                let mut taken = 0;
                while let Some(chunk) = body.data().await {
                    taken += chunk.unwrap().len();
                }
                assert_eq!(taken, 65_535);
                let trailers = body.trailers().await.unwrap().unwrap();
                assert_eq!(trailers.get("grpc-status").unwrap(), "4");
            }
            drop((body, stream));
            until(|| routes.dropped.load(Ordering::SeqCst) == dropped).await;
        }
    });
}

#[test]
fn what_is_no_proper_call_gets_grpcs_own_answers() {
    with_server(1, async |address, _, _| {
        let mut client = Client::connect(address).await;
        for (path, text) in [
            ("/t.T/Nope", "unknown service t.T"),
            ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
            ("/Nope", "malformed method name: \"/Nope\""),
        ] {
            assert_eq!(client.call(path, &[], message(0)).await, refused(Code::Unimplemented, text));
        }
        let seen = client.call("/t.T/Echo", &[("content-type", "text/html")], message(0)).await;
        let text = "invalid gRPC request content-type \"text/html\"";
        assert_eq!(seen, Seen { http: 415, ..refused(Code::InvalidArgument, text) });
        let seen = client.call("/t.T/Echo", &[("grpc-encoding", "gzip")], message(0)).await;
        assert_eq!(
            seen,
            refused(Code::Unimplemented, "grpc: Decompressor is not installed for grpc-encoding \"gzip\"")
        );
        let seen = client.call("/t.T/Echo", &[("grpc-timeout", "soon")], message(0)).await;
        assert_eq!(seen, Seen { http: 400, ..refused(Code::Internal, "malformed grpc-timeout: \"soon\"") });
        let seen = client.call("/t.T/Echo", &[], message(LIMIT)).await;
        let len = message(LIMIT).len() - 5;
        let text = format!("grpc: received message larger than max ({len} vs. {LIMIT})");
        assert_eq!(seen, refused(Code::ResourceExhausted, &text));
        let seen = client.call("/t.T/Echo", &[], Bytes::from_static(&[0, 0, 0, 0, 2, 0xff, 0xff])).await;
        assert_eq!(seen.code, Code::Internal as u16);
        assert!(seen.message.starts_with("grpc: error unmarshalling request: "), "{}", seen.message);
        let seen = client.call("/t.T/Echo", &[], Bytes::from_static(&[0, 0, 0])).await;
        assert_eq!(seen, refused(Code::Internal, "unexpected EOF"));
        // After all of that the connection is as good as new.
        assert_eq!(client.call("/t.T/Echo", &[], message(3)).await.replies, [message(3)]);
    });
}

#[test]
fn deadline_and_cancel_drop_the_handler() {
    with_server(1, async |address, routes, _| {
        let mut client = Client::connect(address).await;
        let seen = client.call("/t.T/Hang", &[("grpc-timeout", "20m")], message(0)).await;
        assert_eq!(seen, refused(Code::DeadlineExceeded, "context deadline exceeded"));
        assert_eq!(routes.dropped.load(Ordering::SeqCst), 1);

        let (response, mut stream) = client.start("/t.T/Hang", &[]).await;
        send_all(&mut stream, message(0)).await.unwrap();
        until(|| routes.sent.load(Ordering::SeqCst) == 2).await;
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
        until(|| routes.dropped.load(Ordering::SeqCst) == 2).await;

        let (_response, mut stream) = client.start("/t.T/Hang", &[]).await;
        send_all(&mut stream, message(0)).await.unwrap();
        until(|| routes.sent.load(Ordering::SeqCst) == 3).await;
        drop((client, _response, stream));
        until(|| routes.dropped.load(Ordering::SeqCst) == 3).await;
    });
}

#[test]
fn both_sides_of_a_stream_talk_until_the_half_close() {
    with_server(1, async |address, _, _| {
        let mut client = Client::connect(address).await;
        let (response, mut stream) = client.start("/t.T/Chat", &[]).await;
        for size in [1, 2, 30_000] {
            let mut body = message(size);
            while !body.is_empty() {
                stream.send_data(body.split_to(body.len().min(7000)), false).unwrap();
            }
        }
        stream.send_data(Bytes::new(), true).unwrap();
        let seen = finish(response).await;
        let replies = vec![message(1), message(2), message(30_000)];
        assert_eq!(seen, Seen { replies, ..refused(Code::Aborted, "bye") });
    });
}

#[test]
fn a_slow_reader_holds_up_its_own_stream_and_no_memory() {
    with_server(1, async |address, routes, _| {
        let mut client = Client::connect(address).await;
        let (response, mut stream) = client.start("/t.T/Flood", &[]).await;
        send_all(&mut stream, message(0)).await.unwrap();
        let mut body: RecvStream = response.await.unwrap().into_body();
        // Nothing is read: what the handler got rid of is the client's window of 64 KiB, and no more.
        let mut other = Client::connect(address).await;
        for _ in 0..50 {
            assert_eq!(other.call("/t.T/Echo", &[], message(5)).await.replies, [message(5)]);
        }
        let sent = routes.sent.load(Ordering::SeqCst);
        assert!((1..=7).contains(&sent), "{sent} replies sent to a client that does not read");
        // It goes on as the client reads, and ends with the client.
        let mut read = 0;
        while read < 1_000_000 {
            let chunk = body.data().await.unwrap().unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            read += chunk.len();
        }
        assert!(routes.sent.load(Ordering::SeqCst) * 10_000 >= 900_000);
        drop((body, stream, client));
        until(|| routes.dropped.load(Ordering::SeqCst) == 1).await;
    });
}

#[test]
fn hostile_bytes_end_their_own_connection_only() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    with_server(1, async |address, _, _| {
        let mut good = Client::connect(address).await;
        let frames: [&[u8]; 6] = [
            // A length beyond all limits.
            &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
            // DATA on stream 0; HEADERS with broken HPACK; an even stream id; WINDOW_UPDATE of 0; SETTINGS of 5 bytes.
            &[0, 0, 1, 0, 0, 0, 0, 0, 0, 7],
            &[0, 0, 3, 1, 5, 0, 0, 0, 1, 0xff, 0xff, 0xff],
            &[0, 0, 1, 1, 5, 0, 0, 0, 2, 0x82],
            &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
        ];
        for frame in frames {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let mut bytes = PREFACE.to_vec();
            bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
            bytes.extend_from_slice(frame);
            socket.write_all(&bytes).await.unwrap();
            // The server says why, or only closes.
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer).await;
            assert_eq!(good.call("/t.T/Echo", &[], message(1)).await.replies, [message(1)]);
        }
        for bytes in [&b"PRI * HTTP/1.0\r\n\r\n0123456789"[..], b"\x16\x03\x01\x02\x00", b"\0\0\0"] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP"), "{bytes:?}");
        }
        assert_eq!(good.call("/t.T/Echo", &[], message(1)).await.replies, [message(1)]);
    });
}

#[test]
fn http1_is_told_what_this_port_speaks() {
    with_server(1, async |address, _, _| {
        for request in ["GET /version HTTP/1.1\r\nHost: x\r\n\r\n", "PROPFIND / HTTP/1.0\r\n\r\n"] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 501 Not Implemented\r\n"), "{answer}");
            assert!(answer.ends_with("not there yet\n"), "{answer}");
        }
    });
}

#[test]
fn a_stop_finishes_calls_and_ends_streams() {
    with_server(2, async |address, _, stop| {
        let watching = Rc::new(RefCell::new(Vec::new()));
        for _ in 0..2 {
            let mut client = Client::connect(address).await;
            let (response, mut stream) = client.start("/grpc.health.v1.Health/Watch", &[]).await;
            send_all(&mut stream, Reply::of(&KeyValue::default()).0).await.unwrap();
            let body = response.await.unwrap().into_body();
            watching.borrow_mut().push((client, body));
        }
        stop.send_replace(true);
        for (_client, mut body) in watching.take() {
            let status = body.data().await.unwrap().unwrap();
            assert_eq!(&status[..], [0, 0, 0, 0, 2, 8, 1]);
            assert!(body.data().await.is_none());
            let trailers = body.trailers().await.unwrap().unwrap();
            assert_eq!(trailers["grpc-status"], "14");
            assert_eq!(trailers["grpc-message"], "etcdserver: server stopped");
        }
    });
}

#[test]
fn a_client_that_does_not_answer_pings_is_let_go() {
    let options = Options {
        receive_limit: LIMIT,
        max_concurrent_streams: 10,
        keepalive_interval: Duration::from_millis(20),
        keepalive_timeout: Duration::from_millis(200),
        io_threads: 1,
    };
    with_options(options, async |address, _, _| {
        let mut good = Client::connect(address).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        silent.write_all(preface).await.unwrap();
        let mut answer = Vec::new();
        silent.read_to_end(&mut answer).await.unwrap();
        // SETTINGS, then a PING of 8 bytes among what followed.
        assert!(answer.windows(5).any(|head| head == [0, 0, 8, 6, 0]), "{answer:?}");
        assert_eq!(good.call("/t.T/Echo", &[], message(1)).await.replies, [message(1)]);
    });
}
