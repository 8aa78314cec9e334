//! A volume as callers other than the kernel use it, without a mount: what they publish, read, and are
//! lent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use librorum_format::{Compression, ErrorKind, Ino, Timestamp};
use librorum_fs::{
    AttributeChange, CheckOptions, FormatOptions, Fs, FsOptions, KernelNotifier, OpenFlags,
    Outside, Piece, PieceSource, PublishOptions, ReadHandle, ServedBy, Upload, VerifyPolicy,
    Volume,
};
use librorum_meta::{Content, FileKind, NewInode, RenameMode, XattrMode};

const ROOT: Ino = Ino::ROOT;

static NEVER: AtomicBool = AtomicBool::new(false);

fn options() -> FsOptions {
    FsOptions { quiet_ms: 0, copy_max_bytes: 100_000, ..FsOptions::default() }
}

fn open_with(dir: &Path, options: FsOptions) -> Outside {
    if !Volume::exists(dir) {
        let format = FormatOptions {
            chunking: "cdc:16K".parse().unwrap(),
            compression: Compression::Zstd,
            ..FormatOptions::default()
        };
        Volume::format(dir, &format).unwrap();
    }
    Outside::new(Fs::open_volume(dir, options).unwrap())
}

fn open(dir: &Path) -> Outside {
    open_with(dir, options())
}

fn close(outside: Outside) {
    outside.fs().shut_down().unwrap();
    drop(outside);
}

fn new() -> NewInode<'static> {
    new_of(FileKind::Regular)
}

fn new_of(kind: FileKind) -> NewInode<'static> {
    NewInode {
        kind,
        mode: 0o640,
        uid: 5,
        gid: 6,
        rdev: 0,
        symlink_target: if kind == FileKind::Symlink { b"target" } else { b"" },
        staging: None,
        now: librorum_sys::clock::now(),
    }
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn replace() -> PublishOptions {
    PublishOptions { replace: true, ..PublishOptions::default() }
}

fn upload(outside: &Outside, bytes: &[u8]) -> Upload {
    let upload = outside.begin_upload(bytes.len() as u64, &NEVER).unwrap();
    upload.file().unwrap().write_all_at(bytes, 0).unwrap();
    upload
}

fn publish(outside: &Outside, name: &str, bytes: &[u8]) -> Ino {
    let mut upload = upload(outside, bytes);
    let options = PublishOptions { length: bytes.len() as u64, ..replace() };
    outside.publish(&mut upload, (ROOT, name.as_bytes()), &new(), &options).unwrap().inode.ino
}

fn read_handle(handle: &ReadHandle) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = vec![7; 100_000];
    loop {
        let count = handle.read_at(all.len() as u64, &mut buffer).unwrap();
        all.extend_from_slice(&buffer[..count]);
        if count < buffer.len() {
            return all;
        }
    }
}

fn read(outside: &Outside, ino: Ino) -> Vec<u8> {
    read_handle(&outside.open_read(ino).unwrap())
}

fn read_name(outside: &Outside, name: &str) -> Vec<u8> {
    read(outside, outside.find(ROOT, name.as_bytes()).unwrap().inode.ino)
}

/// What a client finds in what it was lent; nothing for what it was not.
fn read_pieces(pieces: &[Piece]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for piece in pieces {
        let mut part = vec![0; usize::try_from(piece.len).unwrap()];
        match &piece.source {
            PieceSource::Hole => {}
            PieceSource::Private => return None,
            PieceSource::File { file, offset, .. } => {
                file.read_exact_at(&mut part, *offset).unwrap();
            }
        }
        all.extend_from_slice(&part);
    }
    Some(all)
}

/// Closes a volume and checks it.
fn fsck(outside: Outside) {
    let dir = outside.fs().volume().dir.clone();
    close(outside);
    let fs = Fs::open_volume(&dir, FsOptions { read_only: true, ..options() }).unwrap();
    let mut findings = Vec::new();
    let options = CheckOptions { read_data: true, repair: false };
    fs.check(options, &mut |_| {}, &mut |finding| findings.push(finding.message)).unwrap();
    assert_eq!(findings, Vec::<String>::new());
    fs.shut_down().unwrap();
}

fn content(outside: &Outside, ino: Ino) -> Content {
    outside.fs().meta().inode(ino).unwrap().content
}

