//! New members find each other by a discovery service: our own server as the service, its refusals, and members as
//! processes. A real etcd as the service, too, with the feature `real-etcd`.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use trilith_proto::etcdserverpb::{RangeRequest, RangeResponse};
use trilith_proto::ids;
use trilith_server::config::discovery::Service;
use trilith_server::config::url;
use trilith_server::discovery::{Members, join};

use support::{Client, Folder, block_on, spawn, start};

fn service(address: SocketAddr, token: &str) -> Service {
    Service {
        token: token.to_owned(),
        endpoints: vec![address.to_string()],
        dial_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(5),
        keepalive_time: Duration::from_secs(2),
        keepalive_timeout: Duration::from_secs(6),
        user: None,
        backoff: Duration::from_millis(10),
    }
}

fn url_of(name: &str) -> String {
    format!("http://{name}.example.com:2380")
}

async fn join_as(service: &Service, name: &str) -> Result<Members, String> {
    let urls = url::parse_list(&url_of(name)).unwrap();
    join(service, name, &urls).await.map_err(|error| error.to_string())
}

/// Names and URLs, by name.
fn shown(members: &Members) -> BTreeMap<String, String> {
    members.iter().map(|(name, urls)| (name.clone(), url::join(urls))).collect()
}

fn expected(names: &[&str]) -> BTreeMap<String, String> {
    names.iter().map(|name| ((*name).to_owned(), url_of(name))).collect()
}

async fn set_size(client: &Client, token: &str, size: &str) {
    client
        .put(&format!("/_etcd/registry/{token}/_config/size"), Bytes::copy_from_slice(size.as_bytes()))
        .await;
}

/// The registered members of a token: keys and values.
async fn registered(client: &Client, token: &str) -> BTreeMap<String, String> {
    let key = format!("/_etcd/registry/{token}/members/");
    let range_end = format!("/_etcd/registry/{token}/members0");
    let request = RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
    let answer: RangeResponse = client.call("/etcdserverpb.KV/Range", &request).await;
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    answer.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

/// Everything that a service has to do, whoever it is.
async fn exercise(address: SocketAddr) {
    let client = Client::connect(address).await;

    // One, two and three members at a time, and the keys that they leave.
    for (token, names) in [("one", &["a"][..]), ("two", &["a", "b"]), ("three", &["a", "b", "c"])] {
        set_size(&client, token, &names.len().to_string()).await;
        let service = service(address, token);
        let joins: Vec<_> = names
            .iter()
            .map(|name| {
                let (service, name) = (service.clone(), (*name).to_owned());
                tokio::task::spawn_local(async move { join_as(&service, &name).await })
            })
            .collect();
        for join in joins {
            assert_eq!(shown(&join.await.unwrap().unwrap()), expected(names), "{token}");
        }
        let keys = names.iter().map(|name| {
            let id = ids::member_id(&[url_of(name)], token, None);
            (format!("/_etcd/registry/{token}/members/{id:x}"), format!("{name}={}", url_of(name)))
        });
        assert_eq!(registered(&client, token).await, keys.collect());
        // One too many is refused and leaves nothing; one that was there comes back.
        let late = join_as(&service, "late").await.unwrap_err();
        assert_eq!(late, "failed to join discovery cluster (discovery: cluster is full)");
        assert_eq!(registered(&client, token).await.len(), names.len());
        assert_eq!(shown(&join_as(&service, "a").await.unwrap()), expected(names), "{token}");
    }

    // Five at once for three places: the three oldest keys win, and all winners agree.
    set_size(&client, "race", "3").await;
    let race = service(address, "race");
    let joins: Vec<_> = ["a", "b", "c", "d", "e"]
        .map(|name| {
            let race = race.clone();
            tokio::task::spawn_local(async move { (name, join_as(&race, name).await) })
        })
        .into_iter()
        .collect();
    let mut won = BTreeMap::new();
    for join in joins {
        match join.await.unwrap() {
            (name, Ok(members)) => drop(won.insert(name, shown(&members))),
            (_, Err(error)) => {
                assert_eq!(error, "failed to join discovery cluster (discovery: cluster is full)")
            }
        }
    }
    let winners: Vec<&str> = won.keys().copied().collect();
    assert_eq!(winners.len(), 3);
    assert!(won.values().all(|members| *members == expected(&winners)), "{won:?}");

    refusals(&client, address).await;
}

async fn refusals(client: &Client, address: SocketAddr) {
    let of = |token: &'static str| async move { join_as(&service(address, token), "me").await.unwrap_err() };
    assert_eq!(of("unknown").await, "failed to join discovery cluster (discovery: size key not found)");
    for size in ["", "many", "0", "-1", "1.5", " 3", "99999999999999999999"] {
        set_size(client, "bad", size).await;
        assert_eq!(
            of("bad").await,
            "failed to join discovery cluster (discovery: size key is bad)",
            "{size:?}"
        );
    }
    for (token, value, error) in [
        ("scheme", "x=ftp://x:1", "failed to join discovery cluster (discovery: invalid peer URL)"),
        (
            "url",
            "x=http://me.example.com:2380",
            "discovery cluster me=http://me.example.com:2380,x=http://me.example.com:2380 has duplicate url",
        ),
        (
            "name",
            "me=http://x:1",
            "discovery cluster me=http://me.example.com:2380,me=http://x:1 has several members of one name",
        ),
    ] {
        set_size(client, token, "2").await;
        client.put(&format!("/_etcd/registry/{token}/members/1"), value).await;
        assert_eq!(of(token).await, error);
    }
    // What is no member takes no place.
    set_size(client, "noise", "1").await;
    client.put("/_etcd/registry/noise/members/1", "nonsense").await;
    assert_eq!(shown(&join_as(&service(address, "noise"), "me").await.unwrap()), expected(&["me"]));
}

#[test]
fn our_server_is_the_service() {
    let folder = Folder::new("discovery-service");
    let member = start(&folder, &[]);
    block_on(exercise(member.address));
    member.stop();
}

#[test]
fn a_member_waits_for_one_that_comes_later_and_asks_the_endpoints_in_turn() {
    let folder = Folder::new("discovery-late");
    let member = start(&folder, &[]);
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Takes connections, and never says a word.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    block_on(async {
        let client = Client::connect(member.address).await;
        set_size(&client, "t", "2").await;
        let endpoints =
            [dead, mute.local_addr().unwrap(), member.address].map(|address| format!("http://{address}"));
        let service = Service {
            endpoints: endpoints.to_vec(),
            dial_timeout: Duration::from_millis(500),
            request_timeout: Duration::from_millis(500),
            ..service(member.address, "t")
        };
        let first = service.clone();
        let first = tokio::task::spawn_local(async move { join_as(&first, "a").await });
        while registered(&client, "t").await.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!first.is_finished(), "a waits for b");
        assert_eq!(shown(&join_as(&service, "b").await.unwrap()), expected(&["a", "b"]));
        assert_eq!(shown(&first.await.unwrap().unwrap()), expected(&["a", "b"]));
    });
    member.stop();
}

