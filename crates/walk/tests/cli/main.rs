//! The command `fdu`, run as users run it.
//!
//! Needs GNU du; what needs git, ncdu, script or root says so if it skips.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod browsing;
mod forms;
mod gnu;
mod saved;
mod selection;
mod trouble;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const FDU: &str = env!("CARGO_BIN_EXE_fdu");

/// A directory for one test; commands run in it.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// With a bit of everything. Names of one inode are in one directory, so that it is the same for
    /// every order of walking.
    fn with_tree() -> Self {
        let folder = Self::new();
        let bytes = |count: usize| vec![b'x'; count];
        folder.write("tree/a/one.txt", &bytes(5_000));
        folder.write("tree/a/two.rs", &bytes(70_000));
        folder.write("tree/a/b/three.rs", &bytes(1));
        folder.write("tree/a/b/c/four.TXT", &bytes(123_456));
        folder.write("tree/d/.hidden", &bytes(9_000));
        folder.write("tree/d/new\nline", &bytes(10));
        folder.write("tree/empty/.keep", b"");
        fs::write(folder.path("tree/d").join(OsStr::from_bytes(b"not\xffutf8")), bytes(20))
            .unwrap();
        fs::hard_link(folder.path("tree/a/one.txt"), folder.path("tree/a/copy.txt")).unwrap();
        fs::File::create(folder.path("tree/d/sparse")).unwrap().set_len(10 << 20).unwrap();
        symlink("../d", folder.path("tree/a/to-d")).unwrap();
        symlink("nowhere", folder.path("tree/dangling")).unwrap();
        symlink("tree", folder.path("to-tree")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn command(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("LC_ALL", "C.UTF-8")
            .env_remove("BLOCK_SIZE")
            .env_remove("DU_BLOCK_SIZE")
            .env_remove("BLOCKSIZE")
            .env_remove("POSIXLY_CORRECT")
            .env_remove("TIME_STYLE")
            .stdin(Stdio::null());
        command
    }

    fn fdu(&self, arguments: &[&str]) -> Output {
        self.command(FDU, arguments).output().unwrap()
    }

    /// Standard output of a run that went well.
    fn stdout(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.fdu(arguments);
        assert!(output.status.success(), "fdu {arguments:?}: {output:?}");
        assert_eq!(output.stderr, b"", "fdu {arguments:?}");
        output.stdout
    }

    fn text(&self, arguments: &[&str]) -> String {
        String::from_utf8_lossy(&self.stdout(arguments)).into_owned()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether a program is there; a test that needs it passes without.
fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        eprintln!("skipped: {program} is not installed");
    }
    found.status.success()
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: needs root");
    }
    is_root
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
