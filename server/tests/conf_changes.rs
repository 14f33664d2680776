//! Changes of the membership in a cluster on simulated disks: what each does on every member, and that it outlives power
//! cuts.
#![allow(clippy::unwrap_used)]

mod cluster_sim;
mod common;

use std::time::Duration;

use cluster_sim::{Sim, small};
use common::{decode, put};
use raftpb::ConfChangeType::{
    self, ConfChangeAddLearnerNode as AddLearner, ConfChangeAddNode as Add, ConfChangeRemoveNode as Remove,
    ConfChangeUpdateNode as Update,
};
use trilith_disk::sim::Survivors;
use trilith_engine::{TreeId, View};
use trilith_proto::etcdserverpb as pb;
use trilith_proto::{ids, raftpb};
use trilith_server::apply::conf_change::promotion;
use trilith_server::apply::members::{self, Member};
use trilith_server::core::{Config, Core, Join, PeerEvent};
use trilith_server::service;
use trilith_server::status::{self, Status};

const SECOND: Duration = Duration::from_secs(1);

/// What a call to add that member would propose.
fn member(number: u64, is_learner: bool) -> Member {
    let peer_urls = vec![format!("http://m{number}:2380")];
    let id = ids::member_id(&peer_urls, "", Some(number));
    Member { id, peer_urls, is_learner, ..Member::default() }
}

fn id_of(sim: &Sim, number: u64) -> u64 {
    sim.handle(number).facts().member_id
}

/// Has a member propose a change, and waits for what comes of it there.
fn change(
    sim: &mut Sim,
    through: u64,
    kind: ConfChangeType,
    id: u64,
    context: Vec<u8>,
) -> Result<(), Status> {
    let context = (!context.is_empty()).then(|| context.into());
    let change = raftpb::ConfChange { id: None, r#type: Some(kind.into()), node_id: Some(id), context };
    let handle = sim.handle(through);
    sim.run(async move { handle.propose_conf_change(change).await }).map(drop)
}

fn with(sim: &mut Sim, through: u64, kind: ConfChangeType, member: &Member) -> Result<(), Status> {
    change(sim, through, kind, member.id, members::encode(member))
}

fn start(sim: &mut Sim, number: u64, leader: u64) {
    let cluster_id = sim.handle(leader).facts().cluster_id;
    let join = Some(Join { cluster_id, member_id: member(number, false).id });
    sim.add(
        number,
        Config { existing: true, join, initial_cluster: Vec::new(), ..small(number, 3, sim.seed) },
    );
}

fn tree(view: View<'_>, tree: TreeId) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    let mut cursor = view.seek(tree, b"").unwrap();
    while let Some(key) = cursor.key().map(<[u8]>::to_vec) {
        pairs.push((key, cursor.value().unwrap().unwrap().to_vec()));
        cursor.next().unwrap();
    }
    pairs
}

/// All that a member holds of the membership. Raft's own state of the group must say the same as the list of members.
fn membership(sim: &Sim, number: u64) -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
    let root = sim.handle(number).root();
    let view = root.view();
    let ids = |learners| {
        let members = members::list(view).unwrap();
        members.iter().filter(|member| member.is_learner == learners).map(|m| m.id).collect::<Vec<_>>()
    };
    let mut group = members::conf_state(view).unwrap();
    group.voters.sort_unstable();
    assert_eq!((group.voters, group.learners), (ids(false), ids(true)), "member {number}");
    [TreeId::Members, TreeId::MembersRemoved].map(|id| tree(view, id)).to_vec()
}

/// Waits until all have applied the same, and compares what they hold of the membership.
fn agree(sim: &mut Sim) {
    sim.agree();
    let up: Vec<u64> = sim.members.keys().copied().filter(|number| sim.is_up(*number)).collect();
    let first = membership(sim, up[0]);
    for number in up {
        assert_eq!(membership(sim, number), first, "member {number}");
        let urls = |list: &[Member]| -> Vec<(u64, Vec<String>)> {
            list.iter().map(|member| (member.id, member.peer_urls.clone())).collect()
        };
        let held = members::list(sim.handle(number).root().view()).unwrap();
        assert_eq!(urls(&sim.members[&number].membership.members), urls(&held), "what the transport is told");
    }
}

fn write(sim: &mut Sim, through: u64, key: &str) -> Result<pb::PutResponse, Status> {
    let (handle, request) = (sim.handle(through), put(key, "v"));
    sim.run(async move { service::kv::put(&handle, request).await }).map(decode)
}

fn follower(sim: &Sim, leader: u64) -> u64 {
    *sim.members.keys().find(|number| **number != leader).unwrap()
}

