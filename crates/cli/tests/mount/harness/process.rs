//! Running programs: with what they said if they fail, and a limit on how long they may take.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{NOBODY, PATIENCE};

/// A program with a bare environment: no user's configuration changes what it does.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/nonexistent");
    command
}

/// A program run by an ordinary user.
pub(crate) fn as_nobody(name: &Path) -> Command {
    let mut command = program("setpriv");
    let id = NOBODY.to_string();
    command.arg(format!("--reuid={id}")).arg(format!("--regid={id}")).arg("--clear-groups");
    command.arg("--").arg(name);
    command
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, stdout, stderr } = self;
        write!(f, "exit code {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Running to the end.
pub(crate) trait Run {
    /// Runs it, and answers how it ended.
    fn run(&mut self) -> Output;
    /// Runs it, and it must succeed.
    fn ok(&mut self) -> Output;
    /// Starts it; it is killed with the test.
    fn start(&mut self) -> Background;
}

impl Run for Command {
    fn run(&mut self) -> Output {
        // Into files, not pipes: a program that it leaves behind must not keep us waiting.
        let [mut stdout, mut stderr] = [(); 2].map(|()| tempfile::tempfile().unwrap());
        self.stdin(Stdio::null());
        self.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let status = self.status().unwrap_or_else(|error| {
            panic!("{}: {error}; ./test installs what the tests need", self.get_program().display())
        });
        let text = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Output { code: status.code(), stdout: text(&mut stdout), stderr: text(&mut stderr) }
    }

    fn ok(&mut self) -> Output {
        let output = self.run();
        assert_eq!(output.code, Some(0), "{self:?}: {output}");
        output
    }

    fn start(&mut self) -> Background {
        Background { child: self.stdin(Stdio::null()).spawn().unwrap() }
    }
}

/// A program that runs beside the test.
#[derive(Debug)]
pub(crate) struct Background {
    pub(crate) child: Child,
}

impl Background {
    /// Waits for it to succeed.
    pub(crate) fn ok(mut self) {
        let status = within("a program in the background", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }

    /// Kills it, at whatever it is.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Mostly it has ended long since.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// System calls that have no safe Rust function, from Python: `mmap`, record locks, limits.
pub(crate) struct Python;

impl Python {
    /// Debian's own: a version manager's lies where `nobody` cannot go.
    pub(crate) const PATH: &str = "/usr/bin/python3";

    const IMPORTS: &str =
        "import ctypes, errno, fcntl, mmap, os, resource, signal, stat, struct, sys, time\n";

    /// A script with the modules it needs imported.
    pub(crate) fn script(text: &str) -> Command {
        let mut command = program(Self::PATH);
        Self::add(&mut command, text);
        command
    }

    /// The same by `nobody`.
    pub(crate) fn script_as_nobody(text: &str) -> Command {
        let mut command = as_nobody(Path::new(Self::PATH));
        Self::add(&mut command, text);
        command
    }

    fn add(command: &mut Command, text: &str) {
        command.arg("-c").arg(format!("{}{text}", Self::IMPORTS));
    }
}

/// Waits until `poll` answers something; a hang fails the test.
pub(crate) fn within<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = librorum_sys::clock::monotonic();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        let waited = librorum_sys::clock::monotonic() - start;
        assert!(waited < PATIENCE, "waited {waited:?} for {what}");
        librorum_sys::clock::sleep(Duration::from_millis(5));
    }
}
