//! What a walk tells, and to whom.

use std::sync::Arc;

use crate::{Dir, Entered, Entry, Error};

/// What to do with a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descend<S> {
    /// Read it. `S` is at hand for everything that is found in it.
    Into(S),
    /// Do not read it; `exit` follows.
    No(S),
    /// As if it were not there: no `exit`, its tally is dropped (but for a root's).
    Skip,
}

/// Sees what a walk finds. Each worker has one of its own, made on its own thread, and never called
/// by two at once; what they found is merged at the end, from [`crate::Outcome`].
///
/// Events of a directory come in this order: `enter`; then, on any threads and in any order,
/// everything in it; then `exit`, on the thread that finished last. A visitor for which a method is
/// empty costs nothing there.
pub trait Visitor: Send {
    /// Handed down from a directory to everything in it, such as the ignore rules that hold there.
    type Scope: Send + Sync;
    /// Folded up, from files into directories into their parents. While workers share a directory
    /// each has a part of its tally.
    type Tally: Default + Send;

    /// A directory was opened, or could not be (then an error follows). `tally` becomes its own.
    fn enter(
        &mut self,
        dir: &Entered<'_>,
        parent: Option<&Self::Scope>,
        tally: &mut Self::Tally,
    ) -> Descend<Self::Scope>;

    /// Asked before an entry is opened or its metadata fetched: `false` prunes it. Not asked for
    /// roots.
    fn keep(&mut self, entry: &Entry<'_>, scope: &Self::Scope) -> bool {
        let _unused = (entry, scope);
        true
    }

    /// Asked before metadata are fetched, where [`Entry::inode`] can be trusted and is on the device
    /// of its directory (unless it is a mount point): `false` saves the system call, and `file` gets
    /// the entry without metadata.
    fn wants_metadata(&mut self, entry: &Entry<'_>, scope: &Self::Scope) -> bool {
        let _unused = (entry, scope);
        true
    }

    /// Anything that is not a directory. `scope` is `None` for a root.
    fn file(&mut self, entry: &Entry<'_>, scope: Option<&Self::Scope>, tally: &mut Self::Tally);

    /// Everything below `dir` has been told, and `tally` is complete; what is left in it goes to the
    /// parent.
    fn exit(&mut self, dir: &Arc<Dir>, scope: &Self::Scope, tally: &mut Self::Tally) {
        let _unused = (dir, scope, tally);
    }

    /// Adds a part of a directory's tally, or the finished tally of one in it.
    fn fold(&mut self, into: &mut Self::Tally, part: Self::Tally);

    /// Something could not be done. `tally` belongs to the directory that it happened in.
    fn error(&mut self, error: Error, tally: &mut Self::Tally);
}
