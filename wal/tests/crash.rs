//! Power cuts at every operation of a run: what was acknowledged is there, and nothing that was never appended.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;

use common::*;
use trilith_disk::Disk;
use trilith_disk::sim::{SimDisk, Survivors};
use trilith_proto::{raftpb, walpb};
use trilith_wal::{Options, Replay, Ticket, Wal, WalError};

const SEGMENT_BYTES: u64 = 32 << 10;

/// How far a run was after a call.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    ops: usize,
    /// Records appended, and how many of them were acknowledged.
    entries: usize,
    entries_acked: usize,
    commit: u64,
    commit_acked: u64,
    marks: usize,
    marks_acked: usize,
    released: u64,
}

/// Everything that a run appended, in order, and how it went on.
#[derive(Debug, Default)]
struct Run {
    entries: Vec<(u64, u64)>,
    data: HashMap<(u64, u64), Vec<u8>>,
    steps: Vec<Step>,
    /// What each ticket acknowledges.
    tickets: Vec<(Ticket, Step)>,
    /// How often the log had no space when it looked.
    full: usize,
}

impl Run {
    fn append(&mut self, wal: &mut Wal, rng: &mut Rng, term: u64, first: u64, now: &mut Step) -> u64 {
        let count = match rng.below(8) {
            0 => 0,
            1..=5 => 1 + rng.below(3),
            _ => 5 + rng.below(20),
        };
        let mut batch = Vec::new();
        for index in first..first + count {
            let len = if rng.below(40) == 0 { 9000 } else { rng.below(1600) as usize };
            // Some entries have long runs of zeros, as a lost sector has.
            let mut data = rng.bytes(len);
            if rng.below(6) == 0 {
                data.iter_mut().skip(20).for_each(|b| *b = 0);
            }
            self.data.insert((term, index), data);
            batch.push((term, index));
        }
        now.commit += 1;
        let state = hard_state(1, 1, now.commit);
        let refs = batch.iter().map(|&(term, index)| entry(term, index, &self.data[&(term, index)]));
        let must_sync = rng.below(3) == 0;
        let ticket = wal.append(refs, Some(&state), must_sync);
        self.entries.extend(&batch);
        now.entries = self.entries.len();
        self.tickets.push((ticket, *now));
        first + count
    }

    fn acknowledge(&mut self, durable: Ticket, now: &mut Step) {
        for (ticket, then) in &self.tickets {
            if *ticket <= durable {
                now.entries_acked = then.entries;
                now.commit_acked = then.commit;
                now.marks_acked = then.marks;
            }
        }
    }

    /// What a reader finds after `after` if the first `count` entries reached the log.
    fn replayed(&self, count: usize, after: u64) -> Vec<(u64, u64)> {
        let mut log: Vec<(u64, u64)> = Vec::new();
        for &(term, index) in self.entries[..count].iter().filter(|(_, index)| *index > after) {
            log.retain(|(_, i)| *i < index);
            log.push((term, index));
        }
        log
    }

    /// Checks what was found after a cut that lost everything from operation `ops` on.
    fn check(&self, replay: &Replay, ops: usize, after: u64, what: &str) {
        let before = self.steps.iter().rfind(|s| s.ops <= ops).copied().unwrap_or_default();
        let beyond =
            self.steps.iter().find(|s| s.ops >= ops).or(self.steps.last()).copied().unwrap_or_default();
        let found: Vec<_> = replay.entries.iter().map(|e| (e.term.unwrap(), e.index.unwrap())).collect();
        let possible = before.entries_acked..=beyond.entries;
        let matched = possible.clone().any(|count| self.replayed(count, after) == found);
        assert!(matched, "{what}: {found:?} is no replay of {possible:?} entries after {after}");
        for e in &replay.entries {
            let data = e.data.as_deref().unwrap_or(&[]);
            assert!(data == self.data[&(e.term.unwrap(), e.index.unwrap())], "{what}: entry {:?}", e.index);
        }
        let commit = replay.hard_state.commit.unwrap_or(0);
        assert!((before.commit_acked..=beyond.commit).contains(&commit), "{what}: commit {commit}");
        let marks = replay.snapshots.iter().filter(|s| s.index != Some(0)).count();
        assert!(marks <= beyond.marks, "{what}: {marks} marks");
        if after == 0 {
            assert!(marks >= before.marks_acked, "{what}: {marks} marks");
        }
        assert_eq!(replay.metadata, OWNER);
    }

