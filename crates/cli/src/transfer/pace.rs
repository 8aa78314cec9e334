//! How fast bytes may move: all threads together.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use librorum_sys::clock;

/// A limit in bytes per second, or none.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: Option<u64>,
    /// When the bytes that were taken so far are paid for.
    paid: Mutex<Duration>,
}

impl Pace {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self { limit, paid: Mutex::new(clock::monotonic()) }
    }

    /// Takes bytes, and waits until they may have moved.
    pub(crate) fn take(&self, bytes: u64) {
        let Some(limit) = self.limit else { return };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(limit);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let now = clock::monotonic();
        let paid = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            // What was not used in the past is gone: no burst follows a pause.
            *paid = (*paid).max(now) + cost;
            *paid
        };
        clock::sleep(paid.saturating_sub(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_time_that_the_limit_says() {
        let pace = Pace::new(Some(1 << 20));
        let start = clock::monotonic();
        pace.take(1 << 16);
        pace.take(1 << 16);
        let took = clock::monotonic() - start;
        assert!(took >= Duration::from_millis(125), "{took:?}");
        Pace::new(None).take(u64::MAX);
    }
}
