//! What peers may say: a wrong message is an error that names its sender, and never the end of the process.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod sim;

use bytes::Bytes;
use prost::Message as _;
use sim::{Random, Sim, config, peers};
use trilith_proto::raftpb::{self, MessageType};
use trilith_raft::{Body, Node, Output, RaftError};

fn message(kind: MessageType, from: u64, term: u64) -> raftpb::Message {
    raftpb::Message {
        r#type: Some(kind as i32),
        from: Some(from),
        to: Some(1),
        term: Some(term),
        ..Default::default()
    }
}

fn entry(index: u64, term: u64) -> raftpb::Entry {
    raftpb::Entry { r#type: Some(0), term: Some(term), index: Some(index), data: None }
}

#[test]
fn wrong_messages_are_refused_by_name() {
    use MessageType::*;
    let mut sim = Sim::new(3, 0);
    let append = |index, log_term, entries| raftpb::Message {
        index: Some(index),
        log_term: Some(log_term),
        entries,
        ..message(MsgApp, 2, 3)
    };
    let cases = [
        (raftpb::Message { to: Some(4), ..message(MsgApp, 2, 3) }, "it is meant for member 4"),
        (message(MsgApp, 0, 3), "it has no sender"),
        (message(MsgApp, 1, 3), "it has no sender"),
        (message(MsgHup, 2, 0), "members do not exchange this type"),
        (message(MsgStorageAppend, 2, 3), "members do not exchange this type"),
        (message(MsgApp, 2, 0), "it has no term"),
        (message(MsgVote, 2, u64::MAX), "a term or index is beyond reason"),
        (message(MsgSnap, 2, 3), "a snapshot came without its state"),
        (message(MsgProp, 2, 0), "it proposes nothing"),
        (message(MsgReadIndex, 2, 0), "0 entries instead of one"),
        (append(9, 0, vec![]), "entry 9 has no term 0"),
        (append(0, 0, vec![entry(1, 0)]), "entry 1 of term 0 after term 1"),
        (append(3, 1, vec![entry(5, 3)]), "entry 5 where 4 is due"),
        (append(3, 1, vec![entry(4, 4)]), "entry 4 of term 4 after term 1"),
        (append(3, 1, vec![entry(4, 3), entry(5, 2)]), "entry 5 of term 2 after term 3"),
        (
            append(3, 1, vec![raftpb::Entry { r#type: Some(2), ..entry(4, 3) }]),
            "entry 4 has type 2, which is not in use",
        ),
        (
            raftpb::Message { commit: Some(9), ..message(MsgHeartbeat, 2, 3) },
            "it commits entry 9, but the log ends with entry 3 that was acknowledged: a member that has lost its data has \
             to be removed from the cluster and added again",
        ),
    ];
    for (wrong, expected) in cases {
        match sim.node(1).step(wrong.clone()) {
            Err(RaftError::Message { from, kind, reason }) => {
                assert_eq!((from, kind, reason.as_str()), (wrong.from(), wrong.r#type() as i32, expected));
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert_eq!(sim.node(1).status().term, 1, "nothing happened");
    let error = sim.node(1).step(message(MsgHup, 0xab, 0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "raft message of type 0 from member ab refused: members do not exchange this type"
    );
}

fn snapshot(from: u64, term: u64, index: u64, of_term: u64, voters: &[u64]) -> raftpb::Message {
    let conf_state = raftpb::ConfState { voters: voters.to_vec(), ..Default::default() };
    let metadata =
        raftpb::SnapshotMetadata { conf_state: Some(conf_state), index: Some(index), term: Some(of_term) };
    let snapshot = raftpb::Snapshot { data: None, metadata: Some(metadata) };
    raftpb::Message { snapshot: Some(snapshot), ..message(MessageType::MsgSnap, from, term) }
}

#[test]
fn wrong_snapshots_are_refused_by_name() {
    let mut sim = Sim::new(3, 0);
    let cases = [
        (message(MessageType::MsgApp, 2, 3), "it is no snapshot"),
        (snapshot(2, 3, 0, 2, &[1]), "its snapshot is of entry 0 of term 0"),
        (snapshot(2, 3, 9, 4, &[1]), "its snapshot is of entry 9 of term 4"),
        (snapshot(2, 3, u64::MAX, 2, &[1]), "its snapshot is of entry 18446744073709551615 of term 2"),
        (snapshot(2, 3, 9, 2, &[2, 3]), "its snapshot is of a group without this member"),
        (snapshot(2, 3, 9, 2, &[1, 1]), "raft configuration: member 1 stands twice in it, or is none"),
    ];
    for (wrong, expected) in cases {
        for outcome in
            [sim.node(1).needs_snapshot(&wrong).map(|_| ()), sim.node(1).offer_snapshot(wrong.clone())]
        {
            match outcome {
                Err(RaftError::Message { from: 2, reason, .. }) => assert_eq!(reason, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
    assert_eq!(sim.node(1).status().term, 1, "nothing happened");
    for (message, needed) in [
        (snapshot(2, 3, 9, 2, &[1, 2]), true),
        (snapshot(2, 3, 3, 1, &[1, 2]), false),
        (snapshot(2, 1, 9, 1, &[1, 2]), true),
    ] {
        assert_eq!(sim.node(1).needs_snapshot(&message).unwrap(), needed, "{message:?}");
    }
}

#[test]
fn what_is_late_is_dropped() {
    use MessageType::*;
    let mut sim = Sim::new(3, 0);
    sim.node(1).step(message(MsgAppResp, 9, 1)).unwrap();
    sim.node(1).step(message(MsgTransferLeader, 2, 1)).unwrap();
    let forwarded = raftpb::Message { entries: vec![entry(0, 0)], ..message(MsgProp, 2, 5) };
    assert!(matches!(sim.node(1).step(forwarded), Err(RaftError::Dropped)));
}

fn random_message(random: &mut Random) -> raftpb::Message {
    let term = random.below(6);
    let mut message = raftpb::Message {
        r#type: Some(random.below(20) as i32),
        from: Some(random.below(5)),
        to: Some(1),
        term: Some(term),
        log_term: Some(random.below(4)),
        index: Some(random.below(9)),
        commit: Some(random.below(9)),
        reject: Some(random.below(2) == 0),
        reject_hint: Some(random.below(9)),
        context: (random.below(3) == 0).then(|| Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 1])),
        ..Default::default()
    };
    let mut entry_term = message.log_term();
    for at in 0..random.below(4) {
        entry_term = (entry_term + random.below(2)).min(term.max(1));
        let mut entry = entry(message.index() + 1 + at, entry_term);
        match random.below(6) {
            0 => {
                let change = raftpb::ConfChange {
                    id: None,
                    r#type: Some(random.below(4) as i32),
                    node_id: Some(random.below(5)),
                    context: None,
                };
                entry.r#type = Some(1);
                entry.data = Some(change.encode_to_vec().into());
            }
            1 => entry.data = Some(Bytes::from_static(&[1; 8])),
            _ => {}
        }
        message.entries.push(entry);
    }
    message
}

/// Whatever comes in, the node goes on, or ends with an error.
#[test]
fn no_message_ends_the_process() {
    let mut ended = 0;
    for seed in 0..400 {
        let mut random = Random(seed);
        let log = sim::SimLog::default();
        let mut node = Node::bootstrap(config(1, seed), log.clone(), &peers(1 + seed % 3)).unwrap();
        let mut out = Output::default();
        for _ in 0..300 {
            match random.below(10) {
                0..2 => node.tick(),
                2 => log.hold(random.below(2) == 0),
                3 => log.sync(1),
                4 => drop(node.propose(Bytes::from_static(b"x"))),
                5 => node.read_index(random.below(3)),
                6 => node.campaign().unwrap(),
                7 if random.below(4) == 0 => {
                    let term = 1 + random.below(5);
                    let voters = [1, 2, 3, 4].map(|id| id * (1 + random.below(6) / 5));
                    let (index, of_term) = (random.below(9), random.below(6));
                    drop(node.offer_snapshot(snapshot(2, term, index, of_term, &voters)));
                }
                _ => drop(node.step(random_message(&mut random))),
            }
            if node.poll(&mut out).is_err() {
                ended += 1;
                break;
            }
            if node.begin_fetch().is_some() {
                node.fetched(None);
            }
            if let Some(metadata) = out.snapshot.take() {
                out.committed.clear();
                node.flush().unwrap();
                if node.poll(&mut out).is_err() {
                    ended += 1;
                    break;
                }
                node.applied(metadata.index());
            }
            for entry in out.committed.drain(..) {
                if let Body::ConfChange(change) = entry.body {
                    node.apply_conf_change((random.below(4) > 0).then_some(&change));
                }
                node.applied(entry.index);
            }
            out.clear();
        }
    }
    assert!(ended < 200, "{ended} of 400 runs ended early");
}
