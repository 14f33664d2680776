//! A root as a snapshot file, chunk by chunk: etcd's buckets in bbolt's layout, and the SHA-256 of it all.
//!
//! The entries are gone through twice. The first time only lengths are looked at, which says how many pages there
//! will be and where the root bucket stands, since both are written in the first page. The second time the pages come
//! out in the order of their numbers.
//!
//! Promises: memory is a chunk and one page per level, whatever the root holds; nothing is written to disk; nobody
//! waits for it, since a root never changes. What comes out is read by every bbolt and by every etcd from 3.4 on.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use trilith_disk::{Disk, Open};

use super::BoltError;
use super::build::{Builder, Built};
use super::format::{BOLT_KEY_MAX, ELEMENT_BUCKET, HEADER, Header, META, Meta, PAGE_FREELIST};
use super::{CONSISTENT_INDEX, TERM};
use crate::{BUCKETS, Root, StoreError, TreeId};

/// Bytes of a chunk: etcd's.
pub const CHUNK_BYTES: usize = 32 << 10;

const PAGE_SIZE: usize = 4096;
/// Two meta pages, and an empty freelist, which saves the one who opens the file for writing a scan.
const FREELIST: u64 = 2;
const FIRST: u64 = 3;
/// The newer of the meta pages stands first; the next transaction then writes over the other.
const TXID: u64 = 2;

/// Where the walk over the buckets stands.
#[derive(Debug, Default)]
struct Walk {
    bucket: usize,
    /// The next entry's key is this one or above.
    next: Vec<u8>,
    /// Entries of `Walk::beside` that have been added.
    beside: usize,
    /// Values of the entries of the buckets that are complete.
    done: Vec<Vec<u8>>,
    /// The root bucket's page, at the end.
    root: Option<u64>,
}

/// A root on its way out as a snapshot file.
#[derive(Debug)]
pub struct Export {
    root: Root,
    builder: Builder,
    walk: Walk,
    /// What the first time found: the root bucket's page, and the number of pages.
    measured: (u64, u64),
    hash: Sha256,
    sent: u64,
    ended: bool,
}

impl Export {
    /// Measures the root: reads its trees, but not its long values. Errors: Io, Corrupt, Inconsistent.
    pub fn new(root: Root) -> Result<Export, StoreError> {
        Export::with_page_size(root, PAGE_SIZE)
    }

    pub(super) fn with_page_size(root: Root, page_size: usize) -> Result<Export, StoreError> {
        let mut builder = Builder::new(page_size, FIRST, true);
        let mut walk = Walk::default();
        let page = loop {
            if let Some(page) = walk.advance(&root, &mut builder, true)? {
                break page;
            }
        };
        let measured = (page, builder.high_water());
        let mut builder = Builder::new(page_size, FIRST, false);
        builder.out = head(page_size, measured);
        let (walk, hash) = (Walk::default(), Sha256::new());
        Ok(Export { root, builder, walk, measured, hash, sent: 0, ended: false })
    }

    /// Bytes of the database, without the hash at the end.
    pub fn total_bytes(&self) -> u64 {
        self.measured.1 * self.page_size() as u64
    }

    fn page_size(&self) -> usize {
        self.builder.page_size()
    }

    /// The next [`CHUNK_BYTES`] of the database, or what is left of it; then the hash, 32 bytes; then None.
    /// Errors: Io, Corrupt, Inconsistent; the export is over then.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.ended {
            return Ok(None);
        }
        while self.builder.out.len() < CHUNK_BYTES && self.walk.root.is_none() {
            if let Err(error) = self.walk.advance(&self.root, &mut self.builder, false) {
                self.ended = true;
                return Err(error);
            }
        }
        if self.builder.out.is_empty() {
            self.ended = true;
            let found = (self.walk.root.unwrap_or(0), self.builder.high_water());
            if found != self.measured || self.sent != self.total_bytes() {
                let text = format!("export: {:?} measured, {found:?} written", self.measured);
                return Err(StoreError::Inconsistent(text));
            }
            return Ok(Some(Bytes::copy_from_slice(&self.hash.finalize_reset())));
        }
        let len = self.builder.out.len().min(CHUNK_BYTES);
        let chunk = self.builder.out.split_to(len).freeze();
        self.hash.update(&chunk);
        self.sent += chunk.len() as u64;
        Ok(Some(chunk))
    }

    /// Writes everything that is left into a file, which is there as a whole or not at all. `progress` hears how many
    /// bytes have been written. Errors: Io, Store.
    pub fn save(
        mut self,
        disk: &dyn Disk,
        path: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), BoltError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        let io = |action| {
            let path = part.clone();
            move |source| BoltError::Io { path, action, source }
        };
        let file = disk.open(&part, Open::OpenOrCreate).map_err(io("open"))?;
        file.set_len(0).map_err(io("cut"))?;
        let mut at = 0;
        while let Some(chunk) = self.next_chunk()? {
            file.write_all_at(&chunk, at).map_err(io("write"))?;
            at += chunk.len() as u64;
            progress(at);
        }
        file.sync_data().map_err(io("sync"))?;
        disk.rename(&part, path).map_err(io("rename"))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        disk.sync_dir(dir).map_err(io("sync the folder"))
    }
}

