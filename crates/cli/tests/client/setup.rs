//! A volume, and the four ways to it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

/// How a command reaches its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Nobody holds the volume: the command opens it.
    Embedded,
    /// `librorum mount` holds it.
    Mounted,
    /// A daemon's socket.
    Socket,
    /// A daemon's gRPC over TCP, with a token.
    Grpc,
}

pub(crate) const WAYS: [Way; 4] = [Way::Embedded, Way::Mounted, Way::Socket, Way::Grpc];

/// A volume reached in one of the ways. Dropping it ends what serves it.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) way: Way,
    pub(crate) grpc: String,
    process: Option<Child>,
    pub(crate) uid: u32,
    dir: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.stdout)))
    }
}

impl Setup {
    pub(crate) fn new(way: Way) -> Self {
        Self::of_user(way, 0)
    }

    pub(crate) fn of_user(way: Way, uid: u32) -> Self {
        use std::os::unix::fs::{PermissionsExt, chown};
        let base = std::env::var_os("LIBRORUM_TEST_DIR").unwrap_or_else(|| "/tmp".into());
        let dir = tempfile::Builder::new().prefix("lc-").tempdir_in(base).unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["run", "state", "mnt", "home"] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            chown(&path, Some(uid), Some(uid)).unwrap();
        }
        chown(dir.path(), Some(uid), Some(uid)).unwrap();
        let mut setup = Self { way, grpc: String::new(), process: None, uid, dir };
        assert_eq!(setup.run(["format"], &[setup.volume().as_os_str()]).code, Some(0));
        setup.write_config("");
        setup.start();
        setup
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn volume(&self) -> PathBuf {
        self.path("volume")
    }

    pub(crate) fn write_config(&self, more: &str) {
        let text = format!(
            "[daemon]\nsocket = '{}'\nstate_dir = '{}'\n[grpc]\nlisten = ['127.0.0.1:0']\nsocket = '{}'\ntoken_file = '{}'\n[[volume]]\nname = 'main'\npath = '{}'\n{more}",
            self.path("run/daemon.sock").display(),
            self.path("state").display(),
            self.path("run/grpc.sock").display(),
            self.path("state/tokens").display(),
            self.volume().display(),
        );
        std::fs::write(self.path("librorum.toml"), text).unwrap();
    }

    /// Brings up what the way needs.
    pub(crate) fn start(&mut self) {
        match self.way {
            Way::Embedded => {}
            Way::Mounted => {
                let mut command = self.program();
                command.arg("mount").arg(self.volume()).arg(self.path("mnt"));
                self.process = Some(command.stdout(Stdio::null()).spawn().unwrap());
                until("the mount", || self.volume().join("api").exists());
            }
            Way::Socket | Way::Grpc => self.start_daemon(),
        }
    }

    fn start_daemon(&mut self) {
        use std::io::{BufRead, BufReader};
        let mut command = self.program();
        command.args(["--json", "daemon", "--config"]).arg(self.path("librorum.toml"));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect("the daemon is ready");
        self.grpc = format!("http://{}", ready["grpc"][0].as_str().unwrap());
        self.process = Some(child);
    }

    /// Ends what serves the volume, gently.
    pub(crate) fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        signal(process.id(), rustix::process::Signal::TERM);
        let status = process.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn target(&self) -> OsString {
        match self.way {
            Way::Embedded => self.volume().into(),
            Way::Mounted => self.path("mnt").into(),
            Way::Socket => self.path("run/daemon.sock").into(),
            Way::Grpc => self.grpc.clone().into(),
        }
    }

    /// The program, as the setup's user, with a bare environment.
    pub(crate) fn program(&self) -> Command {
        self.program_of(self.uid)
    }

    pub(crate) fn program_of(&self, uid: u32) -> Command {
        let binary = env!("CARGO_BIN_EXE_librorum");
        let mut command = if uid == 0 {
            Command::new(binary)
        } else {
            let mut command = Command::new("setpriv");
            command.arg(format!("--reuid={uid}")).arg(format!("--regid={uid}"));
            command.args(["--clear-groups", "--"]).arg(self.binary());
            command
        };
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path("home"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("LIBRORUM_SOCKET", self.path("run/daemon.sock"))
            .stdin(Stdio::null());
        command
    }

    /// A copy that other users can run, wherever the build is.
    fn binary(&self) -> PathBuf {
        let copy = self.path("librorum");
        if !copy.exists() {
            std::fs::copy(env!("CARGO_BIN_EXE_librorum"), &copy).unwrap();
        }
        copy
    }

    /// A command for this way, not run yet.
    pub(crate) fn command(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = self.program();
        command.arg("--json").args(words).arg("--to").arg(self.target());
        if self.way == Way::Grpc {
            command.arg("--token-file").arg(self.token_file());
        }
        command
    }

    /// The token alone, as clients want it.
    fn token_file(&self) -> PathBuf {
        let tokens = std::fs::read_to_string(self.path("state/tokens")).unwrap();
        let line = tokens.lines().find(|line| !line.is_empty() && !line.starts_with('#')).unwrap();
        let path = self.path("token");
        std::fs::write(&path, line.split_whitespace().next().unwrap()).unwrap();
        path
    }

    pub(crate) fn run(
        &self,
        words: impl IntoIterator<Item = &'static str>,
        paths: &[&OsStr],
    ) -> Ended {
        end(self.program().arg("--json").args(words).args(paths))
    }

    /// A command that has to succeed; what it says.
    pub(crate) fn ok(&self, words: &[&OsStr]) -> Value {
        let ended = end(&mut self.command(words));
        assert_eq!(ended.code, Some(0), "{:?} {words:?}: {ended:?}", self.way);
        if ended.stdout.is_empty() { Value::Null } else { ended.json() }
    }

    /// The same for words of text.
    pub(crate) fn say(&self, line: &str) -> Value {
        let words: Vec<&OsStr> = line.split(' ').map(OsStr::new).collect();
        self.ok(&words)
    }

    /// A command that has to fail; its exit code and what it says.
    pub(crate) fn fails(&self, line: &str) -> (i32, Value) {
        let ended = end(&mut self.command(line.split(' ')));
        let code = ended.code.unwrap();
        assert_ne!(code, 0, "{line}: {ended:?}");
        (code, if ended.stdout.is_empty() { Value::Null } else { ended.json() })
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            signal(process.id(), rustix::process::Signal::TERM);
            drop(process.wait());
        }
    }
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may have ended by itself.
    let _ended = rustix::process::kill_process(pid, signal);
}

pub(crate) fn end(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { code: output.status.code(), stdout: output.stdout, stderr }
}

/// Waits for something that takes a moment.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = librorum_sys::clock::monotonic();
    while !is_so() {
        assert!(
            librorum_sys::clock::monotonic() - start < Duration::from_secs(60),
            "{what} takes too long"
        );
        librorum_sys::clock::sleep(Duration::from_millis(5));
    }
}

/// Bytes that do not repeat.
pub(crate) fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// All that a tree holds: names, kinds, modes, times and contents.
pub(crate) fn snapshot(root: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_dir() {
            waiting.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if metadata.is_symlink() {
            use std::os::unix::ffi::OsStringExt;
            path.read_link().unwrap().into_os_string().into_vec()
        } else {
            std::fs::read(&path).unwrap()
        };
        // Nobody says when a link was made.
        let mtime = if metadata.is_symlink() { 0 } else { metadata.mtime() };
        let name = path.strip_prefix(root).unwrap().to_owned();
        found.push((name, metadata.mode(), mtime, content));
    }
    found.sort();
    found
}
