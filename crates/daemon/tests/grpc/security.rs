//! Who is let in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use librorum_daemon::grpc::{ServeError, TlsOptions};
use librorum_rpc::proto::{file, v1};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Daemon, OTHER_TOKEN, OTHER_UID, by};

async fn whoami(
    channel: Channel,
    name: &str,
    request: impl Fn(v1::PutRequest) -> Request<v1::PutRequest>,
) -> Result<u32, Status> {
    let put = v1::PutRequest { path: name.as_bytes().to_vec().into(), ..Default::default() };
    let made = v1::files_client::FilesClient::new(channel).put(request(put)).await?;
    Ok(made.into_inner().entry.unwrap().uid)
}

async fn open_root(daemon: &Daemon) {
    let attributes = v1::SetAttributesRequest { mode: Some(0o777), ..Default::default() };
    daemon.files().await.set_attributes(attributes).await.unwrap();
}

/// Everybody was let in, on all interfaces.
#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_nothing_is_reached_without_a_token() {
    let daemon = Daemon::start();
    let channel = daemon.tcp().await;
    let refused = |status: Status| {
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(!status.message().contains("0123456789abcdef"));
    };
    let mut files = v1::files_client::FilesClient::new(channel.clone());
    refused(files.capabilities(v1::CapabilitiesRequest {}).await.unwrap_err());
    refused(files.read(v1::ReadRequest::default()).await.unwrap_err());
    let mut legacy = file::file_service_client::FileServiceClient::new(channel.clone());
    refused(legacy.list_files(file::ListFilesRequest::default()).await.unwrap_err());
    let mut health = HealthClient::new(channel.clone());
    refused(health.check(HealthCheckRequest::default()).await.unwrap_err());
    for token in
        ["", "wrong", "0123456789abcdef0123456789abcdee", "0123456789abcdef0123456789abcdef0"]
    {
        refused(files.capabilities(by(token, v1::CapabilitiesRequest {})).await.unwrap_err());
    }
    files.capabilities(daemon.by_me(v1::CapabilitiesRequest {})).await.unwrap();
    health.check(daemon.by_me(HealthCheckRequest::default())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_acts_as_its_user_and_a_socket_as_its_peer() {
    let daemon = Daemon::start();
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(whoami(daemon.uds().await, "by-socket", Request::new).await.unwrap(), own);
    let denied = whoami(daemon.tcp().await, "x", |put| by(OTHER_TOKEN, put)).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    open_root(&daemon).await;
    let other = whoami(daemon.tcp().await, "by-other", |put| by(OTHER_TOKEN, put)).await.unwrap();
    assert_eq!(other, OTHER_UID);
    let mine = whoami(daemon.tcp().await, "by-me", |put| by(&daemon.token, put)).await.unwrap();
    assert_eq!(mine, own);
    // What the operator does is the operator's.
    let mut admin = v1::admin_client::AdminClient::new(daemon.tcp().await);
    let stop = admin.shutdown(by(OTHER_TOKEN, v1::ShutdownRequest {})).await.unwrap_err();
    assert_eq!(stop.code(), Code::PermissionDenied);
}

struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    fn pem(&self) -> String {
        self.certificate.pem()
    }

    fn issue(&self, names: &[&str]) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn connect(
    address: SocketAddr,
    authority: &Authority,
    identity: Option<(String, String)>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority.pem()))
        .domain_name("localhost");
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Endpoint::from_shared(format!("https://127.0.0.1:{}", address.port()))?
        .tls_config(tls)?
        .connect()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_with_tls_a_token_or_a_certificate_lets_in() {
    let dir = tempfile::tempdir().unwrap();
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (certificate, key) = servers.issue(&["localhost"]);
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        secret(&path, text);
        path
    };
    let tls = TlsOptions {
        certificate: file("cert.pem", &certificate),
        key: file("key.pem", &key),
        client_ca: Some(file("ca.pem", &clients.pem())),
        certificates: BTreeMap::from([("render-7.example".to_owned(), 4321)]),
    };
    let daemon = Daemon::with(vec!["0.0.0.0:0".parse().unwrap()], Some(tls)).unwrap();
    open_root(&daemon).await;
    let address = daemon.address();

    let known =
        connect(address, &servers, Some(clients.issue(&["render-7.example"]))).await.unwrap();
    assert_eq!(whoami(known, "a", Request::new).await.unwrap(), 4321);
    let unnamed =
        connect(address, &servers, Some(clients.issue(&["other.example"]))).await.unwrap();
    let refused = whoami(unnamed.clone(), "b", Request::new).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let with_token = whoami(unnamed, "c", |put| by(&daemon.token, put)).await.unwrap();
    assert_eq!(with_token, rustix::process::geteuid().as_raw());
    let bare = connect(address, &servers, None).await.unwrap();
    let refused = whoami(bare.clone(), "d", Request::new).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    whoami(bare, "e", |put| by(OTHER_TOKEN, put)).await.unwrap();
    // A certificate of somebody else's authority, and no encryption at all.
    let forged = connect(address, &servers, Some(strangers.issue(&["render-7.example"]))).await;
    if let Ok(channel) = forged {
        assert!(whoami(channel, "f", Request::new).await.is_err());
    }
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{}", address.port())).unwrap();
    if let Ok(channel) = plain.connect().await {
        assert!(whoami(channel, "g", |put| by(&daemon.token, put)).await.is_err());
    }
}

#[test]
fn what_is_not_safe_does_not_start() {
    let refused = Daemon::with(vec!["0.0.0.0:0".parse().unwrap()], None).err().unwrap();
    assert!(matches!(refused, ServeError::NeedsTls { .. }), "{refused}");
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority.issue(&["localhost"]);
    let (certificate_path, key_path) = (dir.path().join("c"), dir.path().join("k"));
    std::fs::write(&certificate_path, certificate).unwrap();
    std::fs::write(&key_path, key).unwrap();
    std::fs::set_permissions(&key_path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let tls = TlsOptions {
        certificate: certificate_path,
        key: key_path,
        client_ca: None,
        certificates: BTreeMap::new(),
    };
    let refused = Daemon::with(vec!["0.0.0.0:0".parse().unwrap()], Some(tls)).err().unwrap();
    assert!(matches!(refused, ServeError::KeyNotSecret { .. }), "{refused}");
}

#[test]
fn the_socket_goes_with_the_server() {
    let daemon = Daemon::start();
    let socket = daemon.socket();
    assert!(socket.exists());
    assert!(daemon.handle.shut_down(std::time::Duration::from_secs(5)));
    assert!(!socket.exists());
}
