//! Random histories: the store against a list of all events (`model.rs`), with old roots held while the writer goes
//! on, compactions removed bit by bit, and checkpoints and restarts at random moments.
//!
//! `TRILITH_MODEL_OPS` sets the number of operations, `TRILITH_MODEL_SEED` repeats a run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../mvcc_common/mod.rs"]
mod mvcc_common;

mod crash;
mod model;

use std::rc::Rc;

use bytes::Bytes;
use mvcc_common::{ALL, Folder, Random};
use trilith_engine::{
    Change, CompactionJob, Doomed, KeyMeta, KeyRange, Revision, Root, Store, StoreError, TreeId, View,
};

use model::Model;

const LEASES: [i64; 5] = [0, 0, 7, -1, i64::MAX];

/// The store, and the model of each state of it that can come up again.
struct Run {
    random: Random,
    folder: Folder,
    store: Option<Store>,
    model: Rc<Model>,
    published: Rc<Model>,
    durable: Rc<Model>,
    held: Vec<(Root, Rc<Model>)>,
    /// A compaction was marked, and not all that it supersedes is gone yet.
    compacting: bool,
    piece: Piece,
}

/// A piece of a compaction that waits: to be looked through in a root that grows old, or to be removed.
enum Piece {
    None,
    Job(CompactionJob),
    Doomed(Doomed),
}

fn operations() -> usize {
    std::env::var("TRILITH_MODEL_OPS").ok().and_then(|ops| ops.parse().ok()).unwrap_or(50_000)
}

#[test]
fn the_store_equals_a_list_of_events() {
    let mut run = Run::new(Random::from_environment());
    for op in 0..operations() {
        run.step(op);
    }
    run.check_everything();
}

impl Run {
    fn new(random: Random) -> Run {
        let folder = Folder::new();
        let store = Some(folder.open(true));
        let model = Rc::new(Model::new());
        let (published, durable) = (model.clone(), model.clone());
        let (held, piece) = (Vec::new(), Piece::None);
        Run { random, folder, store, model, published, durable, held, compacting: false, piece }
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("the store is open")
    }

    fn step(&mut self, op: usize) {
        match self.random.below(1000) {
            0..500 => self.transaction(),
            500..800 => self.read(),
            800..900 => self.compact_step(),
            // Every fourth stretch is left to grow.
            900..904 if op / 8192 % 4 != 2 => self.compact(),
            904..980 => self.publish(),
            980..995 => self.hold(),
            995 => self.checkpoint(),
            996 if self.random.one_in(2) => self.restart(),
            _ => self.check_everything(),
        }
        if op.is_multiple_of(100_000) {
            println!("{op} operations, revision {}, {} events", self.model.revision, self.model.events.len());
        }
    }

    /// Few keys, near each other in every way that an order could get wrong; one is written more than the others.
    fn key(&mut self) -> Vec<u8> {
        if self.random.one_in(4) {
            return b"hot".to_vec();
        }
        let bytes = *self.random.pick(&[&b"a\0\xff"[..], b"ab", b"\xff"]);
        (0..self.random.between(1, 4)).map(|_| *self.random.pick(bytes)).collect()
    }

    /// Bounds of an interval; the end as in `KeyRange`.
    fn interval(&mut self) -> (Vec<u8>, Option<Vec<u8>>) {
        let start = self.key();
        match self.random.below(6) {
            0..3 => (start, None),
            3 => (start, Some(Vec::new())),
            4 => (Vec::new(), Some(Vec::new())),
            _ => (start, Some(self.key())),
        }
    }

