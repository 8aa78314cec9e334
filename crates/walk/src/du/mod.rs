//! What trees occupy, with the rules of GNU du.
//!
//! * A file occupies `st_blocks` × 512 bytes; directories and symlinks count too.
//! * An inode is counted once, however many names it has ([`Links::Each`] counts each name). With one
//!   root and no links followed only inodes with several names have to be remembered; otherwise all,
//!   directories included, and a directory that was counted is not walked again.
//! * A directory that cannot be read counts itself, and is an error. What cannot be asked for its
//!   metadata does not count, and is an error.
//! * A directory that contains itself, through a bind mount or a followed link, is left out there.
//! * What [`Devices::SameAsRoot`] leaves out is left out with its mount point.
//!
//! The figures do not depend on timing or the number of threads. Totals cannot, because each inode is
//! counted once. For those of single directories ([`Detail`]) the names of an inode are gathered during
//! the walk, and it is given to the first of them in sorted order (of roots, then of directories, then
//! of names; GNU du gives it to the one it meets first). Roots are walked one after the other where they
//! can have something in common; and where links are followed *and* detail is wanted, one thread walks.
//!
//! With [`Detail::Totals`] memory does not grow with entries, but for inodes with several names: some
//! 30 bytes each. On file systems known for honest listings, further names of an inode that was
//! counted cost no system call.

mod gauge;
mod inodes;
mod report;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::{
    Devices, Entered, Entry, Error, Follow, Metadata, Need, RootOrder, Stop, Threads, Time, Walk,
};

pub use report::{ERRORS_KEPT, Item, Report, RootReport, RootState};

use gauge::{Gauge, Measuring};
use inodes::Inodes;

/// How inodes with several names count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Once.
    Once,
    /// Once for each name (`du -l`).
    Each,
}

/// What is reported of what is below the roots. Figures always include what is too deep to be
/// reported itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    Totals,
    /// Directories down to this depth, and the roots that are none. A root has depth 0.
    Directories {
        /// The deepest level.
        max_depth: u32,
    },
    /// Everything down to this depth.
    Files {
        /// The deepest level.
        max_depth: u32,
    },
}

impl Detail {
    /// Whether what is no directory is reported at this depth. A root always is, as du does.
    fn has_file(self, depth: u32) -> bool {
        match self {
            Self::Totals => false,
            Self::Directories { .. } => depth == 0,
            Self::Files { max_depth } => depth <= max_depth,
        }
    }
}

/// Which time of files is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeOf {
    /// When content changed.
    Modified,
    /// When they were read.
    Accessed,
    /// When anything in their inode changed.
    Changed,
}

/// Sums over what was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// What it occupies: blocks × 512. What du prints.
    pub disk_bytes: u64,
    /// Lengths of regular files and of symlinks: `du --apparent-size` since coreutils 9.2.
    pub apparent_bytes: u64,
    /// `st_size` of everything, directories included: `du --apparent-size` until coreutils 9.1.
    pub apparent_all_bytes: u64,
    /// How many were counted: `du --inodes`.
    pub inodes: u64,
    /// How many of them are directories.
    pub directories: u64,
    /// The latest time of any of them.
    pub newest: Option<Time>,
}

impl Totals {
    fn of(metadata: &Metadata, time_of: TimeOf) -> Self {
        let kind = metadata.kind();
        let len_bytes = metadata.len_bytes();
        let has_length = matches!(kind, crate::Kind::File | crate::Kind::Symlink);
        Self {
            disk_bytes: metadata.disk_bytes(),
            apparent_bytes: if has_length { len_bytes } else { 0 },
            apparent_all_bytes: len_bytes,
            inodes: 1,
            directories: u64::from(kind == crate::Kind::Directory),
            newest: Some(match time_of {
                TimeOf::Modified => metadata.modified(),
                TimeOf::Accessed => metadata.accessed(),
                TimeOf::Changed => metadata.changed(),
            }),
        }
    }

    /// Adds. Sums that no number holds (of sparse files) stay at the largest there is.
    pub fn add(&mut self, other: &Self) {
        self.disk_bytes = self.disk_bytes.saturating_add(other.disk_bytes);
        self.apparent_bytes = self.apparent_bytes.saturating_add(other.apparent_bytes);
        self.apparent_all_bytes = self.apparent_all_bytes.saturating_add(other.apparent_all_bytes);
        self.inodes += other.inodes;
        self.directories += other.directories;
        self.newest = self.newest.max(other.newest);
    }
}

/// What to leave out, asked by all threads. `()` leaves out nothing.
pub trait Rules: Sync {
    /// Handed down from a directory to everything in it.
    type Scope: Send + Sync;

    /// A directory was opened: `None` leaves it out with all that is in it.
    fn enter(&self, dir: &Entered<'_>, parent: Option<&Self::Scope>) -> Option<Self::Scope>;

    /// Whether to count something, or look into it; asked before it is opened. Not asked for roots.
    fn keep(&self, entry: &Entry<'_>, scope: &Self::Scope) -> bool;
}

impl Rules for () {
    type Scope = ();

    fn enter(&self, _: &Entered<'_>, _: Option<&()>) -> Option<()> {
        Some(())
    }

    fn keep(&self, _: &Entry<'_>, (): &()) -> bool {
        true
    }
}

/// Something that was counted.
#[derive(Debug)]
pub enum Counted<'c> {
    /// Anything but a directory; it has metadata.
    File(&'c Entry<'c>),
    /// A directory, before what is in it; it has metadata.
    Directory(&'c Entered<'c>),
}

/// Sees what is counted and what fails, as it happens; one per thread. `()` does not look.
pub trait Observer: Send {
    /// Something was counted. Of an inode with several names, the one that was met first: that
    /// depends on timing.
    fn counted(&mut self, what: Counted<'_>) {
        let _unused = what;
    }

