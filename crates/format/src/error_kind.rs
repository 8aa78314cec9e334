//! What a caller can do about a failure, whatever failed. The edges map kinds to errno and status.

/// The coarse kind of an error. Not `#[non_exhaustive]`: every edge matches it without a wildcard,
/// so a new kind is a compile error until each edge has decided what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The named inode, dentry or segment does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The directory has entries.
    NotEmpty,
    /// A directory was needed.
    NotDirectory,
    /// A directory was given where none is allowed.
    IsDirectory,
    /// The arguments make no sense together.
    InvalidInput,
    /// A name or path component is too long.
    NameTooLong,
    /// The operation is not permitted to anyone (for example a hard link to a directory).
    NotPermitted,
    /// The volume or mount is read-only.
    ReadOnly,
    /// The disk below the volume is full.
    NoSpace,
    /// The inode has as many hard links as it may have.
    TooManyLinks,
    /// The file would exceed the largest size.
    TooLarge,
    /// The value does not fit the caller's buffer or the format's limit.
    OutOfRange,
    /// The extended attribute does not exist.
    NoAttribute,
    /// No data, or no hole, at or after the offset.
    NoSuchOffset,
    /// This file system does not do that.
    Unsupported,
    /// Somebody else holds what is needed.
    Busy,
    /// The handle or the lease is no longer valid.
    Stale,
    /// Stored bytes are missing or fail verification.
    DataLoss,
    /// The device or service below failed; trying again may help.
    Unavailable,
}
