//! A cluster of cores: whatever the network, the disks and the clock do, nothing that was acknowledged is lost, no read
//! is stale, and in the end all members hold the same.
#![allow(clippy::unwrap_used)]

mod cluster_sim;
mod common;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use cluster_sim::Sim;
use common::{decode, get, put, revision_of, text, whole};
use trilith_disk::sim::Survivors;
use trilith_proto::etcdserverpb as pb;
use trilith_server::reply::Reply;
use trilith_server::service;
use trilith_server::status::Status;

const KEYS: u64 = 5;

enum Asked {
    Put { key: String, value: String },
    Get { key: String },
}

/// A call under way, with the newest revision that anybody was told of before it began.
struct Call {
    asked: Asked,
    least: i64,
    member: u64,
    future: Pin<Box<dyn Future<Output = Result<Reply, Status>>>>,
}

/// What clients know.
#[derive(Default)]
struct Clients {
    calls: Vec<Call>,
    /// By revision: what was acknowledged.
    puts: BTreeMap<i64, (String, String)>,
    /// What reads answered: (revision of the header, key, value).
    reads: Vec<(i64, String, Option<String>)>,
    newest: i64,
    failed: u64,
    count: u64,
}

impl Clients {
    fn begin(&mut self, sim: &Sim, member: u64, key: u64, writes: bool) {
        let handle = sim.handle(member);
        let key = format!("k{key}");
        self.count += 1;
        let value = format!("{}-{}", self.count, "v".repeat(20 + (self.count * 37 % 300) as usize));
        let (asked, future): (_, Pin<Box<dyn Future<Output = _>>>) = if writes {
            let call = service::kv::put(&handle, put(&key, &value));
            (Asked::Put { key, value }, Box::pin(call))
        } else {
            let request = get(&key);
            let call = async move { service::kv::range(&handle, request).await.map(whole) };
            (Asked::Get { key }, Box::pin(call))
        };
        self.calls.push(Call { asked, least: self.newest, member, future });
    }

    /// Takes the answers that are there.
    fn poll(&mut self, sim: &Sim) {
        let mut at = 0;
        while at < self.calls.len() {
            let Some(answer) = sim.poll(self.calls[at].future.as_mut()) else {
                at += 1;
                continue;
            };
            let call = self.calls.swap_remove(at);
            match answer {
                Ok(reply) => self.take(sim.seed, call, reply),
                Err(_) => self.failed += 1,
            }
        }
    }

    fn take(&mut self, seed: u64, call: Call, reply: Reply) {
        let revision = match call.asked {
            Asked::Put { key, value } => {
                let response: pb::PutResponse = decode(reply);
                let revision = revision_of(&response.header);
                assert!(revision > call.least, "seed {seed}: a put after {} got {revision}", call.least);
                let before = self.puts.insert(revision, (key, value));
                assert!(before.is_none(), "seed {seed}: revision {revision} was given twice");
                revision
            }
            Asked::Get { key } => {
                let response: pb::RangeResponse = decode(reply);
                let revision = revision_of(&response.header);
                assert!(
                    revision >= call.least,
                    "seed {seed}: member {} read revision {revision} after {} was acknowledged",
                    call.member,
                    call.least
                );
                self.reads.push((revision, key, response.kvs.first().map(|kv| text(&kv.value))));
                revision
            }
        };
        self.newest = self.newest.max(revision);
    }

    /// Compares what clients were told with the history that a member holds.
    fn check(&self, sim: &mut Sim, member: u64) {
        let seed = sim.seed;
        let root = sim.handle(member).root();
        let mut history: BTreeMap<i64, (String, Option<String>)> = BTreeMap::new();
        for change in root.view().changes(1, root.view().revision()).unwrap() {
            let change = change.unwrap();
            let kv: trilith_proto::mvccpb::KeyValue = prost::Message::decode(change.kv.as_ref()).unwrap();
            let value = (!change.deleted).then(|| text(&kv.value));
            history.insert(change.revision.main, (text(&change.key), value));
        }
        for (revision, (key, value)) in &self.puts {
            let found = history.get(revision);
            assert_eq!(found, Some(&(key.clone(), Some(value.clone()))), "seed {seed}: revision {revision}");
        }
        for (revision, key, value) in &self.reads {
            let written = history.range(..=revision).rev().find(|(_, (written, _))| written == key);
            let expected = written.and_then(|(_, (_, value))| value.clone());
            assert_eq!(*value, expected, "seed {seed}: {key} as of revision {revision}");
        }
    }
}

/// What happened in a run.
#[derive(Default, Debug)]
struct Seen {
    puts: u64,
    reads: u64,
    failed: u64,
    terms: u64,
    installed: u64,
    read_back: u64,
}

