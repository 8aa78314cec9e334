//! Bytes of files, out and in.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use librorum_format::ErrorKind;
use librorum_fs::{FsError, Piece, PieceSource, PublishOptions, ReadHandle};
use librorum_meta::FileKind;
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};

use super::access::Access;
use super::change::{new_inode, place, replaces};
use super::entry::timestamp;
use super::path::Names;
use super::{Call, Context, ServedVolume, Service, failure, shown};
use crate::{io_failure, lock};

/// Uploads that one user may have open.
const UPLOADS_PER_USER_MAX: usize = 1024;

/// A file that is open for reading. It stays readable when its name is gone.
#[derive(Debug)]
pub struct OpenFile {
    handle: ReadHandle,
    /// Which files hold the bytes around those that were read last.
    window: Mutex<Option<Window>>,
    entry: v1::Entry,
    path: Vec<u8>,
}

/// The pieces of a part of a file.
#[derive(Debug)]
struct Window {
    start: u64,
    end: u64,
    pieces: Vec<Piece>,
}

/// Pieces are looked up for this much at a time.
const WINDOW_BYTES: u64 = 64 << 20;

impl OpenFile {
    /// The file that holds all of a range, and where in it: for whoever has the kernel move the bytes.
    /// They are those of the moment of the first look; `None` where the bytes have to be read.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn file_of(&self, offset: u64, len: u64) -> Result<Option<(Arc<File>, u64)>, Failure> {
        let end = offset.saturating_add(len);
        let mut window = lock(&self.window);
        let is_known =
            window.as_ref().is_some_and(|known| known.start <= offset && end <= known.end);
        if !is_known {
            let span = len.max(WINDOW_BYTES);
            let pieces = self.pieces(offset, span, true)?;
            *window = Some(Window { start: offset, end: offset.saturating_add(span), pieces });
        }
        let Some(known) = &*window else { return Ok(None) };
        let mut found: Option<(Arc<File>, u64)> = None;
        let mut at = offset;
        let first = known.pieces.partition_point(|piece| piece.offset + piece.len <= offset);
        for piece in &known.pieces[first..] {
            if at >= end || piece.offset > at {
                break;
            }
            let PieceSource::File { file, offset: in_file, .. } = &piece.source else { break };
            let from = in_file + (at - piece.offset);
            match &found {
                None => found = Some((Arc::clone(file), from)),
                // Pieces of one file that follow each other there too are one.
                Some((same, start)) if Arc::ptr_eq(same, file) && start + (at - offset) == from => {
                }
                Some(_) => break,
            }
            at = piece.offset + piece.len;
        }
        Ok(found.filter(|_| at >= end))
    }

    /// What it was when it was opened.
    #[must_use]
    pub fn entry(&self) -> &v1::Entry {
        &self.entry
    }

    /// Reads at an offset; fewer bytes than asked for only at the end.
    ///
    /// # Errors
    ///
    /// Those of pread(2); `DataLoss` for bytes that cannot be proven.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize, Failure> {
        self.handle
            .read_at(offset, out)
            .context(|| format!("cannot read {} at {offset}", shown(&self.path)))
    }

    /// What a range consists of, and which descriptors may be lent for it; see `librorum_fs::Piece`.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn pieces(&self, offset: u64, len: u64, trusted: bool) -> Result<Vec<Piece>, Failure> {
        self.handle
            .pieces(offset, len, trusted)
            .context(|| format!("cannot find the bytes of {}", shown(&self.path)))
    }
}

/// A file on its way in. Nobody sees it before it is committed.
#[derive(Debug)]
pub struct Upload {
    /// What clients call it.
    pub id: u64,
    volume: Arc<ServedVolume>,
    uid: u32,
    key: Option<String>,
    /// `None` while it is being published: its description counts as a writer too.
    file: Mutex<Option<Arc<File>>>,
    staged: Mutex<Option<librorum_fs::Upload>>,
    is_lent: AtomicBool,
    written_bytes: AtomicU64,
    /// How often it was opened and not closed: several sessions may have one with a key, and the end of
    /// one must not end it under the others. Changed under the lock of [`Uploads`].
    opened_count: AtomicU64,
}

