//! A daemon, from its configuration to its end.
//!
//! What is reached first is opened last: volumes and mounts are there before anybody can ask for them.
//! A volume that fails is noted, and the others are served. The end goes the other way: no new requests,
//! those under way end, mounts go, volumes close.

mod reload;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use librorum_fs::{FormatOptions, Volume};
use rustix::fs::{FlockOperation, flock};

use crate::admin::Admin;
use crate::config::{Config, VolumeConfig};
use crate::grpc;
use crate::http;
use crate::lbru;
use crate::logbook::LogBook;
use crate::metrics::{Metrics, VolumeStatus};
use crate::mounts::{Settings, prepare_mountpoint};
use crate::nodes::{self, Nodes};
use crate::otlp::{self, Exporter};
use crate::service::{Identity, Service};

pub use reload::Origin;
use reload::Reloading;

/// How long requests that are under way may take when the daemon stops.
const GRACE: Duration = Duration::from_secs(10);

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum HostError {
    #[error("cannot listen on the socket {}: {source}", path.display())]
    Bind { path: PathBuf, source: lbru::BindError },
    #[error("a daemon with the same socket is running already, process {pid} (from {})", path.display())]
    Running { path: PathBuf, pid: u32 },
    #[error("cannot use {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the group '{name}' of daemon.socket_group does not exist")]
    NoGroup { name: String },
    #[error("cannot start threads: {0}")]
    Threads(std::io::Error),
    #[error(transparent)]
    Nodes(#[from] nodes::NodesError),
    #[error("cannot serve gRPC: {0}")]
    Grpc(#[from] grpc::ServeError),
    #[error(transparent)]
    Http(#[from] http::HttpError),
    #[error(transparent)]
    Otlp(#[from] otlp::OtlpError),
    #[error("none of the volumes could be opened:\n{}", .0.join("\n"))]
    NoVolume(Vec<String>),
}

/// A daemon that runs.
#[derive(Debug)]
pub struct Host {
    admin: Admin,
    nodes: Nodes,
    frames: lbru::Server,
    grpc: grpc::Handle,
    http: Option<http::Server>,
    exporter: Exporter,
    troubles: Vec<String>,
    socket: Option<PathBuf>,
    pid_file: PidFile,
}

impl Host {
    /// Opens, mounts and serves what is configured. `inherited` are sockets to listen on in place of the
    /// configured one.
    ///
    /// # Errors
    ///
    /// What keeps all of it from running; nothing is left behind then.
    pub fn start(
        config: &Config,
        origin: Origin,
        log: &LogBook,
        inherited: Vec<UnixListener>,
    ) -> Result<Self, HostError> {
        let socket = config.daemon.socket.clone();
        let is_inherited = !inherited.is_empty();
        let listeners = if is_inherited {
            inherited
        } else {
            let access = access(config)?;
            let bound = lbru::bind(&socket, access)
                .map_err(|source| HostError::Bind { path: socket.clone(), source })?;
            vec![bound]
        };
        let pid_file = PidFile::take(&socket.with_extension("pid"))?;

        let service = Service::new();
        let metrics = Metrics::new();
        metrics.set_slow_after(config.daemon.slow_after);
        let nodes = Nodes::start(node_options(config)?)?;
        let exporter = Exporter::new(metrics.clone());
        exporter.configure(otlp::Options::from_config(&config.metrics, nodes.own_id()))?;
        show(&metrics, log, &nodes, &service);
        service.set_identity(Identity {
            socket_path: Some(socket.clone()),
            node_id: nodes.own_id().to_owned(),
        });
        let reloading = Arc::new(Reloading::new(
            config.clone(),
            origin,
            log.clone(),
            metrics.clone(),
            nodes.clone(),
            exporter.clone(),
        ));
        let admin = Admin::new(
            service.clone(),
            metrics.clone(),
            log.clone(),
            nodes.clone(),
            Some(Box::new(Arc::clone(&reloading))),
        );
        let frames = lbru::Server::new(
            service.clone(),
            admin.clone(),
            metrics.clone(),
            frame_options(config),
        )
        .map_err(HostError::Threads)?;
        reloading.set_frames(frames.clone());
        admin.serve_folders(Some(frames.clone()));

        let troubles = open_volumes(&admin, &config.volumes);
        let started = Self::serve(config, &service, &admin, &metrics, log, &nodes);
        let (grpc, http) = match started {
            Ok(_) if !config.volumes.is_empty() && troubles.len() == config.volumes.len() => {
                admin.serve_folders(None);
                return Err(HostError::NoVolume(troubles));
            }
            Ok(served) => served,
            Err(error) => {
                admin.close_all();
                admin.serve_folders(None);
                return Err(error);
            }
        };
        for listener in listeners {
            frames.serve(listener).map_err(HostError::Threads)?;
        }
        admin.note_listening(format!("unix:{}", socket.display()));
        for address in grpc.addresses() {
            let scheme = if config.grpc.tls_cert.is_some() { "https" } else { "http" };
            admin.note_listening(format!("{scheme}://{address}"));
        }
        if let Some(path) = grpc.socket() {
            admin.note_listening(format!("grpc+unix:{}", path.display()));
        }
        if let Some(http) = &http {
            admin.note_listening(format!("http://{} (metrics)", http.address()));
        }
        tracing::info!(socket = %socket.display(), "the daemon is ready");
        let socket = (!is_inherited).then_some(socket);
        Ok(Self { admin, nodes, frames, grpc, http, exporter, troubles, socket, pid_file })
    }

    fn serve(
        config: &Config,
        service: &Service,
        admin: &Admin,
        metrics: &Metrics,
        log: &LogBook,
        nodes: &Nodes,
    ) -> Result<(grpc::Handle, Option<http::Server>), HostError> {
        let tls = match (&config.grpc.tls_cert, &config.grpc.tls_key) {
            (Some(certificate), Some(key)) => Some(grpc::TlsOptions {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: config.grpc.tls_client_ca.clone(),
                certificates: config.grpc.certificate_uids.iter().cloned().collect(),
            }),
            _ => None,
        };
        let options = grpc::Options {
            tcp: config.grpc.listen.clone(),
            socket: config.grpc.socket.clone(),
            tls,
            tokens: config.grpc.token_file.clone(),
        };
        let (service, admin, metrics) = (service.clone(), admin.clone(), metrics.clone());
        let figures = metrics.clone();
        let grpc =
            grpc::serve(service, admin.clone(), metrics, log.clone(), nodes.clone(), &options)?;
        let http = match config.metrics.listen {
            None => None,
            Some(address) => {
                let token = token(config.metrics.token_file.as_deref())?;
                let health: http::Health = Arc::new(move || {
                    if admin.is_stopping() { Err("the daemon stops".to_owned()) } else { Ok(()) }
                });
                Some(http::Server::start(address, token.as_deref(), figures, health)?)
            }
        };
        Ok((grpc, http))
    }

    /// What it can be asked and told.
    #[must_use]
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Volumes that are configured and could not be opened or mounted.
    #[must_use]
    pub fn troubles(&self) -> &[String] {
        &self.troubles
    }

    /// Where gRPC is served.
    #[must_use]
    pub fn grpc_addresses(&self) -> &[std::net::SocketAddr] {
        self.grpc.addresses()
    }

    /// Ends everything: takes no more requests, lets those under way end, unmounts and closes.
    pub fn shut_down(self) {
        tracing::info!("the daemon stops");
        if let Some(socket) = &self.socket
            && let Err(error) = std::fs::remove_file(socket)
        {
            tracing::debug!(%error, "the socket");
        }
        let grpc = &self.grpc;
        std::thread::scope(|scope| {
            scope.spawn(|| grpc.shut_down(GRACE));
            self.frames.shut_down();
        });
        self.admin.close_all();
        // It and the server hold each other.
        self.admin.serve_folders(None);
        self.nodes.shut_down();
        drop(self.http);
        self.exporter.shut_down();
        drop(self.pid_file);
    }
}

/// Lets the figures of all parts be seen with the others.
fn show(metrics: &Metrics, log: &LogBook, nodes: &Nodes, service: &Service) {
    let (log, nodes, service) = (log.clone(), nodes.clone(), service.clone());
    metrics.add_source(move |out| log.expose(out));
    metrics.add_source(move |out| nodes.expose(out));
    metrics.set_volumes(move || {
        let volumes = service.volumes();
        let statuses = volumes.iter().filter_map(|volume| match volume.fs.status() {
            Ok(status) => Some(VolumeStatus { name: volume.name.clone(), status }),
            Err(error) => {
                tracing::warn!(%error, volume = volume.name, "its figures are missing");
                None
            }
        });
        statuses.collect()
    });
}

/// Opens and mounts; answers what failed.
fn open_volumes(admin: &Admin, volumes: &[VolumeConfig]) -> Vec<String> {
    let mut troubles = Vec::new();
    for volume in volumes {
        if let Err(failure) = open_volume(admin, volume) {
            let message = format!("volume '{}': {failure}", volume.name);
            tracing::error!("{message}");
            troubles.push(message);
        }
    }
    troubles
}

fn open_volume(admin: &Admin, volume: &VolumeConfig) -> Result<(), librorum_rpc::Failure> {
    let mut settings = Settings::default();
    for option in &volume.options {
        settings.apply(option)?;
    }
    let failed = |kind, message| librorum_rpc::Failure::file(kind, message);
    if volume.create && !Volume::exists(&volume.path) && !settings.read_only {
        Volume::format(&volume.path, &FormatOptions::default()).map_err(|error| {
            failed(error.kind(), format!("cannot make it in {}: {error}", volume.path.display()))
        })?;
    }
    let folder = volume.path.canonicalize().map_err(|error| {
        let kind = librorum_format::ErrorKind::NotFound;
        failed(kind, format!("nothing at {}: {error}", volume.path.display()))
    })?;
    let mountpoint = volume.mount.as_deref().map(prepare_mountpoint).transpose()?;
    admin.open_volume(&volume.name, &folder, &settings, mountpoint.as_deref())?;
    if let Some(mountpoint) = &mountpoint {
        admin.mount_volume(&volume.name, mountpoint, &settings)?;
    }
    Ok(())
}

fn access(config: &Config) -> Result<lbru::Access, HostError> {
    let Some(name) = &config.daemon.socket_group else {
        // Whom the configuration lets in beside the owner has to be able to open it.
        let others = !config.daemon.allow_uids.is_empty() || !config.daemon.allow_gids.is_empty();
        return Ok(if others { lbru::Access::Everybody } else { lbru::Access::Owner });
    };
    group(name).map(lbru::Access::Group).ok_or_else(|| HostError::NoGroup { name: name.clone() })
}

/// The number of a group, by group(5).
fn group(name: &str) -> Option<u32> {
    if let Ok(gid) = name.parse() {
        return Some(gid);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

fn frame_options(config: &Config) -> lbru::Options {
    let daemon = &config.daemon;
    let is_open = daemon.allow_uids.is_empty() && daemon.allow_gids.is_empty();
    let limits = &config.limits;
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    lbru::Options {
        // Without a list, who can open the socket may.
        allowed: (!is_open).then(|| lbru::Allowed {
            uids: daemon.allow_uids.clone(),
            gids: daemon.allow_gids.clone(),
        }),
        limits: lbru::Limits {
            connections_max: count(limits.connections),
            connections_per_user_max: count(limits.connections_per_uid),
            requests_max: limits.requests,
            bytes_max: limits.bytes,
            leases_max: limits.leases,
            ..lbru::Limits::default()
        },
        grpc_address: config
            .grpc
            .socket
            .as_ref()
            .map_or_else(String::new, |path| format!("unix:{}", path.display())),
        grace: GRACE,
        ..lbru::Options::default()
    }
}

fn node_options(config: &Config) -> Result<nodes::Options, HostError> {
    let nodes = &config.nodes;
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| HostError::Io { path: path.to_owned(), source })
    };
    let ca = nodes.tls_ca.as_deref().map(read).transpose()?;
    let identity = match (&config.grpc.tls_cert, &config.grpc.tls_key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    Ok(nodes::Options {
        name: nodes.name.clone(),
        id: nodes.id.clone(),
        state_dir: Some(config.daemon.state_dir.clone()),
        listen: config.grpc.listen.clone(),
        advertise: nodes.advertise.clone(),
        peers: nodes.peers.clone(),
        mdns: nodes.mdns,
        heartbeat: nodes.heartbeat,
        offline_after: nodes.offline_after,
        token: token(nodes.token_file.as_deref())?,
        tls: ca.map(|ca| nodes::Tls { ca, identity }),
    })
}

/// The token of a file.
fn token(path: Option<&Path>) -> Result<Option<String>, HostError> {
    path.map(|path| {
        Config::first_token(path).map_err(|source| HostError::Io { path: path.to_owned(), source })
    })
    .transpose()
}

/// Which process serves a socket; locked as long as it does.
#[derive(Debug)]
struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    fn take(path: &Path) -> Result<Self, HostError> {
        let io = |source| HostError::Io { path: path.to_owned(), source };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                file.read_to_string(&mut text).map_err(io)?;
                let pid = text.trim().parse().unwrap_or(0);
                return Err(HostError::Running { path: path.to_owned(), pid });
            }
            Err(error) => return Err(io(error.into())),
        }
        file.set_len(0).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { path: path.to_owned(), _locked: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the pid file");
        }
    }
}
