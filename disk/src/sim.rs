//! A simulated disk in memory: records every operation, and can be cut at each of them.
//!
//! The model is the one that journalling file systems and drives give: a write or a name is durable only after the
//! sync that covers it; before that, any part of it may have reached the platter, in any order, torn at sectors of
//! 512 bytes. [`SimDisk::crash`] builds the disk that a machine would find after losing power at an operation.
//!
//! A disk may be given a size ([`SimDisk::set_limit`]). What takes space is blocks of 4 KiB that were written or
//! allocated; holes take none, and what was taken once can be written again on a full disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::{Disk, File, Open};

/// The unit that a torn write is torn at.
pub const SECTOR_BYTES: usize = 512;

/// The unit that space is taken in.
const BLOCK_BYTES: u64 = crate::ALIGNMENT as u64;

/// What the operations that were not synced before the cut leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    /// All of them, whole.
    All,
    /// None of them.
    None,
    /// A random choice, by sectors, from this seed.
    Random(u64),
}

type FileId = usize;

#[derive(Debug, Clone)]
enum Op {
    Create(PathBuf, FileId),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Write(FileId, u64, Vec<u8>),
    SetLen(FileId, u64),
    Allocate(FileId, u64, u64),
    ZeroRange(FileId, u64, u64),
    Sync(FileId),
    SyncDir(PathBuf),
}

#[derive(Debug, Default, Clone)]
struct State {
    names: BTreeMap<PathBuf, FileId>,
    bytes: Vec<Vec<u8>>,
    /// Which blocks of each file take space.
    taken: Vec<BTreeSet<u64>>,
}

#[derive(Debug, Default)]
struct Inner {
    now: State,
    /// What the disk held when recording began; all of it durable.
    start: State,
    ops: Vec<Op>,
    fail_after: Option<usize>,
    /// What syncs of bytes fail with.
    fail_syncs: Option<io::ErrorKind>,
    /// Bytes that named files may take.
    limit: Option<u64>,
}

/// The disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: FileId,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// How many operations have been recorded: the cuts go from 0 to this number.
    pub fn op_count(&self) -> usize {
        self.inner().ops.len()
    }

    /// Bytes of all recorded writes.
    pub fn bytes_written(&self) -> u64 {
        let written = |op: &Op| if let Op::Write(_, _, bytes) = op { bytes.len() as u64 } else { 0 };
        self.inner().ops.iter().map(written).sum()
    }

    /// Whether the operation of that number is a sync of bytes or names.
    pub fn is_sync(&self, op: usize) -> bool {
        matches!(self.inner().ops.get(op), Some(Op::Sync(_) | Op::SyncDir(_)))
    }

    /// Every operation after the first `ops` recorded ones fails with an I/O error.
    pub fn fail_after(&self, ops: usize) {
        self.inner().fail_after = Some(ops);
    }

    /// Every sync of a file's bytes fails with this, and makes nothing durable.
    pub fn fail_syncs(&self, kind: io::ErrorKind) {
        self.inner().fail_syncs = Some(kind);
    }

    /// Operations succeed again.
    pub fn heal(&self) {
        let mut inner = self.inner();
        (inner.fail_after, inner.fail_syncs) = (None, None);
    }

    /// What would take new space beyond this many bytes fails with `StorageFull` and changes nothing, as long as
    /// the limit stands. A limit below what is taken already is a full disk.
    pub fn set_limit(&self, bytes: Option<u64>) {
        self.inner().limit = bytes;
    }

    /// Bytes that the files with a name take.
    pub fn used(&self) -> u64 {
        self.inner().now.used()
    }

    /// Flips bits of a byte of a file, durably and unrecorded.
    pub fn corrupt(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut inner = self.inner();
        let id = *inner.now.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let byte = inner.now.bytes[id].get_mut(offset as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        *byte ^= mask;
        Ok(())
    }

    /// An independent copy of the disk as it stands, all of it durable.
    pub fn fork(&self) -> SimDisk {
        let now = self.inner().now.clone();
        SimDisk::holding(now)
    }

    /// The disk after losing power when the first `ops` operations had been done.
    pub fn crash(&self, ops: usize, survivors: Survivors) -> SimDisk {
        let inner = self.inner();
        let done = &inner.ops[..ops];
        let mut rng = Rng(match survivors {
            Survivors::Random(seed) => seed ^ 0x9e37_79b9_7f4a_7c15,
            _ => 1,
        });
        let mut state = inner.start.clone();
        state.resize(inner.now.bytes.len());
        for (op, durable) in done.iter().zip(durable_ops(done)) {
            let whole = durable || survivors == Survivors::All;
            match op {
                Op::Write(id, offset, bytes) if !whole => {
                    if let Survivors::Random(_) = survivors {
                        state.write_torn(*id, *offset, bytes, &mut rng);
                    }
                }
                Op::ZeroRange(id, offset, len) if !whole && survivors != Survivors::None => {
                    // File systems do it extent by extent, so any part of it may be there.
                    for block in blocks(*offset, *len).filter(|_| rng.flip()) {
                        let (start, end) = (block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
                        let (start, end) = (start.max(*offset), end.min(offset + len));
                        state.apply(&Op::ZeroRange(*id, start, end - start));
                    }
                }
                _ if whole || (survivors != Survivors::None && rng.flip()) => state.apply(op),
                _ => {}
            }
        }
        SimDisk::holding(state)
    }

    /// A disk without a limit that holds this durably.
    fn holding(state: State) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Inner { start: state.clone(), now: state, ..Inner::default() })))
    }

    fn record(&self, op: Op) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.fail_after.is_some_and(|n| inner.ops.len() >= n) {
            return Err(io::Error::other("simulated disk failure"));
        }
        if inner.limit.is_some_and(|limit| inner.now.exceeds(limit, &op)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inner.now.apply(&op);
        inner.ops.push(op);
        Ok(())
    }
}

