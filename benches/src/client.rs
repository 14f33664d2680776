//! A gRPC client straight on h2: unary calls that return code, message and bytes, and streams.
//!
//! It is neutral and cheap: no retries, no balancing, no interceptors, so that a harness sees exactly what a server
//! sent. A handle may be cloned; clones share the connection.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;

use crate::{Error, Result};

/// Flag and length before each message.
const FRAME_HEADER_BYTES: usize = 5;
/// A call that takes longer has hung.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a server.
#[derive(Debug, Clone)]
pub struct Client {
    requests: SendRequest<Bytes>,
    authority: String,
}

/// What came back from a unary call: gRPC code (0 is OK), error text, and the encoded answer (empty on error).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// gRPC status code.
    pub code: u32,
    /// The error's text, decoded.
    pub message: String,
    /// The encoded response, without its frame.
    pub body: Bytes,
}

impl Answer {
    /// The response of a call that succeeded; else an error that holds code and text.
    pub fn decode<M: Message + Default>(&self) -> Result<M> {
        if self.code != 0 {
            return Err(format!("grpc-status {}: {}", self.code, self.message).into());
        }
        Ok(M::decode(self.body.clone())?)
    }
}

/// One message in its gRPC frame.
pub fn frame<M: Message>(message: &M) -> Bytes {
    let len = message.encoded_len();
    let mut buf = BytesMut::with_capacity(FRAME_HEADER_BYTES + len);
    buf.put_u8(0);
    buf.put_u32(len as u32);
    message.encode_raw(&mut buf);
    buf.freeze()
}

impl Client {
    /// Connects, and drives the connection on a task of its own until the last handle is gone.
    pub async fn connect(address: SocketAddr) -> Result<Client> {
        let socket = tokio::net::TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(8 << 20)
            .initial_connection_window_size(64 << 20)
            .max_frame_size(1 << 20)
            .handshake::<_, Bytes>(socket)
            .await?;
        // Its end shows at the calls that were in flight.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Client { requests, authority: address.to_string() })
    }

