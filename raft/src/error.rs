//! What can go wrong in this crate, and what the owner of a node does about it.

use trilith_wal::WalError;

/// An error of a node.
///
/// `Dropped` and `Message` concern one call: the node goes on. After any other the node is not to be used any more,
/// and the member ends.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The write-ahead log failed: what it holds is no longer known.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// Nobody takes the proposal now: no leader is known, or leadership is being handed over.
    #[error("raft proposal dropped")]
    Dropped,
    /// A peer's message that no correct peer sends. It was not taken.
    #[error("raft message of type {kind} from member {from:x} refused: {reason}")]
    Message {
        /// Its sender.
        from: u64,
        /// Its raftpb.MessageType.
        kind: i32,
        /// What is wrong with it.
        reason: String,
    },
    /// The store has applied entries that the log does not have.
    #[error("the store has applied raft entry {applied}, but the write-ahead log ends with entry {last}: entry {} is missing", last + 1)]
    Missing {
        /// Last index that the store has applied.
        applied: u64,
        /// Last index of the log.
        last: u64,
    },
    /// The log begins too late for the store.
    #[error("the store has applied raft entry {applied}, but the write-ahead log begins with entry {first}: entry {} is missing", applied + 1)]
    Gap {
        /// Last index that the store has applied.
        applied: u64,
        /// First index of the log.
        first: u64,
    },
    /// Log and store come from different histories.
    #[error("raft entry {index} has term {log} in the write-ahead log, but term {store} in the store")]
    Term {
        /// The last index that the store has applied.
        index: u64,
        /// Its term in the log.
        log: u64,
        /// Its term in the store.
        store: u64,
    },
    /// The log lacks entries that it once had.
    #[error("the write-ahead log has committed raft entry {commit}, but ends with entry {last}")]
    Commit {
        /// The commit index of its last hard state.
        commit: u64,
        /// Last index of the log.
        last: u64,
    },
    /// An entry of the log that nobody can apply.
    #[error("raft entry {index}: {reason}")]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration that raft cannot start with, or a change that it cannot apply.
    #[error("raft configuration: {0}")]
    Config(String),
}
