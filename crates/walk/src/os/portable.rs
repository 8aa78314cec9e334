//! Listing a directory by `readdir`, for Unixes without `getdents64`.
//!
//! The whole directory is one listing: nobody else goes on reading it.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{Dir, DirEntry, FileType};
use rustix::io::Errno;

/// The C library brings its own.
#[derive(Debug, Default)]
pub(crate) struct Buffer {}

/// One record of a listing.
pub(crate) struct Listed {
    record: DirEntry,
}

impl Listed {
    pub(crate) fn name(&self) -> &CStr {
        self.record.file_name()
    }

    pub(crate) fn kind(&self) -> FileType {
        self.record.file_type()
    }

    pub(crate) fn inode(&self) -> u64 {
        self.record.ino()
    }
}

/// The records of a directory, or why it cannot be read.
pub(crate) struct Listing {
    dir: Result<Dir, Option<Errno>>,
}

impl Listing {
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        _buffer: &mut Buffer,
        _trusted: bool,
        _is_later: bool,
    ) -> Self {
        // Not `Dir::read_from`, which opens the directory by `.`: that takes permission to search it.
        let dir = rustix::io::fcntl_dupfd_cloexec(fd, 0).and_then(Dir::new);
        Self { dir: dir.map_err(Some) }
    }

    /// The next record, `.` and `..` included; `None` at the end of the directory.
    pub(crate) fn next(&mut self) -> Option<Result<Listed, Errno>> {
        match &mut self.dir {
            Ok(dir) => Some(dir.read()?.map(|record| Listed { record })),
            Err(errno) => errno.take().map(Err),
        }
    }

    /// Whether the next record needs a system call that another worker could make.
    pub(crate) fn is_drained(&self) -> bool {
        false
    }

    /// Whether another worker should go on reading.
    pub(crate) fn is_large(&self) -> bool {
        false
    }
}
