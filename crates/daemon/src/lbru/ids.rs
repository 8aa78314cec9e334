//! Request ids, each used once.

/// How far an id may lag behind the highest one. Threads of a client that number their requests before
/// they queue for the socket overtake each other, but not by this much.
const LAG_MAX: u64 = 4096;
const WORD_COUNT: usize = 64;

/// Which ids of a connection were used.
#[derive(Debug)]
pub(super) struct Ids {
    /// Halves of ids, which are odd: id 1 is 0.
    highest: Option<u64>,
    /// A bit for each of the [`LAG_MAX`] last ones.
    seen: [u64; WORD_COUNT],
}

impl Default for Ids {
    fn default() -> Self {
        Self { highest: None, seen: [0; WORD_COUNT] }
    }
}

fn place(half: u64) -> (usize, u64) {
    let bit = half % LAG_MAX;
    (usize::try_from(bit / 64).unwrap_or(0), 1 << (bit % 64))
}

impl Ids {
    /// Takes an id. False if it is even, was used, or is too old to tell.
    pub(super) fn take(&mut self, id: u64) -> bool {
        if id.is_multiple_of(2) {
            return false;
        }
        let half = id / 2;
        match self.highest {
            Some(highest) if half <= highest => {
                if highest - half >= LAG_MAX {
                    return false;
                }
            }
            Some(highest) if half - highest < LAG_MAX => {
                for between in highest + 1..half {
                    let (word, bit) = place(between);
                    self.seen[word] &= !bit;
                }
                let (word, bit) = place(half);
                self.seen[word] &= !bit;
                self.highest = Some(half);
            }
            _ => {
                self.seen = [0; WORD_COUNT];
                self.highest = Some(half);
            }
        }
        let (word, bit) = place(half);
        let is_new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once() {
        let mut ids = Ids::default();
        assert!(!ids.take(0) && !ids.take(2));
        assert!(ids.take(9) && ids.take(3) && ids.take(1));
        assert!(!ids.take(9) && !ids.take(3));
        assert!(ids.take(5) && ids.take(10_001));
        assert!(!ids.take(7), "too old to tell");
        assert!(ids.take(2001) && !ids.take(2001));
        assert!(ids.take(u64::MAX) && !ids.take(u64::MAX) && ids.take(u64::MAX - 2));
        assert!(!ids.take(1));
    }

    #[test]
    fn ids_in_order_are_all_new() {
        let mut ids = Ids::default();
        assert!((0..20_000).all(|n| ids.take(2 * n + 1)));
        assert!((16_000..20_000).all(|n| !ids.take(2 * n + 1)));
    }
}
