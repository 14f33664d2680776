//! Whose file it is: told by the first bytes, before anything of it is used.

use std::io;
use std::path::Path;

use trilith_disk::{Disk, Open};

use super::BoltFile;
use super::format::HEADER;
use crate::page::PAGE;

const STORE_MAGIC: &[u8] = b"TRILITH\0";
const BOLT_MAGIC: [u8; 4] = 0xED0C_DAEDu32.to_le_bytes();

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of our stores.
    Store,
    /// A bbolt file: etcd's database, or a snapshot.
    Bolt,
    /// Neither, as far as its meta pages tell.
    Unknown,
}

/// Looks at the meta pages of a file. One that can be read is enough. Errors: the disk's.
pub fn kind_of(disk: &dyn Disk, path: &Path) -> io::Result<Kind> {
    let file = disk.open(path, Open::ReadOnly)?;
    let len = file.len()?;
    let holds = |offset: u64, magic: &[u8]| {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..magic.len()];
        let there = offset + magic.len() as u64 <= len;
        Ok::<bool, io::Error>(there && file.read_exact_at(bytes, offset).map(|()| *bytes == *magic)?)
    };
    if holds(0, STORE_MAGIC)? || holds(PAGE as u64, STORE_MAGIC)? {
        return Ok(Kind::Store);
    }
    // Where the first meta page is lost, the second stands at a place that only a search finds.
    let bolt = holds(HEADER as u64, &BOLT_MAGIC)? || BoltFile::open(disk, path).is_ok();
    Ok(if bolt { Kind::Bolt } else { Kind::Unknown })
}
