//! Opening and closing: which bytes a file is served from, and who serves them.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use librorum_format::{Ino, SegmentId};
use librorum_meta::{Content, FileKind, Meta, NewContent, NewInode, SetContent};

use crate::attr::Attributes;
use crate::error::{FsError, Result, disk};
use crate::fs::Fs;
use crate::node::{
    Backing, Data, ExtentCache, Node, NodeState, Overlay, OverlayState, Service, lock,
};
use crate::ranges::RangeSet;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenFlags {
    /// It may be written.
    pub write: bool,
    /// It is cut to nothing first.
    pub truncate: bool,
}

/// Who serves the reads and writes of an open file.
#[derive(Clone, Debug)]
pub enum ServedBy {
    /// The kernel, from this file.
    Passthrough(Arc<Backing>),
    /// We, behind the kernel's page cache, which may keep what it has of the file or not.
    Cache {
        /// Whether the page cache holds this content.
        keep: bool,
    },
}

/// An open file.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// Who serves it.
    pub served_by: ServedBy,
}

/// What a handle leads to.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) node: Arc<Node>,
    pub(crate) write: bool,
    /// A write or sync through it failed.
    pub(crate) failed: AtomicBool,
}

/// The open files.
#[derive(Debug)]
pub(crate) struct Handles {
    next: AtomicU64,
    shards: Vec<Mutex<HashMap<u64, Arc<Handle>>>>,
}

const HANDLE_SHARD_COUNT: u64 = 32;

impl Handles {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            shards: (0..HANDLE_SHARD_COUNT).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, handle: u64) -> &Mutex<HashMap<u64, Arc<Handle>>> {
        let index = usize::try_from(handle % HANDLE_SHARD_COUNT).expect("below the shard count");
        &self.shards[index]
    }

    fn insert(&self, handle: Handle) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(self.shard(id)).insert(id, Arc::new(handle));
        id
    }

    fn remove(&self, handle: u64) -> Option<Arc<Handle>> {
        lock(self.shard(handle)).remove(&handle)
    }

    pub(crate) fn get(&self, handle: u64) -> Result<Arc<Handle>> {
        lock(self.shard(handle)).get(&handle).cloned().ok_or(FsError::BadHandle { handle })
    }
}

impl Fs {
    /// Whether opening may wait: for a disk where bytes are copied or a sealed file is unsealed, or
    /// because too much waits for sealing ([`Fs::wait_for_room`]).
    #[must_use]
    pub fn open_may_wait(&self, ino: Ino, flags: OpenFlags) -> bool {
        if !flags.write && !flags.truncate {
            return false;
        }
        if self.sealer.is_over_limit(self.options.unsealed_bytes_max) {
            return true;
        }
        match self.meta.inode(ino) {
            Ok(inode) => match inode.content {
                Content::Staged { .. } => false,
                Content::Empty => inode.size_bytes > 0,
                // Copied and synced, unless all of it is dropped.
                Content::Inline => !flags.truncate,
                Content::Sealed | Content::Overlay { .. } => true,
            },
            Err(_) => false,
        }
    }

    /// Whether creating may wait: for staging files, or because too much waits for sealing
    /// ([`Fs::wait_for_room`]).
    #[must_use]
    pub fn create_may_wait(&self) -> bool {
        self.pool.ready_count() == 0 || self.sealer.is_over_limit(self.options.unsealed_bytes_max)
    }

