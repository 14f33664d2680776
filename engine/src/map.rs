//! The store's file in memory, read-only. The engine's only file with unsafe code.
//!
//! The file is mapped in chunks of 1 GiB at fixed places: when it grows, chunks are added and none moves, so a
//! reader's slices stay good and nobody waits. Beside each chunk stands one bit per page: its bytes have been
//! verified since it was last written.
//!
//! Promises: no slice that is handed out reaches beyond the end that [`Map::resize`] was told last. It must never be
//! told an end beyond the file's, and the file must never be cut where somebody still has a slice, or may follow a
//! reference to one: touching a page behind the file's end kills the process. So the checkpoint cuts only behind
//! the last page that is in use or held, and pages are held for as long as a root that may refer to them lives; and
//! every slice is borrowed from a root. The end goes down before the file is cut. When the file grows again, the
//! same places of memory show its new pages; their bits are cleared before they are written.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, MmapOptions};

use crate::page::PAGE;
use crate::space::{REGION_PAGES, REGIONS_MAX};

const CHUNK_REGIONS: u64 = 8;
/// An extent lies within a region, so it lies within a chunk.
const CHUNK_PAGES: u64 = CHUNK_REGIONS * REGION_PAGES;
const CHUNKS_MAX: usize = REGIONS_MAX.div_ceil(CHUNK_REGIONS as usize);

#[derive(Debug)]
struct Chunk {
    bytes: Mmap,
    verified: Box<[AtomicU64]>,
}

/// The mapped file.
#[derive(Debug)]
pub(crate) struct Map {
    chunks: Box<[OnceLock<Chunk>]>,
    /// How many pages may be touched.
    pages: AtomicU64,
}

impl Map {
    pub(crate) fn new() -> Map {
        Map { chunks: (0..CHUNKS_MAX).map(|_| OnceLock::new()).collect(), pages: AtomicU64::new(0) }
    }

    /// The file has `pages` pages now, or is about to be cut to so many. Called by one thread at a time.
    pub(crate) fn resize(&self, file: BorrowedFd<'_>, pages: u64) -> io::Result<()> {
        let chunks = pages.div_ceil(CHUNK_PAGES) as usize;
        for (i, chunk) in self.chunks.iter().enumerate().take(chunks) {
            if chunk.get().is_none() {
                let bytes = map_chunk(file, i as u64 * CHUNK_PAGES * PAGE as u64)?;
                let verified = (0..CHUNK_PAGES / 64).map(|_| AtomicU64::new(0)).collect();
                let _ = chunk.set(Chunk { bytes, verified });
            }
        }
        self.pages.store(pages, Ordering::Release);
        Ok(())
    }

    fn chunk(&self, page: u64) -> Option<&Chunk> {
        self.chunks.get((page / CHUNK_PAGES) as usize)?.get()
    }

    /// `len` bytes from the beginning of a page; None if they reach beyond the file or the chunk.
    #[inline]
    pub(crate) fn slice(&self, page: u64, len: usize) -> Option<&[u8]> {
        let end = page.checked_add(len.div_ceil(PAGE) as u64)?;
        if end > self.pages.load(Ordering::Acquire) {
            return None;
        }
        let start = (page % CHUNK_PAGES) as usize * PAGE;
        self.chunk(page)?.bytes.get(start..start + len)
    }

    /// Whether the page has been verified since it was last written.
    #[inline]
    pub(crate) fn is_verified(&self, page: u64) -> bool {
        let bit = page % CHUNK_PAGES;
        self.chunk(page)
            .is_some_and(|c| c.verified[bit as usize / 64].load(Ordering::Acquire) >> (bit % 64) & 1 == 1)
    }

    pub(crate) fn set_verified(&self, page: u64) {
        let bit = page % CHUNK_PAGES;
        if let Some(chunk) = self.chunk(page) {
            chunk.verified[bit as usize / 64].fetch_or(1 << (bit % 64), Ordering::Release);
        }
    }

    /// The page is about to be written anew.
    pub(crate) fn forget(&self, page: u64) {
        let bit = page % CHUNK_PAGES;
        if let Some(chunk) = self.chunk(page) {
            chunk.verified[bit as usize / 64].fetch_and(!(1 << (bit % 64)), Ordering::Release);
        }
    }
}

fn map_chunk(file: BorrowedFd<'_>, offset: u64) -> io::Result<Mmap> {
    // SAFETY: the map is read-only and of a file that this process holds the exclusive lock of. Pages that a root
    // can reach are never written again while that root lives (the generation's pin), so the bytes behind a slice
    // that was handed out do not change. The part beyond the end of the file is never touched: `slice` refuses it.
    unsafe {
        MmapOptions::new()
            .offset(offset)
            .len(CHUNK_PAGES as usize * PAGE)
            .no_reserve_swap()
            .map(file.as_raw_fd())
    }
}
