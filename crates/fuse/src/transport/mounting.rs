//! Putting a file system into the tree, and taking it out.

use std::io;
use std::path::{Path, PathBuf};

use fuser::MountOption;
use rustix::mount::UnmountFlags;

use super::MountOptions;

/// mount(2). `fuser` would do it too, but without the type's second half, by which `mount`,
/// `findmnt` and fstab know a file system.
pub(super) fn mount_directly(
    mountpoint: &Path,
    options: &MountOptions,
) -> io::Result<std::os::fd::OwnedFd> {
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

/// What `fusermount3` is told.
pub(super) fn helper_options(options: &MountOptions) -> Vec<MountOption> {
    let mut chosen = vec![
        MountOption::FSName(options.source.clone()),
        MountOption::Subtype("librorum".to_owned()),
        MountOption::DefaultPermissions,
        if options.read_only { MountOption::RO } else { MountOption::RW },
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    if options.no_exec {
        chosen.push(MountOption::NoExec);
    }
    if options.no_atime {
        chosen.push(MountOption::NoAtime);
    }
    chosen
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
            let output = std::process::Command::new("fusermount3")
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
