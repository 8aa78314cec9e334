//! The thread that asks every node, and what its answers mean.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_rpc::proto::node::node_service_client::NodeServiceClient;
use librorum_rpc::proto::node::{HeartbeatRequest, HeartbeatResponse};
use librorum_sys::clock;
use tokio::task::JoinSet;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::address::Address;
use super::{Entry, Leads, Nodes, Presence, State, TEXT_LEN_MAX, Tls, lock, now_unix_ms};

/// A heartbeat waits no longer for its answer than this, and no shorter than the next.
const ANSWER_MIN: Duration = Duration::from_millis(250);
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Addresses that lead to ourselves, or to a node known by another one, are tried so many times less
/// often: they may be given to somebody else one day.
const RARELY: u32 = 10;

/// Makes connections to nodes, and keeps them.
#[derive(Debug)]
pub(super) struct Connector {
    tls: Option<ClientTlsConfig>,
    channels: Mutex<HashMap<String, Channel>>,
}

/// What became of a heartbeat.
#[derive(Debug)]
enum Outcome {
    Answered {
        response: HeartbeatResponse,
        latency: Duration,
        connected: bool,
    },
    /// Something is there, but not a node that talks to us.
    Refused(String),
    /// Nothing came back.
    Silent(String),
}

impl Connector {
    pub(super) fn new(tls: Option<&Tls>) -> Result<Self, tonic::transport::Error> {
        let tls = tls.map(|tls| {
            let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
            match &tls.identity {
                Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
                None => config,
            }
        });
        if let Some(tls) = &tls {
            // Only this reads the certificates.
            Endpoint::from_static("https://localhost").tls_config(tls.clone())?;
        }
        Ok(Self { tls, channels: Mutex::default() })
    }

    async fn channel(&self, address: &Address, tls: bool) -> Result<(Channel, bool), Outcome> {
        if let Some(channel) = lock(&self.channels).get(address.text()) {
            return Ok((channel.clone(), false));
        }
        let scheme = if tls { "https" } else { "http" };
        let refused = |error: tonic::transport::Error| Outcome::Refused(chain(&error));
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", address.text()))
            .map_err(refused)?
            .connect_timeout(ANSWER_MAX);
        if let (true, Some(config)) = (tls, &self.tls) {
            endpoint = endpoint.tls_config(config.clone()).map_err(refused)?;
        }
        let channel = endpoint.connect().await.map_err(|error| {
            if is_about_trust(&error) {
                Outcome::Refused(chain(&error))
            } else {
                Outcome::Silent(chain(&error))
            }
        })?;
        lock(&self.channels).insert(address.text().to_owned(), channel.clone());
        Ok((channel, true))
    }

    fn drop_channel(&self, address: &Address) {
        lock(&self.channels).remove(address.text());
    }

    async fn ask(&self, nodes: &Nodes, address: &Address, token: Option<&str>) -> Outcome {
        let tls = address.tls().unwrap_or(self.tls.is_some());
        if tls && self.tls.is_none() {
            return Outcome::Refused("nodes.tls_ca is needed for an https address".to_owned());
        }
        let resolved = tokio::net::lookup_host((address.host(), address.port())).await;
        let peers: Vec<std::net::IpAddr> = match resolved {
            Ok(addresses) => addresses.map(|address| address.ip().to_canonical()).collect(),
            Err(error) => return Outcome::Silent(format!("looking up its name: {error}")),
        };
        if token.is_some() && !tls && !peers.iter().all(std::net::IpAddr::is_loopback) {
            return Outcome::Refused(
                "our token would go over the network unencrypted: set nodes.tls_ca".to_owned(),
            );
        }
        let (channel, connected) = match self.channel(address, tls).await {
            Ok(channel) => channel,
            Err(outcome) => return outcome,
        };
        let mut request = tonic::Request::new(HeartbeatRequest {
            node_id: nodes.own_id().to_owned(),
            address: nodes.address_for(peers.first().copied()),
            system_info: nodes.own_system().to_owned(),
            timestamp: clock::now().secs,
        });
        if let Some(token) = token {
            let Ok(value) = format!("Bearer {token}").parse() else {
                return Outcome::Refused(
                    "our token cannot be sent: it is no ASCII text".to_owned(),
                );
            };
            request.metadata_mut().insert("authorization", value);
        }
        let asked = clock::monotonic();
        match NodeServiceClient::new(channel).heartbeat(request).await {
            Ok(response) => {
                let latency = clock::monotonic().saturating_sub(asked);
                Outcome::Answered { response: response.into_inner(), latency, connected }
            }
            Err(status) => self.failed(address, &status),
        }
    }

