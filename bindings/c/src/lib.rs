//! The client for programs in C, and whatever calls C.
//!
//! `include/librorum.h` is written from these sources by cbindgen; a test compares. What holds for all
//! functions:
//!
//! - Objects are numbers, not pointers. A number is never given out twice in a process, so one that was
//!   closed, belongs to another kind of object, or was made up is answered with `LB_INVALID_ARGUMENT` and
//!   touches no memory.
//! - What is asked for is checked before anything is done. A panic ends at the border, as `LB_INTERNAL`.
//! - Contents go to and come from memory of the caller, or are seen in place.
//!
//! What this crate does not do: it decides nothing. `librorum-rpc` is the client. It is full of `unsafe`,
//! as one side of its border believes pointers; all of them go through `pointer`.

#![expect(
    clippy::missing_safety_doc,
    reason = "the rules for pointers are the same everywhere: they open the header"
)]

mod client;
mod error;
mod file;
mod handles;
mod listing;
mod pointer;
mod types;
mod upload;

pub use client::*;
pub use error::*;
pub use file::*;
pub use listing::*;
pub use types::*;
pub use upload::*;
