//! `librorum mount`: from arguments to a served file system, and its end.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc;

use anyhow::{Context, bail};
use clap::Args;
use librorum_daemon::api;
use librorum_daemon::control;
use librorum_daemon::mounts::{self, Mounted, Settings};
use librorum_daemon::service::ServedVolume;
use librorum_fs::{Fs, FsOptions, Volume};
use librorum_rpc::proto::v1;
use librorum_sys::{Holder, VolumeLock};

use crate::remote::{self, Intent, To, default_socket};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum mount ~/librorum\n  librorum mount /srv/volume /mnt/data --background --allow-other\n  mount -t librorum /srv/volume /mnt/data -o ro,allow_other     (with mount.librorum in /sbin)\n\nStop it with 'librorum umount DIR', or Ctrl-C in the foreground."
)]
pub(crate) struct Mount {
    /// [VOLUME] DIR: the volume's folder (default: $XDG_DATA_HOME/librorum/default) and the
    /// directory to mount on. Both are made if they do not exist.
    #[arg(num_args = 1..=2, required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Return as soon as it is mounted.
    #[arg(long)]
    background: bool,
    /// Refuse every change.
    #[arg(long)]
    read_only: bool,
    /// Let other users in. The default when root mounts.
    #[arg(long)]
    allow_other: bool,
    /// Serve every read and write ourselves, even where the kernel could. Without privileges this is
    /// always so.
    #[arg(long)]
    no_passthrough: bool,
    /// Options as in fstab: ro, rw, allow_other, dev, suid, nodev, nosuid, noexec, noatime,
    /// verify=always, no_passthrough, unsealed=SIZE, seal_after=MILLISECONDS, and those that mount(8)
    /// itself handles.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// Have the daemon mount it, also if it does not serve the volume yet. Where the daemon has the volume
    /// open already, it always does.
    #[arg(long)]
    daemon: bool,
    /// Say "mounted" on standard output once, then never use it again.
    #[arg(long, hide = true)]
    notify_parent: bool,
}

/// Why a mount ends.
enum End {
    /// Somebody unmounted it.
    Unmounted,
    /// This process was told to end.
    Signal,
}

