//! Which path is served by which handler.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use trilith_proto::etcdserverpb::{LeaseKeepAliveRequest, RangeRequest, SnapshotRequest};
use trilith_proto::healthpb::HealthListRequest;

use super::watch::Watches;
use super::{Call, Replies, Requests, Routes, health};
use crate::core::Handle;
use crate::service::cluster::Peers;
use crate::service::{cluster, downgrade, kv, lease, maintenance, snapshot, unimplemented};
use crate::status::{self, Code, Status};

/// All services of a member's client port. Clones share it.
#[derive(Debug, Clone)]
pub struct Api {
    core: Handle,
    peers: Arc<dyn Peers>,
    watches: Arc<Watches>,
}

impl Api {
    /// Serves the core; `peers` is the way to the other members. Watch responses of at least `fragment_bytes` are cut for clients that take parts;
    /// `progress_interval` is the time between progress answers to watchers.
    pub fn new(
        core: Handle,
        peers: Arc<dyn Peers>,
        fragment_bytes: usize,
        progress_interval: Duration,
    ) -> Api {
        let watches = Watches { hub: core.hub(), core: core.clone(), fragment_bytes, progress_interval };
        Api { core, peers, watches: Arc::new(watches) }
    }
}

impl Routes for Api {
    /// Each handler is a task of its own size: a put does not pay for what a rare call needs.
    fn route(&self, path: &str, call: Call) {
        let core = self.core.clone();
        if core.is_learner() && !is_served_by_learners(path) {
            return call.refuse(status::NOT_SUPPORTED_FOR_LEARNER);
        }
        if let Err(status) = check_metadata(&core, call.headers()) {
            return call.refuse(status);
        }
        match path {
            "/etcdserverpb.KV/Put" => call.unary(move |request| kv::put(&core, request)),
            "/etcdserverpb.KV/Range" => {
                call.unary_in_parts(async move |request| kv::range(&core, request).await);
            }
            "/etcdserverpb.KV/Txn" => call.unary(async move |request| kv::txn(&core, request).await),
            "/etcdserverpb.KV/DeleteRange" => call.unary(move |request| kv::delete_range(&core, request)),
            "/etcdserverpb.KV/Compact" => call.unary(move |request| kv::compact(&core, request)),
            "/etcdserverpb.KV/RangeStream" => {
                call.server_streaming(async move |request, replies: &mut Replies| {
                    range_stream(&core, request, replies).await
                })
            }
            "/etcdserverpb.Watch/Watch" => {
                let watches = self.watches.clone();
                let insists = insists_on_leader(call.headers());
                call.streaming(async move |requests: &mut Requests, replies: &mut Replies| {
                    while_led(&core, insists, watches.serve(requests, replies)).await
                });
            }
            "/etcdserverpb.Lease/LeaseGrant" => {
                call.unary(async move |request| lease::grant(&core, request).await)
            }
            "/etcdserverpb.Lease/LeaseRevoke" => {
                call.unary(async move |request| lease::revoke(&core, request).await)
            }
            "/etcdserverpb.Lease/LeaseKeepAlive" => {
                let insists = insists_on_leader(call.headers());
                call.streaming(async move |requests: &mut Requests, replies: &mut Replies| {
                    while_led(&core, insists, keep_alive(&core, requests, replies)).await
                });
            }
            "/etcdserverpb.Lease/LeaseTimeToLive" => {
                call.unary(async move |request| lease::time_to_live(&core, request).await);
            }
            "/etcdserverpb.Lease/LeaseLeases" => {
                call.unary(async move |request| lease::leases(&core, request).await)
            }
            other => self.route_rest(other, call),
        }
    }
}

