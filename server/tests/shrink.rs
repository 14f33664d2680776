//! The store's file gets shorter by itself when content goes, and on demand, with reads and writes going on.
#![allow(clippy::unwrap_used)]

mod common;

use std::pin::pin;
use std::time::Duration;

use common::{Bed, config, decode, delete, get_range};
use trilith_disk::sim::SimDisk;
use trilith_proto::etcdserverpb as pb;
use trilith_server::core::Config;
use trilith_server::service;

const KEYS: usize = 700;
const VALUE: usize = 16 << 10;

/// A member that stores values as they are.
fn member() -> Bed {
    let disk = SimDisk::new();
    Bed::with(Config { compress_values: false, ..config(&disk) }, disk).unwrap()
}

fn value(n: usize) -> String {
    let mut state = n as u64 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state >> 33) as u8 % 90)
    };
    (0..VALUE).map(|_| next()).collect()
}

/// A member that has lost nine tenths of its content; bytes of what is left.
fn emptied(bed: &mut Bed) -> u64 {
    for n in 0..KEYS {
        bed.put(&format!("k{n:05}"), &value(n));
    }
    bed.pass(Duration::from_secs(6));
    assert!(bed.handle.facts().db_size > (KEYS * VALUE) as u64);
    let mut left = 0;
    for n in 0..KEYS {
        if n % 10 == 0 {
            left += VALUE as u64;
        } else {
            bed.delete(delete(&format!("k{n:05}"), "")).unwrap();
        }
    }
    let revision = bed.revision();
    bed.compact(revision, true).unwrap();
    left
}

fn assert_content(bed: &mut Bed) {
    let found = bed.range(get_range("k", "l")).unwrap();
    assert_eq!(found.kvs.len(), KEYS / 10);
    for (i, kv) in found.kvs.iter().enumerate() {
        assert_eq!(kv.key, format!("k{:05}", i * 10));
        assert_eq!(kv.value, value(i * 10));
    }
}

#[test]
fn the_file_shrinks_within_two_minutes_and_nobody_asked() {
    let mut bed = member();
    let left = emptied(&mut bed);
    // Somebody reads for a while.
    let root = bed.handle.root();
    let before = bed.handle.facts().db_size;
    for n in 0..60 {
        bed.put("busy", &n.to_string());
        bed.pass(Duration::from_millis(500));
    }
    assert!(root.view().revision() > 0);
    drop(root);
    for n in 0..90 {
        bed.put("busy", &n.to_string());
        bed.pass(Duration::from_secs(1));
    }
    let facts = bed.handle.facts();
    println!("{before} bytes, now {} for {left}", facts.db_size);
    // Two MiB more or less are no matter to it.
    assert!(facts.db_size < left * 13 / 10 + (2 << 20), "{} bytes for {left}", facts.db_size);
    assert!(facts.db_size_in_use <= facts.db_size);
    assert_content(&mut bed);

    // What is free is known at once after a restart.
    let mut bed = bed.restart();
    assert!(bed.handle.facts().db_size <= facts.db_size);
    assert_content(&mut bed);
}

#[test]
fn x13_defragment_makes_it_as_short_as_it_gets_and_requests_go_on() {
    let mut bed = member();
    let left = emptied(&mut bed);
    let handle = bed.handle.clone();
    let defragment = || service::maintenance::defragment(&handle, pb::DefragmentRequest {});
    let (mut first, mut second) = (pin!(defragment()), pin!(defragment()));
    let (mut answers, mut puts) = (Vec::new(), 0);
    while answers.len() < 2 {
        for call in [first.as_mut(), second.as_mut()].into_iter().skip(answers.len()) {
            match bed.poll(call) {
                Some(answer) => answers.push(answer),
                None => break,
            }
        }
        bed.put("busy", &puts.to_string());
        bed.pass(Duration::from_millis(1));
        puts += 1;
        assert!(puts < 60_000, "it comes to an end");
    }
    for answer in answers {
        let response: pb::DefragmentResponse = decode(answer.unwrap());
        assert_eq!(response.header, None, "H5");
    }
    let facts = bed.handle.facts();
    // A quarter of a MiB is for what the puts on the way leave behind.
    assert!(facts.db_size < left * 13 / 10 + (256 << 10), "{} bytes for {left}", facts.db_size);
    assert_content(&mut bed);
}
