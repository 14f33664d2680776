//! The page: one format for leaves and branches, in memory and on disk.
//!
//! A page is [`PAGE`] bytes: a header, an array of slots in key order, a gap, and the cells, which grow from the
//! end. `docs/format.md` has every byte; the constants here are its tables.
//!
//! A slot holds its cell's offset and the cell's head: four bytes of its key, taken behind the prefix that all
//! keys of the page share. A search looks at heads first, which lie together, and at cells only where heads are
//! equal.
//!
//! Promises: a page that passed [`PageView::validate`] (`valid.rs`) can be read and edited without going outside its bytes.
//! It never touches another page: long keys and values, and children, are references.

use std::ops::Range;

use crate::extent::{LEN, LONG_BYTES, Long, Part};
use crate::heads::head_of;
use crate::order::{Order, common};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
pub(crate) type PageBytes = [u8; PAGE];

/// Bytes of the header; the slots begin here.
pub(crate) const HEADER: usize = 32;
const ID: usize = 0;
const GENERATION: usize = 8;
pub(crate) const KIND: usize = 16;
const LEVEL: usize = 17;
const TREE: usize = 18;
pub(crate) const ORDER: usize = 19;
const COUNT: usize = 20;
pub(crate) const CELLS: usize = 22;
pub(crate) const DEAD: usize = 24;
const RUN: usize = 26;
const PREFIX: usize = 28;

/// Bytes of a slot: the cell's offset (2) and its head (4).
pub(crate) const SLOT_BYTES: usize = 6;

pub(crate) const KIND_LEAF: u8 = 1;
pub(crate) const KIND_BRANCH: u8 = 2;

/// Bytes before the key in a leaf's cell: flags, key length, value length.
pub(crate) const LEAF_CELL_HEAD: usize = 5;
/// Bytes before the key in a branch's cell: flags, key length, link.
pub(crate) const BRANCH_CELL_HEAD: usize = 3 + LINK_BYTES;
const LINK_BYTES: usize = 32;
const LINK_CHECK: usize = 6;
const LINK_COUNT: usize = 10;
const LINK_SUM: usize = 16;
const LINK_CRC: usize = 22;
const LINK_LIVE: usize = 26;

/// The key is long: its first [`KEY_PREFIX`] bytes stand in the cell, all of it in an extent.
pub(crate) const FLAG_LONG_KEY: u8 = 1;
/// The value is long: it stands in an extent.
pub(crate) const FLAG_LONG_VALUE: u8 = 2;

/// Keys up to this length stand in the page, so that a page holds two cells at least.
pub(crate) const KEY_INLINE_MAX: usize = 960;
/// Values up to this length stand in the page: with a short key beside them, seven to a page or more, so that not much
/// more than an eighth of it stays empty.
pub(crate) const VALUE_INLINE_MAX: usize = 512;
/// What a cell keeps of a long key, to compare without reading the extent.
pub(crate) const KEY_PREFIX: usize = 128;

/// The shared prefix is cut to this, so that a long key's head stands in its cell.
pub(crate) const PREFIX_MAX: usize = KEY_PREFIX - 4;

