//! Entries of etcd's second API: how 3.4 and older publish a member and the cluster's version.
//!
//! They stand in the log bare, or in field 2 of InternalRaftRequest. What they say of members is carried out; what they
//! did to the store of the second API, which does not exist any more, is nothing.

use serde::Deserialize;
use trilith_proto::membershippb::{Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest};

use super::command::{Command, Request};

/// etcdserverpb.Request, as far as it matters here.
#[derive(Clone, PartialEq, prost::Message)]
struct OldRequest {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(string, tag = "3")]
    path: String,
    #[prost(string, tag = "4")]
    value: String,
}

#[derive(Deserialize)]
struct AttributesJson {
    #[serde(default)]
    name: String,
    #[serde(rename = "clientURLs", default)]
    client_urls: Option<Vec<String>>,
}

const METHODS: [&str; 7] = ["DELETE", "GET", "HEAD", "POST", "PUT", "QGET", "SYNC"];

/// Reads one; None if it is none, or says of a member what cannot be understood.
pub(super) fn decode(data: &[u8]) -> Option<Request> {
    let request = <OldRequest as prost::Message>::decode(data).ok()?;
    if !METHODS.contains(&request.method.as_str())
        || !(request.path.is_empty() || request.path.starts_with('/'))
    {
        return None;
    }
    let member = || request.path.strip_prefix("/0/members/")?.strip_suffix("/attributes");
    let command = if request.method != "PUT" {
        None
    } else if request.path == "/0/version" {
        Some(Command::ClusterVersionSet(ClusterVersionSetRequest { ver: request.value.clone() }))
    } else if let Some(id) = member() {
        let member_id = u64::from_str_radix(id, 16).ok()?;
        let json: AttributesJson = serde_json::from_str(&request.value).ok()?;
        let client_urls = json.client_urls.unwrap_or_default();
        let attributes = Attributes { name: json.name, client_urls };
        let set = ClusterMemberAttrSetRequest { member_id, member_attributes: Some(attributes) };
        Some(Command::ClusterMemberAttrSet(set))
    } else {
        None
    };
    Some(Request { id: request.id, command })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::super::command::{self, BadRequest};
    use super::*;

    /// All fields are there, as etcd's encoder writes them, the zero ones too.
    fn old(method: &str, path: &str, value: &str) -> Bytes {
        let request = OldRequest { id: 7, method: method.into(), path: path.into(), value: value.into() };
        let mut bytes = request.encode_to_vec();
        for (tag, text) in [(0x1a, path), (0x22, value)] {
            if text.is_empty() {
                bytes.extend([tag, 0]);
            }
        }
        bytes.extend([0x28, 0, 0x32, 0, 0x38, 0, 0x48, 0]);
        bytes.into()
    }

    #[test]
    fn what_members_publish_is_understood_bare_and_wrapped() {
        let attributes = old(
            "PUT",
            "/0/members/8e9e05c52164694d/attributes",
            r#"{"name":"default","clientURLs":["http://localhost:2379"]}"#,
        );
        let version = old("PUT", "/0/version", "3.4.0");
        let wrapped = |bytes: &Bytes| {
            let mut out = vec![0x12, bytes.len() as u8];
            out.extend_from_slice(bytes);
            Bytes::from(out)
        };
        for bytes in [attributes.clone(), wrapped(&attributes)] {
            let Some(Command::ClusterMemberAttrSet(set)) = command::decode(bytes).unwrap().command else {
                panic!("attributes are not understood")
            };
            assert_eq!(set.member_id, 0x8e9e_05c5_2164_694d);
            assert_eq!(set.member_attributes.unwrap().client_urls, ["http://localhost:2379"]);
        }
        let set = Command::ClusterVersionSet(ClusterVersionSetRequest { ver: "3.4.0".into() });
        for bytes in [version.clone(), wrapped(&version)] {
            assert_eq!(command::decode(bytes), Ok(Request { id: 7, command: Some(set.clone()) }));
        }
    }

    #[test]
    fn what_the_second_api_kept_is_passed_over_and_nonsense_is_not() {
        for bytes in [old("SYNC", "", ""), old("PUT", "/1/key", "value"), old("DELETE", "/1/key", "")] {
            assert_eq!(command::decode(bytes), Ok(Request { id: 7, command: None }));
        }
        let odd = old("PUT", "/0/members/xyz/attributes", "{}");
        assert!(matches!(command::decode(odd), Err(BadRequest::Malformed(_))));
        assert!(command::decode(old("PATCH", "/1/key", "")).is_err());
    }
}
