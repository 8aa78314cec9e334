//! Commands that ask a daemon about itself: `nodes`, `logs`, `transport` and `config`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use librorum_daemon::config::key_names;
use librorum_rpc::proto::v1;
use serde_json::{Value, json};

use crate::daemon::ConfigArguments;
use crate::output::{bytes, utc};
use crate::remote::{self, Intent, To, path_json, shown};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum nodes\n  librorum nodes add 192.0.2.7:50051\n\nExit codes: 0 done, 1 failed, 4 nobody answers."
)]
pub(crate) struct Nodes {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Make a node known.
    Add {
        /// HOST:PORT of its gRPC.
        address: String,
    },
    /// Forget a node.
    Remove {
        /// Its id, or its address.
        node: String,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum logs --level warn -n 20\n  librorum logs --follow --module grpc\n\nWith --json, a record a line. Exit codes: 0 done, 1 failed, 4 nobody answers."
)]
pub(crate) struct Logs {
    /// Wait for what comes, until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// This level and worse: error, warn, info, debug or trace.
    #[arg(long, default_value = "")]
    level: String,
    /// Part of the module's name.
    #[arg(long, default_value = "")]
    module: String,
    /// Part of the message.
    #[arg(long, default_value = "")]
    search: String,
    /// The newest so many.
    #[arg(short = 'n', default_value_t = 100, value_name = "COUNT")]
    count: u32,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  librorum transport -n 20\n\nThe ways of bytes, best first: fd, arena, inline, grpc. Exit codes: 0 done, 1 failed, 4 nobody answers."
)]
pub(crate) struct Transports {
    /// The newest so many operations.
    #[arg(short = 'n', default_value_t = 50, value_name = "COUNT")]
    count: u32,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum config check\n  librorum config set daemon.log_level debug\n\nExit codes: 0 done, 1 failed or something is wrong with it."
)]
pub(crate) struct Config {
    #[command(subcommand)]
    action: ConfigAction,
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Print what a daemon would be started with: file, environment, flags, defaults.
    Show {
        #[command(flatten)]
        from: ConfigArguments,
    },
    /// Say everything that is wrong with it.
    Check {
        #[command(flatten)]
        from: ConfigArguments,
    },
    /// Change a key in the file; comments and order stay.
    Set {
        /// Such as daemon.log_level.
        key: String,
        /// The new value; lists as in TOML.
        value: String,
        #[command(flatten)]
        from: ConfigArguments,
    },
    /// Print where the file is, or would be.
    Path {
        #[command(flatten)]
        from: ConfigArguments,
    },
}