/// L6, L7, M8: a learner comes, gets its vote, moves, and goes; each step on all members, whoever was asked, and again
/// after all of them lost their power.
#[test]
fn a_learner_becomes_a_voter_moves_and_goes() {
    let mut sim = Sim::new(3, 41);
    let leader = sim.elect();
    let asked = follower(&sim, leader);
    let new = member(4, true);
    with(&mut sim, asked, AddLearner, &new).unwrap();
    start(&mut sim, 4, leader);
    agree(&mut sim);
    assert!(sim.handle(4).facts().leader != 0);
    let restart = |sim: &mut Sim| {
        let numbers: Vec<u64> = sim.members.keys().copied().collect();
        for number in numbers {
            sim.crash(number, Survivors::None);
            sim.start(number);
        }
        sim.elect();
        agree(sim);
    };
    restart(&mut sim);
    let is_learner =
        |sim: &Sim| members::get(sim.handle(1).root().view(), new.id).unwrap().unwrap().is_learner;
    assert!(is_learner(&sim));
    // It does not count: it cannot stand in for a voter, and none is missed for it.
    let leader = sim.elect();
    sim.cut = (1..=3).filter(|number| *number != leader).collect();
    assert_eq!(write(&mut sim, leader, "k").unwrap_err(), status::TIMEOUT);
    sim.cut.clear();
    let leader = sim.elect();
    sim.cut = [follower(&sim, leader), 4].into_iter().collect();
    write(&mut sim, leader, "k").unwrap();
    sim.cut.clear();
    let leader = sim.elect();

    assert_eq!(with(&mut sim, leader, AddLearner, &member(5, true)), Err(status::TOO_MANY_LEARNERS));
    change(&mut sim, asked, Add, new.id, promotion(new.id)).unwrap();
    assert_eq!(change(&mut sim, asked, Add, new.id, promotion(new.id)), Err(status::MEMBER_NOT_LEARNER));
    restart(&mut sim);
    assert!(!is_learner(&sim));
    let leader = sim.elect();
    let handle = sim.handle(leader);
    sim.run(async move { handle.transfer_leader(new.id).await }).unwrap_or_else(|error| {
        assert_eq!((leader, error), (4, status::NOT_LEADER), "only where it leads already");
    });
    assert_eq!(sim.elect(), 4);

    let moved = Member { peer_urls: vec!["http://elsewhere:1".into()], ..new.clone() };
    let moved = Member { is_learner: false, ..moved };
    with(&mut sim, 4, Update, &moved).unwrap();
    let taken = Member { peer_urls: vec!["http://m1:2380".into()], ..moved.clone() };
    assert_eq!(with(&mut sim, 4, Update, &taken), Err(status::PEER_URL_EXIST));
    restart(&mut sim);
    let held = members::get(sim.handle(2).root().view(), new.id).unwrap().unwrap();
    assert_eq!((held.peer_urls, held.name.as_str()), (moved.peer_urls.clone(), "m4"));

    change(&mut sim, asked, Remove, new.id, Vec::new()).unwrap();
    assert_eq!(change(&mut sim, asked, Remove, new.id, Vec::new()), Err(status::MEMBER_NOT_FOUND));
    assert_eq!(with(&mut sim, asked, Add, &member(4, false)), Err(status::MEMBER_NOT_FOUND), "never again");
    sim.members.get_mut(&4).unwrap().core = None;
    restart_without(&mut sim, 4);
}

fn restart_without(sim: &mut Sim, gone: u64) {
    sim.members.remove(&gone);
    for number in 1..=3 {
        sim.crash(number, Survivors::None);
        sim.start(number);
    }
    sim.elect();
    agree(sim);
    assert_eq!(members::list(sim.handle(1).root().view()).unwrap().len(), 3);
    assert_eq!(sim.members[&1].membership.removed.len(), 1, "the transport knows who was removed");
}

/// M12, L8: whoever is removed hears of it, ends a second later, and refuses to start again.
#[test]
fn a_removed_member_ends_for_good() {
    for leads in [false, true] {
        let mut sim = Sim::new(3, 42);
        let leader = sim.elect();
        let gone = if leads { leader } else { follower(&sim, leader) };
        let id = id_of(&sim, gone);
        change(&mut sim, gone, Remove, id, Vec::new()).unwrap();
        let is_removed = |sim: &Sim| sim.members[&gone].core.as_ref().unwrap().0.is_removed();
        assert!(!is_removed(&sim));
        sim.pass(SECOND + Duration::from_millis(200));
        assert!(is_removed(&sim));
        // Where the power goes before the store has that, the log may not say that it was committed; the others do.
        sim.crash(gone, Survivors::None);
        sim.start(gone);
        sim.handle(gone).peer_event(PeerEvent::ToldRemoved).unwrap();
        sim.pass(Duration::from_millis(20));
        assert!(is_removed(&sim));
        sim.crash(gone, Survivors::None);
    }
}

