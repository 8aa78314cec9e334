//! Threads for requests that wait.
//!
//! A job never queues behind one that waits: if no thread is idle a new one starts, up to a
//! number that only a storm of slow requests reaches. Threads that stay idle end.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// More requests than this wait at once only if the disk below hangs; then they queue.
const THREAD_COUNT_MAX: usize = 256;

/// A thread that had nothing to do for this long ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// A pool that grows with the number of jobs that wait.
#[derive(Clone, Default)]
pub(super) struct Offload {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Offload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Offload")
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle_count: usize,
    thread_count: usize,
}

impl Shared {
    /// A job that panicked held no lock of ours, so the state behind a poisoned lock is sound.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Offload {
    /// Runs `job` on another thread, soon.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle_count >= state.jobs.len() || state.thread_count >= THREAD_COUNT_MAX {
            self.shared.work.notify_one();
            return;
        }
        state.thread_count += 1;
        drop(state);
        let shared = Arc::clone(&self.shared);
        let thread =
            std::thread::Builder::new().name("fuse-wait".to_owned()).spawn(move || work(&shared));
        if thread.is_err() {
            // No thread to be had: better a reader that waits than a request without an answer.
            let mut state = self.shared.lock();
            state.thread_count -= 1;
            let job = state.jobs.pop_front();
            drop(state);
            if let Some(job) = job {
                job();
            }
        }
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            job();
            state = shared.lock();
            continue;
        }
        state.idle_count += 1;
        let (next, timeout) =
            shared.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
        state = next;
        state.idle_count -= 1;
        if timeout.timed_out() && state.jobs.is_empty() {
            state.thread_count -= 1;
            return;
        }
    }
}
