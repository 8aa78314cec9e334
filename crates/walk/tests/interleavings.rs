//! The two parts of the walker whose order of memory accesses matters, under loom: all interleavings of
//! small cases, the weak ones that a processor may produce included.
//!
//! The files are compiled here a second time, with loom's atomics and locks for those of `sync`.

#![forbid(unsafe_code)]

mod sync {
    pub(crate) use loom::sync::atomic::AtomicUsize;
    pub(crate) use loom::sync::{Condvar, Mutex};
}
#[path = "../src/completion.rs"]
mod completion;
#[path = "../src/gate.rs"]
mod gate;

use std::sync::Arc;

use completion::Branch;
use gate::Gate;

type Count = Branch<&'static str, usize>;

/// Ends a piece of work: what it found goes to its directory. Returns what the root counted if this
/// was the last, and writes down which directories were completed.
fn finish(branch: Arc<Count>, found: usize, completed: &mut Vec<&'static str>) -> Option<usize> {
    branch.deposit(|tally| *tally += found);
    let fold = |_: &mut Vec<&'static str>, into: &mut usize, part: usize| *into += part;
    branch
        .release(completed, |completed, name, _tally| completed.push(name), fold)
        .map(|(_, tally)| tally)
}

#[test]
fn a_tree_is_complete_once_and_with_everything_in_it() {
    loom::model(|| {
        let root: Arc<Count> = Branch::new("root", None, 1);
        // Two directories are found in the root and queued; then others open them.
        root.add();
        root.add();
        let (one, two) = (Arc::clone(&root), Arc::clone(&root));
        let first = loom::thread::spawn(move || {
            let mut completed = Vec::new();
            let dir: Arc<Count> = Branch::new("one", Some(one), 10);
            let sum = finish(dir, 100, &mut completed);
            (sum, completed)
        });
        let second = loom::thread::spawn(move || {
            let mut completed = Vec::new();
            let dir: Arc<Count> = Branch::new("two", Some(two), 1_000);
            // A directory below it, which this thread opens itself.
            dir.add();
            let below: Arc<Count> = Branch::new("below", Some(Arc::clone(&dir)), 10_000);
            assert_eq!(finish(below, 0, &mut completed), None);
            let sum = finish(dir, 100_000, &mut completed);
            (sum, completed)
        });
        let mut completed = Vec::new();
        let own = finish(root, 1_000_000, &mut completed);
        let (first, completed_first) = first.join().unwrap();
        let (second, completed_second) = second.join().unwrap();
        completed.extend(completed_first);
        completed.extend(completed_second);
        completed.sort_unstable();
        assert_eq!(completed, ["below", "one", "root", "two"]);
        let sums: Vec<usize> = [own, first, second].into_iter().flatten().collect();
        assert_eq!(sums, [1_111_111]);
    });
}

#[test]
fn two_who_read_one_directory_complete_it_together() {
    loom::model(|| {
        let root: Arc<Count> = Branch::new("root", None, 0);
        root.add();
        let rest = Arc::clone(&root);
        let other = loom::thread::spawn(move || finish(rest, 1, &mut Vec::new()));
        let own = finish(root, 2, &mut Vec::new());
        let other = other.join().unwrap();
        assert_eq!([own, other].into_iter().flatten().collect::<Vec<_>>(), [3]);
    });
}

/// Loom reports a thread that waits for ever as a deadlock.
#[test]
fn work_is_found_and_the_end_is_noticed_by_whoever_waits() {
    loom::model(|| {
        let gate = Arc::new(Gate::new());
        let queue = Arc::new(loom::sync::Mutex::new(0_usize));
        let (their_gate, their_queue) = (Arc::clone(&gate), Arc::clone(&queue));
        let idle = loom::thread::spawn(move || {
            let take = || {
                let mut queue = their_queue.lock().unwrap();
                (*queue > 0).then(|| *queue -= 1)
            };
            let found = their_gate.wait(take).is_some();
            if found {
                // The worker that takes the last job ends the walk.
                their_gate.close();
            }
            assert!(their_gate.wait(|| None::<()>).is_none());
            found
        });
        *queue.lock().unwrap() += 1;
        if gate.has_waiting() {
            gate.invite();
        }
        // The worker does not wait while it has jobs: it takes back what nobody took.
        let left = std::mem::take(&mut *queue.lock().unwrap());
        if left > 0 {
            gate.close();
        }
        let found = idle.join().unwrap();
        assert_eq!(usize::from(found) + left, 1);
    });
}

#[test]
fn an_invitation_reaches_one_of_those_who_wait() {
    loom::model(|| {
        let gate = Arc::new(Gate::new());
        let queue = Arc::new(loom::sync::Mutex::new(0_usize));
        let (their_gate, their_queue) = (Arc::clone(&gate), Arc::clone(&queue));
        let idle = loom::thread::spawn(move || {
            let take = || {
                let mut queue = their_queue.lock().unwrap();
                (*queue > 0).then(|| *queue -= 1)
            };
            their_gate.wait(take).is_some()
        });
        // Nothing is taken back here: whoever is counted as waiting when work is queued gets it,
        // and whoever is not counted yet finds it.
        *queue.lock().unwrap() += 1;
        if gate.has_waiting() {
            gate.invite();
        }
        assert!(idle.join().unwrap());
    });
}
