//! Files that appear in the tree with all of their content.
//!
//! Order: the bytes are where they stay, under a name that is durable, before the transaction that
//! makes the inode and gives it its place; where that takes the place of another file, or a durable
//! answer is asked for, the bytes are durable too. So after a power cut there is the old file or the
//! new one. In a free place, and without asking for it, the new file's bytes may be missing, as those
//! of any file that was closed and not synced.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use librorum_format::{Extent, Ino, Timestamp};
use librorum_meta::{FileKind, Meta, MetaError, NewContent, NewInode, Publish, Published};
use rustix::fs::{Mode, OFlags};

use super::Outside;
use super::upload::{Source, Upload, failed, reopen};
use crate::attr::Attributes;
use crate::error::{FsError, Result};
use crate::fs::Fs;
use crate::node::{Backing, Data, lock};
use crate::seal::claim_for_sharing;

/// How a file is published.
#[derive(Clone, Copy, Debug, Default)]
pub struct PublishOptions {
    /// Its length: what an upload has beyond it is cut off. Of no meaning for bytes in memory.
    pub length: u64,
    /// Take the name from whatever has it, but a directory.
    pub replace: bool,
    /// Its time of modification, if that is not now.
    pub mtime: Option<Timestamp>,
    /// Answer when file and name are durable.
    pub durable: bool,
    /// Refuse an upload that anybody can still write to. To be asked for wherever a descriptor of it
    /// was handed out.
    pub require_no_writer: bool,
}

/// The content of a file that is about to be published.
#[derive(Debug)]
struct Prepared<'a> {
    content: NewContent<'a>,
    size_bytes: u64,
    allocated_bytes: u64,
}

/// Copies a file this much at a time.
const COPY_BYTES: usize = 1 << 20;

/// How often extents are gathered anew that went away before they could be shared.
const TRIES: usize = 3;

impl Outside {
    /// Gives an upload its place in the tree. It has none before, and all of its bytes from then on.
    /// What it replaces goes the way of [`Outside::unlink`]. The upload is spent if this succeeds, and
    /// can be tried again if it fails.
    ///
    /// # Errors
    ///
    /// As [`Meta::publish`]; `Busy` if there is a writer and there must be none; `Invalid` if the upload
    /// is shorter than `options.length` or published already; the disk's.
    pub fn publish(
        &self,
        upload: &mut Upload,
        place: (Ino, &[u8]),
        new: &NewInode<'_>,
        options: &PublishOptions,
    ) -> Result<Attributes> {
        let fs = &self.fs;
        fs.writable()?;
        upload.file()?;
        let replaces = fs.check_place(place, options.replace)?;
        if options.require_no_writer {
            shut_out_writers(upload)?;
        }
        let file = upload.file()?;
        let len_bytes = file.metadata().map_err(failed("cannot stat"))?.len();
        if len_bytes < options.length {
            return Err(FsError::Invalid { what: "the upload is shorter than it is said to be" });
        }
        let new = NewInode { now: librorum_sys::clock::now(), ..new.clone() };
        let published = if options.length <= u64::from(fs.volume.config.inline_max_bytes) {
            let mut bytes = vec![0; usize::try_from(options.length).expect("an inline file")];
            file.read_exact_at(&mut bytes, 0).map_err(failed("cannot read"))?;
            let published = fs.publish_inline(place, &new, &bytes, options)?;
            self.abandon(upload);
            published
        } else {
            file.set_len(options.length).map_err(failed("cannot cut"))?;
            rustix::fs::fchmod(file, Mode::RUSR | Mode::WUSR)
                .map_err(|error| failed("cannot set the mode of")(error.into()))?;
            stamp(file, options.mtime.unwrap_or(new.now))?;
            if replaces || options.durable {
                rustix::fs::fdatasync(file).map_err(|error| failed("cannot sync")(error.into()))?;
            }
            let (segment, key) = match &upload.source {
                Source::Unnamed => (fs.store.adopt(file)?, None),
                Source::Store(segment) => (*segment, None),
                Source::Named(key) => (fs.take_in_upload(key)?, Some(key.clone())),
                Source::Published => unreachable!("it has a file"),
            };
            let published = fs
                .open_adopted(segment)
                .and_then(|backing| fs.publish_staged(place, &new, backing, options));
            match published {
                Ok(published) => {
                    upload.file = None;
                    if let Some(key) = key {
                        fs.close_upload(&key);
                    }
                    upload.source = Source::Published;
                    published
                }
                Err(error) => {
                    if let Some(key) = key {
                        fs.store.put_out(segment, &fs.uploads_dir().join(key))?;
                    } else {
                        // A file that lost its only name could never have another one.
                        upload.source = Source::Store(segment);
                    }
                    return Err(error);
                }
            }
        };
        fs.uploads.published_count.fetch_add(1, Ordering::Relaxed);
        self.finish(place, published, options.durable)
    }

