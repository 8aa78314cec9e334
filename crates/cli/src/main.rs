//! `librorum`: a content-addressed file system. Arguments in, calls of the crates below out.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the volume is in use. `fsck` has those of fsck(8):
//! 0 clean, 1 mended, 4 damage left, 8 could not be checked.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "this is the command line")]

mod bench;
mod check;
mod control;
mod format;
mod mount;
mod mountinfo;
mod output;
mod status;
mod umount;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "librorum",
    version,
    about = "A content-addressed file system: one store with many views",
    after_help = "Example:\n  librorum mount ~/librorum      create the default volume if needed, and mount it\n  librorum umount ~/librorum\n\nExit codes: 0 done, 1 failed, 2 wrong usage, 3 the volume is in use."
)]
struct Arguments {
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// What to log to standard error, as in RUST_LOG (for example debug).
    #[arg(
        long,
        global = true,
        env = "LIBRORUM_LOG",
        default_value = "warn",
        hide_env_values = true
    )]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an empty volume.
    Format(format::Format),
    /// Mount a volume; without VOLUME the default one, which is made if there is none.
    Mount(mount::Mount),
    /// Unmount, and wait until the volume is closed.
    Umount(umount::Umount),
    /// Show what a volume holds and is busy with, mounted or not.
    Status(status::StatusArguments),
    /// Check every invariant of an unmounted volume.
    Fsck(check::Fsck),
    /// Re-read every stored byte and compare it with its hash, mounted or not.
    Scrub(check::Scrub),
    /// Delete stored bytes that nothing uses any more, mounted or not.
    Sweep(check::Sweep),
    /// Compare a mounted directory with the native one beside it.
    Bench(bench::Bench),
    /// Say what directory trees occupy: all of 'fdu', whose options it takes.
    #[command(disable_help_flag = true)]
    Du {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().collect::<Vec<_>>();
    if mount::is_mount_helper(&arguments) {
        match mount::translate_helper_arguments(&arguments) {
            Ok(translated) => arguments = translated,
            Err(error) => {
                eprintln!("mount.librorum: {error}");
                return ExitCode::from(1);
            }
        }
    }
    // As it is: options such as --json mean the walker's own.
    if arguments.get(1).is_some_and(|command| command == "du") {
        return du(&arguments[2..]);
    }
    let arguments = Arguments::parse_from(arguments);
    start_log(&arguments.log);
    let json = arguments.json;
    let result = match arguments.command {
        Command::Format(command) => command.run(json),
        Command::Mount(command) => command.run(json, &arguments.log),
        Command::Umount(command) => command.run(json),
        Command::Status(command) => command.run(json),
        Command::Fsck(command) => return command.run(json),
        Command::Scrub(command) => command.run(json),
        Command::Sweep(command) => command.run(json),
        Command::Bench(command) => command.run(json),
        // Behind an option of ours.
        Command::Du { arguments } => return du(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => output::fail(&error, json),
    }
}

fn du(arguments: &[OsString]) -> ExitCode {
    let name = OsString::from("librorum du");
    fdu::cli::run(std::iter::once(name).chain(arguments.iter().cloned()))
}

fn start_log(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
