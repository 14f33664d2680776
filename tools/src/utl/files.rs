//! Files as the commands need them: what a path holds, scratch files that go again, a bar on a terminal.

use std::io::{Error, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget};
use trilith_disk::{Disk, RealDisk};
use trilith_engine::bolt::{Export, Kind, kind_of};
use trilith_engine::{Options, Store};

use crate::exit::Failure;

/// Bytes of memory that a command takes for what it sorts or has not written yet.
pub(super) const MEMORY: usize = 256 << 20;

pub(super) fn disk() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

/// The text of a system's error about a path, as Go writes it.
pub(super) fn reason(doing: &str, path: &Path, error: &Error) -> Failure {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let first = text.chars().next().map(|c| c.to_ascii_lowercase());
    let rest: String = first.into_iter().chain(text.chars().skip(1)).collect();
    Failure::error(format_args!("{doing} {}: {rest}", path.display()))
}

/// Opens a store that must be there.
pub(super) fn open_store(path: &Path) -> Result<Store, Failure> {
    if let Err(error) = std::fs::metadata(path) {
        return Err(reason("stat", path, &error));
    }
    Store::open(Options {
        path: path.to_owned(),
        disk: disk(),
        map: true,
        dirty_bytes_max: MEMORY,
        compress: true,
    })
    .map_err(Failure::error)
}

/// Whose file it is. Errors: it is nobody's, or not there.
pub(super) fn kind(path: &Path) -> Result<Kind, Failure> {
    if let Err(error) = std::fs::metadata(path) {
        return Err(reason("stat", path, &error));
    }
    match kind_of(&RealDisk, path).map_err(|error| reason("open", path, &error))? {
        // The reader says best what is wrong with it.
        Kind::Unknown => Ok(Kind::Bolt),
        kind => Ok(kind),
    }
}

/// A folder for scratch files; it goes with everything in it.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Result<Scratch, Failure> {
        let path = std::env::temp_dir().join(format!("etcdutl-{}", std::process::id()));
        disk().create_dir_all(&path).map_err(|error| reason("mkdir", &path, &error))?;
        Ok(Scratch(path))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left-overs in the system's folder for them do no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes a store as a bbolt file.
pub(super) fn save_as_bolt(store: &Store, to: &Path) -> Result<(), Failure> {
    let export = Export::new(store.reader().root()).map_err(Failure::error)?;
    let bar = bar(export.total_bytes());
    let saved = export.save(&RealDisk, to, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    saved.map_err(Failure::error)
}

/// A bar on standard error, if that is a terminal.
pub(super) fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}
