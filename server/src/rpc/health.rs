//! grpc.health.v1.Health: the one service name is "", as in etcd, and it is serving while the member runs.

use std::collections::HashMap;

use trilith_proto::healthpb::health_check_response::ServingStatus;
use trilith_proto::healthpb::{HealthCheckRequest, HealthCheckResponse, HealthListResponse};

use super::Replies;
use crate::reply::Reply;
use crate::status::{Code, Status};

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

pub(super) fn check(request: &HealthCheckRequest) -> Result<Reply, Status> {
    if !request.service.is_empty() {
        return Err(Status::new(Code::NotFound, "unknown service"));
    }
    Ok(Reply::of(&response(ServingStatus::Serving)))
}

pub(super) fn list() -> Reply {
    let statuses = HashMap::from([(String::new(), response(ServingStatus::Serving))]);
    Reply::of(&HealthListResponse { statuses })
}

/// Tells the present status, then stays open: it does not change while the member runs.
pub(super) async fn watch(request: HealthCheckRequest, replies: &mut Replies) -> Result<(), Status> {
    let known = request.service.is_empty();
    let status = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
    if replies.send(Reply::of(&response(status))).await.is_err() {
        return Ok(());
    }
    std::future::pending().await
}
