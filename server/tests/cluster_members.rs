//! Members of a cluster, case by case: stores that come from the leader, joining, leases, hand-overs, the loss of leaders.
#![allow(clippy::unwrap_used)]

mod cluster_sim;
mod common;

use std::time::Duration;

use bytes::Bytes;
use cluster_sim::{Sim, small};
use common::{decode, get, put, text, whole};
use trilith_disk::sim::Survivors;
use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::downgrade_request::DowngradeAction;
use trilith_proto::{ids, raftpb};
use trilith_server::apply::members::{self, Member};
use trilith_server::core::{Config, Join};
use trilith_server::service;
use trilith_server::status::{self, Status};
use trilith_server::watch::What;

const SECOND: Duration = Duration::from_secs(1);

fn try_put(sim: &mut Sim, number: u64, key: &str, value: &str) -> Result<pb::PutResponse, Status> {
    let handle = sim.handle(number);
    let request = put(key, value);
    sim.run(async move { service::kv::put(&handle, request).await }).map(decode)
}

fn read(sim: &mut Sim, number: u64, key: &str) -> Result<Option<String>, Status> {
    let handle = sim.handle(number);
    let request = get(key);
    let reply = sim.run(async move { service::kv::range(&handle, request).await })?;
    let response: pb::RangeResponse = decode(whole(reply));
    Ok(response.kvs.first().map(|kv| text(&kv.value)))
}

/// Puts so much that whoever missed it needs a snapshot.
fn leave_behind(sim: &mut Sim, through: u64, name: &str) {
    for n in 0..120 {
        let value = format!("{name}-{n}-{}", "v".repeat(100));
        try_put(sim, through, &format!("k{}", n % 17), &value).unwrap();
    }
}

fn other(sim: &Sim, not: &[u64]) -> u64 {
    *sim.members.keys().find(|number| !not.contains(number)).unwrap()
}

/// A cluster of three of which one has missed enough to need a snapshot; it is cut off still.
fn with_one_behind(seed: u64) -> (Sim, u64, u64) {
    let mut sim = Sim::new(3, seed);
    let leader = sim.elect();
    try_put(&mut sim, leader, "before", "1").unwrap();
    sim.agree();
    let behind = other(&sim, &[leader]);
    sim.cut = vec![behind];
    leave_behind(&mut sim, leader, "missed");
    (sim, leader, behind)
}

/// Every cut of power while a snapshot is installed leaves a member that starts, with all that it acknowledged, and that
/// catches up with the others.
#[test]
fn an_installation_may_be_cut_off_anywhere() {
    let (mut sim, _, behind) = with_one_behind(21);
    let before = sim.handle(behind).facts().applied;
    let began = sim.members[&behind].disk.op_count();
    sim.cut.clear();
    sim.agree();
    assert_eq!(sim.installed, 1);
    let recorded = sim.members[&behind].disk.clone();
    let ended = recorded.op_count();
    assert!(ended - began > 40, "{} operations", ended - began);
    println!("{} operations", ended - began);
    let (mut old, mut new) = (0, 0);
    for cut in began..=ended {
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(cut as u64)] {
            sim.members.get_mut(&behind).unwrap().core = None;
            sim.members.get_mut(&behind).unwrap().disk = recorded.crash(cut, survivors);
            sim.start(behind);
            let applied = sim.handle(behind).root().applied().0;
            match applied > before {
                true => new += 1,
                false => old += 1,
            }
            let left = sim.members[&behind].disk.clone();
            let mut names = trilith_disk::Disk::list(&left, &sim.members[&behind].config.snap_dir()).unwrap();
            // What is not received whole is the transport's to clean up.
            names.retain(|name| !name.to_string_lossy().contains("tmp"));
            assert_eq!(names.len(), 1, "cut at {cut}, {survivors:?}: only the store stays: {names:?}");
            if cut % 5 == 0 {
                // The others must not know what it had acknowledged after the cut.
                for number in (1..=3).filter(|number| *number != behind) {
                    sim.crash(number, Survivors::All);
                    sim.start(number);
                }
                sim.agree();
                let hashes = sim.hashes();
                assert!(hashes.iter().all(|hash| *hash == hashes[0]), "cut at {cut}: {hashes:?}");
            }
        }
    }
    assert!(old > 20 && new > 20, "{old} starts with the old store, {new} with the new one");
}

