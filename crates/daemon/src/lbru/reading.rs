//! Bytes on their way out: pieces and descriptors, frames, slots.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use librorum_fs::{Piece, PieceSource};
use librorum_rpc::frame::{HEADER_LEN, Header, Kind, Opcode, Transfer, feature};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};

use super::output::Lent;
use super::request::{Answer, Note, Request};
use crate::metrics::Transport;
use crate::service::OpenFile;

/// Pieces are looked up for so much of a file at a time.
const WINDOW_BYTES: u64 = 256 << 20;
/// Of about 30 bytes each: they fit a frame's control message beside an entry.
const PIECES_MAX: usize = 1024;
/// The most that comes along with the answer to READ_OPEN: a descriptor is cheaper for more.
const ALONG_BYTES_MAX: u32 = 64 << 10;

/// Whether the client wants descriptors and may have them, or why not.
fn lending(request: &Request, want: v1::Transport) -> Result<(), Option<&'static str>> {
    match request.connection.agreed() {
        _ if want != v1::Transport::Fd => Err(None),
        Ok(agreed) if agreed.features & feature::FD_READ != 0 => Ok(()),
        _ => Err(Some("descriptors for reading were not agreed on")),
    }
}

/// Opens a file. A small one comes along at once, and is not open then.
pub(super) fn open(
    request: &Request,
    asked: &v1::OpenReadRequest,
    note: &mut Note,
) -> Result<Answer, Failure> {
    let core = request.connection.core();
    let agreed = request.connection.agreed()?;
    let file = core.service.open_read(&request.call, &asked.volume, &asked.path, 0)?;
    let entry = file.entry().clone();
    let start = asked.offset.min(entry.size_bytes);
    let rest = entry.size_bytes - start;
    let len = if asked.length == 0 { rest } else { asked.length.min(rest) };
    let along_max = asked.inline_bytes_max.min(agreed.payload_bytes_max).min(ALONG_BYTES_MAX);
    if len <= u64::from(along_max) {
        let mut payload = vec![0; usize::try_from(len).map_err(|_too_large| too_long())?];
        let count = read_fully(&file, start, &mut payload)?;
        payload.truncate(count);
        note.transport = Transport::LbruInline;
        note.bytes = count as u64;
        let found = v1::OpenReadResponse { entry: Some(entry), ..v1::OpenReadResponse::default() };
        return Ok(Answer { payload, ..Answer::message(&found) });
    }
    let may_lend = lending(request, asked.want());
    let file = Arc::new(file);
    let (mut found, descriptors) =
        pieces(request, &file, (start, start + len), &asked.known_segments, may_lend, note)?;
    found.entry = Some(entry);
    found.handle = request.connection.session()?.add_file(file, &core.limits)?;
    Ok(Answer { descriptors, ..Answer::message(&found) })
}

/// The pieces that the answer before had no room for.
pub(super) fn more_pieces(
    request: &Request,
    asked: &v1::ReadPiecesRequest,
    note: &mut Note,
) -> Result<Answer, Failure> {
    let file = request.connection.session()?.file(asked.handle)?;
    let rest = file.entry().size_bytes.saturating_sub(asked.offset);
    let len = if asked.length == 0 { rest } else { asked.length.min(rest) };
    let may_lend = lending(request, v1::Transport::Fd);
    let range = (asked.offset, asked.offset + len);
    let (found, descriptors) =
        pieces(request, &file, range, &asked.known_segments, may_lend, note)?;
    Ok(Answer { descriptors, ..Answer::message(&found) })
}

fn too_long() -> Failure {
    Failure::file(librorum_format::ErrorKind::OutOfRange, "more than this machine can address")
}

/// Lists pieces until the range ends or the frame is full.
fn pieces(
    request: &Request,
    file: &OpenFile,
    (start, end): (u64, u64),
    known_segments: &[u64],
    may_lend: Result<(), Option<&'static str>>,
    note: &mut Note,
) -> Result<(v1::OpenReadResponse, Vec<Lent>), Failure> {
    let core = request.connection.core();
    if let Err(reason) = may_lend {
        note.demoted_because = reason;
        if let Some(reason) = reason {
            core.metrics.demoted("READ_OPEN", Transport::LbruFd, Transport::LbruInline, reason);
        }
        let mut pieces = Vec::new();
        if start < end {
            pieces.push(v1::Piece { offset: start, len: end - start, ..v1::Piece::default() });
        }
        let demoted_because = reason.unwrap_or_default().to_owned();
        let found = v1::OpenReadResponse { pieces, demoted_because, ..Default::default() };
        return Ok((found, Vec::new()));
    }
    let trusted = core.service.may_lend(&request.call.caller);
    let mut listing = Listing::new(request, known_segments)?;
    let mut at = start;
    'windows: while at < end {
        request.call.check()?;
        let len = (end - at).min(WINDOW_BYTES);
        let found = file.pieces(at, len, trusted)?;
        if found.is_empty() {
            break;
        }
        for piece in found {
            at = piece.offset;
            if !listing.add(&piece) {
                break 'windows;
            }
            at = piece.offset + piece.len;
        }
    }
    if listing.lent_bytes > 0 {
        note.transport = Transport::LbruFd;
        note.bytes = listing.lent_bytes;
        core.metrics.lent(listing.descriptors.len() as u64);
        core.metrics.copies_avoided(listing.lent_bytes);
    }
    if let Some(reason) = listing.demoted_because {
        note.demoted_because = Some(reason);
        core.metrics.demoted("READ_OPEN", Transport::LbruFd, Transport::LbruInline, reason);
    }
    let found = v1::OpenReadResponse {
        next_offset: if listing.is_full { at } else { 0 },
        demoted_because: listing.demoted_because.unwrap_or_default().to_owned(),
        pieces: listing.pieces,
        ..v1::OpenReadResponse::default()
    };
    Ok((found, listing.descriptors))
}

