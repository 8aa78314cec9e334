//! When files are sealed: the queue of closed ones, its bound, and the thread that works on it.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use librorum_format::Ino;

use crate::error::{FsError, Result};
use crate::fs::Fs;
use crate::node::lock;

/// So many files are sealed together at most; small ones end in one packed segment.
pub(crate) const BATCH_FILE_COUNT: usize = 512;

/// While so many files are closed within each stretch of [`STORM_STRETCH`], sealing waits for a lull: on
/// few CPUs it takes from who makes the files half of what they need, to be done a few seconds earlier.
const STORM_CLOSE_COUNT: u32 = 50;
const STORM_STRETCH: Duration = Duration::from_millis(100);

/// But no file waits for a lull longer than so many times the quiet that it has to wait for anyway, nor do
/// more files than this.
const LULL_PATIENCE: u32 = 10;
const LULL_FILE_COUNT: usize = 1 << 16;

/// What changed while it was sealed is tried again after the first, what failed after the second.
const REQUEUED: Duration = Duration::from_secs(5);
const PUT_OFF: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Sealer {
    state: Mutex<SealerState>,
    wake: Condvar,
    /// Signalled when unsealed bytes become fewer.
    room: Condvar,
}

#[derive(Debug, Default)]
struct SealerState {
    /// When each file may be sealed.
    due: BTreeSet<(Duration, Ino)>,
    /// Bytes of closed files that are not sealed.
    unsealed_bytes: u64,
    /// Seal files that are due before this at once, quiet or not.
    hurry_until: Duration,
    in_progress: usize,
    storm: Storm,
    sealed_file_count: u64,
    sealed_bytes: u64,
    closed: bool,
}

/// How densely files are closed.
#[derive(Debug, Default)]
struct Storm {
    stretch_start: Duration,
    close_count: u32,
    /// Until when the last dense stretch counts.
    until: Duration,
}

impl Storm {
    fn note_close(&mut self, now: Duration) {
        if now.saturating_sub(self.stretch_start) > STORM_STRETCH {
            self.stretch_start = now;
            self.close_count = 0;
        }
        self.close_count += 1;
        if self.close_count >= STORM_CLOSE_COUNT {
            self.until = now + 3 * STORM_STRETCH;
        }
    }
}

impl SealerState {
    /// Whether the files that are due at `now` had better wait for a lull.
    fn waits_for_lull(&self, now: Duration, quiet: Duration) -> bool {
        let patience = LULL_PATIENCE * quiet;
        let is_patient = self.due.first().is_some_and(|(due, _)| now < *due + patience);
        is_patient && now < self.storm.until && self.due.len() < LULL_FILE_COUNT
    }
}

impl Sealer {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), room: Condvar::new() }
    }

    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.wake.notify_all();
        self.room.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Bytes leave the books: sealed, removed or written again.
    pub(crate) fn dequeue(&self, bytes: u64) {
        if bytes > 0 {
            let mut state = lock(&self.state);
            state.unsealed_bytes = state.unsealed_bytes.saturating_sub(bytes);
            self.room.notify_all();
        }
    }

    pub(crate) fn is_over_limit(&self, limit_bytes: u64) -> bool {
        lock(&self.state).unsealed_bytes > limit_bytes
    }

    /// One was sealed.
    pub(crate) fn note_sealed(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.sealed_file_count += 1;
        state.sealed_bytes += bytes;
    }

    /// A file that changed too often meanwhile comes again soon, as so many bytes.
    pub(crate) fn requeue(&self, ino: Ino, old_bytes: u64, bytes: u64) {
        let due = librorum_sys::clock::monotonic() + REQUEUED;
        let mut state = lock(&self.state);
        state.unsealed_bytes = state.unsealed_bytes.saturating_sub(old_bytes) + bytes;
        state.due.insert((due, ino));
        self.room.notify_all();
    }

    /// A file that could not be sealed comes again much later.
    pub(crate) fn put_off(&self, ino: Ino) {
        let due = librorum_sys::clock::monotonic() + PUT_OFF;
        lock(&self.state).due.insert((due, ino));
    }

    /// Files and bytes that wait, and files and bytes sealed since the volume was opened.
    pub(crate) fn counts(&self) -> (usize, u64, u64, u64) {
        let state = lock(&self.state);
        let waiting = state.due.len() + state.in_progress;
        (waiting, state.unsealed_bytes, state.sealed_file_count, state.sealed_bytes)
    }
}

impl Fs {
    /// Queues a closed file.
    pub(crate) fn enqueue_seal(&self, ino: Ino, size_bytes: u64) {
        let mut state = lock(&self.sealer.state);
        // Behind the lock, so that times are noted in their order.
        let now = librorum_sys::clock::monotonic();
        let due = now + Duration::from_millis(self.options.quiet_ms);
        state.storm.note_close(now);
        state.unsealed_bytes += size_bytes.max(1);
        let was_empty = state.due.is_empty();
        state.due.insert((due, ino));
        if was_empty || state.unsealed_bytes > self.options.unsealed_bytes_max / 2 {
            self.sealer.wake.notify_one();
        }
    }