    async fn open(&mut self, path: &str) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let request = Request::builder()
            .method("POST")
            .uri(format!("http://{}{path}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        std::future::poll_fn(|cx| self.requests.poll_ready(cx)).await?;
        Ok(self.requests.send_request(request, false)?)
    }

    /// One unary call with an encoded and framed request, see [`frame`].
    pub async fn unary_frame(&mut self, path: &str, request: Bytes) -> Result<Answer> {
        match tokio::time::timeout(CALL_TIMEOUT, self.exchange(path, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{path}: no answer in {CALL_TIMEOUT:?}").into()),
        }
    }

    async fn exchange(&mut self, path: &str, request: Bytes) -> Result<Answer> {
        let (response, mut send) = self.open(path).await?;
        // A server that refuses a request by its size may end the stream before all of it was sent.
        let sent = send.send_data(request, true);
        let response = response.await?;
        sent?;
        let headers = response.headers().clone();
        let mut body = Body::new(response.into_body());
        let message = body.message().await?;
        let trailers = match message {
            // Nothing may follow the message of a unary answer.
            Some(_) => body.end().await?,
            None => body.trailers.take(),
        };
        let (code, text) = status(trailers.as_ref(), &headers)?;
        Ok(Answer { code, message: text, body: message.unwrap_or_default() })
    }

    /// One unary call.
    pub async fn unary<M: Message>(&mut self, path: &str, request: &M) -> Result<Answer> {
        self.unary_frame(path, frame(request)).await
    }

    /// One unary call that must succeed.
    pub async fn call<Req: Message, Resp: Message + Default>(
        &mut self,
        path: &str,
        request: &Req,
    ) -> Result<Resp> {
        self.unary(path, request).await?.decode().map_err(|e| format!("{path}: {e}").into())
    }

    /// One call of which the answer is thrown away as it comes in; its bytes. For answers that are too large to keep.
    pub async fn drain<M: Message>(&mut self, path: &str, request: &M) -> Result<u64> {
        let (response, mut send) = self.open(path).await?;
        send.send_data(frame(request), true)?;
        let response = response.await?;
        let headers = response.headers().clone();
        let mut stream = response.into_body();
        let mut bytes = 0;
        while let Some(data) = stream.data().await {
            let len = data?.len();
            bytes += len as u64;
            stream.flow_control().release_capacity(len)?;
        }
        match status(stream.trailers().await?.as_ref(), &headers)? {
            (0, _) => Ok(bytes),
            (code, text) => Err(format!("{path}: grpc-status {code}: {text}").into()),
        }
    }

    /// Opens a stream in both directions.
    pub async fn stream(&mut self, path: &str) -> Result<Stream> {
        let (response, send) = self.open(path).await?;
        Ok(Stream { send, response: Some(response), body: None })
    }
}

/// A stream in both directions. Dropping it resets it.
#[derive(Debug)]
pub struct Stream {
    send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    body: Option<(Body, HeaderMap)>,
}

impl Stream {
    /// Sends a message.
    pub fn send<M: Message>(&mut self, message: &M) -> Result<()> {
        Ok(self.send.send_data(frame(message), false)?)
    }

    /// Ends our direction.
    pub fn finish(&mut self) -> Result<()> {
        Ok(self.send.send_data(Bytes::new(), true)?)
    }

    /// The next message; the inner error is the status that ended the stream, `Ok(None)` its end with OK.
    pub async fn next<M: Message + Default>(&mut self) -> Result<std::result::Result<Option<M>, Answer>> {
        if let Some(response) = self.response.take() {
            let response = response.await?;
            let headers = response.headers().clone();
            self.body = Some((Body::new(response.into_body()), headers));
        }
        let Some((body, headers)) = &mut self.body else {
            return Err("the stream has failed before".into());
        };
        if let Some(message) = body.message().await? {
            return Ok(Ok(Some(M::decode(message)?)));
        }
        let (code, message) = status(body.trailers.as_ref(), headers)?;
        if code == 0 { Ok(Ok(None)) } else { Ok(Err(Answer { code, message, body: Bytes::new() })) }
    }
}

/// The messages of one direction.
#[derive(Debug)]
struct Body {
    stream: RecvStream,
    buf: BytesMut,
    trailers: Option<HeaderMap>,
}

impl Body {
    fn new(stream: RecvStream) -> Body {
        Body { stream, buf: BytesMut::new(), trailers: None }
    }

    async fn message(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            match self.stream.data().await {
                Some(data) => {
                    let data = data?;
                    self.stream.flow_control().release_capacity(data.len())?;
                    self.buf.extend_from_slice(&data);
                }
                None if !self.buf.is_empty() => return Err("the stream ended inside a message".into()),
                None => {
                    self.trailers = self.stream.trailers().await?;
                    return Ok(None);
                }
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<Bytes>> {
        if self.buf.len() < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        if self.buf[0] != 0 {
            return Err(format!("a frame with flag {}: nobody asked for compression", self.buf[0]).into());
        }
        let len = u32::from_be_bytes([self.buf[1], self.buf[2], self.buf[3], self.buf[4]]) as usize;
        if self.buf.len() < FRAME_HEADER_BYTES + len {
            self.buf.reserve(FRAME_HEADER_BYTES + len - self.buf.len());
            return Ok(None);
        }
        self.buf.advance(FRAME_HEADER_BYTES);
        Ok(Some(self.buf.split_to(len).freeze()))
    }

    async fn end(&mut self) -> Result<Option<HeaderMap>> {
        match self.message().await? {
            None => Ok(self.trailers.take()),
            Some(_) => Err("a unary call answered twice".into()),
        }
    }
}

/// Code and text: in the trailers, or in the headers of an answer that has nothing else.
fn status(trailers: Option<&HeaderMap>, headers: &HeaderMap) -> Result<(u32, String)> {
    let map = trailers.filter(|map| map.contains_key("grpc-status")).unwrap_or(headers);
    let code = map.get("grpc-status").ok_or_else(|| Error::from("an answer without grpc-status"))?;
    let code = code.to_str()?.parse()?;
    let text = map.get("grpc-message").map(|text| percent_decode(text.as_bytes())).unwrap_or_default();
    Ok((code, text))
}

fn percent_decode(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(value) if byte == b'%' => {
                out.push(value);
                rest = &tail[2..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Paths of the calls that the harnesses make.
pub mod path {
    /// KV.Range
    pub const RANGE: &str = "/etcdserverpb.KV/Range";
    /// KV.RangeStream
    pub const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
    /// KV.Put
    pub const PUT: &str = "/etcdserverpb.KV/Put";
    /// KV.DeleteRange
    pub const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
    /// KV.Txn
    pub const TXN: &str = "/etcdserverpb.KV/Txn";
    /// KV.Compact
    pub const COMPACT: &str = "/etcdserverpb.KV/Compact";
    /// Watch.Watch
    pub const WATCH: &str = "/etcdserverpb.Watch/Watch";
    /// Lease.LeaseGrant
    pub const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
    /// Lease.LeaseRevoke
    pub const LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
    /// Lease.LeaseKeepAlive
    pub const LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
    /// Lease.LeaseTimeToLive
    pub const LEASE_TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
    /// Lease.LeaseLeases
    pub const LEASE_LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
    /// Cluster.MemberAdd.
    pub const MEMBER_ADD: &str = "/etcdserverpb.Cluster/MemberAdd";
    /// Cluster.MemberRemove.
    pub const MEMBER_REMOVE: &str = "/etcdserverpb.Cluster/MemberRemove";
    /// Maintenance.Status
    pub const STATUS: &str = "/etcdserverpb.Maintenance/Status";
    /// Maintenance.HashKV
    pub const HASH_KV: &str = "/etcdserverpb.Maintenance/HashKV";
    /// Maintenance.Defragment
    pub const DEFRAGMENT: &str = "/etcdserverpb.Maintenance/Defragment";
    /// Maintenance.Snapshot
    pub const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";
}
