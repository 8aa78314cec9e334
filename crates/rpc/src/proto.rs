//! The messages of `proto/`, generated, and the services over gRPC.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    clippy::missing_errors_doc,
    clippy::semicolon_if_nothing_returned,
    clippy::use_self,
    clippy::wildcard_enum_match_arm,
    clippy::needless_pass_by_value,
    clippy::uninlined_format_args,
    reason = "generated code; the schema has the words"
)]

/// The files as clients of the first Librorum know them.
pub mod file {
    include!(concat!(env!("OUT_DIR"), "/file.rs"));
}

/// The nodes as clients of the first Librorum know them.
pub mod node {
    include!(concat!(env!("OUT_DIR"), "/node.rs"));
}

/// The log as clients of the first Librorum know it.
pub mod log {
    include!(concat!(env!("OUT_DIR"), "/log.rs"));
}

/// Everything else.
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/librorum.v1.rs"));
}

/// The schema itself, as an encoded `FileDescriptorSet`: for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
