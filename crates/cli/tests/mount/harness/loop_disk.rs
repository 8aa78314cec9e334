//! A small disk of its own, to fill or to freeze.

use std::path::{Path, PathBuf};

use super::{Run, program};

/// A file system in a file, mounted through a loop device until dropped.
#[derive(Debug)]
pub(crate) struct LoopDisk {
    root: PathBuf,
    _dir: tempfile::TempDir,
}

impl LoopDisk {
    /// An ext4 of `mib` mebibytes, without the share that it keeps for root: the tests are root.
    pub(crate) fn new(mib: u64) -> Self {
        Self::made_by("mkfs.ext4", &["-q", "-m", "0"], mib)
    }

    /// A file system that shares blocks between files.
    pub(crate) fn with_reflinks(kind: &str, mib: u64) -> Self {
        Self::made_by(&format!("mkfs.{kind}"), &["-q"], mib)
    }

    fn made_by(mkfs: &str, options: &[&str], mib: u64) -> Self {
        let dir = super::temp_dir();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        program(mkfs).args(options).arg(&image).ok();
        let root = dir.path().join("disk");
        std::fs::create_dir(&root).unwrap();
        // mount(8) makes the loop device such that it goes away with the mount.
        program("mount").args(["-o", "loop"]).arg(&image).arg(&root).ok();
        Self { root, _dir: dir }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that can still be written.
    pub(crate) fn available_bytes(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.root).unwrap();
        found.f_bavail * found.f_frsize
    }

    /// Stops every write to the disk until the answer is dropped.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        program("fsfreeze").arg("-f").arg(&self.root).ok();
        Frozen { disk: self }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left something open. The device goes with the mount.
        rustix::mount::unmount(&self.root, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

/// See [`LoopDisk::freeze`].
#[derive(Debug)]
pub(crate) struct Frozen<'a> {
    disk: &'a LoopDisk,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Also while a test panics: everything that touches a frozen disk hangs, its unmounting too.
        drop(program("fsfreeze").arg("-u").arg(&self.disk.root).status());
    }
}
