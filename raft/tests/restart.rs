//! What a node starts from, and what it refuses to start from.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod sim;

use bytes::Bytes;
use sim::{Sim, SimLog, config, peers};
use trilith_proto::{raftpb, walpb};
use trilith_raft::{Body, Node, Output, RaftError};
use trilith_wal::Replay;

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<raftpb::Entry> {
    let entry = |index: u64| raftpb::Entry {
        r#type: Some(0),
        term: Some(term),
        index: Some(index),
        data: Some(Bytes::from(index.to_string())),
    };
    range.map(entry).collect()
}

fn hard_state(term: u64, vote: u64, commit: u64) -> raftpb::HardState {
    raftpb::HardState { term: Some(term), vote: Some(vote), commit: Some(commit) }
}

fn alone() -> raftpb::ConfState {
    raftpb::ConfState { voters: vec![1], ..Default::default() }
}

fn restart(replay: Replay, applied: u64, applied_term: u64) -> Result<Node<SimLog>, RaftError> {
    Node::restart(config(1, 0), SimLog::default(), replay, applied, applied_term, alone())
}

/// Indexes that come out as committed before anything else happens.
fn comes_out(node: &mut Node<SimLog>) -> Vec<u64> {
    let mut out = Output::default();
    node.poll(&mut out).unwrap();
    out.committed.iter().map(|entry| entry.index).collect()
}

#[test]
fn applied_entries_stay_and_later_ones_come() {
    for first in [1, 3, 6] {
        let replay =
            Replay { hard_state: hard_state(2, 1, 8), entries: entries(first..=9, 2), ..Default::default() };
        let mut node = restart(replay, 5, 2).unwrap();
        assert_eq!(comes_out(&mut node), [6, 7, 8], "log from {first}");
        // The last one was not known to be committed: a single voter commits it when it leads.
        node.applied(8);
        node.campaign().unwrap();
        assert_eq!(comes_out(&mut node), [9, 10], "log from {first}");
        assert_eq!(node.status().term, 3);
    }
}

#[test]
fn a_commit_index_behind_the_store_is_raised() {
    let replay = Replay { hard_state: hard_state(2, 1, 3), entries: entries(1..=6, 2), ..Default::default() };
    let mut node = restart(replay, 5, 2).unwrap();
    assert_eq!((node.status().commit, node.status().applied), (5, 5));
    assert_eq!(comes_out(&mut node), []);
    let mark = walpb::Snapshot { index: Some(5), term: Some(2), conf_state: Some(alone()) };
    let replay = Replay {
        hard_state: hard_state(2, 1, 3),
        snapshots: vec![mark],
        last_index: 5,
        ..Default::default()
    };
    let node = restart(replay, 5, 2).unwrap();
    assert_eq!((node.status().commit, node.status().last, node.status().term), (5, 5, 2));
}

#[test]
fn a_term_that_a_torn_batch_lost_is_raised() {
    let replay = Replay { hard_state: hard_state(2, 3, 2), entries: entries(3..=4, 7), ..Default::default() };
    assert_eq!(restart(replay, 2, 2).unwrap().status().term, 7);
}

