//! An encoded answer: the gRPC frame (flag, length, message) ready to be sent, so that nothing is copied again.
//!
//! Answers with stored pairs are put together from the stored bytes: the store keeps each pair as an encoded
//! mvccpb.KeyValue, and that is what stands in a response.

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

const FRAME_HEADER_BYTES: usize = 5;

/// One uncompressed gRPC message frame.
#[derive(Debug, Clone)]
pub struct Reply(pub Bytes);

impl Reply {
    /// Encodes a message.
    pub fn of<M: prost::Message>(message: &M) -> Reply {
        Reply::build(message.encoded_len(), |buf| message.encode_raw(buf))
    }

    /// Builds a message in place; `size_hint` bytes are reserved for it.
    pub fn build(size_hint: usize, fill: impl FnOnce(&mut BytesMut)) -> Reply {
        let filled = Reply::try_build(size_hint, |buf| {
            fill(buf);
            Ok::<(), std::convert::Infallible>(())
        });
        match filled {
            Ok(reply) => reply,
            Err(never) => match never {},
        }
    }

    /// Builds a message in place, unless that fails.
    pub fn try_build<E>(
        size_hint: usize,
        fill: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<Reply, E> {
        let mut buf = BytesMut::with_capacity(FRAME_HEADER_BYTES + size_hint);
        buf.put_bytes(0, FRAME_HEADER_BYTES);
        fill(&mut buf)?;
        let len = u32::try_from(buf.len() - FRAME_HEADER_BYTES).expect("answers stay below 4 GiB");
        buf[1..FRAME_HEADER_BYTES].copy_from_slice(&len.to_be_bytes());
        Ok(Reply(buf.freeze()))
    }

    /// The message without its frame.
    pub fn message(&self) -> Bytes {
        self.0.slice(FRAME_HEADER_BYTES..)
    }
}

/// Appends an embedded message whose bytes are at hand.
pub(crate) fn put_embedded(buf: &mut BytesMut, field: u32, message: &[u8]) {
    encode_key(field, WireType::LengthDelimited, buf);
    encode_varint(message.len() as u64, buf);
    buf.put_slice(message);
}

/// Bytes that `put_embedded` appends for a message of that length.
pub(crate) fn embedded_len(field: u32, message_len: usize) -> usize {
    prost::encoding::key_len(field) + encoded_len_varint(message_len as u64) + message_len
}

/// Appends an embedded message.
pub(crate) fn put_message<M: prost::Message>(buf: &mut BytesMut, field: u32, message: &M) {
    prost::encoding::message::encode(field, message, buf);
}

/// Appends an integer, which proto3 leaves out when it is zero.
pub(crate) fn put_int64(buf: &mut BytesMut, field: u32, value: i64) {
    if value != 0 {
        prost::encoding::int64::encode(field, &value, buf);
    }
}

/// Appends a flag, which proto3 leaves out when it is false.
pub(crate) fn put_bool(buf: &mut BytesMut, field: u32, value: bool) {
    if value {
        prost::encoding::bool::encode(field, &value, buf);
    }
}
