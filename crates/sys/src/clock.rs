//! Time.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use librorum_format::Timestamp;

/// The current time as the kernel stamps files with: the coarse clock, so that a time of ours
/// compares with a time that the disk below gave to a staging file.
#[must_use]
pub fn now() -> Timestamp {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Timestamp::new(time.tv_sec, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Time since an arbitrary start that never goes back.
#[must_use]
pub fn monotonic() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// The same as an instant, for deadlines of others.
#[must_use]
pub fn instant() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
    Instant::now()
}

/// Time that the calling thread has spent on a CPU.
#[must_use]
pub fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}

/// Waits.
pub fn sleep(duration: Duration) {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that waits")]
    std::thread::sleep(duration);
}
