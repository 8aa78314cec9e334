//! Which daemon a command speaks with, and which of its volumes a path means.
//!
//! The same messages reach a daemon's socket, gRPC, the process that has a volume mounted, and, where
//! nobody holds the volume, a server in this process: what commands answer cannot differ.

mod embedded;
mod path;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use librorum_daemon::mounts::table as mountinfo;
use librorum_fs::Volume;
use librorum_rpc::client::{Client, ClientOptions, Target, Tls};
use librorum_rpc::proto::v1;
use librorum_sys::VolumeLock;

pub(crate) use embedded::{Embedded, serve};
pub(crate) use path::{RemotePath, json as path_json, local, shown};

/// How long a volume may be held by a command that will end soon.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a command goes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct To {
    /// A socket (PATH or unix:PATH), http(s)://HOST:PORT, a volume's folder, or where one is mounted.
    /// Without it: the daemon's socket if one answers there, else the default volume.
    #[arg(long, env = "LIBRORUM_TO", value_name = "TARGET", help_heading = "Target")]
    pub(crate) to: Option<OsString>,
    /// A file with the token that gRPC asks for; without it, LIBRORUM_TOKEN.
    #[arg(long, value_name = "FILE", help_heading = "Target")]
    token_file: Option<PathBuf>,
    /// Certificates of authorities to believe (PEM), for https.
    #[arg(long, value_name = "FILE", help_heading = "Target")]
    ca: Option<PathBuf>,
    /// This client's certificate (PEM), for https.
    #[arg(long, value_name = "FILE", requires = "key", help_heading = "Target")]
    cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "cert", help_heading = "Target")]
    key: Option<PathBuf>,
}

/// Whether a command changes the volume: one that nobody holds is then opened for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Change,
}

/// What somebody named with `--to`, or what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Socket(PathBuf),
    Grpc(String),
    Folder(PathBuf),
}

/// The other side of a command.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) client: Client,
    /// What a path without a volume means.
    volume: String,
    /// For people.
    pub(crate) name: String,
    embedded: Option<Embedded>,
    /// The socket's address goes through it.
    _folder: Option<File>,
}

impl To {
    /// This target.
    pub(crate) fn at(target: OsString) -> Self {
        Self { to: Some(target), ..Self::default() }
    }

    /// Where commands go.
    pub(crate) fn place(&self) -> anyhow::Result<Place> {
        match &self.to {
            Some(to) => named_place(to),
            None => {
                let socket = default_socket()?;
                if answers(&socket) {
                    return Ok(Place::Socket(socket));
                }
                let folder = crate::mount::default_volume()?;
                if !Volume::exists(&folder) {
                    bail!(
                        "no daemon answers at {} and there is no volume at {}: start one with \
                         'librorum start', or name a target with --to",
                        socket.display(),
                        folder.display()
                    );
                }
                Ok(Place::Folder(folder))
            }
        }
    }

    fn options(&self) -> anyhow::Result<ClientOptions> {
        let mut options = ClientOptions {
            name: concat!("librorum ", env!("CARGO_PKG_VERSION")).to_owned(),
            ..ClientOptions::default()
        };
        let token = match &self.token_file {
            Some(path) => read(path)?,
            None => std::env::var_os("LIBRORUM_TOKEN").unwrap_or_default().as_bytes().to_vec(),
        };
        options.token = token.trim_ascii().to_vec().into();
        if self.ca.is_some() || self.cert.is_some() {
            let identity = match (&self.cert, &self.key) {
                (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
                _ => None,
            };
            let authorities = self.ca.as_deref().map(read).transpose()?.unwrap_or_default();
            options.tls = Some(Tls { authorities, identity, server_name: None });
        }
        Ok(options)
    }

    /// Connects, or opens the volume in this process.
    pub(crate) fn connect(&self, intent: Intent) -> anyhow::Result<Remote> {
        match self.place()? {
            Place::Socket(path) => {
                let name = path.display().to_string();
                let client = Client::connect(Target::Socket(path), self.options()?)
                    .with_context(|| format!("cannot reach the daemon at {name}"))?;
                Ok(Remote::new(client, name))
            }
            Place::Grpc(address) => {
                let client = Client::connect(Target::Grpc(address.clone()), self.options()?)
                    .with_context(|| format!("cannot reach the daemon at {address}"))?;
                Ok(Remote::new(client, address))
            }
            Place::Folder(folder) => self.connect_folder(&folder, intent),
        }
    }

    /// A volume by its folder: through whoever holds it, or else in this process.
    fn connect_folder(&self, folder: &Path, intent: Intent) -> anyhow::Result<Remote> {
        let folder =
            folder.canonicalize().with_context(|| format!("no volume at {}", folder.display()))?;
        let start = librorum_sys::clock::monotonic();
        loop {
            let failed = match VolumeLock::holder(&folder) {
                None => match Embedded::open(&folder, intent, self.options()?) {
                    Ok((client, embedded)) => {
                        let mut remote = Remote::new(client, folder.display().to_string());
                        remote.embedded = Some(embedded);
                        return Ok(remote);
                    }
                    // Somebody may have taken it between the two looks.
                    Err(error) if VolumeLock::holder(&folder).is_some() => error,
                    Err(error) => return Err(error),
                },
                Some(holder) => match self.connect_holder(&folder) {
                    Ok(remote) => return Ok(remote),
                    Err(error) => error.context(format!(
                        "{} is in use by '{}', process {}, which cannot be reached",
                        folder.display(),
                        holder.command,
                        holder.pid
                    )),
                },
            };
            // A mount that begins answers soon; a command that has the volume open ends soon.
            if librorum_sys::clock::monotonic() - start > PATIENCE {
                return Err(failed.context(InUse));
            }
            librorum_sys::clock::sleep(Duration::from_millis(20));
        }
    }

    fn connect_holder(&self, folder: &Path) -> anyhow::Result<Remote> {
        let opened = File::open(folder)?;
        // A socket's address holds 107 bytes, a folder's path may be longer.
        let address = format!("/proc/self/fd/{}/api", opened.as_raw_fd());
        let options = ClientOptions { connect_timeout: Duration::from_secs(5), ..self.options()? };
        let client = Client::connect(Target::Socket(address.into()), options)?;
        let served = client.capabilities(&v1::CapabilitiesRequest {})?;
        let volume = served
            .volumes
            .into_iter()
            .find(|volume| volume.folder.as_ref() == folder.as_os_str().as_bytes())
            .context("its process does not serve it")?;
        let mut remote = Remote::new(client, folder.display().to_string());
        remote.volume = volume.name;
        remote._folder = Some(opened);
        Ok(remote)
    }
}

/// Why the exit code is 3.
#[derive(Debug, thiserror::Error)]
#[error("the volume is in use")]
pub(crate) struct InUse;

impl Remote {
    fn new(client: Client, name: String) -> Self {
        Self { client, volume: String::new(), name, embedded: None, _folder: None }
    }

