//! Maintenance.Downgrade: whether the cluster may go back to an older version, and the switch for it (X14).
//!
//! Enabling only says it in the log; that the cluster's version goes down, and up again, is the leader's work.

use trilith_proto::etcdserverpb::downgrade_request::DowngradeAction;
use trilith_proto::etcdserverpb::{DowngradeRequest, DowngradeResponse};
use trilith_proto::membershippb::DowngradeInfoSetRequest;

use crate::apply::command::Command;
use crate::apply::{downgrade, members};
use crate::core::Handle;
use crate::reply::Reply;
use crate::status::{self, Status};

/// X14. The answer's version is the cluster's, `X.Y`.
pub async fn downgrade(handle: &Handle, request: DowngradeRequest) -> Result<Reply, Status> {
    let Ok(action) = DowngradeAction::try_from(request.action) else {
        return Err(status::UNKNOWN_METHOD);
    };
    match action {
        DowngradeAction::Validate => {
            validate(handle, &request.version).await?;
        }
        DowngradeAction::Enable => {
            let ver = validate(handle, &request.version).await?;
            handle
                .propose(&Command::DowngradeInfoSet(DowngradeInfoSetRequest { enabled: true, ver }))
                .await?;
        }
        DowngradeAction::Cancel => {
            let none = DowngradeInfoSetRequest { enabled: false, ver: String::new() };
            if let Err(error) = handle.propose(&Command::DowngradeInfoSet(none)).await {
                log::warn!(error:%; "failed to cancel the downgrade");
            }
        }
    }
    let root = handle.root();
    let version = members::cluster_version(root.view())?.unwrap_or_default();
    let version = minor_of(&version).map_or_else(String::new, |(major, minor)| format!("{major}.{minor}"));
    let header = Some(handle.header(root.view().revision(), root.applied().1));
    Ok(Reply::of(&DowngradeResponse { header, version }))
}

/// The target as `X.Y.0`, if the cluster may be brought to it now.
async fn validate(handle: &Handle, target: &str) -> Result<String, Status> {
    let target = minor_of(target).ok_or(status::WRONG_DOWNGRADE_VERSION_FORMAT)?;
    handle.read_point().await?;
    let root = handle.root();
    let Some(cluster) = members::cluster_version(root.view())? else {
        return Err(status::CLUSTER_VERSION_UNAVAILABLE);
    };
    let below = minor_of(&cluster).and_then(|(major, minor)| Some((major, minor.checked_sub(1)?)));
    if below != Some(target) {
        return Err(status::INVALID_DOWNGRADE_TARGET_VERSION);
    }
    if downgrade::get(root.view())?.enabled {
        return Err(status::DOWNGRADE_IN_PROCESS);
    }
    Ok(format!("{}.{}.0", target.0, target.1))
}

/// Major and minor of `X.Y` or `X.Y.Z`.
fn minor_of(version: &str) -> Option<(u32, u32)> {
    let whole = if version.matches('.').count() == 1 { format!("{version}.0") } else { version.to_owned() };
    members::parse_version(&whole).map(|(major, minor, _)| (major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x14_a_target_has_two_parts_or_three() {
        assert_eq!(minor_of("3.6"), Some((3, 6)));
        assert_eq!(minor_of("3.6.11"), Some((3, 6)));
        assert_eq!(minor_of("3.6.0-rc"), Some((3, 6)));
        for bad in ["", "3", "3.", "3.x", "3.6.1.0", "v3.6", "-3.6"] {
            assert_eq!(minor_of(bad), None, "{bad}");
        }
    }
}
