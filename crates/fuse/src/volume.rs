//! A volume as the kernel sees it: [`Handler`] over [`Fs`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use librorum_format::{ErrorKind, Ino};
use librorum_fs::{
    Attributes, Fs, FsError, KernelNotifier, OpenFlags, Opened as FsOpened, Seek, ServedBy,
};
use librorum_meta::{FileKind, Inode, NewInode, RenameMode, SetAttr, XattrMode};
use rustix::fs::{FallocateFlags, RenameFlags};

use crate::errno::errno;
use crate::transport::{
    Attr, AttrChange, Caller, DirEntry, Errno, FsUsage, Handler, Interrupt, Invalidator,
    Negotiated, NodeKind, OpenMode, Opened, PassthroughFile, Reply, TimeChange, WOULD_WAIT, Wait,
};

/// What changes behind the kernel's back is told to it ([`VolumeNotifier`]).
const ATTR_TTL: Duration = Duration::from_secs(3600);

/// While a file is written by passthrough, a store through mmap moves its times without anybody
/// being told; the kernel asks again after this.
const WRITTEN_ATTR_TTL: Duration = Duration::from_millis(50);

const O_ACCMODE: i32 = 3;
const O_TRUNC: i32 = 0o1000;

/// Serves one volume.
#[derive(Debug)]
pub struct VolumeHandler {
    fs: Arc<Fs>,
    writeback: AtomicBool,
}

impl VolumeHandler {
    /// A handler of `fs`.
    #[must_use]
    pub fn new(fs: Arc<Fs>) -> Self {
        Self { fs, writeback: AtomicBool::new(false) }
    }

    fn attr(&self, found: &Attributes) -> Attr {
        let inode = &found.inode;
        let is_directory = inode.kind == FileKind::Directory;
        // With a writeback cache the kernel itself knows best what it has not sent yet.
        let volatile = found.being_written && !self.writeback.load(Ordering::Relaxed);
        Attr {
            ino: inode.ino.0,
            kind: node_kind(inode.kind),
            mode: inode.mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            // Some programs skip directories of no size.
            size_bytes: if is_directory { 4096 } else { inode.size_bytes },
            allocated_bytes: if is_directory { 4096 } else { inode.allocated_bytes },
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            ttl: if volatile { WRITTEN_ATTR_TTL } else { ATTR_TTL },
        }
    }

    fn opened(&self, opened: FsOpened) -> Opened {
        let mode = match opened.served_by {
            ServedBy::Passthrough(backing) => {
                let file = Arc::clone(backing.file());
                let attached = backing.attachment(|| Arc::new(PassthroughFile::new(file)));
                match attached {
                    Some(file) => OpenMode::Passthrough(Arc::clone(file)),
                    None => unreachable!("only this handler attaches anything"),
                }
            }
            ServedBy::Cache { keep } => OpenMode::Cached { keep },
        };
        Opened { handle: opened.handle, mode }
    }
}

/// Tells the kernel of what others change in a volume that it has mounted.
#[derive(Debug)]
pub struct VolumeNotifier(Invalidator);

impl VolumeNotifier {
    /// A notifier of one mount, for [`Fs::notify_kernel`].
    #[must_use]
    pub fn new(invalidator: Invalidator) -> Self {
        Self(invalidator)
    }
}

impl KernelNotifier for VolumeNotifier {
    fn entry_changed(&self, parent: Ino, name: &[u8]) {
        self.0.entry(parent.0, name);
    }

    fn attributes_changed(&self, ino: Ino) {
        self.0.attributes(ino.0);
    }

    fn data_changed(&self, ino: Ino) {
        self.0.data(ino.0);
    }
}

fn failed(error: impl Into<FsError>) -> Errno {
    let error = error.into();
    if matches!(error, FsError::WouldWait) {
        return WOULD_WAIT;
    }
    if matches!(error, FsError::Interrupted) {
        return Errno(rustix::io::Errno::INTR.raw_os_error());
    }
    if matches!(error, FsError::BadHandle { .. }) {
        return Errno(rustix::io::Errno::BADF.raw_os_error());
    }
    let kind = error.kind();
    if matches!(kind, ErrorKind::DataLoss | ErrorKind::Unavailable) {
        // The chain names chunk, segment and reason, which an errno cannot.
        tracing::error!(error = &error as &dyn std::error::Error, "input/output error");
    }
    errno(kind)
}

fn node_kind(kind: FileKind) -> NodeKind {
    match kind {
        FileKind::Regular => NodeKind::Regular,
        FileKind::Directory => NodeKind::Directory,
        FileKind::Symlink => NodeKind::Symlink,
        FileKind::Fifo => NodeKind::Fifo,
        FileKind::Socket => NodeKind::Socket,
        FileKind::CharDevice => NodeKind::CharDevice,
        FileKind::BlockDevice => NodeKind::BlockDevice,
    }
}

