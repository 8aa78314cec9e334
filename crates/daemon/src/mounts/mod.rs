//! Volumes in the tree of directories: mounting, serving the kernel, and the end of it.

pub mod settings;
pub mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use librorum_format::ErrorKind;
use librorum_fuse::transport::{MountOptions, Session, Unmounter};
use librorum_fuse::{VolumeHandler, VolumeNotifier};
use librorum_rpc::Failure;

use crate::io_failure;
use crate::service::ServedVolume;
pub use settings::Settings;

/// Open files get this long before the mount goes away under them.
const GRACE: Duration = Duration::from_secs(3);

/// A volume in the tree, served by a thread of its own until somebody unmounts it.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    unmounter: Unmounter,
    serving: Option<JoinHandle<std::io::Result<()>>>,
    passthrough: bool,
}

/// Threads that read the kernel's requests at once, at most; what waits does not count.
fn reader_count() -> usize {
    // With as many as CPUs, the callers would have none to run on.
    std::thread::available_parallelism().map_or(1, |cpus| (cpus.get() / 2).clamp(1, 4))
}

/// Makes ready where a volume is to be mounted: makes the directory, takes away what a dead mount left
/// there, and answers its true path.
///
/// # Errors
///
/// `Busy` if a volume is mounted there; `NotDirectory`; the disk's.
pub fn prepare_mountpoint(mountpoint: &Path) -> Result<PathBuf, Failure> {
    clear_dead_mounts(mountpoint)?;
    if !mountpoint.exists() {
        std::fs::create_dir_all(mountpoint).map_err(|error| {
            io_failure(&format!("cannot make {}", mountpoint.display()), &error)
        })?;
    }
    let found = mountpoint.canonicalize().map_err(|error| {
        let what = format!(
            "{} cannot be used; if an earlier mount died there, run 'librorum umount' on it",
            mountpoint.display()
        );
        io_failure(&what, &error)
    })?;
    if !found.is_dir() {
        let message = format!("{} is not a directory", found.display());
        return Err(Failure::file(ErrorKind::NotDirectory, message));
    }
    Ok(found)
}

/// Refuses a mount that would hide the volume that it shows.
///
/// # Errors
///
/// `InvalidInput`.
pub fn require_apart(volume: &Path, mountpoint: &Path) -> Result<(), Failure> {
    if volume.starts_with(mountpoint) {
        let message = format!(
            "{} lies inside {}: the mount would hide its own volume",
            volume.display(),
            mountpoint.display()
        );
        return Err(Failure::file(ErrorKind::InvalidInput, message));
    }
    Ok(())
}

/// Takes away what a mount whose process died left behind: the kernel answers from its memory there,
/// and a new mount would only cover it.
fn clear_dead_mounts(mountpoint: &Path) -> Result<(), Failure> {
    let listed = |error: std::io::Error| io_failure("cannot list what is mounted", &error);
    while let Some(mounted) = table::mounted_at(mountpoint).map_err(listed)? {
        let (volume, at) = (mounted.volume.display(), mountpoint.display());
        if librorum_sys::VolumeLock::holder(&mounted.volume).is_some() {
            let message = format!("{volume} is mounted at {at} already");
            return Err(Failure::file(ErrorKind::Busy, message));
        }
        detach(&mounted.mountpoint).map_err(|error| {
            io_failure(&format!("a dead mount at {at} cannot be taken away"), &error)
        })?;
    }
    Ok(())
}

/// Takes a mount out of the tree, whoever uses it.
///
/// # Errors
///
/// What umount2(2) or `fusermount3` answers.
pub fn detach(mountpoint: &Path) -> std::io::Result<()> {
    match rustix::mount::unmount(mountpoint, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => unmount_by_helper(mountpoint, "-uz"),
        Err(error) => Err(error.into()),
    }
}

/// Unmounts without privileges; `flags` are those of `fusermount3`.
///
/// # Errors
///
/// That it cannot be run, or failed.
pub fn unmount_by_helper(mountpoint: &Path, flags: &str) -> std::io::Result<()> {
    let status =
        Command::new("fusermount3").arg(flags).arg("--").arg(mountpoint).status().map_err(
            |error| {
                let message = format!("cannot run fusermount3 (Debian package fuse3): {error}");
                std::io::Error::new(error.kind(), message)
            },
        )?;
    if status.success() {
        return Ok(());
    }
    let message = format!("fusermount3 could not unmount {}", mountpoint.display());
    Err(std::io::Error::other(message))
}

