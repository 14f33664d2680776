//! What the peer port answers, path by path, with etcd's checks in etcd's order.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;
use trilith_proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use trilith_proto::leasepb::{LeaseInternalRequest, LeaseInternalResponse};
use trilith_proto::raftpb::MessageType;

use super::client::{STALL, next_data};
use super::codec::{Kind, MESSAGE_MAX, decode_message};
use super::link::{
    Link, MIN_CLUSTER_VERSION, MIN_CLUSTER_VERSION_HEADER, PEER_URLS, RAFT_TO, SERVER_FROM,
    SERVER_VERSION_HEADER,
};
use super::reply::{Refusal, add, no_content, with_type};
use super::stream::{Reply, StreamBody};
use super::transport::Shared;
use super::{CLUSTER_ID, Remote, receive};
use crate::apply::members::{self, Member};
use crate::core::{PeerEvent, SERVER_VERSION};
use crate::logging;
use crate::status::{self, Status};

/// O2.
const LEASE_BODY_MAX: u64 = 64 << 10;
/// L7: how long a lease's request waits for this member to catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

const PROTOBUF: &str = "application/protobuf";
const JSON: &str = "application/json";
const LATE: &str = "waiting for node to catch up its applied index has timed out";
const NO_LEASE: &str = "lease not found";

type Outcome = Result<Response<Reply>, Refusal>;

/// Answers a request.
pub(super) async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Reply> {
    let path = request.uri().path().to_owned();
    let outcome = match &*path {
        "/raft" => raft(&shared, request).await,
        "/raft/snapshot" => snapshot(&shared, request).await,
        "/raft/probing" => Ok(probing()),
        "/version" => versions(&shared, &request),
        "/members" => member_list(&shared, &request),
        "/members/hashkv" => hash_kv(&shared, request).await,
        "/leases" => renew(&shared, request).await,
        "/leases/internal" => lease(&shared, request).await,
        "/downgrade/enabled" => downgrade_enabled(&shared, &request).await,
        _ => match (path.strip_prefix("/raft/stream/"), path.strip_prefix("/members/promote/")) {
            (Some(rest), _) => stream(&shared, &request, rest),
            (_, Some(id)) => promote(&shared, &request, id).await,
            _ => Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found")),
        },
    };
    let refused = outcome.as_ref().err();
    let wants_id = path == "/raft"
        || path == "/raft/snapshot"
        || ["/raft/stream/", "/members", "/downgrade/"].iter().any(|prefix| path.starts_with(prefix));
    let knows_path =
        refused.is_none_or(|refused| refused.allow.is_none() && refused.text != "404 page not found");
    let mut response = outcome.unwrap_or_else(Refusal::reply);
    if wants_id && knows_path {
        add(&mut response, CLUSTER_ID, &format!("{:x}", shared.link.options.cluster_id));
        if path.starts_with("/raft/stream/") {
            add(&mut response, SERVER_VERSION_HEADER, SERVER_VERSION);
        }
    }
    response
}

fn only(request: &Request<Incoming>, method: Method) -> Result<(), Refusal> {
    let allow = if method == Method::GET { "GET" } else { "POST" };
    if *request.method() == method { Ok(()) } else { Err(Refusal::method(Some(allow))) }
}

/// Major and minor.
pub(super) fn parse_version(text: &str) -> Option<(u32, u32)> {
    members::parse_version(text).map(|(major, minor, _)| (major, minor))
}

/// H1: a member that says nothing is an old one.
pub(super) fn version_of(headers: &HeaderMap, name: &str) -> Option<(u32, u32)> {
    match headers.get(name) {
        None => Some((2, 0)),
        Some(value) => parse_version(value.to_str().ok()?),
    }
}

