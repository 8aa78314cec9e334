//! `librorum umount`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use librorum_sys::VolumeLock;

use librorum_daemon::mounts::{self, table as mountinfo};

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
                mounts::unmount_by_helper(
                    &mounted.mountpoint,
                    if self.lazy { "-uz" } else { "-u" },
                )?;
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
        while let Some(holder) = VolumeLock::holder(&mounted.volume) {
            // A daemon keeps the volumes that it serves to others too.
            if holder.command == "daemon" && holder.mountpoint.is_none() {
                break;
            }
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
