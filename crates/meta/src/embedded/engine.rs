//! The ordered store below the operations: an overlay in memory, fjall on disk, and one thread
//! that moves the first into the second.
//!
//! What always holds:
//!
//! 1. Operations get their [`TxnId`] and become visible in one step, under the overlay's lock.
//! 2. The database holds exactly the operations up to the `txn` of its state record: every batch
//!    is a prefix of the order and writes that record.
//! 3. `durable` and the mark never pass what `persist` has returned for.
//! 4. After a failure nothing is acknowledged any more; what was visible stays visible.
//!
//! Why a batch thread: fjall holds its journal lock across fsync, so more callers do not make it
//! faster, and none of them should wait for a disk unless it asked to (`facts/engines.md`).

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock};
use std::time::Duration;

use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Slice,
};
use librorum_format::{DecodeError, Ino, TxnId};
use librorum_sys::clock;

use super::mark::Mark;
use super::overlay::{Layer, Overlay, Run, StatsDelta};
use super::space::{Gate, Growth};
use super::{lock, read_lock, write_lock};
use crate::record::{Condemnation, State, TABLE_COUNT, TABLE_NAMES, TABLES, Table, key};
use crate::{MetaError, MetaStats, Result};

/// How long the thread lets operations gather. Nobody waits for it: a sync cuts it short.
const GATHER: Duration = Duration::from_millis(3);
/// The longest that an operation stays volatile without any sync.
const PERSIST_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest time between two marks: each costs a disk flush of its own.
const MARK_INTERVAL: Duration = Duration::from_millis(100);
/// How often a waiter looks whether the engine died without saying so.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Entries that one step of a scan takes from the overlay.
const RUN_LEN: usize = 512;
/// Inode numbers that may be given out before the bound in the database moves.
const INO_BLOCK: u64 = 1024;

/// Why the engine gave up.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Engine(Arc<fjall::Error>),
    Io { what: String, kind: std::io::ErrorKind, message: String },
}

impl Failure {
    fn to_error(&self) -> MetaError {
        match self {
            Self::Engine(source) => MetaError::Engine { source: Arc::clone(source) },
            Self::Io { what, kind, message } => MetaError::Io {
                what: what.clone(),
                source: std::io::Error::new(*kind, message.clone()),
            },
        }
    }
}

/// The writes of one operation.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub layer: Layer,
    pub stats: StatsDelta,
    /// Segments whose condemnation carries the operation's own position.
    pub condemned: Vec<librorum_format::SegmentId>,
}

/// What the commit thread and the waiters tell each other.
#[derive(Debug, Default)]
struct Flow {
    /// The thread is asked to make operations durable up to here.
    sync_wanted: TxnId,
    /// The thread is asked to commit, without syncing, up to here.
    commit_wanted: TxnId,
    committed: TxnId,
    durable: TxnId,
    stop: bool,
}

pub(super) struct Engine {
    db: Database,
    tables: [Keyspace; TABLE_COUNT],
    overlay: RwLock<Overlay>,
    /// Copies of what the overlay and the flow know, readable without their locks.
    newest: AtomicU64,
    durable: AtomicU64,
    pending_bytes: AtomicUsize,
    pending_bytes_max: usize,
    /// What all memtables together may hold.
    memtable_bytes: u64,
    /// The thread sleeps until somebody wakes it.
    idle: AtomicBool,
    flow: Mutex<Flow>,
    wake: Condvar,
    done: Condvar,
    next_ino: AtomicU64,
    ino_bound: AtomicU64,
    gate: Gate,
    failure: OnceLock<Failure>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("newest", &self.newest)
            .field("durable", &self.durable)
            .field("pending_bytes", &self.pending_bytes)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

/// A state of the whole database that does not change.
pub(super) struct View {
    snapshot: fjall::Snapshot,
    tables: [Keyspace; TABLE_COUNT],
}

pub(super) fn engine_error(error: fjall::Error) -> MetaError {
    MetaError::Engine { source: Arc::new(error) }
}

/// The bounds of memory and disk that the database is opened with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub cache_bytes: u64,
    pub journal_bytes: u64,
    pub open_files: usize,
}

