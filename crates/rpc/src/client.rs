//! The client: one set of methods for every way to a daemon.
//!
//! [`Client::connect`] takes a Unix socket, on which frames are spoken, a socket that is connected
//! already, or an address of gRPC. Small operations are methods that take and return the messages of
//! the schema. Contents go through [`RemoteFile`] and [`Upload`], which take the fastest way that both
//! sides allow and note why it is not a faster one ([`Client::transports`]).
//!
//! No method answers fresh memory for contents: they go to the caller's buffer, a pooled one, or a
//! mapping. A `Client` is cheap to clone and may be used by any number of threads; none of its own
//! reads for it. Over gRPC it must not be used inside of an asynchronous runtime.

mod backoff;
mod call;
mod connection;
#[cfg(feature = "grpc")]
mod grpc;
mod leases;
mod listing;
mod operations;
mod pipeline;
mod read;
mod session;
mod transport;
mod trust;
mod write;

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use librorum_sys::{clock, entropy};

pub use call::{CallOptions, Cancel};
pub use listing::Listing;
pub use pipeline::{Answers, Pipeline, Ticket};
pub use read::{Mapped, RemoteFile};
pub use transport::{Transport, TransportUse};
pub use write::{Upload, WriteOptions};

use crate::buffer::BufferPool;
use crate::failure::{Failure, Reason};
use crate::frame::PAYLOAD_LEN_DEFAULT;
use backoff::Backoff;
use connection::{disconnected, lock};
use leases::Leases;
use session::{Session, Way};
use transport::Uses;

/// How often an idle client looks after its connections: well within the 10 seconds in which a PING
/// has to be answered.
const KEEP_EVERY: Duration = Duration::from_secs(3);

/// Where a daemon is.
#[derive(Debug)]
pub enum Target {
    /// Its socket on this machine; frames are spoken.
    Socket(PathBuf),
    /// A socket that is connected to it, such as one end of a pair. It is used until it ends.
    Connected(UnixStream),
    /// gRPC: `http://host:port`, `https://host:port`, or `unix:/path`.
    Grpc(String),
}

/// What proves who is who over TLS.
#[derive(Clone, Default)]
pub struct Tls {
    /// Certificates of the authorities to believe, in PEM; those of the machine if there are none.
    pub authorities: Vec<u8>,
    /// This client's certificate and its key, in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that the daemon's certificate has, if it is not the address's.
    pub server_name: Option<String>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is a secret.
        formatter
            .debug_struct("Tls")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// How a client behaves.
#[derive(Clone)]
pub struct ClientOptions {
    /// Program and version, for the daemon's log.
    pub name: String,
    /// What the daemon may ask for beside the user: bearer token of gRPC, token of HELLO.
    pub token: Bytes,
    /// A user, beside root and this process's, whose daemon is trusted.
    pub expected_uid: Option<u32>,
    /// Ways that bytes must not take.
    pub forbid: Vec<Transport>,
    /// The longest payload of a frame to agree on.
    pub payload_bytes_max: u32,
    /// The most requests to have under way.
    pub requests_max: u32,
    /// How long to wait for a connection and its HELLO.
    pub connect_timeout: Duration,
    /// How long to try again what can be tried again, when the connection is lost or the daemon has
    /// too much to do. Zero: not at all.
    pub retry_for: Duration,
    /// What each call has, unless [`Client::with`] says otherwise.
    pub call: CallOptions,
    /// For `https`.
    pub tls: Option<Tls>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            name: concat!("librorum-rpc ", env!("CARGO_PKG_VERSION")).to_owned(),
            token: Bytes::new(),
            expected_uid: None,
            forbid: Vec::new(),
            payload_bytes_max: PAYLOAD_LEN_DEFAULT,
            requests_max: 256,
            connect_timeout: Duration::from_secs(10),
            retry_for: Duration::from_secs(10),
            call: CallOptions::default(),
            tls: None,
        }
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret.
        formatter
            .debug_struct("ClientOptions")
            .field("name", &self.name)
            .field("forbid", &self.forbid)
            .finish_non_exhaustive()
    }
}

impl ClientOptions {
    fn allows(&self, transport: Transport) -> bool {
        !self.forbid.contains(&transport)
    }
}

/// A daemon, to be asked.
///
/// ```no_run
/// use librorum_rpc::client::{Client, ClientOptions, Target, WriteOptions};
/// use librorum_rpc::proto::v1;
///
/// let target = Target::Socket("/run/librorum/socket".into());
/// let client = Client::connect(target, ClientOptions::default())?;
/// let upload = client.create("", b"notes/today", WriteOptions::default())?;
/// upload.write_at(0, b"words")?;
/// upload.commit()?;
/// let file = client.open("", b"notes/today")?;
/// let mut words = [0; 5];
/// file.read_into(0, &mut words)?;
/// # Ok::<(), librorum_rpc::Failure>(())
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    call: CallOptions,
}

