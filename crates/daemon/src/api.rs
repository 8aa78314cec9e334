//! The socket in a volume's folder through which clients reach the process that has it open.
//!
//! `api`, mode 0600: who can open it could open the volume as well. It speaks frames, as the daemon's own
//! socket does.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{Shutdown, shutdown};

use crate::lbru;

/// The socket's name in the volume's folder.
pub const SOCKET: &str = "api";

/// Serves until dropped; connections that there are live on.
#[derive(Debug)]
pub struct Api {
    path: PathBuf,
    listener: Arc<UnixListener>,
}

/// Serves the volume in `folder`, which this process holds.
///
/// # Errors
///
/// What making a socket or a thread answers.
pub fn serve(server: &lbru::Server, folder: &Path) -> std::io::Result<Api> {
    let path = folder.join(SOCKET);
    match std::fs::remove_file(&path) {
        // Left by a process that was killed; the volume's lock says that it is gone.
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // A socket's address holds 107 bytes, a folder's path may be longer.
    let opened = std::fs::File::open(folder)?;
    let address = format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd());
    let listener = Arc::new(UnixListener::bind(address)?);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let (accepting, server) = (Arc::clone(&listener), server.clone());
    std::thread::Builder::new().name("api".to_owned()).spawn(move || {
        loop {
            match accepting.accept() {
                Ok((stream, _)) => server.serve_connection(stream),
                // It was shut down.
                Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection to a volume");
                    librorum_sys::clock::sleep(std::time::Duration::from_millis(50));
                }
            }
        }
    })?;
    Ok(Api { path, listener })
}

impl Drop for Api {
    fn drop(&mut self) {
        // The thread that accepts sees it as an error and ends.
        if let Err(error) = shutdown(&self.listener, Shutdown::Both) {
            tracing::debug!(%error, "a volume's socket");
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "a volume's socket");
        }
    }
}
