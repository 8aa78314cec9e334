//! Names and attributes.

use librorum_format::Ino;

use super::{Volume, assert_fails, at, directory, entries, file, new};
use crate::{Content, FileKind, MetaError, NewInode, SetAttr};

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn new_volume_has_a_root_directory(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let root = meta.inode(Ino::ROOT).unwrap();
    assert_eq!((root.ino, root.kind, root.nlink), (Ino::ROOT, FileKind::Directory, 2));
    assert_eq!((root.mode, root.parent), (0o755, Ino::ROOT));
    assert!(entries(meta, Ino::ROOT).is_empty());
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn created_inode_is_found_by_name_and_number(volume: &mut dyn Volume) {
    let meta = volume.meta();
    for (index, kind) in [
        FileKind::Regular,
        FileKind::Directory,
        FileKind::Symlink,
        FileKind::Fifo,
        FileKind::Socket,
        FileKind::CharDevice,
        FileKind::BlockDevice,
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("entry {index}");
        let description = NewInode { rdev: 0x0801, mode: 0o4711, ..new(kind, 33) };
        let (inode, _) = meta.create(Ino::ROOT, name.as_bytes(), &description).unwrap();
        assert_eq!((inode.kind, inode.mode), (kind, 0o4711));
        assert_eq!((inode.uid, inode.gid, inode.rdev), (1000, 1001, 0x0801));
        assert_eq!(inode.nlink, if kind == FileKind::Directory { 2 } else { 1 });
        for time in [inode.atime, inode.mtime, inode.ctime, inode.btime] {
            assert_eq!(time, at(33));
        }
        assert_eq!((inode.content, inode.parent), (Content::Empty, Ino::ROOT));
        assert_eq!(meta.inode(inode.ino).unwrap(), inode);
        assert_eq!(meta.lookup(Ino::ROOT, name.as_bytes()).unwrap(), inode);
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn create_refuses_an_existing_name(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let first = file(meta, Ino::ROOT, "name");
    for kind in [FileKind::Regular, FileKind::Directory] {
        assert_fails!(meta.create(Ino::ROOT, b"name", &new(kind, 1)), MetaError::Exists { .. });
    }
    assert_eq!(meta.lookup(Ino::ROOT, b"name").unwrap().ino, first.ino);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn bad_names_are_refused_everywhere(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, Ino::ROOT, "file").ino;
    let bad: [&[u8]; 6] = [b"", b".", b"..", b"a/b", b"/", b"a\0b"];
    for name in bad {
        assert_fails!(meta.lookup(Ino::ROOT, name), MetaError::BadName { .. });
        let created = meta.create(Ino::ROOT, name, &new(FileKind::Regular, 1));
        assert_fails!(created, MetaError::BadName { .. });
        assert_fails!(meta.link(ino, Ino::ROOT, name, at(1)), MetaError::BadName { .. });
        assert_fails!(meta.unlink(Ino::ROOT, name, at(1)), MetaError::BadName { .. });
        assert_fails!(meta.rmdir(Ino::ROOT, name, at(1)), MetaError::BadName { .. });
        let mode = crate::RenameMode::Replace;
        let (good, bad) = ((Ino::ROOT, &b"file"[..]), (Ino::ROOT, name));
        assert_fails!(meta.rename(good, bad, mode, at(1)), MetaError::BadName { .. });
        assert_fails!(meta.rename(bad, good, mode, at(1)), MetaError::BadName { .. });
    }
    let long = [b'x'; 256];
    let created = meta.create(Ino::ROOT, &long, &new(FileKind::Regular, 1));
    assert_fails!(created, MetaError::NameTooLong { len: 256 });
    assert_fails!(meta.lookup(Ino::ROOT, &long), MetaError::NameTooLong { len: 256 });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn names_may_hold_any_other_byte(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let long = [b'x'; 255];
    let names: [&[u8]; 7] = [&long, b"...", b".a", b"\xff\xfe", b"a", b"ab", b" \n\\'"];
    for name in names {
        let (inode, _) = meta.create(Ino::ROOT, name, &new(FileKind::Regular, 1)).unwrap();
        assert_eq!(meta.lookup(Ino::ROOT, name).unwrap().ino, inode.ino);
    }
    let mut expected: Vec<&[u8]> = names.to_vec();
    expected.sort_unstable();
    let found = entries(meta, Ino::ROOT);
    assert_eq!(found.keys().map(Vec::as_slice).collect::<Vec<_>>(), expected);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn entries_need_a_directory(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let plain = file(meta, Ino::ROOT, "file").ino;
    let nowhere = Ino(1 << 40);
    let regular = new(FileKind::Regular, 1);
    assert_fails!(meta.create(plain, b"x", &regular), MetaError::NotDirectory { .. });
    assert_fails!(meta.create(nowhere, b"x", &regular), MetaError::NoInode { .. });
    assert_fails!(meta.lookup(plain, b"x"), MetaError::NotDirectory { .. });
    assert_fails!(meta.lookup(nowhere, b"x"), MetaError::NoInode { .. });
    assert_fails!(meta.lookup(Ino::ROOT, b"x"), MetaError::NoEntry { .. });
    assert_fails!(meta.unlink(plain, b"x", at(1)), MetaError::NotDirectory { .. });
    assert_fails!(meta.rmdir(nowhere, b"x", at(1)), MetaError::NoInode { .. });
    assert_fails!(meta.link(plain, nowhere, b"x", at(1)), MetaError::NoInode { .. });
    assert_fails!(meta.link(nowhere, Ino::ROOT, b"x", at(1)), MetaError::NoInode { .. });
    assert_fails!(meta.inode(nowhere), MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn create_changes_the_times_and_links_of_its_directory(volume: &mut dyn Volume) {
    let meta = volume.meta();
    meta.create(Ino::ROOT, b"a", &new(FileKind::Regular, 21)).unwrap();
    let root = meta.inode(Ino::ROOT).unwrap();
    assert_eq!((root.mtime, root.ctime, root.nlink), (at(21), at(21), 2));
    meta.create(Ino::ROOT, b"b", &new(FileKind::Directory, 22)).unwrap();
    let root = meta.inode(Ino::ROOT).unwrap();
    assert_eq!((root.mtime, root.ctime, root.nlink), (at(22), at(22), 3));
    meta.rmdir(Ino::ROOT, b"b", at(23)).unwrap();
    let root = meta.inode(Ino::ROOT).unwrap();
    assert_eq!((root.mtime, root.ctime, root.nlink), (at(23), at(23), 2));
    meta.unlink(Ino::ROOT, b"a", at(24)).unwrap();
    assert_eq!(meta.inode(Ino::ROOT).unwrap().mtime, at(24));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn set_gid_directory_hands_its_group_down(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let parent = NewInode { mode: 0o2775, gid: 77, ..new(FileKind::Directory, 1) };
    let parent = meta.create(Ino::ROOT, b"shared", &parent).unwrap().0.ino;
    let (child, _) = meta.create(parent, b"file", &new(FileKind::Regular, 1)).unwrap();
    assert_eq!((child.gid, child.mode), (77, 0o644));
    let (child, _) = meta.create(parent, b"directory", &new(FileKind::Directory, 1)).unwrap();
    assert_eq!((child.gid, child.mode), (77, 0o2755));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn unlinked_file_stays_readable_until_reaped(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, Ino::ROOT, "file").ino;
    let (inode, _) = meta.unlink(Ino::ROOT, b"file", at(60)).unwrap();
    assert_eq!((inode.nlink, inode.ctime), (0, at(60)));
    assert_fails!(meta.lookup(Ino::ROOT, b"file"), MetaError::NoEntry { .. });
    assert_eq!(meta.inode(ino).unwrap(), inode);
    assert_eq!(meta.orphans(Ino(0), 10).unwrap(), [ino]);
    assert_eq!(meta.orphans(ino, 10).unwrap(), []);
    meta.reap(ino).unwrap();
    assert_fails!(meta.inode(ino), MetaError::NoInode { .. });
    assert_eq!(meta.orphans(Ino(0), 10).unwrap(), []);
    // Again is nothing.
    meta.reap(ino).unwrap();
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn hard_links_count(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, Ino::ROOT, "first").ino;
    let elsewhere = directory(meta, Ino::ROOT, "elsewhere").ino;
    let (inode, _) = meta.link(ino, elsewhere, b"second", at(70)).unwrap();
    assert_eq!((inode.nlink, inode.ctime), (2, at(70)));
    assert_eq!(meta.inode(elsewhere).unwrap().mtime, at(70));
    assert_eq!(meta.lookup(elsewhere, b"second").unwrap().ino, ino);
    assert_fails!(meta.link(ino, elsewhere, b"second", at(71)), MetaError::Exists { .. });
    let (inode, _) = meta.unlink(Ino::ROOT, b"first", at(72)).unwrap();
    assert_eq!(inode.nlink, 1);
    assert_eq!(meta.orphans(Ino(0), 10).unwrap(), []);
    assert_eq!(meta.lookup(elsewhere, b"second").unwrap().nlink, 1);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn link_refuses_directories_and_orphans(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let dir = directory(meta, Ino::ROOT, "directory").ino;
    assert_fails!(meta.link(dir, Ino::ROOT, b"x", at(1)), MetaError::IsDirectory { .. });
    let ino = file(meta, Ino::ROOT, "file").ino;
    meta.unlink(Ino::ROOT, b"file", at(1)).unwrap();
    assert_fails!(meta.link(ino, Ino::ROOT, b"x", at(1)), MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn unlink_and_rmdir_keep_to_their_kinds(volume: &mut dyn Volume) {
    let meta = volume.meta();
    file(meta, Ino::ROOT, "file");
    directory(meta, Ino::ROOT, "directory");
    assert_fails!(meta.unlink(Ino::ROOT, b"directory", at(1)), MetaError::IsDirectory { .. });
    assert_fails!(meta.rmdir(Ino::ROOT, b"file", at(1)), MetaError::NotDirectory { .. });
    assert_fails!(meta.unlink(Ino::ROOT, b"nothing", at(1)), MetaError::NoEntry { .. });
    assert_fails!(meta.rmdir(Ino::ROOT, b"nothing", at(1)), MetaError::NoEntry { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn rmdir_refuses_a_directory_with_entries(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let dir = directory(meta, Ino::ROOT, "directory").ino;
    file(meta, dir, "file");
    assert_fails!(meta.rmdir(Ino::ROOT, b"directory", at(1)), MetaError::NotEmpty { .. });
    meta.unlink(dir, b"file", at(1)).unwrap();
    let (removed, _) = meta.rmdir(Ino::ROOT, b"directory", at(1)).unwrap();
    assert_eq!((removed.ino, removed.nlink), (dir, 0));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn removed_directory_takes_no_entries(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let dir = directory(meta, Ino::ROOT, "directory").ino;
    let ino = file(meta, Ino::ROOT, "file").ino;
    meta.rmdir(Ino::ROOT, b"directory", at(1)).unwrap();
    assert_eq!(meta.orphans(Ino(0), 10).unwrap(), [dir]);
    let regular = new(FileKind::Regular, 1);
    assert_fails!(meta.create(dir, b"x", &regular), MetaError::NoInode { .. });
    assert_fails!(meta.link(ino, dir, b"x", at(1)), MetaError::NoInode { .. });
    let renamed = super::rename(meta, (Ino::ROOT, "file"), (dir, "x"), crate::RenameMode::Replace);
    assert_fails!(renamed, MetaError::NoInode { .. });
    assert_fails!(meta.lookup(dir, b"x"), MetaError::NoEntry { .. });
    assert!(meta.readdir(dir, 0, 10).unwrap().is_empty());
    meta.reap(dir).unwrap();
    assert_fails!(meta.inode(dir), MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn set_attr_changes_what_it_is_told(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let before = file(meta, Ino::ROOT, "file");
    let (same, _) = meta.set_attr(before.ino, &SetAttr::default()).unwrap();
    assert_eq!(same, before);
    let set =
        SetAttr { mode: Some(0o4755), uid: Some(5), atime: Some(at(81)), ..SetAttr::default() };
    let (after, _) = meta.set_attr(before.ino, &set).unwrap();
    let expected = crate::Inode { mode: 0o4755, uid: 5, atime: at(81), ..before.clone() };
    assert_eq!(after, expected);
    let set = SetAttr {
        gid: Some(6),
        size_bytes: Some(1 << 50),
        allocated_bytes: Some(3),
        mtime: Some(at(82)),
        ctime: Some(at(-83)),
        ..SetAttr::default()
    };
    let (after, _) = meta.set_attr(before.ino, &set).unwrap();
    let expected = crate::Inode {
        gid: 6,
        size_bytes: 1 << 50,
        allocated_bytes: 3,
        mtime: at(82),
        ctime: at(-83),
        ..expected
    };
    assert_eq!(after, expected);
    assert_eq!(meta.inode(before.ino).unwrap(), expected);
    assert_fails!(meta.set_attr(Ino(1 << 40), &set), MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn symlink_keeps_its_target(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let target = b"../some\xffwhere/else";
    let link = NewInode { symlink_target: target, ..new(FileKind::Symlink, 1) };
    let (inode, _) = meta.create(Ino::ROOT, b"link", &link).unwrap();
    assert_eq!(inode.size_bytes, target.len() as u64);
    assert_eq!(meta.symlink_target(inode.ino).unwrap(), target);
    let plain = file(meta, Ino::ROOT, "file").ino;
    assert_fails!(meta.symlink_target(plain), MetaError::NotSymlink { .. });
    let empty = NewInode { symlink_target: b"", ..new(FileKind::Symlink, 1) };
    assert_fails!(meta.create(Ino::ROOT, b"x", &empty), MetaError::BadName { .. });
    meta.unlink(Ino::ROOT, b"link", at(1)).unwrap();
    assert_eq!(meta.symlink_target(inode.ino).unwrap(), target);
    meta.reap(inode.ino).unwrap();
    assert_fails!(meta.symlink_target(inode.ino), MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn reap_refuses_what_has_a_name(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, Ino::ROOT, "file").ino;
    assert_fails!(meta.reap(ino), MetaError::NotOrphan { .. });
    assert_fails!(meta.reap(Ino::ROOT), MetaError::NotOrphan { .. });
}