/// fjall's own smallest journal bound.
const JOURNAL_BYTES_MIN: u64 = 64 << 20;

pub(super) fn open_database(path: &Path, limits: Limits) -> Result<Database> {
    // fjall expects some of what it reads to be right, and panics if it is not. While it opens,
    // nothing of ours exists that a panic could leave half-done.
    let opened = std::panic::catch_unwind(|| open_unguarded(path, limits));
    opened.unwrap_or_else(|_| {
        let source = DecodeError::Invalid { what: "database", value: 0 };
        Err(MetaError::Corrupt { key: path.display().to_string(), source })
    })
}

fn open_unguarded(path: &Path, limits: Limits) -> Result<Database> {
    Database::builder(path)
        .cache_size(limits.cache_bytes)
        .max_journaling_size(limits.journal_bytes.max(JOURNAL_BYTES_MIN))
        .max_cached_files(Some(limits.open_files.max(16)))
        // One worker: with two, one of them spins while the other compacts, and compactions that
        // run side by side have lost inserts before (fjall issue 230).
        .worker_threads(1)
        .open()
        .map_err(engine_error)
}

pub(super) fn open_tables(db: &Database) -> Result<[Keyspace; TABLE_COUNT]> {
    let mut tables = Vec::with_capacity(TABLE_COUNT);
    for table in TABLES {
        // The engine's own limit is off; see `Engine::rotate_full_memtables`.
        let options = || KeyspaceCreateOptions::default().max_memtable_size(u64::MAX);
        let keyspace = db.keyspace(TABLE_NAMES[table.index()], options).map_err(engine_error)?;
        tables.push(keyspace);
    }
    tables.try_into().map_err(|tables: Vec<Keyspace>| MetaError::Missing {
        key: format!("one of {TABLE_COUNT} tables: {} opened", tables.len()),
    })
}

impl Engine {
    pub(super) fn new(
        db: Database,
        tables: [Keyspace; TABLE_COUNT],
        state: State,
        gate: Gate,
        (pending_bytes_max, memtable_bytes): (usize, u64),
    ) -> Self {
        let txn = state.txn;
        Self {
            db,
            tables,
            overlay: RwLock::new(Overlay { newest: txn, stats: state.stats, ..Overlay::default() }),
            newest: AtomicU64::new(txn.0),
            durable: AtomicU64::new(txn.0),
            pending_bytes: AtomicUsize::new(0),
            pending_bytes_max,
            memtable_bytes,
            idle: AtomicBool::new(false),
            flow: Mutex::new(Flow { committed: txn, durable: txn, ..Flow::default() }),
            wake: Condvar::new(),
            done: Condvar::new(),
            next_ino: AtomicU64::new(state.ino_bound),
            ino_bound: AtomicU64::new(state.ino_bound),
            gate,
            failure: OnceLock::new(),
        }
    }

    // Reading.

