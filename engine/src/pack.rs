//! Long keys and values on their way to the file: packed one after the other into the extents of their page.
//!
//! Promises: what one node has in memory goes into as few extents as [`EXTENT_BYTES`] allows, and an extent never holds
//! parts of two nodes. It decides what stands where; allocating and writing are the caller's.

use crate::StoreError;
use crate::extent::{Extent, Long, Part};
use crate::node::Node;
use crate::page::{PAGE, PageMut, Place};

/// An extent has no more bytes than this, unless a single value has more: long enough that the empty end of its last page
/// does not matter, short enough to find room between others and to be written anew when it gets sparse.
const EXTENT_BYTES: usize = 64 << 10;
/// Parts begin at multiples of this.
const ALIGN: usize = 8;

/// An extent that is being filled.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    bytes: Vec<u8>,
    /// What it holds: cell, part, place in the node's side table, reference still without the extent.
    parts: Vec<(usize, Part, usize, Long)>,
}

impl Packer {
    /// Puts every long part that the node has in memory into an extent, and the references into `page`, a copy of the
    /// node's. `put` finds pages for an extent and writes it. Errors: those of `put`.
    pub(crate) fn pack(
        &mut self,
        checkpoint: u64,
        node: &Node,
        page: &mut PageMut<'_>,
        mut put: impl FnMut(&[u8], u32) -> Result<Extent, StoreError>,
    ) -> Result<(), StoreError> {
        let mut finish = |packer: &mut Packer| {
            let extent = put(&packer.bytes, packer.bytes.len().div_ceil(PAGE) as u32)?;
            for (i, part, place, long) in packer.parts.drain(..) {
                let long = Long { extent, ..long };
                page.set_long(i, part, Place::Disk(long));
                node.blob(place).written.set(checkpoint, long);
            }
            packer.bytes.clear();
            Ok(())
        };
        for (i, part, place) in node.memory_parts() {
            let bytes = &node.blob(place).bytes;
            if !self.parts.is_empty() && self.bytes.len() + bytes.len() > EXTENT_BYTES {
                finish(self)?;
            }
            let at = u32::try_from(self.bytes.len()).expect("an extent has no room for so much");
            let len = u32::try_from(bytes.len()).expect("the store bounds the length of keys and values");
            let crc = crc32c::crc32c(bytes);
            let extent = Extent { page: 0, pages: 0 };
            self.parts.push((i, part, place, Long { extent, at, stored: len, stored_crc: crc, len, crc }));
            self.bytes.extend_from_slice(bytes);
            self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        }
        if !self.parts.is_empty() {
            finish(self)?;
        }
        Ok(())
    }
}
