//! An open volume: what it consists of, how it starts, stops and recovers.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_format::{Extent, Ino, SegmentId};
use librorum_meta::{Content, Embedded, EmbeddedOptions, Inode, Meta, SetAttr};
use librorum_store::{DiskOrder, Store, StoreOptions, VerifyPolicy};
use librorum_sys::{Holder, LockError, VolumeLock};
use rustix::fs::SeekFrom;

use crate::error::{FsError, Result, disk};
use crate::lent::Lent;
use crate::node::{Backing, Node, Table, lock};
use crate::notify::{KernelNotifier, Notifications};
use crate::open::Handles;
use crate::outside::Uploads;
use crate::pool::Pool;
use crate::reclaim::Reclaim;
use crate::sealer::Sealer;
use crate::volume::Volume;

/// How a volume is used.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// Refuse every change, and leave the volume as it is.
    pub read_only: bool,
    /// Bytes of closed files that may wait for sealing before writers have to wait.
    pub unsealed_bytes_max: u64,
    /// How long a writer waits for the sealer to catch up. Longer means that sealing fails, on a
    /// full disk for example, and then the writer's own failure tells more than a program that
    /// hangs.
    pub sealing_patience_ms: u64,
    /// How long a file must have been closed before it is sealed.
    pub quiet_ms: u64,
    /// A sealed file that cannot be unsealed in place is copied up to this size when it is opened
    /// for writing; a larger one gets an overlay.
    pub copy_max_bytes: u64,
    /// Whether bytes are verified on every read, or when they enter the page cache.
    pub verify: VerifyPolicy,
    /// What is known of the disk.
    pub disk_order: DiskOrder,
    /// Open metadata that has lost operations which were durable, and go on from what is left.
    pub accept_lost_writes: bool,
    /// What others are told about the holder of the volume.
    pub holder: Holder,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            // A few seconds of a fast disk: enough to ride out a burst, small beside any volume.
            unsealed_bytes_max: 8 << 30,
            // A disk that is only slow has made room within seconds.
            sealing_patience_ms: 60_000,
            // Long enough for an editor's write-close-reopen, short enough to be done when a user
            // looks.
            quiet_ms: 2000,
            // A copy of this takes about as long as one fsync.
            copy_max_bytes: 4 << 20,
            verify: VerifyPolicy::PageCache,
            disk_order: DiskOrder::Ask,
            accept_lost_writes: false,
            holder: Holder {
                pid: std::process::id(),
                command: "librorum".to_owned(),
                mountpoint: None,
            },
        }
    }
}

/// What is known of a verbatim segment that only one inode names.
#[derive(Debug)]
pub(crate) struct WholeUse {
    /// Files that are open by passthrough on it: while there are any, nobody else may come to share
    /// its bytes, because a later writer will change them in place.
    pub(crate) open_count: u32,
}

/// An open volume.
#[derive(Debug)]
pub struct Fs {
    pub(crate) volume: Volume,
    pub(crate) options: FsOptions,
    pub(crate) meta: Arc<Embedded>,
    pub(crate) store: Arc<Store>,
    pub(crate) pool: Pool,
    pub(crate) table: Table,
    pub(crate) handles: Handles,
    pub(crate) whole: Mutex<HashMap<SegmentId, WholeUse>>,
    pub(crate) sealer: Sealer,
    pub(crate) reclaim: Reclaim,
    /// Whether opens may be served by passthrough.
    pub(crate) passthrough: AtomicBool,
    /// Ids below it were given out before this process opened the volume.
    pub(crate) first_own_segment: AtomicU64,
    pub(crate) notifications: Notifications,
    /// Descriptors that other processes read by themselves.
    pub(crate) lent: Lent,
    pub(crate) uploads: Uploads,
    threads: Mutex<Vec<JoinHandle<()>>>,
    shut_down: AtomicBool,
    /// Dropped last: the volume is ours until everything above is gone.
    _lock: VolumeLock,
}

/// Exists while the volume is open, and after a crash.
const OPEN_MARK: &str = "open";

/// Lists empty staging files that a closed volume keeps for the next mount.
const SPARES: &str = "spares";

