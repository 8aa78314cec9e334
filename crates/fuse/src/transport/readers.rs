//! Who reads requests, and when.
//!
//! A *seat* is the right to read from the device. A thread in a seat reads a request, handles it
//! and reads the next, so that a caller that makes one short call after the other is answered by a
//! thread that is awake: waking one costs more than most requests. Three rules keep a request that
//! waits from delaying another:
//!
//! * a handler that is about to wait says so ([`Turn::may_wait`]) and with it passes its seat on to
//!   an idle thread, or to a new one;
//! * a handler that waits without having said so, for a page of metadata from a cold disk for
//!   example, has its seat taken away by the watch within two ticks;
//! * more seats are given out while requests are found waiting each time the device is read.
//!
//! In a seat, *turn* is odd while a request is handled and even while the device is read. Both the
//! thread and the watch end a handling by adding one to the number that they saw; whoever succeeds
//! has the seat.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use librorum_sys::clock;
use rustix::thread::CpuSet;

use super::device::{Device, Read};
use super::nearness::{self, Nearness};
use super::wire::decode_caller;

/// More requests than this wait at once only if the disk below hangs; then they queue.
const THREAD_COUNT_MAX: usize = 256;

/// A thread that had nothing to do for this long ends.
const IDLE: Duration = Duration::from_secs(10);

/// How often the watch looks.
const TICK: Duration = Duration::from_millis(2);

/// The watch sleeps after so many looks at which nothing had moved.
const QUIET_TICKS: u32 = 20;

/// While requests follow each other this closely, and the reader is on another CPU than its caller,
/// the device is read again and again before the thread sleeps: see `nearness.rs` for what it costs to
/// wake it.
const CLOSE: Duration = Duration::from_micros(100);

/// How long a device without a request is read again.
const SPIN: Duration = Duration::from_micros(50);

/// A thread that nobody has asked anything for this long need not stay on its last caller's CPU.
const NEAR_IDLE: Duration = Duration::from_millis(100);

/// After so many requests that were there already another seat is given out.
const BUSY_READS: u32 = 32;

/// Handles requests. Answers go to the device by whoever handles.
pub(super) trait Serve: Send + Sync + 'static {
    /// Handles one request.
    fn serve(&self, turn: &mut Turn<'_>, request: &[u8]);
}

/// The threads that serve one connection.
pub(super) struct Readers {
    device: Arc<Device>,
    serve: Arc<dyn Serve>,
    request_bytes_max: usize,
    seats: Box<[AtomicU64]>,
    state: Mutex<State>,
    /// A seat is offered, or all is over.
    offered: Condvar,
    /// The watch is to look again, or all is over.
    watched: Condvar,
    watch_sleeps: AtomicBool,
    cpus: Option<CpuSet>,
}

#[derive(Debug, Default)]
struct State {
    /// Seats that a thread shall take now.
    offered: VecDeque<usize>,
    /// Seats that nobody needs.
    reserve: Vec<usize>,
    idle_count: usize,
    thread_count: usize,
    ended: bool,
    failure: Option<std::io::Error>,
}

/// A request that is being handled.
pub(super) struct Turn<'a> {
    readers: &'a Arc<Readers>,
    seat: usize,
    /// What the seat's number is while the seat is still this thread's.
    number: u64,
    has_seat: bool,
}

impl Turn<'_> {
    /// What follows may wait: another thread reads from here on.
    pub(super) fn may_wait(&mut self) {
        if self.has_seat {
            self.has_seat = false;
            if self.readers.end_turn(self.seat, self.number) {
                self.readers.offer(self.seat);
            }
        }
    }
}

enum Next {
    Request(usize),
    /// Others read; this thread is not needed.
    Spare,
    Ended,
}

impl Readers {
    /// At most `seat_count` threads read at once.
    pub(super) fn new(
        device: Arc<Device>,
        serve: Arc<dyn Serve>,
        seat_count: usize,
        request_bytes_max: usize,
    ) -> Self {
        let seat_count = seat_count.max(1);
        Self {
            device,
            serve,
            request_bytes_max,
            seats: (0..seat_count).map(|_| AtomicU64::new(0)).collect(),
            state: Mutex::new(State { reserve: (1..seat_count).collect(), ..State::default() }),
            offered: Condvar::new(),
            watched: Condvar::new(),
            watch_sleeps: AtomicBool::new(false),
            cpus: nearness::cpus(),
        }
    }

