//! Which segments other processes may be reading by themselves.
//!
//! A descriptor that was lent cannot be taken back, and nobody tells us when it is closed. Whether one
//! is left is for the kernel to say (`librorum_sys::lease`); what is kept here says when to ask, so
//! that a volume of which nothing was ever lent never does.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use librorum_format::SegmentId;

use crate::fs::Fs;
use crate::node::{Backing, lock};

/// So many are told apart, which takes a mebibyte; with more, every segment counts as lent.
const LENT_MAX: usize = 1 << 16;

#[derive(Debug, Default)]
pub(crate) struct Lent {
    any: AtomicBool,
    segments: Mutex<Segments>,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Segments {
    known: HashSet<SegmentId>,
    all: bool,
}

impl Lent {
    /// To be called before the descriptor is opened, under the lock that guards the file's state.
    pub(crate) fn insert(&self, segment: SegmentId) {
        let mut segments = lock(&self.segments);
        if !segments.all {
            segments.known.insert(segment);
            if segments.known.len() > LENT_MAX {
                segments.known = HashSet::new();
                segments.all = true;
            }
        }
        self.any.store(true, Ordering::SeqCst);
    }

    /// The file has another name.
    pub(crate) fn rename(&self, from: SegmentId, to: SegmentId) {
        let mut segments = lock(&self.segments);
        if segments.known.remove(&from) {
            segments.known.insert(to);
        }
    }

    fn remove(&self, segment: SegmentId) {
        lock(&self.segments).known.remove(&segment);
    }

    fn contains(&self, segment: SegmentId) -> bool {
        let segments = lock(&self.segments);
        segments.all || segments.known.contains(&segment)
    }

    /// Whether anything was ever lent.
    pub(crate) fn is_any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    pub(crate) fn note_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that others could read by themselves, as often as they asked.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Fs {
    /// Whether somebody else has a file open that was lent. Where the kernel does not say, it counts
    /// as open.
    pub(crate) fn is_lent(&self, backing: &Backing) -> bool {
        let segment = backing.segment();
        if !self.lent.is_any() || !self.lent.contains(segment) {
            return false;
        }
        // What we keep open for our own reads is no one else's.
        self.store.close_bytes(segment);
        let is_over = matches!(librorum_sys::lease::is_sole_opener(backing.file()), Ok(true));
        if is_over {
            self.lent.remove(segment);
        }
        !is_over
    }
}
