//! Commands on the files of a volume, wherever it is.

pub(crate) mod browse;
pub(crate) mod change;
pub(crate) mod entry;
pub(crate) mod find;
pub(crate) mod usage;

use librorum_format::ErrorKind;
use librorum_rpc::proto::v1;
use librorum_rpc::{Failure, Reason};

use crate::remote::{Remote, RemotePath, shown};

/// What a path leads to.
pub(crate) fn stat(remote: &Remote, path: &RemotePath) -> Result<v1::Entry, Failure> {
    let request = v1::StatRequest {
        volume: remote.volume_of(path).to_owned(),
        path: path.bytes(),
        ..v1::StatRequest::default()
    };
    Ok(remote.client.stat(&request)?.entry.unwrap_or_default())
}

/// The same, if there is anything.
pub(crate) fn stat_if_there(
    remote: &Remote,
    path: &RemotePath,
) -> Result<Option<v1::Entry>, Failure> {
    match stat(remote, path) {
        Ok(entry) => Ok(Some(entry)),
        Err(failure) if failure.reason == Reason::File(ErrorKind::NotFound) => Ok(None),
        Err(failure) => Err(failure),
    }
}

pub(crate) fn is_directory(entry: &v1::Entry) -> bool {
    entry.kind() == v1::Kind::Directory
}

/// All that is in a directory. Directories that cannot be read go to `unread`.
pub(crate) fn list(
    remote: &Remote,
    path: &RemotePath,
    recursive: bool,
    unread: &mut Vec<String>,
) -> Result<Vec<v1::Entry>, Failure> {
    let request = v1::ListRequest {
        volume: remote.volume_of(path).to_owned(),
        path: path.bytes(),
        recursive,
        ..v1::ListRequest::default()
    };
    let mut listing = remote.client.entries(request);
    let entries = listing.by_ref().collect::<Result<Vec<_>, _>>()?;
    unread.extend(listing.errors().iter().map(path_error));
    Ok(entries)
}

/// A part of a recursive operation that failed.
pub(crate) fn path_error(error: &v1::PathError) -> String {
    let message = error.error.as_ref().map_or("failed", |error| error.message.as_str());
    format!("{}: {message}", shown(&error.path))
}

/// Something was done, something was not: exit code 5.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of the items could not be handled; the first: {first}")]
pub(crate) struct Partial {
    pub(crate) failed: usize,
    pub(crate) first: String,
}

/// What could not be done, said at once.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    messages: Vec<String>,
}

impl Troubles {
    /// Says one.
    pub(crate) fn add(&mut self, message: String, json: bool) {
        if !json {
            eprintln!("librorum: {message}");
        }
        self.messages.push(message);
    }

    pub(crate) fn messages(&self) -> &[String] {
        &self.messages
    }

    /// The exit code: some of the work is done.
    pub(crate) fn code(&self) -> std::process::ExitCode {
        std::process::ExitCode::from(if self.messages.is_empty() { 0 } else { 5 })
    }
}
