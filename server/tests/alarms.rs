//! Quota and alarms of a whole member: X1 to X6 of the reference.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Bed, config, decode, delete, get, op_delete, op_get, op_put, put, txn};
use trilith_disk::sim::SimDisk;
use trilith_proto::etcdserverpb as pb;
use trilith_proto::etcdserverpb::alarm_request::AlarmAction;
use trilith_proto::etcdserverpb::{AlarmMember, AlarmType};
use trilith_server::apply::command::Command;
use trilith_server::apply::quota::Quota;
use trilith_server::service;
use trilith_server::status;

fn alarm(bed: &mut Bed, action: AlarmAction, member_id: u64, alarm: AlarmType) -> Vec<AlarmMember> {
    let handle = bed.handle.clone();
    let request = pb::AlarmRequest { action: action as i32, member_id, alarm: alarm as i32 };
    let call = async move { service::maintenance::alarm(&handle, request).await };
    let response: pb::AlarmResponse = decode(bed.run(call).unwrap());
    assert_eq!(response.header.unwrap().revision, bed.revision());
    response.alarms
}

fn alarms(bed: &mut Bed) -> Vec<AlarmMember> {
    alarm(bed, AlarmAction::Get, 0, AlarmType::None)
}

fn member_status(bed: &mut Bed) -> pb::StatusResponse {
    let handle = bed.handle.clone();
    decode(bed.run(async move { service::maintenance::status(&handle, pb::StatusRequest {}).await }).unwrap())
}

/// A member whose store may grow by so many bytes.
fn with_room(bytes: u64) -> Bed {
    let disk = SimDisk::new();
    let size = Bed::on(disk.fork()).handle.facts().db_size;
    let quota = Quota::new((size + bytes) as i64);
    let mut bed = Bed::with(trilith_server::core::Config { quota, ..config(&disk) }, disk).unwrap();
    assert_eq!(bed.handle.facts().db_size, size);
    assert_eq!(member_status(&mut bed).db_size_quota, quota.bytes());
    bed
}

#[test]
fn x4_x5_a_full_store_refuses_writes_until_the_alarm_is_disarmed() {
    let mut bed = with_room(256 << 10);
    let id = bed.handle.facts().member_id;
    let value = "v".repeat(4 << 10);
    let mut written = 0;
    let refused = loop {
        match bed.try_put(put(&format!("k{written:04}"), &value)) {
            Ok(_) => written += 1,
            Err(refused) => break refused,
        }
        assert!(written < 100, "the quota is for some 60 of them");
    };
    assert_eq!(refused, status::NO_SPACE);
    assert!(written > 30, "{written} times 4 KiB fit into 256 KiB");
    let raised = vec![AlarmMember { member_id: id, alarm: AlarmType::Nospace as i32 }];
    assert_eq!(alarms(&mut bed), raised, "it stands when the caller is refused");
    let reported = member_status(&mut bed);
    assert_eq!(reported.errors, [format!("memberID:{id} alarm:NOSPACE")]);
    assert!(reported.db_size + 4096 + 300 >= reported.db_size_quota, "{reported:?}");
    let applied = bed.handle.facts().applied;
    assert_eq!(bed.try_put(put("", "")), Err(status::NO_SPACE), "before anything else is checked");
    assert_eq!(bed.handle.facts().applied, applied, "the alarm is not proposed again and again");

    assert_eq!(bed.txn(txn(vec![op_put("a", "b")], vec![])), Err(status::NO_SPACE));
    assert_eq!(bed.grant(5, 60), Err(status::NO_SPACE));
    bed.txn(txn(vec![op_get("k0000")], vec![])).unwrap();
    bed.txn(txn(vec![op_delete("k0000", "")], vec![op_get("k0000")])).unwrap();
    assert_eq!(bed.range(get("k0001")).unwrap().count, 1);
    assert_eq!(bed.delete(delete("k", "l")).unwrap().deleted, written - 1);
    let revision = bed.revision();
    bed.compact(revision, true).unwrap();

    // With more room the alarm still stands; it goes through the log, and over a restart.
    let (quota, disk) = (Quota::new(-1), bed.disk.fork());
    drop(bed);
    let mut bed = Bed::with(trilith_server::core::Config { quota, ..config(&disk) }, disk).unwrap();
    assert_eq!(alarms(&mut bed), raised);
    assert_eq!(bed.try_put(put("a", "b")), Err(status::NO_SPACE));
    assert_eq!(alarm(&mut bed, AlarmAction::Deactivate, 0, AlarmType::Nospace), []);
    assert_eq!(alarm(&mut bed, AlarmAction::Deactivate, id, AlarmType::Nospace), raised);
    bed.put("a", "b");
    assert_eq!(alarms(&mut bed), []);
    assert_eq!(member_status(&mut bed).errors, [""; 0]);
}

#[test]
fn x5_an_entry_over_the_quota_is_carried_out_and_answered_with_the_alarm() {
    let mut bed = with_room(8 << 10);
    let id = bed.handle.facts().member_id;
    // What another member let through, or this one before it knew its size.
    let request = put("big", &"v".repeat(64 << 10));
    let call = bed.handle.propose(&Command::Put(request));
    assert_eq!(bed.run(call).unwrap_err(), status::NO_SPACE);
    assert_eq!(alarms(&mut bed), [AlarmMember { member_id: id, alarm: AlarmType::Nospace as i32 }]);
    assert_eq!(bed.get("big").unwrap().len(), 64 << 10);
    let revision = bed.revision();
    let call = bed.handle.propose(&Command::Put(put("more", "")));
    assert_eq!(bed.run(call).unwrap_err(), status::NO_SPACE);
    assert_eq!(bed.revision(), revision, "X2: with the alarm it is not carried out");
}

#[test]
fn x3_a_member_that_raises_corrupt_stops_changes_and_goes_on_reading() {
    let mut bed = Bed::new();
    bed.put("a", "b");
    let id = bed.handle.facts().member_id;
    let applied = bed.handle.facts().applied;
    bed.core.raise_alarm(AlarmType::Corrupt);
    bed.core.raise_alarm(AlarmType::Corrupt);
    bed.step().unwrap();
    bed.pass(std::time::Duration::from_millis(100));
    bed.core.raise_alarm(AlarmType::Corrupt);
    bed.pass(std::time::Duration::from_millis(100));
    assert_eq!(bed.handle.facts().applied, applied + 1, "one entry raises it");
    assert_eq!(alarms(&mut bed), [AlarmMember { member_id: id, alarm: AlarmType::Corrupt as i32 }]);
    assert_eq!(bed.try_put(put("a", "c")), Err(status::CORRUPT));
    assert_eq!(bed.delete(delete("a", "")), Err(status::CORRUPT));
    assert_eq!(bed.compact(2, false), Err(status::CORRUPT));
    assert_eq!(bed.get("a").unwrap(), "b");
    let mut bed = bed.restart();
    assert_eq!(bed.grant(5, 60), Err(status::CORRUPT));
    assert_eq!(member_status(&mut bed).errors, [format!("memberID:{id} alarm:CORRUPT")]);
    alarm(&mut bed, AlarmAction::Deactivate, id, AlarmType::Corrupt);
    bed.put("a", "c");
    // It can be raised again.
    bed.core.raise_alarm(AlarmType::Corrupt);
    bed.pass(std::time::Duration::from_millis(100));
    assert_eq!(alarms(&mut bed).len(), 1);
}
