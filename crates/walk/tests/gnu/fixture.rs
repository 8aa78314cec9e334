//! A small tree with everything that walkers have got wrong.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

pub(crate) struct Fixture {
    dir: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        let path = |name: &str| fixture.path(name);
        fs::set_permissions(path(""), Permissions::from_mode(0o755)).unwrap();

        fs::create_dir_all(path("plain/below/deeper")).unwrap();
        fs::create_dir(path("empty")).unwrap();
        fs::create_dir(path("links")).unwrap();
        for (index, len) in [0_usize, 1, 511, 4_096, 4_097, 100_000, 1_500_000].iter().enumerate() {
            write(&path(&format!("plain/file{index}")), *len);
            write(&path(&format!("plain/below/file{index}")), *len);
        }
        for index in 0..300 {
            write(&path(&format!("plain/below/deeper/many{index}")), index * 37);
        }

        let sparse = File::create(path("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), 0o644.into()).unwrap();
        drop(UnixListener::bind(path("socket")).unwrap());

        symlink("plain", path("to-plain")).unwrap();
        symlink("plain/file5", path("to-file")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        symlink("circle-b", path("circle-a")).unwrap();
        symlink("circle-a", path("circle-b")).unwrap();
        symlink("..", path("plain/below/up")).unwrap();
        symlink("../..", path("plain/below/top")).unwrap();
        // Longer than what an inode holds, so that it takes a block.
        symlink("x/".repeat(100), path("long-link")).unwrap();

        write(&path("links/first"), 50_000);
        fs::hard_link(path("links/first"), path("links/second")).unwrap();
        fs::hard_link(path("links/first"), path("links/third")).unwrap();

        let names: [&[u8]; 7] =
            [b"\xff\xfe\x80", b"new\nline", b"tab\there", b" ", b"-s", b"...", b"\xc3\xa4"];
        for name in names {
            write(&path("plain").join(std::ffi::OsStr::from_bytes(name)), 3_000);
            fs::create_dir(path("empty").join(std::ffi::OsStr::from_bytes(name))).unwrap();
        }
        write(&path("plain").join("n".repeat(255)), 9_000);
        fs::create_dir(path("empty").join("d".repeat(255))).unwrap();
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.dir.path().to_owned() } else { self.dir.path().join(name) }
    }

    /// More names, in other directories, for the inode that has three.
    pub(crate) fn link_across(&self) {
        for name in ["plain/across", "plain/below/across"] {
            fs::hard_link(self.path("links/first"), self.path(name)).unwrap();
        }
        fs::hard_link(self.path("fifo"), self.path("plain/fifo")).unwrap();
    }

    /// Directories that others cannot list, cannot search, or neither.
    pub(crate) fn close_to_others(&self) {
        for (name, mode) in [("unlisted", 0o711), ("unsearched", 0o744), ("closed", 0o700)] {
            fs::create_dir_all(self.path(name).join("within")).unwrap();
            write(&self.path(name).join("file"), 10_000);
            fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        }
    }
}

pub(crate) fn write(path: &Path, len: usize) {
    File::create(path).unwrap().write_all(&vec![b'x'; len]).unwrap();
}