/// Set in a page number that is none: the low bits are a place in the side table of the node in memory. Never on disk.
const IN_MEMORY: u64 = 1 << 47;

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: usize) {
    let value = u16::try_from(value).expect("offsets within a page fit 16 bits");
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get_u48(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le[..6].copy_from_slice(&bytes[at..at + 6]);
    u64::from_le_bytes(le)
}

pub(crate) fn put_u48(bytes: &mut [u8], at: usize, value: u64) {
    assert!(value < 1 << 48, "page numbers and sums fit 48 bits");
    bytes[at..at + 6].copy_from_slice(&value.to_le_bytes()[..6]);
}

/// A signed number in two's complement.
fn get_i48(bytes: &[u8], at: usize) -> i64 {
    (get_u48(bytes, at) << 16) as i64 >> 16
}

fn put_i48(bytes: &mut [u8], at: usize, value: i64) {
    assert!((-(1 << 47)..1 << 47).contains(&value), "as many keys fit 47 bits");
    put_u48(bytes, at, value as u64 & ((1 << 48) - 1));
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Where slot `i` is.
pub(crate) fn slot_at(i: usize) -> usize {
    HEADER + SLOT_BYTES * i
}

/// What a subtree holds: for counts and hashes without reading it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Entries.
    pub(crate) count: u64,
    /// Bytes of keys and values.
    pub(crate) bytes: u64,
    /// CRC-32C of key bytes then value bytes of each entry, in order.
    pub(crate) crc: u32,
    /// Of tree `Index`: the weights of its entries, which add up to the live keys; else 0. (A part of the tree that
    /// begins within the history of a key may be below zero.)
    pub(crate) live: i64,
}

impl Sums {
    /// Adds what follows in key order. (What damaged links say may be more than the numbers hold: it wraps.)
    pub(crate) fn then(self, next: Sums) -> Sums {
        Sums {
            count: self.count.wrapping_add(next.count),
            bytes: self.bytes.wrapping_add(next.bytes),
            crc: crate::crc::combine(self.crc, next.crc, next.bytes),
            live: self.live.wrapping_add(next.live),
        }
    }

    /// Whether a link can hold them.
    pub(crate) fn fit(self) -> bool {
        self.count < 1 << 48 && self.bytes < 1 << 48 && (-(1 << 47)..1 << 47).contains(&self.live)
    }
}

/// A page on disk, as its parent knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) page: u64,
    /// CRC-32C of the page's bytes.
    pub(crate) check: u32,
    pub(crate) sums: Sums,
}

/// Where a child or a long key or value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<T> {
    Disk(T),
    /// In the side table of the node in memory.
    Memory(usize),
}

/// A value as the cell has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CellValue {
    /// At these bytes of the page.
    Inline(Range<usize>),
    Long(Place<Long>, u32),
}

/// What is wrong with a page's bytes: the field, and what it holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) field: &'static str,
    pub(crate) found: u64,
}

/// Bytes of a leaf's cell with its slot.
pub(crate) fn leaf_cell_bytes(key: usize, value: usize) -> usize {
    let key = if key > KEY_INLINE_MAX { KEY_PREFIX + LONG_BYTES } else { key };
    let value = if value > VALUE_INLINE_MAX { LONG_BYTES } else { value };
    SLOT_BYTES + LEAF_CELL_HEAD + key + value
}

/// Bytes of a branch's cell with its slot.
pub(crate) fn branch_cell_bytes(key: usize) -> usize {
    SLOT_BYTES + BRANCH_CELL_HEAD + if key > KEY_INLINE_MAX { KEY_PREFIX + LONG_BYTES } else { key }
}

/// A page to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageView<'p>(pub(crate) &'p [u8]);

impl<'p> PageView<'p> {
    pub(crate) fn id(self) -> u64 {
        get_u64(self.0, ID)
    }
    pub(crate) fn is_leaf(self) -> bool {
        self.0[KIND] == KIND_LEAF
    }
    /// 0 for a leaf.
    pub(crate) fn level(self) -> u8 {
        self.0[LEVEL]
    }
    pub(crate) fn tree(self) -> u8 {
        self.0[TREE]
    }
    pub(crate) fn count(self) -> usize {
        get_u16(self.0, COUNT)
    }
    /// Where the next entry of a run of ascending inserts would stand.
    pub(crate) fn run_position(self) -> usize {
        get_u16(self.0, RUN)
    }
    /// Bytes that cells and slots take.
    pub(crate) fn used_bytes(self) -> usize {
        PAGE - HEADER - self.free_bytes()
    }
    /// Bytes for more cells and slots, after compacting.
    pub(crate) fn free_bytes(self) -> usize {
        self.gap_bytes() + get_u16(self.0, DEAD)
    }
    fn gap_bytes(self) -> usize {
        get_u16(self.0, CELLS) - slot_at(self.count())
    }
    pub(crate) fn cell(self, i: usize) -> usize {
        debug_assert!(i < self.count());
        get_u16(self.0, slot_at(i))
    }
    pub(crate) fn cell_head(self) -> usize {
        if self.is_leaf() { LEAF_CELL_HEAD } else { BRANCH_CELL_HEAD }
    }

