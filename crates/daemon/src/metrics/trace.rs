//! The last operations, for who wants to see what the daemon does.
//!
//! A ring of slots that are there from the beginning. A writer takes the next number and with it a
//! slot; it never waits: if a reader copies that very slot, the operation is left out of the trace and
//! counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, TryLockError};

use bytes::Bytes;
use librorum_rpc::proto::v1;
use librorum_sys::clock;

use super::{Operation, Transport};

/// Operations that are kept.
pub(super) const SLOT_COUNT: usize = 4_096;
/// So much of a path is kept.
pub const PATH_BYTES_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Ring {
    slots: Box<[Mutex<Slot>]>,
    /// The number of the next operation; the first is 1, so that "after 0" is all of them.
    next: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Clone, Debug)]
struct Slot {
    /// 0: never written.
    sequence: u64,
    started_unix_ms: i64,
    duration_ns: u64,
    name: &'static str,
    transport: Transport,
    demoted_because: &'static str,
    bytes: u64,
    code: u32,
    uid: u32,
    connection: u64,
    trace_id: u64,
    path_len: usize,
    path: [u8; PATH_BYTES_MAX],
}

const EMPTY: Slot = Slot {
    sequence: 0,
    started_unix_ms: 0,
    duration_ns: 0,
    name: "",
    transport: Transport::Embedded,
    demoted_because: "",
    bytes: 0,
    code: 0,
    uid: 0,
    connection: 0,
    trace_id: 0,
    path_len: 0,
    path: [0; PATH_BYTES_MAX],
};

/// When something began that ends now.
pub(super) fn started_unix_ns(took_ns: u64) -> i64 {
    let now = clock::now();
    let now_ns = now.secs.saturating_mul(1_000_000_000).saturating_add(i64::from(now.nanos));
    now_ns.saturating_sub(i64::try_from(took_ns).unwrap_or(i64::MAX))
}

impl Ring {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOT_COUNT).map(|_| Mutex::new(EMPTY)).collect(),
            next: AtomicU64::new(1),
            dropped: AtomicU64::new(0),
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    pub(super) fn record(&self, operation: &Operation<'_>, took_ns: u64) {
        let sequence = self.next.fetch_add(1, Relaxed);
        let index = usize::try_from(sequence % SLOT_COUNT as u64).unwrap_or(0);
        let mut slot = match self.slots[index].try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.dropped.fetch_add(1, Relaxed);
                return;
            }
        };
        // A writer that slept since it took its number must not overwrite a newer operation.
        if slot.sequence > sequence {
            return;
        }
        let path = &operation.path[..operation.path.len().min(PATH_BYTES_MAX)];
        slot.sequence = sequence;
        slot.started_unix_ms = started_unix_ns(took_ns) / 1_000_000;
        slot.duration_ns = took_ns;
        slot.name = operation.name;
        slot.transport = operation.transport;
        slot.demoted_because = operation.demoted_because.unwrap_or("");
        slot.bytes = operation.bytes;
        slot.code = operation.code;
        slot.uid = operation.uid;
        slot.connection = operation.connection;
        slot.trace_id = operation.trace_id;
        slot.path_len = path.len();
        slot.path[..path.len()].copy_from_slice(path);
    }

    /// Those with a higher number than `after`, the newest `limit` of them (0: all), oldest first.
    pub(super) fn newest(&self, after: u64, limit: u32) -> Vec<v1::TracedOperation> {
        let mut found: Vec<Slot> = self
            .slots
            .iter()
            .map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .filter(|slot| slot.sequence > after)
            .collect();
        found.sort_by_key(|slot| slot.sequence);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let skip = if limit == 0 { 0 } else { found.len().saturating_sub(limit) };
        found[skip..].iter().map(Slot::to_message).collect()
    }
}

impl Slot {
    fn to_message(&self) -> v1::TracedOperation {
        v1::TracedOperation {
            sequence: self.sequence,
            started_unix_ms: self.started_unix_ms,
            duration_ns: self.duration_ns,
            operation: self.name.to_owned(),
            path: Bytes::copy_from_slice(&self.path[..self.path_len]),
            transport: self.transport.name().to_owned(),
            demoted_because: self.demoted_because.to_owned(),
            bytes: self.bytes,
            code: self.code,
            connection: self.connection,
            uid: self.uid,
            trace_id: if self.trace_id == 0 {
                String::new()
            } else {
                format!("{:016x}", self.trace_id)
            },
        }
    }
}
