//! The disk below fills up: what was acknowledged stays, and when there is room again, work goes on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::harness::{LoopDisk, Mode, Mount, bytes, in_modes, within};

in_modes!(a_full_disk_loses_nothing_and_recovers: passthrough, cached);
in_modes!(a_disk_filled_by_others_is_survived: passthrough, cached);

/// Writes and syncs a file; what came back without an error is acknowledged.
fn store(path: &PathBuf, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    rustix::fs::fsync(&file)?;
    Ok(())
}

fn is_full(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOSPC.raw_os_error())
}

/// Adds files until one is refused; keeps account of those acknowledged.
fn fill(mount: &Mount, kept: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for index in 0..1000_u64 {
        let path = mount.path(&format!("big-{index}"));
        let content = bytes(index, 1 << 20);
        match store(&path, &content) {
            Ok(()) => drop(kept.insert(path, content)),
            Err(error) => {
                assert!(is_full(&error), "{}: {error}", path.display());
                assert!(index > 20, "there was no room at all");
                // What it wrote before it failed goes again.
                fs::remove_file(&path).ok();
                return;
            }
        }
    }
    panic!("the disk does not fill up");
}

/// Lets a file grow until the disk has no block left: new files are refused before, because the
/// metadata keeps a reserve, but the bytes of a file are not.
fn grow(disk: &LoopDisk, file: &mut File) -> Vec<u8> {
    let mut acknowledged = Vec::new();
    for step in 0..1000 {
        let more = bytes(step, 256 << 10);
        let grown = file.write_all(&more).map_err(|error| error.raw_os_error());
        let synced = rustix::fs::fsync(&*file).map_err(|error| Some(error.raw_os_error()));
        if let Err(error) = grown.and(synced) {
            assert_eq!(error, Some(Errno::NOSPC.raw_os_error()));
            assert!(disk.available_bytes() < 8 << 20, "{} are left", disk.available_bytes());
            return acknowledged;
        }
        acknowledged.extend(more);
    }
    panic!("the disk does not fill up");
}

fn assert_kept(kept: &BTreeMap<PathBuf, Vec<u8>>, when: &str) {
    for (path, content) in kept {
        let seen = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(seen == *content, "{when}: {}", path.display());
    }
}

fn a_full_disk_loses_nothing_and_recovers(mode: Mode) {
    let disk = LoopDisk::new(192);
    let mut mount = Mount::on(mode, &["seal_after=50"], disk.root());
    let mut kept = BTreeMap::new();
    let growing = mount.path("growing");
    let mut file = File::create(&growing).unwrap();
    fill(&mount, &mut kept);
    let grown = grow(&disk, &mut file);
    drop(file);
    assert!(grown.len() > 1 << 20, "the reserve is not there for the bytes of files");
    let starts_with_grown = |when: &str| {
        let seen = fs::read(&growing).unwrap();
        assert!(seen.len() >= grown.len() && seen[..grown.len()] == grown, "{when}");
    };
    assert_kept(&kept, "on a full disk");
    starts_with_grown("on a full disk");
    let refused = store(&mount.path("one more"), b"small").unwrap_err();
    assert!(is_full(&refused), "{refused}");
    // An overwrite of what is sealed succeeds or fails, but harms nothing.
    let path = mount.path("big-1");
    let old = kept[&path].clone();
    let new = [&[7; 8192], &old[8192..]].concat();
    let wrote = File::options().write(true).open(&path).and_then(|file| {
        file.write_all_at(&new[..8192], 0)?;
        Ok(rustix::fs::fsync(&file)?)
    });
    let seen = fs::read(&path).unwrap();
    match wrote {
        Ok(()) => assert!(seen == new),
        Err(error) => {
            assert!(is_full(&error), "{error}");
            assert!(seen == old || seen == new);
        }
    }
    kept.insert(path, seen);
    mount.crash();
    assert_kept(&kept, "after a crash on a full disk");
    starts_with_grown("after a crash on a full disk");
    // Deleting needs no room.
    fs::remove_file(&growing).unwrap();
    let doomed: Vec<PathBuf> = kept.keys().step_by(2).cloned().collect();
    for path in doomed {
        fs::remove_file(&path).unwrap();
        kept.remove(&path);
    }
    within("the space to come back", || (disk.available_bytes() > 80 << 20).then_some(()));
    for index in 0..8 {
        let path = mount.path(&format!("after-{index}"));
        let content = bytes(index, 1 << 20);
        // The metadata takes its reserve back first.
        within("room for new files", || store(&path, &content).ok());
        kept.insert(path, content);
    }
    mount.seal();
    assert_kept(&kept, "after the space came back");
    mount.remount();
    assert_kept(&kept, "remounted");
    drop(mount);
}

fn a_disk_filled_by_others_is_survived(mode: Mode) {
    let disk = LoopDisk::new(96);
    let mut mount = Mount::on(mode, &["seal_after=1"], disk.root());
    let mut kept = BTreeMap::new();
    for index in 0..10 {
        let (path, content) = (mount.path(&format!("{index}")), bytes(index, 300_000));
        store(&path, &content).unwrap();
        kept.insert(path, content);
    }
    let hog = disk.root().join("hog");
    let mut file = File::create(&hog).unwrap();
    let block = vec![1; 1 << 16];
    while file.write_all(&block).is_ok() {}
    drop(file);
    let (path, content) = (mount.path("refused"), bytes(99, 20 << 20));
    let refused = store(&path, &content).unwrap_err();
    assert!(is_full(&refused), "{refused}");
    assert_kept(&kept, "while others fill the disk");
    // Small changes still fit, or are refused as what they are.
    for index in 0..200 {
        match fs::create_dir(mount.path(&format!("dir-{index}"))) {
            Ok(()) => {}
            Err(error) => assert!(is_full(&error), "{error}"),
        }
    }
    mount.remount();
    assert_kept(&kept, "remounted on a full disk");
    fs::remove_file(&hog).unwrap();
    within("writing to work again", || store(&path, &content).ok());
    kept.insert(path, content);
    mount.seal();
    mount.crash();
    assert_kept(&kept, "after all");
    drop(mount);
}
