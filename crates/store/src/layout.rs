//! The store's folders and files: names, durable creation, removal, the walk over all of them.
//!
//! `data/FF/<id>.bytes` holds a segment's bytes and `data/FF/<id>.table` its chunk table, where
//! `<id>` is 16 hex digits and `FF` is bits 6 to 13 of the id: 64 consecutive ids share a folder, so
//! a batch of new staging files costs one folder sync instead of one per file, and a billion
//! segments still spread over 256 folders.
//!
//! All paths are relative to one open descriptor of `data`, which also carries the lock that keeps
//! a second process out.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use librorum_format::SegmentId;
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::StoreError;

/// How many folders the segments spread over.
const FOLDER_COUNT: u16 = 256;

/// This many consecutive ids share a folder.
pub(crate) const FOLDER_RUN_IDS: u64 = 64;

/// The folder that holds the segments of one store.
#[derive(Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
    data: OwnedFd,
    /// Whether the disk makes changes of names and lengths durable in the order in which they were
    /// made.
    is_ordered: bool,
}

/// Whether the disk makes changes of names and lengths durable in the order in which they were made,
/// whatever files they belong to (`docs/format-store.md`, A10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskOrder {
    /// It does if the kernel calls it by the name of one that does.
    #[default]
    Ask,
    /// It does. For a disk that keeps the order under a name of its own, as the simulated one can.
    Kept,
}

/// The logs of ext4 and XFS are ordered, and on tmpfs nothing lasts. Magic numbers of statfs(2).
const ORDERED_DISKS: [u64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];

/// Which of a segment's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The bytes.
    Bytes,
    /// The chunk table.
    Table,
    /// A chunk table that is being written. One that outlives a crash means nothing.
    TableDraft,
}

impl Part {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Table => "table",
            Self::TableDraft => "draft",
        }
    }
}

