//! Changing a file's length, and allocating, punching and zeroing ranges.

use std::os::unix::fs::FileExt;

use librorum_format::{Extent, Ino};
use librorum_meta::{Meta, NewContent, SetAttr, SetContent};
use rustix::fs::FallocateFlags;

use crate::attr::Attributes;
use crate::error::{FsError, Result, disk};
use crate::fs::Fs;
use crate::node::{Data, ExtentCache, Node, NodeState, Service, lock};

/// The longest file: what the kernel's `loff_t` and ext4 (with 4 KiB blocks) both hold.
pub(crate) const FILE_LEN_MAX_BYTES: u64 = (16 << 40) - 4096;

impl Fs {
    /// Cuts or extends a regular file; new bytes are zeros.
    ///
    /// # Errors
    ///
    /// `NoInode`, `ReadOnly`, `Invalid` for anything but a regular file, `NoSpace`, the disk's.
    pub fn truncate(&self, ino: Ino, size_bytes: u64) -> Result<Attributes> {
        self.writable()?;
        let node = self.table.node(ino);
        let mut state = lock(&node.state);
        self.load(&node, &mut state)?;
        self.truncate_locked(&node, &mut state, size_bytes)?;
        if state.writers == 0
            && let Some(size_bytes) = self.record_staged(&node, &mut state)?
        {
            self.sealer.dequeue(std::mem::take(&mut state.queued_bytes));
            state.queued_bytes = size_bytes.max(1);
            self.enqueue_seal(ino, size_bytes);
        }
        let is_idle = !state.is_open();
        drop(state);
        drop(node);
        if is_idle {
            self.reclaim.note_idle(ino);
        }
        self.attributes(ino)
    }

    /// The same for a caller who is not the kernel: what that has of the file's bytes is not what they
    /// are any more. The caller tells it.
    pub(crate) fn truncate_from_outside(&self, ino: Ino, size_bytes: u64) -> Result<Attributes> {
        let found = self.truncate(ino, size_bytes)?;
        if let Some(node) = self.table.existing(ino) {
            lock(&node.state).changed_elsewhere();
        }
        Ok(found)
    }

    pub(crate) fn truncate_locked(
        &self,
        node: &Node,
        state: &mut NodeState,
        size_bytes: u64,
    ) -> Result<()> {
        if size_bytes > FILE_LEN_MAX_BYTES {
            return Err(FsError::Disk {
                what: "the length is beyond the largest file: the content",
                ino: node.ino,
                source: std::io::ErrorKind::FileTooLarge.into(),
            });
        }
        let ino = node.ino;
        let now = librorum_sys::clock::now();
        let data = state.data.clone().expect("loaded by every caller");
        match data {
            Data::Empty => {
                self.meta.set_attr(
                    ino,
                    &SetAttr {
                        size_bytes: Some(size_bytes),
                        mtime: Some(now),
                        ctime: Some(now),
                        ..SetAttr::default()
                    },
                )?;
            }
            Data::Staged(backing) => {
                // A length that does not change is a modification all the same (POSIX ftruncate).
                backing.file().set_len(size_bytes).map_err(disk("cannot cut", ino))?;
                self.touch_staging(&backing, ino)?;
            }
            Data::Overlay(overlay) => {
                let mut overlay_state = lock(&overlay.state);
                if size_bytes < overlay_state.base_len_bytes {
                    let inode = self.meta.inode(ino)?;
                    self.meta.set_content(&SetContent {
                        ino,
                        expected_version: inode.content_version,
                        content: NewContent::Overlay {
                            segment: overlay.backing.segment(),
                            base_len_bytes: size_bytes,
                        },
                        size_bytes,
                        allocated_bytes: inode.allocated_bytes.min(size_bytes),
                        mtime: Some(now),
                        ctime: Some(now),
                    })?;
                    overlay_state.base_len_bytes = size_bytes;
                    overlay_state.written.truncate(size_bytes);
                }
                overlay.backing.file().set_len(size_bytes).map_err(disk("cannot cut", ino))?;
                self.touch_staging(&overlay.backing, ino)?;
            }
            // Readers by passthrough are bound to this file, so it must be the one that changes.
            Data::Whole(_) if state.service == Service::Passthrough => {
                self.make_writable(node, state)?;
                return self.truncate_locked(node, state, size_bytes);
            }
            Data::Inline(bytes) => {
                let inode = self.meta.inode(ino)?;
                let limit = u64::from(self.volume.config.inline_max_bytes);
                if size_bytes > limit {
                    self.make_writable(node, state)?;
                    return self.truncate_locked(node, state, size_bytes);
                }
                let mut bytes = bytes.to_vec();
                bytes.resize(usize::try_from(size_bytes).expect("at most the inline limit"), 0);
                let content =
                    if bytes.is_empty() { NewContent::Empty } else { NewContent::Inline(&bytes) };
                self.meta.set_content(&SetContent {
                    ino,
                    expected_version: inode.content_version,
                    content,
                    size_bytes,
                    allocated_bytes: inode.allocated_bytes.min(size_bytes.next_multiple_of(512)),
                    mtime: Some(now),
                    ctime: Some(now),
                })?;
                state.data =
                    Some(if bytes.is_empty() { Data::Empty } else { Data::Inline(bytes.into()) });
            }
            Data::Whole(_) | Data::Sealed(_) => self.cut_sealed(node, state, size_bytes)?,
        }
        state.changed_through_kernel();
        Ok(())
    }

