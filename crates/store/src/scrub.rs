//! The slow, thorough things: re-reading every stored byte, rebuilding the index, counting.

use std::fs::File;
use std::num::NonZeroU64;

use librorum_format::{ChunkId, Encoding, ErrorKind, SegmentId, TableEntry};
use rustix::fs::Advice;

use crate::encode::check;
use crate::error::{Corruption, StoreError};
use crate::layout::Part;
use crate::read::Stored;
use crate::store::{Store, location};

/// What scrub found wrong with a segment.
#[derive(Debug)]
pub enum Damage {
    /// The bytes are gone; every chunk of the table is lost.
    BytesMissing,
    /// There is no chunk table.
    TableMissing,
    /// The chunk table cannot be trusted, so the chunks cannot be checked one by one.
    Table(StoreError),
    /// The file is shorter than the table says.
    Short {
        /// As the table has it.
        table_len_bytes: u64,
        /// As it is.
        file_len_bytes: u64,
    },
    /// One chunk is not what it should be.
    Chunk {
        /// Its name.
        chunk: ChunkId,
        /// Where its stored form starts.
        offset_bytes: u64,
        /// How long the stored form is.
        stored_len_bytes: u32,
        /// What is wrong.
        reason: Corruption,
    },
}

/// What a store takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Segments and staging files.
    pub segment_count: u64,
    /// What their bytes take, holes not counted. A file with two names counts twice.
    pub stored_bytes: u64,
    /// What the chunk tables take.
    pub table_bytes: u64,
    /// What the dedup index takes.
    pub index_bytes: u64,
}

impl Store {
    /// Re-reads a sealed segment, from the medium as far as the kernel lets go of its copy, and
    /// checks every chunk that its table lists. `progress` gets the stored bytes read so far.
    ///
    /// What is in use may thereby leave the page cache; readers will fetch and verify it again.
    ///
    /// # Errors
    ///
    /// Only what stops the scrub itself, such as a lack of file descriptors. All that is wrong with
    /// the segment is in the result.
    pub fn scrub_segment(
        &self,
        segment: SegmentId,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Damage>, StoreError> {
        // Not the cached one: that is not what is on the medium.
        let table = match self.read_table(segment) {
            Ok(Some(table)) => table,
            Ok(None) => return Ok(vec![Damage::TableMissing]),
            Err(error) if error.kind() == ErrorKind::DataLoss => {
                return Ok(vec![Damage::Table(error)]);
            }
            Err(error) => return Err(error),
        };
        let file = match self.open_bytes(segment, false) {
            Ok(file) => file,
            Err(StoreError::Missing { .. }) => return Ok(vec![Damage::BytesMissing]),
            Err(error) => return Err(error),
        };
        let mut damage = Vec::new();
        let file_len_bytes = self.bytes_len(segment)?;
        if file_len_bytes < table.len_bytes {
            damage.push(Damage::Short { table_len_bytes: table.len_bytes, file_len_bytes });
        }
        give_back(&file, 0, None);
        let mut read_bytes = 0;
        for entry in &table.entries {
            if let Some(reason) = self.damage_of(&file, segment, entry)? {
                tracing::error!(chunk = %entry.chunk, %segment, offset_bytes = entry.offset_bytes, %reason, "damaged chunk");
                self.verified.remove(segment, entry.offset_bytes);
                damage.push(Damage::Chunk {
                    chunk: entry.chunk,
                    offset_bytes: entry.offset_bytes,
                    stored_len_bytes: entry.stored_len_bytes,
                    reason,
                });
            }
            // Behind us too: a scrub of the whole store must not push out what is in use.
            give_back(&file, entry.offset_bytes, NonZeroU64::new(entry.stored_len_bytes.into()));
            read_bytes += u64::from(entry.stored_len_bytes);
            progress(read_bytes);
        }
        Ok(damage)
    }

    fn damage_of(
        &self,
        file: &File,
        segment: SegmentId,
        entry: &TableEntry,
    ) -> Result<Option<Corruption>, StoreError> {
        let stored = Stored {
            chunk: entry.chunk,
            location: location(segment, entry),
            chunk_len_bytes: entry.chunk_len_bytes,
        };
        let outcome = self.buffers.with(stored.stored_len(), |encoded| {
            stored.read(file, encoded)?;
            if entry.encoding == Encoding::Raw {
                return Ok(check(entry.chunk, encoded).err());
            }
            self.buffers.with(stored.chunk_len(), |chunk| stored.decode(encoded, chunk))?;
            Ok(None)
        });
        match outcome {
            Ok(found) => Ok(found),
            Err(StoreError::Corrupt { reason, .. }) => Ok(Some(reason)),
            Err(StoreError::Segment { source, .. }) => {
                Ok(Some(Corruption::Unreadable { errno: source.raw_os_error().unwrap_or(0) }))
            }
            Err(error) => Err(error),
        }
    }

    /// Builds the dedup index anew from all chunk tables; returns how many chunks they list.
    /// `progress` gets the number of segments seen so far. Runs beside everything else; until it
    /// ends, stored chunks may be overlooked.
    ///
    /// # Errors
    ///
    /// [`StoreError::Index`] if the engine fails, [`StoreError::Io`] if a folder cannot be listed.
    /// A damaged table is skipped with a warning: that is for scrub to report.
    pub fn rebuild_index(&self, progress: &mut dyn FnMut(u64)) -> Result<u64, StoreError> {
        self.index.rebuild(|| {
            let (mut segment_count, mut chunk_count) = (0, 0);
            for found in self.segments() {
                let (segment, has_bytes, has_table) = found?;
                segment_count += 1;
                progress(segment_count);
                if !(has_bytes && has_table) {
                    continue;
                }
                match self.read_table(segment) {
                    Ok(Some(table)) => {
                        self.index_table(&table);
                        chunk_count += table.entries.len() as u64;
                    }
                    // Removed since it was listed.
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%segment, %error, "a chunk table is left out of the index");
                    }
                }
            }
            Ok(chunk_count)
        })
    }

    /// Counts what the store takes on disk, by a walk over all of it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] or [`StoreError::Segment`] from the disk.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage { index_bytes: self.index.len_bytes(), ..Usage::default() };
        for found in self.segments() {
            let (segment, has_bytes, has_table) = found?;
            usage.segment_count += 1;
            if has_bytes {
                usage.stored_bytes += self.allocated_bytes(segment, Part::Bytes)?;
            }
            if has_table {
                usage.table_bytes += self.allocated_bytes(segment, Part::Table)?;
            }
        }
        Ok(usage)
    }

    fn allocated_bytes(&self, segment: SegmentId, part: Part) -> Result<u64, StoreError> {
        match self.layout.stat(segment, part) {
            Ok(stat) => Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512),
            // Removed since it was listed.
            Err(StoreError::Missing { .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// Asks the kernel to forget its copy of a file's bytes, all of them without a length. It may
/// decline (a dirty page, a mapping, a page that is only partly in the range); then what is checked
/// is what readers get, which is worth something too.
fn give_back(file: &File, offset_bytes: u64, len_bytes: Option<NonZeroU64>) {
    if let Err(errno) = rustix::fs::fadvise(file, offset_bytes, len_bytes, Advice::DontNeed) {
        tracing::debug!(%errno, "the page cache keeps its copy");
    }
}
