//! Damaged records: found by `check`, named by their rule, mended without losing what is left.

use fjall::Slice;
use librorum_format::{Ino, SegmentId};

use super::super::check::{Windows, check_in};
use super::super::engine::Change;
use super::{Embedded, Local};
use crate::conformance::{
    Volume, assert_sound, at, directory, entries, extent, file, new, put, seal,
};
use crate::record::key::Referrer;
use crate::record::{Condemnation, Record, Table, Target, key};
use crate::{Content, FileKind, Inode, Meta, NewContent, NewInode, XattrMode};

/// Writes past all operations.
pub(super) fn write(meta: &Embedded, table: Table, key: &[u8], value: Option<&[u8]>) {
    let mut change = Change::default();
    change.layer.set(table, Slice::from(key), value.map(Slice::from));
    meta.core.engine.append(change).unwrap();
    meta.core.records.clear();
    meta.core.targets.clear();
}

fn rewrite(meta: &Embedded, ino: Ino, change: impl FnOnce(&mut Record)) {
    let mut record = meta.core.record_uncached(ino).unwrap().unwrap();
    change(&mut record);
    write(meta, Table::Inodes, &key::inode(ino), Some(&record.encode()));
}

fn dentry(meta: &Embedded, parent: Ino, name: &str, target: Option<Target>) {
    let key = key::dentry(parent, meta.core.cookie(name.as_bytes()), name.as_bytes());
    write(meta, Table::Dentries, &key, target.map(Target::encode).as_deref());
}

fn check(meta: &Embedded, repair: bool) -> Vec<String> {
    let mut reports = Vec::new();
    // Windows so small that every count needs several.
    let windows = Windows { inodes: 3, pages: 2 };
    check_in(&meta.core, repair, windows, &mut |report| reports.push(report)).unwrap();
    reports
}

/// What every case starts from.
struct Sample {
    dir: Ino,
    sub: Ino,
    deep: Ino,
    plain: Ino,
    sealed: Ino,
    copy: Ino,
    staged: Ino,
    link: Ino,
    inline: Ino,
    orphan: Ino,
}

fn sample(meta: &Embedded) -> Sample {
    let dir = directory(meta, Ino::ROOT, "dir").ino;
    let sub = directory(meta, dir, "sub").ino;
    let deep = directory(meta, sub, "deep").ino;
    let plain = file(meta, dir, "plain").ino;
    meta.link(plain, Ino::ROOT, b"hard", at(1)).unwrap();
    meta.set_xattr(plain, b"user.a", b"a", XattrMode::Set, at(1)).unwrap();
    let sealed = file(meta, sub, "sealed").ino;
    let extents: Vec<_> = (0..1100).map(|index| extent(index * 10, 10, 1 + index / 400)).collect();
    seal(meta, sealed, &extents).unwrap();
    let copy = file(meta, deep, "copy").ino;
    put(meta, copy, NewContent::Sealed { extents: &extents[..512], fresh: &[] }, 5120).unwrap();
    let new_staged = NewInode { staging: Some(SegmentId(9)), ..new(FileKind::Regular, 1) };
    let staged = meta.create(dir, b"staged", &new_staged).unwrap().0.ino;
    let link = meta.create(dir, b"link", &new(FileKind::Symlink, 1)).unwrap().0.ino;
    let inline = file(meta, dir, "inline").ino;
    put(meta, inline, NewContent::Inline(b"bytes"), 5).unwrap();
    let orphan = file(meta, dir, "orphan").ino;
    meta.unlink(dir, b"orphan", at(2)).unwrap();
    meta.condemn(&[SegmentId(50)]).unwrap();
    Sample { dir, sub, deep, plain, sealed, copy, staged, link, inline, orphan }
}

