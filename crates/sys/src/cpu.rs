//! Which CPU a thread runs on.

/// The number of the CPU that the caller is on; it may be on another by the time it looks. None where
/// the system does not say.
///
/// It is asked of the C library: rustix looks for the kernel's code in the process by itself, and crashes
/// where that is announced but not mapped, as under valgrind. The client is a library of programs that
/// are run so.
#[must_use]
pub fn current() -> Option<u32> {
    // SAFETY: it takes nothing and touches no memory of ours.
    let number = unsafe { libc::sched_getcpu() };
    u32::try_from(number).ok()
}