    /// The state that the caller holds durably when operation `ops` is the first that is lost.
    fn released(&self, ops: usize) -> u64 {
        self.steps.iter().filter(|s| s.ops <= ops).map(|s| s.released).max().unwrap_or(0)
    }
}

fn options(disk: &SimDisk) -> Options {
    Options { max_segments: 3, ..sim_options(disk, SEGMENT_BYTES) }
}

/// Appends, polls, marks and releases at random; on a disk that is full now and then, if it is to be.
fn record(disk: &SimDisk, seed: u64, fills: bool) -> Run {
    let mut rng = Rng::new(seed);
    let mut wal = Wal::create(options(disk), OWNER).unwrap();
    let mut run = Run::default();
    let mut now = Step::default();
    let (mut term, mut next) = (1, 1);
    for _ in 0..90 {
        match rng.below(12) {
            0 if next > now.released + 5 => {
                // A conflict: a new term overwrites the tail, never what a durable state holds.
                term += 1;
                next -= rng.below(4);
                next = run.append(&mut wal, &mut rng, term, next, &mut now);
            }
            1 if next > 1 => {
                now.marks += 1;
                let mark = walpb::Snapshot { index: Some(next - 1), term: Some(term), conf_state: None };
                let ticket = wal.append_snapshot(&mark);
                run.tickets.push((ticket, now));
            }
            2 if now.entries_acked > 10 => {
                // As a store would whose checkpoint holds a prefix that was acknowledged and is not in conflict.
                let acked = run.entries[now.entries_acked - 1].1.min(next - 1);
                now.released = now.released.max(acked.saturating_sub(5));
                now.ops = disk.op_count();
                run.steps.push(now);
                wal.release_to(now.released).unwrap();
            }
            _ => next = run.append(&mut wal, &mut rng, term, next, &mut now),
        }
        now.ops = disk.op_count();
        run.steps.push(now);
        if fills && rng.below(6) == 0 {
            let room = [None, Some(0), Some(SEGMENT_BYTES - 1), Some(SEGMENT_BYTES)][rng.below(4) as usize];
            disk.set_limit(room.map(|room| disk.used() + room));
        }
        if fills && rng.below(4) == 0 {
            wal.retry().unwrap();
            run.full += usize::from(wal.is_full());
        }
        if rng.below(3) > 0 {
            let durable = wal.poll().unwrap();
            run.acknowledge(durable, &mut now);
            now.ops = disk.op_count();
            run.steps.push(now);
        }
    }
    disk.set_limit(None);
    wal.retry().unwrap();
    let durable = wal.flush().unwrap();
    run.acknowledge(durable, &mut now);
    now.ops = disk.op_count();
    run.steps.push(now);
    run
}

