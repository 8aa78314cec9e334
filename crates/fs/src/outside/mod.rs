//! The volume for callers that are not the kernel.
//!
//! What always holds:
//! * Whoever has been answered finds the change through the mount too: every change tells the kernel
//!   what it has to forget, after it was made, before the call returns, and with none of our locks held
//!   (the kernel takes a directory's lock to forget an entry, and whoever holds that may wait for us).
//! * No reference of the kernel's is counted: an inode lives here by its names and by [`ReadHandle`]s.
//! * What the kernel has not written back yet, where it keeps dirty pages, is asked for before an inode
//!   that is open for writing is looked at.
//!
//! Permissions are the caller's to check.

mod publish;
mod read;
mod upload;
mod usage;

use std::sync::Arc;

use librorum_format::Ino;
use librorum_meta::{Dentry, Meta, NewInode, RenameMode, SetAttr, XattrMode};

pub use publish::PublishOptions;
pub use read::{Piece, PieceSource, ReadHandle};
pub(crate) use upload::Uploads;
pub use upload::{UPLOAD_BLOCK_BYTES, Upload, UploadInfo};
pub use usage::{ChunkRun, TreeUsage};

use crate::attr::{Attributes, TimeChange};
use crate::error::Result;
use crate::fs::Fs;

/// A volume as everybody but the kernel uses it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outside {
    fs: Arc<Fs>,
}

/// Which attributes to change; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttributeChange {
    /// The low 12 bits of `st_mode`.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of a regular file; new bytes are zeros.
    pub size_bytes: Option<u64>,
    /// Last access.
    pub atime: Option<TimeChange>,
    /// Last change of the content.
    pub mtime: Option<TimeChange>,
}

impl Outside {
    /// The outside of `fs`.
    #[must_use]
    pub fn new(fs: Arc<Fs>) -> Self {
        Self { fs }
    }

