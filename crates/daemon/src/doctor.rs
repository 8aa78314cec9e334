//! What is wrong here, and a bundle for who is asked for help.
//!
//! The bundle never has contents of files. Names of files are left out too unless they are asked for:
//! records of the log are then told by their place in the program and their numbers, because a message
//! may name a file. The configuration has no secrets in it to begin with; the values of headers are
//! replaced.

mod check;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use librorum_rpc::proto::v1;
use librorum_sys::clock;
use serde::Serialize;

use crate::config::Config;

pub use check::checks;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but.
    Warn,
    /// Something does not work.
    Fail,
}

impl Verdict {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    pub advice: String,
}

/// What is known about a daemon. What it does not answer, or what nobody asked it, is `None`.
#[derive(Debug, Default)]
pub struct Sources {
    /// The configuration, or what is wrong with it.
    pub config: Option<Result<Config, String>>,
    /// Why the daemon does not answer, if it does not.
    pub unreachable: Option<String>,
    /// What it is.
    pub status: Option<v1::StatusResponse>,
    /// Its counts, as Prometheus reads them or as JSON.
    pub metrics: Option<String>,
    /// Its log.
    pub logs: Option<v1::LogsResponse>,
    /// Its nodes.
    pub nodes: Option<v1::NodesResponse>,
    /// How far clocks of other nodes are ahead, in seconds, if that is known.
    pub clocks_ahead: Vec<(String, i64)>,
}

/// Whether the bundle may tell names of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// It may not.
    #[default]
    LeftOut,
    /// It may.
    Told,
}

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Included {
    /// Its name there.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its length.
    pub bytes: usize,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct DoctorError {
    path: PathBuf,
    source: std::io::Error,
}

type Content = (&'static str, &'static str, Vec<u8>);

/// Writes a bundle (tar, compressed by zstd, readable by its owner only) and answers what is in it.
///
/// # Errors
///
/// The disk's; there is a file of that name already.
pub fn collect(path: &Path, sources: &Sources, names: Names) -> Result<Vec<Included>, DoctorError> {
    let fail = |source| DoctorError { path: path.to_owned(), source };
    let mut contents = contents(sources, names);
    let list = readme(&contents);
    contents.insert(0, ("README.txt", "this list", list.into_bytes()));
    let file = std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(fail)?;
    let written = write(file, &contents);
    if written.is_err()
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::debug!(%error, "the unfinished bundle");
    }
    written.map_err(fail)?;
    let included = contents.iter().map(|(name, about, content)| Included {
        name,
        about,
        bytes: content.len(),
    });
    Ok(included.collect())
}

