//! Empty staging files, made ahead of need.
//!
//! A create must not wait for a directory's fsync, and a staging file's name must be durable
//! before the metadata names it. So files are made in batches, one sync for all, by a thread that
//! keeps the pool above half. Files that were staged once and dropped are emptied and come back
//! under new ids, because deleting and creating as many costs far more
//! (`docs/design/0001-staging-files.md`).

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use librorum_format::SegmentId;
use librorum_store::{Store, StoreError};

use crate::node::{Backing, lock};

/// Enough for a burst of creates while the next batch is synced.
const READY_MAX: usize = 512;

/// One fsync per this many files keeps its share of a create at a microsecond or two. 64
/// consecutive ids share a folder.
const BATCH: usize = 256;

/// Emptied files that are kept; more are deleted. 2 MiB of ids, and as many inodes of the disk's.
const EMPTIED_MAX: usize = 1 << 18;

#[derive(Debug)]
pub(crate) struct Pool {
    store: Arc<Store>,
    state: Mutex<PoolState>,
    wanted: Condvar,
    /// Whether anybody still reads a file by a descriptor, whatever it is named by now: such a file
    /// must not become another one's.
    live: Mutex<HashMap<SegmentId, Weak<File>>>,
}

#[derive(Debug, Default)]
struct PoolState {
    ready: Vec<Backing>,
    emptied: Vec<SegmentId>,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store, state: Mutex::default(), wanted: Condvar::new(), live: Mutex::default() }
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
        let backing = match taken {
            Some(backing) => backing,
            None => {
                // Faster than the refill. A small batch: the caller waits for all of it.
                let mut made = self.make(16)?;
                let taken = made.pop().expect("a batch of 16 has a last file");
                lock(&self.state).ready.append(&mut made);
                self.wanted.notify_one();
                taken
            }
        };
        self.watch(&backing);
        Ok(backing)
    }

    /// Takes back a file that was not used after all.
    pub(crate) fn give_back(&self, backing: Backing) {
        lock(&self.state).ready.push(backing);
    }

    /// Takes emptied files that an earlier mount left.
    pub(crate) fn adopt(&self, emptied: Vec<SegmentId>) {
        lock(&self.state).emptied.extend(emptied);
    }

    /// Remembers who has a file open, under its present name.
    pub(crate) fn watch(&self, backing: &Backing) {
        lock(&self.live).insert(backing.segment(), Arc::downgrade(backing.file()));
    }

    /// Takes a file that nothing names any more, durably: empties it for another use, or deletes it.
    pub(crate) fn dispose(&self, segment: SegmentId) -> Result<(), StoreError> {
        let is_live = lock(&self.live).remove(&segment).is_some_and(|file| file.strong_count() > 0);
        let has_room = {
            let state = lock(&self.state);
            !state.closed && state.emptied.len() < EMPTIED_MAX
        };
        let emptied = !is_live && has_room && matches!(self.store.empty(segment), Ok(true));
        if emptied {
            lock(&self.state).emptied.push(segment);
            Ok(())
        } else {
            self.store.remove(segment)
        }
    }

    fn make(&self, count: usize) -> Result<Vec<Backing>, StoreError> {
        let emptied = {
            let mut state = lock(&self.state);
            let left = state.emptied.len().saturating_sub(count);
            state.emptied.split_off(left)
        };
        let files = if emptied.is_empty() {
            self.store.create_staging(count)?
        } else {
            self.store.recycle(&emptied)?
        };
        Ok(files.into_iter().map(|(segment, file)| Backing::new(segment, file)).collect())
    }

    /// Refills until closed. The first batch is made when the first file is taken, so that a
    /// volume that is only read stays as it is.
    pub(crate) fn run(&self) {
        let state = lock(&self.state);
        let mut state = self
            .wanted
            .wait_while(state, |state| !state.closed && state.ready.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            while !state.closed && state.ready.len() >= READY_MAX / 2 {
                state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return;
            }
            drop(state);
            let made = self.make(BATCH);
            state = lock(&self.state);
            match made {
                Ok(mut made) => state.ready.append(&mut made),
                Err(error) => {
                    // The next taker meets the same failure and reports it to its caller.
                    tracing::warn!(%error, "staging files cannot be made ahead");
                    state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Ends [`Pool::run`].
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.wanted.notify_all();
    }

    /// The files that were not used, once [`Pool::run`] has ended.
    pub(crate) fn unused(&self) -> Vec<SegmentId> {
        let mut state = lock(&self.state);
        let mut unused = std::mem::take(&mut state.emptied);
        unused.extend(state.ready.drain(..).map(|backing| backing.segment()));
        unused
    }

    /// How many files are ready.
    pub(crate) fn ready_count(&self) -> usize {
        lock(&self.state).ready.len()
    }
}
