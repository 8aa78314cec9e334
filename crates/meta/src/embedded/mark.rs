//! The high-water mark: how much was durable, written beside the database and synced on its own.
//!
//! fjall silently drops what follows a damaged place in its journal (its issue 311). The mark is
//! how we find out: it is never ahead of what was durable, so a database that is behind it has
//! lost acknowledged operations.
//!
//! Two slots a page apart, written alternately, so that a torn write leaves the other one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use librorum_format::{DecodeError, Reader, TxnId, Writer};

use crate::{MetaError, Result};

const MAGIC: [u8; 8] = *b"LbrmMark";
const SLOT_LEN: usize = 48;
const SLOT_STRIDE_BYTES: u64 = 4096;

#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    /// Which slot the next write goes to: the one that does not hold the newest mark.
    next_slot: u64,
}

impl Mark {
    /// Opens the mark in `path`, creating it, and reads it. A file that does not exist is a mark
    /// of zero.
    pub(super) fn open(path: &Path) -> Result<(Self, std::result::Result<TxnId, DecodeError>)> {
        let failed = |source| MetaError::Io { what: format!("open {}", path.display()), source };
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        if len < 2 * SLOT_STRIDE_BYTES {
            // Both slots have their blocks from the start: a full disk must not stop the mark.
            let missing = vec![0; usize::try_from(2 * SLOT_STRIDE_BYTES - len).unwrap_or(0)];
            file.write_all_at(&missing, len).and_then(|()| file.sync_data()).map_err(failed)?;
        }
        let mut newest = None;
        let mut damaged = Vec::new();
        for slot in 0..2 {
            let mut bytes = [0; SLOT_LEN];
            file.read_exact_at(&mut bytes, slot * SLOT_STRIDE_BYTES).map_err(failed)?;
            if bytes == [0; SLOT_LEN] {
                // Never written.
                continue;
            }
            match decode(&bytes) {
                Ok(txn) if newest.is_none_or(|(found, _)| found < txn) => {
                    newest = Some((txn, slot));
                }
                Ok(_) => {}
                Err(error) => damaged.push(error),
            }
        }
        let found = match (newest, damaged.len()) {
            (Some((txn, _)), _) => Ok(txn),
            // One damaged slot is a torn write, whose mark nobody relied on yet.
            (None, 0 | 1) => Ok(TxnId(0)),
            (None, _) => Err(damaged.remove(0)),
        };
        let next_slot = newest.map_or(0, |(_, slot)| 1 - slot);
        Ok((Self { file, next_slot }, found))
    }

    /// Raises the mark to `txn`, which must be durable already, and syncs it.
    pub(super) fn write(&mut self, txn: TxnId) -> std::io::Result<()> {
        self.file.write_all_at(&encode(txn), self.next_slot * SLOT_STRIDE_BYTES)?;
        self.file.sync_data()?;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }
}

fn encode(txn: TxnId) -> Vec<u8> {
    let mut writer = Writer::with_capacity(SLOT_LEN);
    writer.raw(&MAGIC).u64(txn.0);
    let hash = blake3::hash(writer.as_slice());
    writer.raw(hash.as_bytes());
    writer.finish()
}

fn decode(bytes: &[u8]) -> std::result::Result<TxnId, DecodeError> {
    const WHAT: &str = "high-water mark";
    let mut reader = Reader::new(WHAT, bytes);
    let magic = reader.array::<8>()?;
    let txn = TxnId(reader.u64()?);
    let hash = reader.array::<32>()?;
    reader.end()?;
    if magic != MAGIC || blake3::hash(&bytes[..16]) != hash {
        return Err(DecodeError::Checksum { what: WHAT });
    }
    Ok(txn)
}
