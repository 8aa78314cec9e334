//! The nodes that know each other.
//!
//! Every node asks every other by a heartbeat whether it is there, and believes its own answers only:
//! what a peer says about a third node makes nobody online. A node is online until there was no answer
//! for `offline_after` heartbeats, so a failure is seen within that time whether the peer refuses,
//! hangs or vanished. All of it lives in one thread with a small runtime of its own.

pub mod address;
mod configured;
mod legacy;
mod mdns;
mod probe;
mod state;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_format::ErrorKind;
use librorum_rpc::proto::{node, v1};
use librorum_rpc::{Failure, Reason};
use librorum_sys::clock;

use crate::metrics::{Exposition, Kind, Value};
use address::Address;
use state::Kept;

/// Nodes that are known at most, so that nobody can fill our memory with heartbeats.
const NODES_MAX: usize = 256;
/// Words of a peer that are kept.
const TEXT_LEN_MAX: usize = 256;

/// How the nodes are reached, and which they are.
#[derive(Clone, Debug)]
pub struct Options {
    /// What this node is called, for people; the machine's name if empty.
    pub name: String,
    /// Its id; otherwise one is made once and kept in `state_dir`.
    pub id: Option<String>,
    /// Where the id and the nodes added by command are kept; without it they last as long as we.
    pub state_dir: Option<PathBuf>,
    /// Where gRPC is served.
    pub listen: Vec<SocketAddr>,
    /// What others are told instead of the address of the route to them.
    pub advertise: Option<String>,
    /// Nodes that are known from the beginning.
    pub peers: Vec<String>,
    /// Whether to announce ourselves, and to listen to others, on the local network.
    pub mdns: bool,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// After so many heartbeats without an answer a node is offline.
    pub offline_after: u32,
    /// What peers let us in for.
    pub token: Option<String>,
    /// How peers prove who they are, and we to them.
    pub tls: Option<Tls>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: String::new(),
            id: None,
            state_dir: None,
            listen: Vec::new(),
            advertise: None,
            peers: Vec::new(),
            mdns: false,
            heartbeat: Duration::from_secs(5),
            offline_after: 3,
            token: None,
            tls: None,
        }
    }
}

/// TLS towards peers, in PEM.
#[derive(Clone)]
pub struct Tls {
    /// Who may have signed a peer's certificate.
    pub ca: Vec<u8>,
    /// Our own certificate and key, if peers ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is nobody's business.
        out.debug_struct("Tls").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

/// What can change while it runs.
#[derive(Clone, Debug)]
pub struct Changes {
    /// See [`Options`].
    pub peers: Vec<String>,
    /// See [`Options`].
    pub heartbeat: Duration,
    /// See [`Options`].
    pub offline_after: u32,
    /// See [`Options`].
    pub token: Option<String>,
}

/// Why the nodes could not be started.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum NodesError {
    /// What is kept cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    State { path: PathBuf, source: std::io::Error },
    /// What is kept is not ours.
    #[error("{} does not hold what this program wrote there: {source}", path.display())]
    Garbled { path: PathBuf, source: serde_json::Error },
    /// A file that the configuration names cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// A peer's address is none.
    #[error("{0}")]
    Address(#[from] address::AddressError),
    /// The operating system lacks something.
    #[error("cannot start the nodes' thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The certificates are none.
    #[error("the certificates for peers cannot be used: {0}")]
    Tls(tonic::transport::Error),
    /// The local network cannot be listened to.
    #[error("cannot use mDNS: {0}")]
    Mdns(#[from] mdns_sd::Error),
}

/// What is known about a node's presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It has not answered yet.
    Connecting,
    /// It answers.
    Online,
    /// It does not answer any more, or never did.
    Offline,
    /// It answers, but not as a node should: see its error.
    Error,
}

impl Presence {
    /// As clients know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Error => "error",
        }
    }
}

/// How a node became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FoundBy {
    Config,
    Mdns,
    Heartbeat,
    Command,
}

