//! bbolt files against real ones, against a model, cut off and damaged.
//!
//! `TRILITH_BOLT_SEED` replays a run, `TRILITH_BOLT_TIMES=100` makes random tests so many times as long.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, Open};

use super::*;
use crate::tests::rng::Rng;
use crate::{BUCKETS, Options, Root, Store, TreeId};

pub(super) const SNAPSHOT: &[u8] = include_bytes!("../../tests/bolt/small.snapshot");
const FACTS: &str = include_str!("../../tests/bolt/small.txt");

type Content = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

pub(super) fn seed(usual: u64) -> u64 {
    let seed = std::env::var("TRILITH_BOLT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(usual);
    println!("seed: TRILITH_BOLT_SEED={seed}");
    seed
}

/// Rounds of a random test; the long form has more.
pub(super) fn rounds(usual: usize) -> usize {
    let times = std::env::var("TRILITH_BOLT_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    usual * times
}

pub(super) fn disk_with(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("d")).unwrap();
    let file = disk.open(Path::new("d/snapshot"), Open::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    disk
}

fn open(bytes: &[u8]) -> Result<BoltFile, BoltError> {
    BoltFile::open(&disk_with(bytes), Path::new("d/snapshot"))
}

fn content(file: &BoltFile) -> Result<Content, BoltError> {
    let mut all = Content::new();
    for bucket in file.buckets()? {
        let mut list = Vec::new();
        let mut entries = file.entries(&bucket)?;
        while let Some(entry) = entries.next()? {
            list.push((entry.key.to_vec(), entry.value.to_vec()));
        }
        all.insert(String::from_utf8_lossy(&bucket.name).into_owned(), list);
    }
    Ok(all)
}

/// The bytes of the hash that etcd's `snapshot status` shows.
fn status_hash(content: &Content) -> u32 {
    content.iter().fold(0, |crc, (name, entries)| {
        entries.iter().fold(crc32c::crc32c_append(crc, name.as_bytes()), |crc, (key, value)| {
            crc32c::crc32c_append(crc32c::crc32c_append(crc, key), value)
        })
    })
}

pub(super) fn facts(what: &str) -> Vec<Vec<&'static str>> {
    let lines = FACTS.lines().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
    lines.map(|line| line.split(' ').collect()).collect()
}

pub(super) fn store_on(disk: &SimDisk) -> Store {
    disk.create_dir_all(Path::new("s")).unwrap();
    let path = PathBuf::from("s/db");
    let disk = Arc::new(disk.clone());
    Store::open(Options { path, disk, map: false, dirty_bytes_max: 1 << 20, compress: true }).unwrap()
}

pub(super) fn bytes_of(mut export: Export) -> Vec<u8> {
    let mut bytes = Vec::new();
    let total = export.total_bytes();
    while let Some(chunk) = export.next_chunk().unwrap() {
        let last = bytes.len() as u64 == total;
        assert!(chunk.len() <= CHUNK_BYTES);
        assert!(!last || chunk.len() == 32, "the hash comes alone and last");
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes.len() as u64, total + 32);
    assert_eq!(export.next_chunk().unwrap(), None);
    bytes
}

/// What a file made of the root must hold.
fn content_of(root: &Root) -> Content {
    let mut all = Content::new();
    for (name, tree) in BUCKETS {
        let mut list = BTreeMap::new();
        let view = root.view();
        let mut cursor = view.seek(tree, b"").unwrap();
        while let Some(key) = cursor.key() {
            list.insert(key.to_vec(), cursor.value().unwrap().unwrap().to_vec());
            cursor.next().unwrap();
        }
        if tree == TreeId::Meta {
            let (index, term) = root.applied();
            for (key, number) in [(CONSISTENT_INDEX, index), (TERM, term)] {
                list.remove(key);
                if number > 0 {
                    list.insert(key.to_vec(), number.to_be_bytes().to_vec());
                }
            }
        }
        all.insert(name.to_owned(), list.into_iter().collect());
    }
    all
}

#[test]
fn a_snapshot_of_a_real_etcd_reads_as_etcd_says() {
    let file = open(SNAPSHOT).unwrap();
    assert_eq!(file.verify(&mut |_| ()).unwrap(), Trailer::Right);
    file.check().unwrap();
    let content = content(&file).unwrap();
    let names: Vec<&str> = content.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "alarm",
            "auth",
            "authRoles",
            "authUsers",
            "cluster",
            "key",
            "lease",
            "members",
            "members_removed",
            "meta"
        ]
    );
    let entries: usize = content.values().map(Vec::len).sum();
    let revision = &content["key"].last().unwrap().0[..8];
    let revision = i64::from_be_bytes(revision.try_into().unwrap());
    let found = [u64::from(status_hash(&content)), revision as u64, entries as u64, file.size()];
    assert_eq!(facts("status")[0], found.map(|number| number.to_string()));
    assert!(content["key"].iter().any(|(_, value)| value.len() > 9000), "a value of several pages");
    assert_eq!(content["authUsers"].len(), 1);

    // The same as a copy of the data directory's file.
    let bare = open(&SNAPSHOT[..SNAPSHOT.len() - 32]).unwrap();
    assert_eq!(bare.verify(&mut |_| ()).unwrap(), Trailer::Missing);
    assert!(matches!(bare.require_hash(&mut |_| ()), Err(BoltError::HashMissing { .. })));
    assert_eq!(self::content(&bare).unwrap(), content);
}

