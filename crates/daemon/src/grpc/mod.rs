//! gRPC, for everybody: other machines over TCP, and programs of this one over a Unix socket.
//!
//! The server has a runtime of its own; what it serves is synchronous and runs on threads that may wait
//! ([`call`]). Who asks is decided at the [`auth`] door, before anything else looks at a request. File
//! bytes do not go through the generated code ([`bulk`]). The services of the first Librorum are in
//! [`legacy`]. How clients use all this is in `docs/grpc.md`.

mod accounts;
mod admin;
mod auth;
mod bulk;
mod call;
mod conn;
mod files;
mod health;
mod legacy;
mod pool;
mod tls;
mod tokens;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use librorum_rpc::proto::{DESCRIPTORS, file, log, node, v1};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;

use self::auth::Door;
use self::bulk::Bulk;
use self::call::Shared;
use self::conn::Listener;
use self::tokens::Tokens;
use crate::admin::Admin;
use crate::logbook::LogBook;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::service::Service;

pub use self::tls::TlsOptions;

/// Threads that speak HTTP/2. They never wait for a disk, and two of them fill a fast network.
const THREAD_COUNT: usize = 2;

/// What one stream may have in flight, and all of a connection: what a fast network holds in a
/// millisecond or two, and what we are ready to buffer for a client.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The default of 16 KiB costs half of the speed (measured).
const FRAME_BYTES_MAX: u32 = 1 << 20;

/// Of one connection; the server as a whole has its own limits.
const STREAMS_MAX: u32 = 256;

/// Metadata of a request.
const HEADER_BYTES_MAX: u32 = 64 << 10;

/// After so long a silence a client is asked whether it is there, and so long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Where gRPC is served, and to whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses. Any beyond loopback needs [`Options::tls`].
    pub tcp: Vec<SocketAddr>,
    /// The Unix socket, in a folder that only its owner can write to.
    pub socket: Option<PathBuf>,
    /// Encryption, of all TCP addresses.
    pub tls: Option<TlsOptions>,
    /// The token file (its form is in `docs/grpc.md`); made if it is not there. Without one, only client
    /// certificates let anybody in over TCP.
    pub tokens: Option<PathBuf>,
}

impl Default for Options {
    /// Port 50051 of loopback.
    fn default() -> Self {
        Self {
            tcp: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 50051))],
            socket: None,
            tls: None,
            tokens: None,
        }
    }
}