impl FoundBy {
    fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Mdns => "mdns",
            Self::Heartbeat => "heartbeat",
            Self::Command => "command",
        }
    }

    /// Whether somebody wants this node, or it only told us of itself.
    fn is_wanted(self) -> bool {
        matches!(self, Self::Config | Self::Command)
    }
}

/// What an address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads {
    /// To a node.
    There,
    /// To ourselves.
    Home,
    /// To a node that is known by another address too.
    Elsewhere,
}

#[derive(Clone, Debug)]
struct Entry {
    address: Address,
    found_by: FoundBy,
    leads: Leads,
    /// Empty until it has answered.
    node_id: String,
    system: String,
    presence: Presence,
    error: String,
    discovered_unix_ms: i64,
    /// Since when we wait for an answer: since the last one, or since it became known.
    silent_since: Duration,
    last_heartbeat_unix_ms: i64,
    /// There and back: the last one, and the mean of the last few.
    latency: Option<(Duration, Duration)>,
    clock_ahead_s: i64,
    failure_count: u32,
    connection_count: u32,
    next_probe: Duration,
    probing: bool,
}

impl Entry {
    fn new(address: Address, found_by: FoundBy, now: Duration) -> Self {
        Self {
            address,
            found_by,
            leads: Leads::There,
            node_id: String::new(),
            system: String::new(),
            presence: Presence::Connecting,
            error: String::new(),
            discovered_unix_ms: now_unix_ms(),
            silent_since: now,
            last_heartbeat_unix_ms: 0,
            latency: None,
            clock_ahead_s: 0,
            failure_count: 0,
            connection_count: 0,
            next_probe: now,
            probing: false,
        }
    }

    fn to_message(&self) -> v1::Node {
        v1::Node {
            node_id: self.node_id.clone(),
            address: self.address.text().to_owned(),
            status: self.presence.name().to_owned(),
            last_heartbeat_unix_ms: self.last_heartbeat_unix_ms,
            latency_ms: self.latency.map_or(0.0, |(_, mean)| mean.as_secs_f64() * 1_000.0),
            failure_count: self.failure_count,
            connection_count: self.connection_count,
            discovered_unix_ms: self.discovered_unix_ms,
            found_by: self.found_by.name().to_owned(),
            system: self.system.clone(),
            error: self.error.clone(),
        }
    }
}

/// The nodes. A clone is the same nodes.
#[derive(Clone)]
pub struct Nodes {
    inner: Arc<Inner>,
}

struct Inner {
    own_id: String,
    system: String,
    listen: Vec<SocketAddr>,
    advertise: Option<String>,
    state: Mutex<State>,
    keeper: state::Keeper,
    /// Wakes the thread when there is something to do at once.
    wake: tokio::sync::Notify,
    thread: Mutex<Option<JoinHandle<()>>>,
    mdns: Mutex<Option<mdns::Announcement>>,
}

struct State {
    entries: Vec<Entry>,
    heartbeat: Duration,
    offline_after: u32,
    token: Option<String>,
    kept: Kept,
    stopping: bool,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Nodes").field("own_id", &self.inner.own_id).finish_non_exhaustive()
    }
}

