//! Locks for inodes: a fixed table of mutexes that inode numbers are spread over.
//!
//! Lock order, for the whole engine: the rename lock, then stripes in ascending order (one call
//! takes all that an operation needs), then the content lock, then the overlay's.

use std::sync::{Mutex, MutexGuard};

use librorum_format::Ino;

/// Enough that a few hundred concurrent operations rarely meet by accident.
const STRIPE_COUNT: usize = 1024;

#[derive(Debug)]
pub(super) struct Stripes {
    stripes: Box<[Mutex<()>]>,
}

/// Held stripes. Most operations need one or two; a rename up to four.
#[derive(Debug)]
pub(super) struct Held<'a> {
    _guards: [Option<MutexGuard<'a, ()>>; 4],
}

/// All stripes: nothing changes while this is held.
#[derive(Debug)]
pub(super) struct Frozen<'a> {
    _guards: Vec<MutexGuard<'a, ()>>,
}

impl Stripes {
    pub(super) fn new() -> Self {
        Self { stripes: (0..STRIPE_COUNT).map(|_| Mutex::new(())).collect() }
    }

    /// Locks the stripes of at most four inodes.
    pub(super) fn lock(&self, inos: &[Ino]) -> Held<'_> {
        assert!(inos.len() <= 4, "no operation changes more than four inodes");
        let mut wanted = [usize::MAX; 4];
        for (slot, ino) in wanted.iter_mut().zip(inos) {
            *slot = stripe_of(*ino);
        }
        wanted.sort_unstable();
        let mut guards = [None, None, None, None];
        let mut last = usize::MAX;
        for (guard, &stripe) in guards.iter_mut().zip(&wanted) {
            if stripe != usize::MAX && stripe != last {
                *guard = Some(super::lock(&self.stripes[stripe]));
                last = stripe;
            }
        }
        Held { _guards: guards }
    }

    /// Locks everything.
    pub(super) fn freeze(&self) -> Frozen<'_> {
        Frozen { _guards: self.stripes.iter().map(super::lock).collect() }
    }
}

fn stripe_of(ino: Ino) -> usize {
    // Numbers are handed out in sequence, so their low bits are as good as a hash.
    usize::try_from(ino.0 % STRIPE_COUNT as u64).unwrap_or(0)
}
