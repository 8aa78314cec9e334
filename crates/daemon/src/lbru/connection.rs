//! One connection: its thread reads what has come, does what is quick, hands the rest to workers, and
//! writes what they could not.
//!
//! The thread waits in one place, for the socket and for a counter that others wake it with. Answers to
//! what came together go out together.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use librorum_rpc::frame::{
    Credit, Frame, FrameError, HEADER_LEN, Header, Kind, Limits as FrameLimits, Opcode, Prefix,
    Splitter, flag,
};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use librorum_sys::{clock, socket};
use prost::Message as _;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::ids::Ids;
use super::ledger::ConnectionShare;
use super::message::{Message, Place};
use super::nearness::Nearness;
use super::once::{Begin, Key};
use super::output::Output;
use super::request::{Answer, Claim, Flight, Note, Request, encode};
use super::session::Session;
use super::{Core, hello, overloaded};
use crate::lock;
use crate::service::{Call, Caller};

/// Who has not said HELLO by then never will.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long a full queue may stand still.
const STALLED_MAX: Duration = Duration::from_secs(30);
/// When to try again what no event announces.
const RETRY: Duration = Duration::from_millis(50);
/// Answers that are collected before they are written.
const BATCH_BYTES: usize = 64 << 10;
/// How long to look for the next request before sleeping, if the one before came as soon: see
/// `nearness.rs` for what being woken costs.
const SPIN: Duration = Duration::from_micros(50);

/// What HELLO agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    pub(super) features: u64,
    pub(super) payload_bytes_max: u32,
    pub(super) descriptors_max: u8,
}

/// A connection, as those see it who have to do with it.
#[derive(Debug)]
pub(super) struct Connection {
    core: Arc<Core>,
    number: u64,
    caller: Caller,
    /// The socket's rules ask nothing more of this user.
    is_known: bool,
    output: Output,
    agreed: OnceLock<Agreed>,
    session: OnceLock<Arc<Session>>,
    requests_max: AtomicU32,
    bytes_max: AtomicU64,
    under_way: Mutex<UnderWay>,
    ended: Arc<AtomicBool>,
    draining: AtomicBool,
    /// Answers between being off the account and in the queue.
    sending: AtomicU32,
}

#[derive(Debug, Default)]
struct UnderWay {
    flights: HashMap<u64, Arc<Flight>>,
    bytes: u64,
}

/// What only the connection's thread has.
struct Reader {
    connection: Arc<Connection>,
    splitter: Splitter,
    /// Frames that have not been looked at because answers wait.
    held: Option<Frame>,
    batch: Vec<u8>,
    ids: Ids,
    nearness: Nearness,
    /// When waiting began, and whether it was short the last time.
    was_quick: bool,
    started: Duration,
    _share: ConnectionShare,
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The peer closed it, or is gone.
    Gone,
    /// It has been told, or need not be.
    Quiet,
    /// It is told by GOAWAY.
    Tell(Failure),
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        Self::Tell(Failure::new(Reason::Protocol, error.to_string()))
    }
}

impl Connection {
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    pub(super) fn output(&self) -> &Output {
        &self.output
    }

    pub(super) fn session(&self) -> Result<&Arc<Session>, Failure> {
        self.session.get().ok_or_else(|| Failure::new(Reason::Internal, "there was no HELLO"))
    }

    pub(super) fn agreed(&self) -> Result<&Agreed, Failure> {
        self.agreed.get().ok_or_else(|| Failure::new(Reason::Internal, "there was no HELLO"))
    }

