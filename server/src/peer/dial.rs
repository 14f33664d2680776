//! The reading side of a stream: dials a member, reads until the stream ends, and dials again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until, timeout};

use super::PeerError;
use super::client::{Connection, Payload, STALL, next_data, read_answer};
use super::codec::{CodecError, Decoder, Frame, Kind};
use super::link::{Link, Peer, RAFT_TO, SERVER_VERSION_HEADER};
use super::route::version_of;

/// T4: from one dial to the next.
const PACE: Duration = Duration::from_millis(100);
/// H4: the oldest version that has both streams.
const STREAMS_SINCE: (u32, u32) = (2, 1);
/// S3: to a stream's dialer, that it was removed.
const GONE: u16 = 410;
/// S3: to a dialer that is of another cluster, looks for another member, or has another version.
const PRECONDITION_FAILED: u16 = 412;

/// Keeps a stream from the peer, for as long as it is not dropped.
pub(super) async fn keep(link: Arc<Link>, peer: Arc<Peer>, kind: Kind) {
    let mut told = String::new();
    loop {
        let again = Instant::now() + PACE;
        let url = peer.url();
        let error = match dial(&link, &peer, kind, &url).await {
            Ok((connection, body)) => {
                peer.activate();
                let ended = read(&link, &peer, kind, connection.url(), body).await;
                ended.err().map_or("the stream has ended".to_owned(), |error| error.to_string())
            }
            Err(error) => {
                link.note(&error, GONE);
                peer.failed(&url);
                let text = error.to_string();
                // This one cannot mend itself, so it is told, but not ten times a second.
                if matches!(error, PeerError::Refused { code: PRECONDITION_FAILED, .. }) && text != told {
                    let id = format!("{:x}", peer.id);
                    log::warn!("remote-peer-id" = id.as_str(), error = text.as_str(); "request sent was ignored by the remote peer");
                    told.clone_from(&text);
                }
                text
            }
        };
        peer.deactivate(kind.name(), &error);
        sleep_until(again).await;
    }
}

/// S1: asks for a stream.
async fn dial(link: &Link, peer: &Peer, kind: Kind, url: &str) -> Result<(Connection, Incoming), PeerError> {
    let mut connection = Connection::open(&link.options.dialer, url, link.connect_max(), STALL).await?;
    let path = format!("/raft/stream/{}/{:x}", kind.name(), link.options.member_id);
    let request = link.request(Method::GET, &path).header(RAFT_TO, format!("{:x}", peer.id));
    let asking = async {
        let answer = connection.send(request, Payload::of(Bytes::new())).await?;
        if answer.status().is_success() { Ok(answer) } else { refused(url, answer).await }
    };
    let late = || PeerError::Timeout { url: url.to_owned() };
    let answer = timeout(STALL, asking).await.map_err(|_| late())??;
    let theirs = version_of(answer.headers(), SERVER_VERSION_HEADER);
    if !has_streams(theirs) {
        let what = format!("a version without this stream: {theirs:?}");
        return Err(PeerError::Answer { url: url.to_owned(), what });
    }
    Ok((connection, answer.into_body()))
}

async fn refused(url: &str, answer: Response<Incoming>) -> Result<Response<Incoming>, PeerError> {
    let code = answer.status();
    // Any answer but a success is an error already.
    read_answer(url, answer, 0).await?;
    Err(PeerError::Answer { url: url.to_owned(), what: code.to_string() })
}

/// Reads a stream to its end.
async fn read(link: &Link, peer: &Peer, kind: Kind, url: &str, mut body: Incoming) -> Result<(), PeerError> {
    let mut decoder = Decoder::new(kind, link.options.member_id, peer.id);
    loop {
        let data = match timeout(STALL, next_data(&mut body)).await {
            Ok(Some(Ok(data))) => data,
            Ok(Some(Err(error))) => return Err(PeerError::Http { url: url.to_owned(), error }),
            Ok(None) => return Ok(()),
            Err(_) => return Err(PeerError::Timeout { url: url.to_owned() }),
        };
        // A post that failed late may have said otherwise.
        peer.activate();
        decoder.push(&data);
        let broken = |error: CodecError| PeerError::Answer { url: url.to_owned(), what: error.to_string() };
        while let Some(frame) = decoder.next_frame().map_err(broken)? {
            if let Frame::Message(message) = frame {
                link.take(message);
            }
        }
    }
}

/// H4. A version that cannot be read has none.
fn has_streams(theirs: Option<(u32, u32)>) -> bool {
    theirs.is_some_and(|theirs| theirs >= STREAMS_SINCE)
}

#[cfg(test)]
mod tests {
    use super::has_streams;

    #[test]
    fn h4_versions_with_streams() {
        for version in [(2, 1), (3, 4), (3, 7), (3, 8), (4, 0)] {
            assert!(has_streams(Some(version)), "{version:?}");
        }
        assert!(!has_streams(Some((2, 0))) && !has_streams(None));
    }
}
