//! The peer port and the ways to other members: etcd's rafthttp, so that our members and etcd's can stand in one cluster.
//!
//! ```text
//!               a member dials and reads              the dialed member writes
//! Dialer  <---- GET /raft/stream/msgapp/OWN_ID ----   StreamBody <-- Queue
//! Dialer  <---- GET /raft/stream/message/OWN_ID ---   StreamBody <-- Queue
//! Poster  ----- POST /raft, /raft/snapshot ------->   Port
//! ```
//!
//! [`Transport`] is the whole of it: it serves the port, keeps two streams from each member, and finds the way
//! for each message. Every task of it may run beside the core: none of them waits for a disk or does long work there.
//!
//! Promises: nothing here blocks its caller; all queues are bounded, and what does not fit is dropped and reported, since
//! raft sends again; heartbeats and votes wait behind no entries and no snapshot; a peer that stalls, or lies,
//! costs its own connection only. What a message means is the core's business ([`Sink`]).

mod client;
pub mod codec;
mod dial;
mod fetch;
mod link;
mod local;
mod pipeline;
mod port;
mod queue;
mod receive;
mod reply;
mod route;
mod snapshot;
mod stream;
mod transport;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use trilith_disk::{Disk, RealDisk};
use trilith_proto::etcdserverpb::{HashKvResponse, LeaseTimeToLiveResponse};

use crate::apply::members::Member;
use crate::core::{Overflow, PeerEvent};
use crate::status::Status;
use crate::tls::Connector;

pub use fetch::{
    HashHeader, HashKv, Versions, fetch_downgrade_enabled, fetch_hash_kv, fetch_members, fetch_version,
};
pub use port::Listener;
pub use transport::Transport;

/// Header with a cluster's id.
const CLUSTER_ID: &str = "x-etcd-cluster-id";

/// A member as the transport needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its id.
    pub id: u64,
    /// Its peer URLs.
    pub urls: Vec<String>,
}

/// What a transport is made from.
#[derive(Debug, Clone)]
pub struct Options {
    /// Id of this member.
    pub member_id: u64,
    /// Id of the cluster.
    pub cluster_id: u64,
    /// --initial-advertise-peer-urls: told to members that may not know this one yet.
    pub advertise_urls: Vec<String>,
    /// --election-timeout: a connection may take a second longer.
    pub election: Duration,
    /// Where snapshots from the leader are stored, as `INDEX16HEX.snap.db`.
    pub snap_dir: PathBuf,
    /// The disk that holds it.
    pub disk: Arc<dyn Disk>,
    /// Dials the others.
    pub dialer: Connector,
}

impl Options {
    /// With etcd's election timeout, a folder on a real disk, and no certificate of its own.
    pub fn new(member_id: u64, cluster_id: u64, advertise_urls: Vec<String>, snap_dir: PathBuf) -> Options {
        let election = Duration::from_millis(1000);
        let (disk, dialer) = (Arc::new(RealDisk), Connector::default());
        Options { member_id, cluster_id, advertise_urls, election, snap_dir, disk, dialer }
    }
}

/// An answer that comes later.
pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the peer port needs of its member. [`crate::core::Handle`] is one; tests have their own.
pub trait Sink: Send + Sync + 'static {
    /// Takes what a peer said, or what became of what was said to it.
    ///
    /// # Errors
    /// `Overflow` when too much waits already: it is forgotten.
    fn event(&self, event: PeerEvent) -> Result<(), Overflow>;
    /// All members.
    fn members(&self) -> Result<Vec<Member>, Status>;
    /// The versions of this member and its cluster.
    fn versions(&self) -> Result<Versions, Status>;
    /// Renews a lease here; its TTL in seconds, 0 when there is none.
    fn renew(&self, lease: i64) -> Later<Result<i64, Status>>;
    /// What is left of a lease, with its keys if asked for; None when there is none.
    fn lease(&self, id: i64, keys: bool) -> Later<Result<Option<LeaseTimeToLiveResponse>, Status>>;
    /// X8, X9.
    fn hash_kv(&self, revision: i64) -> Later<Result<HashKvResponse, Status>>;
    /// Promotes a learner, as the leader; the members afterwards. `token` is the caller's.
    fn promote(&self, id: u64, token: Option<String>) -> Later<Result<Vec<Member>, Status>>;
    /// Whether a downgrade is under way, linearizably.
    fn downgrade_enabled(&self) -> Later<Result<bool, Status>>;
}

/// Why a peer could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nobody to ask.
    #[error("no peer URL is known")]
    NoUrls,
    /// The URL makes no sense.
    #[error("{0}")]
    Url(String),
    /// Nobody there.
    #[error("{url}: {error}")]
    Connect {
        /// The peer URL.
        url: String,
        /// The operating system's answer.
        error: io::Error,
    },
    /// The connection broke, or what came back is no HTTP.
    #[error("{url}: {error}")]
    Http {
        /// The peer URL.
        url: String,
        /// What happened.
        error: hyper::Error,
    },
    /// No answer in time.
    #[error("{url}: no answer in time")]
    Timeout {
        /// The peer URL.
        url: String,
    },
    /// The peer refused.
    #[error("{url}: {code} {text}")]
    Refused {
        /// The peer URL.
        url: String,
        /// HTTP status.
        code: u16,
        /// What it said.
        text: String,
    },
    /// The answer cannot be read.
    #[error("{url}: unexpected answer: {what}")]
    Answer {
        /// The peer URL.
        url: String,
        /// What is wrong with it.
        what: String,
    },
}
