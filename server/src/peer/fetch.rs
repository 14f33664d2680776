//! What a member asks of others outside of raft: who belongs to the cluster, which versions run, leases of the leader,
//! a promotion.

use std::time::Duration;

use bytes::Bytes;
use http::request::Builder;
use http::{Method, Request, header};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout};
use trilith_proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest};
use trilith_proto::leasepb::{LeaseInternalRequest, LeaseInternalResponse};

use super::client::call;
use super::link::Link;
use super::{CLUSTER_ID, PeerError};
use crate::apply::members::Member;
use crate::tls::Connector;

/// Of an answer with members or a version.
const SMALL: usize = 4 << 20;
/// Of an answer with the keys of a lease.
const KEYS: usize = 1 << 30;
/// Between two rounds over the leader's URLs.
const PAUSE: Duration = Duration::from_millis(50);

/// What a member says of its versions at /version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Versions {
    /// Of the binary, `X.Y.Z`.
    pub etcdserver: String,
    /// Of the cluster, `X.Y.0`, or `not_decided`.
    pub etcdcluster: String,
    /// Of the store's content, `X.Y.0`, or `unknown`; empty from members before 3.6.
    pub storage: String,
}

/// What a member says of its keys and values at /members/hashkv. Zeros may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HashKv {
    /// Where the member stands.
    pub header: HashHeader,
    /// Over what it holds at the revision that was asked for.
    pub hash: u32,
    /// The compaction that the hash takes into account.
    pub compact_revision: i64,
}

/// Of [`HashKv`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HashHeader {
    /// The member's newest one.
    pub revision: i64,
}

