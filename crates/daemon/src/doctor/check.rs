//! What is looked at.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Check, Sources, Verdict};
use crate::config::Config;
use crate::metrics::process;

/// From this kernel on, mounts can leave reads and writes to it (FUSE passthrough).
const PASSTHROUGH_SINCE: (u32, u32) = (6, 9);
/// Fewer open files than this get tight with a few clients.
const OPEN_FILES_MIN: u64 = 4_096;
/// A few seconds are the resolution of what nodes tell each other.
const CLOCK_WARN_S: u64 = 3;
const CLOCK_FAIL_S: u64 = 60;

fn check(
    name: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Check {
    Check { name, verdict, found: found.into(), advice: advice.into() }
}

/// Looks at everything that has gone wrong somewhere before.
#[must_use]
pub fn checks(sources: &Sources) -> Vec<Check> {
    let mut found = Vec::new();
    match &sources.config {
        Some(Ok(_)) => found.push(check("configuration", Verdict::Ok, "it can be read", "")),
        Some(Err(why)) => {
            found.push(check("configuration", Verdict::Fail, why, "mend the lines it names"));
        }
        None => {}
    }
    match (&sources.status, &sources.unreachable) {
        (Some(status), _) => {
            let text = format!("{} runs as process {}", status.version, status.pid);
            found.push(check("daemon", Verdict::Ok, text, ""));
        }
        (None, Some(why)) => {
            let advice = "start it: systemctl start librorum, or librorum daemon";
            found.push(check("daemon", Verdict::Fail, why, advice));
        }
        (None, None) => {}
    }
    found.push(fuse_device());
    found.push(fusermount());
    found.push(kernel_version());
    found.push(open_files(sources));
    if let Some(Ok(config)) = &sources.config {
        found.extend(sockets(config));
        found.extend(secrets(config));
    }
    found.extend(disks(sources).iter().map(disk));
    for (node, ahead) in &sources.clocks_ahead {
        found.push(clock(node, *ahead));
    }
    if let Some(nodes) = &sources.nodes {
        for node in &nodes.nodes {
            let name = if node.node_id.is_empty() { &node.address } else { &node.node_id };
            let text = format!("{name} is {} {}", node.status, node.error);
            let verdict = if node.status == "online" { Verdict::Ok } else { Verdict::Warn };
            let advice = if verdict == Verdict::Ok { "" } else { "look at librorum nodes there" };
            found.push(check("node", verdict, text.trim_end(), advice));
        }
    }
    if let Some(logs) = &sources.logs {
        let errors = logs.records.iter().filter(|record| record.level == "error").count();
        let text = format!("{errors} errors in the log that is kept");
        let (verdict, advice) = if errors == 0 {
            (Verdict::Ok, "")
        } else {
            (Verdict::Warn, "librorum logs --level error")
        };
        found.push(check("log", verdict, text, advice));
    }
    found
}

/// For people: one line for each, and what to do.
pub(super) fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, verdict, found, advice } in checks {
        text.push_str(&format!("{:4} {name}: {found}\n", verdict.name()));
        if !advice.is_empty() {
            text.push_str(&format!("     {advice}\n"));
        }
    }
    text
}

fn fuse_device() -> Check {
    let name = "fuse device";
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => check(name, Verdict::Ok, "/dev/fuse can be opened", ""),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            check(name, Verdict::Fail, "/dev/fuse is missing", "modprobe fuse")
        }
        Err(error) => {
            let advice = "it should be open to everybody: chmod 666 /dev/fuse";
            check(name, Verdict::Fail, format!("/dev/fuse: {error}"), advice)
        }
    }
}

fn fusermount() -> Check {
    let name = "fusermount3";
    if rustix::process::geteuid().is_root() {
        return check(name, Verdict::Ok, "not needed by root", "");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file()) {
        Some(path) => check(name, Verdict::Ok, path.display().to_string(), ""),
        None => {
            let advice = "install package fuse3, or mount as root";
            check(name, Verdict::Warn, "it is missing, so only root can mount", advice)
        }
    }
}

