//! Which file a request means, and what there is to say about it.

use std::sync::Arc;

use librorum_format::{Encoding, ErrorKind, Ino};
use librorum_meta::FileKind;
use librorum_rpc::proto::{file, v1};
use librorum_rpc::{Failure, Reason};

use super::mime;
use crate::grpc::accounts::Accounts;
use crate::grpc::call::Inner;
use crate::service::{Call, Caller, ServedVolume};

/// Where a client's own word for the kind of a file is kept, as the desktops do.
pub(super) const MIME_ATTRIBUTE: &[u8] = b"user.mime_type";

/// The root of a volume.
const ROOT: Ino = Ino(1);

/// Directories are read in pages of this many entries.
const PAGE: usize = 1024;

/// What one answer holds of a listing: more would not fit a message.
pub(super) const CHUNK_IDS_MAX: usize = 100_000;

pub(super) fn invalid(message: impl Into<String>) -> Failure {
    Failure::file(ErrorKind::InvalidInput, message)
}

/// The volume that all of these services are about.
pub(super) fn volume(shared: &Inner) -> Result<Arc<ServedVolume>, Failure> {
    shared.service.volume("")
}

/// How much is to be found out about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// What its entry says: of listings.
    Entry,
    /// Also how many chunks it has.
    ChunkCount,
    /// Also which.
    ChunkIds,
}

/// Entries of one volume in the words of the first Librorum.
pub(super) struct Describer<'a> {
    shared: &'a Inner,
    call: &'a Call,
    pub(super) volume: Arc<ServedVolume>,
    accounts: Arc<Accounts>,
}

impl<'a> Describer<'a> {
    pub(super) fn new(shared: &'a Inner, call: &'a Call) -> Result<Self, Failure> {
        Ok(Self { shared, call, volume: volume(shared)?, accounts: Accounts::current() })
    }

    /// The entry of a path.
    pub(super) fn stat(&self, path: &[u8]) -> Result<v1::Entry, Failure> {
        let request = v1::StatRequest { path: path.to_vec().into(), ..v1::StatRequest::default() };
        let answer = self.shared.service.stat(self.call, &request)?;
        answer.entry.ok_or_else(|| Failure::new(Reason::Internal, "a stat without an entry"))
    }

    /// What a request means: a path, a number, or both, which then have to agree.
    pub(super) fn target(
        &self,
        file_id: &str,
        path: &str,
    ) -> Result<(Vec<u8>, v1::Entry), Failure> {
        let ino = match file_id {
            "" => None,
            id => Some(id.parse::<u64>().ok().filter(|&ino| ino != 0).ok_or_else(|| {
                Failure::file(ErrorKind::NotFound, format!("there is no file with id '{id}'"))
            })?),
        };
        match (ino, path) {
            (None, "") => Err(invalid("say which file: give a path or a file_id")),
            (None, path) => Ok((path.as_bytes().to_vec(), self.stat(path.as_bytes())?)),
            (Some(ino), "") => {
                let unknown = || {
                    let message = format!("there is no file with id {ino} that you may look at");
                    Failure::file(ErrorKind::NotFound, message)
                };
                let path = self.path_of(Ino(ino))?.ok_or_else(unknown)?;
                // With the caller's rights; a refusal must not tell where somebody else's file is.
                let found = self.stat(&path).map_err(|_denied| unknown())?;
                if found.ino != ino {
                    return Err(unknown());
                }
                Ok((path, found))
            }
            (Some(ino), path) => {
                let found = self.stat(path.as_bytes())?;
                if found.ino != ino {
                    let message = format!("{path} is file {}, not {ino}", found.ino);
                    return Err(Failure::file(ErrorKind::NotFound, message));
                }
                Ok((path.as_bytes().to_vec(), found))
            }
        }
    }

