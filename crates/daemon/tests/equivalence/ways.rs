//! The same operations by the service itself, by a client, and on a mount.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use librorum_daemon::service::{Call, Service};
use librorum_rpc::client::{Client, WriteOptions};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};

use crate::operation::{Content, Move, Operation, Random, SET_TIMES_END};

/// What must be the same of an entry in all ways.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: i32,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) size: u64,
    pub(crate) nlink: u64,
    /// Only where it was set: the others are when each way did it. Not of directories: what a mount
    /// refuses at the end of an upload has touched its directory by then.
    pub(crate) mtime: Option<i64>,
    pub(crate) target: Vec<u8>,
}

/// What an operation answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Entry(Seen),
    /// How many bytes, and their hash.
    Bytes(usize, blake3::Hash),
    Entries(Vec<Seen>),
    Removed(u64),
}

/// Why not: what a mount says, and what only the others tell.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: i32,
    pub(crate) reason: Option<Reason>,
    #[expect(dead_code, reason = "printed where two differ")]
    pub(crate) message: String,
}

impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        let reasons = self.reason.zip(other.reason);
        self.errno == other.errno && reasons.is_none_or(|(one, two)| one == two)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let errno = failure.errno().unwrap_or(-1);
        Self { errno, reason: Some(failure.reason), message: failure.message }
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(error: rustix::io::Errno) -> Self {
        Self { errno: error.raw_os_error(), reason: None, message: error.to_string() }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(-1);
        Self { errno, reason: None, message: error.to_string() }
    }
}

pub(crate) type Outcome = Result<Answer, Refusal>;

/// A way to a volume.
pub(crate) trait Doer {
    fn act(&self, operation: &Operation) -> Outcome;
}

/// Where an upload is cut, and in which order the pieces go.
fn pieces(len: usize, order: u64) -> Vec<std::ops::Range<usize>> {
    let mut random = Random(order);
    let mut cuts = vec![0, len];
    if len > 0 {
        cuts.extend((0..random.below(6)).map(|_| random.below(len)));
    }
    cuts.sort_unstable();
    let mut pieces: Vec<_> = cuts.windows(2).map(|ends| ends[0]..ends[1]).collect();
    for at in (1..pieces.len()).rev() {
        pieces.swap(at, random.below(at + 1));
    }
    pieces
}

fn seen(entry: &v1::Entry) -> Seen {
    let seconds = entry.mtime.unwrap_or_default().seconds;
    let is_directory = entry.kind == i32::from(v1::Kind::Directory as u8);
    Seen {
        path: entry.path.to_vec(),
        kind: entry.kind,
        mode: entry.mode,
        owner: (entry.uid, entry.gid),
        size: entry.size_bytes,
        nlink: u64::from(entry.nlink),
        mtime: (seconds < SET_TIMES_END && !is_directory).then_some(seconds),
        target: entry.symlink_target.to_vec(),
    }
}

