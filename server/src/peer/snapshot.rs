//! POST /raft/snapshot: the store to a member that is too far behind for entries.
//!
//! The file is made of a published root part by part, one ahead of what the connection has taken, each on a thread
//! that may block for just that long. A receiver that stalls holds a root and a few parts, and nobody up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, header};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use trilith_engine::bolt::Export;
use trilith_engine::{Root, StoreError};
use trilith_proto::raftpb::Message;

use super::PeerError;
use super::client::{Connection, Payload, read_answer};
use super::link::{Link, Peer};
use super::pipeline::REMOVED;
use crate::core::PeerEvent;

/// Bytes that are read at once.
const PART: usize = 512 << 10;
/// How long the receiver may take nothing: it may be waiting for its disk.
const STALL: Duration = Duration::from_secs(30);
/// How long it may take to make durable what it has.
const ANSWER_MAX: Duration = Duration::from_secs(300);
/// Until the core is told again what it had no room for.
const PAUSE: Duration = Duration::from_millis(100);

/// Sends a snapshot and tells the core what became of it: raft waits for that.
pub(super) async fn send(link: Arc<Link>, peer: Arc<Peer>, message: Message, root: Root) {
    let (id, index) = (format!("{:x}", peer.id), metadata_index(&message));
    log::info!("remote-peer-id" = id.as_str(), "snapshot-index" = index; "sending a database snapshot");
    let url = peer.url();
    let delivered = match deliver(&link, &url, &message, root).await {
        Ok(bytes) => {
            log::info!("remote-peer-id" = id.as_str(), "snapshot-index" = index, bytes; "sent a database snapshot");
            peer.activate();
            true
        }
        Err(error) => {
            let text = error.to_string();
            log::warn!("remote-peer-id" = id.as_str(), "snapshot-index" = index, error = text.as_str(); "failed to send a database snapshot");
            if let Failure::Peer(error) = &error {
                link.note(error, REMOVED);
                peer.failed(&url);
            }
            peer.deactivate("snapshot", &error);
            link.unreachable(peer.id);
            false
        }
    };
    report(&link, peer.id, delivered).await;
}

/// Tells the core until it has room for it.
pub(super) async fn report(link: &Link, to: u64, delivered: bool) {
    while link.sink.event(PeerEvent::SnapshotSent { to, delivered }).is_err() {
        sleep_until(Instant::now() + PAUSE).await;
    }
}

/// The index that a MsgSnap stands for; 0 when it has none.
pub(super) fn metadata_index(message: &Message) -> u64 {
    let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    metadata.map_or(0, |metadata| metadata.index())
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("reading the store: {0}")]
    Store(#[from] StoreError),
    #[error("reading the store: {0}")]
    Thread(#[from] tokio::task::JoinError),
    #[error("no answer within {} s after the last byte", ANSWER_MAX.as_secs())]
    NoAnswer,
}

/// N1. The bytes of the database.
async fn deliver(link: &Link, url: &str, message: &Message, root: Root) -> Result<u64, Failure> {
    let export = spawn_blocking(move || Export::new(root)).await??;
    let bytes = export.total_bytes();
    let mut head = BytesMut::with_capacity(8 + message.encoded_len());
    head.put_u64(message.encoded_len() as u64);
    head.extend_from_slice(&message.encode_to_vec());
    let left = head.len() as u64 + bytes;
    let mut connection = Connection::open(&link.options.dialer, url, link.connect_max(), STALL).await?;
    let (to_send, parts) = mpsc::channel(1);
    let feeding = tokio::spawn(feed(export, bytes, head.freeze(), to_send));
    let request =
        link.request(Method::POST, "/raft/snapshot").header(header::CONTENT_TYPE, "application/octet-stream");
    let exchange = async {
        let answer = connection.send(request, Payload::Parts { parts, left }).await?;
        read_answer(url, answer, 0).await
    };
    let patience = async {
        // Why it ended, the body has said.
        let _ = feeding.await;
        sleep_until(Instant::now() + ANSWER_MAX).await;
    };
    tokio::select! {
        outcome = exchange => outcome?,
        () = patience => return Err(Failure::NoAnswer),
    };
    Ok(bytes)
}

/// Reads ahead of the body. The hash at the end of a snapshot file is not sent.
async fn feed(mut export: Export, mut left: u64, head: Bytes, to_send: mpsc::Sender<io::Result<Bytes>>) {
    if to_send.send(Ok(head)).await.is_err() {
        return;
    }
    while left > 0 {
        let read = spawn_blocking(move || {
            let part = next_part(&mut export, left);
            (export, part)
        });
        let part = match read.await {
            Ok((rest, part)) => {
                export = rest;
                part.map_err(io::Error::other)
            }
            Err(error) => {
                let _ = to_send.send(Err(io::Error::other(error))).await;
                return;
            }
        };
        left -= part.as_ref().map_or(left, |part| part.len() as u64);
        // Whoever has gone needs no more.
        if to_send.send(part).await.is_err() {
            return;
        }
    }
}

fn next_part(export: &mut Export, left: u64) -> Result<Bytes, StoreError> {
    let want = left.min(PART as u64) as usize;
    let mut part = BytesMut::with_capacity(want);
    while part.len() < want {
        match export.next_chunk()? {
            Some(chunk) => part.extend_from_slice(&chunk),
            None => return Err(StoreError::Inconsistent("export: it ends early".to_owned())),
        }
    }
    Ok(part.freeze())
}
