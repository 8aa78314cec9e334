//! From staging file to segment: staging, sealing in place, punching out duplicates, packing small
//! chunks, and back (`relink`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use librorum_format::{
    ChunkId, Encoding, Location, SegmentId, SegmentKind, SegmentTable, TableEntry,
};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::chunker::Chunk;
use crate::encode::Encoder;
use crate::error::StoreError;
use crate::layout::{Part, on};
use crate::store::{Store, is_sound};

impl Store {
    /// Creates empty staging files, open for reading and writing. Their names are durable on
    /// return; a batch of up to 64 costs one folder sync.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`] or [`StoreError::Io`]; no file of the batch is then left.
    pub fn create_staging(&self, count: usize) -> Result<Vec<(SegmentId, File)>, StoreError> {
        let ids = self.ids.take(count)?;
        let created = ids
            .iter()
            .map(|id| Ok((*id, self.layout.create_bytes(*id)?)))
            .collect::<Result<Vec<_>, StoreError>>()
            .and_then(|files| self.layout.sync_folders(&ids).map(|()| files));
        if created.is_err() {
            for id in ids {
                self.layout.remove_quietly(id, Part::Bytes);
            }
        }
        created
    }

    /// A file without a name on the disk of the segments, open for reading and writing: it goes when
    /// nobody has it open any more, unless [`Self::adopt`] makes a staging file of it. None where the
    /// disk has no such files.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unnamed`] from the disk.
    pub fn create_unnamed(&self) -> Result<Option<File>, StoreError> {
        match self.layout.create_unnamed() {
            Ok(file) => Ok(Some(file)),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => Ok(None),
            Err(errno) => Err(StoreError::Unnamed { source: errno.into() }),
        }
    }

    /// Makes a staging file of a file from [`Self::create_unnamed`]: its name is durable on return.
    /// Its bytes are not, as those of any staging file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`]; the file is then as it was, or nothing names it.
    pub fn adopt(&self, file: &File) -> Result<SegmentId, StoreError> {
        let segment = self.ids.take(1)?[0];
        let adopted =
            self.layout.adopt(file, segment).and_then(|()| self.layout.sync_folders(&[segment]));
        if adopted.is_err() {
            self.layout.remove_quietly(segment, Part::Bytes);
        }
        adopted.map(|()| segment)
    }

    /// Makes a staging file of a file on the same disk, whose old name goes: its new name is durable
    /// on return. On an ordered disk the old one is durably gone with it, elsewhere only if
    /// its folder is synced.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`]; the file has its old name then.
    pub fn take_in(&self, path: &Path) -> Result<SegmentId, StoreError> {
        let segment = self.ids.take(1)?[0];
        self.layout.take_in(path, segment)?;
        if let Err(error) = self.layout.sync_folders(&[segment]) {
            self.layout.put_out(segment, path)?;
            return Err(error);
        }
        Ok(segment)
    }

    /// Takes back [`Self::take_in`], as long as nothing names the segment. Not durable.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`].
    pub fn put_out(&self, segment: SegmentId, path: &Path) -> Result<(), StoreError> {
        self.layout.put_out(segment, path)?;
        self.forget(segment);
        Ok(())
    }

    /// Seals a staging file in place: makes its bytes durable, then writes its chunk table beside
    /// them, durable on return. No byte of the file is copied, read or written.
    ///
    /// `chunks` are those that stay in this file, at their file offsets; a duplicate that is to be
    /// punched out is not among them. The caller knows that nobody has written since they were
    /// hashed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`] or [`StoreError::Io`]. There is then no chunk table, and the file is
    /// still a staging file; but the kernel may have dropped the bytes whose sync failed, so a
    /// second try proves nothing.
    ///
    /// # Panics
    ///
    /// If the chunks overlap, are out of order, or reach beyond `len_bytes`.
    pub fn seal_verbatim(
        &self,
        segment: SegmentId,
        file: &File,
        len_bytes: u64,
        chunks: &[Chunk],
    ) -> Result<(), StoreError> {
        let entries: Vec<TableEntry> = chunks.iter().map(verbatim_entry).collect();
        let table = SegmentTable { segment, kind: SegmentKind::Verbatim, len_bytes, entries };
        assert_sealable(&table);
        // The bytes first: a table that outlives a power cut vouches for them.
        rustix::fs::fdatasync(file).map_err(on("sync", segment))?;
        self.write_table(&table)
    }