    /// Tells the client that no further request is taken, and ends when those under way are done.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.output.wake();
    }

    /// Ends it now.
    pub(super) fn cut(&self) {
        self.ended.store(true, Ordering::Release);
        self.output.end();
        self.output.wake();
    }

    /// New limits, which the client is told.
    pub(super) fn set_credit(&self, credit: Credit) {
        self.requests_max.store(credit.requests_max, Ordering::Relaxed);
        self.bytes_max.store(credit.bytes_max, Ordering::Relaxed);
        if self.agreed.get().is_none() {
            return;
        }
        let header = Header {
            meta_len: u16::try_from(Credit::LEN).unwrap_or(0),
            ..Header::new(Kind::Credit, Opcode::NONE, 0)
        };
        let mut frame = header.encode().to_vec();
        frame.extend_from_slice(&credit.encode());
        self.output.send(frame, Vec::new());
    }

    pub(super) fn answer_failure(&self, id: u64, opcode: Opcode, failure: Failure) {
        let mut frame = Vec::new();
        encode(&mut frame, id, opcode, Err(failure));
        self.output.send(frame, Vec::new());
    }

    /// Runs what takes a request off the account and queues its answer, in this order. A connection that
    /// drains must not take the moment between for the end.
    pub(super) fn while_sending(&self, work: impl FnOnce()) {
        self.sending.fetch_add(1, Ordering::AcqRel);
        work();
        self.sending.fetch_sub(1, Ordering::AcqRel);
        if self.draining.load(Ordering::Acquire) {
            self.output.wake();
        }
    }

    /// Takes a request off the account.
    pub(super) fn leave(&self, id: u64, flight: &Arc<Flight>) {
        let mut under_way = lock(&self.under_way);
        if under_way.flights.get(&id).is_some_and(|found| Arc::ptr_eq(found, flight)) {
            under_way.flights.remove(&id);
            under_way.bytes -= flight.cost_bytes;
        }
        let is_last = under_way.flights.is_empty();
        drop(under_way);
        if is_last && self.draining.load(Ordering::Acquire) {
            self.output.wake();
        }
    }

    /// Answers a request that nobody has begun. If somebody has, it is told.
    fn withdraw(&self, id: u64, reason: Reason, message: &str) {
        let found = lock(&self.under_way).flights.get(&id).cloned();
        let Some(flight) = found else { return };
        if reason == Reason::Cancelled {
            flight.cancel.store(true, Ordering::Relaxed);
        }
        if flight.withdraw() {
            self.leave(id, &flight);
            self.answer_failure(id, flight.opcode, Failure::new(reason, message));
        }
    }
}

/// Serves a connected socket until it ends. `share` is its place among the connections of its user.
pub(super) fn serve(
    core: &Arc<Core>,
    stream: UnixStream,
    caller: Caller,
    is_known: bool,
    share: ConnectionShare,
) -> std::io::Result<()> {
    stream.set_nonblocking(true)?;
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let number = core.next_connection.fetch_add(1, Ordering::Relaxed);
    let buffers = Arc::clone(&core.buffers);
    let connection = Arc::new(Connection {
        core: Arc::clone(core),
        number,
        caller,
        is_known,
        output: Output::new(stream, wake, buffers, core.workers.clone(), number),
        agreed: OnceLock::new(),
        session: OnceLock::new(),
        requests_max: AtomicU32::new(core.limits.requests_max),
        bytes_max: AtomicU64::new(core.limits.bytes_max),
        under_way: Mutex::default(),
        ended: Arc::default(),
        draining: AtomicBool::new(false),
        sending: AtomicU32::new(0),
    });
    // Counted before it runs, so that who waits for all of them waits for this one.
    core.add(&connection);
    let reader = Reader {
        connection: Arc::clone(&connection),
        splitter: Splitter::new(FrameLimits::BEFORE_HELLO),
        held: None,
        batch: Vec::with_capacity(BATCH_BYTES * 2),
        ids: Ids::default(),
        nearness: Nearness::default(),
        was_quick: false,
        started: clock::monotonic(),
        _share: share,
    };
    let spawned =
        std::thread::Builder::new().name(format!("lbru-{number}")).spawn(move || reader.run());
    if let Err(error) = spawned {
        core.remove(number);
        return Err(error);
    }
    Ok(())
}

