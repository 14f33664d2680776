//! Batches through io_uring: O_DIRECT writes with RWF_DSYNC, driven inline from the caller's thread. The one file
//! of this crate with unsafe code.
//!
//! Promises: a batch counts as done when the completions of all its bytes came; a short write is resubmitted from
//! its last whole block. Every buffer and descriptor that the kernel may still use is owned by this module until
//! its completion came; dropping it waits for them. Writes are never linked to anything, and there is no thread
//! of the kernel that polls.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use io_uring::{IoUring, Probe, opcode, types};
use rustix::io::ReadWriteFlags;
use trilith_disk::{ALIGNMENT, AlignedBuf};
use trilith_disk::{Disk, Open};

use crate::io::{Batch, BatchIo, Done, Wake};
use crate::segment::Segment;
use crate::{MAX_IN_FLIGHT, WalError};

const RING_ENTRIES: u32 = 8;

#[derive(Debug)]
struct Flight {
    batch: Batch,
    /// Bytes of the batch that earlier completions covered; a multiple of the block size.
    written: usize,
    started: Instant,
}

/// A ring and the batches that it works on.
pub(crate) struct Uring {
    ring: IoUring,
    flights: [Option<Flight>; MAX_IN_FLIGHT],
    fsync: bool,
    /// The eventfd that the ring announces completions on; it lives as long as the ring.
    _wake: Wake,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("flights", &self.flights).finish_non_exhaustive()
    }
}

impl Uring {
    /// Sets up a ring and proves it with one real write in the folder. The error says why it is not possible.
    pub(crate) fn start(disk: &dyn Disk, dir: &Path, wake: Wake, fsync: bool) -> Result<Uring, String> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .build(RING_ENTRIES)
            .or_else(|_| IoUring::new(RING_ENTRIES))
            .map_err(|e| format!("setting up a ring: {e}"))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(|e| format!("probing the ring: {e}"))?;
        if !probe.is_supported(opcode::Write::CODE) {
            return Err("the kernel's ring has no write".into());
        }
        ring.submitter()
            .register_eventfd(wake.fd().as_raw_fd())
            .map_err(|e| format!("registering an eventfd: {e}"))?;
        let mut uring = Uring { ring, flights: [const { None }; MAX_IN_FLIGHT], fsync, _wake: wake };
        let path = dir.join("probe.tmp");
        let written = match uring.probe_write(disk, &path) {
            // A full disk says that it would have been done otherwise.
            Err(e) if e.is_full() => Ok(()),
            written => written,
        };
        // A file left behind does no harm: it is opened again the next time, and no reader looks at it.
        let _ = disk.remove(&path);
        written.map_err(|e| format!("a first write with O_DIRECT and RWF_DSYNC: {e}"))?;
        Ok(uring)
    }

    fn probe_write(&mut self, disk: &dyn Disk, path: &Path) -> Result<(), WalError> {
        let segment = Arc::new(Segment::open(disk, path, Open::OpenOrCreate, true)?);
        let mut buf = AlignedBuf::with_capacity(ALIGNMENT);
        buf.pad_to(ALIGNMENT);
        self.submit(Batch { ticket: 0, segment, offset: 0, buf })?;
        let mut done = Vec::new();
        while done.is_empty() {
            self.wait_for_one().map_err(crate::error::io_error("wait for a write to", path))?;
            self.reap(&mut done)?;
        }
        done.into_iter().try_for_each(|d| d.result)
    }

    fn wait_for_one(&self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
            _ => Ok(()),
        }
    }

    /// Queues what is left of a flight and tells the kernel.
    fn push(&mut self, slot: usize) -> io::Result<()> {
        let Some(flight) = &self.flights[slot] else { return Ok(()) };
        let Some(fd) = flight.batch.segment.direct() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let entry = write_entry(fd, flight, self.fsync).user_data(slot as u64);
        // SAFETY: the entry points into the flight's buffer and names its segment's descriptor. Both stay in
        // `self.flights` until the completion of this entry was taken: `reap` empties a slot only then, `drop`
        // waits for all and leaks what it cannot wait for. The buffer's bytes do not move with the flight, and
        // nobody writes to them, since the batch is private to this module until it is done.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("the ring's queue is full, which its slots rule out"))?;
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes one completion; the flight, if that was the last of it.
    fn complete(&mut self, slot: usize, result: i32) -> Result<Option<Done>, WalError> {
        let Some(flight) = self.flights.get_mut(slot).and_then(Option::as_mut) else {
            return Err(WalError::Stopped(format!("the ring completed a write that nobody made ({slot})")));
        };
        let left = flight.batch.buf.len() - flight.written;
        let outcome = match usize::try_from(result) {
            Ok(n) if n == left => Ok(true),
            Ok(n) if n > left => Err(io::Error::other("more bytes written than given")),
            Ok(n) if n / ALIGNMENT > 0 => {
                flight.written += n / ALIGNMENT * ALIGNMENT;
                Ok(false)
            }
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => match io::Error::from_raw_os_error(-result) {
                e if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Ok(false),
                e => Err(e),
            },
        };
        let outcome = match outcome {
            Ok(false) => match self.push(slot) {
                Ok(()) => return Ok(None),
                // The entry may sit in the queue still: the flight stays ours, the log is broken.
                Err(e) => return Err(self.ring_error(e)),
            },
            Ok(true) => Ok(()),
            Err(e) => Err(e),
        };
        let Some(Flight { batch, started, .. }) = self.flights[slot].take() else { return Ok(None) };
        let micros = self.fsync.then(|| started.elapsed().as_micros() as u64);
        let result = outcome.map_err(crate::error::io_error("write", batch.segment.path()));
        Ok(Some(Done { batch, micros, result }))
    }

    fn ring_error(&self, e: io::Error) -> WalError {
        WalError::Stopped(format!("submitting to the ring: {e}"))
    }
}

