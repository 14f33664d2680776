//! The core: raft, the log and the store's writer, stepped by one task; everyone else talks to it through a
//! [`Handle`].
//!
//! ```text
//! handlers --(inbox: proposals, reads)--> Core::step --> raft --> log
//!                                             |
//!                 waiters <-- apply, publish, hub <-- committed entries
//! ```
//!
//! [`Core`] is a machine without a clock, a thread or a runtime: `step(now)` does what can be done without
//! waiting. [`run`] is the thin driver that knows tokio. The core shares two things with the rest: queues, and the
//! published root with the facts beside it.

mod adopt;
mod alarm;
mod auto_compaction;
mod boot;
mod compaction;
mod driver;
mod force_new;
mod install;
mod lease_call;
mod log_cut;
mod machine;
mod peers;
mod pressure;
mod reads;
mod scrub;
mod shared;
mod shrink;
mod version;
mod waiters;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use trilith_disk::Disk;
use trilith_engine::StoreError;
use trilith_raft::RaftError;
use trilith_wal::{IoChoice, WalError};

use crate::apply::ApplyError;
use crate::apply::quota::Quota;

pub use alarm::OverQuota;
pub use auto_compaction::Retention;
pub use driver::{Ended, run};
pub use install::{InstallJob, STORED, stored_snapshot};
pub use lease_call::{LeaseAsked, Left};
pub use log_cut::LogRead;
pub use machine::Core;
pub use peers::{Membership, Outgoing};
pub use scrub::ScrubJob;
pub use shared::{Facts, Handle, Overflow, PeerEvent};

/// The version that this server reports and brings the cluster to.
pub const SERVER_VERSION: &str = "3.7.1";

/// A member of the initial cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its --name.
    pub name: String,
    /// Its --initial-advertise-peer-urls.
    pub peer_urls: Vec<String>,
}

/// The ids of a member that joins a cluster, as the cluster has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    /// Id of the cluster.
    pub cluster_id: u64,
    /// Id of this member.
    pub member_id: u64,
}

/// What a core is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// --data-dir.
    pub data_dir: PathBuf,
    /// --wal-dir; None: `member/wal` in the data directory.
    pub wal_dir: Option<PathBuf>,
    /// The disk that holds both.
    pub disk: Arc<dyn Disk>,
    /// Read the store through a memory map.
    pub map: bool,
    /// The log's I/O path.
    pub wal_io: IoChoice,
    /// Length of a segment of the log; 64,000,000 as in etcd.
    pub wal_segment_bytes: u64,
    /// False only with --unsafe-no-fsync.
    pub fsync: bool,
    /// --max-wals.
    pub max_wals: usize,
    /// --trilith-memory-budget, in bytes: a quarter of it unwritten makes a checkpoint due, three quarters hold up
    /// writers; a store that is not mapped has the last quarter for its cache.
    pub memory_budget: usize,
    /// --trilith-compress-values.
    pub compress_values: bool,
    /// Bytes of log entries that make a checkpoint due, if there are `checkpoint_log_entries` of them; twice as many do anyway.
    /// Bounds the replay after a crash.
    pub checkpoint_log_bytes: u64,
    /// With fewer entries than that a checkpoint waits for twice the bytes: few large ones are replayed faster than many small
    /// ones, and what a checkpoint writes anew for each of them gets less.
    pub checkpoint_log_entries: u64,
    /// Age of the last checkpoint that makes one due when something changed since.
    pub checkpoint_interval: Duration,
    /// --name.
    pub name: String,
    /// --advertise-client-urls: published to the cluster.
    pub client_urls: Vec<String>,
    /// --initial-cluster; used at the first start only.
    pub initial_cluster: Vec<Peer>,
    /// --initial-cluster-token; used at the first start only.
    pub initial_cluster_token: String,
    /// --initial-cluster-state existing: a member without a log joins, and gets the log from the others.
    pub existing: bool,
    /// --force-new-cluster: a member that was here before leaves all others behind.
    pub force_new_cluster: bool,
    /// What the others said of the cluster; used at the first start of a member that joins only.
    pub join: Option<Join>,
    /// --snapshot-count: entries applied from one cut of raft's log to the next.
    pub snapshot_count: u64,
    /// --snapshot-catchup-entries: entries that a cut leaves for members that lag behind.
    pub catchup_entries: u64,
    /// Bytes of raft's log that stay in memory.
    pub raft_tail_bytes: usize,
    /// --heartbeat-interval: one tick.
    pub heartbeat: Duration,
    /// --election-timeout.
    pub election: Duration,
    /// --pre-vote.
    pub pre_vote: bool,
    /// --max-learners.
    pub max_learners: usize,
    /// --strict-reconfig-check.
    pub strict_reconfig_check: bool,
    /// --max-request-bytes.
    pub max_request_bytes: usize,
    /// --max-txn-ops.
    pub max_txn_ops: usize,
    /// --quota-backend-bytes.
    pub quota: Quota,
    /// --auto-compaction-mode and --auto-compaction-retention.
    pub retention: Retention,
    /// Gate LeaseCheckpoint.
    pub lease_checkpoints: bool,
    /// Gate LeaseCheckpointPersist: they are stored in a cluster of any version.
    pub lease_checkpoint_persist: bool,
    /// Seeds what is random.
    pub seed: u64,
    /// Unix time of the start in milliseconds: request ids begin there.
    pub unix_ms: u64,
}

