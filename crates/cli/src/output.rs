//! What people and programs are shown: sizes, progress, failures.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use librorum_format::ErrorKind;
use librorum_fs::{FsError, Progress};
use librorum_rpc::{Failure, Reason};

use crate::files::Partial;
use crate::remote::InUse;

/// Prints a failure with its causes, and answers the exit code that it has.
pub(crate) fn fail(error: &anyhow::Error, json: bool) -> ExitCode {
    let code = exit_code(error);
    if json {
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        let mut value = serde_json::json!({ "error": causes.join(": "), "exit_code": code });
        if let Some(failure) = failure_in(error) {
            value["kind"] = failure.to_message().kind.into();
            value["errno"] = failure.errno().into();
        }
        println!("{value}");
    } else {
        eprintln!("librorum: {error:#}");
    }
    ExitCode::from(code)
}

fn failure_in(error: &anyhow::Error) -> Option<&Failure> {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>())
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<InUse>().is_some() {
        return 3;
    }
    if error.downcast_ref::<Partial>().is_some() {
        return 5;
    }
    if error.downcast_ref::<FsError>().is_some_and(|error| error.kind() == ErrorKind::Busy) {
        return 3;
    }
    match failure_in(error).map(|failure| failure.reason) {
        Some(Reason::Disconnected) => 4,
        _ => 1,
    }
}

/// A moment for people, UTC; to the nanosecond if those are given.
pub(crate) fn utc(seconds: i64, nanos: Option<u32>) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let date = format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}");
    match nanos {
        Some(nanos) => format!("{date}:{:02}.{nanos:09}", second % 60),
        None => date,
    }
}

/// Year, month and day of a day since 1970: Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", civil_from_days.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The day since 1970 of a date: the inverse of [`civil`].
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// A moment as users write it: `90s`, `10m`, `3h`, `2d` ago; `2026-01-31` or `2026-01-31T12:30:00`,
/// UTC; `@SECONDS` since 1970.
pub(crate) fn parse_time(text: &str) -> Result<i64, String> {
    let invalid = || {
        format!(
            "'{text}' is no time: write 90s, 10m, 3h or 2d for so long ago, a date such as \
             2026-01-31 or 2026-01-31T12:30:00 (UTC), or @SECONDS"
        )
    };
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.parse().map_err(|_not_a_number| invalid());
    }
    for (unit, seconds) in [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)] {
        if let Some(count) = text.strip_suffix(unit) {
            let count: u32 = count.parse().map_err(|_not_a_number| invalid())?;
            return Ok(librorum_sys::clock::now().secs - i64::from(count) * seconds);
        }
    }
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let numbers = |text: &str, by: char| -> Option<[i64; 3]> {
        let numbers: Vec<i64> = text.split(by).map(str::parse).collect::<Result<_, _>>().ok()?;
        numbers.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-').ok_or_else(invalid)?;
    let [hour, minute, second] = numbers(time, ':').ok_or_else(invalid)?;
    let days = days_of(year, month, day);
    let is_date = (0..=9999).contains(&year) && civil(days) == (year, month, day);
    let is_time = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..60).contains(&second);
    if !is_date || !is_time {
        return Err(invalid());
    }
    Ok(days * 86_400 + hour * 3600 + minute * 60 + second)
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
    fn dates_go_there_and_back() {
        assert_eq!(utc(0, None), "1970-01-01 00:00");
        assert_eq!(utc(951_782_400, Some(5)), "2000-02-29 00:00:00.000000005");
        assert_eq!(utc(-1, None), "1969-12-31 23:59");
        assert_eq!(parse_time("2000-02-29"), Ok(951_782_400));
        assert_eq!(parse_time("2000-02-29T00:00:07"), Ok(951_782_407));
        assert_eq!(parse_time("@12"), Ok(12));
        for wrong in ["2001-02-29", "2000-13-01", "x", "3w", "2000-01-01T24:00:00"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
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
