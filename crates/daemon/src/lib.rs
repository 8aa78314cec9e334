//! Serves volumes: one layer of operations ([`service`]), over frames, gRPC and mounts.
//!
//! What this crate does not do: it reads no arguments and prints nothing (`cli`).

#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod config;
pub mod control;
pub mod doctor;
pub mod grpc;
pub mod host;
pub mod http;
pub mod lbru;
pub mod logbook;
pub mod metrics;
pub mod mounts;
pub mod nodes;
pub mod otlp;
pub mod service;

use std::sync::{Mutex, MutexGuard, PoisonError};

use librorum_format::ErrorKind;
use librorum_rpc::Failure;

/// Locks a mutex whose holders do not leave halfway.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A failed system call, with what it was about.
#[expect(clippy::wildcard_enum_match_arm, reason = "the list belongs to std and grows")]
pub(crate) fn io_failure(what: &str, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::PermissionDenied => ErrorKind::NotPermitted,
        Io::ResourceBusy => ErrorKind::Busy,
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
        Io::FileTooLarge => ErrorKind::TooLarge,
        Io::InvalidInput => ErrorKind::InvalidInput,
        _ => ErrorKind::Unavailable,
    };
    Failure::file(kind, format!("{what}: {error}"))
}
