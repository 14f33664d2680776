//! Three engines behind one trait, for the bench in processor time (`main.rs`) and the one in elapsed time
//! (`benches/engine.rs`).
//!
//! Each of the three holds what etcd needs: a tree from revision to pair, and an index from key and revision to what a
//! put must know of the version before. A put looks up the newest version of its key and adds an entry to both; 100 puts
//! are one transaction, which readers see at once and which is not synced, since the log is.

mod lmdb;
mod ours;
mod redb;

pub use lmdb::Lmdb;
pub use ours::Ours;
pub use redb::Redb;

use std::path::Path;

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whatever goes wrong ends the run.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Puts that become visible together.
pub const BATCH: usize = 100;
/// Puts between two syncs.
pub const SYNC_EVERY: usize = 200_000;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 256;
/// Pairs of a scan.
pub const SCANNED: usize = 100_000;

/// A pseudo-random number, and the state for the next.
pub fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

/// A store under test.
pub trait Engine: Sized {
    /// How it is called in the table.
    const NAME: &'static str;

    /// An empty one in an empty folder.
    fn create(folder: &Path) -> Outcome<Self>;

    /// Puts all the keys with the same value, as one transaction.
    fn put(&mut self, keys: &[[u8; 8]], value: &[u8]) -> Outcome<()>;

    /// Makes everything before it durable.
    fn sync(&mut self) -> Outcome<()>;

    /// The newest pair of each key; their length in bytes.
    fn get(&self, keys: &[[u8; 8]]) -> Outcome<usize>;

    /// Hands the first `count` pairs in order of revision to `each`.
    fn scan(&self, count: usize, each: &mut dyn FnMut(&[u8])) -> Outcome<()>;
}

/// Key of a pair: main revision, `_`, sub.
pub fn revision_key(main: u64, sub: u64) -> [u8; 17] {
    let mut key = [b'_'; 17];
    key[..8].copy_from_slice(&main.to_be_bytes());
    key[9..].copy_from_slice(&sub.to_be_bytes());
    key
}

/// Key of an index entry: the key, then main and sub.
pub fn index_key(key: &[u8; 8], main: u64) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(key);
    bytes[8..16].copy_from_slice(&main.to_be_bytes());
    bytes
}

/// What stands in the index for an engine that is not ours, in as many bytes: version, and revision of creation.
pub fn index_value(version: u32, created: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..3].copy_from_slice(&version.to_le_bytes()[..3]);
    bytes[3..].copy_from_slice(&created.to_le_bytes()[..5]);
    bytes
}

/// Version and revision of creation.
pub fn parse_index_value(bytes: &[u8]) -> (u32, u64) {
    let (mut version, mut created) = ([0; 4], [0; 8]);
    version[..3].copy_from_slice(&bytes[..3]);
    created[..5].copy_from_slice(&bytes[3..8]);
    (u32::from_le_bytes(version), u64::from_le_bytes(created))
}

/// A pair as etcd encodes it, near enough: key, value and three numbers.
pub fn pair(buffer: &mut Vec<u8>, key: &[u8; 8], value: &[u8], main: u64, version: u32, created: u64) {
    buffer.clear();
    buffer.extend_from_slice(key);
    buffer.extend_from_slice(&main.to_le_bytes()[..5]);
    buffer.extend_from_slice(&index_value(version, created));
    buffer.extend_from_slice(value);
}
