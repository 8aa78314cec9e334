//! Bytes of a file that does not change, seen in place.

use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Where a mapping may begin on every machine: no page is larger.
const ALIGNMENT: u64 = 64 << 10;

/// A read-only mapping of a range of a file.
///
/// It is for ranges that nobody changes or cuts off while they are mapped, such as those of segments
/// that a daemon lends: its protocol promises that, and who breaks the promise is trusted with the bytes
/// themselves. The range is checked to be within the file when it is mapped.
pub struct View {
    start: NonNull<c_void>,
    // From the start of the first page.
    mapped: usize,
    skip: usize,
    len: usize,
}

// SAFETY: the mapping lives as long as the view, belongs to no thread and is only read.
unsafe impl Send for View {}
// SAFETY: see `Send`.
unsafe impl Sync for View {}

impl View {
    /// Maps `len` bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file is shorter; `InvalidInput` for no bytes; what `mmap(2)` answers.
    pub fn map(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let end = u64::try_from(len)
            .ok()
            .and_then(|len| offset.checked_add(len))
            .filter(|_| len > 0)
            .ok_or_else(invalid)?;
        if file.metadata()?.len() < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let skip = usize::try_from(offset % ALIGNMENT).map_err(io::Error::other)?;
        let mapped = skip.checked_add(len).ok_or_else(invalid)?;
        let from = offset - offset % ALIGNMENT;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let start = unsafe {
            mmap(std::ptr::null_mut(), mapped, ProtFlags::READ, MapFlags::SHARED, file, from)
        }?;
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, mapped, skip, len })
    }
}

impl Deref for View {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `skip + len` bytes are mapped from `start` on.
        let start = unsafe { self.start.cast::<u8>().add(self.skip) };
        // SAFETY: `len` bytes from here are mapped readable until `self` is dropped, lie within the file
        // as checked in `map`, and do not change: the maker of the file keeps to that, as the type's
        // documentation demands of it.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("View").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: `start` and `mapped` are those of the mapping made in `map`, and what borrows from it
        // borrows `self`.
        let answer = unsafe { munmap(self.start.as_ptr(), self.mapped) };
        debug_assert!(answer.is_ok(), "the mapping is ours: {answer:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_within_the_file_is_seen() {
        let path = std::env::temp_dir().join(format!("librorum-view-{}", std::process::id()));
        let bytes: Vec<u8> = (0..10_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        for (offset, len) in [(0, 10_000), (1, 5), (4095, 2), (4096, 4096), (9_999, 1)] {
            let from = usize::try_from(offset).unwrap();
            assert_eq!(View::map(&file, offset, len).unwrap()[..], bytes[from..from + len]);
        }
        assert!(View::map(&file, 9_999, 2).is_err());
        assert!(View::map(&file, 0, 0).is_err());
        assert!(View::map(&file, u64::MAX, 2).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
