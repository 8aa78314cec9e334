//! `SEEK_DATA` and `SEEK_HOLE`.

use librorum_meta::Meta;
use rustix::fs::SeekFrom;

use crate::error::{FsError, Result, disk};
use crate::fs::Fs;
use crate::node::{Data, lock};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte of data.
    Data,
    /// The next byte of a hole; the end of the file is one.
    Hole,
}

impl Fs {
    /// The first offset at or after `offset` that is data, or that is in a hole.
    ///
    /// # Errors
    ///
    /// `NoSuchOffset` at or behind the end, and for data if only a hole follows.
    pub fn seek(&self, handle: u64, offset: u64, what: Seek) -> Result<u64> {
        let handle = self.handles.get(handle)?;
        let node = &handle.node;
        let ino = node.ino;
        let data = {
            let mut state = lock(&node.state);
            self.load(node, &mut state)?;
            state.data.clone().expect("just loaded")
        };
        let nowhere = || FsError::NoSuchOffset { offset };
        match &data {
            Data::Staged(backing) | Data::Whole(backing) => {
                let from = match what {
                    Seek::Data => SeekFrom::Data(offset),
                    Seek::Hole => SeekFrom::Hole(offset),
                };
                match rustix::fs::seek(backing.file(), from) {
                    Ok(found) => Ok(found),
                    Err(rustix::io::Errno::NXIO) => Err(nowhere()),
                    Err(error) => Err(disk("cannot seek in", ino)(error)),
                }
            }
            Data::Empty => {
                seek_in(std::iter::empty(), self.meta.inode(ino)?.size_bytes, offset, what)
                    .ok_or_else(nowhere)
            }
            Data::Inline(bytes) => {
                let len = bytes.len() as u64;
                seek_in(std::iter::once((0, len)), len, offset, what).ok_or_else(nowhere)
            }
            Data::Sealed(_) => {
                let size_bytes = self.meta.inode(ino)?.size_bytes;
                let extents = self.meta.extents(ino, offset, size_bytes)?;
                let runs = extents
                    .iter()
                    .map(|extent| (extent.file_offset_bytes, extent.file_end_bytes()));
                seek_in(runs, size_bytes, offset, what).ok_or_else(nowhere)
            }
            Data::Overlay(overlay) => {
                let stat = overlay.backing.file().metadata().map_err(disk("cannot stat", ino))?;
                let state = lock(&overlay.state);
                let mut runs = state.written.clone();
                for extent in self.meta.extents(ino, 0, state.base_len_bytes)? {
                    if let Some(run) = extent.clip(0, state.base_len_bytes) {
                        runs.insert(run.file_offset_bytes, run.file_end_bytes());
                    }
                }
                let size_bytes = stat.len();
                let runs = runs.iter().map(|(start, end)| (start, end.min(size_bytes)));
                seek_in(runs, size_bytes, offset, what).ok_or_else(nowhere)
            }
        }
    }
}

/// Seeks in a file of which the ascending runs are data.
fn seek_in(
    runs: impl Iterator<Item = (u64, u64)>,
    size_bytes: u64,
    offset: u64,
    what: Seek,
) -> Option<u64> {
    if offset >= size_bytes {
        return None;
    }
    let mut hole = offset;
    for (start, end) in runs.filter(|(_, end)| *end > offset) {
        match what {
            Seek::Data => return Some(start.max(offset)).filter(|found| *found < size_bytes),
            Seek::Hole if start > hole => return Some(hole),
            Seek::Hole => hole = end,
        }
    }
    match what {
        Seek::Data => None,
        Seek::Hole => Some(hole.min(size_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeks_as_lseek_describes_it() {
        let runs = [(10, 20), (20, 30), (50, 60)];
        let seek = |offset, what| seek_in(runs.into_iter(), 100, offset, what);
        assert_eq!(seek(0, Seek::Data), Some(10));
        assert_eq!(seek(15, Seek::Data), Some(15));
        assert_eq!(seek(30, Seek::Data), Some(50));
        assert_eq!(seek(60, Seek::Data), None);
        assert_eq!(seek(0, Seek::Hole), Some(0));
        assert_eq!(seek(10, Seek::Hole), Some(30));
        assert_eq!(seek(55, Seek::Hole), Some(60));
        assert_eq!(seek(100, Seek::Hole), None);
    }
}
