//! Builds a bbolt file's trees page by page, from entries that come in order.
//!
//! A tree grows from its leaves: a page is complete when its entries are known, gets the next page number, and its
//! first key goes to the level above. So parents follow their children, memory is one page per level (and one
//! value), and what is decided depends on lengths only: the same entries measured first give the same pages.

use bytes::BytesMut;

use super::format::{BUCKET, ELEMENT, HEADER, Header, PAGE_BRANCH, PAGE_LEAF};

/// What became of a tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Built {
    /// So small that it stands in the entry of its bucket.
    Inline(Vec<u8>),
    /// Its root's page.
    Page(u64),
}

impl Built {
    /// The value of the bucket's entry: root page and sequence, and the leaf if it is inline.
    pub(super) fn into_value(self) -> Vec<u8> {
        let (root, leaf) = match self {
            Built::Inline(leaf) => (0, leaf),
            Built::Page(root) => (root, Vec::new()),
        };
        let mut value = Vec::with_capacity(BUCKET + leaf.len());
        value.extend_from_slice(&root.to_le_bytes());
        value.extend_from_slice(&0u64.to_le_bytes());
        value.extend_from_slice(&leaf);
        value
    }
}

/// An element that waits for its page to be complete.
#[derive(Debug, Clone, Copy)]
struct Pending {
    /// A leaf's flags, or a branch's child.
    number: u64,
    key: usize,
    value: usize,
}

impl Pending {
    fn bytes(&self) -> usize {
        ELEMENT + self.key + self.value
    }
}

#[derive(Debug, Default)]
struct Level {
    pending: Vec<Pending>,
    /// Keys and values of the pending elements, one after the other; of no use, and empty, while measuring.
    data: Vec<u8>,
    /// Bytes of the pending elements with their keys and values.
    bytes: usize,
    /// Pages that are complete.
    pages: usize,
}

/// Builds one tree after the other.
#[derive(Debug)]
pub(super) struct Builder {
    page_size: usize,
    /// The next page's number.
    next: u64,
    /// Lengths only; no page is written.
    measuring: bool,
    /// From the leaves up.
    levels: Vec<Level>,
    /// Complete pages.
    pub(super) out: BytesMut,
}

impl Builder {
    /// Pages are numbered from `first` on.
    pub(super) fn new(page_size: usize, first: u64, measuring: bool) -> Builder {
        Builder { page_size, next: first, measuring, levels: Vec::new(), out: BytesMut::new() }
    }

    pub(super) fn page_size(&self) -> usize {
        self.page_size
    }

    /// One more than the number of the last page.
    pub(super) fn high_water(&self) -> u64 {
        self.next
    }

    /// Adds an entry to the tree being built. While measuring, `value` is not looked at.
    pub(super) fn add(&mut self, flags: u32, key: &[u8], value_len: usize, value: &[u8]) {
        let entry = Pending { number: u64::from(flags), key: key.len(), value: value_len };
        let full = self.levels.first().is_some_and(|leaf| {
            !leaf.pending.is_empty() && HEADER + leaf.bytes + entry.bytes() > self.page_size
        });
        if full {
            self.complete(0, self.levels[0].pending.len());
        }
        self.push(0, entry, key, value);
    }

    fn push(&mut self, level: usize, entry: Pending, key: &[u8], value: &[u8]) {
        if self.levels.len() == level {
            self.levels.push(Level::default());
        }
        let place = &mut self.levels[level];
        place.pending.push(entry);
        place.bytes += entry.bytes();
        if !self.measuring {
            place.data.extend_from_slice(key);
            place.data.extend_from_slice(value);
        }
    }

    /// How many of a branch's pending elements make the next page: those that fit, two at least.
    fn fitting(&self, level: usize) -> usize {
        let mut bytes = HEADER;
        let fits = self.levels[level].pending.iter().take_while(|pending| {
            bytes += pending.bytes();
            bytes <= self.page_size
        });
        fits.count().max(2)
    }

