//! Operations on names: lookup, create, link, unlink, rmdir, rename.
//!
//! An operation that finds an inode by name cannot know which stripes to lock before it has
//! looked. It looks first, locks, looks again, and starts over if the name has moved meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use librorum_format::{Ino, NAME_LEN_MAX, Timestamp, TxnId};

use super::edit::{Edit, corrupt};
use super::space::Growth;
use super::stripes::Held;
use super::{Core, NamedTarget, lock};
use crate::record::{Body, Record, Table, Target, key};
use crate::{
    COOKIE_MIN, Content, FileKind, Inode, MetaError, NLINK_MAX, NewInode, RenameMode, Renamed,
    Result, SetAttr,
};

const S_ISGID: u16 = 0o2000;

/// The longest symlink target, as in Linux (`PATH_MAX` without its NUL).
const SYMLINK_LEN_MAX: usize = 4095;

pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_LEN_MAX {
        return Err(MetaError::NameTooLong { len: name.len() });
    }
    if name.is_empty()
        || name == b"."
        || name == b".."
        || name.iter().any(|b| matches!(b, b'/' | 0))
    {
        return Err(MetaError::BadName { name: name.to_vec() });
    }
    Ok(())
}

impl Core {
    /// Where the entry of this name stands in its directory: 63 bits of a keyed hash.
    pub(super) fn cookie(&self, name: &[u8]) -> u64 {
        let hash = blake3::keyed_hash(&self.cookie_key, name);
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        let cookie = u64::from_le_bytes(first) >> 1;
        // The few values that readers keep for themselves move up; collisions are allowed.
        if cookie < COOKIE_MIN { cookie + COOKIE_MIN } else { cookie }
    }

    /// The record of an inode whose stripe the caller holds.
    pub(super) fn record_locked(&self, ino: Ino) -> Result<Option<Record>> {
        if let Some(record) = self.records.get(&ino) {
            return Ok(Some(record));
        }
        let record = self.record_uncached(ino)?;
        if let Some(record) = &record {
            self.records.insert(ino, record.clone());
        }
        Ok(record)
    }

    /// The record of an inode, past the cache and without filling it.
    pub(super) fn record_uncached(&self, ino: Ino) -> Result<Option<Record>> {
        self.engine
            .get(Table::Inodes, &key::inode(ino))?
            .map(|bytes| {
                Record::decode(ino, &bytes).map_err(|source| corrupt("inodes", ino, source))
            })
            .transpose()
    }

    pub(super) fn inode(&self, ino: Ino) -> Result<Inode> {
        if let Some(record) = self.records.get(&ino) {
            return Ok(record.inode);
        }
        let _held = self.stripes.lock(&[ino]);
        match self.record_locked(ino)? {
            Some(record) => Ok(record.inode),
            None => Err(MetaError::NoInode { ino }),
        }
    }

    /// The dentry, for a caller that holds the directory's stripe.
    pub(super) fn target_locked(&self, parent: Ino, name: &[u8]) -> Result<Option<Target>> {
        let cookie = self.cookie(name);
        if let Some(target) = self.cached_target(parent, cookie, name) {
            return Ok(Some(target));
        }
        let target = self.target_uncached(parent, cookie, name)?;
        if let Some(target) = target {
            let entry = NamedTarget { name: Arc::from(name), target };
            self.targets.insert((parent, cookie), entry);
        }
        Ok(target)
    }

    fn cached_target(&self, parent: Ino, cookie: u64, name: &[u8]) -> Option<Target> {
        let cached = self.targets.get(&(parent, cookie))?;
        (*cached.name == *name).then_some(cached.target)
    }

    fn target_uncached(&self, parent: Ino, cookie: u64, name: &[u8]) -> Result<Option<Target>> {
        self.engine
            .get(Table::Dentries, &key::dentry(parent, cookie, name))?
            .map(|bytes| {
                Target::decode(&bytes).map_err(|source| {
                    corrupt("dentries", format_args!("{parent}/{}", name.escape_ascii()), source)
                })
            })
            .transpose()
    }

    /// The dentry as it is right now; it may be another one as soon as this returns.
    pub(super) fn target_now(&self, parent: Ino, name: &[u8]) -> Result<Option<Target>> {
        let cookie = self.cookie(name);
        match self.cached_target(parent, cookie, name) {
            Some(target) => Ok(Some(target)),
            None => self.target_uncached(parent, cookie, name),
        }
    }

