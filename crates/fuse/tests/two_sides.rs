//! What is changed past the kernel is seen through a mount at once, whatever the kernel has cached, and
//! the other way round. Mounts in this process, as root with passthrough and without, by which the
//! kernel keeps dirty pages. Without root, or `/dev/fuse`, there is nothing to mount.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use librorum_format::{Ino, Timestamp};
use librorum_fs::{
    AttributeChange, FormatOptions, Fs, FsOptions, Outside, PublishOptions, ReadHandle, TimeChange,
    Volume,
};
use librorum_fuse::transport::{MountOptions, Session};
use librorum_fuse::{VolumeHandler, VolumeNotifier};
use librorum_meta::{FileKind, NewInode, RenameMode};

const ROOT: Ino = Ino::ROOT;

static NEVER: AtomicBool = AtomicBool::new(false);

/// A volume, mounted.
struct Mounted {
    outside: Outside,
    dir: tempfile::TempDir,
    serving: Option<JoinHandle<()>>,
}

impl Mounted {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mount").join(name)
    }

    fn publish(&self, name: &str, bytes: &[u8]) -> Ino {
        let options = PublishOptions { replace: true, ..PublishOptions::default() };
        let place = (ROOT, name.as_bytes());
        self.outside
            .publish_bytes(place, &new(FileKind::Regular), bytes, &options)
            .unwrap()
            .inode
            .ino
    }

    fn read(&self, ino: Ino) -> Vec<u8> {
        read(&self.outside.open_read(ino).unwrap())
    }
}

fn read(handle: &ReadHandle) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 22];
    let count = handle.read_at(0, &mut bytes).unwrap();
    bytes.truncate(count);
    bytes
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(self.path(""), rustix::mount::UnmountFlags::DETACH).unwrap();
        if let Some(serving) = self.serving.take() {
            serving.join().unwrap();
        }
        self.outside.fs().shut_down().unwrap();
    }
}

fn new(kind: FileKind) -> NewInode<'static> {
    NewInode {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
        symlink_target: if kind == FileKind::Symlink { b"target" } else { b"" },
        staging: None,
        now: librorum_sys::clock::now(),
    }
}

fn mount(passthrough: bool) -> Mounted {
    let dir = tempfile::tempdir().unwrap();
    let (volume, mountpoint) = (dir.path().join("volume"), dir.path().join("mount"));
    Volume::format(&volume, &FormatOptions::default()).unwrap();
    fs::create_dir(&mountpoint).unwrap();
    let options = FsOptions { quiet_ms: 50, ..FsOptions::default() };
    let volume = Fs::open_volume(&volume, options).unwrap();
    let session = Session::mount(
        Arc::new(VolumeHandler::new(Arc::clone(&volume))),
        &MountOptions {
            mountpoint,
            source: "librorum".into(),
            read_only: false,
            allow_other: false,
            passthrough,
            writeback: true,
            dev_and_suid: false,
            no_exec: false,
            no_atime: false,
            reader_count: 4,
        },
    )
    .unwrap();
    volume.notify_kernel(Arc::new(VolumeNotifier::new(session.invalidator())));
    let serving = std::thread::spawn(move || session.serve().unwrap());
    Mounted { outside: Outside::new(volume), dir, serving: Some(serving) }
}

/// Runs a test on both kinds of mount.
fn on_mounts(test: impl Fn(&Mounted)) {
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("skipped: mounting needs root and /dev/fuse");
        return;
    }
    for passthrough in [true, false] {
        test(&mount(passthrough));
    }
}

