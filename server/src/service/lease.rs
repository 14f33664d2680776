//! Lease: grant, revoke, keep alive, time to live, list.

use trilith_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    ResponseHeader,
};

use crate::apply::command::Command;
use crate::apply::quota;
use crate::core::Handle;
use crate::reply::Reply;
use crate::status::Status;

fn header(handle: &Handle) -> Option<ResponseHeader> {
    let root = handle.root();
    Some(handle.header(root.view().revision(), root.applied().1))
}

/// L3: id 0 leaves the choice to us.
pub async fn grant(handle: &Handle, mut request: LeaseGrantRequest) -> Result<Reply, Status> {
    if let Some(refused) = handle.over_quota(quota::COST_OF_LEASE) {
        return Err(refused.await);
    }
    if request.id == 0 {
        request.id = handle.new_lease_id();
    }
    handle.propose(&Command::LeaseGrant(request)).await
}

/// Ends a lease and deletes its keys.
pub async fn revoke(handle: &Handle, request: LeaseRevokeRequest) -> Result<Reply, Status> {
    handle.propose(&Command::LeaseRevoke(request)).await
}

/// One message of a keep-alive stream. H6: the header is from before the renewal.
pub async fn keep_alive(handle: &Handle, request: LeaseKeepAliveRequest) -> Result<Reply, Status> {
    let header = header(handle);
    let ttl = handle.keep_alive(request.id).await?;
    Ok(Reply::of(&LeaseKeepAliveResponse { header, id: request.id, ttl }))
}

/// L8.
pub async fn time_to_live(handle: &Handle, request: LeaseTimeToLiveRequest) -> Result<Reply, Status> {
    let id = request.id;
    trilith_failpoint::hit("beforeLookupWhenLeaseTimeToLive");
    let left = handle.lease_left(id, request.keys).await?;
    let missing = LeaseTimeToLiveResponse { id, ttl: -1, ..Default::default() };
    let response = LeaseTimeToLiveResponse { header: header(handle), ..left.unwrap_or(missing) };
    Ok(Reply::of(&response))
}

/// L10.
pub async fn leases(handle: &Handle, _: LeaseLeasesRequest) -> Result<Reply, Status> {
    let leases = handle.leases().into_iter().map(|id| LeaseStatus { id }).collect();
    Ok(Reply::of(&LeaseLeasesResponse { header: header(handle), leases }))
}
