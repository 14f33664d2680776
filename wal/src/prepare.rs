//! Segments ahead of need: zeroes the next one, gives it its name, and takes old ones back.
//!
//! Promises: a segment gets its name only when all its blocks are zeros but the head, and both are durable; so a
//! segment that has a name has a head. Names become durable in the order of the jobs. A preparation that fails is
//! tried again when its segment is needed, and is an error only then.
//!
//! On real files the work is done by a thread; on a simulated disk in the call that asks for it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use trilith_disk::{AlignedBuf, Disk, Open};

use crate::WalError;
use crate::error::io_error;
use crate::io::{Wake, thread_gone};
use crate::names::Name;
use crate::pace::{self, Pace, Place};
use crate::segment::{ALL, Segment};

/// How much of a segment is zeroed between two syncs, and of a new log ahead of the first write.
pub(crate) const FIRST_ZEROED_BYTES: u64 = 4 << 20;

#[derive(Debug)]
enum Job {
    /// Zero a segment in use from its frontier to its end.
    ZeroRest(Arc<Segment>),
    /// Have a zeroed segment ready.
    Prepare,
    /// Write this head into the ready segment and give it this name.
    Install(Name, AlignedBuf),
    /// A released segment: material for the next one.
    Recycle(PathBuf),
}

/// A segment under its name, or why there is none.
pub(crate) type Installed = Result<Arc<Segment>, WalError>;

/// What the worker does its work on.
#[derive(Debug)]
struct Worker {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    direct: bool,
    fsync: bool,
    /// A zeroed segment under a temporary name.
    ready: Option<(PathBuf, Segment)>,
    /// A file under a temporary name whose blocks are there but hold old data.
    spare: Option<PathBuf>,
    /// Where the writer is; None when nobody writes meanwhile.
    place: Option<Place>,
    stop: Arc<AtomicBool>,
}

/// How the worker is to work.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) direct: bool,
    pub(crate) fsync: bool,
}

impl Worker {
    fn new(setup: Setup, place: Option<Place>, stop: Arc<AtomicBool>) -> Worker {
        let Setup { disk, dir, segment_bytes, direct, fsync } = setup;
        Worker { disk, dir, segment_bytes, direct, fsync, ready: None, spare: None, place, stop }
    }

    /// Does a job; answers if it asked for a segment.
    fn work(&mut self, job: Job, wake: &Wake) -> Option<Installed> {
        match job {
            Job::ZeroRest(segment) => {
                if let Err(e) = self.zero_rest(&segment, wake) {
                    // The writer may go on: a hole reads as zeros too, its syncs are only slower.
                    log::warn!("zeroing a segment ahead failed, its syncs may be slower: {e}");
                    segment.set_zeroed(ALL);
                    wake.notify();
                }
                None
            }
            Job::Prepare => {
                if let Err(e) = self.prepare() {
                    log::warn!("preparing the next segment failed, to be tried again when it is needed: {e}");
                }
                None
            }
            Job::Install(name, head) => Some(self.install(&name, &head)),
            Job::Recycle(path) => {
                if let Err(e) = self.recycle(&path) {
                    log::warn!("a released segment stays: {e}");
                }
                None
            }
        }
    }

    fn zero_rest(&self, segment: &Segment, wake: &Wake) -> Result<(), WalError> {
        let mut at = segment.zeroed();
        while at < self.segment_bytes && !self.stop.load(Ordering::Relaxed) {
            let end = (at + FIRST_ZEROED_BYTES).min(self.segment_bytes);
            self.wait_for(pace::rest(end));
            self.zero(segment, at, end)?;
            at = end;
            segment.set_zeroed(if at < self.segment_bytes { at } else { ALL });
            wake.notify();
        }
        Ok(())
    }

    fn wait_for(&self, used: u64) {
        if let Some(place) = &self.place {
            place.wait_for(used);
        }
    }

    /// Writes zeros and makes them durable.
    fn zero(&self, segment: &Segment, from: u64, to: u64) -> Result<(), WalError> {
        segment.zero(from, to, &self.stop)?;
        if self.fsync { segment.sync() } else { Ok(()) }
    }

    fn sync_dir(&self) -> Result<(), WalError> {
        self.disk.sync_dir(&self.dir).map_err(io_error("sync folder", &self.dir))
    }

    /// A temporary name that is not in use: two are enough.
    fn temporary_name(&self) -> PathBuf {
        let taken = self.ready.as_ref().map(|(path, _)| path).or(self.spare.as_ref());
        let first = self.dir.join("0.tmp");
        if taken == Some(&first) { self.dir.join("1.tmp") } else { first }
    }

    fn prepare(&mut self) -> Result<(), WalError> {
        if self.ready.is_some() {
            return Ok(());
        }
        let path = self.spare.take().unwrap_or_else(|| self.temporary_name());
        let segment = Segment::open(&*self.disk, &path, Open::OpenOrCreate, self.direct)?;
        let len = segment.file().len().map_err(io_error("measure", &path))?;
        if len > self.segment_bytes {
            segment.file().set_len(self.segment_bytes).map_err(io_error("cut", &path))?;
        }
        let mut at = 0;
        while at < self.segment_bytes && !self.stop.load(Ordering::Relaxed) {
            let end = (at + FIRST_ZEROED_BYTES).min(self.segment_bytes);
            self.wait_for(pace::next(end, self.segment_bytes));
            self.zero(&segment, at, end)?;
            at = end;
        }
        if !self.stop.load(Ordering::Relaxed) {
            self.ready = Some((path, segment));
        }
        Ok(())
    }