    /// Opens a regular file.
    ///
    /// # Errors
    ///
    /// `NoInode`, `ReadOnly`, `Invalid` for anything but a regular file, `NoSpace`, the disk's.
    pub fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        if flags.write || flags.truncate {
            self.writable()?;
        }
        let node = self.table.node(ino);
        let mut state = lock(&node.state);
        self.load(&node, &mut state)?;
        if flags.truncate {
            self.cut_to_nothing(&node, &mut state, flags.write)?;
            if state.writers == 0 && !flags.write {
                // No writer will close and record it.
                self.record_staged(&node, &mut state)?;
            }
        } else if flags.write {
            self.make_writable(&node, &mut state)?;
        }
        let served_by = self.choose_service(&node, &mut state, flags.write)?;
        Ok(self.register(&node, &mut state, flags.write, served_by))
    }

    fn register(
        &self,
        node: &Arc<Node>,
        state: &mut NodeState,
        write: bool,
        served_by: ServedBy,
    ) -> Opened {
        if write {
            state.writers += 1;
            self.sealer.dequeue(std::mem::take(&mut state.queued_bytes));
        } else {
            state.readers += 1;
        }
        match &served_by {
            ServedBy::Passthrough(_) => {
                state.service = Service::Passthrough;
                // Written behind our back from here on.
                if write {
                    state.changed_elsewhere();
                }
            }
            ServedBy::Cache { .. } => {
                state.service = Service::Cached;
                if write {
                    state.changed_through_kernel();
                }
                state.kernel_generation = Some(state.generation);
            }
        }
        let handle = Handle { node: Arc::clone(node), write, failed: AtomicBool::new(false) };
        Opened { handle: self.handles.insert(handle), served_by }
    }

    /// Decides who serves an open; see the rules on top of `node.rs`.
    fn choose_service(&self, node: &Node, state: &mut NodeState, write: bool) -> Result<ServedBy> {
        match state.service {
            Service::Passthrough => match &state.data {
                Some(Data::Staged(backing) | Data::Whole(backing)) => {
                    if let Some(Data::Whole(backing)) = &state.data {
                        self.pin(backing.segment());
                    }
                    Ok(ServedBy::Passthrough(Arc::clone(backing)))
                }
                other => unreachable!("{:?} is open by passthrough with {other:?}", node.ino),
            },
            Service::Cached => Ok(self.cached(state)),
            Service::Idle => {
                if !self.passthrough.load(Ordering::Relaxed) {
                    return Ok(self.cached(state));
                }
                // A write must clear set-id bits, and only a write that reaches us can.
                if write && self.meta.inode(node.ino)?.mode & 0o6000 != 0 {
                    return Ok(self.cached(state));
                }
                match &state.data {
                    Some(Data::Staged(backing)) => Ok(ServedBy::Passthrough(Arc::clone(backing))),
                    Some(Data::Whole(backing)) => {
                        let backing = Arc::clone(backing);
                        if self.pin(backing.segment()) {
                            return Ok(ServedBy::Passthrough(backing));
                        }
                        // Somebody came to share its chunks since it was loaded.
                        state.data = Some(Data::Sealed(Arc::new(ExtentCache::default())));
                        Ok(self.cached(state))
                    }
                    _ => Ok(self.cached(state)),
                }
            }
        }
    }

    fn cached(&self, state: &NodeState) -> ServedBy {
        ServedBy::Cache { keep: state.kernel_generation == Some(state.generation) }
    }

    /// Keeps others from sharing a whole segment while it is open by passthrough. False if it is
    /// shared already.
    fn pin(&self, segment: SegmentId) -> bool {
        match lock(&self.whole).get_mut(&segment) {
            Some(whole) => {
                whole.open_count += 1;
                true
            }
            None => false,
        }
    }

    /// Creates a regular file and opens it.
    ///
    /// # Errors
    ///
    /// As [`Meta::create`], and the store's.
    pub fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: &NewInode<'_>,
        write: bool,
    ) -> Result<(Attributes, Opened)> {
        self.writable()?;
        // A reader needs no staging file; the first writer brings one.
        let backing = if write { Some(self.pool.take()?) } else { None };
        let new = NewInode {
            kind: FileKind::Regular,
            staging: backing.as_ref().map(Backing::segment),
            // The file from the pool may be younger than the request, and a time of it that is not
            // before the inode's birth would count as that of a write (`attr.rs`).
            now: librorum_sys::clock::now(),
            ..new.clone()
        };
        let created = self.meta.create(parent, name, &new);
        let inode = match created {
            Ok((inode, _)) => inode,
            Err(error) => {
                if let Some(backing) = backing {
                    self.pool.give_back(backing);
                }
                return Err(error.into());
            }
        };
        self.table.look_up(inode.ino);
        let node = self.table.node(inode.ino);
        let mut state = lock(&node.state);
        if state.data.is_none() {
            state.data = Some(match backing {
                Some(backing) => Data::Staged(Arc::new(backing)),
                None => Data::Empty,
            });
        }
        let served_by = self.choose_service(&node, &mut state, write)?;
        let opened = self.register(&node, &mut state, write, served_by);
        drop(state);
        Ok((Attributes { inode, being_written: write }, opened))
    }

    /// Closes a handle. With the last writer the staging file's attributes are recorded and the
    /// file is queued for sealing.
    pub fn release(&self, handle: u64) {
        let Some(handle) = self.handles.remove(handle) else { return };
        let node = &handle.node;
        let mut state = lock(&node.state);
        if let (Service::Passthrough, Some(Data::Whole(backing))) = (state.service, &state.data)
            && let Some(whole) = lock(&self.whole).get_mut(&backing.segment())
        {
            whole.open_count = whole.open_count.saturating_sub(1);
        }
        if handle.write {
            state.writers = state.writers.saturating_sub(1);
        } else {
            state.readers = state.readers.saturating_sub(1);
        }
        let mut recorded = false;
        if handle.write && state.writers == 0 && !state.orphan {
            match self.record_staged(node, &mut state) {
                Ok(Some(size_bytes)) => {
                    recorded = true;
                    state.queued_bytes = size_bytes.max(1);
                    self.enqueue_seal(node.ino, size_bytes);
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%error, ino = ?node.ino, "closing a file"),
            }
        }
        if !state.is_open_by_kernel() {
            state.service = Service::Idle;
        }
        let is_idle = !state.is_open();
        let orphan = state.orphan;
        drop(state);
        if recorded {
            // A write through mmap moved times that the kernel does not know of.
            self.notifications.attributes_changed(node.ino);
        }
        if is_idle {
            let ino = node.ino;
            drop(handle);
            self.after_last_close(ino, orphan);
        }
    }

    /// Nobody has the file open any more. The caller holds its node no longer.
    pub(crate) fn after_last_close(&self, ino: Ino, orphan: bool) {
        if orphan {
            self.reap_if_unused(ino);
        } else {
            self.reclaim.note_idle(ino);
        }
    }

    /// Gives a file a state in which it can be written: `Staged` or `Overlay`.
    pub(crate) fn make_writable(&self, node: &Node, state: &mut NodeState) -> Result<()> {
        let ino = node.ino;
        let data = state.data.clone().expect("loaded by every caller");
        match data {
            Data::Staged(_) | Data::Overlay(_) => Ok(()),
            Data::Empty => {
                let size_bytes = self.meta.inode(ino)?.size_bytes;
                let backing = self.pool.take()?;
                if size_bytes > 0 {
                    backing.file().set_len(size_bytes).map_err(disk("cannot extend", ino))?;
                }
                self.move_to_staging(node, state, backing, size_bytes)
            }
            Data::Inline(bytes) => {
                let backing = self.pool.take()?;
                backing.file().write_all_at(&bytes, 0).map_err(disk("cannot copy", ino))?;
                self.move_to_staging(node, state, backing, bytes.len() as u64)
            }
            Data::Whole(backing) => {
                // Pinned while the bytes change their name: nobody may come to share them now.
                let sealed = backing.segment();
                if !self.pin(sealed) {
                    state.data = Some(Data::Sealed(Arc::new(ExtentCache::default())));
                    return self.copy_or_overlay(node, state);
                }
                let is_bound = state.service == Service::Passthrough;
                if !is_bound && self.is_lent(&backing) {
                    // Whoever reads it by a descriptor of ours goes on reading these bytes.
                    self.forget_whole(sealed);
                    state.data = Some(Data::Sealed(Arc::new(ExtentCache::default())));
                    return self.copy_or_overlay(node, state);
                }
                let unsealed = self.unseal(node, state, &backing);
                let mut whole = lock(&self.whole);
                if unsealed.is_ok() {
                    whole.remove(&sealed);
                } else if let Some(uses) = whole.get_mut(&sealed) {
                    uses.open_count -= 1;
                }
                unsealed
            }
            Data::Sealed(_) => self.copy_or_overlay(node, state),
        }
    }

    /// Names a staging file, whose bytes are the file's, as its content. The copy is durable first:
    /// the old bytes may be, and any sync of the metadata may now put the copy in their place.
    fn move_to_staging(
        &self,
        node: &Node,
        state: &mut NodeState,
        backing: Backing,
        size_bytes: u64,
    ) -> Result<()> {
        let inode = self.meta.inode(node.ino)?;
        // The copy is not a modification: its time is the old one.
        self.stamp(&backing, &inode)?;
        if size_bytes > 0 {
            rustix::fs::fdatasync(backing.file())
                .map_err(disk("cannot sync the copy of", node.ino))?;
        }
        self.meta.set_content(&SetContent {
            ino: node.ino,
            expected_version: inode.content_version,
            content: NewContent::Staged { segment: backing.segment() },
            size_bytes,
            allocated_bytes: inode.allocated_bytes,
            mtime: None,
            ctime: None,
        })?;
        state.generation += 1;
        if state.kernel_generation.is_some() {
            // The bytes are the same, so what the kernel has of them stays true.
            state.kernel_generation = Some(state.generation);
        }
        state.data = Some(Data::Staged(Arc::new(backing)));
        Ok(())
    }

    pub(crate) fn stamp(&self, backing: &Backing, inode: &librorum_meta::Inode) -> Result<()> {
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            last_modification: rustix::fs::Timespec {
                tv_sec: inode.mtime.secs,
                tv_nsec: i64::from(inode.mtime.nanos),
            },
        };
        rustix::fs::futimens(backing.file(), &times)
            .map_err(disk("cannot set the times", inode.ino))
    }

    /// Unseals in place. The bytes get a new id first, and the metadata that says so is durable
    /// before anybody can change a byte: a crash must never find changed bytes under the old
    /// hashes, nor an index entry that leads to them.
    fn unseal(&self, node: &Node, state: &mut NodeState, backing: &Arc<Backing>) -> Result<()> {
        let inode = self.meta.inode(node.ino)?;
        let new_segment = self.store.relink(backing.segment())?;
        self.stamp(backing, &inode)?;
        let changed = self.meta.set_content(&SetContent {
            ino: node.ino,
            expected_version: inode.content_version,
            content: NewContent::Staged { segment: new_segment },
            size_bytes: inode.size_bytes,
            allocated_bytes: inode.allocated_bytes,
            mtime: None,
            ctime: None,
        });
        if let Err(error) = changed {
            self.meta.condemn(&[new_segment])?;
            return Err(error.into());
        }
        let sealed = backing.segment();
        backing.rename(new_segment);
        self.lent.rename(sealed, new_segment);
        self.pool.watch(backing);
        state.data = Some(Data::Staged(Arc::clone(backing)));
        state.generation += 1;
        if state.kernel_generation.is_some() {
            state.kernel_generation = Some(state.generation);
        }
        // The old name leads to bytes that will change: no index entry may bring it back. Durable
        // with the change of name, before the first byte can be written.
        if !self.meta.claim_condemned(sealed)? {
            return Err(FsError::Invalid { what: "a segment was shared while it was unsealed" });
        }
        self.meta.sync()?;
        Ok(())
    }

    fn copy_or_overlay(&self, node: &Node, state: &mut NodeState) -> Result<()> {
        let ino = node.ino;
        let inode = self.meta.inode(ino)?;
        let size_bytes = inode.size_bytes;
        let backing = self.pool.take()?;
        backing.file().set_len(size_bytes).map_err(disk("cannot extend", ino))?;
        if size_bytes <= self.options.copy_max_bytes {
            for extent in self.meta.extents(ino, 0, size_bytes)? {
                let Some(extent) = extent.clip(0, size_bytes) else { continue };
                let mut bytes = vec![0; extent.len_bytes as usize];
                self.store.read_extent(&extent, extent.file_offset_bytes, &mut bytes)?;
                backing
                    .file()
                    .write_all_at(&bytes, extent.file_offset_bytes)
                    .map_err(disk("cannot copy", ino))?;
            }
            return self.move_to_staging(node, state, backing, size_bytes);
        }
        if self.reflink(&inode, &backing)? {
            return self.move_to_staging(node, state, backing, size_bytes);
        }
        self.stamp(&backing, &inode)?;
        // Its length is the file's from here on, so it has to last.
        rustix::fs::fdatasync(backing.file()).map_err(disk("cannot sync the overlay of", ino))?;
        self.meta.set_content(&SetContent {
            ino,
            expected_version: inode.content_version,
            content: NewContent::Overlay { segment: backing.segment(), base_len_bytes: size_bytes },
            size_bytes,
            allocated_bytes: inode.allocated_bytes,
            mtime: None,
            ctime: None,
        })?;
        state.generation += 1;
        if state.kernel_generation.is_some() {
            state.kernel_generation = Some(state.generation);
        }
        state.data = Some(Data::Overlay(Arc::new(Overlay {
            backing: Arc::new(backing),
            state: Mutex::new(OverlayState {
                written: RangeSet::default(),
                base_len_bytes: size_bytes,
            }),
        })));
        Ok(())
    }

    /// Shares the blocks of a file that lies in one shared verbatim segment, on disks that can.
    fn reflink(&self, inode: &librorum_meta::Inode, staging: &Backing) -> Result<bool> {
        let Some(source) = self.whole_segment(inode)? else { return Ok(false) };
        match rustix::fs::ioctl_ficlone(staging.file(), source.file()) {
            Ok(()) => Ok(true),
            Err(_) => Ok(false),
        }
    }

    /// `O_TRUNC`: the file has no bytes from here on.
    fn cut_to_nothing(&self, node: &Node, state: &mut NodeState, write: bool) -> Result<()> {
        let is_fixed = state.service == Service::Passthrough;
        match state.data.clone().expect("loaded by every caller") {
            Data::Staged(_) => self.truncate_locked(node, state, 0),
            Data::Whole(_) if is_fixed => {
                self.make_writable(node, state)?;
                self.truncate_locked(node, state, 0)
            }
            // The old bytes are dropped, not copied; a new staging file takes what comes.
            Data::Empty | Data::Inline(_) | Data::Overlay(_) | Data::Whole(_) | Data::Sealed(_) => {
                self.truncate_locked(node, state, 0)?;
                if write {
                    self.make_writable(node, state)?;
                }
                Ok(())
            }
        }
    }

    /// Forgets that `segment` is whole, because the file that it was is no more.
    pub(crate) fn forget_whole(&self, segment: SegmentId) {
        lock(&self.whole).remove(&segment);
    }
}
