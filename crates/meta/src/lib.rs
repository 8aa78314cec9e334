//! What a volume knows about its files: inodes, dentries, extents, attributes. Not their bytes.
//!
//! [`Meta`] is a trait at the level of file-system operations because its implementations have
//! nothing smaller in common: an embedded ordered store answers in microseconds and batches its
//! own commits, a SQL database wants one round trip per operation. Every method is atomic, and
//! all methods of one volume have one total order, whose positions are [`TxnId`]s.
//!
//! What this crate does not do: it never reads or writes file bytes (but those of inline files),
//! checks no permissions (the kernel does, on a mount), and deletes no segment; it says which
//! ones nothing names any more.

#![forbid(unsafe_code)]

// First, because its macro is used by name behind it.
#[cfg(any(test, feature = "conformance"))]
#[macro_use]
pub mod conformance;
mod embedded;
mod error;
mod record;

pub use embedded::{Embedded, EmbeddedOptions};
pub use error::MetaError;

use librorum_format::{Extent, Ino, SegmentId, Timestamp, TxnId};

/// The result of every operation.
pub type Result<T> = std::result::Result<T, MetaError>;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Where a regular file's bytes are. Anything else is always [`Content::Empty`], and a symbolic
/// link's target is read by [`Meta::symlink_target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nowhere: the file is one hole of `size_bytes`.
    Empty,
    /// Beside the inode record; read by [`Meta::inline_bytes`].
    Inline,
    /// In a staging file, whose length and times win over the inode's.
    Staged {
        /// The staging file.
        segment: SegmentId,
    },
    /// In a staging file where that has data, in the extents elsewhere below `base_len_bytes`,
    /// zeros elsewhere. The staging file's length and times win over the inode's.
    Overlay {
        /// The staging file.
        segment: SegmentId,
        /// The extents count only below this offset: the lowest the file was truncated to.
        base_len_bytes: u64,
    },
    /// In sealed segments, named by the extents that [`Meta::extents`] reads.
    Sealed,
}

impl Content {
    /// The staging file, if there is one.
    #[must_use]
    pub fn staging(&self) -> Option<SegmentId> {
        match *self {
            Self::Staged { segment } | Self::Overlay { segment, .. } => Some(segment),
            Self::Empty | Self::Inline | Self::Sealed => None,
        }
    }
}

/// An inode as the metadata knows it.
///
/// While `content` names a staging file, `size_bytes`, `mtime` and `ctime` are what they were when
/// it was last closed or synced; the staging file has the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, set-id bits and the sticky bit: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links; for a directory 2 plus its subdirectories; 0 for an orphan.
    pub nlink: u32,
    /// Device number of a device.
    pub rdev: u32,
    /// Length in bytes; of a symlink, of its target; of a directory, 0.
    pub size_bytes: u64,
    /// Bytes that hold data, holes excluded (`st_blocks` × 512 comes from it).
    pub allocated_bytes: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Where the bytes are.
    pub content: Content,
    /// Grows by one with every change of `content`, so that a change computed from an old content
    /// is refused instead of undoing a newer one.
    pub content_version: u64,
    /// Whether any extended attribute exists: spares a lookup per GETXATTR.
    pub has_xattrs: bool,
    /// A directory's parent (its own number for the root and for an orphan); for anything else,
    /// the directory that it was created in, as a hint.
    pub parent: Ino,
}

/// What to create.
#[derive(Clone, Debug)]
pub struct NewInode<'a> {
    /// What it is.
    pub kind: FileKind,
    /// The low 12 bits of `st_mode`, umask already applied.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group. A set-gid parent gives its own group to everything, and its bit to directories; the
    /// implementation does both.
    pub gid: u32,
    /// Device number of a device, else 0.
    pub rdev: u32,
    /// The target of a symlink, else empty.
    pub symlink_target: &'a [u8],
    /// The staging file of a regular file that is opened with its creation.
    pub staging: Option<SegmentId>,
    /// Its three times and its birth.
    pub now: Timestamp,
}

