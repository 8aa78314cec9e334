//! What files consist of and what a subtree takes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use librorum_format::{ChunkId, Extent, Ino, SegmentId};
use librorum_meta::{Content, Dentry, FileKind, Inode, Meta, MetaError};

use super::Outside;
use crate::error::{FsError, Result};
use crate::fs::Fs;

/// A run of a sealed file, and the chunk that it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRun {
    /// Where it starts in the file.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where it starts in the chunk.
    pub chunk_offset: u32,
    /// How long the chunk is: the run is the whole chunk if this is `len`.
    pub chunk_len: u32,
}

/// What a subtree holds and takes. Hard links count once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeUsage {
    /// Everything but directories.
    pub file_count: u64,
    /// Directories, the subtree's own root included.
    pub directory_count: u64,
    /// Sum of the regular files' lengths.
    pub logical_bytes: u64,
    /// Bytes of the distinct chunks that the files name, before compression; what is not sealed yet
    /// counts as it is, each file for itself.
    pub unique_bytes: u64,
    /// What they take on disk or in the metadata: each stored chunk once, as it is stored; staging
    /// files by their blocks; inline files by their length.
    pub stored_bytes: u64,
    /// Those of the stored bytes that removing one file would not free, or the whole subtree would
    /// not: stored chunks that more than one run inside the subtree names, and stored chunks in a
    /// verbatim segment that names outside of the file keep too. Of packed segments, which always hold
    /// many files' chunks, only the first is looked at.
    pub shared_bytes: u64,
    /// Whether the three sums are exact. With more distinct chunks than are kept track of they are
    /// estimates from a sample, a quarter of a percent off in most cases.
    pub is_exact: bool,
}

/// So many distinct chunks, and so many stored ones, are told apart: half a tebibyte at the default
/// chunk size, 24 MiB of memory each. From there on every second, fourth... is kept.
const SAMPLE_MAX: usize = 1 << 19;

/// Entries of a directory are read in pages of this many; one page is kept for each level of the tree.
const PAGE: usize = 256;

/// Names of hard-linked files are kept for telling that they are one, up to so many (32 MiB). Beyond,
/// every further name counts as a file of its own and the sums are no longer exact.
const LINKED_MAX: usize = 1 << 20;

/// Things of known size, told apart by a hash. A bounded sample of them, drawn by the hash itself, so
/// that one that occurs twice is in it both times or not at all.
#[derive(Debug, Default)]
struct Distinct {
    /// Hash → bytes, and whether they are shared.
    known: HashMap<u64, (u32, bool)>,
    /// Only hashes that end in so many zero bits are kept.
    level: u32,
}

impl Distinct {
    fn add(&mut self, hash: u64, bytes: u32, shared: bool) {
        if hash.trailing_zeros() < self.level {
            return;
        }
        self.known.entry(hash).and_modify(|(_, known)| *known = true).or_insert((bytes, shared));
        while self.known.len() > SAMPLE_MAX {
            self.level += 1;
            self.known.retain(|hash, _| hash.trailing_zeros() >= self.level);
        }
    }

    /// All bytes, and the shared ones among them.
    fn sums(&self) -> (u64, u64) {
        let (mut all, mut shared) = (0, 0);
        for (bytes, is_shared) in self.known.values() {
            all += u64::from(*bytes);
            shared += if *is_shared { u64::from(*bytes) } else { 0 };
        }
        (all << self.level, shared << self.level)
    }
}

/// A sum on its way.
#[derive(Debug, Default)]
struct Tally {
    usage: TreeUsage,
    linked: HashSet<Ino>,
    is_over: bool,
    chunks: Distinct,
    stored: Distinct,
}

impl Outside {
    /// The chunks of a sealed file, in order; gaps are holes. `None` if the file is not sealed.
    ///
    /// # Errors
    ///
    /// `NoInode`, the metadata's.
    pub fn chunks(&self, ino: Ino) -> Result<Option<Vec<ChunkRun>>> {
        let meta = &self.fs.meta;
        loop {
            let inode = meta.inode(ino)?;
            if inode.content != Content::Sealed {
                return Ok(None);
            }
            let extents = meta.extents(ino, 0, inode.size_bytes)?;
            if meta.inode(ino)?.content_version != inode.content_version {
                continue;
            }
            let run = |extent: Extent| ChunkRun {
                offset: extent.file_offset_bytes,
                len: u64::from(extent.len_bytes),
                chunk: extent.chunk,
                chunk_offset: extent.chunk_offset_bytes,
                chunk_len: extent.chunk_len_bytes,
            };
            return Ok(Some(extents.into_iter().map(run).collect()));
        }
    }

