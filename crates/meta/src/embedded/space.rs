//! Keeps the engine away from a full disk.
//!
//! A write that fails in fjall's journal or in its worker poisons the database until it is opened
//! again. So operations that need room are refused while there still is some, and operations that
//! make room go on into the reserve.
//!
//! File bytes fill the same disk without asking us, and usually to the last block. Removing files
//! must work then too, so part of the reserve is held by a file of ours, the ballast. It is given
//! back a little at a time, because a file that is being written takes what is given back, too; its
//! second half is for operations that free bytes alone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use librorum_sys::clock;
use rustix::fs::FallocateFlags;

use super::lock;
use crate::{MetaError, Result};

/// How old an answer of `statvfs` may be. At 2 GB/s of other writers that is 200 MB, more than
/// the reserve; what then still hits the end fails loudly, and loses nothing that was synced.
const FRESH: Duration = Duration::from_millis(100);

/// Below this, operations that free nothing are refused: they could poison the engine.
const FLOOR_BYTES: u64 = 1 << 20;

/// Operations that free bytes go on down to here: a record of a removal is a few hundred bytes in
/// a journal.
const FREEING_FLOOR_BYTES: u64 = 64 << 10;

/// What is given back of the ballast at a time.
const STEP_BYTES: u64 = 1 << 20;

/// What an operation does to the space that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// It adds records.
    Grows,
    /// It moves a file's content to where it needs less than before, in the end.
    Settles,
    /// It changes records in place.
    Stays,
    /// It removes records, or lets file bytes be freed.
    Frees,
}

#[derive(Debug)]
pub(super) struct Gate {
    dir: PathBuf,
    reserve_bytes: u64,
    free_bytes: AtomicU64,
    /// When `free_bytes` was asked for, in milliseconds of the monotonic clock, plus one; zero for
    /// never.
    asked_ms: AtomicU64,
    ballast: Mutex<Ballast>,
}

#[derive(Debug, PartialEq, Eq)]
enum Ballast {
    /// The file has this many bytes; none, and there is no file.
    Held { bytes: u64 },
    /// The file system below cannot allocate in advance.
    Unsupported,
}

impl Gate {
    /// A gate for a database in `dir`; without a reserve, one that is always open.
    pub(super) fn new(dir: &Path, reserve_bytes: u64) -> Self {
        let gate = Self {
            dir: dir.to_owned(),
            reserve_bytes,
            free_bytes: AtomicU64::new(u64::MAX),
            asked_ms: AtomicU64::new(0),
            ballast: Mutex::new(Ballast::Held { bytes: 0 }),
        };
        if let Ok(file) = std::fs::metadata(gate.ballast_path()) {
            *lock(&gate.ballast) = Ballast::Held { bytes: file.len() };
        }
        gate.tend();
        gate
    }

    fn ballast_path(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    fn ballast_bytes(&self) -> u64 {
        self.reserve_bytes / 2
    }

    /// Refuses an operation that the disk has no room for.
    pub(super) fn check(&self, growth: Growth) -> Result<()> {
        if self.reserve_bytes == 0 {
            return Ok(());
        }
        // What is needed, and how much of the ballast must be left for more important operations.
        let (needed, kept) = match growth {
            Growth::Grows => (self.reserve_bytes, u64::MAX),
            Growth::Settles => (self.reserve_bytes / 2, u64::MAX),
            Growth::Stays => (FLOOR_BYTES.min(self.reserve_bytes / 4), self.ballast_bytes() / 2),
            Growth::Frees => (FREEING_FLOOR_BYTES.min(self.reserve_bytes / 16), 0),
        };
        let mut free = self.free_bytes();
        while free < needed && self.release(kept) {
            free = self.ask().unwrap_or(free);
        }
        if free < needed {
            return Err(MetaError::Io {
                what: format!("{free} bytes free for metadata, {needed} needed"),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        Ok(())
    }

    /// Takes the ballast up again when there is room, and drops it when there is none. For the
    /// commit thread, which writes whether anybody asks or not.
    pub(super) fn tend(&self) {
        if self.reserve_bytes == 0 {
            return;
        }
        let free = self.free_bytes();
        if free < FLOOR_BYTES.min(self.reserve_bytes / 16) {
            self.release(self.ballast_bytes() / 4);
        } else if free >= 2 * self.reserve_bytes + self.ballast_bytes() {
            let mut ballast = lock(&self.ballast);
            if matches!(*ballast, Ballast::Held { bytes } if bytes < self.ballast_bytes()) {
                *ballast = match self.allocate() {
                    Ok(()) => Ballast::Held { bytes: self.ballast_bytes() },
                    Err(error) => {
                        tracing::info!(%error, "no ballast: a full disk will refuse removals too");
                        Ballast::Unsupported
                    }
                };
            }
        }
    }

    fn allocate(&self) -> std::io::Result<()> {
        let file =
            File::options().write(true).create(true).truncate(false).open(self.ballast_path())?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.ballast_bytes())?;
        Ok(())
    }

    /// Gives a step of the ballast back, if more than `kept` is left of it.
    fn release(&self, kept: u64) -> bool {
        let mut ballast = lock(&self.ballast);
        let Ballast::Held { bytes } = *ballast else { return false };
        if bytes <= kept {
            return false;
        }
        let left = bytes.saturating_sub(STEP_BYTES);
        let path = self.ballast_path();
        let released = if left == 0 {
            std::fs::remove_file(&path)
        } else {
            File::options().write(true).open(&path).and_then(|file| file.set_len(left))
        };
        match released {
            Ok(()) => {
                tracing::warn!(left, "the disk is full; metadata goes on with its reserve");
                *ballast = Ballast::Held { bytes: left };
                true
            }
            Err(error) => {
                tracing::error!(%error, "cannot give the ballast back");
                false
            }
        }
    }

    /// Whether the disk is so full that a failure is most likely due to it.
    pub(super) fn is_exhausted(&self) -> bool {
        self.ask().is_some_and(|free| free < FLOOR_BYTES.max(self.reserve_bytes / 4))
    }

    /// Bytes free on the disk, as of a tenth of a second ago at most.
    pub(super) fn free_bytes(&self) -> u64 {
        let now_ms = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let asked_ms = self.asked_ms.load(Ordering::Relaxed);
        let age_ms = now_ms.saturating_sub(asked_ms);
        let is_fresh = asked_ms != 0 && u128::from(age_ms) < FRESH.as_millis();
        if !is_fresh
            && self
                .asked_ms
                .compare_exchange(asked_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.ask();
        }
        self.free_bytes.load(Ordering::Relaxed)
    }

    fn ask(&self) -> Option<u64> {
        // A disk that cannot be asked is not known to be full.
        let stat = rustix::fs::statvfs(&self.dir).ok()?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        self.free_bytes.store(free, Ordering::Relaxed);
        Some(free)
    }
}
