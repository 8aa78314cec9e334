//! Walks directory trees in parallel, and says what they occupy.
//!
//! [`Walk`] reads trees as fast as the kernel lists them: directories are opened relative to their
//! parents, metadata fetched only if they are wanted, and work passed between threads a directory
//! (or 64 KiB of a large one) at a time. What it finds goes to a [`Visitor`] per thread with
//! borrowed names, or comes from an iterator ([`Walk::entries`]). [`du`] counts what a tree
//! occupies, with GNU du's rules.
//!
//! ```
//! use fdu::du::Usage;
//!
//! let report = Usage::new(["src"]).measure();
//! assert_eq!(report.error_count, 0);
//! assert!(report.total.inodes > 10);
//! ```
//!
//! It needs a Unix. On Linux listings are read by `getdents64`; elsewhere by `readdir`. It does
//! not sort (listings come as the file system has them), does not watch, and does not change anything.
//! A tree that changes meanwhile is walked as it is found: what stays is seen exactly once, what
//! vanishes may be an [`Error`]. The design, with what was measured, is `docs/design/0006-walker.md`.

#![forbid(unsafe_code)]

#[cfg(feature = "cli")]
pub mod cli;
mod completion;
mod crew;
mod descriptors;
mod dir;
pub mod du;
mod entries;
mod error;
mod gate;
mod metadata;
mod os;
mod sync;
mod visitor;
mod walk;
mod worker;

pub use dir::{Dir, DirId, Entered, Entry};
pub use entries::{Entries, WalkEntry};
pub use error::{Error, Operation};
pub use metadata::{FileId, Kind, Metadata, Time};
pub use visitor::{Descend, Visitor};
pub use walk::{Devices, Follow, Need, Outcome, RootOrder, Statistics, Stop, Threads, Walk};
