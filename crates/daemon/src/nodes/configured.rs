//! The nodes as the configuration wants them.

use std::net::SocketAddr;
use std::path::Path;

use super::{Changes, NodesError, Options, Tls};
use crate::config::Config;

fn read(path: &Path) -> Result<Vec<u8>, NodesError> {
    std::fs::read(path).map_err(|source| NodesError::File { path: path.to_owned(), source })
}

fn token(config: &Config) -> Result<Option<String>, NodesError> {
    let Some(path) = &config.nodes.token_file else { return Ok(None) };
    let token = Config::first_token(path)
        .map_err(|source| NodesError::File { path: path.clone(), source })?;
    Ok(Some(token))
}

impl Options {
    /// What a configuration says, and where gRPC is served in fact: a port 0 has become another one.
    ///
    /// # Errors
    ///
    /// A file that it names cannot be read.
    pub fn from_config(config: &Config, listen: Vec<SocketAddr>) -> Result<Self, NodesError> {
        let nodes = &config.nodes;
        let tls = match &nodes.tls_ca {
            None => None,
            Some(ca) => {
                let identity = match (&config.grpc.tls_cert, &config.grpc.tls_key) {
                    (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
                    _ => None,
                };
                Some(Tls { ca: read(ca)?, identity })
            }
        };
        Ok(Self {
            name: nodes.name.clone(),
            id: nodes.id.clone(),
            state_dir: Some(config.daemon.state_dir.clone()),
            listen,
            advertise: nodes.advertise.clone(),
            peers: nodes.peers.clone(),
            mdns: nodes.mdns,
            heartbeat: nodes.heartbeat,
            offline_after: nodes.offline_after,
            token: token(config)?,
            tls,
        })
    }
}

impl Changes {
    /// What a new configuration says.
    ///
    /// # Errors
    ///
    /// The token's file cannot be read.
    pub fn from_config(config: &Config) -> Result<Self, NodesError> {
        Ok(Self {
            peers: config.nodes.peers.clone(),
            heartbeat: config.nodes.heartbeat,
            offline_after: config.nodes.offline_after,
            token: token(config)?,
        })
    }
}
