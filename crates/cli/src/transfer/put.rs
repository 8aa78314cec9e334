//! `librorum put`.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use fdu::{Kind, Need, Walk};
use librorum_format::ErrorKind;
use librorum_rpc::client::{Upload, WriteOptions};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};

use super::verify::{compare, hash_local};
use super::{Options, STEP_BYTES, Transfer};
use crate::files::{is_directory, stat_if_there};
use crate::remote::{self, Intent, Remote, RemotePath, To};

/// Files up to here are one message.
const SMALL_BYTES_MAX: u64 = 64 << 10;

/// From here on an upload has a key even if nobody said that it would be resumed: sending so much twice
/// is a pity.
const KEYED_BYTES_MIN: u64 = 16 << 20;

/// Set-id bits stay behind: the owner is another.
const MODE_MASK: u32 = 0o1777;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum put photo.jpg /photos/\n  librorum put -r ~/music media:/music --resume\n  tar c . | librorum put - /backup.tar\n\nModes (without set-id bits) and times go along. Into a directory that is there, or under the name that is given. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the volume is in use, 4 nobody answers, 5 some failed (--continue-on-error)."
)]
pub(crate) struct Put {
    /// Files, directories (with -r), or - for standard input.
    #[arg(required = true, value_name = "LOCAL")]
    sources: Vec<OsString>,
    /// Where to, in the volume.
    #[arg(value_name = "REMOTE")]
    target: RemotePath,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    to: To,
}

/// What the workers do.
enum Item {
    File(PathBuf, RemotePath),
    Symlink(PathBuf, RemotePath),
}

/// A directory whose mode and times are set when all is in it.
struct Made {
    path: RemotePath,
    mode: u32,
    mtime: v1::Timestamp,
}

struct Putting<'a> {
    remote: &'a Remote,
    transfer: Transfer,
    volume: &'a str,
    volume_id: String,
}

impl Put {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Change, |remote| {
            let target = &self.target;
            let volume = remote.volume_of(target);
            let putting = Putting {
                remote,
                transfer: Transfer::new(self.options.clone(), json, "put"),
                volume,
                volume_id: remote.volume_id(volume)?,
            };
            let there = stat_if_there(remote, target)?;
            let is_in =
                there.as_ref().is_some_and(is_directory) || (target.has_slash() && there.is_none());
            if self.sources.len() > 1 && !is_in {
                let message = format!("{} is not a directory", target.shown());
                return Err(Failure::file(ErrorKind::NotDirectory, message).into());
            }
            let mut made = Vec::new();
            putting.transfer.run(
                |send| self.walk(&putting, is_in, &mut made, send),
                |item| putting.item(&item),
            );
            putting.finish_directories(&made);
            if self.options.durable && !putting.transfer.is_stopped() {
                // Once for all: a sync makes everything durable that came before it.
                let volume = volume.to_owned();
                remote.client.sync(&v1::SyncRequest { volume, seal: false })?;
            }
            putting.transfer.finish(remote)
        })
    }

    fn walk(
        &self,
        putting: &Putting<'_>,
        is_in: bool,
        made: &mut Vec<Made>,
        send: &dyn Fn(Item) -> bool,
    ) -> anyhow::Result<()> {
        for source in &self.sources {
            if putting.transfer.is_stopped() {
                return Ok(());
            }
            if let Err(error) = self.walk_one(putting, source, is_in, made, send) {
                putting.transfer.fail(error);
            }
        }
        Ok(())
    }

    fn walk_one(
        &self,
        putting: &Putting<'_>,
        source: &OsStr,
        is_in: bool,
        made: &mut Vec<Made>,
        send: &dyn Fn(Item) -> bool,
    ) -> anyhow::Result<()> {
        if source == "-" {
            if is_in {
                bail!("standard input has no name: write one, as in 'librorum put - /a/name'");
            }
            return putting.stdin(&self.target);
        }
        let path = Path::new(source);
        // As cp does: a link that is named is followed, one that is found is copied.
        let found = if self.options.recursive { path.symlink_metadata() } else { path.metadata() };
        let found = found.with_context(|| format!("cannot read {}", path.display()))?;
        let is_content = source.as_bytes().ends_with(b"/.") || source == ".";
        let target = match path.file_name() {
            Some(name) if is_in && !is_content => self.target.join(name.as_bytes()),
            _ => self.target.clone(),
        };
        if found.is_dir() {
            if !self.options.recursive {
                bail!("{} is a directory; -r puts it with all that is in it", path.display());
            }
            return putting.tree(path, &target, made, send);
        }
        if found.is_symlink() {
            send(Item::Symlink(path.to_owned(), target));
        } else if found.is_file() {
            putting.transfer.meter.found(found.len());
            send(Item::File(path.to_owned(), target));
        } else {
            bail!("{} is no file, directory or link, and is not put", path.display());
        }
        Ok(())
    }
}

