//! What is known of an inode while the kernel knows it: where its bytes are right now, how its
//! open files are served, and what may therefore happen to it.
//!
//! The content state machine. `Data` is where the bytes are, `Service` how the kernel reaches them:
//!
//! ```text
//!            create, open for writing                 close, quiet
//!   Empty ───────────────────────────▶ Staged ───────────────────────▶ Inline | Sealed | Whole
//!     ▲                                  ▲  ▲                                │      │       │
//!     └──────── truncate to zero         │  └── open for writing: copy ──────┴──────┤       │
//!                                        │      (small), reflink (where possible)   │       │
//!                                        └── open for writing: unseal in place ─────┼───────┘
//!                                                                                   │
//!            Overlay ◀──────────── open for writing, large and shared ──────────────┘
//! ```
//!
//! What always holds, and why (the kernel answers EIO to the opener otherwise):
//! * `Service::Passthrough` while any file is open through the kernel's passthrough: then every
//!   further open is passthrough too, with the same backing file, so `Data` may only move between
//!   `Staged` and `Whole` *of that file*;
//! * `Service::Cached` while any file is open through the page cache: then every further open is
//!   cached too, and `Data` may be anything, because every byte passes through us;
//! * bytes under a `Whole` are shared with nobody, as long as somebody has them open by passthrough
//!   (`Fs::whole`), so that opening for writing can always unseal them in place;
//! * a file with an open writer is `Staged` or `Overlay`.
//!
//! Readers from outside ([`crate::Outside`]) are neither: they are counted beside the kernel's opens
//! (`outside_readers`), keep node and content alive as those do, and leave `Service` alone, so that the
//! kernel's next open of an idle inode is served as if they were not there. Whatever `Data` becomes
//! under them they read from there. To what they were lent (`Fs::lent`) applies what applies to a
//! mapping that outlives its file: a staging file that somebody else has open is not sealed, and a
//! `Whole` that was lent is unsealed in place only if that is over, or if the kernel has it open by
//! passthrough and so leaves no choice; otherwise its writer gets a copy or an overlay.
//!
//! Lock order: one node's `state` → `Fs::whole` → `Overlay` → everything in `meta` and `store`. The
//! table's shards and the queues of sealer and pool are leaves. Nobody holds two nodes' states.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use librorum_format::{Extent, Ino, SegmentId};

use crate::ranges::RangeSet;

/// Locks a mutex whose holders do not leave halfway: a panic is a bug, and the data of other files
/// must stay reachable after it.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A local file that holds the bytes of one inode, staged or sealed.
#[derive(Debug)]
pub struct Backing {
    segment: AtomicU64,
    file: Arc<File>,
    /// What the kernel side keeps with the file for as long as the file serves this inode.
    attachment: OnceLock<Box<dyn std::any::Any + Send + Sync>>,
}

impl Backing {
    pub(crate) fn new(segment: SegmentId, file: File) -> Self {
        Self {
            segment: AtomicU64::new(segment.0),
            file: Arc::new(file),
            attachment: OnceLock::new(),
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Its present name.
    #[must_use]
    pub fn segment(&self) -> SegmentId {
        SegmentId(self.segment.load(Ordering::Acquire))
    }

    /// Unsealing in place gives the bytes a new name; the file, and what the kernel knows of it,
    /// stays.
    pub(crate) fn rename(&self, segment: SegmentId) {
        self.segment.store(segment.0, Ordering::Release);
    }

    /// What was attached first, or `make`'s result, attached for as long as this exists.
    pub fn attachment<T: std::any::Any + Send + Sync>(
        &self,
        make: impl FnOnce() -> T,
    ) -> Option<&T> {
        self.attachment.get_or_init(|| Box::new(make())).downcast_ref()
    }
}

/// A staging file over sealed extents.
#[derive(Debug)]
pub(crate) struct Overlay {
    pub(crate) backing: Arc<Backing>,
    /// Writers hold it while they write, so that a block is completed from the base only once.
    pub(crate) state: Mutex<OverlayState>,
}

#[derive(Debug)]
pub(crate) struct OverlayState {
    /// Where the staging file has the bytes, in whole blocks. The rest is the base's.
    pub(crate) written: RangeSet,
    /// The base counts only below this.
    pub(crate) base_len_bytes: u64,
}

/// Where a file's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// Nowhere: one hole.
    Empty,
    /// In the metadata.
    Inline(Arc<[u8]>),
    /// In a staging file.
    Staged(Arc<Backing>),
    /// In a staging file, over sealed extents.
    Overlay(Arc<Overlay>),
    /// In one verbatim segment that nobody else names: the kernel may read it by itself.
    Whole(Arc<Backing>),
    /// In sealed extents.
    Sealed(Arc<ExtentCache>),
}

/// The extents of a sealed file that were needed last; a page of them at a time.
#[derive(Debug, Default)]
pub(crate) struct ExtentCache {
    /// The window of the file that is known, and its extents.
    pub(crate) window: Mutex<Option<ExtentWindow>>,
}

/// The extents of a file that meet `start_bytes..end_bytes`.
#[derive(Clone, Debug)]
pub(crate) struct ExtentWindow {
    pub(crate) start_bytes: u64,
    pub(crate) end_bytes: u64,
    pub(crate) extents: Arc<[Extent]>,
}

/// How the kernel serves the open files of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// None is open.
    Idle,
    /// By itself from the backing file.
    Passthrough,
    /// Through its page cache and our reads and writes.
    Cached,
}

