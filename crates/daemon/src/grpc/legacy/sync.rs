//! What is not sealed yet.

use librorum_format::{ErrorKind, Ino};
use librorum_rpc::Failure;
use librorum_rpc::proto::{file, v1};

use super::info::{Describer, Detail, join, signed};
use crate::grpc::call::Inner;
use crate::service::Call;

/// The answer names so many files; it counts all of them.
const FILES_MAX: usize = 1000;

const PAGE: usize = 1024;

#[derive(Default)]
struct Counts {
    pending: u64,
    syncing: u64,
    bytes: u64,
}

impl Counts {
    fn add(&mut self, status: file::SyncStatus, size_bytes: u64) -> bool {
        match status {
            file::SyncStatus::Pending => self.pending += 1,
            file::SyncStatus::Syncing => self.syncing += 1,
            file::SyncStatus::Unknown
            | file::SyncStatus::Synced
            | file::SyncStatus::Error
            | file::SyncStatus::Conflict => return false,
        }
        self.bytes = self.bytes.saturating_add(size_bytes);
        true
    }
}

/// `GetSyncStatus`. All bytes are on this machine, so nothing is ever to be downloaded and nothing
/// conflicts; a file that cannot be sealed stays pending, and the log says why.
pub(super) fn status(
    shared: &Inner,
    call: &Call,
    request: &file::GetSyncStatusRequest,
) -> Result<file::SyncStatusResponse, Failure> {
    let describer = Describer::new(shared, call)?;
    let mut counts = Counts::default();
    let mut pending_files = Vec::new();
    if request.path.is_empty() {
        // The metadata knows them without a walk, also those that the caller may not look at.
        count_all(&describer, call, &mut counts)?;
        let mut left = (counts.pending + counts.syncing).min(FILES_MAX as u64);
        if left > 0 {
            describer.walk(b"", true, &mut |entry| {
                if Counts::default().add(describer.sync_status(&entry), 0) {
                    pending_files.push(describer.info(&entry.path, &entry, Detail::Entry)?);
                    left -= 1;
                }
                Ok(left > 0)
            })?;
        }
    } else {
        let path = request.path.as_bytes();
        let found = describer.stat(path)?;
        let mut note = |path: &[u8], entry: &v1::Entry| -> Result<(), Failure> {
            if counts.add(describer.sync_status(entry), entry.size_bytes)
                && pending_files.len() < FILES_MAX
            {
                pending_files.push(describer.info(path, entry, Detail::Entry)?);
            }
            Ok(())
        };
        if found.kind() == v1::Kind::Directory {
            let errors = describer.walk(path, true, &mut |entry| {
                note(&join(path, &entry.path), &entry)?;
                Ok(true)
            })?;
            if let Some(error) = errors.first() {
                return Err(Failure::from_message(&error.error.clone().unwrap_or_default()));
            }
        } else {
            note(path, &found)?;
        }
    }
    let overall = if counts.syncing > 0 {
        file::SyncStatus::Syncing
    } else if counts.pending > 0 {
        file::SyncStatus::Pending
    } else {
        file::SyncStatus::Synced
    };
    Ok(file::SyncStatusResponse {
        overall_status: overall.into(),
        pending_uploads: i32::try_from(counts.pending).unwrap_or(i32::MAX),
        syncing_files: i32::try_from(counts.syncing).unwrap_or(i32::MAX),
        bytes_to_upload: signed(counts.bytes),
        pending_files,
        ..file::SyncStatusResponse::default()
    })
}

fn count_all(describer: &Describer<'_>, call: &Call, counts: &mut Counts) -> Result<(), Failure> {
    let fs = &describer.volume.fs;
    let mut after = Ino(0);
    loop {
        call.check()?;
        let page = fs.meta().staged(after, PAGE).map_err(|error| {
            let message = format!("cannot list what is not sealed: {error}");
            Failure::file(ErrorKind::Unavailable, message)
        })?;
        let Some(&last) = page.last() else { return Ok(()) };
        after = last;
        for ino in page {
            // One that was sealed or removed since counts nothing.
            let Ok(found) = fs.attributes(ino) else { continue };
            if found.inode.nlink == 0 || found.inode.content.staging().is_none() {
                continue;
            }
            let status = if found.being_written {
                file::SyncStatus::Syncing
            } else {
                file::SyncStatus::Pending
            };
            counts.add(status, found.inode.size_bytes);
        }
    }
}
