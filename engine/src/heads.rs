//! Heads: the four bytes of each key that stand in its slot, and the search in them.
//!
//! Promises: what the search leaves is found by comparing whole keys, so a head that is wrong loses keys but never
//! leads out of the page. The search reads one head of each cache line first, and none of these reads waits for
//! another: a page that is not in the processor's caches costs the time of one access, not of one per step.

use std::ops::Range;

use crate::page::{PageView, SLOT_BYTES, get_u32, slot_at};

/// Of so many heads the last is looked at first: their slots are less than a cache line.
const STRIDE: usize = 8;

/// The head of a key: the four bytes of its stem behind the shared prefix, as a number. Heads of ascending keys do
/// not descend; equal heads decide nothing.
#[inline]
pub(crate) fn head_of(stem: &[u8], prefix: usize) -> u32 {
    if let Some(last) = stem.len().checked_sub(4) {
        // No branch depends on the prefix, which may not have arrived from memory yet.
        let at = prefix.min(last);
        return (u64::from(u32::from_be_bytes([stem[at], stem[at + 1], stem[at + 2], stem[at + 3]]))
            << (8 * (prefix - at))) as u32;
    }
    let mut bytes = [0; 4];
    bytes[..stem.len() - prefix].copy_from_slice(&stem[prefix..]);
    u32::from_be_bytes(bytes)
}

/// Head of a slot.
#[inline]
fn head(slot: &[u8]) -> u64 {
    u64::from(get_u32(slot, 2))
}

impl<'p> PageView<'p> {
    /// The part of a cell's key that its head is taken of, as far as it stands in the cell.
    pub(crate) fn stem(self, i: usize) -> &'p [u8] {
        match self.key(i) {
            (key, true) => key,
            (key, false) => self.order().stem(key),
        }
    }

    /// The cells among which `key` must be looked for by comparing whole keys: those before the range are less,
    /// those behind it greater.
    #[inline]
    pub(crate) fn narrow(self, key: &[u8]) -> Range<usize> {
        // A branch of the code for each kind of page: where the heads begin must not be computed from the header, or
        // reading them would wait for it.
        if self.is_leaf() { self.narrow_from::<0>(key) } else { self.narrow_from::<1>(key) }
    }

    #[inline(never)]
    fn narrow_from<const FIRST: usize>(self, key: &[u8]) -> Range<usize> {
        let (first, count, prefix) = (FIRST, self.count(), self.prefix_bytes());
        if first >= count {
            return count..count;
        }
        let stem = self.order().stem(key);
        let wanted = if stem.len() < prefix { 0 } else { u64::from(head_of(stem, prefix)) };
        let low = self.first_head(first..count, wanted);
        let equal = low < count && u64::from(self.head(low)) == wanted;
        let high = if equal { self.first_head(low..count, wanted + 1) } else { low };
        // That holds if the key shares the prefix. Any cell can tell; the caller will look at this one anyway.
        let sample = if low < high { low } else { low.max(first + 1) - 1 };
        match stem[..stem.len().min(prefix)].cmp(&self.stem(sample)[..prefix]) {
            std::cmp::Ordering::Less => first..first,
            std::cmp::Ordering::Equal => low..high,
            std::cmp::Ordering::Greater => count..count,
        }
    }

    #[inline]
    pub(crate) fn head(self, i: usize) -> u32 {
        get_u32(self.0, slot_at(i) + 2)
    }

    /// The first cell of the range whose head is not below the bound. Heads that are follow those that are not, and
    /// are counted.
    #[inline]
    fn first_head(self, range: Range<usize>, bound: u64) -> usize {
        let slots = &self.0[slot_at(range.start)..slot_at(range.end)];
        let (strides, rest) = slots.as_chunks::<{ STRIDE * SLOT_BYTES }>();
        let below = |slot: &[u8]| usize::from(head(slot) < bound);
        let passed: usize = strides.iter().map(|stride| below(&stride[(STRIDE - 1) * SLOT_BYTES..])).sum();
        let stride = strides.get(passed).map_or(rest, |stride| &stride[..]);
        let within: usize = stride.as_chunks::<SLOT_BYTES>().0.iter().map(|slot| below(slot)).sum();
        range.start + passed * STRIDE + within
    }
}
