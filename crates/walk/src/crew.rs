//! The workers of a walk together: their queues, how work moves between them, and how many there are.
//!
//! Each worker has a queue: it adds and takes at the deep end, so that it finishes what it began and
//! memory stays small; others take half from the shallow end, where the large subtrees are. A queue is
//! a lock around a ring: a directory costs some 15 µs of system calls and an uncontended lock 20 ns, so
//! nothing finer pays.
//!
//! A walk begins with the calling thread alone. Another worker starts when there is work that the
//! busy ones do not get to: up to the number of CPUs at once, and beyond (only by default, not if
//! the number was chosen) when a worker has spent less than 60 % of its time on a CPU: then it waits
//! for a disk or a server, which can serve others meanwhile.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::completion::Branch;
use crate::descriptors::{Descriptors, OpenDir};
use crate::gate::Gate;
use crate::{Dir, RootOrder, Statistics, Threads, Visitor, Walk};

/// Sixteen took all that a virtio SSD gives (the facts, §4); a network file system takes more.
const WORKERS_MAX: usize = 64;

/// More than anybody has a use for.
const CHOSEN_MAX: usize = 1_024;

/// A directory that was entered, as its branch of the completion tree knows it.
pub(crate) struct Found<S> {
    pub(crate) dir: Arc<Dir>,
    pub(crate) scope: S,
    /// See `os::is_trusted`.
    pub(crate) trusted: bool,
    /// The device of its root.
    pub(crate) root_device: Option<u64>,
    /// A symlink or a mount point was passed on the way to it, so that it may be its own ancestor.
    pub(crate) is_elsewhere: bool,
}

pub(crate) type Task<V> = Branch<Found<<V as Visitor>::Scope>, <V as Visitor>::Tally>;

/// Something to do. Each but `Root` is one token of a task.
pub(crate) enum Job<'d, V: Visitor> {
    /// Begin with the root of this number.
    Root(usize),
    /// Open and read a directory that was found in `parent`.
    Open {
        parent: Arc<Task<V>>,
        /// `None` if descriptors are short: it has to be opened again.
        at: Option<Arc<OpenDir<'d>>>,
        name: Box<CStr>,
        inode: u64,
        through_link: bool,
    },
    /// Go on reading a directory with many entries.
    Continue { task: Arc<Task<V>>, open: Arc<OpenDir<'d>> },
}

/// Queues on cache lines of their own.
#[repr(align(128))]
struct Queue<'d, V: Visitor>(Mutex<VecDeque<Job<'d, V>>>);

/// What the workers of one walk share.
pub(crate) struct Crew<'d, V: Visitor> {
    pub(crate) walk: &'d Walk,
    pub(crate) descriptors: &'d Descriptors,
    pub(crate) make: &'d (dyn Fn(usize) -> V + Sync),
    pub(crate) gate: Gate,
    queues: Box<[Queue<'d, V>]>,
    started: AtomicUsize,
    /// How many workers start as soon as there is work for them, and how many there may ever be. Not
    /// asked for before a second one is wanted: it takes more system calls than a small walk.
    limits: OnceLock<(usize, usize)>,
    /// A visitor panicked.
    broken: AtomicBool,
    roots_left: AtomicUsize,
    results: Mutex<Results<V>>,
}

/// What is left when the walk is over.
pub(crate) struct Results<V: Visitor> {
    pub(crate) visitors: Vec<V>,
    pub(crate) roots: Vec<V::Tally>,
    pub(crate) statistics: Vec<Statistics>,
}

impl<'d, V: Visitor> Crew<'d, V> {
    pub(crate) fn new(
        walk: &'d Walk,
        descriptors: &'d Descriptors,
        make: &'d (dyn Fn(usize) -> V + Sync),
    ) -> Self {
        let workers_max = match walk.threads {
            Threads::Exactly(threads) => threads.get().min(CHOSEN_MAX),
            Threads::Auto => WORKERS_MAX,
        };
        let workers_max = workers_max.min(descriptors.workers_max());
        let queues: Box<[_]> =
            (0..workers_max).map(|_index| Queue(Mutex::new(VecDeque::new()))).collect();
        let roots = walk.roots.len();
        let crew = Self {
            walk,
            descriptors,
            make,
            gate: Gate::new(),
            queues,
            started: AtomicUsize::new(1),
            limits: OnceLock::new(),
            broken: AtomicBool::new(false),
            roots_left: AtomicUsize::new(roots),
            results: Mutex::new(Results {
                visitors: Vec::new(),
                roots: std::iter::repeat_with(V::Tally::default).take(roots).collect(),
                statistics: Vec::new(),
            }),
        };
        match walk.root_order {
            RootOrder::Together => {
                for index in (0..roots).rev() {
                    crew.push(0, Job::Root(index));
                }
            }
            RootOrder::InTurn if roots > 0 => {
                crew.push(0, Job::Root(0));
            }
            RootOrder::InTurn => {}
        }
        if roots == 0 {
            crew.gate.close();
        }
        crew
    }