/// So many of them; the rest is deleted.
const SPARE_MAX: usize = 1 << 16;

/// Inodes are walked in pages of this many.
pub(crate) const PAGE: usize = 1024;

impl Fs {
    /// Opens the volume in `dir`, recovers it if it was not closed, and starts its background work.
    ///
    /// The background threads hold the volume too: it is closed by [`Fs::shut_down`], not by
    /// dropping what this returns.
    ///
    /// # Errors
    ///
    /// `Locked` names the holder; `NotVolume`, `Config`; what opening metadata and store answers.
    pub fn open_volume(dir: &Path, options: FsOptions) -> Result<Arc<Self>> {
        let volume = Volume::open(dir)?;
        let volume_lock = acquire_lock(dir, &options.holder)?;
        let meta_options = EmbeddedOptions {
            accept_lost_writes: options.accept_lost_writes,
            ..EmbeddedOptions::default()
        };
        let meta = Embedded::open(&volume.meta_dir(), &meta_options)?;
        let store = Store::open(
            dir,
            &StoreOptions {
                chunking: volume.chunking,
                compression: volume.config.compression,
                verify: options.verify,
                disk_order: options.disk_order,
                ..StoreOptions::default()
            },
        )?;
        let store = Arc::new(store);
        let fs = Arc::new(Self {
            volume,
            meta: Arc::new(meta),
            pool: Pool::new(Arc::clone(&store)),
            table: Table::new(),
            handles: Handles::new(),
            whole: Mutex::default(),
            sealer: Sealer::new(),
            reclaim: Reclaim::new(),
            passthrough: AtomicBool::new(false),
            first_own_segment: AtomicU64::new(u64::MAX),
            notifications: Notifications::default(),
            lent: Lent::default(),
            uploads: Uploads::default(),
            threads: Mutex::default(),
            shut_down: AtomicBool::new(false),
            store,
            options,
            _lock: volume_lock,
        });
        if !fs.options.read_only {
            fs.mark_open()?;
            fs.recover()?;
            // After a crash the list may be an old one; the search for leftovers finds them all.
            if !fs.reclaim.is_scan_pending() {
                // Thousands of small checks, which the first files need not wait for.
                fs.start_thread("spares", |fs| fs.pool.adopt(fs.spares()));
            }
            fs.rebuild_lost_index();
            fs.start_thread("seal", Self::seal_loop);
            fs.start_thread("reclaim", Self::reclaim_loop);
            fs.start_thread("staging-pool", |fs| fs.pool.run());
        }
        Ok(fs)
    }

