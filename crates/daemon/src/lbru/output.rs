//! What a connection has to say and has not said yet.
//!
//! Nobody waits for a peer: whoever has an answer writes as much of it as the socket takes and queues
//! the rest, which the connection's own thread writes when there is room. The queue is bounded by
//! its users: requests are not read while it is full, and long reads pause. A frame with descriptors
//! begins a message of its own, for they come with its first byte.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use librorum_sys::arena::Arena;
use librorum_sys::{clock, socket};
use rustix::io::Errno;

use super::pool::{Pool, Task};

/// Answers that may wait before requests are no longer read.
pub(super) const FULL_BYTES: usize = 8 << 20;
/// Below this they are read again.
const ROOM_BYTES: usize = 4 << 20;
/// A long read pauses while so much waits: more would only turn the client's patience into memory.
const READ_AHEAD_BYTES: usize = 1 << 20;
/// Parts of one message; the kernel takes 1,024.
const PARTS_MAX: usize = 64;

/// A file that a frame carries.
#[derive(Clone, Debug)]
pub(super) enum Lent {
    /// A segment, or what is to become one.
    File(Arc<File>),
    /// A session's arena.
    Arena(Arc<Arena>),
}

impl AsFd for Lent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Arena(arena) => arena.descriptor(),
        }
    }
}

/// Large buffers that have been touched before: the first touch of a page costs more than the copy
/// into it.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    const COUNT_MAX: usize = 32;
    const LEN_MIN: usize = 64 << 10;

    /// A buffer of this length, with anything in it.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        let found = if len < Self::LEN_MIN { None } else { lock(&self.free).pop() };
        let mut buffer = found.unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() >= Self::LEN_MIN {
            let mut free = lock(&self.free);
            if free.len() < Self::COUNT_MAX {
                free.push(buffer);
            }
        }
    }
}

/// The sending half of a connection.
pub(super) struct Output {
    socket: UnixStream,
    /// Wakes the connection's thread.
    wake: OwnedFd,
    buffers: Arc<Buffers>,
    pool: Pool,
    lane: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Chunk>,
    waiting_bytes: usize,
    /// The socket takes nothing now; the connection's thread waits for room.
    blocked: bool,
    /// It takes no descriptors, because this user has too many under way: room in it says nothing.
    too_many_descriptors: bool,
    full: bool,
    /// When the peer last took something, while the queue is full.
    stalled_since: Duration,
    ended: bool,
    /// Long reads that go on when there is room.
    paused: Vec<Task>,
}

struct Chunk {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<Lent>,
}

