//! Runs a core on a tokio runtime: waits for whatever it should be stepped for, and steps it.
//!
//! It decides nothing. On a current-thread runtime that also serves connections, all that their tasks proposed
//! since the last step goes into one batch, since the core's task runs after them; waking it is no system call.

use std::future::pending;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use trilith_engine::{CheckpointDone, Doomed, ShrinkPlan, StoreError};

use super::{Core, Fatal, ScrubJob};

/// A job on a thread that may block.
type Job<T> = Option<JoinHandle<T>>;

/// Drives the core until `shutdown` resolves, then ends it in order: nothing comes in, what came in is answered, a
/// last checkpoint is written. Anything that keeps it from going on ends it with an error.
pub async fn run(mut core: Core, shutdown: impl Future<Output = ()>) -> Result<(), Fatal> {
    let shared = core.shared();
    let log = watch_log(&core)?;
    let start = Instant::now();
    let mut checkpoint: Job<Result<CheckpointDone, StoreError>> = None;
    let mut search: Job<Result<Doomed, StoreError>> = None;
    let mut scrub: Job<ScrubJob> = None;
    let mut scan: Job<Result<ShrinkPlan, StoreError>> = None;
    let mut shutdown = std::pin::pin!(shutdown);
    let mut timer = std::pin::pin!(sleep_until(start));
    loop {
        core.step(start.elapsed())?;
        if checkpoint.is_none() {
            checkpoint = core.begin_checkpoint().map(|job| tokio::task::spawn_blocking(move || job.run()));
        }
        if scrub.is_none() {
            scrub = core.begin_scrub().map(|job| tokio::task::spawn_blocking(move || job.run()));
        }
        if scan.is_none() {
            scan = core.begin_shrink_scan().map(|scan| tokio::task::spawn_blocking(move || scan.run()));
        }
        if search.is_none() {
            search = core.begin_compaction()?.map(|job| tokio::task::spawn_blocking(move || job.run()));
        }
        let before = Instant::now();
        if core.remove_slice()? {
            core.slice_took(before.elapsed());
        }
        let deadline = start + core.deadline();
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        // Steps that follow each other without a pause still let the other tasks of this thread run.
        tokio::task::coop::consume_budget().await;
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            outcome = finished(&mut checkpoint) => {
                checkpoint = None;
                core.checkpoint_finished(outcome?)?;
            }
            piece = finished(&mut scrub) => {
                scrub = None;
                core.scrub_finished(piece?);
            }
            outcome = finished(&mut scan) => {
                scan = None;
                core.shrink_scanned(outcome?);
            }
            found = finished(&mut search) => {
                search = None;
                core.compaction_found(found?);
            }
            () = shared.woken() => {}
            written = log_moved(log.as_ref()) => written?,
            () = &mut timer => {}
        }
    }
    end(core, checkpoint, start.elapsed()).await
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
        let mut last = Some(tokio::task::spawn_blocking(move || job.run()));
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
