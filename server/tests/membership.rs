//! The calls about members, in a cluster on simulated disks: what each checks before anything is proposed, and where.
#![allow(clippy::unwrap_used)]

mod cluster_sim;
mod common;

use std::collections::HashMap;
use std::time::Duration;

use cluster_sim::{Sim, small};
use common::{decode, get, put, whole};
use trilith_proto::etcdserverpb as pb;
use trilith_server::apply::members::{self, Member};
use trilith_server::core::{Config, Handle, Join};
use trilith_server::reply::Reply;
use trilith_server::service::cluster::{self, Peers, Promoting};
use trilith_server::service::{kv, maintenance};
use trilith_server::status::{self, Status};

/// What a member knows of the way to the others: who is connected, and the leader by its first URL.
#[derive(Debug, Default)]
struct Ways {
    active: HashMap<u64, Duration>,
    leader: Option<(String, Handle)>,
}

impl Peers for Ways {
    fn active_since(&self, id: u64) -> Option<Duration> {
        self.active.get(&id).copied()
    }

    fn promote(&self, leader_urls: Vec<String>, id: u64) -> Promoting {
        let (url, leader) = self.leader.clone().unwrap();
        assert_eq!(leader_urls, [url]);
        Box::pin(async move { Some(cluster::promote_here(&leader, id).await) })
    }
}

/// All members but these are connected, for as long as is needed.
fn ways(sim: &Sim, without: &[u64]) -> Ways {
    let up = sim.members.keys().filter(|number| !without.contains(number));
    let active = up.map(|number| (id_of(sim, *number), Duration::from_secs(5))).collect();
    let leader = sim.leader().map(|number| (format!("http://m{number}:2380"), sim.handle(number)));
    Ways { active, leader }
}

fn id_of(sim: &Sim, number: u64) -> u64 {
    sim.handle(number).facts().member_id
}

fn other(sim: &Sim, not: &[u64]) -> u64 {
    *sim.members.keys().find(|number| !not.contains(number)).unwrap()
}

fn add(
    sim: &mut Sim,
    through: u64,
    ways: &Ways,
    number: u64,
    is_learner: bool,
) -> Result<pb::MemberAddResponse, Status> {
    let request = pb::MemberAddRequest { peer_ur_ls: vec![format!("http://m{number}:2380")], is_learner };
    let handle = sim.handle(through);
    sim.run(async move { cluster::member_add(&handle, ways, request).await }).map(decode)
}

fn remove(sim: &mut Sim, through: u64, ways: &Ways, id: u64) -> Result<pb::MemberRemoveResponse, Status> {
    let handle = sim.handle(through);
    let request = pb::MemberRemoveRequest { id };
    sim.run(async move { cluster::member_remove(&handle, ways, request).await }).map(decode)
}

fn update(sim: &mut Sim, through: u64, id: u64, url: &str) -> Result<pb::MemberUpdateResponse, Status> {
    let handle = sim.handle(through);
    let request = pb::MemberUpdateRequest { id, peer_ur_ls: vec![url.into()] };
    sim.run(async move { cluster::member_update(&handle, request).await }).map(decode)
}

fn promote(sim: &mut Sim, through: u64, ways: &Ways, id: u64) -> Result<pb::MemberPromoteResponse, Status> {
    let handle = sim.handle(through);
    let request = pb::MemberPromoteRequest { id };
    sim.run(async move { cluster::member_promote(&handle, ways, request).await }).map(decode)
}

fn list(sim: &mut Sim, through: u64, linearizable: bool) -> Result<pb::MemberListResponse, Status> {
    let handle = sim.handle(through);
    let request = pb::MemberListRequest { linearizable };
    sim.run(async move { cluster::member_list(&handle, request).await }).map(decode)
}

fn start(sim: &mut Sim, number: u64, id: u64) {
    let cluster_id = sim.handle(1).facts().cluster_id;
    let join = Some(Join { cluster_id, member_id: id });
    sim.add(
        number,
        Config { existing: true, join, initial_cluster: Vec::new(), ..small(number, 3, sim.seed) },
    );
}