    fn install(&mut self, name: &Name, head: &AlignedBuf) -> Installed {
        self.prepare()?;
        let (path, segment) = self.ready.take().ok_or_else(thread_gone)?;
        segment.write(head, 0)?;
        if self.fsync {
            segment.sync()?;
        }
        self.disk.rename(&path, &name.path).map_err(io_error("rename", &path))?;
        self.sync_dir()?;
        Ok(Arc::new(segment.renamed(&name.path)))
    }

    fn recycle(&mut self, path: &Path) -> Result<(), WalError> {
        if self.spare.is_some() {
            self.disk.remove(path).map_err(io_error("remove", path))?;
        } else {
            let spare = self.temporary_name();
            self.disk.rename(path, &spare).map_err(io_error("rename", path))?;
            self.spare = Some(spare);
        }
        // Only then may its blocks change: a segment that has its name must have its content.
        self.sync_dir()
    }

    /// Files that an earlier process prepared or took back: one is kept as material.
    fn adopt(&mut self) -> Result<(), WalError> {
        for n in ["0.tmp", "1.tmp"] {
            let path = self.dir.join(n);
            if !self.disk.exists(&path) {
            } else if self.spare.is_none() {
                self.spare = Some(path);
            } else {
                self.disk.remove(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Seat {
    Thread { jobs: Option<Sender<Job>>, installed: Receiver<Installed>, thread: Option<JoinHandle<()>> },
    Inline { worker: Box<Worker>, installed: VecDeque<Installed> },
}

/// Where jobs are handed in.
#[derive(Debug)]
pub(crate) struct Preparer {
    seat: Seat,
    pace: Pace,
    stop: Arc<AtomicBool>,
    wake: Wake,
}

impl Preparer {
    /// Starts the worker: on a thread for real files.
    pub(crate) fn start(setup: Setup, wake: Wake, thread: bool) -> Result<Preparer, WalError> {
        let stop = Arc::new(AtomicBool::new(false));
        let dir = setup.dir.clone();
        let place = Place::new();
        let mut worker = Worker::new(setup, thread.then(|| place.clone()), stop.clone());
        worker.adopt()?;
        let seat = if thread {
            let (jobs, inbox) = channel::<Job>();
            let (outbox, installed) = channel();
            let waker = wake.clone();
            let body = move || {
                for job in inbox {
                    if let Some(answer) = worker.work(job, &waker) {
                        if outbox.send(answer).is_err() {
                            return;
                        }
                        waker.notify();
                    }
                }
            };
            let thread = std::thread::Builder::new().name("wal-prepare".into()).spawn(body);
            let thread = thread.map_err(io_error("start a thread for", &dir))?;
            Seat::Thread { jobs: Some(jobs), installed, thread: Some(thread) }
        } else {
            Seat::Inline { worker: Box::new(worker), installed: VecDeque::new() }
        };
        Ok(Preparer { seat, pace: Pace::new(place), stop, wake })
    }

    fn hand_in(&mut self, job: Job) -> Result<(), WalError> {
        match &mut self.seat {
            Seat::Thread { jobs, .. } => {
                let jobs = jobs.as_ref().ok_or_else(thread_gone)?;
                jobs.send(job).map_err(|_| thread_gone())
            }
            Seat::Inline { worker, installed } => {
                installed.extend(worker.work(job, &self.wake));
                Ok(())
            }
        }
    }

    /// The writer has used this much of its segment, or wants to.
    pub(crate) fn used(&mut self, bytes: u64) {
        self.pace.used(bytes);
    }

    pub(crate) fn zero_rest(&mut self, segment: Arc<Segment>) -> Result<(), WalError> {
        self.hand_in(Job::ZeroRest(segment))
    }

    pub(crate) fn prepare(&mut self) -> Result<(), WalError> {
        self.hand_in(Job::Prepare)
    }

    pub(crate) fn install(&mut self, name: Name, head: AlignedBuf) -> Result<(), WalError> {
        self.pace.hurry();
        self.hand_in(Job::Install(name, head))
    }

    pub(crate) fn recycle(&mut self, path: PathBuf) -> Result<(), WalError> {
        self.hand_in(Job::Recycle(path))
    }

    /// The segment that was asked for, when it is there.
    pub(crate) fn installed(&mut self) -> Option<Installed> {
        let installed = match &mut self.seat {
            Seat::Thread { installed, .. } => installed.try_recv().ok(),
            Seat::Inline { installed, .. } => installed.pop_front(),
        }?;
        self.pace.begin();
        Some(installed)
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.pace.hurry();
        if let Seat::Thread { jobs, thread, .. } = &mut self.seat {
            *jobs = None;
            if let Some(thread) = thread.take() {
                // A panic of the thread was reported where it happened.
                let _ = thread.join();
            }
        }
    }
}
