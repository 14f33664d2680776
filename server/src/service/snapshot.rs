//! Maintenance.Snapshot: the store as a file of etcd's, in messages (X10).
//!
//! It is read from a published root on a thread that may block, one part ahead of what the client has taken, so
//! nobody waits for it and little is held for a client that is slow.

use tokio::task::{JoinHandle, spawn_blocking};
use trilith_engine::bolt::{CHUNK_BYTES, Export};
use trilith_proto::etcdserverpb::{SnapshotRequest, SnapshotResponse};

use crate::apply::members;
use crate::core::Handle;
use crate::reply::Reply;
use crate::status::Status;

/// Messages that are read at once: half a MiB.
const PART: usize = (512 << 10) / CHUNK_BYTES;

/// A snapshot on its way to a client.
#[derive(Debug)]
pub struct Snapshot {
    /// What reads the next part, and brings the rest back with it.
    ahead: JoinHandle<Result<(Rest, Vec<Reply>), Status>>,
}

#[derive(Debug)]
struct Rest {
    export: Export,
    /// Of the database, without the hash behind it.
    left: u64,
    version: String,
}

/// Begins a snapshot of the newest root.
pub fn begin(handle: &Handle, _: SnapshotRequest) -> Snapshot {
    let root = handle.root();
    let ahead = spawn_blocking(move || {
        let version = members::storage_version(root.view())?.unwrap_or_default();
        let export = Export::new(root)?;
        let left = export.total_bytes();
        Rest { export, left, version }.read()
    });
    Snapshot { ahead }
}

impl Snapshot {
    /// The next messages; none after the last.
    pub async fn next_part(&mut self) -> Result<Vec<Reply>, Status> {
        let (rest, part) = (&mut self.ahead).await.map_err(Status::internal)??;
        self.ahead = spawn_blocking(move || rest.read());
        Ok(part)
    }
}

impl Rest {
    fn read(mut self) -> Result<(Rest, Vec<Reply>), Status> {
        let mut part = Vec::with_capacity(PART);
        while part.len() < PART {
            let Some(blob) = self.export.next_chunk()? else { break };
            self.left = self.left.saturating_sub(blob.len() as u64);
            let version = self.version.clone();
            part.push(Reply::of(&SnapshotResponse {
                header: None,
                remaining_bytes: self.left,
                blob,
                version,
            }));
        }
        Ok((self, part))
    }
}
