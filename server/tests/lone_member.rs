//! A member as a whole: first start, restarts, checkpoints, membership, status, hashes, and how it ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use common::{Bed, config, decode, delete, get_range, keys, put};
use trilith_disk::Disk;
use trilith_disk::sim::SimDisk;
use trilith_proto::etcdserverpb as pb;
use trilith_server::core::{Config, Core, Fatal};
use trilith_server::service;
use trilith_server::status;

fn members(bed: &mut Bed) -> pb::MemberListResponse {
    let handle = bed.handle.clone();
    let request = pb::MemberListRequest { linearizable: true };
    decode(bed.run(async move { service::cluster::member_list(&handle, request).await }).unwrap())
}

fn status_of(bed: &mut Bed) -> pb::StatusResponse {
    let handle = bed.handle.clone();
    decode(bed.run(async move { service::maintenance::status(&handle, pb::StatusRequest {}).await }).unwrap())
}

fn hash_kv(bed: &mut Bed, revision: i64) -> Result<pb::HashKvResponse, status::Status> {
    let handle = bed.handle.clone();
    let request = pb::HashKvRequest { revision };
    bed.run(async move { service::maintenance::hash_kv(&handle, request).await }).map(decode)
}

fn hash(bed: &mut Bed) -> u32 {
    let handle = bed.handle.clone();
    let call = async move { service::maintenance::hash(&handle, pb::HashRequest {}).await };
    decode::<pb::HashResponse>(bed.run(call).unwrap()).hash
}

#[test]
fn m13_x6_a_new_member_tells_of_itself() {
    let mut bed = Bed::new();
    for kill in [false, true] {
        let list = members(&mut bed);
        let header = list.header.unwrap();
        assert_eq!((header.revision, header.member_id), (0, 0x8e9e_05c5_2164_694d), "H4");
        let [member] = list.members.as_slice() else { panic!("one member") };
        assert_eq!(
            (member.id, member.name.as_str(), member.is_learner),
            (header.member_id, "default", false)
        );
        assert_eq!(member.peer_ur_ls, ["http://localhost:2380"]);
        assert_eq!(member.client_ur_ls, ["http://localhost:2379"]);

        let status = status_of(&mut bed);
        assert_eq!((status.version.as_str(), status.storage_version.as_str()), ("3.7.1", "3.7.0"));
        assert_eq!((status.leader, status.errors.len(), status.is_learner), (member.id, 0, false));
        assert_eq!(status.raft_index, status.raft_applied_index);
        assert!(status.raft_index >= 4 && status.raft_term >= 2);
        assert!(status.downgrade_info.is_some() && status.db_size_quota == 2 << 30);
        assert!(status.db_size_in_use <= status.db_size);
        bed = if kill { bed.kill() } else { bed.restart() };
    }
}

#[test]
fn a_restart_keeps_everything() {
    let mut bed = Bed::new();
    bed.grant(5, 600).unwrap();
    for i in 0..300 {
        bed.put(&format!("k{}", i % 50), &format!("{i}"));
    }
    bed.try_put(pb::PutRequest { lease: 5, ..put("leased", "x") }).unwrap();
    bed.delete(delete("k1", "k2")).unwrap();
    bed.compact(200, true).unwrap();
    let all = bed.range(get_range("\0", "\0")).unwrap();
    let (kv_hash, whole_hash) = (hash_kv(&mut bed, 0).unwrap().hash, hash(&mut bed));
    for round in 0..4 {
        bed = if round % 2 == 0 { bed.restart() } else { bed.kill() };
        bed.pass(Duration::from_secs(1));
        let now = bed.range(get_range("\0", "\0")).unwrap();
        assert_eq!((&now.kvs, now.count), (&all.kvs, all.count), "round {round}");
        assert_eq!(bed.revision(), 303);
        assert_eq!(hash_kv(&mut bed, 0).unwrap().hash, kv_hash, "X8, round {round}");
        assert_eq!(hash(&mut bed), whole_hash, "X7, round {round}");
        assert_eq!(bed.time_to_live(5).keys, ["leased"]);
        assert_eq!(
            bed.range(pb::RangeRequest { revision: 150, ..get_range("k", "l") }),
            Err(status::COMPACTED)
        );
    }
    assert_eq!(bed.put("next", "x").header.unwrap().revision, 304);
}

#[test]
fn x8_x9_hash_kv_bounds() {
    let mut bed = Bed::new();
    for i in 0..10 {
        bed.put("a", &i.to_string());
    }
    bed.compact(5, true).unwrap();
    assert_eq!(hash_kv(&mut bed, 4), Err(status::COMPACTED));
    assert_eq!(hash_kv(&mut bed, 12), Err(status::FUTURE_REV));
    let answer = hash_kv(&mut bed, 8).unwrap();
    assert_eq!((answer.header.unwrap().revision, answer.compact_revision, answer.hash_revision), (11, 5, 8));
}

