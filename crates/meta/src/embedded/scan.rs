//! Operations that list: directories, extended attributes, the sets.

use std::ops::Bound;

use fjall::Slice;
use librorum_format::{Ino, NAME_LEN_MAX, SegmentId, Timestamp, TxnId};

use super::Core;
use super::edit::{Edit, corrupt};
use super::space::Growth;
use crate::record::{Condemnation, Record, Table, Target, key};
use crate::{Condemned, Dentry, FileKind, Inode, MetaError, Result, XattrMode};

/// The largest value of an extended attribute, as in Linux (`XATTR_SIZE_MAX`).
const XATTR_LEN_MAX: usize = 64 << 10;

fn odd_key(table: &str, key: &[u8]) -> MetaError {
    MetaError::Missing { key: format!("{table}/{}: no such key can be", key.escape_ascii()) }
}

impl Core {
    pub(super) fn readdir(&self, dir: Ino, after: u64, limit: usize) -> Result<Vec<Dentry>> {
        if self.inode(dir)?.kind != FileKind::Directory {
            return Err(MetaError::NotDirectory { ino: dir });
        }
        let mut page: Vec<Dentry> = Vec::with_capacity(limit.min(1024));
        let Some(first) = after.checked_add(1) else { return Ok(page) };
        let start = key::dentry_start(dir, first);
        let end = key::behind(dir.0);
        self.engine.scan(Table::Dentries, Bound::Included(&start), &end, &mut |key, value| {
            let (parent, cookie, name) =
                key::parse_dentry(key).ok_or_else(|| odd_key("dentries", key))?;
            if page.len() >= limit && page.last().is_none_or(|last| last.cookie != cookie) {
                return Ok(false);
            }
            let target = Target::decode(value).map_err(|source| {
                corrupt("dentries", format_args!("{parent}/{}", name.escape_ascii()), source)
            })?;
            page.push(Dentry { cookie, name: name.to_vec(), ino: target.ino, kind: target.kind });
            Ok(true)
        })?;
        Ok(page)
    }

