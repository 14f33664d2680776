//! The bytes of revisions, stored pairs and index entries.
//!
//! Promises: revision keys and pairs are etcd's, byte for byte (proto3: a field at its zero value is absent, fields
//! in the order of their numbers). What comes from the file is checked: a decoder answers None for bytes that no
//! encoder here writes, never panics, and reads nothing past their end.

use bytes::{Bytes, BytesMut};

use super::Revision;
use crate::sums::{PUT_AGAIN, PUT_FIRST, TOMBSTONE, TOMBSTONE_FIRST};

/// A revision key: main, `_`, sub. A tombstone's has one byte more.
const REVISION_LEN: usize = 8 + 1 + 8;
const TOMBSTONE_LEN: usize = REVISION_LEN + 1;
/// What follows the user key in a key of tree `Index`: main (8 bytes) and sub (4 bytes), big endian.
pub(super) const INDEX_SUFFIX: usize = 8 + 4;

/// Changes share chunks of this many bytes, so that one costs no allocation of its own.
const CHUNK: usize = 64 * 1024;

/// The key of a revision in tree `Key`.
#[derive(Debug, Clone, Copy)]
pub(super) struct RevisionKey {
    bytes: [u8; TOMBSTONE_LEN],
    len: usize,
}

impl RevisionKey {
    pub(super) fn new(revision: Revision, tombstone: bool) -> RevisionKey {
        let mut bytes = [0; TOMBSTONE_LEN];
        bytes[..8].copy_from_slice(&revision.main.to_be_bytes());
        bytes[8] = b'_';
        bytes[9..REVISION_LEN].copy_from_slice(&revision.sub.to_be_bytes());
        bytes[REVISION_LEN] = b't';
        RevisionKey { bytes, len: if tombstone { TOMBSTONE_LEN } else { REVISION_LEN } }
    }

    /// The revision, and whether it is a tombstone.
    pub(super) fn parse(key: &[u8]) -> Option<(Revision, bool)> {
        let (revision, mark) = key.split_at_checked(REVISION_LEN)?;
        if revision[8] != b'_' || !(mark.is_empty() || mark == b"t") {
            return None;
        }
        let main = i64::from_be_bytes(revision[..8].try_into().ok()?);
        let sub = i64::from_be_bytes(revision[9..].try_into().ok()?);
        Some((Revision { main, sub }, !mark.is_empty()))
    }
}

impl std::ops::Deref for RevisionKey {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Makes `buffer` the key of a revision of a user key in tree `Index`.
pub(super) fn index_key(buffer: &mut Vec<u8>, key: &[u8], revision: Revision) {
    let sub = u32::try_from(revision.sub).expect("a transaction makes fewer than 2^32 changes");
    buffer.clear();
    buffer.extend_from_slice(key);
    buffer.extend_from_slice(&revision.main.to_be_bytes());
    buffer.extend_from_slice(&sub.to_be_bytes());
}

/// Makes `buffer` a key of tree `Index` that lies after every revision of the user key.
pub(super) fn index_key_after(buffer: &mut Vec<u8>, key: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(key);
    buffer.extend_from_slice(&[0xff; INDEX_SUFFIX]);
}

/// The user key and the revision of a key of tree `Index`.
pub(super) fn parse_index_key(entry: &[u8]) -> Option<(&[u8], Revision)> {
    let (key, suffix) = entry.split_at_checked(entry.len().checked_sub(INDEX_SUFFIX)?)?;
    let main = i64::from_be_bytes(suffix[..8].try_into().ok()?);
    let sub = u32::from_be_bytes(suffix[8..].try_into().ok()?);
    Some((key, Revision { main, sub: i64::from(sub) }))
}

/// The value of a tombstone in tree `Index`. Only a live key is deleted, so there is a put before it.
pub(super) const TOMBSTONE_VALUE: [u8; 1] = [TOMBSTONE];

/// The value that an entry of tree `Index` has once nothing older of its key is left: as long as it was, and what it
/// adds to the number of live keys now includes what the entry before it did. None: it is that already.
///
/// Whoever removes the oldest entry of a key gives the next one this value, in the same batch.
pub(super) fn as_first(value: &[u8]) -> Option<Vec<u8>> {
    let first = match *value.first()? {
        PUT_AGAIN => PUT_FIRST,
        TOMBSTONE => TOMBSTONE_FIRST,
        _ => return None,
    };
    let mut value = value.to_vec();
    value[0] = first;
    Some(value)
}

/// The value of a tombstone in tree `Index` of which nothing older is left.
pub(super) const FIRST_TOMBSTONE_VALUE: [u8; 1] = [TOMBSTONE_FIRST];

/// Makes a value for an entry that is the first of its key one for an entry that follows a put.
pub(super) fn after_a_put(value: &mut [u8]) {
    match value.first_mut() {
        Some(kind) if *kind == PUT_FIRST => *kind = PUT_AGAIN,
        Some(kind) if *kind == TOMBSTONE_FIRST => *kind = TOMBSTONE,
        _ => {}
    }
}

/// What an entry of tree `Index` says of a put. Before it stands a byte that says what the entry adds to the number
/// of live keys (`sums.rs`), the value of a tombstone is that byte alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) create_revision: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
}

