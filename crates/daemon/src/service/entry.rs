//! Inodes as messages.

use bytes::Bytes;
use librorum_format::Timestamp;
use librorum_fs::Attributes;
use librorum_meta::{Content, FileKind};
use librorum_rpc::proto::v1;

/// An inode under a path.
pub(super) fn entry(path: &[u8], found: &Attributes, symlink_target: Vec<u8>) -> v1::Entry {
    let inode = &found.inode;
    v1::Entry {
        path: Bytes::copy_from_slice(path),
        ino: inode.ino.0,
        kind: kind(inode.kind).into(),
        mode: u32::from(inode.mode),
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size_bytes: if inode.kind == FileKind::Directory { 4096 } else { inode.size_bytes },
        allocated_bytes: if inode.kind == FileKind::Directory {
            4096
        } else {
            inode.allocated_bytes
        },
        atime: Some(time(inode.atime)),
        mtime: Some(time(inode.mtime)),
        ctime: Some(time(inode.ctime)),
        btime: Some(time(inode.btime)),
        state: state(found).into(),
        symlink_target: symlink_target.into(),
        content_version: inode.content_version,
    }
}

fn kind(kind: FileKind) -> v1::Kind {
    match kind {
        FileKind::Regular => v1::Kind::Regular,
        FileKind::Directory => v1::Kind::Directory,
        FileKind::Symlink => v1::Kind::Symlink,
        FileKind::BlockDevice => v1::Kind::BlockDevice,
        FileKind::CharDevice => v1::Kind::CharDevice,
        FileKind::Fifo => v1::Kind::Fifo,
        FileKind::Socket => v1::Kind::Socket,
    }
}

fn state(found: &Attributes) -> v1::State {
    match found.inode.content {
        Content::Empty => v1::State::Empty,
        Content::Inline => v1::State::Inline,
        Content::Staged { .. } | Content::Overlay { .. } => v1::State::Staged,
        Content::Sealed => v1::State::Sealed,
    }
}

fn time(time: Timestamp) -> v1::Timestamp {
    v1::Timestamp { seconds: time.secs, nanos: time.nanos }
}

/// A time from a message; out of range is the nearest that can be.
pub(super) fn timestamp(time: &v1::Timestamp) -> Timestamp {
    Timestamp::new(time.seconds, time.nanos.min(999_999_999))
}
