//! `librorum get`.
//!
//! A file is written as `NAME.librorum-part` and renamed when it is whole. Names come from the other
//! side: none may lead out of the target, and symlinks are made last, so that nothing is written through
//! one of them.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::client::RemoteFile;
use librorum_rpc::proto::v1;
use serde_json::json;

use super::verify::compare;
use super::{Options, STEP_BYTES, Transfer, stream};
use crate::files::browse::chunks;
use crate::files::{is_directory, stat};
use crate::remote::{self, Intent, Remote, RemotePath, To, local, path_json};

/// Zeros of this length become a hole.
const HOLE_BYTES: usize = 64 << 10;

/// What is left of a larger file is kept, so that --resume can go on.
const PART_BYTES_MIN: u64 = 16 << 20;

const MODE_MASK: u32 = 0o1777;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum get /photos/cat.jpg .\n  librorum get -r media:/music ~/music --resume\n  librorum get /backup.tar - | tar x\n  librorum get /log tail --range 1000-1999\n\nModes (without set-id bits) and times come along; holes stay holes. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the volume is in use, 4 nobody answers, 5 some failed (--continue-on-error)."
)]
pub(crate) struct Get {
    /// Files and directories (with -r) in the volume.
    #[arg(required = true, value_name = "REMOTE")]
    sources: Vec<RemotePath>,
    /// Where to: into a directory that is there, under this name, or - for standard output.
    #[arg(value_name = "LOCAL")]
    target: OsString,
    /// Only these bytes, as in HTTP: 0-99 are the first hundred, 100- all that follow them.
    #[arg(long, value_name = "START-END", conflicts_with_all = ["offset", "length"])]
    range: Option<ByteRange>,
    /// Only what is behind this offset.
    #[arg(long, value_name = "BYTES", value_parser = librorum_format::parse_size)]
    offset: Option<u64>,
    /// At most so many bytes.
    #[arg(long, value_name = "BYTES", value_parser = librorum_format::parse_size)]
    length: Option<u64>,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    to: To,
}

/// From an offset up to, but not including, another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ByteRange {
    start: u64,
    end: Option<u64>,
}

impl std::str::FromStr for ByteRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("'{text}' is no range: write START-END, both included, or START-");
        let (start, end) = text.split_once('-').ok_or_else(invalid)?;
        let start: u64 = start.parse().map_err(|_not_a_number| invalid())?;
        if end.is_empty() {
            return Ok(Self { start, end: None });
        }
        let last: u64 = end.parse().map_err(|_not_a_number| invalid())?;
        match last.checked_add(1) {
            Some(end) if last >= start => Ok(Self { start, end: Some(end) }),
            _ => Err(invalid()),
        }
    }
}

struct Getting<'a> {
    remote: &'a Remote,
    transfer: Transfer,
}

struct Item {
    path: RemotePath,
    local: PathBuf,
}

/// What is made when all files are there.
#[derive(Default)]
struct Later {
    symlinks: Vec<(PathBuf, OsString)>,
    directories: Vec<(PathBuf, v1::Entry)>,
}

