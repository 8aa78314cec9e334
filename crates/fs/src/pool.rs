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

/// The smallest batch: its fsync's share of a create is a few microseconds on a quiet disk. The next
/// batch is made when half of it is left.
const BATCH_MIN: usize = 256;

/// The largest. A busy disk needs tens of milliseconds for an fsync however little there is to sync,
/// so a batch that was not enough is followed by one twice as large.
const BATCH_MAX: usize = 4096;

/// A taker waits this long for a batch before it makes a file of its own.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Emptied files that are kept; more are deleted. 2 MiB of ids, and as many inodes of the disk's.
const EMPTIED_MAX: usize = 1 << 18;

#[derive(Debug)]
pub(crate) struct Pool {
    store: Arc<Store>,
    state: Mutex<PoolState>,
    wanted: Condvar,
    made: Condvar,
    /// Whether anybody still reads a file by a descriptor, whatever it is named by now: such a file
    /// must not become another one's.
    live: Mutex<HashMap<SegmentId, Weak<File>>>,
}

#[derive(Debug, Default)]
struct PoolState {
    ready: Vec<Backing>,
    emptied: Vec<SegmentId>,
    /// With fewer files ready than this the next batch is made.
    low_water: usize,
    /// The refill waits to be woken.
    is_refill_idle: bool,
    /// Somebody found the pool empty.
    is_starved: bool,
    /// The last batch could not be made.
    failed: bool,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            state: Mutex::default(),
            wanted: Condvar::new(),
            made: Condvar::new(),
            live: Mutex::default(),
        }
    }

    /// An empty staging file whose name is durable.
    ///
    /// # Errors
    ///
    /// The store's, if one has to be made now.
    pub(crate) fn take(&self) -> Result<Backing, StoreError> {
        let mut state = lock(&self.state);
        while state.ready.is_empty() && !state.closed {
            // Faster than the refill, which is told to make more at a time.
            state.is_starved = true;
            self.wanted.notify_one();
            let (next, timeout) =
                self.made.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            if timeout.timed_out() || state.failed {
                break;
            }
        }
        let taken = state.ready.pop();
        // A wake-up costs more than the rest of this function.
        if state.is_refill_idle && state.ready.len() < state.low_water {
            self.wanted.notify_one();
        }
        drop(state);
        let backing = match taken {
            Some(backing) => backing,
            // The refill fails, or does not run any more: the caller gets the reason.
            None => self.make(1)?.pop().expect("a batch of one has a file"),
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
        let is_idle = |state: &mut PoolState| !state.closed && !state.is_starved;
        let mut state =
            self.wanted.wait_while(state, is_idle).unwrap_or_else(PoisonError::into_inner);
        let mut batch = BATCH_MIN;
        loop {
            while !state.closed && !state.is_starved && state.ready.len() >= state.low_water {
                state.is_refill_idle = true;
                state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.is_refill_idle = false;
            }
            if state.closed {
                self.made.notify_all();
                return;
            }
            if std::mem::take(&mut state.is_starved) && !state.failed {
                batch = (2 * batch).min(BATCH_MAX);
            } else {
                batch = (batch / 2).max(BATCH_MIN);
            }
            state.low_water = batch / 2;
            drop(state);
            let made = self.make(batch);
            state = lock(&self.state);
            state.failed = made.is_err();
            match made {
                Ok(mut made) => state.ready.append(&mut made),
                Err(error) => {
                    tracing::warn!(%error, "staging files cannot be made ahead");
                    self.made.notify_all();
                    // Closed while it was made: nobody will wake us any more.
                    if !state.closed {
                        state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
            self.made.notify_all();
        }
    }

    /// Ends [`Pool::run`].
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.wanted.notify_all();
        self.made.notify_all();
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