/// Seals, and gives back what nothing names. The rounds come by themselves.
fn settle(outside: &Outside) {
    outside.fs().seal_all();
    outside.sync().unwrap();
    librorum_sys::clock::sleep(Duration::from_millis(1200));
}

#[test]
fn published_upload_has_bytes_times_and_owner_and_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    // Sealed when it is asked for, not before.
    let outside = open_with(dir.path(), FsOptions { quiet_ms: 3_600_000, ..options() });
    let data = bytes(300_000, 1);
    let mut upload = upload(&outside, &[&data[..], b"cut off"].concat());
    let mtime = Timestamp::new(1_000_000, 5);
    let options = PublishOptions {
        length: 300_000,
        mtime: Some(mtime),
        durable: true,
        ..PublishOptions::default()
    };
    let found = outside.publish(&mut upload, (ROOT, b"file"), &new(), &options).unwrap().inode;
    assert_eq!((found.size_bytes, found.mode, found.uid, found.gid), (300_000, 0o640, 5, 6));
    assert_eq!(found.mtime, mtime);
    assert!(matches!(content(&outside, found.ino), Content::Staged { .. }));
    assert!(upload.file().is_err(), "it is spent");
    drop(upload);
    assert_eq!(read(&outside, found.ino), data);
    assert!(outside.chunks(found.ino).unwrap().is_none());
    outside.fs().seal_all();
    assert_eq!(content(&outside, found.ino), Content::Sealed);
    assert_eq!(read(&outside, found.ino), data);
    let chunks = outside.chunks(found.ino).unwrap().unwrap();
    assert_eq!(chunks.iter().map(|run| run.len).sum::<u64>(), 300_000);
    assert_eq!(outside.attributes(found.ino).unwrap().inode.mtime, mtime);
    fsck(outside);
    let outside = open(dir.path());
    assert_eq!(read_name(&outside, "file"), data);
    let found = outside.find(ROOT, b"file").unwrap().inode;
    assert_eq!((found.mtime, found.size_bytes), (mtime, 300_000));
    close(outside);
}

#[test]
fn upload_of_another_length_or_under_a_taken_name_is_refused_and_can_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    outside.make(ROOT, b"directory", &new_of(FileKind::Directory)).unwrap();
    publish(&outside, "taken", b"old");
    let data = bytes(50_000, 2);
    for named in [false, true] {
        let mut upload = if named {
            outside.begin_named_upload("0-f", &NEVER).unwrap()
        } else {
            outside.begin_upload(0, &NEVER).unwrap()
        };
        upload.file().unwrap().write_all_at(&data, 0).unwrap();
        let mut try_to = |name: &str, options: PublishOptions| {
            outside.publish(&mut upload, (ROOT, name.as_bytes()), &new(), &options)
        };
        let length = 50_000;
        let kind = |result: librorum_fs::Result<_>| {
            let _: librorum_fs::Attributes = match result {
                Ok(found) => found,
                Err(error) => return Some(error.kind()),
            };
            None
        };
        let plain = PublishOptions { length, ..PublishOptions::default() };
        let long = PublishOptions { length: length + 1, ..replace() };
        assert_eq!(kind(try_to("x", long)), Some(ErrorKind::InvalidInput));
        assert_eq!(kind(try_to("taken", plain)), Some(ErrorKind::AlreadyExists));
        let over = PublishOptions { length, ..replace() };
        assert_eq!(kind(try_to("directory", over)), Some(ErrorKind::IsDirectory));
        assert_eq!(kind(try_to("taken", over)), None);
        assert_eq!(read_name(&outside, "taken"), data);
        assert_eq!(kind(try_to("again", plain)), Some(ErrorKind::InvalidInput));
    }
    assert!(outside.uploads().unwrap().is_empty());
    settle(&outside);
    fsck(outside);
}

#[test]
fn upload_with_a_writer_left_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    let data = bytes(200_000, 3);
    let mut upload = upload(&outside, &data);
    let theirs = upload.file().unwrap().try_clone().unwrap();
    let options =
        PublishOptions { length: 200_000, require_no_writer: true, ..PublishOptions::default() };
    let mut publish = || outside.publish(&mut upload, (ROOT, b"file"), &new(), &options);
    assert_eq!(publish().unwrap_err().kind(), ErrorKind::Busy);
    // On its way to another process.
    let (sender, receiver) = std::os::unix::net::UnixStream::pair().unwrap();
    send(&sender, &theirs);
    drop(theirs);
    assert_eq!(publish().unwrap_err().kind(), ErrorKind::Busy);
    drop(receiver);
    drop(sender);
    let ino = publish().unwrap().inode.ino;
    assert_eq!(read(&outside, ino), data);
    close(outside);
}

