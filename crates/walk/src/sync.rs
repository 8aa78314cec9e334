//! What the two modules that `tests/interleavings.rs` explores take from the standard library: that
//! test compiles them with loom's versions in place of these.

pub(crate) use std::sync::atomic::AtomicUsize;
pub(crate) use std::sync::{Condvar, Mutex};
