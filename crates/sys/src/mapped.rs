//! Reading a file through memory: what `mmap(2)` costs can only be measured by doing it.

use std::fs::File;
use std::io;

/// Maps the first `len` bytes of a file, reads one byte of every page, and answers their sum, so
/// that the reads cannot be optimised away.
///
/// # Errors
///
/// What `mmap(2)` answers.
pub fn touch_pages(file: &File, len: usize) -> io::Result<u64> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    if len == 0 {
        return Ok(0);
    }
    // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
    let start =
        unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
    let mut sum = 0;
    for offset in (0..len).step_by(4096) {
        // SAFETY: `offset < len`, so the address lies in the mapping above, which is readable until
        // it is unmapped below. Another process may write the page meanwhile; a volatile read of a
        // byte is then either value. If the file was cut, the read raises SIGBUS, which ends the
        // benchmark that is the only caller.
        let byte = unsafe { start.cast::<u8>().wrapping_add(offset).read_volatile() };
        sum += u64::from(byte);
    }
    // SAFETY: `start` and `len` are those of the mapping above, and nothing borrows from it.
    unsafe { munmap(start, len) }?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_read_once() {
        let path = std::env::temp_dir().join(format!("librorum-mapped-{}", std::process::id()));
        std::fs::write(&path, [1_u8; 3 * 4096]).unwrap();
        assert_eq!(touch_pages(&File::open(&path).unwrap(), 3 * 4096).unwrap(), 3);
        std::fs::remove_file(&path).unwrap();
    }
}