fn kernel_version() -> Check {
    let name = "kernel";
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(version) if version >= PASSTHROUGH_SINCE => {
            check(name, Verdict::Ok, format!("{release} has FUSE passthrough"), "")
        }
        Some(_) => {
            let advice = "mounts work, but slower than they could: Linux 6.9 has passthrough";
            check(name, Verdict::Warn, release, advice)
        }
        None => check(name, Verdict::Warn, format!("'{release}' is no version"), ""),
    }
}

pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The limit of the daemon's process if we may see it, else of this one.
fn open_files(sources: &Sources) -> Check {
    let name = "open files";
    let limits = sources
        .status
        .as_ref()
        .and_then(|status| std::fs::read_to_string(format!("/proc/{}/limits", status.pid)).ok());
    let limit = match &limits {
        Some(limits) => limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .and_then(|rest| rest.split_ascii_whitespace().next())
            .map_or(0, |limit| limit.parse().unwrap_or(0)),
        None => process::open_files_max(),
    };
    let open = sources.status.as_ref().map_or(0, |status| status.open_files);
    let text =
        format!("{open} of {}", if limit == 0 { "any number".into() } else { limit.to_string() });
    let advice = "raise it: LimitNOFILE= of the service, or ulimit -n";
    if limit != 0 && open.saturating_mul(10) > limit.saturating_mul(9) {
        check(name, Verdict::Fail, text, advice)
    } else if limit != 0 && limit < OPEN_FILES_MIN {
        check(name, Verdict::Warn, text, advice)
    } else {
        check(name, Verdict::Ok, text, "")
    }
}

/// Who may reach the sockets, and whether somebody else could put his own in their place.
fn sockets(config: &Config) -> Vec<Check> {
    let name = "socket";
    let paths = [Some(&config.daemon.socket), config.grpc.socket.as_ref()];
    let mut found = Vec::new();
    for path in paths.into_iter().flatten() {
        let at = path.display();
        let Some(dir) = path.parent() else { continue };
        let Ok(folder) = std::fs::metadata(dir) else {
            let text = format!("{} does not exist", dir.display());
            found.push(check(name, Verdict::Warn, text, "the daemon makes it when it starts"));
            continue;
        };
        let mode = folder.permissions().mode();
        if mode & 0o002 != 0 {
            let text = format!("everybody can make sockets in {}", dir.display());
            let advice = "an imposter could take the daemon's place: use a folder of its own";
            found.push(check(name, Verdict::Fail, text, advice));
            continue;
        }
        match std::fs::symlink_metadata(path) {
            Ok(socket) if socket.mode() & 0o170_000 == 0o140_000 => {
                let text = format!("{at} has mode {:o}", socket.mode() & 0o777);
                found.push(check(name, Verdict::Ok, text, ""));
            }
            Ok(_) => {
                let text = format!("{at} is no socket");
                found.push(check(
                    name,
                    Verdict::Fail,
                    text,
                    "remove it, and start the daemon again",
                ));
            }
            Err(error) => {
                let advice = "is the daemon running, and may you enter the folder?";
                found.push(check(name, Verdict::Warn, format!("{at}: {error}"), advice));
            }
        }
    }
    found
}