/// The uploads of all callers.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    by_id: HashMap<u64, Arc<Upload>>,
}

impl Upload {
    /// Writes at an offset, in any order.
    ///
    /// # Errors
    ///
    /// Those of pwrite(2).
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            io_failure(&format!("cannot write upload {} at {offset}", self.id), &error)
        };
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
        }
        self.leave_room(end.unwrap_or(u64::MAX))?;
        self.file()?.write_all_at(bytes, offset).map_err(failed)?;
        self.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Refuses to fill the disk to the last byte; see `librorum_fs::Upload::leave_room`.
    ///
    /// # Errors
    ///
    /// `NoSpace`; `NotFound` once it is over.
    pub fn leave_room(&self, end_bytes: u64) -> Result<(), Failure> {
        let staged = lock(&self.staged);
        let Some(staged) = &*staged else { return Err(gone(self.id)) };
        staged.leave_room(end_bytes).context(|| format!("cannot extend upload {}", self.id))
    }

    /// The file that takes the bytes, for whoever writes it without this layer. A commit fails while
    /// anybody keeps it.
    ///
    /// # Errors
    ///
    /// `NotFound` while the upload is being published, and afterwards.
    pub fn file(&self) -> Result<Arc<File>, Failure> {
        lock(&self.file).clone().ok_or_else(|| gone(self.id))
    }

    /// Notes that somebody else has the file's descriptor: a commit then needs the proof that no writer
    /// is left.
    pub fn mark_lent(&self) {
        self.is_lent.store(true, Ordering::Release);
    }

    /// Which bytes have been received: of an upload that was found again by its key.
    #[must_use]
    pub fn received(&self) -> Vec<v1::Range> {
        match &*lock(&self.staged) {
            Some(staged) if self.key.is_some() => ranges(staged),
            _ => Vec::new(),
        }
    }
}

fn ranges(staged: &librorum_fs::Upload) -> Vec<v1::Range> {
    let ranges = staged.received_ranges().unwrap_or_default();
    ranges.into_iter().map(|(start, end)| v1::Range { start, end }).collect()
}

fn descriptor_of(staged: &librorum_fs::Upload) -> Result<Arc<File>, FsError> {
    let file = staged.file()?.try_clone();
    file.map(Arc::new).map_err(|source| FsError::Volume { path: "uploads".into(), source })
}

fn gone(id: u64) -> Failure {
    Failure::file(ErrorKind::NotFound, format!("there is no upload {id}: it ended, or never began"))
}

