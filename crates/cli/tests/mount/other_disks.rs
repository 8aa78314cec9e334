//! Volumes on disks that share blocks between files (`FICLONE`): XFS and btrfs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::harness::{LoopDisk, Mode, Mount, Run, bytes, program};

/// mkfs.xfs makes none smaller than 300.
const DISK_MIB: u64 = 768;

/// More than is copied when a shared file is opened for writing.
const BIG_BYTES: usize = 24 << 20;

/// A shared file that is written shares its blocks instead of being copied or overlaid.
fn a_shared_file_is_written(kind: &str, mode: Mode) {
    let disk = LoopDisk::with_reflinks(kind, DISK_MIB);
    let mut mount = Mount::on(mode, &[], disk.root());
    let content = bytes(1, BIG_BYTES);
    for name in ["first", "second"] {
        fs::write(mount.path(name), &content).unwrap();
    }
    mount.seal_everything();
    // The duplicate is given back when the metadata that makes it one is durable.
    mount.remount();
    let before = mount.status();
    assert!(before["stored_bytes"].as_u64().unwrap() < 30 << 20, "stored once: {before}");
    let is_reflinked = |mount: &Mount| mount.status()["staged_bytes"].as_u64().unwrap() > 0;
    let available = disk.available_bytes();
    let file = File::options().read(true).write(true).open(mount.path("second")).unwrap();
    file.write_all_at(b"changed", 5_000_000).unwrap();
    rustix::fs::fsync(&file).unwrap();
    assert!(is_reflinked(&mount), "{}", mount.status());
    let taken = available.saturating_sub(disk.available_bytes());
    assert!(taken < 8 << 20, "{taken} bytes were taken for a write of 7");
    let mut expected = content.clone();
    expected[5_000_000..5_000_007].copy_from_slice(b"changed");
    let mut seen = vec![0; BIG_BYTES];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == expected);
    drop(file);
    assert!(fs::read(mount.path("first")).unwrap() == content, "the twin, which nobody wrote");
    mount.crash();
    assert!(fs::read(mount.path("second")).unwrap() == expected, "after a kill");
    mount.seal_everything();
    mount.remount();
    assert!(fs::read(mount.path("second")).unwrap() == expected, "sealed and remounted");
    assert!(fs::read(mount.path("first")).unwrap() == content);
    // What people do with a tree, beside: the same as on the disk below.
    let source = mount.outside("source");
    for index in 0..300 {
        let path = source.join(format!("{}/{index}", index % 7));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes(index, usize::try_from(index * index).unwrap())).unwrap();
    }
    let copy = mount.path("copy");
    fs::create_dir(&copy).unwrap();
    program("cp").arg("-a").arg(source.join(".")).arg(&copy).ok();
    fs::remove_dir_all(copy.join("3")).unwrap();
    fs::remove_dir_all(source.join("3")).unwrap();
    mount.seal_everything();
    mount.remount();
    let files = |path: &std::path::Path| {
        let mut all = Vec::new();
        for folder in fs::read_dir(path).unwrap() {
            for file in fs::read_dir(folder.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                let name = path.file_name().unwrap().to_owned();
                all.push((name, fs::read(path).unwrap()));
            }
        }
        all.sort();
        all
    };
    assert!(files(&copy) == files(&source));
    drop(mount);
}

#[test]
fn a_shared_file_is_written_on_xfs_with_passthrough() {
    a_shared_file_is_written("xfs", Mode::Passthrough);
}

#[test]
fn a_shared_file_is_written_on_xfs_behind_the_page_cache() {
    a_shared_file_is_written("xfs", Mode::Cached);
}

#[test]
fn a_shared_file_is_written_on_btrfs_with_passthrough() {
    a_shared_file_is_written("btrfs", Mode::Passthrough);
}
