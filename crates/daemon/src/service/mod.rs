//! The operations of a daemon: one layer under every transport.
//!
//! Each method does for a [`Caller`] what the same caller could do on a mount, and answers what the mount
//! would: permissions are checked here as the kernel checks them there ([`access`]), paths cannot lead out
//! of a volume ([`path`]), and what is changed is seen by every mount before the method returns
//! (`librorum_fs::Outside`). Methods are synchronous and may wait for the disk; whoever calls them on an
//! async thread moves them elsewhere.

mod access;
mod change;
mod entry;
mod listing;
mod path;
mod transfer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use librorum_format::ErrorKind;
use librorum_fs::{Fs, FsError, Outside};
use librorum_meta::FileKind;
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};

pub use access::Caller;
pub use transfer::{OpenFile, Upload};

use crate::lock;
use path::{Names, resolve};

/// Bits of `CapabilitiesResponse.features` and of HELLO.
pub mod feature {
    /// Descriptors may be lent to readers.
    pub const FD_READ: u64 = 1;
    /// Descriptors may be handed to writers.
    pub const FD_WRITE: u64 = 2;
    /// There is shared memory.
    pub const ARENA: u64 = 4;
}

/// Under which circumstances an operation runs.
#[derive(Clone, Debug)]
pub struct Call {
    /// On whose behalf.
    pub caller: Caller,
    /// Set when nobody wants the answer any more.
    pub cancel: Arc<AtomicBool>,
    /// When the answer comes too late.
    pub deadline: Option<Instant>,
    /// What the client calls it; 0 if it does not.
    pub trace_id: u64,
    /// The connection that it came over, for the log.
    pub connection: u64,
}

impl Call {
    /// A call that nobody cancels and that has all the time it needs.
    #[must_use]
    pub fn new(caller: Caller) -> Self {
        Self { caller, cancel: Arc::default(), deadline: None, trace_id: 0, connection: 0 }
    }

    /// Ends work that is no longer wanted.
    ///
    /// # Errors
    ///
    /// `Cancelled`, `DeadlineExceeded`.
    pub fn check(&self) -> Result<(), Failure> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Failure::new(Reason::Cancelled, "the request was withdrawn"));
        }
        if self.deadline.is_some_and(|deadline| librorum_sys::clock::instant() >= deadline) {
            return Err(Failure::new(Reason::DeadlineExceeded, "the request's time was up"));
        }
        Ok(())
    }
}

/// A volume that is served.
#[derive(Debug)]
pub struct ServedVolume {
    /// What clients call it.
    pub name: String,
    /// The volume.
    pub fs: Arc<Fs>,
    /// Its way in.
    pub outside: Outside,
    /// Refuses every change.
    pub read_only: bool,
    /// Where it is mounted by this process.
    pub mountpoints: Mutex<Vec<PathBuf>>,
}

impl ServedVolume {
    /// Serves an open volume under a name.
    #[must_use]
    pub fn new(name: impl Into<String>, fs: Arc<Fs>, read_only: bool) -> Self {
        let outside = Outside::new(Arc::clone(&fs));
        Self { name: name.into(), fs, outside, read_only, mountpoints: Mutex::default() }
    }
}

/// How long an upload with a key is kept when nobody goes on with it.
const UPLOADS_KEPT: Duration = Duration::from_secs(24 * 3600);

impl ServedVolume {
    /// Gives back what uploads hold that nobody went on with. Asked when a volume is served and when an
    /// upload with a key begins, so that whoever makes them also clears them away.
    fn expire_uploads(&self) {
        if self.read_only {
            return;
        }
        match self.outside.expire_uploads(UPLOADS_KEPT) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, volume = self.name, "old uploads were removed"),
            Err(error) => {
                tracing::warn!(%error, volume = self.name, "old uploads were not removed");
            }
        }
    }
}

/// What clients are told of the daemon.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Where its socket is.
    pub socket_path: Option<PathBuf>,
    /// Its name among the nodes.
    pub node_id: String,
}

#[derive(Debug)]
struct Inner {
    instance: [u8; 16],
    /// In the order in which they came; the first is the one without a name.
    volumes: RwLock<Vec<Arc<ServedVolume>>>,
    identity: RwLock<Identity>,
    uploads: Mutex<transfer::Uploads>,
    next_upload: AtomicU64,
    own_uid: u32,
}