/// Damages a sample, and asserts that the rule is named, that mending leaves nothing to find, and
/// that `after` holds then, and again after reopening.
fn case(rule: &str, damage: impl Fn(&Embedded, &Sample), after: impl Fn(&dyn Meta, &Sample)) {
    let mut volume = Local::new();
    let meta = volume.meta.as_ref().unwrap();
    let sample = sample(meta);
    assert_eq!(check(meta, false), Vec::<String>::new());
    damage(meta, &sample);
    let found = check(meta, false);
    let prefix = format!("{rule}: ");
    assert!(found.iter().any(|report| report.starts_with(&prefix)), "{rule} not in {found:#?}");
    let mended = check(meta, true);
    assert!(mended.iter().all(|report| report.ends_with("; mended")), "{mended:#?}");
    assert_eq!(check(meta, false), Vec::<String>::new(), "after {mended:#?}");
    assert_sound(meta);
    after(meta, &sample);
    volume.reopen();
    assert_sound(volume.meta());
    after(volume.meta(), &sample);
}

fn lost_and_found(meta: &dyn Meta, ino: Ino) -> Inode {
    let shelter = meta.lookup(Ino::ROOT, b"lost+found").unwrap();
    meta.lookup(shelter.ino, format!("#{}", ino.0).as_bytes()).unwrap()
}

#[test]
fn damaged_file_record_keeps_its_extents() {
    let damage = |meta: &Embedded, s: &Sample| {
        write(meta, Table::Inodes, &key::inode(s.sealed), Some(b"\xff garbage"));
    };
    case("M1", damage, |meta, s| {
        let inode = meta.lookup(s.sub, b"sealed").unwrap();
        assert_eq!((inode.ino, inode.size_bytes), (s.sealed, 11_000));
        assert_eq!(meta.extents(s.sealed, 0, u64::MAX).unwrap().len(), 1100);
        assert!(meta.segment_is_named(SegmentId(3)).unwrap());
    });
}

#[test]
fn missing_file_record_is_salvaged_from_its_body() {
    let damage = |meta: &Embedded, s: &Sample| {
        for ino in [s.inline, s.link] {
            write(meta, Table::Inodes, &key::inode(ino), None);
        }
    };
    case("M2", damage, |meta, s| {
        assert_eq!(meta.inline_bytes(s.inline).unwrap(), b"bytes");
        assert_eq!(meta.symlink_target(s.link).unwrap(), b"target");
    });
}

#[test]
fn missing_record_without_anything_else_loses_its_names() {
    let damage = |meta: &Embedded, s: &Sample| {
        write(meta, Table::Inodes, &key::inode(s.plain), None);
    };
    case("M2", damage, |meta, s| {
        assert!(!entries(meta, Ino::ROOT).contains_key(&b"hard"[..]));
        assert!(!entries(meta, s.dir).contains_key(&b"plain"[..]));
    });
}

#[test]
fn missing_directory_keeps_its_entries() {
    let damage = |meta: &Embedded, s: &Sample| {
        write(meta, Table::Inodes, &key::inode(s.sub), None);
    };
    case("M2", damage, |meta, s| {
        assert_eq!(meta.lookup(s.dir, b"sub").unwrap().ino, s.sub);
        assert_eq!(meta.lookup(s.sub, b"sealed").unwrap().ino, s.sealed);
        assert_eq!(meta.lookup(s.sub, b"deep").unwrap().ino, s.deep);
    });
}

#[test]
fn missing_root_keeps_its_entries() {
    let damage = |meta: &Embedded, _: &Sample| {
        write(meta, Table::Inodes, &key::inode(Ino::ROOT), None);
    };
    case("M4", damage, |meta, s| {
        assert_eq!(meta.lookup(Ino::ROOT, b"dir").unwrap().ino, s.dir);
        assert_eq!(meta.lookup(Ino::ROOT, b"hard").unwrap().ino, s.plain);
    });
}

#[test]
fn nameless_inodes_are_taken_in() {
    let damage = |meta: &Embedded, s: &Sample| {
        dentry(meta, s.dir, "sub", None);
        dentry(meta, s.dir, "inline", None);
    };
    case("M4", damage, |meta, s| {
        assert_eq!(lost_and_found(meta, s.inline).ino, s.inline);
        assert_eq!(lost_and_found(meta, s.sub).nlink, 3);
        assert_eq!(meta.lookup(s.sub, b"sealed").unwrap().ino, s.sealed);
    });
}

