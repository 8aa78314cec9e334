//! Memory that two processes share, cut into slots.
//!
//! One side makes it, of a fixed and sealed size, and hands the descriptor over. What lies in a slot
//! may change at any time under whoever looks at it, so no reference to it is ever formed: bytes are
//! copied out, copied in, or moved between a slot and a file by the kernel. Who may use which slot
//! when is agreed elsewhere; to break that costs the bytes of a slot and nothing else.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, SealFlags, fallocate, fchmod, fcntl_add_seals,
    fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// What holds an arena's size for good, so that nobody can cut it under the other side's mapping.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Slots of shared memory.
#[derive(Debug)]
pub struct Arena {
    start: NonNull<c_void>,
    slot_bytes: usize,
    len: usize,
    // Threads of this process must not copy to one slot at a time: that would be a data race by the
    // rules of the language, where another process doing it is the kernel's business.
    slots: Box<[Mutex<()>]>,
    file: OwnedFd,
}

// SAFETY: `start` is a mapping that lives as long as the arena and belongs to no thread; every use of
// it holds the lock of its slot.
unsafe impl Send for Arena {}
// SAFETY: see `Send`.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes an arena.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a size of zero or beyond the address space; what the kernel answers to
    /// `memfd_create(2)`, `fallocate(2)`, `fcntl(2)` and `mmap(2)`, such as that memory is short.
    pub fn create(slot_bytes: u32, slot_count: u32) -> io::Result<Self> {
        let (slot_bytes, len) = sizes(slot_bytes, slot_count)?;
        let bytes = u64::try_from(len).map_err(io::Error::other)?;
        let file = memfd_create("librorum-arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        // A memfd is 0777 otherwise: any user who is shown it could open it anew through /proc.
        fchmod(&file, Mode::RUSR | Mode::WUSR)?;
        ftruncate(&file, bytes)?;
        // Memory that lacks later would be a SIGBUS; now it is an error.
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        fcntl_add_seals(&file, SEALS)?;
        Self::map(file, slot_bytes, len, slot_count)
    }

    /// Maps an arena that another process made.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is not sealed or not of that size: its maker could then cut it under this
    /// process.
    pub fn open(file: OwnedFd, slot_bytes: u32, slot_count: u32) -> io::Result<Self> {
        let (slot_bytes, len) = sizes(slot_bytes, slot_count)?;
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let seals = match fcntl_get_seals(&file) {
            Ok(seals) => seals,
            Err(rustix::io::Errno::INVAL) => return Err(invalid("the arena cannot be sealed")),
            Err(error) => return Err(error.into()),
        };
        if !seals.contains(SEALS) {
            return Err(invalid("the arena is not sealed"));
        }
        if usize::try_from(fstat(&file)?.st_size).ok() != Some(len) {
            return Err(invalid("the arena has another size than was said"));
        }
        Self::map(file, slot_bytes, len, slot_count)
    }

    fn map(file: OwnedFd, slot_bytes: usize, len: usize, slot_count: u32) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let start =
            unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        let slots = (0..slot_count).map(|_| Mutex::new(())).collect();
        Ok(Self { start, slot_bytes, len, slots, file })
    }

    /// What to hand to the other side.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How much a slot holds.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// How many slots there are.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Where `len` bytes at the start of a slot are, and the right to use them.
    fn slot(&self, slot: u32, len: usize) -> io::Result<(NonNull<u8>, MutexGuard<'_, ()>)> {
        let index = usize::try_from(slot).map_err(io::Error::other)?;
        let lock = self.slots.get(index).filter(|_| len <= self.slot_bytes).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the arena has no such slot or length")
        })?;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `index` is below the number of slots, and `slot_bytes` times that number is the
        // length of the mapping that starts here.
        let start = unsafe { self.start.cast::<u8>().add(index * self.slot_bytes) };
        Ok((start, guard))
    }

    /// Reads from a file into a slot until `len` bytes are there or the file ends, and answers how
    /// many there are.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a slot or length that the arena does not have; what `pread(2)` answers.
    pub fn read_from(
        &self,
        slot: u32,
        file: &File,
        file_offset: u64,
        len: usize,
    ) -> io::Result<usize> {
        let (start, _guard) = self.slot(slot, len)?;
        let mut done = 0;
        while done < len {
            let offset = position(file_offset, done)?;
            // SAFETY: the slot has `len` bytes from `start`, of which `done < len` are behind this
            // address.
            let at = unsafe { start.add(done) };
            // SAFETY: the kernel writes at most `len - done` bytes there, which are mapped writable
            // for as long as `self` lives; no reference to them exists anywhere.
            let answer =
                unsafe { libc::pread(file.as_raw_fd(), at.as_ptr().cast(), len - done, offset) };
            match usize::try_from(answer) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(_) => retry_interrupted()?,
            }
        }
        Ok(done)
    }

    /// Writes the first `len` bytes of a slot to a file.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a slot or length that the arena does not have; what `pwrite(2)` answers.
    pub fn write_to(&self, slot: u32, len: usize, file: &File, file_offset: u64) -> io::Result<()> {
        let (start, _guard) = self.slot(slot, len)?;
        let mut done = 0;
        while done < len {
            let offset = position(file_offset, done)?;
            // SAFETY: as in `read_from`.
            let at = unsafe { start.add(done) };
            // SAFETY: the kernel reads at most `len - done` bytes there, which stay mapped for as
            // long as `self` lives. What the other side changes meanwhile is written as it is.
            let answer =
                unsafe { libc::pwrite(file.as_raw_fd(), at.as_ptr().cast(), len - done, offset) };
            match usize::try_from(answer) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(_) => retry_interrupted()?,
            }
        }
        Ok(())
    }

    /// Copies bytes to the start of a slot.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a slot that the arena does not have, or more bytes than it holds.
    pub fn copy_in(&self, slot: u32, bytes: &[u8]) -> io::Result<()> {
        let (start, _guard) = self.slot(slot, bytes.len())?;
        // SAFETY: `slot` has checked the length, the mapping is no allocation that `bytes` could lie
        // in, and the lock keeps other threads from the slot.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies bytes from the start of a slot.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a slot that the arena does not have, or more bytes than it holds.
    pub fn copy_out(&self, slot: u32, bytes: &mut [u8]) -> io::Result<()> {
        let (start, _guard) = self.slot(slot, bytes.len())?;
        // SAFETY: as in `copy_in`. If the other side writes meanwhile, some of the bytes are old and
        // some new; every byte is a valid `u8`.
        unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are those of the mapping made in `map`, and nothing borrows from
        // it: every use ended with the borrow of `self`.
        let answer = unsafe { munmap(self.start.as_ptr(), self.len) };
        debug_assert!(answer.is_ok(), "the mapping is ours: {answer:?}");
    }
}