fn entry_of(answer: v1::EntryResponse) -> Outcome {
    Ok(Answer::Entry(seen(&answer.entry.unwrap())))
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn replaces(replace: bool) -> i32 {
    if replace { v1::Replace::Yes.into() } else { v1::Replace::No.into() }
}

fn time(seconds: i64) -> v1::Timestamp {
    v1::Timestamp { seconds, nanos: 7 }
}

/// The operations that are one message each; none for those that move bytes.
enum Request {
    Stat(v1::StatRequest),
    List(v1::ListRequest),
    MakeDirectory(v1::MakeDirectoryRequest),
    Put(v1::PutRequest, Vec<u8>),
    Symlink(v1::MakeSymlinkRequest),
    Link(v1::LinkRequest),
    Rename(v1::RenameRequest),
    Copy(v1::CopyRequest),
    Remove(v1::RemoveRequest),
    Set(v1::SetAttributesRequest),
    Upload(String, Content, bool, u64),
    Read(String, u64, usize),
    Nothing,
}

fn request(name: &str, operation: &Operation) -> Request {
    let volume = name.to_owned();
    let remove = |path: &str, recursive, directory| {
        let path = bytes(path);
        let volume = name.to_owned();
        Request::Remove(v1::RemoveRequest { volume, path, recursive, directory, missing_ok: false })
    };
    let set = |path: &str| v1::SetAttributesRequest {
        volume: name.to_owned(),
        path: bytes(path),
        ..Default::default()
    };
    match operation {
        Operation::Stat(path) => {
            Request::Stat(v1::StatRequest { volume, path: bytes(path), ..Default::default() })
        }
        Operation::List(path) => Request::List(v1::ListRequest {
            volume,
            path: bytes(path),
            recursive: true,
            limit: 5,
            ..Default::default()
        }),
        Operation::MakeDirectory(path, mode) => Request::MakeDirectory(v1::MakeDirectoryRequest {
            volume,
            path: bytes(path),
            mode: *mode,
            parents: false,
        }),
        Operation::MakeParents(path) => Request::MakeDirectory(v1::MakeDirectoryRequest {
            volume,
            path: bytes(path),
            mode: 0o755,
            parents: true,
        }),
        Operation::Put { path, content, mode, replace, mtime } => Request::Put(
            v1::PutRequest {
                volume,
                path: bytes(path),
                mode: *mode,
                replace: replaces(*replace),
                mtime: mtime.map(time),
                ..Default::default()
            },
            content.bytes(),
        ),
        Operation::Upload { path, content, replace, order } => {
            Request::Upload(path.clone(), *content, *replace, *order)
        }
        Operation::Read { path, offset, len } => Request::Read(path.clone(), *offset, *len),
        Operation::Symlink(target, path) => Request::Symlink(v1::MakeSymlinkRequest {
            volume,
            path: bytes(path),
            target: bytes(target),
        }),
        Operation::Link(from, to) => {
            Request::Link(v1::LinkRequest { volume, from: bytes(from), to: bytes(to) })
        }
        Operation::Rename(from, to, how) => Request::Rename(v1::RenameRequest {
            volume,
            from: bytes(from),
            to: bytes(to),
            replace: match how {
                Move::Replace => v1::Replace::Yes.into(),
                Move::NoReplace => v1::Replace::No.into(),
                Move::Exchange => v1::Replace::Exchange.into(),
            },
        }),
        Operation::Copy { from, to, replace } => Request::Copy(v1::CopyRequest {
            volume,
            from: bytes(from),
            to: bytes(to),
            replace: replaces(*replace),
        }),
        Operation::Unlink(path) => remove(path, false, false),
        Operation::RemoveDirectory(path) => remove(path, false, true),
        Operation::RemoveAll(path) => remove(path, true, false),
        Operation::Chmod(path, mode) => {
            Request::Set(v1::SetAttributesRequest { mode: Some(*mode), ..set(path) })
        }
        Operation::Chown(path, uid, gid) => {
            Request::Set(v1::SetAttributesRequest { uid: Some(*uid), gid: Some(*gid), ..set(path) })
        }
        Operation::Touch(path, mtime) => {
            Request::Set(v1::SetAttributesRequest { mtime: Some(time(*mtime)), ..set(path) })
        }
        Operation::Seal => Request::Nothing,
    }
}

fn removed(answer: &v1::RemoveResponse) -> Outcome {
    assert!(answer.errors.is_empty(), "{:?}", answer.errors);
    Ok(Answer::Removed(answer.removed_count))
}

/// The service, without a transport.
pub(crate) struct ByService<'a> {
    pub(crate) service: &'a Service,
    pub(crate) call: Call,
    pub(crate) volume: &'static str,
}

