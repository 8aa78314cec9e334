//! Where answers wait for the thread that asked.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::sync::{Arc, Mutex};
use std::thread::Thread;

use super::lock;
use crate::frame::Frame;

/// Where the answers to some requests arrive.
pub(in crate::client) struct Mailbox {
    frames: Mutex<VecDeque<Frame>>,
    thread: Mutex<Option<Thread>>,
}

impl Mailbox {
    pub(in crate::client) fn new() -> Arc<Self> {
        Arc::new(Self { frames: Mutex::new(VecDeque::new()), thread: Mutex::new(None) })
    }

    pub(super) fn pop(&self) -> Option<Frame> {
        lock(&self.frames).pop_front()
    }

    pub(super) fn push(&self, frame: Frame) {
        lock(&self.frames).push_back(frame);
        self.wake();
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = lock(&self.thread).as_ref() {
            thread.unpark();
        }
    }

    /// Whoever puts something in from now on wakes the calling thread.
    pub(super) fn attend(&self) {
        *lock(&self.thread) = Some(std::thread::current());
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.frames).is_empty()
    }
}

/// Spreads the ids, which are odd and consecutive.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
