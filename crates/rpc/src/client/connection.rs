//! One socket with any number of requests under way.
//!
//! No thread only reads: of the threads that wait for answers one leads, reads frames, and gives the
//! others theirs; when it has its own, another leads. A thread alone so pays one blocking write and
//! one blocking read for a request.
//!
//! Lock order: `reader` before `state` before a mailbox's `frames`; `writer` never while `state` is held.

mod mailbox;
mod request;

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use librorum_sys::{clock, socket};
use prost::Message;

use crate::failure::{Failure, Reason};
use crate::frame::{
    Credit, Frame, FrameError, HEADER_LEN, Header, Kind, Limits, Opcode, Splitter, flag,
};
use crate::proto::v1;
use mailbox::IdHasher;
pub(super) use mailbox::Mailbox;
pub(super) use request::Request;
use request::{check_lengths, encode, request_bytes};

/// How often a thread that waits looks whether its time is up.
const TICK: Duration = Duration::from_millis(500);

/// Who does not answer a PING for so long is gone (`docs/protocol.md`).
const PING_ANSWER: Duration = Duration::from_secs(10);

/// How long after its deadline a request's answer is awaited, which says `DeadlineExceeded`.
const GRACE: Duration = Duration::from_millis(500);

pub(super) struct Connection {
    stream: UnixStream,
    // Held while a frame is written, so that frames are not mixed.
    writer: Mutex<()>,
    reader: Mutex<Reader>,
    state: Mutex<State>,
    // When something was last received, in nanoseconds of the monotonic clock.
    heard: AtomicU64,
    // When the kernel was last asked whether the daemon is there.
    looked: AtomicU64,
}

struct Reader {
    splitter: Splitter,
    descriptors_max: usize,
    // The answer before came within `SPIN`, so that looking for it beats sleeping.
    was_quick: bool,
}

/// How long to look for an answer before sleeping. Being woken on a CPU that has gone idle costs more than
/// a whole request on virtual machines (design 0007); yielding meanwhile lets a daemon on the same CPU go
/// first.
const SPIN: Duration = Duration::from_micros(50);

struct State {
    next_id: u64,
    pending: HashMap<u64, Pending, BuildHasherDefault<IdHasher>>,
    leading: bool,
    parked: Vec<Arc<Mailbox>>,
    credit_awaited: bool,
    // How many answers came.
    answers: u64,
    requests_used: u32,
    bytes_used: u64,
    requests_max: u32,
    bytes_max: u64,
    going_away: Option<Failure>,
    ended: Option<Failure>,
    pinged: Option<Duration>,
    ping_after: Duration,
    stalled: u64,
}

/// A request whose RES has not come.
struct Pending {
    // None: nobody waits any more, but the RES will come.
    mailbox: Option<Arc<Mailbox>>,
    bytes: u64,
    // What its DATA frames may still carry.
    data_left: u64,
}

/// Where payload may be received to without a copy.
pub(super) trait Sink {
    /// The place for the payload of this frame, exactly as long as it, if there is one.
    fn room(&mut self, header: &Header) -> Option<&mut [u8]>;
}

/// Nothing is received anywhere but to a buffer of the connection.
pub(super) struct NoSink;

impl Sink for NoSink {
    fn room(&mut self, _header: &Header) -> Option<&mut [u8]> {
        None
    }
}

/// What a thread waited for.
#[derive(Debug)]
pub(super) enum Event {
    /// A frame.
    Frame(Frame),
    /// The payload of this one is in its [`Sink`].
    Received(Header),
}

