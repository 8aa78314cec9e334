//! Every key but those of volumes: how it is read, shown, and changed while the daemon runs.

use std::net::SocketAddr;
use std::path::Path;

use toml::Value;

use super::value::{Raw, bytes_text, duration_text};
use super::{Config, OtlpPaths};
use crate::logbook::parse_filter;
use crate::nodes::address::Address;

/// When a new value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// With a reload.
    Hot,
    /// With the next start.
    Restart,
}

pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) change: Change,
    pub(super) set: fn(&mut Config, &Raw) -> Result<(), String>,
    pub(super) get: fn(&Config) -> Option<Value>,
}

const fn key(
    name: &'static str,
    change: Change,
    set: fn(&mut Config, &Raw) -> Result<(), String>,
    get: fn(&Config) -> Option<Value>,
) -> Key {
    Key { name, change, set, get }
}

/// A line of the table: the key, when it changes, its place, how it is read and how it is shown.
macro_rules! keys {
    ($($name:literal $change:ident $section:ident.$field:ident = $read:expr, $show:expr;)*) => {
        &[$(key(
            $name,
            Change::$change,
            |config, raw| {
                let read: fn(&Raw) -> Result<_, String> = $read;
                config.$section.$field = read(raw)?;
                Ok(())
            },
            |config| $show(&config.$section.$field),
        )),*]
    };
}

/// All of them, by section.
pub(super) const KEYS: &[Key] = keys! {
    "daemon.socket" Restart daemon.socket = Raw::path, path;
    "daemon.socket_group" Restart daemon.socket_group = Raw::optional_text, optional;
    "daemon.allow_uids" Hot daemon.allow_uids = |raw| raw.each(Raw::number), numbers;
    "daemon.allow_gids" Hot daemon.allow_gids = |raw| raw.each(Raw::number), numbers;
    "daemon.log_level" Hot daemon.log_level = level, text;
    "daemon.log_file" Restart daemon.log_file = Raw::optional_path, optional_path;
    "daemon.log_file_bytes" Restart daemon.log_file_bytes = log_bytes, bytes;
    "daemon.slow_after" Hot daemon.slow_after = Raw::duration, duration;
    "daemon.state_dir" Restart daemon.state_dir = Raw::path, path;
    "grpc.listen" Restart grpc.listen = |raw| raw.each(socket_address), addresses;
    "grpc.socket" Restart grpc.socket = Raw::optional_path, optional_path;
    "grpc.tls_cert" Restart grpc.tls_cert = Raw::optional_path, optional_path;
    "grpc.tls_key" Restart grpc.tls_key = Raw::optional_path, optional_path;
    "grpc.tls_client_ca" Restart grpc.tls_client_ca = Raw::optional_path, optional_path;
    "grpc.certificate_uids" Restart grpc.certificate_uids = |raw| raw.each(named_uid), uids;
    "grpc.token_file" Restart grpc.token_file = Raw::optional_path, optional_path;
    "nodes.name" Restart nodes.name = Raw::text, text;
    "nodes.id" Restart nodes.id = node_id, optional;
    "nodes.advertise" Restart nodes.advertise = advertise, optional;
    "nodes.peers" Hot nodes.peers = |raw| raw.each(peer), texts;
    "nodes.mdns" Restart nodes.mdns = Raw::boolean, boolean;
    "nodes.heartbeat" Hot nodes.heartbeat = Raw::positive_duration, duration;
    "nodes.offline_after" Hot nodes.offline_after = Raw::positive, number;
    "nodes.token_file" Hot nodes.token_file = Raw::optional_path, optional_path;
    "nodes.tls_ca" Restart nodes.tls_ca = Raw::optional_path, optional_path;
    "metrics.listen" Restart metrics.listen = optional_socket_address, optional_address;
    "metrics.token_file" Restart metrics.token_file = Raw::optional_path, optional_path;
    "metrics.otlp_endpoint" Hot metrics.otlp_endpoint = endpoint, optional;
    "metrics.otlp_headers" Hot metrics.otlp_headers = |raw| raw.each(Raw::pair), pairs;
    "metrics.otlp_ca" Hot metrics.otlp_ca = Raw::optional_path, optional_path;
    "metrics.otlp_interval" Hot metrics.otlp_interval = Raw::positive_duration, duration;
    "metrics.otlp_paths" Hot metrics.otlp_paths = otlp_paths, shown_paths;
    "limits.connections" Hot limits.connections = Raw::positive, number;
    "limits.connections_per_uid" Hot limits.connections_per_uid = Raw::positive, number;
    "limits.requests" Hot limits.requests = Raw::positive, number;
    "limits.bytes" Hot limits.bytes = request_bytes, bytes;
    "limits.leases" Hot limits.leases = Raw::number, number;
};

impl Key {
    /// Whether values are secrets themselves; tokens and keys are in files of their own.
    pub(super) fn is_secret(&self) -> bool {
        self.name == "metrics.otlp_headers"
    }
}

/// The names of all keys but those of volumes.
pub fn key_names() -> impl Iterator<Item = (&'static str, Change)> {
    KEYS.iter().map(|key| (key.name, key.change))
}

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The value of a key with what is secret in it replaced.
pub(super) fn without_secret(key: &Key, config: &Config) -> Option<Value> {
    let value = (key.get)(config)?;
    let hide = |value: &Value| {
        let name = value.as_str().and_then(|text| text.split_once('=')).map_or("", |pair| pair.0);
        Value::from(format!("{name}=(secret)"))
    };
    Some(match value.as_array() {
        Some(values) => Value::Array(values.iter().map(hide).collect()),
        None => hide(&value),
    })
}

