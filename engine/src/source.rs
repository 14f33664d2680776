//! Where clean pages come from: the store's file, by a memory map or by reads and a bounded cache.
//!
//! Promises: no byte of a page or an extent is handed out before it has been checked against the checksum that its
//! referrer holds; a mismatch names file, page and field. It never writes where a root or a checkpoint may look:
//! what is written is the checkpoint's business.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use trilith_disk::File;

use crate::cache::Cache;
use crate::damage::Damages;
use crate::extent::Long;
use crate::map::Map;
use crate::memory::Memory;
use crate::node::Node;
use crate::page::{Link, ORDER, PAGE, PageView};
use crate::{Options, StoreError, TreeId, Value};

/// The file grows by a sixteenth, but at least by 256 KiB and at most by 64 MiB.
const GROW_PAGES_MIN: u64 = 64;
const GROW_PAGES_MAX: u64 = 16_384;

/// By how much a file of so many pages grows.
fn growth(pages: u64) -> u64 {
    (pages / 16).clamp(GROW_PAGES_MIN, GROW_PAGES_MAX)
}

/// A page to read, wherever it is.
#[derive(Debug, Clone)]
pub(crate) enum NodeRef<'a> {
    /// In memory, not written yet.
    Dirty(&'a Node),
    /// In the memory map.
    Mapped(&'a [u8]),
    /// In the cache, kept by this reference.
    Cached(Arc<[u8]>),
}

impl<'a> NodeRef<'a> {
    #[inline]
    pub(crate) fn page(&self) -> PageView<'_> {
        match self {
            NodeRef::Dirty(node) => node.page(),
            NodeRef::Mapped(bytes) => PageView(bytes),
            NodeRef::Cached(bytes) => PageView(bytes),
        }
    }

    /// Bytes of the page.
    pub(crate) fn slice(&self, range: std::ops::Range<usize>) -> Value<'a> {
        match self {
            NodeRef::Dirty(node) => Value::Page(&node.page().0[range]),
            NodeRef::Mapped(bytes) => Value::Page(&bytes[range]),
            NodeRef::Cached(bytes) => Value::Shared(bytes.clone(), range),
        }
    }
}

/// How clean pages are read.
#[derive(Debug)]
enum Pages {
    Map(Map),
    Cache(Cache),
}

/// The file: readers get verified pages from it, the checkpoint writes to it.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    file: Arc<dyn File>,
    /// The file's length. Only the checkpoint changes it.
    file_pages: AtomicU64,
    pages: Pages,
    /// The first error of a checkpoint: no change is taken after it.
    stopped: OnceLock<String>,
    memory: Memory,
    damages: Damages,
    /// How often a page was asked for.
    #[cfg(test)]
    pub(crate) pages_read: AtomicU64,
    /// How often each of the short ways of a put was taken: appended, inserted behind another entry.
    #[cfg(test)]
    pub(crate) short_puts: [AtomicU64; 2],
}

impl Source {
    /// By a memory map if that is wanted and the file has a descriptor. Errors: Io.
    pub(crate) fn new(options: &Options, file: Arc<dyn File>) -> Result<Source, StoreError> {
        let pages = match options.map && file.fd().is_some() {
            true => Pages::Map(Map::new()),
            false => Pages::Cache(Cache::new(options.dirty_bytes_max)),
        };
        let source = Source {
            path: options.path.clone(),
            file,
            file_pages: AtomicU64::new(0),
            pages,
            stopped: OnceLock::new(),
            memory: Memory::default(),
            damages: Damages::default(),
            #[cfg(test)]
            pages_read: AtomicU64::new(0),
            #[cfg(test)]
            short_puts: Default::default(),
        };
        let bytes = source.file.len().map_err(source.io("read the length"))?;
        source.set_file_pages(bytes / PAGE as u64)?;
        Ok(source)
    }

    fn set_file_pages(&self, pages: u64) -> Result<(), StoreError> {
        if let (Pages::Map(map), Some(fd)) = (&self.pages, self.file.fd()) {
            map.resize(fd, pages).map_err(self.io("map"))?;
        }
        self.file_pages.store(pages, Ordering::Release);
        Ok(())
    }

    /// What nodes and blobs take.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    #[cfg(test)]
    pub(crate) fn cached_bytes(&self) -> usize {
        if let Pages::Cache(cache) = &self.pages { cache.bytes() } else { 0 }
    }

    /// What was found damaged.
    pub(crate) fn damages(&self) -> &Damages {
        &self.damages
    }

    /// Length of the file.
    pub(crate) fn file_pages(&self) -> u64 {
        self.file_pages.load(Ordering::Acquire)
    }