impl Live {
    /// `again`: the entry before it, of the same key, is a put.
    pub(super) fn encode(&self, again: bool, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.push(if again { PUT_AGAIN } else { PUT_FIRST });
        for number in [self.create_revision, self.version, self.lease] {
            put_varint(number as u64, |byte| buffer.push(byte));
        }
    }

    /// The outer None: not an index value. The inner one: a tombstone.
    pub(super) fn parse(value: &[u8]) -> Option<Option<Live>> {
        let rest = match value.split_first()? {
            (&(TOMBSTONE | TOMBSTONE_FIRST), rest) => return rest.is_empty().then_some(None),
            (&(PUT_AGAIN | PUT_FIRST), rest) => rest,
            _ => return None,
        };
        let (create_revision, rest) = take_varint(rest)?;
        let (version, rest) = take_varint(rest)?;
        let (lease, rest) = take_varint(rest)?;
        let live =
            Live { create_revision: create_revision as i64, version: version as i64, lease: lease as i64 };
        rest.is_empty().then_some(Some(live))
    }
}

/// Makes `buffer` the key of an attachment in tree `LeaseKey`.
pub(super) fn lease_key(buffer: &mut Vec<u8>, lease: i64, key: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(&lease.to_be_bytes());
    buffer.extend_from_slice(key);
}

/// A stored pair: mvccpb.KeyValue.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    /// Main revision of this put.
    pub(super) modified: i64,
    pub(super) live: Live,
}

impl Pair<'_> {
    fn numbers(&self) -> [(u8, i64); 3] {
        [(0x10, self.live.create_revision), (0x18, self.modified), (0x20, self.live.version)]
    }

    /// The pair as etcd stores it, and the key as a slice of it.
    pub(super) fn encode(&self, chunks: &mut Chunks) -> (Bytes, Bytes) {
        let numbers = self.numbers().into_iter().chain([(0x30, self.live.lease)]);
        let len = bytes_field_len(self.key)
            + bytes_field_len(self.value)
            + numbers
                .map(|(_, number)| if number == 0 { 0 } else { 1 + varint_len(number as u64) })
                .sum::<usize>();
        let buffer = chunks.begin(len);
        put_bytes_field(buffer, 0x0a, self.key);
        for (tag, number) in self.numbers() {
            put_number_field(buffer, tag, number);
        }
        put_bytes_field(buffer, 0x2a, self.value);
        put_number_field(buffer, 0x30, self.live.lease);
        chunks.end(len, self.key.len())
    }
}

/// A tombstone's pair: only the key; and the key as a slice of it.
pub(super) fn encode_tombstone(chunks: &mut Chunks, key: &[u8]) -> (Bytes, Bytes) {
    let len = bytes_field_len(key);
    put_bytes_field(chunks.begin(len), 0x0a, key);
    chunks.end(len, key.len())
}