/// Opens, checks, appends, and opens once more.
fn reopen(run: &Run, disk: &SimDisk, ops: usize, what: &str) {
    let after = run.released(ops);
    if !Wal::exists(disk, "member/wal".as_ref()) {
        assert!(run.steps[0].ops > ops, "{what}: the log is gone");
        Wal::create(options(disk), OWNER).unwrap();
        return;
    }
    let (mut wal, replay) = Wal::open(options(disk), after).unwrap_or_else(|e| panic!("{what}: {e}"));
    run.check(&replay, ops, after, what);
    let last = replay.entries.last().map_or(after, |e| e.index.unwrap());
    let mut expected = replay.entries.clone();
    for index in last + 1..last + 4 {
        let data = data_of(index, 700);
        wal.append([entry(99, index, &data)], Some(&hard_state(99, 1, 1)), true);
        let data = Some(data.into());
        expected.push(raftpb::Entry { r#type: Some(0), term: Some(99), index: Some(index), data });
        wal.poll().unwrap();
    }
    wal.flush().unwrap();
    drop(wal);
    let (_, again) = Wal::open(options(disk), after).unwrap_or_else(|e| panic!("{what}, again: {e}"));
    assert!(again.entries == expected, "{what}: the second start finds something else");
    assert_eq!(again.hard_state.term, Some(99));
}

#[test]
fn every_acknowledged_record_survives_every_cut() {
    let (mut torn, mut full) = (0, 0);
    for seed in 1..=8 {
        let disk = SimDisk::new();
        let run = record(&disk, seed, seed % 2 == 0);
        full += run.full;
        let ops = disk.op_count();
        assert!(disk.list("member/wal".as_ref()).unwrap().len() >= 3 && ops > 200, "the run cuts segments");
        for cut in 0..=ops {
            let random = |n: u64| Survivors::Random(seed * 1_000_000 + cut as u64 * 10 + n);
            for survivors in [Survivors::All, Survivors::None, random(0), random(1), random(2)] {
                let what = format!("seed {seed}, cut at {cut}, survivors {survivors:?}");
                let crashed = disk.crash(cut, survivors);
                reopen(&run, &crashed, cut, &what);
                let files = crashed.list("member/wal".as_ref()).unwrap();
                torn += usize::from(files.iter().any(|p| p.extension().is_some_and(|e| e == "broken")));
            }
        }
    }
    assert!(torn > 100, "{torn} of the cuts tore a write");
    assert!(full > 20, "{full} times the disk was full");
}

#[test]
fn cuts_during_recovery_lose_nothing_either() {
    let seed = 11;
    let disk = SimDisk::new();
    let run = record(&disk, seed, true);
    for cut in (0..=disk.op_count()).step_by(3) {
        let torn = disk.crash(cut, Survivors::Random(cut as u64));
        if !Wal::exists(&torn, "member/wal".as_ref()) {
            continue;
        }
        drop(Wal::open(options(&torn), run.released(cut)).unwrap());
        for second in 0..=torn.op_count() {
            for survivors in [Survivors::All, Survivors::None, Survivors::Random(second as u64)] {
                let what = format!("seed {seed}, cut at {cut}, then at {second} of recovery, {survivors:?}");
                reopen(&run, &torn.crash(second, survivors), cut, &what);
            }
        }
    }
}

#[test]
fn what_open_returned_is_durable() {
    for fail_at in 0..12 {
        let disk = SimDisk::new();
        let mut wal = Wal::create(options(&disk), OWNER).unwrap();
        // The process dies between its writes and their sync; the machine goes on.
        disk.fail_after(disk.op_count() + fail_at);
        for index in 1..=20 {
            wal.append([entry(1, index, &data_of(index, 900))], None, true);
            if let Err(e) = wal.poll() {
                assert!(matches!(e, WalError::Io { .. } | WalError::Stopped(_)), "{e}");
            }
        }
        drop(wal);
        disk.heal();
        let (_, first) = Wal::open(options(&disk), 0).unwrap();
        // Now the power goes.
        let cut = disk.crash(disk.op_count(), Survivors::None);
        let (_, second) = Wal::open(options(&cut), 0).unwrap();
        assert_eq!(first.entries, second.entries, "failure at {fail_at}");
    }
}

#[test]
fn without_sync_nothing_is_synced_and_everything_is_written() {
    let disk = SimDisk::new();
    let unsafe_options = Options { fsync: false, ..options(&disk) };
    let mut wal = Wal::create(unsafe_options.clone(), OWNER).unwrap();
    for index in 1..=100 {
        wal.append([entry(1, index, &data_of(index, 900))], None, true);
        wal.poll().unwrap();
    }
    drop(wal);
    assert_eq!(Wal::open(unsafe_options, 0).unwrap().1.entries.len(), 100);
}
