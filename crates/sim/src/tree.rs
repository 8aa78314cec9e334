//! The disk as the running program sees it: an ordinary file system in memory, which writes down
//! each change as it makes it.
//!
//! Always holds: what the records give when replayed without loss is what the tree shows. So
//! nothing is recorded that failed, and nothing changes that is not recorded, but times of access.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use librorum_format::Timestamp;
use librorum_fuse::transport::{
    Attr, AttrChange, Caller, DirEntry, Errno, NodeKind, Reply, TimeChange,
};
use librorum_sys::clock;
use rustix::io::Errno as E;

use crate::log::{Change, NewNode, Record};
use crate::page::{PAGE_LEN, page_count, page_offset, parts, tail, to_len};

pub(crate) const ROOT: u64 = 1;

/// Cookies of a directory's own entries start behind those of `.` and `..`.
const COOKIE_FIRST: u64 = 3;

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

pub(crate) fn error<T>(errno: E) -> Reply<T> {
    Err(Errno(errno.raw_os_error()))
}

/// The file system.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: HashMap<u64, Node>,
    next_ino: u64,
    used_pages: u64,
    capacity_pages: u64,
    pub(crate) records: Vec<Arc<Record>>,
}

#[derive(Debug)]
struct Node {
    kind: NodeKind,
    mode: u16,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    size_bytes: u64,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    open_count: u32,
    /// A file's allocated pages; `None` is allocated but never written.
    pages: BTreeMap<u64, Option<Box<[u8]>>>,
    directory: Directory,
    target: Vec<u8>,
}

#[derive(Debug, Default)]
struct Directory {
    parent: u64,
    by_name: BTreeMap<Vec<u8>, (u64, u64)>,
    by_cookie: BTreeMap<u64, Vec<u8>>,
    next_cookie: u64,
}

impl Directory {
    fn insert(&mut self, name: &[u8], ino: u64) {
        let cookie = self.next_cookie.max(COOKIE_FIRST);
        self.next_cookie = cookie + 1;
        self.by_cookie.insert(cookie, name.to_vec());
        if let Some((_, old)) = self.by_name.insert(name.to_vec(), (ino, cookie)) {
            self.by_cookie.remove(&old);
        }
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some((_, cookie)) = self.by_name.remove(name) {
            self.by_cookie.remove(&cookie);
        }
    }
}

impl Tree {
    pub(crate) fn new() -> Self {
        let root = NewNode {
            kind: NodeKind::Directory,
            mode: 0o755,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            target: Vec::new(),
        };
        let mut tree = Self {
            nodes: HashMap::new(),
            next_ino: ROOT + 1,
            used_pages: 0,
            capacity_pages: u64::MAX >> 20,
            records: Vec::new(),
        };
        tree.nodes.insert(ROOT, Node::new(&root, ROOT, clock::now()));
        tree
    }

    pub(crate) fn record(&mut self, change: Change) -> usize {
        self.records.push(Arc::new(Record { change, time: clock::now() }));
        self.records.len() - 1
    }

    pub(crate) fn set_capacity_bytes(&mut self, capacity_bytes: u64) {
        self.capacity_pages = page_count(capacity_bytes);
    }

    /// Pages in use and in all.
    pub(crate) fn usage(&self) -> (u64, u64) {
        (self.used_pages, self.capacity_pages)
    }

    fn node(&self, ino: u64) -> Reply<&Node> {
        self.nodes.get(&ino).ok_or(Errno(E::NOENT.raw_os_error()))
    }