/// The pieces of one answer.
struct Listing<'a> {
    request: &'a Request,
    known: &'a [u64],
    descriptors_max: usize,
    pieces: Vec<v1::Piece>,
    descriptors: Vec<Lent>,
    /// Where the descriptor of a segment is in this frame.
    given: HashMap<u64, u32>,
    lent_bytes: u64,
    demoted_because: Option<&'static str>,
    is_full: bool,
}

impl<'a> Listing<'a> {
    fn new(request: &'a Request, known: &'a [u64]) -> Result<Self, Failure> {
        Ok(Self {
            request,
            known,
            descriptors_max: usize::from(request.connection.agreed()?.descriptors_max),
            pieces: Vec::new(),
            descriptors: Vec::new(),
            given: HashMap::new(),
            lent_bytes: 0,
            demoted_because: None,
            is_full: false,
        })
    }

    /// False if the frame has no room for it.
    fn add(&mut self, piece: &Piece) -> bool {
        let mut told = v1::Piece { offset: piece.offset, len: piece.len, ..v1::Piece::default() };
        match &piece.source {
            PieceSource::Hole => told.source = v1::Source::Hole.into(),
            PieceSource::Private => {}
            PieceSource::File { segment, file, offset } => {
                let segment = segment.0;
                let index = if self.known.contains(&segment) {
                    Some(0)
                } else if let Some(&index) = self.given.get(&segment) {
                    Some(index)
                } else if self.descriptors.len() >= self.descriptors_max {
                    self.is_full = true;
                    return false;
                } else {
                    self.give(segment, file)
                };
                match index {
                    Some(fd_index) => {
                        told.source = v1::Source::Fd.into();
                        told.segment = segment;
                        told.fd_index = fd_index;
                        told.fd_offset = *offset;
                        self.lent_bytes += piece.len;
                    }
                    None => {
                        self.demoted_because = Some("the session has too many descriptors");
                    }
                }
            }
        }
        if let Some(last) = self.pieces.last_mut()
            && last.offset + last.len == told.offset
            && last.source == told.source
            && last.segment == told.segment
            && (told.segment == 0 || last.fd_offset + last.len == told.fd_offset)
        {
            last.len += told.len;
            return true;
        }
        if self.pieces.len() >= PIECES_MAX {
            self.is_full = true;
            return false;
        }
        self.pieces.push(told);
        true
    }

    fn give(&mut self, segment: u64, file: &Arc<std::fs::File>) -> Option<u32> {
        let session = self.request.connection.session().ok()?;
        if !session.lend(segment, &self.request.connection.core().limits) {
            return None;
        }
        self.descriptors.push(Lent::File(Arc::clone(file)));
        let index = u32::try_from(self.descriptors.len()).ok()?;
        self.given.insert(segment, index);
        Some(index)
    }
}

