//! What a page must be before anybody reads or edits it.
//!
//! Promises: in a page that passed, every offset stays inside it, no two cells share a byte, every cell is of a size that
//! splits cope with, and keys ascend, with their heads right. (Of long keys only what stands in their cells is looked at;
//! whoever reads a whole one compares it with that.) It looks at one page: that its keys lie where those of the pages above it
//! say is found out by `search.rs`, which came from there. It changes nothing, and reads no other page.

use crate::extent::LONG_BYTES;
use crate::heads::head_of;
use crate::order::Order;
use crate::page::{
    CELLS, CellValue, DEAD, FLAG_LONG_KEY, FLAG_LONG_VALUE, KEY_INLINE_MAX, KEY_PREFIX, KIND, KIND_BRANCH,
    KIND_LEAF, Malformed, ORDER, PAGE, PageView, Place, VALUE_INLINE_MAX, get_u16, slot_at,
};

const FLAGS_KNOWN: u8 = FLAG_LONG_KEY | FLAG_LONG_VALUE;
/// No tree is as high: a level has at least twice as many pages as the one above it when it comes to be.
const LEVEL_MAX: u8 = 64;

fn bad<T>(field: &'static str, found: usize) -> Result<T, Malformed> {
    Err(Malformed { field, found: found as u64 })
}

/// The bytes of a page that cells take, a bit each.
struct Taken([u64; PAGE / 64]);

impl Taken {
    /// Whether none of these bytes was taken; they are now.
    #[inline]
    fn take(&mut self, from: usize, to: usize) -> bool {
        let (mut at, mut free) = (from, true);
        while at < to {
            let (word, first) = (at / 64, at % 64);
            let bits = (to - at).min(64 - first);
            let mask = u64::MAX >> (64 - bits) << first;
            free &= self.0[word] & mask == 0;
            self.0[word] |= mask;
            at += bits;
        }
        free
    }
}

/// A key, as its cell has it.
#[derive(Clone, Copy)]
struct Keyed<'p> {
    key: &'p [u8],
    long: bool,
    stem: &'p [u8],
    head: u32,
}

impl Keyed<'_> {
    /// Whether a key is less than the next, as far as the cells tell. Both heads are right.
    #[inline]
    fn is_before(&self, next: &Keyed<'_>, order: Order) -> bool {
        if self.head != next.head {
            return self.head < next.head;
        }
        if self.long || next.long {
            let begin = |stem: &[u8]| stem.len().min(KEY_PREFIX);
            return self.stem[..begin(self.stem)] <= next.stem[..begin(next.stem)];
        }
        order.compare(self.key, next.key).is_lt()
    }
}

impl PageView<'_> {
    /// Whether the page is sound. Done once, when it is first read from disk.
    pub(crate) fn validate(self) -> Result<(), Malformed> {
        let cells = self.validate_header()?;
        let (prefix, order) = (self.prefix_bytes(), self.order());
        let mut taken = Taken([0; PAGE / 64]);
        let (mut live, mut any_long) = (0, false);
        let mut before: Option<Keyed<'_>> = None;
        for i in 0..self.count() {
            let (at, end) = self.validate_cell(i, cells)?;
            live += end - at;
            any_long |= self.0[at] != 0;
            if !taken.take(at, end) {
                return bad("slot", at);
            }
            if i < self.first_keyed() {
                if end - at != self.cell_head() {
                    return bad("first separator", end - at);
                }
                continue;
            }
            let (key, long) = self.key(i);
            let stem = if long { key } else { order.stem(key) };
            if stem.len() < prefix {
                return bad("shared prefix", prefix);
            }
            let keyed = Keyed { key, long, stem, head: self.head(i) };
            if keyed.head != head_of(stem, prefix) {
                return bad("heads", i);
            }
            if let Some(before) = before.replace(keyed) {
                if before.stem[..prefix] != stem[..prefix] {
                    return bad("heads", i);
                }
                if !before.is_before(&keyed, order) {
                    return bad("key order", i);
                }
            }
        }
        if any_long {
            self.longs().try_for_each(|(_, part, long)| long.fault(part).map_or(Ok(()), Err))?;
        }
        if live + get_u16(self.0, DEAD) != PAGE - cells {
            return bad("dead bytes", get_u16(self.0, DEAD));
        }
        Ok(())
    }

    /// Where the cells begin.
    fn validate_header(self) -> Result<usize, Malformed> {
        if self.0.len() != PAGE {
            return bad("length", self.0.len());
        }
        let (kind, level, count, cells) = (self.0[KIND], self.level(), self.count(), get_u16(self.0, CELLS));
        if !(kind == KIND_LEAF && level == 0 || kind == KIND_BRANCH && level > 0) {
            return bad("kind", usize::from(kind));
        }
        if level > LEVEL_MAX {
            return bad("level", usize::from(level));
        }
        if self.0[ORDER] > 1 {
            return bad("order", usize::from(self.0[ORDER]));
        }
        if count == 0 || slot_at(count) > PAGE {
            return bad("count", count);
        }
        if cells > PAGE || slot_at(count) > cells {
            return bad("cell area", cells);
        }
        Ok(cells)
    }

    /// Where a cell begins and ends.
    #[inline]
    fn validate_cell(self, i: usize, cells: usize) -> Result<(usize, usize), Malformed> {
        let at = self.cell(i);
        if at < cells || at + self.cell_head() > PAGE {
            return bad("slot", at);
        }
        let flags = self.0[at];
        if flags & !FLAGS_KNOWN != 0 || (!self.is_leaf() && flags & FLAG_LONG_VALUE != 0) {
            return bad("cell flags", usize::from(flags));
        }
        let (key, mut end) = (get_u16(self.0, at + 1), at + self.cell_head());
        let is_key = if flags & FLAG_LONG_KEY != 0 { key == KEY_PREFIX } else { key <= KEY_INLINE_MAX };
        end += key + if flags & FLAG_LONG_KEY != 0 { LONG_BYTES } else { 0 };
        if self.is_leaf() {
            let (value, long) = (get_u16(self.0, at + 3), flags & FLAG_LONG_VALUE != 0);
            if !long && value > VALUE_INLINE_MAX {
                return bad("value length", value);
            }
            end += if long { LONG_BYTES } else { value };
        }
        if is_key && end <= PAGE { Ok((at, end)) } else { bad("cell length", key) }
    }

    /// Whether any cell refers to something that is not on disk. The page must be valid.
    pub(crate) fn names_memory(self) -> bool {
        (0..self.count()).any(|i| self.cell_names_memory(i))
    }

    fn cell_names_memory(self, i: usize) -> bool {
        if self.is_leaf() && self.0[self.cell(i)] == 0 {
            return false;
        }
        let key = self.key_range(i).1 && matches!(self.long_key(i).0, Place::Memory(_));
        let rest = match self.is_leaf() {
            true => matches!(self.value(i), CellValue::Long(Place::Memory(_), _)),
            false => matches!(self.child(i), Place::Memory(_)),
        };
        key || rest
    }
}
