//! The writing side of a stream: the endless body of an answer, fed from a queue.
//!
//! It is asked for bytes only when the connection can take them, so what is held for a peer that does not read is
//! the queue and one piece. When it is dropped the peer reads no more: what was on its way is lost, and raft hears it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::codec::{Encoder, Kind};
use super::link::{Link, Peer, STREAM_QUEUE};
use super::queue::{Queue, Take};

/// T3.
const HEARTBEAT: Duration = Duration::from_nanos(5_000_000_000 / 3);
/// Messages are gathered up to so many bytes.
const PIECE: usize = 64 << 10;

/// An answer's body.
pub(super) enum Reply {
    /// All of it.
    Whole(Bytes),
    /// A stream of messages.
    Stream(Box<StreamBody>),
}

/// See the module.
pub(super) struct StreamBody {
    link: Arc<Link>,
    peer: Arc<Peer>,
    kind: Kind,
    queue: Arc<Queue>,
    encoder: Encoder,
    heartbeat: Interval,
    piece: BytesMut,
}

impl StreamBody {
    /// Takes the place of the stream of this kind that the peer read from before.
    pub(super) fn attach(link: Arc<Link>, peer: Arc<Peer>, kind: Kind) -> StreamBody {
        let queue = Arc::new(Queue::new(STREAM_QUEUE));
        if peer.attach(kind, queue.clone()) {
            link.unreachable(peer.id);
        }
        let (id, stream) = (format!("{:x}", peer.id), kind.name());
        log::info!("remote-peer-id" = id.as_str(), stream; "a peer reads from this member");
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        StreamBody { link, peer, kind, queue, encoder: Encoder::new(kind), heartbeat, piece: BytesMut::new() }
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while self.piece.len() < PIECE {
            match self.queue.poll_pop(Take::Any, context) {
                Poll::Ready(Some(message)) => self.encoder.encode(&message, &mut self.piece),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        if self.piece.is_empty() {
            if self.heartbeat.poll_tick(context).is_pending() {
                return Poll::Pending;
            }
            self.encoder.heartbeat(&mut self.piece);
            // The next tick wakes this task only after it has been waited for.
            let _ = self.heartbeat.poll_tick(context);
        }
        Poll::Ready(Some(self.piece.split().freeze()))
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.peer.detach(self.kind, &self.queue);
        self.queue.close();
        self.link.unreachable(self.peer.id);
        let (id, stream) = (format!("{:x}", self.peer.id), self.kind.name());
        log::info!("remote-peer-id" = id.as_str(), stream; "a peer no longer reads from this member");
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut *self {
            Reply::Whole(bytes) => Poll::Ready(Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty())),
            Reply::Stream(stream) => stream.poll_piece(context),
        };
        piece.map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Reply::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Reply::Stream(_) => SizeHint::new(),
        }
    }
}
