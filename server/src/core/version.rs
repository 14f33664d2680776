//! The version of the cluster: what the oldest of its members can do, or what a downgrade asks for (X16, O3).
//!
//! The leader looks for it when it begins to lead and every few seconds after that, until the cluster has this
//! server's own, or the target of a downgrade. A member alone knows the answer; where there are others, whoever
//! drives the core asks their peer ports.
//!
//! A downgrade ends when all members run its target (X15). This member does not, so that is left to a leader that does.

use std::time::Duration;

use trilith_engine::{StoreError, View};
use trilith_proto::membershippb;

use super::Core;
use super::waiters::Waiter;
use crate::apply::command::Command;
use crate::apply::{downgrade, members};

/// X16: from one look to the next.
const PAUSE: Duration = Duration::from_secs(4);
/// The version of this server's clusters, of the log's entries and of the store's content.
const OWN: Version = (3, 7, 0);
/// What a cluster begins with that has members which cannot be asked.
const FIRST: Version = (3, 0, 0);

type Version = (u32, u32, u32);

/// What the core knows of the cluster's version.
#[derive(Debug, Default)]
pub(super) struct ClusterVersion {
    /// What the store says.
    known: Option<Version>,
    /// Of the downgrade that is under way, as the store says.
    target: Option<Version>,
    /// When to look again.
    look_at: Duration,
    /// A proposal is under way.
    proposed: bool,
}

impl ClusterVersion {
    /// As the store says.
    pub(super) fn new(view: View<'_>) -> Result<ClusterVersion, StoreError> {
        let text = members::cluster_version(view)?;
        let downgrade = downgrade::get(view)?;
        let target = Some(downgrade.target_version).filter(|_| downgrade.enabled);
        Ok(ClusterVersion {
            known: text.as_deref().and_then(members::parse_version),
            target: target.as_deref().and_then(members::parse_version),
            ..ClusterVersion::default()
        })
    }

    /// Whether there is one.
    pub(super) fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// A proposal is through, or lost.
    pub(super) fn settled(&mut self) {
        self.proposed = false;
    }

    /// Whether there is another version that the cluster may get.
    fn may_move(&self) -> bool {
        match self.target {
            Some(target) => self.known.is_none_or(|known| is_one_below(target, known)),
            None => self.known < Some(OWN),
        }
    }

    /// The version that the cluster should get; None when it has it. `lowest` is that of the oldest member, None when one
    /// of them could not be asked.
    fn decide(&self, lowest: Option<Version>) -> Option<Version> {
        let Some(known) = self.known else { return Some(lowest.unwrap_or(FIRST)) };
        let lowest = lowest?;
        if let Some(target) = self.target {
            return is_one_below(target, known).then_some(target);
        }
        (known.0 == lowest.0 && known < lowest).then_some(lowest)
    }
}

/// A downgrade goes down by one.
fn is_one_below(target: Version, known: Version) -> bool {
    known.0 == target.0 && target.1.checked_add(1) == Some(known.1)
}

impl Core {
    /// The store's version, or its downgrade, may be another.
    pub(super) fn version_changed(&mut self) -> Result<(), StoreError> {
        let as_stored = ClusterVersion::new(self.store.view())?;
        if as_stored.target != self.version.target {
            // What an administrator has asked for is not undone at once by one that was due anyway.
            self.version.look_at = self.now + PAUSE;
        }
        self.version =
            ClusterVersion { look_at: self.version.look_at, proposed: self.version.proposed, ..as_stored };
        Ok(())
    }

    /// Begins to lead: looks at once.
    pub(super) fn look_for_version(&mut self) {
        self.version.look_at = self.now;
    }

    /// Looks for the version if that is due. Whether it proposed one.
    pub(super) fn keep_version(&mut self) -> bool {
        let due = self.version.may_move() && !self.version.proposed && self.now >= self.version.look_at;
        if !due || !self.is_primary() {
            return false;
        }
        self.version.look_at = self.now + PAUSE;
        if self.conf_state.voters.len() + self.conf_state.learners.len() > 1 {
            self.outgoing.asks_versions = true;
            return false;
        }
        self.take_lowest_version(Some(OWN))
    }

    /// The lowest server version among all members; None when one of them could not be asked. Whether it proposed.
    pub(super) fn take_lowest_version(&mut self, lowest: Option<Version>) -> bool {
        let lowest = lowest.map(|(major, minor, _)| (major, minor, 0).min(OWN));
        let Some(wanted) = self.version.decide(lowest) else { return false };
        if self.version.proposed || !self.is_primary() {
            return false;
        }
        self.version.proposed = true;
        let ver = format!("{}.{}.{}", wanted.0, wanted.1, wanted.2);
        log::info!(version = ver.as_str(); "the cluster gets a version");
        let request = membershippb::ClusterVersionSetRequest { ver };
        self.propose_own(Waiter::ClusterVersion, &Command::ClusterVersionSet(request));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x16_the_oldest_member_decides_and_a_downgrade_lowers_by_one() {
        let decide = |known, lowest, target: Option<Version>| {
            let version = ClusterVersion { known, target, ..ClusterVersion::default() };
            let decided = version.decide(lowest);
            assert!(decided.is_none() || version.may_move(), "what may be decided is looked for");
            decided
        };
        let v = |minor| Some((3, minor, 0));
        assert_eq!(decide(None, v(7), None), v(7));
        assert_eq!(decide(None, None, None), v(0));
        assert_eq!(decide(v(0), None, None), None);
        assert_eq!(decide(v(0), v(6), None), v(6));
        assert_eq!(decide(v(7), v(7), None), None);
        assert_eq!(decide(v(7), v(6), None), None);
        assert_eq!(decide(v(7), v(7), v(6)), v(6));
        assert_eq!(decide(v(7), None, v(6)), None);
        assert_eq!(decide(v(6), v(7), v(6)), None);
        assert_eq!(decide(v(7), v(7), v(5)), None);
    }
}
