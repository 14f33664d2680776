//! Request handlers, free of any transport: decoded requests in, encoded answers out.
//!
//! They check requests in etcd's order, read from published roots, and leave every change to the log. What could
//! take long is begun where it stands, within a budget, and goes to a thread that may block when that is spent.

pub mod cluster;
pub mod downgrade;
mod intervals;
pub mod kv;
pub mod lease;
pub mod maintenance;
pub mod snapshot;

use crate::status::Status;

/// RPCs that etcd has and this server does not serve yet, by their gRPC paths.
pub const UNIMPLEMENTED: &[&str] = &[
    "/etcdserverpb.Auth/AuthDisable",
    "/etcdserverpb.Auth/AuthEnable",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/RoleAdd",
    "/etcdserverpb.Auth/RoleDelete",
    "/etcdserverpb.Auth/RoleGet",
    "/etcdserverpb.Auth/RoleGrantPermission",
    "/etcdserverpb.Auth/RoleList",
    "/etcdserverpb.Auth/RoleRevokePermission",
    "/etcdserverpb.Auth/UserAdd",
    "/etcdserverpb.Auth/UserChangePassword",
    "/etcdserverpb.Auth/UserDelete",
    "/etcdserverpb.Auth/UserGet",
    "/etcdserverpb.Auth/UserGrantRole",
    "/etcdserverpb.Auth/UserList",
    "/etcdserverpb.Auth/UserRevokeRole",
    "/v3electionpb.Election/Campaign",
    "/v3electionpb.Election/Leader",
    "/v3electionpb.Election/Observe",
    "/v3electionpb.Election/Proclaim",
    "/v3electionpb.Election/Resign",
    "/v3lockpb.Lock/Lock",
    "/v3lockpb.Lock/Unlock",
];

/// The error of an RPC that is in etcd and not served yet; None for paths that etcd does not have either.
pub fn unimplemented(path: &str) -> Option<Status> {
    let method = path.rsplit('/').next().filter(|_| UNIMPLEMENTED.contains(&path))?;
    Some(Status::unimplemented(method))
}