    pub(super) fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode> {
        check_name(name)?;
        let cookie = self.cookie(name);
        if let Some(target) = self.cached_target(parent, cookie, name)
            && let Some(record) = self.records.get(&target.ino)
            // An orphan lost this name after we read it.
            && record.inode.nlink > 0
        {
            return Ok(record.inode);
        }
        let directory = self.inode(parent)?;
        if directory.kind != FileKind::Directory {
            return Err(MetaError::NotDirectory { ino: parent });
        }
        loop {
            let target = {
                let _held = self.stripes.lock(&[parent]);
                self.target_locked(parent, name)?
            };
            let Some(target) = target else {
                return Err(MetaError::NoEntry { parent, name: name.to_vec() });
            };
            match self.inode(target.ino) {
                Ok(inode) if inode.nlink > 0 => return Ok(inode),
                Ok(_) | Err(MetaError::NoInode { .. }) => {}
                Err(error) => return Err(error),
            }
            // The name went while we looked, or it leads nowhere.
            let _held = self.stripes.lock(&[parent, target.ino]);
            if self.target_locked(parent, name)? == Some(target)
                && self.record_locked(target.ino)?.is_none_or(|record| record.inode.nlink == 0)
            {
                return Err(MetaError::Missing { key: format!("inodes/{}", target.ino) });
            }
        }
    }

    /// Locks the directory and the inode that the name leads to, if it does.
    fn lock_entry(&self, parent: Ino, name: &[u8]) -> Result<(Held<'_>, Option<Target>)> {
        loop {
            let target = self.target_now(parent, name)?;
            let held = match target {
                Some(target) => self.stripes.lock(&[parent, target.ino]),
                None => self.stripes.lock(&[parent]),
            };
            if self.target_locked(parent, name)? == target {
                return Ok((held, target));
            }
        }
    }

