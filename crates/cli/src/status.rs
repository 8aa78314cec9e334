//! `librorum status`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use librorum_fs::{Fs, FsError, FsOptions, Volume};
use librorum_rpc::client::{Client, ClientOptions, Target};
use librorum_rpc::proto::v1;
use librorum_sys::{Holder, VolumeLock};
use serde_json::Value;

use librorum_daemon::control;
use librorum_daemon::mounts::table as mountinfo;

use crate::output;
use crate::remote::{answers, default_socket};

/// How long a volume that is held may fail to answer: its mount may just begin or end.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum status              the daemon and all mounted volumes\n  librorum status ~/librorum   one, by its mount or by its folder"
)]
pub(crate) struct StatusArguments {
    /// A volume's folder, or where it is mounted; without it, every mounted volume.
    path: Option<PathBuf>,
    /// Seal what is closed first, so that the figures are final.
    #[arg(long)]
    seal: bool,
}

/// A volume by its folder, or by where it is mounted.
pub(crate) fn find_volume(path: &Path) -> anyhow::Result<PathBuf> {
    if let Some(mounted) = mountinfo::mounted_at(path)? {
        return Ok(mounted.volume);
    }
    if Volume::exists(path) {
        return Ok(path.to_owned());
    }
    bail!("{} is neither a volume nor where one is mounted", path.display())
}

/// Who uses a volume, for commands that open it themselves.
pub(crate) fn holder(command: &str) -> Holder {
    Holder { pid: std::process::id(), command: command.to_owned(), mountpoint: None }
}

