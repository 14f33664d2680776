//! What the harnesses share: a small gRPC client, servers as child processes, what /proc says of them, and a
//! random generator whose seed replays a run.
//!
//! The harnesses look at a server from outside only: they know the protocol and the process, and no crate of ours
//! but the generated messages.
#![forbid(unsafe_code)]

pub mod client;
pub mod cluster;
pub mod host;
pub mod load;
pub mod member;
pub mod proxy;
pub mod rng;

/// What can go wrong in a harness: it is printed and ends the run.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of a step of a harness.
pub type Result<T> = std::result::Result<T, Error>;

/// A runtime for a harness: one thread, so that the client takes little beside the server it looks at.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}
