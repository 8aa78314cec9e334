//! What a daemon is asked about itself, and told to do.
//!
//! Everybody who may connect may look; changes are for root and the daemon's own user.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use librorum_format::ErrorKind;
use librorum_fs::{FormatOptions, Fs, FsOptions, Volume};
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};
use librorum_sys::Holder;

use crate::api::{self, Api};
use crate::control::{self, Control};
use crate::lbru;
use crate::lock;
use crate::logbook::LogBook;
use crate::metrics::Metrics;
use crate::mounts::{Mounted, Settings, prepare_mountpoint, require_apart};
use crate::nodes::Nodes;
use crate::service::{Call, ServedVolume, Service};

/// What is read anew when somebody asks for it: the configuration's business.
pub trait Reload: Send + Sync {
    /// Reads the configuration again and applies what can change; answers what did and what waits.
    ///
    /// # Errors
    ///
    /// What is wrong with it; then nothing has changed.
    fn reload(&self) -> Result<v1::ReloadResponse, Failure>;

    /// What is in effect.
    fn config(&self) -> v1::ConfigResponse;
}

/// What this process serves beside its volumes.
#[derive(Clone)]
pub struct Admin(Arc<Inner>);

struct Inner {
    service: Service,
    metrics: Metrics,
    log: LogBook,
    nodes: Nodes,
    reload: Option<Box<dyn Reload>>,
    started: Instant,
    listening: Mutex<Vec<String>>,
    /// One change of volumes and mounts at a time.
    changes: Mutex<()>,
    open: Mutex<HashMap<String, OpenVolume>>,
    stop: Stop,
    /// Answers in the folders of volumes, too.
    folders: Mutex<Option<lbru::Server>>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("service", &self.0.service).finish_non_exhaustive()
    }
}

/// A volume that this process has open.
#[derive(Debug)]
struct OpenVolume {
    served: Arc<ServedVolume>,
    mounted: Option<Mounted>,
    /// It was opened for its mount only, and closes with it.
    closes_with_mount: bool,
    _control: Option<Control>,
    _api: Option<Api>,
}

/// Whether the process should end.
#[derive(Debug, Default)]
struct Stop {
    wanted: AtomicBool,
    mutex: Mutex<()>,
    changed: Condvar,
}

impl Admin {
    /// The administration of a process.
    #[must_use]
    pub fn new(
        service: Service,
        metrics: Metrics,
        log: LogBook,
        nodes: Nodes,
        reload: Option<Box<dyn Reload>>,
    ) -> Self {
        Self(Arc::new(Inner {
            service,
            metrics,
            log,
            nodes,
            reload,
            started: librorum_sys::clock::instant(),
            listening: Mutex::default(),
            changes: Mutex::default(),
            open: Mutex::default(),
            stop: Stop::default(),
            folders: Mutex::default(),
        }))
    }

    /// Serves volumes in their folders as well, from now on: who finds a volume finds who holds it.
    pub fn serve_folders(&self, server: Option<lbru::Server>) {
        *lock(&self.0.folders) = server;
    }

    /// Notes an address that is served.
    pub fn note_listening(&self, address: String) {
        lock(&self.0.listening).push(address);
    }

    /// Asks the process to end.
    pub fn stop(&self) {
        self.0.stop.wanted.store(true, Ordering::Release);
        let _guard = lock(&self.0.stop.mutex);
        self.0.stop.changed.notify_all();
    }

