//! The storage engine: copy-on-write B+trees under one published root, and MVCC on top.
//!
//! The store is a set of trees ([`TreeId`]). The single writer ([`Store`]) changes them and publishes a new root
//! once per batch; readers ([`Reader`], [`Root`], [`View`]) read from a root and lock nothing. A checkpoint writes
//! what is new to the file, beside the running writer. `docs/format.md` has every byte of that file.
//!
//! Promises: what a root holds never changes; a checkpoint is durable as a whole or not at all; no byte of the file
//! is used before its checksum has been verified. It must never know of raft or of gRPC: an applied index is a
//! number that it keeps.

pub mod bolt;
mod cache;
mod check;
mod checkpoint;
mod compress;
mod crc;
mod cursor;
mod damage;
mod edit;
mod edit_bulk;
mod edit_longs;
mod edit_put;
mod error;
mod extent;
mod heads;
mod map;
mod mark;
mod memory;
mod meta;
mod mvcc;
mod node;
mod open;
mod order;
mod pack;
mod page;
mod rearrange;
mod repack;
mod root;
mod scrub;
mod search;
mod sheet;
mod shrink;
mod source;
mod space;
mod store;
mod sums;
mod valid;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use trilith_disk::Disk;

pub use checkpoint::{CheckpointDone, CheckpointInfo, CheckpointJob};
pub use cursor::Cursor;
pub use damage::Damage;
pub use error::StoreError;
pub use mvcc::*;
pub use repack::{ShrinkPlan, ShrinkScan};
pub use root::{Reader, Root, Value, View};
pub use scrub::{Scrub, ScrubPiece};
pub use store::Store;

/// How many numbers belong to a root beside its trees ([`View::counter`]).
pub const COUNTERS: usize = 16;
/// Longest key, in bytes.
pub const KEY_MAX: usize = 64 << 20;
/// Longest value, in bytes.
pub const VALUE_MAX: usize = 64 << 20;
const TREES: usize = 12;

/// The trees under the root. All but Index and LeaseKey are etcd's buckets, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TreeId {
    /// Revisions: etcd's bucket `key`.
    Key = 0,
    /// Ours: user key then revision (8 + 4 bytes, big endian), ordered by key and then by revision.
    Index = 1,
    /// Ours: lease id (8 bytes, big endian) then user key: what is attached to a lease.
    LeaseKey = 2,
    /// etcd's bucket `meta`.
    Meta = 3,
    /// etcd's bucket `lease`.
    Lease = 4,
    /// etcd's bucket `alarm`.
    Alarm = 5,
    /// etcd's bucket `auth`.
    Auth = 6,
    /// etcd's bucket `authUsers`.
    AuthUsers = 7,
    /// etcd's bucket `authRoles`.
    AuthRoles = 8,
    /// etcd's bucket `members`.
    Members = 9,
    /// etcd's bucket `members_removed`.
    MembersRemoved = 10,
    /// etcd's bucket `cluster`.
    Cluster = 11,
}

impl TreeId {
    /// Every tree, in the order of their numbers.
    pub const ALL: [TreeId; TREES] = [
        TreeId::Key,
        TreeId::Index,
        TreeId::LeaseKey,
        TreeId::Meta,
        TreeId::Lease,
        TreeId::Alarm,
        TreeId::Auth,
        TreeId::AuthUsers,
        TreeId::AuthRoles,
        TreeId::Members,
        TreeId::MembersRemoved,
        TreeId::Cluster,
    ];

    /// Its name: of a bucket of etcd, or our own.
    pub fn name(self) -> &'static str {
        match self {
            TreeId::Key => "key",
            TreeId::Index => "index",
            TreeId::LeaseKey => "lease keys",
            TreeId::Meta => "meta",
            TreeId::Lease => "lease",
            TreeId::Alarm => "alarm",
            TreeId::Auth => "auth",
            TreeId::AuthUsers => "authUsers",
            TreeId::AuthRoles => "authRoles",
            TreeId::Members => "members",
            TreeId::MembersRemoved => "members_removed",
            TreeId::Cluster => "cluster",
        }
    }
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// The store's file.
    pub path: PathBuf,
    /// Where it lives.
    pub disk: Arc<dyn Disk>,
    /// Read clean pages through a memory map; else through pread and a bounded cache (always so on a simulated disk).
    pub map: bool,
    /// A checkpoint is due when dirty nodes hold this many bytes. The cache of a file that is not mapped holds as many.
    pub dirty_bytes_max: usize,
    /// Store long values compressed where that pays.
    pub compress: bool,
}