impl Service {
    /// Opens a regular file for reading.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open_read(
        &self,
        call: &Call,
        volume: &str,
        path: &[u8],
        ino: u64,
    ) -> Result<OpenFile, Failure> {
        let volume = self.volume(volume)?;
        let found = self.find(call, &volume, path, ino)?;
        let what = || format!("cannot open {}", shown(path));
        call.caller.require(&found.inode, Access::READ, || shown(path))?;
        match found.inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => {
                let message = format!("{}: it is a directory", what());
                return Err(Failure::file(ErrorKind::IsDirectory, message));
            }
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => {
                let message = format!("{}: it is not a regular file", what());
                return Err(Failure::file(ErrorKind::InvalidInput, message));
            }
        }
        let handle = volume.outside.open_read(found.inode.ino).context(what)?;
        // Opened now: what it says of itself belongs to the bytes that will be read.
        let found = volume.outside.attributes(found.inode.ino).context(what)?;
        let entry = self.entry(&volume, path, &found)?;
        Ok(OpenFile { handle, window: Mutex::default(), entry, path: path.to_vec() })
    }

    /// Makes a small file in one step.
    ///
    /// # Errors
    ///
    /// Those of open(2) and rename(2).
    pub fn put(
        &self,
        call: &Call,
        request: &v1::PutRequest,
        data: &[u8],
    ) -> Result<v1::EntryResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let names = Names::new(&request.path)?;
        let replace = replaces(request.replace())?;
        let place = place(&volume, &call.caller, &names, replace)?;
        let new = new_inode(&call.caller, &place, FileKind::Regular, request.mode, b"");
        let options = PublishOptions {
            replace,
            mtime: request.mtime.as_ref().map(timestamp),
            durable: request.durable,
            length: data.len() as u64,
            require_no_writer: false,
        };
        let made = volume
            .outside
            .publish_bytes((place.parent.inode.ino, place.name), &new, data, &options)
            .context(|| format!("cannot write {}", names.shown()))?;
        Ok(v1::EntryResponse { entry: Some(self.entry(&volume, &request.path, &made)?) })
    }

    /// Begins an upload, or finds one again by its key.
    ///
    /// # Errors
    ///
    /// Those of open(2) for the directory that the file is meant for; `Overloaded`.
    pub fn open_write(
        &self,
        call: &Call,
        request: &v1::OpenWriteRequest,
    ) -> Result<Arc<Upload>, Failure> {
        let volume = self.volume(&request.volume)?;
        // Refused before the bytes are sent, where it can be known.
        let names = Names::new(&request.path)?;
        place(&volume, &call.caller, &names, true)?;
        let key = upload_key(call.caller.uid, &request.key)?;
        let mine = |upload: &&Arc<Upload>| upload.uid == call.caller.uid;
        {
            let uploads = lock(&self.0.uploads);
            if let Some(key) = &key
                && let Some(known) = uploads.by_id.values().find(|upload| {
                    upload.key.as_ref() == Some(key) && Arc::ptr_eq(&upload.volume, &volume)
                })
            {
                known.opened_count.fetch_add(1, Ordering::Relaxed);
                return Ok(Arc::clone(known));
            }
            if uploads.by_id.values().filter(mine).count() >= UPLOADS_PER_USER_MAX {
                let message = format!("user {} has too many uploads open", call.caller.uid);
                let failure = Failure::new(Reason::Overloaded, message);
                return Err(Failure { retry_after_ms: 1000, ..failure });
            }
        }
        let what = || format!("cannot begin the upload of {}", names.shown());
        if key.is_some() {
            volume.expire_uploads();
        }
        let staged = match &key {
            Some(key) => volume.outside.begin_named_upload(key, &call.cancel),
            None => volume.outside.begin_upload(request.size_hint, &call.cancel),
        };
        let staged = staged.context(what)?;
        let file = descriptor_of(&staged).context(what)?;
        let upload = Arc::new(Upload {
            id: self.0.next_upload.fetch_add(1, Ordering::Relaxed),
            uid: call.caller.uid,
            key,
            file: Mutex::new(Some(file)),
            staged: Mutex::new(Some(staged)),
            is_lent: AtomicBool::new(false),
            written_bytes: AtomicU64::new(0),
            opened_count: AtomicU64::new(1),
            volume,
        });
        lock(&self.0.uploads).by_id.insert(upload.id, Arc::clone(&upload));
        Ok(upload)
    }

    /// An upload of the caller's.
    ///
    /// # Errors
    ///
    /// `NotFound`, also for an upload of somebody else.
    pub fn upload(&self, call: &Call, id: u64) -> Result<Arc<Upload>, Failure> {
        let uploads = lock(&self.0.uploads);
        let found = uploads.by_id.get(&id).filter(|upload| upload.uid == call.caller.uid);
        found.cloned().ok_or_else(|| gone(id))
    }

    /// Publishes an upload: its file takes the name, whole and at once. Whatever the answer, the upload
    /// is over, but for one that somebody can still write and one with a key, which may be tried again.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` while somebody can still write the file; `DataLoss` if the content is not
    /// what the client says; those of rename(2).
    pub fn commit(
        &self,
        call: &Call,
        request: &v1::CommitRequest,
    ) -> Result<v1::EntryResponse, Failure> {
        let upload = self.upload(call, request.upload)?;
        let volume = self.volume(&request.volume)?;
        let names = Names::new(&request.path)?;
        let what = || format!("cannot commit {}", names.shown());
        if !Arc::ptr_eq(&volume, &upload.volume) {
            let message = format!("{}: the upload is another volume's", what());
            return Err(Failure::file(ErrorKind::InvalidInput, message));
        }
        let replace = replaces(request.replace())?;
        let place = place(&volume, &call.caller, &names, replace)
            .inspect_err(|_refused| self.give_up(&upload))?;
        let new = new_inode(&call.caller, &place, FileKind::Regular, request.mode, b"");
        let options = PublishOptions {
            replace,
            mtime: request.mtime.as_ref().map(timestamp),
            durable: request.durable,
            require_no_writer: upload.is_lent.load(Ordering::Acquire),
            length: request.len,
        };
        let mut slot = lock(&upload.staged);
        let Some(staged) = slot.as_mut() else { return Err(gone(upload.id)) };
        // Ours is a writer's, too.
        lock(&upload.file).take();
        let refused = |error: FsError| {
            if error.kind() == ErrorKind::Busy && options.require_no_writer {
                let message =
                    format!("{}: somebody can still write it; close and unmap it first", what());
                return Refusal::Keep(Failure::new(Reason::FailedPrecondition, message));
            }
            let failure = failure(&error, &what());
            if upload.key.is_some() { Refusal::Keep(failure) } else { Refusal::End(failure) }
        };
        let published = (|| {
            // What is hashed must be what is published.
            if options.require_no_writer {
                volume.outside.require_no_writer(staged).map_err(refused)?;
            }
            check_content(call, &upload, staged, request)?;
            let target = (place.parent.inode.ino, place.name);
            volume.outside.publish(staged, target, &new, &options).map_err(refused)
        })();
        match published {
            Ok(made) => {
                slot.take();
                drop(slot);
                lock(&self.0.uploads).by_id.remove(&upload.id);
                Ok(v1::EntryResponse { entry: Some(self.entry(&volume, &request.path, &made)?) })
            }
            Err(Refusal::Keep(failure)) => {
                *lock(&upload.file) = descriptor_of(staged).ok();
                Err(failure)
            }
            Err(Refusal::End(failure)) => {
                slot.take();
                drop(slot);
                self.end(&upload)?;
                Err(failure)
            }
        }
    }

    /// Ends an upload without a file.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn abort(
        &self,
        call: &Call,
        request: &v1::AbortRequest,
    ) -> Result<v1::AbortResponse, Failure> {
        let upload = self.upload(call, request.upload)?;
        lock(&upload.file).take();
        lock(&upload.staged).take();
        self.end(&upload)?;
        Ok(v1::AbortResponse {})
    }

    /// Ends an upload that nobody could find again.
    fn give_up(&self, upload: &Upload) {
        if upload.key.is_none() {
            lock(&upload.file).take();
            lock(&upload.staged).take();
            lock(&self.0.uploads).by_id.remove(&upload.id);
        }
    }

    fn end(&self, upload: &Upload) -> Result<(), Failure> {
        lock(&self.0.uploads).by_id.remove(&upload.id);
        let Some(key) = &upload.key else { return Ok(()) };
        let removed = upload.volume.outside.remove_upload(key);
        removed.context(|| format!("cannot remove upload {}", upload.id))
    }

    /// Closes uploads, each as often as it is named: those of a session that is over. One that nobody
    /// else has open ends; if it has a key it can be found again.
    pub fn close_uploads(&self, ids: &[u64]) {
        let mut ended = Vec::new();
        let mut uploads = lock(&self.0.uploads);
        for id in ids {
            if let Some(upload) = uploads.by_id.get(id)
                && upload.opened_count.fetch_sub(1, Ordering::Relaxed) == 1
            {
                ended.extend(uploads.by_id.remove(id));
            }
        }
        drop(uploads);
        // Closing waits for the disk, which others must not while they look for theirs.
        drop(ended);
    }

    /// How many uploads are under way.
    #[must_use]
    pub fn upload_count(&self) -> usize {
        lock(&self.0.uploads).by_id.len()
    }

    pub(super) fn forget_uploads_of(&self, volume: &Arc<ServedVolume>) {
        lock(&self.0.uploads).by_id.retain(|_, upload| !Arc::ptr_eq(&upload.volume, volume));
    }

    /// What there is of an upload with a key.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a key that is none.
    pub fn query_upload(
        &self,
        call: &Call,
        request: &v1::QueryUploadRequest,
    ) -> Result<v1::QueryUploadResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        let Some(key) = upload_key(call.caller.uid, &request.key)? else {
            return Err(Failure::file(ErrorKind::InvalidInput, "an upload's key has 16 bytes"));
        };
        let what = || "cannot look for the upload".to_owned();
        let open = lock(&self.0.uploads)
            .by_id
            .values()
            .find(|upload| {
                upload.key.as_ref() == Some(&key) && Arc::ptr_eq(&upload.volume, &volume)
            })
            .cloned();
        if let Some(open) = open {
            return Ok(v1::QueryUploadResponse { known: true, received: open.received() });
        }
        let kept = volume.outside.uploads().context(what)?;
        if !kept.iter().any(|upload| upload.key == key) {
            return Ok(v1::QueryUploadResponse::default());
        }
        let upload = volume.outside.begin_named_upload(&key, &call.cancel).context(what)?;
        Ok(v1::QueryUploadResponse { known: true, received: ranges(&upload) })
    }
}

