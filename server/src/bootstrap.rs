//! What a first start asks of the other members: whether the cluster that it would begin has begun without it, or who
//! this member is in the one that it joins (reference rafthttp J1 to J5, J7).
//!
//! The rules are plain functions over what was fetched; [`join`] and [`check_new`] fetch it. Texts of errors are etcd's.
//! Nothing is written before these checks are through.

use std::collections::HashMap;
use std::time::Duration;

use crate::apply::members::{self, Member};
use crate::config::Config;
use crate::config::url::Url;
use crate::core::{Join, SERVER_VERSION};
use crate::peer::{self, Remote, Versions};
use crate::tls::Connector;
use trilith_proto::ids;

/// J1.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// J7: most often nobody is there yet.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Clusters older than that speak another protocol.
const CLUSTER_VERSION_MIN: (u32, u32) = (3, 0);

/// The initial cluster: names and peer URLs.
type Named = [(String, Vec<Url>)];

/// Who this member is in the cluster that it joins, and everybody who is in it.
///
/// # Errors
/// Nobody of the cluster answers, or its members are not those of --initial-cluster.
pub(crate) async fn join(config: &Config, dialer: &Connector) -> Result<(Join, Vec<Remote>), String> {
    let others = peer_urls_of_others(&config.initial_cluster, &config.name);
    let (cluster_id, remote) = peer::fetch_members(dialer, &others, FETCH_TIMEOUT).await.map_err(|error| {
        log::warn!(error:% = error; "failed to get the members of the cluster from its peer URLs");
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
            .to_owned()
    })?;
    let resolved = resolve(&config.initial_cluster, &remote).await;
    let member_id = own_id(&config.initial_cluster, &config.name, cluster_id, &remote, &resolved)?;
    let mut versions = Vec::new();
    for member in remote.iter().filter(|member| member.id != member_id) {
        versions.push(version_of(dialer, member).await);
    }
    let downgrade = peer::fetch_downgrade_enabled(dialer, &others, FETCH_TIMEOUT).await.unwrap_or(false);
    if !is_compatible(&versions, downgrade) {
        return Err("incompatible with current running cluster".to_owned());
    }
    check_learners(&remote, config.max_learners)?;
    let remotes = remote.into_iter().filter(|member| member.id != member_id);
    let remotes = remotes.map(|member| Remote { id: member.id, urls: member.peer_urls });
    Ok((Join { cluster_id, member_id }, remotes.collect()))
}

/// J7: an error if the others know this member as one that was here before, so that its data is gone.
pub(crate) async fn check_new(config: &Config, dialer: &Connector) -> Result<(), String> {
    let others = peer_urls_of_others(&config.initial_cluster, &config.name);
    if others.is_empty() {
        return Ok(());
    }
    let Some((_, own)) = config.initial_cluster.iter().find(|(name, _)| *name == config.name) else {
        return Ok(());
    };
    let urls: Vec<String> = own.iter().map(ToString::to_string).collect();
    let id = ids::member_id(&urls, &config.initial_cluster_token, None);
    // Whoever is not there, or not ready, knows nothing of this member.
    match peer::fetch_members(dialer, &others, LOOK_TIMEOUT).await {
        Ok((_, remote)) => check_not_bootstrapped(id, &remote),
        Err(_) => Ok(()),
    }
}

fn check_not_bootstrapped(id: u64, remote: &[Member]) -> Result<(), String> {
    if remote.iter().any(|member| member.id == id && !member.client_urls.is_empty()) {
        return Err(format!("member {id:x} has already been bootstrapped"));
    }
    Ok(())
}

/// J1: sorted, as etcd asks them.
fn peer_urls_of_others(cluster: &Named, name: &str) -> Vec<String> {
    let others = cluster.iter().filter(|(other, _)| other != name);
    let mut urls: Vec<String> = others.flat_map(|(_, urls)| urls.iter().map(ToString::to_string)).collect();
    urls.sort();
    urls
}

/// What names stand for: addresses by `host:port`.
type Resolved = HashMap<String, String>;

/// Names in either list, where they are not written alike.
async fn resolve(cluster: &Named, remote: &[Member]) -> Resolved {
    let remote = remote.iter().flat_map(|member| &member.peer_urls).filter_map(|url| Url::parse(url).ok());
    let local = cluster.iter().flat_map(|(_, urls)| urls.iter().cloned());
    let mut resolved = Resolved::new();
    for url in local.chain(remote) {
        let Some((host, _)) = url.host_port() else { continue };
        if host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok()
            || resolved.contains_key(&url.address)
        {
            continue;
        }
        // One that has no address now is compared as it is written.
        let found = tokio::net::lookup_host(&url.address).await.ok();
        if let Some(address) = found.and_then(|mut addresses| addresses.next()) {
            resolved.insert(url.address, address.to_string());
        }
    }
    resolved
}