fn timestamp(metadata: &Metadata) -> v1::Timestamp {
    v1::Timestamp {
        seconds: metadata.mtime(),
        nanos: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
    }
}

fn is(failure: &Failure, kind: ErrorKind) -> bool {
    failure.reason == Reason::File(kind)
}

impl Putting<'_> {
    fn tree(
        &self,
        root: &Path,
        target: &RemotePath,
        made: &mut Vec<Made>,
        send: &dyn Fn(Item) -> bool,
    ) -> anyhow::Result<()> {
        for entry in Walk::new([root]).need(Need::Size).entries() {
            if self.transfer.is_stopped() {
                return Ok(());
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.transfer.fail(error.into());
                    continue;
                }
            };
            let local = entry.path();
            let below = local.strip_prefix(root).unwrap_or(Path::new(""));
            let remote = target.join(below.as_os_str().as_bytes());
            match entry.kind() {
                Kind::Directory => self.directory(&local, remote, made)?,
                Kind::File => {
                    self.transfer.meter.found(entry.metadata().map_or(0, fdu::Metadata::len_bytes));
                    send(Item::File(local, remote));
                }
                Kind::Symlink => {
                    send(Item::Symlink(local, remote));
                }
                Kind::Fifo
                | Kind::Socket
                | Kind::CharDevice
                | Kind::BlockDevice
                | Kind::Unknown => self.transfer.fail(anyhow::anyhow!(
                    "{} is no file, directory or link, and is not put",
                    local.display()
                )),
            }
        }
        Ok(())
    }

    /// Makes a directory before anything can be sent that is in it.
    fn directory(
        &self,
        local: &Path,
        path: RemotePath,
        made: &mut Vec<Made>,
    ) -> anyhow::Result<()> {
        let found = local.metadata().with_context(|| format!("cannot read {}", local.display()))?;
        let mode = found.mode() & MODE_MASK;
        if !path.trimmed().is_empty() {
            let request = v1::MakeDirectoryRequest {
                volume: self.volume.to_owned(),
                path: path.bytes(),
                mode: mode | 0o700,
                parents: false,
            };
            match self.remote.client.make_directory(&request) {
                Ok(_) => {}
                Err(failure) if is(&failure, ErrorKind::AlreadyExists) => {
                    let there = stat_if_there(self.remote, &path)?;
                    if !there.as_ref().is_some_and(is_directory) {
                        let message = format!("{} is there, and is no directory", path.shown());
                        return Err(Failure::file(ErrorKind::NotDirectory, message).into());
                    }
                }
                Err(failure) => return Err(failure.into()),
            }
            made.push(Made { path, mode, mtime: timestamp(&found) });
        }
        self.transfer.meter.directory();
        Ok(())
    }

    /// Innermost first: what is made in a directory changes its times.
    fn finish_directories(&self, made: &[Made]) {
        for Made { path, mode, mtime } in made.iter().rev() {
            let request = v1::SetAttributesRequest {
                volume: self.volume.to_owned(),
                path: path.bytes(),
                mode: Some(*mode),
                mtime: Some(*mtime),
                ..v1::SetAttributesRequest::default()
            };
            if let Err(failure) = self.remote.client.set_attributes(&request) {
                self.transfer.fail(failure.into());
            }
        }
    }

    fn replace(&self) -> v1::Replace {
        if self.transfer.options.no_overwrite { v1::Replace::No } else { v1::Replace::Yes }
    }

    fn item(&self, item: &Item) -> anyhow::Result<()> {
        match item {
            Item::File(local, path) => self.file(local, path),
            Item::Symlink(local, path) => self.symlink(local, path),
        }
    }

    fn symlink(&self, local: &Path, path: &RemotePath) -> anyhow::Result<()> {
        let target =
            local.read_link().with_context(|| format!("cannot read {}", local.display()))?;
        let request = v1::MakeSymlinkRequest {
            volume: self.volume.to_owned(),
            path: path.bytes(),
            target: bytes::Bytes::copy_from_slice(target.as_os_str().as_bytes()),
        };
        match self.remote.client.make_symlink(&request) {
            Ok(_) => {}
            Err(failure) if is(&failure, ErrorKind::AlreadyExists) => {
                if self.transfer.options.no_overwrite {
                    self.transfer.meter.skipped();
                    return Ok(());
                }
                let old = v1::RemoveRequest {
                    volume: self.volume.to_owned(),
                    path: path.bytes(),
                    ..v1::RemoveRequest::default()
                };
                self.remote.client.remove(&old)?;
                self.remote.client.make_symlink(&request)?;
            }
            Err(failure) => return Err(failure.into()),
        }
        self.transfer.meter.symlink();
        Ok(())
    }

    fn file(&self, local: &Path, path: &RemotePath) -> anyhow::Result<()> {
        let cannot = || format!("cannot read {}", local.display());
        let file = File::open(local).with_context(cannot)?;
        let found = file.metadata().with_context(cannot)?;
        if !found.is_file() {
            bail!("{} is no file any more", local.display());
        }
        let options = &self.transfer.options;
        let looks_first = options.resume || (options.no_overwrite && found.len() > SMALL_BYTES_MAX);
        if looks_first && let Some(there) = stat_if_there(self.remote, path)? {
            if options.no_overwrite {
                self.transfer.meter.skipped();
                return Ok(());
            }
            // An earlier try has put it: times are set by the commit, with the content.
            let is_same = there.kind() == v1::Kind::Regular
                && there.size_bytes == found.len()
                && there.mtime == Some(timestamp(&found));
            if is_same {
                self.transfer.meter.kept(found.len());
                self.transfer.meter.file(found.len());
                return self.verify(local, path);
            }
        }
        let sent = if found.len() <= SMALL_BYTES_MAX {
            self.small(file, &found, local, path)
        } else {
            self.large(&file, &found, local, path)
        };
        match sent {
            Ok(len) => self.transfer.meter.file(len),
            Err(error)
                if options.no_overwrite
                    && error
                        .downcast_ref::<Failure>()
                        .is_some_and(|failure| is(failure, ErrorKind::AlreadyExists)) =>
            {
                self.transfer.meter.skipped();
                return Ok(());
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("{} as {}", local.display(), path.shown()));
            }
        }
        self.verify(local, path)
    }

    fn verify(&self, local: &Path, path: &RemotePath) -> anyhow::Result<()> {
        if self.transfer.options.verify {
            compare(self.remote, path, local)?;
            self.transfer.meter.verified();
        }
        Ok(())
    }

    fn small(
        &self,
        file: File,
        found: &Metadata,
        local: &Path,
        path: &RemotePath,
    ) -> anyhow::Result<u64> {
        let mut data = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0) + 1);
        let mut limited = file.take(SMALL_BYTES_MAX + 1);
        limited
            .read_to_end(&mut data)
            .with_context(|| format!("cannot read {}", local.display()))?;
        let len = data.len() as u64;
        if len > SMALL_BYTES_MAX {
            bail!("{} grew while it was read", local.display());
        }
        self.transfer.pace.take(len);
        let request = v1::PutRequest {
            volume: self.volume.to_owned(),
            path: path.bytes(),
            mode: found.mode() & MODE_MASK,
            replace: self.replace().into(),
            mtime: Some(timestamp(found)),
            ..v1::PutRequest::default()
        };
        self.remote.client.put(&request, &data)?;
        self.transfer.meter.moved(len);
        Ok(len)
    }

    fn large(
        &self,
        file: &File,
        found: &Metadata,
        local: &Path,
        path: &RemotePath,
    ) -> anyhow::Result<u64> {
        let len = found.len();
        let is_resumed = self.transfer.options.resume;
        // Without the hash, gaps of an upload with a key are taken for bytes that lack.
        let is_dense = || Ok::<_, anyhow::Error>(data_runs(file, len)? == [(0, len)]);
        let is_keyed = is_resumed || (len >= KEYED_BYTES_MIN && is_dense()?);
        let key = is_keyed.then(|| upload_key(&self.volume_id, path, found));
        // What an earlier try has sent is proven with the rest, when the daemon hashes all of it.
        let hash = is_resumed.then(|| hash_local(file, len, local)).transpose()?;
        let options = WriteOptions {
            size_hint: len,
            mode: found.mode() & MODE_MASK,
            replace: self.replace(),
            mtime: Some(timestamp(found)),
            key,
            blake3: hash.map(|hash| *hash.as_bytes()),
            ..WriteOptions::default()
        };
        let create = || self.remote.client.create(self.volume, &path.path, options.clone());
        let mut upload = create()?;
        if !is_resumed && !upload.received().is_empty() {
            // Nobody asked to go on where another try was.
            upload.abort();
            upload = create()?;
        }
        let had_some = !upload.received().is_empty();
        match self.send(upload, file, found, local) {
            Ok(()) => Ok(len),
            Err(error) if had_some && is_doubtful(&error) => {
                tracing::info!(%error, "what an earlier try has sent is not used");
                create()?.abort();
                self.send(create()?, file, found, local)?;
                Ok(len)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends what lacks, and commits.
    fn send(
        &self,
        upload: Upload,
        file: &File,
        found: &Metadata,
        local: &Path,
    ) -> anyhow::Result<()> {
        let len = found.len();
        let received: Vec<(u64, u64)> =
            upload.received().iter().map(|range| (range.start, range.end.min(len))).collect();
        let kept = received.iter().map(|(start, end)| end.saturating_sub(*start)).sum();
        self.transfer.meter.kept(kept);
        for (start, end) in data_runs(file, len)? {
            for (start, end) in without(start, end, &received) {
                let mut told = 0;
                let sent = upload.write_from(file, start, start, end - start, &mut |done| {
                    self.transfer.meter.moved(done - told);
                    self.transfer.pace.take(done - told);
                    told = done;
                })?;
                if sent < end - start {
                    bail!("{} became shorter while it was read", local.display());
                }
            }
        }
        // A hole at the end, or bytes that were there: the length is that of the file all the same.
        upload.write_at(len, &[])?;
        let now = file.metadata().with_context(|| format!("cannot read {}", local.display()))?;
        if (now.len(), now.mtime(), now.mtime_nsec())
            != (found.len(), found.mtime(), found.mtime_nsec())
        {
            upload.abort();
            bail!("{} was changed while it was read", local.display());
        }
        upload.commit()?;
        Ok(())
    }

    fn stdin(&self, path: &RemotePath) -> anyhow::Result<()> {
        if self.transfer.options.verify || self.transfer.options.resume {
            bail!("standard input cannot be read again: --verify and --resume are for files");
        }
        let options = WriteOptions { replace: self.replace(), ..WriteOptions::default() };
        let upload = self.remote.client.create(self.volume, &path.path, options)?;
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; STEP_BYTES];
        let mut len = 0;
        loop {
            let read = match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("cannot read standard input"),
            };
            self.transfer.pace.take(read as u64);
            upload.write_at(len, &buffer[..read])?;
            len += read as u64;
            self.transfer.meter.moved(read as u64);
        }
        upload.commit()?;
        self.transfer.meter.file(len);
        Ok(())
    }
}

