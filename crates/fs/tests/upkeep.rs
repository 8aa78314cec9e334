//! What a volume does for itself: finding its duplicates again, dumping its metadata.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use librorum_format::{ChunkId, Ino};
use librorum_fs::{FormatOptions, Fs, FsOptions, Volume};
use librorum_meta::{Embedded, EmbeddedOptions, FileKind, Meta, NewInode};

fn volume(dir: &Path) -> Arc<Fs> {
    if !Volume::exists(dir) {
        Volume::format(dir, &FormatOptions::default()).unwrap();
    }
    Fs::open_volume(dir, FsOptions::default()).unwrap()
}

fn store(fs: &Fs, name: &str, bytes: &[u8]) -> Ino {
    let new = NewInode {
        kind: FileKind::Regular,
        mode: 0o600,
        uid: 1,
        gid: 2,
        rdev: 0,
        symlink_target: b"",
        staging: None,
        now: librorum_sys::clock::now(),
    };
    let (found, opened) = fs.create(Ino::ROOT, name.as_bytes(), &new, true).unwrap();
    fs.write(opened.handle, 0, bytes, false).unwrap();
    fs.release(opened.handle);
    fs.seal_all();
    found.inode.ino
}

fn chunks(fs: &Fs, ino: Ino) -> Vec<ChunkId> {
    fs.meta().extents(ino, 0, u64::MAX).unwrap().iter().map(|extent| extent.chunk).collect()
}

/// 3 MiB that are not compressible and do not repeat.
fn noise() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::new();
    while bytes.len() < 3 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[test]
fn a_lost_index_is_built_again_and_finds_the_old_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let fs = volume(dir.path());
    let first = store(&fs, "first", &noise());
    fs.shut_down().unwrap();
    drop(fs);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();

    let fs = volume(dir.path());
    let ids = chunks(&fs, first);
    // The rebuild runs beside everything else.
    for _ in 0..1000 {
        if fs.store().find(&ids).unwrap().iter().all(Option::is_some) {
            break;
        }
        librorum_sys::clock::sleep(Duration::from_millis(10));
    }
    let second = store(&fs, "second", &noise());
    let places = |ino| -> Vec<_> {
        let extents = fs.meta().extents(ino, 0, u64::MAX).unwrap();
        extents.iter().map(|extent| extent.location).collect()
    };
    assert_eq!(places(first), places(second), "stored once");
    fs.shut_down().unwrap();
}

#[test]
fn a_dump_brings_all_names_back_into_an_empty_database() {
    let dir = tempfile::tempdir().unwrap();
    let fs = volume(&dir.path().join("volume"));
    store(&fs, "small", b"inline");
    let large = store(&fs, "large", &noise());
    let reached = fs.dump().unwrap();
    assert_eq!(reached, fs.meta().newest_txn());
    let expected = (fs.meta().stats(), chunks(&fs, large));
    fs.shut_down().unwrap();

    let dumps: Vec<_> = std::fs::read_dir(dir.path().join("volume/dumps")).unwrap().collect();
    assert_eq!(dumps.len(), 1);
    let mut dump = std::fs::File::open(dumps[0].as_ref().unwrap().path()).unwrap();
    let meta = Embedded::open(&dir.path().join("restored"), &EmbeddedOptions::default()).unwrap();
    meta.load(&mut dump).unwrap();
    let found = meta.lookup(Ino::ROOT, b"large").unwrap();
    assert_eq!(found.ino, large);
    let extents = meta.extents(large, 0, u64::MAX).unwrap();
    let ids: Vec<ChunkId> = extents.iter().map(|extent| extent.chunk).collect();
    assert_eq!((meta.stats(), ids), expected);
    assert_eq!(
        meta.inline_bytes(meta.lookup(Ino::ROOT, b"small").unwrap().ino).unwrap(),
        b"inline"
    );
}
