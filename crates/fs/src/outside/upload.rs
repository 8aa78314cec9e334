//! Files that are being filled from outside, before they have a place in the tree.
//!
//! An upload is a file on the segments' disk, so that publishing it moves no byte. One without a name
//! (`O_TMPFILE`) goes with whoever holds it. One with a name lies in the volume's folder `uploads`,
//! sparse, under the key that its client chose, and survives crashes: its own holes say what is
//! missing. It leaves that folder by being moved into the store, never by being linked there, so no
//! file is an upload and a segment at once; an upload that has two names (a power cut on a disk without
//! ordered names) is removed when it is next met.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use librorum_format::{SegmentId, Timestamp};
use librorum_meta::Meta;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};

use super::Outside;
use crate::error::{FsError, Result};
use crate::fs::Fs;
use crate::io::ROOM_BYTES;
use crate::node::{Backing, lock};

/// The folder of uploads with a name.
const UPLOADS: &str = "uploads";

/// The longest key.
const KEY_LEN_MAX: usize = 64;

/// What [`Upload::received_ranges`] knows apart: the disk's block. Pieces that start and end there, or
/// at the end of the file, are reported as they were written.
pub const UPLOAD_BLOCK_BYTES: u64 = 4096;

/// The uploads of an open volume.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    /// Keys of those with a name that are open.
    open: Mutex<HashSet<String>>,
    pub(crate) begun_count: AtomicU64,
    pub(crate) published_count: AtomicU64,
}

/// What is known of an upload with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadInfo {
    /// The key.
    pub key: String,
    /// How far it reaches.
    pub len_bytes: u64,
    /// What it takes on disk.
    pub allocated_bytes: u64,
    /// When it was last written.
    pub mtime: Timestamp,
    /// Whether an [`Upload`] of it exists.
    pub is_open: bool,
}

/// A file that is being filled. Dropped without being published, one without a name goes.
#[derive(Debug)]
pub struct Upload {
    fs: Arc<Fs>,
    /// Only without while it is published, and afterwards.
    pub(super) file: Option<File>,
    pub(super) source: Source,
}

/// Where an upload lies.
#[derive(Debug)]
pub(super) enum Source {
    /// Nowhere.
    Unnamed,
    /// In the store, under a name that nothing names yet: on a disk without files that have none, and
    /// once publishing has failed late.
    Store(SegmentId),
    /// In the folder of uploads.
    Named(String),
    /// It is published.
    Published,
}

impl Upload {
    /// The file, open for reading and writing. Copies of its descriptor may be handed out.
    ///
    /// # Errors
    ///
    /// `Invalid` once it is published.
    pub fn file(&self) -> Result<&File> {
        self.file.as_ref().ok_or(FsError::Invalid { what: "the upload is published already" })
    }

    /// Refuses to let the file grow into the last bytes of the disk: removing files needs some. Whoever
    /// lets others write it asks before each write.
    ///
    /// # Errors
    ///
    /// `NoSpace`; `Invalid` once it is published.
    pub fn leave_room(&self, end_bytes: u64) -> Result<()> {
        if self.fs.require_room(0).is_ok() {
            return Ok(());
        }
        let len = self.file()?.metadata().map_err(failed("cannot stat"))?.len();
        if end_bytes <= len { Ok(()) } else { self.fs.require_room(end_bytes - len) }
    }

    /// The key, if it has one.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match &self.source {
            Source::Named(key) => Some(key),
            Source::Unnamed | Source::Store(_) | Source::Published => None,
        }
    }

    /// Which ranges (start and end) hold data, in whole blocks of [`UPLOAD_BLOCK_BYTES`] up to the
    /// file's end. After a power cut only what the disk kept is among them. A block that was written in
    /// part counts as a whole.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn received_ranges(&self) -> Result<Vec<(u64, u64)>> {
        // Seeking moves the position of whoever has a copy of the descriptor.
        let file = reopen(self.file()?, OFlags::RDONLY).map_err(failed("cannot reopen"))?;
        let mut ranges = Vec::new();
        let mut at = 0;
        loop {
            let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => return Ok(ranges),
                Err(error) => return Err(failed("cannot seek in")(error.into())),
            };
            let end = rustix::fs::seek(&file, SeekFrom::Hole(start))
                .map_err(|error| failed("cannot seek in")(error.into()))?;
            ranges.push((start, end));
            at = end;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        match &self.source {
            Source::Unnamed | Source::Published => {}
            Source::Store(segment) => {
                // Otherwise a later search for leftovers finds it.
                if let Err(error) = self.fs.meta.condemn(&[*segment]) {
                    tracing::debug!(%error, "an abandoned upload stays until the next crash");
                }
            }
            Source::Named(key) => {
                lock(&self.fs.uploads.open).remove(key);
            }
        }
    }
}

