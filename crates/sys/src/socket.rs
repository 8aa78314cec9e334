//! Unix stream sockets: bytes together with descriptors, and who is on the other side.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most descriptors that one message carries here. The kernel's limit is 253; no frame needs
/// more than this, and the control buffer of it fits on the stack.
pub const DESCRIPTORS_MAX: usize = 64;

const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// Sends bytes, and with the first of them descriptors. Answers how many bytes were taken, which may
/// be fewer than there are; the descriptors went along if it is not an error. Repeats what a signal
/// interrupted. The peer's end being closed is an error, not a signal.
///
/// # Errors
///
/// What `sendmsg(2)` answers; `InvalidInput` for more than [`DESCRIPTORS_MAX`] descriptors.
pub fn send(
    fd: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty()
            && (descriptors.len() > DESCRIPTORS_MAX
                || !control.push(SendAncillaryMessage::ScmRights(descriptors)))
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "too many descriptors for one message",
            ));
        }
        match sendmsg(fd, parts, &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(sent),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives bytes, and at most `max` descriptors, which are put behind those in `descriptors`; they
/// close on exec. Answers 0 at the end of the stream. Repeats what a signal interrupted.
///
/// # Errors
///
/// What `recvmsg(2)` answers; `InvalidData` if more descriptors came than `max`. Those that came are
/// closed then, and the stream is of no further use: nobody can say whose the lost ones were.
pub fn receive(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    max: usize,
) -> io::Result<usize> {
    let max = max.min(DESCRIPTORS_MAX);
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    let room = if max == 0 { 0 } else { rustix::cmsg_space!(ScmRights(max)) };
    let mut control = RecvAncillaryBuffer::new(&mut space[..room]);
    let before = descriptors.len();
    let answer = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg(fd, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(answer) => break answer,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    // The control buffer is rounded up, so one too many may have come without the flag.
    if answer.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() - before > max {
        descriptors.truncate(before);
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more descriptors came than were agreed on",
        ));
    }
    Ok(answer.bytes)
}

/// Who made the other end of a socket, as the kernel noted at the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The process. Its number may be another's by now.
    pub pid: u32,
    /// The other groups of the user. Empty where the kernel cannot tell (before 4.13).
    pub groups: Vec<u32>,
}

/// Who is on the other side of a connected Unix socket.
///
/// # Errors
///
/// What `getsockopt(2)` answers for `SO_PEERCRED`, such as that this is no Unix socket.
pub fn peer(fd: BorrowedFd<'_>) -> io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(fd)?;
    Ok(Peer {
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
        pid: u32::try_from(credentials.pid.as_raw_nonzero().get()).unwrap_or(0),
        groups: peer_groups(fd)?,
    })
}

/// `SO_PEERGROUPS`, which rustix does not have.
fn peer_groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // Most users are in a few groups; the kernel says how many if this is too small.
    let mut groups = vec![0_u32; 32];
    loop {
        let room = groups.len().saturating_mul(size_of::<u32>());
        let mut len = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: `groups` has room for `len` bytes, which is what the kernel is told, and both live
        // until the call returns; the descriptor is open for as long as `fd` is borrowed.
        let answer = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = usize::try_from(len).map_err(io::Error::other)? / size_of::<u32>();
        if answer == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ERANGE) if count > groups.len() => groups.resize(count, 0),
            // A socket pair, and old kernels.
            Some(libc::ENODATA | libc::ENOPROTOOPT) => return Ok(Vec::new()),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn files(count: usize) -> Vec<File> {
        (0..count).map(|_| File::open("/dev/null").unwrap()).collect()
    }

    fn borrowed(files: &[File]) -> Vec<BorrowedFd<'_>> {
        files.iter().map(AsFd::as_fd).collect()
    }

    #[test]
    fn descriptors_come_with_the_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let files = files(3);
        let parts = [IoSlice::new(b"he"), IoSlice::new(b"llo")];
        assert_eq!(send(a.as_fd(), &parts, &borrowed(&files)).unwrap(), 5);
        let (mut buffer, mut came) = ([0; 16], Vec::new());
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut came, 3).unwrap(), 5);
        assert_eq!((&buffer[..5], came.len()), (&b"hello"[..], 3));
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut came, 3).unwrap(), 0);
    }

    #[test]
    fn one_descriptor_too_many_is_an_error_and_closes_them() {
        // Odd and even, since the kernel's control messages are padded to 8 bytes; and none at all.
        for max in 0..5 {
            let (a, b) = UnixStream::pair().unwrap();
            let files = files(max + 1);
            send(a.as_fd(), &[IoSlice::new(b"x")], &borrowed(&files)).unwrap();
            let (mut buffer, mut came) = ([0; 16], Vec::new());
            let error = receive(b.as_fd(), &mut buffer, &mut came, max).unwrap_err();
            assert_eq!((error.kind(), came.len()), (io::ErrorKind::InvalidData, 0));
        }
    }

    #[test]
    fn the_other_side_of_a_pair_is_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = peer(a.as_fd()).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
    }
}
