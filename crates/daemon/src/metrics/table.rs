//! Figures for each operation and transport, found without a lock.
//!
//! The names are those of the operations: a few dozen that all exist in the program. They are put into
//! a hash table once and never leave it, so looking one up is a hash of a few bytes and mostly one
//! comparison.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::histogram::Histogram;
use super::{Operation, Transport};

/// More than twice the number of operations there are. A name that finds no room is counted as
/// [`OTHER`]: it cannot happen with names that the program has, and must not hurt if it does.
const SLOT_COUNT: usize = 128;
const OTHER: &str = "other";

/// Status codes, `google.rpc.Code`.
const CODE_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

pub(super) fn code_name(code: usize) -> &'static str {
    CODE_NAMES.get(code).copied().unwrap_or("UNKNOWN")
}

#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[Slot]>,
    other: Slot,
}

#[derive(Debug, Default)]
struct Slot {
    name: OnceLock<&'static str>,
    /// By transport; most operations come by one or two of them.
    figures: [OnceLock<Box<Figures>>; Transport::ALL.len()],
}

/// What is counted for one operation by one transport.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) bytes: AtomicU64,
    pub(super) latency: Histogram,
    codes: [AtomicU64; CODE_NAMES.len()],
}

impl Figures {
    pub(super) fn error_count(&self) -> u64 {
        self.errors().map(|(_, count)| count).sum()
    }

    /// How often it failed, by code, where it did.
    pub(super) fn errors(&self) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.codes.iter().map(|count| count.load(Relaxed));
        counts.enumerate().skip(1).filter(|&(_, count)| count != 0)
    }
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOT_COUNT).map(|_| Slot::default()).collect(),
            other: Slot { name: OnceLock::from(OTHER), ..Slot::default() },
        }
    }

    pub(super) fn record(&self, operation: &Operation<'_>, took_ns: u64) {
        let slot = self.slot(operation.name);
        let figures = slot.figures[operation.transport as usize].get_or_init(Box::default);
        figures.latency.record(took_ns);
        if operation.bytes != 0 {
            figures.bytes.fetch_add(operation.bytes, Relaxed);
        }
        if operation.code != 0 {
            // A code that no version knows is UNKNOWN.
            let code = usize::try_from(operation.code).unwrap_or(usize::MAX);
            figures.codes.get(code).unwrap_or(&figures.codes[2]).fetch_add(1, Relaxed);
        }
    }

    fn slot(&self, name: &'static str) -> &Slot {
        // FNV-1a: the names are short.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let start = usize::try_from(hash >> 32).unwrap_or(0);
        for step in 0..SLOT_COUNT {
            let slot = &self.slots[(start + step) % SLOT_COUNT];
            if *slot.name.get_or_init(|| name) == name {
                return slot;
            }
        }
        &self.other
    }

    /// Shows everything that was ever recorded.
    pub(super) fn visit(&self, mut show: impl FnMut(&'static str, Transport, &Figures)) {
        for slot in self.slots.iter().chain([&self.other]) {
            let Some(name) = slot.name.get() else { continue };
            for (transport, figures) in Transport::ALL.into_iter().zip(&slot.figures) {
                if let Some(figures) = figures.get() {
                    show(name, transport, figures);
                }
            }
        }
    }
}