/// M12: once its store says so, a removed member does not start.
#[test]
fn a_removed_member_does_not_start() {
    for leads in [false, true] {
        let mut sim = Sim::new(3, 44);
        let leader = sim.elect();
        let gone = if leads { leader } else { follower(&sim, leader) };
        let id = id_of(&sim, gone);
        change(&mut sim, gone, Remove, id, Vec::new()).unwrap();
        // What ends it writes the store.
        let (core, _) = sim.members.get_mut(&gone).unwrap().core.as_mut().unwrap();
        let job = core.begin_last_checkpoint().unwrap();
        core.checkpoint_finished(job.run()).unwrap();
        sim.crash(gone, Survivors::None);
        let removed = &sim.members[&gone];
        let disk = std::sync::Arc::new(removed.disk.clone());
        let opened = Core::open(Config { disk, ..removed.config.clone() });
        let error = opened.map(drop).unwrap_err().to_string();
        assert_eq!(error, "the member has been permanently removed from the cluster");
        sim.members.remove(&gone);
        let leader = sim.elect();
        write(&mut sim, leader, "goes on").unwrap();
        agree(&mut sim);
    }
}

/// M10: a change that is proposed while another is not applied is nobody's, and its caller hears nothing in time.
#[test]
fn one_change_at_a_time() {
    let mut sim = Sim::new(3, 43);
    let leader = sim.elect();
    let propose = |sim: &Sim, new: &Member| {
        let change = raftpb::ConfChange {
            id: None,
            r#type: Some(Add.into()),
            node_id: Some(new.id),
            context: Some(members::encode(new).into()),
        };
        let handle = sim.handle(leader);
        Box::pin(async move { handle.propose_conf_change(change).await })
    };
    let mut first = propose(&sim, &member(4, false));
    let mut second = propose(&sim, &member(5, false));
    assert!(sim.poll(first.as_mut()).is_none() && sim.poll(second.as_mut()).is_none());
    assert!(sim.run(first).is_ok());
    assert_eq!(sim.run(second).unwrap_err(), status::TIMEOUT);
    let list = members::list(sim.handle(leader).root().view()).unwrap();
    assert_eq!(list.len(), 4);
}

/// Changes at random, through random members, with power cuts among them: all members that are left hold the same, and
/// their raft groups are what their lists say.
#[test]
fn changes_at_random() {
    let seeds = std::env::var("TRILITH_CONF_SEEDS").map_or(4, |count| count.parse().unwrap());
    let mut done = [0; 4];
    for seed in 50..50 + seeds {
        let mut sim = Sim::new(3, seed);
        let mut next = 4;
        for _ in 0..50 {
            let leader = sim.elect();
            let numbers: Vec<u64> = sim.members.keys().copied().collect();
            let any = numbers[sim.random.below(numbers.len() as u64) as usize];
            let target = numbers[sim.random.below(numbers.len() as u64) as usize];
            let id = id_of(&sim, target);
            let outcome = match sim.random.below(5) {
                0 | 1 if numbers.len() < 5 => {
                    let new = member(next, sim.random.one_in(2));
                    let kind = if new.is_learner { AddLearner } else { Add };
                    let outcome = with(&mut sim, any, kind, &new);
                    if outcome.is_ok() {
                        start(&mut sim, next, leader);
                        done[0] += 1;
                    }
                    next += 1;
                    outcome
                }
                2 => {
                    let list = members::list(sim.handle(leader).root().view()).unwrap();
                    let id = list.iter().find(|member| member.is_learner).map_or(id, |member| member.id);
                    let outcome = change(&mut sim, any, Add, id, promotion(id));
                    done[1] += u64::from(outcome.is_ok());
                    outcome
                }
                // Who is removed need not hear that this was committed.
                3 if numbers.len() > 3 && any != target => {
                    let outcome = change(&mut sim, any, Remove, id, Vec::new());
                    if outcome.is_ok() {
                        sim.members.remove(&target);
                        done[2] += 1;
                    }
                    outcome
                }
                _ => {
                    sim.crash(target, Survivors::Random(seed));
                    sim.start(target);
                    done[3] += 1;
                    Ok(())
                }
            };
            let expected =
                [status::TOO_MANY_LEARNERS, status::MEMBER_NOT_LEARNER, status::TIMEOUT_LEADER_FAIL];
            assert!(outcome.as_ref().err().is_none_or(|status| expected.contains(status)), "{outcome:?}");
            sim.elect();
            agree(&mut sim);
        }
        let hashes = sim.hashes();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    }
    println!("added, promoted, removed, cut off: {done:?}");
    assert!(done.iter().all(|count| *count > 0), "{done:?}");
}
