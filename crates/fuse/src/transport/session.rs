//! A mounted file system: what is agreed with the kernel, and requests to [`Handler`].

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno as E;

use super::device::{Answer, Backing, Device, Read};
use super::interrupt::{Interrupt, Interrupts};
use super::mounting::{Unmounter, mount_by_helper, mount_directly};
use super::readers::{Readers, Serve, Turn};
use super::wire::{
    self, Agreed, Operation, Output, REQUEST_OVERHEAD_BYTES, Request, Setattr, fopen, init,
};
use super::{
    Attr, AttrChange, Caller, Errno, Handler, MountOptions, Negotiated, NodeKind, OpenMode, Opened,
    PassthroughFile, Reply, TimeChange, WOULD_WAIT, Wait,
};

/// One mebibyte is the most that the kernel sends without `fs.fuse.max_pages_limit` raised, and the
/// size from which bigger requests stopped paying.
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// Requests of read-ahead and writeback under way at once.
const MAX_BACKGROUND: u16 = 64;

/// The kernel may keep names: what changes behind its back is told to it ([`Invalidator`]).
const ENTRY_TTL: Duration = Duration::from_secs(3600);

/// A directory is read in pages of this many entries at most; the kernel's buffer ends most earlier.
const READDIR_LIMIT: usize = 256;

/// A write of this size takes longer to copy than a thread to wake.
const LONG_WRITE_BYTES: usize = 128 << 10;

static REGISTRATIONS: AtomicU64 = AtomicU64::new(0);

pub(super) fn registration_count() -> u64 {
    REGISTRATIONS.load(Ordering::Relaxed)
}

/// A mounted file system, served until it is unmounted.
#[derive(Debug)]
pub struct Session<H: Handler> {
    device: Arc<Device>,
    dispatch: Arc<Dispatch<H>>,
    reader_count: usize,
    /// The last, so that the device is closed before it is taken out of the tree.
    mounted: Mounted,
}

/// A file system in the tree, which is taken out unless it has been served to its end: every call
/// there would fail.
#[derive(Debug)]
struct Mounted {
    mountpoint: PathBuf,
    served: bool,
}

impl Mounted {
    fn unmounter(&self) -> Unmounter {
        Unmounter { mountpoint: self.mountpoint.clone() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.served
            && let Err(error) = self.unmounter().unmount_lazily()
        {
            tracing::warn!(%error, "a mount without a server is left behind");
        }
    }
}

impl<H: Handler> Session<H> {
    /// Mounts `handler`: by mount(2) as root, by `fusermount3` otherwise.
    ///
    /// # Errors
    ///
    /// What mounting answers; nothing is mounted then.
    pub fn mount(handler: Arc<H>, options: &MountOptions) -> io::Result<Self> {
        let mountpoint = options.mountpoint.canonicalize()?;
        let fd = if rustix::process::geteuid().is_root() {
            mount_directly(&mountpoint, options)?
        } else {
            mount_by_helper(&mountpoint, options)?
        };
        let mounted = Mounted { mountpoint, served: false };
        let device = Arc::new(Device::new(fd)?);
        let negotiated = negotiate(&device, options)?;
        handler.negotiated(negotiated);
        let interrupts = Interrupts::default();
        let dispatch = Arc::new(Dispatch { handler, device: Arc::clone(&device), interrupts });
        Ok(Self { device, dispatch, reader_count: options.reader_count, mounted })
    }

    /// What another thread ends [`Session::serve`] with.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        self.mounted.unmounter()
    }

    /// What tells the kernel, from any thread, that something changed behind its back.
    #[must_use]
    pub fn invalidator(&self) -> Invalidator {
        Invalidator { device: Arc::downgrade(&self.device) }
    }