impl Mount {
    fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = Settings {
            read_only: self.read_only,
            passthrough: !self.no_passthrough,
            ..Settings::default()
        };
        settings.allow_other |= self.allow_other;
        for option in &self.options {
            settings.apply(option)?;
        }
        Ok(settings)
    }

    pub(crate) fn run(self, json: bool, log: &str) -> anyhow::Result<ExitCode> {
        let settings = self.settings()?;
        if let Some(code) = self.run_in_daemon(json)? {
            return Ok(code);
        }
        if self.background {
            return self.run_in_background(json, log);
        }
        let (volume_dir, mountpoint) = self.places()?;
        let mountpoint = mounts::prepare_mountpoint(&mountpoint)?;
        let mut made = false;
        if !Volume::exists(&volume_dir) && settings.create && !settings.read_only {
            Volume::format(&volume_dir, &librorum_fs::FormatOptions::default())?;
            made = true;
        }
        let volume_dir = volume_dir
            .canonicalize()
            .with_context(|| format!("no volume at {}", volume_dir.display()))?;
        mounts::require_apart(&volume_dir, &mountpoint)?;
        let open_files = librorum_sys::limits::raise_open_files();
        tracing::debug!(open_files, "limit of open files");
        let mut options = FsOptions {
            holder: Holder {
                pid: std::process::id(),
                command: "mount".to_owned(),
                mountpoint: Some(mountpoint.clone()),
            },
            ..FsOptions::default()
        };
        settings.configure(&mut options);
        let fs = Fs::open_volume(&volume_dir, options)?;
        let served = self.serve(&fs, &settings, &volume_dir, &mountpoint, made, json);
        let closed = fs.shut_down().context("closing the volume");
        served?;
        closed?;
        Ok(ExitCode::SUCCESS)
    }

    /// The volume's folder, and where to mount it.
    fn places(&self) -> anyhow::Result<(PathBuf, PathBuf)> {
        match self.paths.as_slice() {
            [volume, mountpoint] => Ok((volume.clone(), mountpoint.clone())),
            [mountpoint] => Ok((default_volume()?, mountpoint.clone())),
            _ => bail!("one or two paths are needed"),
        }
    }

    /// Asks the daemon to mount, if it holds the volume or is to.
    fn run_in_daemon(&self, json: bool) -> anyhow::Result<Option<ExitCode>> {
        let (volume_dir, mountpoint) = self.places()?;
        let holder = VolumeLock::holder(&volume_dir);
        let is_held = holder.is_some_and(|holder| holder.command == "daemon");
        if !is_held && !self.daemon {
            return Ok(None);
        }
        let target = if is_held {
            volume_dir.as_os_str().to_owned()
        } else {
            let mut target = OsString::from("unix:");
            target.push(default_socket()?);
            target
        };
        let folder = std::path::absolute(&volume_dir).context("cannot make a path absolute")?;
        let mountpoint = std::path::absolute(&mountpoint).context("cannot make a path absolute")?;
        let mut options = self.options.clone();
        for (option, set) in [
            ("ro", self.read_only),
            ("allow_other", self.allow_other),
            ("no_passthrough", self.no_passthrough),
        ] {
            if set {
                options.push(option.to_owned());
            }
        }
        let bytes = |path: &Path| bytes::Bytes::copy_from_slice(path.as_os_str().as_bytes());
        let request = v1::MountRequest {
            folder: bytes(&folder),
            mountpoint: bytes(&mountpoint),
            options,
            create: true,
        };
        let to = To::at(target);
        let answer =
            remote::with(&to, Intent::Read, |remote| Ok(remote.client.mount(&request)?))?;
        if json {
            println!(
                "{}",
                serde_json::json!({
                    "mountpoint": mountpoint, "volume": folder, "created": answer.created,
                    "passthrough": answer.passthrough, "name": answer.volume,
                })
            );
        } else {
            println!("{}", announcement(&folder, &mountpoint, answer.created, answer.passthrough));
            println!(
                "The daemon serves it. Unmount it with: librorum umount {}",
                mountpoint.display()
            );
        }
        Ok(Some(ExitCode::SUCCESS))
    }

    fn serve(
        &self,
        fs: &Arc<Fs>,
        settings: &Settings,
        volume_dir: &Path,
        mountpoint: &Path,
        made: bool,
        json: bool,
    ) -> anyhow::Result<()> {
        let name = volume_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let volume = ServedVolume::new(name, Arc::clone(fs), settings.read_only);
        let (server, admin, volume) = remote::serve(volume)?;
        let (ended, end) = mpsc::channel();
        let (signalled, mount_ended) = (ended.clone(), ended);
        let (place, places) = mpsc::channel();
        let mut mounted = Mounted::mount(&volume, mountpoint, settings, Some(place))?;
        let control = control::serve(fs, volume_dir)
            .inspect_err(|error| {
                tracing::warn!(%error, "no control socket: 'status' works after unmounting only");
            })
            .ok();
        let api = api::serve(&server, volume_dir)
            .inspect_err(|error| {
                tracing::warn!(%error, "no socket for clients: 'put' and the like cannot reach it");
            })
            .ok();
        admin.note_listening(format!("unix:{}", volume_dir.join(api::SOCKET).display()));
        let mut signals = signal_hook::iterator::Signals::new([
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGHUP,
        ])
        .context("cannot handle signals")?;
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for _signal in signals.forever() {
                // Its receiver may be gone with the mount; then there is nothing to stop.
                drop(signalled.send(End::Signal));
            }
        })?;
        std::thread::Builder::new().name("mount-end".to_owned()).spawn(move || {
            drop(places.recv());
            drop(mount_ended.send(End::Unmounted));
        })?;
        self.announce(fs, volume_dir, mountpoint, made, json);
        if self.notify_parent {
            detach_output(volume_dir).context("cannot open the volume's log")?;
        }
        let ended = match end.recv().context("the mount ended unexpectedly")? {
            End::Unmounted => mounted.wait(),
            End::Signal => mounted.end(),
        };
        drop(api);
        server.shut_down();
        drop(control);
        ended.context("serving the mount")
    }

    fn announce(&self, fs: &Fs, volume_dir: &Path, mountpoint: &Path, made: bool, json: bool) {
        let passthrough = fs.serves_by_passthrough();
        let text = if json || self.notify_parent {
            serde_json::json!({
                "mountpoint": mountpoint,
                "volume": volume_dir,
                "created": made,
                "pid": std::process::id(),
                "passthrough": passthrough,
            })
            .to_string()
        } else {
            announcement(volume_dir, mountpoint, made, passthrough)
                + "\nPress Ctrl-C to unmount, or run: librorum umount "
                + &mountpoint.display().to_string()
        };
        let mut stdout = std::io::stdout().lock();
        if writeln!(stdout, "{text}").and_then(|()| stdout.flush()).is_err() {
            tracing::debug!("nobody reads our standard output");
        }
    }

    /// Starts this program again, detached, and waits until it has mounted or failed.
    fn run_in_background(&self, json: bool, log: &str) -> anyhow::Result<ExitCode> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(["--log", log, "mount", "--notify-parent"]);
        for (flag, set) in [
            ("--read-only", self.read_only),
            ("--allow-other", self.allow_other),
            ("--no-passthrough", self.no_passthrough),
        ] {
            if set {
                command.arg(flag);
            }
        }
        if !self.options.is_empty() {
            command.arg("-o").arg(self.options.join(","));
        }
        command.arg("--");
        for path in &self.paths {
            command.arg(std::path::absolute(path).context("cannot make a path absolute")?);
        }
        // A group of its own: Ctrl-C in this terminal is not for it.
        command.process_group(0).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the mount's process")?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).context("the mount's process")?;
        }
        if line.is_empty() {
            // It has said why on our standard error, which it shares.
            let status = child.wait().context("the mount's process")?;
            return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)));
        }
        if json {
            print!("{line}");
            return Ok(ExitCode::SUCCESS);
        }
        let value: serde_json::Value =
            serde_json::from_str(&line).context("the mount's process said something strange")?;
        let path = |key: &str| PathBuf::from(value[key].as_str().unwrap_or_default());
        let (volume, mountpoint) = (path("volume"), path("mountpoint"));
        let made = value["created"].as_bool().unwrap_or(false);
        let passthrough = value["passthrough"].as_bool().unwrap_or(false);
        println!("{}", announcement(&volume, &mountpoint, made, passthrough));
        println!("Unmount it with: librorum umount {}", mountpoint.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// From here on nobody reads our output: a pipe that we kept open would keep its reader waiting.
/// What we log goes to a file in the volume.
fn detach_output(volume_dir: &Path) -> std::io::Result<()> {
    let log = std::fs::OpenOptions::new().append(true).create(true).open(volume_dir.join("log"))?;
    rustix::stdio::dup2_stderr(&log)?;
    rustix::stdio::dup2_stdout(&log)?;
    Ok(())
}

fn announcement(volume: &Path, mountpoint: &Path, made: bool, passthrough: bool) -> String {
    format!(
        "{}Mounted {} at {}{}",
        if made { format!("Made a new volume in {}\n", volume.display()) } else { String::new() },
        volume.display(),
        mountpoint.display(),
        if passthrough { "" } else { " (without passthrough: that needs root)" }
    )
}

pub(crate) fn default_volume() -> anyhow::Result<PathBuf> {
    let data = match std::env::var_os("XDG_DATA_HOME").filter(|value| !value.is_empty()) {
        Some(data) => PathBuf::from(data),
        None => {
            let home = std::env::var_os("HOME").filter(|value| !value.is_empty()).context(
                "neither XDG_DATA_HOME nor HOME is set: name the volume, as in \
                 'librorum mount VOLUME DIR'",
            )?;
            PathBuf::from(home).join(".local/share")
        }
    };
    Ok(data.join("librorum/default"))
}

/// Whether this program was called as mount(8) calls its helpers.
pub(crate) fn is_mount_helper(arguments: &[OsString]) -> bool {
    arguments
        .first()
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|name| name == "mount.librorum" || name == "mount.fuse.librorum")
}