    /// The newest value of a key.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>> {
        if let Some(value) = read_lock(&self.overlay).get(table, key) {
            return Ok(value.clone());
        }
        self.tables[table.index()].get(key).map_err(engine_error)
    }

    /// Calls `visit` with every entry of `[start, end)` in order, until it answers false.
    ///
    /// Entries that exist throughout are seen once; concurrent changes may be seen or not.
    pub(super) fn scan(
        &self,
        table: Table,
        start: Bound<&[u8]>,
        end: &[u8],
        visit: &mut dyn FnMut(&Slice, &Slice) -> Result<bool>,
    ) -> Result<()> {
        let mut from: Option<Slice> = None;
        loop {
            let start = from.as_ref().map_or(start, |key| Bound::Excluded(&**key));
            // The overlay first: what leaves it between the two reads is in the database then.
            let run = read_lock(&self.overlay).run(table, start, Bound::Excluded(end), RUN_LEN);
            let snapshot = self.db.snapshot();
            if !merge(&snapshot, &self.tables[table.index()], start, end, &run, visit)? {
                return Ok(());
            }
            match run.cut {
                Some(cut) => from = Some(cut),
                None => return Ok(()),
            }
        }
    }

    /// A state that holds every operation so far, and its position.
    pub(super) fn view(&self) -> Result<View> {
        self.wait_committed()?;
        Ok(View { snapshot: self.db.snapshot(), tables: self.tables.clone() })
    }

    pub(super) fn newest_txn(&self) -> TxnId {
        TxnId(self.newest.load(Ordering::Acquire))
    }

    pub(super) fn durable_txn(&self) -> TxnId {
        TxnId(self.durable.load(Ordering::Acquire))
    }

    pub(super) fn stats(&self) -> MetaStats {
        read_lock(&self.overlay).stats
    }

    // Writing.

    /// A number that no inode has had.
    pub(super) fn allocate_ino(&self) -> Ino {
        Ino(self.next_ino.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes sure that numbers up to and including `ino` are never given out.
    pub(super) fn reserve_ino(&self, ino: Ino) {
        self.next_ino.fetch_max(ino.0.saturating_add(1), Ordering::Relaxed);
    }

    /// Lets an operation begin: not after a failure, not on a full disk, and not while too much
    /// is pending. Called before any lock is taken, so that a wait here delays nobody else.
    pub(super) fn free_bytes(&self) -> u64 {
        self.gate.free_bytes()
    }

    pub(super) fn admit(&self, growth: Growth) -> Result<()> {
        self.check_failure()?;
        self.gate.check(growth)?;
        if self.pending_bytes.load(Ordering::Relaxed) <= self.pending_bytes_max {
            return Ok(());
        }
        let mut flow = lock(&self.flow);
        while self.pending_bytes.load(Ordering::Relaxed) > self.pending_bytes_max {
            self.check_failure()?;
            self.wake.notify_one();
            flow = self.wait_done(flow)?;
        }
        Ok(())
    }

    /// Gives the operation its position and makes it visible. Costs no I/O.
    pub(super) fn append(&self, change: Change) -> Result<TxnId> {
        self.check_failure()?;
        let Change { mut layer, stats, condemned } = change;
        let mut overlay = write_lock(&self.overlay);
        let txn = TxnId(overlay.newest.0 + 1);
        for segment in condemned {
            let value = Condemnation { txn, claimed: false }.encode();
            layer.set(Table::Small, Slice::from(key::condemned(segment)), Some(value.into()));
        }
        let before = overlay.active.cost_bytes();
        overlay.active.absorb(layer);
        let after = overlay.active.cost_bytes();
        if after >= before {
            self.pending_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.pending_bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
        stats.apply(&mut overlay.stats);
        overlay.newest = txn;
        self.newest.store(txn.0, Ordering::SeqCst);
        drop(overlay);
        // The thread says that it is idle before it looks for work a last time, and we look after
        // adding some: one of us sees the other.
        if self.idle.load(Ordering::SeqCst) {
            drop(lock(&self.flow));
            self.wake.notify_one();
        }
        Ok(txn)
    }

    /// Replaces the counters, as an operation. Only while nothing else changes.
    pub(super) fn set_stats(&self, stats: MetaStats) -> Result<()> {
        write_lock(&self.overlay).stats = stats;
        self.append(Change::default()).map(|_| ())
    }

    /// Waits until everything so far is durable.
    pub(super) fn sync(&self) -> Result<TxnId> {
        let target = self.newest_txn();
        let mut flow = lock(&self.flow);
        while flow.durable < target {
            self.check_failure()?;
            flow.sync_wanted = flow.sync_wanted.max(target);
            self.wake.notify_one();
            flow = self.wait_done(flow)?;
        }
        Ok(flow.durable)
    }

    /// Waits until everything so far is in the database, durable or not.
    pub(super) fn wait_committed(&self) -> Result<TxnId> {
        let target = self.newest_txn();
        let mut flow = lock(&self.flow);
        while flow.committed < target {
            self.check_failure()?;
            flow.commit_wanted = flow.commit_wanted.max(target);
            self.wake.notify_one();
            flow = self.wait_done(flow)?;
        }
        Ok(flow.committed)
    }

    fn wait_done<'a>(
        &self,
        flow: std::sync::MutexGuard<'a, Flow>,
    ) -> Result<std::sync::MutexGuard<'a, Flow>> {
        let (flow, timeout) = self
            .done
            .wait_timeout(flow, PROBE_INTERVAL)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if timeout.timed_out() {
            self.probe()?;
        }
        Ok(flow)
    }

    /// Finds out whether fjall's worker died. It then leaves the commit thread waiting for room
    /// that will never come, so that nobody would hear of it.
    pub(super) fn probe(&self) -> Result<()> {
        if let Err(error) = self.db.persist(PersistMode::Buffer) {
            self.fail(self.describe(error));
        }
        self.check_failure()
    }

    fn check_failure(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |failure| Err(failure.to_error()))
    }

    fn fail(&self, failure: Failure) {
        tracing::error!(?failure, "the metadata engine failed; it acknowledges nothing any more");
        // The first failure is the cause; later ones are its consequences.
        drop(self.failure.set(failure));
        drop(lock(&self.flow));
        self.done.notify_all();
        self.wake.notify_all();
    }

    /// fjall says "poisoned" about whatever happened to its worker; on a full disk that hides the
    /// one thing that the user can do something about.
    fn describe(&self, error: fjall::Error) -> Failure {
        if self.gate.is_exhausted() {
            return Failure::Io {
                what: "commit metadata".into(),
                kind: std::io::ErrorKind::StorageFull,
                message: error.to_string(),
            };
        }
        Failure::Engine(Arc::new(error))
    }

    // The commit thread.

    /// Commits until [`Engine::stop`], or a failure.
    pub(super) fn run(&self, mark: Mark, marked: TxnId) {
        // A thread that vanished would leave everybody waiting.
        let run = std::panic::AssertUnwindSafe(|| self.run_unguarded(mark, marked));
        if std::panic::catch_unwind(run).is_err() {
            self.fail(Failure::Io {
                what: "commit metadata".into(),
                kind: std::io::ErrorKind::Other,
                message: "the commit thread panicked".into(),
            });
        }
    }

    fn run_unguarded(&self, mut mark: Mark, marked: TxnId) {
        // Not the newest position: operations may have begun before this thread did.
        let mut progress = Progress {
            committed: self.durable_txn(),
            marked,
            // What the journal gave back counts too, or a volume that is opened often and written
            // little would never hand anything over.
            memtable_bytes: std::array::from_fn(|index| {
                self.tables[index].tree.active_memtable().size()
            }),
            dirty_since: clock::monotonic(),
            marked_at: clock::monotonic(),
        };
        while self.failure.get().is_none() {
            self.gate.tend();
            match self.step(&mut progress, &mut mark) {
                Ok(true) => {}
                Ok(false) => return,
                Err(failure) => self.fail(failure),
            }
        }
    }

    pub(super) fn stop(&self) {
        lock(&self.flow).stop = true;
        self.wake.notify_all();
    }

    /// One round: wait, commit, persist, mark. False when all is done and asked to stop.
    fn step(&self, progress: &mut Progress, mark: &mut Mark) -> std::result::Result<bool, Failure> {
        let (stop, sync) = self.wait_for_work(progress);
        if self.failure.get().is_some() {
            return Ok(false);
        }
        let committed = self.commit_active(progress)?;
        let now = clock::monotonic();
        let durable = self.durable_txn();
        if progress.committed > durable
            && (stop || sync || now.saturating_sub(progress.dirty_since) >= PERSIST_INTERVAL)
        {
            self.db.persist(PersistMode::SyncData).map_err(|error| self.describe(error))?;
            self.durable.store(progress.committed.0, Ordering::Release);
            lock(&self.flow).durable = progress.committed;
            self.done.notify_all();
        }
        // Only now, when the database is durable up to there: see invariant 3.
        let durable = self.durable_txn();
        let now = clock::monotonic();
        if durable > progress.marked
            && (stop || now.saturating_sub(progress.marked_at) >= MARK_INTERVAL)
        {
            mark.write(durable).map_err(|error| Failure::Io {
                what: "write the high-water mark".into(),
                kind: error.kind(),
                message: error.to_string(),
            })?;
            progress.marked = durable;
            progress.marked_at = now;
        }
        Ok(!(stop && !committed && progress.marked == self.newest_txn()))
    }

    /// Whether to stop, and whether somebody waits for durability.
    fn wait_for_work(&self, progress: &Progress) -> (bool, bool) {
        let urgent = |flow: &Flow| {
            flow.stop || flow.sync_wanted > flow.durable || flow.commit_wanted > flow.committed
        };
        let mut flow = lock(&self.flow);
        while !urgent(&flow) && self.failure.get().is_none() {
            self.idle.store(true, Ordering::SeqCst);
            if TxnId(self.newest.load(Ordering::SeqCst)) > progress.committed {
                // Somebody started; let others join.
                self.idle.store(false, Ordering::SeqCst);
                flow = self
                    .wake
                    .wait_timeout_while(flow, GATHER, |flow| !urgent(flow))
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .0;
                break;
            }
            let now = clock::monotonic();
            let deadline = if progress.committed > flow.durable {
                Some(progress.dirty_since + PERSIST_INTERVAL)
            } else if flow.durable > progress.marked {
                Some(progress.marked_at + MARK_INTERVAL)
            } else {
                None
            };
            flow = match deadline {
                Some(deadline) if deadline <= now => break,
                Some(deadline) => {
                    self.wake
                        .wait_timeout(flow, deadline - now)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
                None => self.wake.wait(flow).unwrap_or_else(std::sync::PoisonError::into_inner),
            };
        }
        self.idle.store(false, Ordering::SeqCst);
        (flow.stop, flow.sync_wanted > flow.durable)
    }

    /// Moves the active layer into the database. Answers whether there was anything.
    fn commit_active(&self, progress: &mut Progress) -> std::result::Result<bool, Failure> {
        let (layer, state) = {
            let mut overlay = write_lock(&self.overlay);
            if overlay.newest == progress.committed {
                return Ok(false);
            }
            // Read under the lock: every number that an operation in this layer uses is below it.
            let next_ino = self.next_ino.load(Ordering::Relaxed);
            let bound = self.ino_bound.load(Ordering::Relaxed);
            let ino_bound =
                if next_ino + INO_BLOCK / 2 > bound { next_ino + INO_BLOCK } else { bound };
            self.ino_bound.store(ino_bound, Ordering::Relaxed);
            let layer = Arc::new(std::mem::take(&mut overlay.active));
            overlay.committing = Some(Arc::clone(&layer));
            (layer, State { txn: overlay.newest, ino_bound, stats: overlay.stats })
        };
        let mut batch = self.db.batch();
        for table in TABLES {
            let keyspace = &self.tables[table.index()];
            for (key, value) in layer.table(table) {
                match value {
                    Some(value) => batch.insert(keyspace, key.clone(), value.clone()),
                    None => batch.remove(keyspace, key.clone()),
                }
            }
        }
        batch.insert(&self.tables[Table::Small.index()], key::STATE, state.encode());
        batch.commit().map_err(|error| self.describe(error))?;
        if progress.committed == self.durable_txn() {
            progress.dirty_since = clock::monotonic();
        }
        progress.committed = state.txn;
        self.rotate_full_memtables(&layer, progress)?;
        write_lock(&self.overlay).committing = None;
        self.pending_bytes.fetch_sub(layer.cost_bytes(), Ordering::Relaxed);
        // Freeing a large layer takes a while; nobody waits for it outside the lock.
        drop(layer);
        lock(&self.flow).committed = state.txn;
        self.done.notify_all();
        Ok(true)
    }
}

