//! The commands of clients and of the daemon: the real program, real volumes, real processes.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod daemon;
mod kills;
mod same;
mod setup;
