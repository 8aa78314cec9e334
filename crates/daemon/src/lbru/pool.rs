//! The threads for requests that may wait.
//!
//! Each connection has a lane of its own. Lanes take turns, and none may occupy more than a part of
//! the threads, so that whoever asks for many slow things waits behind himself. Threads come with
//! work and go when there has been none for a while.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A piece of work.
pub(super) type Task = Box<dyn FnOnce() + Send>;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

/// How much a pool takes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolLimits {
    pub(super) threads_max: usize,
    /// Threads that one lane may occupy.
    pub(super) lane_threads_max: usize,
    /// Tasks that may wait, in all lanes.
    pub(super) waiting_max: usize,
}

/// A bounded set of threads.
#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    limits: PoolLimits,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lanes: HashMap<u64, Lane>,
    /// Lanes with work that may begin, in the order of their turns; none twice.
    turns: VecDeque<u64>,
    thread_count: usize,
    idle_count: usize,
    waiting_count: usize,
    closed: bool,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Task>,
    running_count: usize,
    in_turn: bool,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new(name: &'static str, limits: PoolLimits) -> Self {
        let shared = Shared { name, limits, state: Mutex::default(), changed: Condvar::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Queues a task of a lane, or gives it back if there is no room for it.
    pub(super) fn submit(&self, lane: u64, task: Task) -> Result<(), Task> {
        let mut state = self.shared.lock();
        if state.closed || state.waiting_count >= self.shared.limits.waiting_max {
            return Err(task);
        }
        if state.idle_count == 0 && state.thread_count < self.shared.limits.threads_max {
            let shared = Arc::clone(&self.shared);
            let spawned = std::thread::Builder::new()
                .name(self.shared.name.to_owned())
                .spawn(move || shared.work());
            match spawned {
                Ok(_) => state.thread_count += 1,
                Err(error) => {
                    tracing::warn!(%error, "starting a thread");
                    if state.thread_count == 0 {
                        return Err(task);
                    }
                }
            }
        }
        state.waiting_count += 1;
        state.lanes.entry(lane).or_default().waiting.push_back(task);
        state.take_turn(lane, self.shared.limits);
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Drops what a lane has waiting.
    pub(super) fn forget(&self, lane: u64) {
        let mut state = self.shared.lock();
        let dropped = match state.lanes.get_mut(&lane) {
            Some(found) => std::mem::take(&mut found.waiting),
            None => return,
        };
        state.waiting_count -= dropped.len();
        state.end_if_empty(lane);
        drop(state);
        // Whoever waits for one of these may take its place, in this pool.
        drop(dropped);
    }

    /// Drops what waits, and waits for what runs.
    pub(super) fn close(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.waiting_count = 0;
        state.turns.clear();
        let dropped = std::mem::take(&mut state.lanes);
        drop(state);
        // As in `forget`.
        drop(dropped);
        self.shared.changed.notify_all();
        let mut state = self.shared.lock();
        while state.thread_count > 0 {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn take_turn(&mut self, id: u64, limits: PoolLimits) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        if !lane.in_turn && !lane.waiting.is_empty() && lane.running_count < limits.lane_threads_max
        {
            lane.in_turn = true;
            self.turns.push_back(id);
        }
    }

    fn end_if_empty(&mut self, id: u64) {
        if let Some(lane) = self.lanes.get(&id)
            && lane.waiting.is_empty()
            && lane.running_count == 0
            && !lane.in_turn
        {
            self.lanes.remove(&id);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.closed {
            let Some(id) = state.turns.pop_front() else {
                state.idle_count += 1;
                let (guard, timeout) =
                    self.changed.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
                state = guard;
                state.idle_count -= 1;
                if timeout.timed_out() && state.turns.is_empty() {
                    break;
                }
                continue;
            };
            let Some(lane) = state.lanes.get_mut(&id) else { continue };
            lane.in_turn = false;
            let Some(task) = lane.waiting.pop_front() else {
                state.end_if_empty(id);
                continue;
            };
            lane.running_count += 1;
            state.waiting_count -= 1;
            state.take_turn(id, self.limits);
            drop(state);
            task();
            state = self.lock();
            if let Some(lane) = state.lanes.get_mut(&id) {
                lane.running_count -= 1;
            }
            state.take_turn(id, self.limits);
            state.end_if_empty(id);
        }
        state.thread_count -= 1;
        drop(state);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn pool(threads_max: usize, lane_threads_max: usize, waiting_max: usize) -> Pool {
        Pool::new("test", PoolLimits { threads_max, lane_threads_max, waiting_max })
    }

    #[test]
    fn a_lane_of_slow_tasks_leaves_threads_to_others() {
        let pool = pool(4, 2, 100);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..20 {
            let gate = Arc::clone(&gate);
            let slow = move || assert!(gate.lock().unwrap().recv().is_err());
            assert!(pool.submit(1, Box::new(slow)).is_ok());
        }
        let (sender, answers) = mpsc::channel();
        for number in 0..10 {
            let sender = sender.clone();
            assert!(pool.submit(2, Box::new(move || sender.send(number).unwrap())).is_ok());
        }
        for _ in 0..10 {
            answers.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        drop(release);
        pool.close();
    }

    #[test]
    fn what_does_not_fit_is_given_back() {
        let pool = pool(1, 1, 2);
        let (release, gate) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel();
        let slow = move || {
            started.send(()).unwrap();
            assert!(gate.recv().is_err());
        };
        assert!(pool.submit(1, Box::new(slow)).is_ok());
        has_started.recv().unwrap();
        assert!(pool.submit(1, Box::new(|| ())).is_ok());
        assert!(pool.submit(2, Box::new(|| ())).is_ok());
        assert!(pool.submit(3, Box::new(|| ())).is_err());
        pool.forget(1);
        assert!(pool.submit(3, Box::new(|| ())).is_ok());
        drop(release);
        pool.close();
        assert!(pool.submit(1, Box::new(|| ())).is_err());
    }
}
