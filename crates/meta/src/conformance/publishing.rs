//! Files that appear with their content.

use librorum_format::{Ino, SegmentId};

use super::{Volume, assert_fails, at, condemned, directory, extent, file, new, put, seal};
use crate::{Content, FileKind, Inode, Meta, MetaError, NewContent, NewInode, Publish, Result};

const ROOT: Ino = Ino::ROOT;

/// Publishes `content` as a file of `size_bytes`, at second 60.
fn publish(
    meta: &dyn Meta,
    name: &str,
    content: NewContent<'_>,
    size_bytes: u64,
    replace: bool,
) -> Result<crate::Published> {
    meta.publish(&Publish {
        parent: ROOT,
        name: name.as_bytes(),
        new: &new(FileKind::Regular, 60),
        content,
        size_bytes,
        allocated_bytes: size_bytes + 1,
        mtime: Some(at(33)),
        replace,
    })
}

fn looked_up(meta: &dyn Meta, name: &str) -> Inode {
    meta.lookup(ROOT, name.as_bytes()).unwrap()
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn published_file_has_its_content_at_once(volume: &mut dyn Volume) {
    let extents = [extent(0, 100, 4), extent(150, 50, 5)];
    {
        let meta = volume.meta();
        publish(meta, "inline", NewContent::Inline(b"bytes"), 5, false).unwrap();
        publish(meta, "empty", NewContent::Empty, 77, false).unwrap();
        let staged = NewContent::Staged { segment: SegmentId(3) };
        publish(meta, "staged", staged, 9, false).unwrap();
        let fresh = [SegmentId(4), SegmentId(5)];
        let sealed = NewContent::Sealed { extents: &extents, fresh: &fresh };
        let published = publish(meta, "sealed", sealed, 200, false).unwrap();
        assert!(published.replaced.is_none());
        let inode = published.inode;
        assert_eq!((inode.size_bytes, inode.allocated_bytes, inode.nlink), (200, 201, 1));
        assert_eq!((inode.mtime, inode.ctime, inode.btime), (at(33), at(60), at(60)));
        assert_eq!(meta.inode(ROOT).unwrap().mtime, at(60));
    }
    volume.reopen();
    let meta = volume.meta();
    assert_eq!(meta.inline_bytes(looked_up(meta, "inline").ino).unwrap(), b"bytes");
    assert_eq!(looked_up(meta, "empty").size_bytes, 77);
    let staged = looked_up(meta, "staged");
    assert_eq!(staged.content, Content::Staged { segment: SegmentId(3) });
    assert_eq!(meta.staged(Ino(0), 10).unwrap(), [staged.ino]);
    assert_eq!(meta.extents(looked_up(meta, "sealed").ino, 0, u64::MAX).unwrap(), extents);
    for segment in 3..=5 {
        assert!(meta.segment_is_named(SegmentId(segment)).unwrap());
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn published_file_takes_a_name_only_if_it_may(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let old = file(meta, ROOT, "name").ino;
    seal(meta, old, &[extent(0, 100, 4)]).unwrap();
    directory(meta, ROOT, "directory");
    let content = NewContent::Inline(b"new");
    assert_fails!(publish(meta, "name", content, 3, false), MetaError::Exists { .. });
    assert_fails!(publish(meta, "directory", content, 3, false), MetaError::Exists { .. });
    assert_fails!(publish(meta, "directory", content, 3, true), MetaError::IsDirectory { .. });
    assert_eq!(looked_up(meta, "name").ino, old);
    let published = publish(meta, "name", content, 3, true).unwrap();
    let replaced = published.replaced.unwrap();
    assert_eq!((replaced.ino, replaced.nlink, replaced.ctime), (old, 0, at(60)));
    assert_eq!(looked_up(meta, "name"), published.inode);
    assert_eq!(meta.orphans(Ino(0), 10).unwrap(), [old]);
    assert_eq!(meta.extents(old, 0, 100).unwrap().len(), 1, "readable until it is reaped");
    meta.reap(old).unwrap();
    assert_eq!(condemned(meta), [4]);
    // One of two names.
    meta.link(published.inode.ino, ROOT, b"second", at(61)).unwrap();
    let replaced = publish(meta, "second", NewContent::Empty, 0, true).unwrap().replaced.unwrap();
    assert_eq!((replaced.ino, replaced.nlink), (published.inode.ino, 1));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn only_sound_regular_files_are_published(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let overlay = NewContent::Overlay { segment: SegmentId(3), base_len_bytes: 5 };
    assert_fails!(publish(meta, "x", overlay, 5, false), MetaError::BadContent { .. });
    let inline = NewContent::Inline(b"abc");
    assert_fails!(publish(meta, "x", inline, 4, false), MetaError::BadContent { .. });
    let extents = [extent(0, 100, 4)];
    let short = NewContent::Sealed { extents: &extents, fresh: &[SegmentId(4)] };
    assert_fails!(publish(meta, "x", short, 99, false), MetaError::BadContent { .. });
    let unknown = NewContent::Sealed { extents: &extents, fresh: &[] };
    assert_fails!(publish(meta, "x", unknown, 100, false), MetaError::SegmentGone { .. });
    for new in [
        new(FileKind::Directory, 1),
        new(FileKind::Symlink, 1),
        NewInode { staging: Some(SegmentId(9)), ..new(FileKind::Regular, 1) },
    ] {
        let file = Publish {
            parent: ROOT,
            name: b"x",
            new: &new,
            content: NewContent::Empty,
            size_bytes: 0,
            allocated_bytes: 0,
            mtime: None,
            replace: true,
        };
        assert_fails!(meta.publish(&file), MetaError::BadContent { .. });
    }
    assert_fails!(meta.lookup(ROOT, b"x"), MetaError::NoEntry { .. });
    // What a published file shares with another one stays until both are gone.
    let first = file(meta, ROOT, "first").ino;
    seal(meta, first, &extents).unwrap();
    publish(meta, "x", unknown, 100, false).unwrap();
    put(meta, first, NewContent::Empty, 0).unwrap();
    assert_eq!(condemned(meta), []);
    publish(meta, "x", NewContent::Empty, 0, true).unwrap();
    meta.reap(meta.orphans(Ino(0), 1).unwrap()[0]).unwrap();
    assert_eq!(condemned(meta), [4]);
}
