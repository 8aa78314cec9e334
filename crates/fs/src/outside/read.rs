//! Reading from outside: bytes that we verify and hand over, and descriptors that are lent so that
//! another process reads by itself.
//!
//! What may be lent, and why it shows the right bytes for as long as it is open:
//! * a staging file, to whoever may read the file: all of it is that file's. It shows what the file's
//!   writers write, as an open file does. It is neither sealed nor emptied before it is closed
//!   (`Fs::is_used_elsewhere`, `Store::empty`);
//! * the segment of a file that has one of its own (`Data::Whole`), to the same. Its bytes never change
//!   in place while it is lent (`Fs::make_writable`), unless the kernel has the file open by
//!   passthrough when a writer comes: then it shows what that writes, as an open file does;
//! * a verbatim segment of several files, to the trusted only, because it shows the others' bytes too.
//!   What is told of it are chunks that its table lists, and those are never punched; nor is a segment
//!   changed in place that became one file's own again, as long as it is lent.
//!
//! Deleting any of them takes the name, not the file. Nothing is lent of a volume that verifies every
//! read: another process does not.

use std::fs::File;
use std::sync::Arc;

use librorum_format::{ChunkId, Encoding, Extent, Ino, SegmentId};
use librorum_meta::Meta;
use librorum_store::VerifyPolicy;

use super::Outside;
use crate::attr::Attributes;
use crate::error::{FsError, Result, disk};
use crate::fs::Fs;
use crate::node::{Backing, Data, Node, NodeState, lock};

/// A file that is open for reading. It stays readable when it is unlinked, and shows what is written
/// to it meanwhile; dropping it closes it.
#[derive(Debug)]
pub struct ReadHandle {
    fs: Arc<Fs>,
    node: Option<Arc<Node>>,
    ino: Ino,
}

/// A run of a file's bytes, and who can read it.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where it starts in the file.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// The chunk that it lies in and where it starts there, if it is sealed.
    pub chunk: Option<(ChunkId, u32)>,
    /// Where its bytes are to be had.
    pub source: PieceSource,
}

/// Where the bytes of a piece are to be had.
#[derive(Clone, Debug)]
pub enum PieceSource {
    /// Nowhere: they are zeros.
    Hole,
    /// In this file, open for reading only, in a description that nobody else uses.
    File {
        /// What the file is called: equal names in one answer are one file.
        segment: SegmentId,
        /// The file.
        file: Arc<File>,
        /// Where the piece starts in it.
        offset: u64,
    },
    /// With us: [`ReadHandle::read_at`].
    Private,
}

impl Outside {
    /// Opens a regular file for reading. The kernel's opens of it, present and future, are served as if
    /// this one were not there.
    ///
    /// # Errors
    ///
    /// `NoInode`, `Invalid` for anything but a regular file, the disk's.
    pub fn open_read(&self, ino: Ino) -> Result<ReadHandle> {
        let fs = &self.fs;
        let node = fs.table.node(ino);
        let opened = {
            let mut state = lock(&node.state);
            fs.load(&node, &mut state).map(|()| state.outside_readers += 1)
        };
        if let Err(error) = opened {
            drop(node);
            fs.after_last_close(ino, true);
            return Err(error);
        }
        let handle = ReadHandle { fs: Arc::clone(fs), node: Some(node), ino };
        self.write_back(ino);
        Ok(handle)
    }
}

impl Drop for ReadHandle {
    fn drop(&mut self) {
        let Some(node) = self.node.take() else { return };
        let (is_idle, orphan) = {
            let mut state = lock(&node.state);
            state.outside_readers = state.outside_readers.saturating_sub(1);
            (!state.is_open(), state.orphan)
        };
        drop(node);
        if is_idle {
            self.fs.after_last_close(self.ino, orphan);
        }
    }
}

