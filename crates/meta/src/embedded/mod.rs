//! The embedded engine: one volume's metadata in a folder, for one process.
//!
//! What always holds is in `engine.rs` (order and durability), `edit.rs` (what every operation
//! keeps consistent) and `check.rs` (all of it again, as a list). The folder has `db/`, fjall's
//! files, and `mark`, the high-water mark. Every byte is in `docs/format.md`.
//!
//! Memory is bounded whatever the volume's size: fjall's block cache and memtables, the overlay of
//! uncommitted writes, the inode and dentry caches, each with a limit in [`EmbeddedOptions`].

mod cache;
mod check;
mod content;
mod dump;
mod edit;
mod engine;
mod journal;
mod mark;
mod names;
mod overlay;
mod publish;
mod scan;
mod space;
mod stripes;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_format::{Extent, Ino, SegmentId, Timestamp, TxnId};
use librorum_sys::{clock, entropy};

use crate::record::{Header, Record, SCHEMA, State, Table, Target, key};
use crate::{
    Condemned, Content, Dentry, FileKind, Inode, Meta, MetaError, MetaStats, NewInode, Publish,
    Published, RenameMode, Renamed, Result, SetAttr, SetContent, XattrMode,
};
use cache::Cache;
use engine::{Engine, Limits};
use mark::Mark;
use space::Gate;
use stripes::Stripes;

/// How much the engine may use. The default suits a daemon on a small machine.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// fjall's cache of blocks.
    pub cache_bytes: u64,
    /// All of fjall's memtables that take writes, together. While they are written out, up to
    /// four times as much again waits.
    pub memtable_bytes: u64,
    /// fjall's journals; at least 64 MiB.
    pub journal_bytes: u64,
    /// Open files of fjall.
    pub open_files: usize,
    /// Writes that are not in the database yet. More, and operations wait.
    pub pending_bytes: usize,
    /// Inodes in memory, at about 250 bytes each.
    pub cached_inodes: usize,
    /// Dentries in memory, at about 120 bytes each.
    pub cached_dentries: usize,
    /// Operations that grow the database are refused when the disk has less room than this. Zero
    /// switches the check off.
    pub reserve_bytes: u64,
    /// Owner of the root directory of a new volume.
    pub root_uid: u32,
    /// Group of the root directory of a new volume.
    pub root_gid: u32,
    /// Opens a database that is behind its high-water mark, and forgets what was lost. For
    /// `fsck --repair` only.
    pub accept_lost_writes: bool,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 32 << 20,
            memtable_bytes: 16 << 20,
            journal_bytes: 128 << 20,
            open_files: 256,
            pending_bytes: 32 << 20,
            cached_inodes: 64 << 10,
            cached_dentries: 64 << 10,
            reserve_bytes: 64 << 20,
            root_uid: 0,
            root_gid: 0,
            accept_lost_writes: false,
        }
    }
}

impl EmbeddedOptions {
    fn limits(&self) -> Limits {
        Limits {
            cache_bytes: self.cache_bytes,
            journal_bytes: self.journal_bytes,
            open_files: self.open_files,
        }
    }
}

/// The embedded implementation of [`Meta`]. Dropping it makes everything durable first.
#[derive(Debug)]
pub struct Embedded {
    core: Arc<Core>,
    thread: Option<JoinHandle<()>>,
}

/// A dentry in the cache.
#[derive(Clone, Debug)]
struct NamedTarget {
    name: Arc<[u8]>,
    target: Target,
}

/// What the operations work on.
#[derive(Debug)]
struct Core {
    engine: Engine,
    stripes: Stripes,
    /// Held by a rename that moves a directory to another parent: the tree above it holds still.
    rename: Mutex<()>,
    /// Held while references to segments and pages change.
    content: Mutex<()>,
    records: Cache<Ino, Record>,
    /// By directory and cookie, with the name, because cookies may collide.
    targets: Cache<(Ino, u64), NamedTarget>,
    cookie_key: [u8; 32],
}

