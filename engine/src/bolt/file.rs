//! A bbolt file, opened for reading: its meta pages, its buckets, the hash of a snapshot.
//!
//! Promises: nothing is read beyond the file's pages, nothing is written, and nothing that the file says makes this
//! panic, loop, or take more memory than one page and one value. What is wrong is named: file, page and field.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use trilith_disk::{Disk, File, Open};

use super::BoltError;
use super::entries::{Entries, Seen};
use super::format::{
    BUCKET, COUNT_BESIDE, HEADER, Header, META, Meta, NO_FREELIST, PAGE_FREELIST, PAGE_SIZE_MAX,
    PAGE_SIZE_MIN, TRAILER,
};
use crate::page::get_u64;

/// Buckets that a file may have: etcd's has ten.
const BUCKETS_MAX: usize = 64;
/// Bytes that are read at once to be hashed, and of a freelist.
const READ_BYTES: usize = 1 << 20;

/// What the end of a snapshot file says of the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trailer {
    /// The SHA-256 is there and right.
    Right,
    /// There is none: the length of the file says so.
    Missing,
    /// The file is not what was hashed.
    Wrong,
}

/// A bucket of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: Vec<u8>,
    pub(super) at: BucketAt,
}

/// Where a bucket's tree begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BucketAt {
    /// In a page of its own.
    Page(u64),
    /// Inline: a leaf in the value of the bucket's entry, at this byte of the file, of so many bytes, in this page.
    Inline { offset: u64, len: u64, page: u64 },
}

/// An open bbolt file.
#[derive(Debug)]
pub struct BoltFile {
    path: PathBuf,
    file: Arc<dyn File>,
    /// Of the whole file, the hash included.
    len: u64,
    meta: Meta,
}

impl BoltFile {
    /// Opens a file for reading. Any page size; the newer of the meta pages that are whole counts.
    /// Errors: Io; Damaged when no meta page is whole or the file is shorter than it says.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<BoltFile, BoltError> {
        let io = |action| move |source| BoltError::Io { path: path.to_owned(), action, source };
        let file = disk.open(path, Open::ReadOnly).map_err(io("open"))?;
        let len = file.len().map_err(io("read the length"))?;
        let damaged = |field, problem| BoltError::Damaged { path: path.to_owned(), page: 0, field, problem };
        let mut newest: Option<Meta> = None;
        let first = read_meta(file.as_ref(), 0, len).map_err(io("read a meta page"))?;
        let places =
            first.map_or_else(|| (9..=16).map(|shift| 1 << shift).collect(), |meta| vec![meta.page_size]);
        // Where the first is damaged, the second tells the page size by where it stands.
        let mut found = vec![first];
        for place in places {
            let meta = read_meta(file.as_ref(), place, len).map_err(io("read a meta page"))?;
            found.push(meta.filter(|meta| meta.page_size == place));
        }
        for meta in found.into_iter().flatten() {
            newest = Some(newest.filter(|newest| newest.txid >= meta.txid).unwrap_or(meta));
        }
        let meta = newest.ok_or_else(|| {
            damaged(
                "meta",
                format!("neither meta page is whole in {len} bytes: not a bbolt file, or truncated"),
            )
        })?;
        if !(PAGE_SIZE_MIN..=PAGE_SIZE_MAX).contains(&meta.page_size) || !meta.page_size.is_power_of_two() {
            return Err(damaged("page size", format!("{} is none", meta.page_size)));
        }
        let file = BoltFile { path: path.to_owned(), file, len, meta };
        let pages = file.content_len() / meta.page_size;
        if meta.high_water > pages {
            let problem = format!(
                "{} pages of {} bytes, but the file has {len} bytes: truncated",
                meta.high_water, meta.page_size
            );
            return Err(file.damaged(pages, "high-water mark", problem));
        }
        for (field, page) in [("root", Some(meta.root)), ("freelist", file.freelist())] {
            if page.is_some_and(|page| page < 2 || page >= meta.high_water) {
                return Err(damaged(field, format!("page {page:?} is not among {} pages", meta.high_water)));
            }
        }
        Ok(file)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u64 {
        self.meta.page_size
    }

    /// Bytes of the database: its pages up to the high-water mark, without the hash.
    pub fn size(&self) -> u64 {
        self.meta.high_water * self.meta.page_size
    }

    pub(super) fn pages(&self) -> u64 {
        self.meta.high_water
    }

    pub(super) fn damaged(&self, page: u64, field: &'static str, problem: String) -> BoltError {
        BoltError::Damaged { path: self.path.clone(), page, field, problem }
    }

    fn freelist(&self) -> Option<u64> {
        Some(self.meta.freelist).filter(|page| *page != NO_FREELIST)
    }

    /// Whether the file's length says that a hash stands at its end.
    pub fn has_hash(&self) -> bool {
        self.len % PAGE_SIZE_MIN == TRAILER
    }

    /// The file without the hash.
    fn content_len(&self) -> u64 {
        if self.has_hash() { self.len - TRAILER } else { self.len }
    }

