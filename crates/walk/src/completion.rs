//! When a directory, and so the walk, is complete.
//!
//! Each directory that was opened is a [`Branch`]: a number of *tokens* that are out, and a tally.
//! There is a token for each piece of work that can still add to the branch: reading it (one, passed
//! on with the rest of a large listing, and doubled while two workers handle parts of it), and each
//! directory found in it, from before it is queued until it is complete itself.
//!
//! # Why this ends a walk exactly when it is done
//!
//! 1. *A token is only made by somebody who holds one of the same branch* ([`Branch::add`]: the
//!    worker that reads the directory). So a count that has reached zero stays zero: nobody is left
//!    who could raise it.
//! 2. *Each token is given back exactly once*, by whoever ends the work it stands for: jobs are
//!    values that move, and [`Branch::release`] is called at the end of each.
//! 3. *A branch holds a token of its parent* from its creation until its own count is zero, when
//!    [`Branch::release`] folds its tally into the parent's and goes on there. By induction over the
//!    tree, a branch at zero has nothing below it that is unread, and its tally is complete.
//! 4. So a root reaches zero once, after everything below it; the walk is over when all roots have.
//!    Every queued or running job holds a token, so this is also when no job exists any more.
//!
//! `release` is `AcqRel`: it publishes what was deposited before it to whoever brings the count to
//! zero. `add` is relaxed: the token that the caller holds keeps the count above zero meanwhile, and
//! whoever gets the new token gets it through a queue's lock. The lock of the tally alone would
//! order the sums; the count has to order them too because [`Branch::release`] takes the tally of a
//! branch that others may have deposited in.
//!
//! Nothing here waits, recurses, or is shared by all workers: a release touches the branch and, once
//! in a branch's life, its parent. `tests/interleavings.rs` runs this file under loom.

use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::{Arc, PoisonError};

use super::sync::{AtomicUsize, Mutex};

/// A directory whose content is not complete yet, with what its owner keeps about it.
pub(crate) struct Branch<D, T> {
    pub(crate) data: D,
    parent: Option<Arc<Self>>,
    tokens: AtomicUsize,
    tally: Mutex<T>,
}

impl<D, T: Default> Branch<D, T> {
    /// A branch with one token, the caller's, who passes on a token of `parent` to it.
    pub(crate) fn new(data: D, parent: Option<Arc<Self>>, tally: T) -> Arc<Self> {
        Arc::new(Self { data, parent, tokens: AtomicUsize::new(1), tally: Mutex::new(tally) })
    }

    /// Makes a token. The caller holds one.
    pub(crate) fn add(&self) {
        let before = self.tokens.fetch_add(1, Relaxed);
        assert!(before > 0, "a complete directory cannot get more work");
    }

    /// Adds to the tally. The caller holds a token.
    pub(crate) fn deposit<R>(&self, fold: impl FnOnce(&mut T) -> R) -> R {
        fold(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives back a token. If it was the last, `complete` turns the finished tally into what its
    /// parent gets, `fold` adds that to the parent's, and the same goes on there.
    ///
    /// Returns the root and its tally if the root is complete by this.
    pub(crate) fn release<C>(
        self: Arc<Self>,
        context: &mut C,
        complete: impl Fn(&mut C, &D, &mut T),
        fold: impl Fn(&mut C, &mut T, T),
    ) -> Option<(Arc<Self>, T)> {
        let mut branch = self;
        loop {
            let before = branch.tokens.fetch_sub(1, AcqRel);
            assert!(before > 0, "a token was given back twice");
            if before > 1 {
                return None;
            }
            let mut tally = branch.deposit(std::mem::take);
            complete(context, &branch.data, &mut tally);
            let Some(parent) = branch.parent.clone() else {
                return Some((branch, tally));
            };
            parent.deposit(|sum| fold(context, sum, tally));
            // Frees the finished branch; the parent stays, for its token.
            branch = parent;
        }
    }
}

impl<D, T> Drop for Branch<D, T> {
    /// A walk that was stopped may let go of the end of a long chain: not by recursion.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(mut parent) = next.and_then(Arc::into_inner) {
            next = parent.parent.take();
        }
    }
}
