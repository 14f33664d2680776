//! A single voter on the real log, on a disk that loses power at every operation.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use trilith_disk::Disk;
use trilith_disk::sim::{SimDisk, Survivors};
use trilith_proto::raftpb;
use trilith_raft::{Body, Config, Node, Output, RaftError};
use trilith_wal::{IoChoice, Metadata, Options, Wal};

fn options(disk: &SimDisk) -> Options {
    Options {
        dir: PathBuf::from("/member/wal"),
        disk: Arc::new(disk.clone()),
        io: IoChoice::Auto,
        segment_bytes: 16 * 1024,
        fsync: true,
        max_segments: 2,
    }
}

fn config() -> Config {
    Config { id: 1, election_ticks: 10, heartbeat_ticks: 1, pre_vote: true, seed: 1, tail_bytes: 4096 }
}

/// What the store holds; a checkpoint is a copy of it.
#[derive(Debug, Default, Clone)]
struct Store {
    applied: u64,
    term: u64,
    conf_state: raftpb::ConfState,
    data: Vec<Bytes>,
}

/// Polls and applies until nothing comes out.
fn run(node: &mut Node, store: &mut Store) -> Result<(), RaftError> {
    let mut out = Output::default();
    while node.poll(&mut out)? {
        for entry in out.committed.drain(..) {
            assert_eq!(entry.index, store.applied + 1);
            (store.applied, store.term) = (entry.index, entry.term);
            match entry.body {
                Body::Normal(data) if data.is_empty() => {}
                Body::Normal(data) => store.data.push(data),
                Body::ConfChange(change) => store.conf_state = node.apply_conf_change(Some(&change)),
            }
        }
        node.applied(store.applied);
    }
    Ok(())
}

fn first_start(disk: &SimDisk) -> Result<Node, RaftError> {
    disk.create_dir_all(&options(disk).dir).unwrap();
    let wal = Wal::create(options(disk), Metadata { node_id: 1, cluster_id: 2 })?;
    Node::bootstrap(config(), wal, &[(1, Bytes::from_static(b"{}"))])
}

fn restart(disk: &SimDisk, store: &Store) -> Result<Node, RaftError> {
    let (wal, replay) = Wal::open(options(disk), store.applied)?;
    assert_eq!(replay.metadata, Metadata { node_id: 1, cluster_id: 2 });
    Node::restart(config(), wal, replay, store.applied, store.term, store.conf_state.clone())
}

/// What a life of the member acknowledged, by the number of disk operations that had been done.
struct Life {
    disk: SimDisk,
    born: usize,
    acknowledged: Vec<(usize, usize)>,
    checkpoints: Vec<(usize, Store)>,
    data: Vec<Bytes>,
}

fn live() -> Life {
    let disk = SimDisk::new();
    let mut node = first_start(&disk).unwrap();
    let mut life = Life {
        born: disk.op_count(),
        disk: disk.clone(),
        acknowledged: Vec::new(),
        checkpoints: vec![(0, Store::default())],
        data: Vec::new(),
    };
    let mut store = Store::default();
    run(&mut node, &mut store).unwrap();
    node.campaign().unwrap();
    run(&mut node, &mut store).unwrap();
    for round in 0..60_usize {
        for at in 0..=round % 4 {
            node.propose(Bytes::from(vec![round as u8; 10 + 900 * at])).unwrap();
        }
        run(&mut node, &mut store).unwrap();
        life.acknowledged.push((disk.op_count(), store.data.len()));
        if round % 3 == 2 {
            let previous = life.checkpoints.last().unwrap().1.applied;
            life.checkpoints.push((disk.op_count(), store.clone()));
            node.checkpointed(store.applied, store.term, store.conf_state.clone(), previous).unwrap();
            run(&mut node, &mut store).unwrap();
        }
    }
    life.data = store.data;
    life
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_operation() {
    let life = live();
    let cuts = life.disk.op_count() - life.born;
    assert!(life.data.len() > 100 && life.checkpoints.len() > 15 && cuts > 120, "{cuts} cuts");
    for ops in life.born..=life.disk.op_count() {
        for survivors in [Survivors::All, Survivors::None, Survivors::Random(ops as u64)] {
            let disk = life.disk.crash(ops, survivors);
            let of = |(at, _): &&(usize, usize)| *at <= ops;
            let acknowledged =
                life.acknowledged.iter().filter(of).map(|(_, count)| *count).max().unwrap_or(0);
            let (_, mut store) = life.checkpoints.iter().rfind(|(at, _)| *at <= ops).unwrap().clone();
            let mut node =
                restart(&disk, &store).unwrap_or_else(|error| panic!("cut {ops}, {survivors:?}: {error}"));
            run(&mut node, &mut store).unwrap();
            node.campaign().unwrap();
            run(&mut node, &mut store).unwrap();
            assert!(node.status().is_leader, "cut {ops}, {survivors:?}");
            assert!(
                store.data.len() >= acknowledged,
                "cut {ops}, {survivors:?}: an acknowledged entry is lost"
            );
            assert_eq!(store.data, life.data[..store.data.len()], "cut {ops}, {survivors:?}");
            node.propose(Bytes::from_static(b"again")).unwrap();
            run(&mut node, &mut store).unwrap();
            assert_eq!(store.data.last().unwrap(), "again", "cut {ops}, {survivors:?}");
        }
    }
}

#[test]
fn a_disk_that_fails_ends_the_member() {
    let disk = SimDisk::new();
    let mut node = first_start(&disk).unwrap();
    let mut store = Store::default();
    run(&mut node, &mut store).unwrap();
    node.campaign().unwrap();
    run(&mut node, &mut store).unwrap();
    disk.fail_after(disk.op_count());
    node.propose(Bytes::from_static(b"a")).unwrap();
    assert!(matches!(run(&mut node, &mut store), Err(RaftError::Wal(_))));
    assert!(store.data.is_empty());
}