impl Api {
    /// What is called rarely.
    fn route_rest(&self, path: &str, call: Call) {
        let core = self.core.clone();
        match path {
            "/etcdserverpb.Cluster/MemberList" => {
                call.unary(async move |request| cluster::member_list(&core, request).await);
            }
            "/etcdserverpb.Cluster/MemberAdd" => {
                let peers = self.peers.clone();
                call.unary(async move |request| cluster::member_add(&core, &*peers, request).await);
            }
            "/etcdserverpb.Cluster/MemberRemove" => {
                let peers = self.peers.clone();
                call.unary(async move |request| cluster::member_remove(&core, &*peers, request).await);
            }
            "/etcdserverpb.Cluster/MemberUpdate" => {
                call.unary(async move |request| cluster::member_update(&core, request).await);
            }
            "/etcdserverpb.Cluster/MemberPromote" => {
                let peers = self.peers.clone();
                call.unary(async move |request| cluster::member_promote(&core, &*peers, request).await);
            }
            "/etcdserverpb.Maintenance/MoveLeader" => {
                call.unary(async move |request| maintenance::move_leader(&core, request).await);
            }
            "/etcdserverpb.Maintenance/Alarm" => {
                call.unary(async move |request| maintenance::alarm(&core, request).await);
            }
            "/etcdserverpb.Maintenance/Status" => {
                call.unary(async move |request| maintenance::status(&core, request).await);
            }
            "/etcdserverpb.Maintenance/Hash" => {
                call.unary(async move |request| maintenance::hash(&core, request).await);
            }
            "/etcdserverpb.Maintenance/Defragment" => {
                call.unary(async move |request| maintenance::defragment(&core, request).await);
            }
            "/etcdserverpb.Maintenance/Downgrade" => {
                call.unary(async move |request| downgrade::downgrade(&core, request).await);
            }
            "/etcdserverpb.Maintenance/HashKV" => {
                call.unary(async move |request| maintenance::hash_kv(&core, request).await);
            }
            "/etcdserverpb.Maintenance/Snapshot" => {
                call.server_streaming(async move |request, replies: &mut Replies| {
                    send_snapshot(&core, request, replies).await
                })
            }
            "/grpc.health.v1.Health/Check" => call.unary(async |request| health::check(&request)),
            "/grpc.health.v1.Health/List" => call.unary(async |_: HealthListRequest| Ok(health::list())),
            "/grpc.health.v1.Health/Watch" => call.server_streaming(health::watch),
            other => call.refuse(unimplemented(other).unwrap_or_else(|| no_such_method(other))),
        }
    }
}

/// R14: a member without a vote tells of itself, and reads from its own state; Range looks at its request for that.
fn is_served_by_learners(path: &str) -> bool {
    matches!(
        path,
        "/etcdserverpb.KV/Range" | "/etcdserverpb.Maintenance/Status" | "/etcdserverpb.Maintenance/Snapshot"
    )
}

/// G5 and Z7: a client may insist on a known leader, and its version must be text.
fn check_metadata(core: &Handle, headers: &HeaderMap) -> Result<(), Status> {
    if let Some(version) = headers.get("client-api-version")
        && std::str::from_utf8(version.as_bytes()).is_err()
    {
        return Err(status::INVALID_CLIENT_API_VERSION);
    }
    if insists_on_leader(headers) && core.facts().leader == 0 {
        return Err(status::NO_LEADER);
    }
    Ok(())
}

fn insists_on_leader(headers: &HeaderMap) -> bool {
    headers.get("hasleader").is_some_and(|value| value == "true")
}

/// G5: a stream that insists on a leader ends when there has been none for a while.
async fn while_led(
    core: &Handle,
    insists: bool,
    serve: impl Future<Output = Result<(), Status>>,
) -> Result<(), Status> {
    if !insists {
        return serve.await;
    }
    tokio::select! {
        outcome = serve => outcome,
        () = core.leader_lost() => Err(status::NO_LEADER),
    }
}

/// The next chunk is read while one is sent.
async fn range_stream(core: &Handle, request: RangeRequest, replies: &mut Replies) -> Result<(), Status> {
    let (mut chunk, mut rest) = kv::range_stream(core, request).await?.next_chunk().await?;
    while let Some(reply) = chunk {
        let (sent, next) = tokio::join!(replies.send(reply), rest.next_chunk());
        if sent.is_err() {
            break;
        }
        (chunk, rest) = next?;
    }
    Ok(())
}

/// The next part is read elsewhere while the client takes this one.
async fn send_snapshot(core: &Handle, request: SnapshotRequest, replies: &mut Replies) -> Result<(), Status> {
    let mut snapshot = snapshot::begin(core, request);
    loop {
        let part = snapshot.next_part().await?;
        if part.is_empty() {
            return Ok(());
        }
        for message in part {
            if replies.send(message).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Renewals one after the other, as they come in; ends with the client's half-close.
async fn keep_alive(core: &Handle, requests: &mut Requests, replies: &mut Replies) -> Result<(), Status> {
    while let Some(request) = requests.next::<LeaseKeepAliveRequest>().await? {
        if replies.send(lease::keep_alive(core, request).await?).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// gRPC's own text for a path that is not served: unknown method where the service is known, else unknown service.
pub(super) fn no_such_method(path: &str) -> Status {
    let message = match path.strip_prefix('/').unwrap_or(path).rsplit_once('/') {
        None => format!("malformed method name: {path:?}"),
        Some((service, method)) if SERVICES.contains(&service) => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
    };
    Status { code: Code::Unimplemented, message: message.into() }
}

const SERVICES: [&str; 9] = [
    "etcdserverpb.Auth",
    "etcdserverpb.Cluster",
    "etcdserverpb.KV",
    "etcdserverpb.Lease",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Watch",
    "grpc.health.v1.Health",
    "v3electionpb.Election",
    "v3lockpb.Lock",
];