fn write_entry(fd: BorrowedFd<'_>, flight: &Flight, fsync: bool) -> io_uring::squeue::Entry {
    let rest = &flight.batch.buf[flight.written..];
    // A batch is far below 4 GiB unless one entry is larger; then several writes follow each other.
    let len = rest.len().min(1 << 30) as u32;
    let flags = if fsync { ReadWriteFlags::DSYNC.bits() as i32 } else { 0 };
    opcode::Write::new(types::Fd(fd.as_raw_fd()), rest.as_ptr(), len)
        .offset(flight.batch.offset + flight.written as u64)
        .rw_flags(flags)
        .build()
}

impl BatchIo for Uring {
    fn slots(&self) -> usize {
        MAX_IN_FLIGHT
    }

    fn submit(&mut self, batch: Batch) -> Result<(), WalError> {
        let Some(slot) = self.flights.iter().position(Option::is_none) else {
            return Err(WalError::Stopped("more batches under way than the ring has slots".into()));
        };
        // The write syncs by itself.
        trilith_failpoint::hit("walBeforeSync");
        self.flights[slot] = Some(Flight { batch, written: 0, started: Instant::now() });
        self.push(slot).map_err(|e| self.ring_error(e))
    }

    fn reap(&mut self, done: &mut Vec<Done>) -> Result<(), WalError> {
        loop {
            let Some((slot, result)) = self.ring.completion().next().map(|c| (c.user_data(), c.result()))
            else {
                return Ok(());
            };
            done.extend(self.complete(slot as usize, result)?);
            trilith_failpoint::hit("walAfterSync");
        }
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.flights.iter().any(Option::is_some) {
            if self.wait_for_one().is_err() {
                // The kernel may still read these buffers: better never freed than freed too early.
                self.flights.iter_mut().filter_map(Option::take).for_each(std::mem::forget);
                return;
            }
            while let Some(slot) = self.ring.completion().next().map(|c| c.user_data() as usize) {
                if let Some(flight) = self.flights.get_mut(slot) {
                    *flight = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_disk::RealDisk;

    /// A ring with one flight of two blocks of sevens in slot 0 that the kernel was not told of.
    fn grounded(dir: &Path) -> Option<Uring> {
        let wake = Wake::new().unwrap();
        let mut uring = match Uring::start(&RealDisk, dir, wake, true) {
            Ok(uring) => uring,
            Err(e) => {
                eprintln!("io_uring is left out: {e}");
                return None;
            }
        };
        let segment = Segment::open(&RealDisk, &dir.join("segment"), Open::OpenOrCreate, true).unwrap();
        let mut buf = AlignedBuf::with_capacity(2 * ALIGNMENT);
        buf.extend_from_slice(&[7; 2 * ALIGNMENT]);
        let batch = Batch { ticket: 1, segment: Arc::new(segment), offset: 0, buf };
        uring.flights[0] = Some(Flight { batch, written: 0, started: Instant::now() });
        Some(uring)
    }

    #[test]
    fn a_short_write_goes_on_from_its_last_whole_block() {
        let dir = std::env::temp_dir().join(format!("trilith-uring-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        if let Some(mut uring) = grounded(&dir) {
            // The kernel says that it wrote a block and a sector.
            assert!(uring.complete(0, ALIGNMENT as i32 + 512).unwrap().is_none());
            let mut done = Vec::new();
            while done.is_empty() {
                uring.wait_for_one().unwrap();
                uring.reap(&mut done).unwrap();
            }
            done[0].result.as_ref().unwrap();
            let bytes = std::fs::read(dir.join("segment")).unwrap();
            assert_eq!(bytes[..ALIGNMENT], [0; ALIGNMENT], "the first block is not written again");
            assert_eq!(bytes[ALIGNMENT..], [7; ALIGNMENT]);
            assert!(uring.complete(0, 1).is_err(), "nothing is under way in this slot");
        }
        if let Some(mut uring) = grounded(&dir) {
            let done = uring.complete(0, -5).unwrap().expect("an error ends the batch");
            assert!(done.result.unwrap_err().to_string().contains("segment"));
        }
        if let Some(mut uring) = grounded(&dir) {
            let done = uring.complete(0, 0).unwrap().expect("nothing written is an error");
            assert!(done.result.is_err());
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
