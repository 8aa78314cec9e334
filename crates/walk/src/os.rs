//! The system calls of a walk, all relative to an open directory.
//!
//! Linux reads `getdents64` records where the kernel put them; other Unixes go through `readdir`
//! ([`portable`]), which can also be chosen on Linux by `--cfg fdu_portable`, so that it is tested.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use librorum_sys::clock;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::Metadata;

#[cfg(all(any(target_os = "linux", target_os = "android"), not(fdu_portable)))]
mod linux;
#[cfg(all(any(target_os = "linux", target_os = "android"), not(fdu_portable)))]
pub(crate) use linux::{Buffer, Listing};
#[cfg(any(not(any(target_os = "linux", target_os = "android")), fdu_portable))]
mod portable;
#[cfg(any(not(any(target_os = "linux", target_os = "android")), fdu_portable))]
pub(crate) use portable::{Buffer, Listing};

/// Whether the last component may be a symlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastLink {
    Follow,
    Refuse,
}

/// Where a path starts: at an open directory, or where the process is.
pub(crate) fn base(at: Option<BorrowedFd<'_>>) -> BorrowedFd<'_> {
    at.unwrap_or(CWD)
}

/// How many milliseconds a worker waits for a descriptor.
const PATIENCE: u32 = 200;

/// Opens a directory. It never opens anything else, so a FIFO or a device that took its place does
/// not wait or act: `O_DIRECTORY` is checked first.
pub(crate) fn open_directory(
    at: Option<BorrowedFd<'_>>,
    path: &CStr,
    last: LastLink,
) -> Result<OwnedFd, Errno> {
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if last == LastLink::Refuse {
        flags |= OFlags::NOFOLLOW;
    }
    let mut patience = PATIENCE;
    loop {
        match rustix::fs::openat(base(at), path, flags, Mode::empty()) {
            Err(Errno::INTR) => {}
            // The budget leaves room, but others in this process, or on this machine, may not.
            Err(Errno::MFILE | Errno::NFILE) if patience > 0 => {
                patience -= 1;
                clock::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// What is known about an open directory: a third of the cost of asking by name.
pub(crate) fn identify(fd: impl AsFd) -> Result<Metadata, Errno> {
    rustix::fs::fstat(fd).map(Metadata::new)
}

/// What is known about a name.
///
/// `fstatat` and not `statx`: on local file systems every field costs the same, and statx 5 % more.
pub(crate) fn stat(
    at: Option<BorrowedFd<'_>>,
    path: &CStr,
    last: LastLink,
) -> Result<Metadata, Errno> {
    let mut flags = AtFlags::empty();
    if last == LastLink::Refuse {
        flags |= AtFlags::SYMLINK_NOFOLLOW;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // An automount point is counted as it is; du does the same.
        flags |= AtFlags::NO_AUTOMOUNT;
    }
    rustix::fs::statat(base(at), path, flags).map(Metadata::new)
}

/// Whether what a listing of this file system says may be believed beyond names and kinds: `d_ino`
/// is what stat would say (but for mount points), and the largest offset there is means that no
/// entry follows.
///
/// Both were checked on these; network and stacked file systems are free to invent either.
pub(crate) fn is_trusted(fd: impl AsFd) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        const TRUSTED: [u64; 4] = [
            0xEF53,      // ext2, ext3, ext4
            0x5846_5342, // xfs
            0x9123_683E, // btrfs
            0x0102_1994, // tmpfs
        ];
        rustix::fs::fstatfs(fd)
            .is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|magic| TRUSTED.contains(&magic)))
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _fd = fd;
        false
    }
}

/// How many descriptors this process may have open now.
pub(crate) fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