struct Inner {
    backend: Backend,
    options: ClientOptions,
    buffers: BufferPool,
    leases: Leases,
    uses: Uses,
    // Idempotency keys: random for the client, counted within it.
    key_base: [u8; 8],
    key_next: AtomicU64,
    stop: Arc<(Mutex<bool>, Condvar)>,
}

enum Backend {
    Frames(Frames),
    #[cfg(feature = "grpc")]
    Grpc(grpc::Grpc),
}

struct Frames {
    way: Way,
    session: Mutex<Option<Arc<Session>>>,
}

impl Client {
    /// Connects to a daemon.
    ///
    /// # Errors
    ///
    /// [`Reason::Disconnected`] if nobody answers, [`Reason::AccessDenied`] if who answers is not to be
    /// trusted, [`Reason::Protocol`] if it is no daemon; [`Reason::Unimplemented`] for gRPC where the
    /// program was built without it.
    pub fn connect(target: Target, options: ClientOptions) -> Result<Self, Failure> {
        let call = options.call.clone();
        let backend = match target {
            Target::Socket(path) => Backend::frames(Way::Path(path), &options)?,
            Target::Connected(stream) => {
                Backend::frames(Way::Pair(Mutex::new(Some(stream))), &options)?
            }
            #[cfg(feature = "grpc")]
            Target::Grpc(address) => Backend::Grpc(grpc::Grpc::connect(&address, &options)?),
            #[cfg(not(feature = "grpc"))]
            Target::Grpc(_) => {
                return Err(Failure::new(
                    Reason::Unimplemented,
                    "this program was built without gRPC",
                ));
            }
        };
        let inner = Arc::new(Inner {
            backend,
            options,
            buffers: BufferPool::new(16),
            leases: Leases::new(),
            uses: Uses::new(),
            key_base: entropy::random(),
            key_next: AtomicU64::new(0),
            stop: Arc::new((Mutex::new(false), Condvar::new())),
        });
        if matches!(inner.backend, Backend::Frames(_)) {
            keep(&inner)?;
        }
        Ok(Self { inner, call })
    }

    /// Connects to the first of these that answers; why the ones before it did not is noted in
    /// [`Self::transports`].
    ///
    /// # Errors
    ///
    /// The last one's, as [`Self::connect`].
    pub fn connect_any(
        targets: impl IntoIterator<Item = Target>,
        options: &ClientOptions,
    ) -> Result<Self, Failure> {
        let mut last: Option<Failure> = None;
        for target in targets {
            let name = format!("{target:?}");
            match Self::connect(target, options.clone()) {
                Ok(client) => {
                    if let Some(why) = last {
                        let transport = client.slowest();
                        let why = Some(why.message);
                        client.inner.uses.note("CONNECT", name.as_bytes(), transport, 0, why);
                    }
                    return Ok(client);
                }
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| disconnected("there is nothing to connect to")))
    }

    /// Connects to a gRPC address, and goes on over the socket of the same daemon if that is on this
    /// machine. That it is the same one only a handshake shows, which names the same process; if there
    /// is none, [`Self::transports`] says why.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`].
    pub fn connect_nearest(address: &str, options: &ClientOptions) -> Result<Self, Failure> {
        use std::os::unix::ffi::OsStringExt;
        let far = Self::connect(Target::Grpc(address.to_owned()), options.clone())?;
        let found = far.capabilities(&crate::proto::v1::CapabilitiesRequest {})?;
        let why = if found.socket_path.is_empty() {
            "the daemon has no socket".to_owned()
        } else {
            let path = PathBuf::from(std::ffi::OsString::from_vec(found.socket_path.to_vec()));
            let near = Self::connect(Target::Socket(path), options.clone());
            match near.and_then(|near| near.instance().map(|instance| (near, instance))) {
                Ok((near, instance)) if instance == found.instance => return Ok(near),
                Ok(_) => "the socket of this machine is another daemon's".to_owned(),
                Err(failure) => failure.message,
            }
        };
        far.inner.uses.note("CONNECT", address.as_bytes(), Transport::Grpc, 0, Some(why));
        Ok(far)
    }

    /// The same client, whose calls have these options.
    #[must_use]
    pub fn with(&self, call: CallOptions) -> Self {
        Self { inner: Arc::clone(&self.inner), call }
    }

