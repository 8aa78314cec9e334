//! A mounted volume that goes away with its test, and what tests ask of it.

mod loop_disk;
mod process;
mod random;
mod requests;
mod snapshot;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub(crate) use loop_disk::LoopDisk;
pub(crate) use process::{Output, Python, Run, as_nobody, program, within};
pub(crate) use random::{Rng, bytes};
pub(crate) use requests::{Opcode, Requests};
pub(crate) use snapshot::{data_runs, snapshot};

/// Debian's `nobody` and its group.
pub(crate) const NOBODY: u32 = 65534;

/// A hang fails after this; nothing that works takes a fraction of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The three ways in which bytes reach the daemon, or do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As root: the kernel reads and writes the files below by itself where it can.
    Passthrough,
    /// As root, but every read and write is ours, behind the writeback cache.
    Cached,
    /// As `nobody`, through `fusermount3`.
    Unprivileged,
}

/// Makes one test per mode of a function that takes one.
macro_rules! in_modes {
    ($name:ident: $($mode:ident),+) => {
        mod $name {
            $(crate::harness::in_modes!(@ $name $mode);)+
        }
    };
    (@ $name:ident passthrough) => {
        #[test]
        fn passthrough() {
            super::$name(crate::harness::Mode::Passthrough);
        }
    };
    (@ $name:ident cached) => {
        #[test]
        fn cached() {
            super::$name(crate::harness::Mode::Cached);
        }
    };
    (@ $name:ident unprivileged) => {
        #[test]
        fn unprivileged() {
            super::$name(crate::harness::Mode::Unprivileged);
        }
    };
}
pub(crate) use in_modes;

