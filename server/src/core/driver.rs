//! Runs a core on a tokio runtime: waits for whatever it should be stepped for, and steps it.
//!
//! It decides nothing. On a current-thread runtime that also serves connections, all that their tasks proposed
//! since the last step goes into one batch, since the core's task runs after them; waking it is no system call.

use std::future::pending;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use trilith_engine::{CheckpointDone, Doomed, ShrinkPlan, StoreError};
use trilith_proto::raftpb;
use trilith_wal::WalError;

use super::{Core, Fatal, Outgoing, ScrubJob};

/// A job on a thread that may block.
type Job<T> = Option<JoinHandle<T>>;

/// Why a core was ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// The member was removed from its cluster.
    Removed,
}

/// What runs beside the core for it.
#[derive(Default)]
struct Jobs {
    checkpoint: Job<Result<CheckpointDone, StoreError>>,
    search: Job<Result<Doomed, StoreError>>,
    scrub: Job<ScrubJob>,
    scan: Job<Result<ShrinkPlan, StoreError>>,
    read: Job<Result<Option<Vec<raftpb::Entry>>, WalError>>,
    install: Job<Result<(), String>>,
}

impl Jobs {
    /// Begins what the core has to be done.
    fn begin(&mut self, core: &mut Core) -> Result<(), Fatal> {
        if self.checkpoint.is_none() {
            self.checkpoint = core.begin_checkpoint().map(|job| spawn_blocking(move || job.run()));
        }
        if self.scrub.is_none() {
            self.scrub = core.begin_scrub().map(|job| spawn_blocking(move || job.run()));
        }
        if self.scan.is_none() {
            self.scan = core.begin_shrink_scan().map(|scan| spawn_blocking(move || scan.run()));
        }
        if self.search.is_none() {
            self.search = core.begin_compaction()?.map(|job| spawn_blocking(move || job.run()));
        }
        if self.read.is_none() {
            self.read = core.begin_log_read().map(|read| spawn_blocking(move || read.run()));
        }
        if self.install.is_none() {
            self.install = core.begin_install().map(|job| spawn_blocking(move || job.run()));
        }
        Ok(())
    }

    /// Waits until one is through, and hands the core what came of it.
    async fn finish_one(&mut self, core: &mut Core) -> Result<(), Fatal> {
        tokio::select! {
            biased;
            outcome = finished(&mut self.checkpoint) => {
                self.checkpoint = None;
                core.checkpoint_finished(outcome?)?;
            }
            piece = finished(&mut self.scrub) => {
                self.scrub = None;
                core.scrub_finished(piece?);
            }
            outcome = finished(&mut self.scan) => {
                self.scan = None;
                core.shrink_scanned(outcome?);
            }
            found = finished(&mut self.search) => {
                self.search = None;
                core.compaction_found(found?);
            }
            entries = finished(&mut self.read) => {
                self.read = None;
                core.log_read(entries?);
            }
            made = finished(&mut self.install) => {
                self.install = None;
                core.install_made(made?);
            }
        }
        Ok(())
    }
}

/// Drives the core until `shutdown` resolves, then ends it in order: leadership is handed over, nothing comes in, what
/// came in is answered, a last checkpoint is written. `outlet` gets what goes to other members. Anything that keeps
/// the core from going on ends it with an error.
pub async fn run(
    mut core: Core,
    mut outlet: impl FnMut(Outgoing),
    shutdown: impl Future<Output = ()>,
) -> Result<Ended, Fatal> {
    let shared = core.shared();
    let log = watch_log(&core)?;
    let start = Instant::now();
    let mut jobs = Jobs::default();
    let mut shutdown = std::pin::pin!(shutdown);
    let mut timer = std::pin::pin!(sleep_until(start));
    // When to end at the latest, once leadership is being handed over.
    let mut leaves_at = None;
    let ended = loop {
        core.step(start.elapsed())?;
        jobs.begin(&mut core)?;
        let before = Instant::now();
        if core.remove_slice()? {
            core.slice_took(before.elapsed());
        }
        if let Some(outgoing) = core.take_outgoing() {
            outlet(outgoing);
        }
        if core.is_removed() {
            break Ended::Removed;
        }
        if leaves_at.is_some_and(|at| !core.leads() || start.elapsed() >= at) {
            break Ended::Asked;
        }
        let deadline = start + core.deadline();
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        // Steps that follow each other without a pause still let the other tasks of this thread run.
        tokio::task::coop::consume_budget().await;
        tokio::select! {
            biased;
            () = &mut shutdown, if leaves_at.is_none() => match core.hand_over() {
                Some(patience) => leaves_at = Some(start.elapsed() + patience),
                None => break Ended::Asked,
            },
            outcome = jobs.finish_one(&mut core) => outcome?,
            () = shared.woken() => {}
            written = log_moved(log.as_ref()) => written?,
            () = &mut timer => {}
        }
    };
    end(core, jobs.checkpoint, start.elapsed()).await?;
    Ok(ended)
}

async fn end(
    mut core: Core,
    mut checkpoint: Job<Result<CheckpointDone, StoreError>>,
    now: Duration,
) -> Result<(), Fatal> {
    core.close(now)?;
    if checkpoint.is_some() {
        let outcome = finished(&mut checkpoint).await?;
        core.checkpoint_finished(outcome)?;
    }
    if let Some(job) = core.begin_last_checkpoint() {
        let mut last = Some(spawn_blocking(move || job.run()));
        let outcome = finished(&mut last).await?;
        core.checkpoint_finished(outcome)?;
    }
    core.flush()
}

/// A descriptor of our own for the log's events, since the log's is borrowed.
fn watch_log(core: &Core) -> Result<Option<AsyncFd<OwnedFd>>, Fatal> {
    let Some(fd) = core.event_fd() else { return Ok(None) };
    let watched = fd.try_clone_to_owned().and_then(register);
    watched.map(Some).map_err(|error| Fatal::Io { what: "watching the log's events", error })
}

/// The deprecated constructor asks for a descriptor that is neither closed nor replaced while it is registered; an
/// `OwnedFd` that `AsyncFd` owns alone is just that, and its successor is an unsafe function.
#[allow(deprecated)]
fn register(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// The step that follows drains the events, so readiness is forgotten first: a later one is not missed.
async fn log_moved(log: Option<&AsyncFd<OwnedFd>>) -> Result<(), Fatal> {
    let Some(log) = log else { return pending().await };
    let mut guard =
        log.readable().await.map_err(|error| Fatal::Io { what: "waiting for the log's events", error })?;
    guard.clear_ready();
    Ok(())
}

async fn finished<T>(job: &mut Job<T>) -> Result<T, Fatal> {
    match job {
        None => pending().await,
        Some(job) => job.await.map_err(|error| Fatal::Io {
            what: "running a job of the store",
            error: std::io::Error::other(error),
        }),
    }
}
