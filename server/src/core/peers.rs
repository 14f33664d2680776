//! The other members: what they say, what is said to them, who of them leads.
//!
//! What the transport brings goes to raft; what raft wants sent gathers in [`Outgoing`], which whoever drives the core
//! takes after each step. A message that no correct peer sends is logged and dropped.
//!
//! Must never wait for a peer.

use std::time::Duration;

use trilith_engine::Root;
use trilith_proto::raftpb;
use trilith_raft::RaftError;

use super::shared::{PeerEvent, Transfer};
use super::{Core, Fatal};
use crate::apply::members::{self, Member};
use crate::status;

/// What goes to other members after a step.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// In the order in which raft brought them forth; no MsgSnap among them.
    pub messages: Vec<raftpb::Message>,
    /// Each MsgSnap with the root that it is of.
    pub snapshots: Vec<(raftpb::Message, Root)>,
    /// The membership, when it has changed, and after the start.
    pub membership: Option<Membership>,
}

/// Who belongs to the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// All members, this one among them, by id.
    pub members: Vec<Member>,
    /// Ids that were removed and can never return.
    pub removed: Vec<u64>,
}

/// Those who wait for another leader.
#[derive(Debug, Default)]
pub(super) struct Transfers(Vec<Transfer>);

impl Core {
    /// What has to be sent since this was last called.
    pub fn take_outgoing(&mut self) -> Outgoing {
        std::mem::take(&mut self.outgoing)
    }

    /// Whether this member was removed from the cluster: it is to be ended.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    pub(super) fn take_peer_event(&mut self, event: PeerEvent) -> Result<(), Fatal> {
        match event {
            PeerEvent::Message(message) => match self.node.step(message) {
                // Proposals that nobody takes now: who proposed them waits in vain, as with etcd.
                Ok(()) | Err(RaftError::Dropped) => {}
                Err(error @ RaftError::Message { .. }) => log::warn!(error:%; "a peer's message is dropped"),
                Err(error) => return Err(error.into()),
            },
            PeerEvent::Unreachable(id) => self.node.report_unreachable(id),
            PeerEvent::SnapshotSent { to, delivered } => self.node.report_snapshot(to, delivered),
            PeerEvent::ToldRemoved => {
                log::error!("a peer says that this member was removed from the cluster");
                self.removed = true;
            }
        }
        Ok(())
    }

    /// The membership as the store has it now goes out with the next step.
    pub(super) fn members_changed(&mut self) -> Result<(), trilith_engine::StoreError> {
        let view = self.store.view();
        self.outgoing.membership =
            Some(Membership { members: members::list(view)?, removed: members::removed(view)? });
        Ok(())
    }

    /// X12: asks raft to hand over; the answer comes when the other one leads.
    pub(super) fn begin_transfer(&mut self, transfer: Transfer) {
        let refused = if !self.node.status().is_leader {
            Some(status::NOT_LEADER)
        } else if self.conf_state.voters.contains(&transfer.to) {
            self.node.transfer_leader(transfer.to);
            None
        } else {
            Some(status::BAD_LEADER_TRANSFEREE)
        };
        match refused {
            // Whoever has gone away meanwhile does not mind.
            Some(status) => drop(transfer.answer.send(Err(status))),
            None => self.transfers.0.push(transfer),
        }
    }

    /// Answers those whose leader leads, and those who have waited too long.
    pub(super) fn follow_transfers(&mut self) {
        if self.transfers.0.is_empty() {
            return;
        }
        let leader = self.node.status().leader;
        let until = self.now.checked_sub(self.config.request_timeout()).unwrap_or(Duration::ZERO);
        for transfer in self.transfers.0.extract_if(.., |t| t.to == leader || t.started < until) {
            let outcome = if transfer.to == leader { Ok(()) } else { Err(status::TIMEOUT_LEADER_TRANSFER) };
            // Whoever has gone away meanwhile does not mind.
            let _ = transfer.answer.send(outcome);
        }
    }
}
