//! Writing files: all of one, which appears whole when it is committed.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use librorum_format::ErrorKind;
use librorum_sys::clock;
use prost::Message;

use super::call::{Bounds, Repeat};
use super::connection::{Connection, Event, Mailbox, NoSink, Request, failure_of, lock};
#[cfg(feature = "grpc")]
use super::grpc::GrpcWrite;
use super::session::{self, Session, Slots};
use super::transport::Transport;
use super::{Backend, Client};
use crate::buffer::Pooled;
use crate::failure::{Failure, Reason};
use crate::frame::{Opcode, Transfer, feature};
use crate::proto::v1;

/// A file up to here goes in one message when it is committed.
const SMALL_BYTES_MAX: usize = 64 << 10;

/// Less is not worth a slot.
const ARENA_BYTES_MIN: usize = 64 << 10;

/// How many WRITEs of one upload wait for their answer.
const UNDER_WAY: usize = 16;

/// What is moved at once between files and buffers.
const STEP: usize = 1 << 20;

/// How a file is to be written.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// How long it will be; 0 if that is not known. It need not be right.
    pub size_hint: u64,
    /// Its permissions.
    pub mode: u32,
    /// Whether what has the name already is replaced.
    pub replace: v1::Replace,
    /// Its time of modification; now if there is none.
    pub mtime: Option<v1::Timestamp>,
    /// The commit ends when the file would survive a power cut.
    pub durable: bool,
    /// With a key the upload survives a lost connection: who creates it again with the same key finds
    /// what has arrived in [`Upload::received`].
    pub key: Option<[u8; 16]>,
    /// What the content has to be, by its BLAKE3.
    pub blake3: Option<[u8; 32]>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            size_hint: 0,
            mode: 0o644,
            replace: v1::Replace::Yes,
            mtime: None,
            durable: false,
            key: None,
            blake3: None,
        }
    }
}

/// A file that is being written; made by [`Client::create`]. Nobody sees it before its commit; dropped
/// without one it is gone, unless it has a key.
pub struct Upload {
    client: Client,
    volume: String,
    path: Vec<u8>,
    options: WriteOptions,
    state: Mutex<State>,
}

struct State {
    route: Route,
    // How long the file is so far.
    len: u64,
    moved: [u64; 4],
    demoted: Option<String>,
    received: Vec<v1::Range>,
    failed: Option<Failure>,
}

enum Route {
    /// All of it waits here for the commit.
    Small(Pooled, usize),
    /// The daemon's file, to be written by us.
    Staged { file: Arc<File>, upload: u64, session: Arc<Session> },
    /// In frames, or through the arena.
    Frames { upload: u64, session: Arc<Session>, flight: Flight },
    #[cfg(feature = "grpc")]
    Grpc { upload: u64, stream: Option<GrpcWrite> },
    /// Committed, or given up.
    Closed,
}

/// WRITEs that wait for their answers.
struct Flight {
    connection: Arc<Connection>,
    mailbox: Arc<Mailbox>,
    open: HashMap<u64, Option<u32>>,
    slots: Option<Arc<Slots>>,
}

pub(super) fn local_failure(error: &io::Error, what: &str) -> Failure {
    let kind = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => ErrorKind::NoSpace,
        Some(rustix::io::Errno::FBIG) => ErrorKind::TooLarge,
        Some(rustix::io::Errno::ROFS) => ErrorKind::ReadOnly,
        _ => ErrorKind::Unavailable,
    };
    Failure::file(kind, format!("{what}: {error}"))
}

impl Client {
    /// Begins to write a file.
    ///
    /// # Errors
    ///
    /// What the daemon answers, if it is asked: a small file is not mentioned before its commit.
    pub fn create(
        &self,
        volume: &str,
        path: &[u8],
        options: WriteOptions,
    ) -> Result<Upload, Failure> {
        let small = options.size_hint <= SMALL_BYTES_MAX as u64
            && options.key.is_none()
            && options.blake3.is_none()
            && (self.slowest() == Transport::Grpc || self.inner.options.allows(Transport::Inline));
        let upload = Upload {
            client: self.clone(),
            volume: volume.to_owned(),
            path: path.to_vec(),
            options,
            state: Mutex::new(State {
                route: Route::Small(self.inner.buffers.take(SMALL_BYTES_MAX), 0),
                len: 0,
                moved: [0; 4],
                demoted: None,
                received: Vec::new(),
                failed: None,
            }),
        };
        if !small {
            upload.open(&mut lock(&upload.state))?;
        }
        Ok(upload)
    }
}