/// What the connection's thread has to wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    /// Something waits to be written.
    pub(super) any: bool,
    /// It has to be tried again later, whatever the socket says.
    pub(super) retry: bool,
    /// Nothing may be read meanwhile.
    pub(super) full: bool,
    /// Since when a full queue has not moved.
    pub(super) stalled_since: Duration,
    /// The peer is gone.
    pub(super) ended: bool,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("socket", &self.socket).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    /// `socket` must not block.
    pub(super) fn new(
        socket: UnixStream,
        wake: OwnedFd,
        buffers: Arc<Buffers>,
        pool: Pool,
        lane: u64,
    ) -> Self {
        Self { socket, wake, buffers, pool, lane, state: Mutex::default() }
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    pub(super) fn wake_descriptor(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(super) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Makes the connection's thread look around.
    pub(super) fn wake(&self) {
        // A full counter has woken it already. Any number in it does.
        let _woken = rustix::io::write(&self.wake, &1_u64.to_le_bytes());
    }

    /// Says frames: whole ones. Descriptors belong to the first of them.
    pub(super) fn send(&self, bytes: Vec<u8>, descriptors: Vec<Lent>) {
        let mut state = lock(&self.state);
        if state.ended {
            return;
        }
        state.waiting_bytes += bytes.len();
        state.queue.push_back(Chunk { bytes, sent: 0, descriptors });
        if state.blocked {
            state.note_fullness();
            return;
        }
        self.write(&mut state);
        let must_wake = state.blocked || state.ended;
        self.go_on(state);
        if must_wake {
            self.wake();
        }
    }

    /// Says whole frames without descriptors from a buffer that is used again: what the socket takes
    /// at once is never copied.
    pub(super) fn send_batch(&self, batch: &mut Vec<u8>) {
        if batch.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        if !state.ended {
            let mut sent = 0;
            if state.queue.is_empty() {
                while sent < batch.len() {
                    match socket::send(self.socket.as_fd(), &[IoSlice::new(&batch[sent..])], &[]) {
                        Ok(count) => sent += count,
                        Err(error) => {
                            self.note(&mut state, &error);
                            if state.blocked || state.ended {
                                break;
                            }
                        }
                    }
                }
            }
            if sent < batch.len() && !state.ended {
                state.waiting_bytes += batch.len() - sent;
                state.queue.push_back(Chunk {
                    bytes: batch[sent..].to_vec(),
                    sent: 0,
                    descriptors: Vec::new(),
                });
                state.note_fullness();
            }
        }
        drop(state);
        batch.clear();
    }

    /// Tries again to write what waits. Only the connection's thread calls it.
    pub(super) fn flush(&self) {
        let mut state = lock(&self.state);
        state.blocked = false;
        state.too_many_descriptors = false;
        self.write(&mut state);
        self.go_on(state);
    }

    pub(super) fn pending(&self) -> Pending {
        let state = lock(&self.state);
        Pending {
            any: !state.queue.is_empty(),
            retry: state.too_many_descriptors,
            full: state.full,
            stalled_since: state.stalled_since,
            ended: state.ended,
        }
    }

    /// Whether so much waits that nothing more is to be read.
    pub(super) fn pending_full(&self) -> bool {
        lock(&self.state).full
    }

    /// Whether a long read should pause. If so, `task` is kept until there is room.
    pub(super) fn pause_if_busy(&self, make: impl FnOnce() -> Task) -> bool {
        let mut state = lock(&self.state);
        if state.ended || state.waiting_bytes < READ_AHEAD_BYTES {
            return false;
        }
        state.paused.push(make());
        true
    }

    /// Forgets everything; nothing more is said.
    pub(super) fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        state.waiting_bytes = 0;
        let queue = std::mem::take(&mut state.queue);
        let paused = std::mem::take(&mut state.paused);
        drop(state);
        drop(queue);
        drop(paused);
        // What others still hold of this connection must not keep the peer waiting.
        let _shut = self.socket.shutdown(std::net::Shutdown::Both);
    }

    fn note(&self, state: &mut State, error: &std::io::Error) {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::INTR) => {}
            Some(Errno::AGAIN) => state.blocked = true,
            Some(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => {
                state.blocked = true;
                state.too_many_descriptors = true;
            }
            _ => {
                tracing::debug!(%error, "a peer went away");
                state.ended = true;
                state.queue.clear();
                state.waiting_bytes = 0;
            }
        }
    }

    fn write(&self, state: &mut State) {
        while !state.queue.is_empty() && !state.blocked && !state.ended {
            let sent = {
                let parts: Vec<IoSlice<'_>> = state
                    .queue
                    .iter()
                    .enumerate()
                    .take_while(|(at, chunk)| *at == 0 || chunk.descriptors.is_empty())
                    .take(PARTS_MAX)
                    .map(|(_, chunk)| IoSlice::new(&chunk.bytes[chunk.sent..]))
                    .collect();
                let descriptors: Vec<BorrowedFd<'_>> = match state.queue.front() {
                    Some(first) => first.descriptors.iter().map(AsFd::as_fd).collect(),
                    None => Vec::new(),
                };
                socket::send(self.socket.as_fd(), &parts, &descriptors)
            };
            match sent {
                Ok(count) => self.advance(state, count),
                Err(error) => self.note(state, &error),
            }
        }
        state.note_fullness();
    }

    fn advance(&self, state: &mut State, mut count: usize) {
        state.waiting_bytes -= count;
        state.stalled_since = clock::monotonic();
        while let Some(first) = state.queue.front_mut() {
            // They went with the first byte.
            first.descriptors.clear();
            let left = first.bytes.len() - first.sent;
            if count < left {
                first.sent += count;
                return;
            }
            count -= left;
            if let Some(chunk) = state.queue.pop_front() {
                self.buffers.give_back(chunk.bytes);
            }
            if count == 0 {
                return;
            }
        }
    }

    /// Lets paused reads go on if there is room.
    fn go_on(&self, mut state: MutexGuard<'_, State>) {
        if state.paused.is_empty() || state.waiting_bytes >= READ_AHEAD_BYTES / 2 {
            return;
        }
        let tasks = std::mem::take(&mut state.paused);
        drop(state);
        for task in tasks {
            if let Err(task) = self.pool.submit(self.lane, task) {
                // No room there either: it is tried again with the next bytes that leave.
                let mut state = lock(&self.state);
                state.paused.push(task);
                state.too_many_descriptors = true;
                drop(state);
                self.wake();
            }
        }
    }
}

impl State {
    fn note_fullness(&mut self) {
        if !self.full && self.waiting_bytes >= FULL_BYTES {
            self.full = true;
            self.stalled_since = clock::monotonic();
        } else if self.full && self.waiting_bytes < ROOM_BYTES {
            self.full = false;
        }
    }
}