impl Doer for ByService<'_> {
    fn act(&self, operation: &Operation) -> Outcome {
        let (service, call) = (self.service, &self.call);
        match request(self.volume, operation) {
            Request::Stat(asked) => {
                Ok(Answer::Entry(seen(&service.stat(call, &asked)?.entry.unwrap())))
            }
            Request::List(mut asked) => {
                let mut entries = Vec::new();
                loop {
                    let page = service.list(call, &asked)?;
                    assert!(page.errors.is_empty(), "{:?}", page.errors);
                    entries.extend(page.entries.iter().map(seen));
                    if page.cursor.is_empty() {
                        break;
                    }
                    asked.cursor = page.cursor;
                }
                entries.sort();
                Ok(Answer::Entries(entries))
            }
            Request::MakeDirectory(asked) => entry_of(service.make_directory(call, &asked)?),
            Request::Put(asked, data) => entry_of(service.put(call, &asked, &data)?),
            Request::Symlink(asked) => entry_of(service.make_symlink(call, &asked)?),
            Request::Link(asked) => entry_of(service.link(call, &asked)?),
            Request::Rename(asked) => entry_of(service.rename(call, &asked)?),
            Request::Copy(asked) => entry_of(service.copy(call, &asked)?),
            Request::Remove(asked) => removed(&service.remove(call, &asked)?),
            Request::Set(asked) => entry_of(service.set_attributes(call, &asked)?),
            Request::Upload(path, content, replace, order) => {
                let asked = v1::OpenWriteRequest {
                    volume: self.volume.to_owned(),
                    path: bytes(&path),
                    ..Default::default()
                };
                let upload = service.open_write(call, &asked)?;
                let data = content.bytes();
                for piece in pieces(content.len, order) {
                    upload.write_at(piece.start as u64, &data[piece])?;
                }
                let asked = v1::CommitRequest {
                    upload: upload.id,
                    volume: self.volume.to_owned(),
                    path: bytes(&path),
                    len: content.len as u64,
                    mode: 0o640,
                    replace: replaces(replace),
                    ..Default::default()
                };
                entry_of(service.commit(call, &asked)?)
            }
            Request::Read(path, offset, len) => {
                let file = service.open_read(call, self.volume, path.as_bytes(), 0)?;
                let mut buffer = vec![0; len];
                let count = file.read_at(offset, &mut buffer)?;
                Ok(Answer::Bytes(count, blake3::hash(&buffer[..count])))
            }
            Request::Nothing => Ok(Answer::Done),
        }
    }
}

/// A client, over whichever transport.
pub(crate) struct ByClient {
    pub(crate) client: Client,
    pub(crate) volume: &'static str,
}

impl Doer for ByClient {
    fn act(&self, operation: &Operation) -> Outcome {
        let client = &self.client;
        match request(self.volume, operation) {
            Request::Stat(asked) => Ok(Answer::Entry(seen(&client.stat(&asked)?.entry.unwrap()))),
            Request::List(asked) => {
                let mut entries = Vec::new();
                let mut listing = client.entries(asked);
                for entry in listing.by_ref() {
                    entries.push(seen(&entry?));
                }
                assert!(listing.errors().is_empty(), "{:?}", listing.errors());
                entries.sort();
                Ok(Answer::Entries(entries))
            }
            Request::MakeDirectory(asked) => entry_of(client.make_directory(&asked)?),
            Request::Put(asked, data) => entry_of(client.put(&asked, &data)?),
            Request::Symlink(asked) => entry_of(client.make_symlink(&asked)?),
            Request::Link(asked) => entry_of(client.link(&asked)?),
            Request::Rename(asked) => entry_of(client.rename(&asked)?),
            Request::Copy(asked) => entry_of(client.copy(&asked)?),
            Request::Remove(asked) => removed(&client.remove(&asked)?),
            Request::Set(asked) => entry_of(client.set_attributes(&asked)?),
            Request::Upload(path, content, replace, order) => {
                let replace = if replace { v1::Replace::Yes } else { v1::Replace::No };
                // Hints may be wrong, or not given.
                let size_hint = [0, content.len as u64, 100_000][(order % 3) as usize];
                let options =
                    WriteOptions { size_hint, mode: 0o640, replace, ..WriteOptions::default() };
                let upload = client.create(self.volume, path.as_bytes(), options)?;
                let data = content.bytes();
                for piece in pieces(content.len, order) {
                    upload.write_at(piece.start as u64, &data[piece])?;
                }
                Ok(Answer::Entry(seen(&upload.commit()?)))
            }
            Request::Read(path, offset, len) => {
                let file = client.open(self.volume, path.as_bytes())?;
                let mut buffer = vec![0; len];
                let count = file.read_into(offset, &mut buffer)?;
                let hash = blake3::hash(&buffer[..count]);
                let mapped = file.map_range(offset, len)?;
                assert!(mapped[..] == buffer[..count], "{path} at {offset}: mapped differently");
                Ok(Answer::Bytes(count, hash))
            }
            Request::Nothing => Ok(Answer::Done),
        }
    }
}

