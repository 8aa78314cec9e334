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

/// The first batch: the first create after a mount waits for it, and making files is slow on a disk
/// that has just deleted many. Each batch that is wanted after it is twice as large, up to
/// [`BATCH_MIN`].
const BATCH_FIRST: usize = 16;

/// The smallest batch from then on: its fsync's share of a create is a few microseconds on a quiet disk. The next
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
        let mut batch = 0;
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
            let is_starved = std::mem::take(&mut state.is_starved) && !state.failed;
            batch = next_batch(batch, is_starved);
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

/// The size of the batch after one of `last` files, which were enough or not.
fn next_batch(last: usize, is_starved: bool) -> usize {
    if is_starved || last < BATCH_MIN {
        (2 * last).clamp(BATCH_FIRST, BATCH_MAX)
    } else {
        (last / 2).max(BATCH_MIN)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Duration;

    use librorum_store::StoreOptions;
    use rustix::fs::{CWD, FileType, Mode, OFlags};

    use super::*;

    fn pool(dir: &Path) -> Arc<Pool> {
        Store::create(dir).unwrap();
        let store = Store::open(dir, &StoreOptions::default()).unwrap();
        Arc::new(Pool::new(Arc::new(store)))
    }

    /// Runs the refill on a thread; it has ended when something arrives.
    fn run(pool: &Arc<Pool>) -> mpsc::Receiver<()> {
        let (ended, end) = mpsc::channel();
        let pool = Arc::clone(pool);
        std::thread::spawn(move || {
            pool.run();
            ended.send(()).ok();
        });
        end
    }

    fn has_ended(end: &mpsc::Receiver<()>) -> bool {
        end.recv_timeout(Duration::from_secs(30)).is_ok()
    }

    #[test]
    fn the_first_batch_is_small_and_later_ones_are_what_is_needed() {
        let mut sizes = vec![next_batch(0, true)];
        let mut follow = |is_starved| {
            sizes.push(next_batch(*sizes.last().unwrap(), is_starved));
        };
        for _ in 0..5 {
            follow(false);
        }
        for _ in 0..5 {
            follow(true);
        }
        for _ in 0..5 {
            follow(false);
        }
        let expected = [16, 32, 64, 128, 256, 256, 512, 1024, 2048, 4096, 4096, 2048, 1024, 512];
        assert_eq!(sizes, [&expected[..], &[256, 256]].concat());
    }

    #[test]
    fn a_taker_waits_for_the_first_batch_only() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        let end = run(&pool);
        assert_eq!(pool.ready_count(), 0, "a volume that is only read stays as it is");
        pool.take().unwrap();
        assert_eq!(pool.ready_count(), BATCH_FIRST - 1);
        pool.close();
        assert!(has_ended(&end));
    }

    /// The refill slept after a batch that failed, and the call that closes the pool had woken it
    /// while it was still at that batch: unmounting hung.
    #[test]
    fn the_refill_ends_when_the_pool_was_closed_while_a_batch_failed() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        // The first batch leases ids, which writes this file: a full pipe keeps it waiting, and
        // one that nobody reads any more fails it.
        let draft = dir.path().join("ids.draft");
        rustix::fs::mknodat(CWD, &draft, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let pipe = rustix::fs::open(&draft, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty());
        let mut pipe = File::from(pipe.unwrap());
        while pipe.write(&[0; 4096]).is_ok() {}
        while pipe.write(&[0]).is_ok() {}

        let end = run(&pool);
        lock(&pool.state).is_starved = true;
        pool.wanted.notify_one();
        let is_in_batch = || {
            let open = std::fs::read_dir("/proc/self/fd").unwrap();
            let paths = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
            paths.filter(|path| *path == draft).count() == 2
        };
        while !is_in_batch() {
            librorum_sys::clock::sleep(Duration::from_millis(1));
        }
        pool.close();
        drop(pipe);
        let ended = has_ended(&end);
        pool.wanted.notify_all();
        assert!(ended, "the refill sleeps in a closed pool");
        assert!(lock(&pool.state).failed, "the batch was to fail");
    }
}
