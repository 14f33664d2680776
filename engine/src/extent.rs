//! Extents: where long keys and values stand on disk, and how a cell refers to them.
//!
//! An extent is a run of whole pages with long parts one after the other. It belongs to one page, the one whose
//! cells refer into it, and is given up when none of them does any more.
//!
//! Promises: a reference that passed [`Long::fault`] leads nowhere outside its extent. It does no I/O.

use crate::VALUE_MAX;
use crate::page::{CellValue, Malformed, PAGE, PageView, Place, get_u16, get_u32, get_u48, put_u16};
use crate::page::{KEY_INLINE_MAX, VALUE_INLINE_MAX, put_u32, put_u48};

/// Bytes of a reference.
pub(crate) const LONG_BYTES: usize = 28;
const PAGE_AT: usize = 0;
const PAGES: usize = 6;
const OFFSET: usize = 8;
const STORED: usize = 12;
/// The only field that a reference in memory has, beside the place.
pub(crate) const LEN: usize = 16;
const STORED_CRC: usize = 20;
const CRC: usize = 24;

/// A run of pages with long parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Extent {
    /// The first.
    pub(crate) page: u64,
    /// How many.
    pub(crate) pages: u32,
}

impl Extent {
    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.pages) * PAGE as u64
    }

    /// Whether so few of its bytes are referred to that they had better be written anew.
    pub(crate) fn is_sparse(self, live: u64) -> bool {
        live * 2 < self.bytes()
    }
}

/// A long key or value on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Long {
    pub(crate) extent: Extent,
    /// Where in the extent it begins, in bytes.
    pub(crate) at: u32,
    /// Bytes in the extent.
    pub(crate) stored: u32,
    /// CRC-32C of those bytes.
    pub(crate) stored_crc: u32,
    /// Bytes of the key or value itself. More than `stored`: it is a compressed value.
    pub(crate) len: u32,
    /// CRC-32C of the key or value itself.
    pub(crate) crc: u32,
}

impl Long {
    pub(crate) fn read(bytes: &[u8]) -> Long {
        Long {
            extent: Extent { page: get_u48(bytes, PAGE_AT), pages: get_u16(bytes, PAGES) as u32 },
            at: get_u32(bytes, OFFSET),
            stored: get_u32(bytes, STORED),
            stored_crc: get_u32(bytes, STORED_CRC),
            len: get_u32(bytes, LEN),
            crc: get_u32(bytes, CRC),
        }
    }

    pub(crate) fn write(&self, bytes: &mut [u8]) {
        put_u48(bytes, PAGE_AT, self.extent.page);
        put_u16(bytes, PAGES, self.extent.pages as usize);
        put_u32(bytes, OFFSET, self.at);
        put_u32(bytes, STORED, self.stored);
        put_u32(bytes, LEN, self.len);
        put_u32(bytes, STORED_CRC, self.stored_crc);
        put_u32(bytes, CRC, self.crc);
    }

    pub(crate) fn is_compressed(&self) -> bool {
        self.stored < self.len
    }

    /// What is wrong with the reference.
    pub(crate) fn fault(&self, part: Part) -> Option<Malformed> {
        let inline_max = if part == Part::Key { KEY_INLINE_MAX } else { VALUE_INLINE_MAX };
        let end = u64::from(self.at) + u64::from(self.stored);
        let len = self.len as usize;
        if len <= inline_max || len > VALUE_MAX {
            return Some(Malformed { field: "length of a long part", found: len as u64 });
        }
        if self.stored == 0 || self.stored > self.len || (part == Part::Key && self.is_compressed()) {
            return Some(Malformed { field: "stored bytes of a long part", found: u64::from(self.stored) });
        }
        if !self.is_compressed() && self.crc != self.stored_crc {
            return Some(Malformed { field: "checksum of a long part", found: u64::from(self.crc) });
        }
        if end > self.extent.bytes() {
            return Some(Malformed { field: "end of a long part", found: end });
        }
        None
    }
}

/// Which part of a cell is long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Key,
    Value,
}

/// How much of an extent a page refers to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) extent: Extent,
    pub(crate) live: u64,
}

/// Adds a reference to the usage of its extent. A page refers to few extents.
pub(crate) fn count_in(usages: &mut Vec<Usage>, long: &Long) {
    let live = u64::from(long.stored);
    match usages.iter_mut().find(|usage| usage.extent == long.extent) {
        Some(usage) => usage.live += live,
        None => usages.push(Usage { extent: long.extent, live }),
    }
}

impl<'p> PageView<'p> {
    /// The long parts, wherever they are: cell, part, place.
    pub(crate) fn long_parts(self) -> impl Iterator<Item = (usize, Part, Place<Long>)> + 'p {
        (0..self.count()).flat_map(move |i| {
            let key = self.key_range(i).1.then(|| (i, Part::Key, self.long_key(i).0));
            let value = match self.is_leaf() && self.has_long_value(i) {
                true => match self.value(i) {
                    CellValue::Long(place, _) => Some((i, Part::Value, place)),
                    CellValue::Inline(_) => None,
                },
                false => None,
            };
            key.into_iter().chain(value)
        })
    }

    /// The references into extents: cell, part, reference.
    pub(crate) fn longs(self) -> impl Iterator<Item = (usize, Part, Long)> + 'p {
        self.long_parts().filter_map(|(i, part, place)| match place {
            Place::Disk(long) => Some((i, part, long)),
            Place::Memory(_) => None,
        })
    }

    /// The extents that the page owns, and how much of each it refers to.
    pub(crate) fn usages(self) -> Vec<Usage> {
        let mut usages = Vec::new();
        self.longs().for_each(|(_, _, long)| count_in(&mut usages, &long));
        usages
    }
}

/// The fields that `docs/format.md` lists, with their offsets.
#[cfg(test)]
pub(crate) const LAYOUT: &[(&str, usize)] = &[
    ("first page", PAGE_AT),
    ("pages of the extent", PAGES),
    ("offset", OFFSET),
    ("stored bytes", STORED),
    ("bytes of the key", LEN),
    ("checksum of the stored", STORED_CRC),
    ("checksum of the key", CRC),
];
