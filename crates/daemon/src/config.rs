//! The daemon's configuration: a file, the environment and flags, over defaults that are safe.
//!
//! Later ones win: defaults, `librorum.toml`, `LIBRORUM_SECTION_KEY` variables, flags. Nothing that is
//! written is ignored: a key that there is not is an error that names the line and the nearest key that
//! there is. `docs/operations.md` and `packaging/librorum.toml` describe every key.

mod file;
mod keys;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use librorum_rpc::proto::v1;

pub use keys::{Change, key_names};

use keys::{KEYS, Key};
use value::Raw;

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// The process itself, and its local socket.
    pub daemon: Daemon,
    /// What other machines reach.
    pub grpc: Grpc,
    /// What is served.
    pub volumes: Vec<VolumeConfig>,
    /// Which nodes know each other.
    pub nodes: NodesConfig,
    /// Who may look at the figures.
    pub metrics: MetricsConfig,
    /// How much clients may take.
    pub limits: Limits,
    sources: BTreeMap<&'static str, Source>,
}

/// `[daemon]`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "docs/operations.md says what each is, a test that it does")]
pub struct Daemon {
    pub socket: PathBuf,
    pub socket_group: Option<String>,
    pub allow_uids: Vec<u32>,
    pub allow_gids: Vec<u32>,
    pub log_level: String,
    pub log_file: Option<PathBuf>,
    pub log_file_bytes: u64,
    pub slow_after: Duration,
    pub state_dir: PathBuf,
}

/// `[grpc]`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "docs/operations.md says what each is, a test that it does")]
pub struct Grpc {
    pub listen: Vec<SocketAddr>,
    pub socket: Option<PathBuf>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_client_ca: Option<PathBuf>,
    /// Names of client certificates, and whom each acts as.
    pub certificate_uids: Vec<(String, u32)>,
    /// Made at the start if there is none.
    pub token_file: Option<PathBuf>,
}

/// `[[volume]]`
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "docs/operations.md says what each is")]
pub struct VolumeConfig {
    pub name: String,
    pub path: PathBuf,
    pub mount: Option<PathBuf>,
    pub options: Vec<String>,
    pub create: bool,
}

/// `[nodes]`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "docs/operations.md says what each is, a test that it does")]
pub struct NodesConfig {
    pub name: String,
    pub id: Option<String>,
    pub advertise: Option<String>,
    pub peers: Vec<String>,
    pub mdns: bool,
    pub heartbeat: Duration,
    pub offline_after: u32,
    pub token_file: Option<PathBuf>,
    pub tls_ca: Option<PathBuf>,
}

/// `[metrics]`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "docs/operations.md says what each is, a test that it does")]
pub struct MetricsConfig {
    pub listen: Option<SocketAddr>,
    pub token_file: Option<PathBuf>,
    pub otlp_endpoint: Option<String>,
    pub otlp_headers: Vec<(String, String)>,
    pub otlp_ca: Option<PathBuf>,
    pub otlp_interval: Duration,
    pub otlp_paths: OtlpPaths,
}

/// How paths appear in exported traces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtlpPaths {
    /// Not at all.
    None,
    /// As a keyed hash: the same path is seen to be the same, and nothing else.
    #[default]
    Hash,
    /// As they are.
    Full,
}

/// `[limits]`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "docs/operations.md says what each is, a test that it does")]
pub struct Limits {
    pub connections: u32,
    pub connections_per_uid: u32,
    pub requests: u32,
    pub bytes: u64,
    pub leases: u32,
}

/// Where things are unless somebody says otherwise.
#[derive(Clone, Debug)]
pub struct Places {
    /// Of sockets: no other user may make one there.
    pub runtime: PathBuf,
    /// Of what is kept over restarts.
    pub state: PathBuf,
    /// Of the configuration file.
    pub config: PathBuf,
}

