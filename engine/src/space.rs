//! Which pages of the file are in use.
//!
//! The file is divided into regions of [`REGION_PAGES`] pages. The first [`RESERVED_PAGES`] of each are set aside:
//! two for the meta pages (used in the first region only), and two places of two pages for the region's bitmap.
//! A checkpoint writes the bitmaps of the regions it touched to the place that the durable meta page does not name,
//! so saving the allocator allocates nothing, and the checkpoint before stays whole.
//!
//! A region in which the checkpoint uses nothing is not named by its meta page. It stays in the map for as long as
//! pages of it are held, and goes when nobody needs it: what lies behind the last page that is used or held may be
//! cut off the file.
//!
//! Promises: allocation takes the lowest free place. A page that was given up is held back until its owner
//! releases it. It does no I/O and knows no trees.

use crate::page::{PAGE, get_u32, get_u64, put_u32, put_u64};

/// Pages of a region: 128 MiB.
pub(crate) const REGION_PAGES: u64 = 32_768;
/// Pages at the head of each region that hold no data.
pub(crate) const RESERVED_PAGES: u64 = 6;
/// Where a region's bitmap places are, from its first page.
const BITMAP_AT: [u64; 2] = [2, 4];
/// How many regions a meta page can name: 2 TiB less a little.
pub(crate) const REGIONS_MAX: usize = 16_352;
/// Longest extent, in pages.
pub(crate) const EXTENT_PAGES_MAX: u64 = REGION_PAGES - RESERVED_PAGES;

/// The first word of a region's bitmap: the pages that hold no data.
const SET_ASIDE: u64 = (1 << RESERVED_PAGES) - 1;
const WORDS: usize = REGION_PAGES as usize / 64;
type Bits = Box<[u64; WORDS]>;

/// Bytes of a bitmap on disk.
pub(crate) const BITMAP_BYTES: usize = 2 * PAGE;
const BITMAP_MAGIC: u64 = u64::from_le_bytes(*b"TRILBITS");
const MAGIC: usize = 0;
const CHECKPOINT: usize = 8;
const REGION: usize = 16;
const CHECK: usize = 20;
const BITS: usize = 32;

#[derive(Debug, Clone)]
struct Region {
    /// Pages of the newest checkpoint, or of the one being written.
    used: Bits,
    /// Pages given up that the checkpoint before, or a root, may still need.
    held: Bits,
    /// Pages neither used nor held.
    free: u32,
    /// No run of free pages is longer than this.
    run_max: u32,
    /// All words before this one are full.
    low_word: usize,
    /// Whether the bitmap differs from the one on disk.
    touched: bool,
    /// The place of the bitmap that the durable meta page names.
    place: usize,
    /// Whether [`Undo`] knows it as it was before the checkpoint being written.
    saved: bool,
}

/// The regions that the checkpoint being written has changed, as they were before it.
#[derive(Debug)]
struct Undo {
    regions: usize,
    before: Vec<(usize, Region)>,
}

/// How the file is filled, in pages; those set aside are left out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// See [`Space::high_water`].
    pub(crate) high_water: u64,
    pub(crate) used: u64,
    pub(crate) held: u64,
    /// Where the file could end: there is room before it for what is in use behind it.
    pub(crate) cut: u64,
    /// Free pages before the cut.
    pub(crate) free: u64,
}

/// The map of the whole file.
#[derive(Debug, Default)]
pub(crate) struct Space {
    regions: Vec<Region>,
    /// All regions before this one are full.
    low_region: usize,
    /// None while no checkpoint is being written.
    undo: Option<Undo>,
    room: Room,
}

fn bit(page: u64) -> (usize, u64) {
    let page = page % REGION_PAGES;
    (page as usize / 64, 1 << (page % 64))
}

impl Region {
    fn new() -> Region {
        let mut used = Box::new([0; WORDS]);
        used[0] = SET_ASIDE;
        Region::from_bits(used, 0, true)
    }

    fn from_bits(used: Bits, place: usize, touched: bool) -> Region {
        let free = used.iter().map(|word| word.count_zeros()).sum();
        let run_max = EXTENT_PAGES_MAX as u32;
        Region { used, held: Box::new([0; WORDS]), free, run_max, low_word: 0, touched, place, saved: false }
    }

    fn taken(&self, word: usize) -> u64 {
        self.used[word] | self.held[word]
    }

    fn is_free(&self, page: u64) -> bool {
        let (word, mask) = bit(page);
        self.taken(word) & mask == 0
    }

