//! What the issue promises of all ways to a volume at once: one trace of operations has the same answers
//! over each of them and on a mount; what a client does is on the mount, and the other way round; neither
//! side's death leaves anything torn or lying about; and a gigabyte passes through little memory.
//!
//! Processes that are to be killed, stopped or measured are this program, started again: see `process`.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::cast_possible_truncation, reason = "the numbers of tests are small")]
#![expect(clippy::print_stderr, reason = "seeds and what was measured")]

#[path = "../lbru/harness.rs"]
mod harness;

mod coherence;
mod killed;
mod large;
mod operation;
mod process;
mod stopped;
mod trace;
mod ways;
mod world;
