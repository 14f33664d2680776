//! A group of nodes in one thread: a disk that syncs when told, a network that delays, drops and reorders, a store
//! that only keeps its checkpoints. Everything follows from the seed.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use bytes::Bytes;
use prost::Message as _;
use trilith_proto::{raftpb, walpb};
use trilith_raft::{Body, Committed, Config, Fetch, Log, Node, Output};
use trilith_wal::{EntryRef, Replay, Ticket, WalError};

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

enum Record {
    Entry(raftpb::Entry),
    HardState(raftpb::HardState),
    Mark(walpb::Snapshot),
}

/// What a log wrote, and how much of it would survive a crash.
#[derive(Default)]
struct Written {
    records: Vec<Record>,
    /// Length of `records` after each batch.
    batches: Vec<usize>,
    /// Batches that are durable.
    durable: usize,
    held: bool,
}

/// The disk of one member. Unless held, everything that must be synced is durable with the next poll.
#[derive(Clone, Default)]
pub struct SimLog(Rc<RefCell<Written>>);

impl SimLog {
    pub fn hold(&self, held: bool) {
        self.0.borrow_mut().held = held;
    }
    /// Makes up to `count` of the held batches durable.
    pub fn sync(&self, count: usize) {
        let mut written = self.0.borrow_mut();
        written.durable = (written.durable + count).min(written.batches.len());
    }
    /// Entries that are durable, up to three of them.
    pub fn read(&self, fetch: &Fetch) -> Option<Vec<raftpb::Entry>> {
        let entries = durable_entries(&self.0.borrow());
        let found = entries.range(fetch.from..fetch.to).take(3).map(|(_, entry)| entry.clone());
        Some(found.collect()).filter(|found: &Vec<_>| !found.is_empty())
    }
    pub fn unsynced(&self) -> usize {
        let written = self.0.borrow();
        written.batches.len() - written.durable
    }
    /// Forgets what was not durable and reads the rest as a new owner would.
    pub fn crash(&self) -> Replay {
        let mut written = self.0.borrow_mut();
        let (durable, records) = (written.durable, durable_records(&written));
        written.records.truncate(records);
        written.batches.truncate(durable);
        written.held = false;
        let mut replay = Replay::default();
        for record in &written.records {
            match record {
                Record::Entry(entry) => {
                    let first = replay.entries.first().map_or(entry.index, |first| first.index).unwrap();
                    replay.entries.truncate((entry.index.unwrap() - first) as usize);
                    replay.entries.push(entry.clone());
                    replay.last_index = entry.index.unwrap();
                }
                Record::HardState(state) => replay.hard_state = *state,
                Record::Mark(mark) => {
                    let named = replay.entries.iter().any(|e| (e.index, e.term) == (mark.index, mark.term));
                    if !named {
                        // Of a snapshot that was installed.
                        replay.entries.clear();
                    }
                    replay.last_index = replay.last_index.max(mark.index.unwrap());
                    replay.snapshots.push(mark.clone());
                }
            }
        }
        replay
    }
}

/// The newest of each entry that is durable.
fn durable_entries(written: &Written) -> BTreeMap<u64, raftpb::Entry> {
    let mut entries = BTreeMap::new();
    for record in &written.records[..durable_records(written)] {
        if let Record::Entry(entry) = record {
            entries.split_off(&entry.index.unwrap());
            entries.insert(entry.index.unwrap(), entry.clone());
        }
    }
    entries
}

fn durable_records(written: &Written) -> usize {
    written.durable.checked_sub(1).map_or(0, |last| written.batches[last])
}

impl Log for SimLog {
    fn append<'a>(
        &mut self,
        entries: impl IntoIterator<Item = EntryRef<'a>>,
        hard_state: Option<&raftpb::HardState>,
        must_sync: bool,
    ) -> Ticket {
        let mut written = self.0.borrow_mut();
        written.records.extend(entries.into_iter().map(|entry| {
            Record::Entry(raftpb::Entry {
                r#type: Some(entry.kind as i32),
                term: Some(entry.term),
                index: Some(entry.index),
                data: Some(Bytes::copy_from_slice(entry.data)),
            })
        }));
        written.records.extend(hard_state.map(|state| Record::HardState(*state)));
        if !must_sync {
            return Ticket(written.batches.len() as u64 + 1);
        }
        let end = written.records.len();
        written.batches.push(end);
        Ticket(written.batches.len() as u64)
    }

    fn append_snapshot(&mut self, snapshot: &walpb::Snapshot) -> Ticket {
        self.0.borrow_mut().records.push(Record::Mark(snapshot.clone()));
        self.append([], None, true)
    }

    fn poll(&mut self) -> Result<Ticket, WalError> {
        let mut written = self.0.borrow_mut();
        if !written.held {
            written.durable = written.batches.len();
        }
        Ok(Ticket(written.durable as u64))
    }

    fn flush(&mut self) -> Result<Ticket, WalError> {
        self.sync(usize::MAX >> 1);
        self.poll()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn release_to(&mut self, _index: u64) -> Result<(), WalError> {
        Ok(())
    }
}

