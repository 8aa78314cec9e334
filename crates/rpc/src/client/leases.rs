//! Descriptors that the daemon has lent, kept for the next file in the same segment.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex};

use super::connection::lock;

/// How many descriptors are kept, if the daemon lends so many.
const KEPT: usize = 256;

/// How many segments a request names as known: the newest, so that it stays small.
const NAMED: usize = 64;

/// Those of one session; [`Leases::clear`] before the next.
pub(super) struct Leases(Mutex<State>);

#[derive(Default)]
struct State {
    files: HashMap<u64, Lease>,
    // Not for new reads any more, but somebody may still read from them.
    retired: Vec<(u64, Arc<File>)>,
    uses: u64,
}

struct Lease {
    file: Arc<File>,
    used: u64,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State::default()))
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.0).files.len()
    }

    pub(super) fn clear(&self) {
        *lock(&self.0) = State::default();
    }

    /// The segments whose descriptors need not be sent.
    pub(super) fn known(&self) -> Vec<u64> {
        let state = lock(&self.0);
        let mut known: Vec<(u64, u64)> =
            state.files.iter().map(|(&segment, lease)| (lease.used, segment)).collect();
        known.sort_unstable_by(|a, b| b.cmp(a));
        known.truncate(NAMED);
        known.into_iter().map(|(_, segment)| segment).collect()
    }

    pub(super) fn get(&self, segment: u64) -> Option<Arc<File>> {
        let mut state = lock(&self.0);
        state.uses += 1;
        let used = state.uses;
        let lease = state.files.get_mut(&segment)?;
        lease.used = used;
        Some(Arc::clone(&lease.file))
    }

    /// Keeps a descriptor, at most `max` of them. One that is there already stays.
    pub(super) fn insert(&self, segment: u64, file: File, max: usize) -> Arc<File> {
        if let Some(there) = self.get(segment) {
            return there;
        }
        let mut state = lock(&self.0);
        state.uses += 1;
        let used = state.uses;
        let max = max.clamp(1, KEPT);
        while state.files.len() >= max {
            let oldest = state.files.iter().min_by_key(|(_, lease)| lease.used);
            let Some(oldest) = oldest.map(|(&segment, _)| segment) else { break };
            if let Some(lease) = state.files.remove(&oldest) {
                state.retired.push((oldest, lease.file));
            }
        }
        let file = Arc::new(file);
        state.files.insert(segment, Lease { file: Arc::clone(&file), used });
        file
    }

    /// Closes what nobody reads any more, and answers of which segments: the daemon is to be told.
    pub(super) fn close_retired(&self) -> Vec<u64> {
        let mut state = lock(&self.0);
        let mut closed = Vec::new();
        state.retired.retain(|(segment, file)| {
            let read = Arc::strong_count(file) > 1;
            if !read {
                closed.push(*segment);
            }
            read
        });
        // Lent again meanwhile: then the daemon must not forget it.
        closed.retain(|segment| !state.files.contains_key(segment));
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        File::open("/dev/null").unwrap()
    }

    #[test]
    fn the_least_used_goes_first_and_only_when_closed() {
        let leases = Leases::new();
        leases.insert(1, file(), 2);
        let held = leases.insert(2, file(), 2);
        assert!(leases.get(1).is_some());
        leases.insert(3, file(), 2);
        assert!(leases.get(2).is_none());
        assert_eq!(leases.known(), [3, 1]);
        assert!(leases.close_retired().is_empty());
        drop(held);
        assert_eq!(leases.close_retired(), [2]);
        assert!(leases.close_retired().is_empty());
    }
}
