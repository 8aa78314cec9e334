//! Names: looking up, making, moving and removing them, and what lives on when the last one goes.

use librorum_format::Ino;
use librorum_meta::{Dentry, FileKind, Inode, Meta, NewInode, RenameMode, Renamed, XattrMode};

use crate::attr::Attributes;
use crate::error::{FsError, Result, disk};
use crate::fs::Fs;
use crate::node::{Data, lock};

impl Fs {
    /// The inode that a name leads to; the kernel holds a reference to it from now on.
    ///
    /// # Errors
    ///
    /// As [`Meta::lookup`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes> {
        let found = self.refresh(self.meta.lookup(parent, name)?)?;
        self.table.look_up(found.inode.ino);
        Ok(found)
    }

    /// The kernel took a reference outside `lookup`: from a directory listing.
    pub fn reference(&self, ino: Ino) {
        self.table.look_up(ino);
    }

    /// The kernel drops references. An inode without names and references is freed.
    pub fn forget(&self, ino: Ino, count: u64) {
        if self.table.forget(ino, count) {
            self.reap_if_unused(ino);
        }
    }

    /// Makes anything but an open regular file.
    ///
    /// # Errors
    ///
    /// As [`Meta::create`].
    pub fn make(&self, parent: Ino, name: &[u8], new: &NewInode<'_>) -> Result<Attributes> {
        self.writable()?;
        let (inode, _) = self.meta.create(parent, name, new)?;
        self.table.look_up(inode.ino);
        Ok(Attributes { inode, being_written: false })
    }

    /// Gives a file another name.
    ///
    /// # Errors
    ///
    /// As [`Meta::link`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes> {
        self.writable()?;
        let (inode, _) = self.meta.link(ino, parent, name, librorum_sys::clock::now())?;
        self.table.look_up(ino);
        self.refresh(inode)
    }

    /// Removes a name.
    ///
    /// # Errors
    ///
    /// As [`Meta::unlink`].
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        let (inode, _) = self.meta.unlink(parent, name, librorum_sys::clock::now())?;
        self.after_unlink(&inode);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// As [`Meta::rmdir`].
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        let (inode, _) = self.meta.rmdir(parent, name, librorum_sys::clock::now())?;
        self.after_unlink(&inode);
        Ok(())
    }

    /// Moves a name. A file that replaces another one has its bytes made durable first, as ext4
    /// does: editors save so, and a crash must leave the old file or the new one, not an empty one.
    ///
    /// # Errors
    ///
    /// As [`Meta::rename`], and the disk's.
    pub fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        self.rename_returning(from, to, mode).map(|_renamed| ())
    }

    /// The same, and what it did.
    pub(crate) fn rename_returning(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<Renamed> {
        self.writable()?;
        if mode == RenameMode::Replace {
            self.sync_before_replace(from, to)?;
        }
        let renamed = self.meta.rename(from, to, mode, librorum_sys::clock::now())?;
        if let Some(replaced) = &renamed.replaced
            && mode == RenameMode::Replace
        {
            self.after_unlink(replaced);
        }
        Ok(renamed)
    }

    fn sync_before_replace(&self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<()> {
        // The rename itself finds and reports what fails here.
        let Ok(moved) = self.meta.lookup(from.0, from.1) else { return Ok(()) };
        if moved.content.staging().is_none() {
            return Ok(());
        }
        match self.meta.lookup(to.0, to.1) {
            Ok(replaced) if replaced.kind == FileKind::Regular && replaced.ino != moved.ino => {}
            _ => return Ok(()),
        }
        let node = self.table.node(moved.ino);
        let backing = {
            let mut state = lock(&node.state);
            self.load(&node, &mut state)?;
            state.data.as_ref().and_then(Data::staging).cloned()
        };
        if let Some(backing) = backing {
            rustix::fs::fdatasync(backing.file())
                .map_err(disk("cannot sync the staging file", moved.ino))?;
        }
        drop(node);
        self.reclaim.note_idle(moved.ino);
        Ok(())
    }

    pub(crate) fn after_unlink(&self, inode: &Inode) {
        if inode.nlink > 0 {
            return;
        }
        if let Some(node) = self.table.existing(inode.ino) {
            lock(&node.state).orphan = true;
        }
        self.reap_if_unused(inode.ino);
    }

    /// Entries of a directory; see [`Meta::readdir`].
    ///
    /// # Errors
    ///
    /// As [`Meta::readdir`].
    pub fn readdir(&self, dir: Ino, after: u64, limit: usize) -> Result<Vec<Dentry>> {
        Ok(self.meta.readdir(dir, after, limit)?)
    }

    /// Entries of a directory with their attributes; the kernel's references are counted by
    /// [`Fs::reference`].
    ///
    /// # Errors
    ///
    /// As [`Meta::readdir_plus`].
    pub fn readdir_plus(
        &self,
        dir: Ino,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(Dentry, Attributes)>> {
        self.meta
            .readdir_plus(dir, after, limit)?
            .into_iter()
            .map(|(dentry, inode)| Ok((dentry, self.refresh(inode)?)))
            .collect()
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    ///
    /// As [`Meta::symlink_target`].
    pub fn symlink_target(&self, ino: Ino) -> Result<Vec<u8>> {
        Ok(self.meta.symlink_target(ino)?)
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    ///
    /// As [`Meta::xattr`].
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        Ok(self.meta.xattr(ino, name)?)
    }

    /// The names of an inode's extended attributes.
    ///
    /// # Errors
    ///
    /// As [`Meta::xattr_names`].
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        Ok(self.meta.xattr_names(ino)?)
    }

    /// Sets an extended attribute. POSIX ACLs are refused: the kernel would not enforce them here,
    /// and an ACL that is stored but not enforced is a trap.
    ///
    /// # Errors
    ///
    /// As [`Meta::set_xattr`], and `Unsupported` for ACLs.
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.writable()?;
        if name.starts_with(b"system.") {
            return Err(FsError::Unsupported { what: "a POSIX ACL" });
        }
        self.meta.set_xattr(ino, name, value, mode, librorum_sys::clock::now())?;
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// As [`Meta::remove_xattr`].
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        self.meta.remove_xattr(ino, name, librorum_sys::clock::now())?;
        Ok(())
    }
}
