//! A full disk below the engine. Needs a mount namespace, so it skips where it may not have one.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use librorum_format::{ErrorKind, Ino};
use librorum_sys::clock;

use super::Embedded;
use crate::conformance::{assert_sound, at, entries, file, new};
use crate::{EmbeddedOptions, FileKind, Meta};

const SMALL_DISK: &str = "LIBRORUM_TEST_SMALL_DISK";

/// Runs a test of this file again, on a small tmpfs of its own.
fn on_a_small_disk(test: &str, size: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size="$2" none "$1" || exit 77; shift 2; exec "$@""#;
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(size)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(SMALL_DISK, dir.path())
        .status();
    match status.map(|status| status.code()) {
        Ok(Some(0)) => {}
        Ok(Some(1 | 77)) | Err(_) if !may_mount() => {
            eprintln!("skipped: no right to mount a small disk");
        }
        other => panic!("{other:?}"),
    }
}

fn may_mount() -> bool {
    Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success())
}

fn small_disk() -> Option<std::path::PathBuf> {
    std::env::var_os(SMALL_DISK).map(Into::into)
}

fn fill(dir: &Path, leave_bytes: u64) {
    let stat = rustix::fs::statvfs(dir).unwrap();
    let free = stat.f_bavail * stat.f_frsize;
    let bytes = vec![1; usize::try_from(free.saturating_sub(leave_bytes)).unwrap()];
    // Others write too; to the last byte is to the last byte.
    let written = std::fs::write(dir.join("filler"), bytes);
    assert!(written.is_ok() || leave_bytes == 0, "{written:?}");
    // The engine asks every 100 ms.
    clock::sleep(Duration::from_millis(150));
}

fn empty(dir: &Path) {
    std::fs::remove_file(dir.join("filler")).unwrap();
    clock::sleep(Duration::from_millis(150));
}

#[test]
fn nearly_full_disk_refuses_growth_only() {
    on_a_small_disk("embedded::tests::full_disk::nearly_full_disk", "64m");
}

#[test]
#[ignore = "run by nearly_full_disk_refuses_growth_only"]
fn nearly_full_disk() {
    let Some(disk) = small_disk() else { return };
    let options = EmbeddedOptions { reserve_bytes: 16 << 20, ..EmbeddedOptions::default() };
    let meta = Embedded::open(&disk.join("meta"), &options).unwrap();
    let ino = file(&meta, Ino::ROOT, "before").ino;
    fill(&disk, 6 << 20);
    let created = meta.create(Ino::ROOT, b"more", &new(FileKind::Regular, 1));
    assert_eq!(created.unwrap_err().kind(), ErrorKind::NoSpace);
    meta.unlink(Ino::ROOT, b"before", at(1)).unwrap();
    meta.reap(ino).unwrap();
    meta.sync().unwrap();
    empty(&disk);
    file(&meta, Ino::ROOT, "after");
    meta.sync().unwrap();
    assert_sound(&meta);
}

/// Other writers fill the disk to the last block, and removing files is how it gets better.
#[test]
fn full_disk_still_takes_removals() {
    on_a_small_disk("embedded::tests::full_disk::brimful_disk", "96m");
}

#[test]
#[ignore = "run by full_disk_still_takes_removals"]
fn brimful_disk() {
    let Some(disk) = small_disk() else { return };
    let options = EmbeddedOptions { reserve_bytes: 16 << 20, ..EmbeddedOptions::default() };
    let meta = Embedded::open(&disk.join("meta"), &options).unwrap();
    let inos: Vec<Ino> =
        (0..2000).map(|index| file(&meta, Ino::ROOT, &format!("{index}")).ino).collect();
    meta.sync().unwrap();
    fill(&disk, 0);
    let created = meta.create(Ino::ROOT, b"more", &new(FileKind::Regular, 1));
    assert_eq!(created.unwrap_err().kind(), ErrorKind::NoSpace);
    for (index, ino) in inos.into_iter().enumerate() {
        meta.unlink(Ino::ROOT, format!("{index}").as_bytes(), at(1)).unwrap();
        meta.reap(ino).unwrap();
    }
    meta.sync().unwrap();
    let left = std::fs::metadata(disk.join("meta/ballast")).map_or(0, |ballast| ballast.len());
    assert!(left < 8 << 20, "some of the ballast was given back");
    empty(&disk);
    file(&meta, Ino::ROOT, "after");
    meta.sync().unwrap();
    assert_sound(&meta);
    let ballast = std::fs::metadata(disk.join("meta/ballast")).unwrap();
    assert_eq!(ballast.len(), 8 << 20, "taken up again");
}

#[test]
fn full_disk_loses_nothing_that_was_synced() {
    on_a_small_disk("embedded::tests::full_disk::full_disk", "48m");
}

#[test]
#[ignore = "run by full_disk_loses_nothing_that_was_synced"]
fn full_disk() {
    let Some(disk) = small_disk() else { return };
    let dir = disk.join("meta");
    // No reserve: straight into the wall.
    let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
    let meta = Embedded::open(&dir, &options).unwrap();
    let mut synced = 0;
    fill(&disk, 3 << 20);
    let failed = 'fill: {
        for index in 0..1_000_000 {
            let name = format!("file {index:0200}");
            let created = meta.create(Ino::ROOT, name.as_bytes(), &new(FileKind::Regular, 1));
            if let Err(error) = created {
                break 'fill error;
            }
            if index % 500 == 499 {
                if let Err(error) = meta.sync() {
                    break 'fill error;
                }
                synced = index + 1;
            }
        }
        panic!("the disk never filled");
    };
    eprintln!("failed after {synced} synced files: {failed:?}");
    assert!(synced > 0);
    assert_eq!(failed.kind(), ErrorKind::NoSpace, "{failed:?}");
    // Sticky, but readable.
    assert!(meta.sync().is_err());
    assert!(meta.create(Ino::ROOT, b"more", &new(FileKind::Regular, 1)).is_err());
    assert!(meta.unlink(Ino::ROOT, format!("file {:0200}", 0).as_bytes(), at(1)).is_err());
    let visible = entries(&meta, Ino::ROOT).len();
    assert!(visible >= synced);
    drop(meta);
    empty(&disk);
    let meta = Embedded::open(&dir, &options).unwrap();
    let left = entries(&meta, Ino::ROOT).len();
    assert!(left >= synced && left <= visible, "{synced} synced, {left} left");
    assert_sound(&meta);
    file(&meta, Ino::ROOT, "works again");
    meta.sync().unwrap();
}
