//! What the kernel says of this process. A figure that cannot be read is zero.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use librorum_sys::clock;
use rustix::time::{ClockId, clock_gettime};

use super::exposition::Exposition;

/// Bytes of memory that are resident.
#[must_use]
pub fn resident_bytes() -> u64 {
    // "VmRSS:     1234 kB"
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Descriptors that are open.
#[must_use]
pub fn open_files() -> u64 {
    // The one that reads the folder is not counted.
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| (entries.count() as u64).max(1) - 1)
}

/// How many descriptors may be open; 0: as many as one likes.
#[must_use]
pub fn open_files_max() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(0)
}

/// Time that this process has spent on CPUs.
#[must_use]
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}

/// Percent of one CPU since somebody last asked; the first time, since the process began to count time.
#[must_use]
pub fn cpu_percent() -> f64 {
    static LAST: Mutex<(Duration, Duration)> = Mutex::new((Duration::ZERO, Duration::ZERO));
    let now = (clock::monotonic(), cpu_time());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let wall = now.0.saturating_sub(last.0).as_secs_f64();
    let busy = now.1.saturating_sub(last.1).as_secs_f64();
    *last = now;
    if wall > 0.0 { busy / wall * 100.0 } else { 0.0 }
}

pub(super) fn expose(out: &mut Exposition) {
    out.gauge("process_resident_memory_bytes", "Resident memory.", resident_bytes());
    out.gauge("process_open_fds", "Open file descriptors.", open_files());
    out.gauge("process_max_fds", "How many file descriptors may be open.", open_files_max());
    out.sample(
        "process_cpu_seconds_total",
        "Time spent on CPUs.",
        super::Kind::Counter,
        &[],
        super::Value::Real(cpu_time().as_secs_f64()),
    );
}