#[test]
fn a_member_waits_for_a_service_that_is_down_and_outlives_its_restart() {
    let folder = Folder::new("discovery-down");
    let member = start(&folder, &[]);
    let address = member.address;
    block_on(async {
        let client = Client::connect(address).await;
        set_size(&client, "t", "2").await;
    });
    member.stop();
    let service = service(address, "t");
    let again = |url: &str| start(&folder, &["--listen-client-urls", url, "--advertise-client-urls", url]);
    let url = format!("http://{address}");
    block_on(async {
        let first = service.clone();
        let first = tokio::task::spawn_local(async move { join_as(&first, "a").await });
        tokio::task::yield_now().await;
        let member = again(&url);
        let client = Client::connect(address).await;
        while registered(&client, "t").await.is_empty() {
            tokio::task::yield_now().await;
        }
        // The watch breaks, and is taken up where it was.
        member.signal(rustix::process::Signal::KILL);
        member.wait();
        let member = again(&url);
        assert_eq!(shown(&join_as(&service, "b").await.unwrap()), expected(&["a", "b"]));
        assert_eq!(shown(&first.await.unwrap().unwrap()), expected(&["a", "b"]));
        member.stop();
    });
}

#[test]
fn a_process_joins_and_ignores_the_token_later() {
    let folder = Folder::new("discovery-registry");
    let registry = start(&folder, &[]);
    let endpoints = format!("--discovery-endpoints=http://{}", registry.address);
    block_on(async {
        let client = Client::connect(registry.address).await;
        set_size(&client, "lone", "1").await;
    });

    // A token without a size: one clear line, exit code 1, and no log in the folder.
    let new = Folder::new("discovery-new");
    let (code, lines) = spawn(&new, &[&endpoints, "--discovery-token=none"]).wait();
    assert_eq!(code, Some(1), "{lines:#?}");
    let has = |lines: &[String], text: &str| lines.iter().any(|line| line.contains(text));
    assert!(has(&lines, "failed to join discovery cluster (discovery: size key not found)"), "{lines:#?}");
    assert!(has(&lines, "do not reuse discovery token; generate a new one to bootstrap a cluster"));
    assert!(!new.0.join("member/wal").exists());
    let (code, lines) =
        spawn(&new, &[&endpoints, "--discovery-token=none", "--initial-cluster-state=existing"]).wait();
    assert_eq!(code, Some(1), "{lines:#?}");
    assert!(
        has(&lines, "discovery URL should not be set when joining existing initial cluster"),
        "{lines:#?}"
    );

    // The member of a cluster of one, whose id has the token in it.
    let peer = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let peer = format!("http://{peer}");
    let advertise = format!("--initial-advertise-peer-urls={peer}");
    let listen = format!("--listen-peer-urls={peer}");
    let flags = [&endpoints, "--discovery-token=lone", "--name=m", &advertise, &listen];
    let member = spawn(&new, &flags);
    let lines = member.wait_for("ready to serve client requests");
    assert!(has(&lines, "discovery joined cluster successfully"), "{lines:#?}");
    let id = ids::member_id(std::slice::from_ref(&peer), "lone", None);
    assert!(has(&lines, &format!("\"member-id\":\"{id:x}\"")), "{lines:#?}");
    block_on(async {
        let client = Client::connect(registry.address).await;
        let found = registered(&client, "lone").await;
        let expected = (format!("/_etcd/registry/lone/members/{id:x}"), format!("m={peer}"));
        assert_eq!(found, BTreeMap::from([expected]));
    });
    member.stop();

    // Its data are there, and nobody is asked any more.
    registry.stop();
    let member = spawn(&new, &flags);
    let lines = member.wait_for("ready to serve client requests");
    assert!(
        has(&lines, "discovery token is ignored since cluster already initialized; valid logs are found"),
        "{lines:#?}"
    );
    member.stop();
}