    /// The lowest free page, from the region's first.
    fn first_free(&mut self) -> Option<u64> {
        while self.low_word < WORDS {
            let taken = self.taken(self.low_word);
            if taken != u64::MAX {
                return Some(self.low_word as u64 * 64 + u64::from(taken.trailing_ones()));
            }
            self.low_word += 1;
        }
        None
    }

    /// The lowest run of `pages` free pages, from the region's first; notes the longest run if there is none.
    fn first_run(&mut self, pages: u64) -> Option<u64> {
        let (mut start, mut longest) = (self.low_word as u64 * 64, 0);
        while start < REGION_PAGES {
            start = self.next(start, true);
            let end = self.next(start, false).min(start + pages);
            if end - start == pages {
                return Some(start);
            }
            longest = longest.max(end - start);
            start = end;
        }
        self.run_max = longest as u32;
        None
    }

    /// The next page from `page` on that is free, or that is taken; the region's end if there is none.
    fn next(&self, page: u64, free: bool) -> u64 {
        let mut word = page as usize / 64;
        let mut skip = page % 64;
        while word < WORDS {
            let wanted = if free { !self.taken(word) } else { self.taken(word) };
            let found = wanted >> skip << skip;
            if found != 0 {
                return word as u64 * 64 + u64::from(found.trailing_zeros());
            }
            (word, skip) = (word + 1, 0);
        }
        REGION_PAGES
    }
}

impl Space {
    /// An empty file: one region with nothing in it.
    pub(crate) fn empty() -> Space {
        Space { regions: vec![Region::new()], ..Space::default() }
    }

    pub(crate) fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Takes `pages` contiguous pages within a region; the first. None when the file has its greatest size.
    pub(crate) fn allocate(&mut self, pages: u64) -> Option<u64> {
        assert!((1..=EXTENT_PAGES_MAX).contains(&pages), "the store bounds the length of keys and values");
        while self.regions.get(self.low_region).is_some_and(|r| r.free == 0) {
            self.low_region += 1;
        }
        for i in self.low_region.. {
            if i == self.regions.len() {
                if i == REGIONS_MAX {
                    return None;
                }
                self.regions.push(Region::new());
            }
            let region = &mut self.regions[i];
            if u64::from(region.free) < pages || u64::from(region.run_max) < pages {
                continue;
            }
            let found = if pages == 1 { region.first_free() } else { region.first_run(pages) };
            if let Some(page) = found {
                let first = i as u64 * REGION_PAGES + page;
                self.take(first, pages);
                return Some(first);
            }
        }
        unreachable!("the loop ends at the greatest size")
    }

    fn take(&mut self, first: u64, pages: u64) {
        let region = self.touch((first / REGION_PAGES) as usize);
        for page in first..first + pages {
            assert!(region.is_free(page), "page {page} is taken already");
            let (word, mask) = bit(page);
            region.used[word] |= mask;
        }
        region.free -= pages as u32;
    }

    /// A region that the checkpoint being written changes.
    fn touch(&mut self, at: usize) -> &mut Region {
        let region = &mut self.regions[at];
        if let Some(undo) = &mut self.undo
            && at < undo.regions
            && !region.saved
        {
            undo.before.push((at, region.clone()));
            region.saved = true;
        }
        region.touched = true;
        region
    }

    /// A checkpoint begins to be written: what it changes can be taken back by `abandon` until `written`.
    pub(crate) fn begin(&mut self) {
        assert!(self.undo.is_none(), "the checkpoint before was finished or abandoned");
        self.undo = Some(Undo { regions: self.regions.len(), before: Vec::new() });
    }

    /// Takes back everything since `begin`.
    pub(crate) fn abandon(&mut self) {
        let undo = self.undo.take().expect("a checkpoint was begun");
        self.regions.truncate(undo.regions);
        for (at, region) in undo.before {
            self.regions[at] = region;
        }
        self.low_region = 0;
    }

    /// The checkpoint being written does not use these pages any more; they stay held until `release`. Errors: a page
    /// that was not in use, or given up already: the bitmap and the trees disagree.
    pub(crate) fn hold(&mut self, first: u64, pages: u32) -> Result<(), u64> {
        let at = first / REGION_PAGES;
        let of_region = |page: u64| page / REGION_PAGES == at && page % REGION_PAGES >= RESERVED_PAGES;
        let end = first.saturating_add(u64::from(pages));
        if let Some(page) = (first..end).find(|page| !of_region(*page) || !self.is_used(*page)) {
            return Err(page);
        }
        let region = self.touch(at as usize);
        for page in first..end {
            let (word, mask) = bit(page);
            region.used[word] &= !mask;
            region.held[word] |= mask;
        }
        Ok(())
    }

