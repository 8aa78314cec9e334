//! gRPC from outside: a real volume, real sockets, the stock client of tonic; and clients in other
//! languages.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_sign_loss,
    clippy::wildcard_enum_match_arm,
    reason = "tests: what goes wrong should stop them, and their clock is the real one"
)]

mod clients;
mod harness;
mod legacy;
mod limits;
mod security;
mod v1;
