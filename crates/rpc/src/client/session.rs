//! What the daemon keeps for a client: a control connection, one for bulk bytes, an arena.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use librorum_sys::arena::Arena;
use librorum_sys::clock;
use prost::Message;

pub(super) use super::connection::Request;
use super::connection::{Connection, Event, Mailbox, NoSink, disconnected, failure_of, lock};
use super::trust::Trusted;
use super::{ClientOptions, Transport};
use crate::failure::{Failure, Reason};
use crate::frame::{Frame, Kind, Opcode, Prefix, feature};
use crate::proto::v1;

/// Where a session's connections lead.
pub(super) enum Way {
    Path(PathBuf),
    /// A pair's end: there is one connection, and no other after it.
    Pair(Mutex<Option<UnixStream>>),
}

pub(super) struct Session {
    pub(super) control: Arc<Connection>,
    pub(super) reply: v1::HelloReply,
    bulk: Mutex<Option<Arc<Connection>>>,
    arena: Mutex<ArenaState>,
    // Where to open the bulk connection; none for a pair.
    path: Option<PathBuf>,
    hello: v1::Hello,
    trusted: Trusted,
    connect_timeout: Duration,
}

enum ArenaState {
    Untried,
    Open(Arc<Slots>),
    Refused(String),
}

/// The arena's slots, and which of them nobody uses.
pub(super) struct Slots {
    pub(super) arena: Arena,
    free: Mutex<Vec<u32>>,
}

impl Slots {
    pub(super) fn take(&self) -> Option<u32> {
        lock(&self.free).pop()
    }

    /// Gives a slot back. Only if no request names it any more.
    pub(super) fn give_back(&self, slot: u32) {
        lock(&self.free).push(slot);
    }
}

impl Session {
    pub(super) fn begin(way: &Way, options: &ClientOptions) -> Result<Self, Failure> {
        let trusted = Trusted::new(options.expected_uid);
        let (stream, path) = match way {
            Way::Path(path) => {
                trusted.check_path(path)?;
                (open(path)?, Some(path.clone()))
            }
            Way::Pair(stream) => match lock(stream).take() {
                Some(stream) => (stream, None),
                None => return Err(disconnected("the socket pair has ended")),
            },
        };
        trusted.check_peer(&stream)?;
        let mut features = 0;
        if options.allows(Transport::Descriptor) {
            features |= feature::FD_READ | feature::FD_WRITE;
        }
        if options.allows(Transport::Arena) {
            features |= feature::ARENA;
        }
        let hello = v1::Hello {
            version_min: 1,
            version_max: 1,
            features,
            payload_bytes_max: options.payload_bytes_max,
            requests_max: options.requests_max,
            descriptors_max: 16,
            client: options.name.clone(),
            session: 0,
            session_secret: bytes::Bytes::new(),
            token: options.token.clone(),
        };
        let control = Connection::new(stream)?;
        let reply = greet(&control, &hello, options.connect_timeout)?;
        Ok(Self {
            control: Arc::new(control),
            reply,
            bulk: Mutex::new(None),
            arena: Mutex::new(ArenaState::Untried),
            path,
            hello,
            trusted,
            connect_timeout: options.connect_timeout,
        })
    }

    pub(super) fn has(&self, feature: u64) -> bool {
        self.reply.features & feature != 0
    }

    /// The most bytes that a frame carries.
    pub(super) fn payload_bytes_max(&self) -> usize {
        usize::try_from(self.reply.payload_bytes_max).unwrap_or(usize::MAX)
    }

