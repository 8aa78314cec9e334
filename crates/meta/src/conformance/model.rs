//! Random operations against a model: a tree in memory that is too simple to be wrong.

mod content;

use std::collections::{BTreeMap, BTreeSet};

use librorum_format::{ErrorKind, Extent, Ino, SegmentId};
use proptest::prelude::*;

use super::{Volume, assert_sound, at, condemned, entries, kind_of, new};
use crate::{Content, FileKind, Inode, Meta, MetaStats, NewInode, RenameMode, SetAttr, XattrMode};
use content::{apply_content, apply_publish};

/// One operation. Numbers choose among what there is.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is the operation of its name")]
pub enum Op {
    Create { dir: usize, name: u8, kind: u8, staging: Option<u8> },
    Link { ino: usize, dir: usize, name: u8 },
    Unlink { dir: usize, name: u8 },
    Rmdir { dir: usize, name: u8 },
    Rename { from: (usize, u8), to: (usize, u8), mode: u8 },
    Resize { ino: usize, size_bytes: u64 },
    Touch { ino: usize },
    SetContent { ino: usize, to: To },
    Publish { dir: usize, name: u8, to: To, replace: bool },
    SetXattr { ino: usize, name: u8, mode: u8 },
    RemoveXattr { ino: usize, name: u8 },
    Reap { ino: usize },
    Claim { segment: u8 },
    Forget { segment: u8 },
    Condemn { segment: u8 },
    Sync,
    Reopen,
}

/// Where [`Op::SetContent`] moves a file's bytes.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is the content of its name")]
pub enum To {
    Empty { stale: bool },
    Inline { len: u8 },
    Staged { segment: u8 },
    Overlay { segment: u8, base_len_bytes: u64 },
    Sealed { segments: Vec<u8>, fresh: u8 },
}

/// A strategy for sequences of operations.
pub fn ops(count: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), count)
}

fn op() -> impl Strategy<Value = Op> {
    let (dir, name, ino) = (0..12_usize, 0..6_u8, 0..16_usize);
    let segment = 1..7_u8;
    let place = (dir.clone(), name.clone());
    let publish_place = place.clone();
    prop_oneof![
        8 => (place.clone(), 0..8_u8, proptest::option::weighted(0.3, segment.clone()))
            .prop_map(|((dir, name), kind, staging)| Op::Create { dir, name, kind, staging }),
        3 => (ino.clone(), place.clone()).prop_map(|(ino, (dir, name))| Op::Link { ino, dir, name }),
        4 => place.clone().prop_map(|(dir, name)| Op::Unlink { dir, name }),
        3 => place.clone().prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        6 => (place.clone(), place, 0..4_u8).prop_map(|(from, to, mode)| Op::Rename { from, to, mode }),
        2 => (ino.clone(), 0..700_u64).prop_map(|(ino, size_bytes)| Op::Resize { ino, size_bytes }),
        1 => ino.clone().prop_map(|ino| Op::Touch { ino }),
        19 => (ino.clone(), to()).prop_map(|(ino, to)| Op::SetContent { ino, to }),
        5 => (publish_place, to(), any::<bool>())
            .prop_map(|((dir, name), to, replace)| Op::Publish { dir, name, to, replace }),
        2 => (ino.clone(), 0..3_u8, 0..3_u8).prop_map(|(ino, name, mode)| Op::SetXattr { ino, name, mode }),
        1 => (ino.clone(), 0..3_u8).prop_map(|(ino, name)| Op::RemoveXattr { ino, name }),
        4 => ino.prop_map(|ino| Op::Reap { ino }),
        3 => segment.clone().prop_map(|segment| Op::Claim { segment }),
        2 => segment.clone().prop_map(|segment| Op::Forget { segment }),
        2 => segment.prop_map(|segment| Op::Condemn { segment }),
        1 => Just(Op::Sync),
        1 => Just(Op::Reopen),
    ]
}

fn to() -> impl Strategy<Value = To> {
    let segment = 1..7_u8;
    let segments = proptest::collection::vec(segment.clone(), 0..4);
    prop_oneof![
        2 => any::<bool>().prop_map(|stale| To::Empty { stale }),
        3 => (0..9_u8).prop_map(|len| To::Inline { len }),
        3 => segment.clone().prop_map(|segment| To::Staged { segment }),
        3 => (segment, 0..700_u64)
            .prop_map(|(segment, base_len_bytes)| To::Overlay { segment, base_len_bytes }),
        8 => (segments, any::<u8>()).prop_map(|(segments, fresh)| To::Sealed { segments, fresh }),
    ]
}

