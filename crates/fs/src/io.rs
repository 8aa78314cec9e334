//! Reading, writing, syncing and copying through handles: what reaches us when the kernel does not
//! do it by itself.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use librorum_format::{Extent, Ino};
use librorum_meta::{Meta, SetAttr};

use crate::error::{FsError, Result, disk};
use crate::fs::Fs;
use crate::node::{Backing, Data, ExtentCache, ExtentWindow, lock};
use crate::open::Handle;

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It may.
    May,
    /// It answers [`FsError::WouldWait`] instead.
    MustNot,
}

/// Files that grow through us leave this much of the disk to the metadata; ext4 keeps 5 % for root.
pub(crate) const ROOM_BYTES: u64 = 8 << 20;

/// Extents are read from the metadata for this much of a file at a time: a page at the default
/// chunk size.
const WINDOW_BYTES: u64 = 512 << 20;

impl Fs {
    /// Reads from an open file; appends at most `len` bytes to `out`, fewer only at the end.
    ///
    /// # Errors
    ///
    /// `BadHandle`; `Store` with `DataLoss` for bytes that cannot be proven; `WouldWait`.
    pub fn read(
        &self,
        handle: u64,
        offset: u64,
        len: u32,
        wait: Wait,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let handle = self.handles.get(handle)?;
        let start = out.len();
        loop {
            let (data, generation) = {
                let mut state = lock(&handle.node.state);
                self.load(&handle.node, &mut state)?;
                (state.data.clone().expect("just loaded"), state.generation)
            };
            let result = self.read_data(handle.node.ino, &data, offset, len, wait, out);
            match result {
                Err(FsError::Store(_)) if lock(&handle.node.state).generation != generation => {
                    // The bytes moved while they were read: unsealed, resealed or cut.
                    out.truncate(start);
                }
                other => return other,
            }
        }
    }

    fn read_data(
        &self,
        ino: Ino,
        data: &Data,
        offset: u64,
        len: u32,
        wait: Wait,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let start = out.len();
        // Cuts the request at the end of the file and makes room for it.
        let mut room = |size_bytes: u64| {
            let len = size_bytes.saturating_sub(offset).min(u64::from(len));
            out.resize(start + usize::try_from(len).expect("at most a request"), 0);
        };
        match data {
            Data::Empty => {
                room(self.meta.inode(ino)?.size_bytes);
                Ok(())
            }
            Data::Inline(bytes) => {
                room(bytes.len() as u64);
                let wanted = out.len() - start;
                if wanted > 0 {
                    let from = usize::try_from(offset).expect("below the inline limit");
                    out[start..].copy_from_slice(&bytes[from..from + wanted]);
                }
                Ok(())
            }
            Data::Staged(backing) => read_file(ino, backing, offset, len, wait, out),
            Data::Overlay(overlay) => {
                if wait == Wait::MustNot {
                    return Err(FsError::WouldWait);
                }
                let stat = overlay.backing.file().metadata().map_err(disk("cannot stat", ino))?;
                room(stat.len());
                self.read_overlay(ino, overlay, offset, &mut out[start..])
            }
            Data::Whole(_) => {
                // By passthrough the kernel reads it alone; what comes here is read ahead on
                // demand, and is verified like every byte that we hand out.
                room(self.meta.inode(ino)?.size_bytes);
                let end = offset + (out.len() - start) as u64;
                let extents = self.meta.extents(ino, offset, end)?;
                self.read_sealed(&extents, offset, wait, &mut out[start..])
            }
            Data::Sealed(cache) => {
                let size_bytes = self.meta.inode(ino)?.size_bytes;
                room(size_bytes);
                let end = offset + (out.len() - start) as u64;
                let extents = self.cached_extents(ino, cache, offset, end)?;
                self.read_sealed(&extents, offset, wait, &mut out[start..])
            }
        }
    }

    fn read_sealed(
        &self,
        extents: &[Extent],
        offset: u64,
        wait: Wait,
        out: &mut [u8],
    ) -> Result<()> {
        if wait == Wait::May {
            return self.fill_from_extents(extents, offset, out);
        }
        let end = offset + out.len() as u64;
        for extent in extents {
            let Some(run) = extent.clip(offset, end) else { continue };
            let from = usize::try_from(run.file_offset_bytes - offset).expect("in the buffer");
            let to = usize::try_from(run.file_end_bytes() - offset).expect("in the buffer");
            let target = &mut out[from..to];
            if !self.store.read_extent_cached(extent, run.file_offset_bytes, target)? {
                return Err(FsError::WouldWait);
            }
        }
        Ok(())
    }

