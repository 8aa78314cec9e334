//! How bytes went, and why.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;

use super::connection::lock;

/// How many uses are kept.
const KEPT: usize = 256;

/// A way for bytes, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// The client reads or writes the file itself, through a descriptor of the daemon's.
    Descriptor,
    /// Through memory that both have.
    Arena,
    /// In frames.
    Inline,
    /// In messages of gRPC.
    Grpc,
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Descriptor => "fd",
            Self::Arena => "arena",
            Self::Inline => "inline",
            Self::Grpc => "grpc",
        })
    }
}

/// How one operation moved its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportUse {
    /// Such as `READ`.
    pub operation: &'static str,
    /// Of which file.
    pub path: Vec<u8>,
    /// How. A file whose bytes went in several ways has one line for each.
    pub transport: Transport,
    /// How many bytes.
    pub bytes: u64,
    /// Why not in a faster way, if both sides did not simply agree on this one.
    pub demoted_because: Option<String>,
}

pub(super) struct Uses(Mutex<VecDeque<TransportUse>>);

impl Uses {
    pub(super) fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    pub(super) fn note(
        &self,
        operation: &'static str,
        path: &[u8],
        transport: Transport,
        bytes: u64,
        demoted_because: Option<String>,
    ) {
        let path = path.to_vec();
        let mut uses = lock(&self.0);
        if uses.len() == KEPT {
            uses.pop_front();
        }
        uses.push_back(TransportUse { operation, path, transport, bytes, demoted_because });
    }

    pub(super) fn all(&self) -> Vec<TransportUse> {
        lock(&self.0).iter().cloned().collect()
    }
}
