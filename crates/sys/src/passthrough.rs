//! The two calls of `/dev/fuse` that are neither a read nor a write: a file that the kernel may read
//! and write by itself is registered and taken back (`FUSE_DEV_IOC_BACKING_OPEN` and
//! `FUSE_DEV_IOC_BACKING_CLOSE` of `<linux/fuse.h>`).

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Setter};

/// The letter of FUSE's own ioctls.
const FUSE_DEV_IOC_MAGIC: u8 = 229;

const BACKING_OPEN: Opcode = ioctl::opcode::write::<BackingMap>(FUSE_DEV_IOC_MAGIC, 1);
const BACKING_CLOSE: Opcode = ioctl::opcode::write::<u32>(FUSE_DEV_IOC_MAGIC, 2);

/// `struct fuse_backing_map`.
#[repr(C)]
#[derive(Debug)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `FUSE_DEV_IOC_BACKING_OPEN`, whose answer is what it returns.
struct BackingOpen(BackingMap);

// SAFETY: the opcode is that of a call that reads a `struct fuse_backing_map`, which `BackingMap` is
// laid out as and `as_ptr` points to; the kernel writes nothing back.
unsafe impl Ioctl for BackingOpen {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        BACKING_OPEN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _extract: *mut c_void) -> io::Result<i32> {
        Ok(out)
    }
}

/// Registers `file` with the connection behind `device`. Answers its id, above zero.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN` or where passthrough was not negotiated, `EBADF`, `ELOOP` if the
/// file lies on too many file systems on top of each other.
pub fn register_backing(device: BorrowedFd<'_>, file: impl AsFd) -> io::Result<i32> {
    let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: `BackingOpen` describes its opcode truly, see there.
    unsafe { ioctl::ioctl(device, BackingOpen(map)) }
}

/// Takes back what [`register_backing`] answered. Files that are open keep it until they are closed.
///
/// # Errors
///
/// `ENOENT` for an id that is not registered.
pub fn unregister_backing(device: BorrowedFd<'_>, id: i32) -> io::Result<()> {
    // SAFETY: the call reads one 32-bit number.
    let call = unsafe { Setter::<BACKING_CLOSE, i32>::new(id) };
    // SAFETY: `Setter` was given the type that the opcode says.
    unsafe { ioctl::ioctl(device, call) }
}
