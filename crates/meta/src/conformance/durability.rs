//! Order, durability, concurrency, dumps.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use librorum_format::{Ino, SegmentId, TxnId};

use super::{
    Volume, assert_fails, assert_sound, at, condemned, directory, entries, extent, file, new, put,
    rename, seal,
};
use crate::{FileKind, Meta, MetaError, NewContent, NewInode, RenameMode, XattrMode};

const ROOT: Ino = Ino::ROOT;

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn positions_grow_and_sync_covers_them(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let mut last = meta.newest_txn();
    assert!(last > TxnId(0));
    for index in 0..10 {
        let name = format!("{index}");
        let (_, txn) = meta.create(ROOT, name.as_bytes(), &new(FileKind::Regular, 1)).unwrap();
        assert!(txn > last);
        assert_eq!(meta.newest_txn(), txn);
        last = txn;
    }
    assert!(meta.durable_txn() <= last);
    assert!(meta.sync().unwrap() >= last);
    assert!(meta.durable_txn() >= last);
    // With nothing to do.
    assert_eq!(meta.sync().unwrap(), meta.durable_txn());
}

/// One of everything.
fn populate(meta: &dyn Meta) {
    let dir = directory(meta, ROOT, "directory").ino;
    for index in 0..40 {
        file(meta, dir, &format!("file {index}"));
    }
    let inline = file(meta, dir, "inline").ino;
    put(meta, inline, NewContent::Inline(b"small"), 5).unwrap();
    meta.set_xattr(inline, b"user.a", b"value", XattrMode::Set, at(3)).unwrap();
    meta.link(inline, ROOT, b"hard link", at(4)).unwrap();
    let sealed = file(meta, dir, "sealed").ino;
    let extents: Vec<_> = (0..600).map(|index| extent(index * 10, 9, 1 + index / 300)).collect();
    seal(meta, sealed, &extents).unwrap();
    let copy = file(meta, dir, "copy").ino;
    put(meta, copy, NewContent::Sealed { extents: &extents, fresh: &[] }, 6000).unwrap();
    let overlay = NewContent::Overlay { segment: SegmentId(8), base_len_bytes: 50 };
    put(meta, copy, overlay, 6001).unwrap();
    let staged = NewInode { staging: Some(SegmentId(9)), ..new(FileKind::Regular, 1) };
    meta.create(dir, b"staged", &staged).unwrap();
    meta.create(dir, b"link", &new(FileKind::Symlink, 1)).unwrap();
    let gone = file(meta, dir, "gone").ino;
    seal(meta, gone, &[extent(0, 10, 20)]).unwrap();
    meta.unlink(dir, b"gone", at(5)).unwrap();
    let emptied = file(meta, dir, "emptied").ino;
    seal(meta, emptied, &[extent(0, 10, 30)]).unwrap();
    put(meta, emptied, NewContent::Empty, 0).unwrap();
    seal(meta, emptied, &[extent(0, 10, 31)]).unwrap();
    put(meta, emptied, NewContent::Empty, 0).unwrap();
    assert!(meta.claim_condemned(SegmentId(31)).unwrap());
    let device = NewInode { rdev: 0x0103, ..new(FileKind::CharDevice, 1) };
    meta.create(dir, b"device", &device).unwrap();
}

