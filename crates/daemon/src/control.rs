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

use librorum_format::ErrorKind;
use librorum_fs::{Finding, Fs, FsError, Progress};
use librorum_fuse::transport::PassthroughFile;
use librorum_rpc::{Failure, Reason};
use serde_json::{Value, json};

const SOCKET: &str = "control";

/// Serves until dropped.
#[derive(Debug)]
pub struct Control {
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
///
/// # Errors
///
/// What making a socket answers.
pub fn serve(fs: &Arc<Fs>, volume: &Path) -> std::io::Result<Control> {
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
        Err(error) => send(json!({ "error": error })),
    }
}

fn act(fs: &Fs, request: &str, send: &dyn Fn(Value)) -> Result<Value, String> {
    let failed = |error: FsError| error.to_string();
    let mut progress = |progress: Progress| {
        send(json!({ "progress": {
            "phase": progress.phase, "done": progress.done, "total": progress.total,
            "unit": progress.unit,
        } }));
    };
    match request {
        "status" => status(fs).map_err(failed),
        "seal" => {
            fs.seal_all();
            Ok(Value::Null)
        }
        "sync" => {
            fs.sync().map_err(failed)?;
            Ok(Value::Null)
        }
        "scrub" => {
            let mut report = |finding: Finding| send(json!({ "finding": finding }));
            fs.scrub(&mut progress, &mut report).map_err(failed)?;
            Ok(Value::Null)
        }
        other => Err(format!("'{other}' is not a request")),
    }
}

/// A volume's state, with what only its process knows.
pub(crate) fn status(fs: &Fs) -> Result<Value, FsError> {
    let mut status = json!(fs.status()?);
    status["background"]["passthrough_registration_count"] =
        json!(PassthroughFile::registration_count());
    Ok(status)
}

/// Asks the process that has the volume open. Progress and findings go to `each` as they come.
///
/// # Errors
///
/// `Disconnected` if nobody answers; what that process says.
pub fn ask(
    volume: &Path,
    request: &str,
    each: &mut dyn FnMut(&str, &Value),
) -> Result<Value, Failure> {
    let lost = |what: &str, error: &dyn std::fmt::Display| {
        let message = format!("{what} (volume {}): {error}", volume.display());
        Failure::new(Reason::Disconnected, message)
    };
    let dir =
        std::fs::File::open(volume).map_err(|error| lost("cannot open the volume", &error))?;
    let mut connection = UnixStream::connect(address(&dir))
        .map_err(|error| lost("the process that has it open does not answer", &error))?;
    writeln!(connection, "{request}").map_err(|error| lost("cannot ask", &error))?;
    for line in BufReader::new(connection).lines() {
        let line = line.map_err(|error| lost("cannot read the answer", &error))?;
        let value: Value =
            serde_json::from_str(&line).map_err(|error| lost("a strange answer", &error))?;
        let Some((key, value)) = value.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        match key.as_str() {
            "result" => return Ok(value.clone()),
            "error" => {
                let message = value.as_str().unwrap_or("the volume's process failed");
                return Err(Failure::file(ErrorKind::Unavailable, message));
            }
            _ => each(key, value),
        }
    }
    Err(lost("its process ended before it answered", &"end of file"))
}