#[test]
fn checkpoints_bound_the_replay() {
    let mut bed = Bed::new();
    let value = "v".repeat(500);
    for i in 0..400 {
        bed.put(&format!("k{i}"), &value);
    }
    // 200 KB of entries, a checkpoint each 16 KiB: what is left to replay is less than two of them.
    let disk = bed.disk.fork();
    let applied = bed.handle.facts().applied;
    drop(bed);
    let (core, handle) = Core::open(config(&disk)).unwrap();
    let (at_start, _) = handle.root().applied();
    assert!(applied - at_start < 70, "{applied} were applied, the store holds {at_start}");
    drop(core);
    let mut bed = Bed::on(disk);
    assert_eq!(bed.range(get_range("k", "l")).unwrap().count, 400);
}

#[test]
fn max_wals_bounds_what_stays_of_the_log() {
    for (max_wals, stay) in [(0, 100..=400), (20, 20..=20), (1, 1..=12)] {
        let disk = SimDisk::new();
        // A batch takes a block at least: a segment has few, and a checkpoint needs few segments.
        let small = Config { checkpoint_log_bytes: 2 << 10, wal_segment_bytes: 16 << 10, ..config(&disk) };
        let mut bed = Bed::with(Config { max_wals, ..small }, disk.clone()).unwrap();
        let value = "v".repeat(500);
        for i in 0..400 {
            bed.put(&format!("k{i}"), &value);
        }
        let files = disk.list(Path::new("data/member/wal")).unwrap();
        let segments = files.iter().filter(|path| path.extension().is_some_and(|end| end == "wal")).count();
        assert!(stay.contains(&segments), "--max-wals={max_wals}: {segments}");
    }
}

#[test]
fn an_idle_member_writes_its_last_changes_after_a_while() {
    let mut bed = Bed::new();
    bed.put("a", "1");
    bed.pass(Duration::from_secs(6));
    let ops = bed.disk.op_count();
    bed.pass(Duration::from_secs(60));
    assert_eq!(bed.disk.op_count(), ops, "nothing changes, nothing is written");
    let disk = bed.disk.fork();
    let applied = bed.handle.facts().applied;
    drop(bed);
    let (core, handle) = Core::open(config(&disk)).unwrap();
    assert_eq!(handle.root().applied().0, applied);
    drop(core);
}

#[test]
fn linearizable_reads_before_the_first_leader_wait() {
    let mut bed = Bed::new();
    bed.put("a", "1");
    let disk = bed.disk.fork();
    drop(bed);
    let (core, handle) = Core::open(config(&disk)).unwrap();
    drop((core, handle));
    // `Bed::on` is ready when it returns; a read that began before must see what was acknowledged.
    let (mut core, handle) = Core::open(config(&disk)).unwrap();
    let mut read =
        std::pin::pin!(async { handle.read_point().await.map(|()| handle.root().view().revision()) });
    let waker = std::task::Waker::noop();
    let mut context = std::task::Context::from_waker(waker);
    assert!(read.as_mut().poll(&mut context).is_pending());
    for _ in 0..100 {
        core.step(Duration::ZERO).unwrap();
        if let Poll::Ready(revision) = read.as_mut().poll(&mut context) {
            assert_eq!(revision, Ok(2));
            return;
        }
    }
    panic!("the read does not end");
}

#[test]
fn whoever_waits_at_the_end_is_told() {
    let mut bed = Bed::new();
    let handle = bed.handle.clone();
    let mut call = Box::pin(service::kv::put(&handle, put("a", "1")));
    assert!(bed.poll(call.as_mut()).is_none());
    drop(bed);
    let outcome = call.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    assert!(matches!(outcome, Poll::Ready(Err(e)) if e == status::STOPPED));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(service::kv::put(&handle, put("a", "1"))).unwrap_err(), status::STOPPED);
    assert_eq!(runtime.block_on(handle.read_point()), Err(status::STOPPED));
}

#[test]
fn a_disk_failure_ends_the_member_and_nothing_is_acknowledged() {
    let mut bed = Bed::new();
    bed.put("a", "1");
    bed.disk.fail_after(bed.disk.op_count());
    let mut call = Box::pin(service::kv::put(&bed.handle.clone(), put("a", "2")));
    assert!(bed.poll(call.as_mut()).is_none());
    let failed = (0..10).find_map(|_| bed.core.step(bed.now).err());
    assert!(matches!(failed, Some(Fatal::Raft(_))), "{failed:?}");
    assert!(bed.poll(call.as_mut()).is_none(), "not acknowledged");
}

#[test]
fn z3_requests_end_after_their_time() {
    // Nobody leads before the first step, and that comes when the request has waited for eight seconds.
    let disk = SimDisk::new();
    let (mut core, handle) = Core::open(config(&disk)).unwrap();
    let mut call = Box::pin(service::kv::put(&handle, put("a", "1")));
    let mut read = Box::pin(handle.read_point());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(call.as_mut().poll(&mut context).is_pending());
    assert!(read.as_mut().poll(&mut context).is_pending());
    core.step(Duration::from_secs(8)).unwrap();
    assert!(matches!(call.as_mut().poll(&mut context), Poll::Ready(Err(e)) if e == status::TIMEOUT));
    assert_eq!(read.as_mut().poll(&mut context), Poll::Ready(Err(status::TIMEOUT)));
    drop(read);
    core.step(Duration::from_secs(9)).unwrap();
    assert_eq!(
        handle.root().view().revision(),
        1,
        "what timed out before it was proposed is not proposed later"
    );
}

