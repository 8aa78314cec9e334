//! Points in time with nanoseconds, before 1970 included.

/// Nanoseconds since the epoch, split as `struct timespec` splits them.
///
/// Invariant: `nanos < 1_000_000_000`; a time before 1970 has negative `secs` and counts `nanos` up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds since the epoch, rounded down.
    pub secs: i64,
    /// The rest.
    pub nanos: u32,
}

impl Timestamp {
    /// A time from its parts; out-of-range nanoseconds are cut to the last valid one.
    #[must_use]
    pub fn new(secs: i64, nanos: u32) -> Self {
        Self { secs, nanos: nanos.min(999_999_999) }
    }
}
