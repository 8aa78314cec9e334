//! A bounded map in memory: sharded, with CLOCK for eviction.
//!
//! Coherence is the caller's: whoever fills or changes an entry holds the inode's stripe, so an
//! old value can never be put over a newer one.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Mutex;

const SHARD_COUNT: usize = 32;

pub(super) struct Cache<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
    hasher: RandomState,
}

struct Shard<K, V> {
    places: HashMap<K, usize>,
    slots: Vec<Slot<K, V>>,
    hand: usize,
    capacity: usize,
}

struct Slot<K, V> {
    /// `None` in a slot that waits for reuse.
    entry: Option<(K, V)>,
    used: bool,
}

impl<K, V> std::fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Copy, V: Clone> Cache<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        let per_shard = capacity.div_ceil(SHARD_COUNT).max(1);
        let shards = (0..SHARD_COUNT)
            .map(|_| {
                Mutex::new(Shard {
                    places: HashMap::new(),
                    slots: Vec::new(),
                    hand: 0,
                    capacity: per_shard,
                })
            })
            .collect();
        Self { shards, hasher: RandomState::new() }
    }

    fn shard(&self, key: &K) -> std::sync::MutexGuard<'_, Shard<K, V>> {
        let hash = usize::try_from(self.hasher.hash_one(key) % SHARD_COUNT as u64).unwrap_or(0);
        super::lock(&self.shards[hash])
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut shard = self.shard(key);
        let place = *shard.places.get(key)?;
        let slot = &mut shard.slots[place];
        slot.used = true;
        slot.entry.as_ref().map(|(_, value)| value.clone())
    }

    pub(super) fn insert(&self, key: K, value: V) {
        let mut shard = self.shard(&key);
        if let Some(&place) = shard.places.get(&key) {
            shard.slots[place] = Slot { entry: Some((key, value)), used: true };
            return;
        }
        let place = shard.free_place();
        shard.slots[place] = Slot { entry: Some((key, value)), used: false };
        shard.places.insert(key, place);
    }

    pub(super) fn remove(&self, key: &K) {
        let mut shard = self.shard(key);
        if let Some(place) = shard.places.remove(key) {
            shard.slots[place] = Slot { entry: None, used: false };
        }
    }

    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = super::lock(shard);
            shard.places.clear();
            shard.slots.clear();
            shard.hand = 0;
        }
    }
}

impl<K: Hash + Eq + Copy, V> Shard<K, V> {
    /// A slot to write to: a new one while there is room, else the first that was not used since
    /// the hand last passed.
    fn free_place(&mut self) -> usize {
        if self.slots.len() < self.capacity {
            self.slots.push(Slot { entry: None, used: false });
            return self.slots.len() - 1;
        }
        loop {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[place];
            if slot.used {
                slot.used = false;
                continue;
            }
            if let Some((key, _)) = slot.entry.take() {
                self.places.remove(&key);
            }
            return place;
        }
    }
}
