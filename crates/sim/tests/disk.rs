//! The simulated disk is a disk: it does what it is asked, counts it, fails on order, and goes away.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use librorum_sim::{Choice, Failing, Model, Rng, SimDisk, Survival, seed};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn create(path: &Path, bytes: &[u8]) -> File {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A directory's content as text: names, lengths, modes, bytes' hashes, holes.
fn picture(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let status = fs::symlink_metadata(&path).unwrap();
            if status.is_dir() {
                lines.push(format!("{name}: directory {:o}", status.mode() & 0o7777));
                left.push(path);
            } else if status.is_symlink() {
                lines.push(format!("{name}: -> {}", fs::read_link(&path).unwrap().display()));
            } else {
                let bytes = fs::read(&path).unwrap();
                let (mode, links) = (status.mode() & 0o7777, status.nlink());
                let hash = blake3::hash(&bytes);
                lines.push(format!("{name}: {} {mode:o} {links} links {hash}", bytes.len()));
                lines.push(format!("{name}: data at {:?}", data_ranges(&path)));
            }
        }
    }
    lines.sort();
    lines
}

fn data_ranges(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(start)).unwrap();
        ranges.push((start, end));
        at = end;
    }
    ranges
}

/// One random change to the tree below `root`; what does not apply is not done.
fn change(root: &Path, rng: &mut Rng) {
    let name = |rng: &mut Rng| {
        let parent = *rng.pick(&[".", "a", "b", "a/c"]);
        root.join(parent).join(format!("f{}", rng.below(6)))
    };
    let path = name(rng);
    let offset = rng.below(5) * 3000;
    let len = 1 + rng.below(9000);
    match rng.below(14) {
        0..4 => {
            if let Ok(file) =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)
            {
                let bytes = rng.bytes(usize::try_from(len).unwrap());
                file.write_all_at(&bytes, offset).unwrap();
            }
        }
        4 => drop(OpenOptions::new().write(true).open(&path).map(|file| file.set_len(offset))),
        5 => drop(OpenOptions::new().write(true).open(&path).map(|file| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, flags, offset, len).unwrap();
        })),
        6 => drop(OpenOptions::new().write(true).open(&path).map(|file| {
            let flags = *rng.pick(&[
                FallocateFlags::empty(),
                FallocateFlags::KEEP_SIZE,
                FallocateFlags::ZERO_RANGE,
            ]);
            fallocate(&file, flags, offset, len).unwrap();
        })),
        7 => drop(fs::rename(&path, name(rng))),
        8 => drop(fs::hard_link(&path, name(rng))),
        9 => drop(std::os::unix::fs::symlink(format!("to{offset}"), &path)),
        10 => drop(fs::remove_file(&path)),
        11 => drop(fs::create_dir(root.join(rng.pick(&["a", "b", "a/c", "b/d"])))),
        12 => drop(fs::remove_dir(root.join(rng.pick(&["a", "b", "a/c", "b/d"])))),
        _ => drop(OpenOptions::new().append(true).open(&path).map(|mut file| {
            file.write_all(b"appended").unwrap();
        })),
    }
}

/// The tests below trust the model of a disk; this one trusts nothing but a real one.
#[test]
fn the_disk_does_what_a_real_one_does() {
    let Some(disk) = SimDisk::for_test() else { return };
    let real = tempfile::tempdir().unwrap();
    let seed = seed();
    let (mut one, mut other) = (Rng::new(seed), Rng::new(seed));
    for step in 0..400 {
        change(disk.path(), &mut one);
        change(real.path(), &mut other);
        if step % 20 == 19 {
            let (ours, real) = (picture(disk.path()), picture(real.path()));
            // Where holes are is a hint: ext4 fills small reserved ranges beside written ones with
            // zeros, and tells them as data.
            let sure = |lines: &Vec<String>| -> Vec<String> {
                lines.iter().filter(|line| !line.contains(": data at ")).cloned().collect()
            };
            assert_eq!(sure(&ours), sure(&real), "after step {step}");
        }
    }
}