impl Mounted {
    /// Mounts a volume and begins to serve the kernel. `ended` hears when it is over, whoever ended it.
    ///
    /// # Errors
    ///
    /// What mounting answers, with what to do about it; nothing is mounted then.
    pub fn mount(
        volume: &Arc<ServedVolume>,
        mountpoint: &Path,
        settings: &Settings,
        ended: Option<mpsc::Sender<PathBuf>>,
    ) -> Result<Self, Failure> {
        let fs = &volume.fs;
        let handler = Arc::new(VolumeHandler::new(Arc::clone(fs)));
        let options = MountOptions {
            mountpoint: mountpoint.to_owned(),
            source: fs.volume().dir.as_os_str().to_owned(),
            read_only: settings.read_only,
            allow_other: settings.allow_other,
            passthrough: settings.passthrough,
            writeback: true,
            dev_and_suid: settings.dev_and_suid,
            no_exec: settings.no_exec,
            no_atime: settings.no_atime,
            reader_count: reader_count(),
        };
        let session = Session::mount(handler, &options)
            .map_err(|error| io_failure(&explain_failure(mountpoint), &error))?;
        raise_writeback_limit(mountpoint);
        fs.notify_kernel(Arc::new(VolumeNotifier::new(session.invalidator())));
        let unmounter = session.unmounter();
        crate::lock(&volume.mountpoints).push(mountpoint.to_owned());
        let (served, place) = (Arc::clone(volume), mountpoint.to_owned());
        let serving = std::thread::Builder::new()
            .name("serve".to_owned())
            .spawn(move || {
                let result = session.serve();
                crate::lock(&served.mountpoints).retain(|other| *other != place);
                if let Some(ended) = ended {
                    // Nobody listens any more: then nobody needs to hear.
                    drop(ended.send(place));
                }
                result
            })
            .map_err(|error| io_failure("cannot start a thread to serve the mount", &error))?;
        Ok(Self {
            mountpoint: mountpoint.to_owned(),
            unmounter,
            serving: Some(serving),
            passthrough: fs.serves_by_passthrough(),
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether the kernel reads and writes by itself.
    #[must_use]
    pub fn passthrough(&self) -> bool {
        self.passthrough
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.serving.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Unmounts as umount(8) does.
    ///
    /// # Errors
    ///
    /// `Busy` while somebody uses it.
    pub fn unmount(&self) -> std::io::Result<()> {
        self.unmounter.unmount()
    }

    /// Takes it out of the tree at once; whoever has files open gets a moment, then ENOTCONN.
    ///
    /// # Errors
    ///
    /// A failure of the FUSE device.
    pub fn end(mut self) -> std::io::Result<()> {
        if let Err(error) = self.unmounter.unmount_lazily() {
            tracing::debug!(%error, "unmounting");
        }
        let start = librorum_sys::clock::monotonic();
        while !self.is_over() && librorum_sys::clock::monotonic() - start < GRACE {
            librorum_sys::clock::sleep(Duration::from_millis(5));
        }
        self.take_result()
    }

    /// Waits until somebody unmounts it.
    ///
    /// # Errors
    ///
    /// A failure of the FUSE device.
    pub fn wait(&mut self) -> std::io::Result<()> {
        match self.serving.take() {
            Some(serving) => serving
                .join()
                .unwrap_or_else(|_panic| Err(std::io::Error::other("a serving thread panicked"))),
            None => Ok(()),
        }
    }

    /// What serving it came to, once it is over; a mount that still has open files counts as well served.
    ///
    /// # Errors
    ///
    /// A failure of the FUSE device.
    pub fn take_result(&mut self) -> std::io::Result<()> {
        if self.is_over() { self.wait() } else { Ok(()) }
    }
}

fn explain_failure(mountpoint: &Path) -> String {
    let at = mountpoint.display();
    if !Path::new("/dev/fuse").exists() {
        return format!("cannot mount at {at}: /dev/fuse is missing; load the fuse module");
    }
    if rustix::process::geteuid().is_root() {
        return format!("cannot mount at {at}");
    }
    format!(
        "cannot mount at {at}: without root, 'fusermount3' (Debian package fuse3) and read and \
         write access to /dev/fuse are needed, and --allow-other needs user_allow_other in \
         /etc/fuse.conf"
    )
}

/// A FUSE mount may by default hold 1 % of the dirty memory, which throttles the writeback cache to
/// a fraction of the disk. Only root may change it.
fn raise_writeback_limit(mountpoint: &Path) {
    let Ok(Some(mounted)) = table::mounted_at(mountpoint) else { return };
    for (file, value) in [("strict_limit", "0"), ("max_ratio", "100")] {
        let path = format!("/sys/class/bdi/{}/{file}", mounted.device);
        if let Err(error) = std::fs::write(&path, value) {
            tracing::debug!(%error, path, "the writeback limit stays");
        }
    }
}
