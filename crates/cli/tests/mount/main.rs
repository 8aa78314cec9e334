//! The mount, tested from outside: real programs on a real mount of the built binary.
//!
//! Everything here needs root, `/dev/fuse` and the tools that `./test` installs; what is missing
//! fails the test that needs it, nothing is skipped. Each test formats a volume of its own below
//! `/tmp` (or `LIBRORUM_TEST_DIR`), and ends by unmounting it and running `fsck --read-data` on it.
//! Tests assert results and counts, never times; a wait has a limit only so that a hang fails.
//!
//! Environment: `LIBRORUM_SEED` replays what a test drew by chance, `LIBRORUM_CRASH_ROUNDS` makes
//! the crash test longer, `LIBRORUM_TOOLS` says where `pjdfstest` and `fsx` are,
//! `LIBRORUM_POSTGRES=required` makes a missing PostgreSQL a failure.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "seeds and what was left out are told to the reader")]

mod harness;

mod attributes;
mod background;
mod command_line;
mod crash;
mod databases;
mod directories;
mod editing;
mod frozen_disk;
mod full_disk;
mod locks;
mod opens;
mod other_disks;
mod ranges;
mod requests;
mod same_tree;
mod suites;
mod tools;
mod unmounting;
