//! Nodes that find, lose and recognise each other, over real connections on loopback.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_daemon::nodes::{Changes, Nodes, Options, Tls};
use librorum_rpc::proto::node::node_service_server::{NodeService, NodeServiceServer};
use librorum_rpc::proto::node::{
    AddNodeRequest, AddNodeResponse, DataPortalEndpointRequest, DataPortalEndpointResponse,
    HeartbeatRequest, HeartbeatResponse, NodeListRequest, NodeListResponse, RemoveNodeRequest,
    RemoveNodeResponse, SystemHealthRequest, SystemHealthResponse,
};
use librorum_rpc::proto::v1;
use librorum_sys::clock;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

const HEARTBEAT: Duration = Duration::from_millis(100);
const OFFLINE_AFTER: u32 = 3;
/// Tests share the machine with others.
const PATIENCE: Duration = Duration::from_secs(20);

struct Served {
    nodes: Nodes,
    token: Option<&'static str>,
}

#[tonic::async_trait]
impl NodeService for Served {
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        if let Some(token) = self.token {
            let given = request.metadata().get("authorization");
            let wanted = format!("Bearer {token}");
            if given.and_then(|given| given.to_str().ok()) != Some(&wanted) {
                return Err(Status::unauthenticated("this token is not known here"));
            }
        }
        let from = request.remote_addr();
        Ok(Response::new(self.nodes.heard(request.get_ref(), from)?))
    }

    async fn get_node_list(
        &self,
        request: Request<NodeListRequest>,
    ) -> Result<Response<NodeListResponse>, Status> {
        Ok(Response::new(self.nodes.node_list(request.get_ref())))
    }

    async fn get_system_health(
        &self,
        _: Request<SystemHealthRequest>,
    ) -> Result<Response<SystemHealthResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn add_node(
        &self,
        request: Request<AddNodeRequest>,
    ) -> Result<Response<AddNodeResponse>, Status> {
        Ok(Response::new(self.nodes.add_node(request.get_ref())?))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        Ok(Response::new(self.nodes.remove_node(request.get_ref())?))
    }

    async fn get_data_portal_endpoint(
        &self,
        _: Request<DataPortalEndpointRequest>,
    ) -> Result<Response<DataPortalEndpointResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

/// A server and the nodes behind it.
struct Node {
    nodes: Nodes,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn options(address: SocketAddr, id: &str, peers: &[SocketAddr]) -> Options {
    Options {
        id: Some(id.to_owned()),
        listen: vec![address],
        peers: peers.iter().map(ToString::to_string).collect(),
        heartbeat: HEARTBEAT,
        offline_after: OFFLINE_AFTER,
        ..Options::default()
    }
}

impl Node {
    fn start(id: &str, address: SocketAddr, peers: &[SocketAddr]) -> Self {
        Self::start_with(options(address, id, peers), address, None)
    }

    fn start_with(options: Options, address: SocketAddr, token: Option<&'static str>) -> Self {
        Self::start_over(tonic::transport::Server::builder(), options, address, token)
    }