    fn queue(&self, index: usize) -> MutexGuard<'_, VecDeque<Job<'d, V>>> {
        self.queues[index].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job at the deep end; returns how many are there now.
    pub(crate) fn push(&self, worker: usize, job: Job<'d, V>) -> usize {
        let mut queue = self.queue(worker);
        queue.push_back(job);
        queue.len()
    }

    /// Takes a job from the deep end of the worker's own queue.
    pub(crate) fn pop(&self, worker: usize) -> Option<Job<'d, V>> {
        self.queue(worker).pop_back()
    }

    /// Whether the worker has more in its queue than the job it takes next.
    pub(crate) fn has_spare(&self, worker: usize) -> bool {
        self.queue(worker).len() > 1
    }

    /// Takes half of somebody's jobs from the shallow end. Two queues are never locked at once.
    pub(crate) fn steal(&self, worker: usize) -> Option<Job<'d, V>> {
        let started = self.started.load(Relaxed);
        for victim in (worker + 1..started).chain(0..worker) {
            let mut taken: VecDeque<_> = {
                let mut queue = self.queue(victim);
                let half = queue.len().div_ceil(2);
                queue.drain(..half).collect()
            };
            if let Some(job) = taken.pop_back() {
                if !taken.is_empty() {
                    self.queue(worker).append(&mut taken);
                }
                return Some(job);
            }
        }
        None
    }

    fn limits(&self) -> (usize, usize) {
        let max = self.queues.len();
        *self.limits.get_or_init(|| match self.walk.threads {
            Threads::Exactly(_) => (max, max),
            Threads::Auto => {
                let cpus = std::thread::available_parallelism().map_or(1, usize::from);
                (cpus.min(max), (8 * cpus).min(max))
            }
        })
    }

    /// Whether a worker may start just because there is work.
    pub(crate) fn may_start(&self) -> bool {
        self.started.load(Relaxed) < self.limits().0
    }

    /// Whether more workers may start while those there are wait for something.
    pub(crate) fn may_grow(&self) -> bool {
        let ((at_once, max), started) = (self.limits(), self.started.load(Relaxed));
        started >= at_once && started < max
    }

    /// The number of a new worker, if there may be one.
    pub(crate) fn enlist(&self) -> Option<usize> {
        let (_, max) = self.limits();
        let more = |started| (started < max).then_some(started + 1);
        self.started.fetch_update(Relaxed, Relaxed, more).ok()
    }

    /// Whether the walk is to end early.
    pub(crate) fn is_halted(&self) -> bool {
        self.walk.stop.is_stopped() || self.broken.load(Relaxed)
    }

    /// A visitor panicked: the others go home.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Relaxed);
        self.gate.close();
    }

    fn results(&self) -> MutexGuard<'_, Results<V>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A root is complete: the next begins, or the walk is over.
    pub(crate) fn finish_root(&self, worker: usize, root: usize, tally: V::Tally) {
        self.results().roots[root] = tally;
        // Relaxed: the tally is behind a lock, and the gate has one of its own.
        if self.roots_left.fetch_sub(1, Relaxed) == 1 {
            self.gate.close();
        } else if self.walk.root_order == RootOrder::InTurn {
            self.push(worker, Job::Root(root + 1));
        }
    }

    /// A worker goes home.
    pub(crate) fn hand_in(&self, visitor: V, statistics: Option<Statistics>) {
        let mut results = self.results();
        results.visitors.push(visitor);
        results.statistics.extend(statistics);
    }

    pub(crate) fn into_results(self) -> Results<V> {
        self.results.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
