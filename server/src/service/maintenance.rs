//! Maintenance: what the member tells of itself, and hashes over what it holds.

use trilith_proto::etcdserverpb::{
    AlarmRequest, DefragmentRequest, DefragmentResponse, DowngradeInfo, HashKvRequest, HashKvResponse,
    HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse, StatusRequest, StatusResponse,
};

use crate::apply::alarm::{self, Alarms};
use crate::apply::command::Command;
use crate::apply::{downgrade, members};
use crate::blocking;
use crate::core::{Handle, SERVER_VERSION};
use crate::reply::Reply;
use crate::status::{self, Status};

/// X1: lists alarms, raises and ends them, through the log.
pub async fn alarm(handle: &Handle, request: AlarmRequest) -> Result<Reply, Status> {
    handle.propose(&Command::Alarm(request)).await
}

/// X6.
pub async fn status(handle: &Handle, _: StatusRequest) -> Result<Reply, Status> {
    let facts = handle.facts();
    let root = handle.root();
    let no_leader = (facts.leader == 0).then(|| status::NO_LEADER.message.into_owned());
    let alarms: Vec<String> = Alarms::restore(root.view())?.list().map(|found| alarm::text(&found)).collect();
    let disk_full = handle.is_disk_full().then(|| "trilith: no space left on the disk".to_owned());
    let downgrade = downgrade::get(root.view())?;
    let downgrade_info =
        DowngradeInfo { enabled: downgrade.enabled, target_version: downgrade.target_version };
    let this = members::get(root.view(), facts.member_id)?;
    Ok(Reply::of(&StatusResponse {
        header: Some(handle.header(root.view().revision(), root.applied().1)),
        version: SERVER_VERSION.into(),
        db_size: facts.db_size as i64,
        leader: facts.leader,
        raft_index: facts.commit,
        raft_term: facts.term,
        raft_applied_index: facts.applied,
        errors: no_leader.into_iter().chain(alarms).chain(disk_full).collect(),
        db_size_in_use: facts.db_size_in_use as i64,
        is_learner: this.is_some_and(|member| member.is_learner),
        storage_version: members::storage_version(root.view())?.unwrap_or_default(),
        db_size_quota: handle.quota().bytes(),
        downgrade_info: Some(downgrade_info),
    }))
}

/// X13, but for the blocking. H5: no header.
pub async fn defragment(handle: &Handle, _: DefragmentRequest) -> Result<Reply, Status> {
    handle.defragment().await?;
    Ok(Reply::of(&DefragmentResponse::default()))
}

/// X12; H5: no header.
pub async fn move_leader(handle: &Handle, request: MoveLeaderRequest) -> Result<Reply, Status> {
    handle.transfer_leader(request.target_id).await?;
    Ok(Reply::of(&MoveLeaderResponse::default()))
}

/// X7.
pub async fn hash(handle: &Handle, _: HashRequest) -> Result<Reply, Status> {
    let root = handle.root();
    let header = Some(handle.header(root.view().revision(), root.applied().1));
    let hash = blocking::run(move || Ok(root.view().hash()?)).await?;
    Ok(Reply::of(&HashResponse { header, hash }))
}

/// X8, X9.
pub async fn hash_kv(handle: &Handle, request: HashKvRequest) -> Result<Reply, Status> {
    let root = handle.root();
    let header = Some(handle.header(root.view().revision(), root.applied().1));
    let (hash, compact_revision, hash_revision) =
        blocking::run(move || Ok(root.view().hash_kv(request.revision)?)).await?;
    Ok(Reply::of(&HashKvResponse { header, hash, compact_revision, hash_revision }))
}