    /// Cuts or extends sealed content by changing its extents alone.
    fn cut_sealed(&self, node: &Node, state: &mut NodeState, size_bytes: u64) -> Result<()> {
        let ino = node.ino;
        let now = librorum_sys::clock::now();
        let inode = self.meta.inode(ino)?;
        let extents: Vec<Extent> = self
            .meta
            .extents(ino, 0, size_bytes.min(inode.size_bytes))?
            .iter()
            .filter_map(|extent| extent.clip(0, size_bytes))
            .collect();
        let content = if extents.is_empty() {
            NewContent::Empty
        } else {
            NewContent::Sealed { extents: &extents, fresh: &[] }
        };
        if let Some(Data::Whole(backing)) = &state.data {
            self.forget_whole(backing.segment());
        }
        self.meta.set_content(&SetContent {
            ino,
            expected_version: inode.content_version,
            content,
            size_bytes,
            allocated_bytes: extents.iter().map(|extent| u64::from(extent.len_bytes)).sum(),
            mtime: Some(now),
            ctime: Some(now),
        })?;
        state.data = Some(if extents.is_empty() {
            Data::Empty
        } else {
            Data::Sealed(std::sync::Arc::new(ExtentCache::default()))
        });
        Ok(())
    }

    /// ftruncate(2) to the same length leaves a file's times alone on some disks; ours moves them.
    fn touch_staging(&self, backing: &crate::node::Backing, ino: Ino) -> Result<()> {
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let times = rustix::fs::Timestamps { last_access: omit, last_modification: now };
        rustix::fs::futimens(backing.file(), &times).map_err(disk("cannot set the times", ino))
    }

