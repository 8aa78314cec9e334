//! The store: what it is made of, how it is opened, and what has no better place.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use librorum_format::{
    ChunkId, Chunking, Compression, Location, SegmentId, SegmentKind, SegmentTable, TableEntry,
};
use rustix::fs::{OFlags, Stat};
use rustix::io::Errno;

use crate::cache::{Buffers, Cache, InFlight};
use crate::encode::is_plausible;
use crate::error::StoreError;
use crate::ids::Ids;
use crate::index::Index;
use crate::layout::{DiskOrder, Layout, Part, Segments, at};
use crate::verified::Verified;

/// How a store is to be opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// How file bytes are cut into chunks. The volume's, always the same.
    pub chunking: Chunking,
    /// How chunks in packed segments are compressed. Others are read all the same.
    pub compression: Compression,
    /// Memory for the dedup index's cache.
    pub index_cache_bytes: u64,
    /// When bytes are verified.
    pub verify: VerifyPolicy,
    /// What is known of the disk.
    pub disk_order: DiskOrder,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            chunking: Chunking::default(),
            compression: Compression::default(),
            index_cache_bytes: 16 << 20,
            verify: VerifyPolicy::default(),
            disk_order: DiskOrder::default(),
        }
    }
}

/// When bytes that are read are verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyPolicy {
    /// Each time.
    Always,
    /// Once since they entered the page cache, as far as can be known.
    #[default]
    PageCache,
}

/// Chunks and segments in a volume's folder. Thread-safe; one process at a time.
///
/// Memory, whatever the store's size: up to 24 MiB for the set of verified chunks, 16 MiB of
/// decoded chunks, 16 MiB of idle buffers, 8 MiB of chunk tables (or one larger table), and the
/// index: 68 MiB for the whole process were measured while it took in 8 million chunks.
#[derive(Debug)]
pub struct Store {
    options: StoreOptions,
    pub(crate) layout: Layout,
    pub(crate) ids: Ids,
    pub(crate) index: Index,
    handles: Cache<SegmentId, Arc<File>>,
    tables: Cache<SegmentId, Arc<SegmentTable>>,
    /// Chunks whose decoded form cannot be had from the page cache at no cost. Never locked
    /// together with anything else, like all caches here.
    pub(crate) decoded: Cache<Place, DecodedChunk>,
    pub(crate) verified: Verified,
    pub(crate) in_flight: InFlight<Place>,
    pub(crate) buffers: Buffers,
    /// Whether the file system can say that it would have to wait. Assumed until it refuses.
    pub(crate) nowait_works: AtomicBool,
}

/// A segment and an offset in it.
pub(crate) type Place = (SegmentId, u64);

/// A verified chunk, with its name: places are only as right as the extent that gave them.
type DecodedChunk = (ChunkId, Arc<[u8]>);

const HANDLE_COUNT_MAX: u64 = 512;
const TABLES_BYTES_MAX: u64 = 8 << 20;
const DECODED_BYTES_MAX: u64 = 16 << 20;

impl Store {
    /// Lays out an empty store in a volume's folder, durable on return.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] from the disk, also if there is a store already: a second beginning would
    /// give out its ids again. [`StoreError::Index`] from the index engine.
    pub fn create(dir: &Path) -> Result<(), StoreError> {
        let ids = dir.join("ids");
        if ids.try_exists().map_err(at("look for", &ids))? {
            return Err(at("create", &ids)(Errno::EXIST.into()));
        }
        Layout::create(dir)?;
        Index::create(dir)?;
        // Last: a folder without a counter is not a store.
        Ids::create(dir)
    }

    /// Opens the store in a volume's folder. Its cost does not depend on the store's size.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`] if another process has it open, [`StoreError::Ids`] if the id counter
    /// is damaged, [`StoreError::Io`] if there is no store. The index is never a reason to fail:
    /// see [`Self::index_was_lost`].
    pub fn open(dir: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let layout = Layout::open(dir, options.disk_order)?;
        Ok(Self {
            options: options.clone(),
            ids: Ids::open(dir)?,
            index: Index::open(dir, options.index_cache_bytes),
            layout,
            handles: Cache::new(HANDLE_COUNT_MAX),
            tables: Cache::new(TABLES_BYTES_MAX),
            decoded: Cache::new(DECODED_BYTES_MAX),
            verified: Verified::new(),
            in_flight: InFlight::new(),
            buffers: Buffers::default(),
            nowait_works: AtomicBool::new(true),
        })
    }

