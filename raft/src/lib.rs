//! Consensus: raft-rs driven over our log.
//!
//! A [`Node`] is one member's raft: proposals, ticks and peers' messages go in; committed entries, read points and
//! messages come out of [`Node::poll`]. It never waits for the disk or the network, owns no thread and no clock, and
//! knows nothing of keys. Types of raft-rs never leave this crate: at its border stand etcd's `raftpb` messages.
#![forbid(unsafe_code)]

mod catch_up;
mod error;
mod inbound;
mod logger;
mod node;
mod start;
mod storage;
mod transcode;
mod write_log;

pub use catch_up::Fetch;
pub use error::RaftError;
pub use node::Node;
pub use write_log::Log;

use bytes::Bytes;
use trilith_proto::raftpb;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Id of this member, not 0.
    pub id: u64,
    /// Ticks without a leader before an election; the jitter adds up to as many again.
    pub election_ticks: usize,
    /// Ticks between two heartbeats of a leader; fewer than `election_ticks`.
    pub heartbeat_ticks: usize,
    /// Whether to ask, before an election, if it can be won.
    pub pre_vote: bool,
    /// Seeds the election jitter.
    pub seed: u64,
    /// Bytes of log tail kept in memory once applied.
    pub tail_bytes: usize,
}

/// A committed entry, in index order.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// Its index in the log.
    pub index: u64,
    /// The term of the leader that wrote it.
    pub term: u64,
    /// What it says.
    pub body: Body,
}

/// What a committed entry says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// InternalRaftRequest bytes; empty for a leader's first entry, and for a conf change that raft put aside.
    Normal(Bytes),
    /// A change of the group; the owner decides on it and calls `Node::apply_conf_change` either way.
    ConfChange(raftpb::ConfChange),
}

/// What a call of [`Node::poll`] brought forth. Cleared by its owner, so that its memory is reused.
#[derive(Debug, Default, PartialEq)]
pub struct Output {
    /// Entries to apply, in index order.
    pub committed: Vec<Committed>,
    /// Confirmed reads: the context given to `read_index`, and the index to wait for.
    pub reads: Vec<(u64, u64)>,
    /// Messages for peers, each with its receiver in `to`. A MsgSnap is of the state that the owner has applied last, as
    /// of the call that brought it forth; the owner sends that state beside it.
    pub messages: Vec<raftpb::Message>,
    /// Raft has taken a snapshot that was offered. What was committed before it is of no more use. The owner makes the
    /// log durable with `flush`, puts the snapshot's state in place of its own, and polls before it calls `applied`.
    pub snapshot: Option<raftpb::SnapshotMetadata>,
}

impl Output {
    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.committed.clear();
        self.reads.clear();
        self.messages.clear();
        self.snapshot = None;
    }

    fn count(&self) -> usize {
        self.committed.len() + self.reads.len() + self.messages.len() + usize::from(self.snapshot.is_some())
    }
}

/// Where a node stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// The current term.
    pub term: u64,
    /// 0 when none is known.
    pub leader: u64,
    /// Whether this member leads.
    pub is_leader: bool,
    /// Index of the last entry known to be committed.
    pub commit: u64,
    /// Index of the last entry that the owner has applied.
    pub applied: u64,
    /// Index of the last entry of the log.
    pub last: u64,
}
