//! `librorum`: a content-addressed file system. Arguments in, calls of the crates below out.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the volume is in use; 4 nobody answers; 5 some of it
//! failed. `fsck` has those of fsck(8):
//! 0 clean, 1 mended, 4 damage left, 8 could not be checked.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "this is the command line")]

mod admin;
mod bench;
mod check;
mod daemon;
mod doctor;
mod files;
mod format;
mod mount;
mod output;
mod remote;
mod status;
mod top;
mod transfer;
mod umount;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "librorum",
    version,
    about = "A content-addressed file system: one store with many views",
    after_help = "Example:\n  librorum mount ~/librorum      create the default volume if needed, and mount it\n  librorum umount ~/librorum\n  librorum put -r photos /             into the daemon's volume, or the default one

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the volume is in use, 4 nobody answers, 5 some of it failed."
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
    /// Copy files and trees into a volume.
    Put(transfer::put::Put),
    /// Copy files and trees out of a volume.
    Get(transfer::get::Get),
    /// Write files of a volume to standard output.
    Cat(files::browse::Cat),
    /// List directories of a volume.
    Ls(files::browse::Ls),
    /// Show all that is known of files.
    Stat(files::browse::Stat),
    /// Search a tree of a volume.
    Find(files::find::Find),
    /// Make directories in a volume.
    Mkdir(files::change::Mkdir),
    /// Remove files and directories.
    Rm(files::change::Rm),
    /// Rename, move or exchange.
    Mv(files::change::Mv),
    /// Copy within a volume: the copies share what is stored.
    Cp(files::change::Cp),
    /// Make links.
    Ln(files::change::Ln),
    /// Make everything durable.
    Sync(files::change::Sync),
    /// Serve volumes to clients and mounts, in the foreground.
    Daemon(daemon::Daemon),
    /// Start the daemon in the background.
    Start(daemon::Start),
    /// Stop the daemon.
    Stop(daemon::Stop),
    /// Stop the daemon and start it again.
    Restart(daemon::Restart),
    /// Show the nodes that a daemon knows; add and remove them.
    Nodes(admin::Nodes),
    /// Show a daemon's log.
    Logs(admin::Logs),
    /// Show what a daemon is doing.
    Top(top::Top),
    /// Show how the bytes of recent operations went, and why not faster.
    Transport(admin::Transports),
    /// Show, check and change the configuration.
    Config(admin::Config),
    /// Look for what is wrong, and collect what helps to find out.
    Doctor(doctor::Doctor),
    /// Say what directory trees occupy: all of 'fdu', whose options it takes. With --to or VOLUME:/PATH,
    /// what subtrees of a volume hold.
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
        return du(&arguments[2..], false);
    }
    let arguments = Arguments::parse_from(arguments);
    if !matches!(arguments.command, Command::Daemon(_)) {
        start_log(&arguments.log);
    }
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
        Command::Du { arguments } => return du(&arguments, json),
        Command::Daemon(command) => command.run(json),
        Command::Start(command) => command.run(json),
        Command::Stop(command) => command.run(json),
        Command::Restart(command) => command.run(json),
        Command::Nodes(command) => command.run(json),
        Command::Logs(command) => command.run(json),
        Command::Top(command) => command.run(json),
        Command::Transport(command) => command.run(json),
        Command::Config(command) => command.run(json),
        Command::Doctor(command) => command.run(json),
        Command::Put(command) => command.run(json),
        Command::Get(command) => command.run(json),
        Command::Cat(command) => command.run(json),
        Command::Ls(command) => command.run(json),
        Command::Stat(command) => command.run(json),
        Command::Find(command) => command.run(json),
        Command::Mkdir(command) => command.run(json),
        Command::Rm(command) => command.run(json),
        Command::Mv(command) => command.run(json),
        Command::Cp(command) => command.run(json),
        Command::Ln(command) => command.run(json),
        Command::Sync(command) => command.run(json),
    };
    match result {
        Ok(code) => code,
        Err(error) => output::fail(&error, json),
    }
}

fn du(arguments: &[OsString], json: bool) -> ExitCode {
    if files::usage::is_remote(arguments) {
        return files::usage::run(arguments, json);
    }
    let name = OsString::from("librorum du");
    fdu::cli::run(std::iter::once(name).chain(arguments.iter().cloned()))
}

fn start_log(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
