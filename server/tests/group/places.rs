//! Members of one cluster as processes, and calls to them that may fail.
#![allow(unreachable_pub, reason = "a module of a test binary")]

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use trilith_proto::etcdserverpb as pb;

use crate::support::{Client, Folder, Member, PATIENCE, spawn_command};

pub const TOKEN: &str = "group";

/// Where a member lives and listens.
pub struct Place {
    pub name: String,
    pub folder: Folder,
    pub client: SocketAddr,
    pub peer: SocketAddr,
    /// Where the peer port is, when something stands before it at `peer`.
    pub listens: Option<SocketAddr>,
}

pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Place {
    pub fn new(test: &str, name: &str) -> Place {
        Place {
            name: name.to_owned(),
            folder: Folder::new(&format!("{test}-{name}")),
            client: free_address(),
            peer: free_address(),
            listens: None,
        }
    }

    pub fn peer_url(&self) -> String {
        format!("http://{}", self.peer)
    }

    /// Starts the process there; `cluster` is the value of --initial-cluster.
    pub fn spawn(&self, cluster: &str, flags: &[&str]) -> Member {
        let mut command = Command::new(env!("CARGO_BIN_EXE_etcd"));
        let client = format!("http://{}", self.client);
        let listens = format!("http://{}", self.listens.unwrap_or(self.peer));
        command
            .env_clear()
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.folder.0.display()))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &listens, "--initial-advertise-peer-urls", &self.peer_url()])
            .args(["--initial-cluster", cluster, "--initial-cluster-token", TOKEN])
            .args(flags);
        spawn_command(command, self.client)
    }
}

/// The value of --initial-cluster for these.
pub fn listed<'a>(places: impl IntoIterator<Item = &'a Place>) -> String {
    let parts = places.into_iter().map(|place| format!("{}={}", place.name, place.peer_url()));
    parts.collect::<Vec<_>>().join(",")
}

/// Members that began together.
pub struct Group {
    pub places: Vec<Place>,
    pub members: Vec<Option<Member>>,
    pub cluster: String,
}

impl Group {
    /// Starts `count` members and waits until all serve.
    pub fn start(test: &str, count: usize, flags: &[&str]) -> Group {
        let places: Vec<Place> = (0..count).map(|at| Place::new(test, &format!("infra{at}"))).collect();
        let cluster = listed(&places);
        let members: Vec<_> = places.iter().map(|place| Some(place.spawn(&cluster, flags))).collect();
        let group = Group { places, members, cluster };
        for member in group.members.iter().flatten() {
            member.wait_for("ready to serve client requests");
        }
        group
    }

    pub fn kill(&mut self, at: usize) {
        drop(self.members[at].take());
    }

    pub fn restart(&mut self, at: usize, flags: &[&str]) {
        let member = self.places[at].spawn(&self.cluster, flags);
        member.wait_for("ready to serve client requests");
        self.members[at] = Some(member);
    }

    pub fn client(&self, at: usize) -> SocketAddr {
        self.places[at].client
    }

    pub async fn status(&self, at: usize) -> pb::StatusResponse {
        ask(self.client(at), "/etcdserverpb.Maintenance/Status", &pb::StatusRequest {}).await.unwrap()
    }

    /// The number of the leader, as a running member sees it.
    pub async fn leader(&self) -> usize {
        let ids = self.ids().await;
        let running = self.members.iter().position(Option::is_some).unwrap();
        until(async || {
            let leader = self.status(running).await.leader;
            ids.iter().position(|id| *id == Some(leader))
        })
        .await
    }

    /// The id of each member that runs.
    pub async fn ids(&self) -> Vec<Option<u64>> {
        let mut ids = Vec::new();
        for (at, member) in self.members.iter().enumerate() {
            ids.push(match member {
                Some(_) => Some(self.status(at).await.header.unwrap().member_id),
                None => None,
            });
        }
        ids
    }
}

/// Asks again and again, until there is an answer.
pub async fn until<T>(question: impl AsyncFn() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let asking = async {
        loop {
            if let Some(answer) = question().await {
                return answer;
            }
            ticks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("an answer in time")
}

/// One call on a connection of its own; the error is code and text, or what broke.
pub async fn ask<M: Message, R: Message + Default>(
    address: SocketAddr,
    path: &str,
    request: &M,
) -> Result<R, String> {
    let client = Client::try_connect(address).await?;
    client.try_call(path, request).await
}

pub async fn put(address: SocketAddr, key: &str, value: &str) -> Result<i64, String> {
    let request = pb::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..pb::PutRequest::default()
    };
    let answer: pb::PutResponse = ask(address, "/etcdserverpb.KV/Put", &request).await?;
    Ok(answer.header.unwrap().revision)
}

pub async fn get(address: SocketAddr, key: &str) -> Result<Option<String>, String> {
    let request =
        pb::RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..pb::RangeRequest::default() };
    let answer: pb::RangeResponse = ask(address, "/etcdserverpb.KV/Range", &request).await?;
    Ok(answer.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()))
}

pub async fn member_list(address: SocketAddr) -> Vec<pb::Member> {
    let request = pb::MemberListRequest { linearizable: true };
    let answer: pb::MemberListResponse =
        ask(address, "/etcdserverpb.Cluster/MemberList", &request).await.unwrap();
    answer.members
}

pub async fn member_add(
    address: SocketAddr,
    peer_url: &str,
    is_learner: bool,
) -> Result<pb::MemberAddResponse, String> {
    let request = pb::MemberAddRequest { peer_ur_ls: vec![peer_url.to_owned()], is_learner };
    ask(address, "/etcdserverpb.Cluster/MemberAdd", &request).await
}

pub async fn member_remove(address: SocketAddr, id: u64) -> Result<pb::MemberRemoveResponse, String> {
    ask(address, "/etcdserverpb.Cluster/MemberRemove", &pb::MemberRemoveRequest { id }).await
}

pub async fn hash(address: SocketAddr, revision: i64) -> u32 {
    let request = pb::HashKvRequest { revision };
    let answer: pb::HashKvResponse =
        ask(address, "/etcdserverpb.Maintenance/HashKV", &request).await.unwrap();
    answer.hash
}
