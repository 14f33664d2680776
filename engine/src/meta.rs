//! The meta page: what a checkpoint is.
//!
//! There are two, at pages 0 and 1; a checkpoint writes the one that the durable checkpoint does not stand on. The
//! valid one with the higher number is the state of the file.
//!
//! Promises: a meta page that decodes is whole. It says nothing of whether the pages it names are.

use crate::page::{Link, PAGE, PageBytes, Sums, get_u32, get_u64, put_u32, put_u64};
use crate::search::TreeRoot;
use crate::space::REGIONS_MAX;
use crate::{COUNTERS, TREES};

/// The version of everything in the file.
pub(crate) const FORMAT: u32 = 1;
/// The highest number of a checkpoint: nobody gets there, and the next ones can always be counted.
const CHECKPOINT_MAX: u64 = u64::MAX / 2;
const META_MAGIC: u64 = u64::from_le_bytes(*b"TRILITH\0");

const MAGIC: usize = 0;
const VERSION: usize = 8;
const PAGE_BYTES: usize = 12;
const CHECKPOINT: usize = 16;
const APPLIED_INDEX: usize = 24;
const APPLIED_TERM: usize = 32;
const HIGH_WATER: usize = 40;
const REGIONS: usize = 48;
const ROOTS: usize = 52;
const COUNTERS_AT: usize = 64;
const ROOTS_AT: usize = 192;
const ROOT_BYTES: usize = 48;
const PLACES_AT: usize = 2048;
const CHECK: usize = PAGE - 4;

// A root: page, checksum (8 bytes, of which CRC-32C takes 4), entries, bytes, content checksum, live weight; a page of 0
// is an empty tree.
const ROOT_CHECK: usize = 8;
const ROOT_COUNT: usize = 16;
const ROOT_SUM: usize = 24;
const ROOT_CRC: usize = 32;
const ROOT_LIVE: usize = 40;

const _: () = assert!(COUNTERS_AT + 8 * COUNTERS == ROOTS_AT && PLACES_AT + REGIONS_MAX / 8 == CHECK);

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Its number: they ascend.
    pub(crate) checkpoint: u64,
    pub(crate) applied: (u64, u64),
    pub(crate) counters: [u64; COUNTERS],
    /// None: an empty tree.
    pub(crate) roots: [Option<Link>; TREES],
    /// One more than the highest page in use.
    pub(crate) high_water: u64,
    /// The place of each region's bitmap, 0 or 1.
    pub(crate) places: Vec<usize>,
}