    /// Waits while too many closed bytes wait for sealing, but not for ever: writers may not run away
    /// from it. To be called before a file is created, or opened for writing.
    ///
    /// # Errors
    ///
    /// `Interrupted` soon after `interrupted` was set.
    pub fn wait_for_room(&self, interrupted: &AtomicBool) -> Result<()> {
        let limit = self.options.unsealed_bytes_max;
        let patience = Duration::from_millis(self.options.sealing_patience_ms);
        let start = librorum_sys::clock::monotonic();
        let mut state = lock(&self.sealer.state);
        while state.unsealed_bytes > limit
            && !state.closed
            && (!state.due.is_empty() || state.in_progress > 0)
            && librorum_sys::clock::monotonic() - start < patience
        {
            if interrupted.load(Ordering::Relaxed) {
                return Err(FsError::Interrupted);
            }
            self.sealer.wake.notify_one();
            let (next, _) = self
                .sealer
                .room
                .wait_timeout(state, Duration::from_millis(50))
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
        }
        Ok(())
    }

    /// Seals everything that is closed, now, and answers when it is done. A file that cannot be
    /// sealed now stays staged and is tried again later.
    pub fn seal_all(&self) {
        let quiet = Duration::from_millis(self.options.quiet_ms);
        let horizon = librorum_sys::clock::monotonic() + quiet;
        let mut state = lock(&self.sealer.state);
        let is_due =
            |state: &SealerState| state.due.first().is_some_and(|(due, _)| *due <= horizon);
        while (is_due(&state) || state.in_progress > 0) && !state.closed {
            state.hurry_until = state.hurry_until.max(horizon);
            self.sealer.wake.notify_one();
            let (next, _) = self
                .sealer
                .room
                .wait_timeout(state, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
        }
    }

    pub(crate) fn seal_loop(&self) {
        // Sealing is never urgent: foreground work gets the CPU first.
        lower_own_priority();
        while let Some(batch) = self.next_batch() {
            let count = batch.len();
            self.seal_batch(&batch);
            let mut state = lock(&self.sealer.state);
            state.in_progress -= count;
            self.sealer.room.notify_all();
        }
    }

    /// Waits for files that are due; `None` when the volume is closed.
    fn next_batch(&self) -> Option<Vec<Ino>> {
        let mut state = lock(&self.sealer.state);
        loop {
            if state.closed {
                return None;
            }
            let now = librorum_sys::clock::monotonic();
            let pressed = state.unsealed_bytes > self.options.unsealed_bytes_max / 2;
            // Under pressure everything but what failed lately is due.
            let quiet = Duration::from_millis(self.options.quiet_ms);
            let horizon = if pressed { now + quiet } else { now }.max(state.hurry_until);
            let is_hurried = state.due.first().is_some_and(|(due, _)| *due <= state.hurry_until);
            let is_urgent = pressed || is_hurried;
            let wait = match state.due.first() {
                Some((due, _)) if *due <= horizon => {
                    if !is_urgent && state.waits_for_lull(now, quiet) {
                        STORM_STRETCH
                    } else {
                        Duration::ZERO
                    }
                }
                Some((due, _)) => *due - now,
                None => Duration::from_secs(3600),
            };
            if wait.is_zero() {
                let mut batch = Vec::new();
                let mut seen = HashSet::new();
                while batch.len() < BATCH_FILE_COUNT
                    && let Some(&(due, ino)) = state.due.first()
                    && due <= horizon
                {
                    state.due.pop_first();
                    if seen.insert(ino) {
                        batch.push(ino);
                    }
                }
                state.in_progress += batch.len();
                return Some(batch);
            }
            let (next, _) =
                self.sealer.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
            state = next;
        }
    }
}

fn lower_own_priority() {
    let own = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(own), 10) {
        tracing::debug!(%error, "the sealing thread keeps the normal priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_storm_of_closes_puts_sealing_off_but_not_for_ever() {
        let quiet = millis(2000);
        let mut state = SealerState::default();
        // 400 files a second are no storm.
        for at in 0..400 {
            state.storm.note_close(millis(at * 1000 / 400));
        }
        state.due.insert((millis(900), Ino(7)));
        assert!(!state.waits_for_lull(millis(1000), quiet));
        // A thousand are, while they come and a moment longer.
        for at in 1000..2000 {
            state.storm.note_close(millis(at));
        }
        assert!(state.waits_for_lull(millis(2000), quiet));
        assert!(!state.waits_for_lull(millis(2400), quiet));
        // However long it lasts, a file waits for ten times the quiet.
        for at in 2000..30_000 {
            state.storm.note_close(millis(at));
        }
        assert!(state.waits_for_lull(millis(20_800), quiet));
        assert!(!state.waits_for_lull(millis(20_900), quiet));
        let told_to_seal_at_once = millis(5);
        assert!(!state.waits_for_lull(millis(1000), told_to_seal_at_once));
    }
}