#[test]
fn folders_that_do_not_fit_are_refused_by_name() {
    let bed = Bed::new().restart();
    let disk = bed.disk.fork();
    drop(bed);
    let wal_gone = trilith_server::core::Config { wal_dir: Some("elsewhere".into()), ..config(&disk) };
    let error = Core::open(wal_gone).unwrap_err().to_string();
    assert!(error.contains("data/member/snap/db") && error.contains("elsewhere"), "{error}");

    let mut unknown = config(&SimDisk::new());
    unknown.name = "other".into();
    let error = Core::open(unknown).unwrap_err().to_string();
    assert!(error.contains("couldn't find local name \"other\""), "{error}");

    let mut three = config(&SimDisk::new());
    three.initial_cluster = vec![three.initial_cluster[0].clone(); 3];
    let error = Core::open(three).unwrap_err().to_string();
    assert!(error.contains("stands twice"), "{error}");
}

#[test]
fn what_is_not_served_yet_says_so() {
    assert_eq!(service::unimplemented("/etcdserverpb.KV/Put"), None);
    assert_eq!(service::unimplemented("/x/y"), None);
    let status = service::unimplemented("/etcdserverpb.Auth/UserAdd").unwrap();
    assert_eq!(status.message, "etcdserver: UserAdd is not implemented");
    let mut bed = Bed::new();
    let handle = bed.handle.clone();
    let auth = trilith_server::apply::command::Command::AuthEnable(pb::AuthEnableRequest {});
    let answer = bed.run(handle.propose(&auth)).unwrap_err();
    assert_eq!(answer.message, "etcdserver: Auth is not implemented");
    bed.put("a", "1");
    assert_eq!(keys(&bed.range(get_range("a", "b")).unwrap()), "a");
}

/// Puts values of a length until a checkpoint is due; how many puts, and how long their entries are at least.
fn puts_until_due(value: usize) -> (u64, u64) {
    let disk = SimDisk::new();
    let limits = Config { checkpoint_log_bytes: 16 << 10, checkpoint_log_entries: 40, ..config(&disk) };
    let mut bed = Bed::with(limits, disk).unwrap();
    assert!(bed.core.begin_checkpoint().is_none());
    for n in 1.. {
        let handle = bed.handle.clone();
        let request = put(&format!("key/{n}"), &"v".repeat(value));
        let mut call = pin!(async move { service::kv::put(&handle, request).await });
        while bed.poll(call.as_mut()).is_none() {
            bed.core.step(bed.now).unwrap();
        }
        if bed.core.begin_checkpoint().is_some() {
            return (n, n * value as u64);
        }
    }
    unreachable!("there is an end to it")
}

#[test]
fn a_checkpoint_is_due_when_the_log_has_bytes_and_entries_enough_or_twice_the_bytes() {
    // Many small entries: as soon as there are bytes enough.
    let (puts, bytes) = puts_until_due(100);
    assert!(puts >= 40 && (10 << 10..16 << 10).contains(&bytes), "{puts} puts, {bytes} bytes");
    // Larger ones: when there are entries enough.
    let (puts, bytes) = puts_until_due(500);
    assert!((36..=40).contains(&puts) && bytes > 16 << 10, "{puts} puts, {bytes} bytes");
    // Large ones: at twice the bytes.
    let (puts, bytes) = puts_until_due(2000);
    assert!(puts < 20 && (28 << 10..34 << 10).contains(&bytes), "{puts} puts, {bytes} bytes");
}

/// More than is published at once.
#[test]
fn a_long_log_is_replayed_to_what_was_there() {
    let disk = SimDisk::new();
    let limits = Config { checkpoint_log_bytes: 1 << 30, wal_segment_bytes: 32 << 20, ..config(&disk) };
    let mut bed = Bed::with(limits.clone(), disk).unwrap();
    for n in 0..60 {
        let value = format!("{n:03}").repeat(70_000);
        bed.put(&format!("key/{}", n % 40), &value);
        bed.delete(delete(&format!("key/{}", n % 7), "")).unwrap();
    }
    let (revision, hashes) = (bed.revision(), (hash(&mut bed), hash_kv(&mut bed, 50).unwrap()));
    let disk = bed.disk.fork();
    drop(bed);
    let mut bed = Bed::with(limits, disk).unwrap();
    assert_eq!(bed.revision(), revision);
    let again = (hash(&mut bed), hash_kv(&mut bed, 50).unwrap());
    assert_eq!((again.0, again.1.hash), (hashes.0, hashes.1.hash));
    assert_eq!(bed.get("key/20").unwrap(), "020".repeat(70_000));
}
