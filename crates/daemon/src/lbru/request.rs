//! A request from its frame to its answer.
//!
//! Every request gets exactly one RES. Whoever moves its [`Flight`] to `ANSWERED` sends it: the thread
//! that did the request, or the connection's own if it was withdrawn or late before anybody began.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

use bytes::Bytes;
use librorum_rpc::frame::{HEADER_LEN, Header, Kind, Opcode};
use librorum_rpc::{Failure, Reason};

use super::connection::Connection;
use super::message::{Message, Place};
use super::once::{Kept, Key};
use super::output::Lent;
use super::{Core, operations, reading};
use crate::metrics::{Operation, Timer, Transport};
use crate::service::Call;

/// A request.
pub(super) struct Request {
    pub(super) connection: Arc<Connection>,
    pub(super) id: u64,
    pub(super) opcode: Opcode,
    pub(super) message: Message,
    pub(super) payload: Bytes,
    pub(super) call: Call,
    pub(super) timer: Option<Timer>,
    /// None if the connection's own thread does it at once.
    pub(super) flight: Option<Arc<Flight>>,
    pub(super) claim: Option<Claim>,
}

/// What the connection knows of a request that somebody else does.
#[derive(Debug)]
pub(super) struct Flight {
    phase: AtomicU8,
    pub(super) cancel: Arc<AtomicBool>,
    pub(super) deadline: Option<Instant>,
    pub(super) opcode: Opcode,
    pub(super) cost_bytes: u64,
}

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
const ANSWERED: u8 = 2;

/// An answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) meta: Vec<u8>,
    pub(super) payload: Vec<u8>,
    pub(super) descriptors: Vec<Lent>,
}

/// What the figures are told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub(super) transport: Transport,
    pub(super) bytes: u64,
    pub(super) demoted_because: Option<&'static str>,
}

/// The right to do what a key stands for. Given up without an answer, the next one who waits does it.
pub(super) struct Claim {
    pub(super) core: Arc<Core>,
    pub(super) key: Key,
}

impl Default for Note {
    fn default() -> Self {
        Self { transport: Transport::Lbru, bytes: 0, demoted_because: None }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("id", &self.id)
            .field("opcode", &self.opcode)
            .finish_non_exhaustive()
    }
}

impl Flight {
    pub(super) fn new(
        cancel: Arc<AtomicBool>,
        deadline: Option<Instant>,
        opcode: Opcode,
        cost_bytes: u64,
    ) -> Self {
        Self { phase: AtomicU8::new(WAITING), cancel, deadline, opcode, cost_bytes }
    }

