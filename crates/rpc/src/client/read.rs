//! Reading files: whatever way the bytes come, into memory that is there already.

use std::fmt;
use std::fs::File;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use librorum_format::ErrorKind;
use librorum_sys::view::View;
use prost::Message;

use super::call::{Bounds, Repeat};
use super::connection::lock;
use super::session::{self, Session};
use super::transport::Transport;
use super::{Backend, Client};
use crate::buffer::Pooled;
use crate::failure::{Failure, Reason};
use crate::frame::{Opcode, feature};
use crate::proto::v1;

mod remote;

/// A file up to here comes whole with the answer to its opening.
const WHOLE_BYTES_MAX: u32 = 64 << 10;

/// A file that is open for reading; made by [`Client::open`]. Any number of threads may read from it.
///
/// When the daemon was started anew meanwhile the file is opened again, which fails with
/// [`ErrorKind::Stale`] if its content is another by then.
pub struct RemoteFile {
    client: Client,
    volume: String,
    path: Vec<u8>,
    how: How,
    entry: v1::Entry,
    // By transport, for the note when the file is closed.
    moved: [AtomicU64; 4],
    demoted: Mutex<Option<String>>,
}

enum How {
    Frames(Mutex<Arc<Opened>>),
    #[cfg(feature = "grpc")]
    Grpc,
}

/// What one session's daemon said of the file.
struct Opened {
    session: Arc<Session>,
    entry: v1::Entry,
    // 0: `whole` is all there is.
    handle: u64,
    whole: Bytes,
    pieces: Vec<Piece>,
    // Where the pieces that are not known begin; 0: all are known.
    next: u64,
}

#[derive(Clone)]
struct Piece {
    offset: u64,
    end: u64,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Hole,
    Remote,
    // At this offset of a file that the daemon has lent.
    Lent(Arc<File>, u64),
}

/// Bytes of a file, wherever they are.
pub struct Mapped(MappedIn);

enum MappedIn {
    Lent(View),
    Whole(Bytes),
    Pooled(Pooled),
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            MappedIn::Lent(view) => view,
            MappedIn::Whole(bytes) => bytes,
            MappedIn::Pooled(buffer) => buffer,
        }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Mapped {
    /// Whether no byte was copied to make it.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        !matches!(self.0, MappedIn::Pooled(_))
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Mapped").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// What the daemon answers, such as that there is no such file.
    pub fn open(&self, volume: &str, path: &[u8]) -> Result<RemoteFile, Failure> {
        let demoted = Mutex::new(None);
        let (how, entry) = match &self.inner.backend {
            Backend::Frames(_) => {
                let opened = Opened::open(self, volume, path, &demoted)?;
                let entry = opened.entry.clone();
                (How::Frames(Mutex::new(Arc::new(opened))), entry)
            }
            #[cfg(feature = "grpc")]
            Backend::Grpc(_) => {
                let path = Bytes::copy_from_slice(path);
                let request =
                    v1::StatRequest { volume: volume.to_owned(), path, ..Default::default() };
                let entry = self.stat(&request)?.entry.unwrap_or_default();
                if entry.kind == i32::from(v1::Kind::Directory as u8) {
                    return Err(Failure::file(ErrorKind::IsDirectory, "a directory has no bytes"));
                }
                (How::Grpc, entry)
            }
        };
        Ok(RemoteFile {
            client: self.clone(),
            volume: volume.to_owned(),
            path: path.to_vec(),
            how,
            entry,
            moved: Default::default(),
            demoted,
        })
    }
}

impl RemoteFile {
    /// What it is.
    #[must_use]
    pub fn entry(&self) -> &v1::Entry {
        &self.entry
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.entry.size_bytes
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entry.size_bytes == 0
    }

