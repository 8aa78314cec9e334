//! Paths as clients send them, and who may follow them.
//!
//! A path is a list of names below the volume's root. It never leads out of it: `.`, `..`, empty names
//! and NUL are refused, and a symbolic link is an end, not a way.

use librorum_format::{ErrorKind, Ino};
use librorum_fs::{Attributes, Outside};
use librorum_meta::FileKind;
use librorum_rpc::Failure;

use super::access::{Access, Caller};
use super::{Context, shown};

/// The kernel takes paths of 4 KiB; names below a working directory may be deeper. What is longer still
/// would not fit a frame with its neighbours.
pub(super) const PATH_BYTES_MAX: usize = 16 << 10;

/// The root of every volume.
pub(super) const ROOT: Ino = Ino(1);

/// A path, cut into names.
#[derive(Clone, Debug)]
pub(super) struct Names<'a> {
    path: &'a [u8],
    names: Vec<&'a [u8]>,
}

impl<'a> Names<'a> {
    /// Cuts a path.
    pub(super) fn new(path: &'a [u8]) -> Result<Self, Failure> {
        let invalid = |what: &str| {
            let path = shown(path);
            Err(Failure::file(ErrorKind::InvalidInput, format!("path '{path}' {what}")))
        };
        if path.len() > PATH_BYTES_MAX {
            let message = format!("a path of {} bytes is too long", path.len());
            return Err(Failure::file(ErrorKind::NameTooLong, message));
        }
        let relative = path.strip_prefix(b"/").unwrap_or(path);
        // One at the end says "a directory", as in the shell.
        let relative = relative.strip_suffix(b"/").unwrap_or(relative);
        if relative.is_empty() {
            return Ok(Self { path, names: Vec::new() });
        }
        let names: Vec<&[u8]> = relative.split(|&byte| byte == b'/').collect();
        for name in &names {
            match *name {
                b"" => return invalid("has an empty component"),
                b"." | b".." => {
                    return invalid("has a component '.' or '..', which is not resolved");
                }
                name if name.contains(&0) => return invalid("contains NUL"),
                name if name.len() > 255 => {
                    let message = format!("a name in path '{}' has over 255 bytes", shown(path));
                    return Err(Failure::file(ErrorKind::NameTooLong, message));
                }
                _ => {}
            }
        }
        Ok(Self { path, names })
    }

    /// The names, outermost first.
    pub(super) fn names(&self) -> &[&'a [u8]] {
        &self.names
    }

    /// The last name and the path above it.
    pub(super) fn split_last(&self) -> Result<(&[&'a [u8]], &'a [u8]), Failure> {
        match self.names.split_last() {
            Some((last, above)) => Ok((above, *last)),
            None => Err(Failure::file(
                ErrorKind::Busy,
                "the root of a volume cannot be made, moved, replaced or removed",
            )),
        }
    }

    /// The path for messages.
    pub(super) fn shown(&self) -> String {
        format!("/{}", shown(self.path.strip_prefix(b"/").unwrap_or(self.path)))
    }
}

/// What a path leads to; the last name may be a symbolic link, which is then what is meant.
pub(super) fn resolve(
    volume: &Outside,
    caller: &Caller,
    names: &Names<'_>,
) -> Result<Attributes, Failure> {
    walk(volume, caller, names, names.names())
}

/// The directory that holds the last name of a path, and that name.
pub(super) fn resolve_parent<'a>(
    volume: &Outside,
    caller: &Caller,
    names: &Names<'a>,
) -> Result<(Attributes, &'a [u8]), Failure> {
    let (above, last) = names.split_last()?;
    let parent = walk(volume, caller, names, above)?;
    enter(caller, &parent, names)?;
    Ok((parent, last))
}

fn walk(
    volume: &Outside,
    caller: &Caller,
    whole: &Names<'_>,
    names: &[&[u8]],
) -> Result<Attributes, Failure> {
    let mut found =
        volume.attributes(ROOT).context(|| format!("cannot look up {}", whole.shown()))?;
    for name in names {
        enter(caller, &found, whole)?;
        found = volume
            .find(found.inode.ino, name)
            .context(|| format!("cannot look up '{}' of {}", shown(name), whole.shown()))?;
    }
    Ok(found)
}

/// Whether names may be looked up in a directory.
pub(super) fn enter(
    caller: &Caller,
    directory: &Attributes,
    names: &Names<'_>,
) -> Result<(), Failure> {
    match directory.inode.kind {
        FileKind::Directory => {}
        FileKind::Symlink => {
            let message = format!("{}: a symbolic link on the way is not followed", names.shown());
            return Err(Failure::file(ErrorKind::NotDirectory, message));
        }
        FileKind::Regular
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::CharDevice
        | FileKind::BlockDevice => {
            let message = format!("{}: something on the way is not a directory", names.shown());
            return Err(Failure::file(ErrorKind::NotDirectory, message));
        }
    }
    caller.require(&directory.inode, Access::EXECUTE, || names.shown())
}
