//! What the core does when space or memory runs out.
//!
//! *Space.* A checkpoint that finds no room on the disk is no end of the member: the log has everything that the store's
//! file has not, so nothing is lost, and the next checkpoint tries again after a pause. Until one succeeds, requests
//! that would take space are refused with the error that etcd has for an exceeded quota. What frees space or takes
//! none is served: reads, watches, keep-alives, deletes, compactions.
//!
//! *Memory.* Changes stay in memory until a checkpoint has written them. When they come faster than it writes, proposals
//! wait in the backlog until it is through: the memory is bounded, and what a client sees is latency. Memory that only
//! old roots of readers hold cannot be freed by waiting, so each checkpoint may be joined by a quarter of the budget
//! whatever they hold.
//!
//! Must never take any other error for a lack of room, and never hold up reads.

use std::time::Duration;

use trilith_engine::StoreError;
use trilith_proto::etcdserverpb::request_op::Request as Op;
use trilith_proto::etcdserverpb::{RequestOp, TxnRequest};

use super::Core;
use crate::apply::command::Command;

/// From an attempt that found no room to the next; doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// From one checkpoint for the sake of a full log to the next.
const PAUSE_FOR_LOG: Duration = Duration::from_secs(2);

/// The member's want of space and memory.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// When the store's file may be tried again; None while it has room.
    retry_at: Option<Duration>,
    pause: Duration,
    full: bool,
    holds_back: bool,
}

impl Core {
    /// Whether a checkpoint is to be tried because the last one found no room; None when that is no question.
    pub(super) fn retries_checkpoint(&self) -> Option<bool> {
        self.pressure.retry_at.map(|at| self.now >= at)
    }

    /// Whether a checkpoint is to be tried because it lets the log give up segments, of which it can make new ones. Two
    /// are needed: the log keeps what the checkpoint before the newest needs.
    pub(super) fn log_needs_room(&self) -> bool {
        self.node.log_full() && self.now >= self.checkpoints.began + PAUSE_FOR_LOG
    }

    /// A checkpoint found no room, and has changed nothing.
    pub(super) fn store_is_full(&mut self, error: &StoreError) {
        let pressure = &mut self.pressure;
        if pressure.retry_at.is_none() {
            log::warn!(error:%; "no space for the store's file");
            pressure.pause = PAUSE_MIN;
        }
        pressure.retry_at = Some(self.now + pressure.pause);
        pressure.pause = (pressure.pause * 2).min(PAUSE_MAX);
        self.watch_space();
    }

    /// A checkpoint is durable.
    pub(super) fn store_has_room(&mut self) {
        self.pressure.retry_at = None;
        self.watch_space();
    }

    /// Refuses what would take space, as long as there is none for the store's file, or none for more of the log:
    /// which says so while it still has some for what is served.
    pub(super) fn watch_space(&mut self) {
        let (store, log) = (self.pressure.retry_at.is_some(), self.node.log_full());
        let full = store || log;
        if full != self.pressure.full {
            self.pressure.full = full;
            self.shared.set_disk_full(full);
            if full {
                log::warn!(store, log; "the disk is full: requests that take space are refused until there is some");
            } else {
                log::info!("there is space on the disk again: requests are taken");
            }
        }
    }

    /// Whether proposals have to wait, because of what is in memory and a checkpoint is about to free.
    pub(super) fn holds_back(&mut self) -> bool {
        let budget = self.config.memory_budget;
        let joined = self.store.memory_since_checkpoint();
        let holds = self.store.memory_bytes() >= budget / 4 * 3 && joined >= Some(budget / 4);
        if holds && !self.pressure.holds_back {
            log::info!(bytes = self.store.memory_bytes(); "proposals wait for the memory that a checkpoint will free");
        }
        self.pressure.holds_back = holds;
        holds
    }
}

/// Whether a request adds to what is stored.
pub(super) fn takes_space(command: &Command) -> bool {
    match command {
        Command::Put(_) | Command::LeaseGrant(_) => true,
        Command::Txn(txn) => has_puts(txn),
        _ => false,
    }
}

/// Nested transactions are checked for depth before they come here.
fn has_puts(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op: &RequestOp| match &op.request {
        Some(Op::RequestPut(_)) => true,
        Some(Op::RequestTxn(txn)) => has_puts(txn),
        _ => false,
    })
}
