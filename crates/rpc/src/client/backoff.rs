//! When to try again: exponentially later, and at random, so that the clients of a daemon that comes
//! back do not come all at once ("full jitter").

use std::time::Duration;

use librorum_sys::{clock, entropy};

const FIRST: Duration = Duration::from_millis(10);
const LAST: Duration = Duration::from_secs(2);

pub(super) struct Backoff {
    until: Duration,
    next_max: Duration,
}

impl Backoff {
    pub(super) fn new(for_so_long: Duration) -> Self {
        Self { until: clock::monotonic().saturating_add(for_so_long), next_max: FIRST }
    }

    /// How long to wait before the next try, at least `at_least_ms`; none if time is up by then.
    pub(super) fn next(&mut self, at_least_ms: u32) -> Option<Duration> {
        let random = u16::from_le_bytes(entropy::random());
        let wait = self.next_max.mul_f64(f64::from(random) / f64::from(u16::MAX));
        let wait = wait.max(Duration::from_millis(u64::from(at_least_ms)));
        self.next_max = (self.next_max * 2).min(LAST);
        (clock::monotonic() + wait < self.until).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_two_seconds_and_end() {
        let mut backoff = Backoff::new(Duration::from_secs(60));
        let waits: Vec<Duration> = (0..200).map(|_| backoff.next(0).unwrap()).collect();
        assert!(waits[0] <= FIRST && waits.iter().all(|&wait| wait <= LAST));
        assert!(waits.iter().max().unwrap() > &Duration::from_secs(1));
        assert_eq!(Backoff::new(Duration::ZERO).next(0), None);
        assert!(backoff.next(3000).unwrap() >= Duration::from_secs(3));
    }
}
