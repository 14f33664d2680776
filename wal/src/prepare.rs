//! Segments ahead of need: makes the next one, gives it its name, and takes old ones back.
//!
//! Promises: a segment gets its name only when it reads as zeros but for the head, its space is taken, and all that
//! is durable; so a segment that has a name has a head. Names become durable in the order of the jobs. A preparation
//! that fails is tried again when its segment is needed, and is an error only then.
//!
//! A full disk is no error: what was asked for stays asked for, and is tried again with every job, until there is
//! space. A failed try leaves nothing behind that takes space.
//!
//! On real files the work is done by a thread; on a simulated disk in the call that asks for it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use trilith_disk::{AlignedBuf, Disk, Open};

use crate::WalError;
use crate::error::io_error;
use crate::io::{Wake, thread_gone};
use crate::names::Name;
use crate::pace::{self, Pace, Place};
use crate::record::BLOCK_BYTES;
use crate::segment::{ALL, Segment};

/// The step of zeroing, unless a quarter of a segment is less.
const STEP_BYTES: u64 = 4 << 20;

/// How much of a segment is zeroed between two syncs, and how far it is written while that is only about to begin.
pub(crate) fn step(segment_bytes: u64) -> u64 {
    STEP_BYTES.min((segment_bytes / 4).next_multiple_of(BLOCK_BYTES as u64)).min(segment_bytes)
}

#[derive(Debug)]
enum Job {
    /// Make a segment in use ready from its frontier to its end.
    Rest(Arc<Segment>),
    /// Have the next segment ready.
    Prepare,
    /// Write the head into the ready segment and give it its name.
    Install(Install),
    /// A released segment: material for the next one.
    Recycle(PathBuf),
    /// Try again what the disk had no space for.
    Retry,
}

#[derive(Debug)]
struct Install {
    name: Name,
    head: AlignedBuf,
    /// How long it has to be.
    bytes: u64,
}

/// A segment under its name, or why there is none.
pub(crate) type Installed = Result<Arc<Segment>, WalError>;

/// What the worker tells beside its answers.
#[derive(Debug, Default)]
struct Told {
    /// There is no space for something that was asked for.
    full: AtomicBool,
    /// Jobs that are through.
    done: AtomicU64,
}

/// What the worker does its work on.
#[derive(Debug)]
struct Worker {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    direct: bool,
    fsync: bool,
    /// What was asked for and is not done: the end of the segment in use, the next segment, its name.
    rest: Option<Arc<Segment>>,
    next: bool,
    install: Option<Install>,
    /// A segment under a temporary name that only lacks its head.
    ready: Option<(PathBuf, Segment)>,
    /// A file under a temporary name whose blocks are there but hold old data.
    spare: Option<PathBuf>,
    place: Place,
    /// Nobody writes while the worker works, so it never waits for the writer.
    inline: bool,
    stop: Arc<AtomicBool>,
    told: Arc<Told>,
    wake: Wake,
}

/// How the worker is to work.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) segment_bytes: u64,
    /// The longest batch that is not a single record.
    pub(crate) batch_bytes: u64,
    pub(crate) direct: bool,
    pub(crate) fsync: bool,
}

impl Worker {
    /// Does a job, and what earlier ones left; answers if that made a segment.
    fn work(&mut self, job: Job) -> Option<Installed> {
        match job {
            Job::Rest(segment) => self.rest = Some(segment),
            Job::Prepare => self.next = true,
            Job::Install(install) => {
                // The segment in use is at its end.
                self.rest = None;
                self.install = Some(install);
            }
            Job::Recycle(path) => {
                if let Err(e) = self.recycle(&path) {
                    log::warn!("a released segment stays: {e}");
                }
            }
            Job::Retry => {}
        }
        let (answer, full) = match self.satisfy() {
            Err(e) if e.is_full() => (None, Some(e)),
            Err(e) => (Some(Err(e)), None),
            Ok(installed) => (installed.map(Ok), None),
        };
        let was_full = self.told.full.swap(full.is_some(), Ordering::Release);
        match &full {
            Some(e) if !was_full => log::warn!("no space for the write-ahead log: {e}"),
            None if was_full => log::info!("the write-ahead log has space again"),
            _ => {}
        }
        self.told.done.fetch_add(1, Ordering::Release);
        if was_full || full.is_some() {
            self.wake.notify();
        }
        answer
    }