impl Places {
    /// Of the daemon of a machine.
    #[must_use]
    pub fn system() -> Self {
        Self {
            runtime: "/run/librorum".into(),
            state: "/var/lib/librorum".into(),
            config: "/etc/librorum".into(),
        }
    }

    /// Of a user's own daemon, after the XDG base directories.
    #[must_use]
    pub fn of_user(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let folder = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = folder("HOME").unwrap_or_else(|| "/".into());
        let state = folder("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state"));
        let config = folder("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let state = state.join("librorum");
        Self {
            // Not /tmp, where somebody else could make our socket before us.
            runtime: folder("XDG_RUNTIME_DIR")
                .map_or_else(|| state.join("run"), |dir| dir.join("librorum")),
            state,
            config: config.join("librorum"),
        }
    }

    /// Of this process: root's is the machine's.
    #[must_use]
    pub fn current() -> Self {
        if rustix::process::geteuid().is_root() {
            Self::system()
        } else {
            Self::of_user(|name| std::env::var_os(name))
        }
    }

    /// The file that is read if no other is named.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.config.join("librorum.toml")
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl Source {
    /// As `ConfigResponse` says it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File { .. } => "file",
            Self::Environment(_) => "environment",
            Self::Flag(_) => "flag",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("default"),
            Self::File { path, line } => write!(out, "{}:{line}", path.display()),
            Self::Environment(name) => out.write_str(name),
            Self::Flag(name) => write!(out, "--set {name}"),
        }
    }
}

/// Something that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Source,
    /// What, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.place, self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Everything that is wrong, at once.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Wrong(Vec<Problem>),
}

/// What changed between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Keys that can take effect now.
    pub hot: Vec<String>,
    /// Keys that wait for a restart.
    pub restart: Vec<String>,
}

/// Prefixes of variables that are ours; others, such as LIBRORUM_LOG, are somebody else's.
const SECTIONS: [&str; 5] = ["daemon", "grpc", "nodes", "metrics", "limits"];

impl Default for Config {
    fn default() -> Self {
        Self::defaults(&Places::current())
    }
}

impl Config {
    /// What is in effect if nobody says anything.
    #[must_use]
    pub fn defaults(places: &Places) -> Self {
        Self {
            daemon: Daemon {
                socket: places.runtime.join("librorum.sock"),
                socket_group: None,
                allow_uids: Vec::new(),
                allow_gids: Vec::new(),
                log_level: "info".to_owned(),
                log_file: None,
                log_file_bytes: 16 << 20,
                slow_after: Duration::from_secs(2),
                state_dir: places.state.clone(),
            },
            grpc: Grpc {
                listen: vec![SocketAddr::from(([127, 0, 0, 1], 50051))],
                socket: Some(places.runtime.join("grpc.sock")),
                tls_cert: None,
                tls_key: None,
                tls_client_ca: None,
                certificate_uids: Vec::new(),
                token_file: Some(places.state.join("tokens")),
            },
            volumes: Vec::new(),
            nodes: NodesConfig {
                name: String::new(),
                id: None,
                advertise: None,
                peers: Vec::new(),
                mdns: false,
                heartbeat: Duration::from_secs(5),
                offline_after: 3,
                token_file: None,
                tls_ca: None,
            },
            metrics: MetricsConfig {
                listen: None,
                token_file: None,
                otlp_endpoint: None,
                otlp_headers: Vec::new(),
                otlp_ca: None,
                otlp_interval: Duration::from_secs(10),
                otlp_paths: OtlpPaths::Hash,
            },
            limits: Limits {
                connections: 1_024,
                connections_per_uid: 256,
                requests: 256,
                bytes: 4 << 20,
                leases: 256,
            },
            sources: BTreeMap::new(),
        }
    }

