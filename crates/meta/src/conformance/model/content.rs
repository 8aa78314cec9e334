//! Changes of content, and files that appear with theirs.

use librorum_format::{ErrorKind, Extent, Ino, SegmentId};

use super::super::{at, extent, kind_of, new};
use super::{Model, To};
use crate::{Content, FileKind, Meta, MetaError, NewContent, Publish, SetContent};

pub(super) fn apply_content(model: &mut Model, meta: &dyn Meta, ino: Ino, to: &To) {
    let present = model.get(ino).map(|model| model.inode.clone());
    let extents = present.as_ref().map_or(Vec::new(), |_| model.inodes[&ino].extents.clone());
    let is_claimed = |segment: u64| model.condemned.get(&segment) == Some(&true);
    let mut version = present.as_ref().map_or(0, |inode| inode.content_version);
    let mut inline = Vec::new();
    let mut fresh_segments = Vec::new();
    let mut new_extents = Vec::new();
    let mut size_bytes = 0;
    // What is wrong with the change itself, whatever the file.
    let mut fault = None;
    let (content, after) = match to {
        To::Empty { stale } => {
            if *stale {
                version += 1;
                fault = Some(ErrorKind::Stale);
            }
            size_bytes = 77;
            (NewContent::Empty, Content::Empty)
        }
        To::Inline { len } => {
            inline = vec![*len; usize::from(*len)];
            size_bytes = u64::from(*len);
            (NewContent::Inline(&inline), Content::Inline)
        }
        To::Staged { segment } => {
            let segment = SegmentId((*segment).into());
            let is_same = present.as_ref().is_ok_and(|p| p.content.staging() == Some(segment));
            if is_claimed(segment.0) && !is_same {
                fault = Some(ErrorKind::Stale);
            }
            (NewContent::Staged { segment }, Content::Staged { segment })
        }
        To::Overlay { segment, base_len_bytes } => {
            let segment = SegmentId((*segment).into());
            let base_len_bytes = *base_len_bytes;
            size_bytes = base_len_bytes;
            new_extents = extents;
            match present.as_ref().map(|inode| inode.content) {
                Ok(Content::Sealed) if is_claimed(segment.0) => fault = Some(ErrorKind::Stale),
                Ok(Content::Sealed) => {}
                Ok(Content::Overlay { segment: old, base_len_bytes: len })
                    if old == segment && base_len_bytes <= len => {}
                _ => fault = Some(ErrorKind::InvalidInput),
            }
            (
                NewContent::Overlay { segment, base_len_bytes },
                Content::Overlay { segment, base_len_bytes },
            )
        }
        To::Sealed { segments, fresh } => {
            for (index, segment) in segments.iter().enumerate() {
                let segment = u64::from(*segment);
                new_extents.push(extent(index as u64 * 100, 100, segment));
                let is_fresh = fresh & (1 << segment) != 0;
                if is_fresh {
                    fresh_segments.push(SegmentId(segment));
                }
                let is_known =
                    model.is_sealed(segment) || model.condemned.get(&segment) == Some(&false);
                if is_claimed(segment) || (!is_fresh && !is_known) {
                    fault = Some(ErrorKind::Stale);
                }
            }
            size_bytes = new_extents.last().map_or(3, Extent::file_end_bytes);
            (NewContent::Sealed { extents: &new_extents, fresh: &fresh_segments }, Content::Sealed)
        }
    };
    let expected = match &present {
        Err(kind) => Some(*kind),
        Ok(inode) if inode.kind != FileKind::Regular => Some(ErrorKind::InvalidInput),
        Ok(_) => fault,
    };
    let change = SetContent {
        ino,
        expected_version: version,
        content,
        size_bytes,
        allocated_bytes: size_bytes / 2,
        mtime: None,
        ctime: None,
    };
    let changed = meta.set_content(&change);
    assert_eq!(kind_of(&changed), expected, "{to:?}: {changed:?}");
    if changed.is_ok() {
        let extents = new_extents.clone();
        let inline = inline.clone();
        model.put(ino, after, extents, inline, size_bytes);
    } else if let Err(MetaError::StaleContent { found, .. }) = &changed {
        assert_eq!(Ok(*found), present.map(|inode| inode.content_version));
    }
}

pub(super) fn apply_publish(
    model: &mut Model,
    meta: &dyn Meta,
    (dir, name): (Ino, &[u8]),
    to: &To,
    replace: bool,
) {
    let is_claimed = |segment: u64| model.condemned.get(&segment) == Some(&true);
    let mut inline = Vec::new();
    let mut extents = Vec::new();
    let mut fresh_segments = Vec::new();
    let mut size_bytes = 0;
    let mut is_gone = false;
    let (content, after) = match to {
        // There is nothing to lay one over.
        To::Empty { .. } | To::Overlay { .. } => {
            size_bytes = 77;
            (NewContent::Empty, Content::Empty)
        }
        To::Inline { len } => {
            inline = vec![*len; usize::from(*len)];
            size_bytes = u64::from(*len);
            (NewContent::Inline(&inline), Content::Inline)
        }
        To::Staged { segment } => {
            let segment = SegmentId((*segment).into());
            is_gone = is_claimed(segment.0);
            (NewContent::Staged { segment }, Content::Staged { segment })
        }
        To::Sealed { segments, fresh } => {
            for (index, segment) in segments.iter().enumerate() {
                let segment = u64::from(*segment);
                extents.push(extent(index as u64 * 100, 100, segment));
                let is_fresh = fresh & (1 << segment) != 0;
                if is_fresh {
                    fresh_segments.push(SegmentId(segment));
                }
                let is_known =
                    model.is_sealed(segment) || model.condemned.get(&segment) == Some(&false);
                is_gone |= is_claimed(segment) || (!is_fresh && !is_known);
            }
            size_bytes = extents.last().map_or(3, Extent::file_end_bytes);
            (NewContent::Sealed { extents: &extents, fresh: &fresh_segments }, Content::Sealed)
        }
    };
    let replaced = model.live_dir(dir).map(|dir| dir.entries.get(name).copied());
    let is_directory = |ino: Ino| model.inodes[&ino].inode.kind == FileKind::Directory;
    let expected = match replaced {
        Err(kind) => Some(kind),
        Ok(Some(_)) if !replace => Some(ErrorKind::AlreadyExists),
        Ok(Some(ino)) if is_directory(ino) => Some(ErrorKind::IsDirectory),
        Ok(_) => is_gone.then_some(ErrorKind::Stale),
    };
    let mtime = Some(at(-5));
    let published = meta.publish(&Publish {
        parent: dir,
        name,
        new: &new(FileKind::Regular, model.clock),
        content,
        size_bytes,
        allocated_bytes: size_bytes / 2,
        mtime,
        replace,
    });
    assert_eq!(kind_of(&published), expected, "{to:?}");
    if let Ok(published) = published {
        let inode = published.inode;
        assert!(!model.known.contains(&inode.ino), "a number was used twice");
        assert_eq!((inode.content, inode.size_bytes), (after, size_bytes));
        assert_eq!(inode.mtime, at(-5));
        let before = model.named();
        if let Ok(Some(old)) = replaced {
            model.link_out(dir, name);
            model.unname(old);
            assert_eq!(published.replaced.as_ref(), Some(&model.inodes[&old].inode));
        } else {
            assert!(published.replaced.is_none());
        }
        let ino = inode.ino;
        model.known.push(ino);
        model.add(inode);
        let added = model.edit(ino);
        added.extents = extents;
        added.inline = inline;
        model.link_in(dir, name, ino);
        model.settle(&before);
    }
}