impl ReadHandle {
    /// The inode.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Its attributes, also once it is unlinked.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn attributes(&self) -> Result<Attributes> {
        self.fs.attributes(self.ino)
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("there until it is dropped")
    }

    /// Reads bytes, verified like all that we hand out, and answers how many: fewer than asked for only
    /// at the end of the file.
    ///
    /// # Errors
    ///
    /// `Store` with `DataLoss` for bytes that cannot be proven; the disk's.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let (fs, node) = (&self.fs, self.node());
        loop {
            let (data, generation) = {
                let mut state = lock(&node.state);
                fs.load(node, &mut state)?;
                (state.data.clone().expect("just loaded"), state.generation)
            };
            match fs.fill(node.ino, &data, offset, out) {
                // The bytes moved while they were read: unsealed, resealed or cut.
                Err(FsError::Store(_)) if lock(&node.state).generation != generation => {}
                other => return other,
            }
        }
    }

    /// The staging file, if all bytes are in one.
    pub(super) fn staging(&self) -> Option<Arc<Backing>> {
        match &lock(&self.node().state).data {
            Some(Data::Staged(backing)) => Some(Arc::clone(backing)),
            _ => None,
        }
    }

    /// What a range of the file consists of, in order and without gaps, up to the file's end. `trusted`
    /// says that the reader may see other files' bytes. At most as many descriptors are opened as there
    /// are segments in the range; ask for less of a file that has many.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn pieces(&self, offset: u64, len: u64, trusted: bool) -> Result<Vec<Piece>> {
        let (fs, node) = (&self.fs, self.node());
        // Held to the end: what is lent is listed before the sealer looks again.
        let mut state = lock(&node.state);
        fs.load(node, &mut state)?;
        let size_bytes = match &state.data {
            Some(data) => match data.staging() {
                Some(backing) => {
                    backing.file().metadata().map_err(disk("cannot stat", node.ino))?.len()
                }
                None => fs.meta.inode(node.ino)?.size_bytes,
            },
            None => 0,
        };
        let end = offset.saturating_add(len).min(size_bytes);
        if offset >= end {
            return Ok(Vec::new());
        }
        let pieces = fs.pieces(node, &state, (offset, end), trusted)?;
        drop(state);
        let lent = pieces.iter().filter(|piece| matches!(piece.source, PieceSource::File { .. }));
        fs.lent.note_bytes(lent.map(|piece| piece.len).sum());
        Ok(pieces)
    }
}

/// The descriptors that one answer lends.
#[derive(Default)]
struct Lending {
    open: Vec<(SegmentId, Option<Arc<File>>)>,
}

impl Lending {
    /// A description of a segment's file that is nobody else's; none if it is not to be lent.
    fn file(&mut self, fs: &Fs, segment: SegmentId, is_whole: bool) -> Result<Option<Arc<File>>> {
        if let Some((_, file)) = self.open.iter().find(|(known, _)| *known == segment) {
            return Ok(file.clone());
        }
        let file = if is_whole || fs.store.is_verbatim(segment)? {
            fs.lent.insert(segment);
            Some(Arc::new(fs.store.open_bytes(segment, false)?))
        } else {
            None
        };
        self.open.push((segment, file.clone()));
        Ok(file)
    }
}

