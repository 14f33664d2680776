//! A campaign of flipped bits: one bit of the store's file or of the log is another, the member starts, and everything
//! is read; then it compacts, and what is left is read again. Every answer is right, or an error that names the file and the place in it. Never a wrong answer, never a
//! panic, never a member that hangs.
//!
//! The long form is the same with more of them; a failure prints the seed and the bit:
//!
//! ```text
//! TRILITH_FLIPS=10000 cargo test -p trilith-server --test flips -- --nocapture
//! TRILITH_SEED=12345 TRILITH_FLIPS=10000 cargo test -p trilith-server --test flips -- --nocapture
//! ```
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use common::{Bed, config, delete, get_range, op_delete, op_put, txn};
use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, Open};
use trilith_engine::bolt::Export;
use trilith_fuzz::Rng;
use trilith_proto::etcdserverpb as pb;
use trilith_server::core::{Config, Fatal};
use trilith_server::reply::{Body, Reply};
use trilith_server::service;
use trilith_server::status::{self, Status};
use trilith_server::watch::What;

const STORE: &str = "data/member/snap/db";
const LOG: &str = "data/member/wal";
const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// Names of answers: the compaction's, and how those end that come after it.
const COMPACTION: &str = "compaction";
const LEFT: &str = " of what is left";

fn small(disk: &SimDisk) -> Config {
    Config { checkpoint_log_bytes: 48 << 10, wal_segment_bytes: 64 << 10, max_wals: 2, ..config(disk) }
}

fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() }
}

/// Bytes without zeros: a sector of zeros in a record looks like a lost one, which no reader can tell from a tear.
fn noise(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.next() as u8 | 1).collect()
}

/// A member with every kind of page in its store, which went down with a part of its log not yet in a checkpoint.
fn member(rng: &mut Rng) -> SimDisk {
    let disk = SimDisk::new();
    let mut bed = Bed::with(small(&disk), disk.clone()).unwrap();
    for lease in [5, 6, 7] {
        bed.grant(lease, 600).unwrap();
    }
    for n in 0..260 {
        let mut key = format!("key/{:03}", rng.below(200)).into_bytes();
        match n % 13 {
            // Some stand in the page and let branches split soon, some are long.
            0 | 1 => key.resize(850, b'p'),
            2 => key.resize(1300, b'q'),
            _ => {}
        }
        let value = match rng.below(20) {
            0 => {
                let len = 600 + rng.below(9000);
                noise(rng, len)
            }
            1 | 2 => vec![b'a' + n as u8 % 20; 1024 + rng.below(9000)],
            3 => Vec::new(),
            _ => {
                let len = rng.below(120);
                noise(rng, len)
            }
        };
        bed.try_put(put(key, value, [0, 0, 0, 5, 6][rng.below(5)])).unwrap();
        if n % 17 == 0 {
            bed.delete(delete(&format!("key/{:02}", rng.below(20)), &format!("key/{:02}x", rng.below(20))))
                .unwrap();
        }
        if n % 29 == 0 {
            bed.txn(txn(
                vec![op_put("key/000", "one"), op_delete("key/001", ""), op_put("t", "two")],
                vec![],
            ))
            .unwrap();
        }
        if n == 120 || n == 200 {
            bed.compact(bed.revision() - 60, true).unwrap();
        }
        bed.now += Duration::from_millis(10);
    }
    bed.revoke(7).unwrap();
    disk.fork()
}

/// What is read, by name: the right answer or an error. An answer that the member's end prevented is missing.
type Answers = BTreeMap<String, Result<Vec<u8>, String>>;

struct Reader {
    bed: Bed,
    answers: Answers,
}

fn reply_bytes(reply: Reply) -> Vec<u8> {
    reply.message().to_vec()
}

/// The message of an answer, or the error that a part of it came to.
fn in_one_piece(body: Body) -> Result<Vec<u8>, Status> {
    let mut parts = match body {
        Body::Whole(reply) => return Ok(reply_bytes(reply)),
        Body::Parts(parts) => parts,
    };
    let mut frame = Vec::new();
    while let Some(part) = parts.next() {
        frame.extend_from_slice(&part?);
    }
    Ok(frame.split_off(5))
}

