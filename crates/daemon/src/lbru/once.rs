//! Requests with a key: what was done once is answered again, not done again.
//!
//! A client whose connection broke cannot know whether its request was done; it asks again with the
//! same key. While the first of its kind is still under way, others wait for its answer. An answer that
//! says that nothing was done (withdrawn, late, overloaded) is not kept.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use librorum_sys::clock;

use super::request::Request;

/// Answers that are kept for each user.
pub(super) const KEPT_COUNT: usize = 1024;
/// And their bytes: a thousand paths of the longest kind.
const KEPT_BYTES: usize = 8 << 20;
/// How long.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// A user's name for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) uid: u32,
    pub(super) key: [u8; 16],
}

/// What a request with a key was answered.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) status: u8,
    pub(super) meta: Vec<u8>,
}

/// What becomes of a request with a key.
#[derive(Debug)]
pub(super) enum Begin {
    /// It is the first one: it is to be done, and [`Once::finish`] told.
    First(Request),
    /// It was put aside until the first one is answered.
    Waits,
    /// It was done before.
    Done(Request, Arc<Kept>),
    /// The key was used for something else.
    Differs(Request),
}

#[derive(Debug, Default)]
pub(super) struct Once {
    users: Mutex<HashMap<u32, Window>>,
}

#[derive(Debug, Default)]
struct Window {
    entries: HashMap<[u8; 16], Entry>,
    /// The done ones, oldest first.
    done: VecDeque<(Duration, [u8; 16])>,
    done_bytes: usize,
}

#[derive(Debug)]
enum Entry {
    UnderWay { digest: [u8; 32], waiting: Vec<Request> },
    Done { digest: [u8; 32], kept: Arc<Kept> },
}

impl Window {
    fn forget_old(&mut self, now: Duration) {
        while let Some(&(at, key)) = self.done.front() {
            let is_old = now.saturating_sub(at) > KEPT_FOR;
            if !is_old && self.done.len() <= KEPT_COUNT && self.done_bytes <= KEPT_BYTES {
                return;
            }
            self.done.pop_front();
            if let Some(Entry::Done { kept, .. }) = self.entries.remove(&key) {
                self.done_bytes -= kept.meta.len();
            }
        }
    }
}

impl Once {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Window>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `digest` tells requests with the same key apart.
    pub(super) fn begin(&self, key: Key, digest: [u8; 32], request: Request) -> Begin {
        let now = clock::monotonic();
        let mut users = self.lock();
        if !users.contains_key(&key.uid) {
            users.retain(|_, window| {
                window.forget_old(now);
                !window.entries.is_empty()
            });
        }
        let window = users.entry(key.uid).or_default();
        window.forget_old(now);
        match window.entries.get_mut(&key.key) {
            None => {
                let entry = Entry::UnderWay { digest, waiting: Vec::new() };
                window.entries.insert(key.key, entry);
                Begin::First(request)
            }
            Some(Entry::UnderWay { digest: first, waiting }) if *first == digest => {
                waiting.push(request);
                Begin::Waits
            }
            Some(Entry::Done { digest: first, kept }) if *first == digest => {
                Begin::Done(request, Arc::clone(kept))
            }
            Some(_) => Begin::Differs(request),
        }
    }

    /// The first one was answered. With an answer to keep, all that waited get it; without one, the
    /// first of them takes its place.
    pub(super) fn finish(&self, key: Key, answer: Option<Arc<Kept>>) -> Vec<Request> {
        let mut users = self.lock();
        let Some(window) = users.get_mut(&key.uid) else { return Vec::new() };
        let Some(Entry::UnderWay { digest, waiting }) = window.entries.get_mut(&key.key) else {
            return Vec::new();
        };
        let digest = *digest;
        if answer.is_none() && !waiting.is_empty() {
            return vec![waiting.remove(0)];
        }
        let waiting = std::mem::take(waiting);
        match answer {
            None => {
                window.entries.remove(&key.key);
            }
            Some(kept) => {
                let now = clock::monotonic();
                window.done_bytes += kept.meta.len();
                window.done.push_back((now, key.key));
                window.entries.insert(key.key, Entry::Done { digest, kept });
                window.forget_old(now);
            }
        }
        waiting
    }
}