    /// Proves that nobody can write to an upload any more, before its bytes are looked at. Copies of its
    /// descriptor are writers, too.
    ///
    /// # Errors
    ///
    /// `Busy` if somebody can; the disk's.
    pub fn require_no_writer(&self, upload: &mut Upload) -> Result<()> {
        shut_out_writers(upload)
    }

    /// Publishes bytes that are at hand. Up to the volume's inline limit they go into the metadata, in
    /// one transaction; more go through a staging file.
    ///
    /// # Errors
    ///
    /// As [`Meta::publish`]; `NoSpace`, the disk's.
    pub fn publish_bytes(
        &self,
        place: (Ino, &[u8]),
        new: &NewInode<'_>,
        bytes: &[u8],
        options: &PublishOptions,
    ) -> Result<Attributes> {
        let fs = &self.fs;
        fs.writable()?;
        let new = NewInode { now: librorum_sys::clock::now(), ..new.clone() };
        let published = if bytes.len() <= fs.volume.config.inline_max_bytes as usize {
            fs.publish_inline(place, &new, bytes, options)?
        } else {
            let replaces = fs.check_place(place, options.replace)?;
            let backing = fs.take_staging(bytes.len() as u64)?;
            let published = (|| {
                backing.file().write_all_at(bytes, 0).map_err(failed("cannot write"))?;
                fs.publish_copy(place, &new, &backing, replaces, options)
            })();
            fs.settle(backing, published)?
        };
        self.finish(place, published, options.durable)
    }

    /// Publishes a copy of a file. What is sealed is shared, in one transaction, whatever its length;
    /// what is not sealed yet is copied, by the disk where that can share blocks. `options.length` is
    /// of no meaning, and its own mtime is the source's unless `options` has another one.
    ///
    /// # Errors
    ///
    /// As [`Meta::publish`]; `NoInode` or `Invalid` for a source that is no regular file; `NoSpace`,
    /// the disk's.
    pub fn clone_file(
        &self,
        from: Ino,
        place: (Ino, &[u8]),
        new: &NewInode<'_>,
        options: &PublishOptions,
    ) -> Result<Attributes> {
        let fs = &self.fs;
        fs.writable()?;
        let source = self.attributes(from)?.inode;
        let new = NewInode { now: librorum_sys::clock::now(), ..new.clone() };
        let options = PublishOptions { mtime: options.mtime.or(Some(source.mtime)), ..*options };
        let published = match fs.clone_sealed(from, place, &new, &options)? {
            Some(published) => published,
            None => {
                let replaces = fs.check_place(place, options.replace)?;
                let reader = self.open_read(from)?;
                let backing = fs.take_staging(source.size_bytes)?;
                let published = copy(&reader, backing.file())
                    .and_then(|()| fs.publish_copy(place, &new, &backing, replaces, &options));
                fs.settle(backing, published)?
            }
        };
        self.finish(place, published, options.durable)
    }

    /// The file of an upload is not needed any more: its bytes are elsewhere.
    fn abandon(&self, upload: &mut Upload) {
        upload.file = None;
        if let Some(key) = upload.key().map(str::to_owned) {
            self.fs.close_upload(&key);
            if let Err(error) = self.remove_upload(&key) {
                tracing::warn!(%error, "a published upload stays until it expires");
            }
        }
        match std::mem::replace(&mut upload.source, Source::Published) {
            Source::Store(segment) => {
                if let Err(error) = self.fs.meta.condemn(&[segment]) {
                    tracing::debug!(%error, "a published upload's file stays until the next crash");
                }
            }
            Source::Unnamed | Source::Named(_) | Source::Published => {}
        }
    }

    /// What every publication ends with. Without any lock held.
    fn finish(
        &self,
        (parent, name): (Ino, &[u8]),
        published: Published,
        durable: bool,
    ) -> Result<Attributes> {
        let fs = &self.fs;
        if let Some(replaced) = &published.replaced {
            fs.after_unlink(replaced);
        }
        fs.notifications.entry_changed(parent, name);
        if let Some(replaced) = &published.replaced {
            fs.notifications.attributes_changed(replaced.ino);
        }
        if durable {
            fs.sync_names()?;
        }
        Ok(Attributes { inode: published.inode, being_written: false })
    }
}

