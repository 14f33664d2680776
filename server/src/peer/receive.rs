//! A snapshot that comes in: its message, and its database as a file beside the store.
//!
//! The file has its name only once all of it is durable. One that was cut off is removed, at the latest by the next
//! start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use trilith_disk::{Disk, Open};
use trilith_proto::raftpb::{Message, MessageType};

use super::client::{STALL, next_data};
use super::codec::decode_message;
use super::link::Link;
use super::reply::Refusal;
use super::snapshot::metadata_index;
use crate::core::{PeerEvent, STORED, stored_snapshot};

/// N1: of the message, in bytes.
const MESSAGE_MAX: u64 = 64 << 20;
/// Pieces that may wait for the disk.
const AHEAD: usize = 8;
const PART: &str = ".part";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Makes the folder, and removes from it what an earlier process did not receive to the end.
pub(super) fn clean(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    disk.create_dir_all(dir)?;
    for path in disk.list(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(PART) && name.contains(STORED) {
            disk.remove(&path)?;
        }
    }
    Ok(())
}

/// N4: takes the body of a request; the core has the message and the file when it answers Ok.
pub(super) async fn receive(link: &Arc<Link>, mut body: Incoming) -> Result<(), Refusal> {
    let permit = link.receiving.try_acquire();
    let _permit = permit.map_err(|_| {
        let text = "failed to save KV snapshot (too many snapshots come in)";
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    })?;
    let (message, rest) = read_message(&mut body).await.map_err(|why| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("failed to decode raft message ({why})"))
    })?;
    if message.r#type() != MessageType::MsgSnap {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "wrong raft message type"));
    }
    link.check(&message)?;
    let index = metadata_index(&message);
    let from = format!("{:x}", message.from());
    log::info!("remote-peer-id" = from.as_str(), "snapshot-index" = index; "receiving a database snapshot");
    let path = stored_snapshot(&link.options.snap_dir, index);
    let bytes = save(link, path.clone(), rest, body).await.map_err(|error| {
        let text = format!("failed to save KV snapshot ({error})");
        log::warn!("remote-peer-id" = from.as_str(), "snapshot-index" = index; "{text}");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    })?;
    log::info!("remote-peer-id" = from.as_str(), "snapshot-index" = index, bytes; "received a database snapshot");
    let Err(error) = link.sink.event(PeerEvent::Message(message)) else { return Ok(()) };
    let disk = link.options.disk.clone();
    // Nobody will ask for the file. The sender is told all the same when it cannot be removed.
    let _ = spawn_blocking(move || disk.remove(&path)).await;
    let text = format!("failed to process raft message ({error})");
    Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text))
}

/// The message at the beginning of the body, and what came with it of the rest.
async fn read_message(body: &mut Incoming) -> Result<(Message, Bytes), String> {
    let mut read = BytesMut::new();
    loop {
        if let Some(head) = read.first_chunk::<8>() {
            let len = u64::from_be_bytes(*head);
            if len > MESSAGE_MAX {
                return Err(format!("a message of {len} bytes is longer than {MESSAGE_MAX}"));
            }
            if read.len() as u64 - 8 >= len {
                read.advance(8);
                let message = decode_message(read.split_to(len as usize).freeze());
                return Ok((message.map_err(|error| error.to_string())?, read.freeze()));
            }
        }
        match next_piece(body).await.map_err(|error| error.to_string())? {
            Some(data) => read.extend_from_slice(&data),
            None => return Err("unexpected EOF".to_owned()),
        }
    }
}

async fn next_piece(body: &mut Incoming) -> io::Result<Option<Bytes>> {
    match timeout(STALL, next_data(body)).await {
        Ok(data) => data.transpose().map_err(io::Error::other),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// What is written next; None after the last byte.
type Piece = Option<Bytes>;

async fn save(link: &Link, path: PathBuf, first: Bytes, mut body: Incoming) -> io::Result<u64> {
    let (to_write, pieces) = mpsc::channel::<Piece>(AHEAD);
    let disk = link.options.disk.clone();
    let writing = spawn_blocking(move || write(disk.as_ref(), &path, pieces));
    let mut broken = None;
    let mut next = Some(first);
    // A writer that takes no more has an error to tell. One that is not told of the end knows that it was cut off.
    while to_write.send(next.clone()).await.is_ok() && next.is_some() {
        match next_piece(&mut body).await {
            Ok(piece) => next = piece,
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    drop(to_write);
    let written = writing.await.map_err(io::Error::other)?;
    broken.map_or(written, Err)
}

/// Writes the file under a name of its own, and gives it its own name in the end.
fn write(disk: &dyn Disk, path: &Path, mut pieces: mpsc::Receiver<Piece>) -> io::Result<u64> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}{PART}", NEXT.fetch_add(1, Ordering::Relaxed)));
    let part = PathBuf::from(part);
    let mut fill = || {
        let file = disk.open(&part, Open::CreateNew)?;
        let mut at = 0;
        while let Some(piece) = pieces.blocking_recv() {
            let Some(bytes) = piece else {
                file.sync_data()?;
                disk.rename(&part, path)?;
                disk.sync_dir(path.parent().unwrap_or(Path::new(".")))?;
                return Ok(at);
            };
            file.write_all_at(&bytes, at)?;
            at += bytes.len() as u64;
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    };
    let filled = fill();
    if filled.is_err() {
        // The next start removes what stays.
        let _ = disk.remove(&part);
    }
    filled
}