    pub(crate) fn cached_extents(
        &self,
        ino: Ino,
        cache: &ExtentCache,
        offset: u64,
        end: u64,
    ) -> Result<Arc<[Extent]>> {
        if let Some(window) = &*lock(&cache.window)
            && window.start_bytes <= offset
            && end <= window.end_bytes
        {
            return Ok(Arc::clone(&window.extents));
        }
        let end_bytes = end.max(offset.saturating_add(WINDOW_BYTES));
        let extents: Arc<[Extent]> = self.meta.extents(ino, offset, end_bytes)?.into();
        *lock(&cache.window) =
            Some(ExtentWindow { start_bytes: offset, end_bytes, extents: Arc::clone(&extents) });
        Ok(extents)
    }

    pub(crate) fn open_writer(&self, handle: u64) -> Result<Arc<Handle>> {
        let open = self.handles.get(handle)?;
        if open.write { Ok(open) } else { Err(FsError::BadHandle { handle }) }
    }

    /// Writes to an open file.
    ///
    /// # Errors
    ///
    /// `BadHandle`, `NoSpace`, the disk's. A failure other than a full disk stays with the handle.
    pub fn write(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        kill_privileges: bool,
    ) -> Result<()> {
        self.writable()?;
        let handle = self.open_writer(handle)?;
        let node = &handle.node;
        if handle.failed.load(Ordering::Acquire) {
            return Err(FsError::PreviousIo { ino: node.ino });
        }
        if offset
            .checked_add(data.len() as u64)
            .is_none_or(|end| end > crate::truncate::FILE_LEN_MAX_BYTES)
        {
            return Err(FsError::Disk {
                what: "the write is beyond the largest file: the content",
                ino: node.ino,
                source: std::io::ErrorKind::FileTooLarge.into(),
            });
        }
        let target = {
            let mut state = lock(&node.state);
            self.load(node, &mut state)?;
            self.make_writable(node, &mut state)?;
            state.changed_through_kernel();
            state.data.clone().expect("just loaded")
        };
        self.leave_room(node.ino, &target, offset + data.len() as u64)?;
        let result = match &target {
            Data::Staged(backing) => {
                backing.file().write_all_at(data, offset).map_err(disk("cannot write", node.ino))
            }
            Data::Overlay(overlay) => {
                self.write_overlay(node, overlay, &mut lock(&overlay.state), offset, data)
            }
            Data::Empty | Data::Inline(_) | Data::Whole(_) | Data::Sealed(_) => {
                unreachable!("{:?} was just made writable", node.ino)
            }
        };
        if kill_privileges {
            self.clear_set_id(node.ino)?;
        }
        self.remember_failure(&handle, result)
    }

    /// Refuses to let a file grow into the last bytes of the disk: removing files needs some.
    fn leave_room(&self, ino: Ino, target: &Data, end_bytes: u64) -> Result<()> {
        if self.meta.free_bytes() >= ROOM_BYTES {
            return Ok(());
        }
        let Some(backing) = target.staging() else { return Ok(()) };
        let len = backing.file().metadata().map_err(disk("cannot stat", ino))?.len();
        if end_bytes <= len {
            return Ok(());
        }
        let source = std::io::ErrorKind::StorageFull.into();
        Err(FsError::Disk { what: "cannot extend", ino, source })
    }

    /// A full disk is told and forgotten: nothing was lost that had been acknowledged. Any other
    /// failure means that the disk may have dropped what it had taken.
    fn remember_failure(&self, handle: &Handle, result: Result<()>) -> Result<()> {
        if let Err(error) = &result
            && error.kind() != librorum_format::ErrorKind::NoSpace
            && error.kind() != librorum_format::ErrorKind::TooLarge
        {
            tracing::error!(%error, ino = ?handle.node.ino, "the handle is poisoned");
            handle.failed.store(true, Ordering::Release);
        }
        result
    }

    /// Clears the set-user-id bit, and the set-group-id bit if the group may execute, as a write by
    /// somebody without privileges does.
    ///
    /// # Errors
    ///
    /// The metadata's.
    pub fn clear_set_id(&self, ino: Ino) -> Result<()> {
        let inode = self.meta.inode(ino)?;
        let mut mode = inode.mode & !0o4000;
        if mode & 0o010 != 0 {
            mode &= !0o2000;
        }
        if mode != inode.mode {
            let now = librorum_sys::clock::now();
            let set = SetAttr { mode: Some(mode), ctime: Some(now), ..SetAttr::default() };
            self.meta.set_attr(ino, &set)?;
        }
        Ok(())
    }