/// Which attributes to change; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// The low 12 bits of `st_mode`.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length: only what [`Content::Empty`] and a staged content's bookkeeping need; bytes are cut
    /// by [`Meta::set_content`].
    pub size_bytes: Option<u64>,
    /// Bytes that hold data.
    pub allocated_bytes: Option<u64>,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change of the content.
    pub mtime: Option<Timestamp>,
    /// Last change of anything.
    pub ctime: Option<Timestamp>,
}

/// Where [`Meta::set_content`] moves a file's bytes.
#[derive(Clone, Copy, Debug)]
pub enum NewContent<'a> {
    /// All holes.
    Empty,
    /// Into the metadata.
    Inline(&'a [u8]),
    /// To a staging file that holds all of them. Drops the extents.
    Staged {
        /// The staging file.
        segment: SegmentId,
    },
    /// To a staging file over the present extents, which stay. Valid from `Sealed`, and from
    /// `Overlay` of the same staging file to lower `base_len_bytes`.
    Overlay {
        /// The staging file.
        segment: SegmentId,
        /// See [`Content::Overlay`].
        base_len_bytes: u64,
    },
    /// To sealed segments.
    Sealed {
        /// All extents of the file, in order.
        extents: &'a [Extent],
        /// Segments among them that this change introduces. Every other one must be named by some
        /// page already or be condemned and not yet claimed (then it is resurrected); otherwise
        /// the change fails with [`MetaError::SegmentGone`].
        fresh: &'a [SegmentId],
    },
}

/// A change of a file's content.
#[derive(Clone, Copy, Debug)]
pub struct SetContent<'a> {
    /// The file.
    pub ino: Ino,
    /// The `content_version` that the change was computed from.
    pub expected_version: u64,
    /// Where its bytes are now.
    pub content: NewContent<'a>,
    /// Its length.
    pub size_bytes: u64,
    /// Bytes that hold data.
    pub allocated_bytes: u64,
    /// A new time of modification, if it changes.
    pub mtime: Option<Timestamp>,
    /// A new time of change, if it changes.
    pub ctime: Option<Timestamp>,
}

/// A file that comes into being with its content, under a name.
#[derive(Clone, Debug)]
pub struct Publish<'a> {
    /// The directory.
    pub parent: Ino,
    /// The name in it.
    pub name: &'a [u8],
    /// The inode: a regular file, whose `staging` is `None`.
    pub new: &'a NewInode<'a>,
    /// Where its bytes are: anything but an overlay.
    pub content: NewContent<'a>,
    /// Its length.
    pub size_bytes: u64,
    /// Bytes that hold data.
    pub allocated_bytes: u64,
    /// Its time of modification, if that is not `new.now`.
    pub mtime: Option<Timestamp>,
    /// Take the name from whatever has it, but a directory. Otherwise it must be free.
    pub replace: bool,
}

/// What [`Meta::publish`] did.
#[derive(Clone, Debug)]
pub struct Published {
    /// The new inode.
    pub inode: Inode,
    /// The inode that the name led to, as it is now: an orphan if that was its last link.
    pub replaced: Option<Inode>,
    /// The position of the operation.
    pub txn: TxnId,
}

/// How a rename treats an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it, atomically.
    Replace,
    /// Fails (`RENAME_NOREPLACE`).
    NoReplace,
    /// Swaps the two, which must both exist (`RENAME_EXCHANGE`).
    Exchange,
}

/// How [`Meta::set_xattr`] treats an existing attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Creates or replaces.
    Set,
    /// Fails if it exists (`XATTR_CREATE`).
    Create,
    /// Fails if it does not (`XATTR_REPLACE`).
    Replace,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dentry {
    /// Where to go on reading after this entry: unique and stable within the directory for as long
    /// as the entry exists, at least [`COOKIE_MIN`], below 2⁶³.
    pub cookie: u64,
    /// Its name, 1 to 255 bytes, without `/` and NUL.
    pub name: Vec<u8>,
    /// The inode.
    pub ino: Ino,
    /// The inode's kind.
    pub kind: FileKind,
}