impl StatusArguments {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let volumes = match &self.path {
            Some(path) => vec![find_volume(path)?],
            None => {
                let mut volumes: Vec<PathBuf> = mountinfo::mounted_volumes()?
                    .into_iter()
                    .map(|mounted| mounted.volume)
                    .collect();
                volumes.sort();
                volumes.dedup();
                volumes
            }
        };
        let mut all = Vec::new();
        let mut failed = false;
        let daemon = if self.path.is_none() { daemon_status()? } else { None };
        if let Some(daemon) = &daemon
            && !json
        {
            print_daemon(daemon);
        }
        for volume in volumes {
            match self.one(&volume) {
                Ok(Some(status)) => {
                    if !json {
                        print(&status);
                    }
                    all.push(status);
                }
                Ok(None) => {}
                // One that cannot be asked must not hide the others.
                Err(error) if self.path.is_none() => {
                    failed = true;
                    if json {
                        all.push(
                            serde_json::json!({ "volume": volume, "error": format!("{error:#}") }),
                        );
                    } else {
                        println!("volume        {}: {error:#}", volume.display());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        // What the daemon serves without a mount.
        let others = daemon.iter().flat_map(|daemon| &daemon.volumes);
        for status in others.filter_map(|text| serde_json::from_str::<Value>(text).ok()) {
            if all.iter().any(|known: &Value| known["volume"] == status["volume"]) {
                continue;
            }
            if !json {
                print(&status);
            }
            all.push(status);
        }
        if let Some(daemon) = &daemon
            && json
        {
            all.push(serde_json::json!({ "daemon": daemon_json(daemon) }));
        }
        if json {
            println!("{}", Value::Array(all));
        } else if all.is_empty() && !failed {
            println!("No volume is mounted.");
        }
        Ok(ExitCode::from(u8::from(failed)))
    }

    /// The status of one volume; `None` for one of all the mounted ones that is mounted no more.
    ///
    /// A mount that begins is in the tree before it answers, and one that ends answers no more
    /// before its volume is free; neither is a reason to fail.
    fn one(&self, volume: &Path) -> anyhow::Result<Option<Value>> {
        let start = librorum_sys::clock::monotonic();
        loop {
            let is_held = VolumeLock::holder(volume).is_some();
            let found = if is_held {
                self.ask(volume)
            } else if self.path.is_none() {
                Err(why_not_held(volume))
            } else {
                self.open(volume)
            };
            let error = match found {
                Ok(status) => return with_users(volume, status).map(Some),
                Err(error) => error,
            };
            let is_locked = matches!(error.downcast_ref(), Some(FsError::Locked(_)));
            if self.path.is_none() && mounted_places(volume)?.is_empty() {
                return Ok(None);
            }
            // It may have been mounted anew since it was found free.
            let may_answer = is_held || is_locked || VolumeLock::holder(volume).is_some();
            let waited = librorum_sys::clock::monotonic() - start;
            if !may_answer || waited > PATIENCE {
                return Err(error);
            }
            librorum_sys::clock::sleep(Duration::from_millis(20));
        }
    }

    /// From the process that has the volume mounted.
    fn ask(&self, volume: &Path) -> anyhow::Result<Value> {
        if self.seal {
            // A close returns before the mount's process has heard of it. What is asked of the mount
            // now is heard after it.
            for place in mounted_places(volume)? {
                if let Err(error) = rustix::fs::statvfs(&place) {
                    tracing::debug!(%error, "closes may still be on their way");
                }
            }
            control::ask(volume, "seal", &mut |_, _| {})
                .map_err(|failure| anyhow!(failure.message))?;
        }
        // Exit code 4 is for daemons that do not answer; this is the process of a mount.
        control::ask(volume, "status", &mut |_, _| {}).map_err(|failure| anyhow!(failure.message))
    }

    /// From the volume itself.
    fn open(&self, volume: &Path) -> anyhow::Result<Value> {
        let options =
            FsOptions { read_only: !self.seal, holder: holder("status"), ..FsOptions::default() };
        let fs = Fs::open_volume(volume, options)?;
        if self.seal {
            fs.seal_all();
        }
        let status = fs.status();
        fs.shut_down()?;
        Ok(serde_json::to_value(status?)?)
    }
}

/// The daemon of this user, if one answers.
fn daemon_status() -> anyhow::Result<Option<v1::StatusResponse>> {
    let socket = default_socket()?;
    if !answers(&socket) {
        return Ok(None);
    }
    let client = Client::connect(Target::Socket(socket), ClientOptions::default())?;
    Ok(Some(client.status(&v1::StatusRequest::default())?))
}

fn daemon_json(daemon: &v1::StatusResponse) -> Value {
    serde_json::json!({
        "version": daemon.version,
        "pid": daemon.pid,
        "uptime_ms": daemon.uptime_ms,
        "listening": daemon.listening,
        "resident_bytes": daemon.resident_bytes,
        "open_files": daemon.open_files,
    })
}

fn print_daemon(daemon: &v1::StatusResponse) {
    println!(
        "daemon        {}, process {}, up {} s, {} resident, {} open files",
        daemon.version,
        daemon.pid,
        daemon.uptime_ms / 1000,
        output::bytes(daemon.resident_bytes),
        daemon.open_files
    );
    println!("listening     {}", daemon.listening.join(", "));
}

/// Why nobody holds a volume that is mounted. It is not opened to find out more: whoever mounts it
/// anew would find it in use.
fn why_not_held(volume: &Path) -> anyhow::Error {
    match std::fs::File::open(volume.join("lock")) {
        Ok(_) => anyhow!(
            "the process that had it mounted is gone; 'librorum umount' takes the dead mount away"
        ),
        Err(error) => anyhow!(error).context("cannot look into the volume"),
    }
}

/// Where a volume is mounted.
fn mounted_places(volume: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mounted = mountinfo::mounted_volumes()?.into_iter();
    let ours = mounted.filter(|mounted| mounted.volume == volume);
    Ok(ours.map(|mounted| mounted.mountpoint).collect())
}

/// Adds where the volume is mounted and who has it.
fn with_users(volume: &Path, mut status: Value) -> anyhow::Result<Value> {
    status["mounts"] = serde_json::to_value(mounted_places(volume)?)?;
    status["holder"] = VolumeLock::holder(volume).map_or(
        Value::Null,
        |holder| serde_json::json!({ "pid": holder.pid, "command": holder.command }),
    );
    Ok(status)
}

fn print(status: &Value) {
    let text = |key: &str| status[key].as_str().unwrap_or("?").to_owned();
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let size = |key: &str| output::bytes(number(key));
    println!("volume        {} ({})", text("volume"), text("volume_id"));
    let mounts: Vec<&str> =
        status["mounts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    println!(
        "mounted at    {}",
        if mounts.is_empty() { "nowhere".to_owned() } else { mounts.join(", ") }
    );
    println!("files         {} in {} directories", number("file_count"), number("directory_count"));
    println!("logical       {}", size("logical_bytes"));
    println!("stored        {} in {} segments", size("stored_bytes"), number("segment_count"));
    println!("deduplicated  {} saved", size("deduplicated_bytes"));
    println!("staged        {} in {} files", size("staged_bytes"), number("staged_file_count"));
    println!("overhead      {}", size("overhead_bytes"));
    let background = &status["background"];
    let count = |key: &str| background[key].as_u64().unwrap_or(0);
    println!(
        "background    {} files ({}) wait for sealing; {} files ({}) sealed",
        count("waiting_file_count"),
        output::bytes(count("waiting_bytes")),
        count("sealed_file_count"),
        output::bytes(count("sealed_bytes"))
    );
    println!(
        "to be freed   {} segments, {} unlinked files",
        number("condemned_count"),
        number("orphan_count")
    );
    println!("disk          {} of {} available", size("disk_available_bytes"), size("disk_bytes"));
}