    /// Makes a file durable: its bytes, then every name and attribute there is so far. Never waits
    /// for sealing. Costs one fsync of the staging file, and one of the metadata if it changed.
    ///
    /// # Errors
    ///
    /// `BadHandle`, `PreviousIo`, the disk's; the failure stays with the handle.
    pub fn fsync(&self, handle: u64, data_only: bool) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        let handle = self.handles.get(handle)?;
        let node = &handle.node;
        if handle.failed.load(Ordering::Acquire) {
            return Err(FsError::PreviousIo { ino: node.ino });
        }
        let backing = {
            let mut state = lock(&node.state);
            self.load(node, &mut state)?;
            state.data.as_ref().and_then(Data::staging).cloned()
        };
        let result = match backing {
            Some(backing) => sync_file(backing.file(), data_only)
                .map_err(disk("cannot sync the staging file", node.ino)),
            None => Ok(()),
        };
        // Bytes before names: the staging file may be named already, its bytes are promised now.
        self.remember_failure(&handle, result)?;
        self.sync_names()
    }

    /// Makes all names durable.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn fsync_dir(&self) -> Result<()> {
        if self.options.read_only { Ok(()) } else { self.sync_names() }
    }

    /// Copies bytes between two open files of the volume, inside the kernel where both lie in
    /// files of their own (sharing blocks where the disk below can). Equal bytes are stored once
    /// when the copy is sealed.
    ///
    /// # Errors
    ///
    /// As [`Fs::read`] and [`Fs::write`].
    pub fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u64> {
        self.writable()?;
        let source = self.handles.get(from.0)?;
        let target = self.open_writer(to.0)?;
        if self.share_range(&source.node, from.1, &target.node, to.1, len)? {
            return Ok(
                len.min(self.attributes(source.node.ino)?.inode.size_bytes.saturating_sub(from.1))
            );
        }
        // One request's worth; the caller asks again.
        let len = len.min(64 << 20);
        let source_backing = {
            let mut state = lock(&source.node.state);
            self.load(&source.node, &mut state)?;
            match state.data.as_ref() {
                // Unverified bytes of a sealed file do not become another file's.
                Some(Data::Staged(backing)) => Some(Arc::clone(backing)),
                _ => None,
            }
        };
        let target_backing = {
            let mut state = lock(&target.node.state);
            self.load(&target.node, &mut state)?;
            self.make_writable(&target.node, &mut state)?;
            state.changed_through_kernel();
            match state.data.as_ref() {
                Some(Data::Staged(backing)) => Some(Arc::clone(backing)),
                _ => None,
            }
        };
        if let (Some(source_backing), Some(target_backing)) = (source_backing, target_backing) {
            let (mut from_offset, mut to_offset) = (from.1, to.1);
            let copied = rustix::fs::copy_file_range(
                source_backing.file(),
                Some(&mut from_offset),
                target_backing.file(),
                Some(&mut to_offset),
                usize::try_from(len).unwrap_or(usize::MAX),
            );
            match copied {
                Ok(copied) => return Ok(copied as u64),
                Err(
                    rustix::io::Errno::INVAL
                    | rustix::io::Errno::XDEV
                    | rustix::io::Errno::OPNOTSUPP,
                ) => {}
                Err(error) => return Err(disk("cannot copy", target.node.ino)(error)),
            }
        }
        let mut copied = 0;
        let mut buffer = Vec::new();
        while copied < len {
            buffer.clear();
            let part = u32::try_from((len - copied).min(1 << 20)).expect("at most a mebibyte");
            self.read(from.0, from.1 + copied, part, Wait::May, &mut buffer)?;
            if buffer.is_empty() {
                break;
            }
            self.write(to.0, to.1 + copied, &buffer, false)?;
            copied += buffer.len() as u64;
        }
        Ok(copied)
    }
}

/// fsync(2) or fdatasync(2).
pub(crate) fn sync_file(file: &std::fs::File, data_only: bool) -> rustix::io::Result<()> {
    if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
}

fn read_file(
    ino: Ino,
    backing: &Backing,
    offset: u64,
    len: u32,
    wait: Wait,
    out: &mut Vec<u8>,
) -> Result<()> {
    let start = out.len();
    out.resize(start + len as usize, 0);
    let mut filled = 0;
    while filled < len as usize {
        let target = &mut out[start + filled..];
        let at = offset + filled as u64;
        let read = if wait == Wait::MustNot {
            let mut buffers = [std::io::IoSliceMut::new(target)];
            let flags = rustix::io::ReadWriteFlags::NOWAIT;
            match rustix::io::preadv2(backing.file(), &mut buffers, at, flags) {
                Ok(read) => read,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::OPNOTSUPP) => {
                    out.truncate(start);
                    return Err(FsError::WouldWait);
                }
                Err(error) => return Err(disk("cannot read the staging file", ino)(error)),
            }
        } else {
            backing.file().read_at(target, at).map_err(disk("cannot read the staging file", ino))?
        };
        if read == 0 {
            break;
        }
        filled += read;
    }
    out.truncate(start + filled);
    Ok(())
}
