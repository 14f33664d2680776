//! Several members on simulated disks, with a network and a clock of the test's own: everything follows from the seed.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use prost::Message as _;
use trilith_disk::sim::{SimDisk, Survivors};
use trilith_disk::{Disk, Open};
use trilith_engine::bolt::{CHUNK_BYTES, Export};
use trilith_proto::raftpb;
use trilith_server::core::{Config, Core, Handle, LeaseAsked, Membership, Peer, PeerEvent};

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A message on its way, a MsgSnap with the database that goes with it.
pub struct Letter {
    pub message: raftpb::Message,
    pub database: Option<Vec<u8>>,
}

pub struct Member {
    pub config: Config,
    pub disk: SimDisk,
    pub core: Option<(Core, Handle)>,
    pub membership: Membership,
    /// When its core began: a core's own time starts at zero.
    began: Duration,
    starts: u64,
}

pub struct Sim {
    pub seed: u64,
    pub random: Random,
    pub now: Duration,
    /// By number: 1, 2, 3.
    pub members: BTreeMap<u64, Member>,
    pub network: Vec<Letter>,
    /// Numbers of members that neither send nor receive.
    pub cut: Vec<u64>,
    pub trace: Vec<String>,
    pub installed: u64,
    pub read_back: u64,
    /// Leaders that are answering others about leases.
    asked: Vec<Pin<Box<dyn Future<Output = ()>>>>,
    runtime: tokio::runtime::Runtime,
}

fn peer(number: u64) -> Peer {
    Peer { name: format!("m{number}"), peer_urls: vec![format!("http://m{number}:2380")] }
}

/// A small member: its log is cut early, and hardly anything of it stays in memory.
pub fn small(number: u64, count: u64, seed: u64) -> Config {
    Config {
        map: false,
        name: format!("m{number}"),
        client_urls: vec![format!("http://m{number}:2379")],
        initial_cluster: (1..=count).map(peer).collect(),
        wal_segment_bytes: 32 << 10,
        checkpoint_log_bytes: 8 << 10,
        max_wals: 1,
        snapshot_count: 60,
        catchup_entries: 30,
        raft_tail_bytes: 2 << 10,
        lease_checkpoints: true,
        seed: seed ^ number << 32,
        ..Config::new("data".into(), Arc::new(SimDisk::new()) as Arc<dyn Disk>)
    }
}

