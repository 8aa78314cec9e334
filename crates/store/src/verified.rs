//! Which chunks have been verified since their bytes entered the page cache, as far as can be
//! known. Forgetting is always right: it costs one more hash.
//!
//! A million chunks, eight to a set, found by a hash of their place: 24 MiB, allocated once as
//! zeroed pages that the kernel fills in as they are used. A map would cost twice that and a tree
//! a pointer chase; a set here is three cache lines.

use std::sync::{Mutex, PoisonError};

use librorum_format::{ChunkId, SegmentId};

const SHARD_COUNT: usize = 64;
const SETS_PER_SHARD: usize = 2048;
const WAYS: usize = 8;
/// Segment, offset, and the first bytes of the chunk id: a caller with a wrong chunk id for a
/// right place must not be told that it is verified.
const WORDS: usize = 3;

#[derive(Debug)]
pub(crate) struct Verified {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Debug)]
struct Shard {
    // Segment zero does not exist, so a zeroed slot is an empty one.
    words: Vec<u64>,
    next_victim: usize,
}

type Slot = [u64; WORDS];

impl Verified {
    pub(crate) fn new() -> Self {
        let shard =
            || Mutex::new(Shard { words: vec![0; SETS_PER_SHARD * WAYS * WORDS], next_victim: 0 });
        Self { shards: (0..SHARD_COUNT).map(|_| shard()).collect() }
    }

    pub(crate) fn contains(&self, segment: SegmentId, offset_bytes: u64, chunk: ChunkId) -> bool {
        let slot = slot(segment, offset_bytes, chunk);
        self.set(segment, offset_bytes, |set, _| set.chunks_exact(WORDS).any(|have| have == slot))
    }

    pub(crate) fn insert(&self, segment: SegmentId, offset_bytes: u64, chunk: ChunkId) {
        let slot = slot(segment, offset_bytes, chunk);
        self.set(segment, offset_bytes, |set, next_victim| {
            let same_place = |have: &[u64]| have[..2] == slot[..2];
            let way = set
                .chunks_exact(WORDS)
                .position(same_place)
                .or_else(|| set.chunks_exact(WORDS).position(|have| have[0] == 0))
                .unwrap_or_else(|| {
                    *next_victim = (*next_victim + 1) % WAYS;
                    *next_victim
                });
            set[way * WORDS..(way + 1) * WORDS].copy_from_slice(&slot);
        });
    }

    pub(crate) fn remove(&self, segment: SegmentId, offset_bytes: u64) {
        self.set(segment, offset_bytes, |set, _| {
            for have in set.chunks_exact_mut(WORDS) {
                if have[..2] == [segment.0, offset_bytes] {
                    have.fill(0);
                }
            }
        });
    }

    /// Forgets everything about a segment. Costs a pass over the whole set, some milliseconds;
    /// removal of a segment need not pay it, because ids never come back.
    pub(crate) fn remove_segment(&self, segment: SegmentId) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for have in shard.words.chunks_exact_mut(WORDS) {
                if have[0] == segment.0 {
                    have.fill(0);
                }
            }
        }
    }

    fn set<T>(
        &self,
        segment: SegmentId,
        offset_bytes: u64,
        work: impl FnOnce(&mut [u64], &mut usize) -> T,
    ) -> T {
        let mixed = mix(segment.0 ^ mix(offset_bytes));
        let index = usize::try_from(mixed >> 40).expect("24 bits");
        let (shard, set) = (index % SHARD_COUNT, index / SHARD_COUNT % SETS_PER_SHARD);
        let mut shard = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let Shard { words, next_victim } = &mut *shard;
        let start = set * WAYS * WORDS;
        work(&mut words[start..start + WAYS * WORDS], next_victim)
    }
}

fn slot(segment: SegmentId, offset_bytes: u64, chunk: ChunkId) -> Slot {
    let tag: [u8; 8] = std::array::from_fn(|index| chunk.0[index]);
    [segment.0, offset_bytes, u64::from_le_bytes(tag)]
}

/// The finalizer of `splitmix64`: consecutive ids and aligned offsets spread over all sets.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_most_of_half_its_capacity_and_only_what_was_inserted() {
        let verified = Verified::new();
        let chunk = ChunkId::of(b"chunk");
        let count = (SHARD_COUNT * SETS_PER_SHARD * WAYS / 2) as u64;
        for index in 0..count {
            verified.insert(SegmentId(1 + index / 100), (index % 100) << 20, chunk);
        }
        let found = (0..count)
            .filter(|i| verified.contains(SegmentId(1 + i / 100), (i % 100) << 20, chunk))
            .count();
        assert!(found as u64 > count * 9 / 10, "{found} of {count}");
        assert!(!verified.contains(SegmentId(1), 1, chunk));
        assert!(!verified.contains(SegmentId(1), 0, ChunkId::of(b"other")));
    }

    #[test]
    fn forgets_a_place_and_a_segment() {
        let verified = Verified::new();
        let chunk = ChunkId::of(b"chunk");
        for offset in 0..3 {
            verified.insert(SegmentId(5), offset, chunk);
            verified.insert(SegmentId(6), offset, chunk);
        }
        verified.remove(SegmentId(5), 1);
        assert!(!verified.contains(SegmentId(5), 1, chunk));
        assert!(verified.contains(SegmentId(5), 2, chunk));
        verified.remove_segment(SegmentId(5));
        assert!(!verified.contains(SegmentId(5), 2, chunk));
        assert!(verified.contains(SegmentId(6), 1, chunk));
    }
}
