//! Where workers without work wait.
//!
//! A worker never waits here with jobs in its own queue, so no wake-up is needed for the walk to go
//! on: whoever has jobs runs. Wake-ups only share the work, which is why [`Gate::invite`] may leave
//! one out (when one is under way already). What must never be lost is the end, [`Gate::close`],
//! and that is a flag under the lock that waiters hold when they decide to sleep.
//!
//! Looking for work happens under that lock too, after the worker has been counted as waiting: work
//! that was queued before is found, and whoever queues work later sees the count (the queue's own
//! lock, taken by both, orders the two). So an invitation is not missed either.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use super::sync::{AtomicUsize, Condvar, Mutex};

/// Workers wait here; see the top of the file.
pub(crate) struct Gate {
    /// Those who wait and are not invited yet. Written under `state`; read without it.
    waiting: AtomicUsize,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    /// Invited, but not awake yet.
    invited: usize,
    closed: bool,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            state: Mutex::new(State { invited: 0, closed: false }),
            wake: Condvar::new(),
        }
    }

    /// Whether anybody waits who is not invited.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Waits until `find` finds something, or the gate is closed (`None`).
    pub(crate) fn wait<J>(&self, mut find: impl FnMut() -> Option<J>) -> Option<J> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.closed {
                return None;
            }
            self.waiting.store(self.waiting.load(Relaxed) + 1, Relaxed);
            if let Some(found) = find() {
                self.waiting.store(self.waiting.load(Relaxed) - 1, Relaxed);
                return Some(found);
            }
            while state.invited == 0 && !state.closed {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.invited > 0 {
                // The invitation took this worker out of `waiting`.
                state.invited -= 1;
            }
        }
    }

    /// Wakes one worker, unless one is waking already. Returns whether it did.
    pub(crate) fn invite(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.invited > 0 || self.waiting.load(Relaxed) == 0 {
            return false;
        }
        self.waiting.store(self.waiting.load(Relaxed) - 1, Relaxed);
        state.invited += 1;
        self.wake.notify_one();
        true
    }

    /// Sends everybody home, now and from now on.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        self.wake.notify_all();
    }
}