    /// The length of what [`BoltFile::pages`] and places in them may reach is checked by the callers.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), BoltError> {
        self.file.read_exact_at(buf, offset).map_err(|source| BoltError::Io {
            path: self.path.clone(),
            action: "read",
            source,
        })
    }

    /// Reads the whole file and compares its hash. `progress` hears how many bytes have been read. Errors: Io.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Trailer, BoltError> {
        if !self.has_hash() {
            return Ok(Trailer::Missing);
        }
        let end = self.content_len();
        let mut hash = Sha256::new();
        let mut buf = vec![0; READ_BYTES];
        let mut at = 0;
        while at < end {
            let chunk = &mut buf[..(end - at).min(READ_BYTES as u64) as usize];
            self.read(chunk, at)?;
            hash.update(&*chunk);
            at += chunk.len() as u64;
            progress(at);
        }
        let mut stored = [0; TRAILER as usize];
        self.read(&mut stored, end)?;
        Ok(if hash.finalize()[..] == stored { Trailer::Right } else { Trailer::Wrong })
    }

    /// As [`BoltFile::verify`], but anything other than a right hash is an error, and a wrong one says which page
    /// is visibly broken, if one is. Errors: HashMissing, HashMismatch, Io.
    pub fn require_hash(&self, progress: &mut dyn FnMut(u64)) -> Result<(), BoltError> {
        match self.verify(progress)? {
            Trailer::Right => Ok(()),
            Trailer::Missing => Err(BoltError::HashMissing { path: self.path.clone(), len: self.len }),
            Trailer::Wrong => {
                let place = match self.check() {
                    Ok(()) => "no page is malformed, so keys or values have changed".to_owned(),
                    Err(broken) => broken.to_string(),
                };
                Err(BoltError::HashMismatch { path: self.path.clone(), place })
            }
        }
    }

    /// The buckets, in the order of their names. Errors: Io, Damaged.
    pub fn buckets(&self) -> Result<Vec<Bucket>, BoltError> {
        self.read_buckets(&mut Seen::new(self))
    }

    fn read_buckets(&self, seen: &mut Seen) -> Result<Vec<Bucket>, BoltError> {
        let mut buckets = Vec::new();
        let mut entries = Entries::new(self, BucketAt::Page(self.meta.root), true, std::mem::take(seen))?;
        while let Some(entry) = entries.next()? {
            let page = entry.page;
            let len = entry.value.len();
            if len < BUCKET {
                let problem = format!("{len} bytes, and a bucket's header has {BUCKET}");
                return Err(self.damaged(page, "bucket header", problem));
            }
            let at = match get_u64(entry.value, 0) {
                0 => BucketAt::Inline {
                    offset: entry.offset + BUCKET as u64,
                    len: (len - BUCKET) as u64,
                    page,
                },
                root => BucketAt::Page(root),
            };
            if buckets.len() == BUCKETS_MAX {
                return Err(self.damaged(page, "buckets", format!("more than {BUCKETS_MAX}")));
            }
            buckets.push(Bucket { name: entry.key.to_vec(), at });
        }
        *seen = entries.into_seen();
        Ok(buckets)
    }

    /// The bucket of that name.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>, BoltError> {
        Ok(self.buckets()?.into_iter().find(|bucket| bucket.name == name))
    }

    /// The entries of a bucket of this file, in the order of their keys. Errors: Io, Damaged.
    pub fn entries(&self, bucket: &Bucket) -> Result<Entries<'_>, BoltError> {
        Entries::new(self, bucket.at, false, Seen::new(self))
    }

    /// Walks everything: the structure is whole, no page is used twice, and with a freelist none is lost.
    /// Errors: the first thing that is wrong, as Damaged; Io.
    pub fn check(&self) -> Result<(), BoltError> {
        let mut seen = Seen::new(self);
        for bucket in self.read_buckets(&mut seen)? {
            let mut entries = Entries::new(self, bucket.at, false, seen)?;
            while entries.next()?.is_some() {}
            seen = entries.into_seen();
        }
        let Some(freelist) = self.freelist() else { return Ok(()) };
        self.check_freelist(freelist, &mut seen)?;
        match (2..self.pages()).find(|page| !seen.contains(*page)) {
            None => Ok(()),
            Some(lost) => Err(self.damaged(lost, "page", "neither used nor free".to_owned())),
        }
    }

    fn check_freelist(&self, page: u64, seen: &mut Seen) -> Result<(), BoltError> {
        let mut bytes = [0; HEADER + 8];
        self.read(&mut bytes, page * self.page_size())?;
        let header = Header::decode(&bytes);
        if header.id != page || header.flags != PAGE_FREELIST {
            let problem = format!("flags {:#x} of page {}, and it is the freelist", header.flags, header.id);
            return Err(self.damaged(page, "page header", problem));
        }
        seen.add(self, page, header.overflow)?;
        let room = (u64::from(header.overflow) + 1) * self.page_size();
        let (count, begin) = match header.count {
            COUNT_BESIDE => (get_u64(&bytes, HEADER), HEADER as u64 + 8),
            count => (count as u64, HEADER as u64),
        };
        if count > (room - begin) / 8 {
            return Err(self.damaged(page, "count", format!("{count} ids in {room} bytes")));
        }
        let mut last = 1;
        let mut buf = vec![0; READ_BYTES.min(count as usize * 8)];
        for first in (0..count).step_by(READ_BYTES / 8) {
            let ids = &mut buf[..((count - first) as usize * 8).min(READ_BYTES)];
            self.read(ids, page * self.page_size() + begin + first * 8)?;
            for at in (0..ids.len()).step_by(8) {
                let id = get_u64(ids, at);
                if id <= last {
                    return Err(self.damaged(page, "free page", format!("{id} after {last}")));
                }
                seen.add(self, id, 0)?;
                last = id;
            }
        }
        Ok(())
    }
}

/// The meta page that begins there, if one does.
fn read_meta(file: &dyn File, offset: u64, len: u64) -> std::io::Result<Option<Meta>> {
    if offset.checked_add(META as u64).is_none_or(|end| end > len) {
        return Ok(None);
    }
    let mut bytes = [0; META];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(Meta::decode(&bytes))
}
