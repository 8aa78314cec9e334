//! On which CPU to answer.
//!
//! A client that waits for one small answer sleeps meanwhile. If the connection's thread runs on the same
//! CPU the two only switch; on another one each has to be woken across, which on virtual machines costs
//! more than the rest of the request (40 of 48 µs were measured, and for FUSE the same: design 0005). The
//! scheduler prefers the idle CPU, so clients say where they wait, and the thread moves there while one
//! small request comes after the other. Whoever sends many at a time is better served beside.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Requests in a row that come alone and from the same CPU before the thread moves there.
const RUN_MIN: u32 = 16;

/// Requests that come in company before it goes where it likes again.
const STRIKES_MAX: u32 = 8;

/// Where a connection's thread runs. Of that thread only.
#[derive(Debug, Default)]
pub(super) struct Nearness {
    /// Where it may run at all; asked when it first moves.
    everywhere: Option<CpuSet>,
    /// What clients said last, and how often in a row.
    hint: u32,
    run: u32,
    strikes: u32,
    /// The hint that it followed.
    near: u32,
}

impl Nearness {
    /// Notes a request: the hint of one that came alone, 0 for any other.
    pub(super) fn note(&mut self, hint: u32) {
        if hint == 0 {
            self.run = 0;
            if self.near != 0 {
                self.strikes += 1;
                if self.strikes >= STRIKES_MAX {
                    self.leave();
                }
            }
            return;
        }
        self.strikes = 0;
        if hint == self.hint {
            self.run = self.run.saturating_add(1);
        } else {
            (self.hint, self.run) = (hint, 1);
        }
        if self.run == RUN_MIN && self.near != hint {
            self.follow(hint);
        }
    }

    /// Whether the thread runs where its client waits, so that the client needs the CPU to go on.
    pub(super) fn is_near(&self) -> bool {
        self.near != 0
    }

    fn follow(&mut self, hint: u32) {
        if self.everywhere.is_none() {
            self.everywhere = sched_getaffinity(None).ok();
        }
        let Some(everywhere) = &self.everywhere else { return };
        let Ok(cpu) = usize::try_from(hint - 1) else { return };
        // A peer says what it likes; only where this thread may run counts.
        if cpu >= CpuSet::MAX_CPU || !everywhere.is_set(cpu) {
            return;
        }
        let mut there = CpuSet::new();
        there.set(cpu);
        if sched_setaffinity(None, &there).is_ok() {
            self.near = hint;
        }
    }

    fn leave(&mut self) {
        if let Some(everywhere) = &self.everywhere
            && sched_setaffinity(None, everywhere).is_ok()
        {
            self.near = 0;
            self.strikes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_follows_a_lone_caller_and_leaves_a_busy_one() {
        let before = sched_getaffinity(None).unwrap();
        let Some(cpu) = (0..CpuSet::MAX_CPU).find(|&cpu| before.is_set(cpu)) else { return };
        let hint = u32::try_from(cpu).unwrap() + 1;
        let mut nearness = Nearness::default();
        for _ in 0..RUN_MIN {
            nearness.note(hint);
        }
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        for _ in 0..STRIKES_MAX {
            nearness.note(0);
        }
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }

    #[test]
    fn a_cpu_that_is_none_is_not_followed() {
        let before = sched_getaffinity(None).unwrap();
        let mut nearness = Nearness::default();
        for _ in 0..2 * RUN_MIN {
            nearness.note(u32::MAX);
        }
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
