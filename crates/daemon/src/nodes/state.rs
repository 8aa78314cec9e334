//! What a node keeps over restarts: who it is, and which nodes were added and removed by command.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use librorum_sys::entropy;
use serde::{Deserialize, Serialize};

use super::NodesError;

const FILE_NAME: &str = "nodes.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    pub(super) node_id: String,
    /// Addresses.
    #[serde(default)]
    pub(super) added: Vec<String>,
    /// Ids whose heartbeats do not bring them back.
    #[serde(default)]
    pub(super) forgotten: Vec<String>,
}

/// Where it is kept, if anywhere.
#[derive(Debug)]
pub(super) struct Keeper {
    path: Option<PathBuf>,
}

impl Keeper {
    /// Reads what is kept; makes an id if there is none.
    pub(super) fn open(dir: Option<&Path>) -> Result<(Self, Kept), NodesError> {
        let keeper = Self { path: dir.map(|dir| dir.join(FILE_NAME)) };
        let Some(path) = &keeper.path else {
            let kept = Kept { node_id: new_id(), ..Kept::default() };
            return Ok((keeper, kept));
        };
        let fail = |source| NodesError::State { path: path.clone(), source };
        match std::fs::read(path) {
            Ok(bytes) => {
                let kept = serde_json::from_slice(&bytes)
                    .map_err(|source| NodesError::Garbled { path: path.clone(), source })?;
                Ok((keeper, kept))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Some(dir) = dir {
                    std::fs::create_dir_all(dir).map_err(fail)?;
                }
                let kept = Kept { node_id: new_id(), ..Kept::default() };
                keeper.keep(&kept)?;
                Ok((keeper, kept))
            }
            Err(error) => Err(fail(error)),
        }
    }

    /// Replaces the file as a whole: a crash leaves the old one or the new one.
    pub(super) fn keep(&self, kept: &Kept) -> Result<(), NodesError> {
        let Some(path) = &self.path else { return Ok(()) };
        let fail = |source| NodesError::State { path: path.clone(), source };
        let new_path = path.with_extension("new");
        let bytes = serde_json::to_vec_pretty(kept)
            .map_err(|source| NodesError::Garbled { path: path.clone(), source })?;
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new_path)
            .map_err(fail)?;
        file.write_all(&bytes).map_err(fail)?;
        rustix::fs::fsync(&file).map_err(|error| fail(error.into()))?;
        std::fs::rename(&new_path, path).map_err(fail)
    }
}

/// A random UUID (RFC 9562, version 4).
fn new_id() -> String {
    let mut bytes = entropy::random::<16>();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_stays_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (keeper, mut kept) = Keeper::open(Some(&state)).unwrap();
        assert_eq!((kept.node_id.len(), &kept.node_id[14..15]), (36, "4"));
        kept.added.push("b:1".into());
        keeper.keep(&kept).unwrap();
        assert_eq!(Keeper::open(Some(&state)).unwrap().1, kept);
        std::fs::write(state.join(FILE_NAME), "{}").unwrap();
        // A new id would make a second node of this one.
        assert!(matches!(Keeper::open(Some(&state)), Err(NodesError::Garbled { .. })));
        assert_ne!(Keeper::open(None).unwrap().1.node_id, Keeper::open(None).unwrap().1.node_id);
    }
}
