//! Buffers that are used again.
//!
//! The first touch of fresh memory costs more than copying into it, so whatever carries contents
//! comes from a pool and goes back to it when dropped.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Buffers that wait to be used again: at most so many, the rest is freed.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    free: Mutex<Vec<Vec<u8>>>,
    kept_max: usize,
}

impl BufferPool {
    /// A pool that keeps at most `kept_max` buffers.
    #[must_use]
    pub fn new(kept_max: usize) -> Self {
        Self { shared: Arc::new(Shared { free: Mutex::new(Vec::new()), kept_max }) }
    }

    /// A buffer of `len` bytes, whose content is whatever was in it before.
    #[must_use]
    pub fn take(&self, len: usize) -> Pooled {
        let mut bytes = {
            let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
            // The last one given back is likely still in the CPU's cache.
            match free.iter().rposition(|buffer| buffer.len() >= len) {
                Some(index) => free.swap_remove(index),
                None => free.pop().unwrap_or_default(),
            }
        };
        if bytes.len() < len {
            bytes.clear();
            bytes.resize(len.next_power_of_two(), 0);
        }
        Pooled { bytes, len, pool: Arc::downgrade(&self.shared) }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        formatter.debug_struct("BufferPool").field("free", &free.len()).finish_non_exhaustive()
    }
}

/// Bytes in a buffer that returns to its pool when dropped.
pub struct Pooled {
    // May be longer than `len`: a buffer is never filled with zeros a second time.
    bytes: Vec<u8>,
    len: usize,
    pool: Weak<Shared>,
}

impl Pooled {
    /// Leaves out what is behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Pooled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pooled").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            let mut free = pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < pool.kept_max {
                free.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_the_next_one() {
        let pool = BufferPool::new(1);
        let mut first = pool.take(100_000);
        first[99_999] = 7;
        let address = first.as_ptr();
        drop(first);
        let mut second = pool.take(99_000);
        assert_eq!((second.as_ptr(), second.len()), (address, 99_000));
        second.truncate(3);
        assert_eq!(second.len(), 3);
        let third = pool.take(5);
        drop((second, third));
        assert_eq!(pool.shared.free.lock().unwrap().len(), 1);
    }
}
