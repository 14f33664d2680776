//! Stores that were changed in every way, with the checksums put right behind the change, so that what lies behind
//! them is reached: whatever stands in the file, opening, reading, checking and exporting it ends in a result or an
//! error. No panic, no endless loop, no memory at will. (`fuzz_write.rs` writes to them.)
//!
//! The long form is the same with more time:
//!
//! ```text
//! TRILITH_FUZZ_SECONDS=600 cargo test --release -p trilith-engine --lib fuzz -- --nocapture
//! ```

use std::path::Path;

use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, Open};
use trilith_fuzz::Rng;

use super::durable::checkpoint;
use super::model::{Model, change, sim_options};
use super::rng;
use crate::bolt::{BoltError, Export};
use crate::extent::LONG_BYTES;
use crate::meta::Meta;
use crate::page::{Link, PAGE, PageView, Place};
use crate::{KeyRange, Scrub, Store, StoreError, TreeId};

pub(super) const MEMORY_BYTES: u64 = 1 << 30;
pub(super) const SECONDS: u64 = 4;
/// More entries than any of the stores has: where a walk of a changed one stops.
const ENTRIES_MAX: usize = 20_000;

/// Pieces of 32 KiB that are taken of an export.
const CHUNKS_MAX: usize = 500;

/// Where `docs/format.md` has what is put right after a change.
const META_ROOTS: usize = 192;
const META_ROOT_BYTES: usize = 48;
const META_CHECK: usize = 4092;
const BITMAP_PAGES: [usize; 2] = [2, 4];
const BITMAP_CHECK: usize = 20;
const SLOTS: usize = 32;
const LINK_AT: usize = 3;
const LINK_CHECK_AT: usize = 9;
const STORED_CRC_AT: usize = 20;

/// A page that a tree has, and where the checksum of it stands.
struct TreePage {
    page: usize,
    level: u8,
    check_at: usize,
}

/// A long key or value: its bytes, and where the reference to it stands.
struct LongPart {
    at: usize,
    bytes: usize,
    reference_at: usize,
}

/// A store's file that is whole, and what is known of its pages.
pub(super) struct Sound {
    pub(super) bytes: Vec<u8>,
    meta_slot: usize,
    pages: Vec<TreePage>,
    longs: Vec<LongPart>,
}

fn put(bytes: &mut [u8], at: usize, number: &[u8]) {
    bytes.iter_mut().skip(at).zip(number).for_each(|(b, n)| *b = *n);
}

impl Sound {
    pub(super) fn new(seed: u64) -> Sound {
        let disk = SimDisk::new();
        let mut store = Store::open(sim_options(&disk)).unwrap();
        let mut rng = rng::Rng(seed);
        let mut model = Model::new();
        for round in 0..3 {
            match seed % 2 {
                0 => (0..120).for_each(|_| change(&mut rng, &mut store, &mut model, 200, true)),
                _ => history(&mut rng, &mut store, round),
            }
            checkpoint(&mut store);
        }
        let sound = Sound::of(&disk, store);
        assert!(sound.pages.len() > 8 && sound.pages.last().unwrap().level > 0 && !sound.longs.is_empty());
        sound
    }

    /// What the disk has of a store, all of which is in its checkpoint.
    pub(super) fn of(disk: &SimDisk, store: Store) -> Sound {
        let meta_slot = store.meta_slot() as usize;
        drop(store);
        let file = disk.open(Path::new("d/db"), Open::Existing).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let meta = Meta::decode(bytes[meta_slot * PAGE..][..PAGE].try_into().unwrap()).unwrap();
        let mut sound = Sound { bytes, meta_slot, pages: Vec::new(), longs: Vec::new() };
        for (tree, root) in meta.roots.iter().enumerate() {
            if let Some(link) = root {
                sound.visit(*link, meta_slot * PAGE + META_ROOTS + META_ROOT_BYTES * tree + 8);
            }
        }
        sound.pages.sort_by_key(|page| page.level);
        // To put right what is right changes nothing.
        let mut again = sound.bytes.clone();
        sound.put_right(&mut again);
        assert!(again == sound.bytes);
        sound
    }

