//! Alarms: which members raised which, kept in the tree `Alarm` byte for byte as etcd keeps them.
//!
//! Alarms come and go through the log alone, so what they refuse is refused by every member alike (X1 to X3). The
//! set in memory is what the tree holds; it must never be changed by anything but an entry.

use std::collections::BTreeSet;

use prost::Message;
use trilith_engine::{Store, StoreError, TreeId, View};
use trilith_proto::etcdserverpb::alarm_request::AlarmAction;
use trilith_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType};

use super::command::Command;
use super::quota;
use crate::status::{self, Status};

/// The active alarms.
#[derive(Debug, Default)]
pub struct Alarms {
    /// By type, then by member.
    active: BTreeSet<(i32, u64)>,
}

fn member(&(alarm, member_id): &(i32, u64)) -> AlarmMember {
    AlarmMember { member_id, alarm }
}

impl Alarms {
    /// The alarms of the tree. Errors: Inconsistent for an entry that is not an alarm; Io, Corrupt.
    pub fn restore(view: View<'_>) -> Result<Alarms, StoreError> {
        let mut alarms = Alarms::default();
        let mut cursor = view.seek(TreeId::Alarm, b"")?;
        while let Some(key) = cursor.key() {
            let found = AlarmMember::decode(key)
                .map_err(|error| StoreError::Inconsistent(format!("a record of tree alarm: {error}")))?;
            alarms.active.insert((found.alarm, found.member_id));
            cursor.next()?;
        }
        Ok(alarms)
    }

    /// Whether any member raised it.
    pub fn is_active(&self, alarm: AlarmType) -> bool {
        let alarm = alarm as i32;
        self.active.range((alarm, 0)..=(alarm, u64::MAX)).next().is_some()
    }

    /// Whether this member raised it.
    pub fn is_raised_by(&self, member_id: u64, alarm: AlarmType) -> bool {
        self.active.contains(&(alarm as i32, member_id))
    }

    /// All of them, by type, then by member.
    pub fn list(&self) -> impl Iterator<Item = AlarmMember> + '_ {
        self.active.iter().map(member)
    }

    /// X1: carries out a request; what it names in its answer.
    pub(super) fn apply(
        &mut self,
        store: &mut Store,
        request: &AlarmRequest,
    ) -> Result<Vec<AlarmMember>, StoreError> {
        let none = AlarmType::None as i32;
        let named = (request.alarm, request.member_id);
        let key = member(&named).encode_to_vec();
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                let wanted = |found: &AlarmMember| request.alarm == none || found.alarm == request.alarm;
                return Ok(self.list().filter(wanted).collect());
            }
            Ok(AlarmAction::Activate) if request.alarm != none => {
                if self.active.insert(named) {
                    store.insert(TreeId::Alarm, &key, b"")?;
                }
                return Ok(vec![member(&named)]);
            }
            Ok(AlarmAction::Deactivate) if self.active.remove(&named) => {
                store.remove(TreeId::Alarm, &key)?;
                return Ok(vec![member(&named)]);
            }
            // An unknown action ends an etcd's handler.
            Ok(AlarmAction::Activate | AlarmAction::Deactivate) | Err(_) => {}
        }
        Ok(Vec::new())
    }

    /// X2, X3: what the active alarms answer to a command, if they refuse it.
    pub(super) fn refusal(&self, command: &Command) -> Option<Status> {
        if self.active.is_empty() {
            return None;
        }
        let changes = matches!(
            command,
            Command::Range(_)
                | Command::Put(_)
                | Command::DeleteRange(_)
                | Command::Txn(_)
                | Command::Compaction(_)
                | Command::LeaseGrant(_)
                | Command::LeaseRevoke(_)
        );
        if changes && self.is_active(AlarmType::Corrupt) {
            return Some(status::CORRUPT);
        }
        if self.is_active(AlarmType::Nospace) && quota::cost(command) > 0 {
            return Some(status::NO_SPACE);
        }
        None
    }
}

/// An alarm as Status shows it: protobuf's text.
pub fn text(member: &AlarmMember) -> String {
    let id = if member.member_id == 0 { String::new() } else { format!("memberID:{} ", member.member_id) };
    match AlarmType::try_from(member.alarm) {
        Ok(AlarmType::None) => id.trim_end().to_owned(),
        Ok(alarm) => format!("{id}alarm:{}", alarm.as_str_name()),
        Err(_) => format!("{id}alarm:{}", member.alarm),
    }
}