impl State {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path, id) => {
                self.resize(self.bytes.len().max(*id + 1));
                self.names.insert(path.clone(), *id);
            }
            Op::Rename(from, to) => {
                if let Some(id) = self.names.remove(from) {
                    self.names.insert(to.clone(), id);
                }
                // A folder is the common start of its files' paths.
                let inside = |path: &PathBuf| path.strip_prefix(from).ok().map(|rest| to.join(rest));
                let moved: Vec<_> =
                    self.names.iter().filter_map(|(p, id)| Some((p.clone(), inside(p)?, *id))).collect();
                for (old, new, id) in moved {
                    self.names.remove(&old);
                    self.names.insert(new, id);
                }
            }
            Op::Remove(path) => {
                self.names.remove(path);
            }
            Op::Write(id, offset, bytes) => self.write_at(*id, *offset, bytes),
            Op::SetLen(id, len) => {
                self.bytes[*id].resize(*len as usize, 0);
                self.taken[*id].split_off(&len.div_ceil(BLOCK_BYTES));
            }
            Op::Allocate(id, offset, len) => {
                let end = self.bytes[*id].len().max((offset + len) as usize);
                self.bytes[*id].resize(end, 0);
                self.taken[*id].extend(blocks(*offset, *len));
            }
            Op::ZeroRange(id, offset, len) => {
                let file = &mut self.bytes[*id];
                let end = file.len().min((offset + len) as usize);
                file[end.min(*offset as usize)..end].fill(0);
                self.taken[*id].extend(blocks(*offset, *len));
            }
            Op::Sync(_) | Op::SyncDir(_) => {}
        }
    }

    fn resize(&mut self, files: usize) {
        self.bytes.resize(files, Vec::new());
        self.taken.resize(files, BTreeSet::new());
    }

    fn used(&self) -> u64 {
        self.names.values().map(|id| self.taken[*id].len() as u64 * BLOCK_BYTES).sum()
    }

    /// Whether the operation takes new space beyond the limit.
    fn exceeds(&self, limit: u64, op: &Op) -> bool {
        let (id, blocks) = match op {
            Op::Write(id, offset, bytes) => (id, blocks(*offset, bytes.len() as u64)),
            Op::Allocate(id, offset, len) | Op::ZeroRange(id, offset, len) => (id, blocks(*offset, *len)),
            _ => return false,
        };
        let new = blocks.clone().count() - self.taken[*id].range(blocks).count();
        new > 0 && self.used() + new as u64 * BLOCK_BYTES > limit
    }

    fn write_at(&mut self, id: FileId, offset: u64, bytes: &[u8]) {
        let (file, start) = (&mut self.bytes[id], offset as usize);
        let end = start + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[start..end].copy_from_slice(bytes);
        self.taken[id].extend(blocks(offset, bytes.len() as u64));
    }

    /// Writes a random choice of the sectors that the write covers.
    fn write_torn(&mut self, id: FileId, offset: u64, bytes: &[u8], rng: &mut Rng) {
        let start = offset as usize;
        let mut at = 0;
        while at < bytes.len() {
            let sector_end = ((start + at) / SECTOR_BYTES + 1) * SECTOR_BYTES - start;
            let end = sector_end.min(bytes.len());
            if rng.flip() {
                self.write_at(id, offset + at as u64, &bytes[at..end]);
            }
            at = end;
        }
    }
}

