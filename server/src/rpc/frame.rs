//! The gRPC message frame: a flag byte, a length (4 bytes, big endian), the message.
//!
//! [`Frames`] cuts frames out of the chunks that h2 delivers. A frame that lies whole in one chunk is shared, not
//! copied; only a frame that spans chunks is gathered. It never holds more than one frame's announced length, and
//! never more than the limit.

use bytes::{Buf, Bytes, BytesMut};

use crate::status::{Code, Status};

pub(crate) const HEADER_BYTES: usize = 5;

/// Cuts message frames out of chunks.
#[derive(Debug)]
pub(crate) struct Frames {
    chunk: Bytes,
    partial: BytesMut,
    /// Largest message accepted, in bytes.
    limit: usize,
}

impl Frames {
    pub(crate) fn new(limit: usize) -> Frames {
        Frames { chunk: Bytes::new(), partial: BytesMut::new(), limit }
    }

    /// Takes the next chunk. `take` must have answered `None` before.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty());
        self.chunk = chunk;
    }

    /// Whether a frame has begun but not ended.
    pub(crate) fn is_partial(&self) -> bool {
        !self.partial.is_empty() || !self.chunk.is_empty()
    }

    /// The next whole message, or `None` when more chunks are needed.
    pub(crate) fn take(&mut self) -> Result<Option<Bytes>, Status> {
        if self.partial.is_empty() {
            if self.chunk.len() >= HEADER_BYTES {
                let len = self.check_header(&self.chunk[..HEADER_BYTES])?;
                if self.chunk.len() - HEADER_BYTES >= len {
                    let mut frame = self.chunk.split_to(HEADER_BYTES + len);
                    frame.advance(HEADER_BYTES);
                    return Ok(Some(frame));
                }
                self.partial.reserve(HEADER_BYTES + len);
            }
            self.fill_to(usize::MAX);
            return Ok(None);
        }
        self.fill_to(HEADER_BYTES);
        if self.partial.len() < HEADER_BYTES {
            return Ok(None);
        }
        let len = self.check_header(&self.partial[..HEADER_BYTES])?;
        self.partial.reserve((HEADER_BYTES + len).saturating_sub(self.partial.len()));
        self.fill_to(HEADER_BYTES + len);
        if self.partial.len() < HEADER_BYTES + len {
            return Ok(None);
        }
        let mut frame = self.partial.split().freeze();
        frame.advance(HEADER_BYTES);
        Ok(Some(frame))
    }

    /// Moves bytes of the chunk over until `partial` has `want` of them or the chunk is used up.
    fn fill_to(&mut self, want: usize) {
        let missing = want.saturating_sub(self.partial.len()).min(self.chunk.len());
        self.partial.extend_from_slice(&self.chunk.split_to(missing));
    }

    fn check_header(&self, header: &[u8]) -> Result<usize, Status> {
        let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        match header[0] {
            0 => {}
            // A known encoding is refused before any frame is read, so the flag comes without one.
            1 => {
                return Err(Status::new(
                    Code::Internal,
                    "grpc: compressed flag set with identity or empty encoding",
                ));
            }
            flag => {
                return Err(Status {
                    code: Code::Internal,
                    message: format!("grpc: received unexpected payload format {flag}").into(),
                });
            }
        }
        if len > self.limit {
            return Err(Status {
                code: Code::ResourceExhausted,
                message: format!("grpc: received message larger than max ({len} vs. {})", self.limit).into(),
            });
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut out = vec![0];
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let bodies: [&[u8]; 5] = [b"a", b"", b"hello world", &[7; 300], b"z"];
        let wire: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
        for step in 1..wire.len() + 1 {
            let mut frames = Frames::new(300);
            let mut got = Vec::new();
            for chunk in wire.chunks(step) {
                frames.push(Bytes::copy_from_slice(chunk));
                while let Some(frame) = frames.take().unwrap() {
                    got.push(frame);
                }
            }
            assert!(!frames.is_partial());
            assert_eq!(got, bodies, "step {step}");
        }
    }

    #[test]
    fn too_large_and_compressed_are_refused_from_the_header_alone() {
        let mut frames = Frames::new(10);
        frames.push(Bytes::copy_from_slice(&frame(&[0; 11])[..5]));
        let status = frames.take().unwrap_err();
        assert_eq!(status.code, Code::ResourceExhausted);
        assert_eq!(status.message, "grpc: received message larger than max (11 vs. 10)");

        let mut frames = Frames::new(10);
        frames.push(Bytes::from_static(&[1, 0, 0]));
        assert_eq!(frames.take().unwrap(), None);
        frames.push(Bytes::from_static(&[0, 1]));
        assert_eq!(frames.take().unwrap_err().code, Code::Internal);
        let mut frames = Frames::new(10);
        frames.push(Bytes::from_static(&[9, 0, 0, 0, 0]));
        assert_eq!(frames.take().unwrap_err().message, "grpc: received unexpected payload format 9");
    }
}
