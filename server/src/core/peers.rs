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

/// L8: from the removal of this member to its end.
const PAUSE_AFTER_REMOVAL: Duration = Duration::from_secs(1);

/// From one complaint about a peer's message to the next.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(5);

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
    /// This member leads and wants to know what the others can do: `PeerEvent::Versions` is the answer.
    pub asks_versions: bool,
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
    /// What has to be sent since this was last called, if anything.
    pub fn take_outgoing(&mut self) -> Option<Outgoing> {
        let outgoing = &self.outgoing;
        let nothing = outgoing.messages.is_empty()
            && outgoing.snapshots.is_empty()
            && outgoing.membership.is_none()
            && outgoing.leases.is_empty()
            && !outgoing.asks_versions;
        if nothing { None } else { Some(std::mem::take(&mut self.outgoing)) }
    }

    /// Whether this member was removed from the cluster, and is to be ended: a second after it has applied that, so that
    /// others hear from it that they are to apply it (L8).
    pub fn is_removed(&self) -> bool {
        self.ends_at.is_some_and(|at| self.now >= at)
    }

    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.node.status().is_leader
    }

    /// O5: makes the voter lead that has most of the log. How long to wait for that; None when there is nothing to hand
    /// over, or nobody to take it.
    pub fn hand_over(&mut self) -> Option<Duration> {
        let others = self
            .node
            .progress()
            .into_iter()
            .filter(|(id, _)| *id != self.member_id && self.conf_state.voters.contains(id));
        let (successor, _) = others.max_by_key(|(_, matched)| *matched)?;
        log::info!(to:% = format!("{successor:x}"); "leadership is handed over");
        self.node.transfer_leader(successor);
        Some(self.config.election)
    }

    pub(super) fn take_peer_event(&mut self, event: PeerEvent) -> Result<(), Fatal> {
        match event {
            PeerEvent::Message(message) if message.r#type() == raftpb::MessageType::MsgSnap => {
                self.take_snapshot(message)?;
            }
            PeerEvent::Message(message) if self.waits_for_snapshot(&message) => {}
            PeerEvent::Message(message)
                if message.r#type() == raftpb::MessageType::MsgHeartbeat
                    && trilith_failpoint::hit("raftDropHeartbeat").is_some() => {}
            PeerEvent::Message(message) => match self.node.step(message) {
                // Proposals that nobody takes now: who proposed them waits in vain, as with etcd.
                Ok(()) | Err(RaftError::Dropped) => {}
                Err(error @ RaftError::Message { .. }) => self.complain(&error),
                Err(error) => return Err(error.into()),
            },
            PeerEvent::Unreachable(id) => self.node.report_unreachable(id),
            PeerEvent::SnapshotSent { to, delivered } => {
                self.node.report_snapshot(to, delivered);
                self.cut.snapshot_sent(to, self.now);
            }
            PeerEvent::Versions { lowest } => {
                self.take_lowest_version(lowest.as_deref().and_then(members::parse_version));
            }
            PeerEvent::ToldRemoved if self.is_removed() => {}
            PeerEvent::ToldRemoved => {
                log::error!("a peer says that this member was removed from the cluster");
                self.ends_at = Some(self.now);
            }
        }
        Ok(())
    }

    /// A peer that sends what makes no sense may do so at every heartbeat: only some of it is worth a line at the usual level.
    fn complain(&mut self, error: &RaftError) {
        let level = if self.now >= self.complains_at { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, error:%; "a peer's message is dropped");
        if level == log::Level::Warn {
            self.complains_at = self.now + COMPLAINT_INTERVAL;
        }
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
        if removed.contains(&self.member_id) && self.ends_at.is_none() {
            self.ends_at = Some(self.now + PAUSE_AFTER_REMOVAL);
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
