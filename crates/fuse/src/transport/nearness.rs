//! On which CPU to answer.
//!
//! A caller of a short request sleeps until it is answered. If the reader runs on the caller's CPU
//! the two only switch; on another CPU each has to be woken across, which on virtual machines costs
//! five times the rest of a request (`docs/design/0005-wire-layer.md` has the figures). The scheduler
//! prefers the idle CPU, so a reader that answers one caller again and again moves to where that
//! caller runs, and stays there while that goes on and the caller is left there.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A caller is looked for after so many requests of its own in a row, and again after every
/// [`LOOK_EVERY`] more.
const RUN_MIN: u32 = 16;
const LOOK_EVERY: u32 = 64;

/// What a request of another caller, or one that carries many bytes, counts against staying; a short
/// one of the same caller makes up for one.
const STRIKE: u32 = 4;
const STRIKES_MAX: u32 = 48;

/// After a caller was found to have been moved away, which the scheduler does to it where another CPU
/// is idle, so many looks are left out; twice as many each time, up to the second number.
const LEFT_OUT_MIN: u32 = 4;
const LEFT_OUT_MAX: u32 = 256;

/// Copying so many bytes is better done beside the caller than in turn with it.
const SHORT_BYTES: u32 = 32 << 10;

/// Where one reading thread runs.
#[derive(Debug)]
pub(super) struct Nearness {
    /// Where it may run at all; none if that cannot be known or changed.
    everywhere: Option<CpuSet>,
    caller: u32,
    /// Requests of `caller` in a row.
    run: u32,
    strikes: u32,
    cpu: Option<usize>,
    /// Looks to leave out, and how many it were the last time.
    left_out: u32,
    last_left_out: u32,
}

/// The CPUs that the calling thread may run on; none if there is no choice.
pub(super) fn cpus() -> Option<CpuSet> {
    sched_getaffinity(None).ok().filter(|cpus| cpus.count() > 1)
}

impl Nearness {
    /// Of the calling thread, which may run on `cpus`. It may have been started by a thread that had
    /// moved, and then it runs where that one did.
    pub(super) fn new(cpus: Option<CpuSet>) -> Self {
        let everywhere = cpus.filter(|cpus| sched_setaffinity(None, cpus).is_ok());
        Self { everywhere, caller: 0, run: 0, strikes: 0, cpu: None, left_out: 0, last_left_out: 0 }
    }

    /// Whether this thread runs where its caller does, so that the caller needs the CPU to go on.
    pub(super) fn is_near(&self) -> bool {
        self.cpu.is_some()
    }

    /// A request of the thread `caller` (0: unknown) has come, of so many bytes in or out.
    pub(super) fn note(&mut self, caller: u32, bytes: u32) {
        if self.everywhere.is_none() {
            return;
        }
        if caller == self.caller && bytes <= SHORT_BYTES {
            self.strikes = self.strikes.saturating_sub(1);
            self.run = self.run.wrapping_add(1);
            if caller != 0 && self.run % LOOK_EVERY == RUN_MIN {
                self.follow(caller);
            }
            return;
        }
        self.caller = caller;
        self.run = 0;
        if self.is_near() {
            self.strikes += STRIKE;
            if self.strikes > STRIKES_MAX {
                self.leave();
            }
        }
    }

    /// Runs anywhere again.
    pub(super) fn leave(&mut self) {
        self.run = 0;
        self.strikes = 0;
        if self.cpu.take().is_some()
            && let Some(everywhere) = &self.everywhere
            && let Err(error) = sched_setaffinity(None, everywhere)
        {
            tracing::debug!(%error, "a reader stays on one CPU");
        }
    }

    /// Looking was in vain: the next looks are left out, more each time.
    fn leave_out(&mut self) {
        self.last_left_out = (2 * self.last_left_out).clamp(LEFT_OUT_MIN, LEFT_OUT_MAX);
        self.left_out = self.last_left_out;
    }

    fn follow(&mut self, caller: u32) {
        if self.left_out > 0 {
            self.left_out -= 1;
            return;
        }
        let Some(cpu) = cpu_of(caller) else {
            // Hidden from us (hidepid, another procfs), and it will be so the next time.
            self.leave_out();
            return self.leave();
        };
        if self.cpu.is_some_and(|own| own != cpu) {
            // It would be moved again.
            self.leave_out();
            return self.leave();
        }
        let is_allowed = self.everywhere.as_ref().is_some_and(|cpus| {
            // `is_set` has room for so many.
            cpu < CpuSet::MAX_CPU && cpus.is_set(cpu)
        });
        if self.cpu == Some(cpu) {
            self.last_left_out /= 2;
            return;
        }
        if !is_allowed {
            self.leave_out();
            return self.leave();
        }
        let mut only = CpuSet::new();
        only.set(cpu);
        match sched_setaffinity(None, &only) {
            Ok(()) => self.cpu = Some(cpu),
            Err(error) => {
                tracing::debug!(%error, cpu, "a reader cannot move to its caller's CPU");
                self.everywhere = None;
            }
        }
    }
}

/// The CPU that a thread ran on last: the 39th field of `/proc/TID/stat` (`proc_pid_stat(5)`).
fn cpu_of(thread: u32) -> Option<usize> {
    let stat = std::fs::read(format!("/proc/{thread}/stat")).ok()?;
    parse_cpu(&stat)
}

fn parse_cpu(stat: &[u8]) -> Option<usize> {
    // The second field, the program's name, may hold anything, closing brackets too.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    // The first of the rest is the third field.
    rest.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        for name in ["sh", "a b", ") 1 2 (", "\u{e4}"] {
            let stat = format!("7 ({name}) {}\n", fields.join(" "));
            assert_eq!(parse_cpu(stat.as_bytes()), Some(39), "{name}");
        }
        assert_eq!(parse_cpu(b""), None);
        assert_eq!(parse_cpu(b"7 (sh) S 1 2"), None);
        assert_eq!(parse_cpu(b"7 (sh"), None);
    }

    #[test]
    fn this_thread_runs_on_a_cpu_that_it_may_run_on() {
        let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let cpu = cpu_of(thread).expect("procfs is mounted");
        assert!(sched_getaffinity(None).unwrap().is_set(cpu));
    }

    #[test]
    fn a_reader_stays_near_one_caller_and_leaves_when_there_are_many() {
        let own = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let mut near = Nearness::new(cpus());
        if near.everywhere.is_none() {
            // One CPU: there is nowhere to go.
            return;
        }
        for _ in 0..=RUN_MIN {
            near.note(own, 100);
        }
        assert!(near.is_near());
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        for other in 0..=STRIKES_MAX {
            near.note(own + 1 + other % 2, 100);
        }
        assert!(!near.is_near());
        assert!(sched_getaffinity(None).unwrap().count() > 1);
        for _ in 0..=2 * RUN_MIN {
            near.note(own, SHORT_BYTES + 1);
        }
        assert!(!near.is_near(), "bytes are copied beside the caller");
        for _ in 0..=2 * RUN_MIN {
            near.note(0, 100);
        }
        assert!(!near.is_near(), "nobody to follow");
    }
}
