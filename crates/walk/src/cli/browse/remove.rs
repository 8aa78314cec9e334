//! Deletes a tree, and nothing else.
//!
//! Everything happens relative to open directories that were reached without following a symlink: a
//! path that is exchanged meanwhile leads nowhere else. Symlinks are deleted, never followed, and
//! mount points are not entered, those of the same file system (bind mounts) included. One directory
//! is open at a time, so depth does not matter.

use std::collections::HashSet;
use std::ffi::{CString, OsString};
use std::fmt;
use std::io;
#[cfg(any(target_os = "linux", target_os = "android"))]
use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// What kept something from being deleted.
#[derive(Debug)]
pub(super) enum RemoveError {
    /// It is another kind of thing than the scan saw, or the way to it is.
    Changed,
    /// Something is mounted there.
    Mounted,
    /// So many could not be deleted; the first for this reason.
    Left { count: u64, first: io::Error },
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => write!(f, "is not what it was when it was scanned: not deleted"),
            Self::Mounted => write!(f, "something is mounted there: not deleted"),
            Self::Left { count, first } => write!(f, "{count} entries not deleted: {first}"),
        }
    }
}

/// A directory on the way down.
struct Level {
    name: CString,
    id: (u64, u64),
    /// What is in it and cannot be deleted.
    stuck: HashSet<CString>,
}

/// Deletes what has these names, from a root as it was given down to the victim; returns how many
/// entries were deleted.
pub(super) fn remove(names: &[&OsString], is_directory: bool) -> Result<u64, RemoveError> {
    let [root, between @ .., victim] = names else { return Err(RemoveError::Changed) };
    let mut parent = open(CWD, root.as_encoded_bytes())?;
    for name in between {
        parent = open(parent.as_fd(), name.as_encoded_bytes())?;
    }
    let name = c_string(victim.as_encoded_bytes())?;
    let found = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW);
    let found = found.map_err(|_gone| RemoveError::Changed)?;
    if (FileType::from_raw_mode(found.st_mode) == FileType::Directory) != is_directory {
        return Err(RemoveError::Changed);
    }
    let mut removal = Removal { removed: 0, left: 0, first: None };
    if is_directory {
        removal.tree(&parent, name)?;
    } else {
        removal.unlink(parent.as_fd(), &name, AtFlags::empty());
    }
    match removal.first {
        None => Ok(removal.removed),
        Some(first) => Err(RemoveError::Left { count: removal.left, first }),
    }
}

fn c_string(name: &[u8]) -> Result<CString, RemoveError> {
    CString::new(name).map_err(|_zero| RemoveError::Changed)
}

fn open(at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, RemoveError> {
    open_directory(at, &c_string(name)?).map_err(|_changed| RemoveError::Changed)
}

fn open_directory(at: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name.as_c_str(), flags, Mode::empty())
}

#[expect(clippy::useless_conversion, reason = "device numbers are of another type elsewhere")]
fn id(fd: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((u64::try_from(stat.st_dev).unwrap_or(u64::MAX), stat.st_ino))
}

/// Where a directory is mounted. Another part of the same file system that is mounted here has the
/// same device number: only the number of the mount tells.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn mount(fd: &OwnedFd) -> Result<(u64, u64), Errno> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    // Without it nothing is certain, and so nothing is deleted.
    let about = about.map_err(|_no_proc| Errno::NOTSUP)?;
    let number = about.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    Ok((id(fd)?.0, number.ok_or(Errno::NOTSUP)?))
}

/// Where a directory is mounted.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn mount(fd: &OwnedFd) -> Result<(u64, u64), Errno> {
    Ok((id(fd)?.0, 0))
}

struct Removal {
    removed: u64,
    left: u64,
    first: Option<io::Error>,
}

impl Removal {
    fn fail(&mut self, errno: Errno) {
        self.left += 1;
        self.first.get_or_insert_with(|| errno.into());
    }

    fn unlink(&mut self, at: BorrowedFd<'_>, name: &CString, flags: AtFlags) -> bool {
        match rustix::fs::unlinkat(at, name.as_c_str(), flags) {
            Ok(()) => self.removed += 1,
            Err(Errno::NOENT) => {}
            Err(errno) => {
                self.fail(errno);
                return false;
            }
        }
        true
    }

    fn tree(&mut self, parent: &OwnedFd, name: CString) -> Result<(), RemoveError> {
        let changed = |_errno| RemoveError::Changed;
        let unknown = |errno: Errno| RemoveError::Left { count: 1, first: io::Error::from(errno) };
        let place = mount(parent).map_err(unknown)?;
        let mut here = match open_directory(parent.as_fd(), &name) {
            Ok(here) => here,
            // It may be empty all the same.
            Err(_unreadable) => {
                self.unlink(parent.as_fd(), &name, AtFlags::REMOVEDIR);
                return Ok(());
            }
        };
        let top = id(&here).map_err(changed)?;
        if mount(&here).map_err(unknown)? != place {
            return Err(RemoveError::Mounted);
        }
        let mut levels = vec![Level { name, id: top, stuck: HashSet::new() }];
        while let Some(level) = levels.last_mut() {
            if let Some((name, next)) = self.empty(&here, level, place) {
                let id = id(&next).map_err(changed)?;
                levels.push(Level { name, id, stuck: HashSet::new() });
                here = next;
                continue;
            }
            let Some(done) = levels.pop() else { break };
            let Some(above) = levels.last_mut() else {
                self.unlink(parent.as_fd(), &done.name, AtFlags::REMOVEDIR);
                break;
            };
            // If it was moved, `..` is elsewhere: nothing may be deleted there.
            let up = open_directory(here.as_fd(), &c_string(b"..")?).map_err(changed)?;
            if id(&up).map_err(changed)? != above.id {
                return Err(RemoveError::Changed);
            }
            if !self.unlink(up.as_fd(), &done.name, AtFlags::REMOVEDIR) {
                above.stuck.insert(done.name);
            }
            here = up;
        }
        Ok(())
    }

