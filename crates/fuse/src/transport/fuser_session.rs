//! The `fuser` crate behind [`Handler`]: requests in, replies out, and what fuser does not do.
//!
//! Facts of fuser 0.18 that this file works around, each checked against its source:
//! * times before 1970 arrive in a form that `convert` undoes;
//! * set-id flags are visible on WRITE only, so truncation by a caller without `CAP_FSETID` is told
//!   by its uid;
//! * INTERRUPT is answered with ENOSYS before we see it, so the kernel stops sending it: a process
//!   that is killed while it waits for us ends when the answer comes. No answer of ours waits for
//!   anything but a disk (`docs/semantics.md`).

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    SessionACL, TimeOrNow, WriteFlags,
};
use librorum_format::Timestamp;
use rustix::mount::UnmountFlags;

use super::convert::{file_attr, file_type, time_change, timestamp};
use super::mounting::{Unmounter, helper_options, mount_directly};
use super::offload::Offload;
use super::{
    Attr, AttrChange, Caller, Errno, Handler, MountOptions, Negotiated, NodeKind, OpenMode, Opened,
    PassthroughFile, Reply, WOULD_WAIT, Wait,
};

/// One mebibyte is the most that the kernel sends without `fs.fuse.max_pages_limit` raised, and the
/// size from which bigger requests stopped paying.
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// Requests of read-ahead and writeback under way at once.
const MAX_BACKGROUND: u16 = 64;

/// Names change only through this mount, so the kernel may keep them; what changes behind its back
/// is told to it.
const ENTRY_TTL: Duration = Duration::from_secs(3600);

/// A directory is read in pages of this many entries at most; the kernel's buffer ends most earlier.
const READDIR_LIMIT: usize = 256;

static REGISTRATIONS: AtomicU64 = AtomicU64::new(0);

pub(super) fn registration_count() -> u64 {
    REGISTRATIONS.load(Ordering::Relaxed)
}

/// A mounted file system, served until it is unmounted.
#[derive(Debug)]
pub struct Session<H: Handler> {
    session: fuser::Session<Adapter<H>>,
    mountpoint: PathBuf,
}

impl<H: Handler> Session<H> {
    /// Mounts `handler`: by mount(2) as root, by `fusermount3` otherwise.
    ///
    /// # Errors
    ///
    /// What mounting answers; nothing is mounted then.
    pub fn mount(handler: Arc<H>, options: &MountOptions) -> io::Result<Self> {
        let adapter = Adapter {
            handler,
            offload: Offload::default(),
            want_passthrough: options.passthrough,
            allow_writeback: options.writeback && !options.read_only,
            passthrough: false,
            // Two readers stay free for other requests, whatever writes wait for.
            inline_writes_left: Arc::new(AtomicUsize::new(options.thread_count.saturating_sub(2))),
        };
        let mut config = fuser::Config::default();
        config.n_threads = Some(options.thread_count.max(2));
        let mountpoint = options.mountpoint.canonicalize()?;
        let session = if rustix::process::geteuid().is_root() {
            // The kernel keeps others out, if it is asked to.
            config.acl = SessionACL::All;
            let device = mount_directly(&mountpoint, options)?;
            fuser::Session::from_fd(adapter, device, SessionACL::All, config).inspect_err(|_| {
                // Nobody will ever answer there.
                if let Err(error) = rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH) {
                    tracing::warn!(%error, "a mount without a server is left behind");
                }
            })?
        } else {
            config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
            config.mount_options = helper_options(options);
            fuser::Session::new(adapter, &mountpoint, &config)?
        };
        Ok(Self { session, mountpoint })
    }

    /// What another thread ends [`Session::serve`] with.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { mountpoint: self.mountpoint.clone() }
    }

    /// What tells the kernel, from any thread, to ask again for an inode's attributes.
    pub fn attribute_invalidator(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let notifier = self.session.notifier();
        move |ino| {
            // A negative offset leaves the page cache alone. An inode that the kernel has dropped
            // needs nothing.
            if let Err(error) = notifier.inval_inode(INodeNo(ino), -1, 0) {
                tracing::trace!(%error, ino, "the kernel does not know the inode");
            }
        }
    }

    /// Answers requests until the file system is unmounted, by whomever.
    ///
    /// # Errors
    ///
    /// A failure of the FUSE device.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