impl Reader {
    fn ask(
        &mut self,
        name: String,
        call: impl Future<Output = Result<Vec<u8>, Status>>,
    ) -> Result<(), Fatal> {
        let answer = self.bed.try_run(call)?;
        self.answers.insert(name, answer.map_err(|status| status.message.into_owned()));
        Ok(())
    }

    fn range(&mut self, name: String, request: pb::RangeRequest) -> Result<(), Fatal> {
        let handle = self.bed.handle.clone();
        self.ask(name, async move { in_one_piece(service::kv::range(&handle, request).await?) })
    }

    /// All keys at some revisions, and hashes over them. The root has them even when the damage ends the service.
    fn kv(&mut self, revisions: &[i64]) -> Result<(), Fatal> {
        for &revision in revisions {
            let all = pb::RangeRequest { revision, ..get_range("\0", "\0") };
            self.range(format!("range {revision}"), pb::RangeRequest { serializable: true, ..all.clone() })?;
            self.range(format!("count {revision}"), pb::RangeRequest { count_only: true, ..all.clone() })?;
            self.range(format!("one {revision}"), pb::RangeRequest { revision, ..common::get("key/000") })?;
            let handle = self.bed.handle.clone();
            // At a compaction's own revision the hash depends on whether this process has seen it end (X9).
            let revision = revision + i64::from(revision == revisions[0]);
            let call = async move {
                service::maintenance::hash_kv(&handle, pb::HashKvRequest { revision }).await.map(reply_bytes)
            };
            self.ask(format!("hash {revision}"), call)?;
        }
        Ok(())
    }

    /// Compacts all but the newest two revisions, to the end, and reads what is left. What the search met or the removal
    /// needed may be damaged.
    fn compacted(&mut self, revisions: &[i64]) -> Result<(), Fatal> {
        let rest = &revisions[revisions.len() - 2..];
        let request = pb::CompactionRequest { revision: rest[0], physical: true };
        let handle = self.bed.handle.clone();
        let mut call = pin!(async move { service::kv::compact(&handle, request).await.map(reply_bytes) });
        let outcome = loop {
            if let Some(outcome) = self.bed.poll(call.as_mut()) {
                break outcome;
            }
            self.bed.now += Duration::from_millis(1);
            assert!(self.bed.now < Duration::from_secs(600), "the compaction has an end");
            self.bed.step()?;
        };
        self.answers.insert(COMPACTION.into(), outcome.map_err(|status| status.message.into_owned()));
        self.left(rest)
    }

    fn left(&mut self, revisions: &[i64]) -> Result<(), Fatal> {
        for &revision in revisions {
            let all = pb::RangeRequest { revision, ..get_range("\0", "\0") };
            self.range(format!("range {revision}{LEFT}"), all.clone())?;
            let count = pb::RangeRequest { count_only: true, ..all };
            self.range(format!("count {revision}{LEFT}"), count)?;
            let one = pb::RangeRequest { revision, ..common::get("key/000") };
            self.range(format!("one {revision}{LEFT}"), one)?;
        }
        Ok(())
    }

    fn leases(&mut self) -> Result<(), Fatal> {
        let handle = self.bed.handle.clone();
        self.ask("leases".into(), async move {
            service::lease::leases(&handle, pb::LeaseLeasesRequest {}).await.map(reply_bytes)
        })?;
        for id in [5, 6, 7] {
            let handle = self.bed.handle.clone();
            let request = pb::LeaseTimeToLiveRequest { id, keys: true };
            let call = async move { service::lease::time_to_live(&handle, request).await.map(reply_bytes) };
            self.ask(format!("lease {id}"), call)?;
        }
        Ok(())
    }

