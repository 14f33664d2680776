//! Ranges whose answers are too large to be made in one piece.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Bed, put, whole};
use trilith_disk::Disk;
use trilith_disk::sim::SimDisk;
use trilith_proto::etcdserverpb::RangeRequest;
use trilith_server::apply::range::{self, Budget, ReadError};
use trilith_server::core::Config;
use trilith_server::reply::{Body, Reply};
use trilith_server::service;

/// What a part may hold beside the pair that fills it.
const PART_BYTES: usize = (256 << 10) + 4096;
const VALUE_MAX: usize = 40_000;

/// xorshift64*.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

fn key(i: u64) -> String {
    format!("k{i:04}")
}

/// Some 400 live keys with 7 MB of values, some equal, some that begin alike; with a history.
fn bed(rng: &mut Rng) -> Bed {
    let mut bed = Bed::new();
    bed.grant(9, 600).unwrap();
    for _ in 0..800 {
        let key = key(rng.below(500));
        if rng.below(8) == 0 {
            bed.delete(common::delete(&key, "")).unwrap();
            continue;
        }
        let len = rng.below(VALUE_MAX as u64) as usize;
        let begin = ["", "a", "the same beginning of all ", "the same beginning of all but one "];
        let mut value = begin[rng.below(4) as usize].to_owned();
        if rng.below(4) > 0 {
            value += &format!("{}", rng.below(3));
            value += &"v".repeat(len);
        }
        let lease = if rng.below(3) == 0 { 9 } else { 0 };
        bed.try_put(trilith_proto::etcdserverpb::PutRequest { lease, ..put(&key, &value) }).unwrap();
    }
    bed
}

fn request(rng: &mut Rng, revision: i64) -> RangeRequest {
    let mut sometimes = |n: i64| if rng.below(3) == 0 { rng.below(n as u64) as i64 } else { 0 };
    let (limit, at) = (sometimes(500), sometimes(revision));
    let filters = [sometimes(revision), sometimes(revision), sometimes(revision), sometimes(revision)];
    let start = rng.below(100);
    let ends = [key(start + rng.below(500)), "\0".to_owned(), key(start + 450)];
    RangeRequest {
        key: key(start).into(),
        range_end: Bytes::from(ends[rng.below(3) as usize].clone()),
        limit,
        revision: at,
        sort_order: rng.below(3) as i32,
        sort_target: rng.below(5) as i32,
        keys_only: rng.below(4) == 0,
        count_only: rng.below(16) == 0,
        min_mod_revision: filters[0] / 4,
        max_mod_revision: if filters[1] > 0 { revision - filters[1] / 4 } else { 0 },
        min_create_revision: filters[2] / 4,
        max_create_revision: if filters[3] > 0 { revision - filters[3] / 4 } else { 0 },
        serializable: true,
    }
}

#[test]
fn parts_are_the_bytes_of_the_answer_in_one_piece() {
    let seed = 20_261_125;
    let mut rng = Rng(seed);
    let mut bed = bed(&mut rng);
    let revision = bed.revision();
    let (mut lists, mut most) = (0, 0);
    for n in 0..250 {
        let request = request(&mut rng, revision);
        let root = bed.handle.root();
        let header = bed.handle.header(revision, root.applied().1);
        let expected = Reply::try_build(0, |buf| {
            range::range(root.view(), &request, header, &mut { Budget::UNLIMITED }, buf)
        });
        let expected = expected.map_err(|error: ReadError| error.into());
        let (handle, asked) = (bed.handle.clone(), request.clone());
        let answer = bed.run(async move { service::kv::range(&handle, asked).await });
        let answer = match answer {
            Ok(Body::Parts(mut parts)) => {
                lists += 1;
                let mut bytes = Vec::new();
                while let Some(part) = parts.next() {
                    let part = part.unwrap();
                    assert!(part.len() <= PART_BYTES + VALUE_MAX, "seed {seed}, request {n}: {}", part.len());
                    bytes.extend_from_slice(&part);
                }
                assert!(parts.next().is_none());
                Ok(Reply(bytes.into()))
            }
            other => other.map(whole),
        };
        most = most.max(answer.as_ref().map_or(0, |reply| reply.0.len()));
        let same = answer.as_ref().map(|reply| &reply.0) == expected.as_ref().map(|reply| &reply.0);
        assert!(same, "seed {seed}, request {n}: {request:?}");
    }
    assert!(lists > 50 && most > 4 << 20, "{lists} lists, up to {most} bytes");
}

#[test]
fn a_list_is_of_the_revision_at_which_it_began() {
    let mut bed = bed(&mut Rng(5));
    let all = RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let before = bed.range(all.clone()).unwrap();
    let (handle, asked) = (bed.handle.clone(), all.clone());
    let Body::Parts(mut parts) = bed.run(async move { service::kv::range(&handle, asked).await }).unwrap()
    else {
        panic!("7 MB come in parts")
    };
    let mut bytes = parts.next().unwrap().unwrap().to_vec();
    let revision = bed.revision();
    for i in 0..500 {
        bed.put(&key(i), "new");
    }
    bed.compact(revision + 400, true).unwrap();
    bed.pass(std::time::Duration::from_secs(20));
    while let Some(part) = parts.next() {
        bytes.extend_from_slice(&part.unwrap());
    }
    assert_eq!(common::decode::<trilith_proto::etcdserverpb::RangeResponse>(Reply(bytes.into())), before);
    assert_ne!(bed.range(all).unwrap(), before);
}

#[test]
fn a_list_over_a_damaged_value_ends_with_an_error() {
    let mut rng = Rng(77);
    // So that the value can be found in the file.
    let disk = SimDisk::new();
    let config = Config { compress_values: false, ..common::config(&disk) };
    let mut bed = Bed::with(config, disk).unwrap();
    let mut needle = String::new();
    for i in 0..200 {
        let value: String = (0..10_000).map(|_| char::from(b' ' + rng.below(95) as u8)).collect();
        bed.put(&key(i), &value);
        if i == 190 {
            needle = value[5000..5100].to_owned();
        }
    }
    // From a cold start, so that the values are read from the disk.
    let mut bed = bed.restart();
    let path = std::path::Path::new("data/member/snap/db");
    let file = bed.disk.open(path, trilith_disk::Open::Existing).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let at = bytes.windows(needle.len()).position(|window| window == needle.as_bytes());
    let all = RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let handle = bed.handle.clone();
    let Body::Parts(mut parts) = bed.run(async move { service::kv::range(&handle, all).await }).unwrap()
    else {
        panic!("2 MB come in parts")
    };
    bed.disk.corrupt(path, at.unwrap() as u64, 1).unwrap();
    let (mut taken, mut failed) = (0, None);
    while let Some(part) = parts.next() {
        match part {
            Ok(part) => taken += part.len(),
            Err(status) => failed = Some(status),
        }
    }
    let failed = failed.unwrap().to_string();
    assert!(
        failed.contains("checksum") && taken > 1 << 20 && taken < 1_910_000,
        "{taken} bytes, then: {failed}"
    );
}
