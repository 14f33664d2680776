//! What the tests of the log share: a parser of log files of its own, and folders and options to test with.
//!
//! The parser shares no code with the crate, not even the checksum: it is written from the description of the
//! format, and proved on a log that a real etcd wrote.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use trilith_disk::sim::SimDisk;
use trilith_disk::{Disk, Open, RealDisk};
use trilith_proto::raftpb;
use trilith_wal::{EntryRef, IoChoice, Metadata, Options, Wal};

pub const OWNER: Metadata = Metadata { node_id: 0x1234_5678_9abc_def0, cluster_id: 77 };

/// A record as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rec {
    pub kind: u64,
    pub crc: u32,
    pub data: Vec<u8>,
    pub at: usize,
    pub end: usize,
}

impl Rec {
    /// The numbers of the fields of the record's message; the last bytes field too.
    pub fn fields(&self) -> Vec<(u64, Result<u64, Vec<u8>>)> {
        let mut at = 0;
        let mut out = Vec::new();
        while at < self.data.len() {
            let tag = number(&self.data, &mut at);
            let value = match tag & 7 {
                0 => Ok(number(&self.data, &mut at)),
                2 => {
                    let n = number(&self.data, &mut at) as usize;
                    at += n;
                    Err(self.data[at - n..at].to_vec())
                }
                other => panic!("wire type {other}"),
            };
            out.push((tag >> 3, value));
        }
        out
    }

    /// Index of an entry.
    pub fn index(&self) -> u64 {
        let fields = self.fields();
        *fields.iter().find(|(n, _)| *n == 3).unwrap().1.as_ref().unwrap()
    }
}

fn number(bytes: &[u8], at: &mut usize) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 127) << shift;
        shift += 7;
        if byte < 128 {
            return value;
        }
    }
}

/// Castagnoli's CRC bit by bit, as slow and as plain as it gets.
pub fn crc32c(start: u32, bytes: &[u8]) -> u32 {
    let mut crc = !start;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// Records of one segment as etcd's reader takes them; `running` is its running value. Panics on anything wrong.
pub fn parse_segment(file: &[u8], running: &mut u32) -> Vec<Rec> {
    let mut at = 0;
    let mut records = Vec::new();
    while at + 8 <= file.len() {
        let field = u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
        if field == 0 {
            break;
        }
        let len = (field & 0x00ff_ffff_ffff_ffff) as usize;
        let pad = if field >> 63 == 1 { (field >> 56 & 7) as usize } else { 0 };
        assert_eq!((len + pad) % 8, 0, "frames are aligned");
        let body = &file[at + 8..at + 8 + len];
        assert!(file[at + 8 + len..at + 8 + len + pad].iter().all(|b| *b == 0));
        let whole = Rec { kind: 0, crc: 0, data: body.to_vec(), at, end: at + 8 + len + pad };
        let mut record = Rec { data: Vec::new(), ..whole.clone() };
        for (number, value) in whole.fields() {
            match (number, value) {
                (1, Ok(n)) => record.kind = n,
                (2, Ok(n)) => record.crc = u32::try_from(n).unwrap(),
                (3, Err(data)) => record.data = data,
                other => panic!("field {other:?}"),
            }
        }
        if record.kind == 4 {
            assert!(*running == 0 || *running == record.crc, "crc record at {at}");
            assert!(record.data.iter().all(|b| *b == 0), "filler is zeros");
            *running = record.crc;
        } else {
            *running = crc32c(*running, &record.data);
            assert_eq!(*running, record.crc, "checksum at {at}");
        }
        at = record.end;
        records.push(record);
    }
    assert!(file[at..].iter().all(|b| *b == 0), "after the last record there are zeros only");
    records
}

/// Bytes of a file of a disk.
pub fn read_file(disk: &dyn Disk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, Open::Existing).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Names of the segments in a folder.
pub fn segments(disk: &dyn Disk, dir: &Path) -> Vec<PathBuf> {
    let paths = disk.list(dir).unwrap();
    paths.into_iter().filter(|p| p.extension().is_some_and(|e| e == "wal")).collect()
}

/// All records of a folder's log by segment.
pub fn parse_dir(disk: &dyn Disk, dir: &Path) -> Vec<Vec<Rec>> {
    let mut running = 0;
    segments(disk, dir).iter().map(|p| parse_segment(&read_file(disk, p), &mut running)).collect()
}

/// A folder that goes away with the test.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("trilith-wal-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Options for a log on a simulated disk.
pub fn sim_options(disk: &SimDisk, segment_bytes: u64) -> Options {
    Options {
        dir: "member/wal".into(),
        disk: Arc::new(disk.clone()),
        io: IoChoice::Auto,
        segment_bytes,
        fsync: true,
        max_segments: 0,
    }
}

/// Runs a test on each I/O path that is possible here.
pub fn on_every_path(segment_bytes: u64, test: impl Fn(Options)) {
    test(sim_options(&SimDisk::new(), segment_bytes));
    for io in [IoChoice::Sync, IoChoice::Uring] {
        let folder = Folder::new();
        let options = Options {
            dir: folder.0.join("member").join("wal"),
            disk: Arc::new(RealDisk),
            io,
            segment_bytes,
            fsync: true,
            max_segments: 0,
        };
        if io == IoChoice::Uring {
            let trial = Options { dir: folder.0.join("trial"), ..options.clone() };
            if let Err(e) = Wal::create(trial, OWNER) {
                eprintln!("io_uring is left out: {e}");
                continue;
            }
        }
        test(options);
    }
}

/// A small xorshift generator: a seed replays.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// Bytes none of which is zero.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 20) as u8 | 1).collect()
    }
}

/// The data of the entry of an index in most tests.
pub fn data_of(index: u64, len: usize) -> Vec<u8> {
    Rng::new(index).bytes(len)
}

pub fn entry(term: u64, index: u64, data: &[u8]) -> EntryRef<'_> {
    EntryRef { kind: raftpb::EntryType::EntryNormal, term, index, data }
}

pub fn hard_state(term: u64, vote: u64, commit: u64) -> raftpb::HardState {
    raftpb::HardState { term: Some(term), vote: Some(vote), commit: Some(commit) }
}