#[test]
fn log_and_store_that_do_not_fit_are_refused() {
    let of = |entries, commit, applied, applied_term| {
        let hard_state = hard_state(2, 1, commit);
        let replay = Replay { hard_state, entries, last_index: 5, ..Default::default() };
        restart(replay, applied, applied_term).unwrap_err().to_string()
    };
    let mut torn = entries(1..=3, 2);
    torn.remove(1);
    let mut falling = entries(1..=3, 2);
    falling[2].term = Some(1);
    let mut odd = entries(1..=3, 2);
    odd[1].r#type = Some(2);
    let cases = [
        (
            of(entries(1..=6, 2), 6, 9, 2),
            "the store has applied raft entry 9, but the write-ahead log ends with entry 6: entry 7 is missing",
        ),
        (
            of(entries(8..=9, 2), 9, 5, 2),
            "the store has applied raft entry 5, but the write-ahead log begins with entry 8: entry 6 is missing",
        ),
        (
            of(entries(1..=6, 2), 6, 5, 1),
            "raft entry 5 has term 2 in the write-ahead log, but term 1 in the store",
        ),
        (
            of(entries(6..=7, 2), 9, 5, 2),
            "the write-ahead log has committed raft entry 9, but ends with entry 7",
        ),
        (of(vec![], 9, 5, 2), "the write-ahead log has committed raft entry 9, but ends with entry 5"),
        (
            of(vec![], 5, 7, 2),
            "the store has applied raft entry 7, but the write-ahead log ends with entry 5: entry 6 is missing",
        ),
        (of(torn, 1, 0, 0), "raft entry 2: the log has entry 3 there"),
        (of(falling, 1, 0, 0), "raft entry 3: term 1 after term 2"),
        (of(entries(6..=7, 2), 6, 5, 3), "raft entry 6: term 2 after term 3"),
        (of(odd, 1, 0, 0), "raft entry 2: entry 2 has type 2, which is not in use"),
    ];
    for (error, expected) in cases {
        assert_eq!(error, expected);
    }
    let mark = walpb::Snapshot { index: Some(8), term: Some(2), conf_state: Some(alone()) };
    let error =
        restart(Replay { snapshots: vec![mark], last_index: 8, ..Default::default() }, 5, 2).unwrap_err();
    assert!(matches!(error, RaftError::Gap { applied: 5, first: 9 }), "{error}");
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let of = |conf_state| {
        let result = Node::restart(config(1, 0), SimLog::default(), Replay::default(), 0, 0, conf_state);
        result.map(|_| ()).unwrap_err().to_string()
    };
    let state = |voters: &[u64], learners: &[u64]| raftpb::ConfState {
        voters: voters.to_vec(),
        learners: learners.to_vec(),
        ..Default::default()
    };
    assert_eq!(of(state(&[1, 0xb, 0xb], &[])), "raft configuration: member b stands twice in it, or is none");
    assert_eq!(of(state(&[1, 0], &[])), "raft configuration: member 0 stands twice in it, or is none");
    assert_eq!(of(state(&[1], &[1])), "raft configuration: member 1 stands twice in it, or is none");
    assert_eq!(of(state(&[], &[1])), "raft configuration: it has learners, but no voter");
    let joint = raftpb::ConfState { voters_outgoing: vec![1, 2], ..state(&[1], &[]) };
    assert_eq!(of(joint), "raft configuration: joint configurations are not in use");
    assert!(Node::bootstrap(config(1, 0), SimLog::default(), &[]).is_err());
    assert!(Node::bootstrap(config(0, 0), SimLog::default(), &peers(0)).is_err());
    let slow = trilith_raft::Config { heartbeat_ticks: 10, ..config(1, 0) };
    let error = Node::bootstrap(slow, SimLog::default(), &peers(1)).unwrap_err();
    assert_eq!(error.to_string(), "raft configuration: election tick must be greater than heartbeat tick");
}

#[test]
fn a_stop_before_the_first_checkpoint_starts_from_the_bootstrap_entries() {
    let mut sim = Sim::new(1, 8);
    assert_eq!(sim.elect(), 1);
    sim.propose(1, "a");
    sim.settle();
    let before = sim.members[&1].store.clone();
    sim.crash(1);
    sim.restart(1);
    // The store is empty: the group is known again once the first entry is applied.
    assert_eq!(sim.members[&1].store.conf_state.voters, [1]);
    assert_eq!(sim.elect(), 1);
    assert_eq!(sim.normal(1), ["a"]);
    assert_eq!(sim.members[&1].store.normal[..1], before.normal[..1]);
}

#[test]
fn a_checkpoint_marks_the_log_and_bounds_the_tail() {
    let log = SimLog::default();
    let small = trilith_raft::Config { tail_bytes: 1000, ..config(1, 0) };
    let mut node = Node::bootstrap(small.clone(), log.clone(), &peers(1)).unwrap();
    let mut out = Output::default();
    node.campaign().unwrap();
    for round in 0..100 {
        if round > 1 {
            node.propose(Bytes::from(vec![7; 100])).unwrap();
        }
        node.poll(&mut out).unwrap();
        for entry in out.committed.drain(..) {
            if let Body::ConfChange(change) = entry.body {
                node.apply_conf_change(Some(&change));
            }
            node.applied(entry.index);
        }
    }
    let status = node.status();
    assert_eq!((status.last, status.applied), (100, 100));
    node.checkpointed(100, status.term, alone(), 60).unwrap();
    node.poll(&mut out).unwrap();
    drop(node);
    let replay = log.crash();
    let marks: Vec<_> = replay.snapshots.iter().map(|mark| (mark.index(), mark.term())).collect();
    assert_eq!((marks, replay.entries.len()), (vec![(100, 2)], 100));
    let node = Node::restart(small, log, replay, 100, 2, alone()).unwrap();
    assert_eq!(node.status().last, 100);
}