    /// Makes ready to write pages that nobody refers to: the file reaches that far and has its space, and what was
    /// known of their old content is forgotten. Errors: Io, which may be a lack of space.
    pub(crate) fn prepare(&self, first: u64, pages: u64) -> Result<(), StoreError> {
        let (now, end) = (self.file_pages(), first + pages);
        if end > now {
            let grown = end.max(now + growth(now)).next_multiple_of(GROW_PAGES_MIN);
            match self.grow(now, grown) {
                Err(error) if error.is_no_space() && end < grown => self.grow(now, end)?,
                result => result?,
            }
        }
        for page in first..end {
            match &self.pages {
                Pages::Map(map) => map.forget(page),
                Pages::Cache(cache) => cache.forget(page),
            }
        }
        Ok(())
    }

    /// Takes the space at once, so that a full disk shows here, where nothing depends on it yet, and not in a sync.
    fn grow(&self, from: u64, to: u64) -> Result<(), StoreError> {
        let bytes = |pages| pages * PAGE as u64;
        if let Err(error) = self.file.allocate(bytes(from), bytes(to - from)) {
            // A part of it may have been taken; whoever else needs it may have it.
            let _ = self.file.set_len(bytes(from));
            return Err(self.io("grow")(error));
        }
        self.set_file_pages(to)
    }

    /// Cuts the file behind its first `pages` pages, if more than a step of its growth lies behind them. Only where
    /// neither of the two checkpoints nor any root refers to a page there: a reader of the map would die of it.
    /// A cut that fails leaves a file that is too long, which harms nobody.
    pub(crate) fn cut(&self, pages: u64) {
        let (now, end) = (self.file_pages(), pages.next_multiple_of(GROW_PAGES_MIN));
        if now <= end + growth(end) {
            return;
        }
        // The bounds go down first: whoever follows a reference that leads astray gets an error.
        let cut = self
            .set_file_pages(end)
            .and_then(|()| self.file.set_len(end * PAGE as u64).map_err(self.io("cut")));
        if let Err(error) = cut {
            log::warn!("the file stays as long as it is: {error}");
            // Maps no new chunk, so it cannot fail.
            let _ = self.set_file_pages(now);
        }
    }

    /// Writes from the beginning of a page on. Errors: Io.
    pub(crate) fn write(&self, bytes: &[u8], page: u64) -> Result<(), StoreError> {
        self.file.write_all_at(bytes, page * PAGE as u64).map_err(self.io("write"))
    }

    /// These pages hold what has just been written: as good as verified, until they are written anew.
    pub(crate) fn note_written(&self, first: u64, pages: u64) {
        if let Pages::Map(map) = &self.pages {
            (first..first + pages).for_each(|page| map.set_verified(page));
        }
    }