    fn start_over(
        mut server: tonic::transport::Server,
        options: Options,
        address: SocketAddr,
        token: Option<&'static str>,
    ) -> Self {
        let nodes = Nodes::start(options).unwrap();
        let served = Served { nodes: nodes.clone(), token };
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind(address).await.unwrap();
                ready.send(()).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                let server = server
                    .add_service(NodeServiceServer::new(served))
                    .serve_with_incoming(incoming);
                // Like a process that is killed: connections are cut.
                tokio::select! {
                    served = server => served.unwrap(),
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        is_ready.recv().unwrap();
        Self { nodes, address, stop: Some(stop), thread: Some(thread) }
    }

    fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.nodes.shut_down();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

fn find(nodes: &Nodes, id: &str) -> Option<v1::Node> {
    nodes.list().nodes.into_iter().find(|node| node.node_id == id)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let begun = clock::monotonic();
    while !is_so() {
        assert!(clock::monotonic() - begun < PATIENCE, "{what}");
        clock::sleep(Duration::from_millis(5));
    }
    clock::monotonic() - begun
}

fn wait_for_status(nodes: &Nodes, id: &str, status: &str) -> Duration {
    wait_until(&format!("{id} {status}, but {:?}", nodes.list()), || {
        find(nodes, id).is_some_and(|node| node.status == status)
    })
}

#[test]
fn a_node_that_dies_is_seen_by_all_others_in_time_and_so_is_its_return() {
    let [a, b, c] = [free_address(), free_address(), free_address()];
    let first = Node::start("a", a, &[]);
    // The others know the first only: they meet through its heartbeats.
    let second = Node::start("b", b, &[a]);
    let third = Node::start("c", c, &[a, b]);
    for (nodes, others) in
        [(&first.nodes, ["b", "c"]), (&second.nodes, ["a", "c"]), (&third.nodes, ["a", "b"])]
    {
        for other in others {
            wait_for_status(nodes, other, "online");
        }
        assert_eq!(nodes.list().nodes.len(), 2, "{:?}", nodes.list());
    }
    let seen = find(&first.nodes, "c").unwrap();
    assert_eq!((seen.address, seen.found_by.as_str()), (c.to_string(), "heartbeat"));
    assert!(seen.latency_ms > 0.0 && seen.last_heartbeat_unix_ms > 0 && !seen.system.is_empty());
    assert!(first.nodes.mean_latency().unwrap() > Duration::ZERO);

    third.kill();
    for nodes in [&first.nodes, &second.nodes] {
        let took = wait_for_status(nodes, "c", "offline");
        // Three heartbeats from the last answer, and what a busy machine adds.
        assert!(took < HEARTBEAT * OFFLINE_AFTER + Duration::from_secs(2), "{took:?}");
        let dead = find(nodes, "c").unwrap();
        assert!(!dead.error.is_empty());
        let list = nodes.node_list(&NodeListRequest { include_offline: false });
        assert_eq!((list.total_count, list.online_count, list.nodes.len()), (2, 1, 1));
    }
    let third = Node::start("c", c, &[a]);
    wait_for_status(&first.nodes, "c", "online");
    wait_for_status(&second.nodes, "c", "online");
    assert_eq!(find(&first.nodes, "c").unwrap().connection_count, 2);
    assert_eq!(find(&first.nodes, "c").unwrap().failure_count, 0);
    drop(third);
}

#[test]
fn a_wrong_token_is_an_error_with_its_reason_until_it_is_right() {
    let [a, b] = [free_address(), free_address()];
    let guarded = Node::start_with(options(a, "a", &[]), a, Some("right"));
    let with = |token: &str| Options { token: Some(token.to_owned()), ..options(b, "b", &[a]) };
    let nodes = Nodes::start(with("wrong")).unwrap();
    wait_until("an error", || {
        let list = nodes.list().nodes;
        list[0].status == "error" && list[0].error.contains("this token is not known here")
    });
    assert!(guarded.nodes.list().nodes.is_empty());
    let changes = Changes {
        peers: vec![a.to_string()],
        heartbeat: HEARTBEAT,
        offline_after: OFFLINE_AFTER,
        token: Some("right".to_owned()),
    };
    nodes.reconfigure(&changes).unwrap();
    wait_for_status(&nodes, "a", "online");
    assert!(find(&nodes, "a").unwrap().error.is_empty());
    nodes.shut_down();
}

#[test]
fn oneself_and_a_node_with_two_addresses_are_recognised() {
    let [a, b] = [free_address(), free_address()];
    let _first = Node::start("a", a, &[]);
    let by_name = format!("localhost:{}", a.port());
    let mut options = options(b, "b", &[a, b]);
    options.peers.push(by_name);
    let second = Node::start_with(options, b, None);
    wait_for_status(&second.nodes, "a", "online");
    wait_until("one node", || second.nodes.list().nodes.len() == 1);
    clock::sleep(HEARTBEAT * 3);
    assert_eq!(second.nodes.list().nodes.len(), 1, "{:?}", second.nodes.list());
}

#[test]
fn what_answers_but_is_no_node_is_an_error_and_what_hangs_is_offline() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hanging = listener.local_addr().unwrap();
    let nodes = Nodes::start(options(free_address(), "a", &[hanging])).unwrap();
    assert_eq!(nodes.list().nodes[0].status, "connecting");
    wait_until("offline", || nodes.list().nodes[0].status == "offline");
    nodes.shut_down();
}

#[test]
fn nodes_added_by_command_stay_and_removed_ones_do_not_come_back_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = [free_address(), free_address()];
    let first = Node::start("a", a, &[]);
    let kept =
        || Options { id: None, state_dir: Some(dir.path().to_owned()), ..options(b, "b", &[]) };
    let nodes = Nodes::start(kept()).unwrap();
    let own_id = nodes.own_id().to_owned();
    assert!(nodes.add("0.0.0.0:1").is_err() && nodes.add("no port:x").is_err());
    nodes.add(&a.to_string()).unwrap();
    wait_for_status(&nodes, "a", "online");
    nodes.shut_down();

    let nodes = Nodes::start(kept()).unwrap();
    assert_eq!(nodes.own_id(), own_id);
    wait_for_status(&nodes, "a", "online");
    assert_eq!(find(&nodes, "a").unwrap().found_by, "command");
    nodes.remove("a").unwrap();
    assert!(nodes.remove("a").is_err());
    let heartbeat = HeartbeatRequest {
        node_id: "a".to_owned(),
        address: a.to_string(),
        ..HeartbeatRequest::default()
    };
    nodes.heard(&heartbeat, Some(a)).unwrap();
    assert!(nodes.list().nodes.is_empty());
    nodes.add(&a.to_string()).unwrap();
    wait_for_status(&nodes, "a", "online");
    nodes.shut_down();
    drop(first);

