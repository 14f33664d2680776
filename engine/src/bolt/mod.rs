//! bbolt files, etcd's file format: a reader, a writer that streams a root, and the import into a store.
//!
//! [`BoltFile`] reads what etcd (or [`Export`]) has written: snapshots with a SHA-256 at the end, and the database of a
//! data directory. [`import`] makes a store of such a file; [`Export`] makes a snapshot of a root, chunk by chunk.
//!
//! Promises: memory is bounded, whatever the size of the file; a file that is damaged or cut off is refused with the
//! place named, and never makes the process panic or loop. It must never know what a member or a lease means: what
//! stands in the buckets is copied.

mod build;
mod entries;
mod error;
mod export;
mod file;
mod format;
mod import;
mod kind;
mod sort;
mod status;

#[cfg(test)]
mod import_tests;
#[cfg(test)]
mod tests;

pub use entries::{Entries, Entry};
pub use error::BoltError;
pub use export::{CHUNK_BYTES, Export};
pub use file::{BoltFile, Bucket, Trailer};
pub use import::{Import, Imported, import};
pub use kind::{Kind, kind_of};
pub use status::{Summary, summarize};

/// Entries of bucket `meta` that our stores keep beside their trees: index and term of the entry applied last, 8 bytes,
/// big endian.
const CONSISTENT_INDEX: &[u8] = b"consistent_index";
const TERM: &[u8] = b"term";
