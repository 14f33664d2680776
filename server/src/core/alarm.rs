//! Alarms of this member's own: raised by whoever finds out, once, through the log.
//!
//! A raised alarm is proposed until it stands in the log, so whoever raises it can forget about it. Calls that are
//! to be answered when the alarm stands (X5) wait here.

use std::pin::Pin;

use tokio::sync::oneshot;
use trilith_proto::etcdserverpb::alarm_request::AlarmAction;
use trilith_proto::etcdserverpb::{AlarmRequest, AlarmType};

use super::machine::{Announcement, Core};
use super::shared::Handle;
use super::waiters::Waiter;
use crate::apply::Answer;
use crate::apply::command::Command;
use crate::status::{self, Status};

/// What is on its way.
#[derive(Debug)]
pub(super) struct Raising {
    no_space: Announcement,
    corrupt: Announcement,
    /// Answered as soon as NOSPACE stands, or cannot be proposed.
    waiting: Vec<(oneshot::Sender<Answer>, Answer)>,
}

impl Default for Raising {
    fn default() -> Raising {
        Raising { no_space: Announcement::Done, corrupt: Announcement::Done, waiting: Vec::new() }
    }
}

impl Raising {
    fn of(&mut self, alarm: AlarmType) -> &mut Announcement {
        match alarm {
            AlarmType::Corrupt => &mut self.corrupt,
            AlarmType::Nospace | AlarmType::None => &mut self.no_space,
        }
    }
}

/// The request that raises an alarm for a member.
fn activate(member_id: u64, alarm: AlarmType) -> Command {
    Command::Alarm(AlarmRequest { action: AlarmAction::Activate as i32, member_id, alarm: alarm as i32 })
}

impl Core {
    /// Raises an alarm for this member. Nothing happens when it stands already, or is on its way.
    pub fn raise_alarm(&mut self, alarm: AlarmType) {
        let stands = alarm == AlarmType::None || self.alarms.is_raised_by(self.member_id, alarm);
        let raising = self.raising.of(alarm);
        if !stands && *raising == Announcement::Done {
            *raising = Announcement::Needed;
        }
    }

    /// Proposes what was raised. Whether it proposed.
    pub(super) fn propose_alarms(&mut self) -> bool {
        let mut proposed = false;
        for alarm in [AlarmType::Nospace, AlarmType::Corrupt] {
            if *self.raising.of(alarm) == Announcement::Needed && self.has_leader() {
                *self.raising.of(alarm) = Announcement::UnderWay;
                let name = alarm.as_str_name();
                log::warn!(alarm = name; "raising an alarm");
                self.propose_own(Waiter::Alarm(alarm), &activate(self.member_id, alarm));
                proposed = true;
            }
        }
        proposed
    }

    /// The proposal of an alarm came to an end.
    pub(super) fn alarm_proposed(&mut self, alarm: AlarmType, next: Announcement) {
        *self.raising.of(alarm) = next;
        if alarm == AlarmType::Nospace {
            self.answers.append(&mut self.raising.waiting);
        }
    }

    /// X5: an entry went over the quota. Its caller hears so when the alarm stands.
    pub(super) fn over_quota(&mut self, waiter: Option<Waiter>) {
        self.raise_alarm(AlarmType::Nospace);
        let answer = Err(status::NO_SPACE);
        let under_way = *self.raising.of(AlarmType::Nospace) != Announcement::Done;
        match waiter {
            Some(Waiter::Call(sender)) if under_way => self.raising.waiting.push((sender, answer)),
            Some(waiter) => self.settle(waiter, answer),
            None => {}
        }
    }
}

impl Handle {
    /// X5: None when the quota has room for something of that cost. Else what is to be answered before anything is
    /// checked or proposed; waiting for it raises the alarm.
    pub fn over_quota(&self, cost: u64) -> Option<OverQuota> {
        if self.has_room(cost) {
            return None;
        }
        let facts = self.facts();
        let raised = (!facts.no_space).then(|| self.propose(&activate(facts.member_id, AlarmType::Nospace)));
        Some(Box::pin(async move {
            if let Some(raised) = raised {
                // Refused either way, as in etcd.
                let _ = raised.await;
            }
            status::NO_SPACE
        }))
    }
}

/// The refusal of what the quota has no room for.
pub type OverQuota = Pin<Box<dyn Future<Output = Status> + Send>>;