/// H2: whether the sender can be a member of this cluster.
fn check_cluster(shared: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    let precondition = |text| Err(Refusal::new(StatusCode::PRECONDITION_FAILED, text));
    let theirs = version_of(headers, SERVER_VERSION_HEADER);
    let least = version_of(headers, MIN_CLUSTER_VERSION_HEADER);
    let new_enough = theirs.is_some() && theirs >= parse_version(MIN_CLUSTER_VERSION);
    if !new_enough || least.is_none() || least > parse_version(SERVER_VERSION) {
        return precondition("incompatible version");
    }
    let own = format!("{:x}", shared.link.options.cluster_id);
    if headers.get(CLUSTER_ID).is_none_or(|id| id.as_bytes() != own.as_bytes()) {
        return precondition("cluster ID mismatch");
    }
    Ok(())
}

/// H3: a sender that is not known here yet has told where it can be answered.
fn add_sender(shared: &Shared, headers: &HeaderMap) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let id = text(SERVER_FROM).and_then(|id| u64::from_str_radix(id, 16).ok());
    if let (Some(id), Some(urls)) = (id, text(PEER_URLS)) {
        let urls = urls.split(',').map(str::to_owned).collect();
        shared.add_sender(Remote { id, urls });
    }
}

/// Why a body could not be read.
enum Unread {
    TooLong,
    Broken,
}

/// Each piece has to come in time, all of them are at most `max` bytes, and those of all requests what the port has room for.
async fn read_body(link: &Link, mut body: Incoming, max: u64) -> Result<Bytes, Unread> {
    let mut read = BytesMut::new();
    let mut room: Option<SemaphorePermit<'_>> = None;
    loop {
        match timeout(STALL, next_data(&mut body)).await {
            Ok(Some(Ok(data))) if (read.len() + data.len()) as u64 <= max => {
                let more = link.room.try_acquire_many(data.len() as u32).map_err(|_| Unread::TooLong)?;
                match &mut room {
                    Some(room) => room.merge(more),
                    None => room = Some(more),
                }
                read.extend_from_slice(&data);
            }
            Ok(Some(Ok(_))) => return Err(Unread::TooLong),
            Ok(None) => return Ok(read.freeze()),
            Ok(Some(Err(_))) | Err(_) => return Err(Unread::Broken),
        }
    }
}

/// P1 to P4.
async fn raft(shared: &Arc<Shared>, request: Request<Incoming>) -> Outcome {
    only(&request, Method::POST)?;
    check_cluster(shared, request.headers())?;
    add_sender(shared, request.headers());
    let bad = |text| Refusal::new(StatusCode::BAD_REQUEST, text);
    let body = read_body(&shared.link, request.into_body(), MESSAGE_MAX).await;
    let body = body.map_err(|_| bad("error reading raft message"))?;
    let message = decode_message(body).map_err(|_| bad("error unmarshalling raft message"))?;
    shared.link.check(&message)?;
    let taken = match message.r#type() {
        // Without its database it is of no use.
        MessageType::MsgSnap => false,
        _ => shared.link.sink.event(PeerEvent::Message(message)).is_ok(),
    };
    if taken {
        return Ok(no_content());
    }
    let failed = Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "error processing raft message");
    let mut response = failed.reply();
    add(&mut response, "connection", "close");
    Ok(response)
}

/// N4.
async fn snapshot(shared: &Arc<Shared>, request: Request<Incoming>) -> Outcome {
    only(&request, Method::POST)?;
    check_cluster(shared, request.headers())?;
    add_sender(shared, request.headers());
    receive::receive(&shared.link, request.into_body()).await?;
    Ok(no_content())
}

/// S2, S3. The answer goes on for as long as both ends like.
fn stream(shared: &Arc<Shared>, request: &Request<Incoming>, rest: &str) -> Outcome {
    only(request, Method::GET)?;
    check_cluster(shared, request.headers())?;
    let missing = |text| Refusal::new(StatusCode::NOT_FOUND, text);
    let named = |name: &str| Kind::ALL.into_iter().find(|kind| kind.name() == name);
    let (name, id) = rest.rsplit_once('/').unwrap_or((rest, ""));
    let kind = named(name).ok_or_else(|| missing("invalid path"))?;
    let id = u64::from_str_radix(id, 16).map_err(|_| missing("invalid from"))?;
    if shared.link.is_removed(id) {
        return Err(Refusal::new(StatusCode::GONE, "removed member"));
    }
    let Some(peer) = shared.peer(id) else {
        add_sender(shared, request.headers());
        return Err(missing("error sender not found"));
    };
    let own = format!("{:x}", shared.link.options.member_id);
    if request.headers().get(RAFT_TO).is_none_or(|to| to.as_bytes() != own.as_bytes()) {
        return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, "to field mismatch"));
    }
    let body = StreamBody::attach(shared.link.clone(), peer, kind);
    Ok(Response::new(Reply::Stream(Box::new(body))))
}

