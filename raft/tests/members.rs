//! Changes of the group.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod sim;

use bytes::Bytes;
use sim::Sim;
use trilith_proto::raftpb::{self, ConfChangeType};
use trilith_raft::{Body, Output};

fn change(kind: ConfChangeType, id: u64) -> raftpb::ConfChange {
    raftpb::ConfChange {
        id: Some(77),
        r#type: Some(kind as i32),
        node_id: Some(id),
        context: Some(Bytes::from_static(b"{}")),
    }
}

fn conf_state(voters: &[u64], learners: &[u64]) -> raftpb::ConfState {
    raftpb::ConfState {
        voters: voters.to_vec(),
        learners: learners.to_vec(),
        auto_leave: Some(false),
        ..Default::default()
    }
}

#[test]
fn members_come_and_go_one_at_a_time() {
    use ConfChangeType::*;
    let mut sim = Sim::new(1, 6);
    sim.elect();
    let steps = [
        (change(ConfChangeAddLearnerNode, 9), conf_state(&[1], &[9])),
        (change(ConfChangeUpdateNode, 9), conf_state(&[1], &[9])),
        (change(ConfChangeAddLearnerNode, 4), conf_state(&[1], &[4, 9])),
        (change(ConfChangeRemoveNode, 9), conf_state(&[1], &[4])),
    ];
    for (change, expected) in steps {
        sim.node(1).propose_conf_change(change.clone()).unwrap();
        sim.settle();
        assert_eq!(sim.members[&1].store.conf_state, expected, "after {change:?}");
    }
}

#[test]
fn a_second_change_gives_way_to_an_empty_entry() {
    let mut sim = Sim::new(1, 6);
    sim.elect();
    let mut out = Output::default();
    let node = sim.node(1);
    node.propose_conf_change(change(ConfChangeType::ConfChangeAddLearnerNode, 2)).unwrap();
    node.propose_conf_change(change(ConfChangeType::ConfChangeAddLearnerNode, 3)).unwrap();
    node.poll(&mut out).unwrap();
    let bodies: Vec<_> = out.committed.into_iter().map(|entry| entry.body).collect();
    let [Body::ConfChange(first), Body::Normal(second)] = bodies.as_slice() else { panic!("{bodies:?}") };
    assert_eq!((first.node_id(), first.id(), first.context(), second.len()), (2, 77, &b"{}"[..], 0));
    // Its owner may refuse it: the group stays as it is.
    assert_eq!(node.apply_conf_change(None), conf_state(&[1], &[]));
}

#[test]
fn a_leader_that_removes_itself_steps_down() {
    let mut sim = Sim::new(3, 2);
    let leader = sim.elect();
    let log = sim.log(leader);
    sim.node(leader).propose_conf_change(change(ConfChangeType::ConfChangeRemoveNode, leader)).unwrap();
    sim.run(leader);
    // More is on its way to the disk when the removal is applied.
    log.hold(true);
    sim.propose(leader, "a");
    sim.settle();
    log.sync(9);
    sim.settle();
    assert!(!sim.node(leader).status().is_leader);
    assert!(!sim.members[&leader].store.conf_state.voters.contains(&leader));
    sim.cut = vec![leader];
    let next = sim.elect();
    sim.propose(next, "b");
    sim.settle();
    assert_eq!(sim.normal(next), ["a", "b"]);
}

#[test]
fn the_removal_of_the_last_voter_ends_the_member() {
    let mut sim = Sim::new(1, 2);
    sim.elect();
    let node = sim.node(1);
    let mut out = Output::default();
    let same = node.apply_conf_change(Some(&change(ConfChangeType::ConfChangeRemoveNode, 1)));
    assert_eq!(same, conf_state(&[1], &[]));
    assert_eq!(node.poll(&mut out).unwrap_err().to_string(), "raft configuration: removed all voters");
}

#[test]
fn an_only_voter_left_over_waits_for_its_disk_before_it_leads() {
    let mut sim = Sim::new(2, 1);
    let leader = sim.elect();
    let other = 3 - leader;
    sim.node(leader).propose_conf_change(change(ConfChangeType::ConfChangeRemoveNode, leader)).unwrap();
    sim.settle();
    // The removal is committed; the member that stays learns of it, and of a further entry, with a slow disk.
    let members =
        (sim.members[&leader].store.conf_state.clone(), sim.members[&other].store.conf_state.clone());
    assert_eq!(members.0, conf_state(&[other], &[]));
    let append = raftpb::Message {
        r#type: Some(raftpb::MessageType::MsgApp as i32),
        from: Some(leader),
        to: Some(other),
        term: Some(sim.node(other).status().term),
        index: Some(sim.node(other).status().last),
        log_term: Some(sim.node(other).status().term),
        entries: vec![raftpb::Entry {
            r#type: Some(0),
            term: Some(sim.node(other).status().term),
            index: Some(sim.node(other).status().last + 1),
            data: Some(Bytes::from_static(b"late")),
        }],
        commit: Some(sim.node(other).status().last),
        ..Default::default()
    };
    sim.log(other).hold(true);
    sim.node(other).step(append).unwrap();
    sim.run(other);
    assert_eq!(sim.members[&other].store.conf_state, conf_state(&[other], &[]));
    for _ in 0..50 {
        sim.node(other).tick();
        sim.run(other);
    }
    assert!(!sim.node(other).status().is_leader);
    sim.log(other).hold(false);
    for _ in 0..50 {
        sim.node(other).tick();
        sim.run(other);
    }
    assert!(sim.node(other).status().is_leader);
    assert_eq!(sim.normal(other), ["late"]);
}
