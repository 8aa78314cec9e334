//! The daemon's log: the last records in memory for who asks, and all of them in a file.
//!
//! A [`LogBook`] makes layers for `tracing`. Recording keeps a record in memory and wakes whoever
//! waits; a thread of its own appends to the file, so that a disk that hangs delays no request, and a
//! file that fails cannot make new records of itself: the failure is put into the memory once, by the
//! thread, past `tracing`.

mod export;
mod file;
mod layer;
mod legacy;

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::proto::v1;
use librorum_sys::clock;
use serde::Serialize;
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::metrics::{Exposition, Kind, Value};

pub use layer::Recorder;

/// Records in memory at most.
const RECORDS_MAX: usize = 10_000;
/// Their bytes at most, as far as we count them.
const BYTES_MAX: usize = 8 << 20;
/// A longer text of a message or field is cut: a record must not push out all others.
const TEXT_BYTES_MAX: usize = 8 << 10;
/// Fields of a record at most.
const FIELDS_MAX: usize = 32;
/// Nobody waits longer for new records in one call.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// One line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// Counts up by one, from 1.
    pub sequence: u64,
    /// When.
    pub unix_ms: i64,
    /// How bad.
    #[serde(serialize_with = "level_name")]
    pub level: Level,
    /// The module that says it.
    pub module: String,
    /// What it says.
    pub message: String,
    /// The thread's name, or its number.
    pub thread: String,
    /// Where it is said.
    pub file: String,
    /// See `file`.
    pub line: u32,
    /// Details: those of the spans around it, and its own, which win.
    pub fields: Vec<(String, String)>,
}

fn level_name<S: serde::Serializer>(level: &Level, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(name_of(*level))
}

impl Record {
    fn bytes(&self) -> usize {
        let fields: usize =
            self.fields.iter().map(|(key, value)| key.len() + value.len() + 48).sum();
        size_of::<Self>()
            + self.module.len()
            + self.message.len()
            + self.thread.len()
            + self.file.len()
            + fields
    }
}

/// Which records are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// This level and worse; `None`: all.
    pub level: Option<Level>,
    /// Part of the module's name.
    pub module: String,
    /// Part of the message, in any case.
    pub search: String,
    /// Only those with a higher number.
    pub after: u64,
    /// Not before.
    pub start_unix_ms: Option<i64>,
    /// Not later.
    pub end_unix_ms: Option<i64>,
}

impl Filter {
    fn wants(&self, record: &Record) -> bool {
        record.sequence > self.after
            // The worse, the smaller.
            && self.level.is_none_or(|level| record.level <= level)
            && self.start_unix_ms.is_none_or(|start| record.unix_ms >= start)
            && self.end_unix_ms.is_none_or(|end| record.unix_ms <= end)
            && (self.module.is_empty() || record.module.contains(&self.module))
            && (self.search.is_empty() || contains(&record.message, &self.search))
    }
}

/// Whether the text has these words, in any case of ASCII letters.
fn contains(text: &str, words: &str) -> bool {
    text.as_bytes().windows(words.len()).any(|window| window.eq_ignore_ascii_case(words.as_bytes()))
}

/// Where records go besides memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The file. Two older ones stay beside it, as `PATH.1` and `PATH.2`.
    pub path: PathBuf,
    /// When it is full and a new one is begun.
    pub bytes_max: u64,
}

impl FileOptions {
    /// This file, full at 16 MiB.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, bytes_max: 16 << 20 }
    }
}

/// Why a level is none.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The words are no filter.
    #[error("'{given}' is no log level: error, warn, info, debug, trace, off, or MODULE=LEVEL,...")]
    Unknown {
        /// What was given.
        given: String,
    },
    /// The log has not been started, or its subscriber is gone.
    #[error("the log cannot change its level")]
    Gone,
}

/// The log. A clone is the same log.
#[derive(Clone)]
pub struct LogBook {
    inner: Arc<Inner>,
    /// Stops the file's thread with the last handle. Behind the handles, not in `Inner`, which the
    /// thread itself holds.
    _writer: Option<Arc<file::Writer>>,
}

type Reload = Box<dyn Fn(&Targets) -> bool + Send + Sync>;

struct Inner {
    book: Mutex<Book>,
    /// Something new is in the book, or the file's thread has caught up.
    changed: Condvar,
    /// Records of each level that were ever made: error, warn, info, debug, trace.
    counts: [AtomicU64; 5],
    filter: Mutex<Targets>,
    reloads: Mutex<Vec<Reload>>,
    file_failures: AtomicU64,
    /// Records that were pushed out of memory before the file's thread could write them.
    file_missed: AtomicU64,
}

struct Book {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
    /// The number of the next record.
    next: u64,
    /// The file's thread has written every record below this one.
    written: u64,
    stopping: bool,
}

impl fmt::Debug for LogBook {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("LogBook").field("counts", &self.inner.counts).finish_non_exhaustive()
    }
}

