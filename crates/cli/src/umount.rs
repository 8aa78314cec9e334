//! `librorum umount`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use librorum_sys::VolumeLock;

use crate::mountinfo;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  librorum umount ~/librorum")]
pub(crate) struct Umount {
    /// Where the volume is mounted.
    dir: PathBuf,
    /// Take it out of the tree now, even if files are open; it ends when they are closed.
    #[arg(long)]
    lazy: bool,
    /// How long to wait for the volume to be closed, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    wait: u64,
}

/// Takes a mount out of the tree, whoever uses it.
pub(crate) fn detach(mountpoint: &Path) -> anyhow::Result<()> {
    match rustix::mount::unmount(mountpoint, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => unmount_by_helper(mountpoint, "-uz"),
        Err(error) => Err(error.into()),
    }
}

fn unmount_by_helper(mountpoint: &Path, flags: &str) -> anyhow::Result<()> {
    let mut command = Command::new("fusermount3");
    let status = command
        .arg(flags)
        .arg("--")
        .arg(mountpoint)
        .status()
        .context("cannot run fusermount3 (Debian package fuse3)")?;
    if !status.success() {
        bail!("fusermount3 could not unmount {}", mountpoint.display());
    }
    Ok(())
}

impl Umount {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let Some(mounted) = mountinfo::mounted_at(&self.dir)? else {
            bail!("no volume is mounted at {}", self.dir.display());
        };
        let flags = if self.lazy {
            rustix::mount::UnmountFlags::DETACH
        } else {
            rustix::mount::UnmountFlags::empty()
        };
        match rustix::mount::unmount(&mounted.mountpoint, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) => {
                unmount_by_helper(&mounted.mountpoint, if self.lazy { "-uz" } else { "-u" })?;
            }
            Err(rustix::io::Errno::BUSY) => bail!(
                "{} is in use: close its files ('fuser -vm {}' lists them), or use --lazy",
                mounted.mountpoint.display(),
                mounted.mountpoint.display()
            ),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot unmount {}", mounted.mountpoint.display()));
            }
        }
        // The volume is ours again when its process has made everything durable and let go.
        let start = librorum_sys::clock::monotonic();
        let mut closed = true;
        while VolumeLock::holder(&mounted.volume).is_some() {
            if self.lazy
                || librorum_sys::clock::monotonic() - start > Duration::from_secs(self.wait)
            {
                closed = false;
                break;
            }
            librorum_sys::clock::sleep(Duration::from_millis(10));
        }
        if json {
            let (mountpoint, volume) = (&mounted.mountpoint, &mounted.volume);
            println!(
                "{}",
                serde_json::json!({ "mountpoint": mountpoint, "volume": volume, "closed": closed })
            );
        } else if closed {
            println!("Unmounted {}", mounted.mountpoint.display());
        } else {
            println!(
                "Unmounted {}; its volume closes when the last file is closed",
                mounted.mountpoint.display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