impl Nodes {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let mut request = v1::NodesRequest::default();
        match self.change {
            None => {}
            Some(Change::Add { address }) => request.add = address,
            Some(Change::Remove { node }) => request.remove = node,
        }
        remote::with(&self.to, Intent::Read, |remote| {
            let found = remote.client.nodes(&request)?;
            if json {
                let nodes: Vec<Value> = found.nodes.iter().map(node_json).collect();
                println!(
                    "{}",
                    json!({
                        "own_id": found.own_id, "own_address": found.own_address, "nodes": nodes,
                    })
                );
                return Ok(ExitCode::SUCCESS);
            }
            println!("this node   {} at {}", found.own_id, found.own_address);
            for node in &found.nodes {
                let id = if node.node_id.is_empty() { "?" } else { &node.node_id };
                println!(
                    "{:<11} {:<36} {:<24} {:>8.1} ms  {}",
                    node.status, id, node.address, node.latency_ms, node.error
                );
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn node_json(node: &v1::Node) -> Value {
    json!({
        "node_id": node.node_id,
        "address": node.address,
        "status": node.status,
        "last_heartbeat_unix_ms": node.last_heartbeat_unix_ms,
        "latency_ms": node.latency_ms,
        "failure_count": node.failure_count,
        "connection_count": node.connection_count,
        "discovered_unix_ms": node.discovered_unix_ms,
        "found_by": node.found_by,
        "system": node.system,
        "error": node.error,
    })
}

impl Logs {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Read, |remote| {
            let mut request = v1::LogsRequest {
                level: self.level.clone(),
                module: self.module.clone(),
                search: self.search.clone(),
                limit: self.count,
                ..v1::LogsRequest::default()
            };
            loop {
                let found = remote.client.logs(&request)?;
                for record in &found.records {
                    request.after = request.after.max(record.sequence);
                    print_record(record, json);
                }
                if !self.follow {
                    return Ok(ExitCode::SUCCESS);
                }
                request.limit = 0;
                request.wait_ms = 5000;
            }
        })
    }
}

fn print_record(record: &v1::LogRecord, json: bool) {
    if json {
        println!(
            "{}",
            json!({
                "sequence": record.sequence, "unix_ms": record.unix_ms, "level": record.level,
                "module": record.module, "message": record.message, "thread": record.thread,
                "file": record.file, "line": record.line, "fields": record.fields,
            })
        );
        return;
    }
    let nanos = u32::try_from(record.unix_ms.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
    let time = utc(record.unix_ms.div_euclid(1000), Some(nanos));
    let mut fields: Vec<String> =
        record.fields.iter().map(|(key, value)| format!(" {key}={value}")).collect();
    fields.sort();
    let message = shown(record.message.as_bytes());
    let fields = shown(fields.concat().as_bytes());
    println!("{} {:<5} {} {message}{fields}", &time[..23], record.level, record.module);
}

impl Transports {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        remote::with(&self.to, Intent::Read, |remote| {
            let limit = self.count;
            let traced = remote.client.trace(&v1::TraceRequest { limit, after: 0 })?;
            let ours = remote.client.transports();
            if json {
                let traced: Vec<Value> = traced.operations.iter().map(traced_json).collect();
                let ours: Vec<Value> = ours
                    .iter()
                    .map(|used| {
                        json!({
                            "operation": used.operation, "path": path_json(&used.path),
                            "transport": used.transport.to_string(), "bytes": used.bytes,
                            "demoted_because": used.demoted_because,
                        })
                    })
                    .collect();
                println!("{}", json!({ "daemon": traced, "client": ours }));
                return Ok(ExitCode::SUCCESS);
            }
            for operation in &traced.operations {
                let nanos = u32::try_from(operation.started_unix_ms.rem_euclid(1000)).unwrap_or(0);
                let time = utc(operation.started_unix_ms.div_euclid(1000), Some(nanos * 1_000_000));
                let mut why = String::new();
                if !operation.demoted_because.is_empty() {
                    why = format!("  ({})", operation.demoted_because);
                }
                if operation.code != 0 {
                    why += &format!("  failed with code {}", operation.code);
                }
                println!(
                    "{} {:>9} us {:<14} {:<11} {:>10} {}{why}",
                    &time[11..23],
                    operation.duration_ns / 1000,
                    operation.operation,
                    operation.transport,
                    bytes(operation.bytes),
                    shown(&operation.path)
                );
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn traced_json(operation: &v1::TracedOperation) -> Value {
    json!({
        "sequence": operation.sequence,
        "started_unix_ms": operation.started_unix_ms,
        "duration_ns": operation.duration_ns,
        "operation": operation.operation,
        "path": path_json(&operation.path),
        "transport": operation.transport,
        "demoted_because": operation.demoted_because,
        "bytes": operation.bytes,
        "code": operation.code,
        "connection": operation.connection,
        "uid": operation.uid,
        "trace_id": operation.trace_id,
    })
}

impl Config {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        match self.action {
            ConfigAction::Show { from } => {
                let shown = from.origin()?.load()?.to_message();
                if json {
                    let sources: serde_json::Map<String, Value> = shown
                        .sources
                        .iter()
                        .filter_map(|source| source.split_once('='))
                        .map(|(key, value)| (key.to_owned(), value.into()))
                        .collect();
                    println!("{}", json!({ "toml": shown.toml, "sources": sources }));
                } else {
                    print!("{}", shown.toml);
                }
            }
            ConfigAction::Check { from } => {
                from.origin()?.load()?;
                if json {
                    println!("{}", json!({ "path": from.path(), "problems": [] }));
                } else {
                    println!("{}: nothing is wrong", from.path().display());
                }
            }
            ConfigAction::Set { key, value, from } => {
                let path = from.path();
                set(&path, &key, &value)?;
                if json {
                    println!("{}", json!({ "path": path, "key": key, "value": value }));
                } else {
                    println!("{}: {key} = {value}", path.display());
                    println!("A daemon that runs reads it with SIGHUP, or 'librorum restart'.");
                }
            }
            ConfigAction::Path { from } => {
                let path = from.path();
                if json {
                    println!("{}", json!({ "path": path, "exists": path.exists() }));
                } else {
                    println!("{}", path.display());
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Changes a key of the file; what is wrong afterwards is not written.
fn set(path: &std::path::Path, key: &str, value: &str) -> anyhow::Result<()> {
    let (section, name) =
        key.split_once('.').with_context(|| format!("'{key}' is no key: write SECTION.KEY"))?;
    if !key_names().any(|(known, _)| known == key) {
        let known: Vec<&str> = key_names()
            .map(|(known, _)| known)
            .filter(|known| known.starts_with(&format!("{section}.")))
            .collect();
        bail!("there is no key '{key}'; section {section} has: {}", known.join(", "));
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let mut document: toml_edit::DocumentMut =
        text.parse().with_context(|| format!("{} is no TOML", path.display()))?;
    // Numbers, booleans and lists as they are; all else is text.
    let mut new: toml_edit::Value = value.parse().unwrap_or_else(|_not_toml| value.into());
    let table = document.entry(section).or_insert(toml_edit::table());
    if let Some(old) = table.get(name).and_then(toml_edit::Item::as_value) {
        *new.decor_mut() = old.decor().clone();
    }
    table[name] = toml_edit::Item::Value(new);
    let folder = path.parent().context("the file has no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = std::path::PathBuf::from(draft);
    std::fs::write(&draft, document.to_string())
        .with_context(|| format!("cannot write {}", draft.display()))?;
    let changed = librorum_daemon::config::Config::load(Some(&draft), [], &[])
        .map_err(anyhow::Error::new)
        .and_then(|_| {
            if let Ok(old) = path.metadata() {
                std::fs::set_permissions(&draft, old.permissions())?;
            }
            std::fs::rename(&draft, path)
                .with_context(|| format!("cannot write {}", path.display()))
        });
    if changed.is_err() {
        drop(std::fs::remove_file(&draft));
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_a_key_keeps_comments() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("librorum.toml");
        std::fs::write(&path, "# mine\n[daemon]\nlog_level = \"info\" # why\n").unwrap();
        set(&path, "daemon.log_level", "debug").unwrap();
        set(&path, "limits.requests", "7").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# mine\n[daemon]\nlog_level = \"debug\" # why\n"), "{text}");
        assert!(text.contains("[limits]\nrequests = 7\n"), "{text}");
        // What makes no sense changes nothing.
        assert!(set(&path, "limits.requests", "many").is_err());
        assert!(set(&path, "daemon.nosuch", "1").is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
