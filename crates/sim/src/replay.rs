//! What a power cut could leave: the recording replayed, with all that was not synced in doubt.
//!
//! Always holds, for every image at a point:
//! * what a sync that ended before the point covers is there, or something newer is;
//! * names and what belongs to inodes (truncation, holes, reservations, attributes) survive as a
//!   prefix of a journal: one journal of the disk in [`Model::Ext4`], one for each directory and
//!   inode in [`Model::Posix`];
//! * pages and the growth of files by writing survive each for itself, but never before the
//!   journalled change that gave them their place, and never across one that took it.
//!
//! The rules are argued, with what real file systems do, in `docs/design/0002-simulated-disk.md`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use librorum_format::Timestamp;
use librorum_fuse::transport::NodeKind;

use crate::dice::Dice;
use crate::history::{AttributeChange, Node, What};
use crate::image::{Entry, Image};
use crate::log::{Change, NewNode, Record, Recording};
use crate::page::parts;
use crate::tree::ROOT;

/// Which kind of disk forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Model {
    /// Names in one order, as in ext4 (data=ordered), XFS and btrfs's log trees at their least
    /// careful: no help for programs that rename without syncing.
    Ext4,
    /// Only what POSIX promises, and that a synced new file has its name.
    Posix,
}

/// What is left of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Survival {
    /// Nothing.
    AllLost,
    /// Everything, as if the program had been killed and the machine lived.
    AllKept,
    /// Some of it, as this seed has it.
    Random(u64),
}

/// One of the many states that a power cut can leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Which kind of disk.
    pub model: Model,
    /// What is left.
    pub survival: Survival,
    /// Whether a random choice may tear a page at its sectors.
    pub torn: bool,
}

/// A recording replayed up to a point.
#[derive(Debug)]
pub struct Replay {
    recording: Recording,
    point: usize,
    nodes: HashMap<u64, Node>,
    /// Positions of the records that change names.
    names: Vec<usize>,
    /// The journal is durable up to here ([`Model::Ext4`]).
    journal_durable: usize,
    /// The names of a directory are durable up to here ([`Model::Posix`]).
    names_durable: HashMap<u64, usize>,
}

impl Replay {
    /// The empty disk before the first record.
    #[must_use]
    pub fn new(recording: &Recording) -> Self {
        let root = NewNode {
            kind: NodeKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Vec::new(),
        };
        Self {
            recording: recording.clone(),
            point: 0,
            nodes: HashMap::from([(ROOT, Node::new(root, None, Timestamp::default()))]),
            names: Vec::new(),
            journal_durable: 0,
            names_durable: HashMap::new(),
        }
    }

    /// How many records have been replayed.
    #[must_use]
    pub fn point(&self) -> usize {
        self.point
    }

    /// What is replayed.
    #[must_use]
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Replays up to `point`.
    ///
    /// # Panics
    ///
    /// If `point` lies behind this one, or behind the end of the recording.
    pub fn advance_to(&mut self, point: usize) {
        assert!(self.point <= point && point <= self.recording.len(), "no way to {point}");
        let records = Arc::clone(&self.recording.records);
        for (position, record) in records.iter().enumerate().take(point).skip(self.point) {
            self.apply(position, record);
        }
        self.point = point;
    }

    fn node(&mut self, ino: u64) -> &mut Node {
        self.nodes.get_mut(&ino).expect("records create inodes before they change them")
    }

