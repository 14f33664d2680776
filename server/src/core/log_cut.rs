//! How much of raft's log stays for members that lag behind.
//!
//! Every so many entries the log is cut, so many entries behind what is applied (N5, I7): who needs older ones gets a
//! snapshot. While one is on its way, and for a while after, nothing is cut (N6), or its receiver would find the
//! entries after it gone and need another. What memory does not hold of the rest is read from the log, on a thread that
//! may block.

use std::collections::BTreeMap;
use std::time::Duration;

use trilith_proto::raftpb;
use trilith_wal::{EntryReader, WalError};

use super::Core;
use crate::apply::members::Member;

/// N6: from the arrival of a snapshot to the next cut.
const PAUSE_AFTER_SNAPSHOT: Duration = Duration::from_secs(30);
/// Bytes of entries that are read at a time.
const READ_BYTES: usize = 8 << 20;

/// Where the log was cut, and what keeps it from being cut again.
#[derive(Debug, Default)]
pub(super) struct LogCut {
    /// What was applied at the last cut.
    at: u64,
    /// The newest entry that is cut off.
    cut: u64,
    /// Members that a snapshot is on its way to; when it arrived.
    snapshots: BTreeMap<u64, Option<Duration>>,
}

impl LogCut {
    pub(super) fn snapshot_begins(&mut self, to: u64) {
        self.snapshots.insert(to, None);
    }

    pub(super) fn snapshot_sent(&mut self, to: u64, now: Duration) {
        if let Some(sent) = self.snapshots.get_mut(&to) {
            *sent = Some(now);
        }
    }

    /// Nobody waits for a snapshot who is no member.
    pub(super) fn keep_members(&mut self, members: &[Member]) {
        self.snapshots.retain(|id, _| members.iter().any(|member| member.id == *id));
    }

    fn is_held(&mut self, now: Duration) -> bool {
        self.snapshots.retain(|_, sent| sent.is_none_or(|at| now < at + PAUSE_AFTER_SNAPSHOT));
        !self.snapshots.is_empty()
    }
}

/// Entries to be read back, on a thread that may block. What comes of it goes to `Core::log_read`.
#[derive(Debug)]
pub struct LogRead(Option<EntryReader>);

impl LogRead {
    /// Reads them; None when they are not there any more.
    pub fn run(self) -> Result<Option<Vec<raftpb::Entry>>, WalError> {
        self.0.map(EntryReader::run).transpose()
    }
}

impl Core {
    /// Entries up to here are applied: cuts the log if that is due.
    pub(super) fn cut_log(&mut self, applied: u64) {
        if applied < self.cut.at + self.config.snapshot_count || self.cut.is_held(self.now) {
            return;
        }
        let cut = applied.saturating_sub(self.config.catchup_entries);
        self.node.compact(cut);
        (self.cut.at, self.cut.cut) = (applied, cut);
    }

    /// Up to which entry the log on the disk may be given up, when the store itself needs none up to `index`.
    pub(super) fn log_needed(&self, index: u64) -> u64 {
        let alone = self.is_lone_voter() && self.conf_state.learners.is_empty();
        if alone { index } else { index.min(self.cut.cut) }
    }

    /// Entries that a member needs and memory does not hold, if there are any and none are being read.
    pub fn begin_log_read(&mut self) -> Option<LogRead> {
        let fetch = self.node.begin_fetch()?;
        Some(LogRead(self.node.log().entry_reader(fetch.from, fetch.to, fetch.terms, READ_BYTES)))
    }

    /// Takes what was read back. Entries that cannot be read are gone for the others: they get a snapshot.
    pub fn log_read(&mut self, outcome: Result<Option<Vec<raftpb::Entry>>, WalError>) {
        let entries = outcome.unwrap_or_else(|error| {
            log::warn!(error:%; "entries for a member that lags behind cannot be read back");
            None
        });
        self.node.fetched(entries);
    }
}