impl Nodes {
    /// Begins to ask the peers.
    ///
    /// # Errors
    ///
    /// A peer's address is none, the state cannot be kept, the certificates are wrong.
    pub fn start(options: Options) -> Result<Self, NodesError> {
        let connector = probe::Connector::new(options.tls.as_ref()).map_err(NodesError::Tls)?;
        let (keeper, kept) = state::Keeper::open(options.state_dir.as_deref())?;
        let now = clock::monotonic();
        let mut entries: Vec<Entry> = Vec::new();
        let configured = options.peers.iter().map(|peer| (peer, FoundBy::Config));
        let added = kept.added.iter().map(|peer| (peer, FoundBy::Command));
        for (peer, found_by) in configured.chain(added) {
            let address = Address::parse(peer)?;
            if !entries.iter().any(|entry| entry.address == address) {
                entries.push(Entry::new(address, found_by, now));
            }
        }
        let inner = Arc::new(Inner {
            own_id: options.id.unwrap_or_else(|| kept.node_id.clone()),
            system: own_system(&options.name),
            listen: options.listen,
            advertise: options.advertise,
            state: Mutex::new(State {
                entries,
                heartbeat: options.heartbeat.max(Duration::from_millis(1)),
                offline_after: options.offline_after.max(1),
                token: options.token,
                kept,
                stopping: false,
            }),
            keeper,
            wake: tokio::sync::Notify::new(),
            thread: Mutex::new(None),
            mdns: Mutex::new(None),
        });
        let nodes = Self { inner };
        let thread = probe::start(nodes.clone(), connector)?;
        *lock(&nodes.inner.thread) = Some(thread);
        if options.mdns {
            *lock(&nodes.inner.mdns) = Some(mdns::Announcement::start(&nodes)?);
        }
        Ok(nodes)
    }

    /// This node's id.
    #[must_use]
    pub fn own_id(&self) -> &str {
        &self.inner.own_id
    }

    /// What this node is: its name, version and system.
    #[must_use]
    pub fn own_system(&self) -> &str {
        &self.inner.system
    }

    /// Where this node can be reached by one at this address; empty if it cannot.
    #[must_use]
    pub fn address_for(&self, peer: Option<IpAddr>) -> String {
        address::advertised(self.inner.advertise.as_deref(), &self.inner.listen, peer)
    }

    /// Every node but ourselves.
    #[must_use]
    pub fn list(&self) -> v1::NodesResponse {
        let state = self.inner.lock_state();
        v1::NodesResponse {
            own_id: self.inner.own_id.clone(),
            own_address: self.address_for(None),
            nodes: state.shown().map(Entry::to_message).collect(),
        }
    }

    /// Makes a node known; one that is known already stays as it is.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an address that is none, `NoSpace` beyond the limit, `Unavailable` if it
    /// cannot be kept.
    pub fn add(&self, address: &str) -> Result<v1::Node, Failure> {
        let address = Address::parse(address)
            .map_err(|error| Failure::file(ErrorKind::InvalidInput, error.to_string()))?;
        let mut state = self.inner.lock_state();
        let known = state.entries.iter().position(|entry| entry.address == address);
        let index = match known {
            Some(index) => index,
            None => state.make_room(Entry::new(address, FoundBy::Command, clock::monotonic()))?,
        };
        let entry = &mut state.entries[index];
        if !entry.found_by.is_wanted() {
            entry.found_by = FoundBy::Command;
        }
        let (id, shown) = (entry.node_id.clone(), entry.to_message());
        let text = entry.address.written().to_owned();
        if entry.found_by == FoundBy::Command {
            if !state.kept.added.contains(&text) {
                state.kept.added.push(text);
            }
            state.kept.forgotten.retain(|forgotten| *forgotten != id);
            self.inner.keeper.keep(&state.kept).map_err(|error| unkept(&error))?;
        }
        drop(state);
        self.inner.wake.notify_one();
        Ok(shown)
    }

    /// Forgets a node, by its id or address. Its own heartbeats do not bring it back; adding it does.
    ///
    /// # Errors
    ///
    /// `NotFound`; `FailedPrecondition` for a node of the configuration, which would be back with the
    /// next start; `Unavailable` if it cannot be kept.
    pub fn remove(&self, which: &str) -> Result<v1::Node, Failure> {
        let address = Address::parse(which).ok();
        let mut state = self.inner.lock_state();
        let found = state.entries.iter().position(|entry| {
            (!which.is_empty() && entry.node_id == which && entry.leads == Leads::There)
                || Some(&entry.address) == address.as_ref()
        });
        let Some(index) = found else {
            let message = format!("there is no node '{which}'");
            return Err(Failure::file(ErrorKind::NotFound, message));
        };
        if state.entries[index].found_by == FoundBy::Config {
            let message = format!("'{which}' is in the configuration: take it out of nodes.peers");
            return Err(Failure::new(Reason::FailedPrecondition, message));
        }
        let entry = state.entries.remove(index);
        state
            .kept
            .added
            .retain(|added| Address::parse(added).ok().as_ref() != Some(&entry.address));
        if !entry.node_id.is_empty() && !state.kept.forgotten.contains(&entry.node_id) {
            state.kept.forgotten.push(entry.node_id.clone());
            let excess = state.kept.forgotten.len().saturating_sub(NODES_MAX);
            state.kept.forgotten.drain(..excess);
        }
        self.inner.keeper.keep(&state.kept).map_err(|error| unkept(&error))?;
        Ok(entry.to_message())
    }