/// Why gRPC is not served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum ServeError {
    #[error(
        "gRPC on {address} could be reached from other machines, and is not served without TLS: \
         configure a certificate and key, or listen on 127.0.0.1"
    )]
    NeedsTls { address: SocketAddr },
    #[error(
        "gRPC on {address} would let nobody in: configure a token file, or a client CA and the names of \
         its certificates"
    )]
    LetsNobodyIn { address: SocketAddr },
    #[error(
        "client certificates are configured incompletely: a client CA and at least one name with a user's \
         number belong together"
    )]
    HalfCertificates,
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot listen on the socket {path}")]
    ListenSocket { path: PathBuf, source: io::Error },
    #[error("another process serves the socket {path}")]
    SocketInUse { path: PathBuf },
    #[error("{path} is in the socket's way and is no socket")]
    NotASocket { path: PathBuf },
    #[error(
        "the socket's folder {folder} can be written by others, who could put their own socket there: \
         use a folder of your own, such as $XDG_RUNTIME_DIR/librorum with mode 700"
    )]
    FolderNotPrivate { folder: PathBuf },
    #[error("cannot use the token file {path}")]
    Tokens { path: PathBuf, source: io::Error },
    #[error("the token file {path} is not secret: chmod 600 it, and chown it to the daemon's user")]
    TokensNotSecret { path: PathBuf },
    #[error("line {line} of the token file {path}: {why}")]
    BadToken { path: PathBuf, line: usize, why: &'static str },
    #[error("cannot read {path} for TLS")]
    ReadTls { path: PathBuf, source: io::Error },
    #[error("the key {path} can be read by others: chmod 600 it")]
    KeyNotSecret { path: PathBuf },
    #[error("the certificate, key or client CA is not usable")]
    Tls(#[source] tonic::transport::Error),
    #[error("the schema for reflection is broken")]
    Reflection(#[source] tonic_reflection::server::Error),
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
}

/// A server that runs. Dropped, it stops at once.
#[derive(Debug)]
pub struct Handle {
    addresses: Vec<SocketAddr>,
    socket: Option<SocketFile>,
    closing: watch::Sender<bool>,
    /// Everything that serves holds the other end: it closes when the last one is done.
    done: Mutex<mpsc::Receiver<()>>,
    runtime: Mutex<Option<Runtime>>,
}

impl Handle {
    /// The TCP addresses, with the ports that the kernel chose.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The Unix socket.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_ref().map(|socket| socket.path.as_path())
    }

    /// Takes no further request, waits up to `grace` for those under way, and ends. Answers whether all
    /// of them were done in time.
    pub fn shut_down(&self, grace: Duration) -> bool {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(runtime) = runtime else { return true };
        self.closing.send_replace(true);
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let all_done = done.recv_timeout(grace) == Err(mpsc::RecvTimeoutError::Disconnected);
        // Calls that still wait for a disk are left behind: nothing may hang here. On a thread of its own,
        // because a runtime must not end on a thread of another one, where this handle may be dropped.
        let patience = Duration::from_millis(if all_done { 1000 } else { 10 });
        let ending = std::thread::Builder::new()
            .name("grpc-end".to_owned())
            .spawn(move || runtime.shutdown_timeout(patience));
        match ending.map(std::thread::JoinHandle::join) {
            Ok(Ok(())) => {}
            Ok(Err(_panic)) => tracing::error!("the runtime of gRPC did not end well"),
            Err(error) => tracing::warn!(%error, "the runtime of gRPC ended without a thread"),
        }
        if let Some(socket) = &self.socket {
            socket.remove();
        }
        all_done
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shut_down(Duration::ZERO);
    }
}

/// Serves until [`Handle::shut_down`].
///
/// # Errors
///
/// What is configured is not safe or does not work; nothing listens then.
pub fn serve(
    service: Service,
    admin: Admin,
    metrics: Metrics,
    logs: LogBook,
    nodes: Nodes,
    options: &Options,
) -> Result<Handle, ServeError> {
    check(options)?;
    let tls =
        options.tls.as_ref().map(|tls| tls::config(tls, options.tokens.is_some())).transpose()?;
    let tokens = match &options.tokens {
        // Over the socket alone nobody needs one.
        Some(path) if !options.tcp.is_empty() => Some(Arc::new(Tokens::open(path)?)),
        _ => None,
    };
    let certificates = options.tls.as_ref().map(|tls| tls.certificates.clone()).unwrap_or_default();
    let door = Door { tokens, certificates: Arc::new(certificates) };

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREAD_COUNT)
        .max_blocking_threads(call::BLOCKING_THREADS_MAX)
        .thread_name("grpc")
        .enable_all()
        .build()
        .map_err(ServeError::Threads)?;
    let entered = runtime.enter();
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for &address in &options.tcp {
        let failed = |source| ServeError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        addresses.push(listener.local_addr().map_err(failed)?);
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        listeners.push((Listener::Tcp(listener), tls.clone()));
    }
    let socket = match &options.socket {
        None => None,
        Some(path) => {
            let (listener, socket) = listen_on_socket(path)?;
            listeners.push((Listener::Unix(listener), None));
            Some(socket)
        }
    };

    let (closing, closing_seen) = watch::channel(false);
    let shared = Shared::new(service, admin, metrics, logs, nodes, closing_seen.clone());
    let routes = routes(&shared)?;
    let (serving, done) = mpsc::channel();
    for (listener, tls) in listeners {
        let mut server = tuned();
        if let Some(tls) = tls {
            server = server.tls_config(tls).map_err(ServeError::Tls)?;
        }
        let incoming =
            listener.run(shared.service.clone(), shared.metrics.clone(), closing_seen.clone());
        let mut stop = closing_seen.clone();
        let serving = serving.clone();
        let router = server.layer(door.clone()).add_routes(routes.clone());
        runtime.spawn(async move {
            let stop = async move {
                // An error means that the handle is gone, which is as good.
                drop(stop.wait_for(|&closing| closing).await);
            };
            let served =
                router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop).await;
            if let Err(error) = served {
                tracing::error!(%error, "gRPC is no longer served");
            }
            drop(serving);
        });
    }
    drop(entered);
    tracing::info!(?addresses, socket = ?options.socket, "gRPC is served");
    Ok(Handle {
        addresses,
        socket,
        closing,
        done: Mutex::new(done),
        runtime: Mutex::new(Some(runtime)),
    })
}

/// Whether what is configured is safe, before anything listens.
fn check(options: &Options) -> Result<(), ServeError> {
    if let Some(tls) = &options.tls
        && tls.client_ca.is_some() == tls.certificates.is_empty()
    {
        return Err(ServeError::HalfCertificates);
    }
    for &address in &options.tcp {
        // The unspecified address is every interface.
        if !address.ip().is_loopback() && options.tls.is_none() {
            return Err(ServeError::NeedsTls { address });
        }
        let has_certificates = options.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if options.tokens.is_none() && !has_certificates {
            return Err(ServeError::LetsNobodyIn { address });
        }
    }
    Ok(())
}

