//! Everything that writes to the disk in one recorded run: transactions, checkpoints beside them, compactions with their
//! search and their removal in pieces, shrinking, and the install of another member's snapshot. It is cut at every write
//! and sync. What is found is one of the states that were durable, never older than the last one that was acknowledged;
//! what was under way goes on and ends as if nothing had been; and the run that goes on from there is cut once more.
//!
//! `TRILITH_CRASH_RUNS` sets the number of runs, each from a new seed; `TRILITH_MODEL_SEED` repeats one.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use trilith_disk::Disk;
use trilith_disk::sim::{SimDisk, Survivors};
use trilith_engine::bolt::{Export, Import, import};
use trilith_engine::{Doomed, KeyRange, Options, Revision, Store};

use crate::model::Model;
use crate::mvcc_common::Random;
use crate::{LEASES, check_all, check_whole_trees};

const STORE: &str = "d/db";
const NEW: &str = "d/db.new";
const SNAPSHOT: &str = "d/snapshot";

/// Steps of the recorded run, between its storms, and of one that goes on after a cut.
const STEPS: usize = 90;
const STEPS_AFTER: usize = 25;
/// Entries that a storm writes and deletes again, with values of some 6 KiB.
const STORM: usize = 160;

/// A state that was durable.
struct Point {
    /// Operations of the disk when it was acknowledged.
    acknowledged_at: usize,
    number: u64,
    model: Rc<Model>,
}

/// A run on one disk.
struct Run<'r> {
    disk: SimDisk,
    random: &'r mut Random,
    store: Option<Store>,
    model: Model,
    published: Rc<Model>,
    number: u64,
    doomed: Option<Doomed>,
    points: Vec<Point>,
    /// Snapshots that were installed, and the most by which the file got shorter, in bytes.
    installed: usize,
    shorter: u64,
}

fn open(disk: &SimDisk) -> Store {
    // A checkpoint cuts the file only by more than what it grows by: so no value is compressed.
    let (path, disk) = (PathBuf::from(STORE), Arc::new(disk.clone()));
    Store::open(Options { path, disk, map: false, dirty_bytes_max: 1 << 20, compress: false }).unwrap()
}

/// One transaction on a store and its model.
fn transaction(random: &mut Random, store: &mut Store, model: &mut Model) {
    let main = model.revision + 1;
    let before = model.events.len();
    let mut txn = store.txn();
    for _ in 0..random.between(1, 3) {
        let at = Revision { main, sub: (model.events.len() - before) as i64 };
        let key = format!("key/{}", random.below(40));
        if random.one_in(5) {
            let end = format!("key/{}", random.below(40));
            let end = (random.one_in(4) && key < end).then_some(end.as_bytes());
            let range = KeyRange { start: key.as_bytes(), end };
            let deleted = model.delete_range(at, range);
            assert_eq!(txn.delete_range(range).unwrap(), deleted);
        } else {
            let size = if random.one_in(20) { 6000 } else { 200 };
            let (value, lease) = (vec![random.next() as u8; random.below(size)], *random.pick(&LEASES));
            model.put(at, key.as_bytes(), &value, lease);
            txn.put(key.as_bytes(), &value, lease).unwrap();
        }
    }
    txn.end();
}

impl<'r> Run<'r> {
    /// On a disk that holds this state.
    fn on(disk: SimDisk, random: &'r mut Random, model: Rc<Model>, number: u64) -> Run<'r> {
        let store = open(&disk);
        assert_eq!(store.applied().0, number);
        let points = vec![Point { acknowledged_at: 0, number, model: model.clone() }];
        let (published, model, store) = (model.clone(), Model::clone(&model), Some(store));
        Run { disk, random, store, model, published, number, doomed: None, points, installed: 0, shorter: 0 }
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("the store is open")
    }

    fn transaction(&mut self) {
        let store = self.store.as_mut().expect("the store is open");
        transaction(self.random, store, &mut self.model);
    }

    fn publish(&mut self) {
        self.store().publish();
        self.published = Rc::new(self.model.clone());
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..8 => (0..self.random.below(12)).for_each(|_| self.transaction()),
            8 => self.publish(),
            9 | 10 => self.compact(),
            11..15 => self.remove(),
            15 => self.store().shrink_now(),
            16 => self.shrink(),
            17 | 18 => self.checkpoint(),
            _ if self.random.one_in(4) => self.install(),
            _ => self.checkpoint(),
        }
    }