#[derive(Debug)]
struct Adapter<H> {
    handler: Arc<H>,
    offload: Offload,
    want_passthrough: bool,
    allow_writeback: bool,
    passthrough: bool,
    inline_writes_left: Arc<AtomicUsize>,
}

fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.0)
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

/// Sends `$result` through `$reply`: its error, or what `$send` makes of its value.
macro_rules! answer {
    ($reply:expr, $result:expr, |$value:pat_param| $send:expr) => {
        match $result {
            Ok($value) => $send,
            Err(error) => $reply.error(errno(error)),
        }
    };
}

fn send_entry(reply: ReplyEntry, result: Reply<Attr>) {
    answer!(reply, result, |attr| reply.entry_with_ttls(
        &attr.ttl,
        &ENTRY_TTL,
        &file_attr(&attr),
        Generation(0)
    ));
}

fn send_empty(reply: ReplyEmpty, result: Reply<()>) {
    answer!(reply, result, |()| reply.ok());
}

fn send_attr(reply: ReplyAttr, result: Reply<Attr>) {
    answer!(reply, result, |attr| reply.attr(&attr.ttl, &file_attr(&attr)));
}

fn send_xattr(reply: ReplyXattr, size: u32, result: Reply<Vec<u8>>) {
    answer!(reply, result, |value| {
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        if size == 0 {
            reply.size(len);
        } else if len > size {
            reply.error(fuser::Errno::ERANGE);
        } else {
            reply.data(&value);
        }
    });
}

/// Registers a file once for its whole life: the kernel refuses a second id for an open inode.
fn register(
    file: &PassthroughFile,
    open_backing: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> io::Result<fuser::BackingId>,
) -> Reply<&fuser::BackingId> {
    let registered = file.registration.get_or_init(|| {
        REGISTRATIONS.fetch_add(1, Ordering::Relaxed);
        open_backing(file.file.as_fd()).map_err(|error| {
            tracing::error!(%error, "the kernel refused to register a passthrough file");
            Errno(error.raw_os_error().unwrap_or(5))
        })
    });
    registered.as_ref().map_err(|error| *error)
}

fn send_opened(reply: ReplyOpen, result: Reply<Opened>) -> Option<u64> {
    let opened = match result {
        Ok(opened) => opened,
        Err(error) => {
            reply.error(errno(error));
            return None;
        }
    };
    let handle = FileHandle(opened.handle);
    match opened.mode {
        OpenMode::Passthrough(file) => match register(&file, |fd| reply.open_backing(fd)) {
            Ok(id) => reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, id),
            Err(error) => {
                reply.error(errno(error));
                return Some(opened.handle);
            }
        },
        OpenMode::Cached { keep } => reply.opened(handle, cached_flags(keep)),
    }
    None
}

fn create_and_send<H: Handler>(
    handler: &H,
    caller: Caller,
    parent: u64,
    name: &[u8],
    mode: u16,
    flags: i32,
    reply: ReplyCreate,
) {
    let (attr, opened) = match handler.create(caller, parent, name, mode, flags) {
        Ok(created) => created,
        Err(error) => return reply.error(errno(error)),
    };
    let file_attr = file_attr(&attr);
    let handle = FileHandle(opened.handle);
    let generation = Generation(0);
    match opened.mode {
        OpenMode::Passthrough(file) => match register(&file, |fd| reply.open_backing(fd)) {
            Ok(id) => {
                let flags = FopenFlags::FOPEN_NOFLUSH;
                reply.created_passthrough(&attr.ttl, &file_attr, generation, handle, flags, id);
            }
            Err(error) => {
                handler.release(attr.ino, opened.handle);
                reply.error(errno(error));
            }
        },
        OpenMode::Cached { keep } => {
            reply.created(&attr.ttl, &file_attr, generation, handle, cached_flags(keep));
        }
    }
}

fn cached_flags(keep: bool) -> FopenFlags {
    if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}

thread_local! {
    /// Where a reply's data is gathered; reused, so that a read allocates nothing.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<H: Handler> Adapter<H> {
    fn mkentry(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        kind: NodeKind,
        (mode, rdev): (u32, u32),
        reply: ReplyEntry,
    ) {
        let mode = u16::try_from(mode & 0o7777).unwrap_or(0);
        let name = name.as_bytes();
        send_entry(reply, self.handler.mknod(caller(request), parent.0, name, kind, mode, rdev));
    }
}