/// A folder of its own for each test, on a real disk: tmpfs and overlayfs lack what is tested.
pub(crate) fn temp_dir() -> TempDir {
    let base = std::env::var_os("LIBRORUM_TEST_DIR").unwrap_or_else(|| "/tmp".into());
    // The length matters: see `suites.rs`.
    let dir = tempfile::Builder::new().prefix("lb-").rand_bytes(6).tempdir_in(base).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// A volume, mounted unless a test has unmounted it.
///
/// Dropping it unmounts and checks the volume; while a test panics it only makes sure that neither
/// process nor mount is left.
#[derive(Debug)]
pub(crate) struct Mount {
    mode: Mode,
    options: Vec<String>,
    volume: PathBuf,
    root: PathBuf,
    binary: PathBuf,
    log: PathBuf,
    process: Option<Child>,
    /// Last, because it deletes what the rest needs.
    dir: TempDir,
}

impl Mount {
    /// An empty volume, mounted.
    pub(crate) fn new(mode: Mode) -> Self {
        Self::with(mode, &[])
    }

    /// The same with `-o` options.
    pub(crate) fn with(mode: Mode, options: &[&str]) -> Self {
        Self::place(mode, options, None)
    }

    /// The same with the volume in `below`, for example on a small disk.
    pub(crate) fn on(mode: Mode, options: &[&str], below: &Path) -> Self {
        Self::place(mode, options, Some(below))
    }

    fn place(mode: Mode, options: &[&str], below: Option<&Path>) -> Self {
        assert!(rustix::process::geteuid().is_root(), "the mount tests run as root: see ./test");
        let dir = temp_dir();
        let volume = below.unwrap_or(dir.path()).join("volume");
        let root = dir.path().join("mnt12");
        for path in [&volume, &root] {
            std::fs::create_dir_all(path).unwrap();
        }
        let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_librorum"));
        if mode == Mode::Unprivileged {
            let_users_mount();
            // The build may lie in a folder that `nobody` cannot enter.
            let copy = dir.path().join("librorum");
            std::fs::copy(&binary, &copy).unwrap();
            binary = copy;
            for path in [&volume, &root] {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let log = dir.path().join("log");
        let process = None;
        let mut mount = Self { mode, options, volume, root, binary, log, process, dir };
        mount.librorum(&["format"]).arg(&mount.volume).ok();
        mount.mount();
        mount
    }

    /// Where it is mounted.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the root.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    pub(crate) fn volume(&self) -> &Path {
        &self.volume
    }

    /// A folder outside the mount, on the native disk, that ends with the test.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// A call of the built binary, as whoever owns the mount.
    pub(crate) fn librorum(&self, arguments: &[&str]) -> Command {
        let mut command = match self.mode {
            Mode::Unprivileged => as_nobody(&self.binary),
            Mode::Passthrough | Mode::Cached => Command::new(&self.binary),
        };
        command.args(arguments).env_remove("LIBRORUM_LOG");
        command
    }

    /// Mounts the volume and waits until it answers.
    pub(crate) fn mount(&mut self) {
        let mut options = self.options.clone();
        if self.mode == Mode::Cached {
            options.push("no_passthrough".to_owned());
        }
        if self.mode == Mode::Unprivileged {
            options.push("allow_other".to_owned());
        }
        let mut command = self.librorum(&["mount", "--json"]);
        if !options.is_empty() {
            command.arg("-o").arg(options.join(","));
        }
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        command.arg(&self.volume).arg(&self.root).stdin(Stdio::null());
        let mut process = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.process = Some(process);
        let mounted: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("not mounted ({error}): {line}{}", self.log()));
        assert_eq!(mounted["error"], Value::Null, "not mounted: {line}{}", self.log());
        assert_eq!(
            mounted["passthrough"],
            self.mode == Mode::Passthrough
                && !self.options.iter().any(|option| option.starts_with("verify=always")),
            "a test must not run in another mode than it says"
        );
    }

    /// Adds a `-o` option for the next mount.
    pub(crate) fn add_option(&mut self, option: &str) {
        self.options.push(option.to_owned());
    }

    /// Unmounts; the process ends by itself and says that all went well.
    pub(crate) fn unmount(&mut self) {
        self.librorum(&["umount"]).arg(&self.root).ok();
        self.ended_well();
    }

    /// Waits for the process of a mount that has been unmounted or told to end.
    pub(crate) fn ended_well(&mut self) {
        let mut process = self.process.take().unwrap();
        let status = within("the mount's process to end", || process.try_wait().unwrap());
        assert!(status.success(), "the mount ended with {status}\n{}", self.log());
        assert!(!self.is_in_tree(), "the process ended, but the mount is still there");
    }

    pub(crate) fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Kills the process, at whatever it is; the dead mount stays in the tree.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Kills the process, clears the dead mount away and mounts anew.
    pub(crate) fn crash(&mut self) {
        self.kill();
        self.librorum(&["umount", "--lazy"]).arg(&self.root).ok();
        self.mount();
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.process.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Seals what is closed, and answers the volume's status.
    pub(crate) fn seal(&self) -> Value {
        self.status_with(&["--seal"])
    }

    /// Seals every file; the test has closed them all. The mount's process hears of a close only
    /// after it has returned, so what it does not know to be closed yet is sealed next time.
    pub(crate) fn seal_everything(&self) -> Value {
        within("everything to be sealed", || {
            let status = self.seal();
            (status["staged_file_count"] == 0).then_some(status)
        })
    }

    pub(crate) fn status(&self) -> Value {
        self.status_with(&[])
    }

    fn status_with(&self, arguments: &[&str]) -> Value {
        let mut command = self.librorum(&["status", "--json"]);
        let output = command.args(arguments).arg(&self.volume).ok();
        serde_json::from_str::<Value>(&output.stdout).unwrap()[0].clone()
    }

    /// The volume, which must not be mounted, keeps every promise of its format. (What a kill leaves
    /// behind for the next mount to remove is no damage, and fsck says so.)
    pub(crate) fn assert_clean(&self) {
        let output = self.librorum(&["fsck", "--read-data", "--json"]).arg(&self.volume).run();
        assert_eq!(output.code, Some(0), "fsck: {output}\n{}", self.log());
    }

    /// What the mount's process has said on standard error.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        format!("--- log of the mount ---\n{}", String::from_utf8_lossy(&text))
    }

    /// Whether something is mounted at the root, dead or alive.
    pub(crate) fn is_in_tree(&self) -> bool {
        let root = format!(" {} ", self.root.display());
        std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&root)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            if self.process.is_some() {
                self.unmount();
            }
            self.assert_clean();
            return;
        }
        println!("{}", self.log());
        // Lazily: the test that failed may have files open there.
        while self.is_in_tree()
            && rustix::mount::unmount(&self.root, rustix::mount::UnmountFlags::DETACH).is_ok()
        {
        }
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// What an administrator does once so that users can mount, and that root (the tests) can look at
/// their mounts. Debian's udev opens `/dev/fuse` to all, a bare container does not.
fn let_users_mount() {
    std::fs::set_permissions("/dev/fuse", PermissionsExt::from_mode(0o666)).unwrap();
    let path = "/etc/fuse.conf";
    let config = std::fs::read_to_string(path).unwrap_or_default();
    if !config.lines().any(|line| line.trim() == "user_allow_other") {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(b"\nuser_allow_other\n").unwrap();
    }
}