    /// A heartbeat came in, by a connection from this address if it is known; answers it. The node that
    /// sent it will be asked in turn before it counts as online.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for one without a node id.
    pub fn heard(
        &self,
        request: &node::HeartbeatRequest,
        from: Option<SocketAddr>,
    ) -> Result<node::HeartbeatResponse, Failure> {
        if request.node_id.is_empty() || request.node_id.len() > TEXT_LEN_MAX {
            let message = "a heartbeat needs a node id of at most 256 bytes";
            return Err(Failure::file(ErrorKind::InvalidInput, message));
        }
        let from = from.map(|from| from.ip().to_canonical());
        // Without an address, or with one that means nothing here, the sender cannot be asked.
        if let Some(address) = address::reachable(&request.address, from) {
            self.met(&request.node_id, address, FoundBy::Heartbeat);
        }
        Ok(node::HeartbeatResponse {
            node_id: self.inner.own_id.clone(),
            address: self.address_for(from),
            system_info: self.inner.system.clone(),
            timestamp: clock::now().secs,
            status: true,
        })
    }

    /// A node told of itself.
    fn met(&self, node_id: &str, address: Address, found_by: FoundBy) {
        if node_id == self.inner.own_id {
            return;
        }
        let now = clock::monotonic();
        let mut state = self.inner.lock_state();
        if state.kept.forgotten.iter().any(|forgotten| forgotten == node_id) {
            return;
        }
        if let Some(entry) = state.entries.iter_mut().find(|entry| entry.address == address) {
            // It is there again: ask now rather than at the next heartbeat.
            if entry.presence != Presence::Online && entry.leads == Leads::There {
                entry.next_probe = now;
            }
        } else if let Some(entry) =
            state.entries.iter_mut().find(|entry| entry.node_id == node_id && !node_id.is_empty())
        {
            // The same node with another address: it moved, unless it still answers at the old one.
            if entry.presence == Presence::Online || entry.found_by.is_wanted() {
                if entry.presence == Presence::Online {
                    return;
                }
                if state.make_room(Entry::new(address, found_by, now)).is_err() {
                    return;
                }
            } else {
                *entry = Entry::new(address, found_by, now);
            }
        } else if let Err(failure) = state.make_room(Entry::new(address, found_by, now)) {
            tracing::debug!(%failure, node_id, "a node that told of itself");
            return;
        }
        drop(state);
        self.inner.wake.notify_one();
    }

    /// The mean time there and back over the nodes that are online.
    #[must_use]
    pub fn mean_latency(&self) -> Option<Duration> {
        let state = self.inner.lock_state();
        let online: Vec<Duration> = state
            .shown()
            .filter(|entry| entry.presence == Presence::Online)
            .filter_map(|entry| Some(entry.latency?.1))
            .collect();
        let count = u32::try_from(online.len()).ok().filter(|&count| count != 0)?;
        Some(online.iter().sum::<Duration>() / count)
    }

    /// How far the clocks of the nodes that are online are ahead of ours, in seconds.
    #[must_use]
    pub fn clocks_ahead(&self) -> Vec<(String, i64)> {
        let state = self.inner.lock_state();
        let online = state.shown().filter(|entry| entry.presence == Presence::Online);
        online.map(|entry| (entry.node_id.clone(), entry.clock_ahead_s)).collect()
    }