impl<H: Handler> Filesystem for Adapter<H> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is asked for alone, so that a kernel without one still gives the others.
        for flag in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ] {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel lacks a FUSE capability");
            }
        }
        let privileged = rustix::process::geteuid().is_root();
        self.passthrough = self.want_passthrough
            && privileged
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        if self.passthrough && config.set_max_stack_depth(1).is_err() {
            return Err(io::Error::other("the kernel refused a stack depth of 1"));
        }
        // The two exclude each other per connection: asked for both, the kernel silently drops
        // passthrough.
        let writeback = !self.passthrough
            && self.allow_writeback
            && config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE).is_ok();
        if let Err(nearest) = config.set_max_write(MAX_WRITE_BYTES) {
            tracing::debug!(nearest, "the kernel limits the size of writes");
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            tracing::debug!(nearest, "the kernel limits background requests");
        }
        self.handler.negotiated(Negotiated { passthrough: self.passthrough, writeback });
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.handler.lookup(parent.0, name.as_bytes()) {
            // A negative entry that the kernel may keep: an inode number of zero.
            Err(Errno(2)) => {
                let absent = Attr {
                    ino: 0,
                    kind: NodeKind::Regular,
                    mode: 0,
                    nlink: 0,
                    uid: 0,
                    gid: 0,
                    rdev: 0,
                    size_bytes: 0,
                    allocated_bytes: 0,
                    atime: Timestamp::default(),
                    mtime: Timestamp::default(),
                    ctime: Timestamp::default(),
                    ttl: ENTRY_TTL,
                };
                send_entry(reply, Ok(absent));
            }
            result => send_entry(reply, result),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.handler.forget(ino.0, count);
    }

    fn getattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        send_attr(reply, self.handler.getattr(ino.0, handle.map(|handle| handle.0)));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = AttrChange {
            mode: mode.and_then(|mode| u16::try_from(mode & 0o7777).ok()),
            uid,
            gid,
            size_bytes: size,
            atime: atime.map(time_change),
            mtime: mtime.map(time_change),
            ctime: ctime.map(timestamp),
        };
        let handler = Arc::clone(&self.handler);
        let caller = caller(request);
        let handle = handle.map(|handle| handle.0);
        let job = move || send_attr(reply, handler.setattr(caller, ino.0, handle, &change));
        if size.is_some() { self.offload.run(job) } else { job() }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        answer!(reply, self.handler.readlink(ino.0), |target| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = match mode & 0o170_000 {
            0 | 0o100_000 => NodeKind::Regular,
            0o010_000 => NodeKind::Fifo,
            0o140_000 => NodeKind::Socket,
            0o020_000 => NodeKind::CharDevice,
            0o060_000 => NodeKind::BlockDevice,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        self.mkentry(request, parent, name, kind, (mode, rdev), reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.mkentry(request, parent, name, NodeKind::Directory, (mode, 0), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(reply, self.handler.unlink(parent.0, name.as_bytes()));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(reply, self.handler.rmdir(parent.0, name.as_bytes()));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let name = name.as_bytes();
        send_entry(reply, self.handler.symlink(caller(request), parent.0, name, target));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // A file that replaces another is synced first.
        let handler = Arc::clone(&self.handler);
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.offload.run(move || {
            let from = (parent.0, name.as_bytes());
            let to = (new_parent.0, new_name.as_bytes());
            send_empty(reply, handler.rename(from, to, flags.bits()));
        });
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        send_entry(reply, self.handler.link(ino.0, new_parent.0, new_name.as_bytes()));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let handler = Arc::clone(&self.handler);
        let caller = caller(request);
        let job = move || {
            let opened = handler.open(caller, ino.0, flags.0);
            if let Some(unused) = send_opened(reply, opened) {
                handler.release(ino.0, unused);
            }
        };
        if self.handler.open_may_wait(ino.0, flags.0) { self.offload.run(job) } else { job() }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mode = u16::try_from(mode & 0o7777).unwrap_or(0);
        let handler = Arc::clone(&self.handler);
        let caller = caller(request);
        if self.handler.create_may_wait() {
            let name = name.to_owned();
            self.offload.run(move || {
                create_and_send(&*handler, caller, parent.0, name.as_bytes(), mode, flags, reply);
            });
        } else {
            create_and_send(&*handler, caller, parent.0, name.as_bytes(), mode, flags, reply);
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            match self.handler.read(ino.0, handle.0, offset, size, Wait::MustNot, buffer) {
                Err(WOULD_WAIT) => {
                    let handler = Arc::clone(&self.handler);
                    self.offload.run(move || {
                        let mut buffer = Vec::new();
                        let read =
                            handler.read(ino.0, handle.0, offset, size, Wait::May, &mut buffer);
                        answer!(reply, read, |()| reply.data(&buffer));
                    });
                }
                result => answer!(reply, result, |()| reply.data(buffer)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let slots = &self.inline_writes_left;
        let taken = slots
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok();
        if taken {
            let result = self.handler.write(ino.0, handle.0, offset, data, kill);
            slots.fetch_add(1, Ordering::Release);
            answer!(reply, result, |()| reply.written(len));
            return;
        }
        // All readers but two wait for the disk below already, so the copy is not what costs.
        let handler = Arc::clone(&self.handler);
        let data = data.to_vec();
        self.offload.run(move || {
            let result = handler.write(ino.0, handle.0, offset, &data, kill);
            answer!(reply, result, |()| reply.written(len));
        });
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Closing does nothing here; the kernel asks once and never again.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handler.release(ino.0, handle.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let handler = Arc::clone(&self.handler);
        self.offload.run(move || send_empty(reply, handler.fsync(ino.0, handle.0, data_only)));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel drops its copy of the listing itself when the directory changes through it,
        // and nothing else changes it.
        let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        answer!(reply, self.handler.opendir(ino.0), |handle| reply
            .opened(FileHandle(handle), flags));
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = match self.handler.readdir(ino.0, handle.0, offset, READDIR_LIMIT) {
            Ok(entries) => entries,
            Err(error) => return reply.error(errno(error)),
        };
        for entry in &entries {
            let name = OsStr::from_bytes(&entry.name);
            if reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let entries = match self.handler.readdir_plus(ino.0, handle.0, offset, READDIR_LIMIT) {
            Ok(entries) => entries,
            Err(error) => return reply.error(errno(error)),
        };
        for (entry, attr) in &entries {
            let name = OsStr::from_bytes(&entry.name);
            let ino = INodeNo(entry.ino);
            let full =
                reply.add(ino, entry.cookie, name, &attr.ttl, &file_attr(attr), Generation(0));
            if full {
                break;
            }
            if entry.name != b"." && entry.name != b".." {
                self.handler.taken(entry.ino);
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.handler.releasedir(ino.0, handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let handler = Arc::clone(&self.handler);
        self.offload.run(move || send_empty(reply, handler.fsyncdir(ino.0)));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        answer!(reply, self.handler.statfs(), |usage| reply.statfs(
            usage.blocks,
            usage.blocks_free,
            usage.blocks_available,
            usage.files,
            usage.files_free,
            usage.block_size,
            255,
            usage.block_size,
        ));
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        send_empty(reply, self.handler.setxattr(ino.0, name.as_bytes(), value, flags));
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        send_xattr(reply, size, self.handler.getxattr(ino.0, name.as_bytes()));
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        send_xattr(reply, size, self.handler.listxattr(ino.0));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(reply, self.handler.removexattr(ino.0, name.as_bytes()));
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let handler = Arc::clone(&self.handler);
        self.offload.run(move || {
            send_empty(reply, handler.fallocate(ino.0, handle.0, offset, length, mode));
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let handler = Arc::clone(&self.handler);
        self.offload.run(move || {
            let sought = handler.lseek(ino.0, handle.0, offset, whence);
            answer!(reply, sought, |offset| reply.offset(offset));
        });
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        ino_in: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let handler = Arc::clone(&self.handler);
        self.offload.run(move || {
            let from = (ino_in.0, handle_in.0, offset_in);
            let to = (ino_out.0, handle_out.0, offset_out);
            answer!(reply, handler.copy_file_range(from, to, len), |copied| reply.written(copied));
        });
    }
}
