//! `librorum put` and `librorum get`: files and trees, there and back.
//!
//! One thread walks; some others move the files that it finds. Small files are one message each, large
//! ones go by the fastest way that the client knows. What goes wrong with one file ends everything,
//! unless it is to go on.

pub(crate) mod get;
mod meter;
mod pace;
pub(crate) mod put;
mod verify;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use clap::Args;
use librorum_rpc::client::RemoteFile;
use serde_json::{Value, json};

pub(crate) use meter::{Meter, Totals};
pub(crate) use pace::Pace;

use crate::files::Partial;

/// What is moved at once.
pub(crate) const STEP_BYTES: usize = 1 << 20;

/// Options of both directions.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Directories, with all that is in them.
    #[arg(short)]
    pub(crate) recursive: bool,
    /// How many files are moved at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: u16,
    /// At most so many bytes per second, such as 10M.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit: Option<u64>,
    /// Go on where an interrupted transfer of the same files was, and move only what lacks.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Return only when everything would survive a power cut.
    #[arg(long)]
    pub(crate) durable: bool,
    /// Leave alone what is there already.
    #[arg(long)]
    pub(crate) no_overwrite: bool,
    /// Read both sides again, and compare their hashes.
    #[arg(long)]
    pub(crate) verify: bool,
    /// When a file cannot be moved, go on with the others; the exit code is 5 then.
    #[arg(long)]
    pub(crate) continue_on_error: bool,
}

fn parse_rate(text: &str) -> Result<u64, String> {
    match librorum_format::parse_size(text)? {
        0 => Err("nothing would ever move at 0 bytes per second".to_owned()),
        rate => Ok(rate),
    }
}

/// What all threads of a transfer share.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) options: Options,
    pub(crate) meter: Meter,
    pub(crate) pace: Pace,
    json: bool,
    stop: AtomicBool,
    errors: Mutex<Vec<String>>,
    first: Mutex<Option<anyhow::Error>>,
}

impl Transfer {
    pub(crate) fn new(options: Options, json: bool, verb: &'static str) -> Self {
        Self {
            pace: Pace::new(options.limit),
            options,
            meter: Meter::new(verb),
            json,
            stop: AtomicBool::new(false),
            errors: Mutex::default(),
            first: Mutex::default(),
        }
    }

    /// Notes what went wrong.
    pub(crate) fn fail(&self, error: anyhow::Error) {
        let message = format!("{error:#}");
        if self.options.continue_on_error {
            if !self.json {
                self.meter.interrupt_line();
                eprintln!("librorum: {message}");
            }
        } else {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs `walk` on this thread, and `work` on others with what it sends.
    pub(crate) fn run<T: Send>(
        &self,
        walk: impl FnOnce(&dyn Fn(T) -> bool) -> anyhow::Result<()>,
        work: impl Fn(T) -> anyhow::Result<()> + Sync,
    ) {
        // Some for each: a walk that is fast waits rather than fills the memory.
        let jobs = usize::from(self.options.jobs);
        let (sender, receiver): (SyncSender<T>, Receiver<T>) = sync_channel(jobs * 16);
        let receiver = Mutex::new(receiver);
        std::thread::scope(|scope| {
            scope.spawn(|| self.meter.show_until_done());
            let workers: Vec<_> = (0..jobs)
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            let next =
                                receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                            let Ok(item) = next else { return };
                            // What was sent is taken all the same: the walk must not wait for ever.
                            if !self.is_stopped()
                                && let Err(error) = work(item)
                            {
                                self.fail(error);
                            }
                        }
                    })
                })
                .collect();
            let send = |item| !self.is_stopped() && sender.send(item).is_ok();
            if let Err(error) = walk(&send) {
                self.fail(error);
            }
            self.meter.walked();
            drop(sender);
            for worker in workers {
                if let Err(panic) = worker.join() {
                    self.meter.done();
                    std::panic::resume_unwind(panic);
                }
            }
            self.meter.done();
        });
    }

    /// The end: a failure, or a summary and an exit code.
    pub(crate) fn finish(
        self,
        remote: &crate::remote::Remote,
    ) -> anyhow::Result<std::process::ExitCode> {
        let errors = self.errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        let first = self.first.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = first {
            if !self.options.continue_on_error {
                return Err(first);
            }
            if !self.json {
                let failed = errors.len();
                return Err(Partial { failed, first: errors[0].clone() }.into());
            }
        }
        let totals = self.meter.totals();
        if self.json {
            println!("{}", summary(&totals, &errors, remote));
        } else if self.meter.is_long() {
            eprintln!("{}", self.meter.summary());
        }
        Ok(std::process::ExitCode::from(if errors.is_empty() { 0 } else { 5 }))
    }
}

fn summary(totals: &Totals, errors: &[String], remote: &crate::remote::Remote) -> Value {
    let mut transports = std::collections::BTreeMap::new();
    for used in remote.client.transports() {
        *transports.entry(used.transport.to_string()).or_insert(0_u64) += used.bytes;
    }
    json!({
        "files": totals.files,
        "directories": totals.directories,
        "symlinks": totals.symlinks,
        "bytes": totals.bytes,
        "moved_bytes": totals.moved_bytes,
        "kept_bytes": totals.kept_bytes,
        "skipped": totals.skipped,
        "verified": totals.verified,
        "milliseconds": totals.milliseconds,
        "transports": transports,
        "errors": errors,
    })
}

/// Writes a range of a file to something that only takes bytes in order.
pub(crate) fn stream(
    file: &RemoteFile,
    start: u64,
    end: u64,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<u64> {
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(STEP_BYTES).min(STEP_BYTES);
        let bytes = file.map_range(at, want)?;
        if bytes.is_empty() {
            break;
        }
        out.write_all(&bytes).context("cannot write to standard output")?;
        at += bytes.len() as u64;
        progress(bytes.len() as u64);
    }
    out.flush().context("cannot write to standard output")?;
    Ok(at - start)
}
