//! Listing directories and whole trees, a page at a time.
//!
//! A listing keeps nothing between its pages: the cursor that the client gives back says by names where to
//! go on, and every page follows them anew with the caller's rights. A tree may change meanwhile; what is
//! there throughout is listed exactly once.

use bytes::{Buf, BufMut, Bytes};
use librorum_format::ErrorKind;
use librorum_fs::Attributes;
use librorum_meta::FileKind;
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};

use super::access::Access;
use super::path::{Names, PATH_BYTES_MAX, resolve};
use super::{Call, Context, ServedVolume, Service, shown};

/// What an answer holds at most: its control message must fit a frame's 64 KiB with the cursor.
const ANSWER_BYTES_MAX: usize = 40 << 10;

/// An entry's message without its path and link target.
const ENTRY_BYTES: usize = 130;

const PAGE: usize = 256;

/// Where a listing goes on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cursor {
    /// The directories on the way down; the first is the one that is listed and has no name.
    levels: Vec<Level>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Level {
    name: Vec<u8>,
    /// The directory's entries up to this cookie have been listed.
    after: u64,
}

impl Cursor {
    fn start() -> Self {
        Self { levels: vec![Level::default()] }
    }

    fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        for level in &self.levels {
            bytes.put_u64_le(level.after);
            bytes.put_u8(u8::try_from(level.name.len()).expect("a name"));
            bytes.put_slice(&level.name);
        }
        bytes.into()
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut levels: Vec<Level> = Vec::new();
        while bytes.has_remaining() {
            let after = bytes.try_get_u64_le().ok()?;
            let len = usize::from(bytes.try_get_u8().ok()?);
            if bytes.len() < len || (len == 0) != levels.is_empty() {
                return None;
            }
            let (name, rest) = bytes.split_at(len);
            levels.push(Level { name: name.to_vec(), after });
            bytes = rest;
        }
        (!levels.is_empty()).then_some(Self { levels })
    }

    /// The directory that is being listed, below the listing's own.
    fn path(&self) -> Vec<u8> {
        let mut path = Vec::new();
        for level in &self.levels[1..] {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&level.name);
        }
        path
    }
}

/// An answer that is being filled.
struct Answer {
    response: v1::ListResponse,
    bytes: usize,
    limit: usize,
}

impl Answer {
    fn is_full(&self) -> bool {
        self.bytes >= ANSWER_BYTES_MAX || self.response.entries.len() >= self.limit
    }

    fn add(&mut self, entry: v1::Entry) {
        self.bytes += ENTRY_BYTES + entry.path.len() + entry.symlink_target.len();
        self.response.entries.push(entry);
    }

    fn note(&mut self, path: Vec<u8>, error: &Failure) {
        self.bytes += ENTRY_BYTES + path.len() + error.message.len();
        let error = Some(error.to_message());
        self.response.errors.push(v1::PathError { path: path.into(), error });
    }
}

