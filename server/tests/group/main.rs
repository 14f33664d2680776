//! Clusters as processes, from outside: bootstrap, failures, changes of the members.
#![allow(clippy::unwrap_used)]

mod corruption;
mod partition;
mod places;
mod reconfigure;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use places::{Group, Place, TOKEN, ask, get, hash, listed, member_list, put, until};
use rustix::process::Signal;
use support::block_on;
use trilith_proto::{etcdserverpb as pb, ids};

#[test]
fn u12_one_of_three_dies_and_comes_back() {
    let mut group = Group::start("u12", 3, &[]);
    block_on(async {
        let members = member_list(group.client(0)).await;
        let mut names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["infra0", "infra1", "infra2"]);
        assert_eq!(members[0].client_ur_ls.len(), 1);
        put(group.client(1), "before", "1").await.unwrap();

        group.kill(2);
        until(async || put(group.client(0), "while", "2").await.ok()).await;
        assert_eq!(get(group.client(1), "while").await.unwrap().as_deref(), Some("2"));
        let gone = get(group.client(2), "while").await.unwrap_err();
        assert!(gone.contains("refused"), "{gone}");

        group.restart(2, &[]);
        let found = until(async || get(group.client(2), "while").await.ok()).await;
        assert_eq!(found.as_deref(), Some("2"), "it has what it missed");
        let revision = put(group.client(2), "after", "3").await.unwrap();
        for at in 0..3 {
            assert_eq!(get(group.client(at), "after").await.unwrap().as_deref(), Some("3"));
        }
        let hashes = [hash(group.client(0), revision).await, hash(group.client(1), revision).await];
        assert_eq!(hashes, [hash(group.client(2), revision).await; 2]);
    });
}

#[test]
fn r2_static_bootstrap_gives_etcds_ids() {
    let group = Group::start("r2", 3, &[]);
    block_on(async {
        let id = |place: &Place| ids::member_id(&[place.peer_url()], TOKEN, None);
        let mut expected: Vec<u64> = group.places.iter().map(id).collect();
        expected.sort_unstable();
        for at in 0..3 {
            let members = member_list(group.client(at)).await;
            assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), expected, "M1, M13");
            let header = group.status(at).await.header.unwrap();
            assert_eq!(header.cluster_id, ids::cluster_id(&expected), "M2");
            assert_eq!(header.member_id, id(&group.places[at]));
        }
        let version = group.status(0).await.storage_version;
        assert_eq!(version, "3.7.0");
    });
}

#[test]
fn r3_a_cluster_that_does_not_fit_ends_the_start() {
    let place = Place::new("r3", "infra0");
    let url = place.peer_url();
    for (cluster, expected) in [
        (
            format!("other={url}"),
            "couldn't find local name \\\"infra0\\\" in the initial cluster configuration",
        ),
        (
            "infra0=http://127.0.0.1:1".to_owned(),
            "--initial-cluster has infra0=http://127.0.0.1:1 but missing from",
        ),
        (format!("infra0={url},b={url}"), "has duplicate url"),
    ] {
        let (code, lines) = place.spawn(&cluster, &[]).wait();
        assert_eq!(code, Some(1), "{cluster}: {lines:#?}");
        assert!(lines.iter().any(|line| line.contains(expected)), "{cluster}: {lines:#?}");
    }
}

#[test]
fn r3_members_of_another_cluster_are_refused() {
    let places = [Place::new("r3id", "a"), Place::new("r3id", "b")];
    let cluster = listed(&places);
    let _first = places[0].spawn(&cluster, &[]);
    let second = places[1].spawn(&cluster, &["--initial-cluster-token", "another"]);
    second.wait_for("cluster ID mismatch");
}

