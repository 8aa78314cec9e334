//! The chunk table of a segment: what is in it, written beside it and never into it, because a
//! passthrough reader must meet the end of the file where the file ends.

use crate::codec::{DecodeError, Reader, Writer};
use crate::extent::Encoding;
use crate::ids::{ChunkId, SegmentId};

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// The staging file of one inode, sealed in place: raw chunks at their file offsets.
    Verbatim,
    /// Chunks of many small files, one behind the other, perhaps compressed.
    Packed,
}

/// One chunk of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// The chunk.
    pub chunk: ChunkId,
    /// Where its stored form starts in the segment.
    pub offset_bytes: u64,
    /// How long its stored form is.
    pub stored_len_bytes: u32,
    /// How long the chunk is.
    pub chunk_len_bytes: u32,
    /// How it is stored.
    pub encoding: Encoding,
}

/// The chunk table of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentTable {
    /// The segment it describes.
    pub segment: SegmentId,
    /// What the segment is.
    pub kind: SegmentKind,
    /// How long the segment's file is.
    pub len_bytes: u64,
    /// Its chunks, by offset. Duplicates that were punched out are not listed.
    pub entries: Vec<TableEntry>,
}

const TABLE_MAGIC: [u8; 8] = *b"LbTable1";

impl SegmentTable {
    /// The table's bytes: a header, the entries, and the BLAKE3 of all before it.
    ///
    /// # Panics
    ///
    /// If there are 2³² entries or more, which no segment that fits a disk has.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(64 + self.entries.len() * 49);
        let count = u32::try_from(self.entries.len()).expect("fewer than 2^32 chunks");
        let kind = match self.kind {
            SegmentKind::Verbatim => 0,
            SegmentKind::Packed => 1,
        };
        writer.raw(&TABLE_MAGIC).u64(self.segment.0).u64(self.len_bytes).u8(kind).u32(count);
        for entry in &self.entries {
            writer
                .raw(&entry.chunk.0)
                .u64(entry.offset_bytes)
                .u32(entry.stored_len_bytes)
                .u32(entry.chunk_len_bytes)
                .u8(entry.encoding.to_byte());
        }
        let checksum = blake3::hash(writer.as_slice());
        writer.raw(checksum.as_bytes());
        writer.finish()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if a bit is wrong: the checksum is checked before anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "chunk table";
        let Some(body_len) = bytes.len().checked_sub(32) else {
            return Err(DecodeError::Short {
                what: WHAT,
                offset: 0,
                needed: 32,
                left: bytes.len(),
            });
        };
        let (body, checksum) = bytes.split_at(body_len);
        if blake3::hash(body).as_bytes() != checksum {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        let mut reader = Reader::new(WHAT, body);
        if reader.array::<8>()? != TABLE_MAGIC {
            return Err(reader.invalid(0));
        }
        let segment = SegmentId(reader.u64()?);
        let len_bytes = reader.u64()?;
        let kind = match reader.u8()? {
            0 => SegmentKind::Verbatim,
            1 => SegmentKind::Packed,
            other => return Err(reader.invalid(u64::from(other))),
        };
        let count = reader.u32()?;
        let mut entries = Vec::with_capacity(reader.left() / 49);
        for _ in 0..count {
            let chunk = ChunkId(reader.array()?);
            let offset_bytes = reader.u64()?;
            let stored_len_bytes = reader.u32()?;
            let chunk_len_bytes = reader.u32()?;
            let byte = reader.u8()?;
            let encoding =
                Encoding::from_byte(byte).ok_or_else(|| reader.invalid(u64::from(byte)))?;
            let fits = offset_bytes
                .checked_add(u64::from(stored_len_bytes))
                .is_some_and(|end| end <= len_bytes);
            if !fits || chunk_len_bytes > crate::CHUNK_LEN_MAX_BYTES {
                return Err(reader.invalid(offset_bytes));
            }
            entries.push(TableEntry {
                chunk,
                offset_bytes,
                stored_len_bytes,
                chunk_len_bytes,
                encoding,
            });
        }
        reader.end()?;
        Ok(Self { segment, kind, len_bytes, entries })
    }
}