fn read_fully(file: &OpenFile, offset: u64, out: &mut [u8]) -> Result<usize, Failure> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(offset.saturating_add(done as u64), &mut out[done..])? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// READ of a length that one frame holds, or into a slot.
pub(super) fn read(
    request: &Request,
    transfer: Transfer,
    note: &mut Note,
) -> Result<Answer, Failure> {
    let session = request.connection.session()?;
    let file = session.file(transfer.handle)?;
    let len = usize::try_from(transfer.len).map_err(|_too_large| too_long())?;
    let Some(index) = transfer.slot else {
        let mut payload = vec![0; len];
        let count = read_fully(&file, transfer.offset, &mut payload)?;
        payload.truncate(count);
        note.transport = Transport::LbruInline;
        note.bytes = count as u64;
        return Ok(Answer { payload, ..Answer::default() });
    };
    let slot = session.slot(index, transfer.len)?;
    let moved = |error: std::io::Error| {
        Failure::new(Reason::Internal, format!("cannot fill slot {index}: {error}"))
    };
    let answer = |note: &mut Note, count: usize| {
        note.transport = Transport::LbruArena;
        note.bytes = count as u64;
        let told = u32::try_from(count).map_err(|_too_large| too_long())?;
        Ok(Answer { meta: told.to_le_bytes().to_vec(), ..Answer::default() })
    };
    if let Some((held_in, at)) = file.file_of(transfer.offset, u64::from(transfer.len))? {
        let count = slot.arena.read_from(slot.index, &held_in, at, len).map_err(moved)?;
        if count == len {
            return answer(note, count);
        }
    }
    let buffers = request.connection.output().buffers();
    let mut buffer = buffers.take(len);
    let copied = read_fully(&file, transfer.offset, &mut buffer).and_then(|count| {
        slot.arena.copy_in(slot.index, &buffer[..count]).map_err(moved)?;
        Ok(count)
    });
    buffers.give_back(buffer);
    answer(note, copied?)
}

/// A READ into frames, perhaps many. It pauses while the client does not keep up, and leaves its worker
/// to others between two turns.
struct Reading {
    request: Request,
    file: Arc<OpenFile>,
    at: u64,
    left: u32,
    done: u64,
}

/// Bytes that are read before others have their turn.
const TURN_BYTES: u32 = 1 << 20;

/// Begins a READ in a worker, and answers it.
pub(super) fn begin(request: Request, transfer: Transfer) {
    let found = request.call.check().and_then(|()| {
        request.connection.session().and_then(|session| session.file(transfer.handle))
    });
    match found {
        Ok(file) => {
            let (at, left) = (transfer.offset, transfer.len);
            Reading { request, file, at, left, done: 0 }.go_on();
        }
        Err(failure) => request.finish(Note::default(), Err(failure)),
    }
}

impl Reading {
    fn note(&self) -> Note {
        Note { transport: Transport::LbruInline, bytes: self.done, demoted_because: None }
    }

    fn go_on(mut self) {
        let mut turn_left = TURN_BYTES;
        loop {
            if turn_left == 0 {
                self.pause();
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| self.step())) {
                Ok(Ok(Some(count))) => turn_left = turn_left.saturating_sub(count),
                Ok(Ok(None)) => return,
                Ok(Err(failure)) => {
                    let note = self.note();
                    self.request.finish(note, Err(failure));
                    return;
                }
                Err(_) => {
                    let note = self.note();
                    let failure = Failure::new(Reason::Internal, "the daemon made a mistake");
                    self.request.finish(note, Err(failure));
                    return;
                }
            }
        }
    }

    /// Waits for the client, or for its next turn.
    fn pause(self) {
        let connection = Arc::clone(&self.request.connection);
        let mut waiting = Some(self);
        let is_paused = connection.output().pause_if_busy(|| {
            let waiting = waiting.take();
            Box::new(move || {
                if let Some(waiting) = waiting {
                    waiting.go_on();
                }
            })
        });
        if is_paused {
            return;
        }
        let Some(reading) = waiting else { return };
        let lane = connection.number();
        let task: super::pool::Task = Box::new(move || reading.go_on());
        if let Err(task) = connection.core().workers.submit(lane, task) {
            // There is no room for another turn, but this one is still ours.
            task();
        }
    }

    /// Sends one frame. None after the last one.
    fn step(&mut self) -> Result<Option<u32>, Failure> {
        self.request.call.check()?;
        let connection = Arc::clone(&self.request.connection);
        let max = connection.agreed()?.payload_bytes_max;
        let wanted = self.left.min(max);
        let len = usize::try_from(wanted).map_err(|_too_large| too_long())?;
        let buffers = connection.output().buffers();
        let mut frame = buffers.take(HEADER_LEN + len);
        let count = match read_fully(&self.file, self.at, &mut frame[HEADER_LEN..]) {
            Ok(count) => count,
            Err(failure) => {
                buffers.give_back(frame);
                return Err(failure);
            }
        };
        frame.truncate(HEADER_LEN + count);
        let read = u32::try_from(count).map_err(|_too_large| too_long())?;
        self.at += u64::from(read);
        self.left -= read;
        self.done += u64::from(read);
        let is_last = self.left == 0 || read < wanted;
        let kind = if is_last { Kind::Res } else { Kind::Data };
        let header =
            Header { payload_len: read, ..Header::new(kind, Opcode::READ, self.request.id) };
        frame[..HEADER_LEN].copy_from_slice(&header.encode());
        if is_last {
            let note = self.note();
            self.request.tell(note, 0);
            self.request.leave();
        }
        connection.output().send(frame, Vec::new());
        Ok((!is_last).then_some(read))
    }
}
