//! The core: raft, the log and the store's writer, stepped by one task; everyone else talks to it through a
//! [`Handle`].
#![allow(unused_variables, clippy::todo)]

use std::sync::Arc;

use bytes::Bytes;
use trilith_engine::{Reader, Root};
use trilith_proto::etcdserverpb::InternalRaftRequest;

use crate::reply::Reply;
use crate::status::Status;

/// What the services need of the core. Clones share it; Send + Sync.
#[derive(Debug, Clone)]
pub struct Handle(Arc<()>);

/// The published facts of the member, readable at any time without a lock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    pub cluster_id: u64,
    pub member_id: u64,
    pub leader: u64,
    /// Live raft term.
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    /// Term of the last applied entry: what response headers carry.
    pub applied_term: u64,
}

impl Handle {
    /// Proposes a request and waits until it has been applied here. The answer is the encoded response of the
    /// request's kind (PutResponse for put, ...), header included.
    pub async fn propose(&self, request: InternalRaftRequest) -> Result<Reply, Status> {
        todo!()
    }
    /// Waits for a linearizable read point; a root taken afterwards is fresh enough.
    pub async fn read_point(&self) -> Result<(), Status> {
        todo!()
    }
    /// The newest published root.
    pub fn root(&self) -> Root {
        todo!()
    }
    pub fn reader(&self) -> Reader {
        todo!()
    }
    pub fn facts(&self) -> Facts {
        todo!()
    }
    /// Renews a lease; its TTL, 0 when there is none (any more).
    pub async fn keep_alive(&self, lease: i64) -> Result<i64, Status> {
        todo!()
    }
    /// (granted TTL, remaining TTL) of a lease.
    pub fn lease_ttl(&self, lease: i64) -> Option<(i64, i64)> {
        todo!()
    }
    /// All lease ids, by remaining time ascending.
    pub fn leases(&self) -> Vec<i64> {
        todo!()
    }
    /// Keys of a request that outlive the h2 frame are copied with this.
    pub fn own(bytes: &Bytes) -> Bytes {
        Bytes::copy_from_slice(bytes)
    }
}
