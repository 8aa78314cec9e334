//! What is reported on: a measurement made now, or one that was saved.

use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use librorum_sys::clock;

use super::names;
use super::options::{Running, TimeKind, Walking};
use super::rules::Selection;
use super::size::SizeFormat;
use crate::du::{
    Detail, Item, Links, Observer, Progress, Report, RootReport, RootState, TimeOf, Totals, Usage,
};
use crate::{Devices, Follow, Kind, Operation, Statistics, Threads};

/// So many messages are printed unless all are wanted.
const ERRORS_SHOWN: usize = 20;

/// Trees of items in sorted preorder: root by root, a directory before what is in it, siblings by
/// name. Saved scans have the same form, so every output works on both.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) items: Vec<Item>,
    pub(crate) roots: Vec<RootReport>,
    pub(crate) total: Totals,
}

impl Scan {
    /// The path of an item, as du would print it.
    pub(crate) fn path_of(&self, item: usize) -> Vec<u8> {
        let up = std::iter::successors(Some(item), |item| self.items[*item].parent);
        let names: Vec<&[u8]> = up.map(|item| self.items[item].name.as_encoded_bytes()).collect();
        let mut path = Vec::new();
        for name in names.into_iter().rev() {
            push_component(&mut path, name);
        }
        path
    }

    /// Where the subtree of each item ends: the index behind its last descendant.
    pub(crate) fn ends(&self) -> Vec<usize> {
        let mut ends = vec![self.items.len(); self.items.len()];
        let mut open: Vec<usize> = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            while let Some(last) = open.pop_if(|last| self.items[*last].depth >= item.depth) {
                ends[last] = index;
            }
            open.push(index);
        }
        ends
    }

    /// Whether du would print anything of the tree that an item is in.
    pub(crate) fn is_counted(&self, item: &Item) -> bool {
        self.roots.get(item.root).is_none_or(|root| root.state == RootState::Counted)
    }
}

/// Adds a name to a path; a root that ends in a slash gets no second one.
pub(crate) fn push_component(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() && path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// What to walk and what to look for.
#[derive(Debug)]
pub(crate) struct Walker<'a> {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) from_list: bool,
    pub(crate) walking: &'a Walking,
    pub(crate) selection: &'a Selection,
    pub(crate) running: &'a Running,
    pub(crate) detail: Detail,
    pub(crate) time: Option<TimeKind>,
}

/// What a walk brought.
#[derive(Debug)]
pub(crate) struct Walked<O> {
    pub(crate) scan: Scan,
    pub(crate) observers: Vec<O>,
    pub(crate) failures: Failures,
}

impl Walker<'_> {
    pub(crate) fn walk<O: Observer>(self, observe: impl Fn(usize) -> O + Sync) -> Walked<O> {
        let Walking { dereference, dereference_args, one_file_system, count_links, .. } =
            self.walking;
        let follow = match (dereference, dereference_args) {
            (true, _) => Follow::Always,
            (false, true) => Follow::Roots,
            (false, false) => Follow::Never,
        };
        let threads = NonZeroUsize::new(self.running.jobs.into());
        let paths = self.paths.into_iter().filter(|path| self.selection.keeps_given(path));
        let progress = Arc::new(Progress::default());
        let usage = Usage::new(paths)
            .follow(follow)
            .devices(if *one_file_system { Devices::SameAsRoot } else { Devices::All })
            .threads(threads.map_or(Threads::Auto, Threads::Exactly))
            .links(if *count_links { Links::Each } else { Links::Once })
            .detail(self.detail)
            .time(match self.time {
                None | Some(TimeKind::Mtime) => TimeOf::Modified,
                Some(TimeKind::Atime) => TimeOf::Accessed,
                Some(TimeKind::Ctime) => TimeOf::Changed,
            })
            .all_inodes(self.from_list)
            .progress(Arc::clone(&progress));
        let (report, observers) = with_progress(&progress, self.running.progress, || {
            usage.measure_with(self.selection, observe)
        });
        let (scan, failures) = split(report, follow != Follow::Never);
        Walked { scan, observers, failures }
    }
}

fn split(report: Report, follows: bool) -> (Scan, Failures) {
    let Report { total, roots, mut items, errors, error_count, statistics, .. } = report;
    if items.is_empty() {
        items = root_items(&roots, follows);
    }
    let failures = Failures { errors, count: error_count, statistics };
    (Scan { items, roots, total }, failures)
}

/// Where only totals were asked for: what a root is, if it is no directory, is asked once more.
fn kind_of(root: &RootReport, follows: bool) -> Kind {
    if root.totals.directories > 0 {
        return Kind::Directory;
    }
    let metadata = if follows { root.path.metadata() } else { root.path.symlink_metadata() };
    match metadata.map(|metadata| metadata.file_type()) {
        Ok(kind) if kind.is_file() => Kind::File,
        Ok(kind) if kind.is_symlink() => Kind::Symlink,
        Ok(kind) if kind.is_fifo() => Kind::Fifo,
        Ok(kind) if kind.is_socket() => Kind::Socket,
        Ok(kind) if kind.is_char_device() => Kind::CharDevice,
        Ok(kind) if kind.is_block_device() => Kind::BlockDevice,
        Ok(_) | Err(_) => Kind::Unknown,
    }
}