fn sizes(slot_bytes: u32, slot_count: u32) -> io::Result<(usize, usize)> {
    let slot = usize::try_from(slot_bytes).map_err(io::Error::other)?;
    let count = usize::try_from(slot_count).map_err(io::Error::other)?;
    match slot.checked_mul(count) {
        Some(len) if len > 0 && isize::try_from(len).is_ok() => Ok((slot, len)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "an arena of that size cannot be")),
    }
}

fn position(file_offset: u64, done: usize) -> io::Result<i64> {
    u64::try_from(done)
        .ok()
        .and_then(|done| file_offset.checked_add(done))
        .and_then(|offset| i64::try_from(offset).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of all files"))
}

/// The error of the call before, unless a signal interrupted it.
fn retry_interrupted() -> io::Result<()> {
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    #[test]
    fn both_sides_see_the_same_slots() {
        let ours = Arena::create(4096, 3).unwrap();
        let theirs = Arena::open(ours.descriptor().try_clone_to_owned().unwrap(), 4096, 3).unwrap();
        ours.copy_in(2, b"hello").unwrap();
        let mut bytes = [0; 5];
        theirs.copy_out(2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        theirs.copy_out(1, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 5]);
        assert!(ours.copy_in(3, b"x").is_err());
        assert!(ours.copy_in(0, &[0; 4097]).is_err());
    }

    #[test]
    fn files_go_in_and_out() {
        let path = std::env::temp_dir().join(format!("librorum-arena-{}", std::process::id()));
        let mut options = File::options();
        let mut file =
            options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all(b"0123456789").unwrap();
        let arena = Arena::create(4096, 1).unwrap();
        assert_eq!(arena.read_from(0, &file, 4, 100).unwrap(), 6);
        arena.write_to(0, 6, &file, 10).unwrap();
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"0123456789456789");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_arena_that_its_maker_could_cut_is_refused() {
        let unsealed = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&unsealed, 4096).unwrap();
        assert!(Arena::open(unsealed, 4096, 1).is_err());
        let sealed = Arena::create(4096, 1).unwrap();
        let descriptor = sealed.descriptor().try_clone_to_owned().unwrap();
        assert!(Arena::open(descriptor, 4096, 2).is_err());
        let pipe = File::open("/dev/null").unwrap();
        assert!(Arena::open(pipe.into(), 4096, 1).is_err());
        assert!(Arena::create(0, 1).is_err());
    }
}
