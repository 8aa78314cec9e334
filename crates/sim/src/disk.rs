//! The mount: the tree behind the kernel, with failures to order and counters to assert on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_fuse::transport::{
    Attr, AttrChange, Caller, DirEntry, Errno, FsUsage, Handler, Interrupt, MountOptions,
    Negotiated, NodeKind, OpenMode, Opened, Reply, Session, Wait,
};
use librorum_sys::clock;
use rustix::io::Errno as E;
use rustix::mount::UnmountFlags;

use crate::image::Image;
use crate::log::{Change, NewNode, Recording};
use crate::page::PAGE_LEN;
use crate::replay::{Choice, Replay};
use crate::tree::{Tree, error};

/// Mounts name it as their source, so that one that a killed test left behind can be told.
const SOURCE: &str = "librorum-sim";

/// A program that has just ended may still have threads that close files.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(3);

/// A file system in memory that records what is done to it. Unmounted when dropped.
#[derive(Debug)]
pub struct SimDisk {
    disk: Arc<Disk>,
    mountpoint: PathBuf,
    owns_mountpoint: bool,
    server: Option<JoinHandle<io::Result<()>>>,
    /// Images are mostly asked for in the order of their points, so the last replay goes on.
    replay: Mutex<Option<Replay>>,
}

/// What was done to a disk. Requests of the kernel count, not system calls: a large write is
/// several, and a read that the page cache answers is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counters {
    pub write_count: u64,
    pub written_bytes: u64,
    pub read_count: u64,
    pub read_bytes: u64,
    /// Syncs of files that succeeded.
    pub file_sync_count: u64,
    /// Syncs of directories that succeeded.
    pub directory_sync_count: u64,
    pub create_count: u64,
    pub unlink_count: u64,
    pub rename_count: u64,
    pub link_count: u64,
    pub truncate_count: u64,
    pub allocate_count: u64,
    /// By copy_file_range(2); not among the written ones.
    pub copied_bytes: u64,
    /// Requests that failed because a failure was ordered.
    pub ordered_failure_count: u64,
}

/// Which requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// Those that add bytes: write, fallocate, copy_file_range.
    Writes,
    /// Syncs of files and directories.
    Syncs,
    /// Those that make names: create, link, rename. Taking one away never fails for want of room.
    Names,
    /// All of them.
    Any,
}

impl SimDisk {
    /// Mounts an empty disk on the directory `mountpoint`.
    ///
    /// # Errors
    ///
    /// What mounting answers; without root or `fusermount3` that it is not permitted.
    pub fn mount(mountpoint: &Path) -> io::Result<Self> {
        sweep_dead_mounts();
        let disk = Arc::new(Disk {
            state: Mutex::new(State {
                tree: Tree::new(),
                counters: Counters::default(),
                fault: None,
                sync_latency: Duration::ZERO,
            }),
        });
        let mountpoint = mountpoint.canonicalize()?;
        let options = MountOptions {
            mountpoint: mountpoint.clone(),
            source: SOURCE.into(),
            read_only: false,
            allow_other: false,
            passthrough: false,
            // A write must be recorded when it is made, not when the kernel gets to it.
            writeback: false,
            dev_and_suid: false,
            no_exec: false,
            no_atime: true,
            reader_count: 4,
        };
        let session = Session::mount(Arc::clone(&disk), &options)?;
        let server = std::thread::Builder::new()
            .name("sim-disk".to_owned())
            .spawn(move || session.serve())?;
        let sim = Self {
            disk,
            mountpoint,
            owns_mountpoint: false,
            server: Some(server),
            replay: Mutex::new(None),
        };
        sim.warm_up()?;
        Ok(sim)
    }

