//! Records and their frames: what a log file is made of, to the byte (docs/format-wal.md, "WAL: frames and records").
//!
//! Promises: the encoder writes straight into the batch's buffer, and what it writes is what etcd's encoder would
//! write for the same record. The parser never panics and never reads outside the bytes that it is given; it
//! checks the shape of a frame, not its checksum (the reader keeps the running value).

use trilith_disk::{ALIGNMENT, AlignedBuf};

use crate::EntryRef;

/// Record types of walpb.
pub(crate) const METADATA: u64 = 1;
pub(crate) const ENTRY: u64 = 2;
pub(crate) const HARD_STATE: u64 = 3;
pub(crate) const CRC: u64 = 4;
pub(crate) const SNAPSHOT: u64 = 5;

/// Bytes of the length field in front of a record; also what every frame is aligned to.
pub(crate) const LENGTH_BYTES: usize = 8;
/// Batches begin and end at multiples of this.
pub(crate) const BLOCK_BYTES: usize = ALIGNMENT;
/// The shortest crc record with its frame, and so the shortest filler.
const FILLER_MIN: usize = 16;
/// The longest filler: a gap of 8 bytes cannot hold one, so it takes the next block as well.
pub(crate) const FILLER_MAX: usize = BLOCK_BYTES + LENGTH_BYTES;

const PAD_FLAG: u64 = 0x80;
const TAG_1: u8 = 0x08;
const TAG_2: u8 = 0x10;
const TAG_3: u8 = 0x18;
const TAG_3_BYTES: u8 = 0x1a;
const TAG_4_BYTES: u8 = 0x22;

/// The few bytes that stand before a record's data, gathered on the stack.
struct Prefix {
    bytes: [u8; 96],
    len: usize,
}

impl Prefix {
    fn new() -> Prefix {
        Prefix { bytes: [0; 96], len: 0 }
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    fn field(&mut self, tag: u8, value: u64) {
        self.byte(tag);
        self.varint(value);
    }

    fn slice(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

impl std::ops::Deref for Prefix {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Upper bound of a frame whose record carries this many bytes of data, or an entry's.
pub(crate) fn frame_bound(data: usize) -> usize {
    data + 80
}

/// Encodes records one after the other and keeps the running CRC-32C over all their data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoder {
    pub(crate) crc: u32,
}

impl Encoder {
    pub(crate) fn entry(&mut self, out: &mut AlignedBuf, entry: &EntryRef<'_>) {
        let mut head = Prefix::new();
        head.field(TAG_1, entry.kind as u64);
        head.field(TAG_2, entry.term);
        head.field(TAG_3, entry.index);
        if !entry.data.is_empty() {
            head.field(TAG_4_BYTES, entry.data.len() as u64);
        }
        self.record(out, ENTRY, &head, entry.data);
    }

    pub(crate) fn hard_state(&mut self, out: &mut AlignedBuf, term: u64, vote: u64, commit: u64) {
        let mut data = Prefix::new();
        data.field(TAG_1, term);
        data.field(TAG_2, vote);
        data.field(TAG_3, commit);
        self.record(out, HARD_STATE, &data, &[]);
    }

    pub(crate) fn metadata(&mut self, out: &mut AlignedBuf, node_id: u64, cluster_id: u64) {
        let mut data = Prefix::new();
        data.field(TAG_1, node_id);
        data.field(TAG_2, cluster_id);
        self.record(out, METADATA, &data, &[]);
    }

    /// A snapshot mark; the data is an encoded walpb.Snapshot.
    pub(crate) fn snapshot(&mut self, out: &mut AlignedBuf, data: &[u8]) {
        self.record(out, SNAPSHOT, &[], data);
    }

    /// The record that opens a segment: the running value and no data.
    pub(crate) fn mark(&self, out: &mut AlignedBuf) {
        self.filler(out, None);
    }

    /// Pads a buffer that begins at a block boundary to one with a crc record. Every batch ends with one, so
    /// that a reader can count batches; it is never left out, even when the records end at a boundary by chance.
    pub(crate) fn fill_block(&self, out: &mut AlignedBuf) {
        debug_assert!(out.len().is_multiple_of(LENGTH_BYTES));
        let mut gap = out.len().next_multiple_of(BLOCK_BYTES) - out.len();
        if gap < FILLER_MIN {
            gap += BLOCK_BYTES;
        }
        self.filler(out, Some(gap));
        debug_assert!(out.len().is_multiple_of(BLOCK_BYTES));
    }

    /// A crc record that takes exactly `frame` bytes with its length field, its data zeros; None for no data.
    fn filler(&self, out: &mut AlignedBuf, frame: Option<usize>) {
        let mut body = Prefix::new();
        body.field(TAG_1, CRC);
        body.field(TAG_2, u64::from(self.crc));
        let mut len = body.len;
        let room = frame.unwrap_or(FILLER_MIN) - LENGTH_BYTES;
        if room > LENGTH_BYTES {
            let left = room - body.len - 1;
            let data = (0..=2).map(|n| left - 1 - n).find(|d| varint_len(*d as u64) + d <= left);
            let data = data.expect("a varint of a block's length has at most three bytes");
            body.field(TAG_3_BYTES, data as u64);
            len = body.len + data;
        }
        let start = out.len();
        out.extend_from_slice(&length_field(len).to_le_bytes());
        out.extend_from_slice(&body);
        out.pad_to(start + LENGTH_BYTES + room);
    }

    fn record(&mut self, out: &mut AlignedBuf, kind: u64, first: &[u8], second: &[u8]) {
        self.crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, first), second);
        let data = first.len() + second.len();
        let crc = u64::from(self.crc);
        let len = 2 + 1 + varint_len(crc) + 1 + varint_len(data as u64) + data;
        let mut prefix = Prefix::new();
        prefix.slice(&length_field(len).to_le_bytes());
        prefix.field(TAG_1, kind);
        prefix.field(TAG_2, crc);
        prefix.field(TAG_3_BYTES, data as u64);
        prefix.slice(first);
        let end = out.len() + LENGTH_BYTES + len.next_multiple_of(LENGTH_BYTES);
        out.extend_from_slice(&prefix);
        out.extend_from_slice(second);
        out.pad_to(end);
    }
}

/// The length field of a record of that many bytes: low 56 bits the length, top byte the padding.
fn length_field(len: usize) -> u64 {
    let pad = (LENGTH_BYTES - len % LENGTH_BYTES) % LENGTH_BYTES;
    let top = if pad == 0 { 0 } else { PAD_FLAG | pad as u64 };
    len as u64 | top << 56
}

/// Bytes of the frame that begins with this length field, if that is one.
pub(crate) fn frame_len(field: [u8; LENGTH_BYTES]) -> usize {
    let field = u64::from_le_bytes(field);
    LENGTH_BYTES + (field & ((1 << 56) - 1)) as usize + (field >> 56 & 7) as usize
}

/// A well-formed record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: u64,
    pub(crate) crc: u32,
    pub(crate) data: &'a [u8],
    /// Where the data stands in the file.
    pub(crate) data_at: usize,
    /// Where the next frame begins.
    pub(crate) end: usize,
}