    fn start_thread(self: &Arc<Self>, name: &str, work: fn(&Self)) {
        let fs = Arc::clone(self);
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&fs));
        match started {
            Ok(thread) => lock(&self.threads).push(thread),
            // Everything still works, but for the background's share.
            Err(error) => tracing::error!(%error, name, "cannot start a background thread"),
        }
    }

    /// Fills the dedup index again if it was lost. On a thread of its own that nobody waits for: it
    /// reads every chunk table, and what it has not found yet costs duplicates only.
    fn rebuild_lost_index(&self) {
        if !self.store.index_was_lost() {
            return;
        }
        let store = Arc::clone(&self.store);
        let started =
            std::thread::Builder::new().name("index".to_owned()).spawn(move || {
                match store.rebuild_index(&mut |_| {}) {
                    Ok(count) => tracing::info!(count, "the dedup index was rebuilt"),
                    Err(error) => tracing::warn!(%error, "the dedup index was not rebuilt"),
                }
            });
        if let Err(error) = started {
            tracing::warn!(%error, "the dedup index was not rebuilt");
        }
    }

    /// The volume's folder and configuration.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// The volume's metadata.
    #[must_use]
    pub fn meta(&self) -> &dyn Meta {
        self.meta.as_ref()
    }

    /// The volume's store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Lets opens be served by passthrough, or not. Called once, before the first open.
    pub fn allow_passthrough(&self, allowed: bool) {
        self.passthrough.store(allowed, Ordering::Relaxed);
    }

    /// Whether opens may be served by passthrough.
    #[must_use]
    pub fn serves_by_passthrough(&self) -> bool {
        self.passthrough.load(Ordering::Relaxed)
    }

    /// Sets who tells the kernel of what changes behind its back, in the place of whoever did so
    /// before.
    pub fn notify_kernel(&self, notifier: Arc<dyn KernelNotifier>) {
        self.notifications.set(notifier);
    }

    /// Brings the volume from any state that a crash can leave to one that can be used: frees
    /// files that were unlinked while open, and believes the staging files about their lengths and
    /// times.
    fn recover(&self) -> Result<()> {
        self.reap_all()?;
        let mut after = Ino(0);
        loop {
            let staged = self.meta.staged(after, PAGE)?;
            let Some(&last) = staged.last() else { break };
            for ino in staged {
                self.recover_staged(ino)?;
            }
            after = last;
        }
        Ok(())
    }

    /// Marks the volume as open, and looks for what a crash left behind if it was already.
    fn mark_open(&self) -> Result<()> {
        let path = self.volume.dir.join(OPEN_MARK);
        let was_open = path.exists();
        if !was_open {
            let volume_error = |source| FsError::Volume { path: path.clone(), source };
            File::create(&path).map_err(volume_error)?;
            // Durable before anything can be left behind.
            let dir = File::open(&self.volume.dir).map_err(volume_error)?;
            rustix::fs::fsync(&dir).map_err(|error| volume_error(error.into()))?;
            return Ok(());
        }
        // An old list would hide from the search, and from fsck, what it names.
        match std::fs::remove_file(self.volume.dir.join(SPARES)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(FsError::Volume { path: self.volume.dir.join(SPARES), source: error });
            }
            _ => {}
        }
        // Every id from here on is this process's own; the leftovers' are older.
        for (segment, _) in self.store.create_staging(1)? {
            self.first_own_segment.store(segment.0, Ordering::Relaxed);
            self.store.remove(segment)?;
        }
        self.reclaim.scan_leftovers();
        Ok(())
    }

    /// Remembers empty staging files for the next mount: deleting thousands of them would slow down
    /// every create on the disk for the next half minute (design 0001).
    fn keep_spares(&self, unused: &[SegmentId]) -> Result<()> {
        let (kept, deleted) = unused.split_at(unused.len().min(SPARE_MAX));
        for &segment in deleted {
            self.store.remove(segment)?;
        }
        let mut list = String::new();
        for &segment in kept {
            // A file of the pool that was never used is empty; one that was is emptied already.
            if self.store.bytes_len(segment).is_ok_and(|len| len == 0) {
                list.push_str(&format!("{segment}\n"));
            } else {
                self.store.remove(segment)?;
            }
        }
        let path = self.volume.dir.join(SPARES);
        std::fs::write(&path, list).map_err(|source| FsError::Volume { path, source })
    }

    /// The spares that the last mount left, each checked: the list is advice.
    pub(crate) fn spares(&self) -> Vec<SegmentId> {
        let list = std::fs::read_to_string(self.volume.dir.join(SPARES)).unwrap_or_default();
        list.lines()
            .filter_map(|line| u64::from_str_radix(line, 16).ok().map(SegmentId))
            .filter(|&segment| {
                self.store.bytes_len(segment).is_ok_and(|len| len == 0)
                    && self.meta.segment_is_named(segment).is_ok_and(|named| !named)
            })
            .collect()
    }

    fn mark_closed(&self) -> Result<()> {
        let path = self.volume.dir.join(OPEN_MARK);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(FsError::Volume { path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// Frees every orphan: nobody has a file open.
    fn reap_all(&self) -> Result<()> {
        let mut after = Ino(0);
        loop {
            let orphans = self.meta.orphans(after, PAGE)?;
            let Some(&last) = orphans.last() else { return Ok(()) };
            for ino in orphans {
                self.meta.reap(ino)?;
            }
            after = last;
        }
    }

    fn recover_staged(&self, ino: Ino) -> Result<()> {
        let inode = self.meta.inode(ino)?;
        let Some(segment) = inode.content.staging() else { return Ok(()) };
        let file = match self.store.open_bytes(segment, true) {
            Ok(file) => file,
            Err(error) => {
                // Its name was durable before the inode's: the disk lost it. The inode stays, its
                // reads answer EIO, and fsck reports it.
                tracing::error!(%error, ?ino, "a staging file is lost");
                return Ok(());
            }
        };
        // A crash between a chunk table and the transaction that names it: the file is not sealed.
        self.store.unseal(segment)?;
        let stat = rustix::fs::fstat(&file).map_err(disk("cannot stat the staging file", ino))?;
        let found = crate::attr::StagingStat::new(&stat);
        let mut set = SetAttr {
            size_bytes: Some(found.size_bytes),
            allocated_bytes: Some(found.allocated_bytes),
            ..SetAttr::default()
        };
        if let Some(mtime) = found.mtime_if_written(&inode) {
            set.mtime = Some(mtime);
            set.ctime = Some(inode.ctime.max(mtime));
        }
        if inode.size_bytes != found.size_bytes
            || inode.allocated_bytes != found.allocated_bytes
            || set.mtime.is_some()
        {
            self.meta.set_attr(ino, &set)?;
        }
        lock(&self.table.node(ino).state).queued_bytes = found.size_bytes.max(1);
        self.enqueue_seal(ino, found.size_bytes);
        Ok(())
    }

    /// Whether changes are allowed.
    pub(crate) fn writable(&self) -> Result<()> {
        if self.options.read_only { Err(FsError::ReadOnly) } else { Ok(()) }
    }

    /// Makes everything durable: the bytes of every staging file and all metadata.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn sync(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        let dir = File::open(&self.volume.dir)
            .map_err(|source| FsError::Volume { path: self.volume.dir.clone(), source })?;
        rustix::fs::syncfs(&dir).map_err(|error| FsError::Volume {
            path: self.volume.dir.clone(),
            source: error.into(),
        })?;
        self.meta.sync()?;
        Ok(())
    }

    /// Makes the namespace durable; costs nothing if it is.
    pub(crate) fn sync_names(&self) -> Result<()> {
        if self.meta.durable_txn() < self.meta.newest_txn() {
            self.meta.sync()?;
        }
        Ok(())
    }

    /// Ends background work and makes everything durable. Idempotent. Files that wait for sealing
    /// are sealed by the next open of the volume.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn shut_down(&self) -> Result<()> {
        if self.shut_down.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.table.forget_all();
        self.sealer.close();
        self.reclaim.close();
        self.pool.close();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a background thread panicked");
            }
        }
        if self.options.read_only {
            return Ok(());
        }
        self.keep_spares(&self.pool.unused())?;
        // Files that the kernel had open when it went away are closed now.
        for node in self.table.nodes() {
            let recorded = self.record_staged(&node, &mut lock(&node.state));
            if let Err(error) = recorded {
                tracing::warn!(%error, ino = ?node.ino, "attributes of an open file");
            }
        }
        self.reap_all()?;
        self.sync()?;
        self.reclaim_now()?;
        self.sync()?;
        if self.reclaim.is_scan_pending() { Ok(()) } else { self.mark_closed() }
    }

    /// The node of `ino`, with its state's `data` loaded from the metadata.
    pub(crate) fn load(&self, node: &Node, state: &mut crate::node::NodeState) -> Result<()> {
        use crate::node::{Data, ExtentCache, Overlay, OverlayState};
        if state.data.is_some() {
            return Ok(());
        }
        let ino = node.ino;
        let inode = self.meta.inode(ino)?;
        if inode.kind != librorum_meta::FileKind::Regular {
            return Err(FsError::Invalid { what: "only a regular file has content" });
        }
        state.orphan |= inode.nlink == 0;
        state.data = Some(match inode.content {
            Content::Empty => Data::Empty,
            Content::Inline => Data::Inline(self.meta.inline_bytes(ino)?.into()),
            Content::Staged { segment } => Data::Staged(self.open_backing(ino, segment)?),
            Content::Overlay { segment, base_len_bytes } => {
                let backing = self.open_backing(ino, segment)?;
                let written = crate::overlay::written_ranges(&backing, ino)?;
                Data::Overlay(Arc::new(Overlay {
                    backing,
                    state: Mutex::new(OverlayState { written, base_len_bytes }),
                }))
            }
            Content::Sealed => match self.whole_segment(&inode)? {
                Some(backing) => {
                    // Under the map's lock nobody can come to share the segment between the check
                    // and the entry that excludes it.
                    let segment = backing.segment();
                    let mut whole = lock(&self.whole);
                    if self.meta.segment_is_owned_by(segment, ino)? {
                        whole.entry(segment).or_insert(WholeUse { open_count: 0 });
                        Data::Whole(backing)
                    } else {
                        Data::Sealed(Arc::new(ExtentCache::default()))
                    }
                }
                None => Data::Sealed(Arc::new(ExtentCache::default())),
            },
        });
        Ok(())
    }

    pub(crate) fn open_backing(
        &self,
        ino: Ino,
        segment: SegmentId,
    ) -> Result<Arc<crate::node::Backing>> {
        let writable = !self.options.read_only;
        let file = self.store.open_bytes(segment, writable).map_err(|error| {
            // "No such file" would be a lie about the file that the user sees.
            if matches!(error, librorum_store::StoreError::Missing { .. }) {
                let source = std::io::Error::other(error.to_string());
                FsError::Disk { what: "the bytes are lost", ino, source }
            } else {
                error.into()
            }
        })?;
        let backing = crate::node::Backing::new(segment, file);
        self.pool.watch(&backing);
        Ok(Arc::new(backing))
    }

    /// The file of the segment that holds all of a sealed inode at its own offsets, if one does.
    pub(crate) fn whole_segment(
        &self,
        inode: &librorum_meta::Inode,
    ) -> Result<Option<Arc<crate::node::Backing>>> {
        use librorum_format::Encoding;
        let extents = self.meta.extents(inode.ino, 0, inode.size_bytes)?;
        let Some(first) = extents.first() else { return Ok(None) };
        let segment = first.location.segment;
        let in_place = extents.iter().all(|extent| {
            extent.location.segment == segment
                && extent.location.encoding == Encoding::Raw
                && extent.location.offset_bytes + u64::from(extent.chunk_offset_bytes)
                    == extent.file_offset_bytes
        });
        if !in_place || self.store.bytes_len(segment)? != inode.size_bytes {
            return Ok(None);
        }
        let backing = self.open_backing(inode.ino, segment)?;
        Ok(are_gaps_holes(&backing, &extents, inode)?.then_some(backing))
    }
}

