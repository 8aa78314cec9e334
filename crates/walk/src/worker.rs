//! One worker: takes jobs, makes the system calls, and tells its visitor.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::Scope;
use std::time::Duration;

use librorum_sys::clock;
use rustix::io::Errno;

use crate::crew::{Crew, Found, Job, Task};
use crate::descriptors::{self, OpenDir};
use crate::os::{self, LastLink};
use crate::{
    Descend, Devices, Dir, DirId, Entered, Entry, Error, Follow, Kind, Metadata, Need, Operation,
    Statistics, Visitor, Walk,
};

/// Each worker numbers its directories from its own 2⁴⁰.
const DIRS_PER_WORKER_BITS: u32 = 40;

/// A worker that found this many directories to open in one listing shares them before its end:
/// a full buffer of names takes over a millisecond.
const SHARE_EVERY: usize = 64;

/// For so long the first worker stays alone: starting a thread, and finding out how many there may be,
/// takes as long as twenty small directories.
const ALONE: Duration = Duration::from_micros(400);

/// How often a worker looks at its clocks, in jobs.
const PACE_JOBS: u64 = 32;

/// How long it watches itself before it says that it waits rather than works.
const PACE: Duration = Duration::from_millis(4);

pub(crate) struct Worker<'scope, 'env: 'scope, 'd: 'env, V: Visitor, const COUNT: bool> {
    crew: &'env Crew<'d, V>,
    scope: &'scope Scope<'scope, 'env>,
    index: usize,
    visitor: V,
    buffer: os::Buffer,
    dirs_seen: u64,
    jobs_done: u64,
    began: Duration,
    /// Kept open only while descriptors are short.
    last: Option<(Arc<Dir>, Arc<OpenDir<'d>>)>,
    /// Device → whether its listings are trusted. A walk meets few devices.
    devices: Vec<(u64, bool)>,
    /// Wall and CPU time at the last look.
    paced: (Duration, Duration),
    statistics: Statistics,
}

/// A directory whose turn has come.
struct Arrival<'a, V: Visitor> {
    parent: Option<Arc<Task<V>>>,
    at: Option<BorrowedFd<'a>>,
    name: Box<CStr>,
    /// As the listing says; a root has none.
    inode: Option<u64>,
    through_link: bool,
    root: usize,
}

/// Where a worker's failures go.
enum Blame<'a, V: Visitor> {
    Task(&'a Task<V>),
    Tally(&'a mut V::Tally),
}

/// Ends the walk for everybody if this worker ends by a panic.
struct BreakOff<'a, 'd, V: Visitor>(&'a Crew<'d, V>);

impl<V: Visitor> Drop for BreakOff<'_, '_, V> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.break_off();
        }
    }
}

impl<'scope, 'env, 'd, V: Visitor, const COUNT: bool> Worker<'scope, 'env, 'd, V, COUNT> {
    /// Works until the walk is over. The visitor is made and used on this thread.
    pub(crate) fn run(crew: &'env Crew<'d, V>, scope: &'scope Scope<'scope, 'env>, index: usize) {
        let _guard = BreakOff(crew);
        let mut worker = Self {
            crew,
            scope,
            index,
            visitor: (crew.make)(index),
            buffer: os::Buffer::default(),
            dirs_seen: 0,
            jobs_done: 0,
            began: clock::monotonic(),
            last: None,
            devices: Vec::new(),
            paced: (Duration::ZERO, Duration::ZERO),
            statistics: Statistics::default(),
        };
        while let Some(job) = worker.next_job() {
            match job {
                Job::Root(root) => worker.begin_root(root),
                Job::Open { parent, at, name, inode, through_link } => {
                    worker.open(parent, at, name, inode, through_link);
                }
                Job::Continue { task, open } => worker.read(task, open, true),
            }
            worker.jobs_done += 1;
            if worker.jobs_done.is_multiple_of(PACE_JOBS) {
                worker.pace();
            }
        }
        crew.hand_in(worker.visitor, COUNT.then_some(worker.statistics));
    }

