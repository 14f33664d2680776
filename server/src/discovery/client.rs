//! A small gRPC client: one connection at a time, endpoints in turn, a limit on everything that it waits for.
//!
//! A request that failed on one endpoint is sent to the next: only requests that may be carried out twice may be sent
//! with it. Nothing is resumed by itself: a stream that ends, ends for its reader.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use trilith_proto::etcdserverpb as pb;

use crate::config::discovery::Service;
use crate::rpc::frame::{Frames, HEADER_BYTES};
use crate::status::{AUTH_NOT_ENABLED, Code, Status};

/// Servers close connections whose clients ping more often.
const MIN_PING_INTERVAL: Duration = Duration::from_secs(10);
/// Largest message that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The endpoints of a service, and the connection to one of them.
pub(super) struct Client<'a> {
    service: &'a Service,
    connection: Option<Connection>,
    /// The endpoint to try first.
    next: usize,
}

struct Connection {
    requests: SendRequest<Bytes>,
    pings: PingPong,
    /// From Authenticate.
    token: Option<String>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A call whose answers come one by one.
pub(super) struct Stream {
    frames: Frames,
    answers: RecvStream,
    /// Stays open: a service ends the call when its client does.
    _requests: SendStream<Bytes>,
}

fn deadline_exceeded() -> Status {
    Status::new(Code::DeadlineExceeded, "context deadline exceeded")
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status { code: Code::Unavailable, message: error.to_string().into() }
}

impl<'a> Client<'a> {
    pub(super) fn new(service: &'a Service) -> Client<'a> {
        Client { service, connection: None, next: 0 }
    }

    /// Connects and shows the credentials, where there are any: wrong ones are told at once.
    pub(super) async fn sign_in(&mut self) -> Result<(), Status> {
        if self.service.user.is_none() {
            return Ok(());
        }
        let limit = self.service.dial_timeout;
        timeout(limit, self.connect_any()).await.unwrap_or_else(|_| Err(deadline_exceeded()))
    }

    /// One answer to one request, from whichever endpoint gives it.
    pub(super) async fn call<R: Message + Default>(
        &mut self,
        path: &str,
        request: &impl Message,
    ) -> Result<R, Status> {
        let limit = self.service.request_timeout;
        let answer = timeout(limit, self.call_any(path, request)).await;
        if !matches!(answer, Ok(Ok(_))) {
            self.connection = None;
        }
        answer.unwrap_or_else(|_| Err(deadline_exceeded()))
    }

    async fn call_any<R: Message + Default>(
        &mut self,
        path: &str,
        request: &impl Message,
    ) -> Result<R, Status> {
        let mut outcome = Err(unavailable("no endpoint"));
        for _ in 0..self.service.endpoints.len() {
            outcome = match self.connect_any().await {
                Ok(()) => match &self.connection {
                    Some(connection) => connection.call(path, request).await,
                    None => outcome,
                },
                Err(error) => return Err(error),
            };
            match &outcome {
                Err(error) if matches!(error.code, Code::Unavailable | Code::Unauthenticated) => {
                    self.connection = None;
                }
                _ => break,
            }
        }
        outcome
    }

    /// Opens a stream with its first message.
    pub(super) async fn open(&mut self, path: &str, first: &impl Message) -> Result<Stream, Status> {
        let limit = self.service.request_timeout;
        let opened = timeout(limit, async {
            self.connect_any().await?;
            match &self.connection {
                Some(connection) => connection.open(path, first, false).await,
                None => Err(unavailable("no endpoint")),
            }
        });
        opened.await.unwrap_or_else(|_| Err(deadline_exceeded()))
    }

    /// The next message of a stream. A connection that stays silent is probed.
    pub(super) async fn next<R: Message + Default>(&mut self, stream: &mut Stream) -> Result<R, Status> {
        let interval = self.service.keepalive_time.max(MIN_PING_INTERVAL);
        let Some(connection) = &mut self.connection else { return Err(unavailable("no connection")) };
        loop {
            tokio::select! {
                message = stream.next() => return message,
                () = sleep(interval) => {
                    let pong = timeout(self.service.keepalive_timeout, connection.pings.ping(Ping::opaque()));
                    if !matches!(pong.await, Ok(Ok(_))) {
                        return Err(unavailable("keepalive ping failed to receive ACK within timeout"));
                    }
                }
            }
        }
    }

    /// Gives up the connection: the next request goes to another endpoint.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Makes a connection unless there is one, trying each endpoint once.
    async fn connect_any(&mut self) -> Result<(), Status> {
        if self.connection.is_some() {
            return Ok(());
        }
        let mut last = unavailable("no endpoint");
        for _ in 0..self.service.endpoints.len() {
            let endpoint = &self.service.endpoints[self.next % self.service.endpoints.len()];
            self.next += 1;
            match timeout(self.service.dial_timeout, self.connect(endpoint)).await {
                Ok(Ok(connection)) => {
                    self.connection = Some(connection);
                    return Ok(());
                }
                // Wrong credentials are wrong everywhere.
                Ok(Err(error)) if error.code != Code::Unavailable => return Err(error),
                Ok(Err(error)) => last = error,
                Err(_) => last = deadline_exceeded(),
            }
        }
        Err(last)
    }

    async fn connect(&self, endpoint: &str) -> Result<Connection, Status> {
        let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
        let socket = TcpStream::connect(address).await.map_err(unavailable)?;
        socket.set_nodelay(true).map_err(unavailable)?;
        let (requests, mut connection) = h2::client::handshake(socket).await.map_err(unavailable)?;
        let pings = connection.ping_pong().ok_or_else(|| unavailable("no pings"))?;
        let task = tokio::spawn(async move {
            // Its end shows in the requests.
            let _ = connection.await;
        });
        let mut connection = Connection { requests, pings, token: None, task };
        if let Some((name, password)) = &self.service.user {
            let request = pb::AuthenticateRequest { name: name.clone(), password: password.clone() };
            let answer: Result<pb::AuthenticateResponse, Status> =
                connection.call("/etcdserverpb.Auth/Authenticate", &request).await;
            connection.token = match answer {
                Ok(answer) => Some(answer.token),
                // A service that asks for no credentials takes everybody.
                Err(error) if error == AUTH_NOT_ENABLED => None,
                Err(error) => return Err(error),
            };
        }
        Ok(connection)
    }
}

impl Connection {
    async fn call<R: Message + Default>(&self, path: &str, request: &impl Message) -> Result<R, Status> {
        let mut stream = self.open(path, request, true).await?;
        let answer = stream.next().await?;
        match stream.next::<R>().await {
            Err(status) if status.code == Code::Ok => Ok(answer),
            Err(status) => Err(status),
            Ok(_) => Err(unavailable("more than one answer to a request")),
        }
    }

