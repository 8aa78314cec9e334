//! What people and programs are shown: sizes, progress, failures.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use librorum_format::ErrorKind;
use librorum_fs::{FsError, Progress};

/// Prints a failure with its causes, and answers the exit code that it has.
pub(crate) fn fail(error: &anyhow::Error, json: bool) -> ExitCode {
    let code = exit_code(error);
    if json {
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        println!("{}", serde_json::json!({ "error": causes.join(": "), "exit_code": code }));
    } else {
        eprintln!("librorum: {error:#}");
    }
    ExitCode::from(code)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<FsError>() {
        Some(error) if error.kind() == ErrorKind::Busy => 3,
        _ => 1,
    }
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scale = 1_u64;
    while count / scale >= 1024 && unit + 1 < UNITS.len() {
        unit += 1;
        scale *= 1024;
    }
    if unit == 0 {
        return format!("{count} B");
    }
    let tenths = count / (scale / 10);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Shows how far long work is: a line that rewrites itself on a terminal, a plain line now and then
/// elsewhere.
#[derive(Debug)]
pub(crate) struct ProgressLine {
    start: Duration,
    shown: Duration,
    phase: &'static str,
    terminal: bool,
    any: bool,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        let now = librorum_sys::clock::monotonic();
        Self {
            start: now,
            shown: now,
            phase: "",
            terminal: std::io::stderr().is_terminal(),
            any: false,
        }
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        let now = librorum_sys::clock::monotonic();
        if self.phase != progress.phase {
            self.phase = progress.phase;
            self.start = now;
        }
        let every = if self.terminal { Duration::from_millis(200) } else { Duration::from_secs(5) };
        if now - self.shown < every {
            return;
        }
        self.shown = now;
        let line = describe(progress, now - self.start);
        let mut stderr = std::io::stderr().lock();
        let written = if self.terminal {
            self.any = true;
            write!(stderr, "\r\x1b[K{line}")
        } else {
            writeln!(stderr, "{line}")
        };
        // Nobody reads it: the work goes on all the same.
        drop(written);
    }

    /// Ends the line.
    pub(crate) fn done(&mut self) {
        if self.any {
            eprintln!();
            self.any = false;
        }
    }
}

fn describe(progress: Progress, elapsed: Duration) -> String {
    let is_bytes = progress.unit == "bytes";
    let count = |number: u64| {
        if is_bytes { bytes(number) } else { format!("{number} {}", progress.unit) }
    };
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = progress.done.saturating_mul(1000) / elapsed_ms;
    let mut line = format!("{}: {}", progress.phase, count(progress.done));
    if let Some(total) = progress.total {
        line += &format!(" of {}", count(total));
    }
    line += &format!(", {}/s", count(rate));
    if let Some(total) = progress.total
        && rate > 0
    {
        line += &format!(", {} s left", total.saturating_sub(progress.done) / rate);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn progress_names_rate_and_time_left() {
        let progress = Progress { phase: "reading data", done: 10, total: Some(30), unit: "files" };
        assert_eq!(
            describe(progress, Duration::from_secs(2)),
            "reading data: 10 files of 30 files, 5 files/s, 4 s left"
        );
    }
}