impl Reader {
    fn run(mut self) {
        let connection = Arc::clone(&self.connection);
        let core = Arc::clone(connection.core());
        core.metrics.connection_opened();
        let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work()))
            .unwrap_or_else(|_| {
                Err(End::Tell(Failure::new(Reason::Internal, "the daemon made a mistake")))
            });
        if let Err(End::Tell(failure)) = end {
            tracing::debug!(connection = connection.number, uid = connection.caller.uid,
                reason = %failure, "ending a connection");
            self.say_goaway(&failure);
        }
        connection.ended.store(true, Ordering::Release);
        // Nothing of it may outlive it: what waits is dropped, what runs is told.
        let flights: Vec<Arc<Flight>> =
            lock(&connection.under_way).flights.values().cloned().collect();
        for flight in flights {
            flight.cancel.store(true, Ordering::Relaxed);
            // Those that wait for a key, too.
            if flight.withdraw() {
                tracing::trace!(opcode = ?flight.opcode, "dropped with its connection");
            }
        }
        connection.output.end();
        core.workers.forget(connection.number);
        core.waiters.forget(connection.number);
        if let Some(session) = connection.session.get() {
            core.sessions.leave(session);
        }
        core.metrics.connection_closed();
        let number = connection.number;
        drop(connection);
        drop(self);
        core.remove(number);
    }

    fn say_goaway(&mut self, failure: &Failure) {
        let reason = v1::GoAway { reason: Some(failure.to_message()) };
        let meta = reason.encode_to_vec();
        let header = Header {
            meta_len: u16::try_from(meta.len()).unwrap_or(0),
            ..Header::new(Kind::GoAway, Opcode::NONE, 0)
        };
        self.batch.extend_from_slice(&header.encode());
        self.batch.extend_from_slice(&meta);
        self.connection.output.send_batch(&mut self.batch);
    }

    fn work(&mut self) -> Result<(), End> {
        let connection = Arc::clone(&self.connection);
        let mut told_draining = false;
        loop {
            let may_have_more = self.handle_what_is_there()?;
            if connection.ended.load(Ordering::Acquire) {
                return Err(End::Quiet);
            }
            if connection.draining.load(Ordering::Acquire) {
                if !told_draining {
                    told_draining = true;
                    let failure = Failure::new(Reason::Disconnected, "the daemon is stopping");
                    self.say_goaway(&failure);
                }
                let is_idle = lock(&connection.under_way).flights.is_empty()
                    && connection.sending.load(Ordering::Acquire) == 0;
                if is_idle && !connection.output.pending().any {
                    return Err(End::Quiet);
                }
            }
            if may_have_more {
                self.receive()?;
            } else {
                self.look_or_wait()?;
            }
        }
    }

    /// Looks for the next request for a moment where that pays, before it waits.
    fn look_or_wait(&mut self) -> Result<(), End> {
        let since = clock::monotonic();
        let pending = self.connection.output.pending();
        let may_look = self.was_quick && !self.nearness.is_near() && !pending.any && !pending.ended;
        if may_look {
            while clock::monotonic() - since < SPIN {
                if self.receive()? {
                    return Ok(());
                }
                std::thread::yield_now();
            }
        }
        self.wait()?;
        self.was_quick = clock::monotonic() - since < SPIN;
        Ok(())
    }

    /// Waits for something to read, for room to write, or for a time to pass; then reads and writes.
    fn wait(&mut self) -> Result<(), End> {
        let connection = Arc::clone(&self.connection);
        let output = &connection.output;
        let pending = output.pending();
        if pending.ended {
            return Err(End::Gone);
        }
        let now = clock::monotonic();
        let mut timeout = self.next_deadline();
        let mut at_most = |limit: Duration| {
            timeout = Some(timeout.map_or(limit, |timeout| timeout.min(limit)));
        };
        if connection.agreed.get().is_none() {
            let Some(left) = (self.started + HELLO_WITHIN).checked_sub(now) else {
                return Err(End::Tell(Failure::new(Reason::Protocol, "HELLO did not come")));
            };
            at_most(left.max(Duration::from_millis(1)));
        }
        if pending.full {
            let Some(left) = (pending.stalled_since + STALLED_MAX).checked_sub(now) else {
                let failure = Failure::new(Reason::Overloaded, "answers were not read");
                return Err(End::Tell(failure));
            };
            at_most(left.max(Duration::from_millis(1)));
        }
        if pending.retry {
            at_most(RETRY);
        }
        let mut wanted = PollFlags::empty();
        if !pending.full {
            wanted |= PollFlags::IN;
        }
        if pending.any && !pending.retry {
            wanted |= PollFlags::OUT;
        }
        let wake = output.wake_descriptor();
        let mut polled = [PollFd::new(output.socket(), wanted), PollFd::new(&wake, PollFlags::IN)];
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(End::Tell(Failure::new(Reason::Internal, error.to_string())));
            }
        }
        let (found, woken) = (polled[0].revents(), polled[1].revents());
        if !woken.is_empty() {
            // One read empties it.
            let _emptied = rustix::io::read(wake, &mut [0_u8; 8]);
        }
        if found.contains(PollFlags::OUT) || pending.retry {
            output.flush();
        }
        self.answer_late();
        if found.intersects(PollFlags::IN) {
            self.receive()?;
            return Ok(());
        }
        // A peer that has gone while it is not read from: no answer will be taken any more.
        if found.intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(End::Gone);
        }
        Ok(())
    }

    /// Answers whether there was something.
    fn receive(&mut self) -> Result<bool, End> {
        let mut descriptors = Vec::new();
        let socket = self.connection.output.socket().as_fd();
        // No request carries any; one that comes is an error of the stream.
        match socket::receive(socket, self.splitter.space(), &mut descriptors, 0) {
            Ok(0) => Err(End::Gone),
            Ok(count) => {
                self.splitter.filled(count, descriptors)?;
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(End::Tell(Failure::new(Reason::Protocol, error.to_string())))
            }
            Err(_) => Err(End::Gone),
        }
    }

    /// Handles the frames that are there, as long as there is room for their answers. Answers whether
    /// the socket likely has more.
    fn handle_what_is_there(&mut self) -> Result<bool, End> {
        let mut current = match self.held.take() {
            Some(frame) => Some(frame),
            None => self.splitter.next()?,
        };
        let mut count = 0_usize;
        let mut result = Ok(());
        while let Some(frame) = current.take() {
            if self.connection.output.pending_full() {
                self.held = Some(frame);
                break;
            }
            count += 1;
            let next = self.splitter.next();
            let is_alone = matches!(next, Ok(None)) && count == 1;
            result = self.handle(frame, is_alone);
            if result.is_err() {
                break;
            }
            if self.batch.len() >= BATCH_BYTES {
                self.connection.output.send_batch(&mut self.batch);
            }
            current = match next {
                Ok(next) => next,
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            };
        }
        self.connection.output.send_batch(&mut self.batch);
        result?;
        // Who sends so much at a time has likely more to say.
        Ok(count >= 16 && self.held.is_none() && !self.connection.output.pending_full())
    }

    fn handle(&mut self, frame: Frame, is_alone: bool) -> Result<(), End> {
        let header = frame.header;
        match header.kind {
            Kind::Req => {
                if !self.ids.take(header.request_id) {
                    let why = format!("request id {} is even, or not new", header.request_id);
                    return Err(End::Tell(Failure::new(Reason::Protocol, why)));
                }
                let (prefix, message) = Prefix::decode(&frame.meta, header.flags)?;
                if self.connection.agreed.get().is_none() {
                    return self.greet(&header, message);
                }
                // Copying many bytes is better done beside the client than in turn with it.
                let moves_bytes = matches!(header.opcode, Opcode::READ | Opcode::WRITE);
                self.nearness.note(if is_alone && !moves_bytes { prefix.cpu } else { 0 });
                self.request(&header, prefix, message, frame.payload, is_alone);
                Ok(())
            }
            Kind::Cancel => {
                let message = "the request was withdrawn";
                self.connection.withdraw(header.request_id, Reason::Cancelled, message);
                Ok(())
            }
            Kind::Ping => {
                if header.flags & flag::ACK == 0 {
                    let answer = Header {
                        flags: flag::ACK,
                        payload_len: header.payload_len,
                        ..Header::new(Kind::Ping, Opcode::NONE, header.request_id)
                    };
                    self.batch.extend_from_slice(&answer.encode());
                    self.batch.extend_from_slice(&frame.payload);
                }
                Ok(())
            }
            // The client says that it will go; it does so by closing.
            Kind::GoAway => Ok(()),
            Kind::Res | Kind::Data | Kind::Credit => {
                let why = format!("a client sends no {:?}", header.kind);
                Err(End::Tell(Failure::new(Reason::Protocol, why)))
            }
        }
    }

    fn greet(&mut self, header: &Header, message: bytes::Bytes) -> Result<(), End> {
        if header.opcode != Opcode::HELLO {
            let why = "the first request has to be HELLO";
            return Err(End::Tell(Failure::new(Reason::Protocol, why)));
        }
        let connection = &self.connection;
        match hello::greet(connection, message) {
            Ok(greeted) => {
                self.splitter.set_limits(FrameLimits {
                    payload_bytes_max: greeted.agreed.payload_bytes_max,
                    meta_bytes_max: u16::MAX,
                    descriptors_max: 0,
                });
                connection.requests_max.store(greeted.reply.requests_max, Ordering::Relaxed);
                let is_first = connection.session.set(greeted.session).is_ok()
                    && connection.agreed.set(greeted.agreed).is_ok();
                debug_assert!(is_first, "HELLO is taken once");
                let answer = Answer::message(&greeted.reply);
                encode(&mut self.batch, header.request_id, Opcode::HELLO, Ok(answer));
                Ok(())
            }
            Err(failure) => {
                encode(&mut self.batch, header.request_id, Opcode::HELLO, Err(failure));
                connection.output.send_batch(&mut self.batch);
                Err(End::Quiet)
            }
        }
    }

    fn request(
        &mut self,
        header: &Header,
        prefix: Prefix,
        bytes: bytes::Bytes,
        payload: bytes::Bytes,
        is_alone: bool,
    ) {
        let connection = &self.connection;
        let core = connection.core();
        let (id, opcode) = (header.request_id, header.opcode);
        let timer = core.metrics.begin();
        let key = prefix.key.map(|key| Key { uid: connection.caller.uid, key });
        let digest = key.map(|_| digest(opcode, &bytes, &payload));
        let message = match Message::decode(opcode, bytes) {
            Ok(message) => message,
            Err(failure) => {
                encode(&mut self.batch, id, opcode, Err(failure));
                return;
            }
        };
        let cost_bytes = payload.len() as u64 + message.asked_bytes();
        let call = Call {
            caller: connection.caller.clone(),
            cancel: Arc::clone(&connection.ended),
            deadline: (prefix.deadline_ms > 0)
                .then(|| now() + Duration::from_millis(u64::from(prefix.deadline_ms))),
            trace_id: prefix.trace_id,
            connection: connection.number,
        };
        let mut place = message.place();
        let fits_one_frame = if let Message::Read(transfer) = &message
            && transfer.slot.is_none()
        {
            let agreed = connection.agreed.get();
            agreed.is_some_and(|agreed| transfer.len <= agreed.payload_bytes_max)
        } else {
            true
        };
        if place == Place::HereIfAlone {
            place = if is_alone && fits_one_frame { Place::Here } else { Place::Worker };
        }
        let mut request = Request {
            connection: Arc::clone(connection),
            id,
            opcode,
            message,
            payload,
            call,
            timer: Some(timer),
            flight: None,
            claim: None,
        };
        if let Err(failure) = self.admit(&mut request, place, cost_bytes) {
            let (status, _) = encode(&mut self.batch, id, opcode, Err(failure));
            request.tell(Note::default(), status);
            return;
        }
        if place == Place::Here {
            request.run_here(&mut self.batch);
            return;
        }
        match (key, digest) {
            (Some(key), Some(digest)) if request.message.changes() => {
                self.once(key, digest, request);
            }
            _ => request.submit(),
        }
    }

    /// Puts a request on the account, if there is credit for it.
    fn admit(&self, request: &mut Request, place: Place, cost_bytes: u64) -> Result<(), Failure> {
        let connection = &self.connection;
        if connection.draining.load(Ordering::Acquire) {
            return Err(Failure::new(Reason::Disconnected, "the daemon is stopping"));
        }
        let mut under_way = lock(&connection.under_way);
        let requests_max = connection.requests_max.load(Ordering::Relaxed);
        let bytes_max = connection.bytes_max.load(Ordering::Relaxed);
        let has_credit = under_way.flights.is_empty()
            || (u32::try_from(under_way.flights.len()).is_ok_and(|count| count < requests_max)
                && under_way.bytes + cost_bytes <= bytes_max);
        if !has_credit {
            drop(under_way);
            connection.core.metrics.credit_stalled();
            return Err(overloaded("more is under way than was agreed on"));
        }
        if place == Place::Here {
            return Ok(());
        }
        request.call.cancel = Arc::default();
        let flight = Arc::new(Flight::new(
            Arc::clone(&request.call.cancel),
            request.call.deadline,
            request.opcode,
            cost_bytes,
        ));
        under_way.flights.insert(request.id, Arc::clone(&flight));
        under_way.bytes += cost_bytes;
        request.flight = Some(flight);
        Ok(())
    }

    fn once(&self, key: Key, digest: [u8; 32], request: Request) {
        let core = self.connection.core();
        match core.once.begin(key, digest, request) {
            Begin::First(mut request) => {
                request.claim = Some(Claim { core: Arc::clone(core), key });
                request.submit();
            }
            Begin::Waits => {}
            Begin::Done(request, kept) => request.repeat(&kept),
            Begin::Differs(request) => {
                let failure = Failure::file(
                    librorum_format::ErrorKind::InvalidInput,
                    "the idempotency key was used for another request",
                );
                request.refuse(failure);
            }
        }
    }

    /// How long until a request that nobody has begun is late.
    fn next_deadline(&self) -> Option<Duration> {
        let under_way = lock(&self.connection.under_way);
        let next = under_way.flights.values().filter_map(|flight| flight.deadline).min()?;
        drop(under_way);
        // One that is late and being done already must not keep this thread busy.
        Some(next.saturating_duration_since(now()).max(Duration::from_millis(5)))
    }

    /// Answers requests whose time passed before anybody began them.
    fn answer_late(&self) {
        let under_way = lock(&self.connection.under_way);
        if under_way.flights.values().all(|flight| flight.deadline.is_none()) {
            return;
        }
        let now = now();
        let late: Vec<u64> = under_way
            .flights
            .iter()
            .filter(|(_, flight)| flight.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(&id, _)| id)
            .collect();
        drop(under_way);
        for id in late {
            let message = "the request's time was up before it began";
            self.connection.withdraw(id, Reason::DeadlineExceeded, message);
        }
    }
}

fn now() -> Instant {
    clock::instant()
}

/// Tells requests with the same key apart.
fn digest(opcode: Opcode, message: &[u8], payload: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&opcode.0.to_le_bytes());
    hasher.update(&(message.len() as u64).to_le_bytes());
    hasher.update(message);
    hasher.update(payload);
    *hasher.finalize().as_bytes()
}

/// Refuses a socket before it is a connection: by GOAWAY, if it takes it.
pub(super) fn refuse(stream: &UnixStream, failure: &Failure) {
    let meta = v1::GoAway { reason: Some(failure.to_message()) }.encode_to_vec();
    let header = Header {
        meta_len: u16::try_from(meta.len()).unwrap_or(0),
        ..Header::new(Kind::GoAway, Opcode::NONE, 0)
    };
    let mut frame = Vec::with_capacity(HEADER_LEN + meta.len());
    frame.extend_from_slice(&header.encode());
    frame.extend_from_slice(&meta);
    let sent = stream
        .set_nonblocking(true)
        .and_then(|()| socket::send(stream.as_fd(), &[std::io::IoSlice::new(&frame)], &[]));
    if let Err(error) = sent {
        tracing::debug!(%error, "refusing a connection");
    }
}