fn send(socket: &std::os::unix::net::UnixStream, file: &File) {
    use std::os::fd::AsFd;
    let mut space = [std::mem::MaybeUninit::uninit(); 64];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let fds = [file.as_fd()];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
    let bytes = [std::io::IoSlice::new(b"x")];
    rustix::net::sendmsg(socket, &bytes, &mut control, rustix::net::SendFlags::empty()).unwrap();
}

#[test]
fn uploads_without_a_name_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    publish(&outside, "first", &bytes(100_000, 4));
    settle(&outside);
    let before = outside.fs().store().segments().count();
    for _ in 0..10 {
        drop(upload(&outside, &bytes(100_000, 5)));
    }
    assert_eq!(outside.fs().store().segments().count(), before);
    let counts = outside.fs().outside_counts().unwrap();
    assert_eq!((counts.upload_begun_count, counts.upload_published_count), (11, 1));
    close(outside);
}

#[test]
fn upload_with_a_name_survives_and_says_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    for key in ["", "A", "../x", "g", &"0".repeat(65)] {
        let refused = outside.begin_named_upload(key, &NEVER);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let data = bytes(120_000, 6);
    let upload = outside.begin_named_upload("abc-1", &NEVER).unwrap();
    assert_eq!(upload.received_ranges().unwrap(), []);
    let twice = outside.begin_named_upload("abc-1", &NEVER);
    assert_eq!(twice.unwrap_err().kind(), ErrorKind::Busy);
    upload.file().unwrap().write_all_at(&data[..40_960], 0).unwrap();
    upload.file().unwrap().write_all_at(&data[81_920..], 81_920).unwrap();
    assert!(outside.uploads().unwrap()[0].is_open);
    assert_eq!(outside.expire_uploads(Duration::ZERO).unwrap(), 0, "it is open");
    drop(upload);
    let folder = dir.path().join("uploads");
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    close(outside);

    let outside = open(dir.path());
    let found = outside.uploads().unwrap();
    assert_eq!(
        (found[0].key.as_str(), found[0].len_bytes, found[0].is_open),
        ("abc-1", 120_000, false)
    );
    let mut upload = outside.begin_named_upload("abc-1", &NEVER).unwrap();
    assert_eq!(upload.received_ranges().unwrap(), [(0, 40_960), (81_920, 120_000)]);
    let mut file = upload.file().unwrap().try_clone().unwrap();
    file.write_all(&data[..40_960]).unwrap();
    upload.received_ranges().unwrap();
    // The position is the client's.
    file.write_all(&data[40_960..81_920]).unwrap();
    drop(file);
    let options = PublishOptions { length: 120_000, require_no_writer: true, ..replace() };
    outside.publish(&mut upload, (ROOT, b"file"), &new(), &options).unwrap();
    drop(upload);
    assert_eq!(read_name(&outside, "file"), data);
    assert!(outside.uploads().unwrap().is_empty());
    assert_eq!(folder.read_dir().unwrap().count(), 0);

    drop(outside.begin_named_upload("00", &NEVER).unwrap());
    drop(outside.begin_named_upload("11", &NEVER).unwrap());
    outside.remove_upload("00").unwrap();
    assert_eq!(outside.remove_upload("00").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(outside.expire_uploads(Duration::from_secs(60)).unwrap(), 0);
    assert_eq!(outside.expire_uploads(Duration::ZERO).unwrap(), 1);
    assert!(outside.uploads().unwrap().is_empty());
    // A power cut kept both names of what was published.
    let mut upload = outside.begin_named_upload("22", &NEVER).unwrap();
    upload.file().unwrap().write_all_at(&data, 0).unwrap();
    drop(upload);
    std::fs::hard_link(folder.join("22"), dir.path().join("other")).unwrap();
    upload = outside.begin_named_upload("22", &NEVER).unwrap();
    assert_eq!(upload.file().unwrap().metadata().unwrap().len(), 0);
    assert_eq!(dir.path().join("other").metadata().unwrap().nlink(), 1);
    drop(upload);
    close(outside);
}

#[test]
fn bytes_are_published_whole_and_replace_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    for len in [0, 1, 4096, 4097, 70_000, 2_000_000] {
        let data = bytes(len, 7 + len as u64);
        let place = (ROOT, &b"file"[..]);
        let found = outside.publish_bytes(place, &new(), &data, &replace()).unwrap().inode;
        assert_eq!((found.size_bytes, found.nlink), (len as u64, 1));
        assert_eq!(read_name(&outside, "file"), data);
        let refused = outside.publish_bytes(place, &new(), b"other", &PublishOptions::default());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::AlreadyExists);
        // Whoever has the old one open keeps it.
        let old = outside.open_read(found.ino).unwrap();
        outside.publish_bytes(place, &new(), b"next", &replace()).unwrap();
        assert_eq!(read_handle(&old), data);
        assert_eq!(old.attributes().unwrap().inode.nlink, 0);
    }
    settle(&outside);
    assert_eq!(outside.fs().meta().stats().inode_count, 2, "what was replaced is gone");
    fsck(outside);
}