fn names(mounted: &Mounted, dir: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(mounted.path(dir))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn is_absent(path: &PathBuf) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

#[test]
fn name_that_was_looked_up_in_vain_appears() {
    on_mounts(|mounted| {
        let before = fs::metadata(mounted.path("")).unwrap();
        for name in ["directory", "file", "link", "fifo", "large"] {
            assert!(is_absent(&mounted.path(name)));
            assert!(is_absent(&mounted.path(name)), "and once more, from the cache");
        }
        assert!(names(mounted, "").is_empty());
        librorum_sys::clock::sleep(std::time::Duration::from_millis(20));
        let outside = &mounted.outside;
        for (name, kind) in [
            ("directory", FileKind::Directory),
            ("link", FileKind::Symlink),
            ("fifo", FileKind::Fifo),
        ] {
            outside.make(ROOT, name.as_bytes(), &new(kind)).unwrap();
        }
        let after = fs::metadata(mounted.path("")).unwrap();
        assert_eq!(after.nlink(), before.nlink() + 1);
        assert!(after.modified().unwrap() > before.modified().unwrap());
        mounted.publish("file", b"bytes");
        let large = vec![3; 2 << 20];
        mounted.publish("large", &large);
        assert!(mounted.path("directory").is_dir());
        assert_eq!(fs::read_link(mounted.path("link")).unwrap(), PathBuf::from("target"));
        assert_eq!(fs::read(mounted.path("file")).unwrap(), b"bytes");
        assert_eq!(fs::read(mounted.path("large")).unwrap(), large);
        assert_eq!(names(mounted, ""), ["directory", "fifo", "file", "large", "link"]);
        // Below a directory that the kernel knows, to a name that nobody looked up.
        let directory = outside.find(ROOT, b"directory").unwrap().inode.ino;
        assert!(names(mounted, "directory").is_empty());
        outside.make(directory, b"inner", &new(FileKind::Regular)).unwrap();
        assert_eq!(names(mounted, "directory"), ["inner"]);
    });
}

#[test]
fn removed_names_vanish_and_renamed_ones_move() {
    on_mounts(|mounted| {
        let outside = &mounted.outside;
        fs::write(mounted.path("file"), b"one").unwrap();
        fs::create_dir(mounted.path("directory")).unwrap();
        fs::create_dir(mounted.path("other")).unwrap();
        fs::write(mounted.path("directory/inner"), b"inner").unwrap();
        assert_eq!(names(mounted, ""), ["directory", "file", "other"]);
        let file = fs::metadata(mounted.path("file")).unwrap().ino();
        assert!(is_absent(&mounted.path("moved")));

        outside.rename((ROOT, b"file"), (ROOT, b"moved"), RenameMode::Replace).unwrap();
        assert!(is_absent(&mounted.path("file")));
        assert_eq!(fs::metadata(mounted.path("moved")).unwrap().ino(), file);
        assert_eq!(names(mounted, ""), ["directory", "moved", "other"]);
        let other = outside.find(ROOT, b"other").unwrap().inode.ino;
        let root_links = fs::metadata(mounted.path("")).unwrap().nlink();
        outside.rename((ROOT, b"directory"), (other, b"below"), RenameMode::Replace).unwrap();
        assert!(is_absent(&mounted.path("directory")));
        assert_eq!(fs::read(mounted.path("other/below/inner")).unwrap(), b"inner");
        assert_eq!(fs::metadata(mounted.path("")).unwrap().nlink(), root_links - 1);
        assert_eq!(fs::metadata(mounted.path("other")).unwrap().nlink(), 3);
        fs::write(mounted.path("a"), b"a").unwrap();
        outside.rename((ROOT, b"a"), (ROOT, b"moved"), RenameMode::Exchange).unwrap();
        assert_eq!(fs::read(mounted.path("a")).unwrap(), b"one");
        assert_eq!(fs::read(mounted.path("moved")).unwrap(), b"a");

        let before = fs::metadata(mounted.path("a")).unwrap();
        assert!(is_absent(&mounted.path("second")));
        outside.link(Ino(before.ino()), ROOT, b"second").unwrap();
        assert_eq!(fs::metadata(mounted.path("a")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(mounted.path("second")).unwrap().ino(), before.ino());
        outside.unlink(ROOT, b"a").unwrap();
        assert!(is_absent(&mounted.path("a")));
        assert_eq!(fs::metadata(mounted.path("second")).unwrap().nlink(), 1);
        let open = fs::File::open(mounted.path("second")).unwrap();
        outside.unlink(ROOT, b"second").unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        let mut bytes = Vec::new();
        (&open).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"one");
        outside.unlink(outside.find(other, b"below").unwrap().inode.ino, b"inner").unwrap();
        outside.rmdir(other, b"below").unwrap();
        assert!(is_absent(&mounted.path("other/below")));
        assert_eq!(fs::metadata(mounted.path("other")).unwrap().nlink(), 2);
        assert_eq!(names(mounted, "other"), Vec::<String>::new());
    });
}

#[test]
fn replaced_file_is_the_new_one_and_who_has_the_old_one_open_keeps_it() {
    on_mounts(|mounted| {
        let old = vec![1; 300_000];
        let new_bytes = vec![2; 200_000];
        fs::write(mounted.path("file"), &old).unwrap();
        let open = fs::File::open(mounted.path("file")).unwrap();
        let mut first = [0; 10];
        open.read_exact_at(&mut first, 0).unwrap();
        for round in 0..2 {
            let upload = mounted.outside.begin_upload(200_000, &NEVER).unwrap();
            let mut upload = upload;
            upload.file().unwrap().write_all_at(&new_bytes, 0).unwrap();
            let options = PublishOptions {
                length: 200_000,
                replace: true,
                require_no_writer: true,
                ..PublishOptions::default()
            };
            let place = (ROOT, &b"file"[..]);
            let kind = new(FileKind::Regular);
            let found = mounted.outside.publish(&mut upload, place, &kind, &options).unwrap();
            let seen = fs::metadata(mounted.path("file")).unwrap();
            assert_eq!((seen.len(), seen.ino()), (200_000, found.inode.ino.0), "round {round}");
            assert_eq!(fs::read(mounted.path("file")).unwrap(), new_bytes);
            assert_eq!(open.metadata().unwrap().nlink(), 0);
            // Memory of the old file as well: a mapping is one more reader of its pages.
            assert_eq!(librorum_sys::mapped::touch_pages(&open, 300_000).unwrap(), 74);
            let mut bytes = vec![0; 300_001];
            assert_eq!(read_all(&open, &mut bytes), 300_000);
            assert!(bytes[..300_000] == old, "the old file changed");
            mounted.outside.fs().seal_all();
        }
    });
}

fn read_all(file: &fs::File, bytes: &mut [u8]) -> usize {
    let mut filled = 0;
    loop {
        let count = file.read_at(&mut bytes[filled..], filled as u64).unwrap();
        if count == 0 {
            return filled;
        }
        filled += count;
    }
}

#[test]
fn attributes_and_lengths_are_the_new_ones() {
    on_mounts(|mounted| {
        let outside = &mounted.outside;
        let bytes = vec![5; 100_000];
        fs::write(mounted.path("file"), &bytes).unwrap();
        for sealed in [false, true] {
            if sealed {
                outside.fs().seal_all();
            }
            assert_eq!(fs::read(mounted.path("file")).unwrap().len(), 100_000);
            let change = AttributeChange {
                mode: Some(0o604),
                uid: Some(12),
                mtime: Some(TimeChange::At(Timestamp::new(77, 0))),
                ..AttributeChange::default()
            };
            outside.set_attributes_of((ROOT, b"file"), &change).unwrap();
            let seen = fs::metadata(mounted.path("file")).unwrap();
            assert_eq!((seen.mode() & 0o7777, seen.uid(), seen.mtime()), (0o604, 12, 77));
            let cut = AttributeChange { size_bytes: Some(50_000), ..AttributeChange::default() };
            outside.set_attributes_of((ROOT, b"file"), &cut).unwrap();
            assert_eq!(fs::metadata(mounted.path("file")).unwrap().len(), 50_000);
            let extend =
                AttributeChange { size_bytes: Some(100_000), ..AttributeChange::default() };
            outside.set_attributes_of((ROOT, b"file"), &extend).unwrap();
            let mut expected = bytes.clone();
            expected[50_000..].fill(0);
            assert!(fs::read(mounted.path("file")).unwrap() == expected, "sealed: {sealed}");
            fs::write(mounted.path("file"), &bytes).unwrap();
        }
    });
}

#[test]
fn what_the_mount_writes_is_read_from_outside() {
    on_mounts(|mounted| {
        let outside = &mounted.outside;
        let mut file = fs::File::create(mounted.path("file")).unwrap();
        file.write_all(&[9; 50_000]).unwrap();
        // Still open: where the kernel keeps dirty pages it has sent nothing yet.
        let found = outside.find(ROOT, b"file").unwrap().inode;
        assert_eq!(found.size_bytes, 50_000);
        assert_eq!(mounted.read(found.ino), vec![9; 50_000]);
        file.write_all(&[8; 50_000]).unwrap();
        assert_eq!(outside.attributes(found.ino).unwrap().inode.size_bytes, 100_000);
        assert_eq!(mounted.read(found.ino)[50_000..], vec![8; 50_000]);
        outside
            .clone_file(
                found.ino,
                (ROOT, b"clone"),
                &new(FileKind::Regular),
                &PublishOptions::default(),
            )
            .unwrap();
        assert_eq!(fs::read(mounted.path("clone")).unwrap().len(), 100_000);
        drop(file);
        fs::rename(mounted.path("file"), mounted.path("moved")).unwrap();
        assert!(outside.find(ROOT, b"file").is_err());
        fs::remove_file(mounted.path("moved")).unwrap();
        assert!(outside.find(ROOT, b"moved").is_err());
    });
}

#[test]
fn changes_from_both_sides_at_once_end() {
    on_mounts(|mounted| {
        fs::create_dir(mounted.path("busy")).unwrap();
        let busy = mounted.outside.find(ROOT, b"busy").unwrap().inode.ino;
        std::thread::scope(|scope| {
            for writer in 0..3 {
                scope.spawn(move || {
                    for index in 0..200 {
                        let path = mounted.path(&format!("busy/{writer} {}", index % 7));
                        fs::write(&path, b"from the mount").unwrap();
                        names(mounted, "busy");
                        fs::remove_file(&path).unwrap();
                    }
                });
            }
            for writer in 0..2 {
                scope.spawn(move || {
                    let options = PublishOptions { replace: true, ..PublishOptions::default() };
                    for index in 0..300 {
                        let name = format!("outside {writer} {}", index % 5);
                        let place = (busy, name.as_bytes());
                        let kind = new(FileKind::Regular);
                        mounted.outside.publish_bytes(place, &kind, b"past it", &options).unwrap();
                        let path = mounted.path(&format!("busy/{name}"));
                        assert_eq!(fs::read(path).unwrap(), b"past it");
                        mounted.outside.unlink(busy, name.as_bytes()).unwrap();
                    }
                });
            }
        });
        assert!(names(mounted, "busy").is_empty());
    });
}
