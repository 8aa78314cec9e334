//! Everything that can be seen of a tree, to compare two of them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

/// Files up to this size are read whole, holes included.
const WHOLE_MAX_BYTES: u64 = 64 << 20;

/// What is at one path.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    /// The first path that leads to the same inode.
    same_as: PathBuf,
    size: u64,
    mtime: (i64, i64),
    content: blake3::Hash,
    /// Where the bytes are, as SEEK_DATA and SEEK_HOLE tell.
    layout: Vec<(u64, u64)>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// A tree by relative path.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) entries: BTreeMap<PathBuf, Entry>,
}

impl Snapshot {
    /// Fails with the entries that differ, not with two whole trees.
    pub(crate) fn assert_same(&self, other: &Self, what: &str) {
        let differ: Vec<String> = self
            .entries
            .keys()
            .chain(other.entries.keys().filter(|path| !self.entries.contains_key(*path)))
            .filter(|path| self.entries.get(*path) != other.entries.get(*path))
            .take(5)
            .map(|path| {
                let (left, right) = (self.entries.get(path), other.entries.get(path));
                format!("{}\n  native  {left:?}\n  mount   {right:?}", path.display())
            })
            .collect();
        assert!(differ.is_empty(), "{what}:\n{}", differ.join("\n"));
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, mode, owner, links, size, mtime, .. } = self;
        write!(f, "{kind} {mode:o} {owner:?} links {links} size {size} mtime {mtime:?} ")?;
        write!(f, "same as {} content {} ", self.same_as.display(), self.content)?;
        write!(f, "data {:?} xattrs {:?}", self.layout, self.xattrs)
    }
}

/// Looks at everything below `root`.
pub(crate) fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot { entries: BTreeMap::new() };
    let mut inodes = HashMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let path = root.join(&relative);
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            let mut names: Vec<_> =
                std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            // Sorted, so that the first of several hard links is the same everywhere.
            names.sort_by(|left, right| right.cmp(left));
            waiting.extend(names.into_iter().map(|name| relative.join(name)));
        }
        let same_as = inodes.entry(metadata.ino()).or_insert_with(|| relative.clone()).clone();
        found.entries.insert(relative, entry(&path, &metadata, same_as));
    }
    found
}

fn entry(path: &Path, metadata: &std::fs::Metadata, same_as: PathBuf) -> Entry {
    let kind = metadata.file_type();
    let is_symlink = kind.is_symlink();
    let mut layout = Vec::new();
    let mut content = blake3::hash(b"");
    let mut size = metadata.size();
    if kind.is_file() {
        let file = File::open(path).unwrap();
        layout = data_runs(&file, size);
        content = if size <= WHOLE_MAX_BYTES {
            blake3::hash(&std::fs::read(path).unwrap())
        } else {
            hash_runs(&file, &layout)
        };
    } else if is_symlink {
        content = blake3::hash(std::fs::read_link(path).unwrap().as_os_str().as_bytes());
    } else {
        // A directory's size is its file system's own affair.
        size = 0;
    }
    Entry {
        kind: kind_name(kind),
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        links: if kind.is_dir() { 0 } else { metadata.nlink() },
        same_as,
        size,
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        content,
        layout,
        xattrs: if is_symlink { BTreeMap::new() } else { xattrs(path) },
    }
}

/// Hashes the data and leaves the holes out.
fn hash_runs(file: &File, runs: &[(u64, u64)]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (start, end) in runs {
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        file.read_exact_at(&mut bytes, *start).unwrap();
        hasher.update(&bytes);
    }
    hasher.finalize()
}

fn kind_name(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "directory"
    } else if kind.is_symlink() {
        "symlink"
    } else if kind.is_file() {
        "file"
    } else if kind.is_fifo() {
        "fifo"
    } else {
        "special"
    }
}

/// The runs of data in a file, from SEEK_DATA and SEEK_HOLE.
pub(crate) fn data_runs(file: &File, size: u64) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => panic!("SEEK_DATA from {at}: {error}"),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        assert!(start >= at && end > start, "a run from {start} to {end}, searched from {at}");
        runs.push((start, end));
        at = end;
    }
    runs
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut list = vec![0_u8; 1 << 16];
    let len = rustix::fs::listxattr(path, list.as_mut_slice()).unwrap();
    list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = std::ffi::OsStr::from_bytes(name);
            let mut value = vec![0_u8; 1 << 16];
            let len = rustix::fs::getxattr(path, name, value.as_mut_slice()).unwrap();
            value.truncate(len);
            (name.to_owned(), value)
        })
        .collect()
}
