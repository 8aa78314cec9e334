//! The choices of a power cut.

use crate::replay::{Choice, Survival};
use crate::rng::Rng;

/// Decides what survives.
pub(crate) struct Dice {
    survival: Survival,
    torn: bool,
    pub(crate) rng: Rng,
}

impl Dice {
    pub(crate) fn new(choice: &Choice, point: usize) -> Self {
        let seed = match choice.survival {
            Survival::Random(seed) => seed,
            Survival::AllLost | Survival::AllKept => 0,
        };
        let rng = Rng::part(seed, point as u64);
        Self { survival: choice.survival, torn: choice.torn, rng }
    }

    /// One of `low..=high`; both ends are likely, because most bugs live there.
    pub(crate) fn cut(&mut self, low: usize, high: usize) -> usize {
        match self.survival {
            Survival::AllLost => low,
            Survival::AllKept => high,
            Survival::Random(_) => match self.rng.below(4) {
                0 => low,
                1 => high,
                _ => low + self.rng.index(high - low + 1),
            },
        }
    }

    /// How likely the pages of one file are to survive: files written back as a whole, or not at
    /// all, are as common as a mixture.
    pub(crate) fn mood(&mut self) -> u64 {
        *self.rng.pick(&[0, 10, 50, 90, 100])
    }

    pub(crate) fn page(&mut self, mood: u64, low: usize, high: usize) -> usize {
        match self.survival {
            Survival::Random(_) if self.rng.percent(mood) => high,
            Survival::Random(_) if self.rng.percent(70) => low,
            Survival::AllLost | Survival::AllKept | Survival::Random(_) => self.cut(low, high),
        }
    }

    pub(crate) fn tears(&mut self) -> bool {
        self.torn && matches!(self.survival, Survival::Random(_)) && self.rng.percent(12)
    }
}