impl Config {
    /// etcd's defaults for a lone member in this folder.
    pub fn new(data_dir: PathBuf, disk: Arc<dyn Disk>) -> Config {
        Config {
            data_dir,
            wal_dir: None,
            disk,
            map: true,
            wal_io: IoChoice::Auto,
            wal_segment_bytes: 64_000_000,
            fsync: true,
            max_wals: 5,
            memory_budget: 1 << 30,
            compress_values: true,
            checkpoint_log_bytes: 64 << 20,
            checkpoint_log_entries: 128 << 10,
            checkpoint_interval: Duration::from_secs(30),
            name: "default".into(),
            client_urls: vec!["http://localhost:2379".into()],
            initial_cluster: vec![Peer {
                name: "default".into(),
                peer_urls: vec!["http://localhost:2380".into()],
            }],
            initial_cluster_token: "etcd-cluster".into(),
            existing: false,
            force_new_cluster: false,
            join: None,
            snapshot_count: 10_000,
            catchup_entries: 5000,
            raft_tail_bytes: 16 << 20,
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(1000),
            pre_vote: true,
            max_learners: 1,
            strict_reconfig_check: true,
            max_request_bytes: 1_572_864,
            max_txn_ops: 128,
            quota: Quota::new(0),
            retention: Retention::All,
            lease_checkpoints: false,
            lease_checkpoint_persist: false,
            seed: 0,
            unix_ms: 0,
        }
    }

    /// The folder of the store and of snapshots.
    pub fn snap_dir(&self) -> PathBuf {
        self.data_dir.join("member").join("snap")
    }

    /// The store's file.
    fn store_path(&self) -> PathBuf {
        self.snap_dir().join("db")
    }

    /// The folder of the log.
    fn log_dir(&self) -> PathBuf {
        self.wal_dir.clone().unwrap_or_else(|| self.data_dir.join("member").join("wal"))
    }

    /// Z3: how long a request may take.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election
    }

    /// Heartbeats that make up an election timeout.
    fn election_ticks(&self) -> usize {
        (self.election.as_millis() / self.heartbeat.as_millis().max(1)).max(1) as usize
    }

    /// L1: the shortest TTL of a lease, in seconds.
    fn min_lease_ttl(&self) -> i64 {
        let ticks = (3 * self.election_ticks()) / 2;
        let least = self.heartbeat * ticks as u32;
        least.as_millis().div_ceil(1000) as i64
    }
}

/// Why the core stands still for good. The process must end: what was not answered is unknown to its client.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The folder does not hold what it should, or the configuration does not fit it.
    #[error("{0}")]
    Boot(String),
    /// The log.
    #[error("log: {0}")]
    Wal(#[from] WalError),
    /// Consensus.
    #[error("raft: {0}")]
    Raft(#[from] RaftError),
    /// The store.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// An entry of the log.
    #[error("log entry {index} of term {term}: {error}")]
    Entry {
        /// Raft index.
        index: u64,
        /// Raft term.
        term: u64,
        /// What is wrong with it.
        error: ApplyError,
    },
    /// A wait that cannot fail but did.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The operating system's answer.
        error: std::io::Error,
    },
}