impl Upload {
    /// What the daemon had of a keyed upload when it was opened.
    #[must_use]
    pub fn received(&self) -> Vec<v1::Range> {
        lock(&self.state).received.clone()
    }

    /// Writes bytes. They are on their way when this returns; what goes wrong with them later, the next
    /// call says, at the latest [`Self::commit`].
    ///
    /// # Errors
    ///
    /// What the daemon or the disk answers. The upload is of no further use then.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or_else(|| Failure::file(ErrorKind::TooLarge, "beyond the end of all files"))?;
        let bounds = Bounds::of(&self.client.call);
        let mut state = lock(&self.state);
        self.ready(&mut state, offset, end)?;
        state.len = state.len.max(end);
        if let Route::Staged { file, .. } = &state.route {
            let file = Arc::clone(file);
            state.moved[Transport::Descriptor as usize] += data.len() as u64;
            // Other threads may write elsewhere meanwhile.
            drop(state);
            let result = file
                .write_all_at(data, offset)
                .map_err(|error| local_failure(&error, "writing the staged file"));
            return self.keep_failure(&mut lock(&self.state), result);
        }
        let result = self.write(&mut state, offset, data, &bounds);
        self.keep_failure(&mut state, result)
    }

    /// Writes bytes of another file, without moving them through this program where that can be. Calls
    /// `progress` with how many have been taken each time some have; it may take its time, to hold the
    /// writing back. Answers how many there were, fewer than `len` only if `file` ends.
    ///
    /// # Errors
    ///
    /// As [`Self::write_at`]; `Unavailable` if `file` cannot be read.
    pub fn write_from(
        &self,
        file: &File,
        file_offset: u64,
        offset: u64,
        len: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, Failure> {
        let end = offset
            .checked_add(len)
            .filter(|_| file_offset.checked_add(len).is_some())
            .ok_or_else(|| Failure::file(ErrorKind::TooLarge, "beyond the end of all files"))?;
        let staged = {
            let mut state = lock(&self.state);
            self.ready(&mut state, offset, end)?;
            match &state.route {
                Route::Staged { file, .. } => Some(Arc::clone(file)),
                Route::Small(..) | Route::Frames { .. } | Route::Closed => None,
                #[cfg(feature = "grpc")]
                Route::Grpc { .. } => None,
            }
        };
        let mut done = 0;
        if let Some(staged) = staged {
            let result = copy_range(file, file_offset, &staged, offset, len, &mut |copied| {
                done = copied;
                progress(copied);
            });
            let mut state = lock(&self.state);
            state.moved[Transport::Descriptor as usize] += done;
            state.len = state.len.max(offset + done);
            match result {
                Ok(true) => return Ok(done),
                // The kernel does not copy between these two: we do.
                Ok(false) => {}
                Err(error) => {
                    let failure = local_failure(&error, "copying to the staged file");
                    return self.keep_failure(&mut state, Err(failure));
                }
            }
        }
        let mut buffer = self.client.inner.buffers.take(STEP);
        while done < len {
            let want = usize::try_from((len - done).min(STEP as u64)).unwrap_or(STEP);
            let read = match file.read_at(&mut buffer[..want], file_offset + done) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(local_failure(&error, "reading what is to be written")),
            };
            if read == 0 {
                break;
            }
            self.write_at(offset + done, &buffer[..read])?;
            done += read as u64;
            progress(done);
        }
        Ok(done)
    }

    /// Publishes the file, and answers what it is now.
    ///
    /// # Errors
    ///
    /// What went wrong with earlier bytes, and what the daemon answers.
    pub fn commit(self) -> Result<v1::Entry, Failure> {
        let bounds = Bounds::of(&self.client.call);
        let mut state = lock(&self.state);
        if let Some(failure) = &state.failed {
            return Err(failure.clone());
        }
        let upload = match &mut state.route {
            Route::Small(..) => return self.put(&mut state),
            Route::Staged { upload, .. } => *upload,
            Route::Frames { upload, flight, .. } => {
                let upload = *upload;
                let result = flight.finish(&bounds);
                self.keep_failure(&mut state, result)?;
                upload
            }
            #[cfg(feature = "grpc")]
            Route::Grpc { upload, stream } => {
                let upload = *upload;
                let result = match (stream.take(), &self.client.inner.backend) {
                    (Some(stream), Backend::Grpc(grpc)) => grpc.finish_write(stream, &bounds),
                    _ => Ok(()),
                };
                self.keep_failure(&mut state, result)?;
                upload
            }
            Route::Closed => {
                return Err(Failure::new(Reason::FailedPrecondition, "the upload was given up"));
            }
        };
        let request = v1::CommitRequest {
            upload,
            volume: self.volume.clone(),
            path: Bytes::copy_from_slice(&self.path),
            len: state.len,
            mode: self.options.mode,
            replace: i32::from(self.options.replace as u8),
            mtime: self.options.mtime,
            durable: self.options.durable,
            blake3: self.options.blake3.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id)),
        };
        // The descriptor is closed before: the daemon asks whether anybody can still write. The session
        // stays until the answer is there, or the upload would end with it.
        let route = std::mem::replace(&mut state.route, Route::Closed);
        let session = match route {
            Route::Staged { file, session, .. } => {
                drop(file);
                Some(session)
            }
            Route::Frames { session, .. } => Some(session),
            Route::Small(..) | Route::Closed => None,
            #[cfg(feature = "grpc")]
            Route::Grpc { .. } => None,
        };
        let answer: Result<v1::EntryResponse, Failure> =
            self.client.unary(Opcode::COMMIT, &request, Repeat::Keyed);
        if answer.is_err()
            && self.options.key.is_none()
            && let Some(session) = &session
            && session.control.closed().is_none()
        {
            Client::tell(session, Opcode::ABORT, &v1::AbortRequest { upload });
        }
        let response = answer?;
        self.note(&mut state);
        Ok(response.entry.unwrap_or_default())
    }

    /// Gives the upload up, also if it has a key.
    pub fn abort(self) {
        self.discard(true);
    }

    /// All of a small file in one message.
    fn put(&self, state: &mut State) -> Result<v1::Entry, Failure> {
        let Route::Small(buffer, len) = std::mem::replace(&mut state.route, Route::Closed) else {
            unreachable!("the caller looked");
        };
        let request = v1::PutRequest {
            volume: self.volume.clone(),
            path: Bytes::copy_from_slice(&self.path),
            mode: self.options.mode,
            replace: i32::from(self.options.replace as u8),
            mtime: self.options.mtime,
            durable: self.options.durable,
            data: Bytes::new(),
        };
        let response = self.client.put(&request, &buffer[..len])?;
        state.moved[self.client.slowest() as usize] += len as u64;
        self.note(state);
        Ok(response.entry.unwrap_or_default())
    }

    fn note(&self, state: &mut State) {
        let demoted = state.demoted.take();
        let ways = [Transport::Descriptor, Transport::Arena, Transport::Inline, Transport::Grpc];
        for (transport, bytes) in ways.into_iter().zip(state.moved) {
            if bytes > 0 {
                let why = demoted.clone().filter(|_| transport != Transport::Descriptor);
                self.client.inner.uses.note("WRITE", &self.path, transport, bytes, why);
            }
        }
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence where it is used")]
    fn keep_failure<T>(&self, state: &mut State, result: Result<T, Failure>) -> Result<T, Failure> {
        if let Err(failure) = &result {
            state.failed.get_or_insert_with(|| failure.clone());
        }
        result
    }

    /// Sees to a route for bytes up to `end`.
    fn ready(&self, state: &mut State, offset: u64, end: u64) -> Result<(), Failure> {
        if let Some(failure) = &state.failed {
            return Err(failure.clone());
        }
        if let Route::Small(_, len) = &state.route {
            // A hole is no reason to send zeros.
            let fits = end <= SMALL_BYTES_MAX as u64 && offset <= *len as u64;
            if !fits {
                let result = self.open(state);
                return self.keep_failure(state, result);
            }
        }
        Ok(())
    }

    /// Opens the upload with the daemon, and sends what has waited.
    fn open(&self, state: &mut State) -> Result<(), Failure> {
        let bounds = Bounds::of(&self.client.call);
        let request = v1::OpenWriteRequest {
            volume: self.volume.clone(),
            path: Bytes::copy_from_slice(&self.path),
            size_hint: self.options.size_hint,
            key: self.options.key.map_or_else(Bytes::new, |key| Bytes::copy_from_slice(&key)),
            want: 0,
        };
        let route = match &self.client.inner.backend {
            Backend::Frames(_) => self.open_frames(state, &request, &bounds)?,
            #[cfg(feature = "grpc")]
            Backend::Grpc(grpc) => {
                let want = i32::from(v1::Transport::Grpc as u8);
                let response: v1::OpenWriteResponse = self.client.unary(
                    Opcode::WRITE_OPEN,
                    &v1::OpenWriteRequest { want, ..request },
                    Repeat::Never,
                )?;
                state.received = response.received;
                let stream = Some(grpc.begin_write(&bounds)?);
                Route::Grpc { upload: response.upload, stream }
            }
        };
        let before = std::mem::replace(&mut state.route, route);
        if let Route::Small(buffer, len) = before
            && len > 0
        {
            self.write(state, 0, &buffer[..len], &bounds)?;
        }
        Ok(())
    }

    fn open_frames(
        &self,
        state: &mut State,
        request: &v1::OpenWriteRequest,
        bounds: &Bounds,
    ) -> Result<Route, Failure> {
        let options = &self.client.inner.options;
        // An upload with a key is found again; one without ends with its session anyway.
        self.client.repeatedly(Repeat::Always, bounds, || {
            let session = self.client.session()?;
            let want = if options.allows(Transport::Descriptor) && session.has(feature::FD_WRITE) {
                v1::Transport::Fd
            } else if options.allows(Transport::Arena) && session.has(feature::ARENA) {
                v1::Transport::Arena
            } else {
                v1::Transport::Inline
            };
            let message = v1::OpenWriteRequest { want: i32::from(want as u8), ..request.clone() };
            let request = Request {
                opcode: Opcode::WRITE_OPEN,
                prefix: bounds.prefix(None)?,
                message: &message.encode_to_vec(),
                payload: &[],
                asks: 0,
            };
            let mut frame = bounds.call(&session.control, &request)?;
            let response: v1::OpenWriteResponse = session::decode(&frame)?;
            let upload = response.upload;
            state.received = response.received;
            state.demoted = if want != v1::Transport::Fd {
                Some("descriptors are forbidden by an option, or not agreed on".to_owned())
            } else {
                Some(response.demoted_because).filter(|why| !why.is_empty())
            };
            if response.transport == i32::from(v1::Transport::Fd as u8) {
                if want != v1::Transport::Fd || frame.descriptors.len() != 1 {
                    return Err(Failure::new(
                        Reason::Protocol,
                        "an upload by descriptor needs one, and to be asked for",
                    ));
                }
                let Some(file) = frame.descriptors.pop() else {
                    unreachable!("there is one");
                };
                return Ok(Route::Staged { file: Arc::new(file.into()), upload, session });
            }
            let mut slots = None;
            if options.allows(Transport::Arena) {
                match session.slots() {
                    Ok(open) => slots = Some(open),
                    Err(why) => {
                        state.demoted.get_or_insert(format!("no arena: {why}"));
                    }
                }
            }
            if slots.is_none() && !options.allows(Transport::Inline) {
                return Err(Failure::new(
                    Reason::FailedPrecondition,
                    "every way for these bytes is forbidden or not to be had",
                ));
            }
            let flight = Flight {
                connection: session.bulk()?,
                mailbox: Mailbox::new(),
                open: HashMap::new(),
                slots,
            };
            Ok(Route::Frames { upload, session, flight })
        })
    }

    fn write(
        &self,
        state: &mut State,
        offset: u64,
        data: &[u8],
        bounds: &Bounds,
    ) -> Result<(), Failure> {
        let State { route, moved, demoted, .. } = state;
        match route {
            Route::Small(buffer, len) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                buffer[from..from + data.len()].copy_from_slice(data);
                *len = (*len).max(from + data.len());
                Ok(())
            }
            Route::Staged { file, .. } => {
                moved[Transport::Descriptor as usize] += data.len() as u64;
                file.write_all_at(data, offset)
                    .map_err(|error| local_failure(&error, "writing the staged file"))
            }
            Route::Frames { upload, session, flight } => {
                let inline = self.client.inner.options.allows(Transport::Inline);
                let payload_max = session.payload_bytes_max();
                let mut sent = 0;
                while sent < data.len() {
                    let at = offset + sent as u64;
                    let rest = &data[sent..];
                    let by_slot =
                        flight.slots.is_some() && (rest.len() >= ARENA_BYTES_MIN || !inline);
                    let slot = if by_slot { flight.slot(bounds, inline)? } else { None };
                    let (len, transport) = match (slot, &flight.slots) {
                        (Some(_), Some(slots)) => (slots.arena.slot_bytes(), Transport::Arena),
                        _ => (payload_max, Transport::Inline),
                    };
                    if by_slot && slot.is_none() {
                        demoted.get_or_insert_with(|| "all slots were in use".to_owned());
                    }
                    let part = &rest[..rest.len().min(len)];
                    flight.send(*upload, at, part, slot, bounds)?;
                    sent += part.len();
                    moved[transport as usize] += part.len() as u64;
                }
                Ok(())
            }
            #[cfg(feature = "grpc")]
            Route::Grpc { upload, stream } => {
                moved[Transport::Grpc as usize] += data.len() as u64;
                match (stream, &self.client.inner.backend) {
                    (Some(stream), Backend::Grpc(grpc)) => {
                        for (index, part) in data.chunks(STEP).enumerate() {
                            let at = offset + (index * STEP) as u64;
                            let mut buffer = self.client.inner.buffers.take(part.len());
                            buffer.copy_from_slice(part);
                            let data = Bytes::from_owner(buffer);
                            let message = v1::WriteRequest { upload: *upload, offset: at, data };
                            grpc.write(stream, &message, bounds)?;
                        }
                        Ok(())
                    }
                    _ => Err(Failure::new(Reason::Disconnected, "the upload's stream has ended")),
                }
            }
            Route::Closed => {
                Err(Failure::new(Reason::FailedPrecondition, "the upload was given up"))
            }
        }
    }

    fn discard(&self, also_keyed: bool) {
        let mut state = lock(&self.state);
        let mut route = std::mem::replace(&mut state.route, Route::Closed);
        if let Route::Frames { flight, .. } = &mut route {
            let bounds = Bounds {
                until: Some(clock::monotonic() + Duration::from_secs(10)),
                ..Bounds::default()
            };
            // What was in a slot must be out of it before another may have it.
            if let Err(failure) = flight.finish(&bounds) {
                tracing::debug!(%failure, "an upload was given up");
            }
        }
        if self.options.key.is_some() && !also_keyed {
            return;
        }
        match route {
            Route::Staged { upload, session, .. } | Route::Frames { upload, session, .. } => {
                if session.control.closed().is_none() {
                    Client::tell(&session, Opcode::ABORT, &v1::AbortRequest { upload });
                }
            }
            #[cfg(feature = "grpc")]
            Route::Grpc { upload, stream } => {
                drop(stream);
                let request = v1::AbortRequest { upload };
                let answer: Result<v1::AbortResponse, Failure> =
                    self.client.unary(Opcode::ABORT, &request, Repeat::Never);
                if let Err(failure) = answer {
                    tracing::debug!(%failure, "an upload could not be given up");
                }
            }
            Route::Small(..) | Route::Closed => {}
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.discard(false);
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Upload")
            .field("volume", &self.volume)
            .field("path", &self.path.escape_ascii().to_string())
            .finish_non_exhaustive()
    }
}

