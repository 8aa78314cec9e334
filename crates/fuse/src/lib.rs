//! The kernel's FUSE protocol on one side, the file system on the other.
//!
//! [`transport`] is what depends on the `fuser` crate: it turns requests into calls of
//! [`transport::Handler`] and answers them, and knows nothing of volumes. The mount of a volume is
//! one handler ([`VolumeHandler`]); the simulated disk of `sim` is the other.

#![forbid(unsafe_code)]

mod errno;
pub mod transport;
mod volume;

pub use errno::errno;
pub use volume::{VolumeHandler, VolumeNotifier};