    /// fallocate(2): allocates, punches or zeroes a range of an open file.
    ///
    /// # Errors
    ///
    /// `Unsupported` for collapse, insert and unshare; `BadHandle` if it is not open for writing;
    /// `NoSpace`; the disk's.
    pub fn allocate(
        &self,
        handle: u64,
        offset: u64,
        len: u64,
        flags: FallocateFlags,
    ) -> Result<()> {
        self.writable()?;
        let handle = self.open_writer(handle)?;
        let supported =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !supported.contains(flags) {
            return Err(FsError::Unsupported { what: "this kind of fallocate" });
        }
        let node = &handle.node;
        let end = offset.checked_add(len).filter(|end| *end <= FILE_LEN_MAX_BYTES).ok_or(
            FsError::Disk {
                what: "the range is beyond the largest file: the content",
                ino: node.ino,
                source: std::io::ErrorKind::FileTooLarge.into(),
            },
        )?;
        let mut state = lock(&node.state);
        self.load(node, &mut state)?;
        self.make_writable(node, &mut state)?;
        let ino = node.ino;
        match state.data.clone() {
            Some(Data::Staged(backing)) => {
                rustix::fs::fallocate(backing.file(), flags, offset, len)
                    .map_err(disk("cannot allocate", ino))?;
            }
            Some(Data::Overlay(overlay)) => {
                let mut overlay_state = lock(&overlay.state);
                let file = overlay.backing.file();
                let size_bytes = file.metadata().map_err(disk("cannot stat", ino))?.len();
                let base_end = overlay_state.base_len_bytes.min(end);
                if flags.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
                    // A hole in the staging file shows the base, so zeros over it are written.
                    let zeros = vec![0; 1 << 20];
                    let mut at = offset;
                    while at < base_end.min(size_bytes) {
                        let len = (base_end.min(size_bytes) - at).min(zeros.len() as u64);
                        let part = &zeros[..usize::try_from(len).expect("at most a buffer")];
                        self.write_overlay(node, &overlay, &mut overlay_state, at, part)?;
                        at += len;
                    }
                }
                let beyond = offset.max(overlay_state.base_len_bytes);
                if beyond < end {
                    rustix::fs::fallocate(file, flags, beyond, end - beyond)
                        .map_err(disk("cannot allocate", ino))?;
                    // Data that is now a hole beyond the base reads as zeros either way.
                } else if !flags.contains(FallocateFlags::KEEP_SIZE) && end > size_bytes {
                    file.set_len(end).map_err(disk("cannot extend", ino))?;
                }
            }
            other => unreachable!("{ino:?} is open for writing with {other:?}"),
        }
        state.changed_through_kernel();
        Ok(())
    }

    /// Writes zeros or data into an overlay whose state the caller holds.
    ///
    /// The staging file's own holes say after a crash which blocks it has, so each block that is new
    /// to it is written whole, by one call: what the data does not cover of it comes from the base.
    pub(crate) fn write_overlay(
        &self,
        node: &Node,
        overlay: &crate::node::Overlay,
        overlay_state: &mut crate::node::OverlayState,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        use crate::overlay::BLOCK_BYTES;
        let ino = node.ino;
        let file = overlay.backing.file();
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let block = at / BLOCK_BYTES * BLOCK_BYTES;
            let block_end = block + BLOCK_BYTES;
            let index = |at: u64| usize::try_from(at - offset).expect("inside the data");
            let is_new = !overlay_state.written.run_at(block).0;
            if is_new && (at > block || end < block_end) {
                // A new block that the data covers in part.
                let base_end = overlay_state.base_len_bytes.min(block_end);
                let stop = end.min(block_end);
                let len = stop.max(base_end) - block;
                let mut whole = vec![0; usize::try_from(len).expect("at most a block")];
                if base_end > block {
                    let base_len = usize::try_from(base_end - block).expect("at most a block");
                    self.read_base(ino, block, &mut whole[..base_len])?;
                }
                let from = usize::try_from(at - block).expect("inside a block");
                let part = &data[index(at)..index(stop)];
                whole[from..from + part.len()].copy_from_slice(part);
                file.write_all_at(&whole, block).map_err(disk("cannot write", ino))?;
                overlay_state.written.insert(block, block_end);
                at = stop;
                continue;
            }
            // Up to the next block that has to be completed: the last, if it is new.
            let last_block = end / BLOCK_BYTES * BLOCK_BYTES;
            let last_is_new = last_block < end && !overlay_state.written.run_at(last_block).0;
            let stop = if !is_new && at > block {
                end.min(block_end)
            } else if last_is_new && last_block > at {
                last_block
            } else {
                end
            };
            file.write_all_at(&data[index(at)..index(stop)], at)
                .map_err(disk("cannot write", ino))?;
            overlay_state.written.insert(block, stop.next_multiple_of(BLOCK_BYTES));
            at = stop;
        }
        Ok(())
    }
}
