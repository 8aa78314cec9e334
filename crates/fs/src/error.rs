//! Why a file-system operation failed.

use std::path::PathBuf;

use librorum_format::{ErrorKind, Ino};
use librorum_meta::MetaError;
use librorum_store::StoreError;

/// The result of every operation.
pub type Result<T> = std::result::Result<T, FsError>;

/// Why a file-system operation failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum FsError {
    /// The metadata refused or failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk below a staging file failed.
    #[error("{what} of {ino:?}")]
    Disk { what: &'static str, ino: Ino, source: std::io::Error },
    /// The disk below an upload failed.
    #[error("{what} an upload")]
    Upload { what: &'static str, source: std::io::Error },
    /// A file of the volume folder cannot be read or written.
    #[error("{}", path.display())]
    Volume { path: PathBuf, source: std::io::Error },
    /// The volume's configuration makes no sense.
    #[error("{}: {reason}", path.display())]
    Config { path: PathBuf, reason: String },
    /// A volume is where one should be made.
    #[error("{} is a volume already", path.display())]
    IsVolume { path: PathBuf },
    /// Something else is where a volume should be made.
    #[error("{} is not empty and not a volume: choose an empty or new folder", path.display())]
    NotEmpty { path: PathBuf },
    /// No volume is where one should be.
    #[error("{} is not a volume: create one with 'librorum format'", path.display())]
    NotVolume { path: PathBuf },
    /// The volume is held by another process.
    #[error(transparent)]
    Locked(#[from] librorum_sys::LockError),
    /// The handle is not open, or not open for this.
    #[error("handle {handle} is not open for this")]
    BadHandle { handle: u64 },
    /// The arguments make no sense together.
    #[error("{what}")]
    Invalid { what: &'static str },
    /// Somebody uses what the caller wants for itself.
    #[error("{what}")]
    Busy { what: &'static str },
    /// Nothing of this name is there.
    #[error("there is no {what}")]
    Absent { what: &'static str },
    /// Not a thing that this file system does.
    #[error("{what} is not supported")]
    Unsupported { what: &'static str },
    /// No data, or no hole, at or after the offset.
    #[error("nothing at or after {offset}")]
    NoSuchOffset { offset: u64 },
    /// A write or fsync through this handle failed before; what it wrote since may be lost.
    #[error("an earlier write or sync of {ino:?} failed")]
    PreviousIo { ino: Ino },
    /// The answer would have to wait for the disk, which the caller excluded.
    #[error("would wait")]
    WouldWait,
    /// The caller does not want to wait any longer.
    #[error("interrupted")]
    Interrupted,
    /// The mount is read-only.
    #[error("the volume is mounted read-only")]
    ReadOnly,
}

impl FsError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Meta(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Disk { source, .. }
            | Self::Upload { source, .. }
            | Self::Volume { source, .. } => io_kind(source),
            Self::Config { .. } | Self::Invalid { .. } | Self::BadHandle { .. } => {
                ErrorKind::InvalidInput
            }
            Self::IsVolume { .. } => ErrorKind::AlreadyExists,
            Self::NotEmpty { .. } => ErrorKind::NotEmpty,
            Self::NotVolume { .. } => ErrorKind::NotFound,
            Self::Absent { .. } => ErrorKind::NotFound,
            Self::Locked(_) | Self::Busy { .. } => ErrorKind::Busy,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::NoSuchOffset { .. } => ErrorKind::NoSuchOffset,
            Self::PreviousIo { .. } | Self::WouldWait | Self::Interrupted => ErrorKind::Unavailable,
            Self::ReadOnly => ErrorKind::ReadOnly,
        }
    }
}

/// Names the object of a failed system call.
pub(crate) fn disk<E: Into<std::io::Error>>(
    what: &'static str,
    ino: Ino,
) -> impl FnOnce(E) -> FsError {
    move |source| FsError::Disk { what, ino, source: source.into() }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the list belongs to std and grows")]
fn io_kind(error: &std::io::Error) -> ErrorKind {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        std::io::ErrorKind::FileTooLarge => ErrorKind::TooLarge,
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
        std::io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        // The rest has no kind of its own, and most of it cannot happen to a file.
        _ => ErrorKind::Unavailable,
    }
}
