//! File-system semantics over `store` (bytes) and `meta` (names): handles, staging, sealing, the
//! order in which bytes and names become durable, recovery, fsck.
//!
//! The two crates below never see each other; only this one knows that bytes are durable before
//! the transaction that names them. What is promised is in `docs/semantics.md`; the content state
//! machine and the lock order are on top of `node.rs`.
//!
//! What this crate does not do: it knows no errno and no FUSE, checks no permissions (the kernel
//! does, on a mount), and starts no thread that outlives [`Fs::shut_down`].

#![forbid(unsafe_code)]

mod attr;
mod check;
mod error;
mod fs;
mod io;
mod namespace;
mod node;
mod open;
mod overlay;
mod pool;
mod ranges;
mod reclaim;
mod seal;
mod sealer;
mod seek;
mod status;
mod truncate;
mod volume;

pub use attr::{Attributes, TimeChange};
pub use check::{CheckOptions, Finding};
pub use error::{FsError, Result};
pub use fs::{Fs, FsOptions, InvalidateAttributes};
pub use io::Wait;
pub use librorum_store::{DiskOrder, VerifyPolicy};
pub use node::Backing;
pub use open::{OpenFlags, Opened, ServedBy};
pub use seek::Seek;
pub use status::{Progress, Status};
pub use volume::{FormatOptions, Volume};
