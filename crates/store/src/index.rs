//! The dedup index: where each chunk is stored, as far as anyone remembers.
//!
//! It is advice. Nothing here is synced on the write path, nothing that fails here fails the
//! caller, and an index that cannot be opened is thrown away. The record `complete` says that a
//! rebuild, or the empty beginning, covered every chunk table; an index without it is "lost" until
//! it has been rebuilt, also across restarts.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use librorum_format::{ChunkId, DecodeError, Encoding, Location, Reader, SegmentId, Writer};

use crate::error::StoreError;
use crate::layout::at;

/// So many changes sit in memory, about 6 MiB of them, until they are written to a table; the engine
/// makes us wait when four times as many are on their way.
const MEMTABLE_COUNT: usize = 32 << 10;
/// The smallest the engine takes: entries that are not in tables yet.
const JOURNAL_BYTES: u64 = 64 << 20;
const OPEN_FILES: usize = 64;
/// Entries per batch: large enough that the journal costs little, small enough to be no burst.
const BATCH_COUNT: usize = 1024;
/// Chunks have keys of 32 bytes, so this cannot be one.
const COMPLETE: &[u8] = b"complete";

#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    cache_bytes: u64,
    lost: AtomicBool,
    warned: AtomicBool,
    // Locked for writing only to throw the database away.
    open: RwLock<Option<Open>>,
}

struct Open {
    // The keyspace is dropped first: the database waits for its threads.
    entries: Keyspace,
    database: Database,
    /// Changes since the memtable was last rotated.
    change_count: AtomicUsize,
}

impl Open {
    /// Commits a batch, and rotates the memtable when it is due.
    ///
    /// The engine would rotate by itself, but not safely: beyond the limit every commit sends its
    /// worker a message through a bounded channel, and the worker answers the first by sending
    /// itself another, which waits forever if the channel is full (fjall 3.1.13, pull request 323
    /// upstream). Seen here after 3.5 million entries: nothing was written to tables any more and
    /// memory grew by 190 bytes an entry. So its limit is off, and we rotate from this side.
    fn commit(&self, batch: OwnedWriteBatch) -> Result<(), fjall::Error> {
        let count = batch.len();
        batch.commit()?;
        if self.change_count.fetch_add(count, Ordering::Relaxed) + count >= MEMTABLE_COUNT {
            self.change_count.store(0, Ordering::Relaxed);
            self.entries.rotate_memtable()?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").finish_non_exhaustive()
    }
}

impl Index {
    /// Makes the empty index of an empty store.
    pub(crate) fn create(dir: &Path) -> Result<(), StoreError> {
        let path = dir.join("index");
        remove_all(&path)?;
        let open = open_engine(&path, 0).and_then(|open| {
            open.entries.insert(COMPLETE, b"")?;
            open.database.persist(PersistMode::SyncData)?;
            Ok(open)
        });
        open.map(drop).map_err(|source| StoreError::Index { path, source })
    }

    /// Opens the index; never fails. What cannot be read is replaced by an empty index, and where
    /// even that is impossible (a full disk) the store goes without one.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Self {
        let path = dir.join("index");
        let index = Self {
            path,
            cache_bytes,
            lost: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            open: RwLock::new(None),
        };
        let open = match open_engine(&index.path, cache_bytes) {
            Ok(open) => Some(open),
            Err(error) => {
                tracing::warn!(path = %index.path.display(), %error, "dedup index is unreadable: starting an empty one");
                index.recreate().map_err(|error| tracing::warn!(%error, "no dedup index")).ok()
            }
        };
        let complete = open
            .as_ref()
            .is_some_and(|open| guard(|| open.entries.contains_key(COMPLETE)).unwrap_or(false));
        index.lost.store(!complete, Ordering::Relaxed);
        *index.open.write().unwrap_or_else(PoisonError::into_inner) = open;
        index
    }

