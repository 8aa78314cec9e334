//! A server in this process, for a volume that nobody holds.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use librorum_daemon::admin::Admin;
use librorum_daemon::lbru;
use librorum_daemon::logbook::LogBook;
use librorum_daemon::metrics::Metrics;
use librorum_daemon::nodes::Nodes;
use librorum_daemon::service::{ServedVolume, Service};
use librorum_fs::{Fs, FsOptions};
use librorum_rpc::client::{Client, ClientOptions, Target};

use super::Intent;
use crate::status::holder;

/// The volume and what serves it.
#[derive(Debug)]
pub(crate) struct Embedded {
    fs: Arc<Fs>,
    server: lbru::Server,
}

/// Services for one open volume.
pub(crate) fn serve(
    volume: ServedVolume,
) -> anyhow::Result<(lbru::Server, Admin, Arc<ServedVolume>)> {
    let service = Service::new();
    let served = service.add_volume(volume)?;
    let metrics = Metrics::new();
    let nodes = Nodes::start(librorum_daemon::nodes::Options::default())?;
    let admin = Admin::new(service.clone(), metrics.clone(), LogBook::in_memory(), nodes, None);
    let server = lbru::Server::new(service, admin.clone(), metrics, lbru::Options::default())?;
    Ok((server, admin, served))
}

impl Embedded {
    /// Opens a volume and connects to it.
    pub(crate) fn open(
        folder: &Path,
        intent: Intent,
        options: ClientOptions,
    ) -> anyhow::Result<(Client, Self)> {
        let read_only = intent == Intent::Read;
        let fs_options = FsOptions { read_only, holder: holder("client"), ..FsOptions::default() };
        let fs = Fs::open_volume(folder, fs_options)?;
        let begun = Self::begin(&fs, read_only, options);
        match begun {
            Ok((client, server)) => Ok((client, Self { fs, server })),
            Err(error) => {
                fs.shut_down()?;
                Err(error)
            }
        }
    }

    fn begin(
        fs: &Arc<Fs>,
        read_only: bool,
        options: ClientOptions,
    ) -> anyhow::Result<(Client, lbru::Server)> {
        let folder = &fs.volume().dir;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let volume = ServedVolume::new(name, Arc::clone(fs), read_only);
        let (server, _admin, _volume) = serve(volume)?;
        let (ours, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
        server.serve_connection(theirs);
        let client = Client::connect(Target::Connected(ours), options)
            .context("cannot reach the server in this process")?;
        Ok((client, server))
    }

    /// Ends the server and closes the volume.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        self.server.shut_down();
        self.fs.shut_down().context("closing the volume")?;
        Ok(())
    }
}