/// Smaller cookies are the reader's own, for `.` and `..`.
pub const COOKIE_MIN: u64 = 16;

/// Most hard links an inode may have; ext4 stops at 65,000, NFS-era tools expect at least 32,000.
pub const NLINK_MAX: u32 = 1 << 20;

/// What [`Meta::rename`] did.
#[derive(Clone, Debug)]
pub struct Renamed {
    /// The inode that moved.
    pub moved: Inode,
    /// The inode that the target name had before, as it is now: gone from the name in a replace
    /// (an orphan if that was its last link), moved to the old name in an exchange.
    pub replaced: Option<Inode>,
    /// The position of the operation.
    pub txn: TxnId,
}

/// A segment or staging file that nothing names any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condemned {
    /// The segment.
    pub segment: SegmentId,
    /// Since when; it may be deleted once this is durable.
    pub txn: TxnId,
}

/// A volume's counters, maintained with every operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetaStats {
    /// Inodes, orphans included.
    pub inode_count: u64,
    /// Directories among them.
    pub directory_count: u64,
    /// Sum of the sizes of regular files, as the inode records have them.
    pub logical_bytes: u64,
    /// Files whose content names a staging file.
    pub staged_count: u64,
    /// Unlinked files that are still there.
    pub orphan_count: u64,
}

/// The metadata of one volume.
///
/// Operations are visible to all callers when the call returns, and durable when
/// [`Meta::sync`] says so; after a crash a prefix of them, in `TxnId` order, is left. Callers must
/// make bytes durable before they hand in the operation that names them, with one exception:
/// a staging file may be named at once, because what it holds is only promised after an fsync.
///
/// Names are byte strings; a name that is empty, longer than 255 bytes, `.`, `..` or contains `/`
/// or NUL is [`MetaError::BadName`]. A directory operand that is an orphan (removed) answers
/// [`MetaError::NoInode`] to every operation that would add an entry.
pub trait Meta: Send + Sync + std::fmt::Debug {
    /// The inode, orphans included.
    ///
    /// # Errors
    /// `NoInode`, or the engine's failure. Every method below can also fail with the engine.
    fn inode(&self, ino: Ino) -> Result<Inode>;

    /// The inode that `name` in `parent` leads to.
    ///
    /// # Errors
    /// `NoInode`, `NotDirectory`, `NoEntry`, `BadName`.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode>;