#[test]
fn dentry_into_nothing_goes() {
    let damage = |meta: &Embedded, s: &Sample| {
        let target = Target { ino: Ino(1 << 33), kind: FileKind::Regular };
        dentry(meta, s.dir, "ghost", Some(target));
    };
    case("M2", damage, |meta, s| assert!(!entries(meta, s.dir).contains_key(&b"ghost"[..])));
}

#[test]
fn dentry_of_another_kind_is_put_right() {
    let damage = |meta: &Embedded, s: &Sample| {
        let target = Target { ino: s.plain, kind: FileKind::Directory };
        dentry(meta, s.dir, "plain", Some(target));
    };
    case("M2", damage, |meta, s| {
        assert_eq!(meta.lookup(s.dir, b"plain").unwrap().ino, s.plain);
    });
}

#[test]
fn dentry_below_a_file_goes() {
    let damage = |meta: &Embedded, s: &Sample| {
        let target = Target { ino: s.plain, kind: FileKind::Regular };
        dentry(meta, s.inline, "odd", Some(target));
    };
    case("M2", damage, |_, _| {});
}

#[test]
fn misplaced_dentry_finds_its_place() {
    let damage = |meta: &Embedded, s: &Sample| {
        dentry(meta, s.dir, "plain", None);
        let key = key::dentry(s.dir, 99, b"plain");
        let target = Target { ino: s.plain, kind: FileKind::Regular };
        write(meta, Table::Dentries, &key, Some(&target.encode()));
    };
    case("M3", damage, |meta, s| {
        assert_eq!(meta.lookup(s.dir, b"plain").unwrap().ino, s.plain);
    });
}

#[test]
fn unreadable_dentry_goes() {
    let damage = |meta: &Embedded, s: &Sample| {
        let key = key::dentry(s.dir, meta.core.cookie(b"plain"), b"plain");
        write(meta, Table::Dentries, &key, Some(b"?"));
        write(meta, Table::Dentries, b"short", Some(b""));
    };
    case("M1", damage, |meta, s| {
        assert_eq!(meta.lookup(Ino::ROOT, b"hard").unwrap().ino, s.plain);
    });
}

#[test]
fn link_counts_are_put_right() {
    let damage = |meta: &Embedded, s: &Sample| {
        rewrite(meta, s.plain, |record| record.inode.nlink = 7);
        rewrite(meta, s.dir, |record| record.inode.nlink = 9);
    };
    case("M4", damage, |meta, s| {
        assert_eq!(meta.inode(s.plain).unwrap().nlink, 2);
        assert_eq!(meta.inode(s.dir).unwrap().nlink, 3);
    });
}

#[test]
fn orphan_with_a_name_lives() {
    let damage = |meta: &Embedded, s: &Sample| {
        rewrite(meta, s.plain, |record| record.inode.nlink = 0);
        rewrite(meta, s.sub, |record| record.inode.nlink = 0);
    };
    case("M4", damage, |meta, s| {
        assert_eq!(meta.inode(s.plain).unwrap().nlink, 2);
        assert_eq!(meta.lookup(s.sub, b"sealed").unwrap().ino, s.sealed);
    });
}

#[test]
fn second_name_of_a_directory_goes() {
    let damage = |meta: &Embedded, s: &Sample| {
        for parent in [Ino::ROOT, s.deep] {
            let target = Target { ino: s.sub, kind: FileKind::Directory };
            dentry(meta, parent, "second", Some(target));
        }
    };
    case("M4", damage, |meta, s| {
        assert_eq!(meta.lookup(s.dir, b"sub").unwrap().ino, s.sub);
        assert!(!entries(meta, s.deep).contains_key(&b"second"[..]));
    });
}

#[test]
fn wrong_parent_and_entry_count_are_put_right() {
    let damage = |meta: &Embedded, s: &Sample| {
        rewrite(meta, s.deep, |record| record.inode.parent = s.dir);
    };
    case("M5", damage, |meta, s| assert_eq!(meta.inode(s.deep).unwrap().parent, s.sub));
    let damage = |meta: &Embedded, s: &Sample| {
        rewrite(meta, s.dir, |record| record.entry_count = 0);
    };
    case("M6", damage, |meta, s| {
        assert!(meta.rmdir(Ino::ROOT, b"dir", at(1)).is_err(), "{} has entries", s.dir);
    });
}

