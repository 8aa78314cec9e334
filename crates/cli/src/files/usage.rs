//! `librorum du` of what is in a volume: what a subtree holds, and what of it is stored how often.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use clap::Parser;
use librorum_rpc::proto::v1;
use serde_json::{Value, json};

use crate::output::bytes;
use crate::remote::{self, Intent, RemotePath, To, path_json};

#[derive(Debug, Parser)]
#[command(
    name = "librorum du",
    about = "What subtrees of a volume hold: logical, unique, shared and stored bytes",
    after_help = "Example:\n  librorum du --to ~/librorum /photos /music\n  librorum du media:/photos\n\nlogical: the lengths of the files; unique: of different chunks; stored: on the disk, of which shared is also used by files elsewhere. Exit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers.\n\nPaths of this machine, without --to, are measured by fdu: 'librorum du --help'."
)]
pub(crate) struct Usage {
    /// Subtrees; without any the whole volume.
    paths: Vec<RemotePath>,
    /// Print results as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    to: To,
}

/// Whether these arguments of `du` mean what is in a volume: with `--to`, or a path with a colon.
pub(crate) fn is_remote(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| {
        let bytes = argument.as_bytes();
        bytes == b"--to" || bytes.starts_with(b"--to=") || has_volume(argument)
    })
}

fn has_volume(argument: &OsStr) -> bool {
    let bytes = argument.as_bytes();
    !bytes.starts_with(b"-")
        && bytes
            .windows(2)
            .position(|pair| pair == b":/")
            .is_some_and(|colon| !bytes[..colon].contains(&b'/'))
}

/// Runs it; options before `du` are not its own.
pub(crate) fn run(arguments: &[OsString], json: bool) -> ExitCode {
    let name = OsString::from("librorum du");
    let mut usage = Usage::parse_from(std::iter::once(name).chain(arguments.iter().cloned()));
    usage.json |= json;
    let json = usage.json;
    usage.show().unwrap_or_else(|error| crate::output::fail(&error, json))
}

impl Usage {
    fn show(self) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Read, |remote| {
            let root = [RemotePath { volume: None, path: b"/".to_vec() }];
            let paths = if self.paths.is_empty() { root.as_slice() } else { &self.paths };
            let mut all = Vec::new();
            if !self.json {
                println!(
                    "{:>11} {:>11} {:>11} {:>11} {:>9}  path",
                    "logical", "unique", "shared", "stored", "files"
                );
            }
            for path in paths {
                let used = remote.client.usage(&v1::UsageRequest {
                    volume: remote.volume_of(path).to_owned(),
                    path: path.bytes(),
                })?;
                if self.json {
                    all.push(json!({
                        "path": path_json(&path.path),
                        "file_count": used.file_count,
                        "directory_count": used.directory_count,
                        "logical_bytes": used.logical_bytes,
                        "unique_bytes": used.unique_bytes,
                        "shared_bytes": used.shared_bytes,
                        "stored_bytes": used.stored_bytes,
                    }));
                } else {
                    println!(
                        "{:>11} {:>11} {:>11} {:>11} {:>9}  {}",
                        bytes(used.logical_bytes),
                        bytes(used.unique_bytes),
                        bytes(used.shared_bytes),
                        bytes(used.stored_bytes),
                        used.file_count,
                        path.shown()
                    );
                }
            }
            if self.json {
                println!("{}", Value::Array(all));
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn du_of_this_machine_stays_what_it_is() {
        let remote =
            |words: &[&str]| is_remote(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(!remote(&["-s", "/srv", "a:b", "x/y:/z"]));
        assert!(remote(&["--to", "/srv", "/a"]));
        assert!(remote(&["media:/photos"]));
        assert!(remote(&[":/"]));
    }
}
