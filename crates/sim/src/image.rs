//! A crash image: what is left of a disk, to be written into a plain directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use librorum_format::Timestamp;
use librorum_fuse::transport::NodeKind;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, UTIME_OMIT};

use crate::page::{PAGE_LEN, page_offset, to_len};

/// A state that a power cut left.
#[derive(Debug)]
pub struct Image {
    /// Directories before what is in them.
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(crate) enum Entry {
    Directory {
        path: Vec<u8>,
        attributes: Attributes,
    },
    File {
        path: Vec<u8>,
        attributes: Attributes,
        content: FileImage,
    },
    /// Another name of a file that came before.
    Link {
        path: Vec<u8>,
        to: Vec<u8>,
    },
    Symlink {
        path: Vec<u8>,
        target: Vec<u8>,
    },
    Special {
        path: Vec<u8>,
        kind: NodeKind,
        attributes: Attributes,
        rdev: u32,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A file's bytes; pages that are not listed are holes.
#[derive(Debug)]
pub(crate) struct FileImage {
    pub(crate) size_bytes: u64,
    pub(crate) pages: Vec<(u64, Arc<[u8]>)>,
}

impl Image {
    /// Writes it into the empty directory `target`. Owners are set as far as the caller may, holes
    /// stay holes, times of directories are not kept.
    ///
    /// # Errors
    ///
    /// Those of writing files.
    pub fn write_to(&self, target: &Path) -> io::Result<()> {
        for entry in &self.entries {
            match entry {
                Entry::Directory { path, attributes } => {
                    let path = below(target, path);
                    std::fs::create_dir(&path)?;
                    attributes.apply(&path)?;
                }
                Entry::File { path, attributes, content } => {
                    let path = below(target, path);
                    content.write_to(&path)?;
                    attributes.apply(&path)?;
                }
                Entry::Link { path, to } => {
                    std::fs::hard_link(below(target, to), below(target, path))?;
                }
                Entry::Symlink { path, target: to } => {
                    symlink(OsStr::from_bytes(to), below(target, path))?;
                }
                Entry::Special { path, kind, attributes, rdev } => {
                    let path = below(target, path);
                    let mode = Mode::from_raw_mode(0o600);
                    let rdev = u64::from(*rdev);
                    rustix::fs::mknodat(CWD, &path, file_type(*kind), mode, rdev)?;
                    attributes.apply(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Makes what [`Self::write_to`] wrote durable.
    pub(crate) fn sync(&self, target: &Path) -> io::Result<()> {
        for entry in &self.entries {
            if let Entry::File { path, .. } | Entry::Directory { path, .. } = entry {
                rustix::fs::fsync(File::open(below(target, path))?)?;
            }
        }
        rustix::fs::fsync(File::open(target)?)?;
        Ok(())
    }

    /// A name for the image: equal images have equal ones. Times are left out.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for entry in &self.entries {
            match entry {
                Entry::Directory { path, .. } | Entry::Special { path, .. } => field(path),
                Entry::Link { path, to: other } | Entry::Symlink { path, target: other } => {
                    field(path);
                    field(other);
                }
                Entry::File { path, content, .. } => {
                    field(path);
                    field(&content.size_bytes.to_le_bytes());
                    for (page, bytes) in &content.pages {
                        field(&page.to_le_bytes());
                        field(bytes);
                    }
                }
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// How many bytes the files have, holes left out.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        let pages = self.entries.iter().map(|entry| match entry {
            Entry::File { content, .. } => content.pages.len() as u64,
            Entry::Directory { .. }
            | Entry::Link { .. }
            | Entry::Symlink { .. }
            | Entry::Special { .. } => 0,
        });
        page_offset(pages.sum())
    }
}

fn below(target: &Path, path: &[u8]) -> PathBuf {
    target.join(OsStr::from_bytes(path))
}

fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Regular => FileType::RegularFile,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::Fifo => FileType::Fifo,
        NodeKind::Socket => FileType::Socket,
        NodeKind::CharDevice => FileType::CharacterDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
    }
}

impl Attributes {
    fn apply(&self, path: &Path) -> io::Result<()> {
        if rustix::process::geteuid().is_root() && (self.uid != 0 || self.gid != 0) {
            std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))?;
        }
        std::fs::set_permissions(path, Permissions::from_mode(u32::from(self.mode)))?;
        for (name, value) in &self.xattrs {
            rustix::fs::setxattr(path, name.as_slice(), value, rustix::fs::XattrFlags::empty())?;
        }
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec {
                tv_sec: self.mtime.secs,
                tv_nsec: i64::from(self.mtime.nanos),
            },
        };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?;
        Ok(())
    }
}

impl FileImage {
    fn write_to(&self, path: &Path) -> io::Result<()> {
        let file = File::create_new(path)?;
        file.set_len(self.size_bytes)?;
        for (page, bytes) in &self.pages {
            let offset = page_offset(*page);
            let len = to_len(self.size_bytes.saturating_sub(offset)).min(PAGE_LEN);
            file.write_all_at(&bytes[..len], offset)?;
        }
        Ok(())
    }
}
