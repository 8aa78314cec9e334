//! What a volume does for itself: finding its duplicates again, dumping its metadata.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use librorum_format::{ChunkId, Ino};
use librorum_fs::{FormatOptions, Fs, FsOptions, Volume};
use librorum_meta::{Content, Embedded, EmbeddedOptions, FileKind, Meta, NewInode};

fn volume(dir: &Path) -> Arc<Fs> {
    volume_with(dir, FsOptions::default())
}

fn volume_with(dir: &Path, options: FsOptions) -> Arc<Fs> {
    if !Volume::exists(dir) {
        Volume::format(dir, &FormatOptions::default()).unwrap();
    }
    Fs::open_volume(dir, options).unwrap()
}

fn store(fs: &Fs, name: &str, bytes: &[u8]) -> Ino {
    let (ino, handle) = create(fs, name);
    fs.write(handle, 0, bytes, false).unwrap();
    fs.release(handle);
    fs.seal_all();
    ino
}

/// An empty file, open for writing.
fn create(fs: &Fs, name: &str) -> (Ino, u64) {
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
    (found.inode.ino, opened.handle)
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

/// A file that cannot be sealed kept everybody waiting who opened a file for writing.
#[test]
fn writers_wait_for_the_sealer_but_not_for_one_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let options = FsOptions {
        unsealed_bytes_max: 1 << 20,
        quiet_ms: 0,
        sealing_patience_ms: 300,
        ..FsOptions::default()
    };
    let patience = Duration::from_millis(options.sealing_patience_ms);
    let fs = volume_with(dir.path(), options);
    let (first, handle) = create(&fs, "first");
    fs.write(handle, 0, &noise(), false).unwrap();
    // Where its chunk table would be written there is something that is no file.
    let Content::Staged { segment } = fs.meta().inode(first).unwrap().content else {
        panic!("a file that is open for writing is staged");
    };
    let folder = format!("{:02x}", segment.0 >> 6 & 0xff);
    let bytes = dir.path().join(format!("data/{folder}/{segment}.bytes"));
    assert!(bytes.exists(), "{}", bytes.display());
    let obstacle = bytes.with_extension("draft");
    std::fs::create_dir(&obstacle).unwrap();
    fs.release(handle);
    fs.seal_all();
    assert_eq!(fs.status().unwrap().staged_file_count, 1, "sealing was to fail");

    let (opened, was_opened) = mpsc::channel();
    let opener = Arc::clone(&fs);
    std::thread::spawn(move || {
        let start = librorum_sys::clock::monotonic();
        opener.wait_for_room(&AtomicBool::new(false)).unwrap();
        let (_, handle) = create(&opener, "second");
        opened.send((handle, librorum_sys::clock::monotonic() - start)).ok();
    });
    let (handle, waited) =
        was_opened.recv_timeout(Duration::from_secs(30)).expect("the writer's wait has an end");
    assert!(waited >= patience, "the writer did not wait for the sealer: {waited:?}");
    fs.write(handle, 0, b"it goes on", false).unwrap();
    fs.release(handle);
    std::fs::remove_dir(&obstacle).unwrap();
    fs.shut_down().unwrap();
    drop(fs);

    let fs = volume(dir.path());
    fs.seal_all();
    assert_eq!(fs.status().unwrap().staged_file_count, 0);
    fs.shut_down().unwrap();
}
