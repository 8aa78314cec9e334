//! Sockets that whoever started this process has opened for it: systemd's socket activation,
//! sd_listen_fds(3).

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, sockopt};

/// `SD_LISTEN_FDS_START`.
const FIRST: i32 = 3;

/// The listening Unix sockets that this process was given, closed on exec from now on. Others that came
/// with them are closed. Only the first call answers any.
///
/// # Errors
///
/// `LISTEN_FDS` is no number, or names descriptors that are not open.
pub fn listeners() -> std::io::Result<Vec<UnixListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    let is_for_us = number("LISTEN_PID") == i32::try_from(std::process::id()).ok();
    if !is_for_us || TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").filter(|count| (0..64).contains(count)).ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::InvalidInput, "LISTEN_FDS is no number of sockets")
    })?;
    let mut listeners = Vec::new();
    for raw in FIRST..FIRST + count {
        // SAFETY: `LISTEN_PID` says that this process was given these descriptors, and this function
        // takes them once; a number that is not open is refused by the next call.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        match fcntl_getfd(&descriptor) {
            Ok(flags) => fcntl_setfd(&descriptor, flags | FdFlags::CLOEXEC)?,
            Err(error) => {
                // It must not be closed: it is not open, and by then the number may be another's.
                let _number = std::os::fd::IntoRawFd::into_raw_fd(descriptor);
                return Err(error.into());
            }
        }
        let is_listener = sockopt::socket_domain(&descriptor) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&descriptor) == Ok(SocketType::STREAM)
            && sockopt::socket_acceptconn(&descriptor) == Ok(true);
        if is_listener {
            listeners.push(UnixListener::from(descriptor));
        }
    }
    Ok(listeners)
}