#[derive(Debug)]
pub(crate) struct NodeState {
    /// `None` until it is first needed.
    pub(crate) data: Option<Data>,
    pub(crate) service: Service,
    pub(crate) readers: u32,
    pub(crate) writers: u32,
    /// Files open for reading by others than the kernel.
    pub(crate) outside_readers: u32,
    /// Grows whenever the bytes may have changed: guards against publishing what was read before.
    pub(crate) generation: u64,
    /// The generation that the kernel's page cache of this inode was filled from.
    pub(crate) kernel_generation: Option<u64>,
    /// Its last name is gone.
    pub(crate) orphan: bool,
    /// The metadata could not take what the staging file says about itself, which counts on.
    pub(crate) unrecorded: bool,
    /// Its bytes count as unsealed in the sealer's books.
    pub(crate) queued_bytes: u64,
}

impl NodeState {
    /// By anybody.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open_by_kernel() || self.outside_readers > 0
    }

    pub(crate) fn is_open_by_kernel(&self) -> bool {
        self.readers + self.writers > 0
    }

    /// Notes a change that the kernel made to its own page cache too.
    pub(crate) fn changed_through_kernel(&mut self) {
        let coherent = self.kernel_generation == Some(self.generation);
        self.generation += 1;
        if coherent {
            self.kernel_generation = Some(self.generation);
        }
    }

    /// Notes a change that the kernel's page cache may not have seen.
    pub(crate) fn changed_elsewhere(&mut self) {
        self.generation += 1;
        self.kernel_generation = None;
    }
}

/// An inode in memory.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) ino: Ino,
    pub(crate) state: Mutex<NodeState>,
}

impl Node {
    pub(crate) fn new(ino: Ino) -> Self {
        Self {
            ino,
            state: Mutex::new(NodeState {
                data: None,
                service: Service::Idle,
                readers: 0,
                writers: 0,
                outside_readers: 0,
                generation: 0,
                kernel_generation: None,
                orphan: false,
                unrecorded: false,
                queued_bytes: 0,
            }),
        }
    }
}

/// The inodes that the kernel, an open file or the sealer knows.
///
/// An entry costs about 40 bytes while it only counts the kernel's references, about 250 once the
/// file has been opened; the kernel's own inode cache, which it drops under memory pressure, bounds
/// the first, [`Table::trim`] the second.
#[derive(Debug)]
pub(crate) struct Table {
    shards: Vec<Mutex<HashMap<Ino, Entry>>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// References that the kernel holds.
    lookups: u64,
    node: Option<Arc<Node>>,
}

const SHARD_COUNT: usize = 64;

impl Table {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARD_COUNT).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, ino: Ino) -> MutexGuard<'_, HashMap<Ino, Entry>> {
        let index = usize::try_from(ino.0 % SHARD_COUNT as u64).expect("below the shard count");
        lock(&self.shards[index])
    }

    /// The node of `ino`, made if there is none.
    pub(crate) fn node(&self, ino: Ino) -> Arc<Node> {
        let mut shard = self.shard(ino);
        let entry = shard.entry(ino).or_default();
        Arc::clone(entry.node.get_or_insert_with(|| Arc::new(Node::new(ino))))
    }

    /// The node of `ino`, if there is one.
    pub(crate) fn existing(&self, ino: Ino) -> Option<Arc<Node>> {
        self.shard(ino).get(&ino)?.node.clone()
    }

    /// The kernel takes a reference.
    pub(crate) fn look_up(&self, ino: Ino) {
        self.shard(ino).entry(ino).or_default().lookups += 1;
    }

    /// The kernel drops references; answers whether it has none left.
    pub(crate) fn forget(&self, ino: Ino, count: u64) -> bool {
        let mut shard = self.shard(ino);
        let Some(entry) = shard.get_mut(&ino) else { return true };
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups > 0 {
            return false;
        }
        if entry.node.is_none() {
            shard.remove(&ino);
        }
        true
    }

    /// Whether the kernel holds a reference.
    pub(crate) fn is_known(&self, ino: Ino) -> bool {
        self.shard(ino).get(&ino).is_some_and(|entry| entry.lookups > 0)
    }

    /// Drops the node of `ino` if `may_drop` agrees and nobody else holds it.
    pub(crate) fn drop_node(&self, ino: Ino, may_drop: impl FnOnce(&NodeState) -> bool) {
        let mut shard = self.shard(ino);
        let Some(entry) = shard.get_mut(&ino) else { return };
        if let Some(node) = &entry.node {
            // Two: this entry and nobody; whoever else holds it may be about to lock it.
            if Arc::strong_count(node) > 1 || !may_drop(&lock(&node.state)) {
                return;
            }
            entry.node = None;
        }
        if entry.lookups == 0 {
            shard.remove(&ino);
        }
    }

    /// Nodes in memory.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        self.shards
            .iter()
            .flat_map(|shard| {
                lock(shard).values().filter_map(|entry| entry.node.clone()).collect::<Vec<_>>()
            })
            .collect()
    }

    /// The kernel is gone: nothing is referenced any more.
    pub(crate) fn forget_all(&self) {
        for shard in &self.shards {
            for entry in lock(shard).values_mut() {
                entry.lookups = 0;
            }
        }
    }
}