#[test]
fn the_older_meta_page_stands_in_for_a_damaged_one() {
    let content = content(&open(SNAPSHOT).unwrap()).unwrap();
    for page in [0, 1] {
        let mut bytes = SNAPSHOT.to_vec();
        bytes[page * 4096 + 40] ^= 1;
        // Both pages of a snapshot have the same root.
        assert_eq!(self::content(&open(&bytes).unwrap()).unwrap(), content);
        bytes[(1 - page) * 4096 + 40] ^= 1;
        assert!(open(&bytes).unwrap_err().to_string().contains("neither meta page is whole"));
    }
}

/// Fills some trees with keys and values of all sizes.
fn fill(rng: &mut Rng, store: &mut Store, entries: usize) {
    for (_, tree) in BUCKETS {
        let entries = [0, 1, 3, entries / 20, entries][rng.below(5)];
        for i in 0..entries {
            let mut key = (i as u64 * 3 + rng.next() % 3).to_be_bytes().to_vec();
            let more = if rng.chance(200) { rng.below(20_000) } else { rng.below(40) };
            key.resize(8 + more, rng.next() as u8);
            let value = match rng.below(60) {
                0 => rng.below(100_000),
                1..10 => rng.below(3000),
                _ => rng.below(200),
            };
            // Half of the long ones are worth compressing.
            let byte = rng.next() as u8;
            let noise = rng.chance(2);
            let value: Vec<u8> = (0..value).map(|_| if noise { rng.next() as u8 } else { byte }).collect();
            store.insert(tree, &key, &value).unwrap();
        }
    }
    if rng.chance(2) {
        store.insert(TreeId::Meta, CONSISTENT_INDEX, b"an old one").unwrap();
    }
    store.set_applied(rng.next() >> 40, rng.next() % 2);
    store.publish();
}

#[test]
fn an_export_reads_back_at_every_page_size() {
    let mut rng = Rng(seed(11));
    for round in 0..rounds(8) {
        let disk = SimDisk::new();
        let mut store = store_on(&disk);
        let entries = 10 + rng.below(600);
        fill(&mut rng, &mut store, entries);
        if round % 2 == 0 {
            let done = store.begin_checkpoint().unwrap().run().unwrap();
            store.finish_checkpoint(done).unwrap();
        }
        let root = store.reader().root();
        let expected = content_of(&root);
        for page_size in [512, 1024, 4096, 16_384, 65_536] {
            let bytes = bytes_of(Export::with_page_size(root.clone(), page_size).unwrap());
            let file = open(&bytes).unwrap();
            assert_eq!(file.page_size(), page_size as u64);
            assert_eq!(file.verify(&mut |_| ()).unwrap(), Trailer::Right);
            assert_eq!(file.size() + 32, bytes.len() as u64);
            file.check().unwrap();
            assert!(content(&file).unwrap() == expected, "pages of {page_size} bytes, round {round}");
            // The second meta page alone says the page size, too.
            let mut damaged = bytes.clone();
            damaged[20] ^= 1;
            assert_eq!(open(&damaged).unwrap().page_size(), page_size as u64);
        }
    }
}