pub fn config(id: u64, seed: u64) -> Config {
    Config {
        id,
        election_ticks: 10,
        heartbeat_ticks: 1,
        pre_vote: true,
        seed: seed ^ id,
        tail_bytes: 1 << 20,
    }
}

pub fn peers(count: u64) -> Vec<(u64, Bytes)> {
    (1..=count).map(|id| (id, Bytes::from(format!("{{\"id\":{id}}}")))).collect()
}

/// What a member has applied; `Sim` keeps the last checkpoint of it.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Store {
    pub applied: u64,
    pub term: u64,
    pub conf_state: raftpb::ConfState,
    pub normal: Vec<(u64, Bytes)>,
}

pub struct Member {
    pub node: Option<Node<SimLog>>,
    pub log: SimLog,
    pub store: Store,
    pub checkpoint: Store,
    pub reads: Vec<(u64, u64)>,
}

/// The group. `cut` members neither send nor receive.
pub struct Sim {
    pub members: BTreeMap<u64, Member>,
    pub network: Vec<raftpb::Message>,
    pub cut: Vec<u64>,
    pub random: Random,
    pub seed: u64,
    /// Everything committed anywhere, by index: no two members may differ.
    pub agreed: BTreeMap<u64, Committed>,
    pub trace: Vec<String>,
    starts: u64,
    /// The state of every snapshot that was sent, by its index.
    pub snapshots: BTreeMap<u64, Store>,
    /// Memory for the tails of logs, in bytes.
    pub tail_bytes: usize,
    pub fetches: u64,
    pub installed: u64,
}

impl Sim {
    pub fn new(count: u64, seed: u64) -> Sim {
        Sim::with_tail(count, seed, 1 << 20)
    }

    pub fn with_tail(count: u64, seed: u64, tail_bytes: usize) -> Sim {
        let mut sim = Sim {
            members: BTreeMap::new(),
            network: Vec::new(),
            cut: Vec::new(),
            random: Random(seed),
            seed,
            agreed: BTreeMap::new(),
            trace: Vec::new(),
            starts: 0,
            snapshots: BTreeMap::new(),
            tail_bytes,
            fetches: 0,
            installed: 0,
        };
        for id in 1..=count {
            let log = SimLog::default();
            let config = Config { tail_bytes, ..config(id, seed) };
            let node = Node::bootstrap(config, log.clone(), &peers(count)).unwrap();
            let (store, checkpoint) = (Store::default(), Store::default());
            sim.members.insert(id, Member { node: Some(node), log, store, checkpoint, reads: Vec::new() });
        }
        sim.run_all();
        sim
    }

    pub fn node(&mut self, id: u64) -> &mut Node<SimLog> {
        self.members.get_mut(&id).unwrap().node.as_mut().unwrap()
    }

    pub fn log(&self, id: u64) -> SimLog {
        self.members[&id].log.clone()
    }

    pub fn normal(&self, id: u64) -> Vec<Bytes> {
        self.members[&id].store.normal.iter().map(|(_, data)| data.clone()).collect()
    }

