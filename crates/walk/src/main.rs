//! `fdu`: says what directory trees occupy. All of it is in [`fdu::cli`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    fdu::cli::run(std::env::args_os())
}
