//! The members of the cluster that a restore begins: from flags to ids, names and bytes, as etcd makes them.

use std::collections::BTreeMap;

use trilith_proto::{ids, raftpb};

use crate::exit::Failure;
use crate::gojson::{array, object};
use crate::gotext::quote;

/// A first member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) peer_urls: Vec<String>,
}

impl Member {
    /// Its JSON, in the store and in the log.
    pub(super) fn json(&self) -> Vec<u8> {
        let mut out = String::new();
        object(&mut out, |line| {
            line.plain("id", self.id);
            line.texts_set("peerURLs", &self.peer_urls);
            line.text_set("name", &self.name);
        });
        out.into_bytes()
    }
}

/// The first members, ascending by id, and which of them the data directory is for.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) id: u64,
    pub(super) own: u64,
    pub(super) members: Vec<Member>,
}

impl Cluster {
    /// Errors: what is wrong with the flags, in etcd's words.
    pub(super) fn new(
        name: &str,
        initial_cluster: &str,
        token: &str,
        advertised: &[String],
    ) -> Result<Cluster, Failure> {
        let advertised = urls(advertised.iter().map(String::as_str))?;
        let named = parse(initial_cluster)?;
        let Some(own) = named.get(name) else {
            let name = quote(name.as_bytes());
            return Err(Failure::error(format_args!(
                "couldn't find local name {name} in the initial cluster configuration"
            )));
        };
        let mut all: Vec<&String> = named.values().flatten().collect();
        let count = all.len();
        all.sort();
        all.dedup();
        if all.len() < count {
            return Err(Failure::error(format_args!("initial cluster {initial_cluster} has duplicate url")));
        }
        if let Some(url) = own.iter().find(|url| !advertised.contains(url)) {
            return Err(Failure::error(format_args!(
                "--initial-cluster has {name}={url} but missing from --initial-advertise-peer-urls={}",
                advertised.join(",")
            )));
        }
        if let Some(url) = advertised.iter().find(|url| !own.contains(url)) {
            return Err(Failure::error(format_args!(
                "--initial-advertise-peer-urls has {url} but missing from --initial-cluster={name}={}",
                own.join(",")
            )));
        }
        let mut members: Vec<Member> = named
            .iter()
            .map(|(name, peer_urls)| Member {
                id: ids::member_id(peer_urls, token, None),
                name: name.clone(),
                peer_urls: peer_urls.clone(),
            })
            .collect();
        members.sort_by_key(|member| member.id);
        let numbers: Vec<u64> = members.iter().map(|member| member.id).collect();
        Ok(Cluster { id: ids::cluster_id(&numbers), own: ids::member_id(own, token, None), members })
    }

    /// All of them vote.
    pub(super) fn conf_state(&self) -> raftpb::ConfState {
        let voters = self.members.iter().map(|member| member.id).collect();
        raftpb::ConfState { voters, auto_leave: Some(false), ..Default::default() }
    }

    /// The same as the store keeps it.
    pub(super) fn conf_state_json(&self) -> Vec<u8> {
        let mut out = String::new();
        object(&mut out, |line| {
            let voters = self.members.iter().map(|member| member.id);
            array(line.name("voters"), voters, |out, id| out.push_str(&id.to_string()));
            line.plain("auto_leave", false);
        });
        out.into_bytes()
    }
}

/// `name=url,name=url`; a name may stand several times.
fn parse(text: &str) -> Result<BTreeMap<String, Vec<String>>, Failure> {
    let mut named: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
        if url.is_empty() {
            return Err(Failure::error(format_args!("empty URL given for {}", quote(name.as_bytes()))));
        }
        named.entry(name.to_owned()).or_default().push(url);
    }
    named.into_iter().map(|(name, list)| Ok((name, urls(list.into_iter())?))).collect()
}

/// Checks URLs and sorts them.
fn urls<'a>(list: impl Iterator<Item = &'a str>) -> Result<Vec<String>, Failure> {
    let mut out = Vec::new();
    for url in list.map(str::trim) {
        let rest = ["http://", "https://", "unix://", "unixs://"].iter().find_map(|s| url.strip_prefix(s));
        let Some(rest) = rest else {
            return Err(Failure::error(format_args!(
                "URL scheme must be http, https, unix, or unixs: {url}"
            )));
        };
        if !url.starts_with("unix") {
            let (address, path) = rest.split_once('/').map_or((rest, None), |(a, p)| (a, Some(p)));
            let port = address.rsplit_once(':').map(|(_, port)| port);
            if port.is_none_or(|port| port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit())) {
                let text = format_args!("URL address does not have the form \"host:port\": {url}");
                return Err(Failure::error(text));
            }
            if path.is_some() {
                return Err(Failure::error(format_args!("URL must not contain a path: {url}")));
            }
        }
        out.push(url.to_owned());
    }
    if out.is_empty() {
        return Err(Failure::error("no valid URLs given"));
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_of_a_default_restore_are_etcds() {
        let urls = ["http://localhost:2380".to_owned()];
        let cluster =
            Cluster::new("default", "default=http://localhost:2380", "etcd-cluster", &urls).unwrap();
        assert_eq!((cluster.own, cluster.id), (0x8e9e_05c5_2164_694d, 0xcdf8_1819_4e3a_8c32));
        assert_eq!(
            String::from_utf8(cluster.members[0].json()).unwrap(),
            r#"{"id":10276657743932975437,"peerURLs":["http://localhost:2380"],"name":"default"}"#
        );
        assert_eq!(cluster.conf_state_json(), br#"{"voters":[10276657743932975437],"auto_leave":false}"#);
    }

    #[test]
    fn wrong_flags_are_refused_in_etcds_words() {
        let urls = |url: &str| [url.to_owned()];
        for (name, all, own, text) in [
            (
                "x",
                "a=http://b:1",
                "http://b:1",
                "couldn't find local name \"x\" in the initial cluster configuration",
            ),
            ("a", "a=", "http://b:1", "empty URL given for \"a\""),
            ("a", "a=ftp://b:1", "http://b:1", "URL scheme must be http, https, unix, or unixs: ftp://b:1"),
            ("a", "a=http://b", "http://b:1", "URL address does not have the form \"host:port\": http://b"),
            ("a", "a=http://b:1/c", "http://b:1", "URL must not contain a path: http://b:1/c"),
            (
                "a",
                "a=http://b:1,c=http://b:1",
                "http://b:1",
                "initial cluster a=http://b:1,c=http://b:1 has duplicate url",
            ),
            (
                "a",
                "a=http://b:1",
                "http://b:2",
                "--initial-cluster has a=http://b:1 but missing from --initial-advertise-peer-urls=http://b:2",
            ),
        ] {
            let failure = Cluster::new(name, all, "t", &urls(own)).unwrap_err();
            assert_eq!((failure.code, failure.text.as_str()), (1, text));
        }
    }

    #[test]
    fn members_come_by_their_ids() {
        let urls = ["http://h:1".to_owned()];
        let cluster = Cluster::new("a", "a=http://h:1,b=http://h:2,c=http://h:3", "t", &urls).unwrap();
        assert!(cluster.members.is_sorted_by_key(|member| member.id));
        assert_eq!(cluster.conf_state().voters.len(), 3);
        let own = cluster.members.iter().find(|member| member.id == cluster.own).unwrap();
        assert_eq!(own.name, "a");
    }
}