    /// Nobody needs these pages any more.
    pub(crate) fn release(&mut self, first: u64, pages: u32) {
        let at = (first / REGION_PAGES) as usize;
        let region = &mut self.regions[at];
        for page in first..first + u64::from(pages) {
            let (word, mask) = bit(page);
            assert!(region.held[word] & mask != 0, "page {page} is released but was not held");
            region.held[word] &= !mask;
        }
        region.free += pages;
        region.run_max = EXTENT_PAGES_MAX as u32;
        region.low_word = region.low_word.min(bit(first).0);
        self.low_region = self.low_region.min(at);
    }

    /// Whether a page is used by the newest checkpoint.
    pub(crate) fn is_used(&self, page: u64) -> bool {
        let (word, mask) = bit(page);
        self.regions.get((page / REGION_PAGES) as usize).is_some_and(|r| r.used[word] & mask != 0)
    }

    /// Pages of the newest checkpoint, those set aside counted.
    pub(crate) fn used_pages(&self) -> u64 {
        self.regions.iter().flat_map(|r| r.used.iter()).map(|word| u64::from(word.count_ones())).sum()
    }

    /// One more than the highest page that is used or held: what lies behind it nobody needs.
    pub(crate) fn high_water(&self) -> u64 {
        self.end(Region::taken)
    }

    /// One more than the highest page that is used.
    pub(crate) fn used_end(&self) -> u64 {
        self.end(|region, word| region.used[word])
    }

    /// One more than the highest page of which `bits` has the bit, those set aside left out; behind those of the
    /// first region at least.
    fn end(&self, bits: impl Fn(&Region, usize) -> u64) -> u64 {
        for (i, region) in self.regions.iter().enumerate().rev() {
            let data = |word| bits(region, word) & if word == 0 { !SET_ASIDE } else { u64::MAX };
            if let Some(word) = (0..WORDS).rev().find(|word| data(*word) != 0) {
                let in_word = 64 - u64::from(data(word).leading_zeros());
                return i as u64 * REGION_PAGES + word as u64 * 64 + in_word;
            }
        }
        RESERVED_PAGES
    }

    /// How many regions the meta page names: those up to the last that has a page in use, one at least.
    fn named(&self) -> usize {
        self.used_end().div_ceil(REGION_PAGES) as usize
    }

    /// How the file was filled when it was last surveyed.
    pub(crate) fn room(&self) -> Room {
        self.room
    }

    /// Forgets the regions behind the high-water mark, and notes how the file is filled.
    pub(crate) fn survey(&mut self) {
        self.trim();
        self.room = self.count();
    }

    /// How the file is filled, and how short it could be.
    fn count(&self) -> Room {
        let count = |bits: &Bits| bits.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        let mut room = Room { high_water: self.high_water(), ..Room::default() };
        for region in &self.regions {
            room.used += count(&region.used) - RESERVED_PAGES;
            room.held += count(&region.held);
            room.free += u64::from(region.free);
        }
        room.cut = self.regions.len() as u64 * REGION_PAGES;
        let mut behind = 0;
        for (i, region) in self.regions.iter().enumerate().rev() {
            for word in (0..WORDS).rev() {
                let data = if word == 0 { !SET_ASIDE } else { u64::MAX };
                let used = behind + u64::from((region.used[word] & data).count_ones());
                let free = room.free - u64::from(region.taken(word).count_zeros());
                // What moves takes branches along that stand before, and extents need places in one piece.
                if used + used / 8 > free {
                    return room;
                }
                behind = used;
                (room.free, room.cut) = (free, i as u64 * REGION_PAGES + word as u64 * 64);
            }
        }
        room
    }

    /// Forgets the regions behind the high-water mark.
    fn trim(&mut self) {
        self.regions.truncate(self.high_water().div_ceil(REGION_PAGES) as usize);
        self.low_region = self.low_region.min(self.regions.len());
    }

    /// The place of each region's bitmap after the checkpoint being written: the other one where it was touched.
    pub(crate) fn next_places(&self) -> impl Iterator<Item = usize> {
        let named = self.regions.iter().take(self.named());
        named.map(|r| if r.touched { 1 - r.place } else { r.place })
    }

    /// The bitmaps to write: first page of the place, and the bytes.
    pub(crate) fn touched_bitmaps(&self, checkpoint: u64) -> impl Iterator<Item = (u64, Vec<u8>)> {
        let touched = self.regions.iter().enumerate().take(self.named()).filter(|(_, r)| r.touched);
        touched.map(move |(i, r)| (bitmap_page(i, 1 - r.place), encode_bitmap(checkpoint, i, &r.used)))
    }