    /// Does what was asked for, the most urgent first. An error is a full disk, or is the answer to `install`.
    fn satisfy(&mut self) -> Result<Option<Arc<Segment>>, WalError> {
        if let Some(segment) = self.rest.clone() {
            match self.finish(&segment) {
                Err(e) if e.is_full() => return Err(e),
                Err(e) => {
                    // The writer may go on: a hole reads as zeros too, its syncs are only slower.
                    log::warn!("zeroing a segment ahead failed, its syncs may be slower: {e}");
                    segment.set_frontier(ALL);
                    self.wake.notify();
                }
                Ok(()) => {}
            }
            self.rest = None;
        }
        if self.next {
            match self.prepare() {
                Err(e) if e.is_full() => return Err(e),
                Err(e) => {
                    log::warn!("preparing the next segment failed, to be tried again when it is needed: {e}");
                }
                Ok(()) => {}
            }
            self.next = false;
        }
        let Some(install) = self.install.take() else { return Ok(None) };
        match self.install(&install) {
            Err(e) if e.is_full() => {
                self.install = Some(install);
                Err(e)
            }
            done => done.map(Some),
        }
    }

    fn finish(&self, segment: &Segment) -> Result<(), WalError> {
        let mut at = segment.frontier();
        if at >= self.segment_bytes {
            return Ok(());
        }
        let reserved = segment.reserve(at, self.segment_bytes)?;
        while at < self.segment_bytes && !self.stopped() {
            let end = (at + step(self.segment_bytes)).min(self.segment_bytes);
            if self.batches_are_large(pace::rest(end)) && reserved {
                self.lengthen(segment)?;
                if self.fsync {
                    segment.sync()?;
                }
                at = self.segment_bytes;
            } else {
                self.zero(segment, at, end)?;
                at = end;
            }
            segment.set_frontier(if at < self.segment_bytes { at } else { ALL });
            self.wake.notify();
        }
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn batches_are_large(&self, used: u64) -> bool {
        self.place.wait_for(if self.inline { 0 } else { used })
    }

    /// Writes zeros and makes them durable.
    fn zero(&self, segment: &Segment, from: u64, to: u64) -> Result<(), WalError> {
        segment.zero(from, to, &self.stop)?;
        if self.fsync { segment.sync() } else { Ok(()) }
    }

    /// A write inside of the file's length is cheaper than one that moves it.
    fn lengthen(&self, segment: &Segment) -> Result<(), WalError> {
        let file = segment.file();
        if file.len().map_err(io_error("measure", segment.path()))? < self.segment_bytes {
            file.set_len(self.segment_bytes).map_err(io_error("lengthen", segment.path()))?;
        }
        Ok(())
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
        match self.make(&path) {
            Ok(segment) if !self.stopped() => self.ready = Some((path, segment)),
            made => {
                // A start takes it as material as well.
                self.spare = Some(path);
                made?;
            }
        }
        Ok(())
    }

    /// Makes a file read as zeros, as long as a segment and with all its space; its frontier says how far real zeros
    /// were written.
    fn make(&self, path: &Path) -> Result<Segment, WalError> {
        let segment = Segment::open(&*self.disk, path, Open::OpenOrCreate, self.direct)?;
        let set_len = |len: u64| segment.file().set_len(len).map_err(io_error("cut", path));
        let len = segment.file().len().map_err(io_error("measure", path))?;
        if len > self.segment_bytes {
            set_len(self.segment_bytes)?;
        }
        match self.fill(&segment, len) {
            Err(e) if e.is_full() && len < self.segment_bytes => {
                // What there was left may be needed by somebody who can do with less.
                set_len(len)?;
                Err(e)
            }
            filled => filled.map(|()| segment),
        }
    }

    fn fill(&self, segment: &Segment, len: u64) -> Result<(), WalError> {
        if len < self.segment_bytes {
            segment.reserve(len, self.segment_bytes)?;
        }
        let mut at = 0;
        while at < self.segment_bytes && !self.stopped() {
            segment.set_frontier(at);
            let end = (at + step(self.segment_bytes)).min(self.segment_bytes);
            if self.batches_are_large(pace::next(end, self.segment_bytes))
                && segment.reserve(at, self.segment_bytes)?
            {
                return self.lengthen(segment);
            }
            self.zero(segment, at, end)?;
            at = end;
        }
        segment.set_frontier(ALL);
        Ok(())
    }

    fn install(&mut self, install: &Install) -> Result<Arc<Segment>, WalError> {
        self.prepare()?;
        let (_, segment) = self.ready.as_ref().ok_or_else(thread_gone)?;
        if install.bytes > self.segment_bytes {
            segment.reserve(self.segment_bytes, install.bytes)?;
        }
        let (path, segment) = self.ready.take().ok_or_else(thread_gone)?;
        segment.write(&install.head, 0)?;
        if self.fsync {
            segment.sync()?;
        }
        let Name { path: name, .. } = &install.name;
        self.disk.rename(&path, name).map_err(io_error("rename", &path))?;
        self.sync_dir()?;
        Ok(Arc::new(segment.renamed(name)))
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
    /// Jobs handed in.
    given: u64,
    stop: Arc<AtomicBool>,
    told: Arc<Told>,
}

impl Preparer {
    /// Starts the worker: on a thread for real files.
    pub(crate) fn start(setup: Setup, wake: Wake, thread: bool) -> Result<Preparer, WalError> {
        let Setup { disk, dir, segment_bytes, batch_bytes, direct, fsync } = setup;
        let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Told::default()));
        let place = Place::new();
        let mut worker = Worker {
            disk,
            dir: dir.clone(),
            segment_bytes,
            direct,
            fsync,
            rest: None,
            next: false,
            install: None,
            ready: None,
            spare: None,
            place: place.clone(),
            inline: !thread,
            stop: stop.clone(),
            told: told.clone(),
            wake,
        };
        worker.adopt()?;
        let seat = if thread {
            let (jobs, inbox) = channel::<Job>();
            let (outbox, installed) = channel();
            let body = move || {
                for job in inbox {
                    if let Some(answer) = worker.work(job) {
                        if outbox.send(answer).is_err() {
                            return;
                        }
                        worker.wake.notify();
                    }
                }
            };
            let thread = std::thread::Builder::new().name("wal-prepare".into()).spawn(body);
            let thread = thread.map_err(io_error("start a thread for", &dir))?;
            Seat::Thread { jobs: Some(jobs), installed, thread: Some(thread) }
        } else {
            Seat::Inline { worker: Box::new(worker), installed: VecDeque::new() }
        };
        let pace = Pace::new(place, segment_bytes, batch_bytes);
        Ok(Preparer { seat, pace, given: 0, stop, told })
    }