#[derive(Clone, Debug)]
struct ModelInode {
    inode: Inode,
    entries: BTreeMap<Vec<u8>, Ino>,
    extents: Vec<Extent>,
    inline: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What the volume should be.
#[derive(Clone, Debug)]
pub struct Model {
    inodes: BTreeMap<Ino, ModelInode>,
    /// Every inode there ever was, in order of creation, for operations to choose from.
    known: Vec<Ino>,
    condemned: BTreeMap<u64, bool>,
    /// The time of the newest operation.
    clock: i64,
}

fn name(index: u8) -> Vec<u8> {
    format!("name {index}").into_bytes()
}

impl Model {
    /// The model of a new volume.
    pub fn of(meta: &dyn Meta) -> Self {
        let root = meta.inode(Ino::ROOT).unwrap();
        let mut model = Self {
            inodes: BTreeMap::new(),
            known: vec![Ino::ROOT],
            condemned: BTreeMap::new(),
            clock: 1000,
        };
        model.add(root);
        model
    }

    fn add(&mut self, inode: Inode) {
        let ino = inode.ino;
        let model = ModelInode {
            inode,
            entries: BTreeMap::new(),
            extents: Vec::new(),
            inline: Vec::new(),
            xattrs: BTreeMap::new(),
        };
        self.inodes.insert(ino, model);
    }

    fn ino(&self, index: usize) -> Ino {
        self.known[index % self.known.len()]
    }

    fn get(&self, ino: Ino) -> Result<&ModelInode, ErrorKind> {
        self.inodes.get(&ino).ok_or(ErrorKind::NotFound)
    }

    fn edit(&mut self, ino: Ino) -> &mut ModelInode {
        self.inodes.get_mut(&ino).unwrap()
    }

    fn dir(&self, ino: Ino) -> Result<&ModelInode, ErrorKind> {
        let dir = self.get(ino)?;
        if dir.inode.kind == FileKind::Directory { Ok(dir) } else { Err(ErrorKind::NotDirectory) }
    }

    fn live_dir(&self, ino: Ino) -> Result<&ModelInode, ErrorKind> {
        let dir = self.dir(ino)?;
        if dir.inode.nlink == 0 { Err(ErrorKind::NotFound) } else { Ok(dir) }
    }

    fn is_named(&self, segment: u64) -> bool {
        self.inodes.values().any(|model| {
            model.inode.content.staging() == Some(SegmentId(segment))
                || model.extents.iter().any(|extent| extent.location.segment.0 == segment)
        })
    }

    fn is_sealed(&self, segment: u64) -> bool {
        self.inodes
            .values()
            .any(|model| model.extents.iter().any(|extent| extent.location.segment.0 == segment))
    }

    fn is_owned(&self, segment: u64, ino: Ino) -> bool {
        let names = |model: &ModelInode| {
            model.extents.iter().any(|extent| extent.location.segment.0 == segment)
        };
        let staged = |model: &ModelInode| model.inode.content.staging() == Some(SegmentId(segment));
        names(&self.inodes[&ino])
            && self
                .inodes
                .values()
                .all(|model| !staged(model) && (model.inode.ino == ino || !names(model)))
    }

    fn named(&self) -> BTreeSet<u64> {
        (1..7).filter(|segment| self.is_named(*segment)).collect()
    }

    /// What every change of names ends with: segments that lost their last name are condemned,
    /// those that got one are not.
    fn settle(&mut self, before: &BTreeSet<u64>) {
        let after = self.named();
        for segment in before.difference(&after) {
            self.condemned.insert(*segment, false);
        }
        self.condemned.retain(|segment, _| !after.contains(segment));
    }

    fn link_out(&mut self, dir: Ino, name: &[u8]) {
        let ino = self.edit(dir).entries.remove(name).unwrap();
        let is_directory = self.inodes[&ino].inode.kind == FileKind::Directory;
        let now = at(self.clock);
        let parent = &mut self.edit(dir).inode;
        parent.mtime = now;
        parent.ctime = now;
        parent.nlink -= u32::from(is_directory);
    }

