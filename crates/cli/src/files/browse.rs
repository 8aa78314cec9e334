//! `librorum ls`, `stat` and `cat`.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use librorum_rpc::proto::v1;
use serde_json::{Value, json};

use super::entry::{describe, entry_json, mode_text, target_text};
use super::{Troubles, is_directory, list, stat};
use crate::output::utc;
use crate::remote::{self, Intent, Remote, RemotePath, To, path_json, shown};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum ls -l /photos\n  librorum ls --to ~/librorum -R media:/\n\nTimes are UTC. Exit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers, 5 some could not be listed."
)]
pub(crate) struct Ls {
    /// Directories and files; without any the root.
    paths: Vec<RemotePath>,
    /// Mode, names, owner, size and time, too.
    #[arg(short)]
    long: bool,
    /// What is in directories below, too.
    #[arg(short = 'R')]
    recursive: bool,
    /// Names that begin with a dot, too.
    #[arg(short)]
    all: bool,
    /// Directories themselves, not what is in them.
    #[arg(short)]
    directory: bool,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum stat --chunks /photos/cat.jpg\n\nExit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers, 5 some were not found."
)]
pub(crate) struct Stat {
    #[arg(required = true)]
    paths: Vec<RemotePath>,
    /// The chunks of a sealed file, too: where they are in it, and their hashes.
    #[arg(long)]
    chunks: bool,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum cat /notes/today\n\nExit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers."
)]
pub(crate) struct Cat {
    #[arg(required = true)]
    paths: Vec<RemotePath>,
    #[command(flatten)]
    to: To,
}

impl Ls {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Read, |remote| {
            let mut out = BufWriter::new(std::io::stdout().lock());
            let mut troubles = Troubles::default();
            let mut all = Vec::new();
            let root = [RemotePath { volume: None, path: b"/".to_vec() }];
            let paths = if self.paths.is_empty() { root.as_slice() } else { &self.paths };
            let titles = paths.len() > 1 || self.recursive;
            let mut shown_any = false;
            for path in paths {
                let entry = match stat(remote, path) {
                    Ok(entry) => entry,
                    Err(failure) if paths.len() == 1 => return Err(failure.into()),
                    Err(failure) => {
                        troubles.add(failure.message, json);
                        continue;
                    }
                };
                if self.directory || !is_directory(&entry) {
                    if json {
                        all.push(entry_json(&path.path, &entry));
                    } else {
                        self.line(&mut out, &path.path, &entry)?;
                    }
                    shown_any = true;
                    continue;
                }
                let mut unread = Vec::new();
                let entries = list(remote, path, self.recursive, &mut unread)?;
                for message in unread {
                    troubles.add(message, json);
                }
                if json {
                    all.extend(
                        entries
                            .iter()
                            .filter(|entry| self.shows(&entry.path))
                            .map(|entry| entry_json(&path.join(&entry.path).path, entry)),
                    );
                } else {
                    self.sections(&mut out, path, entries, titles, &mut shown_any)?;
                }
            }
            if json {
                all.sort_by_key(|entry| entry["path"].to_string());
                writeln!(out, "{}", Value::Array(all))?;
            }
            out.flush()?;
            Ok(troubles.code())
        })
    }

    /// Hidden is what is below a hidden directory, too.
    fn shows(&self, relative: &[u8]) -> bool {
        self.all || !relative.split(|byte| *byte == b'/').any(|name| name.starts_with(b"."))
    }

    fn sections(
        &self,
        out: &mut impl Write,
        path: &RemotePath,
        entries: Vec<v1::Entry>,
        titles: bool,
        shown_any: &mut bool,
    ) -> std::io::Result<()> {
        let mut sections = std::collections::BTreeMap::from([(Vec::new(), Vec::new())]);
        for entry in entries.into_iter().filter(|entry| self.shows(&entry.path)) {
            if self.recursive && is_directory(&entry) {
                sections.entry(entry.path.to_vec()).or_default();
            }
            let parent = match entry.path.iter().rposition(|byte| *byte == b'/') {
                Some(at) => entry.path[..at].to_vec(),
                None => Vec::new(),
            };
            sections.entry(parent).or_default().push(entry);
        }
        for (directory, mut entries) in sections {
            if titles {
                let blank = if *shown_any { "\n" } else { "" };
                writeln!(out, "{blank}{}:", path.join(&directory).shown())?;
            }
            *shown_any = true;
            entries.sort_by(|one, other| one.path.cmp(&other.path));
            for entry in &entries {
                let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                self.line(out, name, entry)?;
            }
        }
        Ok(())
    }

    fn line(&self, out: &mut impl Write, name: &[u8], entry: &v1::Entry) -> std::io::Result<()> {
        if !self.long {
            return writeln!(out, "{}", shown(name));
        }
        writeln!(
            out,
            "{} {:>3} {:>5} {:>5} {:>12} {} {}{}",
            mode_text(entry),
            entry.nlink,
            entry.uid,
            entry.gid,
            entry.size_bytes,
            entry.mtime.as_ref().map_or_else(String::new, |time| utc(time.seconds, None)),
            shown(name),
            target_text(entry)
        )
    }
}