fn probing() -> Response<Reply> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = logging::timestamp(since.as_micros() as u64);
    with_type("text/plain; charset=utf-8", format!("{{\"OK\":true,\"Now\":\"{now}\"}}\n"))
}

fn internal(status: Status) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, status.message)
}

fn versions(shared: &Shared, request: &Request<Incoming>) -> Outcome {
    only(request, Method::GET)?;
    let versions = shared.link.sink.versions().map_err(internal)?;
    let json = serde_json::to_vec(&versions).expect("a struct of texts always encodes");
    Ok(with_type(JSON, json))
}

fn list(members: &[Member]) -> Vec<u8> {
    let mut json = b"[".to_vec();
    for (number, member) in members.iter().enumerate() {
        if number > 0 {
            json.push(b',');
        }
        json.extend_from_slice(&members::encode(member));
    }
    json.extend_from_slice(b"]\n");
    json
}

fn member_list(shared: &Shared, request: &Request<Incoming>) -> Outcome {
    only(request, Method::GET)?;
    let members = shared.link.sink.members().map_err(internal)?;
    Ok(with_type(JSON, list(&members)))
}

/// M9.
async fn promote(shared: &Shared, request: &Request<Incoming>, text: &str) -> Outcome {
    only(request, Method::POST)?;
    let missing = |text| Refusal::new(StatusCode::NOT_FOUND, text);
    let id = text.parse().map_err(|_| missing(format!("member {text} not found in cluster")))?;
    let token = request.headers().get(header::AUTHORIZATION);
    let token = token.and_then(|token| token.to_str().ok()).map(str::to_owned);
    match shared.link.sink.promote(id, token).await {
        Ok(members) => Ok(with_type(JSON, list(&members))),
        Err(error) if error == status::MEMBER_NOT_FOUND => {
            Err(missing("membership: ID not found".to_owned()))
        }
        Err(error) if error == status::MEMBER_NOT_LEARNER => {
            let text = "membership: can only promote a learner member";
            Err(Refusal::new(StatusCode::PRECONDITION_FAILED, text))
        }
        Err(error) if error == status::LEARNER_NOT_READY => {
            Err(Refusal::new(StatusCode::PRECONDITION_FAILED, error.message))
        }
        Err(error) => {
            log::warn!(error:%; "failed to promote a member");
            Err(Refusal::json(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"))
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HashRequest {
    revision: i64,
}

#[derive(Debug, Serialize)]
struct HashHeader {
    #[serde(skip_serializing_if = "is_zero")]
    revision: i64,
}

/// Zeros are left out, as Go does it.
#[derive(Debug, Serialize)]
struct HashAnswer {
    header: HashHeader,
    #[serde(skip_serializing_if = "is_zero_u32")]
    hash: u32,
    #[serde(skip_serializing_if = "is_zero")]
    compact_revision: i64,
    #[serde(skip_serializing_if = "is_zero")]
    hash_revision: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn is_zero_u32(number: &u32) -> bool {
    *number == 0
}

async fn hash_kv(shared: &Shared, request: Request<Incoming>) -> Outcome {
    only(&request, Method::GET)?;
    let own = format!("{:x}", shared.link.options.cluster_id);
    let asked = request.headers().get(CLUSTER_ID);
    if asked.is_some_and(|id| !id.is_empty() && id.as_bytes() != own.as_bytes()) {
        return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, "cluster ID mismatch"));
    }
    let bad = |text: &str| Refusal::new(StatusCode::BAD_REQUEST, text);
    let body = read_body(&shared.link, request.into_body(), LEASE_BODY_MAX).await;
    let body = body.map_err(|_| bad("error reading body"))?;
    let request: HashRequest =
        serde_json::from_slice(&body).map_err(|_| bad("error unmarshalling request"))?;
    let found = shared.link.sink.hash_kv(request.revision).await.map_err(|error| {
        // Between members the texts are those of the store, without the server's name before them.
        bad(error.message.strip_prefix("etcdserver: ").unwrap_or(&error.message))
    })?;
    let answer = HashAnswer {
        header: HashHeader { revision: found.header.as_ref().map_or(0, |header| header.revision) },
        hash: found.hash,
        compact_revision: found.compact_revision,
        hash_revision: found.hash_revision,
    };
    Ok(with_type(JSON, serde_json::to_vec(&answer).expect("a struct of numbers always encodes")))
}

async fn lease_body(shared: &Shared, request: Request<Incoming>) -> Result<Bytes, Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::method(None));
    }
    read_body(&shared.link, request.into_body(), LEASE_BODY_MAX).await.map_err(|unread| match unread {
        Unread::TooLong => Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "request body too large"),
        Unread::Broken => Refusal::new(StatusCode::BAD_REQUEST, "error reading body"),
    })
}