/// Where only totals were asked for.
fn root_items(roots: &[RootReport], follows: bool) -> Vec<Item> {
    let counted = roots.iter().enumerate().filter(|(_, root)| root.state == RootState::Counted);
    counted
        .map(|(index, root)| Item {
            parent: None,
            name: root.path.clone().into_os_string(),
            depth: 0,
            root: index,
            kind: kind_of(root, follows),
            own: root.totals,
            total: root.totals,
            incomplete: false,
        })
        .collect()
}

/// What went wrong, and what the threads did.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    errors: Vec<crate::Error>,
    count: u64,
    statistics: Vec<Statistics>,
}

impl Failures {
    pub(crate) fn any(&self) -> bool {
        self.count > 0
    }

    pub(crate) fn print(&self, running: &Running) {
        let shown = if running.buffer_errors { usize::MAX } else { ERRORS_SHOWN };
        for error in self.errors.iter().take(shown) {
            complain(&message(error));
        }
        let printed = u64::try_from(self.errors.len().min(shown)).unwrap_or(u64::MAX);
        if self.count > printed {
            let hint = if running.buffer_errors { "" } else { "; --buffer-errors shows more" };
            complain(&format!("{} more errors{hint}", self.count - printed));
        }
        if running.statistics {
            for (thread, done) in self.statistics.iter().enumerate() {
                let Statistics {
                    directories,
                    entries,
                    stats,
                    steals,
                    donations,
                    waits,
                    errors,
                    reopens,
                } = done;
                complain(&format!(
                    "thread {thread}: {directories} directories, {entries} entries, {stats} stats, \
                     {steals} steals, {donations} donations, {waits} waits, {reopens} reopened, \
                     {errors} errors"
                ));
            }
        }
    }
}

/// As GNU words it, with names that cannot control a terminal.
fn message(error: &crate::Error) -> String {
    let path = names::escaped(error.path().as_os_str().as_encoded_bytes());
    let text = error.io().to_string();
    // The number behind the words is for programmers.
    let cause = text.split(" (os error").next().unwrap_or(&text);
    match error.operation() {
        Operation::Stat => format!("cannot access '{path}': {cause}"),
        Operation::OpenDirectory => format!("cannot read directory '{path}': {cause}"),
        Operation::ReadDirectory => format!("cannot read all of directory '{path}': {cause}"),
        Operation::Loop => format!("'{path}' contains itself: not counted again"),
        Operation::Changed => format!("'{path}' changed while it was read"),
    }
}

/// A line on standard error.
pub(crate) fn complain(message: &str) {
    // Nobody reads it: the work goes on all the same.
    drop(writeln!(std::io::stderr().lock(), "fdu: {message}"));
}

/// Shows progress while something runs: on a terminal after a second, elsewhere if it was asked for.
pub(crate) fn with_progress<T>(progress: &Progress, wanted: bool, run: impl FnOnce() -> T) -> T {
    let is_terminal = std::io::stderr().is_terminal();
    if !is_terminal && !wanted {
        return run();
    }
    let (done, is_done) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let start = clock::monotonic();
            let mut wait = Duration::from_secs(1);
            let mut any = false;
            // The other end is dropped when the walk is over, even by a panic.
            while is_done.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let line = describe(progress, clock::monotonic() - start);
                let mut stderr = std::io::stderr().lock();
                any = is_terminal;
                drop(if is_terminal {
                    write!(stderr, "\r\x1b[K{line}")
                } else {
                    writeln!(stderr, "fdu: {line}")
                });
                if is_terminal {
                    wait = Duration::from_millis(200);
                }
            }
            if any {
                drop(write!(std::io::stderr().lock(), "\r\x1b[K"));
            }
        });
        let result = run();
        drop(done);
        result
    })
}

fn describe(progress: &Progress, elapsed: Duration) -> String {
    let entries = progress.entries();
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = entries.saturating_mul(1000) / elapsed_ms;
    let size = SizeFormat::Human.write(progress.disk_bytes());
    format!("{entries} entries in {} directories, {size}, {rate}/s", progress.directories())
}

/// An absolute path, where that can be found out: what ncdu wants a root to be called.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_no_current_directory| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_one_line() {
        let line = describe(&Progress::default(), Duration::from_secs(2));
        assert_eq!(line, "0 entries in 0 directories, 0, 0/s");
        // The thread that shows it ends with what it watches.
        assert_eq!(with_progress(&Progress::default(), true, || 7), 7);
    }
}