    /// How the page's keys compare.
    pub(crate) fn order(self) -> Order {
        if self.0[ORDER] == 0 { Order::Bytes } else { Order::KeyThenRevision }
    }

    /// The first cell that has a key: in a branch the second.
    pub(crate) fn first_keyed(self) -> usize {
        usize::from(!self.is_leaf())
    }

    pub(crate) fn prefix_bytes(self) -> usize {
        get_u16(self.0, PREFIX)
    }

    /// The bytes of the key that stand in the cell, and whether the key is long.
    #[inline]
    pub(crate) fn key(self, i: usize) -> (&'p [u8], bool) {
        let (range, long) = self.key_range(i);
        (&self.0[range], long)
    }

    pub(crate) fn key_range(self, i: usize) -> (Range<usize>, bool) {
        let at = self.cell(i);
        let start = at + self.cell_head();
        (start..start + get_u16(self.0, at + 1), self.0[at] & FLAG_LONG_KEY != 0)
    }

    /// The reference of a long key.
    pub(crate) fn long_key(self, i: usize) -> (Place<Long>, u32) {
        self.long(self.long_key_at(i))
    }

    fn long_key_at(self, i: usize) -> usize {
        self.key_range(i).0.end
    }

    fn long(self, at: usize) -> (Place<Long>, u32) {
        let page = get_u48(self.0, at);
        if page & IN_MEMORY != 0 {
            return (Place::Memory((page & !IN_MEMORY) as usize), get_u32(self.0, at + LEN));
        }
        let long = Long::read(&self.0[at..at + LONG_BYTES]);
        (Place::Disk(long), long.len)
    }

    fn value_at(self, i: usize) -> usize {
        let (range, long) = self.key_range(i);
        range.end + if long { LONG_BYTES } else { 0 }
    }

    pub(crate) fn has_long_value(self, i: usize) -> bool {
        self.0[self.cell(i)] & FLAG_LONG_VALUE != 0
    }

    pub(crate) fn value(self, i: usize) -> CellValue {
        let (at, start) = (self.cell(i), self.value_at(i));
        if self.has_long_value(i) {
            let (place, len) = self.long(start);
            return CellValue::Long(place, len);
        }
        CellValue::Inline(start..start + get_u16(self.0, at + 3))
    }

    /// A branch's child.
    pub(crate) fn child(self, i: usize) -> Place<Link> {
        let at = self.cell(i) + 3;
        let page = get_u48(self.0, at);
        if page & IN_MEMORY != 0 {
            return Place::Memory((page & !IN_MEMORY) as usize);
        }
        Place::Disk(Link {
            page,
            check: get_u32(self.0, at + LINK_CHECK),
            sums: Sums {
                count: get_u48(self.0, at + LINK_COUNT),
                bytes: get_u48(self.0, at + LINK_SUM),
                crc: get_u32(self.0, at + LINK_CRC),
                live: get_i48(self.0, at + LINK_LIVE),
            },
        })
    }

    /// Bytes of a cell, without its slot.
    pub(crate) fn cell_bytes(self, i: usize) -> usize {
        let at = self.cell(i);
        let key = self.value_at(i) - at;
        match self.is_leaf() {
            false => key,
            true if self.0[at] & FLAG_LONG_VALUE != 0 => key + LONG_BYTES,
            true => key + get_u16(self.0, at + 3),
        }
    }
}

/// A page to edit. The caller has checked that there is room.
#[derive(Debug)]
pub(crate) struct PageMut<'p>(pub(crate) &'p mut PageBytes);