/// The meta pages and the freelist.
fn head(page_size: usize, (root, high_water): (u64, u64)) -> BytesMut {
    let mut out = BytesMut::new();
    for (id, txid) in [(0, TXID), (1, TXID - 1)] {
        let meta = Meta { page_size: page_size as u64, root, freelist: FREELIST, high_water, txid };
        out.extend_from_slice(&meta.encode(id));
        out.resize(out.len() + page_size - META, 0);
    }
    let mut header = Vec::with_capacity(HEADER);
    Header { id: FREELIST, flags: PAGE_FREELIST, count: 0, overflow: 0 }.encode(&mut header);
    out.extend_from_slice(&header);
    out.resize(out.len() + page_size - HEADER, 0);
    out
}

/// What etcd keeps in bucket `meta` and we keep in the root: the entry that was applied last. Zero is never stored.
fn beside(root: &Root, tree: TreeId) -> Vec<(&'static [u8], [u8; 8])> {
    let (index, term) = root.applied();
    let all = [(CONSISTENT_INDEX, index), (TERM, term)];
    let there = all.into_iter().filter(|(_, number)| tree == TreeId::Meta && *number != 0);
    there.map(|(key, number)| (key, number.to_be_bytes())).collect()
}

impl Walk {
    /// Adds entries until a chunk of pages is complete or a bucket ends. At the end of all: the root bucket's page.
    fn advance(
        &mut self,
        root: &Root,
        builder: &mut Builder,
        measuring: bool,
    ) -> Result<Option<u64>, StoreError> {
        let Some((_, tree)) = BUCKETS.get(self.bucket) else {
            for ((name, _), value) in BUCKETS.iter().zip(&self.done) {
                builder.add(ELEMENT_BUCKET, name.as_bytes(), value.len(), value);
            }
            if let Built::Page(page) = builder.finish(false) {
                self.root = Some(page);
            }
            return Ok(self.root);
        };
        let beside = beside(root, *tree);
        let view = root.view();
        let mut cursor = view.seek(*tree, &self.next)?;
        while builder.out.len() < CHUNK_BYTES {
            let next = cursor.key();
            if let Some((key, value)) = beside.get(self.beside)
                && next.is_none_or(|next| next >= *key)
            {
                builder.add(0, key, value.len(), value);
                self.beside += 1;
                continue;
            }
            let Some(key) = next else {
                self.done.push(builder.finish(true).into_value());
                self.bucket += 1;
                self.beside = 0;
                self.next.clear();
                return Ok(None);
            };
            if key.is_empty() || key.len() > BOLT_KEY_MAX {
                let text = format!("tree {tree:?}: a key of {} bytes does not fit a bbolt file", key.len());
                return Err(StoreError::Inconsistent(text));
            }
            if *tree == TreeId::Meta && [CONSISTENT_INDEX, TERM].contains(&key) {
                // The root's own numbers stand in for these.
            } else if measuring {
                builder.add(0, key, cursor.value_len().unwrap_or(0), &[]);
            } else {
                let value = cursor.value()?;
                let value = value.as_deref().unwrap_or_default();
                builder.add(0, key, value.len(), value);
            }
            cursor.next()?;
        }
        match cursor.key() {
            Some(key) => {
                self.next.clear();
                self.next.extend_from_slice(key);
            }
            // Past every key that a bbolt file can hold.
            None => self.next = vec![0xff; BOLT_KEY_MAX + 1],
        }
        Ok(None)
    }
}