#[test]
fn small_files_are_published_by_the_thousand() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    let data = bytes(4096, 8);
    let start = librorum_sys::clock::monotonic();
    for index in 0..10_000 {
        let name = format!("file {index}");
        let options = PublishOptions::default();
        outside.publish_bytes((ROOT, name.as_bytes()), &new(), &data, &options).unwrap();
    }
    let took = librorum_sys::clock::monotonic() - start;
    // A build without optimisation takes about a second, and longer on a busy machine.
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(outside.fs().meta().stats().staged_count, 0);
    assert_eq!(read_name(&outside, "file 9999"), data);
    close(outside);
}

#[test]
fn clones_share_what_is_sealed_and_copy_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    let large = bytes(500_000, 9);
    let sources = [
        ("empty", Vec::new()),
        ("inline", bytes(100, 1)),
        ("packed", bytes(20_000, 2)),
        ("large", large.clone()),
    ];
    for (name, data) in &sources {
        publish(&outside, name, data);
    }
    for sealed in [false, true] {
        if sealed {
            settle(&outside);
        }
        let segments = outside.fs().store().segments().count();
        for (name, data) in &sources {
            let ino = outside.find(ROOT, name.as_bytes()).unwrap().inode.ino;
            let clone = format!("clone of {name} {sealed}");
            let place = (ROOT, clone.as_bytes());
            let found =
                outside.clone_file(ino, place, &new(), &PublishOptions::default()).unwrap().inode;
            assert_ne!(found.ino, ino);
            assert_eq!(read(&outside, found.ino), *data);
            assert_eq!(found.mtime, outside.attributes(ino).unwrap().inode.mtime);
            if sealed {
                assert_eq!(found.content, content(&outside, ino));
            }
        }
        if sealed {
            assert_eq!(outside.fs().store().segments().count(), segments, "nothing was stored");
        }
    }
    // A change of one is none of the other.
    let ino = outside.find(ROOT, b"large").unwrap().inode.ino;
    let opened = outside.fs().open(ino, OpenFlags { write: true, truncate: false }).unwrap();
    outside.fs().write(opened.handle, 1000, b"changed", false).unwrap();
    outside.fs().release(opened.handle);
    assert_eq!(read_name(&outside, "clone of large true"), large);
    // An overlay is copied.
    outside.clone_file(ino, (ROOT, b"overlaid"), &new(), &PublishOptions::default()).unwrap();
    let mut changed = large;
    changed[1000..1007].copy_from_slice(b"changed");
    assert_eq!(read_name(&outside, "overlaid"), changed);
    settle(&outside);
    assert_eq!(read_name(&outside, "overlaid"), changed);
    fsck(outside);
}

#[test]
fn readers_from_outside_leave_the_kernels_opens_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    let fs = outside.fs();
    fs.allow_passthrough(true);
    let data = bytes(300_000, 10);
    let ino = publish(&outside, "file", &data);
    fs.seal_all();
    let reader = outside.open_read(ino).unwrap();
    assert_eq!(read_handle(&reader), data);
    let opened = fs.open(ino, OpenFlags::default()).unwrap();
    assert!(matches!(opened.served_by, ServedBy::Passthrough(_)));
    assert_eq!(read_handle(&reader), data);
    fs.release(opened.handle);
    let opened = fs.open(ino, OpenFlags { write: true, truncate: false }).unwrap();
    let ServedBy::Passthrough(backing) = &opened.served_by else { panic!("{opened:?}") };
    backing.file().write_all_at(b"written", 10).unwrap();
    let mut part = [0; 7];
    assert_eq!(reader.read_at(10, &mut part).unwrap(), 7);
    assert_eq!(&part, b"written", "a reader sees what is written, as of any open file");
    fs.release(opened.handle);
    // It keeps an unlinked file.
    outside.unlink(ROOT, b"file").unwrap();
    settle(&outside);
    assert_eq!(reader.attributes().unwrap().inode.nlink, 0);
    assert_eq!(read_handle(&reader).len(), 300_000);
    drop(reader);
    settle(&outside);
    assert!(outside.attributes(ino).is_err(), "and lets go of it");
    close(outside);
}