/// Why a page is no meta page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoMeta {
    /// It is damaged, or was never written whole.
    Damaged { field: &'static str, expected: u64, found: u64 },
    /// It is whole, of a format that this version does not know.
    Unsupported { field: &'static str, expected: u64, found: u64 },
}

impl Meta {
    /// A store with nothing in it.
    pub(crate) fn empty(checkpoint: u64, high_water: u64, places: Vec<usize>) -> Meta {
        Meta {
            checkpoint,
            applied: (0, 0),
            counters: [0; COUNTERS],
            roots: [None; TREES],
            high_water,
            places,
        }
    }

    pub(crate) fn encode(&self) -> PageBytes {
        let mut page = [0; PAGE];
        put_u64(&mut page, MAGIC, META_MAGIC);
        put_u32(&mut page, VERSION, FORMAT);
        put_u32(&mut page, PAGE_BYTES, PAGE as u32);
        put_u64(&mut page, CHECKPOINT, self.checkpoint);
        put_u64(&mut page, APPLIED_INDEX, self.applied.0);
        put_u64(&mut page, APPLIED_TERM, self.applied.1);
        put_u64(&mut page, HIGH_WATER, self.high_water);
        put_u32(&mut page, REGIONS, self.places.len() as u32);
        put_u32(&mut page, ROOTS, TREES as u32);
        for (i, counter) in self.counters.iter().enumerate() {
            put_u64(&mut page, COUNTERS_AT + 8 * i, *counter);
        }
        for (i, root) in self.roots.iter().enumerate() {
            if let Some(link) = root {
                let at = ROOTS_AT + ROOT_BYTES * i;
                put_u64(&mut page, at, link.page);
                put_u64(&mut page, at + ROOT_CHECK, u64::from(link.check));
                put_u64(&mut page, at + ROOT_COUNT, link.sums.count);
                put_u64(&mut page, at + ROOT_SUM, link.sums.bytes);
                put_u32(&mut page, at + ROOT_CRC, link.sums.crc);
                put_u64(&mut page, at + ROOT_LIVE, link.sums.live as u64);
            }
        }
        for (region, place) in self.places.iter().enumerate() {
            page[PLACES_AT + region / 8] |= (*place as u8) << (region % 8);
        }
        let check = crc32c::crc32c(&page[..CHECK]);
        put_u32(&mut page, CHECK, check);
        page
    }

    pub(crate) fn decode(page: &PageBytes) -> Result<Meta, NoMeta> {
        let damaged = |field, expected, found| Err(NoMeta::Damaged { field, expected, found });
        if get_u64(page, MAGIC) != META_MAGIC {
            return damaged("magic", META_MAGIC, get_u64(page, MAGIC));
        }
        let check = crc32c::crc32c(&page[..CHECK]);
        if get_u32(page, CHECK) != check {
            return damaged("meta checksum", u64::from(get_u32(page, CHECK)), u64::from(check));
        }
        for (field, expected, found) in [
            ("format version", FORMAT, get_u32(page, VERSION)),
            ("page size", PAGE as u32, get_u32(page, PAGE_BYTES)),
            ("tree count", TREES as u32, get_u32(page, ROOTS)),
        ] {
            if expected != found {
                return Err(NoMeta::Unsupported {
                    field,
                    expected: u64::from(expected),
                    found: u64::from(found),
                });
            }
        }
        let regions = get_u32(page, REGIONS) as usize;
        if regions == 0 || regions > REGIONS_MAX {
            return damaged("region count", REGIONS_MAX as u64, regions as u64);
        }
        let places = (0..regions).map(|r| usize::from(page[PLACES_AT + r / 8] >> (r % 8) & 1)).collect();
        let checkpoint = get_u64(page, CHECKPOINT);
        if checkpoint > CHECKPOINT_MAX {
            return damaged("checkpoint", CHECKPOINT_MAX, checkpoint);
        }
        let mut meta = Meta::empty(checkpoint, get_u64(page, HIGH_WATER), places);
        meta.applied = (get_u64(page, APPLIED_INDEX), get_u64(page, APPLIED_TERM));
        for (i, counter) in meta.counters.iter_mut().enumerate() {
            *counter = get_u64(page, COUNTERS_AT + 8 * i);
        }
        for (i, root) in meta.roots.iter_mut().enumerate() {
            *root = decode_root(&page[ROOTS_AT + ROOT_BYTES * i..][..ROOT_BYTES]);
        }
        Ok(meta)
    }

    pub(crate) fn trees(&self) -> [TreeRoot; TREES] {
        self.roots.map(|root| root.map_or(TreeRoot::Empty, TreeRoot::Disk))
    }
}

fn decode_root(bytes: &[u8]) -> Option<Link> {
    let page = get_u64(bytes, 0);
    let sums = Sums {
        count: get_u64(bytes, ROOT_COUNT),
        bytes: get_u64(bytes, ROOT_SUM),
        crc: get_u32(bytes, ROOT_CRC),
        live: get_u64(bytes, ROOT_LIVE) as i64,
    };
    (page != 0).then(|| Link { page, check: get_u32(bytes, ROOT_CHECK), sums })
}

/// The fields that `docs/format.md` lists, with their offsets.
#[cfg(test)]
pub(crate) const LAYOUT: &[(&str, usize)] = &[
    ("magic", MAGIC),
    ("format version", VERSION),
    ("page size", PAGE_BYTES),
    ("checkpoint", CHECKPOINT),
    ("applied index", APPLIED_INDEX),
    ("applied term", APPLIED_TERM),
    ("high water", HIGH_WATER),
    ("regions", REGIONS),
    ("trees", ROOTS),
    ("counters", COUNTERS_AT),
    ("roots", ROOTS_AT),
    ("places", PLACES_AT),
    ("checksum of the bytes before", CHECK),
    ("entries in the tree", ROOT_COUNT),
    ("bytes of its keys and values", ROOT_SUM),
    ("content checksum", ROOT_CRC),
    ("live weight", ROOT_LIVE),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        let mut meta = Meta::empty(7, 99, vec![0]);
        meta.applied = (11, 3);
        meta.counters[15] = 42;
        meta.places = vec![0, 1, 1, 0, 0, 0, 0, 0, 1];
        let sums = Sums { count: 5, bytes: 600, crc: 9, live: -3 };
        meta.roots[11] = Some(Link { page: 70, check: 0xdead_beef, sums });
        meta
    }

    #[test]
    fn meta_pages_round_trip() {
        assert_eq!(Meta::decode(&meta().encode()), Ok(meta()));
        let mut most = meta();
        most.places = vec![1; REGIONS_MAX];
        assert_eq!(Meta::decode(&most.encode()), Ok(most));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let page = meta().encode();
        for bit in 0..8 * PAGE {
            let mut bad = page;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Meta::decode(&bad), Err(NoMeta::Damaged { .. })), "bit {bit}");
        }
    }

    #[test]
    fn a_checkpoint_after_which_none_can_come_is_damage() {
        let mut last = meta();
        last.checkpoint = CHECKPOINT_MAX;
        assert_eq!(Meta::decode(&last.encode()), Ok(last.clone()));
        last.checkpoint = u64::MAX;
        let error = NoMeta::Damaged { field: "checkpoint", expected: CHECKPOINT_MAX, found: u64::MAX };
        assert_eq!(Meta::decode(&last.encode()), Err(error));
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut page = meta().encode();
        put_u32(&mut page, VERSION, 2);
        let check = crc32c::crc32c(&page[..CHECK]);
        put_u32(&mut page, CHECK, check);
        let error = NoMeta::Unsupported { field: "format version", expected: 1, found: 2 };
        assert_eq!(Meta::decode(&page), Err(error));
    }
}