impl Get {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Read, |remote| {
            let is_stdout = self.target == "-";
            let part = self.part();
            if is_stdout || part.is_some() {
                let [source] = self.sources.as_slice() else {
                    bail!("standard output and ranges are for one file");
                };
                if self.options.resume || self.options.verify || self.options.recursive {
                    bail!("--resume, --verify and -r are for whole files, not for ranges or '-'");
                }
                if is_stdout && (self.options.durable || self.options.no_overwrite) {
                    bail!("--durable and --no-overwrite are for files, not for '-'");
                }
                return self.one_range(remote, source, is_stdout, json);
            }
            let getting =
                Getting { remote, transfer: Transfer::new(self.options.clone(), json, "get") };
            let target = Path::new(&self.target);
            let is_in = target.is_dir();
            if self.sources.len() > 1 && !is_in {
                bail!("{} is not a directory", target.display());
            }
            let mut later = Later::default();
            getting.transfer.run(
                |send| self.walk(&getting, is_in, &mut later, send),
                |item| getting.file(&item),
            );
            getting.finish(&later)?;
            getting.transfer.finish(remote)
        })
    }

    /// The part of the file that is wanted, if not all of it is.
    fn part(&self) -> Option<ByteRange> {
        if self.range.is_some() {
            return self.range;
        }
        let start = self.offset.unwrap_or(0);
        let end = self.length.map(|length| start.saturating_add(length));
        (self.offset.is_some() || self.length.is_some()).then_some(ByteRange { start, end })
    }

    /// Bytes to standard output, or a range to a file.
    fn one_range(
        &self,
        remote: &Remote,
        source: &RemotePath,
        is_stdout: bool,
        json: bool,
    ) -> anyhow::Result<ExitCode> {
        let transfer = Transfer::new(self.options.clone(), json, "get");
        let file = remote.client.open(remote.volume_of(source), &source.path)?;
        let range = self.part().unwrap_or(ByteRange { start: 0, end: None });
        let end = range.end.unwrap_or(u64::MAX).min(file.len());
        let mut progress = |count| {
            transfer.meter.moved(count);
            transfer.pace.take(count);
        };
        let copied = if is_stdout {
            let mut out = std::io::stdout().lock();
            stream(&file, range.start, end, &mut out, &mut progress)?
        } else {
            let mut target = PathBuf::from(&self.target);
            if target.is_dir() {
                target.push(safe_name(source.name())?);
            }
            if self.options.no_overwrite && target.symlink_metadata().is_ok() {
                let message = format!("{} is there already", target.display());
                return Err(Failure::file(ErrorKind::AlreadyExists, message).into());
            }
            let mut out = File::create(&target)
                .with_context(|| format!("cannot write {}", target.display()))?;
            let copied = stream(&file, range.start, end, &mut out, &mut progress)?;
            if self.options.durable {
                rustix::fs::fsync(&out)
                    .with_context(|| format!("cannot sync {}", target.display()))?;
            }
            copied
        };
        if json && !is_stdout {
            println!(
                "{}",
                json!({ "path": path_json(&source.path), "start": range.start, "bytes": copied })
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn walk(
        &self,
        getting: &Getting<'_>,
        is_in: bool,
        later: &mut Later,
        send: &dyn Fn(Item) -> bool,
    ) -> anyhow::Result<()> {
        for source in &self.sources {
            if getting.transfer.is_stopped() {
                return Ok(());
            }
            if let Err(error) = self.walk_one(getting, source, is_in, later, send) {
                getting.transfer.fail(error);
            }
        }
        Ok(())
    }

    fn walk_one(
        &self,
        getting: &Getting<'_>,
        source: &RemotePath,
        is_in: bool,
        later: &mut Later,
        send: &dyn Fn(Item) -> bool,
    ) -> anyhow::Result<()> {
        let entry = stat(getting.remote, source)?;
        let mut target = PathBuf::from(&self.target);
        if is_in && !source.name().is_empty() {
            target.push(safe_name(source.name())?);
        }
        if !is_directory(&entry) {
            getting.entry(&entry, source.clone(), target, later, send);
            return Ok(());
        }
        if !self.options.recursive {
            let message = format!("{} is a directory; -r gets it", source.shown());
            return Err(Failure::file(ErrorKind::IsDirectory, message).into());
        }
        getting.entry(&entry, source.clone(), target.clone(), later, send);
        let mut listing = getting.remote.client.entries(v1::ListRequest {
            volume: getting.remote.volume_of(source).to_owned(),
            path: source.bytes(),
            recursive: true,
            ..v1::ListRequest::default()
        });
        for entry in listing.by_ref() {
            let entry = entry?;
            if getting.transfer.is_stopped() {
                return Ok(());
            }
            let below = safe_path(&entry.path)?;
            getting.entry(&entry, source.join(&entry.path), target.join(below), later, send);
        }
        for error in listing.errors() {
            getting.transfer.fail(anyhow::anyhow!("{}", crate::files::path_error(error)));
        }
        Ok(())
    }
}

/// A name that a daemon says, as one of this machine.
fn safe_name(name: &[u8]) -> anyhow::Result<&OsStr> {
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
        bail!("the daemon names a file '{}', which no file is called", remote::shown(name));
    }
    Ok(OsStr::from_bytes(name))
}

fn safe_path(path: &[u8]) -> anyhow::Result<PathBuf> {
    for name in path.split(|byte| *byte == b'/') {
        safe_name(name)?;
    }
    Ok(local(path))
}

impl Getting<'_> {
    fn entry(
        &self,
        entry: &v1::Entry,
        path: RemotePath,
        local: PathBuf,
        later: &mut Later,
        send: &dyn Fn(Item) -> bool,
    ) {
        match entry.kind() {
            v1::Kind::Regular => {
                self.transfer.meter.found(entry.size_bytes);
                send(Item { path, local });
            }
            v1::Kind::Directory => {
                // A directory is open to us while we fill it, whatever it is to be.
                let made = match std::fs::create_dir(&local) {
                    Err(_) if local.is_dir() => Ok(()),
                    made => made,
                };
                if let Err(error) = made {
                    let error = anyhow::Error::new(error);
                    self.transfer.fail(error.context(format!("cannot make {}", local.display())));
                }
                self.transfer.meter.directory();
                later.directories.push((local, entry.clone()));
            }
            v1::Kind::Symlink => {
                let target = OsStr::from_bytes(&entry.symlink_target).to_owned();
                later.symlinks.push((local, target));
            }
            v1::Kind::Unknown
            | v1::Kind::BlockDevice
            | v1::Kind::CharDevice
            | v1::Kind::Fifo
            | v1::Kind::Socket => self.transfer.fail(anyhow::anyhow!(
                "{} is no file, directory or link, and is not fetched",
                path.shown()
            )),
        }
    }

    /// Makes the links, then gives directories their modes and times, innermost first.
    fn finish(&self, later: &Later) -> anyhow::Result<()> {
        if self.transfer.is_stopped() {
            return Ok(());
        }
        for (path, target) in &later.symlinks {
            let made = std::os::unix::fs::symlink(target, path);
            let made = match made {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    if self.transfer.options.no_overwrite {
                        self.transfer.meter.skipped();
                        continue;
                    }
                    std::fs::remove_file(path)
                        .and_then(|()| std::os::unix::fs::symlink(target, path))
                }
                made => made,
            };
            match made {
                Ok(()) => self.transfer.meter.symlink(),
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    self.transfer.fail(error.context(format!("cannot make {}", path.display())));
                }
            }
        }
        for (path, entry) in later.directories.iter().rev() {
            let done = File::open(path).and_then(|directory| {
                set_attributes(&directory, entry)?;
                if self.transfer.options.durable {
                    rustix::fs::fsync(&directory)?;
                }
                Ok(())
            });
            if let Err(error) = done {
                let error = anyhow::Error::new(error);
                let what = format!("cannot set mode and times of {}", path.display());
                self.transfer.fail(error.context(what));
            }
        }
        Ok(())
    }

    fn file(&self, item: &Item) -> anyhow::Result<()> {
        let Item { path, local } = item;
        let options = &self.transfer.options;
        let looks = options.no_overwrite || options.resume;
        let there = if looks { local.symlink_metadata().ok() } else { None };
        if options.no_overwrite && there.is_some() {
            self.transfer.meter.skipped();
            return Ok(());
        }
        let file = self.remote.client.open(self.remote.volume_of(path), &path.path)?;
        let is_same = options.resume
            && there.is_some_and(|there| {
                let mtime = file.entry().mtime.unwrap_or_default();
                there.is_file()
                    && there.len() == file.len()
                    && there.mtime() == mtime.seconds
                    && there.mtime_nsec() == i64::from(mtime.nanos)
            });
        if is_same {
            self.transfer.meter.kept(file.len());
        } else {
            self.fetch(&file, path, local)
                .with_context(|| format!("{} as {}", path.shown(), local.display()))?;
        }
        self.transfer.meter.file(file.len());
        if options.verify {
            compare(self.remote, path, local)?;
            self.transfer.meter.verified();
        }
        Ok(())
    }

    fn fetch(&self, file: &RemoteFile, path: &RemotePath, local: &Path) -> anyhow::Result<()> {
        let mut part = local.as_os_str().to_owned();
        part.push(".librorum-part");
        let part = PathBuf::from(part);
        let cannot = || format!("cannot write {}", part.display());
        let resume = self.transfer.options.resume;
        let out = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(!resume)
            // What is not set yet is nobody's business.
            .mode(0o600)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(&part)
            .with_context(cannot)?;
        let old_len = if resume { out.metadata().with_context(cannot)?.len() } else { 0 };
        let fetched = self.fill(file, path, &out, old_len).and_then(|()| {
            set_attributes(&out, file.entry()).with_context(cannot)?;
            if self.transfer.options.durable {
                rustix::fs::fsync(&out).with_context(cannot)?;
            }
            self.publish(&part, local)
        });
        if fetched.is_err() && !resume && file.len() < PART_BYTES_MIN {
            // Nothing that would be worth going on with.
            if let Err(error) = std::fs::remove_file(&part) {
                tracing::debug!(%error, "an incomplete file is left");
            }
        }
        fetched
    }

    fn publish(&self, part: &Path, local: &Path) -> anyhow::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let flags = if self.transfer.options.no_overwrite {
            RenameFlags::NOREPLACE
        } else {
            RenameFlags::empty()
        };
        renameat_with(CWD, part, CWD, local, flags)
            .with_context(|| format!("cannot rename {} to {}", part.display(), local.display()))?;
        if self.transfer.options.durable {
            let folder = match local.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            let opened =
                File::open(folder).with_context(|| format!("cannot sync {}", folder.display()))?;
            rustix::fs::fsync(&opened)
                .with_context(|| format!("cannot sync {}", folder.display()))?;
        }
        Ok(())
    }

    /// Writes what lacks.
    fn fill(
        &self,
        file: &RemoteFile,
        path: &RemotePath,
        out: &File,
        old_len: u64,
    ) -> anyhow::Result<()> {
        let len = file.len();
        if old_len == 0 && len <= HOLE_BYTES as u64 {
            let bytes = file.map_range(0, HOLE_BYTES)?;
            out.write_all_at(&bytes, 0).context("cannot write")?;
            self.transfer.meter.moved(len);
            self.transfer.pace.take(len);
            return Ok(());
        }
        let kept = if old_len > 0 { self.proven(path, file, out, old_len)? } else { Vec::new() };
        out.set_len(len).context("cannot set the length")?;
        // In a new file what is not written is a hole. To look for zeros costs nothing where there are
        // none: the first byte of a block tells.
        let mut writer = Writer { file, out, transfer: &self.transfer, keeps_holes: old_len == 0 };
        let mut at = 0;
        for (start, end) in kept {
            writer.copy(at, start)?;
            self.transfer.meter.kept(end - start);
            at = end;
        }
        writer.copy(at, len)
    }

    /// The ranges of an earlier try whose bytes are those of the file, by the hashes of its chunks.
    fn proven(
        &self,
        path: &RemotePath,
        file: &RemoteFile,
        out: &File,
        old_len: u64,
    ) -> anyhow::Result<Vec<(u64, u64)>> {
        let (entry, chunks) = chunks(self.remote, path)?;
        let is_same = (entry.ino, entry.content_version, entry.size_bytes)
            == (file.entry().ino, file.entry().content_version, file.len());
        if !is_same {
            return Ok(Vec::new());
        }
        let mut proven = Vec::new();
        let mut buffer = Vec::new();
        for chunk in chunks.iter().filter(|chunk| chunk.is_whole) {
            let end = chunk.offset.saturating_add(u64::from(chunk.len));
            if end > old_len || end > file.len() {
                continue;
            }
            buffer.resize(usize::try_from(chunk.len).unwrap_or(0), 0);
            if out.read_exact_at(&mut buffer, chunk.offset).is_ok()
                && blake3::hash(&buffer).as_bytes().as_slice() == chunk.id.as_ref()
            {
                proven.push((chunk.offset, end));
            }
        }
        Ok(proven)
    }
}

