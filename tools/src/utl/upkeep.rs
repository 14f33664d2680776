//! `defrag` and `migrate`: changes to the store of a member that is not running.
//!
//! Promises: what the store holds stays as it is, but for the version that `migrate` sets. The store is locked
//! meanwhile, and each step is durable as a whole, so that a stop at any point leaves a store that is whole.

use std::path::{Path, PathBuf};

use trilith_engine::bolt::Kind;
use trilith_engine::{Store, StoreError, TreeId};

use super::files::{kind, open_store};
use crate::exit::Failure;
use crate::terminal::info;

/// Pages that are written anew in one go.
const STEP_PAGES: usize = 1024;
/// Where the storage version stands, in bucket `meta`.
const STORAGE_VERSION: &[u8] = b"storageVersion";
/// Releases that know of a storage version, and that this store can be exported for.
const FIRST_MINOR: u64 = 6;
const LAST_MINOR: u64 = 7;

/// The store's file in a data directory.
fn store_file(data_dir: &str) -> Result<PathBuf, Failure> {
    if data_dir.is_empty() {
        return Err(Failure::error("required flag(s) \"data-dir\" not set"));
    }
    Ok(Path::new(data_dir).join("member").join("snap").join("db"))
}

fn open(path: &Path) -> Result<Store, Failure> {
    match kind(path)? {
        Kind::Store => open_store(path),
        _ => Err(Failure::error(format_args!(
            "{} is no store of this version: etcd's own etcdutl knows it",
            path.display()
        ))),
    }
}

fn checkpoint(store: &mut Store) -> Result<(), StoreError> {
    store.publish();
    match store.begin_checkpoint() {
        Some(job) => store.finish_checkpoint(job.run()?).map(drop),
        None => Ok(()),
    }
}

/// Makes the file as short as it gets.
pub(super) fn defrag(data_dir: &str) -> Result<(), Failure> {
    let path = store_file(data_dir)?;
    let failed = |why: &dyn std::fmt::Display| {
        Failure::error(format_args!("Failed to defragment etcd data[{data_dir}] ({why})"))
    };
    let mut store = open(&path).map_err(|failure| failed(&failure.text))?;
    let before = store.file_bytes();
    shrink(&mut store).map_err(|error| failed(&error))?;
    info("etcdutl/defrag", "finished defragmenting directory", |line| {
        line.text("path", &path.display().to_string());
        line.plain("previous-db-size-bytes", before);
        line.plain("current-db-size-bytes", store.file_bytes());
    });
    Ok(())
}

fn shrink(store: &mut Store) -> Result<(), StoreError> {
    store.shrink_now();
    while !store.shrink_rests() {
        if let Some(scan) = store.begin_shrink_scan() {
            store.finish_shrink_scan(scan.run());
        }
        store.shrink_step(STEP_PAGES)?;
        if store.shrink_wants_checkpoint() {
            checkpoint(store)?;
        }
    }
    Ok(())
}

/// Sets the version that the store's snapshots and exports carry: an older etcd refuses a newer one. The content is
/// the same in all of them.
pub(super) fn migrate(data_dir: &str, target: &str, force: bool) -> Result<(), Failure> {
    let path = store_file(data_dir)?;
    if target.is_empty() {
        return Err(Failure::error("required flag(s) \"target-version\" not set"));
    }
    let minor = minor_of(target)?;
    let mut store = open(&path)?;
    let current = store.view().get(TreeId::Meta, STORAGE_VERSION).map_err(Failure::error)?;
    let current = current.map(|version| String::from_utf8_lossy(&version).into_owned());
    let wanted = (minor >= FIRST_MINOR).then(|| format!("3.{minor}.0"));
    if current == wanted {
        info("etcdutl/migrate", "storage version up-to-date", |line| line.text("storage-version", target));
        return Ok(());
    }
    if minor > LAST_MINOR && !force {
        return Err(Failure::error(format_args!(
            "cannot create migration plan: version \"{target}.0\" is not supported"
        )));
    }
    match &wanted {
        Some(version) => store.insert(TreeId::Meta, STORAGE_VERSION, version.as_bytes()),
        None => store.remove(TreeId::Meta, STORAGE_VERSION).map(drop),
    }
    .and_then(|()| checkpoint(&mut store))
    .map_err(Failure::error)?;
    info("etcdutl/migrate", "updated storage version", |line| line.text("new-storage-version", target));
    Ok(())
}

/// The minor number of X.Y, where X is 3 and Y is at least 5.
fn minor_of(target: &str) -> Result<u64, Failure> {
    let Some((major, minor)) = target.split_once('.').filter(|(_, minor)| !minor.contains('.')) else {
        return Err(Failure::bad_args(format_args!(
            "wrong target version format, expected \"X.Y\", got {target:?}"
        )));
    };
    let (Ok(major), Ok(minor)) = (major.parse::<u64>(), minor.parse::<u64>()) else {
        return Err(Failure::bad_args(format_args!("failed to parse target version: {target}")));
    };
    match (major, minor) {
        (..3, _) | (3, ..5) => {
            Err(Failure::bad_args(format_args!("target version {target:?} not supported. Minimal \"3.5\"")))
        }
        (3, minor) => Ok(minor),
        _ => Err(Failure::error(
            "cannot create migration plan: changing major storage version is not supported",
        )),
    }
}
