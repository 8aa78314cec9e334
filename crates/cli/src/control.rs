//! The socket through which other commands reach the process that has a volume mounted.
//!
//! `control` in the volume's folder, mode 0600. One request a connection: a line with a word. The
//! answer is lines of JSON, each with one key: `progress`, `finding`, and at the end `result` or
//! `error`.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use librorum_fs::{Finding, Fs, Progress};
use librorum_fuse::transport::PassthroughFile;
use serde_json::{Value, json};

const SOCKET: &str = "control";

/// Serves until dropped.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the control socket");
        }
    }
}

/// A socket's address holds 107 bytes, a folder's path may be longer: the address goes through the
/// folder's descriptor.
fn address(dir: &std::fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

/// Starts to serve a volume's socket.
pub(crate) fn serve(fs: &Arc<Fs>, volume: &Path) -> std::io::Result<Control> {
    let path = volume.join(SOCKET);
    match std::fs::remove_file(&path) {
        // Left by a process that was killed; the volume's lock says that it is gone.
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let dir = std::fs::File::open(volume)?;
    let listener = UnixListener::bind(address(&dir))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let fs = Arc::clone(fs);
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        for connection in listener.incoming() {
            let Ok(connection) = connection else { continue };
            let fs = Arc::clone(&fs);
            let answering = std::thread::Builder::new()
                .name("control-answer".to_owned())
                .spawn(move || answer(&fs, &connection));
            if let Err(error) = answering {
                tracing::warn!(%error, "a control request was not answered");
            }
        }
    })?;
    Ok(Control { path })
}

fn answer(fs: &Fs, connection: &UnixStream) {
    let mut request = String::new();
    // A request is a word; whoever sends more is not one of ours.
    let mut reader = BufReader::new(std::io::Read::take(connection, 64));
    if reader.read_line(&mut request).is_err() {
        return;
    }
    let send = |value: Value| {
        // A client that left does not stop the work.
        let mut connection = connection;
        drop(writeln!(connection, "{value}"));
    };
    let result = act(fs, request.trim(), &send);
    match result {
        Ok(result) => send(json!({ "result": result })),
        Err(error) => send(json!({ "error": format!("{error:#}") })),
    }
}

fn act(fs: &Fs, request: &str, send: &dyn Fn(Value)) -> anyhow::Result<Value> {
    let mut progress = |progress: Progress| {
        send(json!({ "progress": {
            "phase": progress.phase, "done": progress.done, "total": progress.total,
            "unit": progress.unit,
        } }));
    };
    match request {
        "status" => {
            let mut status = serde_json::to_value(fs.status()?)?;
            status["background"]["passthrough_registration_count"] =
                json!(PassthroughFile::registration_count());
            Ok(status)
        }
        "seal" => {
            fs.seal_all();
            Ok(Value::Null)
        }
        "sync" => {
            fs.sync()?;
            Ok(Value::Null)
        }
        "scrub" => {
            fs.scrub(&mut progress, &mut |finding: Finding| send(json!({ "finding": finding })))?;
            Ok(Value::Null)
        }
        other => bail!("'{other}' is not a request"),
    }
}

/// Asks the process that has the volume mounted. Progress and findings go to `each` as they come.
pub(crate) fn ask(
    volume: &Path,
    request: &str,
    each: &mut dyn FnMut(&str, &Value),
) -> anyhow::Result<Value> {
    let dir =
        std::fs::File::open(volume).with_context(|| format!("cannot open {}", volume.display()))?;
    let mut connection = UnixStream::connect(address(&dir)).with_context(|| {
        format!("the process that has {} mounted does not answer", volume.display())
    })?;
    writeln!(connection, "{request}")?;
    for line in BufReader::new(connection).lines() {
        let value: Value = serde_json::from_str(&line?)?;
        let Some((key, value)) = value.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        match key.as_str() {
            "result" => return Ok(value.clone()),
            "error" => bail!("{}", value.as_str().unwrap_or("the mount's process failed")),
            _ => each(key, value),
        }
    }
    bail!("the process that has {} mounted ended before it answered", volume.display())
}