/// Where the user key lies in a stored pair. A pair without one (etcd's restore can add an entry with an empty
/// value, to lift the revision) has the empty key.
pub(super) fn key_of_pair(pair: &[u8]) -> Option<std::ops::Range<usize>> {
    let Some((0x0a, rest)) = pair.split_first() else { return Some(0..0) };
    let (len, rest) = take_varint(rest)?;
    let start = pair.len() - rest.len();
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= pair.len()).then_some(start..end)
}

/// Hands out `Bytes` that share large chunks of memory. One that is kept keeps its chunk.
#[derive(Debug, Default)]
pub(super) struct Chunks(BytesMut);

impl Chunks {
    fn begin(&mut self, len: usize) -> &mut BytesMut {
        debug_assert!(self.0.is_empty(), "the last piece was taken");
        if self.0.capacity() < len {
            self.0 = BytesMut::with_capacity(len.max(CHUNK));
        }
        &mut self.0
    }

    /// The piece just written, and the key in it.
    fn end(&mut self, len: usize, key_len: usize) -> (Bytes, Bytes) {
        assert_eq!(self.0.len(), len, "a pair is as long as it was counted");
        let pair = self.0.split().freeze();
        let key_start = if key_len == 0 { 0 } else { 1 + varint_len(key_len as u64) };
        let key = pair.slice(key_start..key_start + key_len);
        (pair, key)
    }

    /// A copy of a stored pair, and the key in it. None if it is not one.
    pub(super) fn copy_pair(&mut self, pair: &[u8]) -> Option<(Bytes, Bytes)> {
        let key = key_of_pair(pair)?;
        self.begin(pair.len()).extend_from_slice(pair);
        let pair = self.0.split().freeze();
        let key = pair.slice(key);
        Some((pair, key))
    }
}

fn bytes_field_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { 1 + varint_len(bytes.len() as u64) + bytes.len() }
}

fn put_bytes_field(buffer: &mut BytesMut, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        buffer.extend_from_slice(&[tag]);
        put_varint(bytes.len() as u64, |byte| buffer.extend_from_slice(&[byte]));
        buffer.extend_from_slice(bytes);
    }
}

fn put_number_field(buffer: &mut BytesMut, tag: u8, number: i64) {
    if number != 0 {
        buffer.extend_from_slice(&[tag]);
        put_varint(number as u64, |byte| buffer.extend_from_slice(&[byte]));
    }
}

fn put_varint(mut number: u64, mut push: impl FnMut(u8)) {
    while number >= 0x80 {
        push(number as u8 | 0x80);
        number >>= 7;
    }
    push(number as u8);
}

