//! The Watch call: requests into a hub stream, deliveries out of it.

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use trilith_engine::StoreError;
use trilith_proto::etcdserverpb::watch_request::RequestUnion;
use trilith_proto::etcdserverpb::{ResponseHeader, WatchRequest};

use super::{Replies, Requests};
use crate::core::Handle;
use crate::status::{Code, Status};
use crate::watch::{Encoder, Hub, Stream};

/// What watch streams need to know.
#[derive(Debug, Clone)]
pub(super) struct Watches {
    pub(super) core: Handle,
    pub(super) hub: Arc<Hub>,
    /// Responses of at least this many bytes go out in parts where the client takes parts.
    pub(super) fragment_bytes: usize,
    /// Time between progress answers; up to a tenth is added at random for each stream.
    pub(super) progress_interval: Duration,
}

impl Watches {
    fn encoder(&self) -> Encoder {
        let facts = self.core.facts();
        let header = ResponseHeader {
            cluster_id: facts.cluster_id,
            member_id: facts.member_id,
            revision: 0,
            raft_term: facts.applied_term,
        };
        Encoder { header, fragment_bytes: self.fragment_bytes }
    }

    /// Serves one stream until the client is gone. Its half-close ends nothing.
    pub(super) async fn serve(&self, requests: &mut Requests, replies: &mut Replies) -> Result<(), Status> {
        let mut stream = self.hub.open();
        let jitter = RandomState::new().hash_one(0) % 1000;
        let interval = self.progress_interval + self.progress_interval.mul_f64(jitter as f64 / 10_000.0);
        let mut progress = interval_at(Instant::now() + interval, interval);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reading = true;
        // Only a client that is gone makes sending fail, and then no outcome reaches it.
        if replies.open().is_err() {
            return Ok(());
        }
        loop {
            tokio::select! {
                request = requests.next::<WatchRequest>(), if reading => match request? {
                    Some(request) => {
                        if let Some(reply) = self.answer(&mut stream, request)
                            && replies.send(reply).await.is_err()
                        {
                            return Ok(());
                        }
                    }
                    None => reading = false,
                },
                deliveries = poll_fn(|cx| stream.poll_deliveries(cx)) => {
                    let deliveries = deliveries.map_err(broken)?;
                    let encoder = self.encoder();
                    let root = stream.root();
                    for delivery in &deliveries {
                        for reply in encoder.delivery(delivery, &root).map_err(broken)? {
                            trilith_failpoint::hit("beforeSendWatchResponse");
                            if replies.send(reply).await.is_err() {
                                return Ok(());
                            }
                        }
                    }
                    // Rounds of catching up follow one another: let others have the thread between them.
                    tokio::task::yield_now().await;
                }
                _ = progress.tick() => stream.tick_progress(),
            }
        }
    }

    fn answer(&self, stream: &mut Stream, request: WatchRequest) -> Option<crate::reply::Reply> {
        match request.request_union? {
            RequestUnion::CreateRequest(create) => Some(self.encoder().created(stream.create(&create))),
            RequestUnion::CancelRequest(cancel) => {
                let revision = stream.cancel(cancel.watch_id)?;
                Some(self.encoder().canceled(cancel.watch_id, revision))
            }
            RequestUnion::ProgressRequest(_) => {
                trilith_failpoint::hit("beforeProgressIfSync");
                stream.request_progress();
                None
            }
        }
    }
}

/// The store could not be read: the stream ends, with its error.
fn broken(error: StoreError) -> Status {
    log::error!(error:% = error; "failed to read the history for a watch stream");
    Status { code: Code::Unknown, message: error.to_string().into() }
}