struct Writer<'a> {
    file: &'a RemoteFile,
    out: &'a File,
    transfer: &'a Transfer,
    keeps_holes: bool,
}

impl Writer<'_> {
    fn copy(&mut self, start: u64, end: u64) -> anyhow::Result<()> {
        if start >= end {
            return Ok(());
        }
        let copied = if self.keeps_holes {
            self.copy_data(start, end)?
        } else {
            let mut told = 0;
            self.file.copy_to(start, end - start, self.out, start, &mut |done| {
                self.transfer.meter.moved(done - told);
                self.transfer.pace.take(done - told);
                told = done;
            })?
        };
        if copied < end - start {
            bail!("the file ended at {}, before its length", start + copied);
        }
        Ok(())
    }

    /// Leaves out long runs of zeros.
    fn copy_data(&mut self, start: u64, end: u64) -> anyhow::Result<u64> {
        if self.file.entry().state() == v1::State::Empty {
            return Ok(end - start);
        }
        let mut at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(STEP_BYTES).min(STEP_BYTES);
            let bytes = self.file.map_range(at, want)?;
            if bytes.is_empty() {
                break;
            }
            for (index, block) in bytes.chunks(HOLE_BYTES).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    let offset = at + (index * HOLE_BYTES) as u64;
                    self.out.write_all_at(block, offset).context("cannot write")?;
                    self.transfer.meter.moved(block.len() as u64);
                    self.transfer.pace.take(block.len() as u64);
                }
            }
            at += bytes.len() as u64;
        }
        Ok(at - start)
    }
}

fn set_attributes(file: &File, entry: &v1::Entry) -> std::io::Result<()> {
    file.set_permissions(Permissions::from_mode(entry.mode & MODE_MASK))?;
    let mtime = entry.mtime.unwrap_or_default();
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: i64::from(mtime.nanos),
        },
    };
    Ok(rustix::fs::futimens(file, &times)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        let range = |text: &str| text.parse::<ByteRange>();
        assert_eq!(range("0-99"), Ok(ByteRange { start: 0, end: Some(100) }));
        assert_eq!(range("7-"), Ok(ByteRange { start: 7, end: None }));
        for wrong in ["", "-5", "9-3", "a-b", "5"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_name_leads_out() {
        for wrong in [b"../x".as_slice(), b"a/../b", b"/etc", b"", b"a//b", b"a\0"] {
            assert!(safe_path(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(safe_path(b"a/b\xff").unwrap().as_os_str().as_bytes(), b"a/b\xff");
    }
}