/// Numbers of the blocks that hold these bytes.
fn blocks(offset: u64, len: u64) -> Range<u64> {
    offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES)
}

/// For each operation, whether a later one makes it durable.
fn durable_ops(ops: &[Op]) -> Vec<bool> {
    let mut files = BTreeSet::new();
    let mut folders = BTreeSet::new();
    let mut durable = vec![false; ops.len()];
    for (i, op) in ops.iter().enumerate().rev() {
        let named = |path: &Path| path.parent().is_some_and(|dir| folders.contains(dir));
        durable[i] = match op {
            Op::Write(id, ..) | Op::SetLen(id, _) | Op::Allocate(id, ..) | Op::ZeroRange(id, ..) => {
                files.contains(id)
            }
            Op::Create(path, _) | Op::Remove(path) => named(path),
            Op::Rename(from, to) => named(from) || named(to),
            Op::Sync(_) | Op::SyncDir(_) => false,
        };
        match op {
            Op::Sync(id) => drop(files.insert(*id)),
            Op::SyncDir(dir) => drop(folders.insert(dir.as_path())),
            _ => {}
        }
    }
    durable
}

/// xorshift64: the simulated disk needs no more.
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn flip(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 33 & 1 == 1
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let (found, next) = {
            let inner = self.inner();
            (inner.now.names.get(path).copied(), inner.now.bytes.len())
        };
        let id = match (found, how) {
            (Some(_), Open::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Open::Existing | Open::ReadOnly) => return Err(io::ErrorKind::NotFound.into()),
            (Some(id), _) => id,
            (None, _) => {
                self.record(Op::Create(path.to_owned(), next))?;
                next
            }
        };
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if !self.exists(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.record(Op::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !self.exists(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.record(Op::Remove(path.to_owned()))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.inner().now.names.keys().filter(|p| p.parent() == Some(dir)).cloned().collect())
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.record(Op::SyncDir(dir.to_owned()))
    }

    fn exists(&self, path: &Path) -> bool {
        self.inner().now.names.keys().any(|p| p.starts_with(path))
    }
}

impl File for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let inner = self.disk.inner();
        let start = offset as usize;
        let bytes =
            inner.now.bytes[self.id].get(start..start + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.disk.record(Op::Write(self.id, offset, buf.to_vec()))
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Some(kind) = self.disk.inner().fail_syncs {
            return Err(kind.into());
        }
        self.disk.record(Op::Sync(self.id))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.inner().now.bytes[self.id].len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.record(Op::SetLen(self.id, len))
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.record(Op::Allocate(self.id, offset, len))
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.record(Op::ZeroRange(self.id, offset, len))
    }

    fn lock(&self) -> io::Result<()> {
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
        let file = disk.open(Path::new(path), Open::Existing).ok()?;
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        Some(bytes)
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_tears_the_rest() {
        let disk = SimDisk::new();
        let file = disk.open(Path::new("d/f"), Open::CreateNew).unwrap();
        file.write_all_at(&[1; 2048], 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new("d")).unwrap();
        file.write_all_at(&[2; 2048], 0).unwrap();
        let all = disk.op_count();
        assert_eq!(read(&disk.crash(all, Survivors::None), "d/f").unwrap(), [1; 2048]);
        assert_eq!(read(&disk.crash(all, Survivors::All), "d/f").unwrap(), [2; 2048]);
        assert_eq!(read(&disk.crash(2, Survivors::None), "d/f"), None, "the name was not durable yet");
        let mut mixed = 0;
        for seed in 0..50 {
            let bytes = read(&disk.crash(all, Survivors::Random(seed)), "d/f").unwrap();
            for sector in bytes.chunks(SECTOR_BYTES) {
                assert!(sector.iter().all(|b| *b == sector[0]), "sectors are written whole");
            }
            mixed += usize::from(bytes[0] != bytes[2047]);
        }
        assert!(mixed > 5, "some crashes tear the write");
    }

    #[test]
    fn a_renamed_folder_takes_its_files_along() {
        let disk = SimDisk::new();
        disk.open(Path::new("m/d.tmp/f"), Open::CreateNew).unwrap();
        disk.sync_dir(Path::new("m/d.tmp")).unwrap();
        disk.rename(Path::new("m/d.tmp"), Path::new("m/d")).unwrap();
        assert!(disk.exists(Path::new("m/d/f")) && !disk.exists(Path::new("m/d.tmp")));
        let cut = disk.crash(disk.op_count(), Survivors::None);
        assert!(cut.exists(Path::new("m/d.tmp/f")) && !cut.exists(Path::new("m/d")));
        disk.sync_dir(Path::new("m")).unwrap();
        assert!(disk.crash(disk.op_count(), Survivors::None).exists(Path::new("m/d/f")));
    }

    #[test]
    fn failing_disks_fail_and_heal() {
        let disk = SimDisk::new();
        let file = disk.open(Path::new("d/f"), Open::CreateNew).unwrap();
        disk.fail_after(disk.op_count());
        assert!(file.write_all_at(&[1], 0).is_err());
        disk.heal();
        file.write_all_at(&[1], 0).unwrap();
    }

    #[test]
    fn a_full_disk_takes_what_needs_no_new_space_and_recovers() {
        let full = |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::StorageFull;
        let disk = SimDisk::new();
        let (a, b) = (Path::new("d/a"), Path::new("d/b"));
        let file = disk.open(a, Open::CreateNew).unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(disk.used(), 8192, "a hole takes nothing");
        file.allocate(4096, 8192).unwrap();
        file.set_len(8192).unwrap();
        assert_eq!(disk.used(), 8192, "what is cut off takes nothing");
        disk.set_limit(Some(8192));
        file.write_all_at(&[2; 8192], 0).unwrap();
        let ops = disk.op_count();
        assert!(full(file.write_all_at(&[3; 2], 8191)) && full(file.allocate(4096, 4097)));
        assert_eq!((disk.op_count(), read(&disk, "d/a").unwrap()[8191]), (ops, 2), "nothing happened");
        let other = disk.open(b, Open::CreateNew).unwrap();
        assert!(full(other.write_all_at(&[4], 0)));
        file.set_len(4096).unwrap();
        other.write_all_at(&[4], 0).unwrap();
        disk.remove(a).unwrap();
        assert_eq!(disk.used(), 4096);
        disk.set_limit(Some(12_288));
        assert!(full(other.zero_range(4096, 12_288)));
        other.zero_range(0, 12_288).unwrap();
        assert_eq!((disk.used(), read(&disk, "d/b").unwrap()), (12_288, vec![0]), "the length stays");
        other.write_all_at(&[5; 12_288], 0).unwrap();
        other.set_len(4096).unwrap();
        disk.set_limit(Some(0));
        assert!(full(other.write_all_at(&[4], 4096)));
        disk.set_limit(None);
        other.write_all_at(&[4], 4096).unwrap();
        assert_eq!(disk.crash(disk.op_count(), Survivors::All).used(), 8192);
    }
}
