//! `alarm list` and `alarm disarm`.

use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::alarm_request::AlarmAction;

use super::Session;
use crate::client::Client;
use crate::exit::Failure;
use crate::print::Answer;

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    no_arguments(session, "list")?;
    let client = session.connect().await?;
    let answer = call(&client, pb::AlarmRequest::default()).await?;
    session.print(&Answer::Alarm(&answer))
}

/// Disarms whatever is there, one by one; the answer has no header then.
pub(super) async fn disarm(session: &Session) -> Result<(), Failure> {
    no_arguments(session, "disarm")?;
    let client = session.connect().await?;
    let mut disarmed = pb::AlarmResponse::default();
    for pb::AlarmMember { member_id, alarm } in call(&client, pb::AlarmRequest::default()).await?.alarms {
        let request = pb::AlarmRequest { action: AlarmAction::Deactivate as i32, member_id, alarm };
        disarmed.alarms.extend(call(&client, request).await?.alarms);
    }
    session.print(&Answer::Alarm(&disarmed))
}

async fn call(client: &Client, request: pb::AlarmRequest) -> Result<pb::AlarmResponse, Failure> {
    client.call(client.maintenance().alarm(request)).await.map_err(Failure::error)
}

fn no_arguments(session: &Session, name: &str) -> Result<(), Failure> {
    if session.args().is_empty() {
        return Ok(());
    }
    Err(Failure::bad_args(format_args!("alarm {name} command accepts no arguments")))
}
