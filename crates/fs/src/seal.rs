//! Sealing: closed staging files become immutable, deduplicated content, without copying them.
//!
//! Order: the bytes, then their chunk table, are durable before the transaction that names them;
//! duplicates are punched out only after that transaction is durable. A file that somebody opens
//! for writing meanwhile keeps its staging file; what was hashed is thrown away.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use librorum_format::{ChunkId, Encoding, Extent, Ino, Location, SegmentId};
use librorum_meta::{Meta, MetaError, NewContent, SetContent};
use librorum_store::Chunk;

use crate::error::{Result, disk};
use crate::fs::{Fs, WholeUse};
use crate::node::{Backing, Data, ExtentCache, Node, NodeState, Overlay, Service, lock};

/// Files up to this size are packed together: a segment of its own would cost them more in names
/// and syncs than in bytes.
const PACKED_MAX_BYTES: u64 = 64 << 10;

/// A packed segment is written when it has this many bytes, or the files of a batch.
const PACK_BYTES: usize = 8 << 20;

/// From this size on a thread of its own syncs a file while it is hashed.
const SYNC_EARLY_MIN_BYTES: u64 = 16 << 20;

/// How often a change that a concurrent one made stale is worked out anew before the file goes back
/// to the end of the queue.
const TRIES: usize = 3;

/// A small file on its way into a packed segment.
struct SmallFile {
    node: Arc<Node>,
    generation: u64,
    bytes: Vec<u8>,
}

/// What came of an attempt to publish sealed content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Published {
    /// It is the file's content. Whatever has happened to the file since, its segments are named.
    Yes,
    /// The file changed or is in use, and stays as it is; it is sealed another time.
    No,
    /// A segment that was to be shared is gone: it has to be worked out anew.
    Again,
}

/// An overlay, divided for sealing.
struct Regions {
    /// What is to be chunked anew.
    changed: Vec<(u64, u64)>,
    /// The base's extents outside of it.
    kept: Vec<Extent>,
}

impl Fs {
    /// Seals files that were due. What cannot be sealed now goes back to the queue.
    pub(crate) fn seal_batch(&self, batch: &[Ino]) {
        let mut pack = Vec::new();
        let mut pack_bytes = 0;
        for &ino in batch {
            if self.sealer.is_closed() {
                return;
            }
            match self.seal_one(ino) {
                Ok(Some(small)) => {
                    pack_bytes += small.bytes.len();
                    pack.push(small);
                    if pack_bytes >= PACK_BYTES {
                        self.seal_pack_or_requeue(&std::mem::take(&mut pack));
                        pack_bytes = 0;
                    }
                }
                Ok(None) => {}
                Err(error) => self.seal_failed(ino, &error),
            }
            self.reclaim.note_idle(ino);
        }
        if !pack.is_empty() {
            self.seal_pack_or_requeue(&pack);
        }
    }

    fn seal_pack_or_requeue(&self, pack: &[SmallFile]) {
        let inos: Vec<Ino> = pack.iter().map(|small| small.node.ino).collect();
        if let Err(error) = self.seal_pack(pack) {
            for ino in inos {
                self.seal_failed(ino, &error);
            }
        }
    }

    /// The file stays staged, which loses nothing; it is tried again much later, because what
    /// failed (a full disk, an unreadable one) rarely passes at once.
    fn seal_failed(&self, ino: Ino, error: &crate::error::FsError) {
        tracing::warn!(%error, ?ino, "sealing failed; the file stays staged");
        self.sealer.put_off(ino);
    }

