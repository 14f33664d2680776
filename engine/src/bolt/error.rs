//! What can be wrong with a bbolt file, with the place where it is.

use std::io;
use std::path::PathBuf;

use crate::StoreError;

/// An error of reading or writing a bbolt file.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// The disk refused.
    #[error("{path}: {action}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The disk's answer.
        source: io::Error,
    },
    /// The structure of the file is broken. Nothing of the page has been used.
    #[error("{path}: page {page}: {field}: {problem}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The page.
        page: u64,
        /// The field of it that is wrong.
        field: &'static str,
        /// What it holds, and what it may hold.
        problem: String,
    },
    /// The structure is whole, but an entry is not what etcd keeps in its bucket.
    #[error("{path}: bucket {bucket}: entry {key}: {problem}", path = path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The bucket.
        bucket: &'static str,
        /// The entry's key, escaped.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file has no hash at its end: it was copied from a data directory, or cut off.
    #[error("{path}: {len} bytes without a SHA-256 at the end: not a snapshot, or truncated", path = path.display())]
    HashMissing {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        len: u64,
    },
    /// The content is not what the hash at the end says. `place` is the first page that is visibly broken.
    #[error("{path}: the SHA-256 at the end does not match: {place}", path = path.display())]
    HashMismatch {
        /// The file.
        path: PathBuf,
        /// What a walk through the file found.
        place: String,
    },
    /// The store that is read or built.
    #[error(transparent)]
    Store(#[from] StoreError),
}