/// How long closing waits for a commit thread that may be stuck inside a dead engine.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

impl Core {
    /// Keeps everybody from changing anything.
    fn freeze(&self) -> (MutexGuard<'_, ()>, stripes::Frozen<'_>, MutexGuard<'_, ()>) {
        (lock(&self.rename), self.stripes.freeze(), lock(&self.content))
    }
}

impl Embedded {
    /// Opens the metadata in `dir`, creating it with a root directory if there is none.
    ///
    /// Costs a replay of the journals, at most `journal_bytes` of them.
    ///
    /// # Errors
    ///
    /// [`MetaError::LostWrites`] if the database has lost operations that were durable,
    /// [`MetaError::Schema`] if another version wrote it, [`MetaError::Corrupt`], and the disk's.
    pub fn open(dir: &Path, options: &EmbeddedOptions) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|source| io_error("create", dir, source))?;
        let db_path = dir.join("db");
        if !db_path.try_exists().map_err(|source| io_error("find", &db_path, source))? {
            create(dir, &db_path, options)?;
        }
        journal::settle(&db_path)?;
        let db = engine::open_database(&db_path, options.limits())?;
        let tables = engine::open_tables(&db)?;
        let small = |key: [u8; 1], name: &str| {
            tables[Table::Small.index()]
                .get(key)
                .map_err(engine::engine_error)?
                .ok_or_else(|| MetaError::Missing { key: name.into() })
        };
        let header = Header::decode(&small(key::HEADER, "small/header")?)?;
        let state = State::decode(&small(key::STATE, "small/state")?)
            .map_err(|source| MetaError::Corrupt { key: "small/state".into(), source })?;

        // What the journal still holds may be in the page cache only: a killed process leaves it
        // there. From here on it counts as durable, so it has to be.
        db.persist(fjall::PersistMode::SyncData).map_err(engine::engine_error)?;
        let (mark, marked) = open_mark(dir, state.txn, options.accept_lost_writes)?;

        let mut cookie_key = [0; 32];
        cookie_key[..16].copy_from_slice(&header.cookie_key);
        let gate = Gate::new(dir, options.reserve_bytes);
        let core = Arc::new(Core {
            engine: Engine::new(
                db,
                tables,
                state,
                gate,
                (options.pending_bytes, options.memtable_bytes),
            ),
            stripes: Stripes::new(),
            rename: Mutex::new(()),
            content: Mutex::new(()),
            records: Cache::new(options.cached_inodes),
            targets: Cache::new(options.cached_dentries),
            cookie_key,
        });
        let thread = std::thread::Builder::new()
            .name("meta-commit".into())
            .spawn({
                let core = Arc::clone(&core);
                move || core.engine.run(mark, marked)
            })
            .map_err(|source| MetaError::Io { what: "start the commit thread".into(), source })?;
        let this = Self { core, thread: Some(thread) };
        dump::wipe(&this.core)?;
        Ok(this)
    }
}

impl Embedded {
    /// Bytes free on the disk, as of a tenth of a second ago at most. Costs nothing.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.core.engine.free_bytes()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.core.engine.stop();
        let Some(thread) = self.thread.take() else { return };
        let mut waited = Duration::ZERO;
        while !thread.is_finished() {
            clock::sleep(Duration::from_millis(1));
            waited += Duration::from_millis(1);
            if waited >= CLOSE_WAIT {
                waited = Duration::ZERO;
                if self.core.engine.probe().is_err() {
                    tracing::error!("the metadata engine is stuck; leaving it behind");
                    return;
                }
            }
        }
        drop(thread.join());
    }
}

