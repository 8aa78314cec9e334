//! A histogram of durations with buckets that are fixed.
//!
//! Log-linear: every power of two is cut into 16 equal buckets, so a quantile is off by 6.25 % at
//! most, over the whole range from one nanosecond to eighteen minutes, in 4.7 KiB. Recording is three
//! atomic additions and one maximum. The `hdrhistogram` crate keeps the same buckets but wants either
//! `&mut self` or a recorder for each thread that hands its counts over a channel.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets in a power of two, as a power of two.
const SUB_BITS: u32 = 4;
const SUB_COUNT: u64 = 1 << SUB_BITS;
/// Durations of this power of two and above share the last bucket.
const TOP_BITS: u32 = 40;
const BUCKET_COUNT: usize = ((TOP_BITS - SUB_BITS + 1) << SUB_BITS) as usize;

/// A histogram that many threads record into.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// What a histogram held at one moment. The parts were read one after the other, so under load `sum_ns`
/// may know an operation that the buckets do not; `count` is always that of the buckets.
#[derive(Clone, Debug)]
pub struct Snapshot {
    counts: Box<[u64]>,
    /// Durations recorded.
    pub count: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buckets: (0..BUCKET_COUNT).map(|_| AtomicU64::new(0)).collect(),
            sum_ns: AtomicU64::new(0),
            max_ns: AtomicU64::new(0),
        }
    }

    /// Counts one duration.
    pub fn record(&self, ns: u64) {
        self.buckets[index_of(ns)].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(ns, Relaxed);
        // Mostly a load only: a new maximum is rare.
        if self.max_ns.load(Relaxed) < ns {
            self.max_ns.fetch_max(ns, Relaxed);
        }
    }

    /// What it holds now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let counts: Box<[u64]> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        Snapshot {
            count: counts.iter().sum(),
            counts,
            sum_ns: self.sum_ns.load(Relaxed),
            max_ns: self.max_ns.load(Relaxed),
        }
    }
}

impl Snapshot {
    /// The duration that this share of all recorded ones does not exceed; 0 without any.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        if self.count == 0 {
            return 0;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a count times a share of it lies between zero and the count"
        )]
        let wanted = ((self.count as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, &count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return if index + 1 == BUCKET_COUNT {
                    self.max_ns
                } else {
                    (first_of(index + 1) - 1).min(self.max_ns)
                };
            }
        }
        self.max_ns
    }

    /// How many durations were shorter than this power of two of nanoseconds. Exact, because every
    /// power of two is an edge of a bucket.
    #[must_use]
    pub fn below_power(&self, power: u32) -> u64 {
        if power >= TOP_BITS {
            return self.count;
        }
        self.counts[..index_of(1 << power)].iter().sum()
    }
}

/// The bucket of a duration.
fn index_of(ns: u64) -> usize {
    let index = if ns < SUB_COUNT {
        ns
    } else {
        let exponent = ns.ilog2();
        if exponent >= TOP_BITS {
            return BUCKET_COUNT - 1;
        }
        let shift = exponent - SUB_BITS;
        // `ns >> shift` has its highest bit at SUB_BITS, so this continues where the powers below end.
        (u64::from(shift) << SUB_BITS) + (ns >> shift)
    };
    usize::try_from(index).map_or(BUCKET_COUNT - 1, |index| index.min(BUCKET_COUNT - 1))
}

/// The shortest duration of a bucket.
fn first_of(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * SUB_COUNT {
        return index;
    }
    let shift = (index >> SUB_BITS) - 1;
    (SUB_COUNT + (index & (SUB_COUNT - 1))) << shift
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_bucket_begins_where_the_one_before_ends() {
        for index in 0..BUCKET_COUNT {
            assert_eq!(index_of(first_of(index)), index);
            if index > 0 {
                assert_eq!(index_of(first_of(index) - 1), index - 1);
            }
        }
        assert_eq!(index_of(u64::MAX), BUCKET_COUNT - 1);
        assert_eq!(first_of(BUCKET_COUNT - 1).ilog2(), TOP_BITS - 1);
    }

    #[test]
    fn an_empty_histogram_knows_nothing() {
        let empty = Histogram::new().snapshot();
        assert_eq!((empty.count, empty.quantile(0.99), empty.max_ns), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn quantiles_are_close_to_the_truth(mut values in prop::collection::vec(0u64..1 << 39, 1..500)) {
            let histogram = Histogram::new();
            for &value in &values {
                histogram.record(value);
            }
            values.sort_unstable();
            let snapshot = histogram.snapshot();
            prop_assert_eq!(snapshot.count, values.len() as u64);
            prop_assert_eq!(snapshot.max_ns, *values.last().unwrap());
            for percent in [50, 90, 99, 100] {
                let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
                let share = f64::from(u8::try_from(percent).unwrap()) / 100.0;
                let (told, truth) = (snapshot.quantile(share), values[rank]);
                prop_assert!(told >= truth, "{told} {truth}");
                prop_assert!(told - truth <= truth / 16 + 1, "{told} {truth}");
            }
            for power in [0, 5, 10, 20, 30, 38] {
                let truth = values.iter().filter(|&&value| value < 1 << power).count() as u64;
                prop_assert_eq!(snapshot.below_power(power), truth);
            }
        }
    }
}
