//! The server of frames (`docs/protocol.md`).
//!
//! Each connection has a thread, which does what is quick and never waits for a client; what may wait
//! for a disk goes to a bounded pool of workers, where connections take turns. What a client may take of
//! memory, descriptors and threads is counted, and what is beyond is refused with a time to try again.
//! When a connection ends, whatever it was doing, everything that was its own is let go.

mod connection;
mod hello;
mod ids;
mod ledger;
mod listen;
mod message;
mod nearness;
mod once;
mod operations;
mod output;
mod pool;
mod reading;
mod request;
mod session;
mod writing;

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_rpc::frame::{Credit, PAYLOAD_LEN_DEFAULT, feature};
use librorum_rpc::{Failure, Reason};
use librorum_sys::{clock, socket};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::admin::Admin;
use crate::lock;
use crate::metrics::Metrics;
use crate::service::{Caller, Service};

pub use listen::{Access, BindError, bind};

use connection::Connection;
use ledger::{ConnectionShare, Ledger};
use once::Once;
use output::Buffers;
use pool::{Pool, PoolLimits};
use session::Sessions;

/// How much clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections, in all.
    pub connections_max: usize,
    /// Connections of one user.
    pub connections_per_user_max: usize,
    /// Payload of one frame.
    pub payload_bytes_max: u32,
    /// Requests that a connection has under way.
    pub requests_max: u32,
    /// Their bytes.
    pub bytes_max: u64,
    /// Descriptors in one frame. More would make one answer fail where each is one too many for the
    /// receiver.
    pub descriptors_max: u8,
    /// Descriptors that a session was lent and has not given back.
    pub leases_max: u32,
    /// Files that a session has open.
    pub handles_max: usize,
    /// Uploads that a session has under way.
    pub uploads_max: usize,
    /// Shared memory, in all.
    pub arena_bytes_max: u64,
    /// Shared memory of one user.
    pub arena_bytes_per_user_max: u64,
    /// Threads for what may wait.
    pub workers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_per_user_max: 256,
            payload_bytes_max: PAYLOAD_LEN_DEFAULT,
            requests_max: 256,
            bytes_max: 4 << 20,
            descriptors_max: 16,
            leases_max: 256,
            handles_max: 4096,
            uploads_max: 256,
            arena_bytes_max: 512 << 20,
            arena_bytes_per_user_max: 128 << 20,
            // Mostly they wait for the disk; with fewer, fsyncs of several clients would queue.
            workers_max: 32,
        }
    }
}

/// Users and groups that may connect.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Users. Root and the daemon's own may always.
    pub uids: Vec<u32>,
    /// Groups.
    pub gids: Vec<u32>,
}

/// How a server serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who may connect; everybody who can open the socket if it is not said.
    pub allowed: Option<Allowed>,
    /// With it, everybody else may, too.
    pub token: Option<Vec<u8>>,
    /// Of `librorum_rpc::frame::feature`.
    pub features: u64,
    /// Where clients find gRPC, if they cannot use frames.
    pub grpc_address: String,
    /// What clients may take.
    pub limits: Limits,
    /// How long requests may go on when the server stops.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allowed: None,
            token: None,
            features: feature::FD_READ | feature::FD_WRITE | feature::ARENA,
            grpc_address: String::new(),
            limits: Limits::default(),
            grace: Duration::from_secs(10),
        }
    }
}

/// What all connections share.
struct Core {
    service: Service,
    admin: Admin,
    metrics: Metrics,
    options: Options,
    limits: Limits,
    ledger: Arc<Ledger>,
    sessions: Sessions,
    once: Once,
    workers: Pool,
    /// For requests that are made to wait: they take no thread from those that only may.
    waiters: Pool,
    buffers: Arc<Buffers>,
    next_connection: AtomicU64,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    /// The number of [`Self::connections`] has changed.
    changed: Condvar,
    stopping: AtomicBool,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Too much is under way: what makes sense is to try again soon.
fn overloaded(why: &str) -> Failure {
    /// About what the requests that are under way take.
    const RETRY_AFTER_MS: u32 = 20;
    Failure { retry_after_ms: RETRY_AFTER_MS, ..Failure::new(Reason::Overloaded, why) }
}

impl Core {
    fn add(&self, connection: &Arc<Connection>) {
        lock(&self.connections).insert(connection.number(), Arc::clone(connection));
        if self.stopping.load(Ordering::SeqCst) {
            connection.drain();
        }
    }

    fn remove(&self, number: u64) {
        let removed = lock(&self.connections).remove(&number);
        drop(removed);
        self.changed.notify_all();
    }

    fn all(&self) -> Vec<Arc<Connection>> {
        lock(&self.connections).values().cloned().collect()
    }

