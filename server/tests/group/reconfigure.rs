//! Members that come, go, move and get a vote.

use std::net::SocketAddr;

use rustix::process::Signal;
use trilith_proto::etcdserverpb as pb;

use crate::places::{
    Group, Place, ask, free_address, get, hash, listed, member_add, member_list, member_remove, put, until,
};
use crate::support::block_on;

/// Connections must have been up for five seconds (M5): asked until that is so.
async fn add_when_healthy(group: &Group, at: usize, place: &Place, learner: bool) -> pb::MemberAddResponse {
    until(async || match member_add(group.client(at), &place.peer_url(), learner).await {
        Ok(answer) => Some(answer),
        Err(refused) if refused == "14 etcdserver: unhealthy cluster" => None,
        Err(other) => panic!("{other}"),
    })
    .await
}

async fn promote(address: SocketAddr, id: u64) -> Result<pb::MemberPromoteResponse, String> {
    let request = pb::MemberPromoteRequest { id };
    ask(address, "/etcdserverpb.Cluster/MemberPromote", &request).await
}

#[test]
fn r6_a_member_is_added_and_another_removed() {
    let mut group = Group::start("r6", 3, &[]);
    block_on(async {
        let leader = group.leader().await;
        let (asked, gone) = (group.client((leader + 1) % 3), (leader + 2) % 3);
        for at in 0..20 {
            put(group.client(0), &format!("key{at}"), "1").await.unwrap();
        }
        let place = Place::new("r6", "infra3");
        let added = add_when_healthy(&group, 0, &place, true).await;
        assert_eq!(added.members.len(), 4, "M14");
        let id = added.member.unwrap().id;
        let unstarted =
            member_list(group.client(1)).await.into_iter().find(|member| member.id == id).unwrap();
        assert_eq!((unstarted.name.as_str(), unstarted.client_ur_ls.len()), ("", 0), "M13");
        // M9: a member that does not lead asks the leader, and hands on what it says.
        let not_ready = "9 etcdserver: can only promote a learner member which is in sync with leader";
        assert_eq!(promote(asked, id).await.unwrap_err(), not_ready);
        assert_eq!(promote(asked, 1).await.unwrap_err(), "5 etcdserver: member not found");

        let cluster = listed(group.places.iter().chain([&place]));
        let member = place.spawn(&cluster, &["--initial-cluster-state=existing"]);
        member.wait_for("ready to serve client requests");
        let promoted = until(async || promote(asked, id).await.ok()).await;
        assert!(promoted.members.iter().all(|member| !member.is_learner));
        let again = promote(asked, id).await.unwrap_err();
        assert_eq!(again, "9 etcdserver: can only promote a learner member");
        until(async || get(place.client, "key1").await.ok().flatten()).await;
        let revision = put(place.client, "key", "2").await.unwrap();
        assert_eq!(get(group.client(2), "key").await.unwrap().as_deref(), Some("2"));
        assert_eq!(hash(place.client, revision).await, hash(group.client(2), revision).await);

        let gone_id = group.ids().await[gone].unwrap();
        let other = (gone + 1) % 3;
        let left = until(async || match member_remove(group.client(other), gone_id).await {
            Ok(answer) => Some(answer.members.len()),
            Err(refused) if refused == "14 etcdserver: unhealthy cluster" => None,
            Err(refused) => panic!("{refused}"),
        })
        .await;
        assert_eq!(left, 3);
        let (_, lines) = group.members[gone].take().unwrap().wait();
        let text = "removed from the cluster";
        assert!(lines.iter().any(|line| line.contains(text)), "{lines:#?}");
        assert_eq!(
            member_remove(group.client(other), gone_id).await.unwrap_err(),
            "5 etcdserver: member not found"
        );
        put(group.client(other), "key", "3").await.unwrap();

        // R7: by its own store, or, where it had been told before it had applied that, by the others once more.
        let (code, lines) = group.places[gone].spawn(&group.cluster, &[]).wait();
        let told = lines.iter().any(|line| line.contains("a peer says that this member was removed"));
        assert_eq!(code, Some(if told { 0 } else { 1 }), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("permanently removed from the cluster")), "{lines:#?}");
    });
}

#[test]
fn r6_a_member_moves_to_another_address() {
    let mut group = Group::start("r6move", 3, &[]);
    block_on(async {
        let moving = (group.leader().await + 1) % 3;
        let id = group.ids().await[moving].unwrap();
        group.kill(moving);
        let old = std::mem::replace(&mut group.places[moving].peer, free_address());
        let url = group.places[moving].peer_url();
        let asked = group.client((moving + 1) % 3);
        let path = "/etcdserverpb.Cluster/MemberUpdate";
        let bad = pb::MemberUpdateRequest { id, peer_ur_ls: vec!["nonsense".into()] };
        let refused = ask::<_, pb::MemberUpdateResponse>(asked, path, &bad).await.unwrap_err();
        assert_eq!(refused, "3 etcdserver: given member URLs are invalid");
        let update = pb::MemberUpdateRequest { id, peer_ur_ls: vec![url.clone()] };
        let answer: pb::MemberUpdateResponse = ask(asked, path, &update).await.unwrap();
        let moved = answer.members.iter().find(|member| member.id == id).unwrap();
        assert_eq!(moved.peer_ur_ls, [url], "it was at {old}");
        assert_ne!(moved.name, "", "what it has published stays");
        group.restart(moving, &[]);
        put(group.client(moving), "key", "1").await.unwrap();
        assert_eq!(get(asked, "key").await.unwrap().as_deref(), Some("1"));
    });
}

