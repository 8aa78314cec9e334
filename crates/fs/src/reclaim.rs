//! Giving back what nothing names: orphans, condemned segments, punched duplicates, idle nodes.
//!
//! The order, derived from "after a crash the namespace is a prefix": a file is deleted only after
//! the operation that dropped its last name is durable, and after the claim that keeps any later
//! operation from naming it again is durable too. One sync per round serves all of them.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use librorum_format::{Ino, SegmentId, TxnId};
use librorum_meta::Meta;

use crate::error::Result;
use crate::fs::{Fs, PAGE};
use crate::node::{Data, Service, lock};

/// How often freed space is given back.
const ROUND: Duration = Duration::from_millis(500);

/// Closed files whose node, descriptor and registration are kept for the next open. Releases
/// are asynchronous, so without this even an open-close loop would register anew each time.
const IDLE_BACKING_MAX: usize = 1024;

/// A logical dump of the metadata is written this often if anything changed.
const DUMP_EVERY: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(crate) struct Reclaim {
    state: Mutex<ReclaimState>,
    wake: Condvar,
    /// One round at a time: a claim says yes to everybody who asks, and a file that two rounds empty
    /// may be another one's by the second time. Taken before any other lock.
    deleting: Mutex<()>,
}

#[derive(Debug, Default)]
struct ReclaimState {
    closed: bool,
    scan_leftovers: bool,
    orphans: Vec<Ino>,
    punches: Vec<Punch>,
    /// Closed files, least recently closed first; one file may stand here several times.
    idle: VecDeque<Ino>,
}

/// Ranges of a sealed segment whose bytes are stored elsewhere, once `txn` is durable.
#[derive(Debug)]
struct Punch {
    txn: TxnId,
    segment: SegmentId,
    ranges: Vec<(u64, u64)>,
}

impl Reclaim {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), deleting: Mutex::default() }
    }

    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.wake.notify_all();
    }

    /// Asks for a search for files that a crash left without a name.
    pub(crate) fn scan_leftovers(&self) {
        lock(&self.state).scan_leftovers = true;
    }

    /// Whether that search has not ended.
    pub(crate) fn is_scan_pending(&self) -> bool {
        lock(&self.state).scan_leftovers
    }

    pub(crate) fn punch_later(&self, txn: TxnId, segment: SegmentId, ranges: Vec<(u64, u64)>) {
        lock(&self.state).punches.push(Punch { txn, segment, ranges });
    }

    /// A file has been closed by its last user.
    pub(crate) fn note_idle(&self, ino: Ino) {
        let mut state = lock(&self.state);
        state.idle.push_back(ino);
        if state.idle.len() > 2 * IDLE_BACKING_MAX {
            self.wake.notify_one();
        }
    }
}

impl Fs {
    /// Frees an orphan that neither the kernel nor an open file uses.
    pub(crate) fn reap_if_unused(&self, ino: Ino) {
        if let Some(node) = self.table.existing(ino) {
            let state = lock(&node.state);
            if state.is_open() {
                return;
            }
            let orphan = state.orphan;
            drop(state);
            drop(node);
            if !orphan {
                // Forgotten by the kernel, but it has names.
                self.drop_idle_node(ino);
                return;
            }
        } else if self.options.read_only {
            return;
        }
        if self.table.is_known(ino) {
            return;
        }
        match self.meta.inode(ino) {
            Ok(inode) if inode.nlink == 0 => lock(&self.reclaim.state).orphans.push(ino),
            _ => {}
        }
    }

    fn drop_idle_node(&self, ino: Ino) {
        self.table.drop_node(ino, |state| {
            let idle = !state.is_open() && (!state.unrecorded || state.orphan);
            if idle && let Some(Data::Whole(backing)) = &state.data {
                self.forget_whole(backing.segment());
            }
            idle
        });
    }

