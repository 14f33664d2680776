//! Long keys and values on their way to the file: packed one after the other into the extents of their page.
//!
//! Promises: what one node has in memory goes into as few extents as [`EXTENT_BYTES`] allows, and an extent never holds
//! parts of two nodes. It decides what stands where; allocating and writing are the caller's.

use crate::StoreError;
use crate::compress::Compressor;
use crate::extent::{Extent, Long, Part};
use crate::node::{Blob, Node};
use crate::page::{PAGE, PageMut, Place};

/// An extent has no more bytes than this, unless a single value has more: long enough that the empty end of its last page
/// does not matter, short enough to find room between others and to be written anew when it gets sparse.
const EXTENT_BYTES: usize = 64 << 10;
/// Parts begin at multiples of this.
const ALIGN: usize = 8;

/// What packs the long parts of one checkpoint.
#[derive(Default)]
pub(crate) struct Packer {
    compressor: Compressor,
    filling: Filling,
}

/// An extent that is being filled.
#[derive(Default)]
struct Filling {
    bytes: Vec<u8>,
    /// What it holds: cell, part, place in the node's side table, reference still without the extent.
    parts: Vec<(usize, Part, usize, Long)>,
}

impl Packer {
    /// `compress`: values, where that pays.
    pub(crate) fn new(compress: bool) -> Packer {
        Packer { compressor: Compressor::new(compress), ..Packer::default() }
    }

    /// Puts every long part that the node has in memory into an extent, and the references into `page`, a copy of the
    /// node's. `put` finds pages for an extent and writes it. Errors: those of `put`.
    pub(crate) fn pack(
        &mut self,
        checkpoint: u64,
        node: &Node,
        page: &mut PageMut<'_>,
        mut put: impl FnMut(&[u8], u32) -> Result<Extent, StoreError>,
    ) -> Result<(), StoreError> {
        let Packer { compressor, filling } = self;
        let mut finish = |filling: &mut Filling| {
            let extent = put(&filling.bytes, filling.bytes.len().div_ceil(PAGE) as u32)?;
            for (i, part, place, long) in filling.parts.drain(..) {
                let long = Long { extent, ..long };
                page.set_long(i, part, Place::Disk(long));
                node.blob(place).written.set(checkpoint, long);
            }
            filling.bytes.clear();
            Ok(())
        };
        for (i, part, place) in node.memory_parts() {
            let blob = node.blob(place);
            let compressed = if part == Part::Value { compressor.compress(&blob.bytes) } else { None };
            let stored = compressed.unwrap_or(&blob.bytes);
            if !filling.parts.is_empty() && filling.bytes.len() + stored.len() > EXTENT_BYTES {
                finish(filling)?;
            }
            let long = filling.add(stored, blob);
            filling.parts.push((i, part, place, long));
        }
        if !filling.parts.is_empty() {
            finish(filling)?;
        }
        Ok(())
    }
}

impl Filling {
    /// `stored`: the part, or what it was compressed to.
    fn add(&mut self, stored: &[u8], part: &Blob) -> Long {
        let bytes = |len| u32::try_from(len).expect("the store bounds the length of keys and values");
        let (len, crc) = (part.bytes.len(), part.crc());
        let long = Long {
            extent: Extent { page: 0, pages: 0 },
            at: bytes(self.bytes.len()),
            stored: bytes(stored.len()),
            stored_crc: if stored.len() == len { crc } else { crc32c::crc32c(stored) },
            len: bytes(len),
            crc,
        };
        self.bytes.extend_from_slice(stored);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        long
    }
}