#[test]
fn r7_who_does_not_fit_the_cluster_does_not_join() {
    let group = Group::start("r7", 1, &[]);
    let place = Place::new("r7", "new");
    let cluster = listed(group.places.iter().chain([&place]));
    let join = |cluster: &str, expected: &str| {
        let (code, lines) = place.spawn(cluster, &["--initial-cluster-state=existing"]).wait();
        assert_eq!(code, Some(1), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains(expected)), "{expected}: {lines:#?}");
    };
    join(&cluster, "member count is unequal");
    join(&listed([&place]), "cannot fetch cluster info from peer urls");
    let elsewhere = Place::new("r7", "elsewhere");
    block_on(async { member_add(group.client(0), &elsewhere.peer_url(), true).await.unwrap() });
    join(&cluster, "PeerURLs: no match found for existing member");
}

#[test]
fn r8_strict_reconfiguration_protects_the_quorum() {
    let mut group = Group::start("r8", 3, &[]);
    block_on(async {
        let leader = group.leader().await;
        let (dead, other) = ((leader + 1) % 3, (leader + 2) % 3);
        let ids = group.ids().await;
        let place = Place::new("r8", "new");
        group.kill(dead);
        until(async || {
            let refused = member_add(group.client(leader), &place.peer_url(), false).await.unwrap_err();
            (refused == "14 etcdserver: unhealthy cluster").then_some(())
        })
        .await;
        let refused = member_remove(group.client(leader), ids[other].unwrap()).await.unwrap_err();
        assert_eq!(refused, "14 etcdserver: unhealthy cluster");
        // One that is away may go, and then there are two.
        let left = until(async || member_remove(group.client(leader), ids[dead].unwrap()).await.ok()).await;
        assert_eq!(left.members.len(), 2);
    });
    let group = Group::start("r8lone", 1, &[]);
    block_on(async {
        let [first, second] = [Place::new("r8lone", "a"), Place::new("r8lone", "b")];
        member_add(group.client(0), &first.peer_url(), true).await.unwrap();
        let refused = member_add(group.client(0), &second.peer_url(), true).await.unwrap_err();
        assert_eq!(refused, "9 etcdserver: too many learner members in cluster");
        let id = group.ids().await[0].unwrap();
        let refused = member_remove(group.client(0), id).await.unwrap_err();
        assert_eq!(refused, "2 etcdserver: re-configuration failed due to not enough started members");
    });
}

#[test]
fn m9_a_learner_catches_up_and_gets_a_vote() {
    let group = Group::start("m9", 1, &[]);
    block_on(async {
        for at in 0..20 {
            put(group.client(0), &format!("key{at}"), "1").await.unwrap();
        }
        let place = Place::new("m9", "learner");
        let added = member_add(group.client(0), &place.peer_url(), true).await.unwrap();
        let id = added.member.unwrap().id;
        let path = "/etcdserverpb.Cluster/MemberPromote";
        let request = pb::MemberPromoteRequest { id };
        let refused = ask::<_, pb::MemberPromoteResponse>(group.client(0), path, &request).await;
        let not_ready = "9 etcdserver: can only promote a learner member which is in sync with leader";
        assert_eq!(refused.unwrap_err(), not_ready);

        let cluster = listed(group.places.iter().chain([&place]));
        let learner = place.spawn(&cluster, &["--initial-cluster-state=existing"]);
        learner.wait_for("ready to serve client requests");
        let refused = get(place.client, "key1").await.unwrap_err();
        assert_eq!(refused, "9 etcdserver: rpc not supported for learner", "R14");
        assert!(put(place.client, "key1", "2").await.unwrap_err().contains("not supported for learner"));
        let local = pb::RangeRequest { key: "key1".into(), serializable: true, ..Default::default() };
        until(async || {
            let answer: pb::RangeResponse =
                ask(place.client, "/etcdserverpb.KV/Range", &local).await.unwrap();
            (answer.count == 1).then_some(())
        })
        .await;

        let promoted: pb::MemberPromoteResponse =
            until(async || ask(group.client(0), path, &request).await.ok()).await;
        assert!(promoted.members.iter().all(|member| !member.is_learner), "{promoted:?}");
        let refused = ask::<_, pb::MemberPromoteResponse>(group.client(0), path, &request).await;
        assert_eq!(refused.unwrap_err(), "9 etcdserver: can only promote a learner member");
        until(async || put(place.client, "key1", "2").await.ok()).await;
        assert_eq!(get(group.client(0), "key1").await.unwrap().as_deref(), Some("2"));
        learner.signal(Signal::TERM);
        assert_eq!(learner.wait().0, Some(0));
    });
}
