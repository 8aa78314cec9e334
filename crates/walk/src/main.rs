//! `fdu PATH...`: what paths occupy, in KiB, as `du -s` prints it.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use fdu::du::{Report, RootState, Usage};

fn main() -> ExitCode {
    let mut paths: Vec<OsString> = std::env::args_os().skip(1).collect();
    if paths.is_empty() {
        paths.push(".".into());
    }
    let report = Usage::new(paths).measure();
    for error in &report.errors {
        // Nobody to tell if standard error is closed.
        drop(writeln!(io::stderr(), "fdu: {error}"));
    }
    let is_printed = print(&report).is_ok();
    if is_printed && report.error_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(report: &Report) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for root in &report.roots {
        if root.state == RootState::Counted {
            write!(out, "{}\t", root.totals.disk_bytes.div_ceil(1024))?;
            out.write_all(root.path.as_os_str().as_bytes())?;
            writeln!(out)?;
        }
    }
    out.flush()
}
