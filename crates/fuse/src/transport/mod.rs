//! A file system as the kernel asks for it, and the protocol in which it asks.
//!
//! Every method of [`Handler`] answers its request by returning. The transport calls them from several
//! threads at once, so that a request that waits never delays another (`readers.rs`). Inode number 1
//! is the root.

mod device;
mod interrupt;
mod mounting;
mod nearness;
mod readers;
mod session;
mod wire;

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use librorum_format::Timestamp;

pub use interrupt::Interrupt;
pub use mounting::Unmounter;
pub use session::{Invalidator, Session};

/// An errno, as the kernel takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The answer to a request.
pub type Reply<T> = Result<T, Errno>;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The calling thread's file-system uid.
    pub uid: u32,
    /// Its file-system gid.
    pub gid: u32,
}

/// What `st_mode` says in its type bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of inode(7)")]
pub enum NodeKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What stat(2) answers.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names are those of stat(2)")]
pub struct Attr {
    pub ino: u64,
    pub kind: NodeKind,
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size_bytes: u64,
    pub allocated_bytes: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// For how long the kernel may answer from its own copy.
    pub ttl: Duration,
}

/// The attributes that a setattr changes.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names are those of stat(2)")]
pub struct AttrChange {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    pub atime: Option<TimeChange>,
    pub mtime: Option<TimeChange>,
    pub ctime: Option<Timestamp>,
    /// The change of size clears set-id bits: the caller lacks `CAP_FSETID`.
    pub kill_set_id: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum TimeChange {
    /// The time of the call.
    Now,
    /// This one.
    At(Timestamp),
}

/// A file that the kernel reads and writes by itself once it is registered.
#[derive(Debug)]
pub struct PassthroughFile {
    file: Arc<File>,
    /// The registration; the kernel drops its side when this is dropped.
    registration: OnceLock<device::Backing>,
}

impl PassthroughFile {
    /// A file that is not registered yet.
    #[must_use]
    pub fn new(file: Arc<File>) -> Self {
        Self { file, registration: OnceLock::new() }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How many registrations have been made in this process: tests count them.
    #[must_use]
    pub fn registration_count() -> u64 {
        session::registration_count()
    }
}

/// How the kernel serves the reads and writes of an open file.
#[derive(Clone, Debug)]
pub enum OpenMode {
    /// By itself, from this file.
    Passthrough(Arc<PassthroughFile>),
    /// Through its page cache and our read and write; what the cache holds of the file is kept or
    /// dropped at this open.
    Cached {
        /// Whether the cache still holds this content.
        keep: bool,
    },
}

/// A file that has been opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its handle, given back with every request on it.
    pub handle: u64,
    /// How it is served.
    pub mode: OpenMode,
}

/// Whether a call may wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// No other request waits behind it.
    May,
    /// It must answer [`WOULD_WAIT`] instead; it is then asked again with [`Wait::May`].
    MustNot,
}

/// See [`Wait::MustNot`].
pub const WOULD_WAIT: Errno = Errno(11);

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Where reading goes on behind it.
    pub cookie: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// Its inode.
    pub ino: u64,
    /// Its kind.
    pub kind: NodeKind,
}

/// What statfs(2) answers.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names are those of statvfs(3)")]
pub struct FsUsage {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
}

/// How the kernel is asked to behave.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Where to mount: an existing directory.
    pub mountpoint: PathBuf,
    /// The source that `mount` shows.
    pub source: OsString,
    /// Refuse every change.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Ask for passthrough. Without it, or where the kernel or the privileges lack it, the
    /// writeback cache is used if it may be: the kernel allows one or the other per mount.
    pub passthrough: bool,
    /// Let the kernel keep dirty pages where there is no passthrough. Without it every write
    /// reaches the handler before the caller goes on, in order and as it was made, which the
    /// simulated disk of `sim` needs. A read-only mount never has dirty pages.
    pub writeback: bool,
    /// Honour device files and set-id bits (needs root).
    pub dev_and_suid: bool,
    /// Refuse to execute files.
    pub no_exec: bool,
    /// Never update access times.
    pub no_atime: bool,
    /// Threads that read requests at once, at most.
    pub reader_count: usize,
}

/// What the kernel agreed to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Negotiated {
    /// Opens may answer [`OpenMode::Passthrough`].
    pub passthrough: bool,
    /// The kernel keeps dirty pages, and owns sizes and times while it does.
    pub writeback: bool,
}