    fn visit(&mut self, link: Link, check_at: usize) {
        let start = link.page as usize * PAGE;
        let bytes = self.bytes[start..][..PAGE].to_vec();
        let page = PageView(&bytes);
        self.pages.push(TreePage { page: link.page as usize, level: page.level(), check_at });
        let cell =
            |i: usize| usize::from(u16::from_le_bytes(bytes[SLOTS + 6 * i..][..2].try_into().unwrap()));
        for (i, part, long) in page.longs() {
            let key_end = page.key_range(i).0.end;
            let behind_key = part == crate::extent::Part::Value && page.key_range(i).1;
            self.longs.push(LongPart {
                at: long.extent.page as usize * PAGE + long.at as usize,
                bytes: long.stored as usize,
                reference_at: start + key_end + if behind_key { LONG_BYTES } else { 0 },
            });
        }
        for i in 0..if page.is_leaf() { 0 } else { page.count() } {
            let Place::Disk(child) = page.child(i) else { panic!("a page on disk") };
            self.visit(child, start + cell(i) + LINK_CHECK_AT);
        }
    }

    /// Every checksum that leads to a page or an extent, from the leaves up to the meta page; the bitmaps' too.
    pub(super) fn put_right(&self, bytes: &mut [u8]) {
        for long in &self.longs {
            let check = crc32c::crc32c(&bytes[long.at..][..long.bytes]).to_le_bytes();
            put(bytes, long.reference_at + STORED_CRC_AT, &check);
        }
        for page in &self.pages {
            let check = crc32c::crc32c(&bytes[page.page * PAGE..][..PAGE]).to_le_bytes();
            put(bytes, page.check_at, &check);
        }
        for place in BITMAP_PAGES {
            let bitmap = &bytes[place * PAGE..][..2 * PAGE];
            let before = crc32c::crc32c(&bitmap[..BITMAP_CHECK]);
            let check = crc32c::crc32c_append(before, &bitmap[BITMAP_CHECK + 4..]).to_le_bytes();
            put(bytes, place * PAGE + BITMAP_CHECK, &check);
        }
        for slot in [0, 1] {
            let check = crc32c::crc32c(&bytes[slot * PAGE..][..META_CHECK]).to_le_bytes();
            put(bytes, slot * PAGE + META_CHECK, &check);
        }
    }

    /// A change of one page, of those that count.
    pub(super) fn change(&self, bytes: &mut [u8], rng: &mut Rng) {
        match rng.below(10) {
            0 => self.change_meta(bytes, rng),
            1 => {
                let at = rng.pick(&BITMAP_PAGES) * PAGE + rng.below(2 * PAGE);
                put(bytes, at, &rng.number().to_le_bytes());
            }
            2 => {
                let long = &self.longs[rng.below(self.longs.len())];
                let within = rng.below(long.bytes);
                let len = 1 + rng.below(8.min(long.bytes - within));
                put(bytes, long.at + within, &rng.number().to_le_bytes()[..len]);
            }
            3 => {
                let long = &self.longs[rng.below(self.longs.len())];
                let (at, width) = rng.pick(&[(0, 6), (6, 2), (8, 4), (12, 4), (16, 4), (20, 4), (24, 4)]);
                put(bytes, long.reference_at + at, &rng.number().to_le_bytes()[..width]);
            }
            4 => {
                // One page's content at another's place, with the number of that.
                let from = self.pages[rng.below(self.pages.len())].page;
                let to = self.pages[rng.below(self.pages.len())].page;
                bytes.copy_within(from * PAGE..(from + 1) * PAGE, to * PAGE);
                put(bytes, to * PAGE, &(to as u64).to_le_bytes());
            }
            _ => self.change_page(bytes, rng),
        }
    }

    fn change_meta(&self, bytes: &mut [u8], rng: &mut Rng) {
        let (root, any) = (24 + rng.below(72), rng.below(512));
        let at = self.meta_slot * PAGE + 8 * rng.pick(&[2, 3, 4, 5, 6, 8, 9, root, any]);
        put(bytes, at, &rng.number().to_le_bytes()[..rng.pick(&[4, 8])]);
    }