/// What to say about a key that there is not.
pub(super) fn unknown(name: &str) -> String {
    match nearest(name, KEYS.iter().map(|key| key.name)) {
        Some(near) => format!("there is no key {name}; did you mean {near}?"),
        None => format!("there is no key {name}"),
    }
}

/// The candidate that is the fewest edits away, if that is near enough to be meant. The last part
/// alone counts too, so that a key in the wrong section finds its own.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or("").to_owned();
    candidates
        .map(|candidate| {
            let whole = distance(name, candidate);
            let tail = distance(&last(name), &last(candidate)) + 1;
            (whole.min(tail), candidate)
        })
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, candidate)| distance <= 1 + last(candidate).len() / 3)
        .map(|(_, candidate)| candidate)
}

/// Insertions, removals and replacements (Levenshtein), over one row.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn level(raw: &Raw) -> Result<String, String> {
    let text = raw.text()?;
    parse_filter(&text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn log_bytes(raw: &Raw) -> Result<u64, String> {
    match raw.bytes()? {
        bytes if bytes < 64 << 10 => Err("a log file has at least 64K".to_owned()),
        bytes => Ok(bytes),
    }
}

fn request_bytes(raw: &Raw) -> Result<u64, String> {
    match raw.bytes()? {
        bytes if bytes < 1 << 20 => Err("at least 1M: a single frame may be that long".to_owned()),
        bytes => Ok(bytes),
    }
}

fn socket_address(raw: &Raw) -> Result<SocketAddr, String> {
    let text = raw.text()?;
    text.parse().map_err(|_unparsed| {
        format!("'{text}' is not an address to listen on; write it like 127.0.0.1:50051")
    })
}

fn optional_socket_address(raw: &Raw) -> Result<Option<SocketAddr>, String> {
    if raw.optional_text()?.is_none() { Ok(None) } else { socket_address(raw).map(Some) }
}

fn named_uid(raw: &Raw) -> Result<(String, u32), String> {
    let (name, uid) = raw.pair()?;
    let uid = uid.parse().map_err(|_unparsed| format!("'{uid}' is not a user's number"))?;
    Ok((name, uid))
}

fn node_id(raw: &Raw) -> Result<Option<String>, String> {
    let id = raw.optional_text()?;
    let fits = |id: &String| id.len() <= 64 && id.bytes().all(|b| b.is_ascii_graphic());
    match id {
        Some(id) if !fits(&id) => Err("an id has at most 64 letters, digits and signs".to_owned()),
        id => Ok(id),
    }
}

fn peer(raw: &Raw) -> Result<String, String> {
    let text = raw.text()?;
    Address::parse(&text).map_err(|error| error.to_string())?;
    Ok(text)
}

fn advertise(raw: &Raw) -> Result<Option<String>, String> {
    let Some(text) = raw.optional_text()? else { return Ok(None) };
    let address = Address::parse(&text).map_err(|error| error.to_string())?;
    Ok(Some(address.text().to_owned()))
}

fn endpoint(raw: &Raw) -> Result<Option<String>, String> {
    let Some(text) = raw.optional_text()? else { return Ok(None) };
    let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    if authority.is_none_or(str::is_empty) || text.parse::<http::Uri>().is_err() {
        return Err(format!("'{text}' is not an endpoint; write it like http://127.0.0.1:4317"));
    }
    Ok(Some(text))
}

fn otlp_paths(raw: &Raw) -> Result<OtlpPaths, String> {
    match raw.text()?.as_str() {
        "none" => Ok(OtlpPaths::None),
        "hash" => Ok(OtlpPaths::Hash),
        "full" => Ok(OtlpPaths::Full),
        other => Err(format!("'{other}' is not none, hash or full")),
    }
}

fn shown_paths(paths: &OtlpPaths) -> Option<Value> {
    let name = match paths {
        OtlpPaths::None => "none",
        OtlpPaths::Hash => "hash",
        OtlpPaths::Full => "full",
    };
    Some(Value::from(name))
}

fn path(path: &Path) -> Option<Value> {
    Some(Value::from(path.to_string_lossy().into_owned()))
}

fn optional_path(of: &Option<std::path::PathBuf>) -> Option<Value> {
    of.as_deref().and_then(path)
}

fn text(text: &str) -> Option<Value> {
    Some(Value::from(text))
}

fn optional(of: &Option<String>) -> Option<Value> {
    of.as_deref().and_then(text)
}

fn texts(texts: &[String]) -> Option<Value> {
    Some(Value::from(texts.to_vec()))
}

fn boolean(of: &bool) -> Option<Value> {
    Some(Value::from(*of))
}

fn number(of: &u32) -> Option<Value> {
    Some(Value::from(i64::from(*of)))
}

fn numbers(of: &[u32]) -> Option<Value> {
    Some(Value::from(of.iter().map(|&number| i64::from(number)).collect::<Vec<_>>()))
}

fn bytes(of: &u64) -> Option<Value> {
    Some(Value::from(bytes_text(*of)))
}

fn duration(of: &std::time::Duration) -> Option<Value> {
    Some(Value::from(duration_text(*of)))
}

fn addresses(of: &[SocketAddr]) -> Option<Value> {
    Some(Value::from(of.iter().map(ToString::to_string).collect::<Vec<_>>()))
}

fn optional_address(of: &Option<SocketAddr>) -> Option<Value> {
    of.map(|address| Value::from(address.to_string()))
}

fn pairs(of: &[(String, String)]) -> Option<Value> {
    Some(Value::from(of.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()))
}

fn uids(of: &[(String, u32)]) -> Option<Value> {
    Some(Value::from(of.iter().map(|(name, uid)| format!("{name}={uid}")).collect::<Vec<_>>()))
}