    /// The volume.
    #[must_use]
    pub fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }

    /// The inode that a name leads to.
    ///
    /// # Errors
    ///
    /// As [`Meta::lookup`].
    pub fn find(&self, parent: Ino, name: &[u8]) -> Result<Attributes> {
        let inode = self.fs.meta.lookup(parent, name)?;
        self.write_back(inode.ino);
        self.fs.refresh(inode)
    }

    /// The attributes of an inode.
    ///
    /// # Errors
    ///
    /// `NoInode`, or the disk's.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes> {
        self.write_back(ino);
        self.fs.attributes(ino)
    }

    /// Entries of a directory behind `after_cookie` (0 for the first), with their attributes: at most
    /// `limit`, but never ending between two entries of equal cookie; an empty answer is the end.
    /// Lengths of files that the mount is writing right now may be a moment old.
    ///
    /// # Errors
    ///
    /// As [`Meta::readdir_plus`].
    pub fn read_dir(
        &self,
        dir: Ino,
        after_cookie: u64,
        limit: usize,
    ) -> Result<Vec<(Dentry, Attributes)>> {
        self.fs.readdir_plus(dir, after_cookie, limit)
    }

    /// Makes a directory, a symbolic link, a special file, or an empty regular file.
    ///
    /// # Errors
    ///
    /// As [`Meta::create`].
    pub fn make(&self, parent: Ino, name: &[u8], new: &NewInode<'_>) -> Result<Attributes> {
        self.fs.writable()?;
        let (inode, _) = self.fs.meta.create(parent, name, new)?;
        self.fs.notifications.entry_changed(parent, name);
        Ok(Attributes { inode, being_written: false })
    }

    /// Gives a file another name.
    ///
    /// # Errors
    ///
    /// As [`Meta::link`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes> {
        self.fs.writable()?;
        let (inode, _) = self.fs.meta.link(ino, parent, name, librorum_sys::clock::now())?;
        self.fs.notifications.entry_changed(parent, name);
        self.fs.notifications.attributes_changed(ino);
        self.fs.refresh(inode)
    }

    /// Removes a name.
    ///
    /// # Errors
    ///
    /// As [`Meta::unlink`].
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.fs.writable()?;
        let (inode, _) = self.fs.meta.unlink(parent, name, librorum_sys::clock::now())?;
        self.fs.after_unlink(&inode);
        self.fs.notifications.entry_changed(parent, name);
        self.fs.notifications.attributes_changed(inode.ino);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// As [`Meta::rmdir`].
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.fs.writable()?;
        let (inode, _) = self.fs.meta.rmdir(parent, name, librorum_sys::clock::now())?;
        self.fs.after_unlink(&inode);
        self.fs.notifications.entry_changed(parent, name);
        self.fs.notifications.attributes_changed(inode.ino);
        Ok(())
    }

    /// Moves a name. A file that replaces another one has its bytes made durable first, as by
    /// [`Fs::rename`].
    ///
    /// # Errors
    ///
    /// As [`Meta::rename`], and the disk's.
    pub fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        // What is to be synced has to be there.
        if mode == RenameMode::Replace
            && let Ok(moved) = self.fs.meta.lookup(from.0, from.1)
        {
            self.write_back(moved.ino);
        }
        let renamed = self.fs.rename_returning(from, to, mode)?;
        let notifications = &self.fs.notifications;
        notifications.entry_changed(from.0, from.1);
        notifications.entry_changed(to.0, to.1);
        notifications.attributes_changed(renamed.moved.ino);
        if let Some(replaced) = renamed.replaced {
            notifications.attributes_changed(replaced.ino);
        }
        Ok(())
    }

    /// Changes the attributes of what a name leads to; see [`Outside::set_attributes`]. Where the
    /// kernel keeps dirty pages it believes nobody but itself about the length and the times of a file
    /// that it knows, so it is made to forget the name, and by that the file, unless somebody has it
    /// open: who does sees the old ones until it is closed.
    ///
    /// # Errors
    ///
    /// As [`Outside::find`] and [`Outside::set_attributes`].
    pub fn set_attributes_of(
        &self,
        (parent, name): (Ino, &[u8]),
        change: &AttributeChange,
    ) -> Result<Attributes> {
        let ino = self.fs.meta.lookup(parent, name)?.ino;
        let changed = self.set_attributes(ino, change);
        self.fs.notifications.entry_changed(parent, name);
        changed
    }

    /// Changes attributes of an inode. Prefer [`Outside::set_attributes_of`] where a name is known.
    ///
    /// # Errors
    ///
    /// `NoInode`, `ReadOnly`, `Invalid` for the length of anything but a regular file, `NoSpace`, the
    /// disk's.
    pub fn set_attributes(&self, ino: Ino, change: &AttributeChange) -> Result<Attributes> {
        self.fs.writable()?;
        let set =
            SetAttr { mode: change.mode, uid: change.uid, gid: change.gid, ..SetAttr::default() };
        let changes_more = set.mode.is_some()
            || set.uid.is_some()
            || set.gid.is_some()
            || change.atime.is_some()
            || change.mtime.is_some();
        let mut found = None;
        if let Some(size_bytes) = change.size_bytes {
            self.write_back(ino);
            found = Some(self.fs.truncate_from_outside(ino, size_bytes)?);
        }
        if changes_more || found.is_none() {
            found = match self.fs.set_attributes(ino, &set, change.atime, change.mtime) {
                Ok(changed) => Some(changed),
                Err(error) => {
                    self.fs.notifications.data_changed(ino);
                    return Err(error);
                }
            };
        }
        if change.size_bytes.is_some() {
            self.fs.notifications.data_changed(ino);
        } else {
            self.fs.notifications.attributes_changed(ino);
        }
        match found {
            Some(found) => Ok(found),
            None => self.fs.attributes(ino),
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    ///
    /// As [`Meta::symlink_target`].
    pub fn symlink_target(&self, ino: Ino) -> Result<Vec<u8>> {
        self.fs.symlink_target(ino)
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    ///
    /// As [`Meta::xattr`].
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.fs.xattr(ino, name)
    }

    /// The names of an inode's extended attributes.
    ///
    /// # Errors
    ///
    /// As [`Meta::xattr_names`].
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.fs.xattr_names(ino)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    ///
    /// As [`Fs::set_xattr`].
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.fs.set_xattr(ino, name, value, mode)?;
        self.fs.notifications.attributes_changed(ino);
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// As [`Meta::remove_xattr`].
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.fs.remove_xattr(ino, name)?;
        self.fs.notifications.attributes_changed(ino);
        Ok(())
    }

    /// What statvfs(3) says; see [`Fs::disk_usage`].
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn statvfs(&self) -> Result<rustix::fs::StatVfs> {
        self.fs.disk_usage()
    }

    /// Makes everything durable that has been answered; see [`Fs::sync`].
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn sync(&self) -> Result<()> {
        self.fs.sync()
    }

    /// Has the kernel write back what it keeps of a file that is open for writing through its page
    /// cache. It forgets its pages by that, which costs it little and happens rarely.
    fn write_back(&self, ino: Ino) {
        if self.fs.is_written_through_cache(ino) {
            self.fs.notifications.data_changed(ino);
        }
    }
}
