//! Who may do what: the kernel's rules for a mount with `default_permissions`, applied to callers that
//! come another way (path_resolution(7), chmod(2), chown(2), link(2), rename(2), unlink(2)).

use std::sync::Arc;

use librorum_format::ErrorKind;
use librorum_meta::{FileKind, Inode};
use librorum_rpc::{Failure, Reason};

/// On whose behalf something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user. 0 passes every check, as on a mount.
    pub uid: u32,
    /// The group that new files belong to.
    pub gid: u32,
    /// Further groups.
    pub groups: Arc<[u32]>,
}

/// The bits of one class of a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access(u16);

impl Access {
    pub(super) const READ: Self = Self(4);
    pub(super) const WRITE: Self = Self(2);
    pub(super) const EXECUTE: Self = Self(1);
    /// To list a directory with what its entries are.
    pub(super) const LIST: Self = Self(5);
    /// To add names to a directory or take them away.
    pub(super) const CHANGE: Self = Self(3);
}

const STICKY: u16 = 0o1000;
const SET_USER_ID: u16 = 0o4000;
const SET_GROUP_ID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;

/// Asked anew each time: an administrator may change it.
fn are_links_protected() -> bool {
    std::fs::read("/proc/sys/fs/protected_hardlinks").is_ok_and(|value| value.starts_with(b"1"))
}

impl Caller {
    /// A process, by its credentials.
    #[must_use]
    pub fn new(uid: u32, gid: u32, groups: impl Into<Arc<[u32]>>) -> Self {
        Self { uid, gid, groups: groups.into() }
    }

    /// This process.
    #[must_use]
    pub fn own() -> Self {
        let groups: Vec<u32> = rustix::process::getgroups()
            .unwrap_or_default()
            .into_iter()
            .map(rustix::process::Gid::as_raw)
            .collect();
        Self::new(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw(), groups)
    }

    /// Whether it is root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub(super) fn owns(&self, inode: &Inode) -> bool {
        self.is_root() || self.uid == inode.uid
    }

    pub(super) fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether the mode grants all of `wanted`.
    pub(super) fn may(&self, inode: &Inode, wanted: Access) -> bool {
        if self.is_root() {
            // Root may execute what anybody may, and enter every directory.
            let executes = wanted.0 & Access::EXECUTE.0 != 0;
            return !executes || inode.kind == FileKind::Directory || inode.mode & 0o111 != 0;
        }
        let class = if self.uid == inode.uid {
            inode.mode >> 6
        } else if self.is_in_group(inode.gid) {
            inode.mode >> 3
        } else {
            inode.mode
        };
        class & wanted.0 == wanted.0
    }

    /// Refuses what the mode does not grant.
    pub(super) fn require(
        &self,
        inode: &Inode,
        wanted: Access,
        path: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.may(inode, wanted) {
            return Ok(());
        }
        let what = match wanted {
            Access::READ => "read",
            Access::WRITE => "write",
            Access::EXECUTE => "enter",
            Access::LIST => "list",
            _ => "change",
        };
        Err(self.denied(what, &path()))
    }

    fn denied(&self, what: &str, path: &str) -> Failure {
        Failure::new(
            Reason::AccessDenied,
            format!("user {} may not {what} a part of {path}", self.uid),
        )
    }

    /// Refuses to take `inode`'s name out of `directory`.
    pub(super) fn require_removal(
        &self,
        directory: &Inode,
        inode: &Inode,
        path: impl Fn() -> String,
    ) -> Result<(), Failure> {
        self.require(directory, Access::CHANGE, &path)?;
        if directory.mode & STICKY != 0 && !self.owns(directory) && !self.owns(inode) {
            let message = format!(
                "user {} owns neither {} nor its directory, which is sticky",
                self.uid,
                path()
            );
            return Err(Failure::file(ErrorKind::NotPermitted, message));
        }
        Ok(())
    }

    /// Refuses to move a directory that the caller may not write to another parent: its `..` changes.
    pub(super) fn require_move(
        &self,
        inode: &Inode,
        changes_parent: bool,
        path: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if changes_parent && inode.kind == FileKind::Directory {
            self.require(inode, Access::WRITE, path)?;
        }
        Ok(())
    }

    /// Refuses hard links to files that the caller could not open for writing, where Linux does
    /// (`fs.protected_hardlinks` in proc_sys_fs(5)).
    pub(super) fn require_link(
        &self,
        inode: &Inode,
        path: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let is_safe = inode.kind == FileKind::Regular
            && inode.mode & SET_USER_ID == 0
            && inode.mode & (SET_GROUP_ID | GROUP_EXECUTE) != SET_GROUP_ID | GROUP_EXECUTE
            && self.may(inode, Access::READ)
            && self.may(inode, Access::WRITE);
        if self.owns(inode) || is_safe || !are_links_protected() {
            return Ok(());
        }
        let message = format!("user {} may not give {} another name", self.uid, path());
        Err(Failure::file(ErrorKind::NotPermitted, message))
    }

    /// What becomes of a mode that is set on `inode`, whose group will be `gid`.
    pub(super) fn new_mode(
        &self,
        inode: &Inode,
        mode: u16,
        gid: u32,
        path: impl FnOnce() -> String,
    ) -> Result<u16, Failure> {
        if !self.owns(inode) {
            return Err(self.not_owner("change the mode of", &path()));
        }
        Ok(self.without_foreign_group_bit(mode, gid))
    }

    /// The set-group-id bit is for members of the group.
    pub(super) fn without_foreign_group_bit(&self, mode: u16, gid: u32) -> u16 {
        if self.is_root() || self.is_in_group(gid) { mode } else { mode & !SET_GROUP_ID }
    }

    /// Refuses changes of ownership that chown(2) refuses, and answers the mode after it.
    pub(super) fn mode_after_chown(
        &self,
        inode: &Inode,
        uid: Option<u32>,
        gid: Option<u32>,
        path: impl FnOnce() -> String,
    ) -> Result<u16, Failure> {
        let gives_away = uid.is_some_and(|uid| uid != inode.uid);
        let joins = gid.is_none_or(|gid| gid == inode.gid || self.is_in_group(gid));
        if !self.is_root() && (gives_away || !self.owns(inode) || !joins) {
            return Err(self.not_owner("change the owner of", &path()));
        }
        let mut mode = inode.mode;
        if inode.kind == FileKind::Regular {
            mode &= !SET_USER_ID;
            if mode & GROUP_EXECUTE != 0 {
                mode &= !SET_GROUP_ID;
            }
        }
        Ok(mode)
    }

    /// Refuses times of files that the caller does not own.
    pub(super) fn require_owner(
        &self,
        inode: &Inode,
        what: &str,
        path: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if self.owns(inode) { Ok(()) } else { Err(self.not_owner(what, &path())) }
    }

    fn not_owner(&self, what: &str, path: &str) -> Failure {
        let message = format!("user {} may not {what} {path}, which is another's", self.uid);
        Failure::file(ErrorKind::NotPermitted, message)
    }
}