    /// Takes over what the configuration says now.
    ///
    /// # Errors
    ///
    /// A peer's address is none; nothing has changed.
    pub fn reconfigure(&self, changes: &Changes) -> Result<(), NodesError> {
        let mut peers = Vec::new();
        for peer in &changes.peers {
            peers.push(Address::parse(peer)?);
        }
        let now = clock::monotonic();
        let mut state = self.inner.lock_state();
        state
            .entries
            .retain(|entry| entry.found_by != FoundBy::Config || peers.contains(&entry.address));
        for address in peers {
            match state.entries.iter_mut().find(|entry| entry.address == address) {
                Some(entry) => entry.found_by = FoundBy::Config,
                None => state.entries.push(Entry::new(address, FoundBy::Config, now)),
            }
        }
        state.heartbeat = changes.heartbeat.max(Duration::from_millis(1));
        state.offline_after = changes.offline_after.max(1);
        state.token.clone_from(&changes.token);
        let latest = now + state.heartbeat;
        for entry in &mut state.entries {
            // With another token, an error may be over.
            let due = if entry.presence == Presence::Error { now } else { latest };
            entry.next_probe = entry.next_probe.min(due);
        }
        drop(state);
        self.inner.wake.notify_one();
        Ok(())
    }

    /// The nodes as figures.
    pub fn expose(&self, out: &mut Exposition) {
        let nodes = self.list().nodes;
        for presence in [Presence::Connecting, Presence::Online, Presence::Offline, Presence::Error]
        {
            let name = presence.name();
            let count = nodes.iter().filter(|node| node.status == name).count();
            let labels = [("status", name)];
            let value = Value::Whole(count as u64);
            out.sample("librorum_nodes", "Nodes, by status.", Kind::Gauge, &labels, value);
        }
        for node in nodes.iter().filter(|node| node.status == Presence::Online.name()) {
            out.sample(
                "librorum_node_latency_seconds",
                "Time of a heartbeat there and back, the mean of the last few.",
                Kind::Gauge,
                &[("node", &node.node_id), ("address", &node.address)],
                Value::Real(node.latency_ms / 1_000.0),
            );
        }
    }

    /// Ends the heartbeats; the list stays as it is.
    pub fn shut_down(&self) {
        self.inner.lock_state().stopping = true;
        self.inner.wake.notify_one();
        let announcement = lock(&self.inner.mdns).take();
        drop(announcement);
        let thread = lock(&self.inner.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the nodes' thread panicked");
        }
    }
}

impl Inner {
    fn lock_state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// What leads to other nodes.
    fn shown(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.leads == Leads::There)
    }

    /// Takes a new node in, at the cost of one that nobody asked for and that is gone.
    fn make_room(&mut self, entry: Entry) -> Result<usize, Failure> {
        if self.entries.len() >= NODES_MAX {
            let gone = self.entries.iter().position(|entry| {
                !entry.found_by.is_wanted() && entry.presence != Presence::Online
            });
            match gone {
                Some(index) => drop(self.entries.remove(index)),
                None => {
                    let message = format!("{NODES_MAX} nodes are known already; remove one first");
                    return Err(Failure::file(ErrorKind::NoSpace, message));
                }
            }
        }
        self.entries.push(entry);
        Ok(self.entries.len() - 1)
    }
}

fn unkept(error: &NodesError) -> Failure {
    Failure::file(ErrorKind::Unavailable, format!("it will be forgotten: {error}"))
}

/// What we say about ourselves.
fn own_system(name: &str) -> String {
    let kernel = |what: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{what}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let name = if name.is_empty() { kernel("hostname") } else { name.to_owned() };
    format!(
        "{name}; librorum {}; {} {} {}",
        env!("CARGO_PKG_VERSION"),
        kernel("ostype"),
        kernel("osrelease"),
        std::env::consts::ARCH
    )
}

fn now_unix_ms() -> i64 {
    let now = clock::now();
    now.secs.saturating_mul(1_000).saturating_add(i64::from(now.nanos / 1_000_000))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
