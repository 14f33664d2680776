//! Making a log, opening one, and choosing its I/O path.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use trilith_disk::{AlignedBuf, Disk, Open};

use crate::error::io_error;
use crate::io::{BatchIo, Inline, Plain, Wake};
use crate::log_file::{Held, State, Wal, batch_bytes};
use crate::names::{self, Name};
use crate::prepare::{Preparer, Setup, step};
use crate::record::{BLOCK_BYTES, Encoder};
use crate::recover::{Reader, Verdict};
use crate::segment::{ALL, Segment};
use crate::uring::Uring;
use crate::{IoChoice, Metadata, Options, Replay, WalError};

/// The I/O path of a log, and what goes with it.
struct Chosen {
    io: Box<dyn BatchIo>,
    wake: Wake,
    direct: bool,
    simulated: bool,
}

fn choose(options: &Options, dir: &Path, simulated: bool) -> Result<Chosen, WalError> {
    let wake = Wake::new().map_err(io_error("make an eventfd for", dir))?;
    let fsync = options.fsync;
    let no_uring = |reason: String| WalError::NoUring { path: dir.to_owned(), reason };
    if simulated {
        if options.io == IoChoice::Uring {
            return Err(no_uring("the disk is simulated".into()));
        }
        let io = Box::new(Inline { fsync, written: Vec::new() });
        return Ok(Chosen { io, wake, direct: false, simulated });
    }
    let shown = options.dir.display();
    let why = if options.io == IoChoice::Sync {
        "asked for".to_owned()
    } else {
        match Uring::start(&*options.disk, dir, wake.clone(), fsync) {
            Ok(uring) => {
                log::info!("write-ahead log {shown}: I/O path io_uring (O_DIRECT, RWF_DSYNC)");
                return Ok(Chosen { io: Box::new(uring), wake, direct: true, simulated });
            }
            Err(reason) if options.io == IoChoice::Uring => return Err(no_uring(reason)),
            Err(reason) => reason,
        }
    };
    log::info!("write-ahead log {shown}: I/O path sync (pwrite, fdatasync): {why}");
    let plain = Plain::start(wake.clone(), fsync).map_err(io_error("start a thread for", dir))?;
    Ok(Chosen { io: Box::new(plain), wake, direct: false, simulated })
}

fn rounded(options: &Options) -> Options {
    let segment_bytes = options.segment_bytes.max(1).next_multiple_of(BLOCK_BYTES as u64);
    Options { segment_bytes, ..options.clone() }
}

/// The folder in which a new log is built, beside its own.
fn building_site(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().map(OsString::from).unwrap_or_default();
    name.push(".tmp");
    dir.with_file_name(name)
}

/// The first block of a segment: crc record, metadata, and what else the caller puts there.
pub(crate) fn head(
    encoder: &mut Encoder,
    owner: Metadata,
    more: impl FnOnce(&mut Encoder, &mut AlignedBuf),
) -> AlignedBuf {
    let mut head = AlignedBuf::with_capacity(BLOCK_BYTES);
    encoder.mark(&mut head);
    encoder.metadata(&mut head, owner.node_id, owner.cluster_id);
    more(encoder, &mut head);
    encoder.fill_block(&mut head);
    head
}

fn start(options: Options, chosen: Chosen, segment: Segment, seed: Seed) -> Result<Wal, WalError> {
    let Chosen { io, wake, direct, simulated } = chosen;
    let setup = Setup {
        disk: options.disk.clone(),
        dir: options.dir.clone(),
        segment_bytes: options.segment_bytes,
        batch_bytes: batch_bytes(options.segment_bytes),
        direct,
        fsync: options.fsync,
    };
    let segment = Arc::new(segment);
    let mut preparer = Preparer::start(setup, wake.clone(), !simulated)?;
    if segment.frontier() != ALL {
        preparer.rest(segment.clone())?;
    }
    let wake = (!simulated).then_some(wake);
    Wal::start(options, io, preparer, wake, segment, seed)
}

/// Where a log goes on.
pub(crate) struct Seed {
    pub(crate) metadata: Metadata,
    pub(crate) state: State,
    pub(crate) crc: u32,
    pub(crate) last_index: u64,
    /// Offset of the next batch in the newest segment.
    pub(crate) position: u64,
    pub(crate) held: VecDeque<Held>,
    pub(crate) newest: Name,
    pub(crate) released: VecDeque<PathBuf>,
}

impl Wal {
    /// Whether the folder holds a log.
    pub fn exists(disk: &dyn Disk, dir: &Path) -> bool {
        names::list(disk, dir).is_ok_and(|names| !names.is_empty())
    }