impl Engine {
    /// Hands full memtables to the engine's flush worker, and waits while it is far behind.
    ///
    /// The engine would do it by itself, but fjall 3.1.13 then asks its worker anew at every write
    /// until the worker comes to it, through a bounded channel that the worker itself sends on:
    /// once the channel is full, nothing is ever flushed again (fjall pull request 323). One
    /// request per full memtable cannot fill it.
    fn rotate_full_memtables(
        &self,
        layer: &Layer,
        progress: &mut Progress,
    ) -> std::result::Result<(), Failure> {
        for table in TABLES {
            let written = &mut progress.memtable_bytes[table.index()];
            *written += layer
                .table(table)
                .iter()
                .map(|(key, value)| key.len() + value.as_ref().map_or(0, |value| value.len()))
                .map(|len| len as u64 + MEMTABLE_ENTRY_BYTES)
                .sum::<u64>();
            if *written < self.memtable_limit_bytes(table) {
                continue;
            }
            *written = 0;
            let keyspace = &self.tables[table.index()];
            keyspace.rotate_memtable().map_err(|error| self.describe(error))?;
            let start = clock::monotonic();
            while keyspace.sealed_memtable_count() > MEMTABLE_BACKLOG_MAX
                && clock::monotonic() - start < FLUSH_PATIENCE
            {
                clock::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Two tables take nearly all writes; the others share what is left.
    fn memtable_limit_bytes(&self, table: Table) -> u64 {
        let share = match table {
            Table::Inodes | Table::Dentries => 4,
            Table::Bodies | Table::Pages | Table::References => 8,
            Table::Xattrs | Table::Small => 16,
        };
        (self.memtable_bytes / share).max(256 << 10)
    }
}

/// What a memtable's entry costs beside key and value: a skip-list node.
const MEMTABLE_ENTRY_BYTES: u64 = 96;

/// Full memtables of a table that may wait for the flush worker.
const MEMTABLE_BACKLOG_MAX: usize = 3;

/// A worker that needs longer than this for one memtable has failed; the next commit will say so.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

/// What the commit thread has done.
struct Progress {
    /// What has been written to each table's memtable since it was last handed over.
    memtable_bytes: [u64; TABLE_COUNT],
    committed: TxnId,
    marked: TxnId,
    /// When the oldest operation that is committed but not durable was committed.
    dirty_since: Duration,
    marked_at: Duration,
}

impl View {
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>> {
        self.snapshot.get(&self.tables[table.index()], key).map_err(engine_error)
    }

    /// As [`Engine::scan`].
    pub(super) fn scan(
        &self,
        table: Table,
        start: Bound<&[u8]>,
        end: &[u8],
        visit: &mut dyn FnMut(&Slice, &Slice) -> Result<bool>,
    ) -> Result<()> {
        let run = Run { entries: Vec::new(), cut: None };
        merge(&self.snapshot, &self.tables[table.index()], start, end, &run, visit).map(|_| ())
    }

    /// Every entry of a table, in order.
    pub(super) fn entries(
        &self,
        table: Table,
    ) -> impl Iterator<Item = Result<(Slice, Slice)>> + use<> {
        let entries = self.snapshot.iter(&self.tables[table.index()]);
        entries.map(|guard| guard.into_inner().map_err(engine_error))
    }

    /// As [`View::entries`], while `visit` answers true.
    pub(super) fn scan_all(
        &self,
        table: Table,
        visit: &mut dyn FnMut(&Slice, &Slice) -> Result<bool>,
    ) -> Result<()> {
        for entry in self.entries(table) {
            let (key, value) = entry?;
            if !visit(&key, &value)? {
                break;
            }
        }
        Ok(())
    }
}

/// Merges the run of the overlay with the database below it; false if `visit` had enough.
fn merge(
    snapshot: &fjall::Snapshot,
    keyspace: &Keyspace,
    start: Bound<&[u8]>,
    end: &[u8],
    run: &Run,
    visit: &mut dyn FnMut(&Slice, &Slice) -> Result<bool>,
) -> Result<bool> {
    let end = run.cut.as_ref().map_or(Bound::Excluded(end), |cut| Bound::Included(&**cut));
    let mut below = snapshot.range::<&[u8], _>(keyspace, (start, end));
    let mut next_below =
        || below.next().map(fjall::Guard::into_inner).transpose().map_err(engine_error);
    let mut above = run.entries.iter().peekable();
    let mut lower = next_below()?;
    loop {
        match (above.peek(), &lower) {
            (Some((key, value)), entry) if entry.as_ref().is_none_or(|(below, _)| key <= below) => {
                if entry.as_ref().is_some_and(|(below, _)| key == below) {
                    lower = next_below()?;
                }
                if let Some(value) = value
                    && !visit(key, value)?
                {
                    return Ok(false);
                }
                above.next();
            }
            (_, Some((key, value))) => {
                if !visit(key, value)? {
                    return Ok(false);
                }
                lower = next_below()?;
            }
            (_, None) => return Ok(true),
        }
    }
}