fn file_kind(kind: NodeKind) -> FileKind {
    match kind {
        NodeKind::Regular => FileKind::Regular,
        NodeKind::Directory => FileKind::Directory,
        NodeKind::Symlink => FileKind::Symlink,
        NodeKind::Fifo => FileKind::Fifo,
        NodeKind::Socket => FileKind::Socket,
        NodeKind::CharDevice => FileKind::CharDevice,
        NodeKind::BlockDevice => FileKind::BlockDevice,
    }
}

fn new_inode(caller: Caller, kind: FileKind, mode: u16) -> NewInode<'static> {
    NewInode {
        kind,
        mode,
        uid: caller.uid,
        gid: caller.gid,
        rdev: 0,
        symlink_target: b"",
        staging: None,
        now: librorum_sys::clock::now(),
    }
}

fn time_change(time: TimeChange) -> librorum_fs::TimeChange {
    match time {
        TimeChange::Now => librorum_fs::TimeChange::Now,
        TimeChange::At(time) => librorum_fs::TimeChange::At(time),
    }
}

/// Which set-id bits a change of mode or owner leaves, as `chmod(2)` and `chown(2)` have it.
fn mode_after_chown(inode: &Inode, change: &AttrChange) -> Option<u16> {
    let chowns = change.uid.is_some() || change.gid.is_some();
    let has_set_id = inode.mode & 0o4000 != 0 || inode.mode & 0o2010 == 0o2010;
    if !chowns || !has_set_id || inode.kind != FileKind::Regular || change.mode.is_some() {
        return change.mode;
    }
    let mut mode = inode.mode & !0o4000;
    if mode & 0o010 != 0 {
        mode &= !0o2000;
    }
    Some(mode)
}

impl Handler for VolumeHandler {
    fn negotiated(&self, with: Negotiated) {
        self.writeback.store(with.writeback, Ordering::Relaxed);
        self.fs.allow_passthrough(with.passthrough);
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Reply<Attr> {
        Ok(self.attr(&self.fs.lookup(Ino(parent), name).map_err(failed)?))
    }

    fn forget(&self, ino: u64, count: u64) {
        self.fs.forget(Ino(ino), count);
    }

    fn getattr(&self, ino: u64, _handle: Option<u64>) -> Reply<Attr> {
        Ok(self.attr(&self.fs.attributes(Ino(ino)).map_err(failed)?))
    }

    fn setattr(
        &self,
        _caller: Caller,
        ino: u64,
        _handle: Option<u64>,
        change: &AttrChange,
    ) -> Reply<Attr> {
        let ino = Ino(ino);
        let mut found = None;
        if let Some(size_bytes) = change.size_bytes {
            let mut truncated = self.fs.truncate(ino, size_bytes).map_err(failed)?;
            if change.kill_set_id && truncated.inode.mode & 0o6000 != 0 {
                self.fs.clear_set_id(ino).map_err(failed)?;
                truncated = self.fs.attributes(ino).map_err(failed)?;
            }
            found = Some(truncated);
        }
        let chmods = change.mode.is_some() || change.uid.is_some() || change.gid.is_some();
        if chmods || change.atime.is_some() || change.mtime.is_some() || found.is_none() {
            let inode = self.fs.attributes(ino).map_err(failed)?.inode;
            let set = SetAttr {
                mode: mode_after_chown(&inode, change),
                uid: change.uid,
                gid: change.gid,
                ..SetAttr::default()
            };
            let atime = change.atime.map(time_change);
            let mtime = change.mtime.map(time_change);
            found = Some(self.fs.set_attributes(ino, &set, atime, mtime).map_err(failed)?);
        }
        match found {
            Some(found) => Ok(self.attr(&found)),
            None => self.getattr(ino.0, None),
        }
    }

    fn readlink(&self, ino: u64) -> Reply<Vec<u8>> {
        self.fs.symlink_target(Ino(ino)).map_err(failed)
    }

    fn mknod(
        &self,
        caller: Caller,
        parent: u64,
        name: &[u8],
        kind: NodeKind,
        mode: u16,
        rdev: u32,
    ) -> Reply<Attr> {
        let new = NewInode { rdev, ..new_inode(caller, file_kind(kind), mode) };
        Ok(self.attr(&self.fs.make(Ino(parent), name, &new).map_err(failed)?))
    }

    fn symlink(&self, caller: Caller, parent: u64, name: &[u8], target: &[u8]) -> Reply<Attr> {
        let new = new_inode(caller, FileKind::Symlink, 0o777);
        let new = NewInode { symlink_target: target, ..new };
        Ok(self.attr(&self.fs.make(Ino(parent), name, &new).map_err(failed)?))
    }

    fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Reply<Attr> {
        Ok(self.attr(&self.fs.link(Ino(ino), Ino(parent), name).map_err(failed)?))
    }

    fn unlink(&self, parent: u64, name: &[u8]) -> Reply<()> {
        self.fs.unlink(Ino(parent), name).map_err(failed)
    }

    fn rmdir(&self, parent: u64, name: &[u8]) -> Reply<()> {
        self.fs.rmdir(Ino(parent), name).map_err(failed)
    }

    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Reply<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::EXCHANGE {
            RenameMode::Exchange
        } else {
            // RENAME_WHITEOUT is for the upper layer of overlayfs.
            return Err(errno(ErrorKind::InvalidInput));
        };
        self.fs.rename((Ino(from.0), from.1), (Ino(to.0), to.1), mode).map_err(failed)
    }