    /// Creates an inode and its dentry; the parent's times become `new.now`, and its link count
    /// grows with a directory.
    ///
    /// # Errors
    /// `NoInode`, `NotDirectory`, `Exists`, `BadName`, `TooManyLinks` (too many subdirectories).
    fn create(&self, parent: Ino, name: &[u8], new: &NewInode<'_>) -> Result<(Inode, TxnId)>;

    /// Adds a dentry for an inode that is no directory. An orphan cannot come back.
    ///
    /// # Errors
    /// As `create`, and `IsDirectory`.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Timestamp) -> Result<(Inode, TxnId)>;

    /// Removes the dentry of anything but a directory. With its last link the inode becomes an
    /// orphan, which stays readable until [`Meta::reap`].
    ///
    /// # Errors
    /// `NoInode`, `NotDirectory`, `NoEntry`, `BadName`, `IsDirectory`.
    fn unlink(&self, parent: Ino, name: &[u8], now: Timestamp) -> Result<(Inode, TxnId)>;

    /// Removes an empty directory, which becomes an orphan.
    ///
    /// # Errors
    /// `NoInode`, `NotDirectory` (either operand), `NoEntry`, `BadName`, `NotEmpty`.
    fn rmdir(&self, parent: Ino, name: &[u8], now: Timestamp) -> Result<(Inode, TxnId)>;

    /// Moves a dentry. Both names leading to one inode changes nothing (POSIX).
    ///
    /// # Errors
    /// `NoInode`, `NotDirectory`, `NoEntry`, `BadName`, `Exists`, `NotEmpty`, `IsDirectory` (a
    /// directory would be replaced by something else), `NotDirectory` (the reverse), `IntoItself`
    /// (a directory would move below itself), `TooManyLinks`.
    fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<Renamed>;

    /// Changes attributes.
    ///
    /// # Errors
    /// `NoInode`.
    fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<(Inode, TxnId)>;

    /// Moves a file's content. Segments and staging files that lose their last name by it are
    /// condemned.
    ///
    /// # Errors
    /// `NoInode`, `NotRegular`, `StaleContent` (another version is there), `SegmentGone`.
    fn set_content(&self, change: &SetContent<'_>) -> Result<(Inode, TxnId)>;

    /// Creates a regular file with its content, and its dentry, which takes the name from another
    /// inode if it may: whoever looks sees what was there before, or the whole new file. The
    /// parent's times become `new.now`, as does the ctime of what is replaced.
    ///
    /// # Errors
    /// As `create`; `Exists` only if it may not replace, `IsDirectory` if it would replace one;
    /// `BadContent`; `SegmentGone` as `set_content`.
    fn publish(&self, file: &Publish<'_>) -> Result<Published>;

    /// The extents that meet `[start, end)` of the file, in order, unclipped; of an overlay, its
    /// base's. Empty for any other content. Costs one read per page met.
    ///
    /// # Errors
    /// `NoInode`, `Corrupt`.
    fn extents(&self, ino: Ino, start_bytes: u64, end_bytes: u64) -> Result<Vec<Extent>>;

    /// The bytes of a file with [`Content::Inline`].
    ///
    /// # Errors
    /// `NoInode`, `StaleContent` if the content is no longer inline.
    fn inline_bytes(&self, ino: Ino) -> Result<Vec<u8>>;

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `NoInode`, `NotSymlink`.
    fn symlink_target(&self, ino: Ino) -> Result<Vec<u8>>;

    /// Entries of a directory behind `after` (0 for the first), in cookie order, at most `limit`
    /// (but never ending between two entries of equal cookie; an empty answer is the end). An
    /// entry that exists throughout is seen exactly once by a reader that starts at 0.
    ///
    /// # Errors
    /// `NoInode`, `NotDirectory`.
    fn readdir(&self, dir: Ino, after: u64, limit: usize) -> Result<Vec<Dentry>>;

    /// As [`Meta::readdir`], with the inodes. An entry removed in between is left out.
    ///
    /// # Errors
    /// As `readdir`.
    fn readdir_plus(&self, dir: Ino, after: u64, limit: usize) -> Result<Vec<(Dentry, Inode)>>;

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoInode`, `NoXattr`.
    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;

    /// The names of all extended attributes, sorted.
    ///
    /// # Errors
    /// `NoInode`.
    fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>>;

    /// Sets an extended attribute; the inode's ctime becomes `now`.
    ///
    /// # Errors
    /// `NoInode`, `NoXattr`, `Exists`, `BadName` (empty or over 255 bytes), `XattrTooLarge` (a value
    /// over 64 KiB).
    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        now: Timestamp,
    ) -> Result<TxnId>;

    /// Removes an extended attribute; the inode's ctime becomes `now`.
    ///
    /// # Errors
    /// `NoInode`, `NoXattr`.
    fn remove_xattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Result<TxnId>;

    /// Frees an orphan: its record, pages, attributes; condemns what only it named. Does nothing
    /// to an inode that is gone already.
    ///
    /// # Errors
    /// `NotOrphan` if it still has a name.
    fn reap(&self, ino: Ino) -> Result<TxnId>;

    /// Orphans behind `after`, ascending, at most `limit`.
    ///
    /// # Errors
    /// The engine's.
    fn orphans(&self, after: Ino, limit: usize) -> Result<Vec<Ino>>;

    /// Inodes whose content names a staging file, behind `after`, ascending, at most `limit`.
    ///
    /// # Errors
    /// The engine's.
    fn staged(&self, after: Ino, limit: usize) -> Result<Vec<Ino>>;

    /// All inodes behind `after`, ascending, at most `limit`; orphans included.
    ///
    /// # Errors
    /// The engine's.
    fn inodes(&self, after: Ino, limit: usize) -> Result<Vec<Inode>>;

    /// Whether any page names `segment`, or an inode names it as its staging file.
    ///
    /// # Errors
    /// The engine's.
    fn segment_is_named(&self, segment: SegmentId) -> Result<bool>;

    /// Whether any page names `segment`. One that only an inode names, as its staging file, is not.
    ///
    /// # Errors
    /// The engine's.
    fn segment_is_sealed(&self, segment: SegmentId) -> Result<bool>;

    /// Whether every name of `segment` comes from the extents of `ino`: then the file may be
    /// unsealed in place. False if nothing names it.
    ///
    /// # Errors
    /// `NoInode`.
    fn segment_is_owned_by(&self, segment: SegmentId, ino: Ino) -> Result<bool>;

    /// Segments that nothing names, condemned behind `after` (in segment order), at most `limit`.
    ///
    /// # Errors
    /// The engine's.
    fn condemned(&self, after: SegmentId, limit: usize) -> Result<Vec<Condemned>>;

    /// Takes a condemned segment out of reach: from here on no operation can name it again.
    /// Answers false, and changes nothing, if it was resurrected or is not condemned. The claim
    /// must be durable before the file is deleted; claimed segments stay listed by `condemned`
    /// until [`Meta::forget_segments`], so that a crash in between is cleaned up.
    ///
    /// # Errors
    /// The engine's.
    fn claim_condemned(&self, segment: SegmentId) -> Result<bool>;

    /// Forgets claimed segments whose files are gone.
    ///
    /// # Errors
    /// The engine's.
    fn forget_segments(&self, segments: &[SegmentId]) -> Result<TxnId>;

    /// Condemns segments that exist on disk but are neither named nor condemned: what a crash
    /// between writing bytes and naming them leaves behind.
    ///
    /// # Errors
    /// The engine's.
    fn condemn(&self, segments: &[SegmentId]) -> Result<TxnId>;

    /// Makes every operation so far durable; concurrent callers share the cost.
    ///
    /// # Errors
    /// The engine's; then nothing will ever be acknowledged again by this instance.
    fn sync(&self) -> Result<TxnId>;

    /// The position of the newest operation.
    fn newest_txn(&self) -> TxnId;

    /// The newest position known to be durable.
    fn durable_txn(&self) -> TxnId;

    /// The volume's counters.
    fn stats(&self) -> MetaStats;

    /// Checks every invariant of the metadata, in `docs/format.md`; hands each violation to
    /// `report` as a sentence and mends it if `repair`, saying so. Reads everything once.
    ///
    /// # Errors
    /// The engine's; a violation is not an error.
    fn check(&self, repair: bool, report: &mut dyn FnMut(String)) -> Result<()>;

    /// Writes all records in an engine-neutral form, a consistent state of the whole.
    ///
    /// # Errors
    /// The engine's, and the sink's as `Io`.
    fn dump(&self, sink: &mut dyn std::io::Write) -> Result<TxnId>;

    /// Reads a dump into this volume, which must be empty.
    ///
    /// # Errors
    /// `NotEmpty`, `Corrupt`, and the source's as `Io`.
    fn load(&self, source: &mut dyn std::io::Read) -> Result<()>;
}
