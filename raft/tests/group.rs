//! Groups of one and of three: what they agree on survives whatever the disks and the network do.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod sim;

use bytes::Bytes;
use sim::{Random, Sim, config, peers};
use trilith_proto::raftpb;
use trilith_raft::{Body, Node, Output, RaftError};

fn kinds(messages: &[raftpb::Message]) -> Vec<(raftpb::MessageType, u64)> {
    messages.iter().map(|message| (message.r#type(), message.to())).collect()
}

#[test]
fn a_single_voter_leads_at_once_and_commits() {
    let log = sim::SimLog::default();
    let mut node = Node::bootstrap(config(1, 0), log, &peers(1)).unwrap();
    let mut out = Output::default();
    // Its own membership is committed and not applied: the election waits for that.
    node.campaign().unwrap();
    assert!(matches!(node.propose(Bytes::new()), Err(RaftError::Dropped)));
    assert!(node.poll(&mut out).unwrap());
    let [first] = out.committed.as_slice() else { panic!("{out:?}") };
    let Body::ConfChange(change) = &first.body else { panic!("{out:?}") };
    assert_eq!((first.index, first.term, change.node_id(), change.id), (1, 1, 1, None));
    assert_eq!(change.context(), b"{\"id\":1}");
    assert_eq!(node.apply_conf_change(Some(change)).voters, [1]);
    assert!(!node.status().is_leader);
    node.applied(1);
    out.clear();

    assert!(node.poll(&mut out).unwrap());
    let status = node.status();
    assert_eq!(
        (status.term, status.leader, status.is_leader, status.commit, status.last),
        (2, 1, true, 2, 2)
    );
    assert_eq!((out.committed[0].index, &out.committed[0].body), (2, &Body::Normal(Bytes::new())));
    node.applied(2);
    out.clear();

    for data in ["a", "b", "c"] {
        node.propose(Bytes::from(data)).unwrap();
    }
    node.poll(&mut out).unwrap();
    let bodies: Vec<_> = out.committed.iter().map(|entry| entry.body.clone()).collect();
    assert_eq!(bodies, ["a", "b", "c"].map(|data| Body::Normal(Bytes::from(data))));
    assert!(out.messages.is_empty() && !node.poll(&mut out).unwrap());
}

#[test]
fn several_batches_are_on_their_way_and_come_back_in_order() {
    let mut sim = Sim::new(1, 3);
    assert_eq!(sim.elect(), 1);
    let log = sim.log(1);
    log.hold(true);
    for data in ["a", "b", "c"] {
        sim.propose(1, data);
        sim.run(1);
    }
    assert_eq!((log.unsynced(), sim.normal(1).len()), (3, 0));
    assert_eq!(sim.node(1).status().last, 5);
    log.sync(1);
    sim.run(1);
    assert_eq!(sim.normal(1), ["a"]);
    log.sync(2);
    sim.run(1);
    assert_eq!(sim.normal(1), ["a", "b", "c"]);
}

#[test]
fn what_is_not_durable_is_not_promised() {
    use raftpb::MessageType::*;
    let mut sim = Sim::new(3, 5);
    let leader = sim.elect();
    let [slow, fast] = [1, 2, 3].into_iter().filter(|id| *id != leader).collect::<Vec<_>>()[..] else {
        panic!()
    };
    for id in [leader, slow] {
        sim.log(id).hold(true);
    }
    // The leader sends before its own sync; the slow follower acknowledges after its own.
    sim.propose(leader, "a");
    sim.run(leader);
    let mut sent = kinds(&sim.network);
    sent.sort_by_key(|(_, to)| *to);
    assert_eq!(sent, [(MsgApp, slow.min(fast)), (MsgApp, slow.max(fast))]);
    while !sim.network.is_empty() {
        sim.deliver(0);
    }
    assert_eq!(sim.node(leader).status().commit, 4, "neither the leader nor the slow one counts");
    // A read round does not wait for either disk.
    sim.node(leader).read_index(77);
    sim.settle();
    assert_eq!(sim.members[&leader].reads, [(77, 4)]);
    // The slow one is durable: a quorum without the leader. It commits, and applies after its own sync.
    sim.log(slow).sync(1);
    sim.settle();
    assert_eq!((sim.node(leader).status().commit, sim.normal(leader).len()), (5, 0));
    assert_eq!(sim.normal(fast), ["a"]);
    sim.log(leader).sync(1);
    sim.settle();
    assert_eq!(sim.normal(leader), ["a"]);
}

#[test]
fn a_vote_leaves_after_it_is_durable() {
    use raftpb::MessageType::*;
    let mut sim = Sim::new(3, 1);
    sim.log(2).hold(true);
    let ask = raftpb::Message {
        r#type: Some(MsgVote as i32),
        from: Some(1),
        to: Some(2),
        term: Some(2),
        index: Some(3),
        log_term: Some(1),
        ..Default::default()
    };
    sim.node(2).step(ask).unwrap();
    sim.run(2);
    assert!(sim.network.is_empty());
    sim.log(2).sync(1);
    sim.run(2);
    assert_eq!(kinds(&sim.network), [(MsgVoteResp, 1)]);
    sim.network.clear();
    sim.crash(2);
    sim.restart(2);
    let again = raftpb::Message {
        r#type: Some(MsgVote as i32),
        from: Some(3),
        to: Some(2),
        term: Some(2),
        index: Some(3),
        log_term: Some(1),
        ..Default::default()
    };
    sim.node(2).step(again).unwrap();
    sim.run(2);
    assert_eq!((sim.network[0].r#type(), sim.network[0].reject()), (MsgVoteResp, true), "one vote per term");
}

#[test]
fn three_voters_survive_their_leader() {
    let mut sim = Sim::new(3, 9);
    let old = sim.elect();
    sim.propose(old, "a");
    sim.settle();
    // Written by the leader alone, never acknowledged: it must give way.
    sim.cut = vec![old];
    sim.propose(old, "lost");
    sim.settle();
    sim.crash(old);
    let new = sim.elect();
    assert_ne!(new, old);
    sim.propose(new, "b");
    sim.settle();
    sim.cut.clear();
    sim.restart(old);
    assert_eq!(sim.node(old).status().last, 6, "the entry that nobody else has");
    let leader = sim.elect();
    sim.propose(leader, "c");
    sim.settle();
    for id in 1..=3 {
        assert_eq!(sim.normal(id), ["a", "b", "c"], "member {id}");
    }
}

#[test]
fn a_follower_forwards_proposals_and_reads() {
    let mut sim = Sim::new(3, 2);
    let leader = sim.elect();
    let follower = if leader == 1 { 2 } else { 1 };
    sim.propose(follower, "a");
    sim.propose(follower, "b");
    sim.node(follower).read_index(5);
    sim.settle();
    assert_eq!(sim.normal(3), ["a", "b"]);
    assert_eq!(sim.members[&follower].reads.len(), 1);
    assert_eq!(sim.members[&follower].reads[0].0, 5);
}

#[test]
fn reads_wait_for_the_first_commit_and_for_a_quorum() {
    let mut sim = Sim::new(3, 4);
    // Elected, but nothing of its term is committed, since its appends get lost: the question is held.
    while sim.leader().is_none() {
        sim.tick_all();
        while !sim.network.is_empty() {
            sim.network.retain(|message| message.r#type() != raftpb::MessageType::MsgApp);
            if !sim.network.is_empty() {
                sim.deliver(0);
            }
        }
    }
    let leader = sim.leader().unwrap();
    assert!(sim.node(leader).status().commit < sim.node(leader).status().last);
    sim.node(leader).read_index(1);
    sim.run(leader);
    assert_eq!(sim.members[&leader].reads, []);
    sim.network.clear();
    for _ in 0..3 {
        sim.tick_all();
        sim.settle();
    }
    assert_eq!(sim.members[&leader].reads, [(1, 4)]);
    // Without a quorum there is no answer.
    sim.cut = (1..=3).filter(|id| *id != leader).collect();
    sim.node(leader).read_index(2);
    sim.settle();
    assert_eq!(sim.members[&leader].reads.len(), 1);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut sim = Sim::new(3, seed);
        chaos(&mut sim, 300);
        std::mem::take(&mut sim.trace)
    };
    let first = run(11);
    assert!(first.len() > 100);
    assert_eq!(first, run(11));
    assert_ne!(first, run(12));
}

/// Crashes, held disks, lost and reordered messages, cut members. Returns what was acknowledged: (index, data) that
/// the proposing leader applied.
fn chaos(sim: &mut Sim, steps: u32) {
    let mut random = Random(sim.seed ^ 0xc0ffee);
    for step in 0..steps {
        let id = random.below(3) + 1;
        match random.below(100) {
            0..30 => sim.tick_all(),
            30..45 => {
                if let Some(node) = sim.members.get_mut(&id).unwrap().node.as_mut() {
                    let _ = node.propose(Bytes::from(format!("{step}")));
                }
                sim.run(id);
            }
            45..75 => {
                for _ in 0..random.below(8) {
                    if !sim.network.is_empty() {
                        let at = random.below(sim.network.len().min(6) as u64) as usize;
                        sim.deliver(at);
                    }
                }
            }
            75..80 => {
                let lost = random.below(3) as usize;
                sim.network.drain(..lost.min(sim.network.len()));
            }
            80..86 => sim.log(id).hold(random.below(2) == 0),
            86..91 => {
                sim.log(id).sync(random.below(3) as usize);
                sim.run(id);
            }
            91..94 => sim.cut = if random.below(2) == 0 { vec![id] } else { vec![] },
            94..96 => sim.checkpoint(id),
            96..98 => sim.crash(id),
            _ => {
                if sim.members[&id].node.is_none() {
                    sim.restart(id);
                }
            }
        }
        if sim.members.values().filter(|member| member.node.is_none()).count() > 1 {
            sim.restart(id);
        }
    }
}

#[test]
fn a_leader_whose_disk_hangs_lets_another_lead() {
    let mut sim = Sim::new(3, 11);
    let first = sim.elect();
    sim.log(first).hold(true);
    sim.propose(first, "a");
    let mut ticks = 0;
    while sim.leader().is_none_or(|leader| leader == first) {
        sim.tick_all();
        sim.settle();
        ticks += 1;
        assert!(ticks < 100, "nobody else leads");
    }
    assert!(ticks > 10, "a disk may be slow for an election timeout");
    assert_eq!(sim.normal(first), [""; 0], "it is not durable there");
    let second = sim.leader().unwrap();
    sim.propose(second, "b");
    sim.settle();
    assert_eq!(sim.normal(second), ["a", "b"]);
    for _ in 0..30 {
        sim.tick_all();
        sim.settle();
    }
    assert_eq!(sim.leader(), Some(second), "who hangs does not stand for election");
    sim.log(first).hold(false);
    sim.tick_all();
    sim.settle();
    assert_eq!(sim.normal(first), ["a", "b"]);
}

#[test]
fn leadership_is_handed_over() {
    let mut sim = Sim::new(3, 12);
    let first = sim.elect();
    let next = first % 3 + 1;
    sim.node(first).transfer_leader(next);
    assert!(matches!(sim.node(first).propose(Bytes::new()), Err(RaftError::Dropped)));
    sim.settle();
    assert_eq!(sim.leader(), Some(next));
    let progress = sim.node(next).progress();
    let last = sim.node(next).status().last;
    assert_eq!(progress, [(1, last), (2, last), (3, last)]);
    assert_eq!(sim.node(first).progress(), []);
}

#[test]
fn members_that_lag_are_served_from_the_disk_and_by_snapshots() {
    let (mut fetches, mut installed) = (0, 0);
    for seed in 0..60 {
        let mut sim = Sim::with_tail(3, seed, 300);
        for round in 0..6 {
            chaos(&mut sim, 100);
            // Now and then the disks keep only what is left in memory.
            for id in 1..=3 {
                let applied = sim.members[&id].store.applied;
                if let Some(node) = sim.members.get_mut(&id).unwrap().node.as_mut()
                    && (round + id) % 3 == 0
                {
                    node.compact(applied.saturating_sub(2));
                }
            }
        }
        end_in_agreement(&mut sim);
        (fetches, installed) = (fetches + sim.fetches, installed + sim.installed);
    }
    assert!(fetches > 60 && installed > 20, "{fetches} fetches, {installed} snapshots");
}

/// Everybody comes back, and agrees on all that was ever applied.
fn end_in_agreement(sim: &mut Sim) {
    let seed = sim.seed;
    sim.cut.clear();
    for id in 1..=3 {
        sim.log(id).hold(false);
        if sim.members[&id].node.is_none() {
            sim.restart(id);
        }
    }
    let leader = sim.elect();
    sim.propose(leader, "end");
    sim.settle();
    for _ in 0..30 {
        sim.tick_all();
        sim.settle();
    }
    // `agreed` holds whatever any member applied at any time, and `run` compares each entry with it.
    let last = *sim.agreed.keys().last().unwrap();
    for id in 1..=3 {
        assert_eq!(sim.members[&id].store.applied, last, "seed {seed}: member {id}");
        assert_eq!(sim.normal(id).last().unwrap(), "end", "seed {seed}: member {id}");
        assert_eq!(sim.normal(id), sim.normal(leader), "seed {seed}: member {id}");
    }
}

#[test]
fn nothing_that_was_applied_anywhere_is_lost() {
    let (mut terms, mut entries) = (0, 0);
    for seed in 0..60 {
        let mut sim = Sim::new(3, seed);
        chaos(&mut sim, 700);
        end_in_agreement(&mut sim);
        let last = *sim.agreed.keys().last().unwrap();
        terms += sim.agreed[&last].term;
        entries += last;
    }
    // The storm was one: leaders fell, and work was done all the same.
    assert!(terms > 60 * 5 && entries > 60 * 20, "{terms} terms, {entries} entries");
}
