//! The entries of one tree of a bbolt file, in order.
//!
//! Promises: every offset is checked before it is followed. The walk ends: no page is entered twice, a leaf below a
//! branch is never empty, keys only ascend, and a tree is 16 levels high at most. A page's first bytes and elements
//! are held for each level, and one value.

use super::BoltError;
use super::file::{BoltFile, BucketAt};
use super::format::{
    BOLT_KEY_MAX, COUNT_BESIDE, ELEMENT, ELEMENT_BUCKET, HEADER, Header, PAGE_BRANCH, PAGE_LEAF,
};
use crate::VALUE_MAX;
use crate::page::{get_u32, get_u64};

/// Levels of a tree.
const HEIGHT_MAX: usize = 16;

/// Which pages have been met: a bit for each.
#[derive(Debug, Default)]
pub(super) struct Seen(Vec<u64>);

impl Seen {
    pub(super) fn new(file: &BoltFile) -> Seen {
        Seen(vec![0; file.pages().div_ceil(64) as usize])
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        self.0[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    /// Notes a page and those that it goes on in. Errors: one is no page of the file, or was met before.
    pub(super) fn add(&mut self, file: &BoltFile, page: u64, overflow: u32) -> Result<(), BoltError> {
        let last = page.checked_add(u64::from(overflow)).filter(|last| *last < file.pages());
        let Some(last) = last.filter(|_| page >= 2) else {
            let problem = format!("{overflow} pages behind it, and the file has {} pages", file.pages());
            return Err(file.damaged(page, "place in the file", problem));
        };
        for page in page..=last {
            if self.contains(page) {
                return Err(file.damaged(page, "page", "used twice".to_owned()));
            }
            self.0[(page / 64) as usize] |= 1 << (page % 64);
        }
        Ok(())
    }
}

/// A page with the pages that it goes on in, or an inline leaf.
#[derive(Debug)]
struct Page {
    /// For errors: the page, or the one that an inline leaf lies in.
    id: u64,
    /// Where it begins in the file, and its bytes.
    offset: u64,
    room: usize,
    leaf: bool,
    count: usize,
    /// Its first bytes: the elements at least.
    bytes: Vec<u8>,
}

/// An element, checked: where its key and value stand in the page.
#[derive(Debug, Clone, Copy)]
struct Element {
    flags: u32,
    child: u64,
    key: usize,
    key_len: usize,
    value_len: usize,
}

impl Page {
    fn open(file: &BoltFile, id: u64, seen: &mut Seen) -> Result<Page, BoltError> {
        seen.add(file, id, 0)?;
        let size = file.page_size() as usize;
        let offset = id * file.page_size();
        let mut bytes = vec![0; size];
        file.read(&mut bytes, offset)?;
        let header = Header::decode(&bytes);
        if header.id != id {
            return Err(file.damaged(id, "page number", format!("{}", header.id)));
        }
        if header.overflow > 0 {
            seen.add(file, id + 1, header.overflow - 1)?;
        }
        let room = size * (header.overflow as usize + 1);
        Page::new(file, id, (offset, room), header, bytes)
    }

    fn inline(file: &BoltFile, id: u64, offset: u64, len: u64) -> Result<Page, BoltError> {
        let room = len as usize;
        if room < HEADER {
            return Err(file.damaged(id, "inline bucket", format!("{room} bytes")));
        }
        let mut bytes = vec![0; room.min(file.page_size() as usize)];
        file.read(&mut bytes, offset)?;
        let header = Header::decode(&bytes);
        if header.flags != PAGE_LEAF || header.overflow != 0 {
            let problem = format!("flags {:#x}, overflow {}", header.flags, header.overflow);
            return Err(file.damaged(id, "inline bucket", problem));
        }
        Page::new(file, id, (offset, room), header, bytes)
    }

    fn new(
        file: &BoltFile,
        id: u64,
        (offset, room): (u64, usize),
        header: Header,
        mut bytes: Vec<u8>,
    ) -> Result<Page, BoltError> {
        if ![PAGE_LEAF, PAGE_BRANCH].contains(&header.flags) {
            let problem = format!("{:#x}: neither a leaf nor a branch", header.flags);
            return Err(file.damaged(id, "flags", problem));
        }
        let elements = HEADER + ELEMENT * header.count;
        if header.count == COUNT_BESIDE || elements > room {
            return Err(file.damaged(id, "count", format!("{} elements in {room} bytes", header.count)));
        }
        if elements > bytes.len() {
            bytes.resize(elements, 0);
            file.read(&mut bytes, offset)?;
        }
        Ok(Page { id, offset, room, leaf: header.flags == PAGE_LEAF, count: header.count, bytes })
    }

    fn element(&self, file: &BoltFile, i: usize) -> Result<Element, BoltError> {
        let at = HEADER + ELEMENT * i;
        let number = |offset: usize| get_u32(&self.bytes, at + offset);
        let (flags, pos, key_len, value_len, child) = match self.leaf {
            true => (number(0), number(4), number(8) as usize, number(12) as usize, 0),
            false => (0, number(0), number(4) as usize, 0, get_u64(&self.bytes, at + 8)),
        };
        let damaged = |field, problem| Err(file.damaged(self.id, field, format!("element {i}: {problem}")));
        if key_len == 0 || key_len > BOLT_KEY_MAX {
            return damaged("key length", format!("{key_len}, and 1 to {BOLT_KEY_MAX} are possible"));
        }
        if value_len > VALUE_MAX {
            return damaged("value length", format!("{value_len}, and {VALUE_MAX} is the most"));
        }
        let key = at + pos as usize;
        if key < HEADER + ELEMENT * self.count || key + key_len + value_len > self.room {
            return damaged("position", format!("{key_len} + {value_len} bytes at {key} of {}", self.room));
        }
        Ok(Element { flags, child, key, key_len, value_len })
    }

    /// Bytes of the page, into `buf` if they are not at hand.
    fn slice<'b>(
        &'b self,
        file: &BoltFile,
        at: usize,
        len: usize,
        buf: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], BoltError> {
        if let Some(bytes) = self.bytes.get(at..at + len) {
            return Ok(bytes);
        }
        buf.resize(len, 0);
        file.read(buf, self.offset + at as u64)?;
        Ok(buf)
    }
}

/// An entry.
#[derive(Debug)]
pub struct Entry<'e> {
    /// Its key: 1 to 32,768 bytes.
    pub key: &'e [u8],
    /// Its value: 64 MiB at most.
    pub value: &'e [u8],
    /// The page that it stands in.
    pub(super) page: u64,
    /// Where the value begins in the file.
    pub(super) offset: u64,
}

