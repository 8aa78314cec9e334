//! What a daemon and its clients say to each other: control messages, frames, failures; and the
//! client, which takes the fastest way to the bytes that it is given.
//!
//! The schema is `proto/`, the frames are `docs/protocol.md`. What this crate does not do: it knows no
//! volume. `daemon` has the servers.
//!
//! ```no_run
//! use librorum_rpc::client::{Client, ClientOptions, Target};
//! use librorum_rpc::proto::v1;
//!
//! let target = Target::Socket("/run/librorum/socket".into());
//! let client = Client::connect(target, ClientOptions::default())?;
//!
//! // Small operations take and return the messages of the schema.
//! let everything = v1::ListRequest { recursive: true, ..v1::ListRequest::default() };
//! for entry in client.entries(everything) {
//!     println!("{}", entry?.path.escape_ascii());
//! }
//!
//! // Contents come into memory that is there already, by the fastest way that both sides allow.
//! let file = client.open("", b"letters/a")?;
//! let mut beginning = [0; 4096];
//! let len = file.read_into(0, &mut beginning)?;
//! println!("{len} bytes");
//! drop(file);
//! for used in client.transports() {
//!     println!("{} by {}: {:?}", used.operation, used.transport, used.demoted_because);
//! }
//! # Ok::<(), librorum_rpc::Failure>(())
//! ```

pub mod buffer;
pub mod client;
pub mod failure;
pub mod frame;
pub mod proto;

pub use failure::{Failure, Reason};