    /// Polls a member, applies what comes out, and puts its messages on the network.
    pub fn run(&mut self, id: u64) {
        let mut out = Output::default();
        loop {
            let member = self.members.get_mut(&id).unwrap();
            let Some(node) = member.node.as_mut() else { return };
            let progressed = node.poll(&mut out).unwrap();
            let fetch = node.begin_fetch();
            if let Some(fetch) = &fetch {
                self.fetches += 1;
                node.fetched(member.log.read(fetch));
            }
            if !progressed && fetch.is_none() {
                return;
            }
            if let Some(metadata) = out.snapshot.take() {
                node.flush().unwrap();
                self.installed += 1;
                self.trace.push(format!("{id} installs {}", metadata.index()));
                member.store = self.snapshots[&metadata.index()].clone();
                member.checkpoint = member.store.clone();
                assert_eq!((member.store.applied, member.store.term), (metadata.index(), metadata.term()));
                assert_eq!(Some(&member.store.conf_state), metadata.conf_state.as_ref());
                out.committed.clear();
                node.poll(&mut out).unwrap();
                node.applied(metadata.index());
            }
            // Sent before what is committed is applied: they are of the state as it is.
            for message in out.messages.iter().filter(|m| m.r#type() == raftpb::MessageType::MsgSnap) {
                let metadata = message.snapshot.as_ref().unwrap().metadata.as_ref().unwrap();
                assert_eq!(metadata.index(), member.store.applied);
                self.snapshots.insert(metadata.index(), member.store.clone());
            }
            for entry in out.committed.drain(..) {
                assert_eq!(entry.index, member.store.applied + 1, "seed {}: member {id} skips", self.seed);
                let agreed = self.agreed.entry(entry.index).or_insert_with(|| entry.clone());
                assert_eq!(*agreed, entry, "seed {}: member {id} disagrees", self.seed);
                self.trace.push(format!("{id} applies {} of term {}", entry.index, entry.term));
                (member.store.applied, member.store.term) = (entry.index, entry.term);
                match entry.body {
                    Body::Normal(data) if data.is_empty() => {}
                    Body::Normal(data) => member.store.normal.push((entry.index, data)),
                    Body::ConfChange(change) => {
                        member.store.conf_state = node.apply_conf_change(Some(&change));
                    }
                }
            }
            node.applied(member.store.applied);
            member.reads.append(&mut out.reads);
            for message in out.messages.drain(..) {
                self.trace.push(format!(
                    "{id} sends {:?} to {} at term {}",
                    message.r#type(),
                    message.to(),
                    message.term()
                ));
                self.network.push(message);
            }
        }
    }

    pub fn run_all(&mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.run(id);
        }
    }

    /// Delivers the message at a place of the network, over its wire form.
    pub fn deliver(&mut self, at: usize) {
        let message = self.network.remove(at);
        let (from, to) = (message.from(), message.to());
        if self.cut.contains(&from) || self.cut.contains(&to) {
            return;
        }
        let Some(node) = self.members.get_mut(&to).and_then(|member| member.node.as_mut()) else { return };
        let message = raftpb::Message::decode(message.encode_to_vec().as_slice()).unwrap();
        let taken = match message.r#type() {
            // A member that does not know a leader has no use for it, nor has raft if it was refused.
            raftpb::MessageType::MsgSnap => node.offer_snapshot(message),
            _ => node.step(message),
        };
        match taken {
            Ok(()) | Err(trilith_raft::RaftError::Dropped) => {}
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
        self.run(to);
    }

    /// Delivers until nobody has anything to say.
    pub fn settle(&mut self) {
        self.run_all();
        while !self.network.is_empty() {
            self.deliver(0);
        }
    }

    pub fn tick_all(&mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            if let Some(node) = self.members.get_mut(&id).unwrap().node.as_mut() {
                node.tick();
            }
            self.run(id);
        }
    }

    pub fn leader(&self) -> Option<u64> {
        let leads =
            |member: &Member| member.node.as_ref().map(Node::status).filter(|status| status.is_leader);
        let leaders = self.members.iter().filter(|(id, _)| !self.cut.contains(id));
        leaders.filter_map(|(id, member)| Some((leads(member)?.term, *id))).max().map(|(_, id)| id)
    }

    /// Ticks and delivers until somebody leads and all that can know it do.
    pub fn elect(&mut self) -> u64 {
        for _ in 0..500 {
            self.tick_all();
            self.settle();
            let Some(leader) = self.leader() else { continue };
            let follows = |(id, member): (&u64, &Member)| {
                self.cut.contains(id)
                    || member.node.as_ref().is_none_or(|node| node.status().leader == leader)
            };
            if self.members.iter().all(follows) {
                return leader;
            }
        }
        panic!("seed {}: no leader after 500 ticks", self.seed)
    }

    pub fn propose(&mut self, id: u64, data: &str) {
        self.node(id).propose(Bytes::copy_from_slice(data.as_bytes())).unwrap();
    }

    pub fn checkpoint(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        let Some(node) = member.node.as_mut() else { return };
        let previous = std::mem::replace(&mut member.checkpoint, member.store.clone()).applied;
        let store = &member.store;
        node.checkpointed(store.applied, store.term, store.conf_state.clone(), previous).unwrap();
    }

    /// The member loses all that is not durable.
    pub fn crash(&mut self, id: u64) {
        self.members.get_mut(&id).unwrap().node = None;
    }

    pub fn restart(&mut self, id: u64) {
        self.starts += 1;
        let config =
            Config { tail_bytes: self.tail_bytes, ..config(id, self.seed.wrapping_add(self.starts << 16)) };
        let member = self.members.get_mut(&id).unwrap();
        let replay = member.log.crash();
        member.store = member.checkpoint.clone();
        let store = &member.store;
        let node = Node::restart(
            config,
            member.log.clone(),
            replay,
            store.applied,
            store.term,
            store.conf_state.clone(),
        );
        member.node = Some(node.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed)));
        self.run(id);
    }
}
