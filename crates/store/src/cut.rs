//! Where chunks end, decided byte by byte so that a chunk never needs to be in memory as a whole.
//!
//! The cut points are those of FastCDC v2020 as the `fastcdc` crate finds them (a test compares the
//! two); that crate wants the longest possible chunk as one slice, which would mean 16 MiB of
//! buffer and every byte leaving the CPU's cache before it is hashed.

use fastcdc::v2020::{Normalization, get_gear_with_seed, select_masks};
use librorum_format::Chunking;

/// Finds the ends of the chunks of one run of bytes.
#[derive(Debug)]
pub(crate) struct Cutter {
    rule: Rule,
    /// How much of the current chunk has been taken.
    len: usize,
    hash: u64,
}

#[derive(Debug)]
enum Rule {
    Fixed { len: usize, first_len: usize },
    Cdc(Box<Cdc>),
}

#[derive(Debug)]
struct Cdc {
    min: usize,
    average: usize,
    max: usize,
    mask_strict: u64,
    mask_loose: u64,
    gear: [u64; 256],
    /// The same, doubled.
    gear_twice: [u64; 256],
}

/// The rolling hash of a place depends on the 64 bytes before it: older ones are shifted out.
const WINDOW_LEN: usize = 64;
/// Each step of the rolling hash waits for the one before, so one scan leaves most of the CPU idle.
/// Four scans side by side, each in its own lane, keep it busy: chunking and hashing together
/// went from 1.3-1.9 to 2.1-2.9 GB/s on a shared AMD EPYC (interleaved runs of
/// `examples/throughput.rs`); two, three, five or six lanes were no better.
const LANE_LEN: usize = 1024;
const STRETCH_LEN: usize = 4 * LANE_LEN;

/// How far a cutter got in the bytes it was given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// How many bytes belong to the current chunk. Bytes behind them must be given again, in front
    /// of those that follow.
    pub(crate) taken: usize,
    /// Whether the chunk ends there.
    pub(crate) ends: bool,
}

impl Cutter {
    pub(crate) fn new(chunking: Chunking) -> Self {
        let (min, average, max) = chunking.bounds_bytes();
        let [min, average, max] = [min, average, max].map(|bytes| bytes as usize);
        let rule = match chunking {
            Chunking::Fixed { .. } => Rule::Fixed { len: average, first_len: average },
            Chunking::Cdc { .. } => {
                assert!(min % 2 == 0 && average % 2 == 0, "pairs of bytes need even bounds");
                // Level 1, as the crate's default: chunks crowd around the average.
                let (mask_strict, mask_loose) = select_masks(average, Normalization::Level1);
                let (gear, gear_twice) = get_gear_with_seed(0);
                let table = |from: &[u64]| std::array::from_fn(|index| from[index]);
                Rule::Cdc(Box::new(Cdc {
                    min,
                    average,
                    max,
                    mask_strict,
                    mask_loose,
                    gear: table(&gear),
                    gear_twice: table(&gear_twice),
                }))
            }
        };
        Self { rule, len: 0, hash: 0 }
    }

    /// Starts a run at a file offset. Fixed chunks end at multiples of their length in the file,
    /// not in the run: a sparse file then shares its chunks with a full one.
    pub(crate) fn start(&mut self, file_offset_bytes: u64) {
        if let Rule::Fixed { len, first_len } = &mut self.rule {
            let into = usize::try_from(file_offset_bytes % *len as u64).expect("below a chunk");
            *first_len = *len - into;
        }
        self.end_chunk();
    }

    /// Takes the bytes that belong to the current chunk. What is left at the end of a run belongs
    /// to its last chunk.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Step {
        let step = match &mut self.rule {
            Rule::Fixed { len, first_len } => {
                let taken = bytes.len().min(*first_len - self.len);
                let ends = self.len + taken == *first_len;
                if ends {
                    *first_len = *len;
                }
                Step { taken, ends }
            }
            Rule::Cdc(cdc) => cdc.step(self.len, &mut self.hash, bytes),
        };
        self.len += step.taken;
        if step.ends {
            self.end_chunk();
        }
        step
    }

    fn end_chunk(&mut self) {
        self.len = 0;
        self.hash = 0;
    }
}