    /// The volume that a path is in.
    pub(crate) fn volume_of<'a>(&'a self, path: &'a RemotePath) -> &'a str {
        path.volume.as_deref().unwrap_or(&self.volume)
    }

    /// The id of a volume, which stays when daemon and name change.
    pub(crate) fn volume_id(&self, name: &str) -> anyhow::Result<String> {
        let served = self.client.capabilities(&v1::CapabilitiesRequest {})?;
        let mut volumes = served.volumes.into_iter();
        let found = if name.is_empty() {
            volumes.next()
        } else {
            volumes.find(|volume| volume.name == name)
        };
        Ok(found.with_context(|| format!("{} serves no volume '{name}'", self.name))?.volume_id)
    }

    /// Ends the connection; a volume of this process is closed, and what it held is durable then.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        let Self { client, embedded, .. } = self;
        drop(client);
        embedded.map_or(Ok(()), Embedded::close)
    }
}

/// Connects, works, and closes, whatever came of the work.
pub(crate) fn with<T>(
    to: &To,
    intent: Intent,
    work: impl FnOnce(&Remote) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let remote = to.connect(intent)?;
    let done = work(&remote);
    let closed = remote.close();
    let done = done?;
    closed?;
    Ok(done)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What a word after `--to` names.
fn named_place(to: &OsStr) -> anyhow::Result<Place> {
    let bytes = to.as_bytes();
    if let Some(path) = bytes.strip_prefix(b"unix:") {
        let path = path.strip_prefix(b"//").unwrap_or(path);
        return Ok(Place::Socket(OsStr::from_bytes(path).into()));
    }
    if bytes.starts_with(b"http://") || bytes.starts_with(b"https://") {
        let address = to.to_str().context("an address has to be UTF-8")?;
        return Ok(Place::Grpc(address.to_owned()));
    }
    let path = PathBuf::from(to);
    // Before the folder is touched: it could be a mount that does not answer.
    if let Some(mounted) = mountinfo::mounted_at(&path)? {
        return Ok(Place::Folder(mounted.volume));
    }
    match std::fs::metadata(&path) {
        Ok(found) if found.file_type().is_socket() => Ok(Place::Socket(path)),
        Ok(_) if Volume::exists(&path) => Ok(Place::Folder(path)),
        Ok(_) => bail!(
            "{} is no socket, no volume's folder, and nothing is mounted there",
            path.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot find target {}", path.display())),
    }
}

/// Where the daemon of this user listens: as configured, unless a variable says where.
pub(crate) fn default_socket() -> anyhow::Result<PathBuf> {
    if let Some(path) = set("LIBRORUM_SOCKET") {
        return Ok(path.into());
    }
    let config = crate::daemon::ConfigArguments::default().origin()?.load();
    // A configuration that is broken keeps the daemon from starting, not its clients from finding it.
    Ok(config.unwrap_or_default().daemon.socket)
}

fn set(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether somebody listens at a socket.
pub(crate) fn answers(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart_by_their_form() {
        let place = |text: &str| named_place(OsStr::new(text)).unwrap();
        assert_eq!(place("unix:/run/x"), Place::Socket("/run/x".into()));
        assert_eq!(place("unix:///run/x"), Place::Socket("/run/x".into()));
        assert_eq!(place("https://host:1"), Place::Grpc("https://host:1".into()));
        assert!(named_place(OsStr::new("/proc/version")).is_err());
        assert!(named_place(OsStr::new("/nowhere/at/all")).is_err());
    }
}