impl Layout {
    /// Lays out an empty `data` folder under `dir` and makes it durable.
    pub(crate) fn create(dir: &Path) -> Result<(), StoreError> {
        let data = dir.join("data");
        std::fs::create_dir_all(&data).map_err(at("create", &data))?;
        for folder in 0..FOLDER_COUNT {
            let path = data.join(format!("{folder:02x}"));
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(at("create", &path))?,
            }
        }
        // The folders are empty, so only their names must last; each is synced when a file is
        // created in it.
        sync_dir(&data)?;
        sync_dir(dir)
    }

    /// Opens the layout and locks it against other processes.
    pub(crate) fn open(dir: &Path, order: DiskOrder) -> Result<Self, StoreError> {
        let path = dir.join("data");
        let data = open_dir(&path)?;
        match rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let disk = rustix::fs::fstatfs(&data)
                    .map_err(|errno| at("statfs", &path)(errno.into()))?;
                let is_ordered = order == DiskOrder::Kept
                    || u64::try_from(disk.f_type).is_ok_and(|kind| ORDERED_DISKS.contains(&kind));
                Ok(Self { dir: dir.to_owned(), data, is_ordered })
            }
            Err(Errno::WOULDBLOCK) => Err(StoreError::Busy { path: dir.to_owned() }),
            Err(errno) => Err(at("lock", &path)(errno.into())),
        }
    }

    /// Creates a segment's file, empty. The name is not durable before [`Self::sync_folders`].
    pub(crate) fn create_bytes(&self, segment: SegmentId) -> Result<File, StoreError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        self.open_at(segment, Part::Bytes, flags).map_err(on("create", segment))
    }

    /// Opens a segment's file. [`StoreError::Missing`] if there is none.
    pub(crate) fn open_bytes(
        &self,
        segment: SegmentId,
        access: OFlags,
    ) -> Result<File, StoreError> {
        self.open_at(segment, Part::Bytes, access | OFlags::CLOEXEC)
            .map_err(missing_or("open", segment))
    }

    /// The `stat` of a segment's file. [`StoreError::Missing`] if there is none.
    pub(crate) fn stat(&self, segment: SegmentId, part: Part) -> Result<Stat, StoreError> {
        rustix::fs::statat(&self.data, name(segment, part), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(missing_or("stat", segment))
    }

    /// Whether a segment has a file of this kind.
    pub(crate) fn exists(&self, segment: SegmentId, part: Part) -> Result<bool, StoreError> {
        match self.stat(segment, part) {
            Ok(_) => Ok(true),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The bytes of a segment's chunk table, if it has one.
    pub(crate) fn read_table(&self, segment: SegmentId) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = Vec::new();
        match self.open_at(segment, Part::Table, OFlags::RDONLY | OFlags::CLOEXEC) {
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(on("open the chunk table of", segment)(errno)),
            Ok(mut file) => io::Read::read_to_end(&mut file, &mut bytes),
        }
        .map_err(|source| StoreError::Segment {
            action: "read the chunk table of",
            segment,
            source,
        })?;
        Ok(Some(bytes))
    }

    /// Writes a segment's chunk table: complete and durable under its name, or not there at all.
    /// Also makes the names of everything else in that folder durable.
    pub(crate) fn write_table(&self, segment: SegmentId, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.try_write_table(segment, bytes);
        if written.is_err() {
            // A table under its real name would vouch for a file whose sealing failed.
            for part in [Part::TableDraft, Part::Table] {
                self.remove_quietly(segment, part);
            }
        }
        written
    }

    fn try_write_table(&self, segment: SegmentId, bytes: &[u8]) -> Result<(), StoreError> {
        const ACTION: &str = "write the chunk table of";
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file =
            self.open_at(segment, Part::TableDraft, flags).map_err(on(ACTION, segment))?;
        file.write_all(bytes).map_err(|source| StoreError::Segment {
            action: ACTION,
            segment,
            source,
        })?;
        rustix::fs::fsync(&file).map_err(on("sync the chunk table of", segment))?;
        let (draft, table) = (name(segment, Part::TableDraft), name(segment, Part::Table));
        rustix::fs::renameat(&self.data, draft, &self.data, table).map_err(on(ACTION, segment))?;
        self.sync_folders(&[segment])
    }

    /// Gives a segment's file a second name, durable on return.
    pub(crate) fn link(&self, from: SegmentId, to: SegmentId) -> Result<(), StoreError> {
        let (old, new) = (name(from, Part::Bytes), name(to, Part::Bytes));
        rustix::fs::linkat(&self.data, old, &self.data, new, AtFlags::empty())
            .map_err(missing_or("link", from))?;
        self.sync_folders(&[to])
    }

    /// Gives an open file without a name (`O_TMPFILE`) the name of a segment. Not durable before
    /// [`Self::sync_folders`].
    pub(crate) fn adopt(&self, file: &File, segment: SegmentId) -> Result<(), StoreError> {
        use std::os::fd::AsRawFd as _;
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        let new = name(segment, Part::Bytes);
        rustix::fs::linkat(rustix::fs::CWD, open, &self.data, new, AtFlags::SYMLINK_FOLLOW)
            .map_err(on("adopt a file as", segment))
    }

    /// Moves a file from outside of the store to the name of a segment. Not durable before
    /// [`Self::sync_folders`].
    pub(crate) fn take_in(&self, path: &Path, segment: SegmentId) -> Result<(), StoreError> {
        let new = name(segment, Part::Bytes);
        rustix::fs::renameat(rustix::fs::CWD, path, &self.data, new)
            .map_err(on("take in a file as", segment))
    }

    /// The inverse of [`Self::take_in`].
    pub(crate) fn put_out(&self, segment: SegmentId, path: &Path) -> Result<(), StoreError> {
        let old = name(segment, Part::Bytes);
        rustix::fs::renameat(&self.data, old, rustix::fs::CWD, path).map_err(on("put out", segment))
    }

    /// A new file without a name, on the disk of the segments, open for reading and writing.
    pub(crate) fn create_unnamed(&self) -> Result<File, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(&self.data, ".", flags, Mode::RUSR | Mode::WUSR).map(File::from)
    }

    /// Renames a segment's file. The names are not durable before [`Self::sync_folders`].
    pub(crate) fn rename(&self, from: SegmentId, to: SegmentId) -> Result<(), StoreError> {
        let (old, new) = (name(from, Part::Bytes), name(to, Part::Bytes));
        rustix::fs::renameat(&self.data, old, &self.data, new).map_err(missing_or("rename", from))
    }

    /// Removes one of a segment's files; true if it was there.
    pub(crate) fn remove(&self, segment: SegmentId, part: Part) -> Result<bool, StoreError> {
        match rustix::fs::unlinkat(&self.data, name(segment, part), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(on("remove", segment)(errno)),
        }
    }

    /// Removes what a failed operation began. A failure to do so is only worth a log line: the
    /// error that led here is the one to report, and the sweep will find what is left.
    pub(crate) fn remove_quietly(&self, segment: SegmentId, part: Part) {
        if let Err(error) = self.remove(segment, part) {
            tracing::warn!(%segment, %error, "a half-made file stays behind");
        }
    }

    /// Whether the disk makes changes of names and lengths durable in the order in which they were
    /// made.
    pub(crate) fn is_ordered(&self) -> bool {
        self.is_ordered
    }

    /// Makes the names in the folders of these segments durable, each folder once. The last of them
    /// must be the one whose name changed last: on an ordered disk its folder takes the others along.
    pub(crate) fn sync_folders(&self, segments: &[SegmentId]) -> Result<(), StoreError> {
        let needed = if self.is_ordered { segments.len().saturating_sub(1) } else { 0 };
        let mut folders: Vec<u8> = segments[needed..].iter().copied().map(folder).collect();
        folders.sort_unstable();
        folders.dedup();
        for folder in folders {
            sync_dir(&self.dir.join("data").join(format!("{folder:02x}")))?;
        }
        Ok(())
    }

    /// All segments that have a file, in no order.
    pub(crate) fn segments(&self) -> Segments<'_> {
        Segments { layout: self, next_folder: 0, entries: None }
    }

    fn open_at(&self, segment: SegmentId, part: Part, flags: OFlags) -> Result<File, Errno> {
        rustix::fs::openat(&self.data, name(segment, part), flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
    }
}