    /// Waits until all connections have ended, or some time has passed.
    fn wait_for_all(&self, patience: Duration) -> bool {
        let end = clock::monotonic() + patience;
        let mut connections = lock(&self.connections);
        while !connections.is_empty() {
            let Some(left) = end.checked_sub(clock::monotonic()) else { return false };
            connections = self
                .changed
                .wait_timeout(connections, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Whether a user needs no token.
    fn knows(&self, caller: &Caller) -> bool {
        let Some(allowed) = &self.options.allowed else { return true };
        self.service.may_lend(caller)
            || allowed.uids.contains(&caller.uid)
            || allowed.gids.contains(&caller.gid)
            || caller.groups.iter().any(|gid| allowed.gids.contains(gid))
    }

    fn accept(self: &Arc<Self>, stream: UnixStream) {
        let begun = match socket::peer(stream.as_fd()) {
            Err(error) => {
                tracing::warn!(%error, "a peer without credentials");
                return;
            }
            Ok(peer) => {
                let caller = Caller::new(peer.uid, peer.gid, peer.groups);
                let is_known = self.knows(&caller);
                if !is_known && self.options.token.is_none() {
                    let why = format!("user {} may not connect to this daemon", peer.uid);
                    Err(Failure::new(Reason::AccessDenied, why))
                } else if self.stopping.load(Ordering::SeqCst) {
                    Err(Failure::new(Reason::Disconnected, "the daemon is stopping"))
                } else {
                    ConnectionShare::take(&self.ledger, peer.uid)
                        .map(|share| (caller, is_known, share))
                }
            }
        };
        match begun {
            Ok((caller, is_known, share)) => {
                if let Err(error) = connection::serve(self, stream, caller, is_known, share) {
                    tracing::warn!(%error, "beginning a connection");
                }
            }
            Err(failure) => {
                tracing::info!(reason = %failure, "refusing a connection");
                connection::refuse(&stream, &failure);
            }
        }
    }
}

/// Serves frames.
#[derive(Clone, Debug)]
pub struct Server {
    core: Arc<Core>,
    /// Wakes the threads that accept.
    stop: Arc<OwnedFd>,
    acceptors: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Server {
    /// A server that nobody can reach yet.
    ///
    /// # Errors
    ///
    /// If the process can have no further descriptor.
    pub fn new(
        service: Service,
        admin: Admin,
        metrics: Metrics,
        options: Options,
    ) -> std::io::Result<Self> {
        let limits = options.limits;
        let workers = PoolLimits {
            threads_max: limits.workers_max,
            lane_threads_max: (limits.workers_max / 4).max(1),
            // Of a few hundred bytes each, beside the payload that their connections account for.
            waiting_max: 16 << 10,
        };
        let waiters = PoolLimits { threads_max: 16, lane_threads_max: 1, waiting_max: 256 };
        let core = Core {
            service,
            admin,
            metrics,
            limits,
            ledger: Ledger::new(limits),
            sessions: Sessions::default(),
            once: Once::default(),
            workers: Pool::new("lbru-worker", workers),
            waiters: Pool::new("lbru-waiter", waiters),
            buffers: Arc::default(),
            next_connection: AtomicU64::new(1),
            connections: Mutex::default(),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            options,
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { core: Arc::new(core), stop: Arc::new(stop), acceptors: Arc::default() })
    }

    /// Serves whoever connects: to a socket of [`bind`], or to one that was inherited.
    ///
    /// # Errors
    ///
    /// If there can be no thread for it.
    pub fn serve(&self, listener: UnixListener) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let (core, stop) = (Arc::clone(&self.core), Arc::clone(&self.stop));
        let acceptor = std::thread::Builder::new()
            .name("lbru-accept".to_owned())
            .spawn(move || accept_all(&core, &listener, &stop))?;
        lock(&self.acceptors).push(acceptor);
        Ok(())
    }

    /// Serves one socket that is connected already.
    pub fn serve_connection(&self, stream: UnixStream) {
        self.core.accept(stream);
    }

    /// How many connections there are.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        lock(&self.core.connections).len()
    }

    /// How many sessions there are.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.core.sessions.count()
    }

    /// Gives the connections that there are other limits, and tells them.
    pub fn set_credit(&self, requests_max: u32, bytes_max: u64) {
        for connection in self.core.all() {
            connection.set_credit(Credit { requests_max, bytes_max });
        }
    }

    /// Takes no more connections and no more requests, lets those that are under way end, and ends all
    /// connections: at the latest when the time of grace is over.
    pub fn shut_down(&self) {
        self.core.stopping.store(true, Ordering::SeqCst);
        // A full counter has told them already.
        let _told = rustix::io::write(&*self.stop, &1_u64.to_le_bytes());
        for acceptor in std::mem::take(&mut *lock(&self.acceptors)) {
            if acceptor.join().is_err() {
                tracing::error!("the thread that accepts connections panicked");
            }
        }
        for connection in self.core.all() {
            connection.drain();
        }
        if !self.core.wait_for_all(self.core.options.grace) {
            for connection in self.core.all() {
                connection.cut();
            }
            // Each thread sees it as soon as it looks; none waits for anything but the disk.
            self.core.wait_for_all(Duration::from_secs(60));
        }
        self.core.waiters.close();
        self.core.workers.close();
    }
}

fn accept_all(core: &Arc<Core>, listener: &UnixListener, stop: &OwnedFd) {
    loop {
        let mut polled = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "waiting for connections");
                return;
            }
        }
        if core.stopping.load(Ordering::SeqCst) {
            return;
        }
        if polled[0].revents().is_empty() {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => core.accept(stream),
            Err(error) => {
                use std::io::ErrorKind as Io;
                let kind = error.kind();
                let is_passing =
                    matches!(kind, Io::WouldBlock | Io::Interrupted | Io::ConnectionAborted);
                if !is_passing {
                    // No descriptors or memory are left: who waits in the backlog can wait on.
                    tracing::warn!(%error, "accepting a connection");
                    clock::sleep(Duration::from_millis(50));
                }
            }
        }
    }
}