fn storm(sim: &mut Sim, clients: &mut Clients, steps: u32) {
    for _ in 0..steps {
        let number = 1 + sim.random.below(3);
        match sim.random.below(100) {
            0..30 => {
                sim.now += Duration::from_millis(10 + sim.random.below(60));
                sim.step_all();
            }
            30..62 => {
                for _ in 0..sim.random.below(16) {
                    if !sim.network.is_empty() {
                        let at = sim.random.below(sim.network.len().min(5) as u64) as usize;
                        sim.deliver(at);
                    }
                }
            }
            62..88 if sim.is_up(number) => {
                for _ in 0..=sim.random.below(3) {
                    let (key, writes) = (sim.random.below(KEYS), sim.random.below(3) > 0);
                    clients.begin(sim, number, key, writes);
                }
                sim.step(number);
            }
            88..90 => {
                for _ in 0..sim.random.below(4) {
                    sim.lose_first();
                }
            }
            90..94 => sim.cut = if sim.random.below(2) == 0 { vec![number] } else { vec![] },
            94..96 if sim.members.values().all(|member| member.core.is_some()) => {
                let seed = sim.random.below(1 << 30);
                let survivors =
                    [Survivors::None, Survivors::All, Survivors::Random(seed)][sim.random.below(3) as usize];
                sim.crash(number, survivors);
            }
            96..100 if !sim.is_up(number) => sim.start(number),
            _ => {}
        }
        clients.poll(sim);
    }
}

/// A run from a seed; the trace, and what happened.
fn run(seed: u64, rounds: u32) -> (Vec<String>, Seen) {
    let mut sim = Sim::new(3, seed);
    let mut clients = Clients::default();
    sim.elect();
    for _ in 0..rounds {
        storm(&mut sim, &mut clients, 150);
        // Some time to work in, with a member missing or without.
        let missing = 1 + sim.random.below(4);
        sim.cut = vec![missing];
        for _ in 0..40 {
            let number = 1 + sim.random.below(3);
            if sim.is_up(number) {
                let key = sim.random.below(KEYS);
                clients.begin(&sim, number, key, true);
            }
            sim.pass(Duration::from_millis(20));
            clients.poll(&sim);
        }
    }
    sim.cut.clear();
    for number in 1..=3 {
        if !sim.is_up(number) {
            sim.start(number);
        }
    }
    sim.elect();
    // Whoever still waits hears something within the time that a request may take.
    sim.pass(Duration::from_secs(10));
    clients.poll(&sim);
    assert!(clients.calls.is_empty(), "seed {seed}: {} calls have no answer", clients.calls.len());
    for number in 1..=3 {
        let handle = sim.handle(number);
        let reply = sim.run(async move { service::kv::put(&handle, put("end", "1")).await });
        reply.unwrap_or_else(|error| panic!("seed {seed}: member {number} takes no puts: {error}"));
    }
    sim.agree();
    let hashes = sim.hashes();
    assert!(hashes.iter().all(|hash| hash == &hashes[0]), "seed {seed}: {hashes:?}");
    for number in 1..=3 {
        clients.check(&mut sim, number);
    }
    let seen = Seen {
        puts: clients.puts.len() as u64,
        reads: clients.reads.len() as u64,
        failed: clients.failed,
        terms: sim.handle(1).facts().term,
        installed: sim.installed,
        read_back: sim.read_back,
    };
    (sim.trace, seen)
}

#[test]
fn nothing_acknowledged_is_lost_and_no_read_is_stale() {
    let seeds = std::env::var("TRILITH_CLUSTER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let first = std::env::var("TRILITH_CLUSTER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut all = Seen::default();
    for seed in first..first + seeds {
        println!("seed {seed}");
        let (_, seen) = run(seed, 6);
        println!("{seen:?}");
        all.puts += seen.puts;
        all.reads += seen.reads;
        all.failed += seen.failed;
        all.terms += seen.terms;
        all.installed += seen.installed;
        all.read_back += seen.read_back;
    }
    println!("{all:?}");
    if seeds >= 12 {
        assert!(all.puts > 80 * seeds && all.reads > 20 * seeds, "work was done: {all:?}");
        assert!(all.terms > 3 * seeds && all.failed > seeds, "it was a storm: {all:?}");
        assert!(all.installed * 4 > seeds && all.read_back > seeds, "members lagged behind: {all:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (one, _) = run(77, 2);
    let (two, _) = run(77, 2);
    let differs = one.iter().zip(&two).position(|(a, b)| a != b);
    assert_eq!(differs.map(|at| (&one[at], &two[at])), None);
    assert_eq!(one.len(), two.len());
    assert!(one.len() > 500, "{} events", one.len());
}