/// Makes a database in a folder of another name and moves it into place: a crash in between
/// leaves nothing that opens as a volume.
fn create(dir: &Path, db_path: &Path, options: &EmbeddedOptions) -> Result<()> {
    let new_path = dir.join("db.new");
    match std::fs::remove_dir_all(&new_path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(io_error("remove", &new_path, source)),
    }
    let db = engine::open_database(&new_path, options.limits())?;
    let tables = engine::open_tables(&db)?;
    let now = clock::now();
    let root = Record {
        inode: Inode {
            ino: Ino::ROOT,
            kind: FileKind::Directory,
            mode: 0o755,
            uid: options.root_uid,
            gid: options.root_gid,
            nlink: 2,
            rdev: 0,
            size_bytes: 0,
            allocated_bytes: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            content: Content::Empty,
            content_version: 0,
            has_xattrs: false,
            parent: Ino::ROOT,
        },
        entry_count: 0,
    };
    let header = Header { schema: SCHEMA, cookie_key: entropy::random() };
    let state = State {
        txn: TxnId(1),
        ino_bound: Ino::ROOT.0 + 1,
        stats: MetaStats { inode_count: 1, directory_count: 1, ..MetaStats::default() },
    };
    let mut batch = db.batch();
    batch.insert(&tables[Table::Inodes.index()], key::inode(Ino::ROOT), root.encode());
    batch.insert(&tables[Table::Small.index()], key::HEADER, header.encode());
    batch.insert(&tables[Table::Small.index()], key::STATE, state.encode());
    batch.commit().map_err(engine::engine_error)?;
    db.persist(fjall::PersistMode::SyncAll).map_err(engine::engine_error)?;
    drop(tables);
    drop(db);
    // A mark that a removed database left behind says nothing about this one.
    match std::fs::remove_file(dir.join("mark")) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(io_error("remove the mark in", dir, source)),
    }
    std::fs::rename(&new_path, db_path).map_err(|source| io_error("create", db_path, source))?;
    sync_dir(dir)
}

fn open_mark(dir: &Path, found: TxnId, accept_lost_writes: bool) -> Result<(Mark, TxnId)> {
    let path = dir.join("mark");
    let is_new = !path.try_exists().map_err(|source| io_error("find", &path, source))?;
    let (mut mark, marked) = Mark::open(&path)?;
    if is_new {
        sync_dir(dir)?;
    }
    let marked = match marked {
        Ok(marked) => marked,
        Err(_) if accept_lost_writes => TxnId(u64::MAX),
        Err(source) => return Err(MetaError::Corrupt { key: "mark".into(), source }),
    };
    if marked <= found {
        return Ok((mark, marked));
    }
    if !accept_lost_writes {
        return Err(MetaError::LostWrites { found, acknowledged: marked });
    }
    // Both slots, or the other one would still say what is gone.
    for _ in 0..2 {
        mark.write(found).map_err(|source| io_error("write", &path, source))?;
    }
    Ok((mark, found))
}

fn sync_dir(dir: &Path) -> Result<()> {
    std::fs::File::open(dir)
        .and_then(|file| rustix::fs::fsync(&file).map_err(std::io::Error::from))
        .map_err(|source| io_error("sync", dir, source))
}

fn io_error(verb: &str, path: &Path, source: std::io::Error) -> MetaError {
    MetaError::Io { what: format!("{verb} {}", PathBuf::from(path).display()), source }
}