    fn hand_in(&mut self, job: Job) -> Result<(), WalError> {
        self.given += 1;
        match &mut self.seat {
            Seat::Thread { jobs, .. } => {
                let jobs = jobs.as_ref().ok_or_else(thread_gone)?;
                jobs.send(job).map_err(|_| thread_gone())
            }
            Seat::Inline { worker, installed } => {
                installed.extend(worker.work(job));
                Ok(())
            }
        }
    }

    /// Whether the disk has no space for what was asked for.
    pub(crate) fn is_full(&self) -> bool {
        self.told.full.load(Ordering::Acquire)
    }

    /// Whether all jobs are through; what is lacking then is lacking because of a full disk.
    pub(crate) fn is_idle(&self) -> bool {
        self.told.done.load(Ordering::Acquire) == self.given
    }

    /// The writer has used this much of its segment, or wants to.
    pub(crate) fn used(&mut self, bytes: u64) {
        self.pace.used(bytes);
    }

    /// The writer has submitted a batch.
    pub(crate) fn batch(&mut self, bytes: u64) {
        self.pace.batch(bytes);
    }

    /// Whether blocks that were only allocated are as good as zeroed ones: batches are large.
    pub(crate) fn takes_unwritten(&self) -> bool {
        self.pace.large()
    }

    /// Makes the segment in use ready from its frontier to its end.
    pub(crate) fn rest(&mut self, segment: Arc<Segment>) -> Result<(), WalError> {
        self.hand_in(Job::Rest(segment))
    }

    pub(crate) fn prepare(&mut self) -> Result<(), WalError> {
        self.hand_in(Job::Prepare)
    }

    /// Asks for the next segment, at least that long.
    pub(crate) fn install(&mut self, name: Name, head: AlignedBuf, bytes: u64) -> Result<(), WalError> {
        self.pace.hurry();
        self.hand_in(Job::Install(Install { name, head, bytes }))
    }

    pub(crate) fn recycle(&mut self, path: PathBuf) -> Result<(), WalError> {
        self.hand_in(Job::Recycle(path))
    }

    /// Tries again what the disk had no space for.
    pub(crate) fn retry(&mut self) -> Result<(), WalError> {
        self.hand_in(Job::Retry)
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
