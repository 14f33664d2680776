//! One call: reads request messages from an h2 stream, writes replies and the status.
//!
//! A handler is dropped at its next wait when the client cancels, the connection dies or the deadline passes.
//! Streaming replies, and unary ones in parts, wait for the client's window; other unary replies are handed to h2 at
//! once, which holds one reply per stream.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, StatusCode};
use prost::Message;
use tokio::time::Sleep;

use super::frame::Frames;
use super::server::Stop;
use super::wire;
use crate::blocking;
use crate::reply::{Body, Parts, Reply};
use crate::status::{self, Code, Status};

/// The client is gone: nobody reads further replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// A call that waits for its handler.
#[derive(Debug)]
pub struct Call {
    headers: HeaderMap,
    requests: Requests,
    respond: SendResponse<Bytes>,
    timeout: Option<Duration>,
    stop: Stop,
    common_name: Option<Arc<str>>,
}

/// The request messages of a call.
#[derive(Debug)]
pub struct Requests {
    body: RecvStream,
    frames: Frames,
}

impl Requests {
    /// The next message's bytes; `None` after the client's half-close. May be dropped and called again.
    pub async fn next_bytes(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(frame) = self.frames.take()? {
                return Ok(Some(frame));
            }
            match self.body.data().await {
                Some(Ok(chunk)) => {
                    // Fails only on a stream that is over, which the next read reports.
                    let _ = self.body.flow_control().release_capacity(chunk.len());
                    self.frames.push(chunk);
                }
                Some(Err(_)) => return Err(Status::new(Code::Canceled, "context canceled")),
                None if self.frames.is_partial() => {
                    return Err(Status::new(Code::Internal, "unexpected EOF"));
                }
                None => return Ok(None),
            }
        }
    }

    /// The next message; `None` after the client's half-close. May be dropped and called again.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        match self.next_bytes().await? {
            Some(bytes) => decode(bytes).map(Some),
            None => Ok(None),
        }
    }

    async fn only<M: Message + Default>(&mut self) -> Result<M, Status> {
        match self.next().await? {
            Some(message) => Ok(message),
            None => Err(Status::new(Code::Internal, "no request message before the end of the stream")),
        }
    }
}

fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status {
        code: Code::Internal,
        message: format!("grpc: error unmarshalling request: {error}").into(),
    })
}

/// The answer's side of a stream: before its head, then after.
#[derive(Debug)]
struct Outgoing {
    respond: SendResponse<Bytes>,
    stream: Option<SendStream<Bytes>>,
}

impl Outgoing {
    fn stream(&mut self) -> Result<&mut SendStream<Bytes>, Gone> {
        if self.stream.is_none() {
            self.stream = Some(self.respond.send_response(wire::head(), false).map_err(|_| Gone)?);
        }
        self.stream.as_mut().ok_or(Gone)
    }

    /// Hands over as much of `rest` as the client's window has room for; ready when nothing is left.
    fn poll_send(&mut self, rest: &mut Bytes, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let stream = self.stream()?;
        while rest.has_remaining() {
            stream.reserve_capacity(rest.len());
            let granted = match ready!(stream.poll_capacity(cx)) {
                Some(Ok(granted)) => granted.min(rest.len()),
                Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
            };
            stream.send_data(rest.split_to(granted), false).map_err(|_| Gone)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stream {
            Some(stream) => stream.poll_reset(cx).map(|_| ()),
            None => self.respond.poll_reset(cx).map(|_| ()),
        }
    }

    /// Ends the answer. An error means that the client is gone, and then nobody is left to be told.
    fn finish(&mut self, outcome: Result<(), Status>) {
        let _ = match (self.stream.as_mut(), outcome) {
            (None, Err(status)) => {
                self.respond.send_response(wire::trailers_only(StatusCode::OK, &status), true).map(|_| ())
            }
            (None, Ok(())) => self
                .respond
                .send_response(wire::head(), false)
                .and_then(|mut stream| stream.send_trailers(wire::ok_trailers())),
            (Some(stream), Ok(())) => stream.send_trailers(wire::ok_trailers()),
            (Some(stream), Err(status)) => stream.send_trailers(wire::trailers(&status)),
        };
    }
}

/// The reply messages of a streaming call.
#[derive(Debug)]
pub struct Replies(Rc<RefCell<Outgoing>>);

impl Replies {
    /// Sends the head of the answer now rather than with the first reply.
    pub fn open(&mut self) -> Result<(), Gone> {
        self.0.borrow_mut().stream().map(|_| ())
    }