/// A service that asks for credentials, which ours does not: so only a real etcd can be one.
#[cfg(feature = "real-etcd")]
mod real {
    use std::process::{Command, Stdio};

    use super::*;

    struct Etcd(std::process::Child, #[allow(dead_code, reason = "goes with the process")] Folder);

    impl Drop for Etcd {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start_etcd(name: &str) -> (Etcd, SocketAddr) {
        let folder = Folder::new(name);
        // Both stay bound until both numbers are known, so they differ.
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [client, peer] = ports.map(|port| port.local_addr().unwrap());
        let urls = [client, peer].map(|address| format!("http://{address}"));
        let child = Command::new("/usr/bin/etcd")
            .arg("--data-dir")
            .arg(&folder.0)
            .args(["--listen-client-urls", &urls[0], "--advertise-client-urls", &urls[0]])
            .args(["--listen-peer-urls", &urls[1], "--initial-advertise-peer-urls", &urls[1]])
            .args(["--initial-cluster", &format!("default={}", urls[1])])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Etcd(child, folder);
        etcdctl(client, &["endpoint", "health", "--dial-timeout=30s", "--command-timeout=60s"]);
        (etcd, client)
    }

    fn etcdctl(address: SocketAddr, args: &[&str]) {
        let output = Command::new("/usr/bin/etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &address.to_string()])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    #[test]
    fn a_real_etcd_is_the_service() {
        let (_etcd, address) = start_etcd("discovery-real");
        block_on(exercise(address));
    }

    #[test]
    fn a_real_etcd_asks_for_credentials() {
        let (_etcd, address) = start_etcd("discovery-auth");
        let with = |user: &str, password: &str| Service {
            user: Some((user.to_owned(), password.to_owned())),
            ..service(address, "t")
        };
        etcdctl(address, &["put", "/_etcd/registry/t/_config/size", "1"]);
        // Credentials that nobody asks for do no harm.
        block_on(async {
            assert_eq!(shown(&join_as(&with("root", "pw"), "a").await.unwrap()), expected(&["a"]));
        });
        etcdctl(address, &["user", "add", "root:pw"]);
        etcdctl(address, &["auth", "enable"]);
        block_on(async {
            assert_eq!(shown(&join_as(&with("root", "pw"), "a").await.unwrap()), expected(&["a"]));
            assert_eq!(
                join_as(&with("root", "wrong"), "a").await.unwrap_err(),
                "failed to join discovery cluster (etcdserver: authentication failed, invalid user ID or password)"
            );
        });
    }
}