/// Why no record could be parsed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) what: &'static str,
    /// The byte at which the parser gave up; at or beyond the end of the file when bytes are missing.
    pub(crate) at: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A zero length or the end of the file: nothing was written from here on.
    End,
    Record(Record<'a>),
    Bad(Fault),
}

/// Parses the frame that begins at `at`, which is a multiple of 8.
pub(crate) fn parse(file: &[u8], at: usize) -> Frame<'_> {
    let rest = file.get(at..).unwrap_or(&[]);
    let Some(field) = rest.first_chunk::<LENGTH_BYTES>() else {
        if rest.iter().all(|b| *b == 0) {
            return Frame::End;
        }
        return Frame::Bad(Fault { what: "length field cut off", at: file.len() });
    };
    let field = u64::from_le_bytes(*field);
    if field == 0 {
        return Frame::End;
    }
    match parse_frame(file, at, field) {
        Ok(record) => Frame::Record(record),
        Err(fault) => Frame::Bad(fault),
    }
}

fn parse_frame(file: &[u8], at: usize, field: u64) -> Result<Record<'_>, Fault> {
    let (top, len) = (field >> 56, field & ((1 << 56) - 1));
    let pad = top & 7;
    let shape = top == 0 || top == PAD_FLAG | pad && pad != 0;
    if !shape || len == 0 || !(len + pad).is_multiple_of(LENGTH_BYTES as u64) {
        return Err(Fault { what: "malformed length field", at });
    }
    // A length of 56 bits fits a usize wherever this runs; the sum cannot overflow.
    let body_end = at + LENGTH_BYTES + len as usize;
    let end = body_end + pad as usize;
    let mut cursor = Cursor { file, at: at + LENGTH_BYTES, end: body_end };
    cursor.tag(TAG_1, "record does not begin with its type")?;
    let kind = cursor.varint("record type is no number")?;
    let mut crc = 0;
    let mut data = body_end..body_end;
    if cursor.at < body_end && cursor.peek()? == TAG_2 {
        cursor.at += 1;
        let wide = cursor.varint("checksum is no number")?;
        crc = u32::try_from(wide).map_err(|_| cursor.fault("checksum is wider than 32 bits"))?;
    }
    if cursor.at < body_end {
        cursor.tag(TAG_3_BYTES, "record has a field that is not its data")?;
        let n = cursor.varint("length of the data is no number")?;
        if n != (body_end - cursor.at.min(body_end)) as u64 {
            return Err(cursor.fault("length of the data differs from the frame's"));
        }
        data = cursor.at..body_end;
    }
    if end > file.len() {
        return Err(Fault { what: "record runs beyond the end of the file", at: file.len() });
    }
    Ok(Record { kind, crc, data: &file[data.clone()], data_at: data.start, end })
}

