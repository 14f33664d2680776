//! Names of the files of a log: `SSSSSSSSSSSSSSSS-IIIIIIIIIIIIIIII.wal`, a segment's sequence number and the index
//! after the last entry before it, 16 hex digits each.

use std::path::{Path, PathBuf};

use trilith_disk::Disk;

use crate::WalError;
use crate::error::io_error;

/// A segment as its name tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) seq: u64,
    pub(crate) index: u64,
    pub(crate) path: PathBuf,
}

impl Name {
    pub(crate) fn new(dir: &Path, seq: u64, index: u64) -> Name {
        Name { seq, index, path: dir.join(format!("{seq:016x}-{index:016x}.wal")) }
    }

    fn parse(path: &Path) -> Option<Name> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".wal")?;
        let (seq, index) = stem.split_once('-')?;
        let hex = |s: &str| {
            let digits = s.len() == 16 && s.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(s, 16).ok()).flatten()
        };
        Some(Name { seq: hex(seq)?, index: hex(index)?, path: path.to_owned() })
    }
}

/// The segments of a folder by sequence number. Other files are none of the log's and are left alone.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<Name>, WalError> {
    let paths = disk.list(dir).map_err(io_error("list", dir))?;
    let mut names: Vec<Name> = paths.iter().filter_map(|p| Name::parse(p)).collect();
    names.sort_by_key(|n| n.seq);
    Ok(names)
}

/// The newest segment whose entries begin at or before `index + 1`, among segments in order: everything that a
/// reader needs who holds the state at `index` stands in it and after it. etcd asks for a name index of at most
/// `index`, and so do we, so that both start at the same segment.
pub(crate) fn start_for(
    names: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator,
    index: u64,
) -> Option<usize> {
    names.enumerate().rev().find(|(_, first)| *first <= index).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_etcds() {
        let name = Name::new(Path::new("d"), 0x1f, 0x2a);
        assert_eq!(name.path, Path::new("d/000000000000001f-000000000000002a.wal"));
        assert_eq!(Name::parse(&name.path), Some(name));
        for bad in ["0.tmp", "0000000000000000-0000000000000000.wal.broken", "0-0.wal", "x.wal", ".wal"] {
            assert_eq!(Name::parse(Path::new(bad)), None, "{bad}");
        }
    }

    #[test]
    fn the_start_is_the_newest_segment_that_begins_early_enough() {
        let names = [0, 11, 21, 19, 40];
        let start = |index| start_for(names.iter().copied(), index);
        assert_eq!(start(0), Some(0));
        assert_eq!(start(10), Some(0));
        assert_eq!(start(11), Some(1));
        assert_eq!(start(19), Some(3), "a conflict can lower the index of a later segment");
        assert_eq!(start(50), Some(4));
        assert_eq!(start_for([5u64].into_iter(), 4), None);
    }
}