impl Fs {
    fn pieces(
        &self,
        node: &Node,
        state: &NodeState,
        (offset, end): (u64, u64),
        trusted: bool,
    ) -> Result<Vec<Piece>> {
        let lends = self.options.verify != VerifyPolicy::Always;
        let whole = |source| Piece { offset, len: end - offset, chunk: None, source };
        let mut lending = Lending::default();
        let is_whole = match &state.data {
            None | Some(Data::Empty) => return Ok(vec![whole(PieceSource::Hole)]),
            Some(Data::Inline(_) | Data::Overlay(_)) => {
                return Ok(vec![whole(PieceSource::Private)]);
            }
            Some(Data::Staged(backing)) => {
                let segment = backing.segment();
                let file = if lends { lending.file(self, segment, true)? } else { None };
                let source = match file {
                    Some(file) => PieceSource::File { segment, file, offset },
                    None => PieceSource::Private,
                };
                return Ok(vec![whole(source)]);
            }
            Some(Data::Whole(_)) => true,
            Some(Data::Sealed(_)) => false,
        };
        let extents: Vec<Extent> = self
            .meta
            .extents(node.ino, offset, end)?
            .iter()
            .filter_map(|extent| extent.clip(offset, end))
            .collect();
        let mut pieces = Vec::with_capacity(extents.len());
        let mut at = offset;
        let add_hole = |pieces: &mut Vec<Piece>, at: u64, until: u64| {
            if at < until {
                let source = PieceSource::Hole;
                pieces.push(Piece { offset: at, len: until - at, chunk: None, source });
            }
        };
        for extent in extents {
            add_hole(&mut pieces, at, extent.file_offset_bytes);
            at = extent.file_end_bytes();
            let location = extent.location;
            let may_lend = lends && location.encoding == Encoding::Raw && (is_whole || trusted);
            let file = match may_lend {
                true => lending.file(self, location.segment, is_whole)?,
                false => None,
            };
            let source = match file {
                Some(file) => PieceSource::File {
                    segment: location.segment,
                    file,
                    offset: location.offset_bytes + u64::from(extent.chunk_offset_bytes),
                },
                None => PieceSource::Private,
            };
            pieces.push(Piece {
                offset: extent.file_offset_bytes,
                len: u64::from(extent.len_bytes),
                chunk: Some((extent.chunk, extent.chunk_offset_bytes)),
                source,
            });
        }
        add_hole(&mut pieces, at, end);
        Ok(pieces)
    }

    /// Fills a buffer from a file's content, up to its end; answers how much of it.
    fn fill(&self, ino: Ino, data: &Data, offset: u64, out: &mut [u8]) -> Result<usize> {
        let cut = |size_bytes: u64, out_len: usize| {
            let left = size_bytes.saturating_sub(offset);
            usize::try_from(left).map_or(out_len, |left| left.min(out_len))
        };
        match data {
            Data::Empty => {
                let count = cut(self.meta.inode(ino)?.size_bytes, out.len());
                out[..count].fill(0);
                Ok(count)
            }
            Data::Inline(bytes) => {
                let count = cut(bytes.len() as u64, out.len());
                if count > 0 {
                    let from = usize::try_from(offset).expect("below the inline limit");
                    out[..count].copy_from_slice(&bytes[from..from + count]);
                }
                Ok(count)
            }
            Data::Staged(backing) => {
                use std::os::unix::fs::FileExt;
                let mut filled = 0;
                while filled < out.len() {
                    let read = backing
                        .file()
                        .read_at(&mut out[filled..], offset + filled as u64)
                        .map_err(disk("cannot read the staging file", ino))?;
                    if read == 0 {
                        break;
                    }
                    filled += read;
                }
                Ok(filled)
            }
            Data::Overlay(overlay) => {
                let stat = overlay.backing.file().metadata().map_err(disk("cannot stat", ino))?;
                let count = cut(stat.len(), out.len());
                self.read_overlay(ino, overlay, offset, &mut out[..count])?;
                Ok(count)
            }
            Data::Whole(_) => {
                let count = cut(self.meta.inode(ino)?.size_bytes, out.len());
                let extents = self.meta.extents(ino, offset, offset + count as u64)?;
                self.fill_from_extents(&extents, offset, &mut out[..count])?;
                Ok(count)
            }
            Data::Sealed(cache) => {
                let count = cut(self.meta.inode(ino)?.size_bytes, out.len());
                let end = offset + count as u64;
                let extents = self.cached_extents(ino, cache, offset, end)?;
                self.fill_from_extents(&extents, offset, &mut out[..count])?;
                Ok(count)
            }
        }
    }
}
