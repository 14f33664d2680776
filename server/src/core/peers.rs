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
use super::{Core, Fatal, LeaseAsked};
use crate::apply::members::{self, Member};
use crate::apply::v2_store;
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
    /// What only the leader knows of leases.
    pub leases: Vec<LeaseAsked>,
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
            PeerEvent::Message(message) if message.r#type() == raftpb::MessageType::MsgSnap => {
                self.take_snapshot(message)?;
            }
            PeerEvent::Message(message) if self.waits_for_snapshot(&message) => {}
            PeerEvent::Message(message) => match self.node.step(message) {
                // Proposals that nobody takes now: who proposed them waits in vain, as with etcd.
                Ok(()) | Err(RaftError::Dropped) => {}
                Err(error @ RaftError::Message { .. }) => log::warn!(error:%; "a peer's message is dropped"),
                Err(error) => return Err(error.into()),
            },
            PeerEvent::Unreachable(id) => self.node.report_unreachable(id),
            PeerEvent::SnapshotSent { to, delivered } => {
                self.node.report_snapshot(to, delivered);
                self.cut.snapshot_sent(to, self.now);
            }
            PeerEvent::ToldRemoved => {
                log::error!("a peer says that this member was removed from the cluster");
                self.removed = true;
            }
        }
        Ok(())
    }

    /// Takes each MsgSnap out of what raft wants sent, with the state that it is of: the one published last, since what raft
    /// has brought forth since then is not applied yet.
    pub(super) fn pair_snapshots(&mut self) -> Result<(), Fatal> {
        let is_snapshot = |message: &raftpb::Message| message.r#type() == raftpb::MessageType::MsgSnap;
        if !self.out.messages.iter().any(is_snapshot) {
            return Ok(());
        }
        let root = self.store.reader().root();
        let (index, _) = root.applied();
        let data = v2_store::encode(root.view())?;
        for mut message in self.out.messages.extract_if(.., |message| is_snapshot(message)) {
            let Some(snapshot) = message.snapshot.as_mut() else { continue };
            let named = snapshot.metadata.as_ref().and_then(|metadata| metadata.index);
            assert_eq!(named, Some(index), "raft sends the state that was applied last");
            snapshot.data = Some(data.clone().into());
            self.cut.snapshot_begins(message.to());
            log::info!(index, to:% = format!("{:x}", message.to()); "a member needs a snapshot");
            self.outgoing.snapshots.push((message, root.clone()));
        }
        Ok(())
    }

    /// The membership as the store has it now goes out with the next step.
    pub(super) fn members_changed(&mut self) -> Result<(), trilith_engine::StoreError> {
        let view = self.store.view();
        let (members, removed) = (members::list(view)?, members::removed(view)?);
        self.cut.keep_members(&members);
        if removed.contains(&self.member_id) {
            self.removed = true;
        }
        self.outgoing.membership = Some(Membership { members, removed });
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
