//! POST /raft: messages to a member that reads no stream from this one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use prost::Message as _;
use tokio::time::timeout;

use super::PeerError;
use super::client::{Connection, Payload, STALL, read_answer};
use super::link::{Link, Peer};
use super::queue::Take;

/// P5: parallel posts to a member. The last one takes no entries, so that what is urgent finds it free.
pub(super) const POSTERS: [Take; 4] = [Take::Any, Take::Any, Take::Any, Take::Urgent];
/// P4: what the receiver says to a member that was removed.
pub(super) const REMOVED: u16 = 403;
/// The slowest that a post may be, in bytes a second.
const PACE: usize = 1 << 20;

/// Posts what waits, one after the other on a connection that is kept, until the peer's queue is closed.
pub(super) async fn post(link: Arc<Link>, peer: Arc<Peer>, take: Take) {
    let mut kept = None;
    while let Some(message) = peer.pipeline.pop(take).await {
        let body = Bytes::from(message.encode_to_vec());
        let limit = STALL + Duration::from_secs((body.len() / PACE) as u64);
        let url = peer.url();
        let late = || PeerError::Timeout { url: url.clone() };
        let delivered = timeout(limit, deliver(&link, &url, &mut kept, body)).await;
        match delivered.unwrap_or_else(|_| Err(late())) {
            Ok(()) => peer.activate(),
            Err(error) => {
                kept = None;
                link.note(&error, REMOVED);
                peer.failed(&url);
                peer.deactivate("pipeline", &error);
                link.unreachable(peer.id);
            }
        }
    }
}

/// A kept connection may have been closed meanwhile: then a new one gets its chance.
async fn deliver(
    link: &Link,
    url: &str,
    kept: &mut Option<Connection>,
    body: Bytes,
) -> Result<(), PeerError> {
    if let Some(mut connection) = kept.take().filter(|kept| kept.is_open() && kept.url() == url) {
        match exchange(link, &mut connection, body.clone()).await {
            Err(PeerError::Http { .. }) => {}
            outcome => {
                *kept = Some(connection);
                return outcome;
            }
        }
    }
    let mut connection = Connection::open(&link.options.dialer, url, link.connect_max(), STALL).await?;
    exchange(link, &mut connection, body).await?;
    *kept = Some(connection);
    Ok(())
}

async fn exchange(link: &Link, connection: &mut Connection, body: Bytes) -> Result<(), PeerError> {
    let request = link.request(Method::POST, "/raft").header(header::CONTENT_TYPE, "application/protobuf");
    let answer = connection.send(request, Payload::of(body)).await?;
    read_answer(connection.url(), answer, 0).await.map(drop)
}
