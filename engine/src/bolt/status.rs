//! What etcd's tools say of a bbolt file: one pass over its entries.
//!
//! Promises: the numbers are etcd's; memory is bounded, whatever the file holds: user keys are sorted in files if
//! memory does not hold them.

use std::path::PathBuf;
use std::sync::Arc;

use trilith_disk::Disk;

use super::sort::Sorter;
use super::{BoltError, BoltFile};
use crate::mvcc::{index_record, indexed};
use crate::order::Order;

/// A file in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// CRC-32C over the name of each bucket, then key and value of its entries: nothing is left out.
    pub hash: u32,
    /// Main revision of the last entry of bucket `key`; 0 if there is none.
    pub revision: i64,
    /// User keys that are not deleted.
    pub live_keys: u64,
    /// Bytes of the database, without the hash at the end.
    pub bytes: u64,
    /// `meta/storageVersion`; empty where there is none.
    pub version: String,
}

/// Goes through a file. `scratch`: a path that names of scratch files are made of; `memory`: bytes for sorting;
/// `progress` hears how many bytes have been passed. Errors: Io, Damaged, Entry.
pub fn summarize(
    file: &BoltFile,
    disk: &Arc<dyn Disk>,
    scratch: PathBuf,
    memory: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<Summary, BoltError> {
    let mut sorter = Sorter::new(disk.clone(), scratch, Order::KeyThenRevision, memory);
    let mut summary =
        Summary { hash: 0, revision: 0, live_keys: 0, bytes: file.size(), version: String::new() };
    let (mut record, mut facts, mut done) = (Vec::new(), Vec::new(), 0);
    for bucket in file.buckets()? {
        summary.hash = crc32c::crc32c_append(summary.hash, &bucket.name);
        let mut entries = file.entries(&bucket)?;
        let mut passed = 0u64;
        while let Some(entry) = entries.next()? {
            let (key, value) = (entry.key, entry.value);
            summary.hash = crc32c::crc32c_append(crc32c::crc32c_append(summary.hash, key), value);
            if bucket.name == b"meta" && key == b"storageVersion" {
                summary.version = String::from_utf8_lossy(value).into_owned();
            }
            if bucket.name == b"key" {
                let bad = |problem| {
                    let key = key.escape_ascii().to_string();
                    BoltError::Entry { path: file.path().to_owned(), bucket: "key", key, problem }
                };
                summary.revision = index_record(key, value, &mut record, &mut facts).map_err(bad)?;
                // An entry without a pair lifts the revision and is nobody's.
                if !value.is_empty() {
                    sorter.push(&record, &facts)?;
                }
            }
            passed += 1;
            done += (key.len() + value.len()) as u64;
            if passed.is_multiple_of(4096) {
                progress(done.min(summary.bytes));
            }
        }
    }
    summary.live_keys = live_keys(sorter)?;
    progress(summary.bytes);
    Ok(summary)
}

/// Of the records of each key the last one decides.
fn live_keys(sorter: Sorter) -> Result<u64, BoltError> {
    let (mut count, mut last, mut live) = (0, Vec::new(), false);
    sorter.drain(|record, facts| {
        let (key, is_live) = indexed(record, facts);
        if key != last.as_slice() {
            count += u64::from(live);
            last.clear();
            last.extend_from_slice(key);
        }
        live = is_live;
        Ok(())
    })?;
    Ok(count + u64::from(live))
}