/// Files that only the daemon should read.
fn secrets(config: &Config) -> Vec<Check> {
    let files = [
        &config.grpc.token_file,
        &config.grpc.tls_key,
        &config.nodes.token_file,
        &config.metrics.token_file,
    ];
    let mut found = Vec::new();
    for path in files.into_iter().flatten() {
        let name = "secret";
        let at = path.display();
        match std::fs::metadata(path) {
            Ok(file) if file.permissions().mode() & 0o077 != 0 => {
                let text = format!("{at} can be read by others");
                found.push(check(name, Verdict::Fail, text, format!("chmod 600 {at}")));
            }
            Ok(_) => found.push(check(name, Verdict::Ok, format!("{at} is its owner's"), "")),
            Err(error) => {
                let advice = "grpc.token_file is made by the daemon; the others are yours to make";
                found.push(check(name, Verdict::Warn, format!("{at}: {error}"), advice));
            }
        }
    }
    let certificates = [
        &config.grpc.tls_cert,
        &config.grpc.tls_client_ca,
        &config.nodes.tls_ca,
        &config.metrics.otlp_ca,
    ];
    for path in certificates.into_iter().flatten() {
        if let Err(error) = std::fs::File::open(path) {
            let text = format!("{}: {error}", path.display());
            found.push(check("certificate", Verdict::Fail, text, "the daemon needs to read it"));
        }
    }
    found
}

pub(super) struct Disk {
    pub(super) path: PathBuf,
    pub(super) total_bytes: u64,
    pub(super) available_bytes: u64,
    pub(super) inodes_available: u64,
    pub(super) inodes_total: u64,
}

/// Of the configured volumes, those the daemon says it has, and its state.
fn disks(sources: &Sources) -> Vec<Disk> {
    let mut paths: Vec<PathBuf> = Vec::new();
    if let Some(Ok(config)) = &sources.config {
        paths.extend(config.volumes.iter().map(|volume| volume.path.clone()));
        paths.push(config.daemon.state_dir.clone());
    }
    for volume in sources.status.iter().flat_map(|status| &status.volumes) {
        let value: serde_json::Value = serde_json::from_str(volume).unwrap_or_default();
        paths.extend(value.get("volume").and_then(|path| path.as_str()).map(PathBuf::from));
    }
    paths.sort();
    paths.dedup();
    paths.iter().filter_map(|path| disk_of(path)).collect()
}

fn disk_of(path: &Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Disk {
        path: path.to_owned(),
        total_bytes: stat.f_blocks * stat.f_frsize,
        available_bytes: stat.f_bavail * stat.f_frsize,
        inodes_available: stat.f_favail,
        inodes_total: stat.f_files,
    })
}

pub(super) fn disk(disk: &Disk) -> Check {
    let name = "disk space";
    let gib =
        |bytes: u64| format!("{}.{} GiB", bytes >> 30, ((bytes & ((1 << 30) - 1)) * 10) >> 30);
    let text = format!(
        "{}: {} of {} are free",
        disk.path.display(),
        gib(disk.available_bytes),
        gib(disk.total_bytes)
    );
    let advice = "make room: remove files and run librorum sweep, or move the volume";
    let percent = |part: u64, whole: u64| part.saturating_mul(100) / whole.max(1);
    // File systems such as btrfs count no inodes.
    let out_of_inodes =
        disk.inodes_total != 0 && percent(disk.inodes_available, disk.inodes_total) < 1;
    let left = percent(disk.available_bytes, disk.total_bytes);
    if left < 1 || out_of_inodes {
        check(name, Verdict::Fail, text, advice)
    } else if left < 5 {
        check(name, Verdict::Warn, text, advice)
    } else {
        check(name, Verdict::Ok, text, "")
    }
}

pub(super) fn disks_text(sources: &Sources) -> String {
    let mut text = String::new();
    for disk in disks(sources) {
        text.push_str(&format!(
            "{}: {} of {} bytes, {} of {} inodes are free\n",
            disk.path.display(),
            disk.available_bytes,
            disk.total_bytes,
            disk.inodes_available,
            disk.inodes_total
        ));
    }
    text
}

pub(super) fn clock(node: &str, ahead_s: i64) -> Check {
    let text = format!("the clock of {node} is {ahead_s} s ahead of ours");
    let advice = "run an NTP client on both machines";
    match ahead_s.unsigned_abs() {
        apart if apart >= CLOCK_FAIL_S => check("clock", Verdict::Fail, text, advice),
        apart if apart >= CLOCK_WARN_S => check("clock", Verdict::Warn, text, advice),
        _ => check("clock", Verdict::Ok, text, ""),
    }
}
