//! Which inodes were counted.
//!
//! Many threads ask before each file whether they can spare themselves a system call, and hardly ever
//! is the answer yes; so a small filter without locks answers most of them. It may be behind: then
//! the file is asked for its metadata, and the answer is found here under a lock. What it lets through
//! is looked up in one of 64 maps, each behind a lock of its own.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::Totals;
use crate::{Dir, Entry, FileId, Kind};

const SHARDS: usize = 64;

/// 2¹⁹ bits in 64 KiB: they fill up at some 10⁵ inodes with several names, where looking them up is
/// still cheaper than asking the kernel.
const FILTER_WORDS: usize = 1 << 13;

/// A name of an inode with several, and what the inode adds where it counts.
#[derive(Debug)]
pub(super) struct Sighting {
    pub(super) totals: Totals,
    pub(super) kind: Kind,
    pub(super) root: usize,
    /// `None`: it is a root.
    pub(super) dir: Option<Arc<Dir>>,
    pub(super) name: Box<[u8]>,
}

impl Sighting {
    /// Sorted order: roots, then directories, then names.
    fn is_after(&self, entry: &Entry<'_>) -> bool {
        let dirs = match (&self.dir, entry.dir()) {
            (Some(one), Some(two)) => one.sorted_cmp(two),
            (one, two) => one.is_some().cmp(&two.is_some()),
        };
        let order = self.root.cmp(&entry.root()).then(dirs);
        order.then_with(|| (*self.name).cmp(entry.name_bytes())) == Ordering::Greater
    }

    fn see(&mut self, entry: &Entry<'_>) {
        self.root = entry.root();
        self.dir = entry.dir().cloned();
        self.name = entry.name_bytes().into();
    }
}

type Shard = HashMap<FileId, Option<Box<Sighting>>, BuildHasherDefault<IdHasher>>;

/// The inodes that were counted, and with detail, the first name of each in sorted order.
#[derive(Debug)]
pub(super) struct Inodes {
    filter: OnceLock<Box<[AtomicU64]>>,
    shards: Box<[Mutex<Shard>]>,
    /// Last components of all mount points: a name that may not lead to the inode that it is listed
    /// with. `None` if they cannot be known.
    mounts: OnceLock<Option<Vec<Vec<u8>>>>,
}

impl Default for Inodes {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_shard| Mutex::default()).collect();
        Self { filter: OnceLock::new(), shards, mounts: OnceLock::new() }
    }
}

impl Inodes {
    /// Remembers an inode. Returns whether it is new.
    pub(super) fn insert(&self, id: FileId) -> bool {
        match self.shard(id).entry(id) {
            Slot::Occupied(_) => return false,
            Slot::Vacant(slot) => slot.insert(None),
        };
        self.mark(id);
        true
    }

    /// Remembers an inode and this name of it, unless an earlier one is known. Returns whether the
    /// inode is new. Without totals it must be known.
    pub(super) fn sight(&self, id: FileId, totals: Option<&Totals>, entry: &Entry<'_>) -> bool {
        match self.shard(id).entry(id) {
            Slot::Occupied(mut slot) => {
                if let Some(sighting) = slot.get_mut()
                    && sighting.is_after(entry)
                {
                    sighting.see(entry);
                }
                return false;
            }
            Slot::Vacant(slot) => {
                let Some(totals) = totals else { return false };
                slot.insert(Some(Box::new(Sighting {
                    totals: *totals,
                    kind: entry.kind(),
                    root: entry.root(),
                    dir: entry.dir().cloned(),
                    name: entry.name_bytes().into(),
                })));
            }
        }
        self.mark(id);
        true
    }

    /// Whether this name leads to an inode that was counted. If in doubt, no.
    pub(super) fn knows(&self, id: FileId, name: &[u8]) -> bool {
        let Some(filter) = self.filter.get() else { return false };
        let (word, bit) = filter_place(id);
        filter[word].load(Relaxed) & bit != 0
            && self.shard(id).contains_key(&id)
            && self
                .mounts
                .get_or_init(mount_names)
                .as_ref()
                .is_some_and(|mounts| mounts.iter().all(|mount| mount != name))
    }

    /// Takes out the names that were chosen, in no order.
    pub(super) fn take_sightings(&self) -> impl Iterator<Item = Sighting> {
        self.shards.iter().flat_map(|shard| {
            let shard = std::mem::take(&mut *shard.lock().unwrap_or_else(PoisonError::into_inner));
            shard.into_values().flatten().map(|sighting| *sighting)
        })
    }

    fn shard(&self, id: FileId) -> MutexGuard<'_, Shard> {
        // The map inside uses the highest and the lowest bits.
        let index = usize::try_from(hash(id) >> 32).unwrap_or(0) % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self, id: FileId) {
        let filter =
            self.filter.get_or_init(|| (0..FILTER_WORDS).map(|_word| AtomicU64::new(0)).collect());
        let (word, bit) = filter_place(id);
        filter[word].fetch_or(bit, Relaxed);
    }
}

/// Inodes of a device are numbers near each other: a multiplication spreads them.
fn hash(id: FileId) -> u64 {
    let mixed = (id.inode ^ id.device.rotate_left(40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

fn filter_place(id: FileId) -> (usize, u64) {
    let hash = hash(id);
    (usize::try_from(hash >> 40).unwrap_or(0) % FILTER_WORDS, 1 << ((hash >> 8) % 64))
}

/// Takes the two numbers of a [`FileId`] as they are.
#[derive(Default)]
struct IdHasher {
    device: u64,
    inode: u64,
}

impl Hasher for IdHasher {
    fn write_u64(&mut self, number: u64) {
        self.device = self.inode;
        self.inode = number;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.inode.rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        hash(FileId { device: self.device, inode: self.inode })
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn mount_names() -> Option<Vec<Vec<u8>>> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let point = line.split(|byte| *byte == b' ').nth(4)?;
            Some(unescape(point.rsplit(|byte| *byte == b'/').next()?))
        })
        .collect()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn mount_names() -> Option<Vec<Vec<u8>>> {
    None
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        let digits = rest.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        text = match code {
            Some(code) if *first == b'\\' => {
                plain.push(code);
                &rest[3..]
            }
            _ => {
                plain.push(*first);
                rest
            }
        };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_new_once_and_known_from_then_on() {
        let inodes = Inodes::default();
        for inode in 0..10_000 {
            let id = FileId { device: 7, inode };
            assert!(!inodes.knows(id, b"name"));
            assert!(inodes.insert(id));
            assert!(!inodes.insert(id));
            assert!(inodes.knows(id, b"name"));
            assert!(!inodes.knows(FileId { device: 8, inode }, b"name"));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn names_of_mount_points_are_never_taken_for_known() {
        let inodes = Inodes::default();
        let id = FileId { device: 7, inode: 1 };
        assert!(inodes.insert(id));
        // Mounted everywhere.
        assert!(!inodes.knows(id, b"proc"));
        assert_eq!(unescape(br"a\040b\134\012"), b"a b\\\n");
        assert_eq!(unescape(br"plain\"), b"plain\\");
    }
}
