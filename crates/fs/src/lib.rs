//! File-system semantics over `store` (bytes) and `meta` (names): handles, staging, sealing, the
//! order in which bytes and names become durable, recovery, fsck.
//!
//! The two crates below never see each other; only this one knows that bytes are durable before
//! the transaction that names them. What is promised is in `docs/semantics.md`; the content state
//! machine and the lock order are on top of `node.rs`.
//!
//! Two sides use a volume: the kernel, through [`Fs`] itself, with references and handles that are
//! counted; and everybody else, through [`Outside`], which tells the kernel what they change.
//!
//! What this crate does not do: it knows no errno and no FUSE, checks no permissions (the kernel
//! does, on a mount), and starts no thread that outlives [`Fs::shut_down`].

#![forbid(unsafe_code)]

mod attr;
mod check;
mod error;
mod fs;
mod io;
mod lent;
mod namespace;
mod node;
mod notify;
mod open;
mod outside;
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
pub use fs::{Fs, FsOptions};
pub use io::Wait;
pub use librorum_store::{DiskOrder, VerifyPolicy};
pub use node::Backing;
pub use notify::KernelNotifier;
pub use open::{OpenFlags, Opened, ServedBy};
pub use outside::{
    AttributeChange, ChunkRun, Outside, Piece, PieceSource, PublishOptions, ReadHandle, TreeUsage,
    UPLOAD_BLOCK_BYTES, Upload, UploadInfo,
};
pub use seek::Seek;
pub use status::{OutsideCounts, Progress, Status};
pub use volume::{FormatOptions, Volume};