/// The operations on the volumes of this process.
#[derive(Clone, Debug)]
pub struct Service(Arc<Inner>);

impl Default for Service {
    fn default() -> Self {
        Self::new()
    }
}

impl Service {
    /// A service without volumes.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            instance: librorum_sys::entropy::random(),
            volumes: RwLock::default(),
            identity: RwLock::default(),
            uploads: Mutex::default(),
            next_upload: AtomicU64::new(1),
            own_uid: rustix::process::geteuid().as_raw(),
        }))
    }

    /// Which process this is: two connections that are told the same are served by the same one.
    #[must_use]
    pub fn instance(&self) -> [u8; 16] {
        self.0.instance
    }

    /// Sets what clients are told of the daemon.
    pub fn set_identity(&self, identity: Identity) {
        *self.0.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// What is served.
    #[must_use]
    pub fn volumes(&self) -> Vec<Arc<ServedVolume>> {
        self.0.volumes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves one more volume.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` for a name that is taken.
    pub fn add_volume(&self, volume: ServedVolume) -> Result<Arc<ServedVolume>, Failure> {
        let mut volumes = self.0.volumes.write().unwrap_or_else(PoisonError::into_inner);
        if volumes.iter().any(|known| known.name == volume.name) {
            let message = format!("a volume '{}' is served already", volume.name);
            return Err(Failure::file(ErrorKind::AlreadyExists, message));
        }
        let volume = Arc::new(volume);
        volumes.push(Arc::clone(&volume));
        drop(volumes);
        volume.expire_uploads();
        Ok(volume)
    }

    /// Serves a volume no more; files that are open stay so.
    pub fn remove_volume(&self, name: &str) -> Option<Arc<ServedVolume>> {
        let mut volumes = self.0.volumes.write().unwrap_or_else(PoisonError::into_inner);
        let index = volumes.iter().position(|known| known.name == name)?;
        let volume = volumes.remove(index);
        drop(volumes);
        self.forget_uploads_of(&volume);
        Some(volume)
    }

    /// The volume of this name; an empty one means the first.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn volume(&self, name: &str) -> Result<Arc<ServedVolume>, Failure> {
        let volumes = self.0.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let found = if name.is_empty() {
            volumes.first()
        } else {
            volumes.iter().find(|volume| volume.name == name)
        };
        found.cloned().ok_or_else(|| {
            let known: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
            let message = format!("no volume '{name}' is served; there are: {}", known.join(", "));
            Failure::file(ErrorKind::NotFound, message)
        })
    }

    /// Whether a caller may be lent descriptors that show more than one file, or that can grow without a
    /// limit: root and the daemon's own user could read and write the volume's folder anyway.
    #[must_use]
    pub fn may_lend(&self, caller: &Caller) -> bool {
        caller.is_root() || caller.uid == self.0.own_uid
    }

    /// What the daemon is and can.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn capabilities(
        &self,
        _call: &Call,
        _request: &v1::CapabilitiesRequest,
    ) -> Result<v1::CapabilitiesResponse, Failure> {
        let identity = self.0.identity.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(v1::CapabilitiesResponse {
            instance: Bytes::copy_from_slice(&self.0.instance),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            volumes: self.volumes().iter().map(|volume| volume_info(volume)).collect(),
            socket_path: identity.socket_path.map(path_bytes).unwrap_or_default(),
            features: feature::FD_READ | feature::FD_WRITE | feature::ARENA,
            payload_bytes_max: 256 << 10,
            node_id: identity.node_id,
        })
    }

    /// What a path leads to.
    ///
    /// # Errors
    ///
    /// Those of stat(2).
    pub fn stat(
        &self,
        call: &Call,
        request: &v1::StatRequest,
    ) -> Result<v1::StatResponse, Failure> {
        /// So many fit a frame's control message with room to spare.
        const CHUNKS_MAX: usize = 1000;
        let volume = self.volume(&request.volume)?;
        let found = self.find(call, &volume, &request.path, request.ino)?;
        let mut answer = v1::StatResponse {
            entry: Some(self.entry(&volume, &request.path, &found)?),
            ..v1::StatResponse::default()
        };
        if request.chunks && found.inode.kind == FileKind::Regular {
            // The ids tell what is in the file.
            call.caller.require(&found.inode, access::Access::READ, || shown(&request.path))?;
            let chunks = volume
                .outside
                .chunks(found.inode.ino)
                .context(|| format!("cannot list the chunks of {}", shown(&request.path)))?
                .unwrap_or_default();
            let mut later = chunks.into_iter().filter(|run| run.offset >= request.chunks_from);
            answer.chunks = later
                .by_ref()
                .take(CHUNKS_MAX)
                .map(|run| v1::Chunk {
                    offset: run.offset,
                    len: u32::try_from(run.len).unwrap_or(u32::MAX),
                    id: Bytes::copy_from_slice(&run.chunk.0),
                    is_whole: run.chunk_offset == 0 && run.len == u64::from(run.chunk_len),
                })
                .collect();
            answer.chunks_next = later.next().map_or(0, |run| run.offset);
        }
        Ok(answer)
    }

    /// An inode by path, or by number for its owner.
    fn find(
        &self,
        call: &Call,
        volume: &ServedVolume,
        path: &[u8],
        ino: u64,
    ) -> Result<librorum_fs::Attributes, Failure> {
        if ino == 0 {
            return resolve(&volume.outside, &call.caller, &Names::new(path)?);
        }
        let what = || format!("cannot look up inode {ino}");
        let found = volume.outside.attributes(librorum_format::Ino(ino)).context(what)?;
        if found.inode.nlink == 0 {
            return Err(Failure::file(ErrorKind::NotFound, format!("{}: it is gone", what())));
        }
        // A path's directories protect what is below them; a number has none.
        call.caller.require_owner(&found.inode, "open by number", || format!("inode {ino}"))?;
        Ok(found)
    }

    fn entry(
        &self,
        volume: &ServedVolume,
        path: &[u8],
        found: &librorum_fs::Attributes,
    ) -> Result<v1::Entry, Failure> {
        let target = if found.inode.kind == FileKind::Symlink {
            volume
                .outside
                .symlink_target(found.inode.ino)
                .context(|| format!("cannot read the link {}", shown(path)))?
        } else {
            Vec::new()
        };
        Ok(entry::entry(path, found, target))
    }

    /// Makes everything durable.
    ///
    /// # Errors
    ///
    /// The disk's.
    pub fn sync(
        &self,
        call: &Call,
        request: &v1::SyncRequest,
    ) -> Result<v1::SyncResponse, Failure> {
        let volume = self.volume(&request.volume)?;
        call.check()?;
        if request.seal {
            volume.fs.seal_all();
        }
        volume.fs.sync().context(|| format!("cannot sync volume '{}'", volume.name))?;
        Ok(v1::SyncResponse {})
    }
}

fn volume_info(volume: &ServedVolume) -> v1::VolumeInfo {
    let config = &volume.fs.volume().config;
    v1::VolumeInfo {
        name: volume.name.clone(),
        volume_id: config.volume_id.clone(),
        chunking: config.chunking.clone(),
        read_only: volume.read_only,
        folder: path_bytes(volume.fs.volume().dir.clone()),
        mountpoints: lock(&volume.mountpoints).iter().cloned().map(path_bytes).collect(),
    }
}

fn path_bytes(path: PathBuf) -> Bytes {
    use std::os::unix::ffi::OsStringExt;
    path.into_os_string().into_vec().into()
}

/// A path or name for people.
fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string().replace("\\'", "'").replace("\\\"", "\"")
}

/// Says what was being done when a call below failed.
trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for Result<T, FsError> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| failure(&error, &what()))
    }
}

/// A file system's error with what was being done.
fn failure(error: &FsError, what: &str) -> Failure {
    let mut message = format!("{what}: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    if matches!(error, FsError::Interrupted) {
        return Failure::new(Reason::Cancelled, message);
    }
    let kind = error.kind();
    if matches!(kind, ErrorKind::DataLoss | ErrorKind::Unavailable) {
        tracing::error!(error = message, "input/output error");
    }
    let mut failure = Failure::file(kind, message);
    if kind == ErrorKind::Busy {
        failure.retry_after_ms = u32::try_from(Duration::from_millis(100).as_millis()).unwrap_or(0);
    }
    failure
}
