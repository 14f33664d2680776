//! What a node needs of its write-ahead log. The log of a running member is [`Wal`]; a simulator may hold
//! completions back, to run raft through every order of disk and network.

use std::os::fd::BorrowedFd;

use trilith_proto::{raftpb, walpb};
use trilith_wal::{EntryRef, Ticket, Wal, WalError};

/// A log that gathers batches and reports, in order, which are durable. [`Wal`] has the contract.
pub trait Log {
    /// See [`Wal::append`].
    fn append<'a>(
        &mut self,
        entries: impl IntoIterator<Item = EntryRef<'a>>,
        hard_state: Option<&raftpb::HardState>,
        must_sync: bool,
    ) -> Ticket;
    /// See [`Wal::append_snapshot`].
    fn append_snapshot(&mut self, snapshot: &walpb::Snapshot) -> Ticket;
    /// See [`Wal::poll`].
    fn poll(&mut self) -> Result<Ticket, WalError>;
    /// See [`Wal::flush`].
    fn flush(&mut self) -> Result<Ticket, WalError>;
    /// See [`Wal::event_fd`].
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;
    /// See [`Wal::release_to`].
    fn release_to(&mut self, index: u64) -> Result<(), WalError>;
    /// See [`Wal::is_full`]. A log that waits for no space has nothing to say here.
    fn is_full(&self) -> bool {
        false
    }
    /// See [`Wal::retry`].
    fn retry(&mut self) -> Result<(), WalError> {
        Ok(())
    }
}

impl Log for Wal {
    fn append<'a>(
        &mut self,
        entries: impl IntoIterator<Item = EntryRef<'a>>,
        hard_state: Option<&raftpb::HardState>,
        must_sync: bool,
    ) -> Ticket {
        Wal::append(self, entries, hard_state, must_sync)
    }

    fn append_snapshot(&mut self, snapshot: &walpb::Snapshot) -> Ticket {
        Wal::append_snapshot(self, snapshot)
    }

    fn poll(&mut self) -> Result<Ticket, WalError> {
        Wal::poll(self)
    }

    fn flush(&mut self) -> Result<Ticket, WalError> {
        Wal::flush(self)
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Wal::event_fd(self)
    }

    fn release_to(&mut self, index: u64) -> Result<(), WalError> {
        Wal::release_to(self, index)
    }

    fn is_full(&self) -> bool {
        Wal::is_full(self)
    }

    fn retry(&mut self) -> Result<(), WalError> {
        Wal::retry(self)
    }
}
