//! What a volume is, holds, and is busy with; and its logical dump.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use librorum_format::{Ino, TxnId};
use librorum_meta::{EmbeddedOptions, Meta};
use serde::Serialize;

use crate::error::{FsError, Result};
use crate::fs::{Fs, PAGE};

/// A volume's state at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The volume's folder.
    pub volume: PathBuf,
    /// Its identity.
    pub volume_id: String,
    /// How files are cut into chunks.
    pub chunking: String,
    /// Regular files, symbolic links and special files.
    pub file_count: u64,
    /// Directories.
    pub directory_count: u64,
    /// Sum of the files' lengths.
    pub logical_bytes: u64,
    /// What the disk holds for them: segments and staging files, holes not counted.
    pub stored_bytes: u64,
    /// What deduplication, compression and holes save: logical minus stored, never below zero.
    pub deduplicated_bytes: u64,
    /// Bytes in staging files, not yet sealed.
    pub staged_bytes: u64,
    /// Files with a staging file.
    pub staged_file_count: u64,
    /// What chunk tables, dedup index and metadata take.
    pub overhead_bytes: u64,
    /// Segments and staging files on disk.
    pub segment_count: u64,
    /// Unlinked files that are still open, or not freed yet.
    pub orphan_count: u64,
    /// Segments that nothing names and that will be deleted.
    pub condemned_count: u64,
    /// The newest metadata operation, and the newest durable one.
    pub newest_txn: u64,
    /// See `newest_txn`.
    pub durable_txn: u64,
    /// Background work.
    pub background: Background,
    /// What callers other than the kernel do, and have done since the volume was opened.
    pub outside: OutsideCounts,
    /// Bytes of the disk below, and how many of them an ordinary user may still fill.
    pub disk_bytes: u64,
    /// See `disk_bytes`.
    pub disk_available_bytes: u64,
}

/// What a volume does in the background.
#[derive(Clone, Debug, Serialize)]
pub struct Background {
    /// Closed files that wait for sealing or are being sealed.
    pub waiting_file_count: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Files sealed since the volume was opened.
    pub sealed_file_count: u64,
    /// Their bytes.
    pub sealed_bytes: u64,
    /// Empty staging files that are ready.
    pub pool_file_count: u64,
    /// Whether opens may be served by passthrough.
    pub passthrough: bool,
}

/// What came and went past the kernel since the volume was opened.
#[derive(Clone, Debug, Serialize)]
pub struct OutsideCounts {
    /// Notifications to the kernel of what changed behind its back.
    pub notification_count: u64,
    /// Uploads begun, or gone on with.
    pub upload_begun_count: u64,
    /// Uploads published.
    pub upload_published_count: u64,
    /// Bytes that others were lent descriptors for, as often as they asked.
    pub lent_bytes: u64,
    /// Uploads with a name that wait to be gone on with.
    pub waiting_upload_count: u64,
    /// What they take on disk.
    pub waiting_upload_bytes: u64,
}

/// How far long work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done.
    pub phase: &'static str,
    /// How much of it is done.
    pub done: u64,
    /// How much there is, if that is known.
    pub total: Option<u64>,
    /// What is counted.
    pub unit: &'static str,
}

impl Fs {
    /// The volume's state. Walks the segments' folders: about a second per 300,000 segments.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn status(&self) -> Result<Status> {
        let stats = self.meta.stats();
        let usage = self.store.usage()?;
        let mut staged_bytes = 0;
        let mut after = Ino(0);
        loop {
            let page = self.meta.staged(after, PAGE)?;
            let Some(&last) = page.last() else { break };
            after = last;
            for ino in page {
                // One that was reaped since the listing counts nothing.
                if let Ok(found) = self.attributes(ino) {
                    staged_bytes += found.inode.allocated_bytes;
                }
            }
        }
        let mut condemned_count = 0;
        let mut after = librorum_format::SegmentId(0);
        loop {
            let page = self.meta.condemned(after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = last.segment;
            condemned_count += page.len() as u64;
        }
        let (waiting, waiting_bytes, sealed_file_count, sealed_bytes) = self.sealer.counts();
        let disk = self.disk_usage()?;
        let metadata_bytes = folder_bytes(&self.volume.meta_dir())?;
        Ok(Status {
            volume: self.volume.dir.clone(),
            volume_id: self.volume.config.volume_id.clone(),
            chunking: self.volume.config.chunking.clone(),
            file_count: stats.inode_count.saturating_sub(stats.directory_count),
            directory_count: stats.directory_count,
            logical_bytes: stats.logical_bytes,
            stored_bytes: usage.stored_bytes,
            deduplicated_bytes: stats.logical_bytes.saturating_sub(usage.stored_bytes),
            staged_bytes,
            staged_file_count: stats.staged_count,
            overhead_bytes: usage.table_bytes + usage.index_bytes + metadata_bytes,
            segment_count: usage.segment_count,
            orphan_count: stats.orphan_count,
            condemned_count,
            newest_txn: self.meta.newest_txn().0,
            durable_txn: self.meta.durable_txn().0,
            background: Background {
                waiting_file_count: waiting as u64,
                waiting_bytes,
                sealed_file_count,
                sealed_bytes,
                pool_file_count: self.pool.ready_count() as u64,
                passthrough: self.passthrough.load(Ordering::Relaxed),
            },
            outside: self.outside_counts()?,
            disk_bytes: disk.f_blocks * disk.f_frsize,
            disk_available_bytes: disk.f_bavail * disk.f_frsize,
        })
    }

