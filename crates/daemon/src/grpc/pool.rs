//! Buffers for file bytes on their way out.
//!
//! A fresh buffer costs a page fault for every 4 KiB, which halves the speed of everything (measured);
//! so those that were sent come back.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The bytes of one message: large enough that the costs of a message do not count, and below the 4 MiB
/// that clients take unless they are told otherwise.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// More are given back to the system.
const IDLE_MAX: usize = 16;

type Idle = Arc<Mutex<Vec<Box<[u8]>>>>;

/// See the module.
#[derive(Debug)]
pub(super) struct BufferPool(Idle);

/// A buffer of [`PIECE_BYTES`].
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    home: Idle,
}

impl BufferPool {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    pub(super) fn take(&self) -> Buffer {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = idle.unwrap_or_else(|| vec![0; PIECE_BYTES].into_boxed_slice());
        Buffer { bytes, len: 0, home: Arc::clone(&self.0) }
    }
}

impl Buffer {
    /// Room for so many bytes.
    pub(super) fn space(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[..len]
    }

    /// The first `len` bytes, to be sent.
    pub(super) fn into_bytes(mut self, len: usize) -> Bytes {
        self.len = len;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_bytes_are_gone() {
        let pool = BufferPool::new();
        let mut buffer = pool.take();
        buffer.space(3).copy_from_slice(b"abc");
        let bytes = buffer.into_bytes(3);
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!((&part[..], pool.0.lock().unwrap().len()), (&b"bc"[..], 0));
        drop(part);
        assert_eq!(pool.0.lock().unwrap().len(), 1);
    }
}