fn varint_len(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

pub(super) fn take_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        if i == 9 && *byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use trilith_proto::mvccpb::KeyValue;

    #[test]
    fn revision_keys_are_etcds() {
        // backend_layout K1, K2.
        let revision = Revision { main: 0x0102030405060708, sub: 0x1112 };
        let key = RevisionKey::new(revision, false);
        assert_eq!(key[..], *b"\x01\x02\x03\x04\x05\x06\x07\x08_\0\0\0\0\0\0\x11\x12");
        let tombstone = RevisionKey::new(revision, true);
        assert_eq!(tombstone[..], *b"\x01\x02\x03\x04\x05\x06\x07\x08_\0\0\0\0\0\0\x11\x12t");
        assert_eq!(RevisionKey::parse(&key), Some((revision, false)));
        assert_eq!(RevisionKey::parse(&tombstone), Some((revision, true)));
        for bad in [&key[..16], b"", b"01234567-01234567", b"01234567_01234567x", b"01234567_01234567tt"] {
            assert_eq!(RevisionKey::parse(bad), None);
        }
    }

    #[test]
    fn pairs_equal_a_protobuf_encoder() {
        // backend_layout K3, K4.
        let mut chunks = Chunks::default();
        let long = vec![7u8; 300];
        for key in [&b"k"[..], b"", &long] {
            for value in [&b"v"[..], b"", &long] {
                for (create_revision, modified, version, lease) in
                    [(2, 2, 1, 0), (127, 128, 16384, 1), (1, i64::MAX, 1 << 35, -1), (0, 0, 0, i64::MIN)]
                {
                    let live = Live { create_revision, version, lease };
                    let (pair, found) = Pair { key, value, modified, live }.encode(&mut chunks);
                    let expected = KeyValue {
                        key: key.to_vec().into(),
                        value: value.to_vec().into(),
                        create_revision,
                        mod_revision: modified,
                        version,
                        lease,
                    };
                    assert_eq!(pair, expected.encode_to_vec());
                    assert_eq!(found, key);
                    assert_eq!(&pair[key_of_pair(&pair).unwrap()], key);
                    assert_eq!(chunks.copy_pair(&pair), Some((pair, found)));
                }
            }
            let (tombstone, found) = encode_tombstone(&mut chunks, key);
            let expected = KeyValue { key: key.to_vec().into(), ..Default::default() };
            assert_eq!(tombstone, expected.encode_to_vec());
            assert_eq!(found, key);
        }
    }

    #[test]
    fn pairs_larger_than_a_chunk_and_across_chunks() {
        let mut chunks = Chunks::default();
        let mut pairs = Vec::new();
        for i in 0..40usize {
            let value = vec![i as u8; i * 5000];
            let live = Live { create_revision: 1, version: 1, lease: 0 };
            pairs.push(Pair { key: b"key", value: &value, modified: 1, live }.encode(&mut chunks));
        }
        for (i, (pair, key)) in pairs.iter().enumerate() {
            assert_eq!(key, "key");
            assert_eq!(KeyValue::decode(pair.clone()).unwrap().value, vec![i as u8; i * 5000]);
        }
    }

    #[test]
    fn damaged_pairs_and_index_values_are_refused() {
        assert_eq!(key_of_pair(b""), Some(0..0));
        assert_eq!(key_of_pair(b"\x0a\x05abc"), None);
        assert_eq!(key_of_pair(b"\x0a"), None);
        assert_eq!(key_of_pair(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a"), None);
        assert_eq!(Live::parse(b""), None);
        assert_eq!(Live::parse(b"\x02\x00"), None);
        assert_eq!(Live::parse(b"\x04\x01\x02\x00"), None);
        assert_eq!(Live::parse(b"\x01\x01\x02"), None);
        assert_eq!(Live::parse(b"\x01\x01\x02\x00\x00"), None);
        assert_eq!(Live::parse(&[0xff; 30]), None);
        assert_eq!(parse_index_key(b"short"), None);
    }

    #[test]
    fn index_entries_go_round() {
        let mut buffer = Vec::new();
        for live in [
            Live { create_revision: 2, version: 1, lease: 0 },
            Live { create_revision: i64::MAX, version: i64::MAX, lease: -1 },
        ] {
            live.encode(true, &mut buffer);
            assert_eq!(Live::parse(&buffer), Some(Some(live)));
            let first = as_first(&buffer);
            live.encode(false, &mut buffer);
            assert_eq!(Live::parse(&buffer), Some(Some(live)));
            assert_eq!(first.as_deref(), Some(&buffer[..]));
            assert_eq!(as_first(&buffer), None);
        }
        assert_eq!(Live::parse(&TOMBSTONE_VALUE), Some(None));
        let first = as_first(&TOMBSTONE_VALUE);
        assert_eq!(first.as_deref().and_then(Live::parse), Some(None));
        assert_eq!(first.as_deref().and_then(as_first), None);
        let revision = Revision { main: 77, sub: 3 };
        index_key(&mut buffer, b"user", revision);
        assert_eq!(parse_index_key(&buffer), Some((&b"user"[..], revision)));
    }
}
