//! Members that do not hold what the others hold: found by each of the three checks, named, and CORRUPT raised for them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use rustix::process::Signal;
use trilith_disk::RealDisk;
use trilith_engine::{Options, Store, TreeId};
use trilith_proto::{etcdserverpb as pb, mvccpb};

use crate::places::{Group, ask, put, until};
use crate::support::block_on;

const PERIODIC: &str = "--corrupt-check-time=200ms";
const COMPACTIONS: [&str; 2] = ["--feature-gates=CompactHashCheck=true", "--compact-hash-check-time=200ms"];

/// Ends a member in order, so that its store has everything.
fn stop(group: &mut Group, at: usize) {
    let member = group.members[at].take().unwrap();
    member.signal(Signal::TERM);
    let (code, lines) = member.wait();
    assert_eq!(code, Some(0), "{lines:#?}");
}

/// Gives a key another value behind the member's back; all checksums of the store are right afterwards.
fn alter(folder: &Path, key: &str) {
    let path = folder.join("member").join("snap").join("db");
    let options =
        Options { path, disk: Arc::new(RealDisk), map: true, dirty_bytes_max: 1 << 20, compress: true };
    let mut store = Store::open(options).unwrap();
    let mut found = None;
    let mut cursor = store.view().seek(TreeId::Key, b"").unwrap();
    while let Some(at) = cursor.key() {
        let kv = mvccpb::KeyValue::decode(cursor.value().unwrap().unwrap().as_ref()).unwrap();
        if kv.key == key {
            found = Some((at.to_vec(), kv));
        }
        cursor.next().unwrap();
    }
    let (at, mut kv) = found.unwrap();
    kv.value = Bytes::from_static(b"altered");
    store.insert(TreeId::Key, &at, &kv.encode_to_vec()).unwrap();
    store.publish();
    let job = store.begin_checkpoint().unwrap();
    store.finish_checkpoint(job.run().unwrap()).unwrap();
    store.check().unwrap();
}

async fn alarms(group: &Group, at: usize) -> Vec<pb::AlarmMember> {
    let request = pb::AlarmRequest::default();
    let answer: Result<pb::AlarmResponse, String> =
        ask(group.client(at), "/etcdserverpb.Maintenance/Alarm", &request).await;
    answer.unwrap().alarms
}

/// Waits for the alarm: it is for that member and no other.
async fn corrupt(group: &Group, member_id: u64) {
    let raised = until(async || Some(alarms(group, 0).await).filter(|raised| !raised.is_empty())).await;
    let expected = pb::AlarmMember { member_id, alarm: pb::AlarmType::Corrupt as i32 };
    assert_eq!(raised, [expected]);
    for at in 0..3 {
        let refused = until(async || put(group.client(at), "more", "1").await.err()).await;
        assert_eq!(refused, "15 etcdserver: corrupt cluster");
    }
}

async fn compact(group: &Group, revision: i64) {
    let request = pb::CompactionRequest { revision, physical: true };
    let answer: Result<pb::CompactionResponse, String> =
        ask(group.client(0), "/etcdserverpb.KV/Compact", &request).await;
    answer.unwrap();
}

/// Puts, deletes and compactions through all members.
async fn work(group: &Group) -> i64 {
    let mut revision = 0;
    for n in 0..60 {
        let key = format!("k{}", n % 7);
        revision = put(group.client(n % 3), &key, &format!("v{n}")).await.unwrap();
        if n % 20 == 10 {
            compact(group, revision).await;
        }
    }
    revision
}

#[test]
fn a_member_that_starts_on_another_content_ends() {
    let mut group = Group::start("corrupt-start", 3, &[]);
    block_on(work(&group));
    stop(&mut group, 2);
    let gate = "--feature-gates=InitialCorruptCheck=true";
    let member = group.places[2].spawn(&group.cluster, &[gate]);
    member.wait_for("initial corruption checking passed; no corruption");
    member.wait_for("ready to serve client requests");
    group.members[2] = Some(member);

    stop(&mut group, 2);
    alter(&group.places[2].folder.0, "k3");
    let (code, lines) = group.places[2].spawn(&group.cluster, &[gate]).wait();
    assert_eq!(code, Some(1), "{lines:#?}");
    assert!(lines.last().unwrap().contains("found data inconsistency with peers"), "{lines:#?}");
    block_on(async {
        put(group.client(0), "k", "the others go on").await.unwrap();
        assert!(alarms(&group, 0).await.is_empty());
    });
}

#[test]
fn the_leader_compares_all_from_time_to_time() {
    let mut group = Group::start("corrupt-period", 3, &[PERIODIC]);
    let leader = block_on(async {
        work(&group).await;
        group.leader().await
    });
    let checked = |group: &Group| {
        // One that is behind is not compared; it will be, the next time.
        group.members[leader].as_ref().unwrap().wait_for("\"number-of-peers-checked\":2");
    };
    checked(&group);
    block_on(work(&group));
    checked(&group);
    let altered = (leader + 1) % 3;
    let id = block_on(async {
        assert!(alarms(&group, leader).await.is_empty());
        group.ids().await[altered].unwrap()
    });
    stop(&mut group, altered);
    alter(&group.places[altered].folder.0, "k3");
    group.restart(altered, &[PERIODIC]);
    block_on(corrupt(&group, id));
    let lines = group.members[leader].as_ref().unwrap().wait_for("the members do not hold the same");
    assert!(lines.last().unwrap().contains(&format!("\"corrupt-member-id\":\"{id:x}\"")), "{lines:#?}");
}

/// Whoever leads: it may be the altered one.
#[test]
fn a_cluster_that_starts_with_an_altered_member_finds_it() {
    let mut group = Group::start("corrupt-all", 3, &[]);
    let id = block_on(async {
        work(&group).await;
        group.ids().await[1].unwrap()
    });
    for at in [1, 0, 2] {
        stop(&mut group, at);
    }
    alter(&group.places[1].folder.0, "k3");
    for at in 0..3 {
        group.members[at] = Some(group.places[at].spawn(&group.cluster, &[PERIODIC]));
    }
    for member in group.members.iter().flatten() {
        member.wait_for("ready to serve client requests");
    }
    block_on(corrupt(&group, id));
}

#[test]
fn the_leader_compares_what_compactions_kept() {
    let mut group = Group::start("corrupt-compact", 3, &COMPACTIONS);
    let leader = block_on(async {
        work(&group).await;
        group.leader().await
    });
    group.members[leader].as_ref().unwrap().wait_for("successfully checked hash on whole cluster");
    let altered = (leader + 1) % 3;
    let id = block_on(async {
        assert!(alarms(&group, leader).await.is_empty());
        group.ids().await[altered].unwrap()
    });
    stop(&mut group, altered);
    alter(&group.places[altered].folder.0, "k3");
    group.restart(altered, &COMPACTIONS);
    block_on(async {
        let revision = put(group.client(0), "one", "more").await.unwrap();
        compact(&group, revision).await;
        corrupt(&group, id).await;
    });
    let lines =
        group.members[leader].as_ref().unwrap().wait_for("the members do not hold the same at a compaction");
    assert!(lines.last().unwrap().contains(&format!("\"corrupt-member-id\":\"{id:x}\"")), "{lines:#?}");
}