    fn open_may_wait(&self, ino: u64, flags: i32) -> bool {
        self.fs.open_may_wait(Ino(ino), open_flags(flags))
    }

    fn open(
        &self,
        ino: u64,
        flags: i32,
        kill_set_id: bool,
        interrupt: &Interrupt,
    ) -> Reply<Opened> {
        let flags = open_flags(flags);
        if flags.write || flags.truncate {
            self.fs.wait_for_room(interrupt.flag()).map_err(failed)?;
        }
        let opened = self.fs.open(Ino(ino), flags).map_err(failed)?;
        if flags.truncate
            && kill_set_id
            && let Err(error) = self.fs.clear_set_id(Ino(ino))
        {
            self.fs.release(opened.handle);
            return Err(failed(error));
        }
        Ok(self.opened(opened))
    }

    fn create_may_wait(&self) -> bool {
        self.fs.create_may_wait()
    }

    fn create(
        &self,
        caller: Caller,
        (parent, name): (u64, &[u8]),
        mode: u16,
        flags: i32,
        interrupt: &Interrupt,
    ) -> Reply<(Attr, Opened)> {
        let new = new_inode(caller, FileKind::Regular, mode);
        let write = open_flags(flags).write;
        self.fs.wait_for_room(interrupt.flag()).map_err(failed)?;
        let (found, opened) = self.fs.create(Ino(parent), name, &new, write).map_err(failed)?;
        Ok((self.attr(&found), self.opened(opened)))
    }

    fn read(
        &self,
        _ino: u64,
        handle: u64,
        offset: u64,
        len: u32,
        wait: Wait,
        out: &mut Vec<u8>,
    ) -> Reply<()> {
        let wait = match wait {
            Wait::May => librorum_fs::Wait::May,
            Wait::MustNot => librorum_fs::Wait::MustNot,
        };
        self.fs.read(handle, offset, len, wait, out).map_err(failed)
    }

    fn write(
        &self,
        _ino: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        kill_set_id: bool,
    ) -> Reply<()> {
        self.fs.write(handle, offset, data, kill_set_id).map_err(failed)
    }

    fn fsync(&self, _ino: u64, handle: u64, data_only: bool) -> Reply<()> {
        self.fs.fsync(handle, data_only).map_err(failed)
    }

    fn release(&self, _ino: u64, handle: u64) {
        self.fs.release(handle);
    }

    fn fallocate(&self, _ino: u64, handle: u64, offset: u64, len: u64, mode: i32) -> Reply<()> {
        let bits = u32::try_from(mode).map_err(|_negative| errno(ErrorKind::InvalidInput))?;
        let flags = FallocateFlags::from_bits_retain(bits);
        self.fs.allocate(handle, offset, len, flags).map_err(failed)
    }

    fn lseek(&self, _ino: u64, handle: u64, offset: i64, whence: i32) -> Reply<i64> {
        let no_such_offset = || errno(ErrorKind::NoSuchOffset);
        let offset = u64::try_from(offset).map_err(|_negative| no_such_offset())?;
        let what = match whence {
            3 => Seek::Data,
            4 => Seek::Hole,
            _ => return Err(errno(ErrorKind::InvalidInput)),
        };
        let found = self.fs.seek(handle, offset, what).map_err(failed)?;
        i64::try_from(found).map_err(|_too_large| no_such_offset())
    }