    /// Reads into `buffer`. Answers how many bytes there were, fewer than it holds only at the end of
    /// the file.
    ///
    /// # Errors
    ///
    /// What the daemon or a lent descriptor answers; `Stale` if the file is another now.
    pub fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Failure> {
        let left = self.entry.size_bytes.saturating_sub(offset);
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..len];
        let bounds = Bounds::of(&self.client.call);
        match &self.how {
            How::Frames(opened) => self.client.repeatedly(Repeat::Always, &bounds, || {
                let opened = self.opened(opened)?;
                self.read_frames(&opened, offset, buffer, &bounds)
            }),
            #[cfg(feature = "grpc")]
            How::Grpc => {
                let Backend::Grpc(grpc) = &self.client.inner.backend else {
                    unreachable!("a client keeps its backend");
                };
                let request = v1::ReadRequest {
                    volume: self.volume.clone(),
                    path: Bytes::copy_from_slice(&self.path),
                    offset,
                    length: buffer.len() as u64,
                    ino: 0,
                };
                let read = self.client.repeatedly(Repeat::Always, &bounds, || {
                    grpc.read(&request, buffer, &bounds.prefix(None)?, &bounds)
                })?;
                self.count(Transport::Grpc, read);
                Ok(read)
            }
        }
    }

    /// Reads into a buffer that is used again when it is dropped; shorter than `len` only at the end of
    /// the file.
    ///
    /// # Errors
    ///
    /// As [`Self::read_into`].
    pub fn read_pooled(&self, offset: u64, len: usize) -> Result<Pooled, Failure> {
        let left = self.entry.size_bytes.saturating_sub(offset);
        let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut buffer = self.client.inner.buffers.take(len);
        let read = self.read_into(offset, &mut buffer)?;
        buffer.truncate(read);
        Ok(buffer)
    }

    /// The bytes of a range, in place if they lie in one piece of a lent file that was sealed when it was
    /// opened, else in a pooled buffer; fewer than `len` only at the end of the file.
    ///
    /// # Errors
    ///
    /// As [`Self::read_into`].
    pub fn map_range(&self, offset: u64, len: usize) -> Result<Mapped, Failure> {
        let left = self.entry.size_bytes.saturating_sub(offset);
        let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
        if let How::Frames(opened) = &self.how
            && len > 0
        {
            let opened = self.opened(opened)?;
            let end = offset + len as u64;
            if opened.handle == 0 {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                if let Some(range) = from.checked_add(len).map(|to| from..to)
                    && opened.whole.get(range.clone()).is_some()
                {
                    self.count(Transport::Inline, len);
                    return Ok(Mapped(MappedIn::Whole(opened.whole.slice(range))));
                }
            }
            let opened = self.covering(opened, end)?;
            // What is not sealed may still be written, and cut under a mapping.
            if self.entry.state() != v1::State::Staged
                && let Some(piece) = opened.piece_at(offset)
                && piece.end >= end
                && let Place::Lent(file, at) = &piece.place
            {
                match View::map(file, at + (offset - piece.offset), len) {
                    Ok(view) => {
                        self.count(Transport::Descriptor, len);
                        return Ok(Mapped(MappedIn::Lent(view)));
                    }
                    // Such as too many mappings: the bytes can still be read.
                    Err(error) => self.demote(format!("a lent file cannot be mapped: {error}")),
                }
            }
        }
        self.read_pooled(offset, len).map(|buffer| Mapped(MappedIn::Pooled(buffer)))
    }

    /// Copies a range to a file, and calls `progress` with how many bytes have arrived each time some
    /// have; it may take its time, to hold the copying back. Answers how many bytes there were.
    ///
    /// # Errors
    ///
    /// As [`Self::read_into`]; `Unavailable` or `NoSpace` if the file cannot be written.
    pub fn copy_to(
        &self,
        offset: u64,
        len: u64,
        file: &File,
        file_offset: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, Failure> {
        let left = self.entry.size_bytes.saturating_sub(offset).min(len);
        let step = usize::try_from(left.min(1 << 20)).unwrap_or(1 << 20);
        let mut buffer = self.client.inner.buffers.take(step);
        let mut done = 0;
        while done < left {
            let want = usize::try_from((left - done).min(step as u64)).unwrap_or(step);
            let read = self.read_into(offset + done, &mut buffer[..want])?;
            if read == 0 {
                break;
            }
            file.write_all_at(&buffer[..read], file_offset + done)
                .map_err(|error| super::write::local_failure(&error, "writing what was read"))?;
            done += read as u64;
            progress(done);
        }
        Ok(done)
    }

    fn count(&self, transport: Transport, bytes: usize) {
        self.moved[transport as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn demote(&self, why: String) {
        lock(&self.demoted).get_or_insert(why);
    }

    /// What the daemon of now says of the file.
    fn opened(&self, slot: &Mutex<Arc<Opened>>) -> Result<Arc<Opened>, Failure> {
        let mut opened = lock(slot);
        // What the daemon lent is void with its process: it may use the segments anew.
        if opened.session.control.is_there() || opened.handle == 0 {
            return Ok(Arc::clone(&opened));
        }
        let again = Opened::open(&self.client, &self.volume, &self.path, &self.demoted)?;
        if (again.entry.ino, again.entry.content_version, again.entry.size_bytes)
            != (self.entry.ino, self.entry.content_version, self.entry.size_bytes)
        {
            return Err(Failure::file(
                ErrorKind::Stale,
                "the file was changed while the daemon was away",
            ));
        }
        *opened = Arc::new(again);
        Ok(Arc::clone(&opened))
    }

    /// The same, with pieces known up to `end` if the daemon has any.
    fn covering(&self, opened: Arc<Opened>, end: u64) -> Result<Arc<Opened>, Failure> {
        let mut opened = opened;
        while opened.next != 0 && opened.next < end {
            let more = Arc::new(opened.extend(&self.client)?);
            if let How::Frames(slot) = &self.how {
                let mut slot = lock(slot);
                if Arc::ptr_eq(&slot, &opened) {
                    *slot = Arc::clone(&more);
                }
            }
            opened = more;
        }
        Ok(opened)
    }

    fn read_frames(
        &self,
        opened: &Arc<Opened>,
        offset: u64,
        buffer: &mut [u8],
        bounds: &Bounds,
    ) -> Result<usize, Failure> {
        if opened.handle == 0 {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let there = opened.whole.get(from..).unwrap_or_default();
            let len = there.len().min(buffer.len());
            buffer[..len].copy_from_slice(&there[..len]);
            self.count(Transport::Inline, len);
            return Ok(len);
        }
        let opened = self.covering(Arc::clone(opened), offset + buffer.len() as u64)?;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let piece = opened.piece_at(at);
            let left = buffer.len() - done;
            let len = match piece {
                Some(piece) => left.min(usize::try_from(piece.end - at).unwrap_or(left)),
                // Up to the next piece there is, or all: the daemon knows.
                None => {
                    let next = opened.pieces.iter().find(|piece| piece.offset > at);
                    let gap = next.map_or(u64::MAX, |piece| piece.offset - at);
                    left.min(usize::try_from(gap).unwrap_or(left))
                }
            };
            let part = &mut buffer[done..done + len];
            match piece.map(|piece| (&piece.place, piece.offset)) {
                Some((Place::Hole, _)) => part.fill(0),
                Some((Place::Lent(file, in_file), start)) => {
                    file.read_exact_at(part, in_file + (at - start)).map_err(|error| {
                        Failure::file(ErrorKind::DataLoss, format!("a lent file: {error}"))
                    })?;
                    self.count(Transport::Descriptor, len);
                }
                Some((Place::Remote, _)) | None => {
                    let read = self.read_remote(&opened, at, part, bounds)?;
                    if read < len {
                        return Ok(done + read);
                    }
                }
            }
            done += len;
        }
        Ok(done)
    }
}

impl Opened {
    fn open(
        client: &Client,
        volume: &str,
        path: &[u8],
        demoted: &Mutex<Option<String>>,
    ) -> Result<Self, Failure> {
        let bounds = Bounds::of(&client.call);
        client.repeatedly(Repeat::Always, &bounds, || {
            let session = client.session()?;
            Self::open_in(client, &session, volume, path, demoted, &bounds)
        })
    }

    fn open_in(
        client: &Client,
        session: &Arc<Session>,
        volume: &str,
        path: &[u8],
        demoted: &Mutex<Option<String>>,
        bounds: &Bounds,
    ) -> Result<Self, Failure> {
        let options = &client.inner.options;
        let lends = session.has(feature::FD_READ) && options.allows(Transport::Descriptor);
        let want = if lends {
            v1::Transport::Fd
        } else if options.allows(Transport::Arena) && session.has(feature::ARENA) {
            v1::Transport::Arena
        } else {
            v1::Transport::Inline
        };
        let inline_bytes_max = if options.allows(Transport::Inline) {
            WHOLE_BYTES_MAX.min(session.reply.payload_bytes_max)
        } else {
            0
        };
        let request = v1::OpenReadRequest {
            volume: volume.to_owned(),
            path: Bytes::copy_from_slice(path),
            offset: 0,
            length: 0,
            want: i32::from(want as u8),
            inline_bytes_max,
            known_segments: if lends { client.inner.leases.known() } else { Vec::new() },
        };
        let request = session::Request {
            opcode: Opcode::READ_OPEN,
            prefix: bounds.prefix(None)?,
            message: &request.encode_to_vec(),
            payload: &[],
            asks: 0,
        };
        let frame = bounds.call(&session.control, &request)?;
        let response: v1::OpenReadResponse = session::decode(&frame)?;
        let entry = response.entry.clone().unwrap_or_default();
        if !lends {
            let why = if options.allows(Transport::Descriptor) {
                "the daemon lends no descriptors"
            } else {
                "descriptors are forbidden by an option"
            };
            lock(demoted).get_or_insert_with(|| why.to_owned());
        } else if !response.demoted_because.is_empty() {
            lock(demoted).get_or_insert(response.demoted_because);
        }
        if response.handle == 0 && frame.payload.len() as u64 != entry.size_bytes {
            return Err(Failure::new(
                Reason::Protocol,
                "a file came whole with another length than it has",
            ));
        }
        let pieces = lent_pieces(client, session, response.pieces, frame.descriptors)?;
        tell_closed(client, session);
        Ok(Self {
            session: Arc::clone(session),
            entry,
            handle: response.handle,
            whole: frame.payload,
            pieces,
            next: response.next_offset,
        })
    }

    /// Asks for the pieces that follow.
    fn extend(&self, client: &Client) -> Result<Self, Failure> {
        let bounds = Bounds::of(&client.call);
        let request = v1::ReadPiecesRequest {
            handle: self.handle,
            offset: self.next,
            length: 0,
            known_segments: client.inner.leases.known(),
        };
        let request = session::Request {
            opcode: Opcode::READ_PIECES,
            prefix: bounds.prefix(None)?,
            message: &request.encode_to_vec(),
            payload: &[],
            asks: 0,
        };
        let frame = bounds.call(&self.session.control, &request)?;
        let response: v1::OpenReadResponse = session::decode(&frame)?;
        let more = lent_pieces(client, &self.session, response.pieces, frame.descriptors)?;
        let stuck = response.next_offset != 0 && response.next_offset <= self.next;
        if stuck || more.first().is_some_and(|piece| piece.offset < self.next) {
            return Err(Failure::new(Reason::Protocol, "the pieces of a file go back"));
        }
        tell_closed(client, &self.session);
        let pieces = self.pieces.iter().cloned().chain(more).collect();
        Ok(Self {
            session: Arc::clone(&self.session),
            entry: self.entry.clone(),
            // The one that lives on closes it.
            handle: self.handle,
            whole: Bytes::new(),
            pieces,
            next: response.next_offset,
        })
    }

    fn piece_at(&self, offset: u64) -> Option<&Piece> {
        let index = self.pieces.partition_point(|piece| piece.end <= offset);
        self.pieces.get(index).filter(|piece| piece.offset <= offset)
    }
}

/// A descriptor of an answer, which several pieces of one segment may name.
enum Came {
    New(File),
    Kept(u64, Arc<File>),
    Refused,
}

/// Checks the pieces of an answer, and puts the descriptors where they belong.
fn lent_pieces(
    client: &Client,
    session: &Session,
    pieces: Vec<v1::Piece>,
    descriptors: Vec<OwnedFd>,
) -> Result<Vec<Piece>, Failure> {
    let protocol = |what: &str| Failure::new(Reason::Protocol, format!("a piece of a file {what}"));
    let leases_max = usize::try_from(session.reply.leases_max).unwrap_or(usize::MAX);
    let mut descriptors: Vec<Came> =
        descriptors.into_iter().map(|descriptor| Came::New(descriptor.into())).collect();
    let mut placed = Vec::with_capacity(pieces.len());
    let mut before = 0;
    for piece in pieces {
        let end = piece.offset.checked_add(piece.len).ok_or_else(|| protocol("is too long"))?;
        if piece.offset < before {
            return Err(protocol("overlaps the one before"));
        }
        before = end;
        let place = match v1::Source::try_from(piece.source) {
            Ok(v1::Source::Hole) => Place::Hole,
            Ok(v1::Source::Fd) => {
                piece.fd_offset.checked_add(piece.len).ok_or_else(|| protocol("is too long"))?;
                let file = match usize::try_from(piece.fd_index).unwrap_or(usize::MAX) {
                    0 => client.inner.leases.get(piece.segment),
                    index => {
                        let slot = descriptors
                            .get_mut(index - 1)
                            .ok_or_else(|| protocol("names a descriptor that did not come"))?;
                        let file = match std::mem::replace(slot, Came::Refused) {
                            Came::New(file) => {
                                client.inner.leases.insert(piece.segment, file, leases_max)
                            }
                            Came::Kept(segment, file) if segment == piece.segment => file,
                            Came::Kept(..) | Came::Refused => {
                                return Err(protocol("shares a descriptor of another"));
                            }
                        };
                        *slot = Came::Kept(piece.segment, Arc::clone(&file));
                        Some(file)
                    }
                };
                // One that is not kept any more is read through the daemon.
                file.map_or(Place::Remote, |file| Place::Lent(file, piece.fd_offset))
            }
            Ok(v1::Source::Read) | Err(_) => Place::Remote,
        };
        placed.push(Piece { offset: piece.offset, end, place });
    }
    Ok(placed)
}

/// Tells the daemon which descriptors were closed.
fn tell_closed(client: &Client, session: &Session) {
    let segments = client.inner.leases.close_retired();
    if !segments.is_empty() {
        let request = v1::LeaseReleaseRequest { segments };
        Client::tell(session, Opcode::LEASE_RELEASE, &request);
    }
}

impl Drop for RemoteFile {
    fn drop(&mut self) {
        if let How::Frames(opened) = &self.how {
            let opened = lock(opened);
            if opened.handle != 0 && opened.session.control.closed().is_none() {
                let request = v1::ReadCloseRequest { handle: opened.handle };
                Client::tell(&opened.session, Opcode::READ_CLOSE, &request);
            }
        }
        let demoted = lock(&self.demoted).take();
        let ways = [Transport::Descriptor, Transport::Arena, Transport::Inline, Transport::Grpc];
        for (transport, moved) in ways.into_iter().zip(&self.moved) {
            let bytes = moved.load(Ordering::Relaxed);
            if bytes > 0 {
                let why = demoted.clone().filter(|_| transport != Transport::Descriptor);
                self.client.inner.uses.note("READ", &self.path, transport, bytes, why);
            }
        }
    }
}

impl fmt::Debug for RemoteFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RemoteFile")
            .field("volume", &self.volume)
            .field("path", &self.path.escape_ascii().to_string())
            .finish_non_exhaustive()
    }
}