    /// Hands a reply to h2 as the client's window allows; waits until all of it is handed over.
    pub async fn send(&mut self, reply: Reply) -> Result<(), Gone> {
        send(&self.0, reply.0).await
    }
}

/// Hands bytes to h2 as the client's window allows; waits until all are handed over.
async fn send(outgoing: &RefCell<Outgoing>, mut bytes: Bytes) -> Result<(), Gone> {
    poll_fn(|cx| outgoing.borrow_mut().poll_send(&mut bytes, cx)).await
}

/// Answers a unary call in parts: the next one is made while one is sent.
async fn send_parts(respond: SendResponse<Bytes>, parts: Box<dyn Parts>, mut deadline: Deadline) {
    let outgoing = RefCell::new(Outgoing { respond, stream: None });
    let outcome = {
        let sending = pin!(async {
            let (mut part, mut rest) = next_part(parts).await?;
            while let Some(bytes) = part {
                let (sent, next) = tokio::join!(send(&outgoing, bytes), next_part(rest));
                if sent.is_err() {
                    break;
                }
                (part, rest) = next?;
            }
            Ok(())
        });
        guard(sending, &mut deadline, |cx| outgoing.borrow_mut().poll_gone(cx)).await
    };
    if let Some(outcome) = outcome {
        outgoing.borrow_mut().finish(outcome);
    }
}

async fn next_part(mut parts: Box<dyn Parts>) -> Result<(Option<Bytes>, Box<dyn Parts>), Status> {
    blocking::read(move || {
        let part = parts.next().transpose()?;
        Ok((part, parts))
    })
    .await
}

/// When a call must have ended.
type Deadline = Option<Pin<Box<Sleep>>>;

fn deadline(timeout: Option<Duration>) -> Deadline {
    timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout)))
}

