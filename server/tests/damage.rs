//! Damage in the store's file: found by the scrub or met by a reader, it raises CORRUPT, and nothing wrong is served.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Bed, bytes, decode, get, put};
use trilith_proto::etcdserverpb as pb;
use trilith_server::service;
use trilith_server::status;

fn alarms(bed: &mut Bed) -> Vec<i32> {
    let handle = bed.handle.clone();
    let call = async move { service::maintenance::alarm(&handle, pb::AlarmRequest::default()).await };
    decode::<pb::AlarmResponse>(bed.run(call).unwrap()).alarms.iter().map(|alarm| alarm.alarm).collect()
}

/// A member whose store is on disk, as a start finds it.
fn filled() -> Bed {
    let mut bed = Bed::new();
    for n in 0..500 {
        bed.put(&format!("k{n:03}"), &"v".repeat(300));
    }
    bed.restart()
}

/// Byte of the file where the value of a key stands.
fn place_of(bed: &Bed, key: &str) -> u64 {
    let path = Path::new("data/member/snap/db");
    let file = trilith_disk::Disk::open(&bed.disk, path, trilith_disk::Open::Existing).unwrap();
    let mut all = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut all, 0).unwrap();
    // A pair begins with its key; the index has the key without its length before it.
    let pair = [&[0x0a, key.len() as u8][..], key.as_bytes()].concat();
    let at = all.windows(pair.len()).position(|window| *window == pair[..]).unwrap();
    at as u64
}

fn scrub(bed: &mut Bed) {
    for _ in 0..20 {
        bed.now += Duration::from_secs(1);
        if let Some(job) = bed.core.begin_scrub() {
            assert!(bed.core.begin_scrub().is_none(), "one at a time");
            bed.core.scrub_finished(job.run());
        }
        bed.step().unwrap();
    }
}

#[test]
fn a_sound_store_raises_nothing() {
    let mut bed = filled();
    for n in 0..10 {
        scrub(&mut bed);
        bed.put(&format!("k{n:03}"), "again");
    }
    assert_eq!(alarms(&mut bed), [0; 0]);
}

#[test]
fn damage_that_the_scrub_finds_raises_corrupt() {
    let mut bed = filled();
    let at = place_of(&bed, "k250");
    bed.disk.corrupt(Path::new("data/member/snap/db"), at + 9, 4).unwrap();
    assert_eq!(alarms(&mut bed), [0; 0], "nobody has looked");
    scrub(&mut bed);
    assert_eq!(alarms(&mut bed), [pb::AlarmType::Corrupt as i32]);
    assert_eq!(bed.try_put(put("a", "b")).unwrap_err(), status::CORRUPT);
    let mut bed = bed.kill();
    assert_eq!(alarms(&mut bed), [pb::AlarmType::Corrupt as i32], "it stands in the log");
}

#[test]
fn damage_that_a_reader_meets_raises_corrupt() {
    let mut bed = filled();
    let at = place_of(&bed, "k250");
    bed.disk.corrupt(Path::new("data/member/snap/db"), at + 9, 4).unwrap();
    let refused = bed.range(pb::RangeRequest { serializable: true, ..get("k250") }).unwrap_err();
    assert!(refused.message.contains("the file is corrupt"), "{refused}");
    bed.pass(Duration::from_millis(200));
    assert_eq!(alarms(&mut bed), [pb::AlarmType::Corrupt as i32]);
    let request = pb::PutRequest { key: bytes("k250"), ..put("", "x") };
    assert_eq!(bed.try_put(request).unwrap_err(), status::CORRUPT);
}