    fn apply(&mut self, position: usize, record: &Record) {
        match &record.change {
            Change::Create { parent, ino, node, .. } => {
                let born = Some((*parent, position));
                let mut node = Node::new(node.clone(), born, record.time);
                node.journaled.push((position, true));
                self.nodes.insert(*ino, node);
                self.node(*parent).journaled.push((position, true));
                self.names.push(position);
            }
            Change::Link { ino, parent, .. } | Change::Unlink { ino, parent, .. } => {
                self.node(*ino).journaled.push((position, false));
                self.node(*parent).journaled.push((position, true));
                self.names.push(position);
            }
            Change::Rename { from, to, moved, replaced, .. } => {
                for ino in [*moved].iter().chain(replaced) {
                    self.node(*ino).journaled.push((position, false));
                }
                for directory in [from.0, to.0] {
                    self.node(directory).journaled.push((position, true));
                }
                self.names.push(position);
            }
            Change::Write { ino, offset, data } => {
                self.node(*ino).write(position, *offset, data, record.time);
            }
            Change::Truncate { ino, size_bytes } => {
                let node = self.node(*ino);
                node.truncate(position, *size_bytes);
                node.modified(position, record.time);
            }
            Change::Allocate { ino, offset, len, grow_to } => {
                let node = self.node(*ino);
                for part in parts(*offset, *len) {
                    node.edit(position, part.page, What::Reserve);
                }
                node.grow(position, *grow_to);
            }
            Change::Zero { ino, offset, len, punch, grow_to } => {
                let node = self.node(*ino);
                node.zero(position, *offset, *len, *punch);
                node.grow(position, *grow_to);
                node.modified(position, record.time);
            }
            Change::Attributes { ino, mode, uid, gid, mtime } => {
                let (mode, uid, gid, mtime) = (*mode, *uid, *gid, *mtime);
                let set = AttributeChange::Set { mode, uid, gid, mtime };
                let node = self.node(*ino);
                node.attribute_changes.push_back((position, set));
                node.journaled.push((position, false));
            }
            Change::Xattr { ino, name, value } => {
                let set = AttributeChange::Xattr { name: name.clone(), value: value.clone() };
                let node = self.node(*ino);
                node.attribute_changes.push_back((position, set));
                node.journaled.push((position, false));
            }
            Change::SyncEnd { start, ino, succeeded: false, .. } => self.node(*ino).fail(*start),
            Change::SyncEnd { start, ino, data_only, succeeded: true } => {
                self.synced(*start, *ino, *data_only);
            }
            Change::SyncStart { .. } | Change::Mark(_) => {}
        }
    }

    fn synced(&mut self, start: usize, ino: u64, data_only: bool) {
        let node = self.node(ino);
        let directory = node.new.kind == NodeKind::Directory;
        let data_only = data_only && !directory;
        // The journal is committed up to the last change of this inode and no further: a journal
        // that is clean as far as the inode goes is not written.
        let last = node.journaled.iter().rev();
        let last = last.filter(|(_, for_data)| *for_data || !data_only).map(|(at, _)| *at);
        let committed = last.filter(|at| *at < start).max().map_or(0, |at| at + 1);
        node.settle(start, data_only);
        if !data_only {
            node.durable = node.durable.max(start);
        }
        self.journal_durable = self.journal_durable.max(committed);
        let mut raise = |directory: u64, to: usize| {
            let durable = self.names_durable.entry(directory).or_default();
            *durable = (*durable).max(to);
        };
        if directory {
            raise(ino, start);
        }
        // A new file's sync brings the names that lead to it, as they were when it was created.
        let mut child = ino;
        while let Some((parent, born)) = self.nodes[&child].born {
            raise(parent, born + 1);
            child = parent;
        }
    }

    /// A state that a power cut here could leave.
    #[must_use]
    pub fn image(&self, choice: &Choice) -> Image {
        let mut dice = Dice::new(choice, self.point);
        let cuts = self.cuts(choice.model, &mut dice);
        let tree = self.surviving_names(&cuts);
        let mut entries = Vec::new();
        let mut seen: HashMap<u64, Vec<u8>> = HashMap::new();
        let mut left = vec![(ROOT, Vec::new())];
        while let Some((directory, path)) = left.pop() {
            let Some(children) = tree.get(&directory) else { continue };
            for (name, ino) in children {
                let mut at = path.clone();
                if !at.is_empty() {
                    at.push(b'/');
                }
                at.extend_from_slice(name);
                let node = &self.nodes[ino];
                let first = seen.get(ino);
                if let Some(first) = first {
                    // A directory cannot be in two places; should the strict model ever put it
                    // there, the first counts.
                    if node.new.kind != NodeKind::Directory {
                        entries.push(Entry::Link { path: at, to: first.clone() });
                    }
                    continue;
                }
                seen.insert(*ino, at.clone());
                let cut = cuts.inode(*ino);
                let attributes = node.surviving_attributes(cut);
                entries.push(match node.new.kind {
                    NodeKind::Directory => {
                        left.push((*ino, at.clone()));
                        Entry::Directory { path: at, attributes }
                    }
                    NodeKind::Regular => {
                        let content = node.surviving_content(cut, choice.model, &mut dice);
                        Entry::File { path: at, attributes, content }
                    }
                    NodeKind::Symlink => {
                        Entry::Symlink { path: at, target: node.new.target.clone() }
                    }
                    NodeKind::Fifo
                    | NodeKind::Socket
                    | NodeKind::CharDevice
                    | NodeKind::BlockDevice => Entry::Special {
                        path: at,
                        kind: node.new.kind,
                        attributes,
                        rdev: node.new.rdev,
                    },
                });
            }
        }
        Image { entries }
    }

