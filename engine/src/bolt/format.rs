//! The bytes of a bbolt file: page headers, meta pages, elements. Integers are little-endian.
//!
//! Promises: nothing here reads outside of what it is given.

use crate::page::{get_u16, get_u32, get_u64};

/// Bytes of a page's header, of a leaf's or a branch's element, and of a bucket's header.
pub(super) const HEADER: usize = 16;
pub(super) const ELEMENT: usize = 16;
pub(super) const BUCKET: usize = 16;
/// Bytes of a meta page that mean something: the page's header and the meta.
pub(super) const META: usize = HEADER + 64;

pub(super) const PAGE_BRANCH: usize = 0x01;
pub(super) const PAGE_LEAF: usize = 0x02;
pub(super) const PAGE_META: usize = 0x04;
pub(super) const PAGE_FREELIST: usize = 0x10;
/// An element whose value is a bucket's header.
pub(super) const ELEMENT_BUCKET: u32 = 1;
/// In a freelist's header: the count stands before the ids.
pub(super) const COUNT_BESIDE: usize = 0xffff;
/// In a meta page: no freelist is stored.
pub(super) const NO_FREELIST: u64 = u64::MAX;

/// Longest key of a bbolt file, in bytes.
pub(super) const BOLT_KEY_MAX: usize = 32_768;
pub(super) const PAGE_SIZE_MIN: u64 = 512;
pub(super) const PAGE_SIZE_MAX: u64 = 65_536;
/// Bytes of the SHA-256 behind the pages of a snapshot file.
pub(super) const TRAILER: u64 = 32;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;

/// A page's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) id: u64,
    pub(super) flags: usize,
    pub(super) count: usize,
    pub(super) overflow: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8]) -> Header {
        Header {
            id: get_u64(bytes, 0),
            flags: get_u16(bytes, 8),
            count: get_u16(bytes, 10),
            overflow: get_u32(bytes, 12),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&(self.flags as u16).to_le_bytes());
        out.extend_from_slice(&(self.count as u16).to_le_bytes());
        out.extend_from_slice(&self.overflow.to_le_bytes());
    }
}

/// What a meta page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) page_size: u64,
    pub(super) root: u64,
    pub(super) freelist: u64,
    /// One more than the highest page.
    pub(super) high_water: u64,
    pub(super) txid: u64,
}

impl Meta {
    /// None if these are not the bytes of a meta page ([`META`] of them).
    pub(super) fn decode(page: &[u8]) -> Option<Meta> {
        let bytes = page.get(HEADER..META)?;
        let whole = get_u32(bytes, 0) == MAGIC
            && get_u32(bytes, 4) == VERSION
            && get_u64(bytes, 56) == fnv1a(&bytes[..56]);
        whole.then(|| Meta {
            page_size: u64::from(get_u32(bytes, 8)),
            root: get_u64(bytes, 16),
            freelist: get_u64(bytes, 32),
            high_water: get_u64(bytes, 40),
            txid: get_u64(bytes, 48),
        })
    }

    /// Meta page `id`, [`META`] bytes of it.
    pub(super) fn encode(&self, id: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(META);
        Header { id, flags: PAGE_META, count: 0, overflow: 0 }.encode(&mut out);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.page_size as u32).to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        // The root bucket: its page, and a sequence that nobody uses.
        for number in [self.root, 0, self.freelist, self.high_water, self.txid] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&fnv1a(&out[HEADER..]).to_le_bytes());
        out
    }
}

/// FNV-1a of 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_fnv_1a() {
        // Values of the reference code of the hash's authors.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_meta_page_goes_round_and_every_flipped_bit_is_seen() {
        let meta = Meta { page_size: 4096, root: 9, freelist: 2, high_water: 10, txid: 7 };
        let bytes = meta.encode(1);
        assert_eq!(bytes.len(), META);
        assert_eq!(Meta::decode(&bytes), Some(meta));
        for bit in HEADER * 8..META * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Meta::decode(&bad), None, "bit {bit}");
        }
        assert_eq!(Meta::decode(&bytes[..META - 1]), None);
    }
}
