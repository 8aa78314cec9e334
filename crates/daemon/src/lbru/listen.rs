//! The socket's place in the file system, and who comes in by it.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Who can open a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The daemon's user, and root.
    Owner,
    /// The members of this group, too.
    Group(u32),
    /// Everybody on the machine.
    Everybody,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum BindError {
    /// Others could put a socket of their own in place of ours.
    #[error(
        "the folder {} belongs to user {uid}, not to this one: clients could be led to another's socket",
        folder.display()
    )]
    Foreign { folder: PathBuf, uid: u32 },
    /// The same.
    #[error(
        "the folder {} has mode {mode:o}: others can write it, and put their own socket there",
        folder.display()
    )]
    Writable { folder: PathBuf, mode: u32 },
    /// Somebody listens there.
    #[error("a daemon is listening at {} already", path.display())]
    InUse { path: PathBuf },
    /// What is there is no socket of ours, so it stays.
    #[error("{} is there already, and is no socket of this user", path.display())]
    NotSocket { path: PathBuf },
    /// The system's answer.
    #[error("{what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

impl Access {
    fn folder_mode(self) -> u32 {
        match self {
            Self::Owner => 0o700,
            Self::Group(_) => 0o750,
            Self::Everybody => 0o755,
        }
    }

    fn socket_mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group(_) => 0o660,
            Self::Everybody => 0o666,
        }
    }

    fn group(self) -> Option<u32> {
        match self {
            Self::Group(gid) => Some(gid),
            Self::Owner | Self::Everybody => None,
        }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    let path = path.to_owned();
    move |source| BindError::Io { what, path, source }
}

/// Makes a socket that only those can open who may, in a folder where nobody else can put another one
/// in its place. The folder is made if it lacks; what a daemon that was killed has left is removed.
///
/// # Errors
///
/// A folder that others can write or own, a daemon that listens there, what the system answers.
pub fn bind(path: &Path, access: Access) -> Result<UnixListener, BindError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_folder(folder, access)?;
    let opened = File::open(folder).map_err(failed("cannot open", folder))?;
    check_folder(folder, &opened)?;
    // Of two daemons that start at once, one must not remove the other's fresh socket.
    flock(&opened, FlockOperation::LockExclusive)
        .map_err(|error| failed("cannot lock", folder)(error.into()))?;
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed("cannot make the socket", path))?;
    if let Some(gid) = access.group() {
        chown(path, None, Some(gid)).map_err(failed("cannot change the group of", path))?;
    }
    std::fs::set_permissions(path, Permissions::from_mode(access.socket_mode()))
        .map_err(failed("cannot change the mode of", path))?;
    Ok(listener)
}

fn make_folder(folder: &Path, access: Access) -> Result<(), BindError> {
    if let Some(above) = folder.parent()
        && !above.as_os_str().is_empty()
        && !above.exists()
    {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(above)
            .map_err(failed("cannot make", above))?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {
            if let Some(gid) = access.group() {
                chown(folder, None, Some(gid))
                    .map_err(failed("cannot change the group of", folder))?;
            }
            std::fs::set_permissions(folder, Permissions::from_mode(access.folder_mode()))
                .map_err(failed("cannot change the mode of", folder))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("cannot make", folder)(error)),
    }
}

fn check_folder(folder: &Path, opened: &File) -> Result<(), BindError> {
    let found = opened.metadata().map_err(failed("cannot look at", folder))?;
    let folder = folder.to_owned();
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(BindError::Foreign { folder, uid: found.uid() });
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(BindError::Writable { folder, mode });
    }
    Ok(())
}

/// Removes a socket that nobody listens at.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("cannot look at", path)(error)),
    };
    if !found.file_type().is_socket() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(BindError::NotSocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("cannot remove the stale socket", path))
        }
        // A full backlog is a daemon that is busy.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(BindError::InUse { path: path.to_owned() })
        }
        Err(error) => Err(failed("cannot tell whether anybody listens at", path)(error)),
    }
}