#[test]
fn what_was_lent_keeps_its_bytes_whatever_becomes_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for passthrough in [false, true] {
        let outside = open(&dir.path().join(format!("{passthrough}")));
        let fs = outside.fs();
        fs.allow_passthrough(passthrough);
        let shared = bytes(200_000, 11);
        let own = bytes(300_000, 12);
        let mixed = [&own[..150_000], &shared[..], &own[150_000..]].concat();
        publish(&outside, "shared", &shared);
        fs.seal_all();
        let whole = publish(&outside, "whole", &own);
        fs.seal_all();
        let part = publish(&outside, "part", &mixed);
        // Sealed while it is lent it would lose its duplicates to a punch.
        let staged = outside.open_read(part).unwrap().pieces(0, u64::MAX, false).unwrap();
        assert_eq!(read_pieces(&staged).unwrap(), mixed);
        fs.seal_all();
        assert!(matches!(content(&outside, part), Content::Staged { .. }), "it is in use");
        drop(staged);
        // It is looked at again after five seconds.
        librorum_sys::clock::sleep(Duration::from_secs(6));
        fs.seal_all();
        assert_eq!(content(&outside, part), Content::Sealed);

        let handle = outside.open_read(part).unwrap();
        assert!(read_pieces(&handle.pieces(0, u64::MAX, false).unwrap()).is_none(), "not trusted");
        let sealed = handle.pieces(0, u64::MAX, true).unwrap();
        drop(handle);
        assert_eq!(read_pieces(&sealed).unwrap(), mixed);
        let alone = outside.open_read(whole).unwrap().pieces(0, u64::MAX, false).unwrap();
        assert!(alone.iter().all(|piece| piece.chunk.is_some()));
        settle(&outside);
        let check = |when: &str| {
            assert!(read_pieces(&sealed).unwrap() == mixed, "sealed, {when}");
            assert!(read_pieces(&alone).unwrap() == own, "whole, {when}");
        };
        check("after the punches");
        for name in ["whole", "part", "shared"] {
            let ino = outside.find(ROOT, name.as_bytes()).unwrap().inode.ino;
            let opened = fs.open(ino, OpenFlags { write: true, truncate: false }).unwrap();
            match &opened.served_by {
                ServedBy::Passthrough(backing) => {
                    backing.file().write_all_at(&[0; 180_000], 5000).unwrap();
                }
                ServedBy::Cache { .. } => {
                    fs.write(opened.handle, 5000, &[0; 180_000], false).unwrap();
                }
            }
            fs.release(opened.handle);
        }
        check("rewritten");
        settle(&outside);
        check("rewritten and sealed");
        for name in ["whole", "part", "shared"] {
            let ino = outside.find(ROOT, name.as_bytes()).unwrap().inode.ino;
            let change = AttributeChange { size_bytes: Some(10), ..AttributeChange::default() };
            outside.set_attributes(ino, &change).unwrap();
        }
        settle(&outside);
        check("truncated");
        for name in ["whole", "part", "shared"] {
            outside.unlink(ROOT, name.as_bytes()).unwrap();
        }
        settle(&outside);
        // Files that are emptied and used again must not be these.
        for index in 0..20 {
            publish(&outside, &format!("new {index}"), &bytes(100_000, 100 + index));
        }
        check("deleted and swept");
        fsck(outside);
    }
}