/// X8, X9: a hash of what a member holds at a revision, from the first of its URLs that tells. Each URL gets the whole time.
///
/// # Errors
/// That of the last URL; one that refuses is final.
pub async fn fetch_hash_kv(
    dialer: &Connector,
    urls: &[String],
    cluster_id: u64,
    revision: i64,
    limit: Duration,
) -> Result<HashKv, PeerError> {
    let mut last = PeerError::NoUrls;
    for url in urls {
        let request = get("/members/hashkv")
            .header(header::CONTENT_TYPE, "application/json")
            .header(CLUSTER_ID, format!("{cluster_id:x}"));
        let body = format!("{{\"revision\":{revision}}}");
        match call(dialer, url, request, body.into(), limit, SMALL).await {
            Ok((_, answer)) => return json(url, &answer),
            Err(error @ PeerError::Refused { .. }) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// J1: the cluster's id and its members, from the first of the URLs that knows both. Each URL gets the whole time.
///
/// # Errors
/// That of the last URL.
pub async fn fetch_members(
    dialer: &Connector,
    urls: &[String],
    limit: Duration,
) -> Result<(u64, Vec<Member>), PeerError> {
    let mut last = PeerError::NoUrls;
    for url in urls {
        match members_at(dialer, url, limit).await {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn members_at(dialer: &Connector, url: &str, limit: Duration) -> Result<(u64, Vec<Member>), PeerError> {
    let (head, body) = call(dialer, url, get("/members"), Bytes::new(), limit, SMALL).await?;
    let members: Vec<Member> = json(url, &body)?;
    let id = head.headers.get(CLUSTER_ID).and_then(|id| u64::from_str_radix(id.to_str().ok()?, 16).ok());
    match id {
        Some(id) if !members.is_empty() => Ok((id, members)),
        Some(_) => Err(unreadable(url, "no members")),
        None => Err(unreadable(url, "no cluster id")),
    }
}

/// J4: what runs at a URL.
///
/// # Errors
/// When it cannot be asked, or answers something else.
pub async fn fetch_version(dialer: &Connector, url: &str, limit: Duration) -> Result<Versions, PeerError> {
    let (_, body) = call(dialer, url, get("/version"), Bytes::new(), limit, SMALL).await?;
    json(url, &body)
}

/// J4: whether a downgrade is under way, from the first URL that knows. Each URL gets the whole time.
///
/// # Errors
/// That of the last URL.
pub async fn fetch_downgrade_enabled(
    dialer: &Connector,
    urls: &[String],
    limit: Duration,
) -> Result<bool, PeerError> {
    let mut last = PeerError::NoUrls;
    for url in urls {
        last = match call(dialer, url, get("/downgrade/enabled"), Bytes::new(), limit, SMALL).await {
            Ok((_, body)) => match body.trim_ascii() {
                b"true" => return Ok(true),
                b"false" => return Ok(false),
                _ => unreadable(url, "neither true nor false"),
            },
            Err(error) => error,
        };
    }
    Err(last)
}

/// L7: has the leader renew a lease; its TTL in seconds.
pub(super) async fn lease_keep_alive(
    link: &Link,
    urls: &[String],
    id: i64,
    limit: Duration,
) -> Result<i64, PeerError> {
    let body: Bytes = LeaseKeepAliveRequest { id }.encode_to_vec().into();
    let (url, answer) =
        ask(link, urls, || post("/leases", "application/protobuf"), body, limit, SMALL).await?;
    let answer =
        LeaseKeepAliveResponse::decode(answer).map_err(|error| unreadable(&url, &error.to_string()))?;
    if answer.id == id { Ok(answer.ttl) } else { Err(unreadable(&url, "another lease")) }
}

/// L8: asks the leader how long a lease has left.
pub(super) async fn lease_time_to_live(
    link: &Link,
    urls: &[String],
    id: i64,
    keys: bool,
    limit: Duration,
) -> Result<LeaseInternalResponse, PeerError> {
    let request = LeaseTimeToLiveRequest { id, keys };
    let request = LeaseInternalRequest { lease_time_to_live_request: Some(request) };
    let body = request.encode_to_vec().into();
    let (url, answer) =
        ask(link, urls, || post("/leases/internal", "application/protobuf"), body, limit, KEYS).await?;
    LeaseInternalResponse::decode(answer).map_err(|error| unreadable(&url, &error.to_string()))
}

/// M9: has the leader promote a learner; the members afterwards.
pub(super) async fn promote(
    link: &Link,
    urls: &[String],
    id: u64,
    token: Option<&str>,
    limit: Duration,
) -> Result<Vec<Member>, PeerError> {
    let path = format!("/members/promote/{id}");
    let head = || match token {
        Some(token) => post(&path, "application/json").header(header::AUTHORIZATION, token),
        None => post(&path, "application/json"),
    };
    let (url, answer) = ask(link, urls, head, Bytes::new(), limit, SMALL).await?;
    json(&url, &answer)
}

/// Posts to the first URL that can be reached, round after round while there is time, of which each gets its share. An answer
/// is an answer, also one that refuses. The URL that answered, and what.
async fn ask(
    link: &Link,
    urls: &[String],
    head: impl Fn() -> Builder,
    body: Bytes,
    limit: Duration,
    answer_max: usize,
) -> Result<(String, Bytes), PeerError> {
    if urls.is_empty() {
        return Err(PeerError::NoUrls);
    }
    let (mut last, dialer) = (PeerError::NoUrls, &link.options.dialer);
    let share = limit / urls.len() as u32;
    let rounds = async {
        loop {
            for url in urls {
                match link.calls.call(dialer, url, &head, body.clone(), share, answer_max).await {
                    Ok((_, answer)) => return Ok((url.clone(), answer)),
                    Err(error @ PeerError::Refused { .. }) => return Err(error),
                    Err(error) => last = error,
                }
            }
            sleep_until(Instant::now() + PAUSE).await;
        }
    };
    timeout(limit, rounds).await.unwrap_or(Err(last))
}

fn post(path: &str, content: &str) -> Builder {
    Request::builder().method(Method::POST).uri(path).header(header::CONTENT_TYPE, content)
}

fn get(path: &str) -> Builder {
    Request::builder().method(Method::GET).uri(path)
}

fn json<T: for<'a> Deserialize<'a>>(url: &str, body: &[u8]) -> Result<T, PeerError> {
    serde_json::from_slice(body).map_err(|error| unreadable(url, &error.to_string()))
}

fn unreadable(url: &str, what: &str) -> PeerError {
    PeerError::Answer { url: url.to_owned(), what: what.to_owned() }
}