/// J2, J3: the id that the cluster gave this member.
fn own_id(
    cluster: &Named,
    name: &str,
    cluster_id: u64,
    remote: &[Member],
    resolved: &Resolved,
) -> Result<u64, String> {
    let failed = |why: String| format!("error validating peerURLs {}: {why}", shown(cluster_id, remote));
    if remote.len() != cluster.len() {
        return Err(failed("member count is unequal".to_owned()));
    }
    let mut own = None;
    for member in remote {
        let mut last = String::new();
        let mut found = false;
        for (local, urls) in cluster {
            let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
            match same_urls(&member.peer_urls, &urls, resolved) {
                Ok(()) => {
                    found = true;
                    if local == name {
                        own = Some(member.id);
                    }
                    break;
                }
                Err(why) => last = why,
            }
        }
        if !found {
            return Err(failed(format!(
                "PeerURLs: no match found for existing member ({:x}, [{}]), last resolver error ({last})",
                member.id,
                member.peer_urls.join(" "),
            )));
        }
    }
    // Every member has its own entry, and there are as many of each, unless two have the same URLs.
    own.ok_or_else(|| failed(format!("nobody there has the URLs of {name:?}")))
}

/// Whether two lists name the same addresses; the error says where they do not.
fn same_urls(a: &[String], b: &[String], resolved: &Resolved) -> Result<(), String> {
    if a.len() != b.len() {
        return Err(format!("len({}) != len({})", quoted(a), quoted(b)));
    }
    let addresses = |urls: &[String]| {
        let address = |text: &String| {
            let url = Url::parse(text).map_err(|_| format!("failed to parse {text:?}"))?;
            let address = resolved.get(&url.address).cloned().unwrap_or_else(|| url.address.clone());
            Ok((Url { address, ..url }.to_string(), text.clone()))
        };
        let mut all = urls.iter().map(address).collect::<Result<Vec<_>, String>>()?;
        all.sort();
        Ok::<_, String>(all)
    };
    for ((a, from_a), (b, from_b)) in addresses(a)?.iter().zip(&addresses(b)?) {
        if a != b {
            return Err(format!("{a:?}(resolved from {from_a:?}) != {b:?}(resolved from {from_b:?})"));
        }
    }
    Ok(())
}

fn quoted(urls: &[String]) -> String {
    let urls: Vec<String> = urls.iter().map(|url| format!("{url:?}")).collect();
    format!("[{}]", urls.join(" "))
}

/// The cluster as etcd's error shows it.
fn shown(cluster_id: u64, members: &[Member]) -> String {
    let member = |member: &Member| {
        format!(
            "&{{ID:{:x} RaftAttributes:{{PeerURLs:[{}] IsLearner:{}}} Attributes:{{Name:{} ClientURLs:[{}]}}}}",
            member.id,
            member.peer_urls.join(" "),
            member.is_learner,
            member.name,
            member.client_urls.join(" "),
        )
    };
    let members: Vec<String> = members.iter().map(member).collect();
    format!("{{ClusterID:{cluster_id:x} Members:[{}] RemovedMemberIDs:[]}}", members.join(" "))
}

async fn version_of(dialer: &Connector, member: &Member) -> Option<Versions> {
    for url in &member.peer_urls {
        match peer::fetch_version(dialer, url, FETCH_TIMEOUT).await {
            Ok(versions) => return Some(versions),
            Err(error) => {
                log::warn!(error:% = error, member = format!("{:x}", member.id).as_str(); "failed to get a member's version")
            }
        }
    }
    None
}

/// J4: somebody knows the cluster's version, and everybody who does names one that this member can serve. While a
/// downgrade is under way that is the next one.
fn is_compatible(versions: &[Option<Versions>], downgrade: bool) -> bool {
    let version = |text: &str| members::parse_version(text).map(|(major, minor, _)| (major, minor));
    let Some((major, minor)) = version(SERVER_VERSION) else { return false };
    let window = match downgrade {
        true => (major, minor + 1)..=(major, minor + 1),
        false => CLUSTER_VERSION_MIN..=(major, minor),
    };
    let mut known = versions.iter().flatten().filter_map(|found| version(&found.etcdcluster)).peekable();
    known.peek().is_some() && known.all(|found| window.contains(&found))
}