    fn compact(&mut self) {
        if self.model.revision > self.model.compacted {
            let low = self.model.compacted.max(self.model.revision - 60) + 1;
            let revision = self.random.between(low, self.model.revision);
            self.store().compact(revision).unwrap();
            self.model.compact(revision);
        }
    }

    /// A part of the removal: a search, or some work on what one has found.
    fn remove(&mut self) {
        self.publish();
        let work = self.random.below(80);
        let store = self.store.as_mut().expect("the store is open");
        if self.doomed.is_none() {
            self.doomed = store.begin_compaction().unwrap().map(|job| job.run().unwrap());
        }
        if let Some(piece) = &mut self.doomed {
            store.remove_doomed(piece, work).unwrap();
            self.doomed = self.doomed.take().filter(|piece| !piece.is_done());
        }
    }

    fn shrink(&mut self) {
        let pages = 1 + self.random.below(16);
        let store = self.store();
        if let Some(scan) = store.begin_shrink_scan() {
            store.finish_shrink_scan(scan.run());
        }
        store.shrink_step(pages).unwrap();
    }

    /// The writer goes on while the checkpoint is written.
    fn checkpoint(&mut self) {
        self.number += 1;
        let number = self.number;
        self.store().set_applied(number, 1);
        self.publish();
        let frozen = self.published.clone();
        let long = self.store().file_bytes();
        let job = self.store().begin_checkpoint().expect("no other checkpoint is running");
        for _ in 0..self.random.below(4) {
            match self.random.below(3) {
                0 => self.remove(),
                1 => self.shrink(),
                _ => self.transaction(),
            }
        }
        let done = job.run().unwrap();
        self.acknowledge(frozen);
        self.store().finish_checkpoint(done).unwrap();
        self.shorter = self.shorter.max(long.saturating_sub(self.store().file_bytes()));
    }

    fn acknowledge(&mut self, model: Rc<Model>) {
        let acknowledged_at = self.disk.op_count();
        self.points.push(Point { acknowledged_at, number: self.number, model });
    }

    /// Another member has gone on from what is durable here, and sends what it has; that takes the store's place.
    fn install(&mut self) {
        self.checkpoint();
        let last = self.points.last().expect("there is a first one");
        let (mut model, mut other) = (Model::clone(&last.model), open(&self.disk.fork()));
        for _ in 0..self.random.below(60) {
            transaction(self.random, &mut other, &mut model);
        }
        self.number += 1;
        other.set_applied(self.number, 1);
        other.publish();
        let export = Export::new(other.reader().root()).unwrap();
        export.save(&self.disk, Path::new(SNAPSHOT), &mut |_| ()).unwrap();
        // What a cut install left.
        if self.disk.exists(Path::new(NEW)) {
            self.disk.remove(Path::new(NEW)).unwrap();
        }
        let options = Import {
            disk: Arc::new(self.disk.clone()),
            from: SNAPSHOT.into(),
            to: NEW.into(),
            skip_hash_check: false,
            bump_revision: 0,
            memory: 0,
        };
        let imported = import(&options, &mut |_, _| ()).unwrap();
        assert_eq!((imported.applied.0, imported.revision), (self.number, model.revision));
        (self.doomed, self.store) = (None, None);
        self.disk.rename(Path::new(NEW), Path::new(STORE)).unwrap();
        self.disk.sync_dir(Path::new("d")).unwrap();
        self.store = Some(open(&self.disk));
        self.model = model;
        self.published = Rc::new(self.model.clone());
        self.acknowledge(self.published.clone());
        self.installed += 1;
    }