    fn transaction(&mut self) {
        let mut store = self.store.take().expect("the store is open");
        let before = self.model.events.len();
        let main = self.model.revision + 1;
        let mut txn = store.txn();
        let changes = if self.random.one_in(8) { self.random.below(12) } else { 1 };
        for _ in 0..changes {
            let model = Rc::make_mut(&mut self.model);
            let at = Revision { main, sub: (model.events.len() - before) as i64 };
            if self.random.below(10) < 7 {
                let (key, lease) = (self.key(), *self.random.pick(&LEASES));
                let size = if self.random.one_in(300) { 20_000 } else { 30 };
                let value = vec![self.random.next() as u8; self.random.below(size)];
                Rc::make_mut(&mut self.model).put(at, &key, &value, lease);
                txn.put(&key, &value, lease).unwrap();
            } else {
                let (start, end) = self.interval();
                let end = end.filter(|end| !end.is_empty() || self.random.one_in(20));
                let range = KeyRange { start: &start, end: end.as_deref() };
                let deleted = Rc::make_mut(&mut self.model).delete_range(at, range);
                assert_eq!(txn.delete_range(range).unwrap(), deleted);
            }
            assert_eq!(txn.revision(), self.model.revision);
            assert_eq!(txn.view().revision(), self.model.revision);
            if self.random.one_in(10) {
                check_range(&mut self.random, txn.view(), &self.model, ALL, 0);
            }
        }
        let expected: Vec<Change> = self.model.events[before..].iter().map(|event| event.change()).collect();
        assert_eq!(txn.end(), expected);
        self.store = Some(store);
    }

    /// One kind of read, from one of the states that are there.
    fn read(&mut self) {
        let (start, end) = self.interval();
        let range = KeyRange { start: &start, end: end.as_deref() };
        let store = self.store.as_ref().expect("the store is open");
        let (root, view, model);
        match self.random.below(3) {
            0 if !self.held.is_empty() => {
                let (held, of) = self.random.pick(&self.held);
                (view, model) = (held.view(), of);
            }
            1 => {
                root = store.reader().root();
                (view, model) = (root.view(), &self.published);
            }
            _ => (view, model) = (store.view(), &self.model),
        }
        let random = &mut self.random;
        let revision = random.between(model.compacted.max(1) - 2, model.revision + 2);
        match random.below(20) {
            0..13 => check_range(random, view, model, range, revision),
            13..15 => check_hash(view, model, revision),
            15 => check_leases(view, model),
            _ => {
                check_changes(view, model, random.between(model.compacted + 1, model.revision + 2), revision)
            }
        }
    }

    fn publish(&mut self) {
        self.store().publish();
        self.published = self.model.clone();
    }

    fn hold(&mut self) {
        let root = self.store().reader().root();
        self.held.push((root, self.published.clone()));
        if self.held.len() > 10 {
            let dropped = self.random.below(self.held.len());
            self.held.swap_remove(dropped);
        }
    }

    fn compact(&mut self) {
        let (low, high) = (self.model.compacted, self.model.revision);
        let revision = match self.random.below(3) {
            0 => self.random.between(low - 1, high + 1),
            1 => high,
            _ => (high - 50).max(low),
        };
        let result = self.store().compact(revision);
        if revision <= low {
            assert!(matches!(result, Err(StoreError::Compacted)), "{revision} <= {low}: {result:?}");
        } else if revision > high {
            assert!(matches!(result, Err(StoreError::Future)), "{revision} > {high}: {result:?}");
        } else {
            result.unwrap();
            self.compacted(revision);
            if self.random.one_in(2) {
                self.hurried_compactions();
            }
        }
    }

    fn compacted(&mut self, revision: i64) {
        let ended = self.store().view().finished_compaction().unwrap() >= self.model.compacted;
        let model = Rc::make_mut(&mut self.model);
        if ended {
            model.note_hash(revision);
        }
        model.compact(revision);
        self.compacting = true;
    }

    /// Each taken over by the next one, at every stage of its removal.
    fn hurried_compactions(&mut self) {
        while self.compacting {
            self.compact_step();
        }
        for _ in 0..self.random.below(5) {
            self.transaction();
            let revision = self.model.revision;
            if revision > self.model.compacted {
                self.store().compact(revision).unwrap();
                self.compacted(revision);
            }
            for _ in 0..self.random.below(5) {
                self.compact_step();
            }
        }
    }

    fn compact_step(&mut self) {
        match self.random.below(3) {
            0 => self.piece_step(),
            1 => {
                let budget = self.random.below(40);
                self.store().compact_step(budget).unwrap();
            }
            _ => {
                let budget = self.random.below(3);
                self.store().compact_step(budget).unwrap();
            }
        }
        if self.compacting && self.store().view().finished_compaction().unwrap() == self.model.compacted {
            self.compacting = false;
            self.check_whole_trees();
        }
    }