    async fn open(&self, path: &str, first: &impl Message, last: bool) -> Result<Stream, Status> {
        let mut head = Request::post(format!("http://discovery{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = &self.token {
            head = head.header("token", token);
        }
        let head = head.body(()).map_err(unavailable)?;
        let mut requests = self.requests.clone().ready().await.map_err(unavailable)?;
        let (answer, mut send) = requests.send_request(head, false).map_err(unavailable)?;
        // h2 keeps what the window has no room for, and these are small.
        send.send_data(framed(first), last).map_err(unavailable)?;
        let answer = answer.await.map_err(unavailable)?;
        if !answer.status().is_success() {
            return Err(unavailable(format_args!("unexpected HTTP status code {}", answer.status())));
        }
        if answer.headers().contains_key("grpc-status") {
            return Err(status_of(answer.headers()));
        }
        Ok(Stream { frames: Frames::new(ANSWER_BYTES_MAX), answers: answer.into_body(), _requests: send })
    }
}

impl Stream {
    /// The next message; at the end the call's status, also where it is `Ok`.
    async fn next<R: Message + Default>(&mut self) -> Result<R, Status> {
        loop {
            if let Some(bytes) = self.frames.take()? {
                return R::decode(bytes).map_err(unavailable);
            }
            match self.answers.data().await {
                Some(chunk) => {
                    let chunk = chunk.map_err(unavailable)?;
                    self.answers.flow_control().release_capacity(chunk.len()).map_err(unavailable)?;
                    self.frames.push(chunk);
                }
                None => {
                    let trailers = self.answers.trailers().await.map_err(unavailable)?;
                    return Err(status_of(&trailers.unwrap_or_default()));
                }
            }
        }
    }
}

fn framed(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.push(0);
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes.into()
}

/// The status in headers or trailers.
fn status_of(headers: &HeaderMap) -> Status {
    let code = headers.get("grpc-status").and_then(|value| value.to_str().ok()?.parse::<u8>().ok());
    let message = headers.get("grpc-message").map_or(&b""[..], |value| value.as_bytes());
    let code = code.and_then(Code::from_number).unwrap_or(Code::Unknown);
    Status { code, message: percent_decoded(message).into() }
}

fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let hex = after
            .get(..2)
            .filter(|_| first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .filter(|hex| !hex.starts_with('+'));
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_statuses() {
        for (text, decoded) in [
            ("a b", "a b"),
            ("100%25 %C3%A9%0A", "100% \u{e9}\n"),
            ("%", "%"),
            ("%zz%4", "%zz%4"),
            ("%+1", "%+1"),
        ] {
            assert_eq!(percent_decoded(text.as_bytes()), decoded);
        }
        let mut headers = HeaderMap::new();
        assert_eq!(status_of(&headers).code, Code::Unknown);
        headers.insert("grpc-status", "14".parse().unwrap());
        headers.insert("grpc-message", "no%20leader".parse().unwrap());
        assert_eq!(status_of(&headers), Status::new(Code::Unavailable, "no leader"));
    }
}