/// System calls below a mountpoint.
pub(crate) struct ByMount {
    pub(crate) root: PathBuf,
}

impl ByMount {
    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn seen(&self, path: &str, told: &[u8]) -> Outcome {
        Ok(Answer::Entry(seen_at(&self.at(path), told)?))
    }

    fn publish(
        &self,
        path: &str,
        replace: bool,
        write: impl FnOnce(&std::fs::File) -> Result<(), Refusal>,
    ) -> Outcome {
        let target = self.at(path);
        // The longest names leave no room for more.
        let temporary = target.with_file_name(".put");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(&temporary, flags, Mode::from_raw_mode(0o600))?;
        let file = std::fs::File::from(file);
        let done = write(&file);
        drop(file);
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let done = done
            .and_then(|()| Ok(rustix::fs::renameat_with(CWD, &temporary, CWD, &target, flags)?));
        if let Err(refusal) = done {
            rustix::fs::unlink(&temporary)?;
            return Err(refusal);
        }
        self.seen(path, path.as_bytes())
    }

    fn open(&self, path: &str) -> Result<std::fs::File, Refusal> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(rustix::fs::open(self.at(path), flags, Mode::empty())?.into())
    }

    fn copy(&self, from: &str, to: &str, replace: bool) -> Outcome {
        let source = std::fs::symlink_metadata(self.at(from))?;
        if source.is_dir() {
            return Err(rustix::io::Errno::INVAL.into());
        }
        if source.is_symlink() {
            let target = std::fs::read_link(self.at(from))?;
            rustix::fs::symlink(target, self.at(to))?;
            return self.seen(to, to.as_bytes());
        }
        match std::fs::symlink_metadata(self.at(to)) {
            Ok(_) if !replace => return Err(rustix::io::Errno::EXIST.into()),
            Ok(taken) if taken.ino() == source.ino() => {
                return Err(rustix::io::Errno::INVAL.into());
            }
            _ => {}
        }
        let mut from = self.open(from)?;
        self.publish(to, replace, |file| {
            let mut file = file;
            std::io::copy(&mut from, &mut file)?;
            rustix::fs::fchmod(file, Mode::from_raw_mode(source.mode() & 0o777))?;
            // The copy's content is as old as the source's.
            let mut times = timestamps(source.mtime(), OMIT);
            times.last_modification.tv_nsec = source.mtime_nsec() as _;
            Ok(rustix::fs::futimens(file, &times)?)
        })
    }
}

fn timestamps(mtime: i64, access: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: access as _ },
        last_modification: Timespec { tv_sec: mtime, tv_nsec: 7 },
    }
}

const OMIT: i64 = rustix::fs::UTIME_OMIT;

fn seen_at(path: &Path, told: &[u8]) -> Result<Seen, Refusal> {
    let found = std::fs::symlink_metadata(path)?;
    let kind = found.file_type();
    let kind = if kind.is_dir() {
        v1::Kind::Directory
    } else if kind.is_symlink() {
        v1::Kind::Symlink
    } else {
        assert!(!kind.is_fifo() && !kind.is_socket(), "nobody made one");
        v1::Kind::Regular
    };
    let target = if kind == v1::Kind::Symlink {
        std::fs::read_link(path)?.as_os_str().as_bytes().to_vec()
    } else {
        Vec::new()
    };
    Ok(Seen {
        path: told.to_vec(),
        kind: kind.into(),
        mode: found.mode() & 0o7777,
        owner: (found.uid(), found.gid()),
        size: found.len(),
        nlink: found.nlink(),
        mtime: (found.mtime() < SET_TIMES_END && !found.is_dir()).then_some(found.mtime()),
        target,
    })
}

fn walk(root: &Path, below: &Path, entries: &mut Vec<Seen>) -> Result<(), Refusal> {
    for entry in std::fs::read_dir(below)? {
        let path = entry?.path();
        let told = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let found = seen_at(&path, &told)?;
        let is_directory = found.kind == i32::from(v1::Kind::Directory as u8);
        entries.push(found);
        if is_directory {
            walk(root, &path, entries)?;
        }
    }
    Ok(())
}

