//! What the store keeps in memory so that it need not ask the disk again: a bounded cache that
//! forgets the least recently used, reusable buffers, and the set of reads in flight.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A bounded map that forgets what was used longest ago. Thread-safe; values are cheap to clone.
///
/// The newest value stays whatever its weight: a table larger than the whole cache would otherwise
/// be decoded anew for each of its chunks.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    weight_max: u64,
    inner: Mutex<Inner<K, V>>,
}

#[derive(Debug)]
struct Inner<K, V> {
    slots: HashMap<K, Slot<V>>,
    by_use: BTreeMap<u64, K>,
    weight: u64,
    now: u64,
    removals: u64,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    weight: u64,
    used: u64,
}

/// A promise about what was true when a value was looked for and not found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Absence {
    removals: u64,
}

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    pub(crate) fn new(weight_max: u64) -> Self {
        Self {
            weight_max,
            inner: Mutex::new(Inner {
                slots: HashMap::new(),
                by_use: BTreeMap::new(),
                weight: 0,
                now: 0,
                removals: 0,
            }),
        }
    }

    /// The value, or what [`Self::insert`] needs to put one there.
    pub(crate) fn get(&self, key: &K) -> Result<V, Absence> {
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        let Some(slot) = inner.slots.get_mut(key) else {
            return Err(Absence { removals: inner.removals });
        };
        if slot.used != inner.now {
            inner.by_use.remove(&slot.used);
            inner.now += 1;
            slot.used = inner.now;
            inner.by_use.insert(slot.used, *key);
        }
        Ok(slot.value.clone())
    }

    /// Keeps a value that was made after `absence` was seen, unless something was removed
    /// meanwhile: it might be this very value's file, and a stale handle would keep a deleted
    /// segment's space.
    pub(crate) fn insert(&self, absence: Absence, key: K, value: V, weight: u64) {
        let mut inner = lock(&self.inner);
        if inner.removals != absence.removals {
            return;
        }
        inner.forget(&key);
        inner.now += 1;
        let used = inner.now;
        inner.by_use.insert(used, key);
        inner.slots.insert(key, Slot { value, weight, used });
        inner.weight += weight;
        while inner.weight > self.weight_max && inner.slots.len() > 1 {
            let (_, oldest) = inner.by_use.pop_first().expect("one entry per slot");
            inner.forget(&oldest);
        }
    }

    /// Forgets a key, also on behalf of those who are just about to insert it.
    pub(crate) fn remove(&self, key: &K) {
        let mut inner = lock(&self.inner);
        inner.removals += 1;
        inner.forget(key);
    }

    /// Forgets every key that matches. Costs a pass over the cache.
    pub(crate) fn remove_if(&self, matches: impl Fn(&K) -> bool) {
        let mut inner = lock(&self.inner);
        inner.removals += 1;
        let keys: Vec<K> = inner.slots.keys().filter(|key| matches(key)).copied().collect();
        for key in keys {
            inner.forget(&key);
        }
    }
}

impl<K: Copy + Eq + Hash, V> Inner<K, V> {
    fn forget(&mut self, key: &K) {
        if let Some(slot) = self.slots.remove(key) {
            self.weight -= slot.weight;
            self.by_use.remove(&slot.used);
        }
    }
}

/// Buffers for whole chunks. A fresh 4 MiB vector costs a thousand page faults; these are kept.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// Idle buffers hold at most this many times [`Self::IDLE_LEN_MAX_BYTES`]: 16 MiB.
    const IDLE_COUNT_MAX: usize = 4;
    const IDLE_LEN_MAX_BYTES: usize = 4 << 20;

    /// Runs `work` with a buffer of `len` bytes whose contents mean nothing.
    pub(crate) fn with<T>(&self, len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut buffer = lock(&self.idle).pop().unwrap_or_default();
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let result = work(&mut buffer[..len]);
        if buffer.len() <= Self::IDLE_LEN_MAX_BYTES {
            let mut idle = lock(&self.idle);
            if idle.len() < Self::IDLE_COUNT_MAX {
                idle.push(buffer);
            }
        }
        result
    }
}

/// Chunks that some thread is reading, so that others wait for the result instead of reading and
/// hashing the same chunk again: the kernel cuts one read-ahead into many requests.
#[derive(Debug)]
pub(crate) struct InFlight<K> {
    keys: Mutex<HashSet<K>>,
    ended: Condvar,
}

impl<K: Copy + Eq + Hash> InFlight<K> {
    pub(crate) fn new() -> Self {
        Self { keys: Mutex::new(HashSet::new()), ended: Condvar::new() }
    }

    /// `Some` for the one who shall do the work; `None` after having waited for that one to end.
    pub(crate) fn begin(&self, key: K) -> Option<Flight<'_, K>> {
        let mut keys = lock(&self.keys);
        if keys.insert(key) {
            return Some(Flight { all: self, key });
        }
        while keys.contains(&key) {
            keys = self.ended.wait(keys).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

/// The right, and the duty, to read one chunk. Ends when dropped, whether it went well or not.
#[derive(Debug)]
pub(crate) struct Flight<'a, K: Copy + Eq + Hash> {
    all: &'a InFlight<K>,
    key: K,
}

impl<K: Copy + Eq + Hash> Drop for Flight<'_, K> {
    fn drop(&mut self) {
        lock(&self.all.keys).remove(&self.key);
        self.all.ended.notify_all();
    }
}

// A panic elsewhere leaves these structures consistent: every update is complete before anything
// can panic, so poisoning carries no news.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_forgets_the_least_recently_used_beyond_its_weight() {
        let cache = Cache::new(3);
        for key in 0..3 {
            cache.insert(cache.get(&key).unwrap_err(), key, key * 10, 1);
        }
        assert_eq!(cache.get(&0).ok(), Some(0));
        cache.insert(cache.get(&3).unwrap_err(), 3, 30, 1);
        assert!(cache.get(&1).is_err());
        assert_eq!(cache.get(&0).ok(), Some(0));
        cache.insert(cache.get(&9).unwrap_err(), 9, 90, 100);
        assert_eq!(cache.get(&9).ok(), Some(90));
        assert!(cache.get(&0).is_err());
    }

    #[test]
    fn a_value_made_before_a_removal_is_not_kept_after_it() {
        let cache = Cache::new(10);
        let absence = cache.get(&1).unwrap_err();
        cache.remove(&1);
        cache.insert(absence, 1, (), 1);
        assert!(cache.get(&1).is_err());
    }

    #[test]
    fn waiters_get_their_turn_when_the_leader_ends() {
        let flights = InFlight::new();
        let leader = flights.begin(7).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| flights.begin(7).is_none());
            assert!(flights.begin(8).is_some());
            drop(leader);
            // The waiter either waited or came late enough to lead; both end.
            waiter.join().unwrap();
        });
        assert!(flights.begin(7).is_some());
    }
}