    /// Takes back a seal whose metadata transaction failed: the segment is a staging file again,
    /// under the same id, because nothing ever named it as sealed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`] if the chunk table cannot be removed.
    pub fn unseal(&self, segment: SegmentId) -> Result<(), StoreError> {
        // Nobody reads the chunks of a segment without a table, so nothing is remembered of them;
        // recovery asks this of every staging file, and few have one.
        if self.layout.remove(segment, Part::Table)? {
            self.forget_content(segment);
        } else {
            self.forget(segment);
        }
        Ok(())
    }

    /// Gives the bytes of a sealed verbatim segment a new id, so that they may be written again: a
    /// second name for the same file, durable on return. The old id keeps its name and its table
    /// until [`Self::remove`], but its bytes may change from now on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Missing`] if there is no such segment.
    pub fn relink(&self, sealed: SegmentId) -> Result<SegmentId, StoreError> {
        let new = self.ids.take(1)?[0];
        if let Err(error) = self.layout.link(sealed, new) {
            self.layout.remove_quietly(new, Part::Bytes);
            return Err(error);
        }
        Ok(new)
    }

    /// Gives the disk back what ranges of a verbatim segment take, whole blocks only: duplicates
    /// of chunks that are stored, and durably named, elsewhere. Returns how many bytes came free.
    ///
    /// # Errors
    ///
    /// [`StoreError::PunchListed`] if the table lists a chunk in a range, before anything is
    /// punched; [`StoreError::NotSealed`] without a table; [`StoreError::Segment`] from the disk. A
    /// file system that cannot punch frees nothing, which is no error.
    pub fn punch(&self, segment: SegmentId, ranges: &[(u64, u64)]) -> Result<u64, StoreError> {
        let table = self.table(segment)?.ok_or(StoreError::NotSealed { segment })?;
        for &(start_bytes, end_bytes) in ranges {
            let entries = &table.entries;
            let behind = entries.partition_point(|entry| entry_end(entry) <= start_bytes);
            if entries.get(behind).is_some_and(|entry| entry.offset_bytes < end_bytes) {
                return Err(StoreError::PunchListed { segment, start_bytes, end_bytes });
            }
        }
        let file = self.layout.open_bytes(segment, OFlags::RDWR)?;
        let before = rustix::fs::fstat(&file).map_err(on("stat", segment))?;
        let block = rustix::fs::fstatvfs(&file).map_err(on("stat", segment))?.f_bsize.max(1);
        let file_len = u64::try_from(before.st_size).unwrap_or(0);
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for &(start_bytes, end_bytes) in ranges {
            // A part of a block would be zeroed, not freed. The last block of the file is whole
            // even where the file ends inside it.
            let start = start_bytes.next_multiple_of(block);
            let end = match end_bytes >= file_len {
                true => file_len.next_multiple_of(block),
                false => end_bytes / block * block,
            };
            if start >= end {
                continue;
            }
            match rustix::fs::fallocate(&file, mode, start, end - start) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
                Err(errno) => return Err(on("punch", segment)(errno)),
            }
        }
        let after = rustix::fs::fstat(&file).map_err(on("stat", segment))?;
        let blocks = |stat: rustix::fs::Stat| u64::try_from(stat.st_blocks).unwrap_or(0);
        Ok(blocks(before).saturating_sub(blocks(after)) * 512)
    }

    /// Writes chunks into one new packed segment, each compressed if that is worth it, and returns
    /// where each is, in the order given. Equal chunks are stored once. Everything is durable on
    /// return.
    ///
    /// Meant for a batch of small chunks, a few MiB; the caller bounds it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`] or [`StoreError::Io`]; nothing of the segment is then left.
    ///
    /// # Panics
    ///
    /// If there are no chunks, or one is empty or longer than a chunk may be.
    pub fn write_packed(
        &self,
        chunks: &[&[u8]],
    ) -> Result<(SegmentId, Vec<(ChunkId, Location)>), StoreError> {
        assert!(!chunks.is_empty(), "a packed segment has chunks");
        let segment = self.ids.take(1)?[0];
        let written = self.try_write_packed(segment, chunks);
        if written.is_err() {
            for part in [Part::Table, Part::Bytes] {
                self.layout.remove_quietly(segment, part);
            }
            self.forget(segment);
        }
        written.map(|places| (segment, places))
    }

    fn try_write_packed(
        &self,
        segment: SegmentId,
        chunks: &[&[u8]],
    ) -> Result<Vec<(ChunkId, Location)>, StoreError> {
        let failed = |source: io::Error| StoreError::Segment { action: "write", segment, source };
        let mut encoder = Encoder::new(self.options().compression).map_err(failed)?;
        let mut file = BufWriter::with_capacity(1 << 20, self.layout.create_bytes(segment)?);
        let mut places = Vec::with_capacity(chunks.len());
        let mut known: HashMap<ChunkId, Location> = HashMap::with_capacity(chunks.len());
        let mut entries = Vec::with_capacity(chunks.len());
        let mut len_bytes = 0;
        for &bytes in chunks {
            let chunk = ChunkId::of(bytes);
            if let Some(location) = known.get(&chunk) {
                places.push((chunk, *location));
                continue;
            }
            let (encoding, stored) = encoder.encode(bytes);
            file.write_all(stored).map_err(failed)?;
            let entry = TableEntry {
                chunk,
                offset_bytes: len_bytes,
                stored_len_bytes: u32::try_from(stored.len()).expect("chunks are bounded"),
                chunk_len_bytes: u32::try_from(bytes.len()).expect("chunks are bounded"),
                encoding,
            };
            let location = crate::store::location(segment, &entry);
            len_bytes = entry_end(&entry);
            entries.push(entry);
            known.insert(chunk, location);
            places.push((chunk, location));
        }
        let table = SegmentTable { segment, kind: SegmentKind::Packed, len_bytes, entries };
        assert_sealable(&table);
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        rustix::fs::fdatasync(&file).map_err(on("sync", segment))?;
        // Its folder sync makes the names of both files durable.
        self.write_table(&table)?;
        Ok(places)
    }

    fn write_table(&self, table: &SegmentTable) -> Result<(), StoreError> {
        // A seal whose metadata transaction never came may have left a table of other bytes.
        if self.layout.exists(table.segment, Part::Table)? {
            self.forget_content(table.segment);
        }
        let written = self.layout.write_table(table.segment, &table.encode());
        self.forget_table(table.segment);
        written
    }

    fn forget_content(&self, segment: SegmentId) {
        self.forget(segment);
        self.verified.remove_segment(segment);
    }
}

fn verbatim_entry(chunk: &Chunk) -> TableEntry {
    TableEntry {
        chunk: chunk.id,
        offset_bytes: chunk.file_offset_bytes,
        stored_len_bytes: chunk.len_bytes,
        chunk_len_bytes: chunk.len_bytes,
        encoding: Encoding::Raw,
    }
}

fn entry_end(entry: &TableEntry) -> u64 {
    entry.offset_bytes + u64::from(entry.stored_len_bytes)
}

/// Nothing goes to disk that a reader would refuse.
fn assert_sealable(table: &SegmentTable) {
    let segment = table.segment;
    assert!(is_sound(table, segment), "an unsound chunk table for segment {segment}");
    let fits = table.entries.last().is_none_or(|entry| entry_end(entry) <= table.len_bytes);
    assert!(fits, "a chunk behind the end of segment {segment}");
}