    /// How the store was opened.
    #[must_use]
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// All segments that have a file: id, whether there are bytes, whether there is a chunk table.
    /// In no order, in constant memory; what comes or goes during the walk may be seen or not.
    #[must_use]
    pub fn segments(&self) -> Segments<'_> {
        self.layout.segments()
    }

    /// An id that no segment has reached yet: whatever names one at or above it names nothing this
    /// store ever made, which means that the id counter is older than the rest.
    #[must_use]
    pub fn id_limit(&self) -> SegmentId {
        self.ids.limit()
    }

    /// Opens the bytes of a segment or staging file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Missing`] if there is no such segment.
    pub fn open_bytes(&self, segment: SegmentId, writable: bool) -> Result<File, StoreError> {
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        self.layout.open_bytes(segment, access)
    }

    /// How long a segment's file is.
    ///
    /// # Errors
    ///
    /// [`StoreError::Missing`] if there is no such segment.
    pub fn bytes_len(&self, segment: SegmentId) -> Result<u64, StoreError> {
        Ok(u64::try_from(self.bytes_stat(segment)?.st_size).unwrap_or(0))
    }

    /// The `stat` of a segment's file, for the attributes of an inode whose bytes it holds.
    ///
    /// # Errors
    ///
    /// [`StoreError::Missing`] if there is no such segment.
    pub fn bytes_stat(&self, segment: SegmentId) -> Result<Stat, StoreError> {
        self.layout.stat(segment, Part::Bytes)
    }

    /// Whether a segment is sealed and holds its chunks as they are, in one file's order.
    ///
    /// # Errors
    ///
    /// As [`Self::load_table`].
    pub fn is_verbatim(&self, segment: SegmentId) -> Result<bool, StoreError> {
        let table = self.table(segment)?;
        Ok(table.is_some_and(|table| table.kind == SegmentKind::Verbatim))
    }

    /// Closes what is kept open of a segment for reading, as soon as nobody reads it.
    pub fn close_bytes(&self, segment: SegmentId) {
        self.handles.remove(&segment);
    }

    /// The chunk table of a segment; `None` if it is not sealed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Table`] or [`StoreError::TableMismatch`] if it is damaged.
    pub fn load_table(&self, segment: SegmentId) -> Result<Option<SegmentTable>, StoreError> {
        Ok(self.table(segment)?.map(Arc::unwrap_or_clone))
    }

    /// Where chunks are already stored, by the index; `None` is "not known".
    ///
    /// A hit was true when it was looked at: the segment's file is there and its table lists
    /// exactly this chunk in this place. Whether metadata still names the segment, and whether the
    /// bytes are good ([`Self::verify_stored`]), is for the caller to find out.
    ///
    /// # Errors
    ///
    /// None at present: what cannot be looked up is not known.
    pub fn find(&self, chunks: &[ChunkId]) -> Result<Vec<Option<(Location, u32)>>, StoreError> {
        Ok(chunks.iter().map(|chunk| self.find_one(*chunk)).collect())
    }

    fn find_one(&self, chunk: ChunkId) -> Option<(Location, u32)> {
        let (location, chunk_len_bytes) = self.index.get(chunk)?;
        let is_listed = self.table(location.segment).map(|table| {
            let Some(table) = table else { return false };
            let wanted = TableEntry {
                chunk,
                offset_bytes: location.offset_bytes,
                stored_len_bytes: location.stored_len_bytes,
                chunk_len_bytes,
                encoding: location.encoding,
            };
            let index = table
                .entries
                .binary_search_by_key(&location.offset_bytes, |entry| entry.offset_bytes);
            let listed = index.is_ok_and(|index| table.entries[index] == wanted);
            listed && self.handle(location.segment).is_ok()
        });
        match is_listed {
            Ok(true) => Some((location, chunk_len_bytes)),
            Ok(false) => None,
            Err(error) => {
                let segment = location.segment;
                tracing::warn!(%chunk, %segment, %error, "an indexed chunk cannot be used");
                None
            }
        }
    }

    /// Adds a sealed segment's chunks to the index, once metadata names it.
    ///
    /// # Errors
    ///
    /// As [`Self::load_table`]. Trouble with the index itself is logged and forgotten.
    pub fn index_segment(&self, segment: SegmentId) -> Result<(), StoreError> {
        let Some(table) = self.table(segment)? else {
            return Err(StoreError::NotSealed { segment });
        };
        self.index_table(&table);
        Ok(())
    }

    /// Adds chunks to the index. The `u32` is the chunk's length.
    ///
    /// # Errors
    ///
    /// None at present: trouble with the index is logged and forgotten.
    pub fn index_chunks(&self, chunks: &[(ChunkId, Location, u32)]) -> Result<(), StoreError> {
        self.index.insert(chunks);
        Ok(())
    }

    /// Whether stored chunks may be missing in the index, so that [`Self::rebuild_index`] is worth
    /// running in the background. Stays true across restarts until a rebuild has ended.
    #[must_use]
    pub fn index_was_lost(&self) -> bool {
        self.index.is_lost()
    }

    /// Makes the index durable. Never needed; saves some duplicates after a power cut.
    ///
    /// # Errors
    ///
    /// [`StoreError::Index`] from the engine.
    pub fn sync_index(&self) -> Result<(), StoreError> {
        self.index.sync()
    }

    /// Deletes a segment: its index entries, its bytes, its chunk table. What is missing is fine,
    /// so a removal cut short by a crash is done again from the start.
    ///
    /// The caller knows that nothing names the segment. Not durable by itself: after a power cut
    /// the files may be back, and are then unnamed again.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`] if a file cannot be removed.
    pub fn remove(&self, segment: SegmentId) -> Result<(), StoreError> {
        // The table goes last: it is what finds the index entries when this is done again.
        match self.table(segment) {
            Ok(Some(table)) => {
                self.index.remove(segment, table.entries.iter().map(|entry| entry.chunk));
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%segment, %error, "index entries stay behind"),
        }
        for part in [Part::Bytes, Part::TableDraft, Part::Table] {
            self.layout.remove(segment, part)?;
        }
        self.forget(segment);
        Ok(())
    }

    /// Forgets a chunk table that has been replaced.
    pub(crate) fn forget_table(&self, segment: SegmentId) {
        self.tables.remove(&segment);
    }

    /// Forgets what is in memory about a segment whose files have changed or gone.
    pub(crate) fn forget(&self, segment: SegmentId) {
        self.handles.remove(&segment);
        self.tables.remove(&segment);
        self.decoded.remove_if(|(cached, _)| *cached == segment);
    }

    /// An open, read-only file of a segment, shared.
    pub(crate) fn handle(&self, segment: SegmentId) -> Result<Arc<File>, StoreError> {
        let absence = match self.handles.get(&segment) {
            Ok(file) => return Ok(file),
            Err(absence) => absence,
        };
        let file = Arc::new(self.layout.open_bytes(segment, OFlags::RDONLY)?);
        self.handles.insert(absence, segment, Arc::clone(&file), 1);
        Ok(file)
    }

    /// The same, but only if it is open already.
    pub(crate) fn handle_if_open(&self, segment: SegmentId) -> Option<Arc<File>> {
        self.handles.get(&segment).ok()
    }

    /// A segment's chunk table, shared. `None` if it has none.
    pub(crate) fn table(
        &self,
        segment: SegmentId,
    ) -> Result<Option<Arc<SegmentTable>>, StoreError> {
        let absence = match self.tables.get(&segment) {
            Ok(table) => return Ok(Some(table)),
            Err(absence) => absence,
        };
        let Some(table) = self.read_table(segment)? else { return Ok(None) };
        let table = Arc::new(table);
        let weight = (table.entries.len() * size_of::<TableEntry>()) as u64 + 64;
        self.tables.insert(absence, segment, Arc::clone(&table), weight);
        Ok(Some(table))
    }

    /// A segment's chunk table as it is on disk now.
    pub(crate) fn read_table(
        &self,
        segment: SegmentId,
    ) -> Result<Option<SegmentTable>, StoreError> {
        let Some(bytes) = self.layout.read_table(segment)? else { return Ok(None) };
        let table =
            SegmentTable::decode(&bytes).map_err(|source| StoreError::Table { segment, source })?;
        if !is_sound(&table, segment) {
            return Err(StoreError::TableMismatch { segment });
        }
        Ok(Some(table))
    }

    pub(crate) fn index_table(&self, table: &SegmentTable) {
        let chunks: Vec<(ChunkId, Location, u32)> = table
            .entries
            .iter()
            .map(|entry| (entry.chunk, location(table.segment, entry), entry.chunk_len_bytes))
            .collect();
        self.index.insert(&chunks);
    }
}

/// Where a table says that a chunk is.
pub(crate) fn location(segment: SegmentId, entry: &TableEntry) -> Location {
    Location {
        segment,
        offset_bytes: entry.offset_bytes,
        stored_len_bytes: entry.stored_len_bytes,
        encoding: entry.encoding,
    }
}

/// Whether a table keeps what `docs/format-store.md` promises beyond what its decoder checks.
pub(crate) fn is_sound(table: &SegmentTable, segment: SegmentId) -> bool {
    let end = |entry: &TableEntry| entry.offset_bytes + u64::from(entry.stored_len_bytes);
    let plausible = |entry: &TableEntry| {
        is_plausible(entry.encoding, entry.stored_len_bytes, entry.chunk_len_bytes)
            && (table.kind == SegmentKind::Packed
                || entry.encoding == librorum_format::Encoding::Raw)
    };
    table.segment == segment
        && table.entries.iter().all(plausible)
        && table.entries.windows(2).all(|pair| end(&pair[0]) <= pair[1].offset_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Store>();
    }
}