/// A file system.
///
/// Unless stated otherwise the meaning of a method is that of the system call it is named after.
/// `handle` arguments come from `open` or `create`. Directories are read without being opened.
#[expect(clippy::missing_errors_doc, reason = "the errors are those of the system calls")]
#[expect(missing_docs, reason = "the names are those of the system calls")]
pub trait Handler: Send + Sync + 'static {
    /// Called once, before any request.
    fn negotiated(&self, with: Negotiated);
    fn lookup(&self, parent: u64, name: &[u8]) -> Reply<Attr>;
    /// The kernel drops `count` of the references that `lookup`, `create` and the like gave it.
    fn forget(&self, ino: u64, count: u64);
    fn getattr(&self, ino: u64, handle: Option<u64>) -> Reply<Attr>;
    fn setattr(
        &self,
        caller: Caller,
        ino: u64,
        handle: Option<u64>,
        change: &AttrChange,
    ) -> Reply<Attr>;
    fn readlink(&self, ino: u64) -> Reply<Vec<u8>>;
    fn mknod(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        kind: NodeKind,
        mode: u16,
        rdev: u32,
    ) -> Reply<Attr>;
    fn symlink(&self, caller: Caller, parent: u64, name: &[u8], target: &[u8]) -> Reply<Attr>;
    fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Reply<Attr>;
    fn unlink(&self, parent: u64, name: &[u8]) -> Reply<()>;
    fn rmdir(&self, parent: u64, name: &[u8]) -> Reply<()>;
    /// `flags` are those of renameat2(2).
    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Reply<()>;
    /// Whether `open` with these flags may wait for a disk.
    fn open_may_wait(&self, ino: u64, flags: i32) -> bool;
    /// `kill_set_id`: with `O_TRUNC`, set-id bits are cleared. A wait for anything but a disk ends
    /// with `EINTR` when `interrupt` is raised.
    fn open(&self, ino: u64, flags: i32, kill_set_id: bool, interrupt: &Interrupt)
    -> Reply<Opened>;
    /// Whether `create` may wait for a disk.
    fn create_may_wait(&self) -> bool {
        false
    }
    /// Makes a file of this name in this directory.
    fn create(
        &self,
        caller: Caller,
        place: (u64, &[u8]),
        mode: u16,
        flags: i32,
        interrupt: &Interrupt,
    ) -> Reply<(Attr, Opened)>;
    /// Appends at most `len` bytes to `out`; fewer only at the end of the file.
    fn read(
        &self,
        ino: u64,
        handle: u64,
        offset: u64,
        len: u32,
        wait: Wait,
        out: &mut Vec<u8>,
    ) -> Reply<()>;
    /// `kill_set_id`: the write clears set-id bits.
    fn write(
        &self,
        ino: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        kill_set_id: bool,
    ) -> Reply<()>;
    fn fsync(&self, ino: u64, handle: u64, data_only: bool) -> Reply<()>;
    fn release(&self, ino: u64, handle: u64);
    fn fallocate(&self, ino: u64, handle: u64, offset: u64, len: u64, mode: i32) -> Reply<()>;
    fn lseek(&self, ino: u64, handle: u64, offset: i64, whence: i32) -> Reply<i64>;
    /// Answers how many bytes were copied, at most `len`.
    fn copy_file_range(&self, from: (u64, u64, u64), to: (u64, u64, u64), len: u64) -> Reply<u32>;
    /// Entries behind `cookie` (0: from the start), `.` and `..` included; an empty answer ends.
    fn readdir(&self, ino: u64, cookie: u64, limit: usize) -> Reply<Vec<DirEntry>>;
    /// The same with attributes. Entries that the kernel takes count as looked up, but for `.` and
    /// `..`; [`Handler::taken`] tells which it took.
    fn readdir_plus(&self, ino: u64, cookie: u64, limit: usize) -> Reply<Vec<(DirEntry, Attr)>>;
    /// The kernel took this entry of a `readdir_plus`.
    fn taken(&self, ino: u64);
    fn fsyncdir(&self, ino: u64) -> Reply<()>;
    fn statfs(&self) -> Reply<FsUsage>;
    fn getxattr(&self, ino: u64, name: &[u8]) -> Reply<Vec<u8>>;
    /// Names, each ended by NUL.
    fn listxattr(&self, ino: u64) -> Reply<Vec<u8>>;
    /// `flags` are those of setxattr(2).
    fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Reply<()>;
    fn removexattr(&self, ino: u64, name: &[u8]) -> Reply<()>;
}