// Nothing that these locks protect is left half-changed by a panic: operations prepare their
// changes outside and apply them in one step.

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_lock<T>(rwlock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    rwlock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_lock<T>(rwlock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    rwlock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Meta for Embedded {
    fn inode(&self, ino: Ino) -> Result<Inode> {
        self.core.inode(ino)
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode> {
        self.core.lookup(parent, name)
    }

    fn create(&self, parent: Ino, name: &[u8], new: &NewInode<'_>) -> Result<(Inode, TxnId)> {
        self.core.create(parent, name, new)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Timestamp) -> Result<(Inode, TxnId)> {
        self.core.link(ino, parent, name, now)
    }

    fn unlink(&self, parent: Ino, name: &[u8], now: Timestamp) -> Result<(Inode, TxnId)> {
        self.core.unlink(parent, name, now)
    }

    fn rmdir(&self, parent: Ino, name: &[u8], now: Timestamp) -> Result<(Inode, TxnId)> {
        self.core.rmdir(parent, name, now)
    }

    fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<Renamed> {
        self.core.rename(from, to, mode, now)
    }

    fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<(Inode, TxnId)> {
        self.core.set_attr(ino, set)
    }

    fn set_content(&self, change: &SetContent<'_>) -> Result<(Inode, TxnId)> {
        self.core.set_content(change)
    }

    fn publish(&self, file: &Publish<'_>) -> Result<Published> {
        self.core.publish(file)
    }

    fn extents(&self, ino: Ino, start_bytes: u64, end_bytes: u64) -> Result<Vec<Extent>> {
        self.core.extents(ino, start_bytes, end_bytes)
    }

    fn inline_bytes(&self, ino: Ino) -> Result<Vec<u8>> {
        self.core.inline_bytes(ino)
    }

    fn symlink_target(&self, ino: Ino) -> Result<Vec<u8>> {
        self.core.symlink_target(ino)
    }

    fn readdir(&self, dir: Ino, after: u64, limit: usize) -> Result<Vec<Dentry>> {
        self.core.readdir(dir, after, limit)
    }

    fn readdir_plus(&self, dir: Ino, after: u64, limit: usize) -> Result<Vec<(Dentry, Inode)>> {
        self.core.readdir_plus(dir, after, limit)
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.core.xattr(ino, name)
    }

    fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.core.xattr_names(ino)
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        now: Timestamp,
    ) -> Result<TxnId> {
        self.core.set_xattr(ino, name, value, mode, now)
    }

    fn remove_xattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Result<TxnId> {
        self.core.remove_xattr(ino, name, now)
    }

    fn reap(&self, ino: Ino) -> Result<TxnId> {
        self.core.reap(ino)
    }

    fn orphans(&self, after: Ino, limit: usize) -> Result<Vec<Ino>> {
        self.core.orphans(after, limit)
    }

    fn staged(&self, after: Ino, limit: usize) -> Result<Vec<Ino>> {
        self.core.staged(after, limit)
    }

    fn inodes(&self, after: Ino, limit: usize) -> Result<Vec<Inode>> {
        self.core.inodes(after, limit)
    }

    fn segment_is_named(&self, segment: SegmentId) -> Result<bool> {
        self.core.segment_is_named(segment)
    }

    fn segment_is_sealed(&self, segment: SegmentId) -> Result<bool> {
        self.core.segment_is_sealed(segment)
    }

    fn segment_is_owned_by(&self, segment: SegmentId, ino: Ino) -> Result<bool> {
        self.core.segment_is_owned_by(segment, ino)
    }

    fn condemned(&self, after: SegmentId, limit: usize) -> Result<Vec<Condemned>> {
        self.core.condemned(after, limit)
    }

    fn claim_condemned(&self, segment: SegmentId) -> Result<bool> {
        self.core.claim_condemned(segment)
    }

    fn forget_segments(&self, segments: &[SegmentId]) -> Result<TxnId> {
        self.core.forget_segments(segments)
    }

    fn condemn(&self, segments: &[SegmentId]) -> Result<TxnId> {
        self.core.condemn(segments)
    }

    fn sync(&self) -> Result<TxnId> {
        self.core.engine.sync()
    }

    fn newest_txn(&self) -> TxnId {
        self.core.engine.newest_txn()
    }

    fn durable_txn(&self) -> TxnId {
        self.core.engine.durable_txn()
    }

    fn stats(&self) -> MetaStats {
        self.core.engine.stats()
    }

    fn check(&self, repair: bool, report: &mut dyn FnMut(String)) -> Result<()> {
        check::check(&self.core, repair, report)
    }

    fn dump(&self, sink: &mut dyn std::io::Write) -> Result<TxnId> {
        dump::dump(&self.core, sink)
    }

    fn load(&self, source: &mut dyn std::io::Read) -> Result<()> {
        dump::load(&self.core, source)
    }
}