    /// Seals one file, or hands back a small one for packing.
    fn seal_one(&self, ino: Ino) -> Result<Option<SmallFile>> {
        let waits = match self.meta.inode(ino) {
            Ok(inode) => inode.nlink > 0 && inode.content.staging().is_some(),
            Err(_) => false,
        };
        if !waits {
            if let Some(node) = self.table.existing(ino) {
                self.sealer.dequeue(std::mem::take(&mut lock(&node.state).queued_bytes));
            }
            return Ok(None);
        }
        let node = self.table.node(ino);
        for _ in 0..TRIES {
            self.wait_for_last_close(&node);
            let (data, generation) = {
                let mut state = lock(&node.state);
                if state.writers > 0 || state.orphan {
                    return Ok(None);
                }
                self.load(&node, &mut state)?;
                if self.is_used_elsewhere(&state) {
                    self.requeue_in_use(&node, &mut state);
                    return Ok(None);
                }
                (state.data.clone().expect("just loaded"), state.generation)
            };
            let done = match data {
                Data::Staged(backing) => {
                    let len = backing.file().metadata().map_err(disk("cannot stat", ino))?.len();
                    let inline_max = u64::from(self.volume.config.inline_max_bytes);
                    let is_served = lock(&node.state).service == Service::Passthrough;
                    // A file that is read by passthrough must stay the file it is; a hole is kept
                    // by a segment of its own.
                    let is_sparse = has_hole(&backing, len, ino)?;
                    if len > PACKED_MAX_BYTES || is_sparse || (is_served && len > 0) {
                        self.seal_large(&node, &backing, len, generation)?
                    } else {
                        let mut bytes = vec![0; usize::try_from(len).expect("small")];
                        backing
                            .file()
                            .read_exact_at(&mut bytes, 0)
                            .map_err(disk("cannot read", ino))?;
                        if len > inline_max {
                            return Ok(Some(SmallFile { node, generation, bytes }));
                        }
                        let content =
                            if len == 0 { NewContent::Empty } else { NewContent::Inline(&bytes) };
                        let data = if len == 0 {
                            Data::Empty
                        } else {
                            Data::Inline(bytes.as_slice().into())
                        };
                        self.publish(&node, generation, content, len, data, &[])?
                            != Published::Again
                    }
                }
                Data::Overlay(overlay) => self.seal_overlay(&node, &overlay, generation)?,
                Data::Empty | Data::Inline(_) | Data::Whole(_) | Data::Sealed(_) => {
                    return Ok(None);
                }
            };
            if done {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Publishes sealed content, unless the file was opened for writing or changed meanwhile.
    /// `data` is what the node holds then, `stored` names the segments of others that the content
    /// shares. None of those may be changed in place right now, as a file that is open by
    /// passthrough may be at any time.
    fn publish(
        &self,
        node: &Node,
        generation: u64,
        content: NewContent<'_>,
        size_bytes: u64,
        data: Data,
        stored: &[Option<(Location, u32)>],
    ) -> Result<Published> {
        let mut state = lock(&node.state);
        if state.generation != generation || state.writers > 0 || state.orphan {
            return Ok(Published::No);
        }
        if state.service == Service::Passthrough && !matches!(data, Data::Whole(_)) {
            // Opened for reading since; it is queued again when it is closed for good.
            self.requeue(node, &mut state);
            return Ok(Published::No);
        }
        // Mapped since: what is no longer its own file will be given back or lose its duplicates.
        if self.is_used_elsewhere(&state) {
            self.requeue_in_use(node, &mut state);
            return Ok(Published::No);
        }
        let inode = self.meta.inode(node.ino)?;
        let allocated_bytes = match &content {
            NewContent::Sealed { extents, .. } => extents
                .iter()
                .map(|extent| u64::from(extent.len_bytes))
                .sum::<u64>()
                .next_multiple_of(512),
            NewContent::Inline(bytes) => (bytes.len() as u64).next_multiple_of(512),
            NewContent::Empty | NewContent::Staged { .. } | NewContent::Overlay { .. } => 0,
        };
        // Held until the metadata says so, so that nobody can come to own alone what is about to
        // be shared. From here on the owners find their segments shared, whether this succeeds or
        // not; they look again when they are next opened.
        let mut whole = lock(&self.whole);
        if !claim_for_sharing(
            &mut whole,
            stored.iter().flatten().map(|(location, _)| location.segment),
        ) {
            drop(whole);
            // Its reader will be gone one day; until then this file stays staged.
            self.requeue(node, &mut state);
            return Ok(Published::No);
        }
        let published = self.meta.set_content(&SetContent {
            ino: node.ino,
            expected_version: inode.content_version,
            content,
            size_bytes,
            allocated_bytes,
            mtime: None,
            ctime: None,
        });
        match published {
            Ok(_) => {}
            // A segment that was to be shared went away meanwhile: work it out anew.
            Err(MetaError::SegmentGone { .. } | MetaError::StaleContent { .. }) => {
                return Ok(Published::Again);
            }
            Err(error) => return Err(error.into()),
        }
        if let Data::Whole(backing) = &data {
            let open_count = if state.service == Service::Passthrough { state.readers } else { 0 };
            whole.insert(backing.segment(), WholeUse { open_count });
        }
        drop(whole);
        state.data = Some(data);
        self.sealer.dequeue(std::mem::take(&mut state.queued_bytes));
        self.sealer.note_sealed(size_bytes);
        Ok(Published::Yes)
    }

    fn requeue(&self, node: &Node, state: &mut NodeState) {
        let bytes = std::mem::take(&mut state.queued_bytes);
        state.queued_bytes = bytes.max(1);
        self.sealer.requeue(node.ino, bytes, state.queued_bytes);
    }

    /// Whether somebody has the staging file open or mapped: through passthrough, whose mappings
    /// outlive the close that we are told of and may go on writing, or by a descriptor that was lent.
    /// Both show the file below as it is: it must not be sealed under its writer, nor emptied or
    /// punched under its reader.
    ///
    /// Punches come later than this look, and are safe all the same. They take ranges of a segment
    /// whose chunk table does not list them (`Store::punch`), and whoever is lent the segment from here
    /// on is told listed chunks only (`outside/read.rs`); a staging file that was lent whole, unlisted
    /// ranges and all, is not sealed before that is over. Nor can the bytes under a queued punch become
    /// a file again: as long as they are there the segment is not `Whole` (`Fs::whole_segment`), so
    /// nothing unseals it.
    fn is_used_elsewhere(&self, state: &NodeState) -> bool {
        let Some(Data::Staged(backing)) = &state.data else { return false };
        (self.passthrough.load(Ordering::Relaxed) || self.lent.is_any())
            && matches!(librorum_sys::lease::is_sole_opener(backing.file()), Ok(false))
    }

    /// We hear of a close a moment before the kernel lets go of the file below. One that was in use the
    /// last time is not waited for.
    fn wait_for_last_close(&self, node: &Node) {
        for _ in 0..10 {
            let state = lock(&node.state);
            if state.queued_bytes <= 1 || !self.is_used_elsewhere(&state) {
                return;
            }
            drop(state);
            librorum_sys::clock::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Looks again in a while. Nobody who writes waits for a file that may be in use for ever.
    fn requeue_in_use(&self, node: &Node, state: &mut NodeState) {
        let bytes = std::mem::replace(&mut state.queued_bytes, 1);
        self.sealer.requeue(node.ino, bytes, 1);
    }

    /// Seals a staging file in place, or drops it if all of it is stored already.
    fn seal_large(
        &self,
        node: &Node,
        backing: &Arc<Backing>,
        len: u64,
        generation: u64,
    ) -> Result<bool> {
        let changed = || lock(&node.state).generation != generation || self.sealer.is_closed();
        let Some(chunks) = self.chunk_while_syncing(backing, len, &changed)? else {
            return Ok(true);
        };
        if chunks.is_empty() {
            let published =
                self.publish(node, generation, NewContent::Empty, len, Data::Empty, &[])?;
            return Ok(published != Published::Again);
        }
        let bound = lock(&node.state).service == Service::Passthrough;
        let stored = if bound { vec![None; chunks.len()] } else { self.find_stored(&chunks)? };
        let segment = backing.segment();
        let own: Vec<Chunk> = chunks
            .iter()
            .zip(&stored)
            .filter_map(|(chunk, stored)| stored.is_none().then_some(*chunk))
            .collect();
        if !own.is_empty() {
            self.store.seal_verbatim(segment, backing.file(), len, &own)?;
        }
        let extents = extents_of(&chunks, &stored, segment);
        let is_whole = own.len() == chunks.len();
        let data = if is_whole {
            Data::Whole(Arc::clone(backing))
        } else {
            Data::Sealed(Arc::new(ExtentCache::default()))
        };
        let fresh = [segment];
        let fresh = if own.is_empty() { &[][..] } else { &fresh };
        let content = NewContent::Sealed { extents: &extents, fresh };
        let published = self.publish(node, generation, content, len, data, &stored)?;
        if published != Published::Yes {
            return self.not_published(published, segment, &own);
        }
        if self.is_sealed_as(node, segment) {
            self.index(&own, segment);
        }
        if !is_whole && !own.is_empty() {
            let duplicates = chunks
                .iter()
                .zip(&stored)
                .filter(|(_, stored)| stored.is_some())
                .map(|(chunk, _)| {
                    let start = chunk.file_offset_bytes;
                    (start, start + u64::from(chunk.len_bytes))
                })
                .collect();
            self.reclaim.punch_later(self.meta.newest_txn(), segment, duplicates);
        }
        Ok(true)
    }

    /// Takes back the seal of a segment that was not published: it is a staging file still, about to
    /// change, and its table must not vouch for it. One that was published keeps its table, also if its
    /// file has moved on meanwhile: others may have come to share it.
    fn not_published(
        &self,
        published: Published,
        segment: SegmentId,
        own: &[Chunk],
    ) -> Result<bool> {
        if !own.is_empty() {
            self.store.unseal(segment)?;
        }
        Ok(published != Published::Again)
    }

    /// Chunks a file while the disk writes it back: hashing and writing take about as long, and the
    /// sync that sealing ends with then has little left to do.
    fn chunk_while_syncing(
        &self,
        backing: &Backing,
        len: u64,
        changed: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Chunk>>> {
        if len < SYNC_EARLY_MIN_BYTES {
            return Ok(self.store.chunk_file(backing.file(), len, changed)?);
        }
        std::thread::scope(|scope| {
            // Its failure, if any, comes back from the sync that counts.
            scope.spawn(|| rustix::fs::fdatasync(backing.file()));
            Ok(self.store.chunk_file(backing.file(), len, changed)?)
        })
    }

    /// Whether the node still is what sealing to `segment` made of it.
    fn is_sealed_as(&self, node: &Node, segment: SegmentId) -> bool {
        match &lock(&node.state).data {
            Some(Data::Whole(backing)) => backing.segment() == segment,
            Some(Data::Sealed(_)) => true,
            _ => false,
        }
    }

    fn index(&self, chunks: &[Chunk], segment: SegmentId) {
        let entries: Vec<_> = chunks
            .iter()
            .map(|chunk| (chunk.id, location_in(segment, chunk), chunk.len_bytes))
            .collect();
        if let Err(error) = self.store.index_chunks(&entries) {
            tracing::warn!(%error, "the dedup index missed a segment; duplicates may be stored");
        }
    }

    /// Where chunks are stored already, each proven by reading it: a fresh copy is dropped only on
    /// the strength of bytes, not of an index.
    fn find_stored(&self, chunks: &[Chunk]) -> Result<Vec<Option<(Location, u32)>>> {
        let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.id).collect();
        let mut found = self.store.find(&ids)?;
        for (chunk, stored) in chunks.iter().zip(&mut found) {
            let Some((location, len)) = *stored else { continue };
            let usable = len == chunk.len_bytes
                && self
                    .store
                    .verify_stored(chunk.id, location, len)
                    .inspect_err(|error| {
                        tracing::error!(%error, "a stored chunk is damaged; its new copy is kept");
                    })
                    .is_ok();
            if !usable {
                *stored = None;
            }
        }
        Ok(found)
    }

    /// Writes small files into one packed segment and publishes each.
    fn seal_pack(&self, pack: &[SmallFile]) -> Result<()> {
        let chunks: Vec<Chunk> = pack
            .iter()
            .map(|small| Chunk {
                file_offset_bytes: 0,
                len_bytes: u32::try_from(small.bytes.len()).expect("small"),
                id: ChunkId::of(&small.bytes),
            })
            .collect();
        let stored = self.find_stored(&chunks)?;
        let mut seen = HashSet::new();
        let fresh: Vec<usize> = (0..pack.len())
            .filter(|&index| stored[index].is_none() && seen.insert(chunks[index].id))
            .collect();
        let mut packed = HashMap::new();
        let mut segment = None;
        if !fresh.is_empty() {
            let bytes: Vec<&[u8]> =
                fresh.iter().map(|&index| pack[index].bytes.as_slice()).collect();
            let (id, locations) = self.store.write_packed(&bytes)?;
            segment = Some(id);
            packed.extend(locations);
        }
        let mut named = false;
        for ((small, chunk), stored) in pack.iter().zip(&chunks).zip(&stored) {
            let location = match stored {
                Some((location, _)) => *location,
                None => packed[&chunk.id],
            };
            let extent = Extent {
                file_offset_bytes: 0,
                len_bytes: chunk.len_bytes,
                chunk_offset_bytes: 0,
                chunk_len_bytes: chunk.len_bytes,
                chunk: chunk.id,
                location,
            };
            let fresh: Vec<SegmentId> = segment.into_iter().collect();
            let content = NewContent::Sealed { extents: &[extent], fresh: &fresh };
            let data = Data::Sealed(Arc::new(ExtentCache::default()));
            let len = u64::from(chunk.len_bytes);
            let published =
                self.publish(&small.node, small.generation, content, len, data, &[*stored])?;
            named |= stored.is_none();
            if published == Published::Again {
                let mut state = lock(&small.node.state);
                self.requeue(&small.node, &mut state);
            }
        }
        if let Some(segment) = segment {
            if named && self.meta.segment_is_named(segment)? {
                let entries: Vec<_> = fresh
                    .iter()
                    .map(|&index| {
                        (chunks[index].id, packed[&chunks[index].id], chunks[index].len_bytes)
                    })
                    .collect();
                if let Err(error) = self.store.index_chunks(&entries) {
                    tracing::warn!(%error, "the dedup index missed a packed segment");
                }
            } else {
                self.meta.condemn(&[segment])?;
            }
        }
        Ok(())
    }

    /// Seals an overlay: what was written, widened to the base's chunks, is chunked anew and stays
    /// in the staging file; the rest of the base's extents stay as they are.
    fn seal_overlay(&self, node: &Node, overlay: &Arc<Overlay>, generation: u64) -> Result<bool> {
        let ino = node.ino;
        let backing = &overlay.backing;
        let len = backing.file().metadata().map_err(disk("cannot stat", ino))?.len();
        let Regions { changed: regions, kept: base } = self.overlay_regions(ino, overlay, len)?;
        let is_stale = || lock(&node.state).generation != generation || self.sealer.is_closed();
        let mut chunks = Vec::new();
        for &(start, end) in &regions {
            self.complete_region(ino, overlay, start, end)?;
            let mut read_at =
                |buffer: &mut [u8], offset: u64| backing.file().read_at(buffer, offset);
            match self.store.chunk_reader(&mut read_at, start, end, &is_stale)? {
                Some(found) => chunks.extend(found),
                None => return Ok(true),
            }
        }
        let stored = self.find_stored(&chunks)?;
        let segment = backing.segment();
        let own: Vec<Chunk> = chunks
            .iter()
            .zip(&stored)
            .filter_map(|(chunk, stored)| stored.is_none().then_some(*chunk))
            .collect();
        if !own.is_empty() {
            self.store.seal_verbatim(segment, backing.file(), len, &own)?;
        }
        let mut extents = extents_of(&chunks, &stored, segment);
        extents.extend(base);
        extents.sort_by_key(|extent| extent.file_offset_bytes);
        let fresh = [segment];
        let fresh = if own.is_empty() { &[][..] } else { &fresh };
        let content = if extents.is_empty() {
            NewContent::Empty
        } else {
            NewContent::Sealed { extents: &extents, fresh }
        };
        let data = Data::Sealed(Arc::new(ExtentCache::default()));
        let published = self.publish(node, generation, content, len, data, &stored)?;
        if published != Published::Yes {
            return self.not_published(published, segment, &own);
        }
        if self.is_sealed_as(node, segment) {
            self.index(&own, segment);
        }
        Ok(true)
    }

    /// The regions of an overlay that are to be chunked, and the base's extents outside of them.
    fn overlay_regions(&self, ino: Ino, overlay: &Overlay, len: u64) -> Result<Regions> {
        let state = lock(&overlay.state);
        let base: Vec<Extent> = self
            .meta
            .extents(ino, 0, state.base_len_bytes)?
            .iter()
            .filter_map(|extent| extent.clip(0, state.base_len_bytes.min(len)))
            .collect();
        let mut regions = crate::ranges::RangeSet::default();
        for (start, end) in state.written.iter() {
            regions.insert(start, end.min(len));
        }
        // Widened until no extent is cut in two: the untouched ones keep whole chunks.
        for extent in &base {
            let (start, end) = (extent.file_offset_bytes, extent.file_end_bytes());
            let (inside, until) = regions.run_at(start);
            if inside || until < end {
                regions.insert(start, end);
            }
        }
        let regions: Vec<(u64, u64)> = regions.iter().collect();
        let kept = base
            .into_iter()
            .filter(|extent| {
                !regions.iter().any(|(start, end)| {
                    extent.file_offset_bytes < *end && *start < extent.file_end_bytes()
                })
            })
            .collect();
        Ok(Regions { changed: regions, kept })
    }

    /// Copies what the base has in a region into the staging file, so that the region's chunks lie
    /// in it whole. In whole blocks, for the reason that `write_overlay` gives.
    fn complete_region(&self, ino: Ino, overlay: &Overlay, start: u64, end: u64) -> Result<()> {
        use crate::overlay::BLOCK_BYTES;
        const PIECE_BYTES: u64 = 256 * BLOCK_BYTES;
        let mut at = start / BLOCK_BYTES * BLOCK_BYTES;
        while at < end {
            let mut state = lock(&overlay.state);
            let (written, until) = state.written.run_at(at);
            if written {
                at = until;
                continue;
            }
            let stop = until.min(end.next_multiple_of(BLOCK_BYTES)).min(at + PIECE_BYTES);
            let base_end = stop.min(state.base_len_bytes);
            if at < base_end {
                let mut bytes = vec![0; usize::try_from(base_end - at).expect("at most a piece")];
                self.read_base(ino, at, &mut bytes)?;
                overlay
                    .backing
                    .file()
                    .write_all_at(&bytes, at)
                    .map_err(disk("cannot complete a chunk", ino))?;
                state.written.insert(at, stop);
            }
            at = stop;
        }
        Ok(())
    }

    /// Lets the target of a copy share the extents of a sealed source, instead of its bytes. Only
    /// into an empty file that is not served by passthrough: the kernel would go on reading that
    /// one from its staging file.
    pub(crate) fn share_range(
        &self,
        source: &Node,
        from: u64,
        target: &Node,
        to: u64,
        len: u64,
    ) -> Result<bool> {
        if source.ino == target.ino || to != 0 {
            return Ok(false);
        }
        let extents = {
            let mut state = lock(&source.state);
            self.load(source, &mut state)?;
            match &state.data {
                Some(Data::Whole(_) | Data::Sealed(_)) => {}
                _ => return Ok(false),
            }
            let size_bytes = self.meta.inode(source.ino)?.size_bytes;
            let end = from.saturating_add(len).min(size_bytes);
            if end <= from {
                return Ok(false);
            }
            let shared: Vec<Extent> = self
                .meta
                .extents(source.ino, from, end)?
                .iter()
                .filter_map(|extent| extent.clip(from, end))
                .map(|extent| Extent {
                    file_offset_bytes: extent.file_offset_bytes - from,
                    ..extent
                })
                .collect();
            (shared, end - from)
        };
        let (shared, size_bytes) = extents;
        if shared.is_empty() {
            return Ok(false);
        }
        let mut state = lock(&target.state);
        self.load(target, &mut state)?;
        let Some(Data::Staged(backing)) = state.data.clone() else { return Ok(false) };
        let is_empty =
            backing.file().metadata().map_err(disk("cannot stat", target.ino))?.len() == 0;
        if state.service != Service::Cached || !is_empty {
            return Ok(false);
        }
        let mut whole = lock(&self.whole);
        if !claim_for_sharing(&mut whole, shared.iter().map(|extent| extent.location.segment)) {
            return Ok(false);
        }
        let now = librorum_sys::clock::now();
        let inode = self.meta.inode(target.ino)?;
        let published = self.meta.set_content(&SetContent {
            ino: target.ino,
            expected_version: inode.content_version,
            content: NewContent::Sealed { extents: &shared, fresh: &[] },
            size_bytes,
            allocated_bytes: shared.iter().map(|extent| u64::from(extent.len_bytes)).sum(),
            mtime: Some(now),
            ctime: Some(now),
        });
        match published {
            Ok(_) => {}
            Err(MetaError::SegmentGone { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        state.data = Some(Data::Sealed(Arc::new(ExtentCache::default())));
        state.changed_through_kernel();
        Ok(true)
    }
}

fn location_in(segment: SegmentId, chunk: &Chunk) -> Location {
    Location {
        segment,
        offset_bytes: chunk.file_offset_bytes,
        stored_len_bytes: chunk.len_bytes,
        encoding: Encoding::Raw,
    }
}

fn extents_of(
    chunks: &[Chunk],
    stored: &[Option<(Location, u32)>],
    segment: SegmentId,
) -> Vec<Extent> {
    chunks
        .iter()
        .zip(stored)
        .map(|(chunk, stored)| Extent {
            file_offset_bytes: chunk.file_offset_bytes,
            len_bytes: chunk.len_bytes,
            chunk_offset_bytes: 0,
            chunk_len_bytes: chunk.len_bytes,
            chunk: chunk.id,
            location: stored.map_or_else(|| location_in(segment, chunk), |(location, _)| location),
        })
        .collect()
}

/// Takes segments out of those that one file owns alone; false, and nothing is taken, if one of
/// them is open by passthrough.
pub(crate) fn claim_for_sharing(
    whole: &mut HashMap<SegmentId, WholeUse>,
    segments: impl Iterator<Item = SegmentId> + Clone,
) -> bool {
    let mut wanted = segments.clone();
    if wanted.any(|segment| whole.get(&segment).is_some_and(|uses| uses.open_count > 0)) {
        return false;
    }
    for segment in segments {
        whole.remove(&segment);
    }
    true
}

/// Whether a file has a hole before its end.
fn has_hole(backing: &Backing, len: u64, ino: Ino) -> Result<bool> {
    if len == 0 {
        return Ok(false);
    }
    let hole = rustix::fs::seek(backing.file(), rustix::fs::SeekFrom::Hole(0))
        .map_err(disk("cannot seek in", ino))?;
    Ok(hole < len)
}
