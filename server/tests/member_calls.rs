//! The calls about members at a member's client port: paths, codes and texts, as a client has them.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use support::{Client, Folder, block_on};
use tokio::sync::oneshot;
use trilith_disk::RealDisk;
use trilith_proto::etcdserverpb as pb;
use trilith_server::config::url::Url;
use trilith_server::core::{self, Config, Core};
use trilith_server::rpc::{Api, Options, Server, Stop};
use trilith_server::service::cluster::{Peers, Promoting};

/// A member that has no way to others.
#[derive(Debug)]
pub struct Alone;

impl Peers for Alone {
    fn active_since(&self, _: u64) -> Option<Duration> {
        None
    }

    fn promote(&self, _: Vec<String>, _: u64) -> Promoting {
        Box::pin(std::future::ready(None))
    }
}

/// Runs a lone member and its client port in this process, for as long as a test takes.
fn with_member<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Client) -> F) {
    let folder = Folder::new(name);
    let config = Config { unix_ms: 1_700_000_000_000, ..Config::new(folder.0.clone(), Arc::new(RealDisk)) };
    block_on(async {
        let (core, handle) = Core::open(config).unwrap();
        let (end, ends) = oneshot::channel::<()>();
        let core = tokio::task::spawn_local(core::run(core, |_| {}, async {
            let _ = ends.await;
        }));
        assert!(handle.ready().await);
        let server = Server::bind(vec![(Url::parse("http://127.0.0.1:0").unwrap(), None)]).unwrap();
        let address = server.local_addrs().unwrap()[0];
        let (stop, stopped) = Stop::new();
        let api = Api::new(handle, Arc::new(Alone), 1 << 20, Duration::from_secs(600));
        let options = Options {
            receive_limit: 2 << 20,
            max_concurrent_streams: 1000,
            keepalive_interval: Duration::from_secs(7200),
            keepalive_timeout: Duration::from_secs(20),
            io_threads: 1,
        };
        let serving = tokio::task::spawn_local(server.run(api, options, stopped));
        test(Client::connect(address).await).await;
        stop.send_replace(true);
        serving.await.unwrap().unwrap();
        drop(end);
        core.await.unwrap().unwrap();
    });
}

async fn refused<M: Message>(client: &Client, path: &str, request: &M) -> String {
    client.try_call::<M, pb::MemberListResponse>(path, request).await.unwrap_err()
}

const ADD: &str = "/etcdserverpb.Cluster/MemberAdd";
const REMOVE: &str = "/etcdserverpb.Cluster/MemberRemove";
const UPDATE: &str = "/etcdserverpb.Cluster/MemberUpdate";
const PROMOTE: &str = "/etcdserverpb.Cluster/MemberPromote";
const LIST: &str = "/etcdserverpb.Cluster/MemberList";
const MOVE: &str = "/etcdserverpb.Maintenance/MoveLeader";

fn to_add(url: &str, is_learner: bool) -> pb::MemberAddRequest {
    pb::MemberAddRequest { peer_ur_ls: vec![url.into()], is_learner }
}

const LAST: &str = "2 etcdserver: re-configuration failed due to not enough started members";

/// M4 to M9: each refusal, by its code and text.
#[test]
fn what_is_refused() {
    with_member("member-calls-refused", async |client| {
        let listed: pb::MemberListResponse =
            client.call(LIST, &pb::MemberListRequest { linearizable: true }).await;
        let own = listed.members[0].id;
        assert_eq!(own, 0x8e9e_05c5_2164_694d);

        let bad = "3 etcdserver: given member URLs are invalid";
        assert_eq!(refused(&client, ADD, &pb::MemberAddRequest::default()).await, bad);
        assert_eq!(refused(&client, ADD, &to_add("http://a:1/path", false)).await, bad);
        let update = |id, url: &str| pb::MemberUpdateRequest { id, peer_ur_ls: vec![url.into()] };
        assert_eq!(refused(&client, UPDATE, &update(own, "a:1")).await, bad);
        let taken = "9 etcdserver: Peer URLs already exists";
        assert_eq!(refused(&client, ADD, &to_add("http://localhost:2380", true)).await, taken);
        let unknown = "5 etcdserver: member not found";
        assert_eq!(refused(&client, UPDATE, &update(1, "http://a:1")).await, unknown);
        assert_eq!(refused(&client, PROMOTE, &pb::MemberPromoteRequest { id: 1 }).await, unknown);
        let no_learner = "9 etcdserver: can only promote a learner member";
        assert_eq!(refused(&client, PROMOTE, &pb::MemberPromoteRequest { id: own }).await, no_learner);
        assert_eq!(refused(&client, REMOVE, &pb::MemberRemoveRequest { id: own }).await, LAST);
        let nobody = "9 etcdserver: bad leader transferee";
        assert_eq!(refused(&client, MOVE, &pb::MoveLeaderRequest { target_id: 1 }).await, nobody);
        let moved: pb::MoveLeaderResponse =
            client.call(MOVE, &pb::MoveLeaderRequest { target_id: own }).await;
        assert_eq!(moved.header, None);
        let after: pb::MemberListResponse =
            client.call(LIST, &pb::MemberListRequest { linearizable: false }).await;
        assert_eq!(after.members, listed.members, "nothing of that did anything");
    });
}

/// A voter alone goes on with a learner that is not there, and is rid of it again.
#[test]
fn a_learner_comes_and_goes() {
    with_member("member-calls-learner", async |client| {
        let added: pb::MemberAddResponse = client.call(ADD, &to_add("http://b:1", true)).await;
        let id = added.member.unwrap().id;
        let many = "9 etcdserver: too many learner members in cluster";
        assert_eq!(refused(&client, ADD, &to_add("http://c:1", true)).await, many);
        let behind = "9 etcdserver: can only promote a learner member which is in sync with leader";
        assert_eq!(refused(&client, PROMOTE, &pb::MemberPromoteRequest { id }).await, behind);
        let update = pb::MemberUpdateRequest { id, peer_ur_ls: vec!["http://d:1".into()] };
        let moved: pb::MemberUpdateResponse = client.call(UPDATE, &update).await;
        let found = moved.members.iter().find(|member| member.id == id).unwrap();
        assert_eq!((&found.peer_ur_ls[..], found.is_learner), (&["http://d:1".to_owned()][..], true));
        assert_eq!(client.put("k", "v").await, 2);
        let nobody = "9 etcdserver: bad leader transferee";
        assert_eq!(refused(&client, MOVE, &pb::MoveLeaderRequest { target_id: id }).await, nobody);
        let left: pb::MemberRemoveResponse = client.call(REMOVE, &pb::MemberRemoveRequest { id }).await;
        assert_eq!(left.members.len(), 1);
        let gone = "5 etcdserver: member not found";
        assert_eq!(
            refused(&client, REMOVE, &pb::MemberRemoveRequest { id }).await,
            LAST,
            "as etcd: it looks at the rest first"
        );
        assert_eq!(refused(&client, UPDATE, &pb::MemberUpdateRequest { id, ..update }).await, gone);
    });
}
