//! One holder per volume: an advisory lock on a file in it, with a note that says who holds it.
//!
//! The lock is `flock(2)`, so it ends with the process, however it ends; the note may outlive a
//! killed holder and is read only while the lock is held.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Who holds a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// What it does, such as `mount`.
    pub command: String,
    /// Where it has the volume mounted, if it is a mount.
    pub mountpoint: Option<PathBuf>,
}

/// Why a volume could not be locked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum LockError {
    /// Another process has it.
    #[error("{} is in use by {}", volume.display(), describe(holder.as_ref()))]
    Held { volume: PathBuf, holder: Option<Holder> },
    /// The lock file cannot be opened or locked.
    #[error("the lock file of {}", volume.display())]
    Io { volume: PathBuf, source: std::io::Error },
}

fn describe(holder: Option<&Holder>) -> String {
    match holder {
        None => "another process".to_owned(),
        Some(Holder { pid, command, mountpoint: None }) => format!("'{command}', process {pid}"),
        Some(Holder { pid, command, mountpoint: Some(at) }) => {
            format!("'{command}', process {pid}, mounted at {}", at.display())
        }
    }
}

/// An exclusive hold on a volume, until dropped.
#[derive(Debug)]
pub struct VolumeLock {
    file: File,
}

impl VolumeLock {
    /// Takes the lock of the volume in `dir`, without waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] names the holder; [`LockError::Io`] if the folder cannot be written.
    pub fn acquire(dir: &Path, holder: &Holder) -> Result<Self, LockError> {
        let io = |source| LockError::Io { volume: dir.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("lock"))
            .map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held {
                    volume: dir.to_owned(),
                    holder: read_note(&mut file),
                });
            }
            Err(error) => return Err(io(error.into())),
        }
        let mountpoint = holder.mountpoint.as_deref().unwrap_or(Path::new(""));
        let note = format!("{}\n{}\n{}\n", holder.pid, holder.command, mountpoint.display());
        file.set_len(0).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        file.write_all(note.as_bytes()).map_err(io)?;
        Ok(Self { file })
    }

    /// Who holds the volume in `dir`, if anybody does. Takes nothing.
    #[must_use]
    pub fn holder(dir: &Path) -> Option<Holder> {
        let mut file = OpenOptions::new().read(true).open(dir.join("lock")).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => None,
            Err(_) => Some(read_note(&mut file).unwrap_or(Holder {
                pid: 0,
                command: "another process".to_owned(),
                mountpoint: None,
            })),
        }
    }
}

impl Drop for VolumeLock {
    fn drop(&mut self) {
        // The kernel unlocks when the descriptor closes; a stale note must not name us.
        if let Err(error) = self.file.set_len(0) {
            // Nothing depends on it: the note counts only while the lock is held.
            drop(error);
        }
    }
}

fn read_note(file: &mut File) -> Option<Holder> {
    let mut note = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_to_string(&mut note).ok()?;
    let mut lines = note.lines();
    Some(Holder {
        pid: lines.next()?.parse().ok()?,
        command: lines.next()?.to_owned(),
        mountpoint: lines.next().filter(|line| !line.is_empty()).map(PathBuf::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let dir = std::env::temp_dir().join(format!("librorum-lock-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let first = Holder {
            pid: std::process::id(),
            command: "mount".to_owned(),
            mountpoint: Some("/mnt/x".into()),
        };
        let lock = VolumeLock::acquire(&dir, &first).unwrap();
        let second = Holder { pid: 1, command: "fsck".to_owned(), mountpoint: None };
        match VolumeLock::acquire(&dir, &second) {
            Err(LockError::Held { holder, .. }) => assert_eq!(holder, Some(first.clone())),
            other => panic!("{other:?}"),
        }
        assert_eq!(VolumeLock::holder(&dir), Some(first));
        drop(lock);
        assert_eq!(VolumeLock::holder(&dir), None);
        VolumeLock::acquire(&dir, &second).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
