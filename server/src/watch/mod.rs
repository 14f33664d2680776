//! Delivers changes to watchers.
#![allow(unused_variables, clippy::todo)]

use std::sync::Arc;

use trilith_engine::{Change, Reader};

/// Where the core hands over what it applied. Shared by all watch streams.
#[derive(Debug)]
pub struct Hub {}

impl Hub {
    pub fn new(reader: Reader) -> Arc<Hub> {
        todo!()
    }
    /// After each publish that changed keys, in revision order. Must be quick and must never wait for a watcher.
    pub fn publish(&self, changes: Vec<Change>) {
        todo!()
    }
}
