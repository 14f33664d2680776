//! Which path is served by which handler.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;

use super::watch::Watches;
use super::{Call, Replies, Requests, Routes, health};
use crate::core::Handle;
use crate::status::{Code, Status};
use crate::watch::Hub;

/// All services of a member's client port.
#[derive(Debug, Clone)]
pub struct Api {
    watches: Watches,
}

impl Api {
    pub fn new(core: Handle, hub: Arc<Hub>, fragment_bytes: usize, progress_interval: Duration) -> Api {
        Api { watches: Watches { core, hub, fragment_bytes, progress_interval } }
    }
}

impl Routes for Api {
    async fn route(self, path: PathAndQuery, call: Call) {
        match path.path() {
            "/etcdserverpb.Watch/Watch" => {
                call.streaming(async |requests: &mut Requests, replies: &mut Replies| {
                    self.watches.serve(requests, replies).await
                })
                .await
            }
            "/grpc.health.v1.Health/Check" => call.unary(async |request| health::check(&request)).await,
            "/grpc.health.v1.Health/List" => {
                call.unary(async |_: trilith_proto::healthpb::HealthListRequest| Ok(health::list())).await
            }
            "/grpc.health.v1.Health/Watch" => call.server_streaming(health::watch).await,
            unknown => call.refuse(no_such_method(unknown)),
        }
    }
}

/// gRPC's own text for a path that is not served.
pub(super) fn no_such_method(path: &str) -> Status {
    let message = match path.strip_prefix('/').unwrap_or(path).rsplit_once('/') {
        None => format!("malformed method name: {path:?}"),
        Some((service, method)) => format!("unknown method {method} for service {service}"),
    };
    Status { code: Code::Unimplemented, message: message.into() }
}
