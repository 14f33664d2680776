//! What takes long, on threads that may block.
//!
//! Promises: no more than [`READS_MAX`] reads at a time compete with the core for processors, in the order they came.
//! Who waits longest for a client holds nothing here: a read that goes with a client's pace is many short ones.

use tokio::sync::Semaphore;

use crate::status::Status;

/// Long reads under way at a time.
const READS_MAX: usize = 4;

static READS: Semaphore = Semaphore::const_new(READS_MAX);

/// Runs something long on a thread that may block.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(Status::internal)?
}

/// The same, in its turn. Once begun it runs to its end, also when nobody waits for it any more.
pub(crate) async fn read<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let permit = READS.acquire().await.map_err(Status::internal)?;
    run(move || {
        let _permit = permit;
        work()
    })
    .await
}
