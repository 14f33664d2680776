//! An encoded answer: the gRPC frame (flag, length, message) ready to be sent, so that nothing is copied again.

use bytes::{BufMut, Bytes, BytesMut};

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
        let mut buf = BytesMut::with_capacity(FRAME_HEADER_BYTES + size_hint);
        buf.put_bytes(0, FRAME_HEADER_BYTES);
        fill(&mut buf);
        let len = (buf.len() - FRAME_HEADER_BYTES) as u32;
        buf[1..FRAME_HEADER_BYTES].copy_from_slice(&len.to_be_bytes());
        Reply(buf.freeze())
    }
}
