//! Extents: where the bytes of a file are, and the pages that hold them.

use crate::CHUNK_LEN_MAX_BYTES;
use crate::codec::{DecodeError, Reader, Writer};
use crate::ids::{ChunkId, PageId, SegmentId};

/// How a chunk's bytes are stored in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are. The only encoding in a verbatim segment.
    Raw,
    /// An LZ4 block without a length prefix.
    Lz4,
    /// A zstd frame.
    Zstd,
}

impl Encoding {
    /// The byte that stands for it on disk.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    /// The encoding that `byte` stands for.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Where a chunk is stored: all that is needed to read and decode it, so that no index stands
/// between a file and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The segment.
    pub segment: SegmentId,
    /// Where the stored form starts in the segment.
    pub offset_bytes: u64,
    /// How long the stored form is. Equals the chunk's length when raw.
    pub stored_len_bytes: u32,
    /// How it is stored.
    pub encoding: Encoding,
}

/// A run of file bytes that lies in one chunk.
///
/// Invariants: `len_bytes > 0`; `chunk_offset_bytes + len_bytes <= chunk_len_bytes <=
/// CHUNK_LEN_MAX_BYTES`. The extents of a file are sorted by `file_offset_bytes` and never overlap;
/// a gap is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Where the run starts in the file.
    pub file_offset_bytes: u64,
    /// How long it is.
    pub len_bytes: u32,
    /// Where the run starts in the chunk.
    pub chunk_offset_bytes: u32,
    /// How long the whole chunk is: verification hashes all of it.
    pub chunk_len_bytes: u32,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where the chunk is.
    pub location: Location,
}

impl Extent {
    /// The first file offset behind the run.
    #[must_use]
    pub fn file_end_bytes(&self) -> u64 {
        self.file_offset_bytes + u64::from(self.len_bytes)
    }

    /// Whether the invariants of the type hold.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let run_end = u64::from(self.chunk_offset_bytes) + u64::from(self.len_bytes);
        self.len_bytes > 0
            && run_end <= u64::from(self.chunk_len_bytes)
            && self.chunk_len_bytes <= CHUNK_LEN_MAX_BYTES
            && self.file_offset_bytes.checked_add(u64::from(self.len_bytes)).is_some()
            && (self.location.encoding != Encoding::Raw
                || self.location.stored_len_bytes == self.chunk_len_bytes)
    }

    /// The part of the run that lies in `[start, end)` of the file, if any.
    #[must_use]
    pub fn clip(&self, start_bytes: u64, end_bytes: u64) -> Option<Self> {
        let start = self.file_offset_bytes.max(start_bytes);
        let end = self.file_end_bytes().min(end_bytes);
        if start >= end {
            return None;
        }
        let skipped = u32::try_from(start - self.file_offset_bytes).ok()?;
        Some(Self {
            file_offset_bytes: start,
            len_bytes: u32::try_from(end - start).ok()?,
            chunk_offset_bytes: self.chunk_offset_bytes + skipped,
            ..*self
        })
    }
}

/// A page holds at most this many extents: 36 KiB, about 512 MiB of file at 1 MiB a chunk.
pub const PAGE_EXTENT_COUNT_MAX: usize = 512;

const PAGE_MAGIC: [u8; 4] = *b"LbPg";

/// Encodes one page and names it. A page's name covers the places of its chunks too, so two
/// volumes name the same file's pages differently; chunk ids are what compares across volumes.
///
/// # Panics
///
/// If `extents` is empty, has more than [`PAGE_EXTENT_COUNT_MAX`] runs, or breaks the invariants of
/// [`Extent`]: nothing invalid goes to disk.
#[must_use]
pub fn encode_page(extents: &[Extent]) -> (PageId, Vec<u8>) {
    assert!(!extents.is_empty() && extents.len() <= PAGE_EXTENT_COUNT_MAX, "page size");
    assert!(extents.iter().all(Extent::is_valid), "an invalid extent: {extents:?}");
    assert!(
        extents.windows(2).all(|pair| pair[0].file_end_bytes() <= pair[1].file_offset_bytes),
        "extents out of order"
    );
    let mut writer = Writer::with_capacity(8 + extents.len() * 72);
    writer.raw(&PAGE_MAGIC);
    writer.u32(u32::try_from(extents.len()).expect("bounded above"));
    for extent in extents {
        writer
            .u64(extent.file_offset_bytes)
            .u32(extent.len_bytes)
            .u32(extent.chunk_offset_bytes)
            .u32(extent.chunk_len_bytes)
            .u32(extent.location.stored_len_bytes)
            .u64(extent.location.segment.0)
            .u64(extent.location.offset_bytes)
            .raw(&extent.chunk.0)
            .u8(extent.location.encoding.to_byte());
    }
    let bytes = writer.finish();
    (PageId::of(&bytes), bytes)
}

/// Decodes a page and checks that it is the one named `id`.
///
/// # Errors
///
/// [`DecodeError`] if the bytes are not that page, or hold invalid extents.
pub fn decode_page(id: PageId, bytes: &[u8]) -> Result<Vec<Extent>, DecodeError> {
    const WHAT: &str = "manifest page";
    if PageId::of(bytes) != id {
        return Err(DecodeError::Checksum { what: WHAT });
    }
    let mut reader = Reader::new(WHAT, bytes);
    let magic = reader.array::<4>()?;
    if magic != PAGE_MAGIC {
        return Err(reader.invalid(u64::from(u32::from_le_bytes(magic))));
    }
    let count = usize::try_from(reader.u32()?).unwrap_or(usize::MAX);
    if count == 0 || count > PAGE_EXTENT_COUNT_MAX {
        return Err(reader.invalid(count as u64));
    }
    let mut extents = Vec::with_capacity(count);
    let mut end_bytes = 0;
    for _ in 0..count {
        let file_offset_bytes = reader.u64()?;
        let len_bytes = reader.u32()?;
        let chunk_offset_bytes = reader.u32()?;
        let chunk_len_bytes = reader.u32()?;
        let stored_len_bytes = reader.u32()?;
        let segment = SegmentId(reader.u64()?);
        let offset_bytes = reader.u64()?;
        let chunk = ChunkId(reader.array()?);
        let byte = reader.u8()?;
        let encoding = Encoding::from_byte(byte).ok_or_else(|| reader.invalid(u64::from(byte)))?;
        let extent = Extent {
            file_offset_bytes,
            len_bytes,
            chunk_offset_bytes,
            chunk_len_bytes,
            chunk,
            location: Location { segment, offset_bytes, stored_len_bytes, encoding },
        };
        if !extent.is_valid() || file_offset_bytes < end_bytes {
            return Err(reader.invalid(file_offset_bytes));
        }
        end_bytes = extent.file_end_bytes();
        extents.push(extent);
    }
    reader.end()?;
    Ok(extents)
}
