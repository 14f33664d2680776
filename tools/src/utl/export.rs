//! `export`: a data directory's store as a snapshot file, the way back to etcd.
//!
//! Promises: the file holds everything that the member had acknowledged, or is not written. What stands only in the log
//! takes a member to apply it, so a directory whose store is behind its log is refused.

use std::path::Path;

use trilith_wal::{IoChoice, Wal, WalError};

use super::files::{open_store, save_as_bolt};
use super::restore::log_options;
use crate::exit::Failure;
use crate::terminal::say;

pub(super) fn export(to: &Path, data_dir: &str) -> Result<(), Failure> {
    if data_dir.is_empty() {
        return Err(Failure::error("required flag(s) \"data-dir\" not set"));
    }
    let member = Path::new(data_dir).join("member");
    let store = open_store(&member.join("snap").join("db"))?;
    let (applied, _) = store.applied();
    let options = trilith_wal::Options { io: IoChoice::Sync, ..log_options(member.join("wal")) };
    let opened = match Wal::open(options.clone(), applied.saturating_sub(1)) {
        Err(WalError::Missing { .. }) if applied > 0 => Wal::open(options, applied),
        opened => opened,
    };
    let (log, replay) = opened.map_err(Failure::error)?;
    drop(log);
    // Entries without content change nothing.
    let behind = replay.entries.iter().rev().find(|entry| {
        entry.index.unwrap_or_default() > applied && entry.data.as_ref().is_some_and(|data| !data.is_empty())
    });
    if let Some(entry) = behind {
        return Err(Failure::error(format_args!(
            "the log holds entries up to {}, the store only up to {applied}: start the member on {data_dir} and stop \
             it again, or take a snapshot from it while it runs",
            entry.index.unwrap_or_default()
        )));
    }
    save_as_bolt(&store, to)?;
    say(format!("Snapshot saved at {}\n", to.display()).as_bytes())
}
