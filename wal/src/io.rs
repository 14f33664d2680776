//! The door through which batches reach the disk: one small trait, three ways.
//!
//! [`crate::uring::Uring`] drives a ring from the caller's thread; [`Plain`] writes and syncs on a thread of its
//! own; [`Inline`] does both in the call, for a simulated disk.
//!
//! Promises of each: a batch is reported once, after all its bytes are durable (or, without sync, written) or with
//! the error that stopped it; the buffer is not touched in between. Completions may come in any order. Nothing
//! here retries a failed write or sync.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use trilith_disk::AlignedBuf;

use crate::WalError;
use crate::segment::Segment;

/// Whole blocks on their way to a place in a segment.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) ticket: u64,
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u64,
    pub(crate) buf: AlignedBuf,
}

/// A batch that is through.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) batch: Batch,
    /// How long the sync took, where it was measured.
    pub(crate) micros: Option<u64>,
    pub(crate) result: Result<(), WalError>,
}

pub(crate) trait BatchIo: Send + std::fmt::Debug {
    /// How many batches may be under way together.
    fn slots(&self) -> usize;
    /// Starts a batch. An error means that the path is broken.
    fn submit(&mut self, batch: Batch) -> Result<(), WalError>;
    /// Takes what is through, without waiting.
    fn reap(&mut self, done: &mut Vec<Done>) -> Result<(), WalError>;
    /// "io_uring" or "sync".
    fn name(&self) -> &'static str;
}

/// Wakes whoever waits for the log: an eventfd that the ring and the threads announce their results on.
#[derive(Debug, Clone)]
pub(crate) struct Wake(Arc<OwnedFd>);

impl Wake {
    pub(crate) fn new() -> io::Result<Wake> {
        Ok(Wake(Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    #[allow(clippy::host_endian_bytes)] // The kernel adds a number of this machine's own byte order.
    pub(crate) fn notify(&self) {
        // The counter cannot overflow with one added per result, and a write to it fails in no other way.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes back earlier notices. What is announced after this makes the descriptor readable again.
    pub(crate) fn clear(&self) {
        let mut counter = [0u8; 8];
        // "Would block" only says that there was no notice.
        let _ = rustix::io::read(&self.0, &mut counter);
    }

    /// Waits for a notice.
    pub(crate) fn wait(&self) -> io::Result<()> {
        loop {
            match rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// pwrite and fdatasync on a thread of its own, one batch at a time.
#[derive(Debug)]
pub(crate) struct Plain {
    jobs: Option<Sender<Batch>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

impl Plain {
    pub(crate) fn start(wake: Wake, fsync: bool) -> io::Result<Plain> {
        let (jobs, inbox) = channel::<Batch>();
        let (outbox, done) = channel();
        let thread = std::thread::Builder::new().name("wal-sync".into()).spawn(move || {
            for batch in inbox {
                if outbox.send(write_and_sync(batch, fsync)).is_err() {
                    return;
                }
                wake.notify();
            }
        })?;
        Ok(Plain { jobs: Some(jobs), done, thread: Some(thread) })
    }
}

fn write_and_sync(batch: Batch, fsync: bool) -> Done {
    let mut micros = None;
    let mut result = batch.segment.write(&batch.buf, batch.offset);
    if result.is_ok() && fsync {
        let start = Instant::now();
        trilith_failpoint::hit("walBeforeSync");
        result = batch.segment.sync();
        trilith_failpoint::hit("walAfterSync");
        micros = Some(start.elapsed().as_micros() as u64);
    }
    Done { batch, micros, result }
}

/// What the log answers when a thread of it is gone, which no code path of the thread leads to.
pub(crate) fn thread_gone() -> WalError {
    WalError::Stopped("a thread of the log ended".into())
}

impl BatchIo for Plain {
    fn slots(&self) -> usize {
        1
    }

    fn submit(&mut self, batch: Batch) -> Result<(), WalError> {
        let jobs = self.jobs.as_ref().ok_or_else(thread_gone)?;
        jobs.send(batch).map_err(|_| thread_gone())
    }

    fn reap(&mut self, done: &mut Vec<Done>) -> Result<(), WalError> {
        done.extend(self.done.try_iter());
        Ok(())
    }

    fn name(&self) -> &'static str {
        "sync"
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// Writes in `submit` and syncs in `reap`: deterministic, and with several batches under way at once, as the
/// ring has them.
#[derive(Debug)]
pub(crate) struct Inline {
    pub(crate) fsync: bool,
    pub(crate) written: Vec<Batch>,
}

impl BatchIo for Inline {
    fn slots(&self) -> usize {
        crate::MAX_IN_FLIGHT
    }

    fn submit(&mut self, batch: Batch) -> Result<(), WalError> {
        batch.segment.write(&batch.buf, batch.offset)?;
        self.written.push(batch);
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Done>) -> Result<(), WalError> {
        // All batches under way belong to one segment: a cut waits until nothing is.
        if let (true, Some(batch)) = (self.fsync, self.written.first()) {
            batch.segment.sync()?;
        }
        done.extend(self.written.drain(..).map(|batch| Done { batch, micros: None, result: Ok(()) }));
        Ok(())
    }

    fn name(&self) -> &'static str {
        "sync"
    }
}