/// Goes through the entries of a bucket. After an error it is over.
#[derive(Debug)]
pub struct Entries<'f> {
    file: &'f BoltFile,
    /// From the root to the leaf, each with the element that is next.
    path: Vec<(Page, usize)>,
    seen: Seen,
    /// Whether the entries are buckets.
    of_buckets: bool,
    /// The last key, and the key of the branch element that was followed last: the next key is not below it.
    last: Vec<u8>,
    low: Vec<u8>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<'f> Entries<'f> {
    pub(super) fn new(
        file: &'f BoltFile,
        at: BucketAt,
        of_buckets: bool,
        mut seen: Seen,
    ) -> Result<Entries<'f>, BoltError> {
        let page = match at {
            BucketAt::Page(id) => Page::open(file, id, &mut seen)?,
            BucketAt::Inline { offset, len, page } => Page::inline(file, page, offset, len)?,
        };
        let (last, low, key, value) = Default::default();
        Ok(Entries { file, path: vec![(page, 0)], seen, of_buckets, last, low, key, value })
    }

    pub(super) fn into_seen(self) -> Seen {
        self.seen
    }

    /// The next entry. Errors: Io, Damaged.
    #[allow(clippy::should_implement_trait)] // It lends: an iterator cannot.
    pub fn next(&mut self) -> Result<Option<Entry<'_>>, BoltError> {
        let taken = match self.descend() {
            Ok(()) => self.take(),
            Err(error) => Err(error),
        };
        let element = match taken {
            Ok(Some(element)) => element,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.path.clear();
                return Err(error);
            }
        };
        let Some((page, _)) = self.path.last() else { return Ok(None) };
        let at = element.key + element.key_len;
        let value = page.slice(self.file, at, element.value_len, &mut self.value)?;
        Ok(Some(Entry { key: &self.last, value, page: page.id, offset: page.offset + at as u64 }))
    }

    /// Checks the leaf's next element; its key becomes the last.
    fn take(&mut self) -> Result<Option<Element>, BoltError> {
        let file = self.file;
        let Some((page, next)) = self.path.last_mut() else { return Ok(None) };
        let i = *next;
        *next += 1;
        let element = page.element(file, i)?;
        if element.flags != if self.of_buckets { ELEMENT_BUCKET } else { 0 } {
            let what = if self.of_buckets { "a bucket" } else { "an entry" };
            let problem = format!("element {i}: {:#x} is not {what}'s", element.flags);
            return Err(file.damaged(page.id, "element flags", problem));
        }
        let key = page.slice(file, element.key, element.key_len, &mut self.key)?;
        if !self.last.is_empty() && key <= self.last.as_slice() || key < self.low.as_slice() {
            let problem = format!("element {i}: not above the keys before it");
            return Err(file.damaged(page.id, "key", problem));
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        Ok(Some(element))
    }

    /// To the leaf with the next element; the path is empty if there is none.
    fn descend(&mut self) -> Result<(), BoltError> {
        while let Some((page, next)) = self.path.last_mut() {
            if *next == page.count {
                self.path.pop();
                continue;
            }
            if page.leaf {
                return Ok(());
            }
            let element = page.element(self.file, *next)?;
            *next += 1;
            let key = page.slice(self.file, element.key, element.key_len, &mut self.key)?;
            if !self.last.is_empty() && key <= self.last.as_slice() || key < self.low.as_slice() {
                let problem = format!("element {}: not above the keys before it", *next - 1);
                return Err(self.file.damaged(page.id, "key", problem));
            }
            self.low.clear();
            self.low.extend_from_slice(key);
            if self.path.len() == HEIGHT_MAX {
                let problem = format!("more than {HEIGHT_MAX} levels");
                return Err(self.file.damaged(element.child, "level", problem));
            }
            let child = Page::open(self.file, element.child, &mut self.seen)?;
            if child.count == 0 {
                return Err(self.file.damaged(child.id, "count", "0 below a branch".to_owned()));
            }
            self.path.push((child, 0));
        }
        Ok(())
    }
}