    /// Makes a page of the first `count` pending elements and puts it into the level above.
    fn complete(&mut self, level: usize, count: usize) {
        let id = self.next;
        let place = &mut self.levels[level];
        let pending: Vec<Pending> = place.pending.drain(..count).collect();
        let bytes: usize = pending.iter().map(Pending::bytes).sum();
        place.bytes -= bytes;
        place.pages += 1;
        let pages = (HEADER + bytes).div_ceil(self.page_size).max(1);
        let mut first = Vec::new();
        if !self.measuring {
            let data = &place.data[..bytes - ELEMENT * count];
            first.extend_from_slice(&data[..pending.first().map_or(0, |first| first.key)]);
            let mut page = Vec::with_capacity(pages * self.page_size);
            page_bytes(&mut page, id, level == 0, &pending, data, (pages - 1) as u32);
            page.resize(pages * self.page_size, 0);
            self.out.extend_from_slice(&page);
            place.data.drain(..bytes - ELEMENT * count);
        }
        self.next += pages as u64;
        let up = Pending { number: id, key: pending.first().map_or(0, |first| first.key), value: 0 };
        self.push(level + 1, up, &first, &[]);
        // Two stay behind, so that the last page of a level never has one child only.
        let above = &self.levels[level + 1];
        if HEADER + above.bytes > self.page_size {
            let fitting = self.fitting(level + 1);
            if self.levels[level + 1].pending.len() >= fitting + 2 {
                self.complete(level + 1, fitting);
            }
        }
    }

    /// Ends the tree. `may_inline`: one that is a small leaf gets no page.
    pub(super) fn finish(&mut self, may_inline: bool) -> Built {
        if self.levels.is_empty() {
            self.levels.push(Level::default());
        }
        let leaf = &mut self.levels[0];
        if may_inline && leaf.pages == 0 && HEADER + leaf.bytes <= self.page_size / 4 {
            let mut page = Vec::with_capacity(HEADER + leaf.bytes);
            page_bytes(&mut page, 0, true, &leaf.pending, &leaf.data, 0);
            if self.measuring {
                page.resize(HEADER + leaf.bytes, 0);
            }
            self.levels.clear();
            return Built::Inline(page);
        }
        self.complete(0, self.levels[0].pending.len());
        let mut level = 0;
        while self.levels[level].pages > 1 {
            level += 1;
            while !self.levels[level].pending.is_empty() {
                let left = self.levels[level].pending.len();
                let count = match self.fitting(level) {
                    fitting if fitting >= left => left,
                    fitting if fitting + 1 == left && fitting > 2 => fitting - 1,
                    fitting if fitting + 1 == left => left,
                    fitting => fitting,
                };
                self.complete(level, count);
            }
        }
        let root = self.levels[level + 1].pending[0].number;
        self.levels.clear();
        Built::Page(root)
    }
}

/// Header, elements, keys and values.
fn page_bytes(page: &mut Vec<u8>, id: u64, leaf: bool, pending: &[Pending], data: &[u8], overflow: u32) {
    let flags = if leaf { PAGE_LEAF } else { PAGE_BRANCH };
    Header { id, flags, count: pending.len(), overflow }.encode(page);
    let mut at = HEADER + ELEMENT * pending.len();
    for (i, element) in pending.iter().enumerate() {
        // Places count from the element's own beginning.
        let pos = ((at - HEADER - ELEMENT * i) as u32).to_le_bytes();
        let (key, value) = ((element.key as u32).to_le_bytes(), (element.value as u32).to_le_bytes());
        match leaf {
            true => {
                [(element.number as u32).to_le_bytes(), pos, key, value].iter().for_each(|n| page.extend(n))
            }
            false => {
                page.extend(pos);
                page.extend(key);
                page.extend(element.number.to_le_bytes());
            }
        }
        at += element.key + element.value;
    }
    page.extend_from_slice(data);
}