    pub(super) fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: &NewInode<'_>,
    ) -> Result<(Inode, TxnId)> {
        check_name(name)?;
        check_new(parent, new)?;
        self.engine.admit(Growth::Grows)?;
        // Whoever looks the new name up may change the inode before we have put it in the cache,
        // so its stripe is held too. The number is lost if the name exists; there are enough.
        let ino = self.engine.allocate_ino();
        let _held = self.stripes.lock(&[parent, ino]);
        let mut edit = Edit::new(self);
        edit.live_directory(parent)?;
        if self.target_locked(parent, name)?.is_some() {
            return Err(MetaError::Exists { parent, name: name.to_vec() });
        }
        let directory = edit.live_directory(parent)?;
        add_entry(directory, new.kind, new.now)?;
        let inode = new_inode(ino, &directory.inode, new);
        edit.add_record(Record { inode: inode.clone(), entry_count: 0 });
        edit.set_dentry(parent, name, Some(Target { ino, kind: new.kind }));
        if new.kind == FileKind::Symlink {
            let body = Body::Symlink(new.symlink_target.to_vec()).encode();
            edit.set(Table::Bodies, key::inode(ino), Some(body.into()));
        }
        let txn = edit.finish()?;
        Ok((inode, txn))
    }

    pub(super) fn link(
        &self,
        ino: Ino,
        parent: Ino,
        name: &[u8],
        now: Timestamp,
    ) -> Result<(Inode, TxnId)> {
        check_name(name)?;
        self.engine.admit(Growth::Grows)?;
        let _held = self.stripes.lock(&[parent, ino]);
        let mut edit = Edit::new(self);
        edit.live_directory(parent)?;
        let record = edit.record(ino)?;
        if record.inode.kind == FileKind::Directory {
            return Err(MetaError::IsDirectory { ino });
        }
        if record.inode.nlink == 0 {
            return Err(MetaError::NoInode { ino });
        }
        if self.target_locked(parent, name)?.is_some() {
            return Err(MetaError::Exists { parent, name: name.to_vec() });
        }
        if record.inode.nlink >= NLINK_MAX {
            return Err(MetaError::TooManyLinks { ino });
        }
        record.inode.nlink += 1;
        record.inode.ctime = now;
        let inode = record.inode.clone();
        add_entry(edit.live_directory(parent)?, inode.kind, now)?;
        edit.set_dentry(parent, name, Some(Target { ino, kind: inode.kind }));
        let txn = edit.finish()?;
        Ok((inode, txn))
    }

    pub(super) fn unlink(
        &self,
        parent: Ino,
        name: &[u8],
        now: Timestamp,
    ) -> Result<(Inode, TxnId)> {
        self.remove(parent, name, now, FileKind::Regular)
    }

    pub(super) fn rmdir(&self, parent: Ino, name: &[u8], now: Timestamp) -> Result<(Inode, TxnId)> {
        self.remove(parent, name, now, FileKind::Directory)
    }

    /// Removes a directory, or with any other kind, anything but a directory.
    fn remove(
        &self,
        parent: Ino,
        name: &[u8],
        now: Timestamp,
        kind: FileKind,
    ) -> Result<(Inode, TxnId)> {
        check_name(name)?;
        self.engine.admit(Growth::Frees)?;
        let (_held, target) = self.lock_entry(parent, name)?;
        let mut edit = Edit::new(self);
        edit.directory(parent)?;
        let Some(target) = target else {
            return Err(MetaError::NoEntry { parent, name: name.to_vec() });
        };
        let record = found(&mut edit, target)?;
        let is_directory = record.inode.kind == FileKind::Directory;
        match (kind == FileKind::Directory, is_directory) {
            (true, false) => return Err(MetaError::NotDirectory { ino: target.ino }),
            (false, true) => return Err(MetaError::IsDirectory { ino: target.ino }),
            (true, true) if record.entry_count > 0 => {
                return Err(MetaError::NotEmpty { ino: target.ino });
            }
            (true, true) | (false, false) => {}
        }
        drop_link(record, now);
        let inode = record.inode.clone();
        remove_entry(edit.directory(parent)?, inode.kind, now);
        edit.set_dentry(parent, name, None);
        let txn = edit.finish()?;
        Ok((inode, txn))
    }

    pub(super) fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<Renamed> {
        check_name(from.1)?;
        check_name(to.1)?;
        // A rename in place adds as much as it removes.
        self.engine.admit(Growth::Stays)?;
        loop {
            let moved = self.target_now(from.0, from.1)?;
            let replaced = self.target_now(to.0, to.1)?;
            let is_directory =
                |target: Option<Target>| target.is_some_and(|t| t.kind == FileKind::Directory);
            let moves_directory =
                is_directory(moved) || (mode == RenameMode::Exchange && is_directory(replaced));
            // Two directories that move at once could each become the other's ancestor.
            let _tree = (moves_directory && from.0 != to.0).then(|| lock(&self.rename));
            let mut inos = vec![from.0, to.0];
            inos.extend(moved.iter().chain(&replaced).map(|target| target.ino));
            let ancestors = match (moved, moves_directory && from.0 != to.0) {
                (Some(moved), true) => {
                    let mut movers = vec![(moved, to.0)];
                    if let (RenameMode::Exchange, Some(replaced)) = (mode, replaced) {
                        movers.push((replaced, from.0));
                    }
                    movers
                }
                _ => Vec::new(),
            };
            for (mover, below) in ancestors {
                if mover.kind == FileKind::Directory && self.is_ancestor(mover.ino, below)? {
                    return Err(MetaError::IntoItself { ino: mover.ino });
                }
            }
            let _held = self.stripes.lock(&inos);
            if self.target_locked(from.0, from.1)? != moved
                || self.target_locked(to.0, to.1)? != replaced
            {
                continue;
            }
            return self.rename_locked(from, moved, to, replaced, mode, now);
        }
    }

    /// Whether `ino` is `below` or one of its ancestors. The caller holds the rename lock.
    fn is_ancestor(&self, ino: Ino, below: Ino) -> Result<bool> {
        let mut at = below;
        // No tree is deeper than it has inodes; damaged parent links could go in a circle.
        let mut seen = BTreeMap::new();
        loop {
            if at == ino {
                return Ok(true);
            }
            let inode = self.inode(at)?;
            if inode.kind != FileKind::Directory {
                return Err(MetaError::NotDirectory { ino: at });
            }
            if at == inode.parent {
                return Ok(false);
            }
            if seen.insert(at, ()).is_some() {
                return Err(MetaError::Missing { key: format!("path from {below} to the root") });
            }
            at = inode.parent;
        }
    }

    fn rename_locked(
        &self,
        from: (Ino, &[u8]),
        moved: Option<Target>,
        to: (Ino, &[u8]),
        replaced: Option<Target>,
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<Renamed> {
        let mut edit = Edit::new(self);
        edit.directory(from.0)?;
        edit.live_directory(to.0)?;
        let no_entry =
            |(parent, name): (Ino, &[u8])| MetaError::NoEntry { parent, name: name.to_vec() };
        let moved = moved.ok_or_else(|| no_entry(from))?;
        let moved_inode = found(&mut edit, moved)?.inode.clone();
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => {
                return Err(MetaError::Exists { parent: to.0, name: to.1.to_vec() });
            }
            (RenameMode::Exchange, None) => return Err(no_entry(to)),
            (_, Some(replaced)) if replaced.ino == moved.ino => {
                return Ok(Renamed {
                    moved: moved_inode,
                    replaced: None,
                    txn: self.engine.newest_txn(),
                });
            }
            (RenameMode::Replace | RenameMode::Exchange | RenameMode::NoReplace, _) => {}
        }
        // Out of both directories, then in: link counts come out right when both are one. The
        // check comes before either, because the replaced directory may be the one moved out of.
        if let Some(replaced) = replaced {
            let record = found(&mut edit, replaced)?;
            if mode == RenameMode::Exchange {
                record.inode.ctime = now;
            } else {
                check_replaceable(record, moved)?;
                drop_link(record, now);
            }
        }
        remove_entry(edit.directory(from.0)?, moved.kind, now);
        if let Some(replaced) = replaced {
            remove_entry(edit.live_directory(to.0)?, replaced.kind, now);
        }
        add_entry(edit.live_directory(to.0)?, moved.kind, now)?;
        edit.set_dentry(from.0, from.1, None);
        edit.set_dentry(to.0, to.1, Some(moved));
        let record = found(&mut edit, moved)?;
        record.inode.ctime = now;
        if moved.kind == FileKind::Directory {
            record.inode.parent = to.0;
        }
        if let (Some(replaced), RenameMode::Exchange) = (replaced, mode) {
            add_entry(edit.live_directory(from.0)?, replaced.kind, now)?;
            edit.set_dentry(from.0, from.1, Some(replaced));
            if replaced.kind == FileKind::Directory {
                found(&mut edit, replaced)?.inode.parent = from.0;
            }
        }
        let moved_inode = found(&mut edit, moved)?.inode.clone();
        let replaced_inode = match replaced {
            Some(replaced) => Some(found(&mut edit, replaced)?.inode.clone()),
            None => None,
        };
        let txn = edit.finish()?;
        Ok(Renamed { moved: moved_inode, replaced: replaced_inode, txn })
    }

    pub(super) fn set_attr(&self, ino: Ino, set: &SetAttr) -> Result<(Inode, TxnId)> {
        self.engine.admit(Growth::Stays)?;
        let _held = self.stripes.lock(&[ino]);
        let mut edit = Edit::new(self);
        let inode = &mut edit.record(ino)?.inode;
        if let Some(mode) = set.mode {
            inode.mode = mode & 0o7777;
        }
        if let Some(uid) = set.uid {
            inode.uid = uid;
        }
        if let Some(gid) = set.gid {
            inode.gid = gid;
        }
        if let Some(size_bytes) = set.size_bytes {
            check_size(inode, size_bytes)?;
            inode.size_bytes = size_bytes;
        }
        if let Some(allocated_bytes) = set.allocated_bytes {
            inode.allocated_bytes = allocated_bytes;
        }
        for (time, new) in [
            (&mut inode.atime, set.atime),
            (&mut inode.mtime, set.mtime),
            (&mut inode.ctime, set.ctime),
        ] {
            *time = new.unwrap_or(*time);
        }
        let inode = inode.clone();
        let txn = edit.finish()?;
        Ok((inode, txn))
    }
}