/// All that the trait can tell about a volume, as text.
fn describe(meta: &dyn Meta) -> Vec<String> {
    let mut lines = Vec::new();
    let mut after = Ino(0);
    loop {
        let page = meta.inodes(after, 100).unwrap();
        let Some(last) = page.last() else { break };
        after = last.ino;
        for inode in page {
            let ino = inode.ino;
            lines.push(format!("{inode:?}"));
            lines.push(format!("{:?}", meta.extents(ino, 0, u64::MAX).unwrap()));
            if inode.content == crate::Content::Inline {
                lines.push(format!("{:?}", meta.inline_bytes(ino).unwrap()));
            }
            if inode.kind == FileKind::Symlink {
                lines.push(format!("{:?}", meta.symlink_target(ino).unwrap()));
            }
            if inode.kind == FileKind::Directory {
                lines.push(format!("{:?}", entries(meta, ino)));
            }
            for name in meta.xattr_names(ino).unwrap() {
                let value = meta.xattr(ino, &name).unwrap();
                lines.push(format!("{ino:?} {name:?} {value:?}"));
            }
        }
    }
    lines.push(format!("{:?}", meta.orphans(Ino(0), usize::MAX).unwrap()));
    lines.push(format!("{:?}", meta.staged(Ino(0), usize::MAX).unwrap()));
    lines.push(format!("{:?}", condemned(meta)));
    lines.push(format!("{:?}", meta.stats()));
    lines
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn everything_survives_reopening(volume: &mut dyn Volume) {
    populate(volume.meta());
    let before = describe(volume.meta());
    let newest = volume.meta().newest_txn();
    assert_sound(volume.meta());
    for _ in 0..3 {
        volume.reopen();
        assert_eq!(describe(volume.meta()), before);
        assert!(volume.meta().newest_txn() >= newest);
        assert_sound(volume.meta());
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn numbers_are_never_reused(volume: &mut dyn Volume) {
    let mut seen = BTreeSet::from([ROOT]);
    for round in 0..4 {
        for index in 0..10 {
            let name = format!("{round} {index}");
            let ino = file(volume.meta(), ROOT, &name).ino;
            assert!(seen.insert(ino), "{ino:?} was used before");
            volume.meta().unlink(ROOT, name.as_bytes(), at(1)).unwrap();
            volume.meta().reap(ino).unwrap();
        }
        volume.reopen();
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn concurrent_creates_all_happen(volume: &mut dyn Volume) {
    {
        let meta = volume.meta();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for index in 0..200 {
                        file(meta, ROOT, &format!("{thread}-{index}"));
                        if index % 50 == 0 {
                            meta.sync().unwrap();
                        }
                    }
                });
            }
            scope.spawn(move || {
                for _ in 0..50 {
                    entries(meta, ROOT);
                }
            });
        });
        assert_eq!(entries(meta, ROOT).len(), 800);
        assert_eq!(meta.stats().inode_count, 801);
    }
    volume.reopen();
    assert_eq!(entries(volume.meta(), ROOT).len(), 800);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn concurrent_renames_keep_the_tree_a_tree(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let names = ["a", "b", "c", "d"];
    let dirs = names.map(|name| directory(meta, ROOT, name).ino);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            scope.spawn(move || {
                // Everybody moves everybody into everybody else, and most of it is refused.
                for step in 0..300_usize {
                    let (from, to) = ((step + thread) % 4, (step * 7 + thread * 3 + 1) % 4);
                    let target = if step % 3 == 0 { ROOT } else { dirs[to] };
                    for parent in [ROOT, dirs[0], dirs[1], dirs[2], dirs[3]] {
                        let (from, to) = ((parent, names[from]), (target, names[from]));
                        if let Err(error) = rename(meta, from, to, RenameMode::Replace) {
                            let expected = matches!(
                                error,
                                MetaError::NoEntry { .. }
                                    | MetaError::IntoItself { .. }
                                    | MetaError::NotEmpty { .. }
                                    | MetaError::NoInode { .. }
                            );
                            assert!(expected, "{error:?}");
                        }
                    }
                }
            });
        }
    });
    assert_sound(meta);
    assert_eq!(meta.stats().directory_count, 5);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn one_of_many_concurrent_creators_wins(volume: &mut dyn Volume) {
    let meta = volume.meta();
    for round in 0..50 {
        let name = format!("{round}");
        let won: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let created =
                            meta.create(ROOT, name.as_bytes(), &new(FileKind::Regular, 1));
                        match created {
                            Ok(_) => 1,
                            Err(MetaError::Exists { .. }) => 0,
                            Err(error) => panic!("{error:?}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(won, 1);
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn concurrent_syncs_all_return(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        for thread in 0..3 {
            scope.spawn(move || {
                for index in 0..30 {
                    let name = format!("{thread}-{index}");
                    let new = new(FileKind::Regular, 1);
                    let (_, txn) = meta.create(ROOT, name.as_bytes(), &new).unwrap();
                    assert!(meta.sync().unwrap() >= txn);
                    assert!(meta.durable_txn() >= txn);
                }
            });
        }
        scope.spawn(move || {
            let mut last = TxnId(0);
            while !stop.load(Ordering::Relaxed) {
                let (durable, newest) = (meta.durable_txn(), meta.newest_txn());
                assert!(durable >= last && durable <= newest);
                last = durable;
                if meta.stats().inode_count > 90 {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        });
    });
}

/// The dump of one volume, for loading it into another.
fn dump_of(meta: &dyn Meta) -> Vec<u8> {
    let mut bytes = Vec::new();
    let txn = meta.dump(&mut bytes).unwrap();
    assert!(txn >= meta.durable_txn());
    bytes
}

/// Loads a dump of a full volume, emptied again of everything but its root, back into itself.
pub fn dump_loads_into_an_equal_volume(volume: &mut dyn Volume) {
    populate(volume.meta());
    let (dump, before) = (dump_of(volume.meta()), describe(volume.meta()));
    empty(volume.meta());
    volume.meta().load(&mut dump.as_slice()).unwrap();
    assert_eq!(describe(volume.meta()), before);
    assert_sound(volume.meta());
    volume.reopen();
    assert_eq!(describe(volume.meta()), before);
    assert_eq!(dump_of(volume.meta()).len(), dump.len());
    let fresh = file(volume.meta(), ROOT, "after the load");
    assert!(volume.meta().inodes(fresh.ino, 1).unwrap().is_empty(), "numbers go on behind");
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn damaged_dump_is_refused(volume: &mut dyn Volume) {
    let meta = volume.meta();
    populate(meta);
    let dump = dump_of(meta);
    empty(meta);
    let before = describe(meta);
    for at in [0, 9, dump.len() / 3, dump.len() / 2, dump.len() - 1] {
        let mut damaged = dump.clone();
        damaged[at] ^= 0x40;
        assert!(meta.load(&mut damaged.as_slice()).is_err(), "flipped at {at}");
        assert!(meta.load(&mut &dump[..at]).is_err(), "cut at {at}");
        assert_eq!(describe(meta), before, "damaged at {at}");
    }
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn dump_loads_only_into_an_empty_volume(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let dump = dump_of(meta);
    file(meta, ROOT, "file");
    assert_fails!(meta.load(&mut dump.as_slice()), MetaError::NotEmpty { .. });
}

/// Removes everything, orphans and condemned segments too.
fn empty(meta: &dyn Meta) {
    fn clear(meta: &dyn Meta, dir: Ino) {
        for (name, ino) in entries(meta, dir) {
            if meta.inode(ino).unwrap().kind == FileKind::Directory {
                clear(meta, ino);
                meta.rmdir(dir, &name, at(1)).unwrap();
            } else {
                meta.unlink(dir, &name, at(1)).unwrap();
            }
        }
    }
    clear(meta, ROOT);
    for orphan in meta.orphans(Ino(0), usize::MAX).unwrap() {
        meta.reap(orphan).unwrap();
    }
    for condemned in meta.condemned(SegmentId(0), usize::MAX).unwrap() {
        assert!(meta.claim_condemned(condemned.segment).unwrap());
        meta.forget_segments(&[condemned.segment]).unwrap();
    }
    assert_eq!(meta.stats().inode_count, 1);
}