/// From `mount.librorum SOURCE DIR [-sfnv] [-o OPTIONS]` (mount(8), "External helpers") to our own
/// arguments.
pub(crate) fn translate_helper_arguments(arguments: &[OsString]) -> Result<Vec<OsString>, String> {
    let mut translated: Vec<OsString> =
        ["librorum", "mount", "--background"].map(Into::into).into();
    let mut paths = Vec::new();
    // A typing error in fstab must not make a new, empty volume.
    let mut options = OsString::from("nocreate");
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.as_bytes() {
            b"-o" => {
                let given = rest.next().ok_or("-o needs options")?;
                options.push(",");
                options.push(given);
            }
            b"-N" | b"-t" => {
                rest.next().ok_or("an option lacks its value")?;
            }
            b"-s" | b"-n" | b"-v" | b"-f" => {
                // -f: mount(8) wants nothing mounted.
                if argument == "-f" {
                    return Ok(["librorum", "--version"].map(Into::into).into());
                }
            }
            other if other.starts_with(b"-") => {
                return Err(format!("unknown option {}", argument.to_string_lossy()));
            }
            _ => paths.push(argument.clone()),
        }
    }
    if paths.len() != 2 {
        return Err("usage: mount.librorum VOLUME DIR [-o OPTIONS]".to_owned());
    }
    translated.push("-o".into());
    translated.push(options);
    translated.extend(paths);
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_8_calls_are_understood() {
        let given = ["/sbin/mount.librorum", "/srv/v", "/mnt", "-n", "-o", "rw,noatime"];
        let given: Vec<OsString> = given.map(Into::into).into();
        assert!(is_mount_helper(&given));
        let translated = translate_helper_arguments(&given).unwrap();
        let expected =
            ["librorum", "mount", "--background", "-o", "nocreate,rw,noatime", "/srv/v", "/mnt"];
        assert_eq!(translated, expected.map(OsString::from));
        assert!(translate_helper_arguments(&given[..2]).is_err());
    }
}