    fn change_page(&self, bytes: &mut [u8], rng: &mut Rng) {
        // Of the upper ones more often: there are few.
        let from = if rng.one_in(3) { self.pages.len() * 9 / 10 } else { 0 };
        let start = self.pages[from + rng.below(self.pages.len() - from)].page * PAGE;
        let page = &mut bytes[start..start + PAGE];
        // An earlier change may have made it anything.
        let count = PageView(page).count().clamp(1, (PAGE - SLOTS) / 6 - 1);
        let slot = SLOTS + 6 * rng.below(count);
        let cell = usize::from(u16::from_le_bytes([page[slot], page[slot + 1]])).min(PAGE - 48);
        match rng.below(7) {
            0 => put(page, 16 + rng.below(14), &rng.number().to_le_bytes()[..rng.pick(&[1, 2])]),
            1 => put(page, slot + rng.below(6), &rng.number().to_le_bytes()[..rng.pick(&[1, 2])]),
            2 => put(page, cell + rng.below(5), &rng.number().to_le_bytes()[..rng.pick(&[1, 2])]),
            3 => put(page, cell + LINK_AT, &(rng.below(200) as u64).to_le_bytes()[..6]),
            4 => put(page, cell + rng.below(40), &rng.number().to_le_bytes()[..rng.pick(&[4, 6, 8])]),
            5 => {
                let other = SLOTS + 6 * rng.below(count);
                let taken: [u8; 6] = page[slot..slot + 6].try_into().unwrap();
                page.copy_within(other..other + 6, slot);
                put(page, other, &taken);
            }
            _ => {
                let mut changed = page.to_vec();
                trilith_fuzz::mutate(&mut changed, 64, rng);
                changed.resize(PAGE, 0);
                page.copy_from_slice(&changed);
            }
        }
    }
}

/// Transactions with long keys and values, leases, deletes and compactions.
fn history(rng: &mut rng::Rng, store: &mut Store, round: usize) {
    for n in 0..80 {
        let mut txn = store.txn();
        for _ in 0..=rng.below(3) {
            let mut key = format!("key/{}", rng.below(60)).into_bytes();
            match rng.below(12) {
                0 => key.resize(800, b'x'),
                1 => key.resize(1200, b'y'),
                _ => {}
            }
            let value = vec![rng.next() as u8; if rng.chance(8) { rng.below(6000) } else { rng.below(60) }];
            txn.put(&key, &value, rng.below(3) as i64).unwrap();
            if rng.chance(6) {
                txn.delete_range(KeyRange { start: b"key/3", end: Some(b"key/35") }).unwrap();
            }
        }
        txn.end();
        if n == 40 && round > 0 {
            store.compact(store.view().revision() - 30).unwrap();
            while !store.compact_step(50).unwrap() {}
        }
    }
}

/// Only errors that bytes on disk may cause.
pub(super) fn may_be(error: &StoreError) {
    assert!(
        matches!(
            error,
            StoreError::Corrupt { .. }
                | StoreError::Unsupported { .. }
                | StoreError::Inconsistent(_)
                | StoreError::Compacted
                | StoreError::Future
        ),
        "no error that bytes on disk can cause: {error}"
    );
}

pub(super) fn allow<T>(result: Result<T, StoreError>) -> Option<T> {
    result.map_err(|error| may_be(&error)).ok()
}

/// All keys of a tree, read to the end or to an error.
fn scan(store: &Store, tree: TreeId) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut keys = Vec::new();
    let mut cursor = store.view().seek(tree, b"")?;
    while let Some(key) = cursor.key().filter(|_| keys.len() < ENTRIES_MAX) {
        keys.push(key.to_vec());
        allow(cursor.value());
        allow(cursor.key_value());
        cursor.next()?;
    }
    Ok(keys)
}

