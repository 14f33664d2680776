//! Membership as the store keeps it: JSON per member, the conf state, the cluster version.
//!
//! The bytes are etcd's (reference backend_layout V1, M1), since they are hashed and handed to other tools.

use serde::{Deserialize, Deserializer, Serialize};
use trilith_engine::{Store, StoreError, TreeId, View};
use trilith_proto::raftpb;

const CONF_STATE: &[u8] = b"confState";
const STORAGE_VERSION: &[u8] = b"storageVersion";
const CLUSTER_VERSION: &[u8] = b"clusterVersion";

/// A member, as it stands in the tree `Members` and in the context of a conf change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// See `trilith_proto::ids`.
    pub id: u64,
    /// Where its peers reach it.
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    /// A learner has no vote.
    #[serde(rename = "isLearner", default, skip_serializing_if = "is_false")]
    pub is_learner: bool,
    /// Empty until it has published itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it; empty until it has published itself.
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ConfStateJson {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    voters: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    voters_outgoing: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners_next: Vec<u64>,
    auto_leave: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn null_is_empty<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// JSON as Go's encoder writes it: it escapes what could end a script element.
fn go_json<T: Serialize>(value: &T) -> Vec<u8> {
    let plain = serde_json::to_string(value).expect("structs of numbers, strings and lists always encode");
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.into_bytes()
}

fn broken(what: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Inconsistent(format!("{what}: {error}"))
}

/// A member's JSON.
pub fn encode(member: &Member) -> Vec<u8> {
    go_json(member)
}

/// A member from its JSON.
pub fn decode(json: &[u8]) -> Result<Member, serde_json::Error> {
    serde_json::from_slice(json)
}

fn tree_key(id: u64) -> String {
    format!("{id:x}")
}

/// All members, by id.
pub fn list(view: View<'_>) -> Result<Vec<Member>, StoreError> {
    let mut members = Vec::new();
    let mut cursor = view.seek(TreeId::Members, b"")?;
    while cursor.key().is_some() {
        if let Some(value) = cursor.value()? {
            members.push(decode(&value).map_err(|e| broken("tree members", e))?);
        }
        cursor.next()?;
    }
    members.sort_by_key(|member: &Member| member.id);
    Ok(members)
}

/// One member.
pub fn get(view: View<'_>, id: u64) -> Result<Option<Member>, StoreError> {
    let Some(value) = view.get(TreeId::Members, tree_key(id).as_bytes())? else { return Ok(None) };
    decode(&value).map(Some).map_err(|e| broken("tree members", e))
}

/// Writes a member.
pub fn put(store: &mut Store, member: &Member) -> Result<(), StoreError> {
    store.insert(TreeId::Members, tree_key(member.id).as_bytes(), &encode(member))
}

/// Takes a member away for good.
pub fn remove(store: &mut Store, id: u64) -> Result<(), StoreError> {
    store.remove(TreeId::Members, tree_key(id).as_bytes())?;
    store.insert(TreeId::MembersRemoved, tree_key(id).as_bytes(), b"removed")
}

/// Whether a member of that id was removed: it can never return.
pub fn is_removed(view: View<'_>, id: u64) -> Result<bool, StoreError> {
    Ok(view.get(TreeId::MembersRemoved, tree_key(id).as_bytes())?.is_some())
}

/// Ids of all that were removed.
pub fn removed(view: View<'_>) -> Result<Vec<u64>, StoreError> {
    let mut ids = Vec::new();
    let mut cursor = view.seek(TreeId::MembersRemoved, b"")?;
    while let Some(key) = cursor.key() {
        let id = std::str::from_utf8(key).ok().and_then(|key| u64::from_str_radix(key, 16).ok());
        ids.push(id.ok_or_else(|| broken("tree members_removed", "a key is no id"))?);
        cursor.next()?;
    }
    Ok(ids)
}

/// The group's state as of the applied index; empty on a new store.
pub fn conf_state(view: View<'_>) -> Result<raftpb::ConfState, StoreError> {
    let Some(value) = view.get(TreeId::Meta, CONF_STATE)? else { return Ok(raftpb::ConfState::default()) };
    let json: ConfStateJson = serde_json::from_slice(&value).map_err(|e| broken("meta/confState", e))?;
    Ok(raftpb::ConfState {
        voters: json.voters,
        learners: json.learners,
        voters_outgoing: json.voters_outgoing,
        learners_next: json.learners_next,
        auto_leave: Some(json.auto_leave),
    })
}

/// Writes the group's state.
pub fn put_conf_state(store: &mut Store, state: &raftpb::ConfState) -> Result<(), StoreError> {
    let json = ConfStateJson {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: state.auto_leave.unwrap_or(false),
    };
    store.insert(TreeId::Meta, CONF_STATE, &go_json(&json))
}

fn text(view: View<'_>, tree: TreeId, key: &[u8]) -> Result<Option<String>, StoreError> {
    Ok(view.get(tree, key)?.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// The cluster version, `X.Y.0`; none before the first leader has set it.
pub fn cluster_version(view: View<'_>) -> Result<Option<String>, StoreError> {
    text(view, TreeId::Cluster, CLUSTER_VERSION)
}

/// The version of the store's content, `X.Y.0`.
pub fn storage_version(view: View<'_>) -> Result<Option<String>, StoreError> {
    text(view, TreeId::Meta, STORAGE_VERSION)
}

/// Writes the cluster version; the storage version follows it, from the first that stores one (X17).
pub fn put_cluster_version(store: &mut Store, version: &str) -> Result<(), StoreError> {
    store.insert(TreeId::Cluster, CLUSTER_VERSION, version.as_bytes())?;
    if parse_version(version) < Some((3, 6, 0)) {
        return Ok(());
    }
    store.insert(TreeId::Meta, STORAGE_VERSION, version.as_bytes())
}

/// Parses `X.Y.Z`, with whatever may follow a minus or a plus.
pub fn parse_version(version: &str) -> Option<(u32, u32, u32)> {
    let plain = version.split(['-', '+']).next()?;
    let mut parts = plain.split('.').map(|part| part.parse().ok());
    let parsed = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_json_is_etcds() {
        let mut member =
            Member { id: u64::MAX, peer_urls: vec!["http://a:2380".into()], ..Default::default() };
        assert_eq!(encode(&member), br#"{"id":18446744073709551615,"peerURLs":["http://a:2380"]}"#);
        member.name = "a<b&c".into();
        member.is_learner = true;
        member.client_urls = vec!["http://a:2379".into()];
        let json = encode(&member);
        assert_eq!(
            String::from_utf8(json.clone()).unwrap(),
            r#"{"id":18446744073709551615,"peerURLs":["http://a:2380"],"isLearner":true,"name":"a\u003cb\u0026c","clientURLs":["http://a:2379"]}"#
        );
        assert_eq!(decode(&json).unwrap(), member);
        assert_eq!(
            decode(br#"{"id":1,"peerURLs":null,"isPromote":true}"#).unwrap().peer_urls,
            Vec::<String>::new()
        );
    }

    #[test]
    fn versions_parse() {
        for good in ["3.7.0", "3.7.0-rc.1", "3.7.0+git"] {
            assert_eq!(parse_version(good), Some((3, 7, 0)), "{good}");
        }
        for bad in ["", "3.7", "3.7.0.1", "3.x.0"] {
            assert_eq!(parse_version(bad), None, "{bad}");
        }
    }
}