impl Outside {
    /// Begins an upload that lasts as long as somebody has it open. `size_hint` bytes are set aside
    /// for it where the disk can do that, so that a disk that is too full says so now.
    ///
    /// Waits as a writer does while too much waits for sealing ([`Fs::wait_for_room`]).
    ///
    /// # Errors
    ///
    /// `NoSpace`, `ReadOnly`, `Interrupted` soon after `interrupted` was set, the disk's.
    pub fn begin_upload(&self, size_hint: u64, interrupted: &AtomicBool) -> Result<Upload> {
        let fs = &self.fs;
        fs.writable()?;
        fs.wait_for_room(interrupted)?;
        fs.require_room(size_hint)?;
        let (file, source) = match fs.store.create_unnamed()? {
            Some(file) => (file, Source::Unnamed),
            None => {
                let backing = fs.pool.take()?;
                let file = backing.file().try_clone().map_err(failed("cannot duplicate"))?;
                (file, Source::Store(backing.segment()))
            }
        };
        let upload = Upload { fs: Arc::clone(fs), file: Some(file), source };
        set_aside(upload.file()?, size_hint)?;
        fs.uploads.begun_count.fetch_add(1, Ordering::Relaxed);
        Ok(upload)
    }

    /// Begins an upload that survives crashes, or goes on with one: 1 to 64 of the characters
    /// `0-9a-f-` are its key. What it held before a power cut is what the disk has kept of it, which
    /// [`Upload::received_ranges`] tells. Waits as [`Outside::begin_upload`] does.
    ///
    /// # Errors
    ///
    /// `Invalid` for such a key, `Busy` if the upload is open already; as `begin_upload`.
    pub fn begin_named_upload(&self, key: &str, interrupted: &AtomicBool) -> Result<Upload> {
        let fs = &self.fs;
        check_key(key)?;
        fs.writable()?;
        fs.wait_for_room(interrupted)?;
        fs.require_room(0)?;
        let folder = fs.uploads_dir();
        make_folder(&fs.volume.dir, &folder)?;
        if !lock(&fs.uploads.open).insert(key.to_owned()) {
            return Err(FsError::Busy { what: "the upload is open already" });
        }
        let opened = open_named(&folder.join(key));
        if opened.is_err() {
            lock(&fs.uploads.open).remove(key);
        }
        fs.uploads.begun_count.fetch_add(1, Ordering::Relaxed);
        let source = Source::Named(key.to_owned());
        Ok(Upload { fs: Arc::clone(fs), file: Some(opened?), source })
    }