    /// Makes a new log: crc, metadata and the empty snapshot mark, durable on return. It is built in a folder
    /// beside its own (`wal.tmp`) and renamed.
    pub fn create(options: Options, metadata: Metadata) -> Result<Wal, WalError> {
        let options = rounded(&options);
        let (disk, dir) = (&*options.disk, options.dir.as_path());
        if Wal::exists(disk, dir) {
            return Err(WalError::Exists { path: dir.to_owned() });
        }
        let site = building_site(dir);
        disk.create_dir_all(&site).map_err(io_error("make folder", &site))?;
        for left_over in disk.list(&site).map_err(io_error("list", &site))? {
            disk.remove(&left_over).map_err(io_error("remove", &left_over))?;
        }
        let first = Name::new(&site, 0, 0);
        let mut segment = Segment::open(disk, &first.path, Open::CreateNew, false)?;
        let chosen = choose(&options, &site, segment.file().fd().is_none())?;
        if chosen.direct {
            segment.make_direct()?;
        }
        segment.reserve(0, options.segment_bytes)?;
        let zeroed = step(options.segment_bytes);
        segment.zero(0, zeroed, &AtomicBool::new(false))?;
        segment.set_frontier(if zeroed == options.segment_bytes { ALL } else { zeroed });
        let mut encoder = Encoder { crc: 0 };
        // An empty walpb.Snapshot: index 0 and term 0, both written.
        let block = head(&mut encoder, metadata, |e, out| e.snapshot(out, &[0x08, 0, 0x10, 0]));
        segment.write(&block, 0)?;
        if options.fsync {
            segment.sync()?;
        }
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        disk.sync_dir(&site).map_err(io_error("sync folder", &site))?;
        disk.rename(&site, dir).map_err(io_error("rename", &site))?;
        disk.sync_dir(parent).map_err(io_error("sync folder", parent))?;
        let newest = Name::new(dir, 0, 0);
        let segment = segment.renamed(&newest.path);
        let seed = Seed {
            metadata,
            state: State::default(),
            crc: encoder.crc,
            last_index: 0,
            position: block.len() as u64,
            held: VecDeque::new(),
            newest,
            released: VecDeque::new(),
        };
        start(options, chosen, segment, seed)
    }

    /// Opens a log for appending; repairs a torn tail; refuses damage (see [`WalError::Corrupt`]). Entries up to
    /// `after_index` are skipped: it is the index of the state that the caller holds durably, 0 for none.
    ///
    /// What is returned is durable, even if a process that died had not synced it yet.
    pub fn open(options: Options, after_index: u64) -> Result<(Wal, Replay), WalError> {
        Wal::open_with_history(options, after_index, 0)
    }

    /// The same, and keeps the segments of so many entries before `after_index` in use, as far as they are there: they can
    /// be read back.
    pub fn open_with_history(
        options: Options,
        after_index: u64,
        history: u64,
    ) -> Result<(Wal, Replay), WalError> {
        let options = rounded(&options);
        let (disk, dir) = (&*options.disk, options.dir.as_path());
        let mut all = names::list(disk, dir)?;
        let start_at = find_start(dir, &all, after_index.saturating_sub(history))
            .or_else(|_| find_start(dir, &all, after_index))?;
        let names = all.split_off(start_at);
        let mut reader = Reader::new(after_index, &names[0]);
        let mut held = VecDeque::new();
        let mut bytes = Vec::new();
        let mut end = None;
        for (i, name) in names.iter().enumerate() {
            let segment = Segment::open(disk, &name.path, Open::Existing, false)?;
            let len = segment.file().len().map_err(io_error("measure", &name.path))?;
            bytes.resize(len as usize, 0);
            segment.file().read_exact_at(&mut bytes, 0).map_err(io_error("read", &name.path))?;
            reader.last_index = reader.last_index.max(name.index.saturating_sub(1));
            let stop = reader.read(name, i + 1 == names.len(), &bytes)?;
            end = Some((stop, len));
            held.push_back((name.clone(), segment));
        }
        let (Some((stop, len)), Some((newest, mut segment))) = (end, held.pop_back()) else {
            return Err(WalError::Missing { path: dir.to_owned(), what: "the folder holds no log".into() });
        };
        if stop.verdict == Verdict::Cut {
            cut(disk, &segment, &bytes, stop.at)?;
        }
        let position = seal(&segment, stop.at, reader.crc())?;
        if options.fsync {
            segment.sync()?;
        }
        disk.sync_dir(dir).map_err(io_error("sync folder", dir))?;
        let written = position.max(len / BLOCK_BYTES as u64 * BLOCK_BYTES as u64);
        segment.set_frontier(if written < options.segment_bytes { written } else { ALL });
        let chosen = choose(&options, dir, segment.file().fd().is_none())?;
        if chosen.direct {
            segment.make_direct()?;
        }
        let (crc, last_index) = (reader.crc(), reader.last_index);
        let replay = reader.into_replay(dir)?;
        let held = held.into_iter().map(|(name, segment)| Held { name, segment: Arc::new(segment) });
        let seed = Seed {
            metadata: replay.metadata,
            state: State::of(&replay.hard_state),
            crc,
            last_index,
            position,
            held: held.collect(),
            newest,
            released: all.into_iter().map(|n| n.path).collect(),
        };
        Ok((start(options, chosen, segment, seed)?, replay))
    }
}

