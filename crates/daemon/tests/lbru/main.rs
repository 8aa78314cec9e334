//! The server of frames, from outside: what clients may rely on, and what they cannot break.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod agreeing;
mod bytes;
mod harness;
mod hostile;
mod keys;
mod places;
mod requests;
