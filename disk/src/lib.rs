//! The one door to the disk.
//!
//! Whoever writes or reads a file of a member does it through [`Disk`] and [`File`], so that the same code runs on
//! real files ([`RealDisk`]) and on a simulated disk ([`sim::SimDisk`]) that records every operation and can be
//! cut at any of them. The write-ahead log's ring writes real files by their descriptor; everything else of it
//! goes through here as well.
//!
//! Promises: `write_all_at` writes everything or fails; nothing is durable before `sync_data` of the file (and
//! `sync_dir` of its folder, for names) has answered. It never caches and never retries.

mod aligned;
mod real;
pub mod sim;

pub use aligned::{ALIGNMENT, AlignedBuf};
pub use real::RealDisk;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file is opened: for reading and writing, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// The file must be there.
    Existing,
    /// The file must be there, and is only read: a write fails.
    ReadOnly,
    /// The file must not be there; it is made with mode 0600.
    CreateNew,
    /// The file is made with mode 0600 unless it is there.
    OpenOrCreate,
}

/// A folder of files: the names, not the bytes.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Opens or makes a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;
    /// Renames a file, replacing what is there. Durable after `sync_dir` of the folder.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable after `sync_dir` of the folder.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Full paths of the files in a folder, sorted by name.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Makes a folder and its parents, mode 0700 for those that are new.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Whether there is a file or folder of that name.
    fn exists(&self, path: &Path) -> bool;
}

/// An open file. Offsets and lengths are bytes.
pub trait File: Send + Sync + std::fmt::Debug {
    /// Fills the buffer from the offset; an end of file before that is `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes the whole buffer at the offset, growing the file if need be.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the bytes (and the length) durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file or grows it by a hole.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Takes the space of `len` bytes from `offset` on, growing the file if need be: what is written there later finds
    /// room. What was there stays, and what was not reads as zeros. `StorageFull` when there is no such room; where the
    /// file system cannot promise any, the file only grows.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range read as zeros and takes the space for it, so that no later write there can fail for lack of
    /// it; the length of the file stays. Durable after `sync_data`. `StorageFull` (or `QuotaExceeded`) when the
    /// space is not there: part of it may have been taken then. `Unsupported` where the file system cannot.
    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Takes the exclusive lock of the file without waiting; `WouldBlock` if another process has it.
    fn lock(&self) -> io::Result<()>;
    /// The descriptor, where there is one: what a memory map and the ring need. None on a simulated disk.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}