    fn next_job(&mut self) -> Option<Job<'d, V>> {
        let crew = self.crew;
        if crew.is_halted() {
            crew.gate.close();
            return None;
        }
        if let Some(job) = crew.pop(self.index) {
            return Some(job);
        }
        if let Some(job) = crew.steal(self.index) {
            self.statistics.steals += u64::from(COUNT);
            return Some(job);
        }
        self.statistics.waits += u64::from(COUNT);
        // What is kept open for the next job helps nobody while this one waits.
        self.last = None;
        let job = crew.gate.wait(|| crew.steal(self.index))?;
        self.statistics.steals += u64::from(COUNT);
        // The time spent waiting here says nothing about the disk.
        self.paced = (Duration::ZERO, Duration::ZERO);
        Some(job)
    }

    /// Adds a job, and returns how many the queue holds.
    fn push(&mut self, job: Job<'d, V>) -> usize {
        self.crew.push(self.index, job)
    }

    /// There is more to do than this worker gets to at once: wakes another, or starts one.
    fn share(&mut self) {
        if self.crew.gate.has_waiting() {
            if self.crew.gate.invite() {
                self.statistics.donations += u64::from(COUNT);
            }
        } else if clock::monotonic() - self.began >= ALONE && self.crew.may_start() {
            self.start_another();
        }
    }

    fn start_another(&self) {
        let Some(index) = self.crew.enlist() else { return };
        let (crew, scope) = (self.crew, self.scope);
        let builder = std::thread::Builder::new().name(format!("walk-{index}"));
        // No thread to be had: the walk goes on with those there are.
        drop(builder.spawn_scoped(scope, move || Self::run(crew, scope, index)));
    }

    /// Starts another worker if this one mostly waits for the system while there is more to do.
    fn pace(&mut self) {
        if !self.crew.may_grow() {
            return;
        }
        let wall = clock::monotonic();
        let (wall_before, cpu_before) = self.paced;
        if wall_before == Duration::ZERO {
            self.paced = (wall, clock::thread_cpu());
        } else if wall - wall_before >= PACE {
            let cpu = clock::thread_cpu();
            let is_waiting = (cpu - cpu_before) * 5 < (wall - wall_before) * 3;
            if is_waiting && !self.crew.gate.has_waiting() && self.crew.has_spare(self.index) {
                self.start_another();
            }
            self.paced = (wall, cpu);
        }
    }

    fn fail(&mut self, blame: Blame<'_, V>, error: Error) {
        self.statistics.errors += u64::from(COUNT);
        match blame {
            Blame::Task(task) => task.deposit(|tally| self.visitor.error(error, tally)),
            Blame::Tally(tally) => self.visitor.error(error, tally),
        }
    }

    /// Gives back a token of a task, and tells of everything that is complete by that.
    fn release(&mut self, task: Arc<Task<V>>) {
        let root = task.release(
            &mut self.visitor,
            |visitor, found, tally| visitor.exit(&found.dir, &found.scope, tally),
            |visitor, into, part| visitor.fold(into, part),
        );
        if let Some((task, tally)) = root {
            self.crew.finish_root(self.index, task.data.dir.root(), tally);
        }
    }

    fn begin_root(&mut self, root: usize) {
        let walk = self.crew.walk;
        let last = walk.last_link_of(walk.follow != Follow::Never);
        let mut tally = V::Tally::default();
        let Some(name) = walk.roots[root].name.clone() else {
            let path = walk.roots[root].path.clone();
            let error = Error::new(path, Operation::Stat, Errno::INVAL);
            self.fail(Blame::Tally(&mut tally), error);
            return self.crew.finish_root(self.index, root, tally);
        };
        match os::stat(None, &name, last) {
            Ok(metadata) if metadata.kind() == Kind::Directory => {
                let through_link = last == LastLink::Follow;
                let at = None;
                self.arrive(Arrival { parent: None, at, name, inode: None, through_link, root });
                return;
            }
            Ok(metadata) => {
                let (kind, metadata) = (metadata.kind(), Some(&metadata));
                let entry = Entry { name: &name, kind, inode: 0, root, dir: None, metadata };
                self.statistics.entries += u64::from(COUNT);
                self.visitor.file(&entry, None, &mut tally);
            }
            Err(errno) => {
                let error = Error::at(None, &name, Operation::Stat, errno);
                self.fail(Blame::Tally(&mut tally), error);
            }
        }
        self.crew.finish_root(self.index, root, tally);
    }

    fn open(
        &mut self,
        parent: Arc<Task<V>>,
        at: Option<Arc<OpenDir<'d>>>,
        name: Box<CStr>,
        inode: u64,
        through_link: bool,
    ) {
        let dir = &parent.data.dir;
        let at = match at {
            Some(at) => at,
            None => match self.reopen(dir) {
                Ok(at) => at,
                Err(errno) => {
                    let error = Error::at(Some(dir), &name, Operation::Changed, errno);
                    self.fail(Blame::Task(&parent), error);
                    return self.release(parent);
                }
            },
        };
        let root = dir.root();
        let (inode, at) = (Some(inode), Some(at.as_fd()));
        self.arrive(Arrival { parent: Some(parent), at, name, inode, through_link, root });
    }

    fn reopen(&mut self, dir: &Arc<Dir>) -> Result<Arc<OpenDir<'d>>, Errno> {
        if let Some((last, open)) = &self.last
            && Arc::ptr_eq(last, dir)
        {
            return Ok(Arc::clone(open));
        }
        self.statistics.reopens += u64::from(COUNT);
        let near = self.last.as_ref().map(|(last, open)| (&**last, open.as_fd()));
        let open = self.crew.descriptors.adopt(descriptors::reopen(dir, near)?);
        self.last = Some((Arc::clone(dir), Arc::clone(&open)));
        Ok(open)
    }

    /// Opens a directory, or finds out why not, and goes on with what it is.
    fn arrive(&mut self, arrival: Arrival<'_, V>) {
        let walk = self.crew.walk;
        let last = walk.last_link_of(arrival.through_link);
        let depth = arrival.parent.as_ref().map_or(0, |parent| parent.data.dir.depth() + 1);
        let mut opened = if depth < walk.max_depth {
            os::open_directory(arrival.at, &arrival.name, last).map(Some)
        } else {
            Ok(None)
        };
        let metadata = match &opened {
            Err(errno @ (Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => Err(*errno),
            _ if !walk.identifies() => Ok(None),
            Ok(Some(fd)) => os::identify(fd).map(Some),
            // Not open, but known, and counted by those who count.
            Ok(None) | Err(_) => os::stat(arrival.at, &arrival.name, last).map(Some),
        };
        let (opened, denied) = match &mut opened {
            Ok(fd) => (fd.take(), None),
            Err(errno) => (None, Some(*errno)),
        };
        match metadata {
            Ok(metadata) => {
                let open = opened.map(|fd| self.crew.descriptors.adopt(fd));
                self.enter(arrival, open, metadata, denied);
            }
            Err(errno) => {
                let operation =
                    if errno == Errno::NOENT { Operation::Stat } else { Operation::Changed };
                self.turn_away(arrival, Some((operation, errno)));
            }
        }
    }

    /// A directory that is not entered; with a reason, it is an error.
    fn turn_away(&mut self, arrival: Arrival<'_, V>, reason: Option<(Operation, Errno)>) {
        let Arrival { parent, name, root, .. } = arrival;
        let error = reason.map(|(operation, errno)| {
            Error::at(parent.as_ref().map(|parent| &parent.data.dir), &name, operation, errno)
        });
        if let Some(parent) = parent {
            if let Some(error) = error {
                self.fail(Blame::Task(&parent), error);
            }
            self.release(parent);
        } else {
            let mut tally = V::Tally::default();
            if let Some(error) = error {
                self.fail(Blame::Tally(&mut tally), error);
            }
            self.crew.finish_root(self.index, root, tally);
        }
    }

    fn enter(
        &mut self,
        arrival: Arrival<'_, V>,
        open: Option<Arc<OpenDir<'d>>>,
        metadata: Option<Metadata>,
        denied: Option<Errno>,
    ) {
        let found = arrival.parent.as_ref().map(|parent| &parent.data);
        let id = metadata.as_ref().map(Metadata::file_id);
        let root_device = match found {
            Some(found) => found.root_device,
            None => id.map(|id| id.device),
        };
        let mut is_elsewhere = false;
        if let (Some(found), Some(id)) = (found, id) {
            if self.crew.walk.devices == Devices::SameAsRoot && root_device != Some(id.device) {
                return self.turn_away(arrival, None);
            }
            // A directory can only be its own ancestor behind a symlink, or behind a mount point,
            // which has another inode or device than the listing and its parent say.
            let parent_id = found.dir.file_id();
            is_elsewhere = found.is_elsewhere
                || arrival.through_link
                || arrival.inode != Some(id.inode)
                || parent_id.is_none_or(|parent| parent.device != id.device);
            let is_loop = is_elsewhere
                && std::iter::once(&found.dir)
                    .chain(found.dir.ancestors())
                    .any(|dir| dir.file_id() == Some(id));
            if is_loop {
                return self.turn_away(arrival, Some((Operation::Loop, Errno::LOOP)));
            }
        }
        let trusted = match (&open, id, found) {
            (Some(open), Some(id), _) => self.is_trusted(id.device, open.as_fd()),
            // Without any stat, mount points go unnoticed: what holds for the parent has to do.
            (Some(_), None, Some(found)) => found.trusted,
            (Some(open), None, None) => os::is_trusted(open.as_fd()),
            (None, _, _) => false,
        };
        let dir_id = DirId((u64_from(self.index) << DIRS_PER_WORKER_BITS) + self.dirs_seen);
        self.dirs_seen += 1;
        self.statistics.directories += u64::from(COUNT);
        let Arrival { parent, name, root, .. } = arrival;
        let dir = Arc::new(match &parent {
            Some(parent) => Dir::new_below(Arc::clone(&parent.data.dir), name, dir_id),
            None => Dir::new_root(name, root, dir_id),
        });
        if let Some(id) = id {
            dir.set_file_id(id);
        }

        let mut tally = V::Tally::default();
        let entered = Entered {
            dir: &dir,
            metadata: metadata.as_ref(),
            fd: open.as_ref().map(|open| open.as_fd()),
        };
        let scope_above = parent.as_ref().map(|parent| &parent.data.scope);
        let (scope, open) = match self.visitor.enter(&entered, scope_above, &mut tally) {
            Descend::Into(scope) => (scope, open),
            Descend::No(scope) => (scope, None),
            Descend::Skip => {
                return match parent {
                    Some(parent) => self.release(parent),
                    None => self.crew.finish_root(self.index, root, tally),
                };
            }
        };
        if let Some(errno) = denied {
            let error = Error::new(dir.path(), Operation::OpenDirectory, errno);
            self.fail(Blame::Tally(&mut tally), error);
        }
        let task =
            Task::<V>::new(Found { dir, scope, trusted, root_device, is_elsewhere }, parent, tally);
        match open {
            Some(open) => self.read(task, open, false),
            None => self.release(task),
        }
    }

    fn is_trusted(&mut self, device: u64, fd: BorrowedFd<'_>) -> bool {
        if let Some((_, trusted)) = self.devices.iter().find(|(known, _)| *known == device) {
            return *trusted;
        }
        let trusted = os::is_trusted(fd);
        self.devices.push((device, trusted));
        trusted
    }

    /// Reads a directory, or, if it is large, one buffer of it: then somebody else may read on
    /// while this worker asks for the metadata of what it has.
    fn read(&mut self, task: Arc<Task<V>>, open: Arc<OpenDir<'d>>, is_later: bool) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut tally = V::Tally::default();
        let mut found = 0_usize;
        let mut queued = 0;
        let mut handed_over = false;
        {
            let trusted = task.data.trusted;
            let mut listing = os::Listing::new(open.as_fd(), &mut buffer, trusted, is_later);
            while !(handed_over && listing.is_drained()) {
                let record = match listing.next() {
                    Some(Ok(record)) => record,
                    Some(Err(Errno::INTR)) => continue,
                    Some(Err(errno)) => {
                        let path = task.data.dir.path();
                        let error = Error::new(path, Operation::ReadDirectory, errno);
                        self.fail(Blame::Tally(&mut tally), error);
                        break;
                    }
                    None => break,
                };
                if matches!(record.name().to_bytes(), b"." | b"..") {
                    continue;
                }
                let kind = Kind::from(record.kind());
                let child =
                    self.entry(&task, &open, record.name(), kind, record.inode(), &mut tally);
                if let Some(job) = child {
                    task.add();
                    queued = self.push(job);
                    found += 1;
                    if found.is_multiple_of(SHARE_EVERY) {
                        self.share();
                    }
                }
                if !handed_over && listing.is_large() && !self.crew.descriptors.is_short() {
                    handed_over = true;
                    task.add();
                    let (task, open) = (Arc::clone(&task), Arc::clone(&open));
                    self.push(Job::Continue { task, open });
                    self.share();
                }
                if self.crew.is_halted() {
                    break;
                }
            }
        }
        self.buffer = buffer;
        // One is for this worker.
        if queued > 1 {
            self.share();
        }
        self.last = self.crew.descriptors.is_short().then(|| (Arc::clone(&task.data.dir), open));
        task.deposit(|sum| self.visitor.fold(sum, tally));
        self.release(task);
    }

    /// Tells of a file, or returns the job of opening a directory.
    fn entry(
        &mut self,
        task: &Arc<Task<V>>,
        open: &Arc<OpenDir<'d>>,
        name: &CStr,
        kind: Kind,
        inode: u64,
        tally: &mut V::Tally,
    ) -> Option<Job<'d, V>> {
        let walk = self.crew.walk;
        let Found { dir, scope, trusted, root_device, .. } = &task.data;
        self.statistics.entries += u64::from(COUNT);
        let mut entry =
            Entry { name, kind, inode, root: dir.root(), dir: Some(dir), metadata: None };
        if !self.visitor.keep(&entry, scope) {
            return None;
        }
        let mut through_link = false;
        let mut fetched: Option<Metadata> = None;
        loop {
            let follows = entry.kind == Kind::Symlink && walk.follow == Follow::Always;
            let wanted = if entry.kind == Kind::Unknown {
                // At the end of the way down nobody has to know whether it is a directory.
                walk.need > Need::Names || entry.depth() < walk.max_depth
            } else if entry.kind == Kind::Directory || through_link {
                false
            } else if follows {
                true
            } else {
                walk.need >= Need::Size
                    && fetched.is_none()
                    && (!*trusted || self.visitor.wants_metadata(&entry, scope))
            };
            if !wanted {
                break;
            }
            self.statistics.stats += u64::from(COUNT);
            match os::stat(Some(open.as_fd()), name, walk.last_link_of(follows)) {
                Ok(metadata) => {
                    through_link = follows;
                    entry.kind = metadata.kind();
                    fetched = Some(metadata);
                }
                Err(errno) => {
                    let error = Error::at(Some(dir), name, Operation::Stat, errno);
                    self.fail(Blame::Tally(tally), error);
                    return None;
                }
            }
        }
        if entry.kind == Kind::Directory {
            return Some(self.job_for(task, open, name, inode, through_link));
        }
        entry.metadata = fetched.as_ref();
        let device = fetched.as_ref().map(|metadata| metadata.file_id().device);
        if walk.devices == Devices::SameAsRoot && device.is_some() && device != *root_device {
            return None;
        }
        self.visitor.file(&entry, Some(scope), tally);
        None
    }

    fn job_for(
        &self,
        task: &Arc<Task<V>>,
        open: &Arc<OpenDir<'d>>,
        name: &CStr,
        inode: u64,
        through_link: bool,
    ) -> Job<'d, V> {
        let dir = &task.data.dir;
        let at = if self.crew.descriptors.is_short() {
            // So that it can be recognised when it is opened again.
            if dir.file_id().is_none()
                && let Ok(metadata) = os::identify(open.as_fd())
            {
                dir.set_file_id(metadata.file_id());
            }
            None
        } else {
            Some(Arc::clone(open))
        };
        Job::Open { parent: Arc::clone(task), at, name: name.into(), inode, through_link }
    }
}

impl Walk {
    /// Whether directories are asked who they are.
    fn identifies(&self) -> bool {
        self.need >= Need::Size
            || self.follow == Follow::Always
            || self.devices == Devices::SameAsRoot
    }

    fn last_link_of(&self, follows: bool) -> LastLink {
        if follows { LastLink::Follow } else { LastLink::Refuse }
    }
}

fn u64_from(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX)
}
