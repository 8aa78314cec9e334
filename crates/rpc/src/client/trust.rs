//! Whether the process behind a socket is one to give files to.
//!
//! Who can put a socket where a client looks for the daemon's gets everything that it writes. So the
//! socket must lie where only trusted users can put one, and a trusted user must have made it.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use librorum_format::ErrorKind;
use librorum_sys::socket;

use crate::failure::{Failure, Reason};

/// The users whose daemon is trusted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trusted {
    pub(super) own: u32,
    pub(super) expected: Option<u32>,
}

impl Trusted {
    pub(super) fn new(expected: Option<u32>) -> Self {
        Self { own: rustix::process::geteuid().as_raw(), expected }
    }

    fn covers(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own || Some(uid) == self.expected
    }

    /// Whether a socket may be connected to, by what the file system says of it.
    pub(super) fn check_path(&self, path: &Path) -> Result<(), Failure> {
        let told = |error: std::io::Error| {
            Failure::new(Reason::Disconnected, format!("the socket {}: {error}", path.display()))
        };
        let denied = |why: String| {
            Failure::new(
                Reason::AccessDenied,
                format!("the socket {} is not trusted: {why}", path.display()),
            )
        };
        let socket = std::fs::symlink_metadata(path).map_err(told)?;
        if !socket.file_type().is_socket() {
            return Err(Failure::file(
                ErrorKind::InvalidInput,
                format!("{} is not a socket", path.display()),
            ));
        }
        if !self.covers(socket.uid()) {
            return Err(denied(format!("it belongs to user {}", socket.uid())));
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = std::fs::metadata(folder).map_err(told)?;
        let sticky = folder.mode() & 0o1000 != 0;
        // In a sticky folder nobody can replace the socket of a trusted user, checked above.
        if folder.mode() & 0o022 != 0 && !sticky {
            return Err(denied("others may write to its folder".to_owned()));
        }
        if !self.covers(folder.uid()) {
            return Err(denied(format!("its folder belongs to user {}", folder.uid())));
        }
        Ok(())
    }

    /// Whether the process at the other end may be spoken with.
    pub(super) fn check_peer(&self, stream: &UnixStream) -> Result<(), Failure> {
        let peer = socket::peer(stream.as_fd()).map_err(|error| {
            Failure::new(Reason::Disconnected, format!("who the daemon is: {error}"))
        })?;
        if self.covers(peer.uid) {
            return Ok(());
        }
        let message = format!(
            "the daemon runs as user {}, neither root nor this user nor the expected one",
            peer.uid
        );
        Err(Failure::new(Reason::AccessDenied, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_where_others_may_put_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let trusted = Trusted::new(None);
        let with_mode = |mode| {
            std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(mode)).unwrap();
            trusted.check_path(&path)
        };
        assert!(with_mode(0o700).is_ok());
        assert!(with_mode(0o755).is_ok());
        assert!(with_mode(0o1777).is_ok());
        assert_eq!(with_mode(0o777).unwrap_err().reason, Reason::AccessDenied);
        assert_eq!(with_mode(0o770).unwrap_err().reason, Reason::AccessDenied);
        with_mode(0o700).unwrap();
        // Of the users only root can give the socket away, to play a stranger's.
        if trusted.own == 0 {
            std::os::unix::fs::chown(&path, Some(4242), None).unwrap();
            assert_eq!(trusted.check_path(&path).unwrap_err().reason, Reason::AccessDenied);
            Trusted::new(Some(4242)).check_path(&path).unwrap();
        }
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(trusted.check_path(&folder.path().join("file")).is_err());
    }
}