/// The inode that a dentry leads to. The dentry is there, so the inode must be.
pub(super) fn found<'e>(edit: &'e mut Edit<'_>, target: Target) -> Result<&'e mut Record> {
    edit.record(target.ino).map_err(|error| {
        if matches!(error, MetaError::NoInode { .. }) {
            return MetaError::Missing { key: format!("inodes/{}", target.ino) };
        }
        error
    })
}

/// The inode that `new` asks for in `directory`.
pub(super) fn new_inode(ino: Ino, directory: &Inode, new: &NewInode<'_>) -> Inode {
    let is_directory = new.kind == FileKind::Directory;
    let inherits = directory.mode & S_ISGID != 0;
    Inode {
        ino,
        kind: new.kind,
        mode: (new.mode & 0o7777) | if inherits && is_directory { S_ISGID } else { 0 },
        uid: new.uid,
        gid: if inherits { directory.gid } else { new.gid },
        nlink: if is_directory { 2 } else { 1 },
        rdev: new.rdev,
        size_bytes: new.symlink_target.len() as u64,
        allocated_bytes: 0,
        atime: new.now,
        mtime: new.now,
        ctime: new.now,
        btime: new.now,
        content: new.staging.map_or(Content::Empty, |segment| Content::Staged { segment }),
        content_version: 0,
        has_xattrs: false,
        parent: directory.ino,
    }
}