/// The message of a record: fields 1 to N are numbers, all of them there and in order, as etcd writes them; then
/// there may be a field N + 1 of bytes, and nothing else. None if the message is anything else.
pub(crate) fn fields<const N: usize>(data: &[u8]) -> Option<([u64; N], Option<&[u8]>)> {
    let mut cursor = Cursor { file: data, at: 0, end: data.len() };
    let mut numbers = [0; N];
    for (i, number) in numbers.iter_mut().enumerate() {
        cursor.tag((i as u8 + 1) << 3, "").ok()?;
        *number = cursor.varint("").ok()?;
    }
    if cursor.at == data.len() {
        return Some((numbers, None));
    }
    cursor.tag((N as u8 + 1) << 3 | 2, "").ok()?;
    let len = cursor.varint("").ok()?;
    let rest = &data[cursor.at..];
    (rest.len() as u64 == len).then_some((numbers, Some(rest)))
}

/// Reads protobuf fields of a record, and knows at which byte it failed.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    end: usize,
}

impl Cursor<'_> {
    /// A fault at the byte read last.
    fn fault(&self, what: &'static str) -> Fault {
        Fault { what, at: self.at - 1 }
    }

    fn peek(&self) -> Result<u8, Fault> {
        if self.at >= self.end {
            return Err(Fault { what: "record ends inside a field", at: self.at.saturating_sub(1) });
        }
        let byte = self.file.get(self.at).copied();
        byte.ok_or(Fault { what: "record runs beyond the end of the file", at: self.file.len() })
    }

    fn tag(&mut self, tag: u8, what: &'static str) -> Result<(), Fault> {
        let found = self.peek()?;
        self.at += 1;
        if found == tag { Ok(()) } else { Err(self.fault(what)) }
    }

    fn varint(&mut self, what: &'static str) -> Result<u64, Fault> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.peek()?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.fault(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_proto::raftpb::EntryType;

    #[test]
    fn every_gap_is_filled_to_a_block_boundary_and_parses() {
        for crc in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, 0x0fff_ffff, u32::MAX] {
            for len in (0..=2 * BLOCK_BYTES).step_by(8) {
                let encoder = Encoder { crc };
                let mut out = AlignedBuf::with_capacity(0);
                out.pad_to(len);
                encoder.fill_block(&mut out);
                assert!(out.len().is_multiple_of(BLOCK_BYTES) && out.len() - len <= FILLER_MAX);
                let Frame::Record(record) = parse(&out, len) else { panic!("gap at {len}") };
                assert_eq!((record.kind, record.crc, record.end), (CRC, crc, out.len()));
                assert!(record.data.iter().all(|b| *b == 0));
            }
        }
    }

    #[test]
    fn entries_come_back_and_stay_below_the_bound() {
        let mut encoder = Encoder { crc: 7 };
        for len in [0usize, 1, 7, 8, 100, 127, 128, 20_000, 3_000_000] {
            let data = vec![0xab; len];
            let entry =
                EntryRef { kind: EntryType::EntryConfChange, term: u64::MAX, index: u64::MAX, data: &data };
            let mut out = AlignedBuf::with_capacity(0);
            let before = encoder.crc;
            encoder.entry(&mut out, &entry);
            assert!(out.len() <= frame_bound(len) && out.len().is_multiple_of(8));
            let Frame::Record(record) = parse(&out, 0) else { panic!("no record") };
            assert_eq!((record.kind, record.crc, record.end), (ENTRY, encoder.crc, out.len()));
            assert_eq!(record.crc, crc32c::crc32c_append(before, record.data));
        }
    }

    #[test]
    fn a_mark_is_the_shortest_crc_record() {
        let mut out = AlignedBuf::with_capacity(0);
        Encoder { crc: 0 }.mark(&mut out);
        assert_eq!(out[..], [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 16, 0, 0, 0, 0, 0]);
    }
}
