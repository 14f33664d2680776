//! Compression of long values with zstd: by the checkpoint on their way to the file, and back when they are read.
//!
//! Promises: what comes back has exactly the length that was asked for, or nothing comes back. Bytes reach the
//! decoder only after their checksum has been verified by the caller.

use std::cell::RefCell;
use std::sync::Arc;

/// Shorter values are not worth the work: see the figures in `docs/architecture.md`.
const BYTES_MIN: usize = 1024;
const LEVEL: i32 = 1;

/// What compresses the values of one checkpoint.
#[derive(Default)]
pub(crate) struct Compressor {
    /// None: it does not.
    zstd: Option<zstd::bulk::Compressor<'static>>,
    room: Vec<u8>,
}

impl Compressor {
    pub(crate) fn new(compress: bool) -> Compressor {
        // The only error is a lack of memory, and then values are stored as they are.
        let zstd = compress.then(|| zstd::bulk::Compressor::new(LEVEL).ok()).flatten();
        Compressor { zstd, room: Vec::new() }
    }

    /// The value compressed, if that saves an eighth of it at least.
    pub(crate) fn compress(&mut self, value: &[u8]) -> Option<&[u8]> {
        let zstd = self.zstd.as_mut().filter(|_| value.len() >= BYTES_MIN)?;
        let enough = value.len() - value.len() / 8;
        self.room.clear();
        self.room.reserve(enough);
        let written = zstd.compress_to_buffer(value, &mut self.room).ok()?;
        (written <= enough).then_some(&self.room)
    }
}

thread_local! {
    /// Kept, since making one costs more than a short value.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The `len` bytes that were compressed; None if that is not what they are.
pub(crate) fn decompress(stored: &[u8], len: usize) -> Option<Arc<[u8]>> {
    let mut value: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
    let room = Arc::get_mut(&mut value).expect("nobody else has it yet");
    let found = DECOMPRESSOR.with_borrow_mut(|zstd| {
        let zstd = match zstd {
            Some(zstd) => zstd,
            None => zstd.insert(zstd::bulk::Decompressor::new().ok()?),
        };
        zstd.decompress_to_buffer(stored, room).ok()
    });
    (found == Some(len)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pays_is_compressed_and_comes_back() {
        let text = "the same again and again, ".repeat(100).into_bytes();
        let mut compressor = Compressor::new(true);
        let stored = compressor.compress(&text).unwrap().to_vec();
        assert!(stored.len() < text.len() / 10);
        assert_eq!(&decompress(&stored, text.len()).unwrap()[..], text);
        for wrong in [0, text.len() - 1, text.len() + 1] {
            assert_eq!(decompress(&stored, wrong), None, "{wrong}");
        }
        assert_eq!(decompress(&stored[..stored.len() - 1], text.len()), None);
        assert_eq!(decompress(&text, text.len()), None, "not zstd's bytes");
    }

    #[test]
    fn what_does_not_pay_is_left_alone() {
        let mut state = 1u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(8192)
        .collect();
        assert_eq!(Compressor::new(true).compress(&noise), None);
        assert_eq!(Compressor::new(true).compress(&[7; BYTES_MIN - 1]), None, "too short");
        assert_eq!(Compressor::new(false).compress(&[7; 8192]), None, "not asked for");
    }
}