    /// Adds up a subtree, or a single file. What changes meanwhile is counted as it was or as it is.
    ///
    /// Costs one read of the metadata per inode and per page of extents, and a look at who names it for
    /// each segment of a large file. Memory: at most 80 MiB however large the subtree, and a page of
    /// entries for each level of it.
    ///
    /// # Errors
    ///
    /// `NoInode`; `Interrupted` soon after `cancel` was set; the metadata's.
    pub fn tree_usage(&self, ino: Ino, cancel: &AtomicBool) -> Result<TreeUsage> {
        let fs = &self.fs;
        let mut tally = Tally::default();
        let root = fs.attributes(ino)?.inode;
        fs.tally_inode(&mut tally, &root)?;
        let mut levels: Vec<Level> = Vec::new();
        if root.kind == FileKind::Directory {
            levels.push(Level::new(ino));
        }
        while let Some(level) = levels.last_mut() {
            if cancel.load(Ordering::Relaxed) {
                return Err(FsError::Interrupted);
            }
            let Some((dentry, inode)) = level.next(fs)? else {
                levels.pop();
                continue;
            };
            let inode = fs.refresh(inode)?.inode;
            fs.tally_inode(&mut tally, &inode)?;
            if dentry.kind == FileKind::Directory {
                levels.push(Level::new(dentry.ino));
            }
        }
        let (unique, _) = tally.chunks.sums();
        let (stored, shared) = tally.stored.sums();
        let mut usage = tally.usage;
        usage.unique_bytes += unique;
        usage.stored_bytes += stored;
        usage.shared_bytes += shared;
        usage.is_exact = tally.chunks.level == 0 && tally.stored.level == 0 && !tally.is_over;
        Ok(usage)
    }
}

/// A directory that is being read.
struct Level {
    dir: Ino,
    after: u64,
    page: std::vec::IntoIter<(Dentry, Inode)>,
}

impl Level {
    fn new(dir: Ino) -> Self {
        Self { dir, after: 0, page: Vec::new().into_iter() }
    }

    fn next(&mut self, fs: &Fs) -> Result<Option<(Dentry, Inode)>> {
        loop {
            if let Some(entry) = self.page.next() {
                return Ok(Some(entry));
            }
            let page = match fs.meta.readdir_plus(self.dir, self.after, PAGE) {
                Ok(page) => page,
                // Removed since.
                Err(MetaError::NoInode { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let Some((last, _)) = page.last() else { return Ok(None) };
            self.after = last.cookie;
            self.page = page.into_iter();
        }
    }
}

impl Fs {
    fn tally_inode(&self, tally: &mut Tally, inode: &Inode) -> Result<()> {
        if inode.kind == FileKind::Directory {
            tally.usage.directory_count += 1;
            return Ok(());
        }
        if inode.nlink > 1 {
            if tally.linked.contains(&inode.ino) {
                return Ok(());
            }
            if tally.linked.len() < LINKED_MAX {
                tally.linked.insert(inode.ino);
            } else {
                tally.is_over = true;
            }
        }
        tally.usage.file_count += 1;
        if inode.kind != FileKind::Regular {
            return Ok(());
        }
        tally.usage.logical_bytes += inode.size_bytes;
        match inode.content {
            Content::Empty => return Ok(()),
            Content::Inline => {
                tally.usage.unique_bytes += inode.size_bytes;
                tally.usage.stored_bytes += inode.size_bytes;
                return Ok(());
            }
            Content::Staged { .. } => {
                let bytes = inode.allocated_bytes;
                tally.usage.unique_bytes += bytes.min(inode.size_bytes);
                tally.usage.stored_bytes += bytes;
                return Ok(());
            }
            Content::Overlay { segment, .. } => {
                let blocks = self.store.bytes_stat(segment).map_or(0, |stat| stat.st_blocks);
                let bytes = u64::try_from(blocks).unwrap_or(0) * 512;
                tally.usage.unique_bytes += bytes.min(inode.size_bytes);
                tally.usage.stored_bytes += bytes;
            }
            Content::Sealed => {}
        }
        let extents = match self.meta.extents(inode.ino, 0, u64::MAX) {
            Ok(extents) => extents,
            // Reaped since it was listed.
            Err(MetaError::NoInode { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut foreign: HashMap<SegmentId, bool> = HashMap::new();
        for extent in &extents {
            let location = extent.location;
            let is_foreign = match foreign.get(&location.segment) {
                Some(known) => *known,
                None => {
                    // A packed segment is everybody's; a table that cannot be read says nothing.
                    let is_verbatim = self.store.is_verbatim(location.segment).unwrap_or(false);
                    let is_foreign = is_verbatim
                        && !self
                            .meta
                            .segment_is_owned_by(location.segment, inode.ino)
                            .unwrap_or(true);
                    foreign.insert(location.segment, is_foreign);
                    is_foreign
                }
            };
            let name: [u8; 8] = std::array::from_fn(|index| extent.chunk.0[index]);
            let name = u64::from_le_bytes(name);
            tally.chunks.add(name, extent.chunk_len_bytes, false);
            let place = mix(location.segment.0 ^ mix(location.offset_bytes));
            tally.stored.add(place, location.stored_len_bytes, is_foreign);
        }
        Ok(())
    }
}

/// The finalizer of `splitmix64`.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_near_what_it_stands_for() {
        let mut distinct = Distinct::default();
        let count = 3 * SAMPLE_MAX as u64;
        for index in 0..count {
            distinct.add(mix(index), 10, index % 4 == 0);
            if index % 2 == 1 {
                // Twice: no more bytes, but shared.
                distinct.add(mix(index), 10, false);
            }
        }
        assert_eq!(distinct.level, 2);
        let (all, shared) = distinct.sums();
        let near = |found: u64, wanted: u64| found.abs_diff(wanted) < wanted / 100;
        assert!(near(all, count * 10), "{all}");
        assert!(near(shared, count * 10 / 4 * 3), "{shared}");
    }
}
