//! gRPC straight on h2.
//!
//! One mechanism carries every kind of call: [`Call`] reads gRPC frames from an h2 stream and writes frames and
//! trailers back. [`conn`] drives one connection, [`server`] deals connections out over current-thread runtimes,
//! and a [`Routes`] maps paths to handlers.
//!
//! Promises: a reply of a streaming call waits for the client's flow-control window, so a slow reader bounds what
//! is held for it; a client that cancels, or whose deadline passes, drops its handler; a broken or hostile
//! connection ends alone. Nothing here knows a message's meaning.

mod authority;
mod call;
mod conn;
pub(crate) mod frame;
mod health;
mod router;
mod server;
mod watch;
mod wire;

#[cfg(test)]
mod tests;

pub use call::{Call, Gone, Replies, Requests};
pub use router::Api;
pub use server::{Options, Server, Stop};

/// What a server serves: all calls of all connections. Clones are handed to each thread and connection.
pub trait Routes: Clone + Send + 'static {
    /// Starts the handler of a call, or refuses it. `path` is `/package.Service/Method`. Runs inside a `LocalSet`.
    fn route(&self, path: &str, call: Call);
}