fn tuned() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// All services.
fn routes(shared: &Shared) -> Result<Routes, ServeError> {
    /// The decoder's limit: the default of 4 MiB is less than what clients send in one message.
    macro_rules! sized {
        ($server:expr) => {
            $server
                .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(wire::MESSAGE_BYTES_MAX)
        };
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let files = v1::files_server::FilesServer::new(files::FilesService(shared.clone()));
    let admin = v1::admin_server::AdminServer::new(admin::AdminService(shared.clone()));
    let legacy_files = file::file_service_server::FileServiceServer::new(
        legacy::file::FileService(shared.clone()),
    );
    let legacy_nodes = node::node_service_server::NodeServiceServer::new(
        legacy::node::NodeService::new(shared.clone()),
    );
    let legacy_logs =
        log::log_service_server::LogServiceServer::new(legacy::log::LogService(shared.clone()));
    let health =
        tonic_health::pb::health_server::HealthServer::new(health::HealthService(shared.clone()));
    Ok(Routes::new(Bulk::new(sized!(files), shared.clone()))
        .add_service(sized!(admin))
        .add_service(Bulk::new(sized!(legacy_files), shared.clone()))
        .add_service(sized!(legacy_nodes))
        .add_service(sized!(legacy_logs))
        .add_service(health)
        .add_service(reflection().build_v1().map_err(ServeError::Reflection)?)
        .add_service(reflection().build_v1alpha().map_err(ServeError::Reflection)?)
        .prepare())
}

/// A socket of ours in the file system.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Removes it, unless somebody else has put another one there.
    fn remove(&self) {
        let ours = self
            .path
            .symlink_metadata()
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket is still there");
        }
    }
}

fn listen_on_socket(path: &Path) -> Result<(tokio::net::UnixListener, SocketFile), ServeError> {
    let failed = |source| ServeError::ListenSocket { path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let found = folder.metadata().map_err(failed)?;
    let own_uid = rustix::process::geteuid().as_raw();
    if found.mode() & 0o022 != 0 || (found.uid() != own_uid && found.uid() != 0) {
        return Err(ServeError::FolderNotPrivate { folder: folder.to_owned() });
    }
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NotASocket { path: path.to_owned() });
        }
        Ok(_socket) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_taken) => return Err(ServeError::SocketInUse { path: path.to_owned() }),
            // Nobody listens: whoever made it was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        },
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
    // Who may reach it is decided by the folder; what they may do, by their user.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let made = path.symlink_metadata().map_err(failed)?;
    let socket = SocketFile { path: path.to_owned(), identity: (made.dev(), made.ino()) };
    Ok((tokio::net::UnixListener::from_std(listener).map_err(failed)?, socket))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn tls(certificates: BTreeMap<String, u32>, client_ca: Option<PathBuf>) -> Option<TlsOptions> {
        Some(TlsOptions { certificate: "c".into(), key: "k".into(), client_ca, certificates })
    }

    /// The earlier Librorum served everybody on all interfaces, without a question.
    #[test]
    fn nothing_beyond_loopback_without_tls_and_proof() {
        let of = |address: &str, tls: Option<TlsOptions>, has_tokens: bool| {
            let tokens = has_tokens.then(|| PathBuf::from("t"));
            check(&Options { tcp: vec![address.parse().unwrap()], socket: None, tls, tokens })
        };
        let names = || BTreeMap::from([("ada".to_owned(), 1000)]);
        for open in ["0.0.0.0:1", "[::]:1", "192.168.1.2:1", "10.0.0.1:1", "203.0.113.5:1"] {
            let refused = of(open, None, true).unwrap_err();
            assert!(matches!(refused, ServeError::NeedsTls { .. }));
            assert!(refused.to_string().contains("configure a certificate"), "{refused}");
            assert!(matches!(
                of(open, tls(BTreeMap::new(), None), false),
                Err(ServeError::LetsNobodyIn { .. })
            ));
            of(open, tls(BTreeMap::new(), None), true).unwrap();
            of(open, tls(names(), Some("ca".into())), false).unwrap();
            assert!(matches!(
                of(open, tls(names(), None), true),
                Err(ServeError::HalfCertificates)
            ));
        }
        for own in ["127.0.0.1:1", "[::1]:1", "127.1.2.3:1"] {
            of(own, None, true).unwrap();
            assert!(matches!(of(own, None, false), Err(ServeError::LetsNobodyIn { .. })));
        }
    }
}
