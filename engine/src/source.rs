//! Where clean pages come from: the store's file, by a memory map or by reads and a bounded cache.
//!
//! Promises: no byte of a page or an extent is handed out before it has been checked against the checksum that its
//! referrer holds; a mismatch names file, page and field. It never writes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use trilith_disk::File;

use crate::cache::Cache;
use crate::node::Node;
use crate::page::{Link, Long, PAGE, PageView};
use crate::{StoreError, Value};

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

/// The file, as readers see it.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    file: Arc<dyn File>,
    cache: Cache,
    /// The first error of a checkpoint: no change is taken after it.
    stopped: OnceLock<String>,
}

impl Source {
    pub(crate) fn new(path: PathBuf, file: Arc<dyn File>) -> Source {
        Source { path, file, cache: Cache::new(), stopped: OnceLock::new() }
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

    /// A page, checked against its link, and that it is of this tree and level.
    pub(crate) fn page<'a>(
        &'a self,
        link: &Link,
        tree: u8,
        level: Option<u8>,
    ) -> Result<NodeRef<'a>, StoreError> {
        let bytes = match self.cache.get(link.page) {
            Some(bytes) => bytes,
            None => {
                let bytes = self.read(link.page, PAGE)?;
                self.verify_page(link, &bytes)?;
                self.cache.put(link.page, bytes.clone());
                bytes
            }
        };
        let node = NodeRef::Cached(bytes);
        self.verify_kind(link.page, node.page(), tree, level)?;
        Ok(node)
    }

    /// The bytes of a long key or value.
    pub(crate) fn long<'a>(&'a self, long: &Long) -> Result<Value<'a>, StoreError> {
        let bytes = match self.cache.get(long.page) {
            Some(bytes) => bytes,
            None => {
                let bytes = self.read(long.page, long.len as usize)?;
                self.verify_long(long, &bytes)?;
                self.cache.put(long.page, bytes.clone());
                bytes
            }
        };
        let len = bytes.len();
        Ok(Value::Shared(bytes, 0..len))
    }

    fn read(&self, page: u64, len: usize) -> Result<Arc<[u8]>, StoreError> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, page * PAGE as u64).map_err(self.io("read a page"))?;
        Ok(bytes.into())
    }

    fn verify_page(&self, link: &Link, bytes: &[u8]) -> Result<(), StoreError> {
        let found = crc32c::crc32c(bytes);
        if found != link.check {
            return Err(self.corrupt(link.page, "checksum", u64::from(link.check), u64::from(found)));
        }
        let page = PageView(bytes);
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

    fn verify_long(&self, long: &Long, bytes: &[u8]) -> Result<(), StoreError> {
        let found = crc32c::crc32c(bytes);
        if found != long.check {
            return Err(self.corrupt(long.page, "extent checksum", u64::from(long.check), u64::from(found)));
        }
        Ok(())
    }
}