#[test]
fn only_a_segment_of_its_own_or_to_the_trusted_is_lent_and_nothing_where_all_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    let small = publish(&outside, "packed", &bytes(20_000, 13));
    let inline = publish(&outside, "inline", b"inline");
    outside.fs().seal_all();
    for ino in [small, inline] {
        let pieces = outside.open_read(ino).unwrap().pieces(0, 100, true).unwrap();
        assert!(read_pieces(&pieces).is_none(), "{pieces:?}");
    }
    // Holes, ends and ranges.
    let upload = outside.begin_upload(0, &NEVER).unwrap();
    let data = bytes(100_000, 14);
    upload.file().unwrap().write_all_at(&data, 1 << 20).unwrap();
    let mut upload = upload;
    let options = PublishOptions { length: 2 << 20, ..PublishOptions::default() };
    upload.file().unwrap().set_len(2 << 20).unwrap();
    let sparse =
        outside.publish(&mut upload, (ROOT, b"sparse"), &new(), &options).unwrap().inode.ino;
    outside.fs().seal_all();
    let handle = outside.open_read(sparse).unwrap();
    let mut expected = vec![0; 2 << 20];
    expected[1 << 20..(1 << 20) + 100_000].copy_from_slice(&data);
    assert_eq!(read_handle(&handle), expected);
    let pieces = handle.pieces(0, u64::MAX, false).unwrap();
    assert!(matches!(pieces[0].source, PieceSource::Hole));
    assert_eq!(read_pieces(&pieces).unwrap(), expected);
    let pieces = handle.pieces((1 << 20) + 5, 70_000, false).unwrap();
    assert_eq!(read_pieces(&pieces).unwrap(), data[5..70_005]);
    assert!(handle.pieces(2 << 20, 5, true).unwrap().is_empty());
    // Nobody can write through what was lent.
    let file = pieces.iter().find_map(|piece| match &piece.source {
        PieceSource::File { file, .. } => Some(Arc::clone(file)),
        PieceSource::Hole | PieceSource::Private => None,
    });
    assert!(file.unwrap().write_at(b"x", 0).is_err());
    drop((handle, pieces, upload));
    close(outside);
    let outside =
        open_with(dir.path(), FsOptions { verify: VerifyPolicy::Always, ..FsOptions::default() });
    let pieces = outside.open_read(sparse).unwrap().pieces(0, u64::MAX, true).unwrap();
    assert!(read_pieces(&pieces).is_none());
    close(outside);
}

/// Cut and extended again, a file's segment was taken for the whole file: the bytes behind the cut
/// came back by passthrough where zeros belong.
#[test]
fn file_that_was_cut_and_extended_again_shows_zeros_by_passthrough() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    let data = bytes(300_000, 15);
    let ino = publish(&outside, "file", &data);
    settle(&outside);
    assert_eq!(content(&outside, ino), Content::Sealed);
    outside.fs().truncate(ino, 150_000).unwrap();
    outside.fs().truncate(ino, 300_000).unwrap();
    close(outside);
    let outside = open(dir.path());
    outside.fs().allow_passthrough(true);
    let opened = outside.fs().open(ino, OpenFlags::default()).unwrap();
    let mut expected = data;
    expected[150_000..].fill(0);
    let mut found = vec![1; 300_000];
    match &opened.served_by {
        ServedBy::Passthrough(backing) => backing.file().read_exact_at(&mut found, 0).unwrap(),
        ServedBy::Cache { .. } => found = read(&outside, ino),
    }
    assert!(found == expected, "bytes behind the cut came back");
    outside.fs().release(opened.handle);
    close(outside);
}

#[test]
fn usage_counts_what_is_shared_once() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    let cancel = AtomicBool::new(false);
    let tree = outside.make(ROOT, b"tree", &new_of(FileKind::Directory)).unwrap().inode.ino;
    let below = outside.make(tree, b"below", &new_of(FileKind::Directory)).unwrap().inode.ino;
    outside.make(tree, b"link", &new_of(FileKind::Symlink)).unwrap();
    let data = bytes(300_000, 16);
    let options = PublishOptions::default();
    let first = outside.publish_bytes((tree, b"first"), &new(), &data, &options).unwrap().inode.ino;
    outside.publish_bytes((below, b"inline"), &new(), b"12345", &options).unwrap();
    outside.link(first, below, b"second name").unwrap();
    let usage = outside.tree_usage(tree, &cancel).unwrap();
    assert_eq!((usage.file_count, usage.directory_count), (3, 2));
    assert_eq!((usage.logical_bytes, usage.unique_bytes), (300_005, 300_005));
    settle(&outside);
    let usage = outside.tree_usage(tree, &cancel).unwrap();
    assert_eq!((usage.logical_bytes, usage.unique_bytes), (300_005, 300_005));
    assert_eq!((usage.stored_bytes, usage.shared_bytes), (300_005, 0));
    assert!(usage.is_exact);
    // Named from outside, then once more inside.
    outside.clone_file(first, (ROOT, b"clone"), &new(), &options).unwrap();
    let usage = outside.tree_usage(tree, &cancel).unwrap();
    assert_eq!((usage.stored_bytes, usage.shared_bytes), (300_005, 300_000));
    outside.clone_file(first, (below, b"clone"), &new(), &options).unwrap();
    outside.unlink(ROOT, b"clone").unwrap();
    settle(&outside);
    let usage = outside.tree_usage(tree, &cancel).unwrap();
    assert_eq!((usage.logical_bytes, usage.unique_bytes), (600_005, 300_005));
    assert_eq!((usage.stored_bytes, usage.shared_bytes), (300_005, 300_000));
    let single = outside.tree_usage(first, &cancel).unwrap();
    assert_eq!((single.file_count, single.directory_count, single.unique_bytes), (1, 0, 300_000));
    cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(outside.tree_usage(tree, &cancel).is_err());
    close(outside);
}