    /// All that ever happened and was not compacted.
    fn watch(&mut self, from: i64) {
        let mut stream = self.bed.handle.hub().open();
        let request = pb::WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision: from,
            ..Default::default()
        };
        stream.create(&request).unwrap();
        let mut seen = Vec::new();
        let outcome = loop {
            match stream.poll_deliveries(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => break Ok(seen.join("\n").into_bytes()),
                Poll::Ready(Err(error)) => break Err(error.to_string()),
                Poll::Ready(Ok(deliveries)) => seen.extend(deliveries.iter().map(|d| match &d.what {
                    What::Changes { changes, .. } => format!("{changes:?}"),
                    other => format!("{other:?}"),
                })),
            }
        };
        self.answers.insert("watch".into(), outcome);
    }

    fn snapshot(&mut self) {
        let export = Export::new(self.bed.handle.root()).and_then(|mut export| {
            let mut all = Vec::new();
            while let Some(chunk) = export.next_chunk()? {
                all.extend_from_slice(&chunk);
            }
            Ok(all)
        });
        self.answers.insert("snapshot".into(), export.map_err(|error| error.to_string()));
    }
}

/// Starts what the disk holds and reads it all; the error that it started or stopped with.
fn read_all(disk: &SimDisk, revisions: &[i64]) -> (Answers, Option<Fatal>) {
    let bed = match Bed::with(small(disk), disk.clone()) {
        Ok(bed) => bed,
        Err(fatal) => return (Answers::new(), Some(fatal)),
    };
    let mut reader = Reader { bed, answers: Answers::new() };
    // First, since damage that is met raises an alarm, which stands in the store.
    reader.snapshot();
    reader.watch(revisions[0]);
    let fatal =
        reader.leases().and_then(|()| reader.kv(revisions)).and_then(|()| reader.compacted(revisions)).err();
    (reader.answers, fatal)
}

fn read_file(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, Open::Existing).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The files that may be struck, and how often what came of it.
struct Campaign {
    disk: SimDisk,
    store: Vec<u8>,
    segments: Vec<(PathBuf, Vec<u8>)>,
    revisions: Vec<i64>,
    right: Answers,
    outcomes: BTreeMap<String, usize>,
}

impl Campaign {
    fn new(disk: SimDisk) -> Campaign {
        let bed = Bed::with(small(&disk.fork()), disk.fork()).unwrap();
        let (view, root) = (bed.revision(), bed.handle.root());
        let first = root.view().compact_revision();
        let revisions = vec![first, first + 20, (first + view) / 2, view - 1, view];
        drop(bed);
        let (right, fatal) = read_all(&disk.fork(), &revisions);
        assert!(fatal.is_none() && right.values().all(Result::is_ok), "the member is sound");
        let paths = disk.list(Path::new(LOG)).unwrap();
        let segments: Vec<_> =
            paths.into_iter().map(|path| (path.clone(), read_file(&disk, &path))).collect();
        let store = read_file(&disk, Path::new(STORE));
        Campaign { disk, store, segments, revisions, right, outcomes: BTreeMap::new() }
    }

    /// A bit to strike: half of them in the store and half in the log, more often where something stands.
    fn aim(&self, rng: &mut Rng) -> (PathBuf, usize, u8) {
        let (path, bytes) = match rng.below(2) {
            0 => (PathBuf::from(STORE), &self.store),
            _ => {
                // The oldest segments are kept for others, and read by nobody here.
                let newest = self.segments.len() - 2;
                let from = if rng.one_in(4) { 0 } else { newest };
                let (path, bytes) = &self.segments[from + rng.below(self.segments.len() - from)];
                (path.clone(), bytes)
            }
        };
        let first_pages = path == Path::new(STORE) && rng.one_in(8);
        let within = if first_pages { 6 * PAGE } else { bytes.len() };
        let mut at = rng.below(within);
        for _ in 0..20 {
            let sector = at / SECTOR * SECTOR;
            if rng.one_in(10) || bytes[sector..].iter().take(SECTOR).any(|b| *b != 0) {
                break;
            }
            at = rng.below(within);
        }
        (path, at, 1 << rng.below(8))
    }