    /// Whether chunks may be stored that the index does not know.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Where a chunk is stored, if known. Trouble is the same as not knowing.
    pub(crate) fn get(&self, chunk: ChunkId) -> Option<(Location, u32)> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let open = open.as_ref()?;
        match guard(|| open.entries.get(chunk.0)) {
            Ok(value) => decode(&value?).map_err(|error| self.trouble("decode", &error)).ok(),
            Err(error) => {
                self.trouble("read", &error);
                None
            }
        }
    }

    /// Remembers where chunks are stored. The newest place wins: it is the likeliest to live.
    pub(crate) fn insert(&self, chunks: &[(ChunkId, Location, u32)]) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = open.as_ref() else { return };
        for some in chunks.chunks(BATCH_COUNT) {
            let mut batch = open.database.batch();
            for (chunk, location, chunk_len_bytes) in some {
                batch.insert(&open.entries, chunk.0, encode(location, *chunk_len_bytes));
            }
            if let Err(error) = guard(|| open.commit(batch)) {
                self.trouble("write", &error);
                return;
            }
        }
    }

    /// Forgets chunks that are said to be in a segment, unless they are elsewhere by now.
    pub(crate) fn remove(&self, segment: SegmentId, chunks: impl Iterator<Item = ChunkId>) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = open.as_ref() else { return };
        let mut batch = open.database.batch();
        for chunk in chunks {
            // A newer place written between this look and the commit is forgotten with it. That
            // costs one duplicate some day; a lock around every index write would cost each day.
            let stored = guard(|| open.entries.get(chunk.0)).ok().flatten();
            let points_here = stored
                .and_then(|value| decode(&value).ok())
                .is_some_and(|(location, _)| location.segment == segment);
            if points_here {
                batch.remove(&open.entries, chunk.0);
            }
            if batch.len() == BATCH_COUNT {
                let full = std::mem::replace(&mut batch, open.database.batch());
                if let Err(error) = guard(|| open.commit(full)) {
                    return self.trouble("write", &error);
                }
            }
        }
        if let Err(error) = guard(|| open.commit(batch)) {
            self.trouble("write", &error);
        }
    }

    /// Throws everything away and begins anew; `fill` then inserts, and the index counts as
    /// complete once it has returned well.
    pub(crate) fn rebuild<T>(
        &self,
        fill: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            self.lost.store(true, Ordering::Relaxed);
            // The old engine's lock must be gone before the new one asks for it.
            drop(open.take());
            *open = Some(self.recreate()?);
            self.warned.store(false, Ordering::Relaxed);
        }
        let result = fill()?;
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.as_ref()
            && !self.warned.load(Ordering::Relaxed)
        {
            guard(|| {
                open.entries.insert(COMPLETE, b"")?;
                open.database.persist(PersistMode::SyncData)
            })
            .map_err(|source| self.failed(source))?;
            self.lost.store(false, Ordering::Relaxed);
        }
        Ok(result)
    }

    /// Makes what the index knows durable. Never needed; saves duplicates after a power cut.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = open.as_ref() else { return Ok(()) };
        guard(|| open.database.persist(PersistMode::SyncData)).map_err(|source| self.failed(source))
    }

    /// Whether all full memtables have been written to tables, of which there are some.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        let open = self.open.read().unwrap();
        let entries = &open.as_ref().unwrap().entries;
        entries.table_count() > 0 && entries.sealed_memtable_count() == 0
    }

    /// How much disk the index takes.
    pub(crate) fn len_bytes(&self) -> u64 {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().and_then(|open| guard(|| open.database.disk_space()).ok()).unwrap_or(0)
    }

    fn recreate(&self) -> Result<Open, StoreError> {
        remove_all(&self.path)?;
        open_engine(&self.path, self.cache_bytes).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: fjall::Error) -> StoreError {
        StoreError::Index { path: self.path.clone(), source }
    }

    /// From now on chunks may be missing. The first time is worth a line in the log; an engine that
    /// failed once fails at every call until it is rebuilt.
    fn trouble(&self, action: &str, error: &dyn std::error::Error) {
        self.lost.store(true, Ordering::Relaxed);
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(path = %self.path.display(), action, %error, "dedup index fails: new bytes may be stored twice until it is rebuilt");
        }
    }
}

fn open_engine(path: &Path, cache_bytes: u64) -> Result<Open, fjall::Error> {
    guard(|| {
        let database = Database::builder(path)
            .cache_size(cache_bytes)
            .worker_threads(1)
            .max_cached_files(Some(OPEN_FILES))
            .max_journaling_size(JOURNAL_BYTES)
            .open()?;
        // See `Open::commit`.
        let options = || KeyspaceCreateOptions::default().max_memtable_size(u64::MAX);
        let entries = database.keyspace("chunks", options)?;
        Ok(Open { entries, database, change_count: AtomicUsize::new(0) })
    })
}

/// Runs the engine so that a panic in it, which damaged files can cause, is an error like others.
fn guard<T>(work: impl FnOnce() -> Result<T, fjall::Error>) -> Result<T, fjall::Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic: Box<dyn Any + Send>| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        tracing::error!(message, "the index engine panicked");
        Err(fjall::Error::Unrecoverable)
    })
}

fn remove_all(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(at("remove", path)),
    }
}

fn encode(location: &Location, chunk_len_bytes: u32) -> Vec<u8> {
    let mut writer = Writer::with_capacity(25);
    writer
        .u64(location.segment.0)
        .u64(location.offset_bytes)
        .u32(location.stored_len_bytes)
        .u32(chunk_len_bytes)
        .u8(location.encoding.to_byte());
    writer.finish()
}

fn decode(bytes: &[u8]) -> Result<(Location, u32), DecodeError> {
    let mut reader = Reader::new("index entry", bytes);
    let segment = SegmentId(reader.u64()?);
    let offset_bytes = reader.u64()?;
    let stored_len_bytes = reader.u32()?;
    let chunk_len_bytes = reader.u32()?;
    let byte = reader.u8()?;
    let encoding = Encoding::from_byte(byte).ok_or_else(|| reader.invalid(u64::from(byte)))?;
    reader.end()?;
    Ok((Location { segment, offset_bytes, stored_len_bytes, encoding }, chunk_len_bytes))
}