impl Doer for ByMount {
    fn act(&self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Stat(path) => self.seen(path, path.as_bytes()),
            Operation::List(path) => {
                let mut entries = Vec::new();
                walk(&self.at(path), &self.at(path), &mut entries)?;
                entries.sort();
                Ok(Answer::Entries(entries))
            }
            Operation::MakeDirectory(path, mode) => {
                rustix::fs::mkdir(self.at(path), Mode::from_raw_mode(*mode))?;
                self.seen(path, path.as_bytes())
            }
            Operation::MakeParents(path) => {
                let mut at = self.root.clone();
                for name in path.split('/') {
                    at.push(name);
                    match rustix::fs::mkdir(&at, Mode::from_raw_mode(0o755)) {
                        Err(rustix::io::Errno::EXIST) if at.is_dir() => {}
                        Err(rustix::io::Errno::EXIST) if at != self.at(path) => {
                            return Err(rustix::io::Errno::NOTDIR.into());
                        }
                        made => made?,
                    }
                }
                self.seen(path, path.as_bytes())
            }
            Operation::Put { path, content, mode, replace, mtime } => {
                self.publish(path, *replace, |file| {
                    file.write_all_at(&content.bytes(), 0)?;
                    rustix::fs::fchmod(file, Mode::from_raw_mode(*mode))?;
                    if let Some(mtime) = mtime {
                        rustix::fs::futimens(file, &timestamps(*mtime, OMIT))?;
                    }
                    Ok(())
                })
            }
            Operation::Upload { path, content, replace, order } => {
                self.publish(path, *replace, |file| {
                    let data = content.bytes();
                    for piece in pieces(content.len, *order) {
                        file.write_all_at(&data[piece.clone()], piece.start as u64)?;
                    }
                    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(0o640))?)
                })
            }
            Operation::Read { path, offset, len } => {
                let file = self.open(path)?;
                let mut buffer = vec![0; (*len).max(1)];
                let mut count = 0;
                loop {
                    let at = offset + count as u64;
                    let read = file.read_at(&mut buffer[count..], at)?;
                    count += read;
                    if read == 0 || count == buffer.len() {
                        break;
                    }
                }
                count = count.min(*len);
                Ok(Answer::Bytes(count, blake3::hash(&buffer[..count])))
            }
            Operation::Symlink(target, path) => {
                rustix::fs::symlink(target, self.at(path))?;
                self.seen(path, path.as_bytes())
            }
            Operation::Link(from, to) => {
                rustix::fs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty())?;
                self.seen(to, to.as_bytes())
            }
            Operation::Rename(from, to, how) => {
                let flags = match how {
                    Move::Replace => RenameFlags::empty(),
                    Move::NoReplace => RenameFlags::NOREPLACE,
                    Move::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)?;
                self.seen(to, to.as_bytes())
            }
            Operation::Copy { from, to, replace } => self.copy(from, to, *replace),
            Operation::Unlink(path) => {
                rustix::fs::unlink(self.at(path))?;
                Ok(Answer::Removed(1))
            }
            Operation::RemoveDirectory(path) => {
                rustix::fs::rmdir(self.at(path))?;
                Ok(Answer::Removed(1))
            }
            Operation::RemoveAll(path) => {
                let path = self.at(path);
                if !std::fs::symlink_metadata(&path)?.is_dir() {
                    rustix::fs::unlink(&path)?;
                    return Ok(Answer::Removed(1));
                }
                let mut below = Vec::new();
                walk(&path, &path, &mut below)?;
                std::fs::remove_dir_all(&path)?;
                Ok(Answer::Removed(below.len() as u64 + 1))
            }
            Operation::Chmod(path, mode) => {
                rustix::fs::chmod(self.at(path), Mode::from_raw_mode(*mode))?;
                self.seen(path, path.as_bytes())
            }
            Operation::Chown(path, uid, gid) => {
                let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                rustix::fs::chownat(CWD, self.at(path), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                self.seen(path, path.as_bytes())
            }
            Operation::Touch(path, mtime) => {
                let times = timestamps(*mtime, OMIT);
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(CWD, self.at(path), &times, flags)?;
                self.seen(path, path.as_bytes())
            }
            Operation::Seal => Ok(Answer::Done),
        }
    }
}
