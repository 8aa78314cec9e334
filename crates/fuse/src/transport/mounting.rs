//! Putting a file system into the tree, and taking it out.

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::MountOptions;

/// mount(2). The type's second half is by what `mount`, `findmnt` and fstab know a file system.
pub(super) fn mount_directly(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    use rustix::mount::MountFlags;
    let device = rustix::fs::open(
        "/dev/fuse",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let mut flags = MountFlags::empty();
    for (flag, set) in [
        (MountFlags::RDONLY, options.read_only),
        (MountFlags::NODEV | MountFlags::NOSUID, !options.dev_and_suid),
        (MountFlags::NOEXEC, options.no_exec),
        (MountFlags::NOATIME, options.no_atime),
    ] {
        if set {
            flags |= flag;
        }
    }
    let allow_other = if options.allow_other { ",allow_other" } else { "" };
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{allow_other}",
        std::os::fd::AsRawFd::as_raw_fd(&device),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let data = std::ffi::CString::new(data)?;
    rustix::mount::mount(&options.source, mountpoint, "fuse.librorum", flags, data.as_c_str())?;
    Ok(device)
}

/// Mounts with the set-id program of libfuse, which answers the open `/dev/fuse` through a socket that
/// the variable `_FUSE_COMMFD` names (`fusermount3(1)`).
pub(super) fn mount_by_helper(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // As standard input, because that is the one descriptor that a child is sure to get.
    let output = Command::new("fusermount3")
        .arg("-o")
        .arg(helper_options(options))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(message));
    }
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        &ours,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let device = ancillary.drain().find_map(|message| {
        let RecvAncillaryMessage::ScmRights(mut fds) = message else { return None };
        fds.next()
    });
    device.ok_or_else(|| io::Error::other("fusermount3 has mounted, but sent no descriptor"))
}

/// What `fusermount3` is told.
fn helper_options(options: &MountOptions) -> OsString {
    // A comma or a backslash in the name would begin another option.
    let mut text = b"fsname=".to_vec();
    for &byte in options.source.as_bytes() {
        if matches!(byte, b'\\' | b',') {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text.extend_from_slice(b",subtype=librorum,default_permissions,nodev,nosuid");
    for (option, set) in [
        (",ro", options.read_only),
        (",allow_other", options.allow_other),
        (",noexec", options.no_exec),
        (",noatime", options.no_atime),
    ] {
        if set {
            text.extend_from_slice(option.as_bytes());
        }
    }
    OsString::from_vec(text)
}

/// Unmounts a file system.
#[derive(Clone, Debug)]
pub struct Unmounter {
    pub(super) mountpoint: PathBuf,
}

impl Unmounter {
    /// Where it is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Takes the file system out of the tree now; it ends when its last open file is closed.
    ///
    /// # Errors
    ///
    /// What unmounting answers, for example that it is not mounted.
    pub fn unmount_lazily(&self) -> io::Result<()> {
        unmount(&self.mountpoint, UnmountFlags::DETACH, &["-u", "-z"])
    }

    /// Unmounts it if no file is open.
    ///
    /// # Errors
    ///
    /// `EBUSY` if it is in use, or what else unmounting answers.
    pub fn unmount(&self) -> io::Result<()> {
        unmount(&self.mountpoint, UnmountFlags::empty(), &["-u"])
    }
}

fn unmount(mountpoint: &Path, flags: UnmountFlags, helper_arguments: &[&str]) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => {
            let output = Command::new("fusermount3")
                .args(helper_arguments)
                .arg("--")
                .arg(mountpoint)
                .output()?;
            if output.status.success() {
                Ok(())
            } else {
                let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(io::Error::other(message))
            }
        }
        Err(error) => Err(error.into()),
    }
}