    fn node_mut(&mut self, ino: u64) -> Reply<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno(E::NOENT.raw_os_error()))
    }

    fn child(&self, parent: u64, name: &[u8]) -> Reply<u64> {
        let found = self.node(parent)?.directory.by_name.get(name);
        found.map(|(ino, _)| *ino).ok_or(Errno(E::NOENT.raw_os_error()))
    }

    fn directory(&mut self, ino: u64) -> &mut Directory {
        &mut self.nodes.get_mut(&ino).expect("a directory that was just seen").directory
    }

    pub(crate) fn attr(&self, ino: u64) -> Reply<Attr> {
        Ok(self.node(ino)?.attr(ino))
    }

    pub(crate) fn lookup(&self, parent: u64, name: &[u8]) -> Reply<Attr> {
        self.attr(self.child(parent, name)?)
    }

    pub(crate) fn readlink(&self, ino: u64) -> Reply<Vec<u8>> {
        Ok(self.node(ino)?.target.clone())
    }

    pub(crate) fn create(&mut self, parent: u64, name: &[u8], node: NewNode) -> Reply<Attr> {
        if name.len() > 255 {
            return error(E::NAMETOOLONG);
        }
        if self.child(parent, name).is_ok() {
            return error(E::EXIST);
        }
        let ino = self.next_ino;
        self.next_ino += 1;
        let now = clock::now();
        self.nodes.insert(ino, Node::new(&node, parent, now));
        self.directory(parent).insert(name, ino);
        if node.kind == NodeKind::Directory {
            self.node_mut(parent)?.nlink += 1;
        }
        self.touch_directory(parent);
        self.record(Change::Create { parent, name: name.to_vec(), ino, node });
        self.attr(ino)
    }

    pub(crate) fn link(&mut self, ino: u64, parent: u64, name: &[u8]) -> Reply<Attr> {
        if self.child(parent, name).is_ok() {
            return error(E::EXIST);
        }
        let node = self.node_mut(ino)?;
        node.nlink += 1;
        node.ctime = clock::now();
        self.directory(parent).insert(name, ino);
        self.touch_directory(parent);
        self.record(Change::Link { ino, parent, name: name.to_vec() });
        self.attr(ino)
    }

    pub(crate) fn unlink(&mut self, parent: u64, name: &[u8]) -> Reply<()> {
        let ino = self.child(parent, name)?;
        if !self.node(ino)?.directory.by_name.is_empty() {
            return error(E::NOTEMPTY);
        }
        self.directory(parent).remove(name);
        self.touch_directory(parent);
        self.record(Change::Unlink { parent, name: name.to_vec(), ino });
        self.drop_name(ino, parent);
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Reply<()> {
        let moved = self.child(from.0, from.1)?;
        let replaced = self.child(to.0, to.1).ok();
        let exchange = flags == RENAME_EXCHANGE;
        match flags {
            0 | RENAME_EXCHANGE => {}
            RENAME_NOREPLACE if replaced.is_none() => {}
            RENAME_NOREPLACE => return error(E::EXIST),
            _ => return error(E::INVAL),
        }
        if replaced == Some(moved) {
            return Ok(());
        }
        match replaced {
            None if exchange => return error(E::NOENT),
            Some(old) if !exchange && !self.node(old)?.directory.by_name.is_empty() => {
                return error(E::NOTEMPTY);
            }
            None | Some(_) => {}
        }
        self.directory(from.0).remove(from.1);
        self.directory(to.0).insert(to.1, moved);
        self.moved(moved, from.0, to.0);
        if let Some(old) = replaced {
            if exchange {
                self.directory(from.0).insert(from.1, old);
                self.moved(old, to.0, from.0);
            } else {
                self.drop_name(old, to.0);
            }
        }
        self.touch_directory(from.0);
        self.touch_directory(to.0);
        self.record(Change::Rename {
            from: (from.0, from.1.to_vec()),
            to: (to.0, to.1.to_vec()),
            moved,
            replaced,
            exchange,
        });
        Ok(())
    }

    /// Keeps link counts and `..` right.
    fn moved(&mut self, ino: u64, from: u64, to: u64) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.ctime = clock::now();
        if node.kind == NodeKind::Directory && from != to {
            node.directory.parent = to;
            self.nodes.get_mut(&from).expect("it was seen").nlink -= 1;
            self.nodes.get_mut(&to).expect("it was seen").nlink += 1;
        }
    }

    fn drop_name(&mut self, ino: u64, parent: u64) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.ctime = clock::now();
        if node.kind == NodeKind::Directory {
            node.nlink = 0;
            self.nodes.get_mut(&parent).expect("it was seen").nlink -= 1;
        } else {
            node.nlink -= 1;
        }
        self.free_if_unused(ino);
    }

    /// Records stay small and numbers unique because only the bytes go, never the number.
    fn free_if_unused(&mut self, ino: u64) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        if node.nlink == 0 && node.open_count == 0 {
            self.used_pages -= node.pages.len() as u64;
            node.pages.clear();
        }
    }

    fn touch_directory(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.mtime = clock::now();
            node.ctime = node.mtime;
        }
    }

    pub(crate) fn open(&mut self, ino: u64, truncate: bool) -> Reply<()> {
        if truncate {
            self.truncate(ino, 0)?;
        }
        self.node_mut(ino)?.open_count += 1;
        Ok(())
    }

    pub(crate) fn release(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.open_count -= 1;
        }
        self.free_if_unused(ino);
    }

    pub(crate) fn set_attributes(
        &mut self,
        caller: Caller,
        ino: u64,
        change: &AttrChange,
    ) -> Reply<Attr> {
        if let Some(size_bytes) = change.size_bytes {
            self.truncate(ino, size_bytes)?;
        }
        let now = clock::now();
        let at = |time: TimeChange| match time {
            TimeChange::Now => now,
            TimeChange::At(time) => time,
        };
        let node = self.node_mut(ino)?;
        let mtime = change.mtime.map(at);
        // As chown(2): a change of owner by anybody but root takes the set-id bits along.
        let owned = change.uid.is_some() || change.gid.is_some();
        let stripped = (owned && caller.uid != 0).then_some(node.mode & 0o1777);
        let mode = change.mode.or(stripped);
        node.mode = mode.unwrap_or(node.mode);
        node.uid = change.uid.unwrap_or(node.uid);
        node.gid = change.gid.unwrap_or(node.gid);
        node.atime = change.atime.map_or(node.atime, at);
        node.mtime = mtime.unwrap_or(node.mtime);
        node.ctime = change.ctime.unwrap_or(now);
        if mode.is_some() || owned || mtime.is_some() {
            let (uid, gid) = (change.uid, change.gid);
            self.record(Change::Attributes { ino, mode, uid, gid, mtime });
        }
        self.attr(ino)
    }

    fn truncate(&mut self, ino: u64, size_bytes: u64) -> Reply<()> {
        let node = self.node_mut(ino)?;
        let gone = node.pages.split_off(&page_count(size_bytes)).len() as u64;
        if let Some((page, within)) = tail(size_bytes)
            && let Some(Some(bytes)) = node.pages.get_mut(&page)
        {
            bytes[within..].fill(0);
        }
        node.size_bytes = size_bytes;
        node.changed();
        self.used_pages -= gone;
        self.record(Change::Truncate { ino, size_bytes });
        Ok(())
    }

    pub(crate) fn read(&self, ino: u64, offset: u64, len: u64, out: &mut Vec<u8>) -> Reply<()> {
        let node = self.node(ino)?;
        let len = len.min(node.size_bytes.saturating_sub(offset));
        for part in parts(offset, len) {
            match node.pages.get(&part.page) {
                Some(Some(bytes)) => out.extend_from_slice(&bytes[part.start..part.end]),
                Some(None) | None => out.resize(out.len() + part.len(), 0),
            }
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, ino: u64, offset: u64, data: &[u8], kill: bool) -> Reply<()> {
        let len = data.len() as u64;
        let end = offset.checked_add(len).ok_or(Errno(E::FBIG.raw_os_error()))?;
        self.reserve(ino, offset, len)?;
        let node = self.node_mut(ino)?;
        for part in parts(offset, len) {
            let bytes = node.pages.entry(part.page).or_default();
            let bytes = bytes.get_or_insert_with(|| vec![0; PAGE_LEN].into_boxed_slice());
            bytes[part.start..part.end].copy_from_slice(&data[part.skipped..][..part.len()]);
        }
        node.size_bytes = node.size_bytes.max(end);
        node.changed();
        if kill {
            node.mode &= 0o1777;
        }
        self.record(Change::Write { ino, offset, data: data.into() });
        Ok(())
    }

    /// Takes the pages of a range that are not there yet from the free ones: all or none.
    fn reserve(&mut self, ino: u64, offset: u64, len: u64) -> Reply<()> {
        let free = self.capacity_pages.saturating_sub(self.used_pages);
        let node = self.nodes.get_mut(&ino).ok_or(Errno(E::NOENT.raw_os_error()))?;
        let missing: Vec<u64> = parts(offset, len)
            .map(|part| part.page)
            .filter(|page| !node.pages.contains_key(page))
            .collect();
        let count = missing.len() as u64;
        if count > free {
            return error(E::NOSPC);
        }
        node.pages.extend(missing.into_iter().map(|page| (page, None)));
        self.used_pages += count;
        Ok(())
    }

    pub(crate) fn allocate(&mut self, ino: u64, offset: u64, len: u64, mode: i32) -> Reply<()> {
        let end = offset.checked_add(len).ok_or(Errno(E::FBIG.raw_os_error()))?;
        let old_size = self.node(ino)?.size_bytes;
        let grow_to = (mode & KEEP_SIZE == 0 && end > old_size).then_some(end);
        match mode & !KEEP_SIZE {
            0 => {
                self.reserve(ino, offset, len)?;
                self.record(Change::Allocate { ino, offset, len, grow_to });
            }
            PUNCH_HOLE if mode & KEEP_SIZE != 0 => {
                self.zero(ino, offset, len, true)?;
                self.record(Change::Zero { ino, offset, len, punch: true, grow_to: None });
            }
            ZERO_RANGE => {
                self.reserve(ino, offset, len)?;
                self.zero(ino, offset, len, false)?;
                self.record(Change::Zero { ino, offset, len, punch: false, grow_to });
            }
            _ => return error(E::OPNOTSUPP),
        }
        let node = self.node_mut(ino)?;
        node.size_bytes = grow_to.unwrap_or(node.size_bytes);
        node.changed();
        Ok(())
    }

    fn zero(&mut self, ino: u64, offset: u64, len: u64, punch: bool) -> Reply<()> {
        let node = self.node_mut(ino)?;
        let mut freed = 0;
        // A hole may be punched far behind the end; only pages that exist cost anything.
        let last = page_count(offset.saturating_add(len));
        let present: Vec<u64> =
            node.pages.range(offset / PAGE_LEN as u64..last).map(|(page, _)| *page).collect();
        for page in present {
            let start = offset.max(page_offset(page)) - page_offset(page);
            let end = (offset + len).min(page_offset(page + 1)) - page_offset(page);
            let whole = end - start == PAGE_LEN as u64;
            if whole && punch {
                node.pages.remove(&page);
                freed += 1;
            } else if whole {
                node.pages.insert(page, None);
            } else if let Some(Some(bytes)) = node.pages.get_mut(&page) {
                bytes[to_len(start)..to_len(end)].fill(0);
            }
        }
        self.used_pages -= freed;
        Ok(())
    }

    pub(crate) fn seek(&self, ino: u64, offset: i64, whence: i32) -> Reply<i64> {
        let node = self.node(ino)?;
        let Ok(from) = u64::try_from(offset) else { return error(E::NXIO) };
        if from >= node.size_bytes {
            return error(E::NXIO);
        }
        let first = from / PAGE_LEN as u64;
        // An allocated page that was never written is a hole, as in ext4.
        let mut data = node.pages.range(first..).filter(|(_, bytes)| bytes.is_some());
        let found = match whence {
            SEEK_DATA => data.next().map(|(page, _)| page_offset(*page).max(from)),
            SEEK_HOLE => {
                let mut hole = first;
                while data.next().is_some_and(|(page, _)| *page == hole) {
                    hole += 1;
                }
                Some(page_offset(hole).max(from).min(node.size_bytes))
            }
            _ => return error(E::INVAL),
        };
        let found = found.filter(|at| *at < node.size_bytes || whence == SEEK_HOLE);
        let found = found.ok_or(Errno(E::NXIO.raw_os_error()))?;
        Ok(i64::try_from(found).expect("no larger than a file"))
    }

    /// Entries behind `cookie`, `.` and `..` included.
    pub(crate) fn entries(&self, ino: u64, cookie: u64, limit: usize) -> Reply<Vec<DirEntry>> {
        let node = self.node(ino)?;
        let own = [(1, b".".as_slice(), ino), (2, b"..".as_slice(), node.directory.parent)];
        let own = own.into_iter().filter(|(own, _, _)| *own > cookie);
        let others = node.directory.by_cookie.range(cookie.max(2) + 1..).map(|(cookie, name)| {
            (*cookie, name.as_slice(), node.directory.by_name[name.as_slice()].0)
        });
        let mut entries = Vec::new();
        for (cookie, name, ino) in own.chain(others).take(limit) {
            entries.push(DirEntry { cookie, name: name.to_vec(), ino, kind: self.node(ino)?.kind });
        }
        Ok(entries)
    }

    pub(crate) fn xattr(&self, ino: u64, name: &[u8]) -> Reply<Vec<u8>> {
        self.node(ino)?.xattrs.get(name).cloned().ok_or(Errno(E::NODATA.raw_os_error()))
    }

    pub(crate) fn xattr_names(&self, ino: u64) -> Reply<Vec<u8>> {
        Ok(self
            .node(ino)?
            .xattrs
            .keys()
            .flat_map(|name| [name, b"\0".as_slice()].concat())
            .collect())
    }

    pub(crate) fn set_xattr(
        &mut self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Reply<()> {
        const CREATE: i32 = 1;
        const REPLACE: i32 = 2;
        let node = self.node_mut(ino)?;
        let exists = node.xattrs.contains_key(name);
        if exists && flags & CREATE != 0 {
            return error(E::EXIST);
        }
        if !exists && flags & REPLACE != 0 {
            return error(E::NODATA);
        }
        node.xattrs.insert(name.to_vec(), value.to_vec());
        let (name, value) = (name.to_vec(), Some(value.to_vec()));
        self.record(Change::Xattr { ino, name, value });
        Ok(())
    }

    pub(crate) fn remove_xattr(&mut self, ino: u64, name: &[u8]) -> Reply<()> {
        if self.node_mut(ino)?.xattrs.remove(name).is_none() {
            return error(E::NODATA);
        }
        self.record(Change::Xattr { ino, name: name.to_vec(), value: None });
        Ok(())
    }
}

impl Node {
    fn new(node: &NewNode, parent: u64, now: Timestamp) -> Self {
        Self {
            kind: node.kind,
            mode: node.mode,
            nlink: if node.kind == NodeKind::Directory { 2 } else { 1 },
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
            size_bytes: node.target.len() as u64,
            atime: now,
            mtime: now,
            ctime: now,
            xattrs: BTreeMap::new(),
            open_count: 0,
            pages: BTreeMap::new(),
            directory: Directory { parent, ..Directory::default() },
            target: node.target.clone(),
        }
    }

    fn changed(&mut self) {
        self.mtime = clock::now();
        self.ctime = self.mtime;
    }

    fn attr(&self, ino: u64) -> Attr {
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size_bytes: self.size_bytes,
            allocated_bytes: page_offset(self.pages.len() as u64),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            // The kernel asks each time: a round trip is cheaper than a doubt about what it keeps.
            ttl: std::time::Duration::ZERO,
        }
    }
}