impl Flight {
    /// A slot; waits for one of ours if all are in use. None if others have all and frames will do.
    fn slot(&mut self, bounds: &Bounds, inline: bool) -> Result<Option<u32>, Failure> {
        loop {
            let Some(slots) = &self.slots else { return Ok(None) };
            if let Some(slot) = slots.take() {
                return Ok(Some(slot));
            }
            if !self.open.is_empty() {
                self.take_one(bounds)?;
            } else if inline {
                return Ok(None);
            } else {
                clock::sleep(Duration::from_millis(1));
                bounds.prefix(None)?;
            }
        }
    }

    fn send(
        &mut self,
        upload: u64,
        offset: u64,
        data: &[u8],
        slot: Option<u32>,
        bounds: &Bounds,
    ) -> Result<(), Failure> {
        while self.open.len() >= UNDER_WAY {
            self.take_one(bounds)?;
        }
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let message = Transfer { handle: upload, offset, len, slot }.encode();
        let request = Request {
            opcode: Opcode::WRITE,
            prefix: bounds.prefix(None)?,
            message: &message,
            payload: if slot.is_some() { &[] } else { data },
            asks: 0,
        };
        if let (Some(slot), Some(slots)) = (slot, &self.slots)
            && let Err(error) = slots.arena.copy_in(slot, data)
        {
            slots.give_back(slot);
            return Err(Failure::new(Reason::Internal, format!("the arena: {error}")));
        }
        match self.connection.submit(&self.mailbox, &request) {
            Ok(id) => {
                self.open.insert(id, slot);
                if let Some(cancel) = &bounds.cancel {
                    cancel.watch(&self.connection, id);
                }
                Ok(())
            }
            Err(failure) => {
                if let (Some(slot), Some(slots)) = (slot, &self.slots) {
                    slots.give_back(slot);
                }
                Err(failure)
            }
        }
    }

