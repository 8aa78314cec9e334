//! What is known about a file: its kind, and the answer of `fstatat`.

use rustix::fs::{FileType, Stat};

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
    /// The file system does not tell in its listings, and nobody had to know.
    Unknown,
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::Directory => Self::Directory,
            FileType::RegularFile => Self::File,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Unknown => Self::Unknown,
        }
    }
}

/// What names a file on this machine for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// A point in time as the file system tells it, since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down; negative before 1970.
    pub secs: i64,
    /// Nanoseconds after `secs`, below 10⁹.
    pub nanos: u32,
}

/// What the kernel says about one file: `struct stat`, read where it lies.
///
/// With [`crate::Need::Size`] only kind, sizes, links and identity are promised; today every file
/// system answers all of it in one call of the same cost.
#[derive(Clone, Copy)]
pub struct Metadata {
    stat: Stat,
}

// The fields of `struct stat` have other widths on other systems.
#[expect(clippy::useless_conversion, reason = "some of these are conversions elsewhere")]
impl Metadata {
    pub(crate) fn new(stat: Stat) -> Self {
        Self { stat }
    }

    /// What kind of file it is; never [`Kind::Unknown`].
    #[must_use]
    pub fn kind(&self) -> Kind {
        FileType::from_raw_mode(self.stat.st_mode).into()
    }

    /// `st_size`: the length of a file, of a symlink's target; for others what the file system likes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    /// What it occupies: `st_blocks` × 512.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        u64::try_from(self.stat.st_blocks).unwrap_or(0).saturating_mul(512)
    }

    /// How many names it has.
    #[must_use]
    pub fn links(&self) -> u64 {
        u64::try_from(self.stat.st_nlink).unwrap_or(1)
    }

    /// What names it.
    #[must_use]
    pub fn file_id(&self) -> FileId {
        FileId {
            device: u64::try_from(self.stat.st_dev).unwrap_or(u64::MAX),
            inode: u64::from(self.stat.st_ino),
        }
    }

    /// Type and permission bits.
    #[must_use]
    pub fn mode(&self) -> u32 {
        u32::from(self.stat.st_mode)
    }

    /// Its owner.
    #[must_use]
    pub fn uid(&self) -> u32 {
        u32::from(self.stat.st_uid)
    }

    /// Its group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        u32::from(self.stat.st_gid)
    }

    /// When its content changed.
    #[must_use]
    pub fn modified(&self) -> Time {
        time(i64::try_from(self.stat.st_mtime), u32::try_from(self.stat.st_mtime_nsec))
    }

    /// When it was read.
    #[must_use]
    pub fn accessed(&self) -> Time {
        time(i64::try_from(self.stat.st_atime), u32::try_from(self.stat.st_atime_nsec))
    }

    /// When it or anything in its inode changed.
    #[must_use]
    pub fn changed(&self) -> Time {
        time(i64::try_from(self.stat.st_ctime), u32::try_from(self.stat.st_ctime_nsec))
    }
}

fn time<A, B>(secs: Result<i64, A>, nanos: Result<u32, B>) -> Time {
    Time { secs: secs.unwrap_or(i64::MAX), nanos: nanos.unwrap_or(0) }
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metadata")
            .field("kind", &self.kind())
            .field("len_bytes", &self.len_bytes())
            .field("disk_bytes", &self.disk_bytes())
            .field("links", &self.links())
            .field("file_id", &self.file_id())
            .finish_non_exhaustive()
    }
}
