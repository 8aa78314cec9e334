//! Renames.

use librorum_format::Ino;

use super::{Volume, assert_fails, at, directory, entries, file, rename};
use crate::MetaError;
use crate::RenameMode::{Exchange, NoReplace, Replace};

const ROOT: Ino = Ino::ROOT;

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn rename_moves_an_entry(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, ROOT, "old").ino;
    let elsewhere = directory(meta, ROOT, "elsewhere").ino;
    let renamed = rename(meta, (ROOT, "old"), (elsewhere, "new"), Replace).unwrap();
    assert_eq!((renamed.moved.ino, renamed.moved.ctime), (ino, at(50)));
    assert!(renamed.replaced.is_none());
    assert_fails!(meta.lookup(ROOT, b"old"), MetaError::NoEntry { .. });
    assert_eq!(meta.lookup(elsewhere, b"new").unwrap().ino, ino);
    for dir in [ROOT, elsewhere] {
        let inode = meta.inode(dir).unwrap();
        assert_eq!((inode.mtime, inode.ctime), (at(50), at(50)));
    }
    assert_eq!(meta.inode(ROOT).unwrap().nlink, 3);
    // Within one directory too.
    rename(meta, (elsewhere, "new"), (elsewhere, "newer"), Replace).unwrap();
    assert_eq!(entries(meta, elsewhere).keys().collect::<Vec<_>>(), [b"newer"]);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn rename_replaces_a_file(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let (moved, replaced) = (file(meta, ROOT, "a").ino, file(meta, ROOT, "b").ino);
    let renamed = rename(meta, (ROOT, "a"), (ROOT, "b"), Replace).unwrap();
    let gone = renamed.replaced.unwrap();
    assert_eq!((gone.ino, gone.nlink, gone.ctime), (replaced, 0, at(50)));
    assert_eq!(meta.lookup(ROOT, b"b").unwrap().ino, moved);
    assert_eq!(meta.orphans(Ino(0), 10).unwrap(), [replaced]);
    assert_eq!(entries(meta, ROOT).len(), 1);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn rename_of_a_missing_name_fails(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let plain = file(meta, ROOT, "file").ino;
    for mode in [Replace, NoReplace, Exchange] {
        let renamed = rename(meta, (ROOT, "nothing"), (ROOT, "new"), mode);
        assert_fails!(renamed, MetaError::NoEntry { .. });
    }
    let renamed = rename(meta, (ROOT, "file"), (ROOT, "nothing"), Exchange);
    assert_fails!(renamed, MetaError::NoEntry { .. });
    let renamed = rename(meta, (ROOT, "file"), (plain, "new"), Replace);
    assert_fails!(renamed, MetaError::NotDirectory { .. });
    let renamed = rename(meta, (ROOT, "file"), (Ino(1 << 40), "new"), Replace);
    assert_fails!(renamed, MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn rename_keeps_directories_and_files_apart(volume: &mut dyn Volume) {
    let meta = volume.meta();
    file(meta, ROOT, "file");
    directory(meta, ROOT, "directory");
    let renamed = rename(meta, (ROOT, "directory"), (ROOT, "file"), Replace);
    assert_fails!(renamed, MetaError::NotDirectory { .. });
    let renamed = rename(meta, (ROOT, "file"), (ROOT, "directory"), Replace);
    assert_fails!(renamed, MetaError::IsDirectory { .. });
    assert_eq!(entries(meta, ROOT).len(), 2);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn rename_replaces_only_empty_directories(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let moved = directory(meta, ROOT, "moved").ino;
    let full = directory(meta, ROOT, "full").ino;
    file(meta, full, "file");
    let renamed = rename(meta, (ROOT, "moved"), (ROOT, "full"), Replace);
    assert_fails!(renamed, MetaError::NotEmpty { .. });
    meta.unlink(full, b"file", at(1)).unwrap();
    let renamed = rename(meta, (ROOT, "moved"), (ROOT, "full"), Replace).unwrap();
    let gone = renamed.replaced.unwrap();
    assert_eq!((gone.ino, gone.nlink), (full, 0));
    assert_eq!(meta.inode(ROOT).unwrap().nlink, 3);
    assert_eq!(meta.lookup(ROOT, b"full").unwrap().ino, moved);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn rename_moves_a_directory_and_its_link(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let (a, b) = (directory(meta, ROOT, "a").ino, directory(meta, ROOT, "b").ino);
    let child = directory(meta, a, "child").ino;
    assert_eq!(meta.inode(a).unwrap().nlink, 3);
    let renamed = rename(meta, (a, "child"), (b, "child"), Replace).unwrap();
    assert_eq!(renamed.moved.parent, b);
    assert_eq!((meta.inode(a).unwrap().nlink, meta.inode(b).unwrap().nlink), (2, 3));
    assert_eq!(meta.inode(child).unwrap().parent, b);
    meta.rmdir(ROOT, b"a", at(1)).unwrap();
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn rename_refuses_to_move_a_directory_below_itself(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let a = directory(meta, ROOT, "a").ino;
    let b = directory(meta, a, "b").ino;
    let c = directory(meta, b, "c").ino;
    for parent in [a, b, c] {
        let renamed = rename(meta, (ROOT, "a"), (parent, "new"), Replace);
        assert_fails!(renamed, MetaError::IntoItself { .. });
    }
    file(meta, c, "file");
    let renamed = rename(meta, (ROOT, "a"), (c, "file"), Exchange);
    assert_fails!(renamed, MetaError::IntoItself { .. });
    let renamed = rename(meta, (c, "file"), (ROOT, "a"), Exchange);
    assert_fails!(renamed, MetaError::IntoItself { .. });
}

/// The replaced directory is also the one that the entry leaves: taken out first, it would look
/// empty.
pub fn rename_onto_the_own_parent_fails(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let a = directory(meta, ROOT, "a").ino;
    directory(meta, a, "b");
    let renamed = rename(meta, (a, "b"), (ROOT, "a"), Replace);
    assert_fails!(renamed, MetaError::NotEmpty { .. });
    file(meta, a, "file");
    let renamed = rename(meta, (a, "file"), (ROOT, "a"), Replace);
    assert_fails!(renamed, MetaError::IsDirectory { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn rename_between_names_of_one_inode_changes_nothing(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, ROOT, "a").ino;
    let (before, _) = meta.link(ino, ROOT, b"b", at(5)).unwrap();
    for mode in [Replace, Exchange] {
        for to in ["a", "b"] {
            let renamed = rename(meta, (ROOT, "a"), (ROOT, to), mode).unwrap();
            assert_eq!(renamed.moved, before);
        }
    }
    assert_eq!(meta.inode(ino).unwrap(), before);
    assert_eq!(entries(meta, ROOT).len(), 2);
    let renamed = rename(meta, (ROOT, "a"), (ROOT, "b"), NoReplace);
    assert_fails!(renamed, MetaError::Exists { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn no_replace_refuses_an_existing_target(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let a = file(meta, ROOT, "a").ino;
    file(meta, ROOT, "b");
    let renamed = rename(meta, (ROOT, "a"), (ROOT, "b"), NoReplace);
    assert_fails!(renamed, MetaError::Exists { .. });
    rename(meta, (ROOT, "a"), (ROOT, "c"), NoReplace).unwrap();
    assert_eq!(meta.lookup(ROOT, b"c").unwrap().ino, a);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn exchange_swaps_files_and_directories(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let (a, b) = (directory(meta, ROOT, "a").ino, directory(meta, ROOT, "b").ino);
    let sub = directory(meta, a, "sub").ino;
    file(meta, sub, "inner");
    let plain = file(meta, b, "file").ino;
    let renamed = rename(meta, (a, "sub"), (b, "file"), Exchange).unwrap();
    assert_eq!((renamed.moved.ino, renamed.replaced.unwrap().ino), (sub, plain));
    assert_eq!(meta.lookup(a, b"sub").unwrap().ino, plain);
    assert_eq!(meta.lookup(b, b"file").unwrap().ino, sub);
    assert_eq!((meta.inode(a).unwrap().nlink, meta.inode(b).unwrap().nlink), (2, 3));
    assert_eq!(meta.inode(sub).unwrap().parent, b);
    assert_eq!(meta.inode(plain).unwrap().nlink, 1);
    // Two in one directory.
    let other = file(meta, b, "other").ino;
    rename(meta, (b, "file"), (b, "other"), Exchange).unwrap();
    assert_eq!(meta.lookup(b, b"file").unwrap().ino, other);
    assert_eq!(meta.lookup(b, b"other").unwrap().ino, sub);
    assert_eq!(meta.inode(b).unwrap().nlink, 3);
}