    /// Deletes what is not a directory, until there is one that can be entered.
    fn empty(
        &mut self,
        here: &OwnedFd,
        level: &mut Level,
        place: (u64, u64),
    ) -> Option<(CString, OwnedFd)> {
        let listing = match Dir::read_from(here) {
            Ok(listing) => listing,
            Err(errno) => {
                self.fail(errno);
                return None;
            }
        };
        for entry in listing {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    self.fail(errno);
                    return None;
                }
            };
            let name = entry.file_name().to_owned();
            if matches!(name.to_bytes(), b"." | b"..") || level.stuck.contains(&name) {
                continue;
            }
            // A listing may be old, and not tell: opening does.
            let opened = match entry.file_type() {
                FileType::Directory | FileType::Unknown => {
                    open_directory(here.as_fd(), &name).map(Some)
                }
                FileType::RegularFile
                | FileType::Symlink
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice => Ok(None),
            };
            match opened {
                Ok(Some(next)) => match mount(&next) {
                    Ok(found) if found == place => return Some((name, next)),
                    Ok(_) => {
                        self.fail(Errno::XDEV);
                        level.stuck.insert(name);
                    }
                    Err(errno) => {
                        self.fail(errno);
                        level.stuck.insert(name);
                    }
                },
                Ok(None) | Err(Errno::NOTDIR | Errno::LOOP) => {
                    if !self.unlink(here.as_fd(), &name, AtFlags::empty()) {
                        level.stuck.insert(name);
                    }
                }
                // It cannot be read, but may be empty.
                Err(_) => {
                    if !self.unlink(here.as_fd(), &name, AtFlags::REMOVEDIR) {
                        level.stuck.insert(name);
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn names(names: &[&str]) -> Vec<OsString> {
        names.iter().map(Into::into).collect()
    }

    #[test]
    fn a_tree_is_deleted_and_symlinks_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let kept = dir.path().join("kept");
        fs::create_dir_all(root.join("victim/a/b/c")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        fs::write(root.join("victim/a/file"), "x").unwrap();
        symlink(&kept, root.join("victim/a/link")).unwrap();
        symlink(&kept, root.join("link")).unwrap();

        let path = names(&[root.to_str().unwrap(), "victim"]);
        assert_eq!(remove(&path.iter().collect::<Vec<_>>(), true).unwrap(), 6);
        assert!(!root.join("victim").exists());
        assert!(kept.join("file").exists());

        // A directory that has become a symlink is not what was scanned, nor is what is behind it.
        let path = names(&[root.to_str().unwrap(), "link"]);
        let result = remove(&path.iter().collect::<Vec<_>>(), true);
        assert!(matches!(result, Err(RemoveError::Changed)));
        let path = names(&[root.to_str().unwrap(), "link", "file"]);
        let result = remove(&path.iter().collect::<Vec<_>>(), false);
        assert!(matches!(result, Err(RemoveError::Changed)));
        assert!(kept.join("file").exists());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_mounted_from_the_same_file_system_is_kept() {
        use rustix::mount::{UnmountFlags, mount_bind, unmount};
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let (kept, point) = (dir.path().join("kept"), root.join("victim/a/point"));
        fs::create_dir_all(&point).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        fs::write(root.join("victim/a/file"), "x").unwrap();
        if mount_bind(&kept, &point).is_err() {
            eprintln!("skipped: cannot mount");
            return;
        }
        let removed = |path: &[&str]| remove(&names(path).iter().collect::<Vec<_>>(), true);
        let root = root.to_str().unwrap();
        let within = removed(&[root, "victim"]);
        let itself = removed(&[root, "victim", "a", "point"]);
        unmount(&point, UnmountFlags::DETACH).unwrap();
        assert!(matches!(within, Err(RemoveError::Left { .. })), "{within:?}");
        assert!(matches!(itself, Err(RemoveError::Mounted)), "{itself:?}");
        assert!(kept.join("file").exists() && !point.with_file_name("file").exists());
    }

    #[test]
    fn depth_and_width_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let mut at = root.join("victim");
        for _ in 0..400 {
            at = at.join("d");
        }
        fs::create_dir_all(&at).unwrap();
        for index in 0..300 {
            fs::create_dir(root.join(format!("victim/w{index}"))).unwrap();
            fs::write(root.join(format!("victim/w{index}/f")), "").unwrap();
        }
        let path = names(&[root.to_str().unwrap(), "victim"]);
        assert_eq!(remove(&path.iter().collect::<Vec<_>>(), true).unwrap(), 1 + 400 + 600);
        assert!(root.exists());
    }
}