fn held(sim: &Sim, number: u64, id: u64) -> Member {
    members::get(sim.handle(number).root().view(), id).unwrap().unwrap()
}

/// M4, M5, M9, M14, R14, H4: a learner is added, serves what learners serve, catches up, and is promoted by way of a
/// member that does not lead.
#[test]
fn a_learner_is_added_and_promoted() {
    let mut sim = Sim::new(3, 61);
    let leader = sim.elect();
    let asked = other(&sim, &[leader]);
    for n in 0..40 {
        let handle = sim.handle(leader);
        let request = put("k", &format!("{n}"));
        sim.run(async move { kv::put(&handle, request).await }).unwrap();
    }
    let to_all = ways(&sim, &[]);
    let added = add(&mut sim, asked, &to_all, 4, true).unwrap();
    let header = added.header.unwrap();
    assert_eq!((header.revision, header.member_id), (0, id_of(&sim, asked)));
    let member = added.member.unwrap();
    let bare = pb::Member {
        id: member.id,
        peer_ur_ls: vec!["http://m4:2380".into()],
        is_learner: true,
        ..pb::Member::default()
    };
    assert_eq!(member, bare);
    assert!(added.members.contains(&bare) && added.members.len() == 4);
    assert!(added.members.is_sorted_by_key(|member| member.id));

    assert_eq!(promote(&mut sim, leader, &to_all, member.id).unwrap_err(), status::LEARNER_NOT_READY);
    assert_eq!(promote(&mut sim, asked, &to_all, member.id).unwrap_err(), status::LEARNER_NOT_READY);
    assert_eq!(promote(&mut sim, asked, &to_all, 0x99).unwrap_err(), status::MEMBER_NOT_FOUND);
    let own = id_of(&sim, asked);
    assert_eq!(promote(&mut sim, asked, &to_all, own).unwrap_err(), status::MEMBER_NOT_LEARNER);

    start(&mut sim, 4, member.id);
    sim.agree();
    let learner = sim.handle(4);
    assert!(learner.is_learner() && !sim.handle(asked).is_learner());
    let handle = learner.clone();
    let refused = sim.run(async move { kv::range(&handle, get("k")).await }).unwrap_err();
    assert_eq!(refused, status::NOT_SUPPORTED_FOR_LEARNER);
    let serializable = pb::RangeRequest { serializable: true, ..get("k") };
    let found: pb::RangeResponse =
        decode(whole(sim.run(async move { kv::range(&learner, serializable).await }).unwrap()));
    assert_eq!(found.kvs[0].value, "39");
    let moved = update(&mut sim, asked, member.id, "http://m5:2380").unwrap();
    assert!(
        moved.members.iter().any(|found| found.id == member.id && found.is_learner),
        "a learner stays one"
    );

    let promoted = promote(&mut sim, asked, &to_all, member.id).unwrap();
    assert!(promoted.members.iter().all(|member| !member.is_learner) && promoted.members.len() == 4);
    sim.agree();
    assert!(!sim.handle(4).is_learner());
    let renamed = held(&sim, 4, member.id);
    assert_eq!((renamed.name.as_str(), &renamed.peer_urls[..]), ("m4", &["http://m5:2380".to_owned()][..]));
}