impl Sim {
    /// A new cluster of that many members, started.
    pub fn new(count: u64, seed: u64) -> Sim {
        let mut sim = Sim {
            seed,
            random: Random(seed),
            now: Duration::ZERO,
            members: BTreeMap::new(),
            network: Vec::new(),
            cut: Vec::new(),
            trace: Vec::new(),
            installed: 0,
            read_back: 0,
            asked: Vec::new(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap(),
        };
        for number in 1..=count {
            sim.add(number, small(number, count, seed));
        }
        sim
    }

    /// Adds a member that was never there, and starts it.
    pub fn add(&mut self, number: u64, config: Config) {
        let disk = SimDisk::new();
        let membership = Membership::default();
        let member = Member { config, disk, core: None, membership, began: self.now, starts: 0 };
        self.members.insert(number, member);
        self.start(number);
    }

    pub fn start(&mut self, number: u64) {
        let now = self.now;
        let member = self.members.get_mut(&number).unwrap();
        member.starts += 1;
        member.began = now;
        let config = Config {
            disk: Arc::new(member.disk.clone()) as Arc<dyn Disk>,
            seed: member.config.seed.wrapping_add(member.starts),
            unix_ms: 1_700_000_000_000 + now.as_millis() as u64 * 256 + member.starts,
            ..member.config.clone()
        };
        let opened = Core::open(config);
        let (core, handle) =
            opened.unwrap_or_else(|error| panic!("seed {}: member {number}: {error}", self.seed));
        self.trace.push(format!("{number} starts with {:?} applied", handle.root().applied()));
        member.core = Some((core, handle));
    }

    /// The member goes down; its disk keeps what the cut leaves.
    pub fn crash(&mut self, number: u64, survivors: Survivors) {
        let member = self.members.get_mut(&number).unwrap();
        member.core = None;
        member.disk = member.disk.crash(member.disk.op_count(), survivors);
        self.trace.push(format!("{number} crashes"));
    }

    pub fn is_up(&self, number: u64) -> bool {
        self.members[&number].core.is_some()
    }

    pub fn handle(&self, number: u64) -> Handle {
        self.members[&number].core.as_ref().unwrap().1.clone()
    }

    fn number_of(&self, id: u64) -> Option<u64> {
        let has = |member: &&Member| member.core.as_ref().is_some_and(|(_, h)| h.facts().member_id == id);
        self.members.iter().find(|(_, member)| has(member)).map(|(number, _)| *number)
    }

    /// Steps a member, runs its jobs, and puts what it sends on the network.
    pub fn step(&mut self, number: u64) {
        let now = self.now;
        let member = self.members.get_mut(&number).unwrap();
        let Some((core, handle)) = member.core.as_mut() else { return };
        let seed = self.seed;
        let fail =
            |error: trilith_server::core::Fatal| -> ! { panic!("seed {seed}: member {number}: {error}") };
        core.step(now - member.began).unwrap_or_else(|error| fail(error));
        if let Some(job) = core.begin_checkpoint() {
            core.checkpoint_finished(job.run()).unwrap_or_else(|error| fail(error));
        }
        if let Some(scan) = core.begin_shrink_scan() {
            core.shrink_scanned(scan.run());
        }
        if let Some(job) = core.begin_compaction().unwrap_or_else(|error| fail(error)) {
            core.compaction_found(job.run());
        }
        if core.remove_slice().unwrap_or_else(|error| fail(error)) {
            core.slice_took(Duration::from_micros(100));
        }
        if let Some(read) = core.begin_log_read() {
            self.read_back += 1;
            core.log_read(read.run());
        }
        if self.random.one_in(3)
            && let Some(job) = core.begin_install()
        {
            let outcome = job.run();
            self.installed += u64::from(outcome.is_ok());
            self.trace.push(format!("{number} makes a store: {outcome:?}"));
            core.install_made(outcome);
        }
        let outgoing = core.take_outgoing().unwrap_or_default();
        if let Some(membership) = outgoing.membership {
            member.membership = membership;
        }
        let facts = handle.facts();
        for message in outgoing.messages {
            self.trace.push(format!(
                "{number} of term {} sends {:?} {} {} {}",
                facts.term,
                message.r#type(),
                message.to(),
                message.index(),
                message.commit()
            ));
            self.network.push(Letter { message, database: None });
        }
        for (message, root) in outgoing.snapshots {
            let mut export = Export::new(root).unwrap();
            let total = export.total_bytes() as usize;
            let mut bytes = BytesMut::with_capacity(total + CHUNK_BYTES);
            while let Some(chunk) = export.next_chunk().unwrap() {
                bytes.extend_from_slice(&chunk);
            }
            bytes.truncate(total);
            self.trace.push(format!("{number} sends a snapshot of {total} bytes"));
            self.network.push(Letter { message, database: Some(bytes.to_vec()) });
        }
        if outgoing.asks_versions {
            let reached = self
                .members
                .iter()
                .all(|(number, member)| member.core.is_some() && !self.cut.contains(number));
            let lowest = reached.then(|| "3.7.1".to_owned());
            self.handle(number).peer_event(PeerEvent::Versions { lowest }).unwrap();
        }
        for asked in outgoing.leases {
            self.ask_leader(number, asked);
        }
    }

    /// What the transport does for a follower: asks whoever it takes for the leader.
    fn ask_leader(&mut self, number: u64, asked: LeaseAsked) {
        let leader = self.number_of(self.handle(number).facts().leader);
        let reached = leader.filter(|leader| !self.cut.contains(&number) && !self.cut.contains(leader));
        // Where nobody is reached the question is dropped.
        if let Some(leader) = reached {
            self.asked.push(Box::pin(asked.answer_from(self.handle(leader))));
        }
    }

    pub fn step_all(&mut self) {
        for number in self.members.keys().copied().collect::<Vec<_>>() {
            self.step(number);
        }
        let runtime = &self.runtime;
        self.asked.retain_mut(|answering| poll(runtime, answering.as_mut()).is_none());
    }

    fn is_cut(&self, number: u64) -> bool {
        self.cut.contains(&number)
    }

    /// Delivers the message at a place of the network, in its wire form.
    pub fn deliver(&mut self, at: usize) {
        let Letter { message, database } = self.network.remove(at);
        let (from, to) = (self.number_of(message.from()), self.number_of(message.to()));
        let message = raftpb::Message::decode(message.encode_to_vec().as_slice()).unwrap();
        let reached = match (from, to) {
            (Some(from), Some(to)) => !self.is_cut(from) && !self.is_cut(to),
            // A forwarded proposal names who proposed it, who may be gone.
            (None, Some(to)) => !self.is_cut(to),
            _ => false,
        };
        let is_snapshot = database.is_some();
        if reached && let Some(to) = to {
            if let Some(database) = database {
                self.store_database(to, &message, &database);
            }
            self.handle(to).peer_event(PeerEvent::Message(message.clone())).unwrap();
            self.step(to);
        }
        if let Some(from) = from.filter(|from| self.is_up(*from)) {
            let id = message.to();
            if is_snapshot {
                let event = PeerEvent::SnapshotSent { to: id, delivered: reached };
                self.handle(from).peer_event(event).unwrap();
            } else if !reached {
                self.handle(from).peer_event(PeerEvent::Unreachable(id)).unwrap();
            }
        }
    }

    /// What the transport does with the body of a snapshot (N4).
    fn store_database(&mut self, to: u64, message: &raftpb::Message, database: &[u8]) {
        let member = &self.members[&to];
        let index = message.snapshot.as_ref().unwrap().metadata.as_ref().unwrap().index();
        let dir = member.config.snap_dir();
        let (tmp, path): (PathBuf, PathBuf) =
            (dir.join(format!("tmp{index}")), dir.join(format!("{index:016x}.snap.db")));
        let file = member.disk.open(&tmp, Open::OpenOrCreate).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(database, 0).unwrap();
        file.sync_data().unwrap();
        member.disk.rename(&tmp, &path).unwrap();
        member.disk.sync_dir(&dir).unwrap();
    }

    /// Lets time pass in steps of 10 ms, with a network that delivers everything in order.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(10);
            self.step_all();
            self.settle();
        }
    }

    /// Delivers what is on the way, and what that brings forth, up to a bound.
    pub fn settle(&mut self) {
        for _ in 0..400 {
            if self.network.is_empty() {
                return;
            }
            self.deliver(0);
        }
    }

    pub fn leader(&self) -> Option<u64> {
        let leads = |member: &Member| {
            let facts = member.core.as_ref()?.1.facts();
            (facts.leader == facts.member_id).then_some(facts.term)
        };
        let leaders = self.members.iter().filter(|(number, _)| !self.cut.contains(number));
        leaders.filter_map(|(number, member)| Some((leads(member)?, *number))).max().map(|found| found.1)
    }

    /// Waits for a leader that all members that are up and not cut off follow.
    pub fn elect(&mut self) -> u64 {
        for _ in 0..600 {
            self.pass(Duration::from_millis(50));
            let Some(leader) = self.leader() else { continue };
            let id = self.handle(leader).facts().member_id;
            let follows = |(number, member): (&u64, &Member)| {
                self.cut.contains(number)
                    || member.core.as_ref().is_none_or(|(_, handle)| handle.facts().leader == id)
            };
            if self.members.iter().all(follows) {
                return leader;
            }
        }
        panic!("seed {}: no leader after 30 seconds", self.seed)
    }

    /// Waits until all members that are up have applied the same; what they have applied.
    pub fn agree(&mut self) -> u64 {
        for _ in 0..1200 {
            self.pass(Duration::from_millis(50));
            let applied: Vec<u64> = self.members.values().filter_map(applied_by).collect();
            let quiet = self.network.is_empty() && self.leader().is_some();
            if quiet && applied.windows(2).all(|pair| pair[0] == pair[1]) {
                return applied[0];
            }
        }
        let applied: Vec<_> = self.members.iter().map(|(n, member)| (n, applied_by(member))).collect();
        panic!("seed {}: no agreement after a minute: {applied:?}", self.seed)
    }

    /// HashKV and compacted revision of each member that is up.
    pub fn hashes(&self) -> Vec<(u32, i64, i64)> {
        let up = self.members.values().filter_map(|member| member.core.as_ref());
        up.map(|(_, handle)| handle.root().view().hash_kv(0).unwrap()).collect()
    }

    pub fn poll<F: Future + ?Sized>(&self, call: Pin<&mut F>) -> Option<F::Output> {
        poll(&self.runtime, call)
    }

    /// Drives a call to its end while time passes.
    pub fn run<F: Future>(&mut self, call: F) -> F::Output {
        let mut call = Box::pin(call);
        for _ in 0..3000 {
            if let Some(output) = self.poll(call.as_mut()) {
                return output;
            }
            self.pass(Duration::from_millis(10));
        }
        panic!("seed {}: the call does not end", self.seed)
    }

    /// What has been on the way for longest is lost. A snapshot's sender hears of it, as of a connection that broke.
    pub fn lose_first(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let Letter { message, database } = self.network.remove(0);
        if let Some(from) = self.number_of(message.from()).filter(|_| database.is_some()) {
            let event = PeerEvent::SnapshotSent { to: message.to(), delivered: false };
            self.handle(from).peer_event(event).unwrap();
        }
    }
}

fn applied_by(member: &Member) -> Option<u64> {
    Some(member.core.as_ref()?.1.facts().applied)
}

fn poll<F: Future + ?Sized>(runtime: &tokio::runtime::Runtime, call: Pin<&mut F>) -> Option<F::Output> {
    let _runtime = runtime.enter();
    match call.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