    /// A path that leads to an inode. Of a directory the metadata knows the parent; of anything else it
    /// has a hint, which a rename or a hard link makes wrong: then the whole tree is looked through.
    fn path_of(&self, ino: Ino) -> Result<Option<Vec<u8>>, Failure> {
        let meta = self.volume.fs.meta();
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let Ok(inode) = meta.inode(at) else { return Ok(None) };
            if inode.nlink == 0 {
                return Ok(None);
            }
            match self.name_in(inode.parent, at)? {
                Some(name) => names.push(name),
                None if inode.kind != FileKind::Directory => return self.search(ino),
                None => return Ok(None),
            }
            at = inode.parent;
        }
        names.reverse();
        Ok(Some(names.join(&b'/')))
    }

    fn name_in(&self, directory: Ino, wanted: Ino) -> Result<Option<Vec<u8>>, Failure> {
        let mut after = 0;
        loop {
            self.call.check()?;
            let Ok(page) = self.volume.fs.readdir(directory, after, PAGE) else { return Ok(None) };
            let Some(last) = page.last() else { return Ok(None) };
            after = last.cookie;
            if let Some(found) = page.into_iter().find(|dentry| dentry.ino == wanted) {
                return Ok(Some(found.name));
            }
        }
    }

    fn search(&self, wanted: Ino) -> Result<Option<Vec<u8>>, Failure> {
        let mut found = None;
        self.walk(b"", true, &mut |entry| {
            if entry.ino == wanted.0 {
                found = Some(entry.path.to_vec());
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Every entry of a directory or tree, until `each` says that it has seen enough. Answers what could
    /// not be read.
    pub(super) fn walk(
        &self,
        path: &[u8],
        recursive: bool,
        each: &mut dyn FnMut(v1::Entry) -> Result<bool, Failure>,
    ) -> Result<Vec<v1::PathError>, Failure> {
        let mut request =
            v1::ListRequest { path: path.to_vec().into(), recursive, ..v1::ListRequest::default() };
        let mut errors = Vec::new();
        loop {
            self.call.check()?;
            let page = self.shared.service.list(self.call, &request)?;
            errors.extend(page.errors);
            for entry in page.entries {
                if !each(entry)? {
                    return Ok(errors);
                }
            }
            if page.cursor.is_empty() {
                return Ok(errors);
            }
            request.cursor = page.cursor;
        }
    }

    /// What there is to say about an entry. Its path is `path`, whatever the entry says.
    pub(super) fn info(
        &self,
        path: &[u8],
        entry: &v1::Entry,
        detail: Detail,
    ) -> Result<file::FileInfo, Failure> {
        let path = absolute(path);
        let (parent_path, name) = match path.rsplit_once('/') {
            Some(("", name)) => ("/".to_owned(), name.to_owned()),
            Some((parent, name)) => (parent.to_owned(), name.to_owned()),
            None => (String::new(), String::new()),
        };
        let is_regular = entry.kind() == v1::Kind::Regular;
        let mut info = file::FileInfo {
            file_id: entry.ino.to_string(),
            mime_type: if is_regular { self.mime_type(entry, &name) } else { String::new() },
            name,
            path,
            parent_path,
            size: signed(entry.size_bytes),
            created_at: seconds(entry.btime.as_ref()),
            modified_at: seconds(entry.mtime.as_ref()),
            accessed_at: seconds(entry.atime.as_ref()),
            file_type: file_type(entry.kind()).into(),
            permissions: Some(self.permissions(entry)),
            is_directory: entry.kind() == v1::Kind::Directory,
            is_symlink: entry.kind() == v1::Kind::Symlink,
            // Every byte is in the volume's folder, once.
            replication_factor: 1,
            sync_status: self.sync_status(entry).into(),
            ..file::FileInfo::default()
        };
        if is_regular && entry.size_bytes == 0 {
            info.checksum = blake3::hash(b"").to_string();
        } else if is_regular && detail != Detail::Entry {
            self.add_chunks(entry, detail, &mut info)?;
        }
        Ok(info)
    }

    fn add_chunks(
        &self,
        entry: &v1::Entry,
        detail: Detail,
        info: &mut file::FileInfo,
    ) -> Result<(), Failure> {
        let ino = Ino(entry.ino);
        let failed = |error: &dyn std::fmt::Display| {
            Failure::file(ErrorKind::Unavailable, format!("the chunks of inode {ino:?}: {error}"))
        };
        let chunks = self.volume.outside.chunks(ino).map_err(|error| failed(&error))?;
        // A file that is not sealed has none yet.
        let chunks = chunks.unwrap_or_default();
        info.chunk_count = i32::try_from(chunks.len()).unwrap_or(i32::MAX);
        let extents = self.volume.fs.meta().extents(ino, 0, entry.size_bytes);
        info.is_compressed = extents
            .map_err(|error| failed(&error))?
            .iter()
            .any(|extent| extent.location.encoding != Encoding::Raw);
        // The ids tell what is in a file: only its readers may see them.
        let may_read = may(&self.call.caller, entry, 4);
        // A file that is one whole chunk has the chunk's hash.
        if let [run] = chunks.as_slice()
            && (run.offset, run.len) == (0, entry.size_bytes)
            && u64::from(run.chunk_len) == run.len
            && may_read
        {
            info.checksum = hexadecimal(&run.chunk.0);
        }
        if detail == Detail::ChunkIds {
            if !may_read {
                let message = format!("user {} may not read {}", self.call.caller.uid, info.path);
                return Err(Failure::new(Reason::AccessDenied, message));
            }
            if chunks.len() > CHUNK_IDS_MAX {
                let message = format!(
                    "{} has {} chunks, more than an answer holds: librorum.v1.Files/Stat has them in parts",
                    info.path,
                    chunks.len()
                );
                return Err(Failure::file(ErrorKind::OutOfRange, message));
            }
            info.chunk_ids = chunks.iter().map(|run| hexadecimal(&run.chunk.0)).collect();
        }
        Ok(())
    }

    fn mime_type(&self, entry: &v1::Entry, name: &str) -> String {
        let kept = self.volume.fs.xattr(Ino(entry.ino), MIME_ATTRIBUTE).ok();
        kept.and_then(|value| String::from_utf8(value).ok())
            .unwrap_or_else(|| mime::of_name(name).to_owned())
    }

    fn permissions(&self, entry: &v1::Entry) -> file::FilePermissions {
        let caller = &self.call.caller;
        file::FilePermissions {
            mode: i32::try_from(entry.mode & 0o7777).unwrap_or(0),
            owner: self.accounts.user(entry.uid),
            group: self.accounts.group(entry.gid),
            readable: may(caller, entry, 4),
            writable: may(caller, entry, 2),
            executable: may(caller, entry, 1),
        }
    }

    /// Where a file is on its way to being sealed. Only the open volume knows who still writes.
    pub(super) fn sync_status(&self, entry: &v1::Entry) -> file::SyncStatus {
        match entry.state() {
            v1::State::Staged => match self.volume.fs.attributes(Ino(entry.ino)) {
                Ok(found) if found.being_written => file::SyncStatus::Syncing,
                _ => file::SyncStatus::Pending,
            },
            v1::State::Sealed | v1::State::Inline | v1::State::Empty => file::SyncStatus::Synced,
            // Of what is not a regular file: names are durable with the metadata.
            v1::State::Unknown if entry.kind() != v1::Kind::Regular => file::SyncStatus::Synced,
            v1::State::Unknown => file::SyncStatus::Unknown,
        }
    }

    /// A user's name or number, as a request may have it.
    pub(super) fn is_own(&self, owner: &str, group: &str) -> bool {
        let caller = &self.call.caller;
        let is = |given: &str, number: u32, name: String| {
            given.is_empty() || given == name || given == number.to_string()
        };
        is(owner, caller.uid, self.accounts.user(caller.uid))
            && is(group, caller.gid, self.accounts.group(caller.gid))
    }
}

/// A path as these clients write it.
pub(super) fn absolute(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    format!("/{}", text.trim_matches('/'))
}

/// The path of something in a directory.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() && path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seconds(time: Option<&v1::Timestamp>) -> i64 {
    time.map_or(0, |time| time.seconds)
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a mode grants one of its three bits, by the rule of path_resolution(7).
fn may(caller: &Caller, entry: &v1::Entry, bit: u32) -> bool {
    if caller.uid == 0 {
        return bit != 1 || entry.kind() == v1::Kind::Directory || entry.mode & 0o111 != 0;
    }
    let class = if caller.uid == entry.uid {
        entry.mode >> 6
    } else if caller.gid == entry.gid || caller.groups.contains(&entry.gid) {
        entry.mode >> 3
    } else {
        entry.mode
    };
    class & bit != 0
}

fn file_type(kind: v1::Kind) -> file::FileType {
    match kind {
        v1::Kind::Unknown => file::FileType::Unknown,
        v1::Kind::Regular => file::FileType::Regular,
        v1::Kind::Directory => file::FileType::Directory,
        v1::Kind::Symlink => file::FileType::Symlink,
        v1::Kind::BlockDevice => file::FileType::BlockDevice,
        v1::Kind::CharDevice => file::FileType::CharDevice,
        v1::Kind::Fifo => file::FileType::Fifo,
        v1::Kind::Socket => file::FileType::Socket,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_joined_once() {
        assert_eq!(
            (absolute(b""), absolute(b"/"), absolute(b"a/b/")),
            ("/".into(), "/".into(), "/a/b".into())
        );
        assert_eq!(join(b"", b"x"), b"x");
        assert_eq!(join(b"/", b"x"), b"/x");
        assert_eq!(join(b"/a", b"x"), b"/a/x");
        assert_eq!(join(b"/a/", b"x"), b"/a/x");
    }

    #[test]
    fn the_owner_is_asked_by_the_owners_bits() {
        let entry = v1::Entry { mode: 0o047, uid: 1, gid: 2, ..v1::Entry::default() };
        let of = |uid, gid| Caller { uid, gid, groups: Arc::from([]) };
        assert!(!may(&of(1, 2), &entry, 4));
        assert!(may(&of(3, 2), &entry, 4) && !may(&of(3, 2), &entry, 2));
        assert!(may(&of(3, 3), &entry, 2));
        assert!(may(&of(0, 0), &entry, 2) && may(&of(0, 0), &entry, 1));
    }
}