    /// Mounts an empty disk on a new directory, for a test. `None`, with a message, means that the
    /// test is to be skipped, because nobody but root may count on mounting.
    ///
    /// # Panics
    ///
    /// If root cannot mount: a skipped test must never look like one that passed.
    #[must_use]
    pub fn for_test() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting a simulated disk needs root");
            return None;
        }
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{SOURCE}-{}-{number}", std::process::id());
        let mountpoint = std::env::temp_dir().join(name);
        std::fs::create_dir(&mountpoint).expect("a directory to mount on");
        let mut sim = Self::mount(&mountpoint).expect("root can mount: is there a /dev/fuse?");
        sim.owns_mountpoint = true;
        Some(sim)
    }

    /// The first close of a file asks the server and waits; later ones do not. A process that dies
    /// while it serves its own disk would wait for itself, so that first close happens here.
    fn warm_up(&self) -> io::Result<()> {
        let path = self.mountpoint.join("warm-up");
        drop(std::fs::File::create(&path)?);
        std::fs::remove_file(&path)?;
        // Only the recording forgets it: the kernel may still release the file.
        let mut state = self.disk.lock();
        state.tree.records.clear();
        state.counters = Counters::default();
        Ok(())
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Writes a word of the test into the recording, for example that something was acknowledged.
    /// Answers the first point that has it: images from there on must honour it.
    pub fn mark(&self, label: &str) -> usize {
        self.disk.lock().tree.record(Change::Mark(label.to_owned())) + 1
    }

    /// How many records there are by now.
    #[must_use]
    pub fn log_len(&self) -> usize {
        self.disk.lock().tree.records.len()
    }

    /// What happened by now.
    #[must_use]
    pub fn recording(&self) -> Recording {
        Recording { records: Arc::new(self.disk.lock().tree.records.clone()) }
    }

    /// See [`Recording::sync_points`].
    #[must_use]
    pub fn sync_points(&self) -> Vec<usize> {
        self.recording().sync_points()
    }

    /// Writes what a power cut at `point` could leave into the empty directory `target`. Cheapest
    /// in the order of points.
    ///
    /// # Errors
    ///
    /// Those of writing files.
    ///
    /// # Panics
    ///
    /// If `point` lies behind the end of the recording.
    pub fn crash_image(&self, point: usize, choice: &Choice, target: &Path) -> io::Result<()> {
        let mut kept = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        let mut replay = match kept.take() {
            Some(replay) if replay.point() <= point && point <= replay.recording().len() => replay,
            Some(_) | None => Replay::new(&self.recording()),
        };
        replay.advance_to(point);
        let image = replay.image(choice);
        *kept = Some(replay);
        drop(kept);
        image.write_to(target)
    }

    /// Puts an image onto this empty disk, durably: the machine is up again. Answers the point
    /// from which on the recording is about what happens then.
    ///
    /// # Errors
    ///
    /// Those of writing files.
    pub fn restore(&self, image: &Image) -> io::Result<usize> {
        image.write_to(&self.mountpoint)?;
        image.sync(&self.mountpoint)?;
        Ok(self.mark("restored"))
    }

    /// Lets the next `count` requests of this kind pass and fails all later ones with `errno`
    /// until [`Self::heal`].
    pub fn fail_after(&self, count: u64, errno: i32, failing: Failing) {
        self.disk.lock().fault = Some(Fault { left: count, errno: Errno(errno), failing });
    }

    /// Ends what [`Self::fail_after`] began.
    pub fn heal(&self) {
        self.disk.lock().fault = None;
    }

    /// How much the disk holds, in pages of 4 KiB of file content; names are free.
    pub fn set_capacity_bytes(&self, capacity_bytes: u64) {
        self.disk.lock().tree.set_capacity_bytes(capacity_bytes);
    }

    /// How long a sync takes: what other threads do meanwhile is not covered by it.
    pub fn set_sync_latency(&self, latency: Duration) {
        self.disk.lock().sync_latency = latency;
    }

    /// What was done to it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.disk.lock().counters
    }
}

impl Drop for SimDisk {
    fn drop(&mut self) {
        let deadline = clock::monotonic() + UNMOUNT_PATIENCE;
        while rustix::mount::unmount(&self.mountpoint, UnmountFlags::empty())
            == Err(rustix::io::Errno::BUSY)
        {
            if clock::monotonic() > deadline {
                // Somebody keeps a file open. Forcing answers all their requests with an error,
                // though it is still too busy to go; only then does detaching let the server end.
                let forced = rustix::mount::unmount(&self.mountpoint, UnmountFlags::FORCE);
                let detached = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH);
                if forced.is_err()
                    && let Err(error) = detached
                {
                    eprintln!("unmounting {}: {error}", self.mountpoint.display());
                }
                break;
            }
            clock::sleep(Duration::from_millis(5));
        }
        if let Some(server) = self.server.take() {
            drop(server.join());
        }
        if self.owns_mountpoint
            && let Err(error) = std::fs::remove_dir(&self.mountpoint)
        {
            eprintln!("removing {}: {error}", self.mountpoint.display());
        }
    }
}

/// Takes mounts of killed test processes out of the tree: their server is gone, and any access to
/// them answers ENOTCONN.
fn sweep_dead_mounts() {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else { return };
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        if fields.next() != Some(SOURCE) {
            continue;
        }
        let Some(at) = fields.next() else { continue };
        let dead = std::fs::metadata(at)
            .is_err_and(|error| error.raw_os_error() == Some(E::NOTCONN.raw_os_error()));
        if dead
            && let Err(error) = rustix::mount::unmount(at, UnmountFlags::DETACH)
                .map_err(io::Error::from)
                .and_then(|()| std::fs::remove_dir(at))
        {
            eprintln!("{at}, which a killed test left: {error}");
        }
    }
}

