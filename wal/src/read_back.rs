//! Entries read back from the segments while the log goes on: for a member that lags behind what is kept in memory.
//!
//! Promises: every checksum from the head of a segment to the entry was right, and an entry is handed out only with
//! the term that the caller knows for its index, so one that a later leader replaced never is. Memory is bounded by
//! what was asked for, one piece of a file and one record. It runs on any thread and holds up nobody.
//!
//! Whoever asks knows that the entries are durable: this never looks for the end of what is written.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use trilith_proto::raftpb;

use crate::error::io_error;
use crate::names;
use crate::record::{self, Frame, LENGTH_BYTES, fields, frame_len};
use crate::segment::Segment;
use crate::{Wal, WalError};

/// What is read of a file at once.
const PIECE_BYTES: usize = 256 << 10;

/// A range of entries to be read back.
#[derive(Debug)]
pub struct EntryReader {
    dir: PathBuf,
    segments: Vec<Arc<Segment>>,
    from: u64,
    to: u64,
    /// The terms that begin in or before the range: (first index, term), ascending.
    terms: Vec<(u64, u64)>,
    bytes_max: usize,
}

impl Wal {
    /// A reader for the entries `from..to`, or as many of them as hold `bytes_max` bytes, and at least one. `terms`
    /// says which term begins at which index, as far back as `from`. None when the log has given up the segments.
    pub fn entry_reader(
        &self,
        from: u64,
        to: u64,
        terms: Vec<(u64, u64)>,
        bytes_max: usize,
    ) -> Option<EntryReader> {
        let held = self.held();
        let start = names::start_for(held.iter().map(|held| held.name.index), from)?;
        let segments = held.range(start..).map(|held| held.segment.clone()).collect();
        Some(EntryReader { dir: self.dir().to_owned(), segments, from, to, terms, bytes_max })
    }
}

impl EntryReader {
    /// Reads them; the first is the one at `from`.
    ///
    /// # Errors
    /// `Io`, and `Missing` when the first is not there, or something before it is not as it was written: a segment
    /// may have been recycled meanwhile.
    pub fn run(self) -> Result<Vec<raftpb::Entry>, WalError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for segment in &self.segments {
            let mut scan = Scan::new(segment)?;
            while let Some(entry) = scan.next_entry()? {
                let index = entry.index.unwrap_or_default();
                if index != self.from + found.len() as u64 || entry.term != self.term_of(index) {
                    continue;
                }
                bytes += entry.data.as_ref().map_or(0, Bytes::len);
                found.push(entry);
                if index + 1 >= self.to || bytes >= self.bytes_max {
                    return Ok(found);
                }
            }
        }
        if found.is_empty() {
            let what = format!("entry {} is not there", self.from);
            return Err(WalError::Missing { path: self.dir, what });
        }
        Ok(found)
    }

    fn term_of(&self, index: u64) -> Option<u64> {
        let at = self.terms.partition_point(|(first, _)| *first <= index);
        at.checked_sub(1).map(|at| self.terms[at].1)
    }
}

/// A walk over the records of a segment.
struct Scan<'s> {
    segment: &'s Segment,
    len: u64,
    /// A part of the file, where it begins there, and where the next record begins in it.
    piece: Vec<u8>,
    begins: u64,
    at: usize,
    crc: Option<u32>,
}

impl Scan<'_> {
    fn new(segment: &Segment) -> Result<Scan<'_>, WalError> {
        let len = segment.file().len().map_err(io_error("measure", segment.path()))?;
        Ok(Scan { segment, len, piece: Vec::new(), begins: 0, at: 0, crc: None })
    }

    /// Makes sure that so many bytes of the file are at hand; false when it ends before.
    fn have(&mut self, bytes: usize) -> Result<bool, WalError> {
        if self.piece.len() - self.at >= bytes {
            return Ok(true);
        }
        self.begins += self.at as u64;
        if self.len - self.begins < bytes as u64 {
            return Ok(false);
        }
        let len = (self.len - self.begins).min(bytes.max(PIECE_BYTES) as u64);
        self.at = 0;
        self.piece.resize(len as usize, 0);
        let read = self.segment.file().read_exact_at(&mut self.piece, self.begins);
        read.map_err(io_error("read", self.segment.path()))?;
        Ok(true)
    }

    fn damaged(&self, what: &str) -> WalError {
        let offset = self.begins + self.at as u64;
        WalError::Missing {
            path: self.segment.path().to_owned(),
            what: format!("cannot be read back at offset {offset}: {what}"),
        }
    }

    /// The next entry; None where nothing more is written.
    fn next_entry(&mut self) -> Result<Option<raftpb::Entry>, WalError> {
        loop {
            if !self.have(LENGTH_BYTES)? {
                return Ok(None);
            }
            let length = self.piece[self.at..].first_chunk().copied().unwrap_or_default();
            if length == [0; LENGTH_BYTES] {
                return Ok(None);
            }
            if !self.have(frame_len(length))? {
                return Err(self.damaged("a record runs beyond the end of the file"));
            }
            let record = match record::parse(&self.piece, self.at) {
                Frame::Record(record) => record,
                Frame::End => return Ok(None),
                Frame::Bad(fault) => return Err(self.damaged(fault.what)),
            };
            let crc = match (self.crc, record.kind) {
                (None, record::CRC) => record.crc,
                (None, _) => return Err(self.damaged("it does not begin with a checksum")),
                (Some(crc), record::CRC) => crc,
                (Some(crc), _) => crc32c::crc32c_append(crc, record.data),
            };
            if crc != record.crc {
                return Err(self.damaged("a record's checksum is wrong"));
            }
            let entry = match record.kind {
                record::ENTRY => Some(entry(record.data).ok_or_else(|| self.damaged("no entry"))?),
                _ => None,
            };
            (self.crc, self.at) = (Some(crc), record.end);
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }
}

fn entry(data: &[u8]) -> Option<raftpb::Entry> {
    let ([kind, term, index], data) = fields(data)?;
    Some(raftpb::Entry {
        r#type: Some(i32::try_from(kind).ok()?),
        term: Some(term),
        index: Some(index),
        data: data.map(Bytes::copy_from_slice),
    })
}
