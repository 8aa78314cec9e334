//! Keeps the engine away from a full disk.
//!
//! A write that fails in fjall's journal or in its worker poisons the database until it is opened
//! again. So operations that need room are refused while there still is some, and operations that
//! make room go on into the reserve.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use librorum_sys::clock;

use crate::{MetaError, Result};

/// How old an answer of `statvfs` may be. At 2 GB/s of other writers that is 200 MB, more than
/// the reserve; what then still hits the end fails loudly, and loses nothing that was synced.
const FRESH: Duration = Duration::from_millis(100);

/// Below this, even shrinking operations would poison the engine instead of failing.
const FLOOR_BYTES: u64 = 1 << 20;

/// What an operation does to the space that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// It adds records.
    Grows,
    /// It removes some, or changes them in place.
    Shrinks,
}

#[derive(Debug)]
pub(super) struct Gate {
    path: PathBuf,
    reserve_bytes: u64,
    free_bytes: AtomicU64,
    /// When `free_bytes` was asked for, in milliseconds of the monotonic clock, plus one; zero for
    /// never.
    asked_ms: AtomicU64,
}

impl Gate {
    pub(super) fn new(path: &Path, reserve_bytes: u64) -> Self {
        Self {
            path: path.to_owned(),
            reserve_bytes,
            free_bytes: AtomicU64::new(u64::MAX),
            asked_ms: AtomicU64::new(0),
        }
    }

    /// Refuses an operation that the disk has no room for.
    pub(super) fn check(&self, growth: Growth) -> Result<()> {
        if self.reserve_bytes == 0 {
            return Ok(());
        }
        let needed = match growth {
            Growth::Grows => self.reserve_bytes,
            Growth::Shrinks => FLOOR_BYTES.min(self.reserve_bytes),
        };
        let free = self.free_bytes();
        if free < needed {
            return Err(MetaError::Io {
                what: format!("{free} bytes free for metadata, {needed} needed"),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        Ok(())
    }

    /// Whether the disk is so full that a failure is most likely due to it.
    pub(super) fn is_exhausted(&self) -> bool {
        self.ask().is_some_and(|free| free < FLOOR_BYTES.max(self.reserve_bytes / 4))
    }

    fn free_bytes(&self) -> u64 {
        let now_ms = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let asked_ms = self.asked_ms.load(Ordering::Relaxed);
        let is_fresh = asked_ms != 0 && u128::from(now_ms - asked_ms.min(now_ms)) < FRESH.as_millis();
        if !is_fresh
            && self
                .asked_ms
                .compare_exchange(asked_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            && let Some(free) = self.ask()
        {
            self.free_bytes.store(free, Ordering::Relaxed);
        }
        self.free_bytes.load(Ordering::Relaxed)
    }

    fn ask(&self) -> Option<u64> {
        // A disk that cannot be asked is not known to be full.
        let stat = rustix::fs::statvfs(&self.path).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