#[test]
fn circle_of_directories_is_cut() {
    let damage = |meta: &Embedded, s: &Sample| {
        // `sub` moves below its own child, and nothing above leads there any more.
        dentry(meta, s.dir, "sub", None);
        let target = Target { ino: s.sub, kind: FileKind::Directory };
        dentry(meta, s.deep, "loop", Some(target));
        rewrite(meta, s.sub, |record| record.inode.parent = s.deep);
        rewrite(meta, s.dir, |record| (record.inode.nlink, record.entry_count) = (2, 4));
        rewrite(meta, s.deep, |record| (record.inode.nlink, record.entry_count) = (3, 2));
    };
    case("M7", damage, |meta, s| {
        assert_eq!(lost_and_found(meta, s.sub).ino, s.sub);
        assert_eq!(meta.lookup(s.sub, b"deep").unwrap().ino, s.deep);
    });
}

#[test]
fn sets_are_put_right() {
    let damage = |meta: &Embedded, s: &Sample| {
        write(meta, Table::Small, &key::orphan(s.orphan), None);
        write(meta, Table::Small, &key::orphan(s.plain), Some(b""));
        write(meta, Table::Small, &key::orphan(Ino(1 << 40)), Some(b""));
    };
    case("M8", damage, |meta, s| {
        assert_eq!(meta.orphans(Ino(0), 10).unwrap(), [s.orphan]);
    });
    let damage = |meta: &Embedded, s: &Sample| {
        write(meta, Table::Small, &key::staged(s.staged), None);
        write(meta, Table::Small, &key::staged(s.plain), Some(b""));
    };
    case("M9", damage, |meta, s| assert_eq!(meta.staged(Ino(0), 10).unwrap(), [s.staged]));
}

#[test]
fn left_over_bodies_go_and_their_segments_too() {
    let damage = |meta: &Embedded, s: &Sample| {
        rewrite(meta, s.sealed, |record| record.inode.content = Content::Empty);
    };
    case("M10", damage, |meta, s| {
        assert!(meta.segment_is_named(SegmentId(1)).unwrap(), "{} has it", s.copy);
        assert!(!meta.segment_is_named(SegmentId(3)).unwrap());
        let condemned = meta.condemned(SegmentId(0), 10).unwrap();
        assert!(condemned.iter().any(|condemned| condemned.segment == SegmentId(3)));
    });
}

#[test]
fn page_counts_are_put_right() {
    let damage = |meta: &Embedded, s: &Sample| {
        let pages = meta.extents(s.sealed, 0, u64::MAX).unwrap();
        for (run, count) in
            pages.chunks(512).zip([Some(&5_u64.to_le_bytes()[..]), None, Some(b"?")])
        {
            let (page, _) = librorum_format::encode_page(run);
            write(meta, Table::References, &key::page_count(page), count);
        }
    };
    case("M12", damage, |meta, s| {
        put(meta, s.sealed, NewContent::Empty, 0).unwrap();
        put(meta, s.sealed, NewContent::Inline(b""), 0).unwrap();
        assert_eq!(meta.extents(s.copy, 0, u64::MAX).unwrap().len(), 512);
    });
}

#[test]
fn stray_page_goes() {
    let damage = |meta: &Embedded, _: &Sample| {
        let (page, bytes) = librorum_format::encode_page(&[extent(5, 5, 77)]);
        write(meta, Table::Pages, &page.0, Some(&bytes));
    };
    case("M12", damage, |meta, _| assert!(!meta.segment_is_named(SegmentId(77)).unwrap()));
}

#[test]
fn references_are_put_right() {
    let damage = |meta: &Embedded, s: &Sample| {
        let (page, _) = librorum_format::encode_page(&meta.extents(s.copy, 0, u64::MAX).unwrap());
        for (segment, referrer, value) in [
            (1, Referrer::Page(page), None),
            (60, Referrer::Page(page), Some(&b""[..])),
            (61, Referrer::Inode(s.plain), Some(&b""[..])),
            (9, Referrer::Inode(s.staged), None),
        ] {
            let key = key::reference(SegmentId(segment), referrer);
            write(meta, Table::References, &key, value);
        }
    };
    case("M13", damage, |meta, _| {
        for (segment, named) in [(1, true), (60, false), (61, false), (9, true)] {
            assert_eq!(meta.segment_is_named(SegmentId(segment)).unwrap(), named, "{segment}");
        }
    });
}

