//! What can go wrong in a walk. None of it ends the walk.

use std::ffi::{CStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::Dir;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Asking what a name is; also a directory that is gone, or is none any more, when its turn comes.
    Stat,
    /// Opening a directory; it was entered nevertheless.
    OpenDirectory,
    /// Reading a directory; some of it was read.
    ReadDirectory,
    /// A directory that contains itself, through a symlink or a mount: not entered.
    Loop,
    /// A directory that is not where it was found any more; what was not read of it is left out.
    Changed,
}

/// A failure at a path.
#[derive(Debug)]
pub struct Error {
    path: PathBuf,
    operation: Operation,
    errno: Errno,
}

impl Error {
    pub(crate) fn new(path: PathBuf, operation: Operation, errno: Errno) -> Self {
        Self { path, operation, errno }
    }

    /// A failure at a name in a directory, or at a root.
    pub(crate) fn at(
        dir: Option<&Arc<Dir>>,
        name: &CStr,
        operation: Operation,
        errno: Errno,
    ) -> Self {
        let name = name.to_bytes();
        let path = dir.map_or_else(|| name.to_vec(), |dir| dir.path_with(Some(name)));
        Self::new(PathBuf::from(OsString::from_vec(path)), operation, errno)
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// At what.
    #[must_use]
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// What the system said.
    #[must_use]
    pub fn io(&self) -> io::Error {
        self.errno.into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.operation {
            Operation::Stat => write!(f, "cannot access '{path}': {}", self.io()),
            Operation::OpenDirectory => {
                write!(f, "cannot read directory '{path}': {}", self.io())
            }
            Operation::ReadDirectory => write!(f, "cannot read all of '{path}': {}", self.io()),
            Operation::Loop => write!(f, "'{path}' contains itself"),
            Operation::Changed => write!(f, "'{path}' changed while it was read"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.errno)
    }
}
