//! Chunks and segments on local disk: cutting and hashing, sealing without copying, packing,
//! reading with verification, the dedup index, scrub.
//!
//! What always holds (numbered and checkable in `docs/format-store.md`):
//!
//! - A segment id is given out once, ever. Bytes behind a sealed id never change, so whatever
//!   outlives a segment (an index entry, a cached handle) can only miss, never point at others'
//!   bytes.
//! - A segment's bytes are durable before its chunk table, and both before the function that made
//!   them returns; only then may the caller's metadata name them.
//! - The chunk table lies beside the bytes, never in them: a passthrough reader must meet the end
//!   of the file where the file ends.
//! - The dedup index is advice. Losing it costs duplicate bytes, never data.
//!
//! What this crate does not do: it never decides which segments are live (only metadata knows), it
//! reaches no network, and it never retries a failed write or sync.

#![forbid(unsafe_code)]

mod cache;
mod chunker;
mod cut;
mod encode;
mod error;
mod ids;
mod index;
mod layout;
mod read;
mod recycle;
mod scrub;
mod seal;
mod store;
#[cfg(test)]
mod tests;
mod verified;

pub use chunker::Chunk;
pub use error::{Corruption, StoreError};
pub use layout::{DiskOrder, Segments};
pub use scrub::{Damage, Usage};
pub use store::{Store, StoreOptions, VerifyPolicy};