    fn link_in(&mut self, dir: Ino, name: &[u8], ino: Ino) {
        let is_directory = self.inodes[&ino].inode.kind == FileKind::Directory;
        let now = at(self.clock);
        let parent = self.edit(dir);
        parent.entries.insert(name.to_vec(), ino);
        parent.inode.mtime = now;
        parent.inode.ctime = now;
        parent.inode.nlink += u32::from(is_directory);
        if is_directory {
            self.edit(ino).inode.parent = dir;
        }
    }

    fn unname(&mut self, ino: Ino) {
        let now = at(self.clock);
        let inode = &mut self.edit(ino).inode;
        inode.ctime = now;
        if inode.kind == FileKind::Directory {
            inode.nlink = 0;
            inode.parent = ino;
        } else {
            inode.nlink -= 1;
        }
    }

    fn is_ancestor(&self, ino: Ino, below: Ino) -> bool {
        let mut at = below;
        loop {
            if at == ino {
                return true;
            }
            let parent = self.inodes[&at].inode.parent;
            if parent == at {
                return false;
            }
            at = parent;
        }
    }

    fn rename(
        &mut self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<(), ErrorKind> {
        self.dir(from.0)?;
        self.live_dir(to.0)?;
        let moved = *self.inodes[&from.0].entries.get(from.1).ok_or(ErrorKind::NotFound)?;
        let replaced = self.inodes[&to.0].entries.get(to.1).copied();
        let is_directory = |ino: Ino| self.inodes[&ino].inode.kind == FileKind::Directory;
        if is_directory(moved) && self.is_ancestor(moved, to.0) {
            return Err(ErrorKind::InvalidInput);
        }
        if let (RenameMode::Exchange, Some(replaced)) = (mode, replaced)
            && is_directory(replaced)
            && self.is_ancestor(replaced, from.0)
        {
            return Err(ErrorKind::InvalidInput);
        }
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => return Err(ErrorKind::AlreadyExists),
            (RenameMode::Exchange, None) => return Err(ErrorKind::NotFound),
            (_, Some(replaced)) if replaced == moved => return Ok(()),
            _ => {}
        }
        let now = at(self.clock);
        if let Some(replaced) = replaced {
            if mode == RenameMode::Replace {
                match (is_directory(moved), is_directory(replaced)) {
                    (true, false) => return Err(ErrorKind::NotDirectory),
                    (false, true) => return Err(ErrorKind::IsDirectory),
                    (true, true) if !self.inodes[&replaced].entries.is_empty() => {
                        return Err(ErrorKind::NotEmpty);
                    }
                    _ => {}
                }
                self.link_out(to.0, to.1);
                self.unname(replaced);
            } else {
                self.link_out(to.0, to.1);
                self.edit(replaced).inode.ctime = now;
            }
        }
        self.link_out(from.0, from.1);
        self.link_in(to.0, to.1, moved);
        self.edit(moved).inode.ctime = now;
        if let (RenameMode::Exchange, Some(replaced)) = (mode, replaced) {
            self.link_in(from.0, from.1, replaced);
        }
        Ok(())
    }

    /// A change of content that the model allows, or why not.
    fn put(
        &mut self,
        ino: Ino,
        content: Content,
        extents: Vec<Extent>,
        inline: Vec<u8>,
        size_bytes: u64,
    ) {
        let before = self.named();
        let model = self.edit(ino);
        model.inode.content = content;
        model.inode.content_version += 1;
        model.inode.size_bytes = size_bytes;
        model.inode.allocated_bytes = size_bytes / 2;
        model.extents = extents;
        model.inline = inline;
        self.settle(&before);
    }

    fn stats(&self) -> MetaStats {
        let mut stats = MetaStats::default();
        for model in self.inodes.values() {
            let inode = &model.inode;
            stats.inode_count += 1;
            stats.directory_count += u64::from(inode.kind == FileKind::Directory);
            stats.staged_count += u64::from(inode.content.staging().is_some());
            stats.orphan_count += u64::from(inode.nlink == 0);
            if inode.kind == FileKind::Regular {
                stats.logical_bytes += inode.size_bytes;
            }
        }
        stats
    }

