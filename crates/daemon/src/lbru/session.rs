//! What belongs to a client, over all of its connections: open files, uploads, shared memory, and the
//! descriptors that it was lent.
//!
//! A session ends with its last connection, at whatever step of whatever request: it is marked as ended
//! under the lock that everything is added under, so that an operation that finishes later finds nobody
//! to give its result to, and lets go of it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use librorum_rpc::{Failure, Reason};
use librorum_sys::arena::Arena;
use librorum_sys::entropy;

use super::ledger::{ArenaShare, Ledger};
use super::{Limits, overloaded};
use crate::service::{OpenFile, Service};

/// One client.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    secret: [u8; 16],
    uid: u32,
    service: Service,
    next_handle: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connection_count: usize,
    ended: bool,
    files: HashMap<u64, Arc<OpenFile>>,
    uploads: HashSet<u64>,
    /// How many descriptors of a segment the client has.
    leases: HashMap<u64, u32>,
    lease_count: u32,
    arena: Option<Shared>,
}

#[derive(Debug)]
struct Shared {
    arena: Arc<Arena>,
    busy: HashSet<u32>,
    _share: ArenaShare,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_id: Mutex<HashMap<u64, Arc<Session>>>,
}

/// A slot of the arena that a request has, until dropped.
#[derive(Debug)]
pub(super) struct Slot {
    session: Arc<Session>,
    pub(super) arena: Arc<Arena>,
    pub(super) index: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gone() -> Failure {
    Failure::new(Reason::Cancelled, "the session has ended")
}

impl Sessions {
    /// Begins a session with its first connection.
    pub(super) fn begin(&self, service: &Service, uid: u32) -> Arc<Session> {
        let mut by_id = lock(&self.by_id);
        let id = loop {
            let id = u64::from_le_bytes(entropy::random());
            if id != 0 && !by_id.contains_key(&id) {
                break id;
            }
        };
        let session = Arc::new(Session {
            id,
            secret: entropy::random(),
            uid,
            service: service.clone(),
            next_handle: AtomicU64::new(1),
            state: Mutex::new(State { connection_count: 1, ..State::default() }),
        });
        by_id.insert(id, Arc::clone(&session));
        session
    }

    /// Adds a connection to a session. What is wrong is not told: neither ids nor secrets are to be
    /// found by asking.
    pub(super) fn join(&self, id: u64, secret: &[u8], uid: u32) -> Result<Arc<Session>, Failure> {
        let found = lock(&self.by_id).get(&id).cloned();
        if let Some(session) = found
            && session.uid == uid
            && is_same(&session.secret, secret)
        {
            let mut state = lock(&session.state);
            if !state.ended {
                state.connection_count += 1;
                drop(state);
                return Ok(session);
            }
        }
        Err(Failure::new(Reason::AccessDenied, "there is no such session of this user"))
    }

    /// A connection ended.
    pub(super) fn leave(&self, session: &Session) {
        let mut state = lock(&session.state);
        state.connection_count -= 1;
        if state.connection_count > 0 {
            return;
        }
        state.ended = true;
        let files = std::mem::take(&mut state.files);
        let uploads: Vec<u64> = std::mem::take(&mut state.uploads).into_iter().collect();
        let arena = state.arena.take();
        state.leases = HashMap::new();
        drop(state);
        lock(&self.by_id).remove(&session.id);
        drop(files);
        drop(arena);
        session.service.close_uploads(&uploads);
    }

    pub(super) fn count(&self) -> usize {
        lock(&self.by_id).len()
    }
}

/// Compares without telling by the time it takes where the difference is.
pub(super) fn is_same(secret: &[u8], given: &[u8]) -> bool {
    secret.len() == given.len()
        && secret.iter().zip(given).fold(0, |found, (a, b)| found | (a ^ b)) == 0
}

impl Session {
    pub(super) fn secret(&self) -> [u8; 16] {
        self.secret
    }