enum Until {
    /// Something for this mailbox came.
    Mine,
    /// More answers came than so many: there may be credit.
    AnyAnswer(u64),
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn disconnected(message: impl Into<String>) -> Failure {
    Failure::new(Reason::Disconnected, message)
}

fn protocol(message: impl fmt::Display) -> Failure {
    Failure::new(Reason::Protocol, format!("the daemon does not keep to the protocol: {message}"))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Connection {
    /// Wraps a connected socket, which has not said HELLO.
    pub(super) fn new(stream: UnixStream) -> Result<Self, Failure> {
        stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(TICK)))
            .map_err(|error| disconnected(format!("the socket cannot be set up: {error}")))?;
        // Larger than the default, so that a whole payload goes with one call. Less is no error.
        for result in [
            rustix::net::sockopt::set_socket_send_buffer_size(&stream, 1 << 20),
            rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 1 << 20),
        ] {
            if let Err(error) = result {
                tracing::debug!(%error, "the socket keeps its buffers");
            }
        }
        Ok(Self {
            stream,
            writer: Mutex::new(()),
            reader: Mutex::new(Reader {
                splitter: Splitter::new(Limits::BEFORE_HELLO),
                descriptors_max: 0,
                was_quick: false,
            }),
            state: Mutex::new(State {
                next_id: 1,
                pending: HashMap::default(),
                leading: false,
                parked: Vec::new(),
                credit_awaited: false,
                answers: 0,
                requests_used: 0,
                bytes_used: 0,
                requests_max: 1,
                bytes_max: 0,
                going_away: None,
                ended: None,
                pinged: None,
                ping_after: Duration::MAX,
                stalled: 0,
            }),
            heard: AtomicU64::new(nanos(clock::monotonic())),
            looked: AtomicU64::new(0),
        })
    }

    /// Applies what HELLO agreed on.
    pub(super) fn agree(&self, reply: &v1::HelloReply) {
        let limits = Limits {
            payload_bytes_max: reply.payload_bytes_max,
            meta_bytes_max: u16::MAX,
            descriptors_max: u8::try_from(reply.descriptors_max).unwrap_or(u8::MAX),
        };
        let mut reader = lock(&self.reader);
        reader.splitter.set_limits(limits);
        reader.descriptors_max = usize::from(limits.descriptors_max);
        drop(reader);
        let mut state = lock(&self.state);
        state.requests_max = reply.requests_max.max(1);
        state.bytes_max = reply.bytes_max;
        if reply.ping_after_ms > 0 {
            state.ping_after = Duration::from_millis(u64::from(reply.ping_after_ms));
        }
    }

    /// Why the connection takes no more requests, if it does not.
    pub(super) fn closed(&self) -> Option<Failure> {
        let state = lock(&self.state);
        state.ended.clone().or_else(|| state.going_away.clone())
    }

    /// Whether the daemon is still at the other end. Asks the kernel, unless it did within 10 ms.
    pub(super) fn is_there(&self) -> bool {
        if self.closed().is_some() {
            return false;
        }
        let now = nanos(clock::monotonic());
        let looked = self.looked.load(Ordering::Relaxed);
        if now.saturating_sub(looked) < 10_000_000 {
            return true;
        }
        self.looked.store(now, Ordering::Relaxed);
        let mut polled =
            [rustix::event::PollFd::new(&self.stream, rustix::event::PollFlags::RDHUP)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut polled, Some(&at_once)) {
            Ok(0) | Err(_) => true,
            Ok(_) => {
                self.end(&disconnected("the daemon has closed the connection"));
                false
            }
        }
    }

    /// How often a request had to wait for credit.
    pub(super) fn stalled(&self) -> u64 {
        lock(&self.state).stalled
    }

    /// Sends a request; its answer comes to the mailbox. Waits for credit first, reading answers
    /// meanwhile. Answers the request's id.
    pub(super) fn submit(
        &self,
        mailbox: &Arc<Mailbox>,
        request: &Request<'_>,
    ) -> Result<u64, Failure> {
        let bytes = request_bytes(request);
        check_lengths(request)?;
        let id = loop {
            let begun = begin_in(&mut lock(&self.state), mailbox, bytes, u64::from(request.asks))?;
            match begun {
                Begun::Id(id) => break id,
                Begun::Full(answers) => {
                    self.step(mailbox, &mut NoSink, &Until::AnyAnswer(answers))?;
                }
            }
        };
        let mut out = Vec::with_capacity(HEADER_LEN + 32 + request.message.len());
        encode(&mut out, id, request)?;
        self.write(&out, request.payload)?;
        Ok(id)
    }

    /// Sends as many of the requests as there is credit for, at least one, with one write. Answers the
    /// first's id, and how many: their ids are consecutive odd numbers.
    pub(super) fn submit_some(
        &self,
        mailbox: &Arc<Mailbox>,
        requests: &[Request<'_>],
        has_pending: bool,
    ) -> Result<Option<(u64, usize)>, Failure> {
        requests.iter().try_for_each(check_lengths)?;
        let mut out = Vec::with_capacity(requests.len().min(256) * 96);
        let mut first = None;
        let mut count = 0;
        loop {
            let mut full = 0;
            let mut state = lock(&self.state);
            for request in requests {
                let bytes = request_bytes(request);
                match begin_in(&mut state, mailbox, bytes, u64::from(request.asks))? {
                    Begun::Id(id) => {
                        encode(&mut out, id, request)?;
                        out.extend_from_slice(request.payload);
                        first.get_or_insert(id);
                        count += 1;
                    }
                    Begun::Full(answers) => {
                        full = answers;
                        break;
                    }
                }
            }
            drop(state);
            match first {
                Some(first) => {
                    self.write(&out, &[])?;
                    return Ok(Some((first, count)));
                }
                None if has_pending => return Ok(None),
                None => self.step(mailbox, &mut NoSink, &Until::AnyAnswer(full)).map(drop)?,
            }
        }
    }

    /// The next frame for the mailbox.
    ///
    /// `until` is the time on the monotonic clock after which nothing is awaited any more.
    pub(super) fn wait(
        &self,
        mailbox: &Arc<Mailbox>,
        sink: &mut dyn Sink,
        until: Option<Duration>,
    ) -> Result<Event, Failure> {
        let give_up = until.map(|until| until + GRACE);
        loop {
            if give_up.is_some_and(|give_up| clock::monotonic() >= give_up) {
                // It may have been this thread's turn to lead.
                self.choose_leader();
                return Err(Failure::new(
                    Reason::DeadlineExceeded,
                    "the daemon did not answer in time",
                ));
            }
            if let Some(event) = self.step(mailbox, sink, &Until::Mine)? {
                return Ok(event);
            }
        }
    }

    /// Says that nobody waits for these requests, and tells the daemon.
    pub(super) fn abandon(&self, ids: &[u64]) {
        for &id in ids {
            let known = match lock(&self.state).pending.get_mut(&id) {
                Some(pending) => pending.mailbox.take().is_some(),
                None => false,
            };
            if known {
                self.cancel(id);
            }
        }
    }

    /// Says that nobody waits for this request, which is to be done nevertheless.
    pub(super) fn forget(&self, id: u64) {
        if let Some(pending) = lock(&self.state).pending.get_mut(&id) {
            pending.mailbox = None;
        }
    }

    /// Whether a request has no answer yet.
    pub(super) fn awaits(&self, id: u64) -> bool {
        lock(&self.state).pending.contains_key(&id)
    }

    /// Tells the daemon that a request is no longer wanted. Its answer comes nevertheless.
    pub(super) fn cancel(&self, id: u64) {
        if !lock(&self.state).pending.contains_key(&id) {
            return;
        }
        let header = Header::new(Kind::Cancel, Opcode::NONE, id);
        if let Err(failure) = self.write(&header.encode(), &[]) {
            // Then the answer to it says so, too.
            tracing::debug!(%failure, "a request could not be cancelled");
        }
    }

    /// Reads what is there, if nobody else does, so that PINGs are answered while nothing is under
    /// way; and sends a PING after a long silence, so that the daemon knows that we are here.
    pub(super) fn keep(&self) {
        {
            let mut state = lock(&self.state);
            if state.leading || state.ended.is_some() {
                return;
            }
            state.leading = true;
        }
        let mailbox = Mailbox::new();
        let result = self.lead(&mailbox, &mut NoSink, &Until::AnyAnswer(0), true);
        self.hand_over();
        if let Err(failure) = result {
            tracing::debug!(%failure, "an idle connection ended");
        }
    }

    /// One step towards something for this mailbox: leads, or waits until the leader has something.
    fn step(
        &self,
        mailbox: &Arc<Mailbox>,
        sink: &mut dyn Sink,
        until: &Until,
    ) -> Result<Option<Event>, Failure> {
        let mine = matches!(until, Until::Mine);
        if mine && let Some(frame) = mailbox.pop() {
            return Ok(Some(Event::Frame(frame)));
        }
        {
            let mut state = lock(&self.state);
            if let Some(failure) = &state.ended {
                let failure = failure.clone();
                drop(state);
                // The leader may have put something in before it met the end.
                return match if mine { mailbox.pop() } else { None } {
                    Some(frame) => Ok(Some(Event::Frame(frame))),
                    None => Err(failure),
                };
            }
            if let Until::AnyAnswer(seen) = until
                && state.answers != *seen
            {
                return Ok(None);
            }
            if state.leading {
                mailbox.attend();
                state.parked.push(Arc::clone(mailbox));
                // Whoever gives something from here on wakes this thread: what came before is seen
                // below, since it needs the lock of the state.
                drop(state);
                if !mine || mailbox.is_empty() {
                    std::thread::park_timeout(TICK);
                }
                let mut state = lock(&self.state);
                let chosen = match state.parked.iter().position(|other| Arc::ptr_eq(other, mailbox))
                {
                    Some(index) => {
                        state.parked.swap_remove(index);
                        false
                    }
                    None => true,
                };
                drop(state);
                let frame = if mine { mailbox.pop() } else { None };
                // Chosen to lead next, but done: somebody else has to.
                if chosen && (frame.is_some() || !mine) {
                    self.choose_leader();
                }
                return Ok(frame.map(Event::Frame));
            }
            state.leading = true;
        }
        // What came between the look into the mailbox and here. Who waits for something else, such as
        // credit, leaves it there: whatever is taken out must be answered.
        let result = match if mine { mailbox.pop() } else { None } {
            Some(frame) => Ok(Some(Event::Frame(frame))),
            None => self.lead(mailbox, sink, until, false),
        };
        self.hand_over();
        result
    }

    fn hand_over(&self) {
        lock(&self.state).leading = false;
        self.choose_leader();
    }

    /// Wakes a thread that is to lead, if nobody does.
    fn choose_leader(&self) {
        let next = {
            let mut state = lock(&self.state);
            if state.leading { None } else { state.parked.pop() }
        };
        if let Some(next) = next {
            next.wake();
        }
    }

    /// Reads frames until something for `mailbox` came, or a tick passed.
    fn lead(
        &self,
        mailbox: &Arc<Mailbox>,
        sink: &mut dyn Sink,
        until: &Until,
        only_what_is_there: bool,
    ) -> Result<Option<Event>, Failure> {
        let mut reader = lock(&self.reader);
        let result = self.read(&mut reader, mailbox, sink, until, only_what_is_there);
        drop(reader);
        if let Err(failure) = &result {
            self.end(failure);
        }
        result
    }

    fn read(
        &self,
        reader: &mut Reader,
        mailbox: &Arc<Mailbox>,
        sink: &mut dyn Sink,
        until: &Until,
        only_what_is_there: bool,
    ) -> Result<Option<Event>, Failure> {
        loop {
            while let Some(header) = reader.splitter.next_header().map_err(|error| bad(&error))? {
                if let Some(room) = sink.room(&header)
                    && let Some(have) = reader.splitter.divert(room)
                {
                    self.receive_exactly(&mut room[have..])?;
                    self.account(&header)?;
                    return Ok(Some(Event::Received(header)));
                }
                let Some(frame) = reader.splitter.next().map_err(|error| bad(&error))? else {
                    break;
                };
                let answers = frame.header.kind == Kind::Res;
                let mine = self.dispatch(frame, mailbox)?;
                match until {
                    Until::Mine => {
                        if let Some(frame) = mine {
                            return Ok(Some(Event::Frame(frame)));
                        }
                    }
                    Until::AnyAnswer(_) => {
                        if let Some(frame) = mine {
                            mailbox.push(frame);
                        }
                        if answers {
                            return Ok(None);
                        }
                    }
                }
            }
            if only_what_is_there && !self.readable()? {
                self.tick()?;
                return Ok(None);
            }
            let since = clock::monotonic();
            if reader.was_quick {
                while !self.readable()? && clock::monotonic() - since < SPIN {
                    std::thread::yield_now();
                }
            }
            let mut descriptors = Vec::new();
            let max = reader.descriptors_max;
            let space = reader.splitter.space();
            match socket::receive(self.stream.as_fd(), space, &mut descriptors, max) {
                Ok(0) => {
                    return Err(lock(&self.state)
                        .going_away
                        .clone()
                        .unwrap_or_else(|| disconnected("the daemon has closed the connection")));
                }
                Ok(n) => {
                    reader.splitter.filled(n, descriptors).map_err(|error| bad(&error))?;
                    let now = clock::monotonic();
                    reader.was_quick = now - since < SPIN;
                    // Only what waits for long looks at it, so the coarse answer is good enough.
                    self.heard.store(nanos(now), Ordering::Relaxed);
                }
                Err(error) if would_block(&error) => {
                    self.tick()?;
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(protocol(error));
                }
                Err(error) => {
                    return Err(disconnected(format!("reading from the daemon: {error}")));
                }
            }
        }
    }

    fn readable(&self) -> Result<bool, Failure> {
        let mut polled = [rustix::event::PollFd::new(&self.stream, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut polled, Some(&now)) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(disconnected(format!("waiting for the daemon: {error}"))),
        }
    }

    fn receive_exactly(&self, mut rest: &mut [u8]) -> Result<(), Failure> {
        while !rest.is_empty() {
            match socket::receive(self.stream.as_fd(), rest, &mut Vec::new(), 0) {
                Ok(0) => return Err(disconnected("the daemon stopped within a frame")),
                Ok(n) => {
                    rest = &mut rest[n..];
                    self.heard.store(nanos(clock::monotonic()), Ordering::Relaxed);
                }
                Err(error) if would_block(&error) => self.tick()?,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(protocol(error));
                }
                Err(error) => {
                    return Err(disconnected(format!("reading from the daemon: {error}")));
                }
            }
        }
        Ok(())
    }

    /// After a while without anything to read: is the daemon still there?
    fn tick(&self) -> Result<(), Failure> {
        let now = clock::monotonic();
        let heard = Duration::from_nanos(self.heard.load(Ordering::Relaxed));
        let silent = now.saturating_sub(heard);
        let mut state = lock(&self.state);
        match state.pinged {
            Some(pinged) if heard >= pinged => state.pinged = None,
            Some(pinged) if now.saturating_sub(pinged) > PING_ANSWER => {
                return Err(disconnected("the daemon does not answer any more"));
            }
            Some(_) => {}
            None if silent >= state.ping_after / 2 => {
                state.pinged = Some(now);
                drop(state);
                let id = 1;
                self.write(&Header::new(Kind::Ping, Opcode::NONE, id).encode(), &[])?;
            }
            None => {}
        }
        Ok(())
    }

    /// Takes the cost of a frame from what its request may still have, and gives its credit back if it
    /// is the last.
    fn account(&self, header: &Header) -> Result<Option<Arc<Mailbox>>, Failure> {
        let mut state = lock(&self.state);
        let id = header.request_id;
        match header.kind {
            Kind::Res => {
                let Some(pending) = state.pending.remove(&id) else {
                    return Err(protocol(format!(
                        "an answer to request {id}, which waits for none"
                    )));
                };
                if u64::from(header.payload_len) > pending.data_left.max(PLAIN_ANSWER_MAX) {
                    return Err(protocol(format!("more bytes than request {id} asked for")));
                }
                state.answers += 1;
                state.requests_used = state.requests_used.saturating_sub(1);
                state.bytes_used = state.bytes_used.saturating_sub(pending.bytes);
                if std::mem::take(&mut state.credit_awaited) {
                    for parked in &state.parked {
                        parked.wake();
                    }
                }
                Ok(pending.mailbox)
            }
            Kind::Data => {
                let Some(pending) = state.pending.get_mut(&id) else {
                    return Err(protocol(format!("bytes for request {id}, which waits for none")));
                };
                let len = u64::from(header.payload_len);
                if len > pending.data_left {
                    return Err(protocol(format!("more bytes than request {id} asked for")));
                }
                pending.data_left -= len;
                Ok(pending.mailbox.clone())
            }
            Kind::Req | Kind::Credit | Kind::Cancel | Kind::Ping | Kind::GoAway => Ok(None),
        }
    }

    /// Does what a frame asks, or gives it to whom it belongs. Answers it if that is `mine`.
    fn dispatch(&self, frame: Frame, mine: &Arc<Mailbox>) -> Result<Option<Frame>, Failure> {
        match frame.header.kind {
            Kind::Res | Kind::Data => match self.account(&frame.header)? {
                Some(mailbox) if Arc::ptr_eq(&mailbox, mine) => return Ok(Some(frame)),
                Some(mailbox) => mailbox.push(frame),
                None => {}
            },
            Kind::Credit => {
                let body = if frame.meta.is_empty() { &frame.payload } else { &frame.meta };
                let credit = Credit::decode(body).map_err(|error| bad(&error))?;
                let mut state = lock(&self.state);
                state.requests_max = credit.requests_max.max(1);
                state.bytes_max = credit.bytes_max;
            }
            Kind::Ping if frame.header.flags & flag::ACK != 0 => {}
            Kind::Ping => {
                let header = Header { flags: flag::ACK, ..frame.header };
                self.write(&header.encode(), &frame.payload)?;
            }
            Kind::GoAway => {
                let said = v1::GoAway::decode(frame.meta).ok().and_then(|goaway| goaway.reason);
                let mut failure = said.map_or_else(
                    || disconnected("the daemon takes no further request"),
                    |error| Failure::from_message(&error),
                );
                // Whatever its reason, for a request it means: try on another connection.
                failure.reason = Reason::Disconnected;
                lock(&self.state).going_away = Some(failure);
            }
            Kind::Req | Kind::Cancel => {
                return Err(protocol(format!("a {:?} frame", frame.header.kind)));
            }
        }
        Ok(None)
    }

    /// Writes a whole frame, or several.
    fn write(&self, head: &[u8], payload: &[u8]) -> Result<(), Failure> {
        let writer = lock(&self.writer);
        let mut head = head;
        let mut payload = payload;
        while !head.is_empty() || !payload.is_empty() {
            let parts = [IoSlice::new(head), IoSlice::new(payload)];
            match socket::send(self.stream.as_fd(), &parts, &[]) {
                Ok(sent) => {
                    let of_head = sent.min(head.len());
                    head = &head[of_head..];
                    payload = &payload[sent - of_head..];
                }
                Err(error) => {
                    drop(writer);
                    // What the daemon sent before it closed may say why.
                    let failure = disconnected(format!("writing to the daemon: {error}"));
                    let failure = lock(&self.state).going_away.clone().unwrap_or(failure);
                    self.end(&failure);
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// Ends the connection for everybody.
    pub(super) fn end(&self, failure: &Failure) {
        let parked = {
            let mut state = lock(&self.state);
            if state.ended.is_none() {
                state.ended = Some(failure.clone());
            }
            std::mem::take(&mut state.parked)
        };
        if let Err(error) = self.stream.shutdown(std::net::Shutdown::Both) {
            tracing::debug!(%error, "a socket was closed by the other side first");
        }
        for mailbox in parked {
            mailbox.wake();
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// What the RES of a request other than READ may carry: as much as the protocol ever allows.
const PLAIN_ANSWER_MAX: u64 = 1 << 20;

fn bad(error: &FrameError) -> Failure {
    protocol(error)
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

enum Begun {
    Id(u64),
    // No credit; so many answers had come by then.
    Full(u64),
}

/// Takes credit and an id for a request of so many bytes, whose answer has so many.
fn begin_in(
    state: &mut State,
    mailbox: &Arc<Mailbox>,
    bytes: u64,
    data: u64,
) -> Result<Begun, Failure> {
    if let Some(failure) = state.ended.as_ref().or(state.going_away.as_ref()) {
        return Err(failure.clone());
    }
    let fits = state.requests_used < state.requests_max
        && state.bytes_used.saturating_add(bytes) <= state.bytes_max;
    // A single request may always be made.
    if !fits && state.requests_used > 0 {
        state.stalled += 1;
        state.credit_awaited = true;
        return Ok(Begun::Full(state.answers));
    }
    state.requests_used += 1;
    state.bytes_used = state.bytes_used.saturating_add(bytes);
    let id = state.next_id;
    state.next_id += 2;
    let pending = Pending { mailbox: Some(Arc::clone(mailbox)), bytes, data_left: data };
    state.pending.insert(id, pending);
    Ok(Begun::Id(id))
}

/// The failure that an answer is, if it is one.
pub(super) fn failure_of(header: &Header, meta: &Bytes) -> Option<Failure> {
    if header.status == 0 {
        return None;
    }
    let failure = match v1::Error::decode(meta.clone()) {
        Ok(error) if error.code != 0 => Failure::from_message(&error),
        _ => Failure::new(
            crate::failure::reason_of_code(u32::from(header.status)),
            "the daemon did not say why",
        ),
    };
    Some(failure)
}
