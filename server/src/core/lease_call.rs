//! Calls about leases that only the leader can answer (L7, L9).
//!
//! The leader renews, and knows what is left; neither goes through the log. A member that does not lead hands the call to
//! whoever drives its core ([`LeaseAsked`]), and that one to the leader's peer port.

use tokio::sync::oneshot;
use trilith_proto::etcdserverpb::{LeaseCheckpoint, LeaseCheckpointRequest, LeaseTimeToLiveResponse};

use super::Core;
use super::shared::Handle;
use super::waiters::Waiter;
use crate::apply::command::Command;
use crate::lease::Renewal;
use crate::status::{self, Status};

/// What is left of a lease, as its leader knows it. Without a header.
pub type Left = LeaseTimeToLiveResponse;

/// A call for the leader, from a member that does not lead.
#[derive(Debug)]
pub enum LeaseAsked {
    /// Renew it: its TTL in seconds, 0 when there is none.
    Renew {
        /// The lease.
        id: i64,
        /// Dropped unanswered when the leader could not be asked: the call is made again.
        answer: oneshot::Sender<Result<i64, Status>>,
    },
    /// What is left of it; None when there is none.
    Left {
        /// The lease.
        id: i64,
        /// The keys are wanted, too.
        keys: bool,
        /// As above.
        answer: oneshot::Sender<Result<Option<Left>, Status>>,
    },
}

impl LeaseAsked {
    /// Answers from the leader's handle: for who has one at hand.
    pub async fn answer_from(self, leader: Handle) {
        match self {
            LeaseAsked::Renew { id, answer } => {
                let renewed = leader.keep_alive_here(id).await;
                if !matches!(&renewed, Err(error) if *error == status::NOT_PRIMARY) {
                    // Whoever has gone away meanwhile does not mind.
                    let _ = answer.send(renewed);
                }
            }
            LeaseAsked::Left { id, keys, answer } => {
                let left = leader.lease_left_here(id, keys).await;
                if !matches!(&left, Err(error) if *error == status::NOT_PRIMARY) {
                    // Whoever has gone away meanwhile does not mind.
                    let _ = answer.send(left);
                }
            }
        }
    }
}

/// Entries with checkpoints that one look at the leases brings.
const CHECKPOINT_ENTRIES_MAX: usize = 8;

impl Core {
    /// L12: as the leader, says in the log what is left of leases that run for long.
    pub(super) fn checkpoint_leases(&mut self) {
        for _ in 0..CHECKPOINT_ENTRIES_MAX {
            if self.node.log_full() {
                return;
            }
            let due = self.shared.lessor().due_checkpoints(self.now);
            if due.is_empty() {
                return;
            }
            let checkpoints =
                due.into_iter().map(|(id, remaining_ttl)| LeaseCheckpoint { id, remaining_ttl });
            let request = LeaseCheckpointRequest { checkpoints: checkpoints.collect() };
            self.propose_own(Waiter::LeaseCheckpoint, &Command::LeaseCheckpoint(request));
        }
    }

    /// Calls go to another member that leads as soon as there is one.
    pub(super) fn hand_out_lease_calls(&mut self) {
        let leader = self.node.status().leader;
        if leader != 0 && leader != self.member_id {
            self.outgoing.leases.append(&mut self.lease_calls);
        }
    }

    /// Those who still wait look again whether this member leads, or their time is up.
    pub(super) fn return_lease_calls(&mut self) {
        self.lease_calls.clear();
    }
}

impl Handle {
    /// Renews a lease as the leader; its TTL, 0 when there is none (any more). L6, L7. NOT_PRIMARY when this member
    /// does not lead.
    pub async fn keep_alive_here(&self, lease: i64) -> Result<i64, Status> {
        if self.is_checkpointed(lease) {
            // Its remaining TTL goes first (L12).
            let checkpoints = vec![LeaseCheckpoint { id: lease, remaining_ttl: 0 }];
            self.propose(&Command::LeaseCheckpoint(LeaseCheckpointRequest { checkpoints })).await?;
        }
        for last_try in [false, true] {
            let renewal = self.renew(lease)?;
            match renewal {
                Renewal::Renewed(ttl) => return Ok(ttl),
                // The sender goes unheard only when this member stops leading.
                Renewal::Expired(revoked) => {
                    return revoked.await.map(|()| 0).map_err(|_| status::NOT_PRIMARY);
                }
                Renewal::Missing if last_try => break,
                // Its grant may be committed and not applied here yet.
                Renewal::Missing => self.read_point().await?,
            }
        }
        Ok(0)
    }

    /// What is left of a lease, as the leader knows it; None when there is none. L8. NOT_PRIMARY when this member does
    /// not lead.
    pub async fn lease_left_here(&self, id: i64, keys: bool) -> Result<Option<Left>, Status> {
        if !self.is_primary() {
            return Err(status::NOT_PRIMARY);
        }
        self.read_point().await?;
        let Some((granted_ttl, ttl)) = self.lease_ttl(id) else { return Ok(None) };
        if !self.is_primary() {
            return Err(status::LEADER_CHANGED);
        }
        let keys = if keys { self.root().view().lease_keys(id)? } else { Vec::new() };
        Ok(Some(Left { header: None, id, ttl, granted_ttl, keys }))
    }

    /// Renews a lease, here or by the leader; its TTL, 0 when there is none (any more).
    pub async fn keep_alive(&self, lease: i64) -> Result<i64, Status> {
        self.by_leader(|| self.keep_alive_here(lease), |answer| LeaseAsked::Renew { id: lease, answer }).await
    }

    /// What is left of a lease; None when there is none.
    pub async fn lease_left(&self, id: i64, keys: bool) -> Result<Option<Left>, Status> {
        self.by_leader(|| self.lease_left_here(id, keys), |answer| LeaseAsked::Left { id, keys, answer })
            .await
    }

    /// Answers here when this member leads, and else asks who does, again and again until the time is up.
    async fn by_leader<T, F: Future<Output = Result<T, Status>>>(
        &self,
        here: impl Fn() -> F,
        ask: impl Fn(oneshot::Sender<Result<T, Status>>) -> LeaseAsked,
    ) -> Result<T, Status> {
        let started = self.now();
        loop {
            match here().await {
                Err(error) if error == status::NOT_PRIMARY => {}
                answered => return answered,
            }
            let (answer, answered) = oneshot::channel();
            self.ask_leader(ask(answer))?;
            if let Ok(answer) = answered.await {
                return answer;
            }
            if self.now() >= started + self.request_timeout() {
                let leaderless = self.facts().leader == 0;
                return Err(if leaderless { status::NO_LEADER } else { status::TIMEOUT });
            }
        }
    }
}