    /// The connection for bytes, so that control messages never wait behind them.
    pub(super) fn bulk(&self) -> Result<Arc<Connection>, Failure> {
        let Some(path) = &self.path else { return Ok(Arc::clone(&self.control)) };
        let mut bulk = lock(&self.bulk);
        if let Some(connection) = &*bulk
            && connection.closed().is_none()
        {
            return Ok(Arc::clone(connection));
        }
        self.trusted.check_path(path)?;
        let stream = open(path)?;
        self.trusted.check_peer(&stream)?;
        let hello = v1::Hello {
            session: self.reply.session,
            session_secret: self.reply.session_secret.clone(),
            ..self.hello.clone()
        };
        let connection = Connection::new(stream)?;
        let reply = greet(&connection, &hello, self.connect_timeout)?;
        if reply.instance != self.reply.instance || reply.session != self.reply.session {
            let failure = disconnected("another daemon has taken this one's place");
            // Its handles are not this session's: whoever waits has to begin again.
            self.control.end(&failure);
            return Err(failure);
        }
        let connection = Arc::new(connection);
        *bulk = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// The shared memory, or why there is none.
    pub(super) fn slots(&self) -> Result<Arc<Slots>, String> {
        let mut state = lock(&self.arena);
        match &*state {
            ArenaState::Open(slots) => return Ok(Arc::clone(slots)),
            ArenaState::Refused(why) => return Err(why.clone()),
            ArenaState::Untried => {}
        }
        let opened = if self.has(feature::ARENA) {
            self.open_arena().map_err(|failure| failure.message)
        } else {
            Err("the daemon and this client did not agree on an arena".to_owned())
        };
        *state = match &opened {
            Ok(slots) => ArenaState::Open(Arc::clone(slots)),
            Err(why) => ArenaState::Refused(why.clone()),
        };
        opened
    }

    fn open_arena(&self) -> Result<Arc<Slots>, Failure> {
        let request = v1::ArenaOpenRequest { slot_bytes: 0, slot_count: 0 };
        let until = clock::monotonic() + self.connect_timeout;
        let mut frame = call(
            &self.control,
            &Request {
                opcode: Opcode::ARENA_OPEN,
                prefix: Prefix::default(),
                message: &request.encode_to_vec(),
                payload: &[],
                asks: 0,
            },
            Some(until),
        )?;
        let response: v1::ArenaOpenResponse = decode(&frame)?;
        let descriptor = match frame.descriptors.pop() {
            Some(descriptor) if frame.descriptors.is_empty() => descriptor,
            _ => return Err(Failure::new(Reason::Protocol, "an arena needs one descriptor")),
        };
        if response.slot_count > 64
            || u64::from(response.slot_bytes) * u64::from(response.slot_count) > 16 << 20
        {
            return Err(Failure::new(Reason::Protocol, "the arena is larger than any can be"));
        }
        let arena = Arena::open(descriptor, response.slot_bytes, response.slot_count)
            .map_err(|error| Failure::new(Reason::Protocol, error.to_string()))?;
        let free = Mutex::new((0..response.slot_count).rev().collect());
        Ok(Arc::new(Slots { arena, free }))
    }

    /// Answers PINGs on connections that nobody uses.
    pub(super) fn keep(&self) {
        self.control.keep();
        let bulk = lock(&self.bulk).clone();
        if let Some(bulk) = bulk {
            bulk.keep();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let failure = disconnected("the client has closed the session");
        self.control.end(&failure);
        if let Some(bulk) = &*lock(&self.bulk) {
            bulk.end(&failure);
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("reply", &self.reply).finish_non_exhaustive()
    }
}

fn open(path: &std::path::Path) -> Result<UnixStream, Failure> {
    UnixStream::connect(path)
        .map_err(|error| disconnected(format!("connecting to {}: {error}", path.display())))
}

/// Says HELLO and applies the answer.
fn greet(
    connection: &Connection,
    hello: &v1::Hello,
    timeout: Duration,
) -> Result<v1::HelloReply, Failure> {
    let request = Request {
        opcode: Opcode::HELLO,
        prefix: Prefix::default(),
        message: &hello.encode_to_vec(),
        payload: &[],
        asks: 0,
    };
    let frame = call(connection, &request, Some(clock::monotonic() + timeout))?;
    let reply: v1::HelloReply = decode(&frame)?;
    let wrong = |what| Err(Failure::new(Reason::Protocol, format!("in its HELLO {what}")));
    if reply.version != 1 {
        return wrong("the daemon chose a version that was not offered");
    }
    if reply.features & !hello.features != 0 {
        return wrong("the daemon chose features that were not offered");
    }
    if reply.instance.len() != 16 {
        return wrong("the daemon has no name");
    }
    if reply.payload_bytes_max > hello.payload_bytes_max
        || reply.payload_bytes_max < 4096
        || reply.descriptors_max > hello.descriptors_max
    {
        return wrong("the daemon set limits beyond what was offered");
    }
    connection.agree(&reply);
    Ok(reply)
}

/// Sends a request and waits for its answer, which has no DATA.
pub(super) fn call(
    connection: &Connection,
    request: &Request<'_>,
    until: Option<Duration>,
) -> Result<Frame, Failure> {
    let mailbox = Mailbox::new();
    let id = connection.submit(&mailbox, request)?;
    finish(connection, &mailbox, id, until)
}

/// Waits for the answer to a request that has no DATA.
pub(super) fn finish(
    connection: &Connection,
    mailbox: &Arc<Mailbox>,
    id: u64,
    until: Option<Duration>,
) -> Result<Frame, Failure> {
    match connection.wait(mailbox, &mut NoSink, until) {
        Ok(Event::Frame(frame)) if frame.header.kind == Kind::Res => {
            match failure_of(&frame.header, &frame.meta) {
                Some(failure) => Err(failure),
                None => Ok(frame),
            }
        }
        Ok(_) => {
            let failure = Failure::new(Reason::Protocol, "bytes that were not asked for");
            connection.end(&failure);
            Err(failure)
        }
        Err(failure) => {
            connection.abandon(&[id]);
            Err(failure)
        }
    }
}

/// The control message of an answer.
pub(super) fn decode<M: Message + Default>(frame: &Frame) -> Result<M, Failure> {
    M::decode(frame.meta.clone()).map_err(|error| {
        Failure::new(
            Reason::Protocol,
            format!("the answer to {:?} cannot be read: {error}", frame.header.opcode),
        )
    })
}