    /// All uploads with a name, in no order.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn uploads(&self) -> Result<Vec<UploadInfo>> {
        self.fs.list_uploads()
    }

    /// Removes an upload with a name. Whoever has it open keeps a file that cannot be published.
    ///
    /// # Errors
    ///
    /// `Invalid` for a key that is none, `Absent`, the disk's.
    pub fn remove_upload(&self, key: &str) -> Result<()> {
        check_key(key)?;
        self.fs.writable()?;
        let path = self.fs.uploads_dir().join(key);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(FsError::Absent { what: "upload of this key" })
            }
            Err(source) => Err(FsError::Volume { path, source }),
        }
    }

    /// Removes uploads with a name that nobody has open and nobody has written to for so long.
    /// Answers how many.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn expire_uploads(&self, older_than: Duration) -> Result<u64> {
        self.fs.writable()?;
        let age_secs = i64::try_from(older_than.as_secs()).unwrap_or(i64::MAX);
        let horizon = librorum_sys::clock::now().secs.saturating_sub(age_secs);
        let mut count = 0;
        for upload in self.uploads()? {
            if upload.is_open || upload.mtime.secs > horizon {
                continue;
            }
            match self.remove_upload(&upload.key) {
                Ok(()) => count += 1,
                Err(FsError::Absent { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}

impl Fs {
    pub(super) fn uploads_dir(&self) -> PathBuf {
        self.volume.dir.join(UPLOADS)
    }

    /// Refuses what would grow into the last bytes of the disk: removing files needs some.
    pub(super) fn require_room(&self, bytes: u64) -> Result<()> {
        if self.meta.free_bytes() >= bytes.saturating_add(ROOM_BYTES) {
            return Ok(());
        }
        Err(FsError::Volume {
            path: self.volume.dir.clone(),
            source: std::io::ErrorKind::StorageFull.into(),
        })
    }

    pub(crate) fn list_uploads(&self) -> Result<Vec<UploadInfo>> {
        let mut found = Vec::new();
        for (path, key) in self.upload_files()? {
            let Some(key) = key else { continue };
            // Published or removed since it was listed.
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            found.push(UploadInfo {
                is_open: lock(&self.uploads.open).contains(&key),
                key,
                len_bytes: metadata.len(),
                allocated_bytes: metadata.blocks() * 512,
                mtime: Timestamp::new(
                    metadata.mtime(),
                    u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
                ),
            });
        }
        Ok(found)
    }

    /// What lies in the folder of uploads, with its key if it is one.
    pub(crate) fn upload_files(&self) -> Result<Vec<(PathBuf, Option<String>)>> {
        let folder = self.uploads_dir();
        let volume_error = |source| FsError::Volume { path: folder.clone(), source };
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(volume_error(error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(volume_error)?;
            let is_file = entry.file_type().map_err(volume_error)?.is_file();
            let key = entry.file_name().into_string().ok();
            let key = key.filter(|key| is_file && check_key(key).is_ok());
            files.push((entry.path(), key));
        }
        Ok(files)
    }

    /// An adopted upload's staging file, open.
    pub(super) fn open_adopted(&self, segment: SegmentId) -> Result<Backing> {
        let backing = Backing::new(segment, self.store.open_bytes(segment, true)?);
        self.pool.watch(&backing);
        Ok(backing)
    }

    /// An upload leaves its place for the store.
    pub(super) fn take_in_upload(&self, key: &str) -> Result<SegmentId> {
        let folder = self.uploads_dir();
        let segment = self.store.take_in(&folder.join(key))?;
        sync_folder(&folder)?;
        Ok(segment)
    }

    /// An upload of this key is not open any more.
    pub(super) fn close_upload(&self, key: &str) {
        lock(&self.uploads.open).remove(key);
    }
}

fn check_key(key: &str) -> Result<()> {
    let is_valid = (1..=KEY_LEN_MAX).contains(&key.len())
        && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    if is_valid { Ok(()) } else { Err(FsError::Invalid { what: "not a key of an upload" }) }
}

/// Opens what lies under a key, or makes it.
fn open_named(path: &Path) -> Result<File> {
    let volume_error = |source: std::io::Error| FsError::Volume { path: path.to_owned(), source };
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| volume_error(error.into()))?;
        let file = File::from(file);
        if file.metadata().map_err(volume_error)?.nlink() == 1 {
            return Ok(file);
        }
        // A power cut kept both names of what was published: it is the other one.
        std::fs::remove_file(path).map_err(volume_error)?;
    }
}

/// Makes the folder of uploads, which nobody else may look into, if it is not there.
fn make_folder(volume_dir: &Path, folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => sync_folder(volume_dir),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(FsError::Volume { path: folder.to_owned(), source }),
    }
}

fn sync_folder(folder: &Path) -> Result<()> {
    let volume_error = |source| FsError::Volume { path: folder.to_owned(), source };
    let open = File::open(folder).map_err(volume_error)?;
    rustix::fs::fsync(&open).map_err(|error| volume_error(error.into()))
}

/// Sets blocks aside for a file without changing its length.
fn set_aside(file: &File, len_bytes: u64) -> Result<()> {
    use rustix::io::Errno;
    if len_bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, len_bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(failed("cannot set room aside for")(error.into())),
    }
}

/// Another description of an open file.
pub(super) fn reopen(file: &File, access: OFlags) -> std::io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Names what failed with an upload, which is no inode yet.
pub(super) fn failed(what: &'static str) -> impl FnOnce(std::io::Error) -> FsError {
    move |source| FsError::Upload { what, source }
}