/// Whether a segment's file has a hole wherever the extents, all of them in place, leave a gap. One
/// that was cut and extended again has its old bytes there, and so has one whose duplicates are to be
/// punched out: neither is the file.
fn are_gaps_holes(backing: &Backing, extents: &[Extent], inode: &Inode) -> Result<bool> {
    let mut at = 0;
    let end = (inode.size_bytes, inode.size_bytes);
    let runs = extents.iter().map(|extent| (extent.file_offset_bytes, extent.file_end_bytes()));
    for (start, stop) in runs.chain([end]) {
        if start > at {
            match rustix::fs::seek(backing.file(), SeekFrom::Data(at)) {
                Ok(data) if data < start => return Ok(false),
                Ok(_) => {}
                // Nothing but a hole follows.
                Err(rustix::io::Errno::NXIO) => return Ok(true),
                Err(error) => return Err(disk("cannot seek in", inode.ino)(error)),
            }
        }
        at = stop;
    }
    Ok(true)
}

/// Who only asks who holds a volume has its lock for an instant ([`VolumeLock::holder`]), so one
/// that is held is tried again for a moment.
fn acquire_lock(dir: &Path, holder: &Holder) -> std::result::Result<VolumeLock, LockError> {
    const TRIES: usize = 10;
    for _ in 1..TRIES {
        match VolumeLock::acquire(dir, holder) {
            Err(LockError::Held { .. }) => librorum_sys::clock::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    VolumeLock::acquire(dir, holder)
}

impl Drop for Fs {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::error!(%error, "the volume was not closed cleanly; the next mount recovers it");
        }
    }
}
