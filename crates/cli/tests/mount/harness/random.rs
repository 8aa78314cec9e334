//! Chance that can be replayed.

/// SplitMix64 (Steele, Lea and Flood, 2014): short, and good enough to draw operations.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Seeded by `LIBRORUM_SEED`, or by chance; the seed is printed, which a failing test shows.
    pub(crate) fn from_environment() -> Self {
        let seed = match std::env::var("LIBRORUM_SEED") {
            Ok(seed) => seed.parse().expect("LIBRORUM_SEED is a number"),
            Err(_) => librorum_sys::entropy::random::<8>()
                .iter()
                .fold(0, |seed, byte| (seed << 8) | u64::from(*byte)),
        };
        println!("replay with LIBRORUM_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is above zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Bytes that no other seed has and that do not compress.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
