//! Consensus: raft-rs driven over our log.
#![allow(missing_docs, unused_variables, clippy::todo)]

use std::os::fd::BorrowedFd;

use bytes::Bytes;
use trilith_proto::raftpb;
use trilith_wal::{Replay, Wal, WalError};

pub mod ids {
    //! Member and cluster ids (reference behaviours.md section 10: M1 to M3).

    /// First 8 bytes of SHA-1 over the sorted peer URLs, the token and, at MemberAdd, decimal unix seconds.
    pub fn member_id(peer_urls: &[String], token: &str, unix_seconds: Option<u64>) -> u64 {
        todo!()
    }
    /// First 8 bytes of SHA-1 over the sorted ids.
    pub fn cluster_id(member_ids: &[u64]) -> u64 {
        todo!()
    }
}

#[derive(Debug, Clone)]
pub struct Config {
    pub id: u64,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub pre_vote: bool,
    /// Seeds the election jitter.
    pub seed: u64,
    /// Bytes of log tail kept in memory.
    pub tail_bytes: usize,
}

/// A committed entry, in index order.
#[derive(Debug, Clone)]
pub struct Committed {
    pub index: u64,
    pub term: u64,
    pub body: Body,
}

#[derive(Debug, Clone)]
pub enum Body {
    /// InternalRaftRequest bytes; empty for a leader's first entry.
    Normal(Bytes),
    ConfChange(raftpb::ConfChange),
}

/// What a call of `Node::poll` brought forth. Cleared by its owner, so that its memory is reused.
#[derive(Debug, Default)]
pub struct Output {
    pub committed: Vec<Committed>,
    /// Confirmed reads: the context given to `read_index`, and the index to wait for.
    pub reads: Vec<(u64, u64)>,
    pub messages: Vec<raftpb::Message>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    pub term: u64,
    /// 0 when none is known.
    pub leader: u64,
    pub is_leader: bool,
    pub commit: u64,
    pub applied: u64,
    pub last: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error("raft proposal dropped")]
    Dropped,
}

#[derive(Debug)]
pub struct Node {}

impl Node {
    /// First start: the log gets a ConfChangeAddNode for each peer (id, member JSON) at term 1, as etcd does.
    pub fn bootstrap(config: Config, wal: Wal, peers: &[(u64, Bytes)]) -> Result<Node, RaftError> {
        todo!()
    }
    /// Restart: `applied` and `conf_state` are the store's; the log holds what comes after (and perhaps before).
    pub fn restart(
        config: Config,
        wal: Wal,
        replay: Replay,
        applied: u64,
        applied_term: u64,
        conf_state: raftpb::ConfState,
    ) -> Result<Node, RaftError> {
        todo!()
    }
    pub fn propose(&mut self, data: Bytes) -> Result<(), RaftError> {
        todo!()
    }
    pub fn propose_conf_change(&mut self, change: raftpb::ConfChange) -> Result<(), RaftError> {
        todo!()
    }
    /// Asks for a read point; the context comes back in `Output::reads`.
    pub fn read_index(&mut self, context: u64) {
        todo!()
    }
    /// One tick of the raft clock.
    pub fn tick(&mut self) {
        todo!()
    }
    /// Starts an election at once: a single voter need not wait for its timeout.
    pub fn campaign(&mut self) -> Result<(), RaftError> {
        todo!()
    }
    pub fn step(&mut self, message: raftpb::Message) -> Result<(), RaftError> {
        todo!()
    }
    /// Runs the ready loop as far as it goes without waiting for the disk. Whether anything came out.
    pub fn poll(&mut self, out: &mut Output) -> Result<bool, RaftError> {
        todo!()
    }
    /// Committed entries up to here have been applied.
    pub fn applied(&mut self, index: u64) {
        todo!()
    }
    /// Applies a committed conf change (or, `None`, a rejected one) to the group.
    pub fn apply_conf_change(&mut self, change: Option<&raftpb::ConfChange>) -> raftpb::ConfState {
        todo!()
    }
    /// The store holds everything up to `index` durably (and the checkpoint before it everything up to
    /// `previous`): marks the snapshot in the log, releases segments up to `previous`, trims the tail in memory.
    pub fn checkpointed(&mut self, index: u64, term: u64, conf_state: raftpb::ConfState, previous: u64) -> Result<(), RaftError> {
        todo!()
    }
    pub fn status(&self) -> Status {
        todo!()
    }
    /// Readable when `poll` should be called because of the disk.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        todo!()
    }
    /// Blocks until all that was appended is durable.
    pub fn flush(&mut self) -> Result<(), RaftError> {
        todo!()
    }
}