impl Fs {
    /// Fails early where publishing would fail late. Answers whether a file would be replaced.
    fn check_place(&self, (parent, name): (Ino, &[u8]), replace: bool) -> Result<bool> {
        match self.meta.lookup(parent, name) {
            Ok(_) if !replace => Err(MetaError::Exists { parent, name: name.to_vec() }.into()),
            Ok(found) if found.kind == FileKind::Directory => {
                Err(MetaError::IsDirectory { ino: found.ino }.into())
            }
            Ok(_) => Ok(true),
            Err(MetaError::NoEntry { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A staging file for bytes that are about to come.
    fn take_staging(&self, len_bytes: u64) -> Result<Backing> {
        self.wait_for_room(&AtomicBool::new(false))?;
        self.require_room(len_bytes)?;
        Ok(self.pool.take()?)
    }

    /// Gives back a staging file that was not published after all. It has bytes, so it is no file of
    /// the pool's any more.
    fn settle(&self, backing: Backing, published: Result<Published>) -> Result<Published> {
        if published.is_err() {
            let segment = backing.segment();
            drop(backing);
            self.meta.condemn(&[segment])?;
        }
        published
    }

    fn publish_inline(
        &self,
        place: (Ino, &[u8]),
        new: &NewInode<'_>,
        bytes: &[u8],
        options: &PublishOptions,
    ) -> Result<Published> {
        let size_bytes = bytes.len() as u64;
        let prepared = Prepared {
            content: if bytes.is_empty() { NewContent::Empty } else { NewContent::Inline(bytes) },
            size_bytes,
            allocated_bytes: size_bytes.next_multiple_of(512),
        };
        self.publish_content(place, new, &prepared, options)
    }

    fn publish_content(
        &self,
        (parent, name): (Ino, &[u8]),
        new: &NewInode<'_>,
        prepared: &Prepared<'_>,
        options: &PublishOptions,
    ) -> Result<Published> {
        Ok(self.meta.publish(&Publish {
            parent,
            name,
            new,
            content: prepared.content,
            size_bytes: prepared.size_bytes,
            allocated_bytes: prepared.allocated_bytes,
            mtime: options.mtime,
            replace: options.replace,
        })?)
    }

    /// Publishes a staging file that has just been written here.
    fn publish_copy(
        &self,
        place: (Ino, &[u8]),
        new: &NewInode<'_>,
        backing: &Backing,
        replaces: bool,
        options: &PublishOptions,
    ) -> Result<Published> {
        let file = backing.file();
        stamp(file, options.mtime.unwrap_or(new.now))?;
        if replaces || options.durable {
            rustix::fs::fdatasync(file).map_err(|error| failed("cannot sync")(error.into()))?;
        }
        let again =
            Backing::new(backing.segment(), file.try_clone().map_err(failed("cannot duplicate"))?);
        self.publish_staged(place, new, again, options)
    }

    /// Makes a staging file the content of a new inode, and queues that for sealing like any file that
    /// was closed.
    fn publish_staged(
        &self,
        place: (Ino, &[u8]),
        new: &NewInode<'_>,
        backing: Backing,
        options: &PublishOptions,
    ) -> Result<Published> {
        let stat = rustix::fs::fstat(backing.file())
            .map_err(|error| failed("cannot stat")(error.into()))?;
        let found = crate::attr::StagingStat::new(&stat);
        let prepared = Prepared {
            content: NewContent::Staged { segment: backing.segment() },
            size_bytes: found.size_bytes,
            allocated_bytes: found.allocated_bytes,
        };
        let published = self.publish_content(place, new, &prepared, options)?;
        let ino = published.inode.ino;
        let node = self.table.node(ino);
        let mut state = lock(&node.state);
        // Somebody may have found and opened it already, even written and closed it.
        if state.data.is_none() {
            self.pool.watch(&backing);
            state.data = Some(Data::Staged(Arc::new(backing)));
        }
        if state.writers == 0 && state.queued_bytes == 0 && !state.orphan {
            state.queued_bytes = found.size_bytes.max(1);
            self.enqueue_seal(ino, found.size_bytes);
        }
        let is_idle = !state.is_open();
        drop(state);
        drop(node);
        if is_idle {
            self.reclaim.note_idle(ino);
        }
        Ok(published)
    }

    /// Shares what a file names, if none of it can change; `None` for a file whose bytes have to be
    /// copied.
    fn clone_sealed(
        &self,
        from: Ino,
        place: (Ino, &[u8]),
        new: &NewInode<'_>,
        options: &PublishOptions,
    ) -> Result<Option<Published>> {
        let node = self.table.node(from);
        for _ in 0..TRIES {
            let data = {
                let mut state = lock(&node.state);
                self.load(&node, &mut state)?;
                state.data.clone().expect("just loaded")
            };
            let inode = self.meta.inode(from)?;
            let allocated_bytes = inode.allocated_bytes;
            let size_bytes = inode.size_bytes;
            let published = match data {
                Data::Empty => {
                    let content = NewContent::Empty;
                    let prepared = Prepared { content, size_bytes, allocated_bytes };
                    self.publish_content(place, new, &prepared, options)
                }
                Data::Inline(bytes) => self.publish_inline(place, new, &bytes, options),
                Data::Whole(_) | Data::Sealed(_) => {
                    let extents: Vec<Extent> = self.meta.extents(from, 0, size_bytes)?;
                    if self.meta.inode(from)?.content_version != inode.content_version {
                        continue;
                    }
                    // Held until the metadata says so, as by sealing (`Fs::publish`).
                    let mut whole = lock(&self.whole);
                    let segments = extents.iter().map(|extent| extent.location.segment);
                    if !claim_for_sharing(&mut whole, segments) {
                        return Ok(None);
                    }
                    let content = NewContent::Sealed { extents: &extents, fresh: &[] };
                    let prepared = Prepared { content, size_bytes, allocated_bytes };
                    self.publish_content(place, new, &prepared, options)
                }
                Data::Staged(_) | Data::Overlay(_) => return Ok(None),
            };
            match published {
                // Unsealed or dropped meanwhile: look again.
                Err(FsError::Meta(MetaError::SegmentGone { .. })) => {}
                other => return other.map(Some),
            }
        }
        Ok(None)
    }
}

/// Proves that nobody can write to an upload any more, and leaves it with a description of our own.
fn shut_out_writers(upload: &mut Upload) -> Result<()> {
    let Some(file) = upload.file.take() else { return Ok(()) };
    let reader = match reopen(&file, OFlags::RDONLY) {
        Ok(reader) => reader,
        Err(error) => {
            upload.file = Some(file);
            return Err(failed("cannot reopen")(error));
        }
    };
    // Its description counts as a writer, ours as anybody's.
    drop(file);
    let proven = librorum_sys::lease::has_no_writer(&reader);
    upload.file = Some(reopen(&reader, OFlags::RDWR).map_err(failed("cannot reopen"))?);
    match proven {
        Ok(true) => Ok(()),
        Ok(false) => Err(FsError::Busy { what: "somebody can still write to the upload" }),
        Err(error) => Err(failed("cannot look for writers of")(error)),
    }
}

/// Gives a staging file its inode's time of modification.
fn stamp(file: &File, mtime: Timestamp) -> Result<()> {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec {
            tv_sec: mtime.secs,
            tv_nsec: i64::from(mtime.nanos),
        },
    };
    rustix::fs::futimens(file, &times)
        .map_err(|error| failed("cannot set the times of")(error.into()))
}

/// Copies all of an open file.
fn copy(from: &super::ReadHandle, to: &File) -> Result<()> {
    if let Some(staged) = from.staging() {
        if rustix::fs::ioctl_ficlone(to, staged.file()).is_ok() {
            return Ok(());
        }
        let (mut read_at, mut write_at) = (0, 0);
        loop {
            let copied = rustix::fs::copy_file_range(
                staged.file(),
                Some(&mut read_at),
                to,
                Some(&mut write_at),
                1 << 30,
            );
            match copied {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(
                    rustix::io::Errno::INVAL
                    | rustix::io::Errno::XDEV
                    | rustix::io::Errno::OPNOTSUPP,
                ) if read_at == 0 => break,
                Err(error) => return Err(failed("cannot copy to")(error.into())),
            }
        }
    }
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    loop {
        let count = from.read_at(at, &mut buffer)?;
        if count == 0 {
            return to.set_len(at).map_err(failed("cannot extend"));
        }
        // Zeros stay a hole.
        if buffer[..count].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..count], at).map_err(failed("cannot write"))?;
        }
        at += count as u64;
    }
}
