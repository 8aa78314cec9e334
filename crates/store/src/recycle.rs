//! Emptied staging files, used again under new ids.
//!
//! ext4 does not give a deleted inode out again for five seconds and searches past all of them at
//! each creation (`recently_deleted` in fs/ext4/ialloc.c), so a store that deletes and creates
//! thousands of files a second spends its time there: 800 µs a file, measured, where a file that is
//! emptied and renamed costs 20. The id is new each time, so an id still stands for one content.
//!
//! What always holds, after any power cut: under an id that was handed out no byte of an earlier use
//! shows. No file is synced for that. Names are handed out when their folder's sync has made them
//! durable, and on an ordered disk a durable rename implies the truncation before it. ext4 and XFS
//! keep this twice over: a rename is a change of the inode too (its ctime), so the transaction that
//! carries the new name carries the inode as it is then, length 0 and all; and transactions become
//! durable in order, the truncation's not after the rename's. `docs/design/0001-staging-files.md`
//! has the details. Elsewhere nothing is emptied: without that order each file would cost a sync,
//! which is dearer than deleting it and creating another.

use std::fs::File;

use librorum_format::SegmentId;
use rustix::fs::OFlags;

use crate::error::StoreError;
use crate::layout::{Part, on};
use crate::store::Store;

impl Store {
    /// Empties a segment's file and keeps it for [`Self::recycle`], if it is a staging file with one
    /// name on an ordered disk that nobody has open or mapped; false, and nothing is done, otherwise. The
    /// caller knows that nothing names it, durably.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`] or [`StoreError::Missing`].
    pub fn empty(&self, segment: SegmentId) -> Result<bool, StoreError> {
        // Here a power cut could keep the file's next name and lose the truncation.
        if !self.layout.is_ordered() {
            return Ok(false);
        }
        let stat = self.layout.stat(segment, Part::Bytes)?;
        if stat.st_nlink != 1 || self.layout.exists(segment, Part::Table)? {
            return Ok(false);
        }
        let file = self.layout.open_bytes(segment, OFlags::WRONLY)?;
        // Somebody may have mapped it through passthrough and closed it: that mapping shows what the
        // file held for as long as it lasts, and never what another one will.
        if !matches!(librorum_sys::lease::is_sole_opener(&file), Ok(true)) {
            return Ok(false);
        }
        rustix::fs::ftruncate(&file, 0).map_err(on("empty", segment))?;
        // The set of verified chunks need not be searched: the old id was never sealed, and will
        // never be seen again.
        self.forget(segment);
        Ok(true)
    }

    /// Gives emptied files new ids. They are as new staging files are: empty, open for reading and
    /// writing, their names durable. A batch costs one folder sync, elsewhere than on an ordered disk
    /// one for each folder.
    ///
    /// `emptied` are files that [`Self::empty`] emptied, that were never written to, or that an
    /// earlier mount left empty when it made everything durable and ended. One that is gone, or named
    /// twice, has a new file made in its place.
    ///
    /// # Errors
    ///
    /// [`StoreError::Segment`] or [`StoreError::Io`]; the files are then left for the sweep.
    pub fn recycle(&self, emptied: &[SegmentId]) -> Result<Vec<(SegmentId, File)>, StoreError> {
        let ids = self.ids.take(emptied.len())?;
        let mut files = Vec::with_capacity(ids.len());
        for (&old, &new) in emptied.iter().zip(&ids) {
            let file = match self.layout.rename(old, new) {
                Ok(()) => self.layout.open_bytes(new, OFlags::RDWR)?,
                // Nothing is lost with an empty file, and the others are worth having.
                Err(StoreError::Missing { .. }) => self.layout.create_bytes(new)?,
                Err(error) => return Err(error),
            };
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
    use crate::{DiskOrder, StoreOptions};

    fn open(dir: &std::path::Path, disk_order: DiskOrder) -> Store {
        Store::create(dir).unwrap();
        Store::open(dir, &StoreOptions { disk_order, ..StoreOptions::default() }).unwrap()
    }

    #[test]
    fn a_recycled_file_is_empty_and_has_an_id_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), DiskOrder::Kept);
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

    /// Two rounds of reclaiming at once, of a repair and of the background, kept a file for recycling
    /// twice. The second time it was gone, and with it failed the batch and a truncation.
    #[test]
    fn an_emptied_file_that_is_gone_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), DiskOrder::Kept);
        let old = store.create_staging(2).unwrap();
        let (kept, gone) = (old[0].0, old[1].0);
        store.remove(gone).unwrap();
        let files = store.recycle(&[gone, kept, kept]).unwrap();
        assert_eq!(files.len(), 3);
        for (segment, _) in files {
            assert_eq!(store.bytes_len(segment).unwrap(), 0);
        }
        assert_eq!(store.segments().count(), 3);
    }

    #[test]
    fn sealed_and_linked_files_are_not_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), DiskOrder::Kept);
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