    pub(crate) fn reclaim_loop(&self) {
        let mut last_dump = librorum_sys::clock::monotonic();
        let mut dumped_txn = self.meta.newest_txn();
        loop {
            let state = lock(&self.reclaim.state);
            let (state, _) = self
                .reclaim
                .wake
                .wait_timeout_while(state, ROUND, |state| {
                    !state.closed && state.idle.len() <= 2 * IDLE_BACKING_MAX
                })
                .unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                return;
            }
            drop(state);
            if let Err(error) = self.reclaim_now() {
                tracing::warn!(%error, "freeing unused space; it will be tried again");
            }
            let now = librorum_sys::clock::monotonic();
            if now.saturating_sub(last_dump) >= DUMP_EVERY && self.meta.newest_txn() > dumped_txn {
                last_dump = now;
                match self.dump() {
                    Ok(txn) => dumped_txn = txn,
                    Err(error) => tracing::warn!(%error, "the metadata dump failed"),
                }
            }
        }
    }

    /// One round; also run when the volume is closed.
    pub(crate) fn reclaim_now(&self) -> Result<()> {
        let (orphans, scan) = {
            let mut state = lock(&self.reclaim.state);
            (std::mem::take(&mut state.orphans), state.scan_leftovers && !state.closed)
        };
        for ino in orphans {
            if let Some(node) = self.table.existing(ino) {
                let mut state = lock(&node.state);
                if state.is_open() {
                    continue;
                }
                // The sealer may hold the node for a moment longer; the file's space may not wait
                // for it.
                if let Some(Data::Whole(backing)) = state.data.take() {
                    self.forget_whole(backing.segment());
                }
                self.sealer.dequeue(std::mem::take(&mut state.queued_bytes));
                drop(state);
                drop(node);
                self.drop_idle_node(ino);
            }
            self.meta.reap(ino)?;
        }
        if scan {
            self.condemn_leftovers()?;
        }
        self.trim_idle();
        self.punch_durable();
        self.delete_condemned()
    }

    /// Deletes condemned segments; see the module's first lines for the order.
    fn delete_condemned(&self) -> Result<()> {
        let _alone = lock(&self.reclaim.deleting);
        let mut after = SegmentId(0);
        loop {
            let durable = self.meta.durable_txn();
            let page = self.meta.condemned(after, PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.segment;
            let mut claimed = Vec::new();
            for condemned in &page {
                if condemned.txn <= durable && self.meta.claim_condemned(condemned.segment)? {
                    claimed.push(condemned.segment);
                }
            }
            if claimed.is_empty() {
                continue;
            }
            self.meta.sync()?;
            for &segment in &claimed {
                self.forget_whole(segment);
                self.pool.dispose(segment)?;
            }
            self.meta.forget_segments(&claimed)?;
        }
    }

    /// Files on disk that nothing names: made, but not named when a crash came. Those of this
    /// process may be about to be named, so only older ones count.
    fn condemn_leftovers(&self) -> Result<()> {
        let own = self.first_own_segment.load(Ordering::Relaxed);
        let mut leftovers = Vec::new();
        for segment in self.store.segments() {
            let (segment, _, _) = segment?;
            if segment.0 < own && !self.meta.segment_is_named(segment)? {
                leftovers.push(segment);
            }
            if lock(&self.reclaim.state).closed {
                // The volume stays marked, so the next mount looks again.
                return Ok(());
            }
        }
        lock(&self.reclaim.state).scan_leftovers = false;
        if !leftovers.is_empty() {
            tracing::info!(count = leftovers.len(), "files without a name are given back");
            self.meta.condemn(&leftovers)?;
        }
        Ok(())
    }

    fn punch_durable(&self) {
        let durable = self.meta.durable_txn();
        let due: Vec<_> = {
            let mut state = lock(&self.reclaim.state);
            let (due, later) = std::mem::take(&mut state.punches)
                .into_iter()
                .partition(|punch| punch.txn <= durable);
            state.punches = later;
            due
        };
        for Punch { segment, ranges, .. } in due {
            // Best effort: a segment that is gone or a disk that cannot punch costs space only.
            if let Err(error) = self.store.punch(segment, &ranges) {
                tracing::debug!(%error, %segment, "duplicates were not punched out");
            }
        }
    }

    /// Drops what is kept of the files that were closed longest ago.
    fn trim_idle(&self) {
        loop {
            let oldest = {
                let mut state = lock(&self.reclaim.state);
                if state.idle.len() <= IDLE_BACKING_MAX {
                    return;
                }
                state.idle.pop_front()
            };
            let Some(ino) = oldest else { return };
            let Some(node) = self.table.existing(ino) else { continue };
            let mut state = lock(&node.state);
            if !state.is_open() && !state.unrecorded {
                if let Some(Data::Whole(backing)) = &state.data {
                    self.forget_whole(backing.segment());
                }
                debug_assert_eq!(state.service, Service::Idle);
                state.data = None;
                // A node stays for the number that says what the page cache holds; one without it
                // says nothing that the metadata does not.
                if state.kernel_generation.is_none() && state.queued_bytes == 0 {
                    drop(state);
                    drop(node);
                    self.drop_idle_node(ino);
                }
            }
        }
    }
}
