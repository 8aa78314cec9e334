//! Why the store could not do what it was asked.

use std::io;
use std::path::PathBuf;

use librorum_format::{ChunkId, DecodeError, ErrorKind, SegmentId};
use rustix::io::Errno;

/// Why an operation on the store failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum StoreError {
    /// The disk refused an operation on one of the store's own files or folders.
    #[error("{action} {path}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// The disk refused an operation on a segment's file.
    #[error("{action} segment {segment}")]
    Segment { action: &'static str, segment: SegmentId, source: io::Error },
    /// The disk refused a file without a name.
    #[error("create a file without a name")]
    Unnamed { source: io::Error },
    /// The bytes to be chunked could not be read.
    #[error("{action} the file to be chunked at {offset_bytes}")]
    Source { action: &'static str, offset_bytes: u64, source: io::Error },
    /// A segment's file does not exist. With a chunk: metadata named it, so data is lost.
    #[error("segment {segment} is missing{}", wanted(*chunk))]
    Missing { segment: SegmentId, chunk: Option<ChunkId> },
    /// A chunk's stored bytes are not what its name says.
    #[error("chunk {chunk} in segment {segment} at {offset_bytes}: {reason}")]
    Corrupt { chunk: ChunkId, segment: SegmentId, offset_bytes: u64, reason: Corruption },
    /// A segment's chunk table is damaged.
    #[error("chunk table of segment {segment}")]
    Table { segment: SegmentId, source: DecodeError },
    /// A segment's chunk table is intact but describes another segment, or its chunks overlap.
    #[error("chunk table of segment {segment} is not its own or lists overlapping chunks")]
    TableMismatch { segment: SegmentId },
    /// The segment has no chunk table: it was never sealed.
    #[error("segment {segment} is not sealed")]
    NotSealed { segment: SegmentId },
    /// A range to be punched holds a chunk that the table lists.
    #[error("bytes {start_bytes}..{end_bytes} of segment {segment} hold a listed chunk")]
    PunchListed { segment: SegmentId, start_bytes: u64, end_bytes: u64 },
    /// The id counter is damaged or missing. Guessing it could give out an id twice.
    #[error("id counter {path}", path = path.display())]
    Ids { path: PathBuf, source: DecodeError },
    /// Another process has the store open.
    #[error("the store at {path} is in use", path = path.display())]
    Busy { path: PathBuf },
    /// The dedup index could not be made anew.
    #[error("dedup index at {path}", path = path.display())]
    Index { path: PathBuf, source: fjall::Error },
}

/// What is wrong with a chunk's stored bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum Corruption {
    /// The segment's file ends inside the chunk.
    #[error("the segment ends {missing_bytes} bytes early")]
    Short { missing_bytes: u64 },
    /// The stored form does not decode to a chunk of the right length.
    #[error("the stored form does not decode")]
    Undecodable,
    /// The bytes hash to another name.
    #[error("the bytes hash to {found}")]
    Hash { found: ChunkId },
    /// The location cannot be true: a raw chunk of another length, or a length beyond the limit.
    #[error("the location makes no sense")]
    Location,
    /// The medium does not give the bytes back. Only scrub reports it so; a read reports the
    /// device's error, because the next try may succeed.
    #[error("the medium fails with {errno}")]
    Unreadable { errno: i32 },
}

impl StoreError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. }
            | Self::Segment { source, .. }
            | Self::Source { source, .. }
            | Self::Unnamed { source } => io_kind(source),
            Self::Missing { chunk: None, .. } => ErrorKind::NotFound,
            // Metadata or a table named what is not there or not right: data is lost.
            Self::Missing { chunk: Some(_), .. }
            | Self::Corrupt { .. }
            | Self::Table { .. }
            | Self::TableMismatch { .. }
            | Self::Ids { .. } => ErrorKind::DataLoss,
            Self::NotSealed { .. } | Self::PunchListed { .. } => ErrorKind::InvalidInput,
            Self::Busy { .. } => ErrorKind::Busy,
            Self::Index { source: fjall::Error::Io(source), .. } => io_kind(source),
            Self::Index { .. } => ErrorKind::Unavailable,
        }
    }
}

fn io_kind(error: &io::Error) -> ErrorKind {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::NoSpace,
        Some(Errno::ROFS) => ErrorKind::ReadOnly,
        Some(Errno::FBIG) => ErrorKind::TooLarge,
        Some(Errno::NOENT) => ErrorKind::NotFound,
        Some(Errno::EXIST) => ErrorKind::AlreadyExists,
        Some(Errno::ACCESS | Errno::PERM) => ErrorKind::NotPermitted,
        _ => ErrorKind::Unavailable,
    }
}

fn wanted(chunk: Option<ChunkId>) -> String {
    chunk.map(|chunk| format!(", chunk {chunk} is lost with it")).unwrap_or_default()
}