#[test]
fn small_buckets_are_inline_and_an_empty_store_has_all_of_them() {
    let disk = SimDisk::new();
    let bytes = bytes_of(Export::new(store_on(&disk).reader().root()).unwrap());
    assert_eq!(
        bytes.len(),
        4 * 4096 + 32,
        "two meta pages, the freelist, and the root with ten inline buckets"
    );
    let content = content(&open(&bytes).unwrap()).unwrap();
    assert_eq!(content.len(), 10);
    assert!(content.values().all(Vec::is_empty));
}

#[test]
fn a_key_that_bbolt_cannot_hold_is_refused_by_name() {
    for len in [0, 32_769] {
        let disk = SimDisk::new();
        let mut store = store_on(&disk);
        store.insert(TreeId::AuthUsers, &vec![1; len], b"").unwrap();
        store.publish();
        let error = Export::new(store.reader().root()).unwrap_err().to_string();
        assert!(error.contains("AuthUsers") && error.contains(&format!("{len} bytes")), "{error}");
    }
}

#[test]
fn a_truncated_snapshot_is_refused_wherever_it_is_cut() {
    let exported = {
        let disk = SimDisk::new();
        let mut store = store_on(&disk);
        fill(&mut Rng(seed(5)), &mut store, 400);
        bytes_of(Export::new(store.reader().root()).unwrap())
    };
    for whole in [SNAPSHOT, &exported] {
        let pages = whole.len().div_ceil(4096);
        let cuts = (0..pages).flat_map(|page| [page * 4096, page * 4096 + 32, page * 4096 + 1000]);
        for len in cuts.chain([whole.len() - 1, whole.len() - 32]).filter(|len| *len < whole.len()) {
            let refused = open(&whole[..len]).and_then(|file| file.require_hash(&mut |_| ()));
            let error = refused.expect_err("a part is no snapshot").to_string();
            let names_it = ["truncated", "SHA-256"].iter().any(|word| error.contains(word));
            assert!(names_it && error.contains("d/snapshot"), "cut at {len}: {error}");
        }
    }
}

/// What may be at the place of a flipped or overwritten byte: an error, or content; the hash tells.
fn read_all(bytes: &[u8]) -> Result<(), BoltError> {
    let file = open(bytes)?;
    let outcome = content(&file).map(|_| ());
    let checked = file.check();
    if outcome.is_err() {
        assert!(checked.is_err(), "the check sees what reading sees");
    }
    let error = file.require_hash(&mut |_| ()).expect_err("the hash sees every change");
    assert!(matches!(error, BoltError::HashMismatch { .. } | BoltError::HashMissing { .. }), "{error}");
    outcome.and(checked)
}

