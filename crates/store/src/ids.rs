//! The id counter: every segment id is given out once, ever.
//!
//! Ids are leased from the file `ids` in blocks. The file holds the first id that no lease covers,
//! and is durable before an id of the lease is used, so a crash skips ids and never repeats one.
//! Skipping is cheap: at a thousand crashes a second the 64-bit space lasts 142,000 years.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use librorum_format::{DecodeError, Reader, SegmentId, Writer};

use crate::error::StoreError;
use crate::layout::{FOLDER_RUN_IDS, at, sync_dir};

/// One durable write per this many ids.
const LEASE_IDS: u64 = 4096;

const MAGIC: [u8; 8] = *b"LbIds_01";

#[derive(Debug)]
pub(crate) struct Ids {
    dir: PathBuf,
    lease: Mutex<Lease>,
}

/// Ids in `next..end` may be given out without touching the disk.
#[derive(Debug)]
struct Lease {
    next: u64,
    end: u64,
}

impl Ids {
    /// Writes a fresh counter. Id zero is never given out: it marks empty slots in memory.
    pub(crate) fn create(dir: &Path) -> Result<(), StoreError> {
        write(dir, FOLDER_RUN_IDS)
    }

    /// Reads the counter; what an earlier process had leased and not used stays unused.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("ids");
        let bytes = std::fs::read(&path).map_err(at("read", &path))?;
        let end = decode(&bytes).map_err(|source| StoreError::Ids { path, source })?;
        Ok(Self { dir: dir.to_owned(), lease: Mutex::new(Lease { next: end, end }) })
    }

    /// The first id that was never leased.
    pub(crate) fn limit(&self) -> SegmentId {
        SegmentId(self.lease.lock().unwrap_or_else(PoisonError::into_inner).end)
    }

    /// Takes `count` consecutive ids, in one folder if they fit one.
    pub(crate) fn take(&self, count: usize) -> Result<Vec<SegmentId>, StoreError> {
        let count = count as u64;
        // A lease is written under the lock, once per thousands of ids: all who wait need it too.
        let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let left_in_folder = FOLDER_RUN_IDS - lease.next % FOLDER_RUN_IDS;
        let straddles = count > left_in_folder && count <= FOLDER_RUN_IDS;
        let first = if straddles { lease.next + left_in_folder } else { lease.next };
        let after = first + count;
        if after > lease.end {
            let end = after.max(lease.end + LEASE_IDS);
            write(&self.dir, end)?;
            lease.end = end;
        }
        lease.next = after;
        Ok((first..after).map(SegmentId).collect())
    }
}

fn write(dir: &Path, end: u64) -> Result<(), StoreError> {
    let (draft, path) = (dir.join("ids.draft"), dir.join("ids"));
    let written = std::fs::File::create(&draft).and_then(|mut file| {
        file.write_all(&encode(end))?;
        rustix::fs::fsync(&file)?;
        std::fs::rename(&draft, &path)
    });
    if let Err(error) = written {
        if let Err(error) = std::fs::remove_file(&draft) {
            tracing::debug!(%error, "no draft of the id counter to remove");
        }
        return Err(at("write", &path)(error));
    }
    sync_dir(dir)
}

fn encode(end: u64) -> Vec<u8> {
    let mut writer = Writer::with_capacity(48);
    writer.raw(&MAGIC).u64(end);
    let checksum = blake3::hash(writer.as_slice());
    writer.raw(checksum.as_bytes());
    writer.finish()
}

fn decode(bytes: &[u8]) -> Result<u64, DecodeError> {
    const WHAT: &str = "id counter";
    let mut reader = Reader::new(WHAT, bytes);
    let magic = reader.array::<8>()?;
    let end = reader.u64()?;
    let checksum = reader.array::<32>()?;
    reader.end()?;
    if magic != MAGIC || *blake3::hash(&bytes[..16]).as_bytes() != checksum {
        return Err(DecodeError::Checksum { what: WHAT });
    }
    if end == 0 {
        return Err(DecodeError::Invalid { what: WHAT, value: end });
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_within_and_across_openings() {
        let dir = tempfile::tempdir().unwrap();
        Ids::create(dir.path()).unwrap();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..5 {
            let ids = Ids::open(dir.path()).unwrap();
            for count in [1, 1, 63, 64, 2, 5000, 7] {
                let taken = ids.take(count).unwrap();
                assert_eq!(taken.len(), count);
                assert!(taken.iter().all(|id| id.0 > 0 && seen.insert(*id)));
            }
        }
    }

    #[test]
    fn a_batch_that_fits_one_folder_lies_in_one_folder() {
        let dir = tempfile::tempdir().unwrap();
        Ids::create(dir.path()).unwrap();
        let ids = Ids::open(dir.path()).unwrap();
        for count in [1, 64, 3, 60, 5] {
            let taken = ids.take(count).unwrap();
            assert!(taken.iter().all(|id| id.0 >> 6 == taken[0].0 >> 6));
            assert!(taken.iter().all(|id| *id < ids.limit()));
        }
    }

    #[test]
    fn a_damaged_counter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Ids::create(dir.path()).unwrap();
        let path = dir.path().join("ids");
        let intact = std::fs::read(&path).unwrap();
        for index in 0..intact.len() {
            let mut damaged = intact.clone();
            damaged[index] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(Ids::open(dir.path()), Err(StoreError::Ids { .. })));
        }
    }
}