    /// Answers requests until the file system is unmounted, by whomever.
    ///
    /// # Errors
    ///
    /// A failure of the FUSE device.
    pub fn serve(self) -> io::Result<()> {
        let request_bytes_max = MAX_WRITE_BYTES as usize + REQUEST_OVERHEAD_BYTES;
        let Self { device, dispatch, reader_count, mut mounted } = self;
        let readers = Readers::new(device, dispatch, reader_count, request_bytes_max);
        Arc::new(readers).run()?;
        mounted.served = true;
        Ok(())
    }
}

/// Tells the kernel what it has to forget. Nothing happens once the mount is gone.
///
/// To be called without any lock that a request may wait for: the kernel takes a directory's own lock
/// to forget an entry, which whoever waits for a request in that directory holds, and writes dirty
/// pages back before it forgets them. For that reason never on a thread that answers requests, but for
/// [`Invalidator::attributes`].
#[derive(Clone, Debug)]
pub struct Invalidator {
    device: Weak<Device>,
}

impl Invalidator {
    /// An inode's attributes changed.
    pub fn attributes(&self, ino: u64) {
        if let Some(device) = self.device.upgrade() {
            device.invalidate_attributes(ino);
        }
    }

    /// An inode's bytes changed, or a directory's entries; its attributes too.
    pub fn data(&self, ino: u64) {
        if let Some(device) = self.device.upgrade() {
            device.invalidate_data(ino);
        }
    }

    /// A name in a directory leads elsewhere, or appeared, or went. The directory's list of entries
    /// and its attributes are forgotten with it.
    pub fn entry(&self, parent: u64, name: &[u8]) {
        if let Some(device) = self.device.upgrade() {
            device.invalidate_entry(parent, name);
            // The kernel does so by itself only where it has the entry at hand.
            device.invalidate_data(parent);
        }
    }
}

/// Answers the kernel's first request.
fn negotiate(device: &Arc<Device>, options: &MountOptions) -> io::Result<Negotiated> {
    let mut buffer = vec![0; MAX_WRITE_BYTES as usize + REQUEST_OVERHEAD_BYTES];
    loop {
        let len = match device.read(&mut buffer)? {
            Read::Request(len) => len,
            Read::Nothing => {
                device.wait(None)?;
                continue;
            }
            Read::Ended => return Err(io::Error::other("unmounted before it was served")),
        };
        let Request { header, operation } =
            wire::decode(&buffer[..len]).map_err(io::Error::other)?;
        let answer = Answer::new(Arc::clone(device), header.unique);
        let Operation::Init { major, minor, max_readahead, flags } = operation else {
            return Err(io::Error::other("the kernel's first request is not INIT"));
        };
        if major > wire::MAJOR {
            // It asks again in our version.
            let mut out = Output::default();
            out.init(&Agreed {
                flags: 0,
                max_readahead,
                max_background: MAX_BACKGROUND,
                max_write_bytes: MAX_WRITE_BYTES,
                max_stack_depth: 0,
            });
            answer.body(&out);
            continue;
        }
        if major < wire::MAJOR || minor < wire::MINOR_MIN {
            answer.error(errno(E::PROTO));
            return Err(io::Error::other(format!(
                "the kernel speaks FUSE {major}.{minor}; 7.{} is needed (Linux 5.1)",
                wire::MINOR_MIN
            )));
        }
        let (agreed, negotiated) = agree(flags, max_readahead, options);
        let mut out = Output::default();
        out.init(&agreed);
        answer.body(&out);
        return Ok(negotiated);
    }
}

/// Root of any other user namespace may mount, and is offered passthrough, but may register no file:
/// every open would fail.
fn is_in_first_user_namespace() -> bool {
    /// `PROC_USER_INIT_INO`.
    const FIRST: u64 = 0xefff_fffd;
    // Without the file the kernel has no user namespaces.
    rustix::fs::stat("/proc/self/ns/user").map_or(true, |stat| stat.st_ino == FIRST)
}

