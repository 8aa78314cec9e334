//! `librorum status`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use librorum_fs::{Fs, FsOptions, Volume};
use librorum_sys::{Holder, VolumeLock};
use serde_json::Value;

use crate::{control, mountinfo, output};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum status              all mounted volumes\n  librorum status ~/librorum   one, by its mount or by its folder"
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
        for volume in volumes {
            match self.one(&volume) {
                Ok(status) => {
                    if !json {
                        print(&status);
                    }
                    all.push(status);
                }
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
        if json {
            println!("{}", Value::Array(all));
        } else if all.is_empty() && !failed {
            println!("No volume is mounted.");
        }
        Ok(ExitCode::from(u8::from(failed)))
    }

    fn one(&self, volume: &Path) -> anyhow::Result<Value> {
        let mut status = if VolumeLock::holder(volume).is_some() {
            if self.seal {
                control::ask(volume, "seal", &mut |_, _| {})?;
            }
            control::ask(volume, "status", &mut |_, _| {})?
        } else {
            let options = FsOptions {
                read_only: !self.seal,
                holder: holder("status"),
                ..FsOptions::default()
            };
            let fs = Fs::open_volume(volume, options)?;
            if self.seal {
                fs.seal_all();
            }
            let status = fs.status();
            fs.shut_down()?;
            serde_json::to_value(status?)?
        };
        let mounts: Vec<PathBuf> = mountinfo::mounted_volumes()?
            .into_iter()
            .filter(|mounted| mounted.volume == volume)
            .map(|mounted| mounted.mountpoint)
            .collect();
        status["mounts"] = serde_json::to_value(mounts)?;
        status["holder"] = VolumeLock::holder(volume).map_or(
            Value::Null,
            |holder| serde_json::json!({ "pid": holder.pid, "command": holder.command }),
        );
        Ok(status)
    }
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
