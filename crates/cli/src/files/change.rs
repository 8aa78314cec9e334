//! `librorum mkdir`, `rm`, `mv`, `cp`, `ln` and `sync`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use librorum_format::ErrorKind;
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use serde_json::{Value, json};

use super::entry::entry_json;
use super::{Troubles, is_directory, list, path_error, stat, stat_if_there};
use crate::remote::{self, Intent, Remote, RemotePath, To, path_json};

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum mkdir -p /photos/2026\n\nExit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers."
)]
pub(crate) struct Mkdir {
    #[arg(required = true)]
    paths: Vec<RemotePath>,
    /// Make what lacks above it, too; what is there is no error.
    #[arg(short)]
    parents: bool,
    /// Permissions, octal.
    #[arg(short, value_name = "MODE", default_value = "755", value_parser = parse_mode)]
    mode: u32,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum rm -r /photos/2025\n\nExit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers, 5 some are still there."
)]
pub(crate) struct Rm {
    #[arg(required = true)]
    paths: Vec<RemotePath>,
    /// Directories, with all that is in them.
    #[arg(short)]
    recursive: bool,
    /// What is not there is no error.
    #[arg(short)]
    force: bool,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum mv /new /old\n  librorum mv /a /b /directory\n\nExit codes: 0 done, 1 failed (with -n also: it is there already), 3 the volume is in use, 4 nobody answers."
)]
pub(crate) struct Mv {
    /// What to rename, and to what: with a directory that is there, into it.
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    paths: Vec<RemotePath>,
    /// Fail rather than replace what has the name.
    #[arg(short)]
    no_clobber: bool,
    /// Exchange the two names.
    #[arg(long, conflicts_with = "no_clobber")]
    exchange: bool,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum cp -r /photos /photos-2\n\nNo bytes are copied: both share what is stored. Exit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers, 5 some could not be copied."
)]
pub(crate) struct Cp {
    /// What to copy, and to what: with a directory that is there, into it.
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    paths: Vec<RemotePath>,
    /// Directories, with all that is in them.
    #[arg(short)]
    recursive: bool,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum ln -s ../shared/config /project/config\n  librorum ln /a /second-name-of-a\n\nExit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers."
)]
pub(crate) struct Ln {
    /// What to name; with -s any text.
    target: OsString,
    /// The name.
    path: RemotePath,
    /// Make a symbolic link. Without it, one more name of the same file.
    #[arg(short)]
    symbolic: bool,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum sync --seal\n\nReturns when everything that was written survives a power cut. Exit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers."
)]
pub(crate) struct Sync {
    /// The volume, as in media:/; without it the daemon's first.
    volume: Option<RemotePath>,
    /// Seal what is closed, too.
    #[arg(long)]
    seal: bool,
    #[command(flatten)]
    to: To,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("'{text}' is no mode: write it in octal, such as 755")),
    }
}

fn is(failure: &Failure, kind: ErrorKind) -> bool {
    failure.reason == Reason::File(kind)
}

/// Says what is there now.
fn report(json: bool, done: Vec<Value>) {
    if json {
        println!("{}", Value::Array(done));
    }
}

/// An answered entry under the path that the user wrote.
fn answered(path: &RemotePath, answer: v1::EntryResponse) -> Value {
    entry_json(&path.path, &answer.entry.unwrap_or_default())
}

impl Mkdir {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Change, |remote| {
            let mut done = Vec::new();
            for path in &self.paths {
                let answer = remote.client.make_directory(&v1::MakeDirectoryRequest {
                    volume: remote.volume_of(path).to_owned(),
                    path: path.bytes(),
                    mode: self.mode,
                    parents: self.parents,
                })?;
                done.push(answered(path, answer));
            }
            report(json, done);
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Rm {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Change, |remote| {
            let mut troubles = Troubles::default();
            let mut removed = 0;
            for path in &self.paths {
                let request = v1::RemoveRequest {
                    volume: remote.volume_of(path).to_owned(),
                    path: path.bytes(),
                    recursive: self.recursive,
                    missing_ok: self.force,
                    directory: false,
                };
                match remote.client.remove(&request) {
                    Ok(answer) => {
                        removed += answer.removed_count;
                        for error in &answer.errors {
                            troubles.add(path_error(error), json);
                        }
                    }
                    Err(failure) if self.paths.len() == 1 => {
                        let hint = if is(&failure, ErrorKind::IsDirectory) && !self.recursive {
                            "; -r removes directories"
                        } else {
                            ""
                        };
                        let message = format!("{}{hint}", failure.message);
                        return Err(Failure { message, ..failure }.into());
                    }
                    Err(failure) => troubles.add(failure.message, json),
                }
            }
            if json {
                println!("{}", json!({ "removed": removed, "errors": troubles.messages() }));
            }
            Ok(troubles.code())
        })
    }
}

/// Where each source goes: into a directory that is there, or to the one name that is given.
fn targets(remote: &Remote, paths: &[RemotePath]) -> anyhow::Result<Vec<(RemotePath, RemotePath)>> {
    let Some((last, sources)) = paths.split_last() else { bail!("two paths are needed") };
    let there = stat_if_there(remote, last)?;
    let is_in = there.as_ref().is_some_and(is_directory);
    if !is_in && (sources.len() > 1 || (last.has_slash() && there.is_some())) {
        let message = format!("{} is not a directory", last.shown());
        return Err(Failure::file(ErrorKind::NotDirectory, message).into());
    }
    let mut pairs = Vec::new();
    for source in sources {
        if remote.volume_of(source) != remote.volume_of(last) {
            bail!(
                "{} and {} are in different volumes: use 'librorum get' and 'librorum put'",
                source.shown(),
                last.shown()
            );
        }
        let to = if is_in { last.join(source.name()) } else { last.clone() };
        pairs.push((source.clone(), to));
    }
    Ok(pairs)
}