/// The name of an upload with a key: nobody finds another user's.
fn upload_key(uid: u32, key: &[u8]) -> Result<Option<String>, Failure> {
    match key.len() {
        0 => Ok(None),
        16 => {
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(Some(format!("{uid:x}-{hex}")))
        }
        len => {
            let message = format!("an upload's key has 16 bytes, not {len}");
            Err(Failure::file(ErrorKind::InvalidInput, message))
        }
    }
}

/// Why a commit failed, and whether it may be tried again.
#[derive(Debug)]
enum Refusal {
    Keep(Failure),
    End(Failure),
}

/// Holds what was received against what the client says of it.
fn check_content(
    call: &Call,
    upload: &Upload,
    staged: &librorum_fs::Upload,
    request: &v1::CommitRequest,
) -> Result<(), Refusal> {
    let is_keyed = upload.key.is_some();
    let incomplete = |message: String| {
        let failure = Failure::new(Reason::FailedPrecondition, message);
        if is_keyed { Refusal::Keep(failure) } else { Refusal::End(failure) }
    };
    let unreadable = |error: std::io::Error| {
        let message = format!("cannot read upload {}: {error}", upload.id);
        Refusal::Keep(Failure::file(ErrorKind::Unavailable, message))
    };
    let file = staged.file().map_err(|error| Refusal::End(failure(&error, "cannot commit")))?;
    let len = file.metadata().map_err(unreadable)?.len();
    if len < request.len {
        let (id, wanted) = (upload.id, request.len);
        return Err(incomplete(format!(
            "upload {id} has {len} of the {wanted} bytes it should have"
        )));
    }
    if request.blake3.is_empty() {
        // What came before a crash is only believed with a proof.
        let received = if is_keyed { ranges(staged) } else { Vec::new() };
        let is_whole = request.len == 0
            || matches!(received.as_slice(), [all] if all.start == 0 && all.end >= request.len);
        if is_keyed && !is_whole {
            let id = upload.id;
            return Err(incomplete(format!("upload {id} has gaps: send what lacks, or a hash")));
        }
        return Ok(());
    }
    let found = hash(call, file, request.len).map_err(Refusal::Keep)?;
    if found.as_bytes().as_slice() != request.blake3.as_ref() {
        // Its bytes are not those of the file: going on with it would not make them so.
        let message = format!(
            "upload {} has hash {found}, not the one that the client says: nothing was written",
            upload.id
        );
        return Err(Refusal::End(Failure::file(ErrorKind::DataLoss, message)));
    }
    Ok(())
}

fn hash(call: &Call, file: &File, len: u64) -> Result<blake3::Hash, Failure> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        call.check()?;
        let wanted = usize::try_from((len - at).min(1 << 20)).expect("at most a buffer");
        file.read_exact_at(&mut buffer[..wanted], at).map_err(|error| {
            Failure::file(ErrorKind::Unavailable, format!("cannot read an upload: {error}"))
        })?;
        hasher.update(&buffer[..wanted]);
        at += wanted as u64;
    }
    Ok(hasher.finalize())
}
