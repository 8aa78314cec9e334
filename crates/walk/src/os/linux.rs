//! Listing a directory by `getdents64`, one buffer at a time.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, RawDir, RawDirEntry};
use rustix::io::Errno;

/// Room for about 2,000 names. Larger ones gained nothing (the facts: 32 KiB to 1 MiB).
const BUFFER_BYTES: usize = 64 << 10;

/// Enough is in the buffer for a second worker to profit from the rest of the directory.
const LARGE_BYTES: usize = 32 << 10;

/// What a worker reads listings into.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
}

/// One record of a listing, where the kernel put it.
pub(crate) struct Listed<'l> {
    record: RawDirEntry<'l>,
}

impl Listed<'_> {
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

/// The records of a directory, from where its descriptor stands.
pub(crate) struct Listing<'b> {
    raw: RawDir<'b, BorrowedFd<'b>>,
    /// Of records given out since the buffer was last filled; 0 before the first.
    given_bytes: usize,
    /// Whether an earlier buffer was full of records already.
    is_later: bool,
    /// The largest offset there is means the end. A *short* buffer does not: the kernel also returns
    /// early when a signal, a debugger or the freezer wants the thread.
    at_end: bool,
    trusted: bool,
}

impl<'b> Listing<'b> {
    pub(crate) fn new(
        fd: BorrowedFd<'b>,
        buffer: &'b mut Buffer,
        trusted: bool,
        is_later: bool,
    ) -> Self {
        buffer.bytes.reserve(BUFFER_BYTES);
        let raw = RawDir::new(fd, buffer.bytes.spare_capacity_mut());
        Self { raw, given_bytes: 0, is_later, at_end: false, trusted }
    }

    /// The next record, `.` and `..` included; `None` at the end of the directory.
    pub(crate) fn next(&mut self) -> Option<Result<Listed<'_>, Errno>> {
        if self.raw.is_buffer_empty() {
            if self.at_end {
                return None;
            }
            self.given_bytes = 0;
        }
        let record = match self.raw.next()? {
            Ok(record) => record,
            Err(errno) => return Some(Err(errno)),
        };
        self.at_end = self.trusted && record.next_entry_cookie() == i64::MAX.unsigned_abs();
        // The fixed part of a record and the terminating zero.
        self.given_bytes += record.file_name().to_bytes().len() + 20;
        Some(Ok(Listed { record }))
    }

    /// Whether the next record needs a system call.
    pub(crate) fn is_drained(&self) -> bool {
        self.given_bytes > 0 && self.raw.is_buffer_empty()
    }

    /// Whether another worker should go on reading while this one handles the rest of the buffer.
    pub(crate) fn is_large(&self) -> bool {
        !self.at_end && (self.is_later || self.given_bytes >= LARGE_BYTES)
    }
}
