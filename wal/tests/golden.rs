//! A log written by etcd 3.4.23 (puts, a delete, a lease, a learner added; the zeros at its end cut short).
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use prost::Message;
use trilith_disk::Open;
use trilith_disk::sim::SimDisk;
use trilith_proto::{etcdserverpb, raftpb};
use trilith_wal::{EntryRef, Metadata, Options, Wal};

const NAME: &str = "0000000000000000-0000000000000000.wal";
const BYTES: &[u8] = include_bytes!("data/0000000000000000-0000000000000000.wal");

fn etcds_log() -> (SimDisk, Options) {
    let disk = SimDisk::new();
    let options = sim_options(&disk, 1 << 20);
    use trilith_disk::Disk;
    let file = disk.open(&options.dir.join(NAME), Open::CreateNew).unwrap();
    file.write_all_at(BYTES, 0).unwrap();
    (disk.fork(), Options { disk: std::sync::Arc::new(disk), ..options })
}

#[test]
fn the_tests_parser_and_the_log_read_the_same() {
    let records = parse_segment(BYTES, &mut 0);
    let (_, options) = etcds_log();
    let (_, replay) = Wal::open(options, 0).unwrap();
    let entries: Vec<_> = records.iter().filter(|r| r.kind == 2).collect();
    assert!(entries.len() >= 20);
    assert_eq!(replay.entries.len(), entries.len());
    for (ours, theirs) in replay.entries.iter().zip(&entries) {
        let mut fields = theirs.fields();
        let data = if fields.len() == 4 { fields.remove(3).1.unwrap_err() } else { Vec::new() };
        assert_eq!(fields[0].1, Ok(ours.r#type.unwrap() as u64));
        assert_eq!(
            (fields[1].1.clone(), fields[2].1.clone()),
            (Ok(ours.term.unwrap()), Ok(ours.index.unwrap()))
        );
        assert_eq!(ours.data.as_deref().unwrap_or(&[]), data);
    }
    let metadata: Vec<_> = records.iter().filter(|r| r.kind == 1).collect();
    let Metadata { node_id, cluster_id } = replay.metadata;
    assert_eq!(metadata[0].fields(), [(1, Ok(node_id)), (2, Ok(cluster_id))]);
    let marks = records.iter().filter(|r| r.kind == 5).count();
    assert!(marks >= 2 && marks == replay.snapshots.len());
    let state = records.iter().rfind(|r| r.kind == 3).unwrap().fields();
    assert_eq!(state[2].1, Ok(replay.hard_state.commit.unwrap()));
}

#[test]
fn the_entries_are_what_clients_asked_for() {
    let (_, options) = etcds_log();
    let (_, replay) = Wal::open(options, 0).unwrap();
    let mut puts = Vec::new();
    for entry in replay.entries.iter().filter(|e| e.r#type == Some(0)) {
        let bytes = entry.data.clone().unwrap_or_default();
        // etcd 3.4 publishes its member and the cluster's version as requests of the v2 API.
        let Ok(request) = etcdserverpb::InternalRaftRequest::decode(bytes) else { continue };
        puts.extend(request.put.map(|p| String::from_utf8(p.key.to_vec()).unwrap()));
    }
    let expected: Vec<_> =
        (1..=14).map(|i| format!("key{i}")).chain(["big", "after", "fin1"].map(String::from)).collect();
    assert_eq!(puts, expected);
    let changes = replay.entries.iter().filter(|e| e.r#type == Some(1)).count();
    assert_eq!(changes, 2, "the member itself and the learner");
}

#[test]
fn we_write_the_same_bytes_for_the_same_records() {
    let theirs = parse_segment(BYTES, &mut 0);
    let (_, source) = etcds_log();
    let (_, replay) = Wal::open(source, 0).unwrap();
    let disk = SimDisk::new();
    let options = sim_options(&disk, 1 << 20);
    let mut wal = Wal::create(options.clone(), replay.metadata).unwrap();
    let mut entries = replay.entries.iter();
    for record in theirs.iter().skip(3) {
        match record.kind {
            2 => {
                let e: &raftpb::Entry = entries.next().unwrap();
                let data = e.data.as_deref().unwrap_or(&[]);
                let (term, index) = (e.term.unwrap(), e.index.unwrap());
                wal.append([EntryRef { kind: e.r#type(), term, index, data }], None, true);
            }
            3 => {
                let state = raftpb::HardState::decode(&record.data[..]).unwrap();
                wal.append([], Some(&state), true);
            }
            5 => {
                wal.append_snapshot(&trilith_proto::walpb::Snapshot::decode(&record.data[..]).unwrap());
            }
            other => panic!("record type {other}"),
        }
        // Within a batch only the newest hard state is written.
        wal.flush().unwrap();
    }
    wal.flush().unwrap();
    let ours = parse_dir(&disk, &options.dir).concat();
    let strip = |r: &Rec, bytes: &[u8]| bytes[r.at..r.end].to_vec();
    let file = read_file(&disk, &options.dir.join(NAME));
    let ours: Vec<_> = ours.iter().filter(|r| r.kind != 4).map(|r| strip(r, &file)).collect();
    let theirs: Vec<_> = theirs.iter().filter(|r| r.kind != 4).map(|r| strip(r, BYTES)).collect();
    assert_eq!(ours, theirs, "frame by frame, checksums included");
}

#[test]
fn etcds_log_goes_on() {
    let (_, options) = etcds_log();
    let (mut wal, replay) = Wal::open(options.clone(), 0).unwrap();
    let last = replay.entries.last().unwrap().index.unwrap();
    for index in last + 1..=last + 50 {
        wal.append([entry(9, index, &data_of(index, 700))], Some(&hard_state(9, 1, index - 1)), true);
        wal.poll().unwrap();
    }
    wal.flush().unwrap();
    drop(wal);
    let records = parse_dir(&*options.disk, &options.dir).concat();
    let before = parse_segment(BYTES, &mut 0);
    assert_eq!(records[..before.len()], before, "what etcd wrote is untouched");
    assert_eq!(records[before.len()].kind, 4);
    assert_eq!(records[before.len()].end % 4096, 0, "our batches begin at a block of their own");
    let (_, again) = Wal::open(options, last).unwrap();
    assert_eq!(again.entries.len(), 50);
}