/// What is used of what the kernel offers.
fn agree(offered: u64, max_readahead: u32, options: &MountOptions) -> (Agreed, Negotiated) {
    let wanted = init::ASYNC_READ
        | init::PARALLEL_DIROPS
        | init::ASYNC_DIO
        | init::ATOMIC_O_TRUNC
        | init::DO_READDIRPLUS
        | init::READDIRPLUS_AUTO
        | init::MAX_PAGES
        | init::CACHE_SYMLINKS
        | init::HANDLE_KILLPRIV_V2
        | init::DIRECT_IO_ALLOW_MMAP
        | init::INIT_EXT;
    // The two exclude each other per connection: asked for both, the kernel silently drops
    // passthrough.
    let passthrough = options.passthrough
        && rustix::process::geteuid().is_root()
        && is_in_first_user_namespace()
        && offered & init::PASSTHROUGH != 0;
    let writeback = !passthrough
        && options.writeback
        && !options.read_only
        && offered & init::WRITEBACK_CACHE != 0;
    let mut flags = wanted;
    if passthrough {
        flags |= init::PASSTHROUGH;
    }
    if writeback {
        flags |= init::WRITEBACK_CACHE;
    }
    let missing = flags & !offered;
    if missing != 0 {
        tracing::debug!(bits = format!("{missing:#x}"), "the kernel lacks FUSE capabilities");
    }
    // Without pages by number a request has 32 of them at most.
    let has_max_pages = offered & init::MAX_PAGES != 0;
    let agreed = Agreed {
        flags: flags & offered,
        max_readahead,
        max_background: MAX_BACKGROUND,
        max_write_bytes: if has_max_pages { MAX_WRITE_BYTES } else { 128 << 10 },
        // The files below lie on a disk's file system, not on another stack.
        max_stack_depth: u32::from(passthrough),
    };
    (agreed, Negotiated { passthrough, writeback })
}

thread_local! {
    /// Where a reply's data is gathered; reused, so that a read allocates nothing.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Requests to a handler's methods.
#[derive(Debug)]
struct Dispatch<H> {
    handler: Arc<H>,
    device: Arc<Device>,
    interrupts: Interrupts,
}

fn errno(error: E) -> Errno {
    Errno(error.raw_os_error())
}

/// Sends a structure that `fill` makes of a value, or an error.
fn reply<T>(answer: Answer, result: Reply<T>, fill: impl FnOnce(&mut Output, T)) {
    match result {
        Ok(value) => {
            // The largest: an entry and an open file.
            let mut out = Output::with_capacity(144);
            fill(&mut out, value);
            answer.body(&out);
        }
        Err(error) => answer.error(error),
    }
}

fn reply_entry(answer: Answer, result: Reply<Attr>) {
    reply(answer, result, |out, attr| {
        out.entry(&attr, ENTRY_TTL);
    });
}

fn reply_attributes(answer: Answer, result: Reply<Attr>) {
    reply(answer, result, |out, attr| {
        out.attributes(&attr);
    });
}

fn reply_empty(answer: Answer, result: Reply<()>) {
    match result {
        Ok(()) => answer.ok(),
        Err(error) => answer.error(error),
    }
}

/// An attribute's value or a list of names, or how long it is.
fn reply_sized(answer: Answer, size: u32, result: Reply<Vec<u8>>) {
    let value = match result {
        Ok(value) => value,
        Err(error) => return answer.error(error),
    };
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply(answer, Ok(len), |out, len| {
            out.size(len);
        });
    } else if len > size {
        answer.error(errno(E::RANGE));
    } else {
        answer.data(&value);
    }
}

/// Registers a file once for its whole life: the kernel refuses a second id for an open inode.
fn register<'a>(device: &Arc<Device>, file: &'a PassthroughFile) -> Reply<&'a Backing> {
    if let Some(registered) = file.registration.get() {
        return Ok(registered);
    }
    // A failure (no memory, no descriptors) is not for ever. Of two threads that register it at once
    // one drops its registration before any answer has named it.
    let backing = device.register(file.file()).map_err(|error| {
        tracing::error!(%error, "the kernel refused to register a passthrough file");
        Errno(error.raw_os_error().unwrap_or(E::IO.raw_os_error()))
    })?;
    Ok(file.registration.get_or_init(|| {
        REGISTRATIONS.fetch_add(1, Ordering::Relaxed);
        backing
    }))
}