    /// Makes the writes durable. Errors: Io.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(self.io("sync"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> StoreError {
        let path = self.path.clone();
        move |source| StoreError::Io { path, action, source }
    }

    pub(crate) fn corrupt(&self, page: u64, field: &'static str, expected: u64, found: u64) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), page, field, expected, found }
    }

    /// Latches the first error.
    pub(crate) fn stop(&self, error: &StoreError) {
        let _ = self.stopped.set(error.to_string());
    }

    /// An error if a checkpoint has failed.
    pub(crate) fn check_running(&self) -> Result<(), StoreError> {
        match self.stopped.get() {
            None => Ok(()),
            Some(reason) => Err(StoreError::Stopped { path: self.path.clone(), reason: reason.clone() }),
        }
    }

    /// A page, checked against its link, and that it is of this tree and level. When it is first read, `fits` is asked
    /// whether it may stand where it stands, too; until that has said yes, the page is read as for the first time.
    #[inline]
    pub(crate) fn page<'a>(
        &'a self,
        link: &Link,
        tree: u8,
        level: Option<u8>,
        fits: impl FnOnce(&NodeRef<'a>) -> Result<bool, StoreError>,
    ) -> Result<NodeRef<'a>, StoreError> {
        #[cfg(test)]
        self.pages_read.fetch_add(1, Ordering::Relaxed);
        let node = match &self.pages {
            Pages::Map(map) => {
                let node = NodeRef::Mapped(self.mapped(map, link.page, PAGE)?);
                if !map.is_verified(link.page) && self.verify_first(link, &node, tree, level, fits)? {
                    map.set_verified(link.page);
                }
                node
            }
            Pages::Cache(cache) => match cache.get(link.page) {
                Some(bytes) => NodeRef::Cached(bytes),
                None => {
                    let bytes = self.read(link.page, PAGE)?;
                    let node = NodeRef::Cached(bytes.clone());
                    if self.verify_first(link, &node, tree, level, fits)? {
                        cache.put(link.page, bytes);
                    }
                    node
                }
            },
        };
        self.verify_kind(link.page, node.page(), tree, level)?;
        Ok(node)
    }

    #[cold]
    fn verify_first<'a>(
        &self,
        link: &Link,
        node: &NodeRef<'a>,
        tree: u8,
        level: Option<u8>,
        fits: impl FnOnce(&NodeRef<'a>) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        self.verify_page(link, node.page().0)?;
        self.verify_kind(link.page, node.page(), tree, level)?;
        fits(node)
    }

    /// The same, read from the file however often it was verified.
    pub(crate) fn page_on_disk<'a>(
        &self,
        link: &Link,
        tree: u8,
        level: Option<u8>,
    ) -> Result<NodeRef<'a>, StoreError> {
        let bytes = self.read(link.page, PAGE)?;
        self.verify_page(link, &bytes)?;
        self.verify_kind(link.page, PageView(&bytes), tree, level)?;
        Ok(NodeRef::Cached(bytes))
    }

    /// Pages turned out not to hold what they should: whoever reads them next verifies them anew. (What a cache holds
    /// is good: it was verified, and is not the file.)
    pub(crate) fn distrust(&self, first: u64, pages: u64) {
        if let Pages::Map(map) = &self.pages {
            (first..first + pages).for_each(|page| map.forget(page));
        }
    }

    fn mapped<'a>(&self, map: &'a Map, page: u64, len: usize) -> Result<&'a [u8], StoreError> {
        map.slice(page, len).ok_or_else(|| self.corrupt(page, "place in the file", self.file_pages(), page))
    }

    /// The bytes of a long key or value, verified each time: the map's bits are for pages, and the operating system
    /// caches what is read.
    pub(crate) fn long<'a>(&'a self, long: &Long) -> Result<Value<'a>, StoreError> {
        let bytes = self.stored(long)?;
        let found = crc32c::crc32c(&bytes);
        if found != long.stored_crc {
            let expected = u64::from(long.stored_crc);
            return Err(self.corrupt(long.extent.page, "extent checksum", expected, u64::from(found)));
        }
        if long.is_compressed() { self.decompress(long, &bytes) } else { Ok(bytes) }
    }

    fn decompress<'a>(&'a self, long: &Long, stored: &[u8]) -> Result<Value<'a>, StoreError> {
        let corrupt = |field, expected, found| {
            Err(self.corrupt(long.extent.page, field, u64::from(expected), u64::from(found)))
        };
        let Some(value) = crate::compress::decompress(stored, long.len as usize) else {
            return corrupt("compressed value", long.len, 0);
        };
        match crc32c::crc32c(&value) {
            found if found != long.crc => corrupt("checksum of a compressed value", long.crc, found),
            _ => Ok(Value::Shared(value, 0..long.len as usize)),
        }
    }

    fn stored<'a>(&'a self, long: &Long) -> Result<Value<'a>, StoreError> {
        let (first, len) = (long.extent.page, long.stored as usize);
        let end = long.at as usize + len;
        if let Pages::Map(map) = &self.pages {
            return Ok(Value::Page(&self.mapped(map, first, end)?[long.at as usize..]));
        }
        self.must_reach(first, end)?;
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
        let buffer = Arc::get_mut(&mut bytes).expect("nobody else has it yet");
        let at = first * PAGE as u64 + u64::from(long.at);
        self.file.read_exact_at(buffer, at).map_err(self.io("read"))?;
        Ok(Value::Shared(bytes, 0..len))
    }

    /// Bytes from the beginning of a page on, not verified. Errors: Io; Corrupt when the file is shorter.
    pub(crate) fn read(&self, page: u64, len: usize) -> Result<Arc<[u8]>, StoreError> {
        self.must_reach(page, len)?;
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, page * PAGE as u64).map_err(self.io("read"))?;
        Ok(bytes.into())
    }

    fn must_reach(&self, page: u64, len: usize) -> Result<(), StoreError> {
        let end = page.saturating_add(len.div_ceil(PAGE) as u64);
        if end > self.file_pages() {
            return Err(self.corrupt(page, "place in the file", self.file_pages(), end));
        }
        Ok(())
    }

    fn verify_page(&self, link: &Link, bytes: &[u8]) -> Result<(), StoreError> {
        let found = crc32c::crc32c(bytes);
        if found != link.check {
            return Err(self.corrupt(link.page, "checksum", u64::from(link.check), u64::from(found)));
        }
        let page = PageView(bytes);
        let is_index = page.tree() == TreeId::Index as u8;
        if page.0[ORDER] != u8::from(is_index) {
            return Err(self.corrupt(link.page, "order", u64::from(is_index), u64::from(page.0[ORDER])));
        }
        page.validate().map_err(|bad| self.corrupt(link.page, bad.field, 0, bad.found))?;
        if page.names_memory() {
            return Err(self.corrupt(link.page, "place of a cell", 0, 1));
        }
        if page.id() != link.page {
            return Err(self.corrupt(link.page, "page number", link.page, page.id()));
        }
        Ok(())
    }

    fn verify_kind(
        &self,
        id: u64,
        page: PageView<'_>,
        tree: u8,
        level: Option<u8>,
    ) -> Result<(), StoreError> {
        if page.tree() != tree {
            return Err(self.corrupt(id, "tree", u64::from(tree), u64::from(page.tree())));
        }
        match level {
            Some(level) if page.level() != level => {
                Err(self.corrupt(id, "level", u64::from(level), u64::from(page.level())))
            }
            _ => Ok(()),
        }
    }
}