/// What the kernel talks to.
#[derive(Debug)]
struct Disk {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tree: Tree,
    counters: Counters,
    fault: Option<Fault>,
    sync_latency: Duration,
}

#[derive(Debug)]
struct Fault {
    left: u64,
    errno: Errno,
    failing: Failing,
}

impl State {
    /// Whether a request of this kind may go on.
    fn gate(&mut self, kind: Failing) -> Reply<()> {
        let Some(fault) = &mut self.fault else { return Ok(()) };
        if fault.failing != kind && fault.failing != Failing::Any {
            return Ok(());
        }
        if let Some(left) = fault.left.checked_sub(1) {
            fault.left = left;
            return Ok(());
        }
        self.counters.ordered_failure_count += 1;
        Err(fault.errno)
    }

    fn create(&mut self, parent: u64, name: &[u8], node: NewNode) -> Reply<Attr> {
        self.gate(Failing::Names)?;
        self.counters.create_count += 1;
        self.tree.create(parent, name, node)
    }
}

impl Disk {
    /// A request that panicked is a bug of ours; its thread has said so.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its start and its end are two records: what happens in between is not covered.
    fn sync(&self, ino: u64, data_only: bool, directory: bool) -> Reply<()> {
        let mut state = self.lock();
        let gate = state.gate(Failing::Syncs);
        let start = state.tree.record(Change::SyncStart { ino, data_only });
        let latency = state.sync_latency;
        drop(state);
        if latency.is_zero() {
            std::thread::yield_now();
        } else {
            clock::sleep(latency);
        }
        let mut state = self.lock();
        let succeeded = gate.is_ok();
        state.tree.record(Change::SyncEnd { start, ino, data_only, succeeded });
        if succeeded {
            let counters = &mut state.counters;
            let count = if directory {
                &mut counters.directory_sync_count
            } else {
                &mut counters.file_sync_count
            };
            *count += 1;
        }
        gate
    }

    fn opened() -> Opened {
        Opened { handle: 0, mode: OpenMode::Cached { keep: true } }
    }
}

const O_TRUNC: i32 = 0o1000;

