//! A configuration that is read again while the daemon runs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::proto::v1;

use super::token;
use crate::admin::Reload;
use crate::config::Config;
use crate::lbru;
use crate::lock;
use crate::logbook::LogBook;
use crate::metrics::Metrics;
use crate::nodes::{Changes, Nodes};
use crate::otlp::{self, Exporter};

/// Where a configuration came from, and comes from again.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The file.
    pub file: Option<PathBuf>,
    /// What flags said.
    pub overrides: Vec<(String, String)>,
}

impl Origin {
    /// Reads it: the file, the environment, the flags.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them.
    pub fn load(&self) -> Result<Config, crate::config::ConfigError> {
        Config::load(self.file.as_deref(), std::env::vars_os(), &self.overrides)
    }
}

/// The configuration in effect, and what a change of it acts on.
#[derive(Debug)]
pub(super) struct Reloading {
    config: Mutex<Config>,
    origin: Origin,
    log: LogBook,
    metrics: Metrics,
    nodes: Nodes,
    exporter: Exporter,
    frames: Mutex<Option<lbru::Server>>,
}

impl Reloading {
    pub(super) fn new(
        config: Config,
        origin: Origin,
        log: LogBook,
        metrics: Metrics,
        nodes: Nodes,
        exporter: Exporter,
    ) -> Self {
        let config = Mutex::new(config);
        Self { config, origin, log, metrics, nodes, exporter, frames: Mutex::default() }
    }

    pub(super) fn set_frames(&self, frames: lbru::Server) {
        *lock(&self.frames) = Some(frames);
    }

    /// Makes a key's new value count; whether that can be without a restart.
    fn apply(&self, key: &str, new: &Config) -> Result<bool, Failure> {
        let invalid = |error: &dyn std::fmt::Display| {
            Failure::file(ErrorKind::InvalidInput, format!("{key}: {error}"))
        };
        match key {
            "daemon.log_level" => {
                self.log.set_filter(&new.daemon.log_level).map_err(|error| invalid(&error))?;
            }
            "daemon.slow_after" => self.metrics.set_slow_after(new.daemon.slow_after),
            "nodes.peers" | "nodes.heartbeat" | "nodes.offline_after" | "nodes.token_file" => {
                let nodes = &new.nodes;
                let changes = Changes {
                    peers: nodes.peers.clone(),
                    heartbeat: nodes.heartbeat,
                    offline_after: nodes.offline_after,
                    token: token(nodes.token_file.as_deref()).map_err(|error| invalid(&error))?,
                };
                self.nodes.reconfigure(&changes).map_err(|error| invalid(&error))?;
            }
            "metrics.otlp_endpoint"
            | "metrics.otlp_headers"
            | "metrics.otlp_interval"
            | "metrics.otlp_paths"
            | "metrics.otlp_ca" => {
                let options = otlp::Options::from_config(&new.metrics, self.nodes.own_id());
                self.exporter.configure(options).map_err(|error| invalid(&error))?;
            }
            "limits.requests" | "limits.bytes" => {
                if let Some(frames) = &*lock(&self.frames) {
                    frames.set_credit(new.limits.requests, new.limits.bytes);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Reload for Arc<Reloading> {
    fn reload(&self) -> Result<v1::ReloadResponse, Failure> {
        let new = self
            .origin
            .load()
            .map_err(|error| Failure::file(ErrorKind::InvalidInput, error.to_string()))?;
        let mut config = lock(&self.config);
        let diff = config.diff(&new);
        let mut answer =
            v1::ReloadResponse { changed: Vec::new(), need_restart: diff.restart.clone() };
        for key in diff.hot {
            if self.apply(&key, &new)? {
                answer.changed.push(key);
            } else {
                answer.need_restart.push(key);
            }
        }
        tracing::info!(changed = ?answer.changed, need_restart = ?answer.need_restart, "reloaded");
        *config = new;
        Ok(answer)
    }

    fn config(&self) -> v1::ConfigResponse {
        lock(&self.config).to_message()
    }
}
