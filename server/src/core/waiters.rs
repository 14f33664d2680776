//! Who waits for which entry, on this member.
//!
//! A request waits by its id from the moment it enters the core until its entry is applied or its time is up.
//! The core itself waits in the same way for what it proposes.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::oneshot;
use trilith_proto::etcdserverpb::AlarmType;

use crate::apply::Answer;

/// Somebody waits.
#[derive(Debug)]
pub(super) enum Waiter {
    /// A handler.
    Call(oneshot::Sender<Answer>),
    /// An alarm of this member is on its way.
    Alarm(AlarmType),
    /// A compaction of the core's own, to this revision.
    AutoCompaction(i64),
    /// The member's own attributes are on their way.
    Publish,
    /// The cluster version is on its way.
    ClusterVersion,
    /// An expired lease is being revoked.
    Revoke(i64),
    /// What is left of leases is on its way.
    LeaseCheckpoint,
}

impl Waiter {
    /// Whether an answer would be read (T15).
    pub(super) fn is_wanted(&self) -> bool {
        match self {
            Waiter::Call(answer) => !answer.is_closed(),
            Waiter::Alarm(_)
            | Waiter::AutoCompaction(_)
            | Waiter::Publish
            | Waiter::ClusterVersion
            | Waiter::Revoke(_)
            | Waiter::LeaseCheckpoint => false,
        }
    }
}

#[derive(Debug)]
struct Waiting {
    started: Duration,
    waiter: Waiter,
}

/// All waiters, by request id.
#[derive(Debug, Default)]
pub(super) struct Waiters(HashMap<u64, Waiting>);

impl Waiters {
    pub(super) fn add(&mut self, id: u64, started: Duration, waiter: Waiter) {
        let before = self.0.insert(id, Waiting { started, waiter });
        debug_assert!(before.is_none(), "request ids are unique");
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.0.contains_key(&id)
    }

    pub(super) fn take(&mut self, id: u64) -> Option<Waiter> {
        self.0.remove(&id).map(|waiting| waiting.waiter)
    }

    /// Takes out those that began at or before `until`.
    pub(super) fn take_older(&mut self, until: Duration) -> Vec<(Duration, Waiter)> {
        let old: Vec<u64> = self.0.iter().filter(|(_, w)| w.started <= until).map(|(id, _)| *id).collect();
        old.into_iter().filter_map(|id| self.0.remove(&id)).map(|w| (w.started, w.waiter)).collect()
    }
}
