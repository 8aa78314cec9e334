//! Directories, extended attributes, sets and counters.

use std::collections::BTreeSet;

use librorum_format::{Ino, SegmentId};

use super::{Volume, assert_fails, at, directory, entries, file, new, put};
use crate::{FileKind, MetaError, MetaStats, NewContent, NewInode, SetAttr, XattrMode};

const ROOT: Ino = Ino::ROOT;

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn readdir_pages_see_every_entry_once(volume: &mut dyn Volume) {
    let dir = directory(volume.meta(), ROOT, "directory").ino;
    let neighbour = directory(volume.meta(), ROOT, "neighbour").ino;
    for index in 0..300 {
        file(volume.meta(), dir, &format!("file {index}"));
        file(volume.meta(), neighbour, &format!("other {index}"));
    }
    // Some of it in the database, some above it.
    volume.reopen();
    let meta = volume.meta();
    for index in 300..600 {
        file(meta, dir, &format!("file {index}"));
    }
    for limit in [1, 2, 7, 100, 599, 600, 601, usize::MAX] {
        let mut names = BTreeSet::new();
        let mut after = 0;
        loop {
            let page = meta.readdir(dir, after, limit).unwrap();
            assert!(page.windows(2).all(|pair| pair[0].cookie <= pair[1].cookie));
            let Some(last) = page.last() else { break };
            assert!(page.iter().all(|dentry| dentry.cookie > after));
            after = last.cookie;
            for dentry in page {
                assert_eq!(dentry.kind, FileKind::Regular);
                assert!(names.insert(dentry.name), "seen twice with limit {limit}");
            }
        }
        assert_eq!(names.len(), 600, "limit {limit}");
    }
    assert_eq!(meta.readdir(dir, 0, 5).unwrap().len(), 5);
    assert!(meta.readdir(dir, u64::MAX, 5).unwrap().is_empty());
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn readdir_goes_on_after_removals(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let dir = directory(meta, ROOT, "directory").ino;
    for index in 0..50 {
        file(meta, dir, &format!("file {index}"));
    }
    // As `rm -r` does it: read a page, remove it, read on behind it.
    let mut after = 0;
    let mut removed = 0;
    loop {
        let page = meta.readdir(dir, after, 7).unwrap();
        let Some(last) = page.last() else { break };
        after = last.cookie;
        for dentry in page {
            meta.unlink(dir, &dentry.name, at(1)).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 50);
    meta.rmdir(ROOT, b"directory", at(1)).unwrap();
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn readdir_plus_agrees_with_lookup(volume: &mut dyn Volume) {
    let meta = volume.meta();
    for index in 0..20 {
        let kind = if index % 3 == 0 { FileKind::Directory } else { FileKind::Regular };
        meta.create(ROOT, format!("{index}").as_bytes(), &new(kind, index)).unwrap();
    }
    let mut seen = 0;
    let mut after = 0;
    loop {
        let page = meta.readdir_plus(ROOT, after, 6).unwrap();
        let Some((last, _)) = page.last() else { break };
        after = last.cookie;
        for (dentry, inode) in page {
            assert_eq!((dentry.ino, dentry.kind), (inode.ino, inode.kind));
            assert_eq!(meta.lookup(ROOT, &dentry.name).unwrap(), inode);
            seen += 1;
        }
    }
    assert_eq!(seen, 20);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn readdir_of_something_else_fails(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let plain = file(meta, ROOT, "file").ino;
    assert_fails!(meta.readdir(plain, 0, 10), MetaError::NotDirectory { .. });
    assert_fails!(meta.readdir_plus(Ino(1 << 40), 0, 10), MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn xattrs_round_trip(volume: &mut dyn Volume) {
    let ino = file(volume.meta(), ROOT, "file").ino;
    {
        let meta = volume.meta();
        assert!(!meta.inode(ino).unwrap().has_xattrs);
        assert!(meta.xattr_names(ino).unwrap().is_empty());
        assert_fails!(meta.xattr(ino, b"user.a"), MetaError::NoXattr { .. });
        meta.set_xattr(ino, b"user.b", b"", XattrMode::Set, at(91)).unwrap();
        meta.set_xattr(ino, b"user.a", &[0, 1, 255], XattrMode::Set, at(92)).unwrap();
        let inode = meta.inode(ino).unwrap();
        assert!(inode.has_xattrs);
        assert_eq!(inode.ctime, at(92));
    }
    volume.reopen();
    let meta = volume.meta();
    assert_eq!(meta.xattr_names(ino).unwrap(), [b"user.a", b"user.b"]);
    assert_eq!(meta.xattr(ino, b"user.a").unwrap(), [0, 1, 255]);
    assert_eq!(meta.xattr(ino, b"user.b").unwrap(), []);
    meta.remove_xattr(ino, b"user.a", at(93)).unwrap();
    assert_eq!(meta.inode(ino).unwrap().ctime, at(93));
    assert_fails!(meta.remove_xattr(ino, b"user.a", at(93)), MetaError::NoXattr { .. });
    assert!(meta.inode(ino).unwrap().has_xattrs);
    meta.remove_xattr(ino, b"user.b", at(93)).unwrap();
    assert!(!meta.inode(ino).unwrap().has_xattrs);
    // They go with the inode.
    meta.set_xattr(ino, b"user.c", b"c", XattrMode::Set, at(94)).unwrap();
    meta.unlink(ROOT, b"file", at(95)).unwrap();
    assert_eq!(meta.xattr(ino, b"user.c").unwrap(), b"c");
    meta.reap(ino).unwrap();
    assert_fails!(meta.xattr(ino, b"user.c"), MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn xattr_modes_are_kept(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let replaced = meta.set_xattr(ROOT, b"user.a", b"1", XattrMode::Replace, at(1));
    assert_fails!(replaced, MetaError::NoXattr { .. });
    meta.set_xattr(ROOT, b"user.a", b"2", XattrMode::Create, at(1)).unwrap();
    let created = meta.set_xattr(ROOT, b"user.a", b"3", XattrMode::Create, at(1));
    assert_fails!(created, MetaError::Exists { .. });
    meta.set_xattr(ROOT, b"user.a", b"4", XattrMode::Replace, at(1)).unwrap();
    assert_eq!(meta.xattr(ROOT, b"user.a").unwrap(), b"4");
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn xattr_limits_are_kept(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let (longest, most) = ([b'n'; 255], vec![b'v'; 64 << 10]);
    meta.set_xattr(ROOT, &longest, &most, XattrMode::Set, at(1)).unwrap();
    assert_eq!(meta.xattr(ROOT, &longest).unwrap(), most);
    for name in [&b""[..], &[b'n'; 256]] {
        let set = meta.set_xattr(ROOT, name, b"", XattrMode::Set, at(1));
        assert_fails!(set, MetaError::BadName { .. });
    }
    let set = meta.set_xattr(ROOT, b"user.a", &vec![0; (64 << 10) + 1], XattrMode::Set, at(1));
    assert_fails!(set, MetaError::XattrTooLarge { .. });
    let set = meta.set_xattr(Ino(1 << 40), b"user.a", b"", XattrMode::Set, at(1));
    assert_fails!(set, MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn inodes_are_listed_in_order(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let mut expected = vec![ROOT];
    expected.extend((0..10).map(|index| file(meta, ROOT, &format!("{index}")).ino));
    meta.unlink(ROOT, b"4", at(1)).unwrap();
    let mut found = Vec::new();
    let mut after = Ino(0);
    loop {
        let page = meta.inodes(after, 4).unwrap();
        let Some(last) = page.last() else { break };
        after = last.ino;
        found.extend(page.into_iter().map(|inode| inode.ino));
    }
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn counters_follow(volume: &mut dyn Volume) {
    let expected = {
        let meta = volume.meta();
        let start = MetaStats { inode_count: 1, directory_count: 1, ..MetaStats::default() };
        assert_eq!(meta.stats(), start);
        let sized = file(meta, ROOT, "sized").ino;
        meta.set_attr(sized, &SetAttr { size_bytes: Some(1000), ..SetAttr::default() }).unwrap();
        let staged = NewInode { staging: Some(SegmentId(9)), ..new(FileKind::Regular, 1) };
        let staged = meta.create(ROOT, b"staged", &staged).unwrap().0.ino;
        directory(meta, ROOT, "directory");
        meta.create(ROOT, b"link", &new(FileKind::Symlink, 1)).unwrap();
        let now = MetaStats {
            inode_count: 5,
            directory_count: 2,
            logical_bytes: 1000,
            staged_count: 1,
            orphan_count: 0,
        };
        assert_eq!(meta.stats(), now);
        put(meta, staged, NewContent::Inline(b"12345"), 5).unwrap();
        meta.unlink(ROOT, b"sized", at(1)).unwrap();
        let now = MetaStats { staged_count: 0, logical_bytes: 1005, orphan_count: 1, ..now };
        assert_eq!(meta.stats(), now);
        meta.reap(sized).unwrap();
        meta.rmdir(ROOT, b"directory", at(1)).unwrap();
        let now = MetaStats { inode_count: 4, logical_bytes: 5, ..now };
        assert_eq!(meta.stats(), now);
        now
    };
    volume.reopen();
    assert_eq!(volume.meta().stats(), expected);
    assert_eq!(entries(volume.meta(), ROOT).len(), 2);
}
