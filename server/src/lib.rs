//! The etcd server.
//!
//! `core` owns raft, the log and the writer of the store, and is driven by one task; `apply` turns committed
//! entries into changes; `service` holds the request handlers, free of any transport; `rpc` is gRPC on h2;
//! `watch` delivers changes; `corruption` compares members; `config` reads flags; `socket` and `tls` are what both
//! ports stand on. Only this crate knows tokio.
#![forbid(unsafe_code)]

pub mod apply;
mod blocking;
mod bootstrap;
// Fields of its errors say by their names what they are.
#[allow(missing_docs)]
pub mod config;
pub mod core;
pub mod corruption;
pub mod discovery;
pub mod lease;
pub mod logging;
pub mod memory;
mod outlet;
pub mod peer;
pub mod reply;
pub mod rpc;
pub mod run;
pub mod service;
pub mod socket;
pub mod status;
pub mod tls;
pub mod watch;