/// J5.
fn check_learners(members: &[Member], most: usize) -> Result<(), String> {
    if members.iter().filter(|member| member.is_learner).count() > most {
        return Err("membership: too many learner members in cluster".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(parts: &[(&str, &str)]) -> Vec<(String, Vec<Url>)> {
        let urls = |text: &str| crate::config::url::parse_list(text).unwrap();
        parts.iter().map(|(name, text)| ((*name).to_owned(), urls(text))).collect()
    }

    fn member(id: u64, urls: &[&str]) -> Member {
        Member { id, peer_urls: urls.iter().map(ToString::to_string).collect(), ..Member::default() }
    }

    fn local() -> Vec<(String, Vec<Url>)> {
        cluster(&[("a", "http://a:1"), ("b", "http://b:1,http://b:2"), ("c", "http://c:1")])
    }

    fn remote() -> Vec<Member> {
        vec![
            member(0x1a, &["http://a:1"]),
            member(0x1b, &["http://b:2", "http://b:1"]),
            member(0x1c, &["http://c:1"]),
        ]
    }

    #[test]
    fn j1_the_others_urls_are_sorted() {
        assert_eq!(peer_urls_of_others(&local(), "c"), ["http://a:1", "http://b:1", "http://b:2"]);
    }

    #[test]
    fn j2_ids_are_those_of_the_cluster() {
        let none = Resolved::new();
        assert_eq!(own_id(&local(), "c", 1, &remote(), &none), Ok(0x1c));
        assert_eq!(own_id(&local(), "b", 1, &remote(), &none), Ok(0x1b), "in any order");
    }

    #[test]
    fn j2_names_are_compared_by_what_they_stand_for() {
        let mut other = remote();
        other[2].peer_urls = vec!["http://10.0.0.3:1".into()];
        let names = Resolved::from([("c:1".into(), "10.0.0.3:1".into())]);
        assert_eq!(own_id(&local(), "c", 1, &other, &names), Ok(0x1c));
        let error = own_id(&local(), "c", 1, &other, &Resolved::new()).unwrap_err();
        let expected = "PeerURLs: no match found for existing member (1c, [http://10.0.0.3:1]), last resolver error \
                        (\"http://10.0.0.3:1\"(resolved from \"http://10.0.0.3:1\") != \"http://c:1\"(resolved from \
                        \"http://c:1\"))";
        assert!(error.ends_with(expected), "{error}");
    }

    #[test]
    fn j2_the_numbers_of_members_are_equal() {
        let error = own_id(&local(), "c", 0xab, &remote()[..2], &Resolved::new()).unwrap_err();
        assert_eq!(
            error,
            "error validating peerURLs {ClusterID:ab Members:[&{ID:1a RaftAttributes:{PeerURLs:[http://a:1] \
             IsLearner:false} Attributes:{Name: ClientURLs:[]}} &{ID:1b RaftAttributes:{PeerURLs:[http://b:2 \
             http://b:1] IsLearner:false} Attributes:{Name: ClientURLs:[]}}] RemovedMemberIDs:[]}: member count is \
             unequal"
        );
    }

    #[test]
    fn j2_a_member_with_other_urls_is_named() {
        let mut other = remote();
        other[0].peer_urls.push("http://a:2".into());
        let error = own_id(&local(), "c", 1, &other, &Resolved::new()).unwrap_err();
        let last = "last resolver error (len([\"http://a:1\" \"http://a:2\"]) != len([\"http://c:1\"]))";
        assert!(error.ends_with(last), "{error}");
    }

    #[test]
    fn j4_versions() {
        let versions = |clusters: &[&str]| -> Vec<Option<Versions>> {
            let known = |text: &str| Versions {
                etcdserver: "3.7.1".into(),
                etcdcluster: text.into(),
                storage: String::new(),
            };
            clusters.iter().map(|text| (!text.is_empty()).then(|| known(text))).collect()
        };
        for (clusters, downgrade, expected) in [
            (&["3.7.0", "3.7.0"][..], false, true),
            (&["3.4.0"], false, true),
            (&["3.7.0", "", "not_decided"], false, true),
            (&["3.8.0"], false, false),
            (&["3.7.0", "3.8.0"], false, false),
            (&["3.8.0"], true, true),
            (&["3.7.0"], true, false),
            (&["3.9.0"], true, false),
            (&["2.3.0"], false, false),
            (&["", "not_decided"], false, false),
            (&[], false, false),
        ] {
            assert_eq!(is_compatible(&versions(clusters), downgrade), expected, "{clusters:?} {downgrade}");
        }
    }

    #[test]
    fn j5_learners_are_counted() {
        let mut members = remote();
        members[0].is_learner = true;
        assert_eq!(check_learners(&members, 1), Ok(()));
        assert!(check_learners(&members, 0).unwrap_err().contains("too many learner members"));
    }

    #[test]
    fn j7_who_has_published_itself_was_here_before() {
        let mut members = remote();
        assert_eq!(check_not_bootstrapped(0x1a, &members), Ok(()));
        members[0].client_urls = vec!["http://a:3".into()];
        assert_eq!(
            check_not_bootstrapped(0x1a, &members),
            Err("member 1a has already been bootstrapped".to_owned())
        );
        assert_eq!(check_not_bootstrapped(0x1b, &members), Ok(()));
    }
}
