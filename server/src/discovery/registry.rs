//! The discovery service: members of a cluster to be register under a token in another etcd cluster, and wait there
//! until there are as many as the token asks for.
//!
//! ```text
//! /_etcd/registry/TOKEN/_config/size        how many members, decimal; written by whoever made the token
//! /_etcd/registry/TOKEN/members/ID          "name=url,name=url", ID in hexadecimal
//! ```
//!
//! The members whose keys are the oldest form the cluster. A service that cannot be reached is asked again, less and
//! less often, for ever; what it says is final. A member's key stays when the member gives up.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;
use trilith_proto::mvccpb::{Event, KeyValue};
use trilith_proto::{etcdserverpb as pb, ids};

use super::client::Client;
use super::{Members, text_of, texts};
use crate::config::cluster_of;
use crate::config::discovery::Service;
use crate::config::url::Url;
use crate::status::Status;

const PREFIX: &str = "/_etcd/registry";
/// Pauses double so many times.
const DOUBLINGS_MAX: u32 = 8;

/// Why a member does not find its cluster. The texts are etcd's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Nobody has made the token.
    #[error("failed to join discovery cluster (discovery: size key not found)")]
    SizeNotFound,
    /// The size is no number above 0.
    #[error("failed to join discovery cluster (discovery: size key is bad)")]
    BadSize,
    /// There are enough members, and this is none of them.
    #[error("failed to join discovery cluster (discovery: cluster is full)")]
    Full,
    /// A member registered something that is no list of URLs.
    #[error("failed to join discovery cluster (discovery: invalid peer URL)")]
    InvalidUrl,
    /// The service does not accept the credentials.
    #[error("failed to join discovery cluster ({0})")]
    Refused(Status),
    /// Two members have one URL.
    #[error("discovery cluster {0} has duplicate url")]
    DuplicateUrl(String),
    /// Two members have one name: each would take the other's URLs for its own.
    #[error("discovery cluster {0} has several members of one name")]
    DuplicateName(String),
}

/// Keys of a token.
struct Keys {
    size: String,
    /// Without a slash at its end.
    members: String,
}

impl Keys {
    fn new(token: &str) -> Keys {
        let prefix = joined(PREFIX, token);
        Keys { size: format!("{prefix}/_config/size"), members: format!("{prefix}/members") }
    }
}