pub(super) fn check_new(parent: Ino, new: &NewInode<'_>) -> Result<()> {
    let is_symlink = new.kind == FileKind::Symlink;
    let target_len = new.symlink_target.len();
    if target_len > SYMLINK_LEN_MAX {
        return Err(MetaError::NameTooLong { len: target_len });
    }
    if is_symlink != (target_len > 0) || new.symlink_target.contains(&0) {
        return Err(MetaError::BadName { name: new.symlink_target.to_vec() });
    }
    if new.staging.is_some() && new.kind != FileKind::Regular {
        return Err(MetaError::BadContent { ino: parent, what: "only regular files are staged" });
    }
    Ok(())
}

/// The length may change here where no stored byte depends on it.
fn check_size(inode: &Inode, size_bytes: u64) -> Result<()> {
    let ino = inode.ino;
    if inode.kind != FileKind::Regular {
        return Err(MetaError::NotRegular { ino });
    }
    let is_free = match inode.content {
        Content::Empty | Content::Staged { .. } | Content::Overlay { .. } => true,
        // A hole may grow at the end.
        Content::Sealed => size_bytes >= inode.size_bytes,
        Content::Inline => size_bytes == inode.size_bytes,
    };
    if is_free { Ok(()) } else { Err(MetaError::BadContent { ino, what: "bytes would be cut" }) }
}

fn check_replaceable(record: &Record, moved: Target) -> Result<()> {
    let ino = record.inode.ino;
    let replaces_directory = record.inode.kind == FileKind::Directory;
    match (moved.kind == FileKind::Directory, replaces_directory) {
        (true, false) => Err(MetaError::NotDirectory { ino }),
        (false, true) => Err(MetaError::IsDirectory { ino }),
        (true, true) if record.entry_count > 0 => Err(MetaError::NotEmpty { ino }),
        (true, true) | (false, false) => Ok(()),
    }
}

/// Takes one name off an inode.
pub(super) fn drop_link(record: &mut Record, now: Timestamp) {
    let inode = &mut record.inode;
    inode.ctime = now;
    if inode.kind == FileKind::Directory {
        inode.nlink = 0;
        inode.parent = inode.ino;
    } else {
        inode.nlink = inode.nlink.saturating_sub(1);
    }
}

pub(super) fn add_entry(directory: &mut Record, kind: FileKind, now: Timestamp) -> Result<()> {
    let inode = &mut directory.inode;
    if kind == FileKind::Directory {
        if inode.nlink >= NLINK_MAX {
            return Err(MetaError::TooManyLinks { ino: inode.ino });
        }
        inode.nlink += 1;
    }
    directory.entry_count += 1;
    inode.mtime = now;
    inode.ctime = now;
    Ok(())
}

pub(super) fn remove_entry(directory: &mut Record, kind: FileKind, now: Timestamp) {
    let inode = &mut directory.inode;
    if kind == FileKind::Directory {
        // Never to zero: that would make a damaged directory an orphan.
        inode.nlink = inode.nlink.saturating_sub(1).max(1);
    }
    directory.entry_count = directory.entry_count.saturating_sub(1);
    inode.mtime = now;
    inode.ctime = now;
}
