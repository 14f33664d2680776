//! Downgrades and the cluster's version: X14, X16 and X17 of the reference, on a lone member.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Bed, decode};
use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::downgrade_request::DowngradeAction;
use trilith_server::status::{self, Status};
use trilith_server::{apply, service};

/// Longer than the leader's time between two looks.
const A_LOOK: Duration = Duration::from_secs(5);

fn call(bed: &mut Bed, action: i32, version: &str) -> Result<pb::DowngradeResponse, Status> {
    let (handle, version) = (bed.handle.clone(), version.to_owned());
    let request = pb::DowngradeRequest { action, version };
    bed.run(async move { service::downgrade::downgrade(&handle, request).await }).map(decode)
}

fn ask(bed: &mut Bed, action: DowngradeAction, version: &str) -> Result<String, Status> {
    let revision = bed.revision();
    let answer = call(bed, action as i32, version)?;
    assert_eq!(answer.header.unwrap().revision, revision);
    Ok(answer.version)
}

/// Versions of the cluster and of the store, and what Status says of a downgrade.
fn state(bed: &mut Bed) -> (String, String, bool, String) {
    let handle = bed.handle.clone();
    let status: pb::StatusResponse = decode(
        bed.run(async move { service::maintenance::status(&handle, pb::StatusRequest {}).await }).unwrap(),
    );
    let cluster = apply::members::cluster_version(bed.handle.root().view()).unwrap().unwrap();
    let info = status.downgrade_info.unwrap();
    assert_eq!(status.version, "3.7.1");
    (cluster, status.storage_version, info.enabled, info.target_version)
}

fn versions(version: &str, enabled: bool, target: &str) -> (String, String, bool, String) {
    (version.into(), version.into(), enabled, target.into())
}

#[test]
fn x14_what_is_no_version_one_below_is_refused() {
    let mut bed = Bed::new();
    for action in [DowngradeAction::Validate, DowngradeAction::Enable] {
        for bad in ["", "3", "3.x", "3.6.1.2", "v3.6"] {
            assert_eq!(ask(&mut bed, action, bad), Err(status::WRONG_DOWNGRADE_VERSION_FORMAT), "{bad}");
        }
        for bad in ["3.7", "3.5.0", "3.8", "2.6", "4.6"] {
            assert_eq!(ask(&mut bed, action, bad), Err(status::INVALID_DOWNGRADE_TARGET_VERSION), "{bad}");
        }
    }
    assert_eq!(call(&mut bed, 3, "3.6").map(|answer| answer.version), Err(status::UNKNOWN_METHOD));
    assert_eq!(state(&mut bed), versions("3.7.0", false, ""));
}

#[test]
fn x14_x16_x17_a_downgrade_lowers_the_versions_and_its_end_raises_them() {
    let mut bed = Bed::new();
    assert_eq!(ask(&mut bed, DowngradeAction::Validate, "3.6.9"), Ok("3.7".into()));
    assert_eq!(state(&mut bed), versions("3.7.0", false, ""), "asking changes nothing");
    assert_eq!(ask(&mut bed, DowngradeAction::Enable, "3.6"), Ok("3.7".into()));
    assert_eq!(state(&mut bed), versions("3.7.0", true, "3.6.0"));
    assert_eq!(ask(&mut bed, DowngradeAction::Enable, "3.6"), Err(status::DOWNGRADE_IN_PROCESS));
    bed.pass(A_LOOK);
    assert_eq!(state(&mut bed), versions("3.6.0", true, "3.6.0"));

    let mut bed = bed.kill();
    bed.pass(A_LOOK);
    assert_eq!(state(&mut bed), versions("3.6.0", true, "3.6.0"), "it stands in the store");
    assert_eq!(ask(&mut bed, DowngradeAction::Validate, "3.5"), Err(status::DOWNGRADE_IN_PROCESS));
    assert_eq!(ask(&mut bed, DowngradeAction::Cancel, ""), Ok("3.6".into()));
    assert_eq!(state(&mut bed), versions("3.6.0", false, ""));
    bed.pass(A_LOOK);
    assert_eq!(state(&mut bed), versions("3.7.0", false, ""));
    assert_eq!(
        ask(&mut bed, DowngradeAction::Cancel, ""),
        Ok("3.7".into()),
        "cancelling nothing is no error"
    );
}