fn scan_back(store: &Store, tree: TreeId) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut keys = Vec::new();
    let mut cursor = store.view().last(tree)?;
    while let Some(key) = cursor.key().filter(|_| keys.len() < ENTRIES_MAX) {
        keys.push(key.to_vec());
        cursor.prev()?;
    }
    Ok(keys)
}

/// Everything that reads. What passes the check is read alike from both sides.
fn read(store: &Store, rng: &mut Rng) {
    let is_sound = allow(store.check()).is_some();
    for tree in TreeId::ALL {
        let (there, back) = (scan(store, tree), scan_back(store, tree));
        if is_sound {
            let mut back = back.as_ref().unwrap().clone();
            back.reverse();
            assert!(*there.as_ref().unwrap() == back, "a sound tree reads alike both ways");
        }
        allow(back);
        let keys = allow(there).unwrap_or_default();
        for _ in 0..4 {
            let len = rng.below(40);
            let mut key = keys.get(rng.below(keys.len())).cloned().unwrap_or_else(|| rng.bytes(len));
            if rng.one_in(2) {
                key.truncate(rng.below(key.len() + 1));
            }
            allow(store.view().get(tree, &key));
            allow(store.view().seek(tree, &key).map(|_| ()));
            allow(store.view().seek_before(tree, &key).map(|_| ()));
        }
    }
    read_revisions(store, rng);
    store.reader().root();
    let mut scrub = Scrub::default();
    let root = store.reader().root();
    (0..100).any(|_| scrub.run(&root, 1 << 20).ended_pass);
    store.take_damage();
}

/// What the layer of revisions makes of it.
fn read_revisions(store: &Store, rng: &mut Rng) {
    let view = store.view();
    allow(view.hash());
    for revision in [0, view.revision(), view.compact_revision(), rng.below(300) as i64, rng.number() as i64]
    {
        allow(view.hash_kv(revision));
        let all = KeyRange { start: b"", end: Some(b"") };
        if let Some(keys) = allow(view.keys(all, revision)) {
            for key in keys.take(ENTRIES_MAX) {
                let Some(key) = allow(key) else { break };
                allow(view.kv(key.modified));
            }
        }
        allow(view.keys(all, revision).and_then(|keys| keys.remaining()));
        if let Some(changes) = allow(view.changes(revision, view.revision())) {
            changes.take(ENTRIES_MAX).take_while(Result::is_ok).for_each(drop);
        }
    }
    for lease in [1, 2, rng.number() as i64] {
        allow(view.lease_keys(lease));
    }
}

/// The beginning of an export: a page that many refer to makes it long.
fn export(store: &Store) -> Result<(), BoltError> {
    let mut export = Export::new(store.reader().root())?;
    for _ in 0..CHUNKS_MAX {
        if export.next_chunk()?.is_none() {
            break;
        }
    }
    Ok(())
}

pub(super) fn on_disk(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("d")).unwrap();
    disk.open(Path::new("d/db"), Open::CreateNew).unwrap().write_all_at(bytes, 0).unwrap();
    disk
}

#[test]
fn whatever_stands_in_a_store_nothing_panics() {
    let stores: Vec<Sound> = (0..4).map(Sound::new).collect();
    let (mut opened, mut sound) = (0, 0);
    let rounds = trilith_fuzz::run("store", SECONDS, MEMORY_BYTES, |rng| {
        let whole = &stores[rng.below(stores.len())];
        let mut bytes = whole.bytes.clone();
        for _ in 0..1 + rng.below(3) {
            whole.change(&mut bytes, rng);
        }
        whole.put_right(&mut bytes);
        let disk = on_disk(&bytes);
        let Some(store) = allow(Store::open(sim_options(&disk))) else { return };
        opened += 1;
        sound += u64::from(store.check().is_ok());
        read(&store, rng);
        if let Err(BoltError::Store(error)) = export(&store) {
            may_be(&error);
        }
    });
    println!("{opened} of {rounds} opened, {sound} were sound");
    assert!(rounds < 20 || opened * 2 > rounds && sound < opened, "{opened} of {rounds}, {sound} sound");
}