    /// Reads the file if one is named, then the environment, then the overrides (`section.key`, value).
    ///
    /// # Errors
    ///
    /// Everything that is wrong with any of them.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        Self::load_at(&Places::current(), file, environment, overrides)
    }

    /// As [`Config::load`], with other defaults for places.
    ///
    /// # Errors
    ///
    /// See there.
    pub fn load_at(
        places: &Places,
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let mut config = Self::defaults(places);
        let mut problems = Vec::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            file::read(&mut config, path, &text, &mut problems);
        }
        config.read_environment(environment, &mut problems);
        for (name, value) in overrides {
            let source = Source::Flag(name.clone());
            match keys::find(name) {
                Some(key) => config.set(key, &Raw::Word(value.clone()), source, &mut problems),
                None => problems.push(Problem { place: source, message: keys::unknown(name) }),
            }
        }
        config.keep_sockets_together();
        config.check(&mut problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Wrong(problems)) }
    }

    /// Who moves one socket and says nothing of the other means both: the usual folder may not be there.
    fn keep_sockets_together(&mut self) {
        let is_moved = self.source("daemon.socket") != Source::Default;
        if is_moved
            && self.source("grpc.socket") == Source::Default
            && let (Some(folder), Some(_)) = (self.daemon.socket.parent(), &self.grpc.socket)
        {
            self.grpc.socket = Some(folder.join("grpc.sock"));
        }
    }

    fn read_environment(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        problems: &mut Vec<Problem>,
    ) {
        for (variable, value) in environment {
            let Some(variable) = variable.to_str() else { continue };
            let Some(rest) = variable.strip_prefix("LIBRORUM_") else { continue };
            let Some((section, key)) = rest.split_once('_') else { continue };
            if !SECTIONS.contains(&section.to_ascii_lowercase().as_str()) {
                continue;
            }
            let name = format!("{section}.{key}").to_ascii_lowercase();
            let source = Source::Environment(variable.to_owned());
            match (keys::find(&name), value.into_string()) {
                (Some(key), Ok(value)) => self.set(key, &Raw::Word(value), source, problems),
                (Some(_), Err(_)) => problems
                    .push(Problem { place: source, message: "the value is no UTF-8".to_owned() }),
                (None, _) => {
                    problems.push(Problem { place: source, message: keys::unknown(&name) });
                }
            }
        }
    }

    fn set(&mut self, key: &'static Key, raw: &Raw, place: Source, problems: &mut Vec<Problem>) {
        match (key.set)(self, raw) {
            Ok(()) => drop(self.sources.insert(key.name, place)),
            Err(reason) => {
                problems.push(Problem { place, message: format!("{}: {reason}", key.name) });
            }
        }
    }

    /// Where the value of a key comes from.
    #[must_use]
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// What no single value can tell.
    fn check(&self, problems: &mut Vec<Problem>) {
        let mut wrong = |key: &str, message: String| {
            problems
                .push(Problem { place: self.source(key), message: format!("{key}: {message}") });
        };
        let grpc = &self.grpc;
        if grpc.tls_cert.is_some() != grpc.tls_key.is_some() {
            let key = if grpc.tls_cert.is_some() { "grpc.tls_cert" } else { "grpc.tls_key" };
            wrong(key, "tls_cert and tls_key belong together".to_owned());
        }
        if grpc.tls_client_ca.is_some() && grpc.tls_cert.is_none() {
            wrong("grpc.tls_client_ca", "client certificates need tls_cert and tls_key".to_owned());
        }
        if !grpc.certificate_uids.is_empty() && grpc.tls_client_ca.is_none() {
            let message = "names of client certificates need tls_client_ca".to_owned();
            wrong("grpc.certificate_uids", message);
        }
        if let Some(open) = grpc.listen.iter().find(|address| !address.ip().is_loopback())
            && grpc.tls_cert.is_none()
        {
            let message = format!("{open} is reached by other machines: set tls_cert and tls_key");
            wrong("grpc.listen", message);
        }
        if !grpc.listen.is_empty() && grpc.token_file.is_none() && grpc.tls_client_ca.is_none() {
            let message = "nobody could get in: set token_file or tls_client_ca".to_owned();
            wrong("grpc.listen", message);
        }
        if Some(&self.daemon.socket) == grpc.socket.as_ref() {
            wrong("grpc.socket", "that is daemon.socket already".to_owned());
        }
        let metrics = &self.metrics;
        if let Some(listen) = metrics.listen {
            if grpc.listen.contains(&listen) && listen.port() != 0 {
                wrong("metrics.listen", format!("{listen} is in grpc.listen already"));
            }
            if !listen.ip().is_loopback() && metrics.token_file.is_none() {
                let message = format!("{listen} is reached by other machines: set token_file");
                wrong("metrics.listen", message);
            }
        }
        if metrics.otlp_endpoint.is_none() && !metrics.otlp_headers.is_empty() {
            wrong("metrics.otlp_headers", "nothing is sent without otlp_endpoint".to_owned());
        }
        let is_encrypted =
            metrics.otlp_endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("https:"));
        if is_encrypted != metrics.otlp_ca.is_some() {
            let message = "an https endpoint needs otlp_ca, and only such a one".to_owned();
            wrong(if is_encrypted { "metrics.otlp_endpoint" } else { "metrics.otlp_ca" }, message);
        }
        let limits = &self.limits;
        if limits.connections_per_uid > limits.connections {
            let message = format!("more than all users together ({})", limits.connections);
            wrong("limits.connections_per_uid", message);
        }
    }

    /// The first token of a file, for who has to show one. The file has a line for each: the token, and
    /// what belongs to it.
    ///
    /// # Errors
    ///
    /// The file cannot be read, others can read it, or it holds no token.
    pub fn first_token(path: &Path) -> std::io::Result<String> {
        use std::os::unix::fs::PermissionsExt;
        let invalid = |message: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, message);
        let mode = std::fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(invalid("other users can read it: chmod 600"));
        }
        let text = std::fs::read_to_string(path)?;
        let mut lines = text.lines().map(str::trim);
        let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
        let token = line.and_then(|line| line.split_ascii_whitespace().next());
        token.map(str::to_owned).ok_or_else(|| invalid("it holds no token"))
    }

    /// What differs in another configuration.
    #[must_use]
    pub fn diff(&self, new: &Self) -> Diff {
        let mut diff = Diff::default();
        for key in KEYS {
            if (key.get)(self) != (key.get)(new) {
                match key.change {
                    Change::Hot => diff.hot.push(key.name.to_owned()),
                    Change::Restart => diff.restart.push(key.name.to_owned()),
                }
            }
        }
        if self.volumes != new.volumes {
            diff.restart.push("volume".to_owned());
        }
        diff
    }

    /// What is in effect as a file that says the same, secrets left out.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let mut section = "";
        for key in KEYS {
            let (of, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if of != section {
                if !section.is_empty() {
                    out.push('\n');
                }
                out.push_str(&format!("[{of}]\n"));
                section = of;
            }
            let value =
                if key.is_secret() { keys::without_secret(key, self) } else { (key.get)(self) };
            match value {
                Some(value) => out.push_str(&format!("{name} = {value}\n")),
                None => out.push_str(&format!("# {name} is not set\n")),
            }
        }
        for volume in &self.volumes {
            let text = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned());
            out.push_str("\n[[volume]]\n");
            out.push_str(&format!("name = {}\n", toml::Value::from(volume.name.clone())));
            out.push_str(&format!("path = {}\n", text(&volume.path)));
            if let Some(mount) = &volume.mount {
                out.push_str(&format!("mount = {}\n", text(mount)));
            }
            out.push_str(&format!("options = {}\n", toml::Value::from(volume.options.clone())));
            out.push_str(&format!("create = {}\n", volume.create));
        }
        out
    }

    /// What is in effect, and where each value comes from.
    #[must_use]
    pub fn to_message(&self) -> v1::ConfigResponse {
        v1::ConfigResponse {
            toml: self.to_toml(),
            sources: KEYS
                .iter()
                .map(|key| format!("{}={}", key.name, self.source(key.name).kind()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests;
