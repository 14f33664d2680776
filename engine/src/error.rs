//! What can go wrong in the store, with the place where it did.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused.
    #[error("{path}: {action}: {source}", path = path.display())]
    Io {
        /// The store's file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The disk's answer.
        source: io::Error,
    },
    /// Bytes on disk are not what was written. Nothing of the page has been used.
    #[error("{path}: page {page}: {field} is {found}, expected {expected}: the file is corrupt", path = path.display())]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// The page, or the first page of an extent.
        page: u64,
        /// The field of it that is wrong.
        field: &'static str,
        /// What it should hold.
        expected: u64,
        /// What it holds.
        found: u64,
    },
    /// Another process has the file open.
    #[error("{path}: another process has this store open", path = path.display())]
    Locked {
        /// The store's file.
        path: PathBuf,
    },
    /// The file was written in a format that this version cannot read.
    #[error("{path}: {field} is {found}, this version reads {expected} only", path = path.display())]
    Unsupported {
        /// The store's file.
        path: PathBuf,
        /// The field of the meta page.
        field: &'static str,
        /// What this version reads.
        expected: u64,
        /// What the file has.
        found: u64,
    },
    /// A key or a value is longer than the store can hold.
    #[error("a {what} of {len} bytes is longer than the limit of {max} bytes")]
    TooLong {
        /// "key" or "value".
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// The file has its greatest size.
    #[error("{path}: the store has its greatest size, {max} bytes", path = path.display())]
    Full {
        /// The store's file.
        path: PathBuf,
        /// The limit, in bytes.
        max: u64,
    },
    /// A checkpoint failed earlier; the store takes no more changes until it is opened again.
    #[error("{path}: the store stopped after an error: {reason}", path = path.display())]
    Stopped {
        /// The store's file.
        path: PathBuf,
        /// The first error.
        reason: String,
    },
    /// Trees that change together disagree, or an entry is not what belongs into its tree, though the pages are as
    /// they were written. The text names the tree and the entry.
    #[error("the store is inconsistent: {0}")]
    Inconsistent(String),
    /// The revision has been compacted.
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    /// The revision does not exist yet.
    #[error("mvcc: required revision is a future revision")]
    Future,
}

impl StoreError {
    /// Whether there was no room: on the disk, for this user, or in the format.
    pub fn is_no_space(&self) -> bool {
        match self {
            StoreError::Io { source, .. } => {
                matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            }
            StoreError::Full { .. } => true,
            _ => false,
        }
    }
}
