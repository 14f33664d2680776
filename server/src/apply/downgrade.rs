//! A downgrade that is under way, as the store keeps it: JSON in the tree of the cluster.
//!
//! The bytes are etcd's (reference backend_layout V6), since they are hashed and handed to other tools.

use serde::{Deserialize, Serialize};
use trilith_engine::{Store, StoreError, TreeId, View};
use trilith_proto::membershippb::DowngradeInfoSetRequest;

const DOWNGRADE: &[u8] = b"downgrade";

/// Whether the cluster is being brought to an older version, and to which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Downgrade {
    /// `X.Y.0`; empty when none is under way.
    #[serde(rename = "target-version")]
    pub target_version: String,
    /// Whether one is under way.
    pub enabled: bool,
}

/// What the store says; none is under way in a store that says nothing.
pub fn get(view: View<'_>) -> Result<Downgrade, StoreError> {
    let Some(value) = view.get(TreeId::Cluster, DOWNGRADE)? else { return Ok(Downgrade::default()) };
    serde_json::from_slice(&value)
        .map_err(|error| StoreError::Inconsistent(format!("cluster/downgrade: {error}")))
}

/// Begins or ends one.
pub(super) fn set(store: &mut Store, request: &DowngradeInfoSetRequest) -> Result<(), StoreError> {
    let target_version = if request.enabled { request.ver.clone() } else { String::new() };
    let json = serde_json::to_vec(&Downgrade { target_version, enabled: request.enabled });
    store.insert(TreeId::Cluster, DOWNGRADE, &json.expect("a text and a truth always encode"))
}