impl Mv {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Change, |remote| {
            let pairs = match (self.exchange, self.paths.as_slice()) {
                (true, [one, other]) => vec![(one.clone(), other.clone())],
                (true, _) => bail!("two names can be exchanged, not {}", self.paths.len()),
                (false, paths) => targets(remote, paths)?,
            };
            let replace = if self.exchange {
                v1::Replace::Exchange
            } else if self.no_clobber {
                v1::Replace::No
            } else {
                v1::Replace::Yes
            };
            let mut done = Vec::new();
            for (from, to) in pairs {
                let answer = remote.client.rename(&v1::RenameRequest {
                    volume: remote.volume_of(&from).to_owned(),
                    from: from.bytes(),
                    to: to.bytes(),
                    replace: replace.into(),
                })?;
                done.push(answered(&to, answer));
            }
            report(json, done);
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Cp {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Change, |remote| {
            let mut troubles = Troubles::default();
            let mut copied = 0_u64;
            for (from, to) in targets(remote, &self.paths)? {
                let entry = stat(remote, &from)?;
                if !is_directory(&entry) {
                    copy_one(remote, &from, &to)?;
                    copied += 1;
                } else if !self.recursive {
                    let message = format!("{} is a directory; -r copies it", from.shown());
                    return Err(Failure::file(ErrorKind::IsDirectory, message).into());
                } else if within(&from, &to) {
                    bail!("cannot copy {} into itself", from.shown());
                } else {
                    copied += copy_tree(remote, &from, &to, &entry, &mut troubles, json)?;
                }
            }
            if json {
                println!("{}", json!({ "copied": copied, "errors": troubles.messages() }));
            }
            Ok(troubles.code())
        })
    }
}

fn within(from: &RemotePath, to: &RemotePath) -> bool {
    to.trimmed()
        .strip_prefix(from.trimmed())
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn copy_one(remote: &Remote, from: &RemotePath, to: &RemotePath) -> Result<(), Failure> {
    let request = v1::CopyRequest {
        volume: remote.volume_of(from).to_owned(),
        from: from.bytes(),
        to: to.bytes(),
        replace: v1::Replace::Yes.into(),
    };
    remote.client.copy(&request).map(drop)
}

/// Copies a directory; answers how many files and links it had.
fn copy_tree(
    remote: &Remote,
    from: &RemotePath,
    to: &RemotePath,
    top: &v1::Entry,
    troubles: &mut Troubles,
    json: bool,
) -> anyhow::Result<u64> {
    let mut unread = Vec::new();
    let entries = list(remote, from, true, &mut unread)?;
    for message in unread {
        troubles.add(message, json);
    }
    let make = |path: &RemotePath| {
        let request = v1::MakeDirectoryRequest {
            volume: remote.volume_of(path).to_owned(),
            path: path.bytes(),
            mode: 0o700,
            parents: true,
        };
        remote.client.make_directory(&request)
    };
    make(to)?;
    let mut directories = vec![(to.clone(), top.clone())];
    let mut copied = 0;
    for entry in entries {
        let (source, target) = (from.join(&entry.path), to.join(&entry.path));
        let done = match entry.kind() {
            v1::Kind::Directory => {
                let made = make(&target).map(drop);
                directories.push((target, entry));
                made
            }
            v1::Kind::Regular | v1::Kind::Symlink => {
                copied += 1;
                copy_one(remote, &source, &target)
            }
            v1::Kind::Unknown
            | v1::Kind::BlockDevice
            | v1::Kind::CharDevice
            | v1::Kind::Fifo
            | v1::Kind::Socket => Err(Failure::file(
                ErrorKind::Unsupported,
                format!("{} is not copied: it is no file, directory or link", source.shown()),
            )),
        };
        if let Err(failure) = done {
            troubles.add(failure.message, json);
        }
    }
    // Innermost first: what is made in a directory changes its times.
    for (path, entry) in directories.iter().rev() {
        let request = v1::SetAttributesRequest {
            volume: remote.volume_of(path).to_owned(),
            path: path.bytes(),
            mode: Some(entry.mode),
            mtime: entry.mtime,
            ..v1::SetAttributesRequest::default()
        };
        if let Err(failure) = remote.client.set_attributes(&request) {
            troubles.add(failure.message, json);
        }
    }
    Ok(copied)
}

impl Ln {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Change, |remote| {
            let volume = remote.volume_of(&self.path).to_owned();
            let path = self.path.bytes();
            let answer = if self.symbolic {
                let target = self.target.clone().into_vec().into();
                remote.client.make_symlink(&v1::MakeSymlinkRequest { volume, path, target })?
            } else {
                let from = RemotePath::parse(&self.target).map_err(anyhow::Error::msg)?;
                if remote.volume_of(&from) != volume {
                    bail!("{} is in another volume than {}", from.shown(), self.path.shown());
                }
                let (from, to) = (from.bytes(), path);
                remote.client.link(&v1::LinkRequest { volume, from, to })?
            };
            report(json, vec![answered(&self.path, answer)]);
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Sync {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Change, |remote| {
            let root = RemotePath { volume: None, path: b"/".to_vec() };
            let of = self.volume.as_ref().unwrap_or(&root);
            let volume = remote.volume_of(of).to_owned();
            remote.client.sync(&v1::SyncRequest { volume, seal: self.seal })?;
            if json {
                println!("{}", json!({ "synced": path_json(&of.path), "sealed": self.seal }));
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
