//! `member list`.

use trilith_proto::etcdserverpb as pb;

use super::{Session, kv};
use crate::exit::Failure;
use crate::print::Answer;

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let linearizable = kv::linearizable(&session.flags)?;
    let client = session.connect().await?;
    let request = pb::MemberListRequest { linearizable };
    let answer = client.call(client.cluster().member_list(request)).await.map_err(Failure::error)?;
    session.print(&Answer::MemberList(&answer))
}
