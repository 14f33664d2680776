//! `snapshot status` and `hashkv`: what a file holds, in a few numbers.
//!
//! A bbolt file is walked through before a number is printed, and its SHA-256 is compared if it has one. One of our
//! stores is taken as the snapshot that it would give.

use std::path::Path;

use trilith_disk::RealDisk;
use trilith_engine::bolt::{BoltFile, Import, Kind, import, summarize};

use super::files::{MEMORY, Scratch, bar, disk, kind, open_store, save_as_bolt};
use super::print::{Part, Printer, Value};
use crate::exit::Failure;
use crate::gotext::human_bytes;

pub(super) fn status(path: &Path, printer: Printer) -> Result<(), Failure> {
    let kind = kind(path)?;
    let scratch = Scratch::new()?;
    let exported = scratch.path("store");
    if kind == Kind::Store {
        save_as_bolt(&open_store(path)?, &exported)?;
    }
    let path = if kind == Kind::Store { &exported } else { path };
    let file = BoltFile::open(&RealDisk, path).map_err(Failure::error)?;
    let bar = bar(file.size() * 2);
    if file.has_hash() {
        file.require_hash(&mut |done| bar.set_position(done)).map_err(Failure::error)?;
    }
    file.check().map_err(|error| {
        Failure::error(format_args!("snapshot file integrity check failed. 1 errors found.\n{error}"))
    })?;
    let summary = summarize(&file, &disk(), scratch.path("keys"), MEMORY, &mut |done| {
        bar.set_position(file.size() + done);
    });
    bar.finish_and_clear();
    let summary = summary.map_err(Failure::error)?;
    let number = |title, field, json, value: i64| Part {
        title,
        field,
        json,
        value: Value::Number(value),
        shown: value.to_string(),
    };
    let hash = number("HASH", "Hash", "hash", i64::from(summary.hash));
    let size = number("TOTAL SIZE", "Size", "totalSize", summary.bytes as i64);
    printer.print(&[
        Part { shown: format!("{:x}", summary.hash), ..hash },
        number("REVISION", "Revision", "revision", summary.revision),
        number("TOTAL KEYS", "Keys", "totalKey", summary.live_keys as i64),
        Part { shown: human_bytes(summary.bytes), ..size },
        Part {
            title: "VERSION",
            field: "Version",
            json: "version",
            value: Value::Text(&summary.version),
            shown: summary.version.clone(),
        },
    ])
}

/// Of a bbolt file a store is made first, since the hash needs its index.
pub(super) fn hash_kv(path: &Path, revision: i64, printer: Printer) -> Result<(), Failure> {
    let kind = kind(path)?;
    let scratch = Scratch::new()?;
    let imported = scratch.path("db");
    if kind == Kind::Bolt {
        let options = Import {
            disk: disk(),
            from: path.to_owned(),
            to: imported.clone(),
            skip_hash_check: true,
            bump_revision: 0,
            memory: MEMORY,
        };
        let bar = bar(0);
        let made = import(&options, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        made.map_err(Failure::error)?;
    }
    let store = open_store(if kind == Kind::Bolt { &imported } else { path })?;
    let (hash, compacted, revision) = store.view().hash_kv(revision).map_err(Failure::error)?;
    let number = |title, field, json, value: i64| Part {
        title,
        field,
        json,
        value: Value::Number(value),
        shown: value.to_string(),
    };
    printer.print(&[
        number("HASH", "Hash", "hash", i64::from(hash)),
        number("HASH REVISION", "Hash revision", "hashRevision", revision),
        number("COMPACT REVISION", "Compact revision", "compactRevision", compacted),
    ])
}