#[test]
fn m6_a_dead_leader_is_replaced_and_nothing_is_lost() {
    let mut group = Group::start("m6", 3, &[]);
    block_on(async {
        let leader = group.leader().await;
        let other = (leader + 1) % 3;
        let grant = pb::LeaseGrantRequest { id: 77, ttl: 60 };
        let _: pb::LeaseGrantResponse =
            ask(group.client(leader), "/etcdserverpb.Lease/LeaseGrant", &grant).await.unwrap();
        put(group.client(leader), "key", "acknowledged").await.unwrap();
        let ask_ttl = pb::LeaseTimeToLiveRequest { id: 77, keys: false };
        let left = async |address| {
            let path = "/etcdserverpb.Lease/LeaseTimeToLive";
            ask::<_, pb::LeaseTimeToLiveResponse>(address, path, &ask_ttl).await.ok()
        };
        let (old, next) = (group.client(leader), group.client(other));
        let run_down = until(async || left(old).await.map(|left| left.ttl).filter(|ttl| *ttl <= 56)).await;
        let seen = Instant::now();
        group.kill(leader);
        until(async || put(group.client(other), "next", "1").await.ok()).await;
        assert_eq!(get(group.client(other), "key").await.unwrap().as_deref(), Some("acknowledged"));
        let anew = until(async || left(next).await).await;
        assert_eq!(anew.granted_ttl, 60);
        // Its end has moved by what had run down, and not only by a second that was cut off.
        let end = anew.ttl + seen.elapsed().as_secs() as i64;
        assert!(
            end > run_down + 1,
            "prolonged by the new leader: {anew:?}, {run_down} {:?} before",
            seen.elapsed()
        );
        group.restart(leader, &[]);
        assert_eq!(get(group.client(leader), "next").await.unwrap().as_deref(), Some("1"));
    });
}

#[test]
fn m6_without_a_majority_nothing_is_written() {
    let mut group = Group::start("m6most", 3, &["--election-timeout=500", "--heartbeat-interval=50"]);
    block_on(async {
        put(group.client(0), "key", "1").await.unwrap();
        group.kill(1);
        group.kill(2);
        let refused = put(group.client(0), "key", "2").await.unwrap_err();
        assert!(refused.starts_with("14 etcdserver: request timed out"), "{refused}");
        // One of them is a majority with the first: it must not wait for the other.
        group.restart(1, &[]);
        until(async || put(group.client(0), "key", "3").await.ok()).await;
        assert_eq!(get(group.client(1), "key").await.unwrap().as_deref(), Some("3"));
    });
}

#[test]
fn m7_a_leader_that_ends_hands_over() {
    // By itself nobody would take over for a long time.
    let mut group = Group::start("m7", 3, &["--heartbeat-interval=100", "--election-timeout=5000"]);
    block_on(async {
        let leader = group.leader().await;
        let other = (leader + 1) % 3;
        let ending = group.members[leader].take().unwrap();
        let begin = Instant::now();
        ending.signal(Signal::TERM);
        let (code, lines) = ending.wait();
        assert_eq!(code, Some(0), "{lines:#?}");
        until(async || put(group.client(other), "key", "1").await.ok()).await;
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    });
}

#[test]
fn j10_a_survivor_makes_a_new_cluster_of_itself() {
    let mut group = Group::start("j10", 3, &[]);
    block_on(async {
        put(group.client(0), "key", "kept").await.unwrap();
        // Nobody may have written down that this is committed.
        (0..3).for_each(|at| group.kill(at));
        group.restart(0, &["--force-new-cluster"]);
        assert_eq!(get(group.client(0), "key").await.unwrap().as_deref(), Some("kept"));
        let members = member_list(group.client(0)).await;
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["infra0"]);
        put(group.client(0), "key", "alone").await.unwrap();

        group.kill(0);
        group.restart(0, &[]);
        assert_eq!(get(group.client(0), "key").await.unwrap().as_deref(), Some("alone"));
        // The others were removed, and hear of it when they come back.
        let other = group.places[1].spawn(&group.cluster, &[]);
        other.wait_for("removed from the cluster");
        let (code, lines) = other.wait();
        assert_eq!(code, Some(0), "{lines:#?}");
    });
}
