//! Whether anybody else has a file open, or mapped, or could still write to it.
//!
//! A mapping outlives the descriptor it was made from, and through FUSE passthrough it is one of the
//! file below, so nobody tells us when it ends. The kernel knows: it grants a write lease only on a
//! file that nobody else has open, and a mapping counts as open (`fcntl(2)`, `F_SETLEASE`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `F_SETSIG` of `<asm-generic/fcntl.h>`, which libc leaves out.
const F_SETSIG: i32 = 10;

fn fcntl(file: &File, command: i32, argument: i32) -> io::Result<()> {
    // SAFETY: the commands below take a number and touch no memory of ours; the descriptor is open
    // for as long as `file` is borrowed.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether `file` is the only open description of its file, with no mapping left of any other. Costs
/// three system calls. Who opens the file at the same time waits for these to end.
///
/// # Errors
///
/// What `fcntl(2)` answers: `EACCES` on a file of another user without `CAP_LEASE`, `EINVAL` on a
/// file system without leases or where `/proc/sys/fs/leases-enable` is 0.
pub fn is_sole_opener(file: &File) -> io::Result<bool> {
    // Who opens the file meanwhile has the holder of the lease told, by a signal that would end it.
    // This one is ignored unless somebody wants it.
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    match fcntl(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => {
            fcntl(file, libc::F_SETLEASE, libc::F_UNLCK)?;
            Ok(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether nobody can write to the file of `reader`, a description that is open for reading only:
/// none is open for writing anywhere, writable mappings and descriptors on their way through a socket
/// included. The kernel grants a read lease on no other file. A description of the caller's own that
/// is open for writing counts, whatever process has a copy of its descriptor.
///
/// # Errors
///
/// As [`is_sole_opener`].
pub fn has_no_writer(reader: &File) -> io::Result<bool> {
    fcntl(reader, F_SETSIG, libc::SIGURG)?;
    match fcntl(reader, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => {
            fcntl(reader, libc::F_SETLEASE, libc::F_UNLCK)?;
            Ok(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_counts_for_as_long_as_its_description_or_mapping_lasts() {
        use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
        let path = std::env::temp_dir().join(format!("librorum-writer-{}", std::process::id()));
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let writer = options.open(&path).unwrap();
        writer.set_len(4096).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!has_no_writer(&reader).unwrap());
        let copy = writer.try_clone().unwrap();
        drop(writer);
        assert!(!has_no_writer(&reader).unwrap());
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice, which nobody touches.
        let map = unsafe {
            mmap(std::ptr::null_mut(), 4096, protection, MapFlags::SHARED, &copy, 0).unwrap()
        };
        drop(copy);
        assert!(!has_no_writer(&reader).unwrap());
        // SAFETY: it is the mapping above, and nothing borrows from it.
        unsafe { munmap(map, 4096).unwrap() };
        let other_reader = File::open(&path).unwrap();
        assert!(has_no_writer(&reader).unwrap());
        drop(other_reader);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn another_descriptor_counts_and_a_copy_of_this_one_does_not() {
        let path = std::env::temp_dir().join(format!("librorum-lease-{}", std::process::id()));
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).open(&path).unwrap()
        };
        let file = open();
        assert!(is_sole_opener(&file).unwrap());
        let copy = file.try_clone().unwrap();
        assert!(is_sole_opener(&file).unwrap());
        drop(copy);
        let reader = File::open(&path).unwrap();
        assert!(!is_sole_opener(&file).unwrap());
        drop(reader);
        let writer = open();
        assert!(!is_sole_opener(&file).unwrap());
        drop(writer);
        assert!(is_sole_opener(&file).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
