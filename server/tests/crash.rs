//! Power cuts at every point of a member's life: log and store stand on one simulated disk.
//!
//! After each cut the member must start, hold exactly the state of some revision, and that revision must not be
//! below the last one that was acknowledged before the cut. Then it goes on, is cut again, and must still hold.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use common::{Bed, config, delete, get_range, put, revision_of, text};
use trilith_disk::sim::{SimDisk, Survivors};
use trilith_proto::etcdserverpb as pb;
use trilith_server::core::{Config, Core};
use trilith_server::reply::Reply;
use trilith_server::service;
use trilith_server::status::Status;

type State = BTreeMap<String, String>;
type Call = Pin<Box<dyn Future<Output = Result<Reply, Status>>>>;

/// What a run acknowledged, and the state of every revision.
struct Run {
    disk: SimDisk,
    /// (operations of the disk when the answer came, revision of the answer).
    acknowledged: Vec<(usize, i64)>,
    /// By revision.
    history: BTreeMap<i64, State>,
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn small(disk: &SimDisk) -> Config {
    Config { checkpoint_log_bytes: 3 << 10, wal_segment_bytes: 16 << 10, max_wals: 1, ..config(disk) }
}

fn open(disk: &SimDisk) -> Bed {
    Bed::with(small(disk), disk.clone()).unwrap_or_else(|error| panic!("the member starts: {error}"))
}

/// Batches of puts and deletes, each one revision, some of them proposed together.
fn run(seed: u64, batches: usize) -> Run {
    let mut rng = Rng(seed);
    let disk = SimDisk::new();
    let mut bed = open(&disk);
    let mut state = State::new();
    let mut history = BTreeMap::from([(1, state.clone())]);
    let mut acknowledged = Vec::new();
    for batch in 0..batches {
        let mut calls: Vec<Call> = Vec::new();
        for _ in 0..=rng.below(4) {
            let key = format!("k{}", rng.below(12));
            if rng.below(5) == 0 && state.contains_key(&key) {
                state.remove(&key);
                calls.push(Box::pin(service::kv::delete_range(&bed.handle, delete(&key, ""))));
            } else {
                let value = format!("{batch}-{}", "v".repeat(rng.below(300) as usize));
                calls.push(Box::pin(service::kv::put(&bed.handle, put(&key, &value))));
                state.insert(key, value);
            }
            history.insert(1 + history.len() as i64, state.clone());
        }
        for mut call in calls {
            let reply = bed.run(call.as_mut()).unwrap();
            acknowledged.push((disk.op_count(), revision_of(&header_of(&reply))));
        }
        bed.now += Duration::from_millis(20);
        if batch % 25 == 24 {
            let revision = bed.revision() - 5;
            bed.compact(revision, false).unwrap();
        }
    }
    Run { disk, acknowledged, history }
}

/// Of a PutResponse without a previous pair as well: both have the header as their first field.
fn header_of(reply: &Reply) -> Option<pb::ResponseHeader> {
    let response: pb::DeleteRangeResponse = prost::Message::decode(reply.message()).unwrap();
    response.header
}

fn state_of(bed: &mut Bed) -> (i64, State) {
    let response = bed.range(get_range("\0", "\0")).unwrap();
    let pairs = response.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value)));
    (revision_of(&response.header), pairs.collect())
}

fn check(run: &Run, cut: usize, survivors: Survivors) {
    let context = format!("cut at {cut} of {}, {survivors:?}", run.disk.op_count());
    let disk = run.disk.crash(cut, survivors);
    let mut bed = open(&disk);
    let (revision, state) = state_of(&mut bed);
    let least = run.acknowledged.iter().filter(|(ops, _)| *ops <= cut).map(|(_, revision)| *revision).max();
    assert!(revision >= least.unwrap_or(1), "{context}: at revision {revision}, {least:?} was acknowledged");
    assert_eq!(Some(&state), run.history.get(&revision), "{context}: state of revision {revision}");
    if !cut.is_multiple_of(7) {
        return;
    }
    bed.put("after", "the cut");
    let disk = disk.crash(disk.op_count(), Survivors::None);
    drop(bed);
    let mut bed = open(&disk);
    let (again, mut after) = state_of(&mut bed);
    assert_eq!(
        (again, after.remove("after")),
        (revision + 1, Some("the cut".into())),
        "{context}: cut again"
    );
    assert_eq!(after, state, "{context}: cut again");
}

#[test]
fn every_acknowledged_change_survives_every_cut() {
    let seed = 0x5eed_0001;
    println!("seed {seed:#x}");
    let run = run(seed, 60);
    let ops = run.disk.op_count();
    assert!(run.history.len() > 100 && ops > 150, "{} revisions, {ops} operations", run.history.len());
    let (core, handle) = Core::open(small(&run.disk.crash(ops, Survivors::None))).unwrap();
    assert!(handle.root().applied().0 > 50, "the run wrote checkpoints");
    drop(core);
    println!("{} revisions, {ops} operations", run.history.len());
    for cut in 0..=ops {
        check(&run, cut, Survivors::None);
        check(&run, cut, Survivors::Random(seed + cut as u64));
        if cut.is_multiple_of(5) {
            check(&run, cut, Survivors::All);
        }
    }
}

#[test]
fn a_cut_while_stopping_loses_nothing() {
    let disk = SimDisk::new();
    let mut bed = open(&disk);
    for i in 0..20 {
        bed.put(&format!("k{i}"), "v");
    }
    let begin = disk.op_count();
    bed.core.close(bed.now).unwrap();
    if let Some(job) = bed.core.begin_last_checkpoint() {
        bed.core.checkpoint_finished(job.run()).unwrap();
    }
    bed.core.flush().unwrap();
    for cut in begin..=disk.op_count() {
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(cut as u64)] {
            let mut bed = open(&disk.crash(cut, survivors));
            assert_eq!(state_of(&mut bed).1.len(), 20, "cut at {cut}, {survivors:?}");
        }
    }
}

#[test]
fn an_open_member_that_never_stepped_leaves_nothing_behind() {
    let disk = SimDisk::new();
    drop(Core::open(small(&disk)).unwrap());
    for cut in 0..=disk.op_count() {
        let mut bed = open(&disk.crash(cut, Survivors::None));
        assert_eq!(bed.put("a", "1").header.unwrap().revision, 2, "cut at {cut}");
    }
}