fn not_understood() -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "error unmarshalling request")
}

async fn caught_up<T>(answer: impl Future<Output = T>) -> Result<T, Refusal> {
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, LATE);
    timeout(CATCH_UP_MAX, answer).await.map_err(late)
}

async fn renew(shared: &Shared, request: Request<Incoming>) -> Outcome {
    let body = lease_body(shared, request).await?;
    let LeaseKeepAliveRequest { id } = LeaseKeepAliveRequest::decode(body).map_err(|_| not_understood())?;
    match caught_up(shared.link.sink.renew(id)).await? {
        Ok(0) => Err(Refusal::new(StatusCode::NOT_FOUND, NO_LEASE)),
        Ok(ttl) => {
            let answer = LeaseKeepAliveResponse { header: None, id, ttl };
            Ok(with_type(PROTOBUF, answer.encode_to_vec()))
        }
        Err(error) => Err(Refusal::new(StatusCode::BAD_REQUEST, error.message)),
    }
}

async fn lease(shared: &Shared, request: Request<Incoming>) -> Outcome {
    let body = lease_body(shared, request).await?;
    let request = LeaseInternalRequest::decode(body).map_err(|_| not_understood())?;
    let request = request.lease_time_to_live_request.ok_or_else(not_understood)?;
    match caught_up(shared.link.sink.lease(request.id, request.keys)).await? {
        Ok(None) => Err(Refusal::new(StatusCode::NOT_FOUND, NO_LEASE)),
        Ok(found) => {
            let answer = LeaseInternalResponse { lease_time_to_live_response: found };
            Ok(with_type(PROTOBUF, answer.encode_to_vec()))
        }
        Err(error) => Err(internal(error)),
    }
}

async fn downgrade_enabled(shared: &Shared, request: &Request<Incoming>) -> Outcome {
    only(request, Method::GET)?;
    let enabled = shared.link.sink.downgrade_enabled().await.map_err(|error| {
        let text = format!("failed linearized read: {}", error.message);
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    })?;
    Ok(with_type("text/plain", if enabled { "true" } else { "false" }))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::{parse_version, version_of};

    #[test]
    fn h1_versions() {
        assert_eq!(parse_version("3.7.1"), Some((3, 7)));
        assert_eq!(parse_version("3.6.0-rc.2+git"), Some((3, 6)));
        for broken in ["", "3", "3.7", "3.7.x", "3.7.1.2", "a.b.c", "-1.2.3", "3..1"] {
            assert_eq!(parse_version(broken), None, "{broken:?}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(version_of(&headers, "x-server-version"), Some((2, 0)));
        headers.insert("x-server-version", HeaderValue::from_static("nonsense"));
        assert_eq!(version_of(&headers, "x-server-version"), None);
    }
}