/// M5, M6 and R8 of the scenarios: what puts the quorum at risk is refused, unless the check is off.
#[test]
fn the_strict_check() {
    let mut sim = Sim::new(3, 62);
    let leader = sim.elect();
    let [one, two] = [1, 2, 3].into_iter().filter(|n| *n != leader).collect::<Vec<_>>()[..] else { panic!() };
    let (one_id, two_id, leader_id) = (id_of(&sim, one), id_of(&sim, two), id_of(&sim, leader));
    let (all, without_two) = (ways(&sim, &[]), ways(&sim, &[two]));
    for is_learner in [false, true] {
        let refused = add(&mut sim, leader, &without_two, 4, is_learner).unwrap_err();
        assert_eq!(refused, status::UNHEALTHY, "two of four are no quorum");
    }
    assert_eq!(remove(&mut sim, leader, &without_two, one_id).unwrap_err(), status::UNHEALTHY);
    assert_eq!(remove(&mut sim, leader, &without_two, leader_id).unwrap_err(), status::UNHEALTHY);

    let fourth = add(&mut sim, leader, &all, 4, false).unwrap().member.unwrap().id;
    let not_enough = status::MEMBER_NOT_ENOUGH_STARTED;
    let fifth = add(&mut sim, leader, &all, 5, false).unwrap().member.unwrap().id;
    assert_eq!(add(&mut sim, leader, &all, 6, false).unwrap_err(), not_enough, "three of six have started");
    assert_eq!(
        add(&mut sim, leader, &all, 6, true).unwrap_err(),
        status::UNHEALTHY,
        "and three are connected"
    );
    for id in [fifth, fourth] {
        remove(&mut sim, leader, &all, id).unwrap();
    }
    assert_eq!(remove(&mut sim, leader, &all, fourth).unwrap_err(), status::MEMBER_NOT_FOUND);
    remove(&mut sim, leader, &without_two, two_id).unwrap();
    sim.members.remove(&two);
    let leader = sim.elect();
    let to_one = ways(&sim, &[]);
    let sixth = add(&mut sim, leader, &to_one, 6, false).unwrap().member.unwrap().id;
    assert_eq!(add(&mut sim, leader, &to_one, 7, false).unwrap_err(), not_enough, "two of four have started");
    assert_eq!(remove(&mut sim, leader, &to_one, one_id).unwrap_err(), not_enough, "one of two would have");
    assert_eq!(remove(&mut sim, leader, &to_one, sixth).map(|left| left.members.len()), Ok(2));

    let mut lenient = Sim::new(0, 63);
    for number in 1..=3 {
        lenient.add(number, Config { strict_reconfig_check: false, ..small(number, 3, 63) });
    }
    let leader = lenient.elect();
    let to_nobody = Ways::default();
    add(&mut lenient, leader, &to_nobody, 4, false).unwrap();
    let gone = id_of(&lenient, other(&lenient, &[leader]));
    assert_eq!(remove(&mut lenient, leader, &to_nobody, gone).map(|left| left.members.len()), Ok(3));
}

/// M13: a list that need not be the newest comes from anywhere; the newest needs a leader.
#[test]
fn lists_are_linearizable_or_not() {
    let mut sim = Sim::new(3, 64);
    let leader = sim.elect();
    sim.agree();
    let asked = other(&sim, &[leader]);
    let listed = list(&mut sim, asked, true).unwrap();
    assert_eq!(listed.members.len(), 3);
    assert!(listed.members.iter().all(|m| !m.name.is_empty() && !m.client_ur_ls.is_empty()));
    assert_eq!(listed.header.unwrap().revision, 0);
    sim.cut = vec![1, 2, 3];
    sim.pass(Duration::from_secs(2));
    assert_eq!(list(&mut sim, asked, true).unwrap_err(), status::TIMEOUT);
    assert_eq!(list(&mut sim, asked, false).unwrap().members, listed.members);
}

/// X12, H5, M15: only the leader hands over, and only to a voter.
#[test]
fn move_leader() {
    let mut sim = Sim::new(3, 65);
    let leader = sim.elect();
    let next = other(&sim, &[leader]);
    let all = ways(&sim, &[]);
    let learner = add(&mut sim, leader, &all, 4, true).unwrap().member.unwrap().id;
    start(&mut sim, 4, learner);
    sim.agree();
    let call = |sim: &mut Sim, through: u64, target_id: u64| -> Result<Reply, Status> {
        let handle = sim.handle(through);
        sim.run(async move { maintenance::move_leader(&handle, pb::MoveLeaderRequest { target_id }).await })
    };
    let next_id = id_of(&sim, next);
    assert_eq!(call(&mut sim, next, next_id).unwrap_err(), status::NOT_LEADER);
    for nobody in [0, 0x99, learner] {
        assert_eq!(call(&mut sim, leader, nobody).unwrap_err(), status::BAD_LEADER_TRANSFEREE);
    }
    let answer: pb::MoveLeaderResponse = decode(call(&mut sim, leader, next_id).unwrap());
    assert_eq!(answer.header, None);
    assert_eq!(sim.elect(), next);
}