/// The walk over all segments: which exist, and which of their files. Constant memory; a segment
/// that comes or goes during the walk may be seen or not.
#[derive(Debug)]
pub struct Segments<'a> {
    layout: &'a Layout,
    next_folder: u16,
    entries: Option<(u8, Dir)>,
}

impl Iterator for Segments<'_> {
    type Item = Result<(SegmentId, bool, bool), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((folder, entries)) = &mut self.entries else {
                let folder = u8::try_from(self.next_folder).ok()?;
                self.next_folder += 1;
                let path = self.layout.dir.join("data").join(format!("{folder:02x}"));
                match open_dir(&path)
                    .and_then(|fd| Dir::new(fd).map_err(|e| at("list", &path)(e.into())))
                {
                    Ok(entries) => self.entries = Some((folder, entries)),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            match entries.next() {
                None => self.entries = None,
                Some(Err(errno)) => {
                    let path = self.layout.dir.join("data").join(format!("{folder:02x}"));
                    self.entries = None;
                    return Some(Err(at("list", &path)(errno.into())));
                }
                Some(Ok(entry)) => {
                    let found = look(self.layout, *folder, entry.file_name().to_bytes());
                    if let Some(item) = found.transpose() {
                        return Some(item);
                    }
                }
            }
        }
    }
}

/// What a name in a folder says about its segment; `None` if another name of the same segment says
/// it, or if it is not ours.
fn look(
    layout: &Layout,
    in_folder: u8,
    file_name: &[u8],
) -> Result<Option<(SegmentId, bool, bool)>, StoreError> {
    match parse(file_name) {
        Some((segment, Part::Bytes)) if folder(segment) == in_folder => {
            Ok(Some((segment, true, layout.exists(segment, Part::Table)?)))
        }
        // The name of the bytes, if there is one, reports both.
        Some((segment, Part::Table)) if folder(segment) == in_folder => {
            Ok((!layout.exists(segment, Part::Bytes)?).then_some((segment, false, true)))
        }
        // Left by a crash; the next seal or removal of that segment takes it away.
        Some((_, Part::TableDraft)) => Ok(None),
        _ => {
            if file_name != b"." && file_name != b".." {
                let name = String::from_utf8_lossy(file_name);
                tracing::warn!(folder = in_folder, %name, "a foreign file among the segments");
            }
            Ok(None)
        }
    }
}

fn folder(segment: SegmentId) -> u8 {
    segment.0.to_le_bytes()[0] >> 6 | segment.0.to_le_bytes()[1] << 2
}

fn name(segment: SegmentId, part: Part) -> String {
    format!("{:02x}/{segment}.{}", folder(segment), part.suffix())
}

fn parse(file_name: &[u8]) -> Option<(SegmentId, Part)> {
    let (id, suffix) = std::str::from_utf8(file_name).ok()?.split_once('.')?;
    let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if id.len() != 16 || !id.bytes().all(lower_hex) {
        return None;
    }
    let part = [Part::Bytes, Part::Table, Part::TableDraft]
        .into_iter()
        .find(|part| part.suffix() == suffix)?;
    Some((SegmentId(u64::from_str_radix(id, 16).ok()?), part))
}

fn open_dir(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| at("open", path)(errno.into()))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    rustix::fs::fsync(open_dir(path)?).map_err(|errno| at("sync", path)(errno.into()))
}

/// Makes an [`io::Error`] name the path it happened at.
pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

/// Makes an [`Errno`] name the segment it happened on.
pub(crate) fn on(action: &'static str, segment: SegmentId) -> impl FnOnce(Errno) -> StoreError {
    move |errno| StoreError::Segment { action, segment, source: errno.into() }
}

fn missing_or(action: &'static str, segment: SegmentId) -> impl FnOnce(Errno) -> StoreError {
    move |errno| match errno {
        Errno::NOENT => StoreError::Missing { segment, chunk: None },
        errno => on(action, segment)(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back_and_lies_in_the_folder_of_its_id() {
        for id in [1, 63, 64, 0x3fff, 0x4000, u64::MAX] {
            for part in [Part::Bytes, Part::Table, Part::TableDraft] {
                let path = name(SegmentId(id), part);
                let (in_folder, file) = path.split_once('/').unwrap();
                assert_eq!(in_folder, format!("{:02x}", (id >> 6) & 0xff));
                assert_eq!(parse(file.as_bytes()), Some((SegmentId(id), part)));
            }
        }
    }

    #[test]
    fn foreign_names_do_not_parse() {
        for name in ["x.bytes", "0000000000000001", "000000000000000G.bytes", "0000000000000001.b"]
        {
            assert_eq!(parse(name.as_bytes()), None, "{name}");
        }
    }
}
