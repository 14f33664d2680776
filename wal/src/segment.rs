//! A segment file that is held: open, locked, and zeroed ahead of its writer.
//!
//! Promises: every block from the writer's position on reads as zeros. The writer stays below the frontier. Blocks
//! there have their space, so that a write of them cannot fail for lack of it; and while batches are small they were
//! written with real zeros (or data) before, so that a sync of them changes no metadata of the file. While a
//! segment is written with direct I/O everything else that writes to it does so too: the page cache must never
//! hold a dirty page of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::OFlags;
use trilith_disk::{ALIGNMENT, AlignedBuf, Disk, File, Open};

use crate::WalError;
use crate::error::io_error;

/// Zeros are written in pieces of this size.
const ZERO_STEP_BYTES: u64 = 1 << 20;

/// The frontier of a segment that may be written to its end.
pub(crate) const ALL: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Segment {
    /// The path it was opened by; it may have been renamed since.
    opened_as: PathBuf,
    file: Arc<dyn File>,
    direct: Option<OwnedFd>,
    frontier: AtomicU64,
}

impl Segment {
    /// Opens and locks a segment; its frontier is at the end of everything.
    pub(crate) fn open(disk: &dyn Disk, path: &Path, how: Open, direct: bool) -> Result<Segment, WalError> {
        let file = disk.open(path, how).map_err(io_error("open", path))?;
        file.lock().map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => WalError::Locked { path: path.to_owned() },
            _ => io_error("lock", path)(e),
        })?;
        let direct = if direct { Some(open_direct(path).map_err(io_error("open", path))?) } else { None };
        Ok(Segment { opened_as: path.to_owned(), file, direct, frontier: AtomicU64::new(ALL) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.opened_as
    }

    pub(crate) fn file(&self) -> &dyn File {
        &*self.file
    }

    /// The descriptor for direct I/O, where the segment has one.
    pub(crate) fn direct(&self) -> Option<BorrowedFd<'_>> {
        self.direct.as_ref().map(|fd| fd.as_fd())
    }

    /// Where the writer must stop for now.
    pub(crate) fn frontier(&self) -> u64 {
        self.frontier.load(Ordering::Acquire)
    }

    pub(crate) fn set_frontier(&self, frontier: u64) {
        self.frontier.store(frontier, Ordering::Release);
    }

    /// The segment under its new name.
    pub(crate) fn renamed(mut self, path: &Path) -> Segment {
        self.opened_as = path.to_owned();
        self
    }

    /// From now on everything is written with direct I/O. What was written before is synced.
    pub(crate) fn make_direct(&mut self) -> Result<(), WalError> {
        self.direct = Some(open_direct(&self.opened_as).map_err(io_error("open", &self.opened_as))?);
        Ok(())
    }

    /// Writes whole blocks from an aligned buffer: directly where the segment is written directly.
    pub(crate) fn write(&self, buf: &[u8], offset: u64) -> Result<(), WalError> {
        debug_assert!(offset.is_multiple_of(ALIGNMENT as u64) && buf.len().is_multiple_of(ALIGNMENT));
        let result = match self.direct() {
            None => self.file.write_all_at(buf, offset),
            Some(fd) => write_direct(fd, buf, offset),
        };
        result.map_err(io_error("write", &self.opened_as))
    }

    /// Writes zeros over whole blocks, unless told to stop.
    pub(crate) fn zero(&self, from: u64, to: u64, stop: &AtomicBool) -> Result<(), WalError> {
        let mut zeros = AlignedBuf::with_capacity(ZERO_STEP_BYTES.min(to.saturating_sub(from)) as usize);
        zeros.pad_to(zeros.capacity());
        let mut at = from;
        while at < to && !stop.load(Ordering::Relaxed) {
            let len = (to - at).min(zeros.len() as u64);
            self.write(&zeros[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    /// Takes the space of a range, which reads as zeros then; the length stays. False where the file system has no
    /// such call, or fails for another reason than a full disk: then only writing tells.
    pub(crate) fn reserve(&self, from: u64, to: u64) -> Result<bool, WalError> {
        let taken = self.file.zero_range(from, to.saturating_sub(from));
        match taken.map_err(io_error("take space for", &self.opened_as)) {
            Ok(()) => Ok(true),
            Err(e) if e.is_full() => Err(e),
            Err(_) => Ok(false),
        }
    }

    pub(crate) fn sync(&self) -> Result<(), WalError> {
        self.file.sync_data().map_err(io_error("sync", &self.opened_as))
    }
}

fn open_direct(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

/// Writes aligned blocks with direct I/O; a short write goes on from the last whole block.
fn write_direct(fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> std::io::Result<()> {
    let mut at = 0;
    while at < buf.len() {
        match rustix::io::pwrite(fd, &buf[at..], offset + at as u64) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(n) if at + n == buf.len() => return Ok(()),
            Ok(n) => {
                let next = (at + n) / ALIGNMENT * ALIGNMENT;
                if next == at {
                    return Err(std::io::ErrorKind::WriteZero.into());
                }
                at = next;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
