//! The membership in the form of etcd's second store: what a MsgSnap carries for members up to 3.6, which stop when they
//! cannot read it. Nobody of 3.7 looks at it.

use std::collections::BTreeMap;

use serde::Serialize;
use trilith_engine::{StoreError, View};

use super::members::{self, Member};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    root: Node,
    current_index: u64,
    current_version: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    path: String,
    created_index: u64,
    modified_index: u64,
    expire_time: &'static str,
    value: String,
    /// None for a leaf.
    children: Option<BTreeMap<String, Node>>,
}

#[derive(Serialize)]
struct Attributes<'m> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'m str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[_]>::is_empty")]
    client_urls: &'m [String],
}

#[derive(Serialize)]
struct RaftAttributes<'m> {
    #[serde(rename = "peerURLs")]
    peer_urls: &'m [String],
    #[serde(rename = "isLearner", skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
}

impl Node {
    fn leaf(path: String, value: String) -> Node {
        let expire_time = "0001-01-01T00:00:00Z";
        Node { path, created_index: 1, modified_index: 1, expire_time, value, children: None }
    }

    fn folder(path: &str, children: impl IntoIterator<Item = Node>) -> Node {
        let named = |child: Node| (child.path.rsplit('/').next().unwrap_or_default().to_owned(), child);
        Node {
            children: Some(children.into_iter().map(named).collect()),
            ..Node::leaf(path.to_owned(), String::new())
        }
    }
}

fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Inconsistent(format!("membership: {error}")))
}

fn member(member: &Member) -> Result<Node, StoreError> {
    let path = format!("/0/members/{:x}", member.id);
    let attributes = Attributes { name: &member.name, client_urls: &member.client_urls };
    let raft = RaftAttributes { peer_urls: &member.peer_urls, is_learner: member.is_learner };
    let leaves = [
        Node::leaf(format!("{path}/attributes"), json(&attributes)?),
        Node::leaf(format!("{path}/raftAttributes"), json(&raft)?),
    ];
    Ok(Node::folder(&path, leaves))
}

/// The document, as JSON.
pub fn encode(view: View<'_>) -> Result<Vec<u8>, StoreError> {
    let members = members::list(view)?.iter().map(member).collect::<Result<Vec<_>, _>>()?;
    let removed = members::removed(view)?;
    let removed = removed.iter().map(|id| Node::leaf(format!("/0/removed_members/{id:x}"), String::new()));
    let mut cluster = vec![Node::folder("/0/members", members), Node::folder("/0/removed_members", removed)];
    if let Some(version) = members::cluster_version(view)? {
        cluster.push(Node::leaf("/0/version".to_owned(), version));
    }
    let root = Node::folder("/", [Node::folder("/0", cluster), Node::folder("/1", [])]);
    Ok(json(&Document { root, current_index: 1, current_version: 2 })?.into_bytes())
}

#[cfg(test)]
mod tests {
    use trilith_engine::TreeId;

    use super::*;

    #[test]
    fn n2_n3_the_document() {
        let mut store = crate::apply::tests::store();
        let learner = Member {
            id: 0xab,
            peer_urls: vec!["http://a:1".into()],
            is_learner: true,
            name: "n".into(),
            client_urls: vec!["http://a:2".into()],
        };
        members::put(&mut store, &learner).unwrap();
        members::put_cluster_version(&mut store, "3.7.0").unwrap();
        store.insert(TreeId::MembersRemoved, b"cd", b"removed").unwrap();
        let document: serde_json::Value = serde_json::from_slice(&encode(store.view()).unwrap()).unwrap();
        let at = |path: &str| {
            let names = path.split('/').filter(|name| !name.is_empty());
            let node = names.fold(&document["Root"], |node, name| &node["Children"][name]);
            assert_eq!(node["Path"], path);
            node
        };
        assert_eq!(at("/0/members/ab/attributes")["Value"], r#"{"name":"n","clientURLs":["http://a:2"]}"#);
        let raft = r#"{"peerURLs":["http://a:1"],"isLearner":true}"#;
        assert_eq!(at("/0/members/ab/raftAttributes")["Value"], raft);
        assert!(at("/0/members/ab/attributes")["Children"].is_null(), "a leaf");
        assert_eq!(at("/0/version")["Value"], "3.7.0");
        assert!(at("/0/removed_members/cd")["Children"].is_null());
        assert!(at("/1")["Children"].as_object().unwrap().is_empty());
        assert_eq!(
            (&document["CurrentVersion"], &at("/1")["ExpireTime"]),
            (&2.into(), &"0001-01-01T00:00:00Z".into())
        );
    }
}