    fn strike(&mut self, rng: &mut Rng) {
        let (path, at, mask) = self.aim(rng);
        let what = format!("{}: byte {at}, mask {mask:#04x}", path.display());
        let disk = self.disk.fork();
        disk.corrupt(&path, at as u64, mask).unwrap();
        let told = Told(&what);
        let (answers, fatal) = read_all(&disk, &self.revisions);
        let errors = answers.values().filter_map(|answer| answer.as_ref().err().cloned());
        let errors: Vec<String> = errors.chain(fatal.map(|fatal| fatal.to_string())).collect();
        let named = errors.iter().filter(|error| **error != status::CORRUPT.message);
        let fields: Vec<String> = named.map(|error| field_of(error, &path, &what)).collect();
        // Time goes by while it compacts: the scrub may be the first to meet the damage, and the alarm is all one sees.
        let by_scrub = path == Path::new(STORE)
            && answers
                .iter()
                .all(|(name, answer)| answer.is_ok() || name.ends_with(LEFT) || name == COMPACTION);
        assert!(errors.is_empty() || !fields.is_empty() || by_scrub, "{what}: CORRUPT, and nobody says why");
        for (name, answer) in &answers {
            // Damage that was met is an alarm, which stands in what is hashed or copied as a whole.
            if let Ok(answer) = answer {
                assert!(Some(answer) == self.right[name].as_ref().ok(), "{what}: a wrong answer to {name}");
            }
        }
        assert!(!errors.is_empty() || answers.len() == self.right.len(), "{what}: not everything was read");
        drop(told);
        let file = if path == Path::new(STORE) { "store" } else { "log" };
        let unnamed = if errors.is_empty() { "right" } else { "error: alarm of the scrub" };
        let outcome = fields.first().map_or(unnamed.to_owned(), |field| format!("error: {field}"));
        *self.outcomes.entry(format!("{file}: {outcome}")).or_default() += 1;
    }

    fn count(&self, start: &str) -> usize {
        self.outcomes.iter().filter(|(name, _)| name.starts_with(start)).map(|(_, count)| count).sum()
    }
}

/// Says which bit it was when something panics.
struct Told<'w>(&'w str);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the bit: {}", self.0);
        }
    }
}

/// The field or the case that an error names. It must name the file that was struck, and a place in it.
fn field_of(error: &str, path: &Path, what: &str) -> String {
    let place = error.split_once(&path.display().to_string()).map(|(_, place)| place);
    let place = place.unwrap_or_else(|| panic!("{what}: the error does not name the file: {error}"));
    let words: Vec<&str> = place.split(' ').collect();
    let is_place = |pair: &[&str]| {
        ["page", "offset"].contains(&pair[0]) && pair[1].starts_with(|c: char| c.is_ascii_digit())
    };
    assert!(words.windows(2).any(is_place), "{what}: the error names no place: {error}");
    let case = place.split_once("(case ").map(|(_, rest)| format!("case {}", &rest[..1]));
    let field =
        place.split_once(": ").and_then(|(_, rest)| Some(rest.split_once(": ")?.1.split_once(" is ")?.0));
    case.or(field.map(str::to_owned)).unwrap_or_else(|| "named otherwise".into())
}

#[test]
fn a_flipped_bit_gives_right_answers_or_an_error_that_names_the_place() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let flips = number("TRILITH_FLIPS").unwrap_or(200) as usize;
    let seed = number("TRILITH_SEED").unwrap_or(3);
    println!("TRILITH_SEED={seed} TRILITH_FLIPS={flips}");
    let mut rng = Rng::new(seed);
    let mut campaign = Campaign::new(member(&mut rng));
    println!(
        "the store has {} bytes, the log {} in {} segments, {} questions",
        campaign.store.len(),
        campaign.segments.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(),
        campaign.segments.len(),
        campaign.right.len()
    );
    for n in 0..flips {
        campaign.strike(&mut Rng::new(seed ^ (n as u64) << 32));
    }
    for (outcome, count) in &campaign.outcomes {
        println!("{count:6} {outcome}");
    }
    let (store, log) = (campaign.count("store: error"), campaign.count("log: error"));
    // How much of the log is read depends on when the last checkpoint was: with the usual seed a tenth of all flips meet it.
    assert!(store > flips / 20 && log > flips / 200, "the flips met what is in use: {store}, {log}");
}