impl Default for LogBook {
    fn default() -> Self {
        Self::in_memory()
    }
}

/// The index of a level in the counts.
fn index_of(level: Level) -> usize {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        Level::TRACE => 4,
    }
}

fn name_of(level: Level) -> &'static str {
    ["error", "warn", "info", "debug", "trace"][index_of(level)]
}

/// A level by name; empty and `all` are every level.
///
/// # Errors
///
/// The name is none.
pub fn parse_level(name: &str) -> Result<Option<Level>, Failure> {
    match name.to_ascii_lowercase().as_str() {
        "" | "all" => Ok(None),
        "error" => Ok(Some(Level::ERROR)),
        "warn" | "warning" => Ok(Some(Level::WARN)),
        "info" => Ok(Some(Level::INFO)),
        "debug" => Ok(Some(Level::DEBUG)),
        "trace" => Ok(Some(Level::TRACE)),
        _ => Err(Failure::file(
            ErrorKind::InvalidInput,
            format!("'{name}' is no log level: all, trace, debug, info, warn or error"),
        )),
    }
}

/// Parses what `log_level` may say: a level, or `MODULE=LEVEL`, with commas.
///
/// # Errors
///
/// It is neither.
pub fn parse_filter(given: &str) -> Result<Targets, FilterError> {
    let mut targets = Targets::new();
    // `Targets` itself would take a misspelt level for a module.
    for part in given.split(',').map(str::trim) {
        let (module, name) = part.split_once('=').unwrap_or(("", part));
        let level = match name.to_ascii_lowercase().as_str() {
            "off" => LevelFilter::OFF,
            "error" => LevelFilter::ERROR,
            "warn" => LevelFilter::WARN,
            "info" => LevelFilter::INFO,
            "debug" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            _ => return Err(FilterError::Unknown { given: given.to_owned() }),
        };
        targets = match module {
            "" if part.contains('=') => {
                return Err(FilterError::Unknown { given: given.to_owned() });
            }
            "" => targets.with_default(level),
            module => targets.with_target(module, level),
        };
    }
    Ok(targets)
}