    fn failed(&self, address: &Address, status: &tonic::Status) -> Outcome {
        use tonic::Code;
        match status.code() {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Ok => {
                self.drop_channel(address);
                Outcome::Silent(status.message().to_owned())
            }
            Code::Unauthenticated | Code::PermissionDenied => {
                Outcome::Refused(format!("it does not let us in: {}", status.message()))
            }
            Code::Unimplemented => Outcome::Refused("what answers there is no node".to_owned()),
            code @ (Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Internal
            | Code::DataLoss) => Outcome::Refused(format!("{code}: {}", status.message())),
        }
    }
}

/// Whether the peer is there but its certificate, or ours, is not accepted.
fn is_about_trust(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // rustls reports through io::Error of this kind, and of no other.
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::InvalidData) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Starts the thread. It ends when the nodes are shut down.
pub(super) fn start(nodes: Nodes, connector: Connector) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("nodes".to_owned()).spawn(move || {
        runtime.block_on(run(nodes, Arc::new(connector)));
        // A name that is still being looked up must not hold us.
        runtime.shutdown_background();
    })
}

async fn run(nodes: Nodes, connector: Arc<Connector>) {
    let mut asking = JoinSet::new();
    loop {
        let (due, wait, heartbeat, token) = {
            let mut state = nodes.inner.lock_state();
            if state.stopping {
                return;
            }
            let now = clock::monotonic();
            state.notice_silence(now);
            (state.take_due(now), state.rest(now), state.heartbeat, state.token.clone())
        };
        for address in due {
            let (nodes, connector, token) = (nodes.clone(), Arc::clone(&connector), token.clone());
            asking.spawn(async move {
                let wait = heartbeat.clamp(ANSWER_MIN, ANSWER_MAX);
                let asked = connector.ask(&nodes, &address, token.as_deref());
                let outcome = tokio::time::timeout(wait, asked).await.unwrap_or_else(|_elapsed| {
                    connector.drop_channel(&address);
                    Outcome::Silent(format!("no answer within {} ms", wait.as_millis()))
                });
                nodes.inner.lock_state().learn(nodes.own_id(), &address, outcome);
            });
        }
        tokio::select! {
            () = nodes.inner.wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
            // It has set a new time to ask.
            Some(_) = asking.join_next() => {}
        }
    }
}

impl State {
    fn silence_max(&self) -> Duration {
        self.heartbeat.saturating_mul(self.offline_after)
    }

    /// Who has not answered for too long is offline, whatever the heartbeats under way will say.
    fn notice_silence(&mut self, now: Duration) {
        let silence_max = self.silence_max();
        for entry in &mut self.entries {
            let silent = now.saturating_sub(entry.silent_since);
            if entry.presence != Presence::Offline && silent >= silence_max {
                let why = if entry.error.is_empty() { "no answer" } else { &entry.error };
                tracing::warn!(
                    node = entry.node_id,
                    address = entry.address.text(),
                    silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
                    why,
                    "a node is offline"
                );
                entry.presence = Presence::Offline;
            }
        }
    }

    /// Those that should be asked now.
    fn take_due(&mut self, now: Duration) -> Vec<Address> {
        let mut due = Vec::new();
        for entry in &mut self.entries {
            if !entry.probing && entry.next_probe <= now {
                entry.probing = true;
                // From its beginning: a peer that hangs is not asked less often.
                entry.next_probe = now + self.heartbeat;
                due.push(entry.address.clone());
            }
        }
        due
    }