impl Stat {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Read, |remote| {
            let mut troubles = Troubles::default();
            let mut all = Vec::new();
            for path in &self.paths {
                let (entry, chunks) = match self.one(remote, path) {
                    Ok(found) => found,
                    Err(error) if self.paths.len() == 1 => return Err(error),
                    Err(error) => {
                        troubles.add(format!("{error:#}"), json);
                        continue;
                    }
                };
                if json {
                    let mut value = entry_json(&path.path, &entry);
                    if self.chunks {
                        value["chunks"] = chunks.iter().map(chunk_json).collect();
                    }
                    all.push(value);
                } else {
                    println!("{}", describe(&path.shown(), &entry));
                    for chunk in &chunks {
                        let part = if chunk.is_whole { "" } else { " (a part of it)" };
                        println!(
                            "chunk      {:>12} {:>9} {}{part}",
                            chunk.offset,
                            chunk.len,
                            hex(&chunk.id)
                        );
                    }
                }
            }
            if json {
                println!("{}", Value::Array(all));
            }
            Ok(troubles.code())
        })
    }

    fn one(
        &self,
        remote: &Remote,
        path: &RemotePath,
    ) -> anyhow::Result<(v1::Entry, Vec<v1::Chunk>)> {
        if self.chunks {
            return chunks(remote, path);
        }
        Ok((stat(remote, path)?, Vec::new()))
    }
}

/// A file and all of its chunks; there are none of one that is not sealed.
pub(crate) fn chunks(
    remote: &Remote,
    path: &RemotePath,
) -> anyhow::Result<(v1::Entry, Vec<v1::Chunk>)> {
    let mut request = v1::StatRequest {
        volume: remote.volume_of(path).to_owned(),
        path: path.bytes(),
        chunks: true,
        ..v1::StatRequest::default()
    };
    let mut found = remote.client.stat(&request)?;
    let entry = found.entry.take().context("the daemon answered without the entry")?;
    let mut all = found.chunks;
    while found.chunks_next > request.chunks_from {
        request.chunks_from = found.chunks_next;
        found = remote.client.stat(&request)?;
        all.extend(found.chunks);
    }
    Ok((entry, all))
}

fn chunk_json(chunk: &v1::Chunk) -> Value {
    json!({
        "offset": chunk.offset, "len": chunk.len, "id": hex(&chunk.id), "is_whole": chunk.is_whole,
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Cat {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Read, |remote| {
            // With --json the bytes go where people look, and what was done to where programs do.
            let mut summaries = Vec::new();
            for path in &self.paths {
                let file = remote.client.open(remote.volume_of(path), &path.path)?;
                let mut out: Box<dyn Write> = if json {
                    Box::new(std::io::stderr().lock())
                } else {
                    Box::new(std::io::stdout().lock())
                };
                let copied = crate::transfer::stream(&file, 0, file.len(), &mut out, &mut |_| {})?;
                summaries.push(json!({ "path": path_json(&path.path), "bytes": copied }));
            }
            if json {
                println!("{}", Value::Array(summaries));
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
