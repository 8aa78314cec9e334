//! Empty staging files, made ahead of need.
//!
//! A create must not wait for a directory's fsync, and a staging file's name must be durable
//! before the metadata names it. So files are made in batches, one sync for all, by a thread that
//! keeps the pool above half. They are new files, never recycled ones: an id then stands for one
//! content forever, and no crash can show one file's old bytes under another's name
//! (`docs/design/0001-staging-files-are-not-recycled.md`).

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use librorum_store::{Store, StoreError};

use crate::node::{Backing, lock};

/// Enough for a burst of creates while the next batch is synced.
const READY_MAX: usize = 512;

/// One fsync per this many files keeps its share of a create below a microsecond or two.
const BATCH: usize = 256;

#[derive(Debug)]
pub(crate) struct Pool {
    store: Arc<Store>,
    state: Mutex<PoolState>,
    wanted: Condvar,
}

#[derive(Debug, Default)]
struct PoolState {
    ready: Vec<Backing>,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store, state: Mutex::default(), wanted: Condvar::new() }
    }

    /// An empty staging file whose name is durable.
    ///
    /// # Errors
    ///
    /// The store's, if one has to be made now.
    pub(crate) fn take(&self) -> Result<Backing, StoreError> {
        let mut state = lock(&self.state);
        let taken = state.ready.pop();
        if state.ready.len() < READY_MAX / 2 {
            self.wanted.notify_one();
        }
        drop(state);
        if let Some(backing) = taken {
            return Ok(backing);
        }
        // Faster than the refill. A small batch: the caller waits for all of it.
        let mut made = self.make(16)?;
        let taken = made.pop().expect("create_staging(16) answers 16 files");
        lock(&self.state).ready.append(&mut made);
        Ok(taken)
    }

    fn make(&self, count: usize) -> Result<Vec<Backing>, StoreError> {
        let files = self.store.create_staging(count)?;
        Ok(files.into_iter().map(|(segment, file)| Backing::new(segment, file)).collect())
    }

    /// Refills until closed. The first batch is made when the first file is taken, so that a
    /// volume that is only read stays as it is.
    pub(crate) fn run(&self) {
        let mut state = lock(&self.state);
        loop {
            state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
            while !state.closed && state.ready.len() < READY_MAX / 2 {
                drop(state);
                let made = self.make(BATCH);
                state = lock(&self.state);
                match made {
                    Ok(mut made) => state.ready.append(&mut made),
                    Err(error) => {
                        // The next taker meets the same failure and reports it to its caller.
                        tracing::warn!(%error, "staging files cannot be made ahead");
                        break;
                    }
                }
            }
            if state.closed {
                return;
            }
        }
    }

    /// Ends [`Pool::run`] and gives back what was not used.
    pub(crate) fn close(&self) -> Vec<Backing> {
        let mut state = lock(&self.state);
        state.closed = true;
        self.wanted.notify_all();
        std::mem::take(&mut state.ready)
    }

    /// Takes back a file that was not used after all.
    pub(crate) fn give_back(&self, backing: Backing) {
        lock(&self.state).ready.push(backing);
    }

    /// How many files are ready.
    pub(crate) fn ready_count(&self) -> usize {
        lock(&self.state).ready.len()
    }
}