/// A snapshot whose database is damaged is dropped, and the next one taken.
#[test]
fn a_damaged_snapshot_is_not_installed() {
    let (mut sim, leader, behind) = with_one_behind(22);
    sim.cut.clear();
    let mut damaged = 0;
    for _ in 0..400 {
        sim.now += Duration::from_millis(10);
        sim.step_all();
        while !sim.network.is_empty() {
            if let Some(database) = sim.network[0].database.as_mut().filter(|_| damaged < 2) {
                let middle = database.len() / 2;
                database[middle..middle + 4096].fill(0x5a);
                damaged += 1;
            }
            sim.deliver(0);
        }
        if sim.handle(behind).facts().applied == sim.handle(leader).facts().applied {
            break;
        }
    }
    sim.agree();
    assert_eq!((damaged, sim.installed), (2, 1));
    let hashes = sim.hashes();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

/// W21: a watcher on a member that gets a snapshot sees every change all the same.
#[test]
fn watchers_live_through_an_installation() {
    let (mut sim, _, behind) = with_one_behind(23);
    let hub = sim.handle(behind).hub();
    let mut stream = hub.open();
    let all = pb::WatchCreateRequest {
        key: Bytes::from_static(b"k"),
        range_end: Bytes::from_static(b"l"),
        ..Default::default()
    };
    stream.create(&all).unwrap();
    let first = sim.handle(behind).root().view().revision() + 1;
    sim.cut.clear();
    sim.agree();
    assert_eq!(sim.installed, 1);
    let mut seen = Vec::new();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready(deliveries) = stream.poll_deliveries(&mut context) {
        for delivery in deliveries.unwrap() {
            let What::Changes { changes, .. } = delivery.what else { panic!("{delivery:?}") };
            seen.extend(changes.iter().map(|change| change.revision.main));
        }
    }
    assert_eq!(seen, (first..first + 120).collect::<Vec<_>>());
}

/// J6: a member that joins has nobody in its group, and gets it with the log, or with a snapshot.
#[test]
fn a_member_joins() {
    for entries in [3, 150] {
        let mut sim = Sim::new(3, 24 + entries);
        let leader = sim.elect();
        for n in 0..entries {
            try_put(&mut sim, leader, &format!("k{}", n % 7), &"v".repeat(200)).unwrap();
        }
        let urls = vec!["http://m4:2380".to_owned()];
        let id = ids::member_id(&urls, "", Some(1));
        let member = Member { id, peer_urls: urls, ..Default::default() };
        let change = raftpb::ConfChange {
            id: None,
            r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
            node_id: Some(id),
            context: Some(members::encode(&member).into()),
        };
        let follower = sim.handle(other(&sim, &[leader]));
        let again = change.clone();
        let handle = follower.clone();
        sim.run(async move { handle.propose_conf_change(change).await }).unwrap();
        let refused = sim.run(async move { follower.propose_conf_change(again).await });
        assert_eq!(refused.unwrap_err(), status::MEMBER_EXIST);

        let cluster_id = sim.handle(leader).facts().cluster_id;
        let join = Some(Join { cluster_id, member_id: id });
        let config = Config { existing: true, join, initial_cluster: Vec::new(), ..small(4, 3, 24) };
        sim.add(4, config);
        assert_eq!(sim.handle(4).facts().member_id, id);
        // Before anything has come it may be stopped, and need not be told again who it is.
        sim.crash(4, Survivors::None);
        sim.members.get_mut(&4).unwrap().config.join = None;
        sim.start(4);
        sim.agree();
        assert_eq!(sim.installed, u64::from(entries > 100));
        assert_eq!(read(&mut sim, 4, "k0").unwrap(), Some("v".repeat(200)));
        try_put(&mut sim, 4, "through", "the new one").unwrap();
        sim.agree();
        let hashes = sim.hashes();
        assert!(hashes.len() == 4 && hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
        let membership = &sim.members[&4].membership;
        assert_eq!(membership.members.len(), 4);
        let published = members::get(sim.handle(1).root().view(), id).unwrap().unwrap();
        assert_eq!(published.name, "m4");
        sim.crash(4, Survivors::None);
        sim.start(4);
        sim.agree();
        assert_eq!(sim.handle(4).progress(), [], "it does not lead");
        assert_eq!(sim.handle(sim.leader().unwrap()).progress().len(), 4);
    }
}

fn grant(sim: &mut Sim, number: u64, id: i64, ttl: i64) {
    let handle = sim.handle(number);
    let request = pb::LeaseGrantRequest { id, ttl };
    sim.run(async move { service::lease::grant(&handle, request).await }).unwrap();
}

fn keep_alive(sim: &mut Sim, number: u64, id: i64) -> Result<i64, Status> {
    let handle = sim.handle(number);
    sim.run(async move { handle.keep_alive(id).await })
}

fn time_to_live(sim: &mut Sim, number: u64, id: i64) -> pb::LeaseTimeToLiveResponse {
    let handle = sim.handle(number);
    let request = pb::LeaseTimeToLiveRequest { id, keys: true };
    decode(sim.run(async move { service::lease::time_to_live(&handle, request).await }).unwrap())
}

/// L4 to L9.
#[test]
fn leases_are_the_leaders() {
    let mut sim = Sim::new(3, 31);
    let leader = sim.elect();
    let follower = other(&sim, &[leader]);
    grant(&mut sim, follower, 7, 10);
    grant(&mut sim, follower, 8, 10);
    let handle = sim.handle(follower);
    let request = pb::PutRequest { lease: 7, ..put("leased", "1") };
    sim.run(async move { service::kv::put(&handle, request).await }).unwrap();
    sim.pass(6 * SECOND);
    assert_eq!(keep_alive(&mut sim, follower, 7), Ok(10));
    assert_eq!(keep_alive(&mut sim, follower, 99), Ok(0), "L6: there is none");
    let left = time_to_live(&mut sim, follower, 7);
    assert_eq!((left.granted_ttl, &left.keys), (10, &vec![Bytes::from_static(b"leased")]));
    assert!((9..=10).contains(&left.ttl), "{left:?}");
    let header = left.header.unwrap();
    assert_eq!(header.member_id, sim.handle(follower).facts().member_id, "H6");
    assert_eq!(time_to_live(&mut sim, follower, 99).ttl, -1);
    sim.pass(6 * SECOND);
    assert_eq!(time_to_live(&mut sim, leader, 8).ttl, -1, "it has expired");
    assert!(time_to_live(&mut sim, leader, 7).ttl > 0, "it was kept alive");

    // L5: a new leader gives every lease its time anew.
    sim.cut = vec![leader];
    sim.pass(3 * SECOND);
    let next = sim.elect();
    assert_ne!(next, leader);
    let left = time_to_live(&mut sim, next, 7);
    assert!(left.ttl >= 8, "{left:?}");
    // The old one cannot say anything about it, nor can anybody for it.
    assert_eq!(keep_alive(&mut sim, leader, 7), Err(status::NO_LEADER));
    sim.cut.clear();
    sim.agree();
    sim.pass(13 * SECOND);
    assert_eq!(read(&mut sim, leader, "leased").unwrap(), None, "it has expired in the end");
}

/// L12.
#[test]
fn a_new_leader_knows_how_long_leases_have_run() {
    let mut sim = Sim::new(3, 35);
    let leader = sim.elect();
    for id in [7, 8] {
        grant(&mut sim, leader, id, 1000);
    }
    sim.pass(310 * SECOND);
    sim.cut = vec![leader];
    let next = sim.elect();
    let left = time_to_live(&mut sim, next, 7).ttl;
    assert!((690..=701).contains(&left), "{left}");
    let follower = other(&sim, &[leader, next]);
    assert_eq!(keep_alive(&mut sim, follower, 7), Ok(1000));
    sim.cut.clear();
    sim.agree();
    sim.cut = vec![next];
    let last = sim.elect();
    let left = [7, 8].map(|id| time_to_live(&mut sim, last, id).ttl);
    assert!(left[0] > 990, "a renewal takes the checkpoint back: {left:?}");
    assert!((680..=701).contains(&left[1]), "{left:?}");
}

/// X12, O5.
#[test]
fn leadership_is_handed_over() {
    let mut sim = Sim::new(3, 32);
    let leader = sim.elect();
    let next = other(&sim, &[leader]);
    let id = |sim: &Sim, number| sim.handle(number).facts().member_id;
    let transfer = |sim: &mut Sim, from: u64, to: u64| {
        let handle = sim.handle(from);
        sim.run(async move { handle.transfer_leader(to).await })
    };
    let (leader_id, next_id) = (id(&sim, leader), id(&sim, next));
    assert_eq!(transfer(&mut sim, next, next_id), Err(status::NOT_LEADER));
    assert_eq!(transfer(&mut sim, leader, 0x99), Err(status::BAD_LEADER_TRANSFEREE));
    assert_eq!(transfer(&mut sim, leader, leader_id), Ok(()));
    let term = sim.handle(leader).facts().term;
    assert_eq!(transfer(&mut sim, leader, next_id), Ok(()));
    assert_eq!((sim.elect(), sim.handle(next).facts().term), (next, term + 1));
    // One that is gone cannot take it.
    sim.cut = vec![leader];
    assert_eq!(transfer(&mut sim, next, leader_id), Err(status::TIMEOUT_LEADER_TRANSFER));
    sim.cut.clear();
    sim.agree();
    // A member that is stopped hands over, and nobody has to wait for an election.
    let leader = sim.elect();
    let (core, _) = sim.members.get_mut(&leader).unwrap().core.as_mut().unwrap();
    assert_eq!(core.hand_over(), Some(SECOND));
    sim.pass(Duration::from_millis(50));
    let (core, _) = sim.members[&leader].core.as_ref().unwrap();
    assert!(!core.leads());
    assert_ne!(sim.leader(), Some(leader));
    let (core, _) = sim.members.get_mut(&leader).unwrap().core.as_mut().unwrap();
    assert_eq!(core.hand_over(), None, "there is nothing to hand over any more");
}

/// Z4, Z5, G3.
#[test]
fn without_a_leader_calls_wait_and_say_so() {
    let mut sim = Sim::new(3, 33);
    let leader = sim.elect();
    let follower = other(&sim, &[leader]);
    sim.cut = vec![1, 2, 3];
    sim.pass(2 * SECOND);
    assert_eq!(sim.handle(leader).facts().leader, 0, "a leader without a quorum steps down");
    // G5: streams that insist on a leader wait for three election timeouts.
    let handle = sim.handle(follower);
    let mut lost = Box::pin(async move { handle.leader_lost().await });
    assert!(sim.poll(lost.as_mut()).is_none());
    sim.pass(5 * SECOND);
    assert!(sim.poll(lost.as_mut()).is_some());
    assert_eq!(try_put(&mut sim, follower, "k", "1").unwrap_err(), status::TIMEOUT);
    assert_eq!(read(&mut sim, follower, "k").unwrap_err(), status::TIMEOUT);
    sim.cut.clear();
    sim.elect();
    sim.pass(SECOND);
    let handle = sim.handle(follower);
    assert!(sim.poll(Box::pin(async move { handle.leader_lost().await }).as_mut()).is_none());
    try_put(&mut sim, follower, "k", "2").unwrap();
    assert_eq!(read(&mut sim, leader, "k").unwrap().as_deref(), Some("2"));

    // A read that asked a leader who is gone hears of it when there is another.
    let leader = sim.elect();
    let handle = sim.handle(leader);
    sim.cut = vec![leader];
    let mut reading = Box::pin(async move { handle.read_point().await });
    assert!(sim.poll(reading.as_mut()).is_none());
    sim.pass(4 * SECOND);
    sim.cut.clear();
    sim.elect();
    assert_eq!(sim.poll(reading.as_mut()), Some(Err(status::LEADER_CHANGED)));
}

fn downgrade(sim: &mut Sim, number: u64, action: DowngradeAction) -> Result<String, Status> {
    let handle = sim.handle(number);
    let request = pb::DowngradeRequest { action: action as i32, version: "3.6".into() };
    let reply = sim.run(async move { service::downgrade::downgrade(&handle, request).await })?;
    Ok(decode::<pb::DowngradeResponse>(reply).version)
}

/// Each member's version of the cluster.
fn versions(sim: &Sim) -> Vec<String> {
    let version = |number| members::cluster_version(sim.handle(number).root().view()).unwrap().unwrap();
    sim.members.keys().map(|number| version(*number)).collect()
}

/// X14, X16.
#[test]
fn a_downgrade_that_a_follower_was_asked_for_holds_for_all() {
    let mut sim = Sim::new(3, 34);
    let leader = sim.elect();
    sim.agree();
    let follower = other(&sim, &[leader]);
    let silent = other(&sim, &[leader, follower]);
    assert_eq!(versions(&sim), ["3.7.0"; 3]);
    sim.cut = vec![silent];
    assert_eq!(downgrade(&mut sim, follower, DowngradeAction::Enable), Ok("3.7".into()));
    sim.pass(10 * SECOND);
    assert_eq!(versions(&sim), ["3.7.0"; 3], "whoever cannot be asked may need the version that there is");
    sim.cut.clear();
    sim.pass(10 * SECOND);
    sim.agree();
    assert_eq!(versions(&sim), ["3.6.0"; 3]);
    let refused = downgrade(&mut sim, silent, DowngradeAction::Enable);
    assert_eq!(refused, Err(status::INVALID_DOWNGRADE_TARGET_VERSION));

    // The next leader leaves it there, until it is cancelled.
    sim.cut = vec![sim.elect()];
    let next = sim.elect();
    sim.pass(10 * SECOND);
    sim.cut.clear();
    sim.agree();
    assert_eq!(versions(&sim), ["3.6.0"; 3]);
    let follower = other(&sim, &[next]);
    assert_eq!(downgrade(&mut sim, follower, DowngradeAction::Cancel), Ok("3.6".into()));
    sim.pass(10 * SECOND);
    sim.agree();
    assert_eq!(versions(&sim), ["3.7.0"; 3]);
}
