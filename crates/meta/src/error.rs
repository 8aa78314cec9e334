//! Why a metadata operation failed.

use librorum_format::{ErrorKind, Ino, SegmentId};

/// Why a metadata operation failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum MetaError {
    /// The inode does not exist, or is a removed directory that cannot take entries.
    #[error("{ino:?} does not exist")]
    NoInode { ino: Ino },
    /// The directory has no such entry.
    #[error("no entry '{}' in {parent:?}", name.escape_ascii())]
    NoEntry { parent: Ino, name: Vec<u8> },
    /// The name or attribute exists.
    #[error("'{}' exists in {parent:?}", name.escape_ascii())]
    Exists { parent: Ino, name: Vec<u8> },
    /// The directory has entries, or the volume is not empty.
    #[error("{ino:?} is not empty")]
    NotEmpty { ino: Ino },
    /// A directory was needed.
    #[error("{ino:?} is not a directory")]
    NotDirectory { ino: Ino },
    /// A directory was given where none is allowed.
    #[error("{ino:?} is a directory")]
    IsDirectory { ino: Ino },
    /// A regular file was needed.
    #[error("{ino:?} is not a regular file")]
    NotRegular { ino: Ino },
    /// A symbolic link was needed.
    #[error("{ino:?} is not a symbolic link")]
    NotSymlink { ino: Ino },
    /// A change of content that the file's present content, or the change itself, does not allow.
    #[error("content of {ino:?}: {what}")]
    BadContent { ino: Ino, what: &'static str },
    /// The inode still has a name.
    #[error("{ino:?} is not an orphan")]
    NotOrphan { ino: Ino },
    /// A name that no dentry or attribute may have.
    #[error("'{}' is not a valid name", name.escape_ascii())]
    BadName { name: Vec<u8> },
    /// A name of more than 255 bytes.
    #[error("a name of {len} bytes is too long")]
    NameTooLong { len: usize },
    /// A directory would move below itself.
    #[error("{ino:?} cannot move below itself")]
    IntoItself { ino: Ino },
    /// The link count is at its limit.
    #[error("{ino:?} has too many links")]
    TooManyLinks { ino: Ino },
    /// The content changed since the caller looked.
    #[error("the content of {ino:?} is at version {found}, not {expected}")]
    StaleContent { ino: Ino, expected: u64, found: u64 },
    /// A segment that the change names is no longer there.
    #[error("segment {segment} is gone")]
    SegmentGone { segment: SegmentId },
    /// The extended attribute does not exist.
    #[error("{ino:?} has no attribute '{}'", name.escape_ascii())]
    NoXattr { ino: Ino, name: Vec<u8> },
    /// The value of the extended attribute is too large.
    #[error("an attribute value of {len} bytes is too large")]
    XattrTooLarge { len: usize },
    /// A stored record cannot be decoded.
    #[error("metadata record {key} is damaged")]
    Corrupt { key: String, source: librorum_format::DecodeError },
    /// A record that must exist does not.
    #[error("metadata record {key} is missing")]
    Missing { key: String },
    /// The database is older than what was acknowledged as durable.
    #[error(
        "the metadata ends at {found:?}, but {acknowledged:?} was durable: \
         the disk lost writes; 'librorum fsck --repair' goes on from what is left"
    )]
    LostWrites { found: librorum_format::TxnId, acknowledged: librorum_format::TxnId },
    /// The engine's files have another schema.
    #[error("metadata schema {found} is not {supported}, which this program supports")]
    Schema { found: u32, supported: u32 },
    /// The engine failed; it will not acknowledge anything any more.
    #[error("metadata engine")]
    Engine { source: std::sync::Arc<fjall::Error> },
    /// The disk failed outside the engine.
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
}

impl MetaError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoInode { .. } | Self::NoEntry { .. } => ErrorKind::NotFound,
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::NotEmpty { .. } => ErrorKind::NotEmpty,
            Self::NotDirectory { .. } => ErrorKind::NotDirectory,
            Self::IsDirectory { .. } => ErrorKind::IsDirectory,
            Self::NotRegular { .. }
            | Self::NotSymlink { .. }
            | Self::NotOrphan { .. }
            | Self::BadContent { .. }
            | Self::BadName { .. }
            | Self::IntoItself { .. } => ErrorKind::InvalidInput,
            Self::NameTooLong { .. } => ErrorKind::NameTooLong,
            Self::TooManyLinks { .. } => ErrorKind::TooManyLinks,
            Self::StaleContent { .. } | Self::SegmentGone { .. } => ErrorKind::Stale,
            Self::NoXattr { .. } => ErrorKind::NoAttribute,
            Self::XattrTooLarge { .. } => ErrorKind::OutOfRange,
            Self::Corrupt { .. } | Self::Missing { .. } | Self::LostWrites { .. } => {
                ErrorKind::DataLoss
            }
            Self::Schema { .. } => ErrorKind::Unsupported,
            Self::Engine { source } => {
                if let fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) =
                    source.as_ref()
                {
                    io_kind(error)
                } else if matches!(source.as_ref(), fjall::Error::Locked) {
                    ErrorKind::Busy
                } else {
                    ErrorKind::Unavailable
                }
            }
            Self::Io { source, .. } => io_kind(source),
        }
    }
}

fn io_kind(error: &std::io::Error) -> ErrorKind {
    if error.kind() == std::io::ErrorKind::StorageFull {
        ErrorKind::NoSpace
    } else {
        ErrorKind::Unavailable
    }
}