    pub(super) fn readdir_plus(
        &self,
        dir: Ino,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(Dentry, Inode)>> {
        let mut after = after;
        loop {
            let page = self.readdir(dir, after, limit)?;
            let Some(last) = page.last() else { return Ok(Vec::new()) };
            after = last.cookie;
            let mut entries = Vec::with_capacity(page.len());
            for dentry in page {
                match self.inode(dentry.ino) {
                    Ok(inode) if inode.nlink > 0 => entries.push((dentry, inode)),
                    // Removed since the directory was read.
                    Ok(_) | Err(MetaError::NoInode { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            // Nothing left of this page is not the end of the directory.
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    pub(super) fn scan_xattrs(
        &self,
        ino: Ino,
        visit: &mut dyn FnMut(&Slice, &Slice) -> Result<bool>,
    ) -> Result<()> {
        let start = key::inode(ino);
        self.engine.scan(Table::Xattrs, Bound::Included(&start), &key::behind(ino.0), visit)
    }

    pub(super) fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let no_xattr = || MetaError::NoXattr { ino, name: name.to_vec() };
        if !self.inode(ino)?.has_xattrs || name.len() > NAME_LEN_MAX {
            return Err(no_xattr());
        }
        match self.engine.get(Table::Xattrs, &key::xattr(ino, name))? {
            Some(value) => Ok(value.to_vec()),
            None => Err(no_xattr()),
        }
    }

    pub(super) fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        if self.inode(ino)?.has_xattrs {
            self.scan_xattrs(ino, &mut |key, _| {
                let (_, name) = key::parse_xattr(key).ok_or_else(|| odd_key("xattrs", key))?;
                names.push(name.to_vec());
                Ok(true)
            })?;
        }
        Ok(names)
    }

    pub(super) fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        now: Timestamp,
    ) -> Result<TxnId> {
        if name.is_empty() || name.len() > NAME_LEN_MAX || name.contains(&0) {
            return Err(MetaError::BadName { name: name.to_vec() });
        }
        if value.len() > XATTR_LEN_MAX {
            return Err(MetaError::XattrTooLarge { len: value.len() });
        }
        self.engine.admit(Growth::Grows)?;
        let _held = self.stripes.lock(&[ino]);
        let mut edit = Edit::new(self);
        let has_xattrs = edit.record(ino)?.inode.has_xattrs;
        let key = key::xattr(ino, name);
        let exists = has_xattrs && self.engine.get(Table::Xattrs, &key)?.is_some();
        match (mode, exists) {
            (XattrMode::Create, true) => {
                return Err(MetaError::Exists { parent: ino, name: name.to_vec() });
            }
            (XattrMode::Replace, false) => {
                return Err(MetaError::NoXattr { ino, name: name.to_vec() });
            }
            (XattrMode::Set, _) | (XattrMode::Create, false) | (XattrMode::Replace, true) => {}
        }
        edit.set(Table::Xattrs, key, Some(Slice::from(value)));
        let inode = &mut edit.record(ino)?.inode;
        inode.has_xattrs = true;
        inode.ctime = now;
        edit.finish()
    }

    pub(super) fn remove_xattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Result<TxnId> {
        self.engine.admit(Growth::Frees)?;
        let _held = self.stripes.lock(&[ino]);
        let mut edit = Edit::new(self);
        let mut found = false;
        let mut others = false;
        if edit.record(ino)?.inode.has_xattrs {
            self.scan_xattrs(ino, &mut |key, _| {
                let (_, other) = key::parse_xattr(key).ok_or_else(|| odd_key("xattrs", key))?;
                if other == name {
                    found = true;
                } else {
                    others = true;
                }
                Ok(!(found && others))
            })?;
        }
        if !found {
            return Err(MetaError::NoXattr { ino, name: name.to_vec() });
        }
        edit.set(Table::Xattrs, key::xattr(ino, name), None);
        let inode = &mut edit.record(ino)?.inode;
        inode.has_xattrs = others;
        inode.ctime = now;
        edit.finish()
    }

    /// Keys of one set in the table of small things, behind `after`.
    fn set_members<T>(
        &self,
        after: [u8; 9],
        limit: usize,
        parse: impl Fn(&[u8], &[u8]) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut members = Vec::new();
        if limit == 0 {
            return Ok(members);
        }
        let end = [after[0] + 1];
        self.engine.scan(Table::Small, Bound::Excluded(&after), &end, &mut |key, value| {
            members.push(parse(key, value)?);
            Ok(members.len() < limit)
        })?;
        Ok(members)
    }

    pub(super) fn orphans(&self, after: Ino, limit: usize) -> Result<Vec<Ino>> {
        self.set_members(key::orphan(after), limit, |key, _| {
            key::parse_orphan(key).ok_or_else(|| odd_key("small", key))
        })
    }

    pub(super) fn staged(&self, after: Ino, limit: usize) -> Result<Vec<Ino>> {
        self.set_members(key::staged(after), limit, |key, _| {
            key::parse_staged(key).ok_or_else(|| odd_key("small", key))
        })
    }

    pub(super) fn condemned(&self, after: SegmentId, limit: usize) -> Result<Vec<Condemned>> {
        self.set_members(key::condemned(after), limit, |key, value| {
            let segment = key::parse_condemned(key).ok_or_else(|| odd_key("small", key))?;
            let condemnation = Condemnation::decode(value)
                .map_err(|source| corrupt("condemned", segment, source))?;
            Ok(Condemned { segment, txn: condemnation.txn })
        })
    }

    pub(super) fn inodes(&self, after: Ino, limit: usize) -> Result<Vec<Inode>> {
        let mut inodes = Vec::new();
        if limit == 0 {
            return Ok(inodes);
        }
        let start = key::inode(after);
        // One byte longer than the last key there can be.
        let end = [0xff; 9];
        self.engine.scan(Table::Inodes, Bound::Excluded(&start), &end, &mut |key, value| {
            let ino = key::parse_inode(key).ok_or_else(|| odd_key("inodes", key))?;
            let record =
                Record::decode(ino, value).map_err(|source| corrupt("inodes", ino, source))?;
            inodes.push(record.inode);
            Ok(inodes.len() < limit)
        })?;
        Ok(inodes)
    }
}