impl Cdc {
    fn step(&self, len: usize, hash: &mut u64, bytes: &[u8]) -> Step {
        // No chunk ends before `min`, so those bytes are not even looked at.
        let mut taken = self.min.saturating_sub(len).min(bytes.len());
        for (until, mask) in [(self.average, self.mask_strict), (self.max, self.mask_loose)] {
            let phase_len = until.saturating_sub(len + taken).min(bytes.len() - taken);
            // In pairs, as the paper does it: the last byte of a run of odd length is then never
            // tested, and one byte may be left for the next call. `min` and `average` are even, so
            // pairs always start at an even place in the chunk.
            let pairs = &bytes[taken..taken + phase_len / 2 * 2];
            if let Some(at) = self.scan(hash, mask, pairs) {
                return Step { taken: taken + at, ends: true };
            }
            taken += pairs.len();
        }
        Step { taken, ends: len + taken == self.max }
    }

    /// The first place in `bytes` where the rolling hash says "cut".
    fn scan(&self, hash: &mut u64, mask: u64, bytes: &[u8]) -> Option<usize> {
        let (stretches, rest) = bytes.as_chunks::<STRETCH_LEN>();
        for (index, stretch) in stretches.iter().enumerate() {
            // A cut comes once in a megabyte, so finding out where costs nothing.
            if !self.passes(hash, mask, stretch) {
                let at = self.scan_slowly(hash, mask, stretch).expect("a cut in this stretch");
                return Some(index * STRETCH_LEN + at);
            }
        }
        let at = self.scan_slowly(hash, mask, rest)?;
        Some(stretches.len() * STRETCH_LEN + at)
    }

    /// Moves the hash over a stretch and returns true, if there is no cut in it.
    fn passes(&self, hash: &mut u64, mask: u64, stretch: &[u8; STRETCH_LEN]) -> bool {
        let (lanes, _) = stretch.as_chunks::<LANE_LEN>();
        let warm = |before: &[u8; LANE_LEN]| {
            before[LANE_LEN - WINDOW_LEN..]
                .iter()
                .fold(0_u64, |hash, byte| (hash << 1).wrapping_add(self.gear[usize::from(*byte)]))
        };
        let mut rolling = [*hash, warm(&lanes[0]), warm(&lanes[1]), warm(&lanes[2])];
        let mask_twice = mask << 1;
        let [a, b, c, d] = std::array::from_fn(|lane| lanes[lane].as_chunks::<2>().0);
        for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
            let pairs = [a, b, c, d];
            for lane in 0..4 {
                let twice = self.gear_twice[usize::from(pairs[lane][0])];
                rolling[lane] = (rolling[lane] << 2).wrapping_add(twice);
                if rolling[lane] & mask_twice == 0 {
                    return false;
                }
            }
            for lane in 0..4 {
                let once = self.gear[usize::from(pairs[lane][1])];
                rolling[lane] = rolling[lane].wrapping_add(once);
                if rolling[lane] & mask == 0 {
                    return false;
                }
            }
        }
        *hash = rolling[3];
        true
    }

    fn scan_slowly(&self, hash: &mut u64, mask: u64, bytes: &[u8]) -> Option<usize> {
        let mut rolling = *hash;
        let mask_twice = mask << 1;
        for (index, pair) in bytes.chunks_exact(2).enumerate() {
            // Two steps of `hash = (hash << 1) + gear[byte]`, the first one left doubled.
            rolling = (rolling << 2).wrapping_add(self.gear_twice[usize::from(pair[0])]);
            if rolling & mask_twice == 0 {
                return Some(index * 2);
            }
            rolling = rolling.wrapping_add(self.gear[usize::from(pair[1])]);
            if rolling & mask == 0 {
                return Some(index * 2 + 1);
            }
        }
        *hash = rolling;
        None
    }
}