    /// Reads and serves until the connection has ended and every request has been handled.
    ///
    /// # Errors
    ///
    /// The device's failure, or that no thread can be started.
    pub(super) fn run(self: &Arc<Self>) -> std::io::Result<()> {
        let readers = Arc::clone(self);
        let watch = std::thread::Builder::new()
            .name("fuse-watch".to_owned())
            .spawn(move || readers.watch())?;
        let mut state = self.lock();
        state.offered.push_back(0);
        state.thread_count += 1;
        drop(state);
        // This thread serves as any other, but stays until all is over.
        self.work(true);
        let mut state = self.lock();
        while state.thread_count > 0 {
            state = self.offered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let failure = state.failure.take();
        drop(state);
        drop(watch.join());
        failure.map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and every change is made in one piece.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(self: &Arc<Self>, stays: bool) {
        let mut buffer = vec![0; self.request_bytes_max];
        let mut pace = Pace::default();
        let mut nearness = Nearness::new(self.cpus);
        while let Some(seat) = self.wait_for_seat(stays) {
            loop {
                let spins = self.cpus.is_some() && pace.is_close() && !nearness.is_near();
                let len =
                    match self.next_request(seat, &mut buffer, &mut pace, spins, &mut nearness) {
                        Next::Request(len) => len,
                        Next::Spare => break,
                        Next::Ended => {
                            self.end(None);
                            break;
                        }
                    };
                let number = self.seats[seat].fetch_add(1, Ordering::SeqCst) + 1;
                if self.watch_sleeps.load(Ordering::SeqCst) {
                    self.wake_watch();
                }
                let (caller, bytes) = decode_caller(&buffer[..len]);
                nearness.note(caller, bytes);
                let mut turn = Turn { readers: self, seat, number, has_seat: true };
                let served = catch_unwind(AssertUnwindSafe(|| {
                    self.serve.serve(&mut turn, &buffer[..len]);
                }));
                if served.is_err() {
                    // The request has been answered with EIO on the way here.
                    tracing::error!("a request's handler panicked");
                }
                if !turn.has_seat || !self.end_turn(seat, number) {
                    break;
                }
            }
            nearness.leave();
        }
        self.lock().thread_count -= 1;
        self.offered.notify_all();
    }

    /// Ends the handling that `number` stands for. False if the watch has done so, and with it has
    /// given the seat to another thread.
    fn end_turn(&self, seat: usize, number: u64) -> bool {
        self.seats[seat]
            .compare_exchange(number, number + 1, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Waits for a seat to take; none when all is over, or when there was nothing to do for long.
    fn wait_for_seat(&self, stays: bool) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.ended {
                return None;
            }
            if let Some(seat) = state.offered.pop_front() {
                return Some(seat);
            }
            state.idle_count += 1;
            let (next, timeout) =
                self.offered.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle_count -= 1;
            // One idle thread is kept: to start one costs more than to wake it.
            let is_last = state.idle_count == 0;
            if timeout.timed_out() && state.offered.is_empty() && !is_last && !stays {
                return None;
            }
        }
    }

    /// Gives a seat to an idle thread, or to a new one.
    fn offer(self: &Arc<Self>, seat: usize) {
        let mut state = self.lock();
        state.offered.push_back(seat);
        if state.idle_count >= state.offered.len() || state.thread_count >= THREAD_COUNT_MAX {
            drop(state);
            self.offered.notify_one();
            return;
        }
        state.thread_count += 1;
        drop(state);
        let readers = Arc::clone(self);
        let started =
            std::thread::Builder::new().name("fuse".to_owned()).spawn(move || readers.work(false));
        if let Err(error) = started {
            // Whoever is done first takes the seat.
            tracing::warn!(%error, "no thread for the next requests");
            self.lock().thread_count -= 1;
            self.offered.notify_one();
        }
    }

    fn next_request(
        self: &Arc<Self>,
        seat: usize,
        buffer: &mut [u8],
        pace: &mut Pace,
        spins: bool,
        nearness: &mut Nearness,
    ) -> Next {
        let idle_since = clock::monotonic();
        let mut reads = 0_u32;
        loop {
            match self.device.read(buffer) {
                Ok(Read::Request(len)) => {
                    if reads == 0 {
                        pace.found_waiting += 1;
                        if pace.found_waiting >= BUSY_READS {
                            pace.found_waiting = 0;
                            self.give_out_another();
                        }
                    } else {
                        pace.found_waiting = 0;
                    }
                    pace.note_gap(clock::monotonic() - idle_since);
                    return Next::Request(len);
                }
                Ok(Read::Nothing) => {}
                Ok(Read::Ended) => return Next::Ended,
                Err(error) => {
                    self.end(Some(error));
                    return Next::Ended;
                }
            }
            reads += 1;
            if self.is_spare(seat) {
                return Next::Spare;
            }
            if spins && clock::monotonic() - idle_since < SPIN {
                // The caller may have been put on this CPU.
                std::thread::yield_now();
                continue;
            }
            match self.device.wait(nearness.is_near().then_some(NEAR_IDLE)) {
                Ok(true) => {}
                Ok(false) => nearness.leave(),
                Err(error) => {
                    self.end(Some(error));
                    return Next::Ended;
                }
            }
        }
    }

    /// Whether another thread reads, or will when it has handled its request; then the seat is put
    /// aside.
    fn is_spare(&self, seat: usize) -> bool {
        if self.seats.len() == 1 {
            return false;
        }
        let mut state = self.lock();
        let in_use = self.seats.len() - state.reserve.len() - state.offered.len();
        let spare = in_use > 1;
        if spare {
            state.reserve.push(seat);
        }
        spare
    }

    fn give_out_another(self: &Arc<Self>) {
        if self.seats.len() > 1 {
            let seat = self.lock().reserve.pop();
            if let Some(seat) = seat {
                self.offer(seat);
            }
        }
    }

    fn end(&self, failure: Option<std::io::Error>) {
        let mut state = self.lock();
        state.ended = true;
        if state.failure.is_none() {
            state.failure = failure;
        }
        drop(state);
        self.offered.notify_all();
        self.watched.notify_all();
    }

    fn wake_watch(&self) {
        let state = self.lock();
        self.watch_sleeps.store(false, Ordering::SeqCst);
        drop(state);
        self.watched.notify_one();
    }

    /// Takes seats away from threads that wait in a handler.
    fn watch(self: &Arc<Self>) {
        let look = || self.seats.iter().map(|seat| seat.load(Ordering::SeqCst));
        let mut last: Vec<u64> = look().collect();
        let mut quiet = 0;
        loop {
            let state = self.lock();
            if state.ended {
                return;
            }
            if quiet < QUIET_TICKS {
                drop(self.watched.wait_timeout(state, TICK));
            } else {
                self.watch_sleeps.store(true, Ordering::SeqCst);
                // A reader raises its number before it looks whether we sleep.
                if look().eq(last.iter().copied()) {
                    let sleeps = |state: &mut State| {
                        !state.ended && self.watch_sleeps.load(Ordering::SeqCst)
                    };
                    drop(self.watched.wait_while(state, sleeps));
                } else {
                    drop(state);
                }
                self.watch_sleeps.store(false, Ordering::SeqCst);
                quiet = 0;
                last.clear();
                last.extend(look());
                continue;
            }
            quiet += 1;
            for (seat, last) in last.iter_mut().enumerate() {
                let number = self.seats[seat].load(Ordering::SeqCst);
                if number != *last {
                    quiet = 0;
                } else if number % 2 == 1 && self.end_turn(seat, number) {
                    self.offer(seat);
                }
                *last = number;
            }
        }
    }
}

/// How closely requests follow each other.
#[derive(Debug)]
struct Pace {
    /// A moving average of the time from an answer to the next request.
    gap: Duration,
    /// So many requests were there already when they were asked for.
    found_waiting: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { gap: CLOSE, found_waiting: 0 }
    }
}

impl Pace {
    fn note_gap(&mut self, gap: Duration) {
        // One long pause says nothing about what follows it.
        self.gap = (self.gap * 7 + gap.min(2 * CLOSE)) / 8;
    }

    fn is_close(&self) -> bool {
        self.gap < CLOSE
    }
}
