//! Emptied staging files, used again under new ids.
//!
//! ext4 does not give a deleted inode out again for five seconds and searches past all of them at
//! each creation (`recently_deleted` in fs/ext4/ialloc.c), so a store that deletes and creates
//! thousands of files a second spends its time there: 800 µs a file, measured, where a file that is
//! emptied and renamed costs 20. The id is new each time, so an id still stands for one content.

use std::fs::File;

use librorum_format::SegmentId;
use rustix::fs::OFlags;

use crate::error::StoreError;
use crate::layout::{Part, on};
use crate::store::Store;

impl Store {
    /// Empties a segment's file and keeps it for [`Self::recycle`], if it is a staging file with one
    /// name; false, and nothing is done, otherwise. The caller knows that nothing names it, durably,
    /// and that nobody has it open.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`] or [`StoreError::Missing`].
    pub fn empty(&self, segment: SegmentId) -> Result<bool, StoreError> {
        let stat = self.layout.stat(segment, Part::Bytes)?;
        if stat.st_nlink != 1 || self.layout.exists(segment, Part::Table)? {
            return Ok(false);
        }
        let file = self.layout.open_bytes(segment, OFlags::WRONLY)?;
        rustix::fs::ftruncate(&file, 0).map_err(on("empty", segment))?;
        // The set of verified chunks need not be searched: the old id was never sealed, and will
        // never be seen again.
        self.forget(segment);
        Ok(true)
    }

    /// Gives emptied files new ids. They are as new staging files are: empty, open for reading and
    /// writing, their names durable.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`] or [`StoreError::Io`]; the files are then left for the sweep.
    pub fn recycle(&self, emptied: &[SegmentId]) -> Result<Vec<(SegmentId, File)>, StoreError> {
        let ids = self.ids.take(emptied.len())?;
        let mut files = Vec::with_capacity(ids.len());
        for (&old, &new) in emptied.iter().zip(&ids) {
            self.layout.rename(old, new)?;
            let file = self.layout.open_bytes(new, OFlags::RDWR)?;
            // On an ordered disk a durable rename implies the truncation before it.
            if !self.layout.is_ordered() {
                rustix::fs::fsync(&file).map_err(on("sync", new))?;
            }
            files.push((new, file));
        }
        // Removals too: an old name that came back would show a file that has a new one.
        let touched: Vec<SegmentId> = emptied.iter().chain(&ids).copied().collect();
        self.layout.sync_folders(&touched)?;
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::StoreOptions;

    #[test]
    fn a_recycled_file_is_empty_and_has_an_id_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        Store::create(dir.path()).unwrap();
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        let (old, mut file) = store.create_staging(1).unwrap().remove(0);
        file.write_all(b"another file's secret").unwrap();
        drop(file);
        assert!(store.empty(old).unwrap());
        let (new, file) = store.recycle(&[old]).unwrap().remove(0);
        assert!(new > old);
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert!(matches!(store.bytes_len(old), Err(StoreError::Missing { .. })));
        assert_eq!(store.bytes_len(new).unwrap(), 0);
    }

    #[test]
    fn sealed_and_linked_files_are_not_emptied() {
        let dir = tempfile::tempdir().unwrap();
        Store::create(dir.path()).unwrap();
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        let (sealed, mut file) = store.create_staging(1).unwrap().remove(0);
        file.write_all(&[7; 5000]).unwrap();
        let chunks = store.chunk_file(&file, 5000, &|| false).unwrap().unwrap();
        store.seal_verbatim(sealed, &file, 5000, &chunks).unwrap();
        assert!(!store.empty(sealed).unwrap());
        let linked = store.relink(sealed).unwrap();
        assert!(!store.empty(linked).unwrap());
        assert_eq!(store.bytes_len(linked).unwrap(), 5000);
    }
}