    fn begin(&self) -> bool {
        self.phase.compare_exchange(WAITING, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes the answering from whoever would have begun. False if it is being done.
    pub(super) fn withdraw(&self) -> bool {
        self.phase.compare_exchange(WAITING, ANSWERED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Answer {
    pub(super) fn message(message: &impl prost::Message) -> Self {
        Self { meta: message.encode_to_vec(), ..Self::default() }
    }

    pub(super) fn failure(failure: &Failure) -> (u8, Self) {
        let mut error = failure.to_message();
        // Somebody's path may be in it, twice.
        if error.message.len() > 16 << 10 {
            let end = error.message.floor_char_boundary(16 << 10);
            error.message.truncate(end);
        }
        // Codes of gRPC end at 16.
        (u8::try_from(error.code).unwrap_or(2), Self::message(&error))
    }

    /// Puts the frame behind what is in `out`.
    pub(super) fn encode_to(
        &self,
        out: &mut Vec<u8>,
        id: u64,
        opcode: Opcode,
        status: u8,
    ) -> Result<(), Failure> {
        let too_large = |_| Failure::new(Reason::Internal, "the answer does not fit a frame");
        let header = Header {
            payload_len: u32::try_from(self.payload.len()).map_err(too_large)?,
            meta_len: u16::try_from(self.meta.len()).map_err(too_large)?,
            fd_count: u8::try_from(self.descriptors.len()).map_err(too_large)?,
            status,
            ..Header::new(Kind::Res, opcode, id)
        };
        out.reserve(HEADER_LEN + self.meta.len() + self.payload.len());
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(&self.meta);
        out.extend_from_slice(&self.payload);
        Ok(())
    }
}

/// Puts the answer's frame behind what is in `out`, or that of a failure if it is too large for one.
/// Answers its status.
pub(super) fn encode(
    out: &mut Vec<u8>,
    id: u64,
    opcode: Opcode,
    result: Result<Answer, Failure>,
) -> (u8, Answer) {
    let (status, answer) = match result {
        Ok(answer) => (0, answer),
        Err(failure) => Answer::failure(&failure),
    };
    match answer.encode_to(out, id, opcode, status) {
        Ok(()) => (status, answer),
        Err(failure) => {
            let (status, answer) = Answer::failure(&failure);
            if let Err(error) = answer.encode_to(out, id, opcode, status) {
                unreachable!("a failure fits a frame: {error}");
            }
            (status, answer)
        }
    }
}

impl Request {
    /// Does it in this thread, which is the connection's, and puts the answer into `batch`.
    pub(super) fn run_here(mut self, batch: &mut Vec<u8>) {
        let mut note = Note::default();
        let result = self.perform(&mut note);
        let start = batch.len();
        let (status, answer) = encode(batch, self.id, self.opcode, result);
        self.tell(note, status);
        if !answer.descriptors.is_empty() {
            let frame = batch.split_off(start);
            self.connection.output().send(frame, answer.descriptors);
        }
    }

    /// Does it in a worker.
    pub(super) fn run(self) {
        if self.flight.as_ref().is_some_and(|flight| !flight.begin()) {
            return;
        }
        if let Message::Read(transfer) = &self.message
            && transfer.slot.is_none()
        {
            let transfer = *transfer;
            reading::begin(self, transfer);
            return;
        }
        let mut note = Note::default();
        let result = self.perform(&mut note);
        self.finish(note, result);
    }

    fn perform(&self, note: &mut Note) -> Result<Answer, Failure> {
        self.call.check()?;
        // A mistake in one operation must not take the connection with it, nor a worker.
        match catch_unwind(AssertUnwindSafe(|| operations::perform(self, note))) {
            Ok(result) => result,
            Err(_) => {
                tracing::error!(opcode = ?self.opcode, "a request made the daemon panic");
                Err(Failure::new(Reason::Internal, "the daemon made a mistake; see its log"))
            }
        }
    }

    /// Answers it.
    pub(super) fn finish(mut self, note: Note, result: Result<Answer, Failure>) {
        let keeps = match &result {
            Ok(_) => true,
            Err(failure) => !matches!(
                failure.reason,
                Reason::Cancelled
                    | Reason::DeadlineExceeded
                    | Reason::Overloaded
                    | Reason::Disconnected
                    | Reason::Internal
            ),
        };
        let mut frame = Vec::new();
        let (status, answer) = encode(&mut frame, self.id, self.opcode, result);
        self.tell(note, status);
        let connection = Arc::clone(&self.connection);
        connection.while_sending(|| {
            self.leave();
            connection.output().send(frame, answer.descriptors);
        });
        if keeps && let Some(claim) = self.claim.take() {
            claim.done(Kept { status, meta: answer.meta });
        }
    }

    /// Answers what was kept of the first request with the same key.
    pub(super) fn repeat(mut self, kept: &Kept) {
        if self.flight.as_ref().is_some_and(|flight| !flight.begin()) {
            return;
        }
        let answer = Answer { meta: kept.meta.clone(), ..Answer::default() };
        let mut frame = Vec::new();
        if answer.encode_to(&mut frame, self.id, self.opcode, kept.status).is_ok() {
            self.tell(Note::default(), kept.status);
            let connection = Arc::clone(&self.connection);
            connection.while_sending(|| {
                self.leave();
                connection.output().send(frame, Vec::new());
            });
        }
    }

    /// Answers it with a failure, before anybody began it.
    pub(super) fn refuse(self, failure: Failure) {
        if self.flight.as_ref().is_none_or(|flight| flight.begin()) {
            self.finish(Note::default(), Err(failure));
        }
    }

    /// Gives back what it cost. Before the answer goes out: its receiver may ask again at once.
    pub(super) fn leave(&mut self) {
        if let Some(flight) = self.flight.take() {
            self.connection.leave(self.id, &flight);
        }
    }

    pub(super) fn tell(&mut self, note: Note, status: u8) {
        if let Some(timer) = self.timer.take() {
            timer.end(Operation {
                name: self.opcode.name().unwrap_or("UNKNOWN"),
                transport: note.transport,
                bytes: note.bytes,
                code: u32::from(status),
                path: self.message.path(),
                uid: self.call.caller.uid,
                connection: self.connection.number(),
                trace_id: self.call.trace_id,
                demoted_because: note.demoted_because,
            });
        }
    }

    /// Gives it to a worker.
    pub(super) fn submit(self) {
        let core = Arc::clone(self.connection.core());
        let lane = self.connection.number();
        let pool = match self.message.place() {
            Place::Waiter => &core.waiters,
            Place::Here | Place::HereIfAlone | Place::Worker => &core.workers,
        };
        // In case that there is no room.
        let (connection, id, opcode) = (Arc::clone(&self.connection), self.id, self.opcode);
        let flight = self.flight.clone();
        if let Err(task) = pool.submit(lane, Box::new(move || self.run())) {
            if flight.is_none_or(|flight| {
                let taken = flight.withdraw();
                connection.leave(id, &flight);
                taken
            }) {
                let failure = super::overloaded("the daemon has too much to do");
                connection.answer_failure(id, opcode, failure);
            }
            drop(task);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // Withdrawn, late, or its connection ended.
        self.leave();
    }
}

impl Claim {
    fn done(self, kept: Kept) {
        let kept = Arc::new(kept);
        let waiting = self.core.once.finish(self.key, Some(Arc::clone(&kept)));
        for request in waiting {
            request.repeat(&kept);
        }
        // Dropping finds nothing under way any more.
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for mut request in self.core.once.finish(self.key, None) {
            request.claim = Some(Self { core: Arc::clone(&self.core), key: self.key });
            request.submit();
        }
    }
}