#[test]
fn an_image_that_lost_nothing_is_the_disk_and_a_synced_disk_loses_nothing() {
    let Some(disk) = SimDisk::for_test() else { return };
    let seed = seed();
    let mut rng = Rng::new(seed);
    let image = |choice: &Choice| {
        let target = tempfile::tempdir().unwrap();
        disk.crash_image(disk.log_len(), choice, target.path()).unwrap();
        picture(target.path())
    };
    for round in 0..12 {
        for _ in 0..30 {
            change(disk.path(), &mut rng);
        }
        for model in [Model::Ext4, Model::Posix] {
            let kept = Choice { model, survival: Survival::AllKept, torn: true };
            assert_eq!(image(&kept), picture(disk.path()), "{model:?}, round {round}");
        }
        sync_all(disk.path());
        for model in [Model::Ext4, Model::Posix] {
            for survival in [Survival::AllLost, Survival::Random(seed)] {
                let choice = Choice { model, survival, torn: true };
                assert_eq!(image(&choice), picture(disk.path()), "{choice:?}, round {round}");
            }
        }
    }
}

fn sync_all(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let status = fs::symlink_metadata(&path).unwrap();
        if status.is_dir() {
            sync_all(&path);
        } else if status.is_file() {
            rustix::fs::fsync(File::open(&path).unwrap()).unwrap();
        }
    }
    rustix::fs::fsync(File::open(dir).unwrap()).unwrap();
}

#[test]
fn a_full_disk_says_so_and_has_room_again_after_deletion() {
    let Some(disk) = SimDisk::for_test() else { return };
    disk.set_capacity_bytes(1 << 20);
    let first = disk.path().join("first");
    drop(create(&first, &vec![1; 700 << 10]));
    let mut second = File::create(disk.path().join("second")).unwrap();
    let full = second.write_all(&vec![2; 500 << 10]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(ENOSPC));
    let usage = rustix::fs::statvfs(disk.path()).unwrap();
    assert!(usage.f_bavail * usage.f_bsize < 400 << 10);
    fs::remove_file(&first).unwrap();
    second.write_all(&vec![2; 500 << 10]).unwrap();
    let no_room = fallocate(&second, FallocateFlags::KEEP_SIZE, 0, 2 << 20).unwrap_err();
    assert_eq!(no_room, rustix::io::Errno::NOSPC);
}

#[test]
fn requests_fail_on_order_until_the_disk_is_healed() {
    let Some(disk) = SimDisk::for_test() else { return };
    let mut file = create(&disk.path().join("f"), b"before");
    disk.fail_after(1, EIO, Failing::Writes);
    file.write_all(b"passes").unwrap();
    assert_eq!(file.write_all(b"fails").unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(file.write_all(b"fails").unwrap_err().raw_os_error(), Some(EIO));
    rustix::fs::fsync(&file).unwrap();
    disk.fail_after(0, EIO, Failing::Syncs);
    assert_eq!(rustix::fs::fsync(&file), Err(rustix::io::Errno::IO));
    disk.fail_after(0, ENOSPC, Failing::Names);
    let refused = File::create(disk.path().join("g")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(ENOSPC));
    disk.heal();
    file.write_all(b"!").unwrap();
    rustix::fs::fsync(&file).unwrap();
    assert_eq!(disk.counters().ordered_failure_count, 4);
    let mut bytes = Vec::new();
    File::open(disk.path().join("f")).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes.starts_with(b"beforepasses") && bytes.ends_with(b"!"));
}

#[test]
fn counters_tell_what_was_done() {
    let Some(disk) = SimDisk::for_test() else { return };
    let file = create(&disk.path().join("f"), &[7; 10_000]);
    rustix::fs::fdatasync(&file).unwrap();
    rustix::fs::fsync(File::open(disk.path()).unwrap()).unwrap();
    fs::rename(disk.path().join("f"), disk.path().join("g")).unwrap();
    fs::remove_file(disk.path().join("g")).unwrap();
    let counters = disk.counters();
    assert_eq!(counters.written_bytes, 10_000);
    assert_eq!((counters.file_sync_count, counters.directory_sync_count), (1, 1));
    assert_eq!((counters.create_count, counters.rename_count, counters.unlink_count), (1, 1, 1));
    assert_eq!(counters.copied_bytes, 0);
}

#[test]
fn no_mount_is_left_behind_by_a_panic_with_an_open_file() {
    let Some(disk) = SimDisk::for_test() else { return };
    let path = disk.path().to_owned();
    let file = create(&path.join("f"), b"open");
    let panicked = std::thread::spawn(move || {
        let _disk = disk;
        panic!("a failing test");
    });
    assert!(panicked.join().is_err());
    assert!(!path.exists(), "the mount point is gone, and with it the mount");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(path.to_str().unwrap()));
    assert!(file.metadata().is_err(), "the forced unmount ended the open file");
}
