//! `downgrade validate`, `enable` and `cancel`.

use trilith_proto::etcdserverpb::DowngradeRequest;
use trilith_proto::etcdserverpb::downgrade_request::DowngradeAction;

use super::Session;
use crate::exit::Failure;
use crate::print::Answer;

pub(super) async fn validate(session: &Session) -> Result<(), Failure> {
    call(session, "validate", DowngradeAction::Validate, target(session)?).await
}

pub(super) async fn enable(session: &Session) -> Result<(), Failure> {
    call(session, "enable", DowngradeAction::Enable, target(session)?).await
}

/// Whatever stands behind it is not looked at, as in etcd.
pub(super) async fn cancel(session: &Session) -> Result<(), Failure> {
    call(session, "cancel", DowngradeAction::Cancel, String::new()).await
}

fn target(session: &Session) -> Result<String, Failure> {
    match session.args().len() {
        0 => Err(Failure::bad_args("TARGET_VERSION not provided")),
        1 if session.text(0).is_empty() => Err(Failure::bad_args("target version not provided")),
        1 => Ok(session.text(0)),
        _ => Err(Failure::bad_args("too many arguments")),
    }
}

async fn call(
    session: &Session,
    name: &'static str,
    action: DowngradeAction,
    version: String,
) -> Result<(), Failure> {
    let client = session.connect().await?;
    let request = DowngradeRequest { action: action as i32, version };
    let answer = client.call(client.maintenance().downgrade(request)).await.map_err(Failure::error)?;
    session.print(&Answer::Downgrade { action: name, answer: &answer })
}
