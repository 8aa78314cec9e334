//! Callers that were sent a signal while they wait for us.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Interrupts of requests that are not waiting, or not yet: as many as could be on their way at
/// once between two threads.
const EARLY_MAX: usize = 64;

/// Whether the caller of a request wants it back: a handler that waits for anything but a disk looks
/// at it and answers `EINTR`.
#[derive(Debug, Default)]
pub struct Interrupt(AtomicBool);

impl Interrupt {
    /// Whether to give up.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The flag itself.
    #[must_use]
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }
}

/// The requests that can be interrupted.
#[derive(Debug, Default)]
pub(super) struct Interrupts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    waiting: HashMap<u64, Arc<Interrupt>>,
    /// Read by one thread before another has registered what it is about.
    early: VecDeque<u64>,
}

/// A request that can be interrupted, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    interrupts: &'a Interrupts,
    unique: u64,
    interrupt: Arc<Interrupt>,
}

impl Interrupts {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on an interrupt reaches the request.
    pub(super) fn register(&self, unique: u64) -> Waiting<'_> {
        let mut known = self.lock();
        let is_early = known.early.iter().position(|early| *early == unique);
        if let Some(index) = is_early {
            known.early.remove(index);
        }
        let interrupt = Arc::new(Interrupt(AtomicBool::new(is_early.is_some())));
        known.waiting.insert(unique, Arc::clone(&interrupt));
        Waiting { interrupts: self, unique, interrupt }
    }

    /// The kernel says that the caller of this request was sent a signal.
    pub(super) fn raise(&self, unique: u64) {
        let mut known = self.lock();
        if let Some(interrupt) = known.waiting.get(&unique) {
            interrupt.0.store(true, Ordering::Relaxed);
            return;
        }
        if known.early.len() == EARLY_MAX {
            known.early.pop_front();
        }
        known.early.push_back(unique);
    }
}

impl Waiting<'_> {
    pub(super) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.interrupts.lock().waiting.remove(&self.unique);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_reaches_its_request_whichever_is_read_first() {
        let interrupts = Interrupts::default();
        let late = interrupts.register(2);
        assert!(!late.interrupt().is_raised());
        interrupts.raise(2);
        assert!(late.interrupt().is_raised());
        interrupts.raise(4);
        let other = interrupts.register(6);
        assert!(!other.interrupt().is_raised());
        let early = interrupts.register(4);
        assert!(early.interrupt().is_raised());
        drop((late, early, other));
        assert!(interrupts.lock().waiting.is_empty());
    }

    #[test]
    fn interrupts_of_what_is_done_do_not_pile_up() {
        let interrupts = Interrupts::default();
        for unique in 0..10_000 {
            interrupts.raise(unique);
        }
        assert_eq!(interrupts.lock().early.len(), EARLY_MAX);
    }
}
