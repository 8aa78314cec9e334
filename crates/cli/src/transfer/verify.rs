//! Whether both sides have the same bytes: read again, hashed, compared.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail};
use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::client::RemoteFile;

use super::STEP_BYTES;
use crate::remote::{Remote, RemotePath};

/// BLAKE3 of a local file's first `len` bytes.
pub(crate) fn hash_local(file: &File, len: u64, path: &Path) -> anyhow::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STEP_BYTES];
    let mut at = 0;
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(STEP_BYTES).min(STEP_BYTES);
        let read = match file.read_at(&mut buffer[..want], at) {
            Ok(0) => bail!("{} became shorter while it was read", path.display()),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        hasher.update(&buffer[..read]);
        at += read as u64;
    }
    Ok(hasher.finalize())
}

/// BLAKE3 of a remote file.
fn hash_remote(file: &RemoteFile) -> anyhow::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < file.len() {
        let bytes = file.map_range(at, STEP_BYTES)?;
        if bytes.is_empty() {
            bail!("the file ended at {at}, before its length");
        }
        hasher.update(&bytes);
        at += bytes.len() as u64;
    }
    Ok(hasher.finalize())
}

/// Fails unless both sides have the same bytes now.
pub(crate) fn compare(remote: &Remote, path: &RemotePath, local: &Path) -> anyhow::Result<()> {
    let there = remote.client.open(remote.volume_of(path), &path.path)?;
    let here = File::open(local).with_context(|| format!("cannot read {}", local.display()))?;
    let len = here.metadata()?.len();
    let is_same = len == there.len() && hash_local(&here, len, local)? == hash_remote(&there)?;
    if is_same {
        return Ok(());
    }
    let message = format!(
        "{} and {} differ after the transfer: one of them was changed meanwhile, or a disk lies; \
         run it again",
        local.display(),
        path.shown()
    );
    Err(Failure::file(ErrorKind::DataLoss, message).into())
}
