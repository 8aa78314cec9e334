//! Content, and the segments that it names.

use librorum_format::{Extent, Ino, SegmentId};

use super::{Volume, assert_fails, at, condemned, extent, file, new, put, seal};
use crate::{Content, FileKind, Meta, MetaError, NewContent, NewInode, SetAttr, SetContent};

const ROOT: Ino = Ino::ROOT;

fn staged(meta: &dyn Meta, name: &str, segment: u64) -> Ino {
    let new = NewInode { staging: Some(SegmentId(segment)), ..new(FileKind::Regular, 1) };
    meta.create(ROOT, name.as_bytes(), &new).unwrap().0.ino
}

fn is_named(meta: &dyn Meta, segment: u64) -> bool {
    meta.segment_is_named(SegmentId(segment)).unwrap()
}

fn is_owned(meta: &dyn Meta, segment: u64, ino: Ino) -> bool {
    meta.segment_is_owned_by(SegmentId(segment), ino).unwrap()
}

fn all_extents(meta: &dyn Meta, ino: Ino) -> Vec<Extent> {
    meta.extents(ino, 0, u64::MAX).unwrap()
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn inline_bytes_round_trip(volume: &mut dyn Volume) {
    let ino = file(volume.meta(), ROOT, "file").ino;
    let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
    {
        let meta = volume.meta();
        assert_fails!(meta.inline_bytes(ino), MetaError::StaleContent { .. });
        let change = SetContent {
            ino,
            expected_version: meta.inode(ino).unwrap().content_version,
            content: NewContent::Inline(&bytes),
            size_bytes: 4096,
            allocated_bytes: 100,
            mtime: Some(at(71)),
            ctime: Some(at(72)),
        };
        let (inode, _) = meta.set_content(&change).unwrap();
        assert_eq!((inode.content, inode.size_bytes), (Content::Inline, 4096));
        assert_eq!((inode.allocated_bytes, inode.mtime, inode.ctime), (100, at(71), at(72)));
        assert_eq!(meta.inode(ino).unwrap(), inode);
        assert!(all_extents(meta, ino).is_empty());
        let put = put(meta, ino, NewContent::Inline(b"abc"), 4);
        assert_fails!(put, MetaError::BadContent { .. });
    }
    volume.reopen();
    let meta = volume.meta();
    assert_eq!(meta.inline_bytes(ino).unwrap(), bytes);
    put(meta, ino, NewContent::Empty, 10).unwrap();
    assert_fails!(meta.inline_bytes(ino), MetaError::StaleContent { .. });
    put(meta, ino, NewContent::Inline(b""), 0).unwrap();
    assert_eq!(meta.inline_bytes(ino).unwrap(), b"");
    assert_fails!(meta.inline_bytes(Ino(1 << 40)), MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn stale_content_is_refused(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let before = file(meta, ROOT, "file");
    let change = SetContent {
        ino: before.ino,
        expected_version: before.content_version,
        content: NewContent::Inline(b"new"),
        size_bytes: 3,
        allocated_bytes: 3,
        mtime: None,
        ctime: None,
    };
    let (after, _) = meta.set_content(&change).unwrap();
    assert_eq!(after.content_version, before.content_version + 1);
    assert_eq!((after.mtime, after.ctime), (before.mtime, before.ctime));
    assert_fails!(meta.set_content(&change), MetaError::StaleContent { .. });
    let change = SetContent { content: NewContent::Empty, ..change };
    assert_fails!(meta.set_content(&change), MetaError::StaleContent { .. });
    assert_eq!(meta.inline_bytes(before.ino).unwrap(), b"new");
    // Attributes are not content.
    meta.set_attr(before.ino, &SetAttr { mode: Some(0), ..SetAttr::default() }).unwrap();
    assert_eq!(meta.inode(before.ino).unwrap().content_version, after.content_version);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn content_is_for_regular_files(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let link = meta.create(ROOT, b"link", &new(FileKind::Symlink, 1)).unwrap().0.ino;
    for ino in [ROOT, link] {
        let put = put(meta, ino, NewContent::Inline(b"x"), 1);
        assert_fails!(put, MetaError::NotRegular { .. });
    }
    let staged = NewInode { staging: Some(SegmentId(9)), ..new(FileKind::Directory, 1) };
    assert_fails!(meta.create(ROOT, b"x", &staged), MetaError::BadContent { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn staged_files_are_listed(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let first = staged(meta, "first", 5);
    let second = file(meta, ROOT, "second").ino;
    put(meta, second, NewContent::Staged { segment: SegmentId(6) }, 0).unwrap();
    assert_eq!(meta.inode(first).unwrap().content, Content::Staged { segment: SegmentId(5) });
    assert_eq!(meta.staged(Ino(0), 10).unwrap(), [first, second]);
    assert_eq!(meta.staged(Ino(0), 1).unwrap(), [first]);
    assert_eq!(meta.staged(first, 10).unwrap(), [second]);
    assert!(is_named(meta, 5) && is_named(meta, 6));
    put(meta, first, NewContent::Empty, 0).unwrap();
    assert_eq!(meta.staged(Ino(0), 10).unwrap(), [second]);
    assert!(!is_named(meta, 5));
    assert_eq!(condemned(meta), [5]);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn extents_come_back_in_ranges(volume: &mut dyn Volume) {
    let ino = file(volume.meta(), ROOT, "file").ino;
    // Three pages, with a hole of 10 behind every run of 90.
    let extents: Vec<Extent> =
        (0..1200).map(|index| extent(index * 100, 90, 1 + index / 500)).collect();
    let inode = seal(volume.meta(), ino, &extents).unwrap();
    assert_eq!((inode.content, inode.size_bytes), (Content::Sealed, 119_990));
    volume.reopen();
    let meta = volume.meta();
    assert_eq!(all_extents(meta, ino), extents);
    assert_eq!(meta.extents(ino, 0, 1).unwrap(), extents[..1]);
    assert_eq!(meta.extents(ino, 89, 101).unwrap(), extents[..2]);
    assert_eq!(meta.extents(ino, 90, 100).unwrap(), []);
    assert_eq!(meta.extents(ino, 51_150, 51_250).unwrap(), extents[511..513]);
    assert_eq!(meta.extents(ino, 119_989, 119_990).unwrap(), extents[1199..]);
    assert_eq!(meta.extents(ino, 119_990, u64::MAX).unwrap(), []);
    assert_eq!(meta.extents(ino, 500, 500).unwrap(), []);
    assert_fails!(meta.extents(Ino(1 << 40), 0, 1), MetaError::NoInode { .. });
    assert!(is_named(meta, 1) && is_named(meta, 2) && is_named(meta, 3) && !is_named(meta, 4));
    // No extents at all is content too.
    put(meta, ino, NewContent::Sealed { extents: &[], fresh: &[] }, 77).unwrap();
    assert!(all_extents(meta, ino).is_empty());
    assert_eq!(condemned(meta), [1, 2, 3]);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn invalid_extents_are_refused(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, ROOT, "file").ino;
    let overlapping = [extent(0, 10, 1), extent(9, 10, 1)];
    assert_fails!(seal(meta, ino, &overlapping), MetaError::BadContent { .. });
    assert_fails!(seal(meta, ino, &[extent(0, 0, 1)]), MetaError::BadContent { .. });
    let extents = [extent(0, 10, 1)];
    let sealed = NewContent::Sealed { extents: &extents, fresh: &[SegmentId(1)] };
    assert_fails!(put(meta, ino, sealed, 9), MetaError::BadContent { .. });
    assert_eq!(meta.inode(ino).unwrap().content, Content::Empty);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn overlay_keeps_the_base(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, ROOT, "file").ino;
    let extents = [extent(0, 100, 1), extent(100, 100, 2)];
    seal(meta, ino, &extents).unwrap();
    let overlay = |base_len_bytes| NewContent::Overlay { segment: SegmentId(7), base_len_bytes };
    let inode = put(meta, ino, overlay(200), 200).unwrap();
    assert_eq!(inode.content, Content::Overlay { segment: SegmentId(7), base_len_bytes: 200 });
    assert_eq!(all_extents(meta, ino), extents);
    assert_eq!(meta.staged(Ino(0), 10).unwrap(), [ino]);
    put(meta, ino, overlay(150), 150).unwrap();
    assert_fails!(put(meta, ino, overlay(151), 151), MetaError::BadContent { .. });
    let other = NewContent::Overlay { segment: SegmentId(8), base_len_bytes: 100 };
    assert_fails!(put(meta, ino, other, 100), MetaError::BadContent { .. });
    assert_eq!(condemned(meta), []);
    // Sealed again, half of it as before.
    let sealed = [extents[0], extent(100, 50, 7)];
    let content = NewContent::Sealed { extents: &sealed, fresh: &[SegmentId(7)] };
    put(meta, ino, content, 150).unwrap();
    assert_eq!(all_extents(meta, ino), sealed);
    assert_eq!(condemned(meta), [2]);
    assert!(meta.staged(Ino(0), 10).unwrap().is_empty());
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn overlay_needs_a_base(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, ROOT, "file").ino;
    let overlay = NewContent::Overlay { segment: SegmentId(7), base_len_bytes: 0 };
    assert_fails!(put(meta, ino, overlay, 0), MetaError::BadContent { .. });
    put(meta, ino, NewContent::Inline(b"x"), 1).unwrap();
    assert_fails!(put(meta, ino, overlay, 0), MetaError::BadContent { .. });
    put(meta, ino, NewContent::Staged { segment: SegmentId(7) }, 0).unwrap();
    assert_fails!(put(meta, ino, overlay, 0), MetaError::BadContent { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn size_changes_only_where_no_byte_is_cut(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, ROOT, "file").ino;
    let resize = |size_bytes| {
        let set = SetAttr { size_bytes: Some(size_bytes), ..SetAttr::default() };
        meta.set_attr(ino, &set).map(|(inode, _)| inode.size_bytes)
    };
    assert_eq!(resize(500).unwrap(), 500);
    assert_eq!(resize(5).unwrap(), 5);
    put(meta, ino, NewContent::Inline(b"12345"), 5).unwrap();
    assert_fails!(resize(4), MetaError::BadContent { .. });
    put(meta, ino, NewContent::Staged { segment: SegmentId(3) }, 5).unwrap();
    assert_eq!(resize(4).unwrap(), 4);
    seal(meta, ino, &[extent(0, 100, 4)]).unwrap();
    assert_eq!(resize(200).unwrap(), 200);
    assert_fails!(resize(199), MetaError::BadContent { .. });
    let set = SetAttr { size_bytes: Some(1), ..SetAttr::default() };
    assert_fails!(meta.set_attr(ROOT, &set), MetaError::NotRegular { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn shared_pages_keep_their_segments_until_the_last_file_goes(volume: &mut dyn Volume) {
    let extents = [extent(0, 100, 1), extent(100, 100, 2)];
    let (first, second) = {
        let meta = volume.meta();
        let (first, second) = (file(meta, ROOT, "a").ino, file(meta, ROOT, "b").ino);
        seal(meta, first, &extents).unwrap();
        put(meta, second, NewContent::Sealed { extents: &extents, fresh: &[] }, 200).unwrap();
        assert!(!is_owned(meta, 1, first) && !is_owned(meta, 1, second));
        meta.unlink(ROOT, b"a", at(1)).unwrap();
        meta.reap(first).unwrap();
        (first, second)
    };
    volume.reopen();
    let meta = volume.meta();
    assert_fails!(meta.inode(first), MetaError::NoInode { .. });
    assert_eq!(condemned(meta), []);
    assert_eq!(all_extents(meta, second), extents);
    assert!(is_owned(meta, 1, second));
    meta.unlink(ROOT, b"b", at(1)).unwrap();
    assert_eq!(condemned(meta), []);
    let txn = meta.reap(second).unwrap();
    let all = meta.condemned(SegmentId(0), 10).unwrap();
    assert_eq!(all.iter().map(|c| (c.segment.0, c.txn)).collect::<Vec<_>>(), [(1, txn), (2, txn)]);
    assert_eq!(meta.condemned(SegmentId(1), 10).unwrap(), all[1..]);
    assert_eq!(meta.condemned(SegmentId(0), 1).unwrap(), all[..1]);
    assert!(!is_named(meta, 1));
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn sealing_in_place_never_condemns_the_staging_file(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = staged(meta, "file", 5);
    // Until a page names it, a staging file may still change, so nobody may share it.
    let extents = [extent(0, 100, 5)];
    let other = file(meta, ROOT, "other").ino;
    let shared = NewContent::Sealed { extents: &extents, fresh: &[] };
    for ino in [ino, other] {
        assert_fails!(put(meta, ino, shared, 100), MetaError::SegmentGone { .. });
    }
    // The staging file becomes the segment.
    let sealed = NewContent::Sealed { extents: &extents, fresh: &[SegmentId(5)] };
    put(meta, ino, sealed, 100).unwrap();
    assert!(is_named(meta, 5));
    assert_eq!(condemned(meta), []);
    assert!(is_owned(meta, 5, ino));
    // And back.
    put(meta, ino, NewContent::Staged { segment: SegmentId(5) }, 100).unwrap();
    assert_eq!(condemned(meta), []);
    assert!(is_named(meta, 5));
    assert!(!is_owned(meta, 5, ino), "a staging file is not sealed");
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn replaced_content_condemns_its_segments(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, ROOT, "file").ino;
    seal(meta, ino, &[extent(0, 100, 1), extent(100, 100, 2)]).unwrap();
    let replacing = [extent(0, 100, 2), extent(100, 100, 3)];
    put(meta, ino, NewContent::Sealed { extents: &replacing, fresh: &[SegmentId(3)] }, 200)
        .unwrap();
    assert_eq!(condemned(meta), [1]);
    // The same again changes nothing but the version.
    put(meta, ino, NewContent::Sealed { extents: &replacing, fresh: &[] }, 200).unwrap();
    assert_eq!(condemned(meta), [1]);
    assert_eq!(all_extents(meta, ino), replacing);
    put(meta, ino, NewContent::Inline(b""), 0).unwrap();
    assert_eq!(condemned(meta), [1, 2, 3]);
    assert!(all_extents(meta, ino).is_empty());
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn only_known_segments_may_be_named_again(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = file(meta, ROOT, "file").ino;
    let extents = [extent(0, 100, 1)];
    let again = NewContent::Sealed { extents: &extents, fresh: &[] };
    assert_fails!(put(meta, ino, again, 100), MetaError::SegmentGone { segment: SegmentId(1) });
    assert_eq!(meta.inode(ino).unwrap().content, Content::Empty);
    seal(meta, ino, &extents).unwrap();
    put(meta, ino, NewContent::Empty, 0).unwrap();
    assert_eq!(condemned(meta), [1]);
    // Condemned, but not yet claimed: naming it takes it back.
    put(meta, ino, again, 100).unwrap();
    assert_eq!(condemned(meta), []);
    assert!(!meta.claim_condemned(SegmentId(1)).unwrap());
    assert_eq!(all_extents(meta, ino), extents);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn claimed_segments_are_out_of_reach(volume: &mut dyn Volume) {
    let (ino, extents) = (file(volume.meta(), ROOT, "file").ino, [extent(0, 100, 1)]);
    {
        let meta = volume.meta();
        assert!(!meta.claim_condemned(SegmentId(1)).unwrap(), "nothing knows it");
        seal(meta, ino, &extents).unwrap();
        assert!(!meta.claim_condemned(SegmentId(1)).unwrap(), "it is named");
        put(meta, ino, NewContent::Empty, 0).unwrap();
        assert!(meta.claim_condemned(SegmentId(1)).unwrap());
        // Whoever claims again after a crash must be told the same.
        assert!(meta.claim_condemned(SegmentId(1)).unwrap());
    }
    volume.reopen();
    let meta = volume.meta();
    let again = NewContent::Sealed { extents: &extents, fresh: &[] };
    assert_fails!(put(meta, ino, again, 100), MetaError::SegmentGone { .. });
    assert_fails!(seal(meta, ino, &extents), MetaError::SegmentGone { .. });
    let staging = NewContent::Staged { segment: SegmentId(1) };
    assert_fails!(put(meta, ino, staging, 0), MetaError::SegmentGone { .. });
    assert_eq!(condemned(meta), [1], "listed until it is forgotten");
    meta.forget_segments(&[SegmentId(1), SegmentId(2)]).unwrap();
    assert_eq!(condemned(meta), []);
    assert_fails!(put(meta, ino, again, 100), MetaError::SegmentGone { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn condemn_spares_what_is_named(volume: &mut dyn Volume) {
    let meta = volume.meta();
    staged(meta, "staged", 1);
    let ino = file(meta, ROOT, "sealed").ino;
    seal(meta, ino, &[extent(0, 100, 2)]).unwrap();
    let txn = meta.condemn(&[SegmentId(1), SegmentId(2), SegmentId(3)]).unwrap();
    let all = meta.condemned(SegmentId(0), 10).unwrap();
    assert_eq!(all.iter().map(|c| (c.segment.0, c.txn)).collect::<Vec<_>>(), [(3, txn)]);
    // Again is nothing, so that its age is kept.
    meta.condemn(&[SegmentId(3)]).unwrap();
    assert_eq!(meta.condemned(SegmentId(0), 10).unwrap(), all);
    // Unclaimed ones are not forgotten.
    meta.forget_segments(&[SegmentId(3)]).unwrap();
    assert_eq!(condemned(meta), [3]);
    // A staging file that the cleaner saw before its inode was there.
    staged(meta, "late", 3);
    assert_eq!(condemned(meta), []);
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn ownership_is_exclusive(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let (a, b) = (file(meta, ROOT, "a").ino, file(meta, ROOT, "b").ino);
    assert!(!is_owned(meta, 1, a), "nobody owns what nothing names");
    let long: Vec<Extent> = (0..1030).map(|index| extent(index * 10, 10, 1)).collect();
    seal(meta, a, &long).unwrap();
    assert!(is_owned(meta, 1, a));
    assert!(!is_owned(meta, 1, b));
    // Another file with other pages, but the same segment.
    let other = [extent(5, 10, 1)];
    put(meta, b, NewContent::Sealed { extents: &other, fresh: &[] }, 15).unwrap();
    assert!(!is_owned(meta, 1, a));
    put(meta, b, NewContent::Empty, 0).unwrap();
    assert!(is_owned(meta, 1, a));
    // An overlay above its own extents still owns them.
    let overlay = NewContent::Overlay { segment: SegmentId(2), base_len_bytes: 100 };
    put(meta, a, overlay, 100).unwrap();
    assert!(is_owned(meta, 1, a));
    assert_fails!(meta.segment_is_owned_by(SegmentId(1), Ino(1 << 40)), MetaError::NoInode { .. });
}

#[expect(missing_docs, reason = "the name is the sentence")]
pub fn reap_condemns_the_staging_file(volume: &mut dyn Volume) {
    let meta = volume.meta();
    let ino = staged(meta, "file", 5);
    let overlaid = file(meta, ROOT, "overlaid").ino;
    seal(meta, overlaid, &[extent(0, 100, 6)]).unwrap();
    let overlay = NewContent::Overlay { segment: SegmentId(7), base_len_bytes: 100 };
    put(meta, overlaid, overlay, 100).unwrap();
    for (name, ino) in [("file", ino), ("overlaid", overlaid)] {
        meta.unlink(ROOT, name.as_bytes(), at(1)).unwrap();
        meta.reap(ino).unwrap();
    }
    assert_eq!(condemned(meta), [5, 6, 7]);
    assert!(meta.staged(Ino(0), 10).unwrap().is_empty());
}