/// Whether what an earlier try had sent may be to blame.
fn is_doubtful(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<Failure>().map(|failure| failure.reason),
        Some(
            Reason::File(ErrorKind::DataLoss | ErrorKind::InvalidInput)
                | Reason::FailedPrecondition
        )
    )
}

/// The same for the same file on its way to the same place, whatever daemon serves it.
fn upload_key(volume_id: &str, path: &RemotePath, found: &Metadata) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in [volume_id.as_bytes(), path.trimmed()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    for number in [found.len(), found.dev(), found.ino()] {
        hasher.update(&number.to_le_bytes());
    }
    for number in [found.mtime(), found.mtime_nsec()] {
        hasher.update(&number.to_le_bytes());
    }
    let mut key = [0; 16];
    key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    key
}

/// Where a file has data; all of it on disks that do not tell.
fn data_runs(file: &File, len: u64) -> anyhow::Result<Vec<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    let mut runs = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error).context("cannot find where the file has data"),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(len),
            Err(_) => len,
        };
        if start >= len || end <= start {
            break;
        }
        runs.push((start, end));
        at = end;
    }
    Ok(runs)
}

/// The parts of a range that are in none of `holes`, which are sorted.
fn without(start: u64, end: u64, holes: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut parts = Vec::new();
    let mut at = start;
    for &(hole, hole_end) in holes {
        if hole_end <= at {
            continue;
        }
        if hole >= end {
            break;
        }
        if hole > at {
            parts.push((at, hole));
        }
        at = hole_end;
    }
    if at < end {
        parts.push((at, end));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lacks_is_sent() {
        let holes = [(0, 10), (20, 30), (50, 60)];
        assert_eq!(without(5, 55, &holes), [(10, 20), (30, 50)]);
        assert_eq!(without(0, 10, &holes), []);
        assert_eq!(without(60, 70, &holes), [(60, 70)]);
        assert_eq!(without(10, 70, &[]), [(10, 70)]);
    }
}