impl LogBook {
    /// A log that keeps what is info and worse in memory only.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { inner: Inner::new(), _writer: None }
    }

    /// A log that also appends to a file. The file is opened at once, so that a wrong path is told.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or no thread can be started.
    pub fn with_file(options: FileOptions) -> std::io::Result<Self> {
        let inner = Inner::new();
        let writer = file::Writer::start(options, Arc::clone(&inner))?;
        Ok(Self { inner, _writer: Some(Arc::new(writer)) })
    }

    /// The levels that are recorded from now on, by all layers of this log.
    ///
    /// # Errors
    ///
    /// The text is no filter; what was in effect stays.
    pub fn set_filter(&self, given: &str) -> Result<(), FilterError> {
        let targets = parse_filter(given)?;
        *lock(&self.inner.filter) = targets.clone();
        let reloads = lock(&self.inner.reloads);
        if reloads.iter().all(|reload| reload(&targets)) { Ok(()) } else { Err(FilterError::Gone) }
    }

    /// Records with a higher number than `after`; waits for one if there is none.
    ///
    /// # Errors
    ///
    /// The level is none.
    pub fn logs(&self, request: &v1::LogsRequest) -> Result<v1::LogsResponse, Failure> {
        self.logs_unless(request, &AtomicBool::new(false))
    }

    /// As [`LogBook::logs`], and stops waiting soon after `cancelled` becomes true.
    ///
    /// # Errors
    ///
    /// The level is none.
    pub fn logs_unless(
        &self,
        request: &v1::LogsRequest,
        cancelled: &AtomicBool,
    ) -> Result<v1::LogsResponse, Failure> {
        let filter = Filter {
            level: parse_level(&request.level)?,
            module: request.module.clone(),
            search: request.search.clone(),
            after: request.after,
            ..Filter::default()
        };
        let wait = Duration::from_millis(u64::from(request.wait_ms)).min(WAIT_MAX);
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let records = self.wait_for(&filter, limit, wait, cancelled);
        Ok(v1::LogsResponse { records: records.iter().map(|record| to_message(record)).collect() })
    }

    /// The newest `limit` records that match (0: all), oldest first; waits for one if there is none.
    #[must_use]
    pub fn wait_for(
        &self,
        filter: &Filter,
        limit: usize,
        wait: Duration,
        cancelled: &AtomicBool,
    ) -> Vec<Arc<Record>> {
        /// How long a withdrawn request may keep its thread.
        const SLICE: Duration = Duration::from_millis(200);
        let until = clock::monotonic() + wait;
        let mut filter = filter.clone();
        let mut book = self.inner.lock_book();
        loop {
            let mut found = book.matching(&filter);
            if !found.is_empty() {
                if limit != 0 && found.len() > limit {
                    found.drain(..found.len() - limit);
                }
                return found;
            }
            // What did not match will not match later either.
            filter.after = filter.after.max(book.next - 1);
            let left = until.saturating_sub(clock::monotonic());
            if left.is_zero() || book.stopping || cancelled.load(Relaxed) {
                return Vec::new();
            }
            book = self
                .inner
                .changed
                .wait_timeout(book, left.min(SLICE))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// All records that match, oldest first.
    #[must_use]
    pub fn records(&self, filter: &Filter) -> Vec<Arc<Record>> {
        self.inner.lock_book().matching(filter)
    }

    /// The number of the newest record, 0 without any: where a follower begins.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.inner.lock_book().next - 1
    }

    /// Forgets the records before this time, or all; the file stays as it is.
    pub fn clear(&self, before_unix_ms: Option<i64>) -> usize {
        let mut book = self.inner.lock_book();
        let count = book.records.len();
        match before_unix_ms {
            None => book.records.clear(),
            Some(before) => book.records.retain(|record| record.unix_ms >= before),
        }
        book.bytes = book.records.iter().map(|record| record.bytes()).sum();
        count - book.records.len()
    }

    /// Records of this level ever made, cleared or not.
    #[must_use]
    pub fn count(&self, level: Level) -> u64 {
        self.inner.counts[index_of(level)].load(Relaxed)
    }

    /// Times the file could not be written.
    #[must_use]
    pub fn file_failures(&self) -> u64 {
        self.inner.file_failures.load(Relaxed)
    }

    /// Waits until the file has what was recorded before, as far as it can be written.
    pub fn flush(&self, wait: Duration) {
        if self._writer.is_none() {
            return;
        }
        let until = clock::monotonic() + wait;
        let mut book = self.inner.lock_book();
        let goal = book.next;
        while book.written < goal {
            let left = until.saturating_sub(clock::monotonic());
            if left.is_zero() {
                return;
            }
            let waited = self.inner.changed.wait_timeout(book, left);
            book = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Puts a record into the log past `tracing`; its number is given here.
    pub fn push(&self, record: Record) {
        self.inner.push(record);
    }

    /// The log's own figures.
    pub fn expose(&self, out: &mut Exposition) {
        for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
            out.sample(
                "librorum_log_records_total",
                "Records of the log, by level.",
                Kind::Counter,
                &[("level", name_of(level))],
                Value::Whole(self.count(level)),
            );
        }
        out.counter(
            "librorum_log_file_failures_total",
            "Times the log's file could not be written.",
            self.file_failures(),
        );
        out.counter(
            "librorum_log_file_missed_total",
            "Records that the log's file lacks because it was too slow.",
            self.inner.file_missed.load(Relaxed),
        );
    }
}

impl Inner {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            book: Mutex::new(Book {
                records: VecDeque::new(),
                bytes: 0,
                next: 1,
                written: 1,
                stopping: false,
            }),
            changed: Condvar::new(),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            filter: Mutex::new(Targets::new().with_default(Level::INFO)),
            reloads: Mutex::new(Vec::new()),
            file_failures: AtomicU64::new(0),
            file_missed: AtomicU64::new(0),
        })
    }

    fn lock_book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    fn push(&self, mut record: Record) {
        cut(&mut record.message);
        record.fields.truncate(FIELDS_MAX);
        for (_, value) in &mut record.fields {
            cut(value);
        }
        self.counts[index_of(record.level)].fetch_add(1, Relaxed);
        let mut book = self.lock_book();
        record.sequence = book.next;
        book.next += 1;
        book.bytes += record.bytes();
        book.records.push_back(Arc::new(record));
        while book.records.len() > RECORDS_MAX || book.bytes > BYTES_MAX {
            let Some(oldest) = book.records.pop_front() else { break };
            book.bytes -= oldest.bytes();
        }
        drop(book);
        self.changed.notify_all();
    }
}

impl Book {
    fn matching(&self, filter: &Filter) -> Vec<Arc<Record>> {
        // Numbers are in order, so what a follower has seen is skipped without a look at it.
        let start = self.records.partition_point(|record| record.sequence <= filter.after);
        self.records.range(start..).filter(|record| filter.wants(record)).map(Arc::clone).collect()
    }
}

/// Cuts a text that is too long, at a character.
fn cut(text: &mut String) {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
}

fn to_message(record: &Record) -> v1::LogRecord {
    v1::LogRecord {
        sequence: record.sequence,
        unix_ms: record.unix_ms,
        level: name_of(record.level).to_owned(),
        module: record.module.clone(),
        message: record.message.clone(),
        thread: record.thread.clone(),
        file: record.file.clone(),
        line: record.line,
        fields: record.fields.iter().cloned().collect(),
    }
}

fn now_unix_ms() -> i64 {
    let now = clock::now();
    now.secs.saturating_mul(1_000).saturating_add(i64::from(now.nanos / 1_000_000))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