    /// Waits for the answer to one WRITE.
    fn take_one(&mut self, bounds: &Bounds) -> Result<(), Failure> {
        match self.connection.wait(&self.mailbox, &mut NoSink, bounds.until) {
            Ok(Event::Frame(frame)) => {
                let slot = self.open.remove(&frame.header.request_id).flatten();
                if let (Some(slot), Some(slots)) = (slot, &self.slots) {
                    slots.give_back(slot);
                }
                failure_of(&frame.header, &frame.meta).map_or(Ok(()), Err)
            }
            Ok(Event::Received(_)) => unreachable!("nothing is received without a sink"),
            Err(failure) => {
                // Their slots are the daemon's until it answers: nobody may use them again.
                let open: Vec<u64> = self.open.drain().map(|(id, _)| id).collect();
                self.connection.abandon(&open);
                Err(failure)
            }
        }
    }

    /// Waits for all answers.
    fn finish(&mut self, bounds: &Bounds) -> Result<(), Failure> {
        let mut result = Ok(());
        while !self.open.is_empty() {
            let answer = self.take_one(bounds);
            if result.is_ok() {
                result = answer;
            }
        }
        result
    }
}

/// Copies within the kernel. Answers whether it does that between these two.
fn copy_range(
    from: &File,
    from_offset: u64,
    to: &File,
    to_offset: u64,
    len: u64,
    progress: &mut dyn FnMut(u64),
) -> io::Result<bool> {
    let (mut at, mut to_at) = (from_offset, to_offset);
    let mut done = 0;
    while done < len {
        let step = usize::try_from((len - done).min(8 << 20)).unwrap_or(8 << 20);
        match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), step) {
            Ok(0) if done == 0 => return Ok(false),
            Ok(0) => return Ok(true),
            Ok(copied) => {
                done += copied as u64;
                progress(done);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(
                rustix::io::Errno::XDEV
                | rustix::io::Errno::INVAL
                | rustix::io::Errno::NOSYS
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::PERM
                | rustix::io::Errno::TXTBSY,
            ) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