/// Drives `answer` until it is done (`Some`), the deadline passes (`Some` error) or the client is gone (`None`).
///
/// The answer comes pinned, since a future that is moved into another is stored twice.
async fn guard<T>(
    mut answer: Pin<&mut impl Future<Output = Result<T, Status>>>,
    deadline: &mut Deadline,
    mut poll_gone: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Option<Result<T, Status>> {
    poll_fn(|cx| {
        if let Poll::Ready(outcome) = answer.as_mut().poll(cx) {
            return Poll::Ready(Some(outcome));
        }
        if poll_gone(cx).is_ready() {
            return Poll::Ready(None);
        }
        match deadline {
            Some(deadline) => deadline
                .as_mut()
                .poll(cx)
                .map(|()| Some(Err(Status::new(Code::DeadlineExceeded, "context deadline exceeded")))),
            None => Poll::Pending,
        }
    })
    .await
}

impl Call {
    /// Takes a request over; one that is no gRPC call is answered here.
    pub(super) fn accept(
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        receive_limit: usize,
        stop: Stop,
        common_name: Option<Arc<str>>,
    ) -> Option<(http::uri::PathAndQuery, Call)> {
        let (parts, body) = request.into_parts();
        let timeout = match wire::check_request(&parts) {
            Ok(timeout) => timeout,
            Err(refusal) => {
                let _ = respond.send_response(wire::trailers_only(refusal.http, &refusal.status), true);
                return None;
            }
        };
        let path = parts.uri.into_parts().path_and_query?;
        let requests = Requests { body, frames: Frames::new(receive_limit) };
        Some((path, Call { headers: parts.headers, requests, respond, timeout, stop, common_name }))
    }

    /// The client's metadata.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The common name of the client's certificate, with `--client-cert-auth`.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// Refuses the call.
    pub fn refuse(mut self, status: Status) {
        let _ = self.respond.send_response(wire::trailers_only(StatusCode::OK, &status), true);
    }

    /// Starts a task for a call with one request and one reply.
    pub fn unary<M, F>(self, handler: impl FnOnce(M) -> F + 'static)
    where
        M: Message + Default,
        F: Future<Output = Result<Reply, Status>>,
    {
        self.answer(handler);
    }

    /// The same, where the reply may come in parts.
    pub fn unary_in_parts<M, F>(self, handler: impl FnOnce(M) -> F + 'static)
    where
        M: Message + Default,
        F: Future<Output = Result<Body, Status>>,
    {
        self.answer(handler);
    }

    fn answer<M, F, B>(self, handler: impl FnOnce(M) -> F + 'static)
    where
        M: Message + Default,
        F: Future<Output = Result<B, Status>>,
        B: Into<Body>,
    {
        let Call { mut requests, mut respond, timeout, .. } = self;
        tokio::task::spawn_local(async move {
            let answer = pin!(async {
                let request = requests.only().await?;
                handler(request).await
            });
            let mut deadline = deadline(timeout);
            let outcome = guard(answer, &mut deadline, |cx| respond.poll_reset(cx).map(|_| ())).await;
            let Some(outcome) = outcome else { return };
            // Errors mean that the client is gone, and then nobody is left to be told.
            let _ = match outcome.map(Into::into) {
                Ok(Body::Parts(parts)) => return Box::pin(send_parts(respond, parts, deadline)).await,
                Ok(Body::Whole(reply)) => {
                    respond.send_response(wire::head(), false).and_then(|mut stream| {
                        stream.send_data(reply.0, false)?;
                        stream.send_trailers(wire::ok_trailers())
                    })
                }
                Err(status) => {
                    respond.send_response(wire::trailers_only(StatusCode::OK, &status), true).map(|_| ())
                }
            };
        });
    }

    /// Starts a task for a call with one request and any number of replies.
    pub fn server_streaming<M: Message + Default>(
        self,
        handler: impl AsyncFnOnce(M, &mut Replies) -> Result<(), Status> + 'static,
    ) {
        self.streaming(async move |requests: &mut Requests, replies: &mut Replies| {
            let request = requests.only().await?;
            handler(request, replies).await
        });
    }

    /// Starts a task for a call with any number of both. When the server stops, it ends with etcd's error for that.
    pub fn streaming(
        self,
        handler: impl AsyncFnOnce(&mut Requests, &mut Replies) -> Result<(), Status> + 'static,
    ) {
        let Call { mut requests, respond, timeout, mut stop, .. } = self;
        tokio::task::spawn_local(async move {
            let outgoing = Rc::new(RefCell::new(Outgoing { respond, stream: None }));
            let mut replies = Replies(outgoing.clone());
            let outcome = {
                let mut stopped = pin!(stop.wait());
                let mut answer = pin!(handler(&mut requests, &mut replies));
                let answer_or_stop = pin!(poll_fn(|cx| {
                    if let Poll::Ready(outcome) = answer.as_mut().poll(cx) {
                        return Poll::Ready(outcome);
                    }
                    stopped.as_mut().poll(cx).map(|()| Err(status::STOPPED))
                }));
                let mut deadline = deadline(timeout);
                guard(answer_or_stop, &mut deadline, |cx| outgoing.borrow_mut().poll_gone(cx)).await
            };
            if let Some(outcome) = outcome {
                outgoing.borrow_mut().finish(outcome);
            }
        });
    }
}
