//! How many directories are open at once.
//!
//! A directory stays open until the last directory in it has been opened relative to it, so that
//! paths are never looked up again. A tree can be made in which that takes more descriptors than
//! there are (two directories at each of 20,000 levels). Beyond the budget directories are closed
//! when they have been read, and opened again when one in them has its turn: from the directory
//! that the worker had open last, by `..`, or from the root. What is found there must be the same
//! directory by device and inode.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use rustix::io::Errno;

use crate::Dir;
use crate::os::{self, LastLink};

/// Longer paths are opened in parts. The kernel takes 4,096 bytes with the terminating zero; some
/// systems take 1,024.
const SEGMENT_BYTES: usize = 1_000;

/// How far up `..` is followed in one call.
const CLIMB_MAX: u32 = 300;

/// A worker opens one directory while it has another open, and may keep the last one.
const WORKER_DESCRIPTORS: usize = 3;

/// Standard streams, and what libraries have open.
const RESERVED: usize = 16;

/// The budget.
#[derive(Debug)]
pub(crate) struct Descriptors {
    live: AtomicUsize,
    max: usize,
    workers_max: usize,
}

/// An open directory; closed and given back to the budget with its last user.
#[derive(Debug)]
pub(crate) struct OpenDir<'d> {
    fd: OwnedFd,
    budget: &'d Descriptors,
}

impl Descriptors {
    /// A budget of `max`, or half of what the process may have open beyond a few. A quarter is left
    /// to the workers, and a quarter to whatever else the process does.
    pub(crate) fn new(max: Option<usize>) -> Self {
        let limit = os::descriptors_max();
        Self {
            live: AtomicUsize::new(0),
            max: max.unwrap_or(limit.saturating_sub(RESERVED) / 2),
            workers_max: (limit / 4 / WORKER_DESCRIPTORS).max(1),
        }
    }

    /// How many workers there are descriptors for.
    pub(crate) fn workers_max(&self) -> usize {
        self.workers_max
    }

    /// Whether so many are open that directories must not wait for those in them.
    pub(crate) fn is_short(&self) -> bool {
        self.live.load(Relaxed) > self.max
    }

    pub(crate) fn adopt(&self, fd: OwnedFd) -> Arc<OpenDir<'_>> {
        self.live.fetch_add(1, Relaxed);
        Arc::new(OpenDir { fd, budget: self })
    }
}

impl AsFd for OpenDir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for OpenDir<'_> {
    fn drop(&mut self) {
        self.budget.live.fetch_sub(1, Relaxed);
    }
}

/// Opens `dir` again; `near` is any open directory, best one below it.
pub(crate) fn reopen(dir: &Dir, near: Option<(&Dir, BorrowedFd<'_>)>) -> Result<OwnedFd, Errno> {
    if let Some((below, fd)) = near
        && let Some(climbed) = climb(dir, below, fd)
    {
        return Ok(climbed);
    }
    let mut chain: Vec<&Dir> = std::iter::once(dir).chain(dir.ancestors().map(|a| &**a)).collect();
    chain.reverse();
    let mut at: Option<OwnedFd> = None;
    let mut path: Vec<u8> = Vec::with_capacity(SEGMENT_BYTES);
    for (index, step) in chain.iter().enumerate() {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(step.name_c().to_bytes());
        let next_len = chain.get(index + 1).map(|next| next.name_c().count_bytes());
        if next_len.is_some_and(|len| path.len() + len < SEGMENT_BYTES) {
            continue;
        }
        let segment = CString::new(std::mem::take(&mut path)).map_err(|_nul| Errno::INVAL)?;
        // A link that takes the place of a directory meanwhile leads elsewhere, which is noticed.
        let opened = os::open_directory(at.as_ref().map(AsFd::as_fd), &segment, LastLink::Follow)?;
        at = Some(opened);
    }
    let opened = at.ok_or(Errno::NOENT)?;
    if is_same(dir, &opened) { Ok(opened) } else { Err(Errno::STALE) }
}

/// Opens `dir` as an ancestor of `below`, which is open. `None` if it is none, or is not there.
fn climb(dir: &Dir, below: &Dir, fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    let up = below.depth().checked_sub(dir.depth()).filter(|up| (1..=CLIMB_MAX).contains(up))?;
    let up = usize::try_from(up).ok()?;
    if below.ancestors().nth(up - 1)?.id() != dir.id() {
        return None;
    }
    let path = CString::new(b"../".repeat(up)).ok()?;
    let opened = os::open_directory(Some(fd), &path, LastLink::Follow).ok()?;
    is_same(dir, &opened).then_some(opened)
}

fn is_same(dir: &Dir, opened: &OwnedFd) -> bool {
    let found = os::identify(opened).ok().map(|metadata| metadata.file_id());
    found.is_some() && found == dir.file_id()
}
