//! Requests to other members over HTTP/1.1: a connection, and calls that have an answer of bounded size.
//!
//! Nothing here retries or follows redirects.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Builder;
use http::response::Parts;
use http::{HeaderValue, Request, Response, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::PeerError;
use crate::config::url::Url;
use crate::tls::Connector;

/// T3: how long a peer may take nothing, or say nothing where it should.
pub(super) const STALL: Duration = Duration::from_secs(5);
/// Where no election timeout is known yet.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Of text in an answer that refuses.
const REFUSAL_MAX: usize = 4 << 10;

/// Calls at a time, to one leader mostly.
const CALLS_MAX: usize = 32;

/// The body of a request.
#[derive(Debug)]
pub(super) enum Payload {
    /// In one piece.
    Whole(Option<Bytes>),
    /// In pieces, `left` bytes in all.
    Parts { parts: mpsc::Receiver<io::Result<Bytes>>, left: u64 },
}

impl Payload {
    pub(super) fn of(bytes: Bytes) -> Payload {
        Payload::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = match &mut *self {
            Payload::Whole(bytes) => bytes.take().map(Ok),
            Payload::Parts { left: 0, .. } => None,
            Payload::Parts { parts, left } => Some(match ready!(parts.poll_recv(context)) {
                Some(Ok(part)) if part.len() as u64 <= *left => {
                    *left -= part.len() as u64;
                    Ok(part)
                }
                Some(Err(error)) => Err(error),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            }),
        };
        Poll::Ready(next.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Payload::Whole(None) | Payload::Parts { left: 0, .. })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Payload::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Payload::Parts { left, .. } => *left,
        })
    }
}

/// The next bytes of a body; None at its end.
pub(super) async fn next_data(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        let frame = std::future::poll_fn(|context| pin!(&mut *body).poll_frame(context)).await?;
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => return Some(Ok(data)),
            // Trailers.
            Ok(Err(_)) => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

/// A connection to a member; it is closed when this is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    url: String,
    host: HeaderValue,
    sender: http1::SendRequest<Payload>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects within a time. Writes fail when nothing goes on for `stall`.
    pub(super) async fn open(
        dialer: &Connector,
        url: &str,
        limit: Duration,
        stall: Duration,
    ) -> Result<Connection, PeerError> {
        let parsed = Url::parse(url).map_err(PeerError::Url)?;
        let connect = |error| PeerError::Connect { url: url.to_owned(), error };
        let stream = dialer.dial(&parsed, limit, stall).await.map_err(connect)?;
        let http = |error| PeerError::Http { url: url.to_owned(), error };
        let (sender, driving) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let driver = tokio::spawn(async move {
            // Whoever waits for an answer hears of it.
            let _ = driving.await;
        });
        let host = parsed.host_port().and_then(|_| HeaderValue::from_str(&parsed.address).ok());
        let host = host.unwrap_or(HeaderValue::from_static("localhost"));
        Ok(Connection { url: url.to_owned(), host, sender, driver })
    }

    /// Sends a request; the answer's head. The method and path stand in `request`.
    pub(super) async fn send(
        &mut self,
        request: Builder,
        payload: Payload,
    ) -> Result<Response<Incoming>, PeerError> {
        let mut request: Request<Payload> =
            request.body(payload).map_err(|error| PeerError::Url(error.to_string()))?;
        request.headers_mut().insert(header::HOST, self.host.clone());
        let http = |error| PeerError::Http { url: self.url.clone(), error };
        self.sender.ready().await.map_err(http)?;
        self.sender.send_request(request).await.map_err(http)
    }

    /// Whether it is still good for a request, as far as is known here.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// The URL that it leads to.
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

/// Reads an answer to its end; an error when it refuses, or is longer than `max` bytes.
pub(super) async fn read_answer(
    url: &str,
    answer: Response<Incoming>,
    max: usize,
) -> Result<(Parts, Bytes), PeerError> {
    let (head, mut body) = answer.into_parts();
    let max = if head.status.is_success() { max } else { REFUSAL_MAX };
    let mut read = BytesMut::new();
    while let Some(data) = next_data(&mut body).await {
        let data = data.map_err(|error| PeerError::Http { url: url.to_owned(), error })?;
        if read.len() + data.len() > max {
            return Err(PeerError::Answer { url: url.to_owned(), what: format!("more than {max} bytes") });
        }
        read.extend_from_slice(&data);
    }
    if !head.status.is_success() {
        let text = String::from_utf8_lossy(&read).trim_end().to_owned();
        return Err(PeerError::Refused { url: url.to_owned(), code: head.status.as_u16(), text });
    }
    Ok((head, read.freeze()))
}

/// One call on a connection of its own.
pub(super) async fn call(
    dialer: &Connector,
    url: &str,
    request: Builder,
    body: Bytes,
    limit: Duration,
    answer_max: usize,
) -> Result<(Parts, Bytes), PeerError> {
    let exchange = async {
        let mut connection = Connection::open(dialer, url, limit.min(CONNECT_MAX), STALL).await?;
        let answer = connection.send(request, Payload::of(body)).await?;
        read_answer(url, answer, answer_max).await
    };
    match timeout(limit, exchange).await {
        Ok(outcome) => outcome,
        Err(_) => Err(PeerError::Timeout { url: url.to_owned() }),
    }
}

/// Calls that come often: so many at a time, on connections that are kept for the next ones.
#[derive(Debug)]
pub(super) struct Calls {
    turns: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Calls {
    pub(super) fn new() -> Calls {
        Calls { turns: Semaphore::new(CALLS_MAX), idle: Mutex::default() }
    }

    /// One call. A kept connection may have been closed meanwhile: then a new one gets its chance.
    pub(super) async fn call(
        &self,
        dialer: &Connector,
        url: &str,
        request: impl Fn() -> Builder,
        body: Bytes,
        limit: Duration,
        answer_max: usize,
    ) -> Result<(Parts, Bytes), PeerError> {
        let exchange = async {
            let _turn = self.turns.acquire().await.expect("never closed");
            while let Some(connection) = self.kept(url) {
                match self.exchange(connection, request(), body.clone(), answer_max).await {
                    Err(PeerError::Http { .. }) => {}
                    outcome => return outcome,
                }
            }
            let connection = Connection::open(dialer, url, limit.min(CONNECT_MAX), STALL).await?;
            self.exchange(connection, request(), body, answer_max).await
        };
        match timeout(limit, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(PeerError::Timeout { url: url.to_owned() }),
        }
    }

    /// Keeps the connection when its answer was read to the end.
    async fn exchange(
        &self,
        mut connection: Connection,
        request: Builder,
        body: Bytes,
        answer_max: usize,
    ) -> Result<(Parts, Bytes), PeerError> {
        let answer = connection.send(request, Payload::of(body)).await?;
        let outcome = read_answer(connection.url(), answer, answer_max).await;
        if matches!(outcome, Ok(_) | Err(PeerError::Refused { .. })) {
            self.idle().push(connection);
        }
        outcome
    }

    fn kept(&self, url: &str) -> Option<Connection> {
        let mut idle = self.idle();
        idle.retain(Connection::is_open);
        let at = idle.iter().position(|connection| connection.url() == url)?;
        Some(idle.swap_remove(at))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().expect("no holder of this lock panics")
    }
}