/// What a kernel was told.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl KernelNotifier for Told {
    fn entry_changed(&self, parent: Ino, name: &[u8]) {
        self.0.lock().unwrap().push(format!("entry {} {}", parent.0, name.escape_ascii()));
    }

    fn attributes_changed(&self, ino: Ino) {
        self.0.lock().unwrap().push(format!("attributes {}", ino.0));
    }

    fn data_changed(&self, ino: Ino) {
        self.0.lock().unwrap().push(format!("data {}", ino.0));
    }
}

#[test]
fn kernel_is_told_of_every_change_and_holds_no_reference() {
    let dir = tempfile::tempdir().unwrap();
    let outside = open(dir.path());
    let told = Arc::new(Told::default());
    outside.fs().notify_kernel(Arc::<Told>::clone(&told));
    let expect = |lines: &[String]| {
        let found = std::mem::take(&mut *told.0.lock().unwrap());
        assert_eq!(found, lines);
    };
    let entry = |name: &str| format!("entry 1 {name}");
    let attributes = |ino: Ino| format!("attributes {}", ino.0);
    let a = outside.make(ROOT, b"a", &new_of(FileKind::Directory)).unwrap().inode.ino;
    expect(&[entry("a")]);
    let options = PublishOptions::default();
    let f = outside.publish_bytes((ROOT, b"f"), &new(), b"x", &options).unwrap().inode.ino;
    expect(&[entry("f")]);
    let g = outside.publish_bytes((ROOT, b"f"), &new(), b"y", &replace()).unwrap().inode.ino;
    expect(&[entry("f"), attributes(f)]);
    outside.link(g, ROOT, b"g").unwrap();
    expect(&[entry("g"), attributes(g)]);
    let h = outside.publish_bytes((ROOT, b"h"), &new(), b"z", &options).unwrap().inode.ino;
    expect(&[entry("h")]);
    outside.rename((ROOT, b"h"), (ROOT, b"g"), RenameMode::Replace).unwrap();
    expect(&[entry("h"), entry("g"), attributes(h), attributes(g)]);
    outside
        .set_attributes(h, &AttributeChange { mode: Some(0o600), ..Default::default() })
        .unwrap();
    expect(&[attributes(h)]);
    let change = AttributeChange { size_bytes: Some(9), ..Default::default() };
    assert_eq!(outside.set_attributes(h, &change).unwrap().inode.size_bytes, 9);
    expect(&[format!("data {}", h.0)]);
    outside.set_xattr(h, b"user.x", b"1", XattrMode::Set).unwrap();
    expect(&[attributes(h)]);
    assert_eq!(outside.xattr(h, b"user.x").unwrap(), b"1");
    outside.remove_xattr(h, b"user.x").unwrap();
    expect(&[attributes(h)]);
    outside.rmdir(ROOT, b"a").unwrap();
    expect(&[entry("a"), attributes(a)]);
    outside.unlink(ROOT, b"g").unwrap();
    expect(&[entry("g"), attributes(h)]);
    assert_eq!(outside.read_dir(ROOT, 0, 10).unwrap().len(), 1);
    // Nobody but the names held them.
    settle(&outside);
    assert_eq!(outside.fs().meta().stats().inode_count, 2);
    assert_eq!(outside.fs().outside_counts().unwrap().notification_count, 19);
    close(outside);
}