fn write(file: std::fs::File, contents: &[Content]) -> std::io::Result<()> {
    let encoder = zstd::Encoder::new(file, 3)?;
    let mut archive = tar::Builder::new(encoder);
    let now = u64::try_from(clock::now().secs).unwrap_or(0);
    for (name, _, content) in contents {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        header.set_entry_type(tar::EntryType::Regular);
        archive.append_data(&mut header, format!("librorum-doctor/{name}"), &content[..])?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()
}

fn readme(contents: &[Content]) -> String {
    let mut text = String::from(
        "What a librorum daemon and its machine say about themselves. No contents of files are in \
         here.\n\n",
    );
    for (name, about, content) in contents {
        text.push_str(&format!("{name:14} {:>9} bytes  {about}\n", content.len()));
    }
    text
}

fn contents(sources: &Sources, names: Names) -> Vec<Content> {
    let mut contents: Vec<Content> = Vec::new();
    let mut add = |name, about, content: Vec<u8>| contents.push((name, about, content));
    let found = checks(sources);
    add("checks.txt", "what was looked at", check::text(&found).into_bytes());
    add("version.txt", "the program", format!("{}\n", env!("CARGO_PKG_VERSION")).into_bytes());
    match &sources.config {
        Some(Ok(config)) => {
            let message = config.to_message();
            let text = format!("{}\n# {}\n", message.toml, message.sources.join("\n# "));
            add("config.toml", "what is configured, secrets left out", text.into_bytes());
        }
        // It quotes the file, in which anything may be.
        Some(Err(_)) => add("config.toml", "what is configured", b"# it cannot be read\n".to_vec()),
        None => {}
    }
    if let Some(status) = &sources.status {
        add("status.json", "the daemon and its volumes", json(&status_value(status)));
    }
    if let Some(metrics) = &sources.metrics {
        add("metrics.txt", "counts since the start", metrics.clone().into_bytes());
    }
    if let Some(logs) = &sources.logs {
        let about = match names {
            Names::LeftOut => "the log; what may be a name is left out",
            Names::Told => "the log",
        };
        add("log.jsonl", about, log_lines(logs, names));
    }
    if let Some(nodes) = &sources.nodes {
        add("nodes.json", "the nodes that are known", json(&nodes_value(nodes)));
    }
    add("mounts.txt", "librorum's mounts, and the kinds of all", mounts(sources).into_bytes());
    add("kernel.txt", "kernel, distribution, memory", kernel().into_bytes());
    add("limits.txt", "limits of the daemon's process", limits(sources).into_bytes());
    add("disk.txt", "space below volumes and state", check::disks_text(sources).into_bytes());
    contents
}

fn json(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

fn status_value(status: &v1::StatusResponse) -> serde_json::Value {
    let volumes: Vec<serde_json::Value> = status
        .volumes
        .iter()
        .map(|volume| serde_json::from_str(volume).unwrap_or(serde_json::Value::Null))
        .collect();
    serde_json::json!({
        "version": status.version,
        "pid": status.pid,
        "uptime_ms": status.uptime_ms,
        "listening": status.listening,
        "resident_bytes": status.resident_bytes,
        "open_files": status.open_files,
        "volumes": volumes,
    })
}

fn nodes_value(nodes: &v1::NodesResponse) -> serde_json::Value {
    let known: Vec<serde_json::Value> = nodes
        .nodes
        .iter()
        .map(|node| {
            serde_json::json!({
                "node_id": node.node_id,
                "address": node.address,
                "status": node.status,
                "latency_ms": node.latency_ms,
                "failure_count": node.failure_count,
                "found_by": node.found_by,
                "system": node.system,
                "error": node.error,
            })
        })
        .collect();
    serde_json::json!({ "own_id": nodes.own_id, "own_address": nodes.own_address, "nodes": known })
}

fn log_lines(logs: &v1::LogsResponse, names: Names) -> Vec<u8> {
    let mut out = Vec::new();
    for record in &logs.records {
        let told = names == Names::Told;
        let fields: serde_json::Map<String, serde_json::Value> = record
            .fields
            .iter()
            .map(|(name, value)| {
                let is_harmless =
                    value.parse::<f64>().is_ok() || value == "true" || value == "false";
                let value = if told || is_harmless { value.as_str() } else { "(left out)" };
                (name.clone(), value.into())
            })
            .collect();
        let line = serde_json::json!({
            "sequence": record.sequence,
            "unix_ms": record.unix_ms,
            "level": record.level,
            "module": record.module,
            // Where it is said tells which message it is.
            "message": if told { record.message.as_str() } else { "(left out)" },
            "file": record.file,
            "line": record.line,
            "fields": fields,
        });
        out.extend_from_slice(line.to_string().as_bytes());
        out.push(b'\n');
    }
    out
}

/// Our own mounts as they are; of the others only how many there are of which kind.
fn mounts(sources: &Sources) -> String {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours: Vec<&Path> = match &sources.config {
        Some(Ok(config)) => config.volumes.iter().filter_map(|v| v.mount.as_deref()).collect(),
        _ => Vec::new(),
    };
    let mut out = String::new();
    let mut kinds: std::collections::BTreeMap<&str, u32> = std::collections::BTreeMap::new();
    for line in text.lines() {
        let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("");
        let at = line.split(' ').nth(4).unwrap_or("");
        if kind == "fuse.librorum" || ours.iter().any(|mount| Path::new(at) == *mount) {
            out.push_str(line);
            out.push('\n');
        }
        *kinds.entry(kind).or_default() += 1;
    }
    for (kind, count) in kinds {
        out.push_str(&format!("{count} of {kind}\n"));
    }
    out
}

fn kernel() -> String {
    let mut out = String::new();
    for path in ["/proc/version", "/etc/os-release", "/proc/meminfo", "/proc/loadavg"] {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| format!("{error}\n"));
        out.push_str(&format!("== {path}\n{text}"));
    }
    out
}

fn limits(sources: &Sources) -> String {
    let process =
        sources.status.as_ref().map_or("self".to_owned(), |status| status.pid.to_string());
    let path = format!("/proc/{process}/limits");
    std::fs::read_to_string(&path).unwrap_or_else(|error| format!("{path}: {error}\n"))
}

#[cfg(test)]
mod tests;