/// The flags and the registration that an opened file is answered with.
fn service(device: &Arc<Device>, mode: &OpenMode) -> Reply<(u32, i32)> {
    match mode {
        OpenMode::Passthrough(file) => {
            let backing = register(device, file)?;
            Ok((fopen::PASSTHROUGH | fopen::NOFLUSH, backing.id()))
        }
        OpenMode::Cached { keep: true } => Ok((fopen::KEEP_CACHE, 0)),
        OpenMode::Cached { keep: false } => Ok((0, 0)),
    }
}

fn permission_bits(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

impl<H: Handler> Serve for Dispatch<H> {
    fn serve(&self, turn: &mut Turn<'_>, request: &[u8]) {
        match wire::decode(request) {
            Ok(request) => {
                let unique = request.header.unique;
                let answer = Answer::new(Arc::clone(&self.device), unique);
                self.dispatch(turn, answer, request);
            }
            Err(error) => {
                tracing::error!(%error, "a request cannot be read");
                if let Some(unique) = wire::decode_unique(request) {
                    Answer::new(Arc::clone(&self.device), unique).error(errno(E::INVAL));
                }
            }
        }
    }
}

impl<H: Handler> Dispatch<H> {
    fn dispatch(&self, turn: &mut Turn<'_>, answer: Answer, request: Request<'_>) {
        let Request { header, operation } = request;
        let handler = &*self.handler;
        let node = header.node;
        let caller = Caller { uid: header.uid, gid: header.gid };
        match operation {
            Operation::Lookup { name } => match handler.lookup(node, name) {
                // The kernel may keep that there is no such name.
                Err(Errno(2)) => reply(answer, Ok(()), |out, ()| {
                    out.absent(ENTRY_TTL);
                }),
                found => reply_entry(answer, found),
            },
            Operation::Forget { count } => {
                answer.none();
                handler.forget(node, count);
            }
            Operation::BatchForget { nodes } => {
                answer.none();
                for (node, count) in nodes {
                    handler.forget(node, count);
                }
            }
            Operation::Getattr { handle } => {
                reply_attributes(answer, handler.getattr(node, handle));
            }
            Operation::Setattr(set) => self.setattr(turn, answer, caller, node, &set),
            Operation::Readlink => match handler.readlink(node) {
                Ok(target) => answer.data(&target),
                Err(error) => answer.error(error),
            },
            Operation::Symlink { name, target } => {
                reply_entry(answer, handler.symlink(caller, node, name, target));
            }
            Operation::Mknod { name, mode, rdev } => {
                let made = wire::kind(mode).ok_or(errno(E::INVAL)).and_then(|kind| {
                    handler.mknod(caller, node, name, kind, permission_bits(mode), rdev)
                });
                reply_entry(answer, made);
            }
            Operation::Mkdir { name, mode } => {
                let (kind, mode) = (NodeKind::Directory, permission_bits(mode));
                reply_entry(answer, handler.mknod(caller, node, name, kind, mode, 0));
            }
            Operation::Unlink { name } => reply_empty(answer, handler.unlink(node, name)),
            Operation::Rmdir { name } => reply_empty(answer, handler.rmdir(node, name)),
            Operation::Rename { name, new_parent, new_name, flags } => {
                // A file that replaces another is synced first.
                turn.may_wait();
                let renamed = handler.rename((node, name), (new_parent, new_name), flags);
                reply_empty(answer, renamed);
            }
            Operation::Link { node: linked, new_name } => {
                reply_entry(answer, handler.link(linked, node, new_name));
            }
            Operation::Open { flags, kill_set_id } => {
                let flags = flags.cast_signed();
                let may_wait = handler.open_may_wait(node, flags);
                let opened = self.maybe_waiting(turn, header.unique, may_wait, |interrupt| {
                    handler.open(node, flags, kill_set_id, interrupt)
                });
                match opened {
                    Ok(opened) => self.reply_opened(answer, node, None, &opened),
                    Err(error) => answer.error(error),
                }
            }
            Operation::Create { name, flags, mode } => {
                let (mode, flags) = (permission_bits(mode), flags.cast_signed());
                let may_wait = handler.create_may_wait();
                let created = self.maybe_waiting(turn, header.unique, may_wait, |interrupt| {
                    handler.create(caller, (node, name), mode, flags, interrupt)
                });
                match created {
                    Ok((attr, opened)) => {
                        self.reply_opened(answer, attr.ino, Some(&attr), &opened);
                    }
                    Err(error) => answer.error(error),
                }
            }
            Operation::Release { handle } => {
                handler.release(node, handle);
                answer.ok();
            }
            Operation::Flush => answer.error(errno(E::NOSYS)),
            Operation::Read { handle, offset, size } => {
                self.read(turn, answer, node, (handle, offset, size));
            }
            Operation::Write { handle, offset, data, kill_set_id } => {
                if data.len() >= LONG_WRITE_BYTES {
                    turn.may_wait();
                }
                let written = handler.write(node, handle, offset, data, kill_set_id);
                reply(answer, written, |out, ()| {
                    out.size(u32::try_from(data.len()).unwrap_or(0));
                });
            }
            Operation::Fsync { handle, data_only } => {
                turn.may_wait();
                reply_empty(answer, handler.fsync(node, handle, data_only));
            }
            Operation::Fallocate { handle, offset, len, mode } => {
                turn.may_wait();
                let mode = mode.cast_signed();
                reply_empty(answer, handler.fallocate(node, handle, offset, len, mode));
            }
            Operation::Lseek { handle, offset, whence } => {
                turn.may_wait();
                let (offset, whence) = (offset.cast_signed(), whence.cast_signed());
                reply(answer, handler.lseek(node, handle, offset, whence), |out, offset| {
                    out.offset(offset.cast_unsigned());
                });
            }
            Operation::CopyFileRange { from, to, len } => {
                turn.may_wait();
                let copied = handler.copy_file_range((node, from.0, from.1), to, len);
                reply(answer, copied, |out, copied| {
                    out.size(copied);
                });
            }
            // The kernel keeps listings and drops them itself when a directory changes through it,
            // and nothing else changes it; so it need not ask before reading one.
            Operation::Opendir => answer.error(errno(E::NOSYS)),
            Operation::Releasedir => answer.ok(),
            Operation::Readdir { cookie, size } => self.readdir(answer, node, cookie, size),
            Operation::ReaddirPlus { cookie, size } => {
                self.readdir_plus(answer, node, cookie, size);
            }
            Operation::Fsyncdir => {
                turn.may_wait();
                reply_empty(answer, handler.fsyncdir(node));
            }
            Operation::Statfs => reply(answer, handler.statfs(), |out, usage| {
                out.statfs(&usage);
            }),
            Operation::Setxattr { name, value, flags } => {
                let set = handler.setxattr(node, name, value, flags.cast_signed());
                reply_empty(answer, set);
            }
            Operation::Getxattr { name, size } => {
                reply_sized(answer, size, handler.getxattr(node, name));
            }
            Operation::Listxattr { size } => reply_sized(answer, size, handler.listxattr(node)),
            Operation::Removexattr { name } => {
                reply_empty(answer, handler.removexattr(node, name));
            }
            Operation::Interrupt { unique } => {
                // The interrupted request is answered, the interrupt is not.
                answer.none();
                self.interrupts.raise(unique);
            }
            Operation::Destroy => answer.ok(),
            Operation::Init { .. } => answer.error(errno(E::IO)),
            Operation::Other => answer.error(errno(E::NOSYS)),
        }
    }

    fn setattr(
        &self,
        turn: &mut Turn<'_>,
        answer: Answer,
        caller: Caller,
        node: u64,
        set: &Setattr,
    ) {
        let time = |time: Option<_>| time.map_or(TimeChange::Now, TimeChange::At);
        let change = AttrChange {
            mode: set.mode.map(permission_bits),
            uid: set.uid,
            gid: set.gid,
            size_bytes: set.size,
            atime: set.atime.map(time),
            mtime: set.mtime.map(time),
            ctime: set.ctime,
            kill_set_id: set.kill_set_id,
        };
        if set.size.is_some() {
            turn.may_wait();
        }
        reply_attributes(answer, self.handler.setattr(caller, node, set.handle, &change));
    }

    /// Runs what may wait where an interrupt finds it and no other request waits behind it.
    fn maybe_waiting<T>(
        &self,
        turn: &mut Turn<'_>,
        unique: u64,
        may_wait: bool,
        run: impl FnOnce(&Interrupt) -> T,
    ) -> T {
        if may_wait {
            turn.may_wait();
        }
        // Also otherwise: that it had to wait may show only now.
        let waiting = self.interrupts.register(unique);
        run(waiting.interrupt())
    }

    /// Answers with an open file, and with its attributes if it has just been made.
    fn reply_opened(&self, answer: Answer, ino: u64, attr: Option<&Attr>, opened: &Opened) {
        match service(&self.device, &opened.mode) {
            Ok((flags, backing)) => reply(answer, Ok(()), |out, ()| {
                if let Some(attr) = attr {
                    out.entry(attr, ENTRY_TTL);
                }
                out.opened(opened.handle, flags, backing);
            }),
            Err(error) => {
                self.handler.release(ino, opened.handle);
                if attr.is_some() {
                    // The kernel does not learn of the reference that `create` counted.
                    self.handler.forget(ino, 1);
                }
                answer.error(error);
            }
        }
    }

    fn read(
        &self,
        turn: &mut Turn<'_>,
        answer: Answer,
        node: u64,
        (handle, offset, size): (u64, u64, u32),
    ) {
        READ_BUFFER.with_borrow_mut(|data| {
            data.clear();
            let mut read = self.handler.read(node, handle, offset, size, Wait::MustNot, data);
            if matches!(read, Err(WOULD_WAIT)) {
                turn.may_wait();
                data.clear();
                read = self.handler.read(node, handle, offset, size, Wait::May, data);
            }
            match read {
                Ok(()) => answer.data(data),
                Err(error) => answer.error(error),
            }
        });
    }

    fn readdir(&self, answer: Answer, node: u64, cookie: u64, size: u32) {
        let limit = usize::try_from(size).unwrap_or(0);
        let entries = match self.handler.readdir(node, cookie, READDIR_LIMIT) {
            Ok(entries) => entries,
            Err(error) => return answer.error(error),
        };
        let mut out = Output::with_capacity(limit.min(64 << 10));
        for entry in &entries {
            if !out.dir_entry(entry, None, limit) {
                break;
            }
        }
        answer.body(&out);
    }

    fn readdir_plus(&self, answer: Answer, node: u64, cookie: u64, size: u32) {
        let limit = usize::try_from(size).unwrap_or(0);
        let entries = match self.handler.readdir_plus(node, cookie, READDIR_LIMIT) {
            Ok(entries) => entries,
            Err(error) => return answer.error(error),
        };
        let mut out = Output::with_capacity(limit.min(64 << 10));
        for (entry, attr) in &entries {
            if !out.dir_entry(entry, Some((attr, ENTRY_TTL)), limit) {
                break;
            }
            if entry.name != b"." && entry.name != b".." {
                self.handler.taken(entry.ino);
            }
        }
        answer.body(&out);
    }
}
