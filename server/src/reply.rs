//! An encoded answer: the gRPC frame (flag, length, message) ready to be sent, so that nothing is copied again.
//!
//! Answers with stored pairs are put together from the stored bytes: the store keeps each pair as an encoded
//! mvccpb.KeyValue, and that is what stands in a response.

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::status::{Code, Status};

pub(crate) const FRAME_HEADER_BYTES: usize = 5;
/// Z1: longest message that is sent, in bytes.
const MESSAGE_MAX: u64 = i32::MAX as u64;

/// One uncompressed gRPC message frame.
#[derive(Debug, Clone)]
pub struct Reply(pub Bytes);

impl Reply {
    /// Encodes a message.
    pub fn of<M: prost::Message>(message: &M) -> Reply {
        Reply::build(message.encoded_len(), |buf| message.encode_raw(buf))
    }

    /// Builds a message in place; `size_hint` bytes are reserved for it. For messages that cannot be too long.
    pub fn build(size_hint: usize, fill: impl FnOnce(&mut BytesMut)) -> Reply {
        let filled = Reply::try_build(size_hint, |buf| {
            fill(buf);
            Ok::<(), Status>(())
        });
        filled.expect("messages of the server's own are short")
    }

    /// Builds a message in place, unless that fails or the message is longer than may be sent.
    pub fn try_build<E: From<Status>>(
        size_hint: usize,
        fill: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<Reply, E> {
        let mut buf = BytesMut::with_capacity(FRAME_HEADER_BYTES + size_hint);
        buf.put_bytes(0, FRAME_HEADER_BYTES);
        fill(&mut buf)?;
        let len = check_len((buf.len() - FRAME_HEADER_BYTES) as u64)?;
        buf[1..FRAME_HEADER_BYTES].copy_from_slice(&len.to_be_bytes());
        Ok(Reply(buf.freeze()))
    }

    /// The message without its frame.
    pub fn message(&self) -> Bytes {
        self.0.slice(FRAME_HEADER_BYTES..)
    }
}

/// The answer of a unary call.
#[derive(Debug)]
pub enum Body {
    /// At hand.
    Whole(Reply),
    /// Too large to be held.
    Parts(Box<dyn Parts>),
}

impl From<Reply> for Body {
    fn from(reply: Reply) -> Body {
        Body::Whole(reply)
    }
}

/// A frame in parts, made one after the other as its client takes them.
pub trait Parts: std::fmt::Debug + Send + 'static {
    /// The next bytes of the frame; None after the last, and after an error. Blocks for as long as it takes to read
    /// them.
    fn next(&mut self) -> Option<Result<Bytes, Status>>;
}

/// Z1: refuses a message that is longer than may be sent, with gRPC's error.
pub(crate) fn check_len(message_len: u64) -> Result<u32, Status> {
    match u32::try_from(message_len) {
        Ok(len) if message_len <= MESSAGE_MAX => Ok(len),
        _ => Err(Status {
            code: Code::ResourceExhausted,
            message: format!(
                "grpc: trying to send message larger than max ({message_len} vs. {MESSAGE_MAX})"
            )
            .into(),
        }),
    }
}

/// Appends the frame's flag and length.
pub(crate) fn put_frame_header(buf: &mut BytesMut, message_len: u64) -> Result<(), Status> {
    buf.put_u8(0);
    buf.put_u32(check_len(message_len)?);
    Ok(())
}

/// Appends an embedded message whose bytes are at hand.
pub(crate) fn put_embedded(buf: &mut BytesMut, field: u32, message: &[u8]) {
    encode_key(field, WireType::LengthDelimited, buf);
    encode_varint(message.len() as u64, buf);
    buf.put_slice(message);
}

/// The same for a message that lies in two pieces.
pub(crate) fn put_embedded_parts(buf: &mut BytesMut, field: u32, front: &[u8], back: &[u8]) {
    encode_key(field, WireType::LengthDelimited, buf);
    encode_varint((front.len() + back.len()) as u64, buf);
    buf.put_slice(front);
    buf.put_slice(back);
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
