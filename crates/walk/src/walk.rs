//! What to walk, and how.

use std::ffi::{CStr, CString};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use crate::Visitor;
use crate::crew::Crew;
use crate::descriptors::Descriptors;
use crate::worker::Worker;

/// What a visitor has to know of each file. A directory costs one open, one listing and one close; with
/// `Size` and more, also one `fstat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Its name. No system call per file.
    Names,
    /// And its kind: no system call per file where listings tell it, which is nearly everywhere.
    Kind,
    /// And [`crate::Metadata`], for sizes, links and identity: one `fstatat` per file.
    Size,
    /// All of [`crate::Metadata`]: one `fstatat` per file.
    Full,
}

/// Which symlinks are followed. One that leads nowhere is then an error, and one that leads to a
/// directory above itself an error of [`crate::Operation::Loop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// None (but a root with a slash at its end, which the kernel follows).
    Never,
    /// Those given as roots.
    Roots,
    /// All.
    Always,
}

/// Which devices are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// All that are found.
    All,
    /// That of the root. What is on another is not told of, the mount point itself included; for
    /// files that are mounts this takes [`Need::Size`].
    SameAsRoot,
}

/// How many threads walk. They start when there is work for them; the caller's is one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// As many as there are CPUs, and more, up to eight times that and 64, while threads spend
    /// their time waiting for a disk or a server.
    Auto,
    /// At most this many; and one for each twelve descriptors that the process may have open.
    Exactly(NonZeroUsize),
}

/// Whether several roots are walked at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootOrder {
    /// Yes.
    Together,
    /// No: a root is begun when the one before it is complete.
    InTurn,
}

/// Ends a walk early, from anywhere. Clones stop the same walk.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks the walk to end. Workers notice at the next entry; what they have begun is not completed,
    /// and directories that are not complete have no `exit`.
    pub fn stop(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether it was asked to.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// What one worker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Directories entered.
    pub directories: u64,
    /// Names read.
    pub entries: u64,
    /// Metadata fetched by name.
    pub stats: u64,
    /// Times it took half of another's jobs.
    pub steals: u64,
    /// Times it woke another to share work.
    pub donations: u64,
    /// Times it had nothing to do and waited.
    pub waits: u64,
    /// Failures told.
    pub errors: u64,
    /// Directories opened again because descriptors were short.
    pub reopens: u64,
}

/// What a walk leaves.
#[derive(Debug)]
pub struct Outcome<V: Visitor> {
    /// One per worker that ran, in no order.
    pub visitors: Vec<V>,
    /// The tally of each root, in the order of the roots.
    pub roots: Vec<V::Tally>,
    /// One per worker; empty unless asked for.
    pub statistics: Vec<Statistics>,
    /// Whether it was stopped, and so is incomplete.
    pub stopped: bool,
}

/// A root; without a name if it has a zero byte in it, which no file can have.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) path: PathBuf,
    pub(crate) name: Option<Box<CStr>>,
}

/// A walk over everything below some roots.
#[derive(Clone, Debug)]
pub struct Walk {
    pub(crate) roots: Vec<Root>,
    pub(crate) need: Need,
    pub(crate) follow: Follow,
    pub(crate) devices: Devices,
    pub(crate) threads: Threads,
    pub(crate) root_order: RootOrder,
    pub(crate) max_depth: u32,
    pub(crate) stop: Stop,
    open_directories_max: Option<usize>,
}

impl Walk {
    /// A walk of these paths, which may be directories or not.
    pub fn new(roots: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let root = |path: PathBuf| {
            let name = CString::new(path.as_os_str().as_bytes()).ok();
            Root { path, name: name.map(CString::into_boxed_c_str) }
        };
        Self {
            roots: roots.into_iter().map(|path| root(path.into())).collect(),
            need: Need::Kind,
            follow: Follow::Never,
            devices: Devices::All,
            threads: Threads::Auto,
            root_order: RootOrder::Together,
            max_depth: u32::MAX,
            stop: Stop::default(),
            open_directories_max: None,
        }
    }

    /// What the visitor has to know of each file; at first [`Need::Kind`].
    #[must_use]
    pub fn need(mut self, need: Need) -> Self {
        self.need = need;
        self
    }

    /// Which symlinks are followed; at first none.
    #[must_use]
    pub fn follow(mut self, follow: Follow) -> Self {
        self.follow = follow;
        self
    }

    /// Which devices are walked; at first all.
    #[must_use]
    pub fn devices(mut self, devices: Devices) -> Self {
        self.devices = devices;
        self
    }

    /// How many threads walk; at first [`Threads::Auto`].
    #[must_use]
    pub fn threads(mut self, threads: Threads) -> Self {
        self.threads = threads;
        self
    }

    /// Whether roots are walked at the same time; at first they are.
    #[must_use]
    pub fn roots_in(mut self, order: RootOrder) -> Self {
        self.root_order = order;
        self
    }

    /// Directories this far below a root are told of, but not read; 0 leaves the roots.
    #[must_use]
    pub fn max_depth(mut self, depth: u32) -> Self {
        self.max_depth = depth;
        self
    }

    /// How many directories may wait open for those in them; at first half of what the process may have
    /// open. Each worker opens up to three beyond that.
    #[must_use]
    pub fn open_directories_max(mut self, count: usize) -> Self {
        self.open_directories_max = Some(count);
        self
    }

    /// What ends this walk early.
    #[must_use]
    pub fn stop(mut self, stop: &Stop) -> Self {
        self.stop = stop.clone();
        self
    }

    /// Walks. `make` makes a worker's visitor, given the worker's number, on that worker's thread.
    ///
    /// Memory is about 150 bytes and the name for each directory that is open or waiting: those in the
    /// last 64 KiB of names of each directory on the way down, for each worker.
    ///
    /// # Panics
    ///
    /// If a visitor does.
    pub fn run<V: Visitor>(&self, make: impl Fn(usize) -> V + Sync) -> Outcome<V> {
        self.run_as::<V, false>(&make)
    }

    /// Walks, and counts what each worker does.
    ///
    /// # Panics
    ///
    /// If a visitor does.
    pub fn run_counted<V: Visitor>(&self, make: impl Fn(usize) -> V + Sync) -> Outcome<V> {
        self.run_as::<V, true>(&make)
    }

    fn run_as<V: Visitor, const COUNT: bool>(
        &self,
        make: &(dyn Fn(usize) -> V + Sync),
    ) -> Outcome<V> {
        let descriptors = Descriptors::new(self.open_directories_max);
        let crew = Crew::new(self, &descriptors, make);
        std::thread::scope(|scope| Worker::<V, COUNT>::run(&crew, scope, 0));
        let results = crew.into_results();
        Outcome {
            visitors: results.visitors,
            roots: results.roots,
            statistics: results.statistics,
            stopped: self.stop.is_stopped(),
        }
    }
}
