//! The outside world: clock, entropy, the lock that says who holds a volume, process limits.
//!
//! Time and randomness are read here and nowhere else (`clippy.toml` enforces it), so that what
//! depends on them can be found. Files are reached through rustix and std directly: both are safe
//! and thin, and the simulated disk of `sim` sits below the system calls
//! (`docs/design/0002-simulated-disk.md`), not behind a trait.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod arena;
pub mod clock;
pub mod cpu;
pub mod entropy;
pub mod inherited;
pub mod lease;
pub mod limits;
mod lock;
pub mod mapped;
pub mod passthrough;
pub mod socket;
pub mod view;

pub use lock::{Holder, LockError, VolumeLock};
