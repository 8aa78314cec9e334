//! The log's file: JSON lines, a new file when it is full, two old ones kept.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_sys::clock;
use tracing::Level;

use super::{FileOptions, Filter, Inner, Record, now_unix_ms};

/// After a failure, the file is left alone for so long.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Old files that stay.
const KEPT: u32 = 2;

/// The thread that writes. Dropped, it writes what is left and ends.
#[derive(Debug)]
pub(super) struct Writer {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Inner").finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn start(options: FileOptions, inner: Arc<Inner>) -> io::Result<Self> {
        let file = LogFile::open(options)?;
        let theirs = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("log-file".to_owned())
            .spawn(move || write_all(&theirs, file))?;
        Ok(Self { inner, thread: Some(thread) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.inner.lock_book().stopping = true;
        self.inner.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // If it panicked, it has said so itself, and nobody can do anything about it here.
            drop(thread.join());
        }
    }
}

fn write_all(inner: &Inner, mut file: LogFile) {
    let mut after = 0;
    let mut failing = false;
    loop {
        let mut book = inner.lock_book();
        let (records, stopping) = loop {
            let records = book.matching(&Filter { after, ..Filter::default() });
            if !records.is_empty() || book.stopping {
                break (records, book.stopping);
            }
            book = inner.changed.wait(book).unwrap_or_else(PoisonError::into_inner);
        };
        drop(book);
        if let Some(first) = records.first() {
            // Cleared by somebody or pushed out: gone either way.
            inner.file_missed.fetch_add(first.sequence - after - 1, Relaxed);
        }
        match file.append(&records) {
            Ok(()) => failing = false,
            Err(error) => {
                inner.file_failures.fetch_add(1, Relaxed);
                if !failing {
                    failing = true;
                    inner.push(failure_record(&file.options.path, &error));
                }
                if !stopping {
                    wait_before_retry(inner);
                    // The same records again; how many of them arrived is unknown, so a line may be
                    // there twice, and none is missing.
                    continue;
                }
            }
        }
        if let Some(last) = records.last() {
            after = last.sequence;
        }
        let mut book = inner.lock_book();
        book.written = after + 1;
        drop(book);
        inner.changed.notify_all();
        if stopping {
            return;
        }
    }
}

fn wait_before_retry(inner: &Inner) {
    let until = clock::monotonic() + RETRY_AFTER;
    let mut book = inner.lock_book();
    loop {
        let left = until.saturating_sub(clock::monotonic());
        if left.is_zero() || book.stopping {
            return;
        }
        let waited = inner.changed.wait_timeout(book, left);
        book = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn failure_record(path: &std::path::Path, error: &io::Error) -> Record {
    Record {
        sequence: 0,
        unix_ms: now_unix_ms(),
        level: Level::ERROR,
        module: module_path!().to_owned(),
        message: format!("the log's file {} cannot be written: {error}", path.display()),
        thread: "log-file".to_owned(),
        file: file!().to_owned(),
        line: line!(),
        fields: Vec::new(),
    }
}

#[derive(Debug)]
struct LogFile {
    options: FileOptions,
    file: Option<File>,
    len: u64,
}

impl LogFile {
    fn open(options: FileOptions) -> io::Result<Self> {
        let mut opened = Self { options, file: None, len: 0 };
        opened.reopen()?;
        Ok(opened)
    }

    fn reopen(&mut self) -> io::Result<()> {
        // Paths and names of users are in it: not for everybody.
        let file =
            OpenOptions::new().create(true).append(true).mode(0o640).open(&self.options.path)?;
        self.len = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut path = self.options.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        for number in (1..KEPT).rev() {
            match std::fs::rename(self.old(number), self.old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.options.path, self.old(1))?;
        self.reopen()
    }

    fn append(&mut self, records: &[Arc<Record>]) -> io::Result<()> {
        let result = self.try_append(records);
        if result.is_err() {
            // The next try opens it again: it may have been on a disk that came back.
            self.file = None;
        }
        result
    }

    fn try_append(&mut self, records: &[Arc<Record>]) -> io::Result<()> {
        // Somebody removed or renamed it away: what is written to it would be lost, or grow elsewhere.
        let gone = std::fs::metadata(&self.options.path)
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if gone {
            self.file = None;
        }
        let mut text = Vec::new();
        for record in records {
            let start = text.len();
            serde_json::to_writer(&mut text, &**record)?;
            text.push(b'\n');
            let full = self.len.saturating_add(text.len() as u64) > self.options.bytes_max;
            if full && self.len.saturating_add(start as u64) > 0 {
                let rest = text.split_off(start);
                self.write(&text)?;
                self.rotate()?;
                text = rest;
            }
        }
        self.write(&text)
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(text)?;
            self.len = self.len.saturating_add(text.len() as u64);
        }
        Ok(())
    }
}
