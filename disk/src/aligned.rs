//! Buffers aligned for direct I/O. One of the few files with unsafe code.
//!
//! Promises: the bytes start at a multiple of [`ALIGNMENT`], and the capacity is a multiple of it; all bytes up to
//! the length are initialised.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// What direct I/O asks of addresses, offsets and lengths on every disk we know: 4 KiB.
pub const ALIGNMENT: usize = 4096;

/// A growable byte buffer for direct I/O.
#[derive(Debug)]
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its bytes and has no interior mutability.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// An empty buffer that can hold `capacity` bytes, rounded up to the alignment and to one block at least.
    pub fn with_capacity(capacity: usize) -> AlignedBuf {
        let capacity = capacity.max(1).next_multiple_of(ALIGNMENT);
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        AlignedBuf { start, len: 0, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGNMENT).expect("a buffer is far smaller than the address space")
    }

    /// Bytes it can hold before it grows.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the bytes and keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.reserve_to(end);
        // SAFETY: reserve_to made room for `end` bytes, and a borrowed slice cannot lie inside our own memory.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(self.len), bytes.len())
        };
        self.len = end;
    }

    /// Appends zero bytes until the length is `len`; does nothing if it is that long already.
    pub fn pad_to(&mut self, len: usize) {
        if len > self.len {
            self.reserve_to(len);
            // SAFETY: reserve_to made room for `len` bytes.
            unsafe { std::ptr::write_bytes(self.start.as_ptr().add(self.len), 0, len - self.len) };
            self.len = len;
        }
    }

    fn reserve_to(&mut self, len: usize) {
        if len <= self.capacity {
            return;
        }
        let mut larger = AlignedBuf::with_capacity(len.max(self.capacity * 2));
        larger.extend_from_slice(self);
        *self = larger;
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` are ours and initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and we hold the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in with_capacity with the same layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_stays_aligned() {
        let mut buf = AlignedBuf::with_capacity(10);
        for i in 0..20_000u32 {
            buf.extend_from_slice(&i.to_le_bytes());
        }
        buf.pad_to(80_004);
        assert_eq!(buf.as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!(buf.capacity() % ALIGNMENT, 0);
        for i in 0..20_000u32 {
            assert_eq!(buf[i as usize * 4..][..4], i.to_le_bytes());
        }
        assert_eq!(buf[80_000..], [0; 4]);
        buf.clear();
        buf.pad_to(4096);
        assert!(buf.iter().all(|b| *b == 0));
    }
}