#[test]
fn damage_never_panics_or_loops_and_the_hash_sees_all_of_it() {
    let mut rng = Rng(seed(23));
    let mut seen = 0;
    let disk = SimDisk::new();
    let mut store = store_on(&disk);
    fill(&mut rng, &mut store, 100);
    // Of small pages, so that its trees are high.
    let ours = bytes_of(Export::with_page_size(store.reader().root(), 512).unwrap());
    for round in 0..rounds(1500) {
        let (whole, page_size) = if rng.chance(2) { (SNAPSHOT, 4096) } else { (ours.as_slice(), 512) };
        let mut bytes = whole.to_vec();
        for _ in 0..=rng.below(3) {
            // Where structure is: headers and elements of a page.
            let page = rng.below(bytes.len() / page_size);
            let within = if rng.chance(4) { page_size } else { 120 };
            let at = page * page_size + rng.below(within);
            let word = match rng.below(5) {
                0 => rng.next().to_le_bytes(),
                1 => (rng.below(30) as u64).to_le_bytes(),
                2 => [0xff; 8],
                3 => [0; 8],
                _ => {
                    bytes[at] ^= 1 << rng.below(8);
                    continue;
                }
            };
            let len = [1, 2, 4, 8][rng.below(4)].min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&word[..len]);
        }
        if bytes == whole {
            continue;
        }
        match read_all(&bytes) {
            Ok(()) => {}
            Err(BoltError::Damaged { problem, .. }) => {
                assert!(!problem.is_empty());
                seen += 1;
            }
            Err(other) => panic!("round {round}: {other}"),
        }
    }
    assert!(seen > 100, "much of the damage breaks the structure: {seen}");
}

/// Overwrites four or eight bytes and says what the walk says.
fn broken(bytes: &[u8], at: usize, new: &[u8]) -> String {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    open(&bytes).and_then(|file| file.check()).expect_err("damage").to_string()
}

#[test]
fn each_kind_of_damage_is_named_with_its_page_and_field() {
    let disk = SimDisk::new();
    let mut store = store_on(&disk);
    for i in 0..3000u64 {
        store.insert(TreeId::Key, &i.to_be_bytes(), &[7; 100]).unwrap();
    }
    store.publish();
    let bytes = bytes_of(Export::new(store.reader().root()).unwrap());
    let first = 3 * 4096;
    let kind = |page: usize| bytes[page * 4096 + 8];
    let branch = (3..bytes.len() / 4096).find(|page| kind(*page) == 1).unwrap();
    let at = branch * 4096;
    for (place, new, expected) in [
        (first, &9u64.to_le_bytes()[..], "page 3: page number: 9"),
        (first + 8, &4u16.to_le_bytes(), "page 3: flags: 0x4: neither a leaf nor a branch"),
        (first + 10, &60_000u16.to_le_bytes(), "page 3: count: 60000 elements in 4096 bytes"),
        (first + 12, &1u32.to_le_bytes(), "page 4: page: used twice"),
        (first + 12, &u32::MAX.to_le_bytes(), "page 4: place in the file"),
        (first + 16, &1u32.to_le_bytes(), "page 3: element flags: element 0: 0x1 is not an entry's"),
        (first + 20, &1u32.to_le_bytes(), "page 3: position: element 0"),
        (first + 20, &5000u32.to_le_bytes(), "page 3: position: element 0"),
        (first + 24, &0u32.to_le_bytes(), "page 3: key length: element 0: 0"),
        (first + 28, &u32::MAX.to_le_bytes(), "page 3: value length: element 0"),
        (at + 24, &(branch as u64).to_le_bytes(), "page: used twice"),
        (at + 40, &3u64.to_le_bytes(), "page 3: page: used twice"),
        (at + 24, &2u64.to_le_bytes(), "page 2: flags: 0x10"),
        (at + 24, &0u64.to_le_bytes(), "page 0: place in the file"),
        (2 * 4096 + 8, &2u16.to_le_bytes(), "page 2: page header: flags 0x2"),
        (2 * 4096 + 10, &1u16.to_le_bytes(), "page 2: free page: 0 after 1"),
    ] {
        let error = broken(&bytes, place, new);
        assert!(error.contains(expected), "{expected:?} expected: {error}");
    }
    // A key that is out of order, and one below what its branch says.
    let key = first + 16 + 16 * usize::from(bytes[first + 10]);
    let error = broken(&bytes, key + 108, &[0; 8]);
    assert!(error.contains("page 3: key: element 1: not above"), "{error}");
    let second = at + 16 + 16 * usize::from(u16::from_le_bytes([bytes[at + 10], bytes[at + 11]])) + 8;
    let error = broken(&bytes, second, &[9; 8]);
    assert!(error.contains("key: element 0: not above"), "{error}");
}