impl Service {
    /// Entries of a directory, or of all directories below it too.
    ///
    /// # Errors
    ///
    /// Those of readdir(3) and stat(2) for the directory itself. Others that cannot be read are listed in
    /// the answer.
    pub fn list(
        &self,
        call: &Call,
        request: &v1::ListRequest,
    ) -> Result<v1::ListResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let names = Names::new(&request.path)?;
        let top = resolve(&volume.outside, &call.caller, &names)?;
        let mut cursor = if request.cursor.is_empty() {
            Cursor::start()
        } else {
            Cursor::decode(&request.cursor).ok_or_else(|| {
                Failure::file(ErrorKind::InvalidInput, "the cursor is not one of a listing")
            })?
        };
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut answer = Answer { response: v1::ListResponse::default(), bytes: 0, limit };
        let mut opened = self.reopen(call, &volume, &mut cursor, top)?;
        while !answer.is_full() {
            call.check()?;
            let (Some(directory), Some(level)) = (opened.last(), cursor.levels.last()) else {
                break;
            };
            let page = self.page(call, &volume, directory, level.after);
            let page = match page {
                Ok(page) => page,
                // Its own failure is the answer; that of a directory further down is a line of it.
                Err(error) if opened.len() == 1 => return Err(error),
                Err(error) => {
                    answer.note(cursor.path(), &error);
                    Vec::new()
                }
            };
            if page.is_empty() {
                opened.pop();
                cursor.levels.pop();
                continue;
            }
            self.list_page(
                &volume,
                page,
                request.recursive,
                (&mut cursor, &mut opened),
                &mut answer,
            )?;
        }
        if !cursor.levels.is_empty() {
            answer.response.cursor = cursor.encode();
        }
        Ok(answer.response)
    }

    /// Adds a page's entries, up to the first directory that is listed too.
    fn list_page(
        &self,
        volume: &ServedVolume,
        page: Vec<(librorum_meta::Dentry, Attributes)>,
        recursive: bool,
        (cursor, opened): (&mut Cursor, &mut Vec<Attributes>),
        answer: &mut Answer,
    ) -> Result<(), Failure> {
        let mut path = cursor.path();
        let above = path.len();
        for (dentry, found) in page {
            if answer.is_full() {
                return Ok(());
            }
            path.truncate(above);
            if above > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&dentry.name);
            if let Some(level) = cursor.levels.last_mut() {
                level.after = dentry.cookie;
            }
            match self.entry(volume, &path, &found) {
                Ok(entry) => answer.add(entry),
                // Gone since it was listed.
                Err(error) if error.reason == Reason::File(ErrorKind::NotFound) => continue,
                Err(error) => return Err(error),
            }
            if recursive && found.inode.kind == FileKind::Directory {
                if path.len() > PATH_BYTES_MAX {
                    let message = "the tree below is too deep to be listed: ask for it by itself";
                    answer.note(path.clone(), &Failure::file(ErrorKind::NameTooLong, message));
                    continue;
                }
                cursor.levels.push(Level { name: dentry.name, after: 0 });
                opened.push(found);
                return Ok(());
            }
        }
        Ok(())
    }

    /// The directories on a cursor's way. Where one is gone, the listing goes on above it.
    fn reopen(
        &self,
        call: &Call,
        volume: &ServedVolume,
        cursor: &mut Cursor,
        top: Attributes,
    ) -> Result<Vec<Attributes>, Failure> {
        let mut opened = vec![top];
        for index in 1..cursor.levels.len() {
            let above = &opened[index - 1];
            let is_open = above.inode.kind == FileKind::Directory
                && call.caller.may(&above.inode, Access::EXECUTE);
            let found = volume.outside.find(above.inode.ino, &cursor.levels[index].name);
            match found {
                Ok(found) if is_open && found.inode.kind == FileKind::Directory => {
                    opened.push(found);
                }
                Ok(_) => {
                    cursor.levels.truncate(index);
                    break;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    cursor.levels.truncate(index);
                    break;
                }
                Err(error) => {
                    let what = format!("cannot list {}", shown(&cursor.path()));
                    return Err(super::failure(&error, &what));
                }
            }
        }
        Ok(opened)
    }

    fn page(
        &self,
        call: &Call,
        volume: &ServedVolume,
        directory: &Attributes,
        after: u64,
    ) -> Result<Vec<(librorum_meta::Dentry, Attributes)>, Failure> {
        let inode = &directory.inode;
        if inode.kind != FileKind::Directory {
            return Err(Failure::file(ErrorKind::NotDirectory, "it is not a directory"));
        }
        call.caller.require(inode, Access::LIST, || format!("inode {}", inode.ino.0))?;
        volume
            .outside
            .read_dir(inode.ino, after, PAGE)
            .context(|| format!("cannot list inode {}", inode.ino.0))
    }

    /// What a tree takes: see [`librorum_fs::TreeUsage`].
    ///
    /// # Errors
    ///
    /// Those of stat(2). The tree must be the caller's or root's: other directories in it may be closed
    /// to them, and their sizes with them.
    pub fn usage(
        &self,
        call: &Call,
        request: &v1::UsageRequest,
    ) -> Result<v1::UsageResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let names = Names::new(&request.path)?;
        let found = resolve(&volume.outside, &call.caller, &names)?;
        let is_ours = self.may_lend(&call.caller) || call.caller.owns(&found.inode);
        if !is_ours {
            call.caller.require_owner(&found.inode, "measure", || names.shown())?;
        }
        let usage = volume
            .outside
            .tree_usage(found.inode.ino, &call.cancel)
            .context(|| format!("cannot measure {}", names.shown()))?;
        call.check()?;
        Ok(v1::UsageResponse {
            file_count: usage.file_count,
            directory_count: usage.directory_count,
            logical_bytes: usage.logical_bytes,
            unique_bytes: usage.unique_bytes,
            shared_bytes: usage.shared_bytes,
            stored_bytes: usage.stored_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_the_client_and_a_forged_one_is_refused() {
        let level = |name: &[u8], after| Level { name: name.to_vec(), after };
        let cursor = Cursor { levels: vec![level(b"", 17), level(b"a b", 99), level(b"\xff", 0)] };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        for forged in [&b"x"[..], &[0; 8], &[0, 0, 0, 0, 0, 0, 0, 0, 5, b'a'], &[1; 40]] {
            assert_eq!(Cursor::decode(forged), None, "{forged:?}");
        }
    }
}