impl Handler for Disk {
    fn negotiated(&self, with: Negotiated) {
        assert!(!with.writeback && !with.passthrough, "the recording would miss writes");
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Reply<Attr> {
        self.lock().tree.lookup(parent, name)
    }

    fn forget(&self, _ino: u64, _count: u64) {}

    fn getattr(&self, ino: u64, _handle: Option<u64>) -> Reply<Attr> {
        self.lock().tree.attr(ino)
    }

    fn setattr(
        &self,
        caller: Caller,
        ino: u64,
        _handle: Option<u64>,
        change: &AttrChange,
    ) -> Reply<Attr> {
        let mut state = self.lock();
        state.counters.truncate_count += u64::from(change.size_bytes.is_some());
        state.tree.set_attributes(caller, ino, change)
    }

    fn readlink(&self, ino: u64) -> Reply<Vec<u8>> {
        self.lock().tree.readlink(ino)
    }

    fn mknod(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        kind: NodeKind,
        mode: u16,
        rdev: u32,
    ) -> Reply<Attr> {
        let Caller { uid, gid } = caller;
        let target = Vec::new();
        self.lock().create(parent, name, NewNode { kind, mode, uid, gid, rdev, target })
    }

    fn symlink(&self, caller: Caller, parent: u64, name: &[u8], target: &[u8]) -> Reply<Attr> {
        let Caller { uid, gid } = caller;
        let (kind, target) = (NodeKind::Symlink, target.to_vec());
        let node = NewNode { kind, mode: 0o777, uid, gid, rdev: 0, target };
        self.lock().create(parent, name, node)
    }

    fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Reply<Attr> {
        let mut state = self.lock();
        state.gate(Failing::Names)?;
        state.counters.link_count += 1;
        state.tree.link(ino, parent, name)
    }

    fn unlink(&self, parent: u64, name: &[u8]) -> Reply<()> {
        let mut state = self.lock();
        state.counters.unlink_count += 1;
        state.tree.unlink(parent, name)
    }

    fn rmdir(&self, parent: u64, name: &[u8]) -> Reply<()> {
        self.unlink(parent, name)
    }

    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Reply<()> {
        let mut state = self.lock();
        state.gate(Failing::Names)?;
        state.counters.rename_count += 1;
        state.tree.rename(from, to, flags)
    }

    fn open_may_wait(&self, _ino: u64, _flags: i32) -> bool {
        false
    }

    fn open(
        &self,
        ino: u64,
        flags: i32,
        _kill_set_id: bool,
        _interrupt: &Interrupt,
    ) -> Reply<Opened> {
        self.lock().tree.open(ino, flags & O_TRUNC != 0)?;
        Ok(Self::opened())
    }

    fn create(
        &self,
        caller: Caller,
        (parent, name): (u64, &[u8]),
        mode: u16,
        _flags: i32,
        _interrupt: &Interrupt,
    ) -> Reply<(Attr, Opened)> {
        let Caller { uid, gid } = caller;
        let (kind, target) = (NodeKind::Regular, Vec::new());
        let mut state = self.lock();
        let attr = state.create(parent, name, NewNode { kind, mode, uid, gid, rdev: 0, target })?;
        state.tree.open(attr.ino, false)?;
        Ok((attr, Self::opened()))
    }

    fn read(
        &self,
        ino: u64,
        _handle: u64,
        offset: u64,
        len: u32,
        _wait: Wait,
        out: &mut Vec<u8>,
    ) -> Reply<()> {
        let mut state = self.lock();
        let before = out.len();
        state.tree.read(ino, offset, u64::from(len), out)?;
        state.counters.read_count += 1;
        state.counters.read_bytes += (out.len() - before) as u64;
        Ok(())
    }

    fn write(
        &self,
        ino: u64,
        _handle: u64,
        offset: u64,
        data: &[u8],
        kill_set_id: bool,
    ) -> Reply<()> {
        let mut state = self.lock();
        state.gate(Failing::Writes)?;
        state.tree.write(ino, offset, data, kill_set_id)?;
        state.counters.write_count += 1;
        state.counters.written_bytes += data.len() as u64;
        Ok(())
    }

    fn fsync(&self, ino: u64, _handle: u64, data_only: bool) -> Reply<()> {
        self.sync(ino, data_only, false)
    }

    fn release(&self, ino: u64, _handle: u64) {
        self.lock().tree.release(ino);
    }

    fn fallocate(&self, ino: u64, _handle: u64, offset: u64, len: u64, mode: i32) -> Reply<()> {
        let mut state = self.lock();
        state.gate(Failing::Writes)?;
        state.counters.allocate_count += 1;
        state.tree.allocate(ino, offset, len, mode)
    }

    fn lseek(&self, ino: u64, _handle: u64, offset: i64, whence: i32) -> Reply<i64> {
        self.lock().tree.seek(ino, offset, whence)
    }

    fn copy_file_range(&self, from: (u64, u64, u64), to: (u64, u64, u64), len: u64) -> Reply<u32> {
        const COPY_BYTES_MAX: u64 = 1 << 20;
        let mut state = self.lock();
        state.gate(Failing::Writes)?;
        let mut bytes = Vec::new();
        state.tree.read(from.0, from.2, len.min(COPY_BYTES_MAX), &mut bytes)?;
        if !bytes.is_empty() {
            state.tree.write(to.0, to.2, &bytes, false)?;
        }
        state.counters.copied_bytes += bytes.len() as u64;
        Ok(u32::try_from(bytes.len()).expect("at most COPY_BYTES_MAX"))
    }

    fn readdir(&self, ino: u64, cookie: u64, limit: usize) -> Reply<Vec<DirEntry>> {
        self.lock().tree.entries(ino, cookie, limit)
    }

    fn readdir_plus(&self, ino: u64, cookie: u64, limit: usize) -> Reply<Vec<(DirEntry, Attr)>> {
        let state = self.lock();
        let entries = state.tree.entries(ino, cookie, limit)?;
        entries.into_iter().map(|entry| Ok((entry.clone(), state.tree.attr(entry.ino)?))).collect()
    }

    fn taken(&self, _ino: u64) {}

    fn fsyncdir(&self, ino: u64) -> Reply<()> {
        self.sync(ino, false, true)
    }

    fn statfs(&self) -> Reply<FsUsage> {
        let (used, blocks) = self.lock().tree.usage();
        let blocks_free = blocks.saturating_sub(used);
        Ok(FsUsage {
            blocks,
            blocks_free,
            blocks_available: blocks_free,
            files: 1 << 32,
            files_free: 1 << 31,
            block_size: u32::try_from(PAGE_LEN).expect("a small constant"),
        })
    }

    fn getxattr(&self, ino: u64, name: &[u8]) -> Reply<Vec<u8>> {
        self.lock().tree.xattr(ino, name)
    }

    fn listxattr(&self, ino: u64) -> Reply<Vec<u8>> {
        self.lock().tree.xattr_names(ino)
    }

    fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Reply<()> {
        if name.starts_with(b"system.") {
            return error(E::OPNOTSUPP);
        }
        self.lock().tree.set_xattr(ino, name, value, flags)
    }

    fn removexattr(&self, ino: u64, name: &[u8]) -> Reply<()> {
        self.lock().tree.remove_xattr(ino, name)
    }
}