    let nodes = Nodes::start(options(b, "b", &[a])).unwrap();
    let refused = nodes.remove(&a.to_string()).unwrap_err();
    assert!(refused.message.contains("nodes.peers"), "{refused}");
    nodes.shut_down();
}

#[test]
fn heartbeats_of_strangers_cannot_fill_the_memory() {
    let nodes = Nodes::start(options(free_address(), "a", &[])).unwrap();
    for number in 0..1_000 {
        let heartbeat = HeartbeatRequest {
            node_id: format!("stranger {number}"),
            address: format!("127.0.0.1:{}", 1_000 + number),
            ..HeartbeatRequest::default()
        };
        let answer = nodes.heard(&heartbeat, None).unwrap();
        assert_eq!((answer.node_id.as_str(), answer.status), ("a", true));
    }
    assert!(nodes.list().nodes.len() <= 256);
    assert!(nodes.heard(&HeartbeatRequest::default(), None).is_err());
    let long = HeartbeatRequest { node_id: "x".repeat(10_000), ..HeartbeatRequest::default() };
    assert!(nodes.heard(&long, None).is_err());
    nodes.shut_down();
}

#[test]
fn over_tls_a_peer_must_have_the_right_certificate() {
    let certify = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (ours, other) = (certify(), certify());
    let identity = Identity::from_pem(ours.cert.pem(), ours.signing_key.serialize_pem());
    let tls = ServerTlsConfig::new().identity(identity);
    let [a, b] = [free_address(), free_address()];
    let server = tonic::transport::Server::builder().tls_config(tls).unwrap();
    let _first = Node::start_over(server, options(a, "a", &[]), a, Some("secret"));
    let trusting = |ca: &rcgen::Certificate| {
        let ca = ca.pem().into_bytes();
        Nodes::start(Options {
            peers: vec![format!("localhost:{}", a.port())],
            token: Some("secret".to_owned()),
            tls: Some(Tls { ca, identity: None }),
            ..options(b, "b", &[])
        })
        .unwrap()
    };
    let nodes = trusting(&ours.cert);
    wait_for_status(&nodes, "a", "online");
    nodes.shut_down();
    let nodes = trusting(&other.cert);
    wait_until("an error", || nodes.list().nodes[0].status == "error");
    let error = nodes.list().nodes[0].error.clone();
    assert!(error.contains("certificate"), "{error}");
    nodes.shut_down();
}

#[test]
fn a_token_is_not_sent_over_the_network_unencrypted() {
    // An address of documentation (RFC 5737): nothing may even be tried there.
    let peer: SocketAddr = "192.0.2.1:50051".parse().unwrap();
    let options =
        Options { token: Some("secret".to_owned()), ..options(free_address(), "a", &[peer]) };
    let nodes = Nodes::start(options).unwrap();
    wait_until("refused", || {
        let node = &nodes.list().nodes[0];
        node.status == "error" && node.error.contains("unencrypted")
    });
    nodes.shut_down();
}

/// In a network of its own, with a cable that leads nowhere: who announces himself there is heard
/// there. Needs `unshare` and `ip`, and the right to use them.
#[test]
fn nodes_of_a_network_find_each_other_by_mdns() {
    const INSIDE: &str = "LIBRORUM_TEST_INSIDE";
    const NAME: &str = "nodes_of_a_network_find_each_other_by_mdns";
    if std::env::var_os(INSIDE).is_some() {
        return find_each_other();
    }
    let network = "ip link set lo up && ip link add here type veth peer name there && \
                   ip address add 10.9.8.1/24 dev here && ip link set there up && \
                   ip link set here up multicast on && ip route add 224.0.0.0/4 dev here";
    let in_network = |script: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--map-root-user", "--net", "sh", "-c", script]);
        command.arg(std::env::current_exe().unwrap());
        command
    };
    if !in_network(network).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no network of our own to be had");
        return;
    }
    let script = format!("{network} && exec \"$0\" --exact {NAME} --nocapture");
    let output = in_network(&script).env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

fn find_each_other() {
    let start = |id: &str, port: u16| {
        let address = SocketAddr::from(([10, 9, 8, 1], port));
        let options = Options { mdns: true, ..options(address, id, &[]) };
        Node::start_with(options, address, None)
    };
    let first = start("a", 50061);
    let second = start("b", 50062);
    wait_for_status(&first.nodes, "b", "online");
    wait_for_status(&second.nodes, "a", "online");
    let seen = find(&first.nodes, "b").unwrap();
    assert_eq!(seen.address, second.address.to_string());
}