    /// So much is written that the file grows, all of it is removed, and the file gets short again.
    fn storm(&mut self) {
        let mut store = self.store.take().expect("the store is open");
        for n in 0..STORM {
            let (key, at) = (format!("storm/{n:03}"), Revision { main: self.model.revision + 1, sub: 0 });
            let value = vec![n as u8; 6000];
            self.model.put(at, key.as_bytes(), &value, 0);
            store.txn().put(key.as_bytes(), &value, 0).unwrap();
        }
        self.store = Some(store);
        self.checkpoint();
        let range = KeyRange { start: b"storm/", end: Some(b"storm0") };
        let at = Revision { main: self.model.revision + 1, sub: 0 };
        let deleted = self.model.delete_range(at, range);
        assert_eq!(self.store().txn().delete_range(range).unwrap(), deleted);
        self.publish();
        let revision = self.model.revision;
        self.store().compact(revision).unwrap();
        self.model.compact(revision);
        while self.store().view().finished_compaction().unwrap() < revision {
            self.remove();
        }
        self.store().shrink_now();
        while !self.store().shrink_rests() {
            self.shrink();
            if self.store().shrink_wants_checkpoint() {
                self.checkpoint();
            }
        }
    }

    fn steps(&mut self, steps: usize) {
        (0..steps).for_each(|_| self.step());
    }
}

fn remove_all(store: &mut Store) {
    store.publish();
    while let Some(job) = store.begin_compaction().unwrap() {
        let mut doomed = job.run().unwrap();
        while !doomed.is_done() {
            store.remove_doomed(&mut doomed, 50).unwrap();
        }
        store.publish();
    }
}

/// Opens what the cut left; which point it is. Compares, ends what had been begun, and compares again.
fn verify<'p>(random: &mut Random, cut: &SimDisk, points: &'p [Point], ops: usize) -> &'p Point {
    let mut store = open(cut);
    let found = store.applied().0;
    let acknowledged =
        points.iter().filter(|point| point.acknowledged_at <= ops).map(|point| point.number).max();
    assert!(Some(found) >= acknowledged, "cut at {ops}: acknowledged {acknowledged:?}, found {found}");
    let point = points.iter().find(|point| point.number == found).expect("a state of the run");
    store.check().unwrap_or_else(|error| panic!("cut at {ops}: {error}"));
    check_all(random, store.view(), &point.model);
    remove_all(&mut store);
    store.check().unwrap_or_else(|error| panic!("cut at {ops}, compacted: {error}"));
    check_whole_trees(store.view(), &point.model);
    point
}

/// Goes on from what the first cut left, and is cut again.
fn go_on(random: &mut Random, cut: SimDisk, from: &Point) {
    let mut run = Run::on(cut, random, from.model.clone(), from.number);
    run.steps(STEPS_AFTER);
    run.checkpoint();
    let Run { disk, points, store, .. } = run;
    drop(store);
    let ops = random.below(disk.op_count() + 1);
    let cut = disk.crash(ops, Survivors::Random(random.next()));
    verify(random, &cut, &points, ops);
    verify(random, &disk.fork(), &points, disk.op_count());
}

fn one_run(random: &mut Random, often: bool) {
    let disk = SimDisk::new();
    drop(open(&disk));
    let begin = disk.fork();
    let mut run = Run::on(begin, random, Rc::new(Model::new()), 0);
    run.steps(STEPS / 2);
    run.storm();
    run.install();
    run.steps(STEPS / 2);
    run.checkpoint();
    assert!(run.installed > 0 && run.shorter >= 256 << 10, "{} bytes shorter", run.shorter);
    let Run { disk, points, store, .. } = run;
    drop(store);
    for ops in 0..=disk.op_count() {
        let torn = [random.next(), random.next()].map(Survivors::Random);
        let all = [Survivors::None, torn[0], Survivors::All, torn[1]];
        let survivors = if often { &all[..] } else { &all[ops % 4..=ops % 4] };
        for survivors in survivors {
            let point = verify(random, &disk.crash(ops, *survivors), &points, ops);
            if often || random.one_in(4) {
                go_on(random, disk.crash(ops, *survivors), point);
            }
        }
    }
    println!("{} operations of the disk, {} states", disk.op_count(), points.len());
}

#[test]
fn every_cut_of_everything_finds_what_was_acknowledged_and_goes_on() {
    let runs: Option<usize> = std::env::var("TRILITH_CRASH_RUNS").ok().and_then(|runs| runs.parse().ok());
    for _ in 0..runs.unwrap_or(1) {
        one_run(&mut Random::from_environment(), runs.is_some());
    }
}