/// The segment to start reading at; all from there on must be there.
fn find_start(dir: &Path, names: &[Name], after: u64) -> Result<usize, WalError> {
    let missing = |what: String| WalError::Missing { path: dir.to_owned(), what };
    let Some(first) = names.first() else { return Err(missing("the folder holds no log".into())) };
    let Some(start) = names::start_for(names.iter().map(|n| n.index), after) else {
        let begins = first.index;
        return Err(missing(format!(
            "the log begins at entry {begins}, the state to start from ends at {after}"
        )));
    };
    for pair in names[start..].windows(2) {
        if pair[0].seq.checked_add(1) != Some(pair[1].seq) {
            let (a, b) = (pair[0].path.display(), pair[1].path.display());
            return Err(missing(format!("the segments between {a} and {b} are missing")));
        }
    }
    if let Some(last) = names.last().filter(|last| last.seq == u64::MAX) {
        return Err(missing(format!("no segment can follow {}", last.path.display())));
    }
    Ok(start)
}

/// Copies a torn segment to NAME.wal.broken and writes zeros from the tear on. A full disk gets no copy: that is
/// for people to look at, and no reason not to start.
fn cut(disk: &dyn Disk, segment: &Segment, bytes: &[u8], from: usize) -> Result<(), WalError> {
    let mut broken = segment.path().as_os_str().to_owned();
    broken.push(".broken");
    let broken = PathBuf::from(broken);
    let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    match copy(disk, &broken, &bytes[..used]) {
        Err(e) if e.is_full() => {
            log::warn!("no copy of the torn segment is kept: {e}");
            // What there is of it takes space that the log needs.
            let _ = disk.remove(&broken);
        }
        copied => copied?,
    }
    let zeros = vec![0; (used.max(from) - from).min(1 << 20)];
    let mut at = from;
    while at < used {
        let len = zeros.len().min(used - at);
        segment.file().write_all_at(&zeros[..len], at as u64).map_err(io_error("write", segment.path()))?;
        at += len;
    }
    segment.sync()
}

fn copy(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), WalError> {
    let file = disk.open(path, Open::OpenOrCreate).map_err(io_error("open", path))?;
    file.set_len(0).map_err(io_error("cut", path))?;
    file.write_all_at(bytes, 0).map_err(io_error("write", path))?;
    file.sync_data().map_err(io_error("sync", path))
}

/// Closes the block that the last record ends in, so that the next batch begins at a block of its own. Our own
/// batches end at one anyway. Returns where that is.
fn seal(segment: &Segment, end: usize, crc: u32) -> Result<u64, WalError> {
    let inside = end % BLOCK_BYTES;
    if inside == 0 {
        return Ok(end as u64);
    }
    let mut block = AlignedBuf::with_capacity(2 * BLOCK_BYTES);
    block.pad_to(inside);
    Encoder { crc }.fill_block(&mut block);
    let filler = &block[inside..];
    segment.file().write_all_at(filler, end as u64).map_err(io_error("write", segment.path()))?;
    Ok((end + filler.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_disk::RealDisk;

    #[test]
    fn where_the_ring_cannot_write_plain_calls_do_unless_it_was_asked_for() {
        // The trial write fails in a folder that is not there.
        let dir = std::env::temp_dir().join("trilith-wal-no-such-folder").join("wal");
        let options = |io| Options {
            dir: dir.clone(),
            disk: Arc::new(RealDisk),
            io,
            segment_bytes: 1 << 20,
            fsync: true,
            max_segments: 0,
        };
        assert_eq!(choose(&options(IoChoice::Auto), &dir, false).map(|c| c.io.name()).ok(), Some("sync"));
        let error = choose(&options(IoChoice::Uring), &dir, false).err().expect("no ring without a folder");
        assert!(
            matches!(error, WalError::NoUring { .. }) && error.to_string().contains("no-such-folder"),
            "{error}"
        );
    }
}
