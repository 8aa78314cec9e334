//! A staging file over sealed extents: where its data is, and reading the two as one.
//!
//! The staging file's own allocation is the durable map of what was written: it is written in whole
//! blocks, so a hole below `base_len_bytes` shows the base. That needs a disk whose `SEEK_DATA` knows
//! single blocks, as those of ext4, XFS, btrfs and tmpfs do.

use librorum_format::{Extent, Ino};
use librorum_meta::Meta;
use rustix::fs::SeekFrom;

use crate::error::{Result, disk};
use crate::fs::Fs;
use crate::node::{Backing, Overlay, lock};
use crate::ranges::RangeSet;

/// The block that a write to an overlay is widened to.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// Where a staging file has data, by its own account.
pub(crate) fn written_ranges(backing: &Backing, ino: Ino) -> Result<RangeSet> {
    let mut written = RangeSet::default();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(backing.file(), SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(written),
            Err(error) => return Err(disk("cannot seek in", ino)(error)),
        };
        let end = rustix::fs::seek(backing.file(), SeekFrom::Hole(start))
            .map_err(disk("cannot seek in", ino))?;
        written.insert(start / BLOCK_BYTES * BLOCK_BYTES, end.next_multiple_of(BLOCK_BYTES));
        at = end;
    }
}

impl Fs {
    /// Reads bytes of an overlay's base; holes are zeros. Verified.
    pub(crate) fn read_base(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset + out.len() as u64;
        let extents = self.meta.extents(ino, offset, end)?;
        self.fill_from_extents(&extents, offset, out)
    }

    /// Fills a buffer from the extents that meet it; holes are zeros.
    pub(crate) fn fill_from_extents(
        &self,
        extents: &[Extent],
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let end = offset + out.len() as u64;
        let mut at = offset;
        for extent in extents {
            let Some(run) = extent.clip(offset, end) else { continue };
            let start = index(run.file_offset_bytes - offset);
            out[index(at - offset)..start].fill(0);
            let stop = index(run.file_end_bytes() - offset);
            self.store.read_extent(extent, run.file_offset_bytes, &mut out[start..stop])?;
            at = run.file_end_bytes();
        }
        out[index(at - offset)..].fill(0);
        Ok(())
    }

    /// Reads an overlay; `out` must not reach beyond the file's end.
    pub(crate) fn read_overlay(
        &self,
        ino: Ino,
        overlay: &Overlay,
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        use std::os::unix::fs::FileExt;
        // Held while reading: a writer completes a block in two steps.
        let state = lock(&overlay.state);
        let end = offset + out.len() as u64;
        let mut at = offset;
        while at < end {
            let (written, until) = state.written.run_at(at);
            let is_base = !written && at < state.base_len_bytes;
            let stop = if is_base { until.min(state.base_len_bytes) } else { until }.min(end);
            let part = &mut out[index(at - offset)..index(stop - offset)];
            if is_base {
                self.read_base(ino, at, part)?;
            } else {
                overlay
                    .backing
                    .file()
                    .read_exact_at(part, at)
                    .map_err(disk("cannot read the staging file", ino))?;
            }
            at = stop;
        }
        Ok(())
    }
}

/// An offset inside a buffer.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("inside a buffer that exists")
}
