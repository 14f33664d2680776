//! Members that lag behind: entries that memory no longer holds, and snapshots in place of entries.
//!
//! A leader that has to send old entries asks for a [`Fetch`]; its owner reads them from the log wherever it may
//! block. What nobody keeps any more is replaced by a snapshot: raft says of which entry, the owner sends the state. On
//! the other side the owner first makes the state ready, and only then offers the snapshot to raft; what raft takes
//! of it comes out of `poll`.

use raft::StateRole;
use trilith_proto::raftpb;

use crate::{Log, Node, RaftError, inbound, transcode};

/// Entries to be read back from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Index of the first.
    pub from: u64,
    /// Index after the last.
    pub to: u64,
    /// Which term begins at which index, as far back as `from`: a log may hold others than these, which are void.
    pub terms: Vec<(u64, u64)>,
}

impl<L: Log> Node<L> {
    /// The log, for whoever reads entries back from it.
    pub fn log(&self) -> &L {
        &self.log
    }

    /// Entries to be read from the log, if any are wanted and none are being read. Whatever comes of it goes to
    /// `fetched`.
    pub fn begin_fetch(&mut self) -> Option<Fetch> {
        self.raw.mut_store().begin_fetch()
    }

    /// Takes the entries that a [`Fetch`] names, or the first of them; None when the log does not have them: then a
    /// member that needs them gets a snapshot.
    pub fn fetched(&mut self, entries: Option<Vec<raftpb::Entry>>) {
        self.hand_over_proposals();
        let entries =
            entries.and_then(|entries| entries.into_iter().map(|e| transcode::entry_in(e).ok()).collect());
        if let Some(context) = self.raw.mut_store().fetched(entries) {
            self.raw.on_entries_fetched(context);
        }
    }

    /// Entries up to `index`, which is applied, are no longer for members that lag behind.
    pub fn compact(&mut self, index: u64) {
        let applied = self.raw.raft.raft_log.applied;
        assert!(index <= applied, "compaction up to {index} with {applied} applied");
        self.raw.mut_store().compact(index);
    }

    /// Whether raft would take the state of a snapshot; if not, it needs only to hear of it.
    ///
    /// # Errors
    /// `Message` when no correct peer sends it.
    pub fn needs_snapshot(&self, message: &raftpb::Message) -> Result<bool, RaftError> {
        let raft = &self.raw.raft;
        let message = inbound::admit_snapshot(raft, message.clone())?;
        let metadata = message.get_snapshot().get_metadata();
        Ok(message.term >= raft.term
            && metadata.index > raft.raft_log.committed
            && !raft.raft_log.match_term(metadata.index, metadata.term))
    }

    /// Whether a snapshot may be offered now: its sender need not lead any more, but somebody must.
    pub fn takes_snapshots(&self) -> bool {
        let raft = &self.raw.raft;
        raft.state == StateRole::Follower && raft.leader_id != 0
    }

    /// Offers a snapshot whose state its owner has at hand. Whether raft takes it is seen in `Output::snapshot` of the
    /// next `poll`. What was committed in one term is so in every later one: the snapshot of a leader that
    /// leads no more is taken as from the present one.
    ///
    /// # Errors
    /// As `needs_snapshot`.
    pub fn offer_snapshot(&mut self, message: raftpb::Message) -> Result<(), RaftError> {
        self.hand_over_proposals();
        let mut message = inbound::admit_snapshot(&self.raw.raft, message)?;
        if self.takes_snapshots() && message.term < self.raw.raft.term {
            (message.term, message.from) = (self.raw.raft.term, self.raw.raft.leader_id);
        }
        let (from, kind) = (message.from, message.msg_type as i32);
        let result = self.raw.step(message);
        self.redraw();
        result.map_err(|error| RaftError::Message { from, kind, reason: error.to_string() })
    }
}