    fn copy_file_range(&self, from: (u64, u64, u64), to: (u64, u64, u64), len: u64) -> Reply<u32> {
        // The answer has 32 bits; whole pages keep the next request aligned.
        let len = len.min(0xffff_f000);
        let copied = self.fs.copy_range((from.1, from.2), (to.1, to.2), len).map_err(failed)?;
        Ok(u32::try_from(copied).unwrap_or(u32::MAX))
    }

    fn readdir(&self, ino: u64, cookie: u64, limit: usize) -> Reply<Vec<DirEntry>> {
        let mut entries = Vec::new();
        let after = self.add_dots(ino, cookie, |entry, _| entries.push(entry))?;
        let found = self.fs.readdir(Ino(ino), after, limit).map_err(failed)?;
        entries.extend(found.into_iter().map(dir_entry));
        Ok(entries)
    }

    fn readdir_plus(&self, ino: u64, cookie: u64, limit: usize) -> Reply<Vec<(DirEntry, Attr)>> {
        let mut entries = Vec::new();
        let after = self.add_dots(ino, cookie, |entry, attr| entries.push((entry, attr)))?;
        let found = self.fs.readdir_plus(Ino(ino), after, limit).map_err(failed)?;
        entries.extend(
            found.into_iter().map(|(dentry, found)| (dir_entry(dentry), self.attr(&found))),
        );
        Ok(entries)
    }

    fn taken(&self, ino: u64) {
        self.fs.reference(Ino(ino));
    }

    fn fsyncdir(&self, _ino: u64) -> Reply<()> {
        self.fs.fsync_dir().map_err(failed)
    }

    fn statfs(&self) -> Reply<FsUsage> {
        let disk = self.fs.disk_usage().map_err(failed)?;
        Ok(FsUsage {
            blocks: disk.f_blocks,
            blocks_free: disk.f_bfree,
            blocks_available: disk.f_bavail,
            files: disk.f_files,
            files_free: disk.f_ffree,
            block_size: u32::try_from(disk.f_frsize).unwrap_or(4096),
        })
    }

    fn getxattr(&self, ino: u64, name: &[u8]) -> Reply<Vec<u8>> {
        if name.starts_with(b"system.posix_acl") {
            // Tells getfacl and cp that there are none to be had.
            return Err(errno(ErrorKind::Unsupported));
        }
        match self.fs.xattr(Ino(ino), name) {
            // `ls -l` asks for the label of every file, unless it is told once that there are none.
            Err(error) if name == b"security.selinux" && error.kind() == ErrorKind::NoAttribute => {
                Err(errno(ErrorKind::Unsupported))
            }
            found => found.map_err(failed),
        }
    }

    fn listxattr(&self, ino: u64) -> Reply<Vec<u8>> {
        let mut list = Vec::new();
        for name in self.fs.xattr_names(Ino(ino)).map_err(failed)? {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Reply<()> {
        let mode = match flags {
            0 => XattrMode::Set,
            1 => XattrMode::Create,
            2 => XattrMode::Replace,
            _ => return Err(errno(ErrorKind::InvalidInput)),
        };
        self.fs.set_xattr(Ino(ino), name, value, mode).map_err(failed)
    }

    fn removexattr(&self, ino: u64, name: &[u8]) -> Reply<()> {
        self.fs.remove_xattr(Ino(ino), name).map_err(failed)
    }
}

impl VolumeHandler {
    /// Adds `.` and `..` where reading starts; answers the cookie to go on from.
    fn add_dots(&self, ino: u64, cookie: u64, mut add: impl FnMut(DirEntry, Attr)) -> Reply<u64> {
        let directory = NodeKind::Directory;
        if cookie < 1 {
            let own = self.fs.attributes(Ino(ino)).map_err(failed)?;
            let entry = DirEntry { cookie: 1, name: b".".to_vec(), ino, kind: directory };
            add(entry, self.attr(&own));
        }
        if cookie < 2 {
            let own = self.fs.attributes(Ino(ino)).map_err(failed)?;
            // A removed directory's parent may be gone; its own number serves as well then.
            let parent = self.fs.attributes(own.inode.parent).unwrap_or(own);
            let attr = self.attr(&parent);
            let entry =
                DirEntry { cookie: 2, name: b"..".to_vec(), ino: attr.ino, kind: directory };
            add(entry, attr);
        }
        Ok(if cookie <= 2 { 0 } else { cookie })
    }
}

fn dir_entry(dentry: librorum_meta::Dentry) -> DirEntry {
    DirEntry {
        cookie: dentry.cookie,
        name: dentry.name,
        ino: dentry.ino.0,
        kind: node_kind(dentry.kind),
    }
}

fn open_flags(flags: i32) -> OpenFlags {
    OpenFlags { write: flags & O_ACCMODE != 0, truncate: flags & O_TRUNC != 0 }
}