    /// The checkpoint is durable: its bitmaps are the ones that count. (A region that it does not name stays
    /// touched: should it be used again, its bitmap goes to the place that the checkpoint before does not name.)
    pub(crate) fn written(&mut self) {
        for (at, _) in self.undo.take().into_iter().flat_map(|undo| undo.before) {
            self.regions[at].saved = false;
        }
        let named = self.named();
        for region in self.regions.iter_mut().take(named).filter(|r| r.touched) {
            region.place = 1 - region.place;
            region.touched = false;
        }
    }

    /// Adds the next region from its bitmap; its bitmap is at `place`.
    pub(crate) fn push(&mut self, bitmap: &Bitmap, place: usize) {
        self.regions.push(Region::from_bits(bitmap.0.clone(), place, false));
    }

    /// Adds a region of which the bitmap is lost: nothing in use until `mark` says so, to be written anew.
    pub(crate) fn push_lost(&mut self, place: usize) {
        let mut region = Region::new();
        region.place = place;
        self.regions.push(region);
    }

    /// Marks pages as used, where a walk over the trees found them.
    pub(crate) fn mark(&mut self, first: u64, pages: u32) -> Result<(), u64> {
        for page in first..first + u64::from(pages) {
            let Some(region) = self.regions.get_mut((page / REGION_PAGES) as usize) else { return Err(page) };
            let (word, mask) = bit(page);
            region.free -= u32::from(region.taken(word) & mask == 0);
            region.used[word] |= mask;
        }
        Ok(())
    }

    /// Holds back the pages that an older checkpoint uses and this one does not; which. The older one has the
    /// region's bitmap at `place`. In ascending order of regions.
    pub(crate) fn hold_older(&mut self, region: usize, older: &Bitmap, place: usize) -> Vec<(u64, u32)> {
        while self.regions.len() <= region {
            // This checkpoint uses nothing there and does not name it.
            self.regions.push(Region { place, ..Region::new() });
        }
        let r = &mut self.regions[region];
        let mut held = Vec::new();
        for (w, bits) in older.0.iter().enumerate() {
            let mut only = bits & !r.taken(w);
            r.held[w] |= only;
            r.free -= only.count_ones();
            while only != 0 {
                held.push((
                    region as u64 * REGION_PAGES + w as u64 * 64 + u64::from(only.trailing_zeros()),
                    1,
                ));
                only &= only - 1;
            }
        }
        held
    }
}

/// First page of a place of a region's bitmap.
pub(crate) fn bitmap_page(region: usize, place: usize) -> u64 {
    region as u64 * REGION_PAGES + BITMAP_AT[place]
}

/// A region's bitmap, as read from disk.
#[derive(Debug)]
pub(crate) struct Bitmap(Bits);

fn bitmap_check(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CHECK]), &bytes[CHECK + 4..])
}

fn encode_bitmap(checkpoint: u64, region: usize, used: &[u64; WORDS]) -> Vec<u8> {
    let mut bytes = vec![0; BITMAP_BYTES];
    put_u64(&mut bytes, MAGIC, BITMAP_MAGIC);
    put_u64(&mut bytes, CHECKPOINT, checkpoint);
    put_u32(&mut bytes, REGION, region as u32);
    for (i, word) in used.iter().enumerate() {
        put_u64(&mut bytes, BITS + 8 * i, *word);
    }
    let check = bitmap_check(&bytes);
    put_u32(&mut bytes, CHECK, check);
    bytes
}

/// Reads a bitmap that was written by the checkpoint `newest` or an earlier one. None: it was not, or is damaged.
pub(crate) fn decode_bitmap(bytes: &[u8], region: usize, newest: u64) -> Option<Bitmap> {
    let good = bytes.len() == BITMAP_BYTES
        && get_u64(bytes, MAGIC) == BITMAP_MAGIC
        && get_u32(bytes, REGION) as usize == region
        && get_u64(bytes, CHECKPOINT) <= newest
        && get_u32(bytes, CHECK) == bitmap_check(bytes);
    if !good {
        return None;
    }
    let mut used = Box::new([0; WORDS]);
    for (i, word) in used.iter_mut().enumerate() {
        *word = get_u64(bytes, BITS + 8 * i);
    }
    (used[0] & SET_ASIDE == SET_ASIDE).then_some(Bitmap(used))
}

/// The fields that `docs/format.md` lists, with their offsets.
#[cfg(test)]
pub(crate) const LAYOUT: &[(&str, usize)] = &[
    ("bitmap magic", MAGIC),
    ("bitmap checkpoint", CHECKPOINT),
    ("bitmap region", REGION),
    ("bitmap checksum", CHECK),
    ("bitmap words", BITS),
];