#[test]
fn named_segment_is_not_condemned() {
    let damage = |meta: &Embedded, _: &Sample| {
        for (segment, claimed) in [(1, false), (2, true)] {
            let value = Condemnation { txn: meta.newest_txn(), claimed }.encode();
            write(meta, Table::Small, &key::condemned(SegmentId(segment)), Some(&value));
        }
    };
    case("M14", damage, |meta, _| {
        assert_eq!(meta.condemned(SegmentId(0), 10).unwrap().len(), 1);
        assert!(!meta.claim_condemned(SegmentId(1)).unwrap());
    });
}

#[test]
fn attributes_are_put_right() {
    let damage = |meta: &Embedded, s: &Sample| {
        rewrite(meta, s.plain, |record| record.inode.has_xattrs = false);
        rewrite(meta, s.inline, |record| record.inode.has_xattrs = true);
        write(meta, Table::Xattrs, &key::xattr(Ino(1 << 40), b"user.x"), Some(b"x"));
    };
    case("M15", damage, |meta, s| {
        assert_eq!(meta.xattr(s.plain, b"user.a").unwrap(), b"a");
        assert!(!meta.inode(s.inline).unwrap().has_xattrs);
    });
}

#[test]
fn counters_are_put_right() {
    let damage = |meta: &Embedded, _: &Sample| {
        meta.core.engine.set_stats(crate::MetaStats::default()).unwrap();
    };
    case("M16", damage, |meta, _| assert_eq!(meta.stats().directory_count, 4));
}

#[test]
fn number_above_the_bound_is_noticed() {
    let damage = |meta: &Embedded, s: &Sample| {
        let mut record = meta.core.record_uncached(s.inline).unwrap().unwrap();
        record.inode.ino = Ino(1 << 30);
        record.inode.content = Content::Empty;
        write(meta, Table::Inodes, &key::inode(Ino(1 << 30)), Some(&record.encode()));
    };
    case("M17", damage, |meta, _| {
        assert_eq!(lost_and_found(meta, Ino(1 << 30)).kind, FileKind::Regular);
        let name = format!("new {}", meta.newest_txn().0);
        assert!(file(meta, Ino::ROOT, &name).ino > Ino(1 << 30));
    });
}

#[test]
fn impossible_content_is_dropped() {
    let damage = |meta: &Embedded, s: &Sample| {
        rewrite(meta, s.dir, |record| record.inode.content = Content::Inline);
    };
    case("M18", damage, |meta, s| assert_eq!(meta.inode(s.dir).unwrap().content, Content::Empty));
}

/// Lost bytes are never mended into zeros: the file goes on failing.
#[test]
fn damaged_pages_and_bodies_stay_unreadable() {
    let volume = Local::new();
    let meta = volume.meta.as_ref().unwrap();
    let s = sample(meta);
    let extents = meta.extents(s.sealed, 0, u64::MAX).unwrap();
    let (page, mut bytes) = librorum_format::encode_page(&extents[512..1024]);
    bytes[100] ^= 1;
    write(meta, Table::Pages, &page.0, Some(&bytes));
    write(meta, Table::Bodies, &key::inode(s.inline), None);
    for repair in [false, true, true] {
        let reports = check(meta, repair);
        assert!(reports.iter().any(|report| report.starts_with("M11: ")), "{reports:#?}");
        assert!(reports.iter().any(|report| report.starts_with("M10: ")), "{reports:#?}");
    }
    assert!(meta.extents(s.sealed, 0, u64::MAX).is_err());
    assert!(meta.extents(s.sealed, 0, 5120).is_ok(), "the first page is whole");
    assert!(meta.inline_bytes(s.inline).is_err());
    assert!(meta.dump(&mut Vec::new()).is_err());
    assert!(meta.segment_is_named(SegmentId(2)).unwrap(), "its bytes must not be swept");
}