    /// Whether the process was asked to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.stop.wanted.load(Ordering::Acquire)
    }

    /// Waits until somebody asks the process to end.
    pub fn wait_for_stop(&self) {
        let mut guard = lock(&self.0.stop.mutex);
        while !self.is_stopping() {
            guard =
                self.0.stop.changed.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Opens a volume and serves it under a name.
    ///
    /// # Errors
    ///
    /// `Busy` if another process has it; what opening it answers.
    pub fn open_volume(
        &self,
        name: &str,
        folder: &Path,
        settings: &Settings,
        mountpoint: Option<&Path>,
    ) -> Result<Arc<ServedVolume>, Failure> {
        let mut options = FsOptions {
            holder: Holder {
                pid: std::process::id(),
                command: "daemon".to_owned(),
                mountpoint: mountpoint.map(Path::to_owned),
            },
            ..FsOptions::default()
        };
        settings.configure(&mut options);
        let fs = Fs::open_volume(folder, options).map_err(|error| {
            let message = format!("cannot open volume {}: {error}", folder.display());
            Failure::file(error.kind(), message)
        })?;
        let control = control::serve(&fs, folder)
            .inspect_err(|error| tracing::warn!(%error, "no control socket"))
            .ok();
        let served = ServedVolume::new(name, Arc::clone(&fs), settings.read_only);
        let served = match self.0.service.add_volume(served) {
            Ok(served) => served,
            Err(failure) => {
                close(&fs);
                return Err(failure);
            }
        };
        let server = lock(&self.0.folders).clone();
        let api = server.and_then(|server| {
            api::serve(&server, folder)
                .inspect_err(|error| tracing::warn!(%error, "no socket in the volume's folder"))
                .ok()
        });
        let open = OpenVolume {
            served: Arc::clone(&served),
            mounted: None,
            closes_with_mount: false,
            _control: control,
            _api: api,
        };
        lock(&self.0.open).insert(name.to_owned(), open);
        Ok(served)
    }

    /// Mounts an open volume.
    ///
    /// # Errors
    ///
    /// What mounting answers.
    pub fn mount_volume(
        &self,
        name: &str,
        mountpoint: &Path,
        settings: &Settings,
    ) -> Result<bool, Failure> {
        let served = self.0.service.volume(name)?;
        require_apart(&served.fs.volume().dir, mountpoint)?;
        let is_mounted = lock(&self.0.open)
            .get(name)
            .is_some_and(|open| open.mounted.as_ref().is_some_and(|mounted| !mounted.is_over()));
        if is_mounted {
            let message = format!("volume '{name}' is mounted already");
            return Err(Failure::file(ErrorKind::Busy, message));
        }
        let (ended, end) = std::sync::mpsc::channel();
        let mounted = Mounted::mount(&served, mountpoint, settings, Some(ended))?;
        let passthrough = mounted.passthrough();
        if let Some(open) = lock(&self.0.open).get_mut(name) {
            open.mounted = Some(mounted);
        }
        let (admin, name) = (self.clone(), name.to_owned());
        let watching = std::thread::Builder::new().name("mount-end".to_owned()).spawn(move || {
            if end.recv().is_ok() {
                admin.mount_ended(&name);
            }
        });
        if let Err(error) = watching {
            tracing::warn!(%error, "a volume will stay open when it is unmounted");
        }
        Ok(passthrough)
    }

    /// A mount is over, whoever unmounted it.
    fn mount_ended(&self, name: &str) {
        let _one_at_a_time = lock(&self.0.changes);
        let closes = {
            let mut open = lock(&self.0.open);
            let Some(open) = open.get_mut(name) else { return };
            if let Some(mut mounted) = open.mounted.take()
                && let Err(error) = mounted.take_result()
            {
                tracing::error!(%error, volume = name, "serving the mount");
            }
            open.closes_with_mount
        };
        if closes {
            self.close_volume(name);
        }
    }

    fn close_volume(&self, name: &str) {
        let Some(mut open) = lock(&self.0.open).remove(name) else { return };
        self.0.service.remove_volume(name);
        if let Some(mounted) = open.mounted.take()
            && let Err(error) = mounted.end()
        {
            tracing::error!(%error, volume = name, "serving the mount");
        }
        close(&open.served.fs);
    }

    /// Unmounts and closes everything.
    pub fn close_all(&self) {
        let _one_at_a_time = lock(&self.0.changes);
        let names: Vec<String> = lock(&self.0.open).keys().cloned().collect();
        for name in names {
            self.close_volume(&name);
        }
    }

    fn require_owner(&self, call: &Call, what: &str) -> Result<(), Failure> {
        if self.0.service.may_lend(&call.caller) {
            return Ok(());
        }
        let message = format!(
            "user {} may not {what}: that is for root and the daemon's user",
            call.caller.uid
        );
        Err(Failure::new(Reason::AccessDenied, message))
    }

    /// What the process is and holds.
    ///
    /// # Errors
    ///
    /// `NotFound` for a volume that there is not; the disk's.
    pub fn status(
        &self,
        _call: &Call,
        request: &v1::StatusRequest,
    ) -> Result<v1::StatusResponse, Failure> {
        let volumes = if request.volume.is_empty() {
            self.0.service.volumes()
        } else {
            vec![self.0.service.volume(&request.volume)?]
        };
        let volumes: Result<Vec<String>, Failure> =
            volumes.iter().map(|volume| volume_status(volume)).collect();
        Ok(v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            volumes: volumes?,
            listening: lock(&self.0.listening).clone(),
            resident_bytes: resident_bytes(),
            open_files: std::fs::read_dir("/proc/self/fd").map_or(0, |list| list.count() as u64),
        })
    }

    /// Counts of operations, and the volumes' states.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn stats(
        &self,
        _call: &Call,
        _request: &v1::StatsRequest,
    ) -> Result<v1::StatsResponse, Failure> {
        let mut stats = self.0.metrics.stats();
        stats.uploads_open = self.0.service.upload_count() as u64;
        stats.resident_bytes = resident_bytes();
        stats.uptime_ms = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        for volume in self.0.service.volumes() {
            stats.volumes.push(volume_status(&volume)?);
        }
        Ok(stats)
    }

    /// The newest operations.
    ///
    /// # Errors
    ///
    /// `AccessDenied` for anybody but root and the daemon's user: paths are other users' too.
    pub fn trace(
        &self,
        call: &Call,
        request: &v1::TraceRequest,
    ) -> Result<v1::TraceResponse, Failure> {
        self.require_owner(call, "see what others do")?;
        Ok(self.0.metrics.trace(request))
    }

    /// Records of the log.
    ///
    /// # Errors
    ///
    /// As [`Admin::trace`].
    pub fn logs(
        &self,
        call: &Call,
        request: &v1::LogsRequest,
    ) -> Result<v1::LogsResponse, Failure> {
        self.require_owner(call, "read the log")?;
        self.0.log.logs_unless(request, &call.cancel)
    }

    /// The nodes that are known, after a change if one is asked for.
    ///
    /// # Errors
    ///
    /// `AccessDenied`, `InvalidInput` for an address that is none, `NotFound`.
    pub fn nodes(
        &self,
        call: &Call,
        request: &v1::NodesRequest,
    ) -> Result<v1::NodesResponse, Failure> {
        if !request.add.is_empty() {
            self.require_owner(call, "add a node")?;
            self.0.nodes.add(&request.add)?;
        }
        if !request.remove.is_empty() {
            self.require_owner(call, "remove a node")?;
            self.0.nodes.remove(&request.remove)?;
        }
        Ok(self.0.nodes.list())
    }

    /// Mounts a volume, which is opened, and made, if it has to be.
    ///
    /// # Errors
    ///
    /// `AccessDenied`; what opening and mounting answer.
    pub fn mount(
        &self,
        call: &Call,
        request: &v1::MountRequest,
    ) -> Result<v1::MountResponse, Failure> {
        self.require_owner(call, "mount")?;
        let _one_at_a_time = lock(&self.0.changes);
        let mut settings = Settings::default();
        for option in &request.options {
            settings.apply(option)?;
        }
        let folder = PathBuf::from(OsStr::from_bytes(&request.folder));
        let mountpoint = PathBuf::from(OsStr::from_bytes(&request.mountpoint));
        for path in [&folder, &mountpoint] {
            if !path.is_absolute() {
                let message = format!("'{}' is not an absolute path", path.display());
                return Err(Failure::file(ErrorKind::InvalidInput, message));
            }
        }
        let mountpoint = prepare_mountpoint(&mountpoint)?;
        require_apart(&folder, &mountpoint)?;
        let mut created = false;
        if !Volume::exists(&folder) && request.create && settings.create && !settings.read_only {
            Volume::format(&folder, &FormatOptions::default()).map_err(|error| {
                let message = format!("cannot make a volume in {}: {error}", folder.display());
                Failure::file(error.kind(), message)
            })?;
            created = true;
        }
        let folder = folder.canonicalize().map_err(|error| {
            let message = format!("no volume at {}: {error}", folder.display());
            Failure::file(ErrorKind::NotFound, message)
        })?;
        let known =
            self.0.service.volumes().into_iter().find(|volume| volume.fs.volume().dir == folder);
        let name = match known {
            Some(known) => known.name.clone(),
            None => {
                let name = self.free_name(&folder);
                self.open_volume(&name, &folder, &settings, Some(&mountpoint))?;
                if let Some(open) = lock(&self.0.open).get_mut(&name) {
                    open.closes_with_mount = true;
                }
                name
            }
        };
        match self.mount_volume(&name, &mountpoint, &settings) {
            Ok(passthrough) => Ok(v1::MountResponse { volume: name, created, passthrough }),
            Err(failure) => {
                let was_for_this = lock(&self.0.open)
                    .get(&name)
                    .is_some_and(|open| open.closes_with_mount && open.mounted.is_none());
                if was_for_this {
                    self.close_volume(&name);
                }
                Err(failure)
            }
        }
    }

    /// A name for a volume that has none: its folder's.
    fn free_name(&self, folder: &Path) -> String {
        let base = folder.file_name().map_or_else(
            || "volume".to_owned(),
            |name| name.to_string_lossy().replace([':', '/'], "-"),
        );
        let taken = |name: &str| self.0.service.volumes().iter().any(|volume| volume.name == name);
        let mut name = base.clone();
        let mut count = 1;
        while taken(&name) {
            count += 1;
            name = format!("{base}-{count}");
        }
        name
    }

    /// Unmounts.
    ///
    /// # Errors
    ///
    /// `AccessDenied`, `NotFound`, `Busy` while somebody uses it.
    pub fn unmount(
        &self,
        call: &Call,
        request: &v1::UnmountRequest,
    ) -> Result<v1::UnmountResponse, Failure> {
        self.require_owner(call, "unmount")?;
        let mountpoint = Path::new(OsStr::from_bytes(&request.mountpoint));
        let open = lock(&self.0.open);
        let mounted = open
            .values()
            .filter_map(|open| open.mounted.as_ref())
            .find(|mounted| mounted.mountpoint() == mountpoint);
        let Some(mounted) = mounted else {
            let message = format!("nothing is mounted at {}", mountpoint.display());
            return Err(Failure::file(ErrorKind::NotFound, message));
        };
        mounted.unmount().map_err(|error| {
            let message = format!("cannot unmount {}: {error}", mountpoint.display());
            let is_busy = error.kind() == std::io::ErrorKind::ResourceBusy;
            let kind = if is_busy { ErrorKind::Busy } else { ErrorKind::Unavailable };
            Failure::file(kind, message)
        })?;
        Ok(v1::UnmountResponse {})
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    ///
    /// `AccessDenied`; what is wrong with it.
    pub fn reload(
        &self,
        call: &Call,
        _request: &v1::ReloadRequest,
    ) -> Result<v1::ReloadResponse, Failure> {
        self.require_owner(call, "reload the configuration")?;
        match &self.0.reload {
            Some(reload) => reload.reload(),
            None => Err(no_configuration()),
        }
    }

    /// What is configured.
    ///
    /// # Errors
    ///
    /// `AccessDenied`; `Unsupported` in a process without a configuration.
    pub fn config(
        &self,
        call: &Call,
        _request: &v1::ConfigRequest,
    ) -> Result<v1::ConfigResponse, Failure> {
        self.require_owner(call, "read the configuration")?;
        self.0.reload.as_ref().map(|reload| reload.config()).ok_or_else(no_configuration)
    }

    /// Ends the process, once the answer is on its way.
    ///
    /// # Errors
    ///
    /// `AccessDenied`.
    pub fn shutdown(
        &self,
        call: &Call,
        _request: &v1::ShutdownRequest,
    ) -> Result<v1::ShutdownResponse, Failure> {
        self.require_owner(call, "stop the daemon")?;
        self.stop();
        Ok(v1::ShutdownResponse {})
    }
}

fn no_configuration() -> Failure {
    Failure::file(ErrorKind::Unsupported, "this process was started without a configuration")
}

/// A volume's state as `status --json` prints it.
fn volume_status(volume: &ServedVolume) -> Result<String, Failure> {
    let mut status = control::status(&volume.fs).map_err(|error| {
        let message = format!("cannot read the state of volume '{}': {error}", volume.name);
        Failure::file(error.kind(), message)
    })?;
    status["name"] = serde_json::json!(volume.name);
    status["mounts"] = serde_json::json!(*lock(&volume.mountpoints));
    Ok(status.to_string())
}

fn close(fs: &Fs) {
    if let Err(error) = fs.shut_down() {
        tracing::error!(%error, "the volume was not closed cleanly; the next open recovers it");
    }
}

/// What this process has in memory.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 =
        statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
