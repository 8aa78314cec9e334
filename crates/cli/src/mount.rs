//! `librorum mount`: from arguments to a served file system, and its end.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use librorum_fs::{Fs, FsOptions, VerifyPolicy, Volume};
use librorum_fuse::transport::{MountOptions, Session};
use librorum_fuse::{VolumeHandler, VolumeNotifier};
use librorum_sys::Holder;

use crate::control;

/// After a signal, open files get this long before the mount goes away under them.
const GRACE: Duration = Duration::from_secs(3);

/// Threads that read the kernel's requests at once, at most; what waits does not count.
fn reader_count() -> usize {
    // With as many as CPUs, the callers would have none to run on.
    std::thread::available_parallelism().map_or(1, |cpus| (cpus.get() / 2).clamp(1, 4))
}

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
    /// Say "mounted" on standard output once, then never use it again.
    #[arg(long, hide = true)]
    notify_parent: bool,
}

/// What the `-o` options and flags add up to.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    read_only: bool,
    allow_other: bool,
    dev_and_suid: bool,
    no_exec: bool,
    no_atime: bool,
    passthrough: bool,
    create: bool,
    verify: VerifyPolicy,
    unsealed_bytes_max: Option<u64>,
    quiet_ms: Option<u64>,
}

impl Mount {
    fn settings(&self) -> anyhow::Result<Settings> {
        let root = rustix::process::geteuid().is_root();
        let mut settings = Settings {
            read_only: self.read_only,
            allow_other: self.allow_other || root,
            dev_and_suid: root,
            no_exec: false,
            no_atime: false,
            passthrough: !self.no_passthrough,
            create: true,
            verify: VerifyPolicy::PageCache,
            unsealed_bytes_max: None,
            quiet_ms: None,
        };
        for option in self.options.iter().filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match (key, value) {
                ("ro", "") => settings.read_only = true,
                ("rw", "") => settings.read_only = false,
                ("allow_other", "") => settings.allow_other = true,
                ("dev" | "suid", "") => {
                    if !root {
                        bail!("option '{key}' needs root");
                    }
                }
                ("nodev" | "nosuid", "") => settings.dev_and_suid = false,
                ("noexec", "") => settings.no_exec = true,
                ("exec", "") => settings.no_exec = false,
                ("noatime", "") => settings.no_atime = true,
                ("no_passthrough", "") => settings.passthrough = false,
                ("nocreate", "") => settings.create = false,
                // Bytes that the kernel reads by itself cannot be verified at each read.
                ("verify", "always") => {
                    settings.verify = VerifyPolicy::Always;
                    settings.passthrough = false;
                }
                ("verify", "cache") => settings.verify = VerifyPolicy::PageCache,
                ("unsealed", size) => {
                    let size = librorum_format::parse_size(size)
                        .map_err(|reason| anyhow::anyhow!("option unsealed: {reason}"))?;
                    settings.unsealed_bytes_max = Some(size);
                }
                ("seal_after", ms) => {
                    settings.quiet_ms = Some(ms.parse().with_context(|| {
                        format!("option seal_after: '{ms}' is not a number of milliseconds")
                    })?);
                }
                // mount(8) acts on these before it calls us, and they mean nothing here.
                (
                    "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "owner"
                    | "group" | "_netdev" | "nofail" | "relatime" | "strictatime" | "diratime"
                    | "async" | "atime" | "nodiratime" | "norelatime",
                    "",
                ) => {}
                (key, _) if key.starts_with("x-") || key == "comment" => {}
                _ => bail!(
                    "unknown mount option '{option}'; 'librorum mount --help' lists what there is"
                ),
            }
        }
        Ok(settings)
    }

    pub(crate) fn run(self, json: bool, log: &str) -> anyhow::Result<ExitCode> {
        let settings = self.settings()?;
        if self.background {
            return self.run_in_background(json, log);
        }
        let (volume_dir, mountpoint) = match self.paths.as_slice() {
            [volume, mountpoint] => (volume.clone(), mountpoint.clone()),
            [mountpoint] => (default_volume()?, mountpoint.clone()),
            _ => bail!("one or two paths are needed"),
        };
        clear_dead_mounts(&mountpoint)?;
        if !mountpoint.exists() {
            std::fs::create_dir_all(&mountpoint)
                .with_context(|| format!("cannot make {}", mountpoint.display()))?;
        }
        let mountpoint = mountpoint.canonicalize().with_context(|| {
            format!(
                "{} cannot be used; if an earlier mount died there, run 'librorum umount' on it",
                mountpoint.display()
            )
        })?;
        if !mountpoint.is_dir() {
            bail!("{} is not a directory", mountpoint.display());
        }
        let mut made = false;
        if !Volume::exists(&volume_dir) && settings.create && !settings.read_only {
            Volume::format(&volume_dir, &librorum_fs::FormatOptions::default())?;
            made = true;
        }
        let volume_dir = volume_dir
            .canonicalize()
            .with_context(|| format!("no volume at {}", volume_dir.display()))?;
        if volume_dir.starts_with(&mountpoint) {
            bail!(
                "{} lies inside {}: the mount would hide its own volume",
                volume_dir.display(),
                mountpoint.display()
            );
        }
        let open_files = librorum_sys::limits::raise_open_files();
        tracing::debug!(open_files, "limit of open files");
        let mut options = FsOptions {
            read_only: settings.read_only,
            verify: settings.verify,
            holder: Holder {
                pid: std::process::id(),
                command: "mount".to_owned(),
                mountpoint: Some(mountpoint.clone()),
            },
            ..FsOptions::default()
        };
        options.unsealed_bytes_max =
            settings.unsealed_bytes_max.unwrap_or(options.unsealed_bytes_max);
        options.quiet_ms = settings.quiet_ms.unwrap_or(options.quiet_ms);
        let fs = Fs::open_volume(&volume_dir, options)?;
        let served = self.serve(&fs, &settings, &volume_dir, &mountpoint, made, json);
        let closed = fs.shut_down().context("closing the volume");
        served?;
        closed?;
        Ok(ExitCode::SUCCESS)
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
        let handler = Arc::new(VolumeHandler::new(Arc::clone(fs)));
        let session = Session::mount(
            handler,
            &MountOptions {
                mountpoint: mountpoint.to_owned(),
                source: volume_dir.as_os_str().to_owned(),
                read_only: settings.read_only,
                allow_other: settings.allow_other,
                passthrough: settings.passthrough,
                writeback: true,
                dev_and_suid: settings.dev_and_suid,
                no_exec: settings.no_exec,
                no_atime: settings.no_atime,
                reader_count: reader_count(),
            },
        )
        .with_context(|| explain_mount_failure(mountpoint))?;
        raise_writeback_limit(mountpoint);
        fs.notify_kernel(Arc::new(VolumeNotifier::new(session.invalidator())));
        let unmounter = session.unmounter();
        let control = control::serve(fs, volume_dir)
            .inspect_err(|error| {
                tracing::warn!(%error, "no control socket: 'status' works after unmounting only");
            })
            .ok();
        let (ended, end) = mpsc::channel();
        let ended_by_signal = ended.clone();
        let mut signals = signal_hook::iterator::Signals::new([
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGHUP,
        ])
        .context("cannot handle signals")?;
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for _signal in signals.forever() {
                // Its receiver may be gone with the mount; then there is nothing to stop.
                drop(ended_by_signal.send(None));
            }
        })?;
        self.announce(fs, volume_dir, mountpoint, made, json);
        if self.notify_parent {
            detach_output(volume_dir).context("cannot open the volume's log")?;
        }
        let serving = std::thread::Builder::new().name("serve".to_owned()).spawn(move || {
            let served = session.serve();
            drop(ended.send(Some(served)));
        })?;
        let first = end.recv().context("the mount ended unexpectedly")?;
        let served = match first {
            Some(served) => served,
            None => {
                // Out of the tree at once; whoever has files open gets a moment, then ENOTCONN.
                if let Err(error) = unmounter.unmount_lazily() {
                    tracing::debug!(%error, "unmounting after a signal");
                }
                match end.recv_timeout(GRACE) {
                    Ok(Some(served)) => served,
                    Ok(None) | Err(_) => Ok(()),
                }
            }
        };
        if serving.is_finished() && serving.join().is_err() {
            tracing::error!("a thread that served requests panicked");
        }
        drop(control);
        served.context("serving the mount")
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