    /// Keeps an open file, and answers its handle.
    pub(super) fn add_file(&self, file: Arc<OpenFile>, limits: &Limits) -> Result<u64, Failure> {
        let mut state = lock(&self.state);
        if state.ended {
            return Err(gone());
        }
        if state.files.len() >= limits.handles_max {
            return Err(overloaded("the session has too many files open"));
        }
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        state.files.insert(handle, file);
        Ok(handle)
    }

    pub(super) fn file(&self, handle: u64) -> Result<Arc<OpenFile>, Failure> {
        let found = lock(&self.state).files.get(&handle).cloned();
        found.ok_or_else(|| {
            let kind = librorum_format::ErrorKind::Stale;
            Failure::file(kind, format!("the session has no open file {handle}"))
        })
    }

    pub(super) fn close_file(&self, handle: u64) {
        let closed = lock(&self.state).files.remove(&handle);
        drop(closed);
    }

    /// Notes an upload that the session has opened, and closes when it ends.
    pub(super) fn add_upload(&self, id: u64, limits: &Limits) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        let answer = if state.ended {
            Err(gone())
        } else if state.uploads.contains(&id) {
            // One with a key, once more: it is noted once.
            Ok(())
        } else if state.uploads.len() >= limits.uploads_max {
            Err(overloaded("the session has too many uploads open"))
        } else {
            state.uploads.insert(id);
            return Ok(());
        };
        drop(state);
        self.service.close_uploads(&[id]);
        answer
    }

    pub(super) fn forget_upload(&self, id: u64) {
        lock(&self.state).uploads.remove(&id);
    }

    /// Notes that one more descriptor of a segment goes out. False if there are too many.
    pub(super) fn lend(&self, segment: u64, limits: &Limits) -> bool {
        let mut state = lock(&self.state);
        if state.ended || state.lease_count >= limits.leases_max {
            return false;
        }
        state.lease_count += 1;
        *state.leases.entry(segment).or_default() += 1;
        true
    }

    /// The client has closed what it had of a segment.
    pub(super) fn release(&self, segment: u64) {
        let mut state = lock(&self.state);
        if let Some(count) = state.leases.remove(&segment) {
            state.lease_count -= count;
        }
    }

    /// The session's arena, which is made when it is first asked for.
    pub(super) fn open_arena(
        &self,
        ledger: &Arc<Ledger>,
        slot_bytes: u32,
        slot_count: u32,
    ) -> Result<Arc<Arena>, Failure> {
        let mut state = lock(&self.state);
        if state.ended {
            return Err(gone());
        }
        if let Some(shared) = &state.arena {
            return Ok(Arc::clone(&shared.arena));
        }
        let share =
            ArenaShare::take(ledger, self.uid, u64::from(slot_bytes) * u64::from(slot_count))?;
        let arena = Arena::create(slot_bytes, slot_count).map_err(|error| {
            let failure = overloaded("there is no shared memory to be had");
            Failure { message: format!("{}: {error}", failure.message), ..failure }
        })?;
        let arena = Arc::new(arena);
        let kept = Arc::clone(&arena);
        state.arena = Some(Shared { arena: kept, busy: HashSet::new(), _share: share });
        Ok(arena)
    }

    /// Takes a slot for a request of `len` bytes.
    pub(super) fn slot(self: &Arc<Self>, index: u32, len: u32) -> Result<Slot, Failure> {
        let invalid = |why: String| Failure::file(librorum_format::ErrorKind::InvalidInput, why);
        let mut state = lock(&self.state);
        let Some(shared) = &mut state.arena else {
            return Err(Failure::new(Reason::FailedPrecondition, "the session has no arena"));
        };
        let arena = Arc::clone(&shared.arena);
        let fits = usize::try_from(index).is_ok_and(|index| index < arena.slot_count())
            && usize::try_from(len).is_ok_and(|len| len <= arena.slot_bytes());
        if !fits {
            return Err(invalid(format!("the arena has no slot {index} of {len} bytes")));
        }
        if !shared.busy.insert(index) {
            return Err(invalid(format!("another request has slot {index}")));
        }
        Ok(Slot { session: Arc::clone(self), arena, index })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(shared) = &mut lock(&self.session.state).arena {
            shared.busy.remove(&self.index);
        }
    }
}