    /// One step of a piece, which `compact_step` may overtake.
    fn piece_step(&mut self) {
        self.piece = match std::mem::replace(&mut self.piece, Piece::None) {
            Piece::None => match self.store().begin_compaction().unwrap() {
                None => Piece::None,
                Some(job) => Piece::Job(job),
            },
            Piece::Job(job) => Piece::Doomed(job.run().unwrap()),
            Piece::Doomed(mut doomed) => {
                let work = if self.random.one_in(2) { self.random.below(30) } else { 1000 };
                self.store().remove_doomed(&mut doomed, work).unwrap();
                if doomed.is_done() { Piece::None } else { Piece::Doomed(doomed) }
            }
        };
    }

    fn checkpoint(&mut self) {
        let job = self.store().begin_checkpoint().or_else(|| {
            // The last one ended while a batch was being built, which is not published yet.
            self.publish();
            self.store().begin_checkpoint()
        });
        let job = job.expect("no other checkpoint is running");
        let frozen = self.published.clone();
        let done = job.run().unwrap();
        for _ in 0..self.random.below(3) {
            self.transaction();
            self.compact_step();
            self.publish();
        }
        self.store().finish_checkpoint(done).unwrap();
        self.durable = frozen;
    }

    /// Forgets everything since the last checkpoint.
    fn restart(&mut self) {
        self.held.clear();
        self.piece = Piece::None;
        self.store = None;
        self.store = Some(self.folder.open(self.random.one_in(2)));
        self.model = self.durable.clone();
        self.published = self.durable.clone();
        self.compacting = true;
        self.check_everything();
    }

    /// All that can be asked, of the writer's state and of one held root.
    fn check_everything(&mut self) {
        let store = self.store.as_ref().expect("the store is open");
        // Sums that were noted in memory are compared, too.
        store.check().unwrap();
        check_kinds(store.view());
        check_all(&mut self.random, store.view(), &self.model);
        if !self.held.is_empty() {
            let (root, model) = &self.held[self.random.below(self.held.len())];
            check_all(&mut self.random, root.view(), model);
        }
        if !self.compacting {
            self.check_whole_trees();
        }
    }

    fn check_whole_trees(&self) {
        check_whole_trees(self.store.as_ref().expect("the store is open").view(), &self.model);
    }
}

/// The first byte of each value of the index follows from the entry before it: `docs/format.md`.
fn check_kinds(view: View<'_>) {
    let mut cursor = view.seek(TreeId::Index, b"").unwrap();
    let mut before: Option<(Vec<u8>, bool)> = None;
    while let Some(entry) = cursor.key() {
        let key = &entry[..entry.len() - 12];
        let value = cursor.value().unwrap().unwrap();
        let tombstone = value.len() == 1;
        let again = before.as_ref().is_some_and(|(other, tombstone)| other == key && !tombstone);
        let expected = match (tombstone, again) {
            (false, true) => 0,
            (false, false) => 1,
            (true, true) => 2,
            (true, false) => 3,
        };
        assert_eq!(value[0], expected, "at {}", entry.escape_ascii());
        before = Some((key.to_vec(), tombstone));
        cursor.next().unwrap();
    }
}

/// Nothing more and nothing less than etcd holds: in the history, the index and the attachments.
fn check_whole_trees(view: View<'_>, model: &Model) {
    check_kinds(view);
    check_changes(view, model, 0, i64::MAX);
    let (found, expected) = (index_entries(view), model.index_entries());
    let same = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
    assert_eq!(
        (found.get(same), found.len()),
        (expected.get(same), expected.len()),
        "entry {same} of the index"
    );
    let attached: usize = LEASES[1..].iter().map(|lease| model.lease_keys(*lease).len()).sum();
    assert_eq!(entries(view, TreeId::LeaseKey).len(), attached);
}

fn index_entries(view: View<'_>) -> Vec<(Vec<u8>, Revision)> {
    let parse = |entry: Vec<u8>| {
        let (key, at) = entry.split_at(entry.len() - 12);
        let main = i64::from_be_bytes(at[..8].try_into().unwrap());
        let sub = u32::from_be_bytes(at[8..].try_into().unwrap());
        (key.to_vec(), Revision { main, sub: i64::from(sub) })
    };
    entries(view, TreeId::Index).into_iter().map(parse).collect()
}

