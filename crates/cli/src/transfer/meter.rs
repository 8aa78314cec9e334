//! What has been moved, and the line that says so.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use librorum_sys::clock;

use crate::output::bytes;

/// Work that is over sooner needs no line.
const QUIET: Duration = Duration::from_secs(1);

/// Counts of a transfer, for all threads.
#[derive(Debug)]
pub(crate) struct Meter {
    verb: &'static str,
    start: Duration,
    files: AtomicU64,
    directories: AtomicU64,
    symlinks: AtomicU64,
    bytes: AtomicU64,
    moved: AtomicU64,
    kept: AtomicU64,
    skipped: AtomicU64,
    verified: AtomicU64,
    found_files: AtomicU64,
    found_bytes: AtomicU64,
    /// The walk is over: what was found is all there is.
    is_walked: AtomicBool,
    is_done: Mutex<bool>,
    changed: Condvar,
    terminal: bool,
    on_line: AtomicBool,
}

/// The counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) symlinks: u64,
    /// The lengths of the files.
    pub(crate) bytes: u64,
    /// What went to the other side.
    pub(crate) moved_bytes: u64,
    /// What was there already, of an earlier try.
    pub(crate) kept_bytes: u64,
    pub(crate) skipped: u64,
    pub(crate) verified: u64,
    pub(crate) milliseconds: u64,
}

impl Meter {
    pub(crate) fn new(verb: &'static str) -> Self {
        Self {
            verb,
            start: clock::monotonic(),
            files: AtomicU64::default(),
            directories: AtomicU64::default(),
            symlinks: AtomicU64::default(),
            bytes: AtomicU64::default(),
            moved: AtomicU64::default(),
            kept: AtomicU64::default(),
            skipped: AtomicU64::default(),
            verified: AtomicU64::default(),
            found_files: AtomicU64::default(),
            found_bytes: AtomicU64::default(),
            is_walked: AtomicBool::default(),
            is_done: Mutex::default(),
            changed: Condvar::new(),
            terminal: std::io::stderr().is_terminal(),
            on_line: AtomicBool::default(),
        }
    }

    /// A file that waits to be moved.
    pub(crate) fn found(&self, len: u64) {
        self.found_files.fetch_add(1, Ordering::Relaxed);
        self.found_bytes.fetch_add(len, Ordering::Relaxed);
    }

    pub(crate) fn walked(&self) {
        self.is_walked.store(true, Ordering::Relaxed);
    }

    pub(crate) fn file(&self, len: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len, Ordering::Relaxed);
    }

    pub(crate) fn directory(&self) {
        self.directories.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn symlink(&self) {
        self.symlinks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn moved(&self, count: u64) {
        self.moved.fetch_add(count, Ordering::Relaxed);
    }

    /// Bytes that were on the other side already.
    pub(crate) fn kept(&self, count: u64) {
        self.kept.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn skipped(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn verified(&self) {
        self.verified.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> Totals {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let elapsed = clock::monotonic() - self.start;
        Totals {
            files: get(&self.files),
            directories: get(&self.directories),
            symlinks: get(&self.symlinks),
            bytes: get(&self.bytes),
            moved_bytes: get(&self.moved),
            kept_bytes: get(&self.kept),
            skipped: get(&self.skipped),
            verified: get(&self.verified),
            milliseconds: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Whether there was anything to see.
    pub(crate) fn is_long(&self) -> bool {
        clock::monotonic() - self.start >= QUIET
    }

    /// Ends [`Self::show_until_done`].
    pub(crate) fn done(&self) {
        *self.is_done.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Shows the line now and then: one that rewrites itself on a terminal, plain ones elsewhere.
    pub(crate) fn show_until_done(&self) {
        let every = if self.terminal { Duration::from_millis(200) } else { Duration::from_secs(5) };
        let mut is_done = self.is_done.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wait = every.max(QUIET);
        loop {
            let (guard, waited) = self
                .changed
                .wait_timeout_while(is_done, wait, |done| !*done)
                .unwrap_or_else(PoisonError::into_inner);
            is_done = guard;
            if !waited.timed_out() {
                break;
            }
            self.show();
            wait = every;
        }
        self.interrupt_line();
    }

    /// Makes room for a line of somebody else.
    pub(crate) fn interrupt_line(&self) {
        if self.on_line.swap(false, Ordering::Relaxed) {
            eprint!("\r\x1b[K");
        }
    }

    fn show(&self) {
        let line = self.line();
        let mut stderr = std::io::stderr().lock();
        let written = if self.terminal {
            self.on_line.store(true, Ordering::Relaxed);
            write!(stderr, "\r\x1b[K{line}")
        } else {
            writeln!(stderr, "{line}")
        };
        // Nobody reads it: the work goes on all the same.
        drop(written);
    }

    fn line(&self) -> String {
        let totals = self.totals();
        let done = totals.moved_bytes + totals.kept_bytes;
        let rate = rate(totals.moved_bytes, totals.milliseconds);
        let (files, all) =
            (self.found_files.load(Ordering::Relaxed), self.found_bytes.load(Ordering::Relaxed));
        let mut line = format!(
            "{}: {} of {files} files, {} of {}, {}/s",
            self.verb,
            totals.files,
            bytes(done),
            bytes(all),
            bytes(rate)
        );
        if self.is_walked.load(Ordering::Relaxed) && rate > 0 {
            line += &format!(", {} s left", all.saturating_sub(done) / rate);
        }
        line
    }

    /// What it came to.
    pub(crate) fn summary(&self) -> String {
        let totals = self.totals();
        format!(
            "{}: {} files, {} in {}.{} s, {}/s",
            self.verb,
            totals.files,
            bytes(totals.bytes),
            totals.milliseconds / 1000,
            totals.milliseconds / 100 % 10,
            bytes(rate(totals.moved_bytes, totals.milliseconds))
        )
    }
}

fn rate(count: u64, milliseconds: u64) -> u64 {
    count.saturating_mul(1000) / milliseconds.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_said_when_all_is_known() {
        let meter = Meter::new("put");
        meter.found(100 << 20);
        meter.moved(1 << 20);
        assert!(meter.line().starts_with("put: 0 of 1 files, 1.0 MiB of 100.0 MiB, "));
        assert!(!meter.line().contains("left"));
        meter.walked();
        assert!(meter.line().contains("left"), "{}", meter.line());
    }
}