    /// Where each journal ends.
    fn cuts(&self, model: Model, dice: &mut Dice) -> Cuts {
        match model {
            Model::Ext4 => Cuts::One(dice.cut(self.journal_durable, self.point)),
            Model::Posix => {
                let mut names = self.names_durable.clone();
                self.keep_renames_whole(&mut names);
                let mut inodes = HashMap::new();
                let mut all: Vec<u64> = self.nodes.keys().copied().collect();
                all.sort_unstable();
                for ino in all {
                    let node = &self.nodes[&ino];
                    inodes.insert(ino, dice.cut(node.durable, self.point));
                    if node.new.kind == NodeKind::Directory {
                        let durable = names.get(&ino).copied().unwrap_or(0);
                        names.insert(ino, dice.cut(durable, self.point));
                    }
                }
                self.keep_renames_whole(&mut names);
                Cuts::Each { names, inodes }
            }
        }
    }

    /// A rename between two directories that one of them has is in the other too.
    fn keep_renames_whole(&self, names: &mut HashMap<u64, usize>) {
        let mut again = true;
        while again {
            again = false;
            for position in &self.names {
                let Change::Rename { from, to, .. } = &self.recording.records[*position].change
                else {
                    continue;
                };
                let has = |directory| names.get(&directory).is_some_and(|cut| cut > position);
                if has(from.0) != has(to.0) {
                    for directory in [from.0, to.0] {
                        let cut = names.entry(directory).or_default();
                        *cut = (*cut).max(position + 1);
                    }
                    again = true;
                }
            }
        }
    }

    fn surviving_names(&self, cuts: &Cuts) -> HashMap<u64, BTreeMap<Vec<u8>, u64>> {
        let mut tree: HashMap<u64, BTreeMap<Vec<u8>, u64>> = HashMap::new();
        for position in &self.names {
            let change = &self.recording.records[*position].change;
            if !change.directory().is_some_and(|directory| cuts.has_name(directory, *position)) {
                continue;
            }
            if let Change::Create { parent, name, ino, .. } | Change::Link { parent, name, ino } =
                change
            {
                tree.entry(*parent).or_default().insert(name.clone(), *ino);
            } else if let Change::Unlink { parent, name, .. } = change {
                tree.entry(*parent).or_default().remove(name);
            } else if let Change::Rename { from, to, moved, replaced, exchange } = change {
                let source = tree.entry(from.0).or_default();
                source.remove(&from.1);
                if *exchange && let Some(replaced) = replaced {
                    source.insert(from.1.clone(), *replaced);
                }
                tree.entry(to.0).or_default().insert(to.1.clone(), *moved);
            }
        }
        tree
    }
}

/// Up to where journals survived.
enum Cuts {
    One(usize),
    Each { names: HashMap<u64, usize>, inodes: HashMap<u64, usize> },
}

impl Cuts {
    fn has_name(&self, directory: u64, position: usize) -> bool {
        position
            < match self {
                Self::One(cut) => *cut,
                Self::Each { names, .. } => names.get(&directory).copied().unwrap_or(0),
            }
    }

    fn inode(&self, ino: u64) -> usize {
        match self {
            Self::One(cut) => *cut,
            Self::Each { inodes, .. } => inodes.get(&ino).copied().unwrap_or(0),
        }
    }
}