    /// Asserts that the volume is what the model says, in everything that the trait can tell.
    pub fn assert_matches(&self, meta: &dyn Meta) {
        let listed = meta.inodes(Ino(0), usize::MAX).unwrap();
        let expected: Vec<Inode> = self.inodes.values().map(|model| model.inode.clone()).collect();
        assert_eq!(listed, expected);
        for (&ino, model) in &self.inodes {
            assert_eq!(meta.inode(ino).unwrap(), model.inode);
            assert_eq!(meta.extents(ino, 0, u64::MAX).unwrap(), model.extents);
            if model.inode.content == Content::Inline {
                assert_eq!(meta.inline_bytes(ino).unwrap(), model.inline);
            }
            if model.inode.kind == FileKind::Symlink {
                assert_eq!(meta.symlink_target(ino).unwrap(), b"target");
            }
            let names: Vec<Vec<u8>> = model.xattrs.keys().cloned().collect();
            assert_eq!(meta.xattr_names(ino).unwrap(), names);
            for (name, value) in &model.xattrs {
                assert_eq!(&meta.xattr(ino, name).unwrap(), value);
            }
            if model.inode.kind == FileKind::Directory {
                assert_eq!(entries(meta, ino), model.entries);
                for (name, entry) in &model.entries {
                    assert_eq!(meta.lookup(ino, name).unwrap().ino, *entry);
                }
            }
            for segment in 1..7 {
                let is_owned = meta.segment_is_owned_by(SegmentId(segment), ino).unwrap();
                assert_eq!(is_owned, self.is_owned(segment, ino));
            }
        }
        let of = |wanted: fn(&Inode) -> bool| -> Vec<Ino> {
            expected.iter().filter(|inode| wanted(inode)).map(|inode| inode.ino).collect()
        };
        let orphans = of(|inode| inode.nlink == 0);
        assert_eq!(meta.orphans(Ino(0), usize::MAX).unwrap(), orphans);
        let staged = of(|inode| inode.content.staging().is_some());
        assert_eq!(meta.staged(Ino(0), usize::MAX).unwrap(), staged);
        assert_eq!(condemned(meta), self.condemned.keys().copied().collect::<Vec<_>>());
        for segment in 1..7 {
            assert_eq!(meta.segment_is_named(SegmentId(segment)).unwrap(), self.is_named(segment));
        }
        assert_eq!(meta.stats(), self.stats());
    }
}

/// Does an operation to both, and asserts that both say the same of it. `Reopen` is the caller's.
#[expect(clippy::too_many_lines, reason = "one arm for every operation")]
pub fn apply(model: &mut Model, meta: &dyn Meta, op: &Op) {
    model.clock += 1;
    let now = at(model.clock);
    match op {
        Op::Create { dir, name: index, kind, staging } => {
            let (dir, name) = (model.ino(*dir), name(*index));
            let kind = match kind {
                0..3 => FileKind::Directory,
                3..7 => FileKind::Regular,
                _ => FileKind::Symlink,
            };
            let staging = staging.filter(|_| kind == FileKind::Regular);
            let expected = match model.live_dir(dir) {
                Err(kind) => Some(kind),
                Ok(dir) if dir.entries.contains_key(&name) => Some(ErrorKind::AlreadyExists),
                Ok(_)
                    if staging.is_some_and(|segment| {
                        model.condemned.get(&segment.into()) == Some(&true)
                    }) =>
                {
                    Some(ErrorKind::Stale)
                }
                Ok(_) => None,
            };
            let new = NewInode {
                staging: staging.map(|segment| SegmentId(segment.into())),
                now,
                ..new(kind, model.clock)
            };
            let created = meta.create(dir, &name, &new);
            assert_eq!(kind_of(&created), expected, "{op:?}");
            if let Ok((inode, _)) = created {
                assert!(!model.known.contains(&inode.ino), "a number was used twice");
                let before = model.named();
                let ino = inode.ino;
                model.known.push(ino);
                model.add(inode);
                model.link_in(dir, &name, ino);
                model.settle(&before);
            }
        }
        Op::Link { ino, dir, name: index } => {
            let (ino, dir, name) = (model.ino(*ino), model.ino(*dir), name(*index));
            let expected = (|| {
                let entries = &model.live_dir(dir)?.entries;
                let inode = &model.get(ino)?.inode;
                match (inode.kind, inode.nlink) {
                    (FileKind::Directory, _) => Err(ErrorKind::IsDirectory),
                    (_, 0) => Err(ErrorKind::NotFound),
                    _ if entries.contains_key(&name) => Err(ErrorKind::AlreadyExists),
                    _ => Ok(()),
                }
            })();
            let linked = meta.link(ino, dir, &name, now);
            assert_eq!(kind_of(&linked), expected.err(), "{op:?}");
            if linked.is_ok() {
                model.link_in(dir, &name, ino);
                let inode = &mut model.edit(ino).inode;
                inode.nlink += 1;
                inode.ctime = now;
            }
        }
        Op::Unlink { dir, name: index } | Op::Rmdir { dir, name: index } => {
            let (dir, name) = (model.ino(*dir), name(*index));
            let wants_directory = matches!(op, Op::Rmdir { .. });
            let expected = model.dir(dir).and_then(|dir| {
                let ino = dir.entries.get(&name).ok_or(ErrorKind::NotFound)?;
                let target = &model.inodes[ino];
                match (wants_directory, target.inode.kind == FileKind::Directory) {
                    (true, false) => Err(ErrorKind::NotDirectory),
                    (false, true) => Err(ErrorKind::IsDirectory),
                    (true, true) if !target.entries.is_empty() => Err(ErrorKind::NotEmpty),
                    _ => Ok(*ino),
                }
            });
            let removed = if wants_directory {
                meta.rmdir(dir, &name, now)
            } else {
                meta.unlink(dir, &name, now)
            };
            assert_eq!(kind_of(&removed), expected.err(), "{op:?}");
            if let Ok(ino) = expected {
                model.link_out(dir, &name);
                model.unname(ino);
            }
        }
        Op::Rename { from, to, mode } => {
            let (from_name, to_name) = (name(from.1), name(to.1));
            let from = (model.ino(from.0), &from_name[..]);
            let to = (model.ino(to.0), &to_name[..]);
            let mode = match mode {
                0 => RenameMode::NoReplace,
                1 => RenameMode::Exchange,
                _ => RenameMode::Replace,
            };
            let renamed = meta.rename(from, to, mode, now);
            let expected = model.rename(from, to, mode);
            assert_eq!(kind_of(&renamed), expected.err(), "{op:?}");
            if let Ok(renamed) = renamed {
                assert_eq!(renamed.moved, model.inodes[&renamed.moved.ino].inode);
                if let Some(replaced) = renamed.replaced {
                    assert_eq!(replaced, model.inodes[&replaced.ino].inode);
                }
            }
        }
        Op::Resize { ino, size_bytes } => {
            let ino = model.ino(*ino);
            let expected = model.get(ino).and_then(|model| {
                let inode = &model.inode;
                match (inode.kind, inode.content) {
                    (FileKind::Regular, Content::Inline) if *size_bytes != inode.size_bytes => {
                        Err(ErrorKind::InvalidInput)
                    }
                    (FileKind::Regular, Content::Sealed) if *size_bytes < inode.size_bytes => {
                        Err(ErrorKind::InvalidInput)
                    }
                    (FileKind::Regular, _) => Ok(()),
                    _ => Err(ErrorKind::InvalidInput),
                }
            });
            let set = SetAttr { size_bytes: Some(*size_bytes), ..SetAttr::default() };
            let resized = meta.set_attr(ino, &set);
            assert_eq!(kind_of(&resized), expected.err(), "{op:?}");
            if resized.is_ok() {
                model.edit(ino).inode.size_bytes = *size_bytes;
            }
        }
        Op::Touch { ino } => {
            let ino = model.ino(*ino);
            let set = SetAttr {
                mode: Some(0o4640),
                uid: Some(7),
                atime: Some(now),
                mtime: Some(now),
                ctime: Some(now),
                ..SetAttr::default()
            };
            let touched = meta.set_attr(ino, &set);
            assert_eq!(kind_of(&touched), model.get(ino).err(), "{op:?}");
            if touched.is_ok() {
                let inode = &mut model.edit(ino).inode;
                (inode.mode, inode.uid) = (0o4640, 7);
                (inode.atime, inode.mtime, inode.ctime) = (now, now, now);
            }
        }
        Op::SetContent { ino, to } => {
            let ino = model.ino(*ino);
            apply_content(model, meta, ino, to);
        }
        Op::Publish { dir, name: index, to, replace } => {
            apply_publish(model, meta, (model.ino(*dir), &name(*index)), to, *replace);
        }
        Op::SetXattr { ino, name: index, mode } => {
            let (ino, name) = (model.ino(*ino), format!("user.{index}").into_bytes());
            let mode = [XattrMode::Set, XattrMode::Create, XattrMode::Replace][usize::from(*mode)];
            let expected =
                model.get(ino).and_then(|model| match (mode, model.xattrs.contains_key(&name)) {
                    (XattrMode::Create, true) => Err(ErrorKind::AlreadyExists),
                    (XattrMode::Replace, false) => Err(ErrorKind::NoAttribute),
                    _ => Ok(()),
                });
            let value = model.clock.to_le_bytes();
            let set = meta.set_xattr(ino, &name, &value, mode, now);
            assert_eq!(kind_of(&set), expected.err(), "{op:?}");
            if set.is_ok() {
                let model = model.edit(ino);
                model.xattrs.insert(name, value.to_vec());
                model.inode.has_xattrs = true;
                model.inode.ctime = now;
            }
        }
        Op::RemoveXattr { ino, name: index } => {
            let (ino, name) = (model.ino(*ino), format!("user.{index}").into_bytes());
            let expected = model.get(ino).and_then(|model| {
                if model.xattrs.contains_key(&name) { Ok(()) } else { Err(ErrorKind::NoAttribute) }
            });
            let removed = meta.remove_xattr(ino, &name, now);
            assert_eq!(kind_of(&removed), expected.err(), "{op:?}");
            if removed.is_ok() {
                let model = model.edit(ino);
                model.xattrs.remove(&name);
                model.inode.has_xattrs = !model.xattrs.is_empty();
                model.inode.ctime = now;
            }
        }
        Op::Reap { ino } => {
            let ino = model.ino(*ino);
            let expected = match model.get(ino) {
                Ok(inode) if inode.inode.nlink > 0 => Some(ErrorKind::InvalidInput),
                Ok(_) | Err(_) => None,
            };
            let reaped = meta.reap(ino);
            assert_eq!(kind_of(&reaped), expected, "{op:?}");
            if reaped.is_ok() {
                let before = model.named();
                model.inodes.remove(&ino);
                model.settle(&before);
            }
        }
        Op::Claim { segment } => {
            let segment = u64::from(*segment);
            let expected = model.condemned.contains_key(&segment);
            assert_eq!(meta.claim_condemned(SegmentId(segment)).unwrap(), expected, "{op:?}");
            if expected {
                model.condemned.insert(segment, true);
            }
        }
        Op::Forget { segment } => {
            meta.forget_segments(&[SegmentId((*segment).into())]).unwrap();
            if model.condemned.get(&(*segment).into()) == Some(&true) {
                model.condemned.remove(&(*segment).into());
            }
        }
        Op::Condemn { segment } => {
            let segment = u64::from(*segment);
            meta.condemn(&[SegmentId(segment)]).unwrap();
            if !model.is_named(segment) {
                model.condemned.entry(segment).or_insert(false);
            }
        }
        Op::Sync => {
            let newest = meta.newest_txn();
            assert!(meta.sync().unwrap() >= newest);
        }
        Op::Reopen => {}
    }
}

/// Random operations against the model, with reopening in between.
///
/// # Panics
///
/// If the volume and the model ever disagree; proptest then shrinks the operations.
pub fn random_operations_match_the_model<V: Volume>(cases: u32, fresh: impl Fn() -> V) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ops in ops(1..150))| {
        let mut volume = fresh();
        let mut model = Model::of(volume.meta());
        for op in &ops {
            if matches!(op, Op::Reopen) {
                volume.reopen();
                model.assert_matches(volume.meta());
            }
            apply(&mut model, volume.meta(), op);
        }
        model.assert_matches(volume.meta());
        assert_sound(volume.meta());
        volume.reopen();
        model.assert_matches(volume.meta());
        assert_sound(volume.meta());
    });
}
