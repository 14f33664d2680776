//! What can go wrong with a log. Every error names the file, and the offset where there is one.

use std::io;
use std::path::{Path, PathBuf};

/// Why a log cannot be made, opened or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// A call of the operating system failed.
    #[error("write-ahead log: {what} {path}: {source}")]
    Io {
        /// The call.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Bytes that were durable are damaged; what was acknowledged may be lost.
    #[error(
        "write-ahead log: {path} is damaged at offset {offset} (case {case}): {what}. This is no torn write, so \
         nothing was cut. To rejoin: remove this member from its cluster, move its data folder away, add it as a \
         new member and start it with an empty folder; for a cluster of one, restore a snapshot"
    )]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Offset of the first byte that cannot be trusted.
        offset: u64,
        /// The letter in the table of recovery cases.
        case: char,
        /// What is wrong there.
        what: String,
    },
    /// Entries are missing between two records.
    #[error(
        "write-ahead log: {path}: entry {found} at offset {offset} follows entry {last}: entries are missing"
    )]
    Gap {
        /// The segment.
        path: PathBuf,
        /// Offset of the record of the entry found.
        offset: u64,
        /// Index of the last entry before (or of the state that the reader starts from).
        last: u64,
        /// Index of the entry found.
        found: u64,
    },
    /// Two records of one log name different owners.
    #[error("write-ahead log: {path}: metadata at offset {offset} differs from the log's own")]
    MetadataConflict {
        /// The segment.
        path: PathBuf,
        /// Offset of the differing record.
        offset: u64,
    },
    /// The folder holds no log, or not the segments that are needed.
    #[error("write-ahead log: {path}: {what}")]
    Missing {
        /// The folder or the segment.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// The folder holds a log already.
    #[error("write-ahead log: {path} holds a log already")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// Another process holds the log.
    #[error("write-ahead log: {path} is locked by another process")]
    Locked {
        /// The segment.
        path: PathBuf,
    },
    /// io_uring was asked for and is not possible here.
    #[error("write-ahead log: io_uring was asked for, and is not possible in {path}: {reason}")]
    NoUring {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// The disk is full and nothing is lost: what was gathered waits until there is space. Only `flush` returns it,
    /// which would have to wait for that.
    #[error("write-ahead log: {path}: the disk is full, and what was gathered waits for space")]
    Full {
        /// The folder.
        path: PathBuf,
    },
    /// An earlier write or sync failed; the log takes no more.
    #[error("write-ahead log: stopped after an earlier failure: {0}")]
    Stopped(String),
}

impl WalError {
    /// Whether a disk or a quota without space is the reason.
    pub(crate) fn is_full(&self) -> bool {
        let WalError::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// For implementations of a log outside this crate, whose disk has no paths; the log itself names the file.
impl From<io::Error> for WalError {
    fn from(error: io::Error) -> WalError {
        WalError::Stopped(error.to_string())
    }
}

/// Turns the answer of a call on a path into an error that names both.
pub(crate) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> WalError + 'a {
    move |source| WalError::Io { what, path: path.to_owned(), source }
}
