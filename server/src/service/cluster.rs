//! Cluster: the list of members.

use trilith_proto::etcdserverpb::{Member, MemberListRequest, MemberListResponse};

use crate::apply::members;
use crate::core::Handle;
use crate::reply::Reply;
use crate::status::Status;

/// M13; H4: the header has no revision.
pub async fn member_list(handle: &Handle, request: MemberListRequest) -> Result<Reply, Status> {
    if request.linearizable {
        handle.read_point().await?;
    }
    let root = handle.root();
    let members = members::list(root.view())?.into_iter().map(|member| Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    });
    let header = Some(handle.header(0, root.applied().1));
    Ok(Reply::of(&MemberListResponse { header, members: members.collect() }))
}