    /// What callers other than the kernel do. Cheap but for a look at the folder of uploads.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn outside_counts(&self) -> Result<OutsideCounts> {
        let waiting = self.list_uploads()?;
        Ok(OutsideCounts {
            notification_count: self.notifications.count(),
            upload_begun_count: self.uploads.begun_count.load(Ordering::Relaxed),
            upload_published_count: self.uploads.published_count.load(Ordering::Relaxed),
            lent_bytes: self.lent.bytes(),
            waiting_upload_count: waiting.len() as u64,
            waiting_upload_bytes: waiting.iter().map(|upload| upload.allocated_bytes).sum(),
        })
    }

    /// What statvfs(3) says of the disk below: its free space is ours, but for what the metadata keeps
    /// back so that files can still be removed when the disk is full.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn disk_usage(&self) -> Result<rustix::fs::StatVfs> {
        let mut disk = rustix::fs::statvfs(&self.volume.dir).map_err(|error| FsError::Volume {
            path: self.volume.dir.clone(),
            source: error.into(),
        })?;
        let reserve = EmbeddedOptions::default().reserve_bytes / disk.f_frsize.max(1);
        disk.f_bavail = disk.f_bavail.saturating_sub(reserve);
        Ok(disk)
    }

    /// Writes all metadata in its engine-neutral form to `dumps/`, keeps the newest two, and
    /// answers how far the dump reaches.
    ///
    /// # Errors
    ///
    /// The disk's; an unfinished dump is removed.
    pub fn dump(&self) -> Result<TxnId> {
        let dir = self.volume.dir.join("dumps");
        let volume_error = |path: &Path| {
            let path = path.to_owned();
            move |source| FsError::Volume { path, source }
        };
        std::fs::create_dir_all(&dir).map_err(volume_error(&dir))?;
        let new_path = dir.join("new");
        let written = (|| -> Result<TxnId> {
            let file = File::create(&new_path).map_err(volume_error(&new_path))?;
            let mut sink = std::io::BufWriter::with_capacity(1 << 20, file);
            let txn = self.meta.dump(&mut sink)?;
            sink.flush().map_err(volume_error(&new_path))?;
            rustix::fs::fsync(sink.get_ref())
                .map_err(|error| volume_error(&new_path)(error.into()))?;
            let path = dir.join(format!("{:020}.dump", txn.0));
            std::fs::rename(&new_path, &path).map_err(volume_error(&path))?;
            Ok(txn)
        })();
        if written.is_err()
            && let Err(error) = std::fs::remove_file(&new_path)
        {
            tracing::debug!(%error, "the unfinished dump");
        }
        let txn = written?;
        let mut dumps: Vec<PathBuf> = std::fs::read_dir(&dir)
            .map_err(volume_error(&dir))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "dump"))
            .collect();
        dumps.sort();
        for old in dumps.iter().rev().skip(2) {
            std::fs::remove_file(old).map_err(volume_error(old))?;
        }
        Ok(txn)
    }
}

/// What the files of a folder and its subfolders take on disk.
fn folder_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let volume_error = |source| FsError::Volume { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(volume_error)? {
            let entry = entry.map_err(volume_error)?;
            // The engine deletes files as it compacts.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    Ok(bytes)
}
