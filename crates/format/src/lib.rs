//! The vocabulary and the bytes of Librorum: ids, times, error kinds, extents and manifest pages,
//! segment tables, the volume's configuration. Pure: nothing here does I/O.
//!
//! Every encoding is little-endian and fixed-width, is described byte by byte in `docs/format.md`,
//! and decodes with an error, never a panic, whatever the bytes are.

#![forbid(unsafe_code)]

pub mod codec;
mod config;
mod error_kind;
mod extent;
mod ids;
mod table;
#[cfg(test)]
mod tests;
mod time;

pub use codec::{DecodeError, Reader, Writer};
pub use config::{Chunking, Compression, VolumeConfig, parse_size};
pub use error_kind::ErrorKind;
pub use extent::{Encoding, Extent, Location, PAGE_EXTENT_COUNT_MAX, decode_page, encode_page};
pub use ids::{ChunkId, Ino, PageId, SegmentId, TxnId, VolumeId};
pub use table::{SegmentKind, SegmentTable, TableEntry};
pub use time::Timestamp;

/// The version of everything on disk. A volume of another version is refused with both numbers.
pub const FORMAT_VERSION: u32 = 1;

/// The longest name of a dentry, as in ext4 and `NAME_MAX`.
pub const NAME_LEN_MAX: usize = 255;

/// A chunk never exceeds this, whatever the volume's chunking: readers size their buffers by it.
pub const CHUNK_LEN_MAX_BYTES: u32 = 16 << 20;