/// Takes away what a mount whose process died left behind: the kernel answers from its memory
/// there, and a new mount would only cover it.
fn clear_dead_mounts(mountpoint: &Path) -> anyhow::Result<()> {
    while let Some(mounted) = crate::mountinfo::mounted_at(mountpoint)? {
        if librorum_sys::VolumeLock::holder(&mounted.volume).is_some() {
            bail!("{} is mounted at {} already", mounted.volume.display(), mountpoint.display());
        }
        crate::umount::detach(&mounted.mountpoint).with_context(|| {
            format!("a dead mount at {} cannot be taken away", mountpoint.display())
        })?;
    }
    Ok(())
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

fn default_volume() -> anyhow::Result<PathBuf> {
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

fn explain_mount_failure(mountpoint: &Path) -> String {
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
    let Ok(Some(mounted)) = crate::mountinfo::mounted_at(mountpoint) else { return };
    for (file, value) in [("strict_limit", "0"), ("max_ratio", "100")] {
        let path = format!("/sys/class/bdi/{}/{file}", mounted.device);
        if let Err(error) = std::fs::write(&path, value) {
            tracing::debug!(%error, path, "the writeback limit stays");
        }
    }
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

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let mount = |options: &[&str]| Mount {
            paths: vec!["/mnt".into()],
            background: false,
            read_only: false,
            allow_other: false,
            no_passthrough: false,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            notify_parent: false,
        };
        let error = mount(&["ro", "nosuch=1"]).settings().unwrap_err();
        assert!(error.to_string().contains("nosuch=1"), "{error}");
        let settings = mount(&["ro", "verify=always", "unsealed=1G"]).settings().unwrap();
        assert!(settings.read_only && !settings.passthrough);
        assert_eq!(settings.unsealed_bytes_max, Some(1 << 30));
    }
}