/// The keys of a tree.
fn entries(view: View<'_>, tree: TreeId) -> Vec<Vec<u8>> {
    let mut cursor = view.seek(tree, b"").unwrap();
    let mut keys = Vec::new();
    while let Some(key) = cursor.key() {
        keys.push(key.to_vec());
        cursor.next().unwrap();
    }
    keys
}

fn check_all(random: &mut Random, view: View<'_>, model: &Model) {
    assert_eq!(view.revision(), model.revision);
    assert_eq!(view.compact_revision(), model.compacted);
    for revision in [0, model.compacted, random.between(model.compacted.max(1), model.revision)] {
        check_range(random, view, model, ALL, revision);
        check_hash(view, model, revision);
    }
    check_leases(view, model);
    check_changes(view, model, model.compacted + 1, model.revision);
}

/// What a read at the revision must answer: the revision it means, or the refusal.
fn allowed(model: &Model, revision: i64) -> Result<i64, &'static str> {
    match if revision <= 0 { model.revision } else { revision } {
        revision if revision > model.revision => Err("Future"),
        revision if revision < model.compacted => Err("Compacted"),
        revision => Ok(revision),
    }
}

fn check_range(random: &mut Random, view: View<'_>, model: &Model, range: KeyRange<'_>, revision: i64) {
    let keys = view.keys(range, revision);
    let revision = match allowed(model, revision) {
        Ok(revision) => revision,
        Err(refused) => return assert_eq!(format!("{:?}", keys.err()), format!("Some({refused})")),
    };
    let current = view.keys(range, 0).unwrap();
    assert_eq!(current.remaining().unwrap(), model.live(range, i64::MAX).len() as u64, "{range:?}");
    let keys: Vec<KeyMeta<'_>> = keys.unwrap().map(Result::unwrap).collect();
    let expected = model.live(range, revision);
    assert_eq!(keys.len(), expected.len(), "{range:?} at {revision}");
    for (key, kv) in keys.iter().zip(&expected) {
        assert_eq!(key.key, &kv.key[..], "{range:?} at {revision}");
        assert_eq!(key.modified.main, kv.mod_revision);
        assert_eq!((key.create_revision, key.version), (kv.create_revision, kv.version));
        assert_eq!(key.lease, kv.lease);
        if random.one_in(10) {
            let event = model.events.iter().find(|event| event.at == key.modified).expect("the model has it");
            assert_eq!(view.kv(key.modified).unwrap()[..], event.change().kv);
        }
    }
    let taken = random.below(keys.len() + 2);
    let mut counted = view.keys(range, revision).unwrap();
    counted.by_ref().take(taken).for_each(drop);
    assert_eq!(counted.remaining().unwrap(), keys.len().saturating_sub(taken) as u64);
}

fn check_hash(view: View<'_>, model: &Model, revision: i64) {
    let hash = view.hash_kv(revision);
    // Perhaps the compaction has not ended, or a step that overtook another's lost it.
    let kept = model.hashes.iter().find(|kept| kept.0 == revision && revision > 0);
    if let (Some((revision, before, kept)), Ok(found)) = (kept, &hash)
        && *found == (*kept, *before, *revision)
    {
        return;
    }
    // HashKV takes only 0 for the current revision; a negative one precedes every entry.
    let revision = if revision == 0 { model.revision } else { revision };
    if revision > model.revision {
        assert!(matches!(hash, Err(StoreError::Future)), "{hash:?}");
    } else if revision > 0 && revision < model.compacted {
        assert!(matches!(hash, Err(StoreError::Compacted)), "{hash:?}");
    } else {
        let expected = (model.hash_kv(revision), model.compacted, revision);
        assert_eq!(hash.unwrap(), expected, "compacted {}", model.compacted);
    }
}

fn check_leases(view: View<'_>, model: &Model) {
    for lease in LEASES {
        let keys: Vec<Bytes> = view.lease_keys(lease).unwrap();
        assert_eq!(keys, model.lease_keys(lease), "lease {lease}");
    }
}

fn check_changes(view: View<'_>, model: &Model, from: i64, to: i64) {
    let changes: Vec<Change> = view.changes(from, to).unwrap().map(Result::unwrap).collect();
    let expected = model.events.iter().filter(|event| (from..=to).contains(&event.at.main));
    let expected: Vec<Change> = expected.map(|event| event.change()).collect();
    assert_eq!(changes, expected, "{from} to {to}");
}