    /// The name of the daemon's process, 16 bytes.
    ///
    /// # Errors
    ///
    /// If it cannot be reached.
    pub fn instance(&self) -> Result<Bytes, Failure> {
        match &self.inner.backend {
            Backend::Frames(_) => Ok(self.session()?.reply.instance.clone()),
            #[cfg(feature = "grpc")]
            Backend::Grpc(_) => {
                Ok(self.capabilities(&crate::proto::v1::CapabilitiesRequest {})?.instance)
            }
        }
    }

    /// How the newest operations moved their bytes, and why not in a faster way; oldest first.
    #[must_use]
    pub fn transports(&self) -> Vec<TransportUse> {
        self.inner.uses.all()
    }

    /// How often a request had to wait for credit on this connection to the daemon.
    #[must_use]
    pub fn credits_stalled(&self) -> u64 {
        match &self.inner.backend {
            Backend::Frames(frames) => {
                lock(&frames.session).as_ref().map_or(0, |session| session.control.stalled())
            }
            #[cfg(feature = "grpc")]
            Backend::Grpc(_) => 0,
        }
    }

    /// How many descriptors the daemon has lent that are kept for the next reads.
    #[must_use]
    pub fn lent_descriptors(&self) -> usize {
        self.inner.leases.len()
    }

    fn slowest(&self) -> Transport {
        match &self.inner.backend {
            Backend::Frames(_) => Transport::Inline,
            #[cfg(feature = "grpc")]
            Backend::Grpc(_) => Transport::Grpc,
        }
    }

    /// The session with the daemon; a new one if the last has ended.
    fn session(&self) -> Result<Arc<Session>, Failure> {
        match &self.inner.backend {
            Backend::Frames(frames) => frames.session(&self.inner),
            #[cfg(feature = "grpc")]
            Backend::Grpc(_) => {
                Err(Failure::new(Reason::Unimplemented, "gRPC knows no sessions of frames"))
            }
        }
    }

    /// A key that no other request has.
    fn fresh_key(&self) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.inner.key_base);
        let count = self.inner.key_next.fetch_add(1, Ordering::Relaxed);
        key[8..].copy_from_slice(&count.to_le_bytes());
        key
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("options", &self.inner.options)
            .finish_non_exhaustive()
    }
}

impl Backend {
    fn frames(way: Way, options: &ClientOptions) -> Result<Self, Failure> {
        let session = Session::begin(&way, options)?;
        Ok(Self::Frames(Frames { way, session: Mutex::new(Some(Arc::new(session))) }))
    }
}

impl Frames {
    fn session(&self, inner: &Inner) -> Result<Arc<Session>, Failure> {
        let mut session = lock(&self.session);
        if let Some(session) = &*session
            && session.control.closed().is_none()
        {
            return Ok(Arc::clone(session));
        }
        // Whatever the daemon kept for the old one is void: also the right to its descriptors.
        *session = None;
        inner.leases.clear();
        let mut backoff = Backoff::new(inner.options.retry_for);
        loop {
            match Session::begin(&self.way, &inner.options) {
                Ok(begun) => {
                    let begun = Arc::new(begun);
                    *session = Some(Arc::clone(&begun));
                    return Ok(begun);
                }
                Err(failure) => match backoff.next(0) {
                    Some(wait)
                        if failure.reason == Reason::Disconnected
                            && matches!(self.way, Way::Path(_)) =>
                    {
                        clock::sleep(wait);
                    }
                    _ => return Err(failure),
                },
            }
        }
    }
}

/// Looks after the connections while nothing is under way.
fn keep(inner: &Arc<Inner>) -> Result<(), Failure> {
    let weak: Weak<Inner> = Arc::downgrade(inner);
    let stop = Arc::clone(&inner.stop);
    let body = move || {
        loop {
            let stopped = lock(&stop.0);
            let (stopped, _) = stop
                .1
                .wait_timeout_while(stopped, KEEP_EVERY, |stopped| !*stopped)
                .unwrap_or_else(PoisonError::into_inner);
            if *stopped {
                return;
            }
            drop(stopped);
            let Some(inner) = weak.upgrade() else { return };
            if let Backend::Frames(frames) = &inner.backend {
                let session = lock(&frames.session).clone();
                if let Some(session) = session {
                    session.keep();
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("librorum-keep".to_owned())
        .spawn(body)
        .map(drop)
        .map_err(|error| Failure::new(Reason::Internal, format!("starting a thread: {error}")))
}

impl Drop for Inner {
    fn drop(&mut self) {
        *lock(&self.stop.0) = true;
        self.stop.1.notify_all();
    }
}