    /// Something could not be counted.
    fn failed(&mut self, error: &Error) {
        let _unused = error;
    }
}

impl Observer for () {}

/// How far a measurement is, to be shown while it runs. A little behind.
#[derive(Debug, Default)]
pub struct Progress {
    files: AtomicU64,
    directories: AtomicU64,
    disk_bytes: AtomicU64,
}

impl Progress {
    /// Files and directories counted.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.files.load(Relaxed) + self.directories.load(Relaxed)
    }

    /// Directories counted.
    #[must_use]
    pub fn directories(&self) -> u64 {
        self.directories.load(Relaxed)
    }

    /// What they occupy.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Relaxed)
    }
}

/// A measurement of what some roots occupy.
#[derive(Clone, Debug)]
pub struct Usage {
    walk: Walk,
    roots: Vec<PathBuf>,
    follow: Follow,
    threads: Threads,
    links: Links,
    detail: Detail,
    time_of: TimeOf,
    all_inodes: bool,
    stop: Stop,
    progress: Option<Arc<Progress>>,
}

impl Usage {
    /// Of these paths, which may be directories or not, and overlap.
    pub fn new(roots: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let roots: Vec<PathBuf> = roots.into_iter().map(Into::into).collect();
        Self {
            walk: Walk::new(roots.iter().cloned()).need(Need::Size),
            roots,
            follow: Follow::Never,
            threads: Threads::Auto,
            links: Links::Once,
            detail: Detail::Totals,
            time_of: TimeOf::Modified,
            all_inodes: false,
            stop: Stop::default(),
            progress: None,
        }
    }

    /// Which symlinks are followed; at first none.
    #[must_use]
    pub fn follow(mut self, follow: Follow) -> Self {
        self.follow = follow;
        self
    }

    /// Which devices count; at first all.
    #[must_use]
    pub fn devices(mut self, devices: Devices) -> Self {
        self.walk = self.walk.devices(devices);
        self
    }

    /// How many threads walk; at first [`Threads::Auto`].
    #[must_use]
    pub fn threads(mut self, threads: Threads) -> Self {
        self.threads = threads;
        self
    }

    /// How inodes with several names count; at first once.
    #[must_use]
    pub fn links(mut self, links: Links) -> Self {
        self.links = links;
        self
    }

    /// What is reported of what is below the roots; at first nothing.
    #[must_use]
    pub fn detail(mut self, detail: Detail) -> Self {
        self.detail = detail;
        self
    }

    /// Which time [`Totals::newest`] holds; at first that of content.
    #[must_use]
    pub fn time(mut self, time_of: TimeOf) -> Self {
        self.time_of = time_of;
        self
    }

    /// Remembers every inode even if there is one root, as du does with `--files0-from`.
    #[must_use]
    pub fn all_inodes(mut self, yes: bool) -> Self {
        self.all_inodes = yes;
        self
    }

    /// What ends it early. What is below the roots then counts in part, or not at all.
    #[must_use]
    pub fn stop(mut self, stop: &Stop) -> Self {
        self.stop = stop.clone();
        self
    }

    /// Where to tell how far it is.
    #[must_use]
    pub fn progress(mut self, progress: Arc<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// See [`Walk::open_directories_max`].
    #[must_use]
    pub fn open_directories_max(mut self, count: usize) -> Self {
        self.walk = self.walk.open_directories_max(count);
        self
    }

    /// Measures.
    #[must_use]
    pub fn measure(&self) -> Report {
        self.measure_with(&(), |_worker| ()).0
    }

    /// Measures what `rules` keep, with an observer per thread.
    ///
    /// # Panics
    ///
    /// If the rules or an observer do.
    pub fn measure_with<R: Rules, O: Observer>(
        &self,
        rules: &R,
        observe: impl Fn(usize) -> O + Sync,
    ) -> (Report, Vec<O>) {
        let is_once = self.links == Links::Once;
        let several_ways = self.roots.len() > 1 || self.follow == Follow::Always || self.all_inodes;
        let shares_roots = is_once && self.roots.len() > 1;
        let timing_matters =
            is_once && self.follow == Follow::Always && self.detail != Detail::Totals;
        let one = Threads::Exactly(NonZeroUsize::MIN);
        let walk = self
            .walk
            .clone()
            .follow(self.follow)
            .threads(if timing_matters { one } else { self.threads })
            .roots_in(if shares_roots { RootOrder::InTurn } else { RootOrder::Together })
            .stop(&self.stop);
        let measuring = Measuring {
            inodes: Inodes::default(),
            links: self.links,
            all_inodes: is_once && several_ways,
            detail: self.detail,
            time_of: self.time_of,
            progress: self.progress.as_deref(),
        };
        let outcome = walk.run_counted(|worker| Gauge::new(&measuring, rules, observe(worker)));
        report::assemble(&self.roots, outcome, &measuring.inodes, self.detail)
    }
}