/// A path below another, cleaned as Go's `path.Join` does it, which all members agree on.
fn joined(base: &str, below: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(below.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// What a member registered.
struct Entry {
    key: String,
    value: String,
    create_revision: i64,
}

/// The members that are known, by the age of their keys.
#[derive(Default)]
struct Found(Vec<Entry>);

impl Found {
    fn take(&mut self, kv: &KeyValue) {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        let (key, value, create_revision) = (text(&kv.key), text(&kv.value), kv.create_revision);
        let refused = if !value.contains('=') {
            Some("invalid peer info returned from discovery service")
        } else if self.0.iter().any(|entry| entry.key == key) {
            Some("found duplicate peer from discovery service")
        } else {
            None
        };
        let (member_key, member_info) = (key.as_str(), value.as_str());
        match refused {
            Some(why) => log::warn!("memberKey" = member_key, "memberInfo" = member_info; "{why}"),
            None => {
                log::info!("memberKey" = member_key, "memberInfo" = member_info; "found peer from discovery service");
                self.0.push(Entry { key, value, create_revision });
                self.0.sort_by_key(|entry| entry.create_revision);
            }
        }
    }

    /// The cluster, once there are enough.
    fn members(&self, size: usize) -> Result<Members, JoinError> {
        let mut values: Vec<&str> = self.0.iter().map(|entry| entry.value.as_str()).collect();
        values.truncate(size);
        let members = cluster_of(&values.join(",")).map_err(|_| JoinError::InvalidUrl)?;
        let mut urls: Vec<&Url> = members.iter().flat_map(|(_, urls)| urls).collect();
        let count = urls.len();
        urls.sort();
        urls.dedup();
        if urls.len() < count {
            return Err(JoinError::DuplicateUrl(text_of(&members)));
        }
        if members.len() < values.len() {
            return Err(JoinError::DuplicateName(text_of(&members)));
        }
        Ok(members)
    }
}

/// Registers a member and waits for the others: the cluster, this member included.
///
/// # Errors
/// What the service holds under the token does not let this member in.
pub async fn join(service: &Service, name: &str, urls: &[Url]) -> Result<Members, JoinError> {
    let id = ids::member_id(&texts(urls), &service.token, None);
    let keys = Keys::new(&service.token);
    let own_key = format!("{}/{id:x}", keys.members);
    let mut registry = Registry { client: Client::new(service), service, keys, own_key, failures: 0 };
    let outcome = registry.join(&text_of(&vec![(name.to_owned(), urls.to_vec())])).await;
    let (token, endpoints) = (service.token.as_str(), service.endpoints.join(","));
    match &outcome {
        Ok(members) => {
            let cluster = text_of(members);
            log::info!("discovery-token" = token, "discovery-endpoints" = endpoints.as_str(), cluster = cluster.as_str();
                "discovery joined cluster successfully");
        }
        Err(error) => {
            log::warn!("discovery-token" = token, "discovery-endpoints" = endpoints.as_str(), error:%;
                "discovery failed to join cluster");
        }
    }
    outcome
}

struct Registry<'a> {
    client: Client<'a>,
    service: &'a Service,
    keys: Keys,
    own_key: String,
    /// In a row.
    failures: u32,
}

/// What the service holds at one time.
struct State {
    size: usize,
    found: Found,
    revision: i64,
}

impl Registry<'_> {
    async fn join(&mut self, own: &str) -> Result<Members, JoinError> {
        self.client.sign_in().await.map_err(JoinError::Refused)?;
        self.state().await?;
        self.register(own).await;
        loop {
            let mut state = self.state().await?;
            if state.found.0.len() < state.size {
                self.wait(&mut state).await;
            }
            if state.found.0.len() >= state.size {
                let (size, found) = (state.size, state.found.0.len());
                log::info!("clusterSize" = size, "found-peers" = found; "found all needed peers from discovery service");
                return state.found.members(size);
            }
        }
    }

    /// Size and members, once the service tells them.
    async fn state(&mut self) -> Result<State, JoinError> {
        loop {
            match self.read_state().await {
                Ok(state) => {
                    self.failures = 0;
                    return state;
                }
                Err((what, error)) => {
                    let error = error.to_string();
                    log::warn!(error = error.as_str(); "failed to get {what} from discovery service");
                    self.pause("cluster status check").await;
                }
            }
        }
    }

    async fn read_state(&mut self) -> Result<Result<State, JoinError>, (&'static str, Status)> {
        let of_size = pb::RangeRequest { key: self.keys.size.clone().into(), ..Default::default() };
        let size = self.range(&of_size).await.map_err(|error| ("cluster size", error))?;
        let Some(size) = size.kvs.first() else { return Ok(Err(JoinError::SizeNotFound)) };
        let size = std::str::from_utf8(&size.value).ok().and_then(|text| text.parse::<i64>().ok());
        let Some(size) = size.filter(|size| *size > 0) else { return Ok(Err(JoinError::BadSize)) };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let (key, range_end) = self.member_range();
        let of_members = pb::RangeRequest { key, range_end, ..Default::default() };
        let answer = self.range(&of_members).await.map_err(|error| ("cluster members", error))?;
        let mut found = Found::default();
        answer.kvs.iter().for_each(|kv| found.take(kv));
        let revision = answer.header.map_or(0, |header| header.revision);
        let before = found.0.iter().position(|entry| entry.key == self.own_key).unwrap_or(found.0.len());
        if before >= size {
            return Ok(Err(JoinError::Full));
        }
        Ok(Ok(State { size, found, revision }))
    }

    async fn range(&mut self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.client.call("/etcdserverpb.KV/Range", request).await
    }

    /// All keys that begin as those of members do.
    fn member_range(&self) -> (Bytes, Bytes) {
        let key = self.keys.members.clone().into_bytes();
        let mut end = key.clone();
        // The prefix ends with a letter.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (key.into(), end.into())
    }

    async fn register(&mut self, own: &str) {
        let request = pb::PutRequest {
            key: self.own_key.clone().into(),
            value: own.to_owned().into(),
            ..Default::default()
        };
        loop {
            let answer: Result<pb::PutResponse, Status> =
                self.client.call("/etcdserverpb.KV/Put", &request).await;
            let key = self.own_key.as_str();
            match answer {
                Ok(_) => {
                    self.failures = 0;
                    log::info!("memberKey" = key, "memberInfo" = own; "register member itself successfully");
                    return;
                }
                Err(error) => {
                    let error = error.to_string();
                    log::warn!("memberKey" = key, error = error.as_str();
                        "failed to register members itself to the discovery service");
                    self.pause("register member itself").await;
                }
            }
        }
    }

    /// Watches from the state's revision on until there are enough members. A watch that breaks ends it early: then all
    /// is read anew, so that nothing is missed.
    async fn wait(&mut self, state: &mut State) {
        let (size, found) = (state.size, state.found.0.len());
        log::info!("clusterSize" = size, "found-peers" = found; "waiting for peers from discovery service");
        if let Err(error) = self.watch(state).await {
            let error = error.to_string();
            log::warn!(error = error.as_str(); "the watch of the discovery service ended");
            self.client.disconnect();
            self.pause("watch of the members").await;
        }
    }

    async fn watch(&mut self, state: &mut State) -> Result<(), Status> {
        let (key, range_end) = self.member_range();
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: state.revision + 1,
            ..Default::default()
        };
        let request =
            pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        let mut stream = self.client.open("/etcdserverpb.Watch/Watch", &request).await?;
        while state.found.0.len() < state.size {
            let answer: pb::WatchResponse = self.client.next(&mut stream).await?;
            if answer.canceled {
                return Err(Status { message: answer.cancel_reason.into(), ..Status::internal("") });
            }
            self.failures = 0;
            answer
                .events
                .iter()
                .filter_map(|event: &Event| event.kv.as_ref())
                .for_each(|kv| state.found.take(kv));
        }
        Ok(())
    }

    async fn pause(&mut self, reason: &'static str) {
        self.failures = (self.failures + 1).min(DOUBLINGS_MAX);
        let backoff: Duration = self.service.backoff * (1 << self.failures);
        let shown = format!("{backoff:?}");
        log::warn!(reason = reason, backoff = shown.as_str(); "retry connecting to discovery service");
        sleep(backoff).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_where_go_puts_them() {
        for (token, prefix) in [
            ("t", "/_etcd/registry/t"),
            ("/a//b/", "/_etcd/registry/a/b"),
            ("a/./../b", "/_etcd/registry/b"),
            ("../../../x", "/x"),
        ] {
            let keys = Keys::new(token);
            assert_eq!(keys.size, format!("{prefix}/_config/size"));
            assert_eq!(keys.members, format!("{prefix}/members"));
        }
    }

    fn found(entries: &[(&str, &str, i64)]) -> Found {
        let mut found = Found::default();
        for (key, value, create_revision) in entries {
            let (key, value) = (key.to_string().into(), value.to_string().into());
            found.take(&KeyValue { key, value, create_revision: *create_revision, ..Default::default() });
        }
        found
    }

    #[test]
    fn the_oldest_keys_form_the_cluster() {
        let all = found(&[
            ("m/3", "c=http://c:1", 9),
            ("m/1", " a=http://a:1,a=http://a:2\n", 5),
            ("m/2", "nonsense", 6),
            ("m/1", "x=http://x:1", 5),
            ("m/4", "b=http://b:1", 7),
        ]);
        assert_eq!(text_of(&all.members(2).unwrap()), "a=http://a:1,a=http://a:2,b=http://b:1");
        assert_eq!(text_of(&all.members(1).unwrap()), "a=http://a:1,a=http://a:2");
    }

    #[test]
    fn clusters_that_cannot_be() {
        let bad = |value| found(&[("m/1", "a=http://a:1", 1), ("m/2", value, 2)]).members(2).unwrap_err();
        assert_eq!(bad("b=ftp://b:1"), JoinError::InvalidUrl);
        assert_eq!(bad("b="), JoinError::InvalidUrl);
        let text = |error: JoinError| error.to_string();
        assert_eq!(
            text(bad("b=http://a:1")),
            "discovery cluster a=http://a:1,b=http://a:1 has duplicate url"
        );
        assert_eq!(
            text(bad("a=http://b:1")),
            "discovery cluster a=http://a:1,a=http://b:1 has several members of one name"
        );
    }
}
