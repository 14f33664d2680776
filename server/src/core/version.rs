//! The version of the cluster: what the oldest of its members can do (X16, O3).
//!
//! The leader looks for it when it begins to lead and every few seconds after that, until the cluster has this
//! server's own. A member alone knows the answer; where there are others, whoever drives the core asks their peer ports.

use std::time::Duration;

use trilith_proto::membershippb;

use super::Core;
use super::waiters::Waiter;
use crate::apply::command::Command;
use crate::apply::members;

/// X16: from one look to the next.
const PAUSE: Duration = Duration::from_secs(4);
/// The version of this server's clusters, of the log's entries and of the store's content.
const OWN: Version = (3, 7, 0);
/// What a cluster begins with that has members which cannot be asked.
const FIRST: (u32, u32, u32) = (3, 0, 0);

type Version = (u32, u32, u32);

/// What the core knows of the cluster's version.
#[derive(Debug, Default)]
pub(super) struct ClusterVersion {
    /// What the store says.
    known: Option<Version>,
    /// When to look again.
    look_at: Duration,
    /// A proposal is under way.
    proposed: bool,
}

impl ClusterVersion {
    /// As the store says.
    pub(super) fn new(text: Option<&str>) -> ClusterVersion {
        ClusterVersion { known: text.and_then(members::parse_version), ..Default::default() }
    }

    /// Whether there is one.
    pub(super) fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// A proposal is through, or lost.
    pub(super) fn settled(&mut self) {
        self.proposed = false;
    }
}

impl Core {
    /// The store's version may be another.
    pub(super) fn version_changed(&mut self) -> Result<(), trilith_engine::StoreError> {
        let text = members::cluster_version(self.store.view())?;
        self.version.known = text.as_deref().and_then(members::parse_version);
        Ok(())
    }

    /// Begins to lead: looks at once.
    pub(super) fn look_for_version(&mut self) {
        self.version.look_at = self.now;
    }

    /// Looks for the version if that is due. Whether it proposed one.
    pub(super) fn keep_version(&mut self) -> bool {
        let due =
            self.version.known < Some(OWN) && !self.version.proposed && self.now >= self.version.look_at;
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
        let Some(wanted) = lowest.or(Some(FIRST).filter(|_| self.version.known.is_none())) else {
            return false;
        };
        if self.version.known >= Some(wanted) || self.version.proposed || !self.is_primary() {
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