    /// Until the next thing happens by itself.
    fn rest(&self, now: Duration) -> Duration {
        let silence_max = self.silence_max();
        let times = self.entries.iter().flat_map(|entry| {
            let ask = (!entry.probing).then_some(entry.next_probe);
            let give_up =
                (entry.presence != Presence::Offline).then(|| entry.silent_since + silence_max);
            [ask, give_up]
        });
        let next = times.flatten().min().unwrap_or(now + Duration::from_secs(3_600));
        next.saturating_sub(now).max(Duration::from_millis(1))
    }

    fn learn(&mut self, own_id: &str, address: &Address, outcome: Outcome) {
        let now = clock::monotonic();
        let Some(index) = self.entries.iter().position(|entry| entry.address == *address) else {
            // Removed meanwhile.
            return;
        };
        self.entries[index].probing = false;
        match outcome {
            Outcome::Answered { response, latency, connected } => {
                if response.node_id.is_empty() {
                    self.entries[index].refuse(now, "it answers without a node id".to_owned());
                } else {
                    self.answered(own_id, index, response, latency, connected);
                }
            }
            Outcome::Refused(why) => self.entries[index].refuse(now, why),
            Outcome::Silent(why) => {
                let entry = &mut self.entries[index];
                entry.failure_count = entry.failure_count.saturating_add(1);
                entry.error = short(why);
            }
        }
    }

    fn answered(
        &mut self,
        own_id: &str,
        index: usize,
        response: HeartbeatResponse,
        latency: Duration,
        connected: bool,
    ) {
        let now = clock::monotonic();
        let rarely = now + self.heartbeat * RARELY;
        let id = short(response.node_id);
        let twin = self.entries.iter().enumerate().position(|(other, entry)| {
            other != index
                && entry.node_id == id
                && entry.leads == Leads::There
                && entry.presence == Presence::Online
        });
        let entry = &mut self.entries[index];
        let leads = if id == own_id {
            Leads::Home
        } else if twin.is_some() {
            Leads::Elsewhere
        } else {
            Leads::There
        };
        if entry.presence != Presence::Online && leads == Leads::There {
            tracing::info!(node = id, address = entry.address.text(), "a node is online");
        }
        entry.node_id = id;
        entry.leads = leads;
        entry.system = short(response.system_info);
        entry.presence = Presence::Online;
        entry.error.clear();
        entry.failure_count = 0;
        entry.silent_since = now;
        entry.last_heartbeat_unix_ms = now_unix_ms();
        // The mean of about eight: a single slow answer shows, and does not stay.
        let mean = entry.latency.map_or(latency, |(_, mean)| (mean * 7 + latency) / 8);
        entry.latency = Some((latency, mean));
        entry.clock_ahead_s = response.timestamp.saturating_sub(clock::now().secs);
        entry.connection_count = entry.connection_count.saturating_add(u32::from(connected));
        if leads == Leads::There {
            return;
        }
        entry.next_probe = rarely;
        let wanted = entry.found_by.is_wanted();
        if let (Some(twin), true) = (twin, wanted)
            && !self.entries[twin].found_by.is_wanted()
        {
            // Under the name that somebody chose rather than the one it told of itself.
            self.entries[index].leads = Leads::There;
            self.entries[index].next_probe = now + self.heartbeat;
            self.entries.remove(twin);
        } else if !wanted {
            self.entries.remove(index);
        }
    }
}

impl Entry {
    fn refuse(&mut self, now: Duration, why: String) {
        if self.presence != Presence::Error {
            tracing::warn!(address = self.address.text(), why, "a node does not talk to us");
        }
        self.presence = Presence::Error;
        self.error = short(why);
        self.failure_count = self.failure_count.saturating_add(1);
        // Something is there.
        self.silent_since = now;
    }
}

fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_LEN_MAX));
    text
}
