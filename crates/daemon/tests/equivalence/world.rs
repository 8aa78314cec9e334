//! A process's service with all of its servers.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use librorum_daemon::admin::Admin;
use librorum_daemon::grpc;
use librorum_daemon::lbru::{self, Access, bind};
use librorum_daemon::logbook::LogBook;
use librorum_daemon::metrics::Metrics;
use librorum_daemon::mounts::{Mounted, Settings};
use librorum_daemon::nodes::{self, Nodes};
use librorum_daemon::service::{ServedVolume, Service};
use librorum_fs::{CheckOptions, FormatOptions, Fs, FsOptions, Volume};
use librorum_rpc::client::{Client, ClientOptions, Target, Transport};

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Where clients find a daemon.
#[derive(Clone, Debug)]
pub(crate) struct Doors {
    pub(crate) socket: PathBuf,
    pub(crate) grpc_socket: PathBuf,
    pub(crate) tcp: SocketAddr,
}

/// A way for bytes to a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Descriptor,
    Arena,
    Inline,
    GrpcSocket,
    GrpcTcp,
}

impl Way {
    pub(crate) const ALL: [Self; 5] =
        [Self::Descriptor, Self::Arena, Self::Inline, Self::GrpcSocket, Self::GrpcTcp];

    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| format!("{way:?}") == name)
    }

    /// Through which transport all large contents go.
    pub(crate) fn transport(self) -> Transport {
        match self {
            Self::Descriptor => Transport::Descriptor,
            Self::Arena => Transport::Arena,
            Self::Inline => Transport::Inline,
            Self::GrpcSocket | Self::GrpcTcp => Transport::Grpc,
        }
    }
}

impl Doors {
    pub(crate) fn client(&self, way: Way) -> Client {
        let (target, forbid) = match way {
            Way::Descriptor => (Target::Socket(self.socket.clone()), vec![Transport::Arena]),
            Way::Arena => (
                Target::Socket(self.socket.clone()),
                vec![Transport::Descriptor, Transport::Inline],
            ),
            Way::Inline => {
                (Target::Socket(self.socket.clone()), vec![Transport::Descriptor, Transport::Arena])
            }
            Way::GrpcSocket => {
                (Target::Grpc(format!("unix:{}", self.grpc_socket.display())), Vec::new())
            }
            Way::GrpcTcp => (Target::Grpc(format!("http://{}", self.tcp)), Vec::new()),
        };
        let options =
            ClientOptions { forbid, token: TOKEN.as_bytes().into(), ..ClientOptions::default() };
        Client::connect(target, options).unwrap()
    }
}

pub(crate) struct World {
    pub(crate) service: Service,
    pub(crate) server: lbru::Server,
    pub(crate) grpc: grpc::Handle,
    pub(crate) volumes: Vec<Arc<ServedVolume>>,
    mounted: Vec<Mounted>,
    pub(crate) doors: Doors,
}

impl World {
    /// Serves the volumes of these names in a folder, which are made if they are not there.
    pub(crate) fn open(dir: &Path, names: &[&str], quiet_ms: u64) -> Self {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
        let service = Service::new();
        let mut volumes = Vec::new();
        for name in names {
            let folder = dir.join(name);
            if !folder.exists() {
                Volume::format(&folder, &FormatOptions::default()).unwrap();
            }
            let options = FsOptions { quiet_ms, ..FsOptions::default() };
            let fs = Fs::open_volume(&folder, options).unwrap();
            volumes.push(service.add_volume(ServedVolume::new(*name, fs, false)).unwrap());
        }
        let metrics = Metrics::new();
        let log = LogBook::in_memory();
        let nodes = Nodes::start(nodes::Options::default()).unwrap();
        let admin = Admin::new(service.clone(), metrics.clone(), log.clone(), nodes.clone(), None);
        let options = lbru::Options::default();
        let server =
            lbru::Server::new(service.clone(), admin.clone(), metrics.clone(), options).unwrap();
        let socket = dir.join("run/librorum.sock");
        server.serve(bind(&socket, Access::Everybody).unwrap()).unwrap();
        let tokens = dir.join("tokens");
        std::fs::write(&tokens, format!("{TOKEN}\n")).unwrap();
        std::fs::set_permissions(&tokens, PermissionsExt::from_mode(0o600)).unwrap();
        let grpc_socket = dir.join("run/grpc.sock");
        let options = grpc::Options {
            tcp: vec![([127, 0, 0, 1], 0).into()],
            socket: Some(grpc_socket.clone()),
            tls: None,
            tokens: Some(tokens),
        };
        let grpc = grpc::serve(service.clone(), admin, metrics, log, nodes, &options).unwrap();
        let doors = Doors { socket, grpc_socket, tcp: grpc.addresses()[0] };
        Self { service, server, grpc, volumes, mounted: Vec::new(), doors }
    }

    pub(crate) fn mount(&mut self, index: usize, at: &Path) {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Mounted::mount(&self.volumes[index], at, &Settings::default(), None).unwrap();
        self.mounted.push(mounted);
    }

    pub(crate) fn seal_all(&self) {
        for volume in &self.volumes {
            volume.fs.seal_all();
        }
    }

    /// Ends it as a daemon ends; nothing of what clients had may be left.
    pub(crate) fn end(mut self) {
        for mounted in std::mem::take(&mut self.mounted) {
            mounted.end().unwrap();
        }
        crate::harness::eventually("all connections to end", || {
            self.server.connection_count() == 0
        });
        assert_eq!(self.server.session_count(), 0);
        assert!(self.grpc.shut_down(Duration::from_secs(5)));
        crate::harness::eventually("all uploads to end", || self.service.upload_count() == 0);
        self.server.shut_down();
        for volume in &self.volumes {
            assert_eq!(volume.fs.outside_counts().unwrap().waiting_upload_count, 0);
            volume.fs.shut_down().unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Of a test that failed: a mount that nobody serves would hang whoever looks at it.
        for mounted in std::mem::take(&mut self.mounted) {
            drop(mounted.end());
        }
    }
}

/// Opens a volume that nobody serves and reads all of it; answers what it found.
pub(crate) fn check(folder: &Path) -> Vec<librorum_fs::Finding> {
    let fs = Fs::open_volume(folder, FsOptions::default()).unwrap();
    let mut findings = Vec::new();
    let options = CheckOptions { read_data: true, repair: false };
    fs.check(options, &mut |_| {}, &mut |finding| findings.push(finding)).unwrap();
    fs.shut_down().unwrap();
    findings
}

/// Whether there can be a mount here.
pub(crate) fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("not root, or no /dev/fuse: there is no mount to compare with");
    }
    can
}
