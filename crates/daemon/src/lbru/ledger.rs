//! How much each user takes of what there is little of: connections and shared memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use librorum_rpc::Failure;

use super::{Limits, overloaded};

#[derive(Debug)]
pub(super) struct Ledger {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<u32, Use>,
    total: Use,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Use {
    connection_count: usize,
    arena_bytes: u64,
}

impl Ledger {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, uid: u32, given: Use) {
        let mut state = self.lock();
        state.total.connection_count -= given.connection_count;
        state.total.arena_bytes -= given.arena_bytes;
        if let Some(user) = state.users.get_mut(&uid) {
            user.connection_count -= given.connection_count;
            user.arena_bytes -= given.arena_bytes;
            if *user == Use::default() {
                state.users.remove(&uid);
            }
        }
    }
}

/// A connection that counts, until dropped.
#[derive(Debug)]
pub(super) struct ConnectionShare {
    ledger: Arc<Ledger>,
    uid: u32,
}

impl ConnectionShare {
    pub(super) fn take(ledger: &Arc<Ledger>, uid: u32) -> Result<Self, Failure> {
        let mut state = ledger.lock();
        if state.total.connection_count >= ledger.limits.connections_max {
            return Err(overloaded("the daemon has too many connections"));
        }
        let user = state.users.entry(uid).or_default();
        if user.connection_count >= ledger.limits.connections_per_user_max {
            return Err(overloaded("the user has too many connections"));
        }
        user.connection_count += 1;
        state.total.connection_count += 1;
        drop(state);
        Ok(Self { ledger: Arc::clone(ledger), uid })
    }
}

impl Drop for ConnectionShare {
    fn drop(&mut self) {
        self.ledger.give_back(self.uid, Use { connection_count: 1, arena_bytes: 0 });
    }
}

/// Shared memory that counts, until dropped.
#[derive(Debug)]
pub(super) struct ArenaShare {
    ledger: Arc<Ledger>,
    uid: u32,
    bytes: u64,
}

impl ArenaShare {
    pub(super) fn take(ledger: &Arc<Ledger>, uid: u32, bytes: u64) -> Result<Self, Failure> {
        let mut state = ledger.lock();
        if state.total.arena_bytes + bytes > ledger.limits.arena_bytes_max {
            return Err(overloaded("the daemon has too much shared memory"));
        }
        let user = state.users.entry(uid).or_default();
        if user.arena_bytes + bytes > ledger.limits.arena_bytes_per_user_max {
            return Err(overloaded("the user has too much shared memory"));
        }
        user.arena_bytes += bytes;
        state.total.arena_bytes += bytes;
        drop(state);
        Ok(Self { ledger: Arc::clone(ledger), uid, bytes })
    }
}

impl Drop for ArenaShare {
    fn drop(&mut self) {
        self.ledger.give_back(self.uid, Use { connection_count: 0, arena_bytes: self.bytes });
    }
}