impl PageMut<'_> {
    pub(crate) fn view(&self) -> PageView<'_> {
        PageView(&self.0[..])
    }

    /// An empty page of that level.
    pub(crate) fn init(&mut self, tree: u8, level: u8, order: Order) {
        self.0[..HEADER].fill(0);
        self.0[KIND] = if level == 0 { KIND_LEAF } else { KIND_BRANCH };
        self.0[LEVEL] = level;
        self.0[TREE] = tree;
        self.0[ORDER] = u8::from(order == Order::KeyThenRevision);
        put_u16(self.0, CELLS, PAGE);
    }

    /// All of another page: how much of it is in use would have to come from memory first.
    pub(crate) fn copy_of(&mut self, page: PageView<'_>) {
        self.0.copy_from_slice(page.0);
    }

    /// Zeros between slots and cells.
    pub(crate) fn clear_gap(&mut self) {
        let (slots, cells) = (slot_at(self.view().count()), get_u16(self.0, CELLS));
        self.0[slots..cells].fill(0);
    }

    /// The page gets its place on disk.
    pub(crate) fn stamp(&mut self, id: u64, generation: u64) {
        put_u64(self.0, ID, id);
        put_u64(self.0, GENERATION, generation);
    }

    /// Notes where the next entry of an ascending run would stand.
    pub(crate) fn set_run_position(&mut self, position: usize) {
        put_u16(self.0, RUN, position);
    }

    /// Opens a slot and a cell of `bytes` bytes; where the cell begins. Its bytes and the slot's head are undefined.
    fn open_cell(&mut self, i: usize, bytes: usize) -> usize {
        assert!(self.view().free_bytes() >= bytes + SLOT_BYTES, "the caller splits full pages");
        if self.view().gap_bytes() < bytes + SLOT_BYTES {
            self.compact();
        }
        let count = self.view().count();
        let at = get_u16(self.0, CELLS) - bytes;
        let slot = slot_at(i);
        self.0.copy_within(slot..slot_at(count), slot + SLOT_BYTES);
        put_u16(self.0, slot, at);
        put_u16(self.0, COUNT, count + 1);
        put_u16(self.0, CELLS, at);
        at
    }

    /// Inserts an entry of which both parts are short.
    pub(crate) fn insert_short(&mut self, i: usize, key: &[u8], value: &[u8]) {
        debug_assert!(key.len() <= KEY_INLINE_MAX && value.len() <= VALUE_INLINE_MAX);
        let at = self.open_cell(i, LEAF_CELL_HEAD + key.len() + value.len());
        self.0[at] = 0;
        put_u16(self.0, at + 1, key.len());
        put_u16(self.0, at + 3, value.len());
        let key_at = at + LEAF_CELL_HEAD;
        self.0[key_at..key_at + key.len()].copy_from_slice(key);
        let value_at = key_at + key.len();
        self.0[value_at..value_at + value.len()].copy_from_slice(value);
        self.note_key(i);
    }

    /// Sets the head of a cell that has just got its key. A key that does not share the prefix shortens it.
    fn note_key(&mut self, i: usize) {
        let page = self.view();
        let (first, stem) = (page.first_keyed(), page.stem(i));
        if i < first {
            // It has no key, but the one it pushed aside counts from now on.
            return self.refresh_heads();
        }
        let other = if i == first { first + 1 } else { first };
        let shared = match other < page.count() {
            true => common(&page.stem(other)[..page.prefix_bytes()], stem),
            false => stem.len().min(PREFIX_MAX),
        };
        if shared == page.prefix_bytes() {
            let head = head_of(stem, shared);
            put_u32(self.0, slot_at(i) + 2, head);
        } else {
            self.set_heads(shared);
        }
    }

    fn set_heads(&mut self, prefix: usize) {
        put_u16(self.0, PREFIX, prefix);
        for i in self.view().first_keyed()..self.view().count() {
            let head = head_of(self.view().stem(i), prefix);
            put_u32(self.0, slot_at(i) + 2, head);
        }
    }

    /// Takes the longest prefix that all keys share: when cells have come or gone in numbers.
    pub(crate) fn refresh_heads(&mut self) {
        let page = self.view();
        let (first, count) = (page.first_keyed(), page.count());
        if first < count {
            let shared = common(page.stem(first), page.stem(count - 1)).min(PREFIX_MAX);
            self.set_heads(shared);
        }
    }

    /// Inserts an entry; `long_key` and `long_value` are places in the side table, given when the part is long.
    pub(crate) fn insert_entry(
        &mut self,
        i: usize,
        key: &[u8],
        long_key: Option<usize>,
        value: &[u8],
        long_value: Option<usize>,
    ) {
        let at = self.open_cell(i, leaf_cell_bytes(key.len(), value.len()) - SLOT_BYTES);
        self.0[at] = 0;
        put_u16(self.0, at + 3, if long_value.is_some() { 0 } else { value.len() });
        let end = self.put_key(at, LEAF_CELL_HEAD, key, long_key);
        match long_value {
            None => self.0[end..end + value.len()].copy_from_slice(value),
            Some(place) => {
                self.0[at] |= FLAG_LONG_VALUE;
                self.put_long_memory(end, place, value.len());
            }
        }
        self.note_key(i);
    }

    /// Inserts a child in memory at `place` of the side table.
    pub(crate) fn insert_child(&mut self, i: usize, key: &[u8], long_key: Option<usize>, child: Place<Link>) {
        let at = self.open_cell(i, branch_cell_bytes(key.len()) - SLOT_BYTES);
        self.0[at] = 0;
        self.put_key(at, BRANCH_CELL_HEAD, key, long_key);
        self.set_child(i, child);
        self.note_key(i);
    }

    fn put_key(&mut self, at: usize, head: usize, key: &[u8], long: Option<usize>) -> usize {
        let inline = if long.is_some() { &key[..KEY_PREFIX] } else { key };
        put_u16(self.0, at + 1, inline.len());
        let end = at + head + inline.len();
        self.0[at + head..end].copy_from_slice(inline);
        let Some(place) = long else { return end };
        self.0[at] |= FLAG_LONG_KEY;
        self.put_long_memory(end, place, key.len());
        end + LONG_BYTES
    }

    fn put_long_memory(&mut self, at: usize, place: usize, len: usize) {
        self.0[at..at + LONG_BYTES].fill(0);
        put_u48(self.0, at, IN_MEMORY | place as u64);
        put_u32(
            self.0,
            at + LEN,
            u32::try_from(len).expect("the store bounds the length of keys and values"),
        );
    }

    /// Moves the reference of a long part.
    pub(crate) fn set_long(&mut self, i: usize, part: Part, place: Place<Long>) {
        let at = match part {
            Part::Key => self.view().long_key_at(i),
            Part::Value => self.view().value_at(i),
        };
        match place {
            Place::Memory(place) => {
                let (_, len) = self.view().long(at);
                self.put_long_memory(at, place, len as usize);
            }
            Place::Disk(long) => long.write(&mut self.0[at..at + LONG_BYTES]),
        }
    }

    /// Overwrites a short value with one of the same length.
    pub(crate) fn overwrite(&mut self, range: Range<usize>, value: &[u8]) {
        self.0[range].copy_from_slice(value);
    }

    pub(crate) fn set_child(&mut self, i: usize, child: Place<Link>) {
        let at = self.view().cell(i) + 3;
        match child {
            Place::Memory(place) => {
                self.0[at..at + LINK_BYTES].fill(0);
                put_u48(self.0, at, IN_MEMORY | place as u64);
            }
            Place::Disk(link) => {
                put_u48(self.0, at, link.page);
                put_u32(self.0, at + LINK_CHECK, link.check);
                put_u48(self.0, at + LINK_COUNT, link.sums.count);
                put_u48(self.0, at + LINK_SUM, link.sums.bytes);
                put_u32(self.0, at + LINK_CRC, link.sums.crc);
                put_i48(self.0, at + LINK_LIVE, link.sums.live);
            }
        }
    }

    /// Takes the key away from a branch's cell: the first cell of a branch has none.
    pub(crate) fn blank_key(&mut self, i: usize) {
        let (at, before) = (self.view().cell(i), self.view().cell_bytes(i));
        self.0[at] = 0;
        put_u16(self.0, at + 1, 0);
        self.add_dead(before - BRANCH_CELL_HEAD);
    }

    fn add_dead(&mut self, bytes: usize) {
        let dead = get_u16(self.0, DEAD) + bytes;
        put_u16(self.0, DEAD, dead);
    }

    /// Removes a cell.
    pub(crate) fn remove(&mut self, i: usize) {
        let (at, bytes, count) = (self.view().cell(i), self.view().cell_bytes(i), self.view().count());
        let slot = slot_at(i);
        self.0.copy_within(slot + SLOT_BYTES..slot_at(count), slot);
        put_u16(self.0, COUNT, count - 1);
        if at == get_u16(self.0, CELLS) {
            put_u16(self.0, CELLS, at + bytes);
        } else {
            self.add_dead(bytes);
        }
    }

    /// Removes cells, given in ascending order: one pass over the slots.
    pub(crate) fn remove_many(&mut self, cells: &[usize]) {
        let Some(&first) = cells.first() else { return };
        let (mut kept, mut dead) = (first, 0);
        let mut removed = cells.iter().peekable();
        for i in first..self.view().count() {
            if removed.next_if(|&&cell| cell == i).is_some() {
                dead += self.view().cell_bytes(i);
                continue;
            }
            self.0.copy_within(slot_at(i)..slot_at(i + 1), slot_at(kept));
            kept += 1;
        }
        put_u16(self.0, COUNT, kept);
        self.add_dead(dead);
    }

    /// Drops the cells from `from` on.
    pub(crate) fn truncate(&mut self, from: usize) {
        let dead: usize = (from..self.view().count()).map(|i| self.view().cell_bytes(i)).sum();
        self.add_dead(dead);
        put_u16(self.0, COUNT, from);
        self.compact();
    }

    /// Appends a cell of another page as it is. The caller refreshes the heads.
    pub(crate) fn append_cell(&mut self, from: PageView<'_>, i: usize) {
        let (start, bytes, count) = (from.cell(i), from.cell_bytes(i), self.view().count());
        let at = self.open_cell(count, bytes);
        self.0[at..at + bytes].copy_from_slice(&from.0[start..start + bytes]);
    }

    /// Closes the holes between cells.
    fn compact(&mut self) {
        let old = *self.0;
        let old = PageView(&old);
        let mut at = PAGE;
        for i in 0..old.count() {
            let (start, bytes) = (old.cell(i), old.cell_bytes(i));
            at -= bytes;
            self.0[at..at + bytes].copy_from_slice(&old.0[start..start + bytes]);
            put_u16(self.0, slot_at(i), at);
        }
        put_u16(self.0, CELLS, at);
        put_u16(self.0, DEAD, 0);
    }
}

/// The fields that `docs/format.md` lists, with their offsets.
#[cfg(test)]
pub(crate) const LAYOUT: &[(&str, usize)] = &[
    ("page number", ID),
    ("generation", GENERATION),
    ("kind", KIND),
    ("level", LEVEL),
    ("tree", TREE),
    ("order", ORDER),
    ("cells", COUNT),
    ("cell area", CELLS),
    ("dead bytes", DEAD),
    ("run", RUN),
    ("shared prefix", PREFIX),
    ("slots", HEADER),
    ("child", 3),
    ("checksum of the child", 3 + LINK_CHECK),
    ("entries below the child", 3 + LINK_COUNT),
    ("bytes of keys and values below it", 3 + LINK_SUM),
    ("content checksum of what is below it", 3 + LINK_CRC),
    ("live weight of what is below it", 3 + LINK_LIVE),
    ("key", LEAF_CELL_HEAD),
    ("key", BRANCH_CELL_HEAD),
];
