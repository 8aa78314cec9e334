//! What was measured, put together: parts from all threads become trees in sorted order.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::gauge::{Gauge, Sum};
use super::inodes::{Inodes, Sighting};
use super::{Detail, Observer, Rules, Totals};
use crate::{Dir, DirId, Entry, Error, Kind, Outcome, Statistics};

/// How many errors a report keeps; it counts all.
pub const ERRORS_KEPT: usize = 100_000;

/// What became of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootState {
    /// It was counted, perhaps with errors below it.
    Counted,
    /// It was counted before, as or below another root; du does not print it.
    Repeated,
    /// It could not be asked for.
    Failed,
    /// It was left out by the rules, or the walk was stopped before it was complete.
    LeftOut,
}

/// What a root occupies.
#[derive(Clone, Debug)]
pub struct RootReport {
    /// As it was given.
    pub path: PathBuf,
    /// With everything below it, but for what was counted under roots before it.
    pub totals: Totals,
    /// What became of it.
    pub state: RootState,
}

/// What a directory or file occupies.
#[derive(Clone, Debug)]
pub struct Item {
    /// The directory it is in, as an index into [`Report::items`]; `None` for a root.
    pub parent: Option<usize>,
    /// Its name; of a root, the path as it was given.
    pub name: OsString,
    /// How far below its root it is; 0 for a root.
    pub depth: u32,
    /// Which root it is below.
    pub root: usize,
    /// What it is.
    pub kind: Kind,
    /// Itself, and of a directory the files in it (`du -S`).
    pub own: Totals,
    /// Itself and everything below it, reported or not.
    pub total: Totals,
    /// Something directly in it could not be read.
    pub incomplete: bool,
}

/// A measurement.
#[derive(Debug)]
pub struct Report {
    /// Of all roots together: `du -c`.
    pub total: Totals,
    /// One for each root, in the order they were given.
    pub roots: Vec<RootReport>,
    /// What [`Detail`] asked for: root by root, a directory before what is in it, siblings by the bytes of
    /// their names. Some 250 bytes each.
    pub items: Vec<Item>,
    /// What went wrong, by path; the first [`ERRORS_KEPT`] or so.
    pub errors: Vec<Error>,
    /// How much went wrong.
    pub error_count: u64,
    /// What each worker did.
    pub statistics: Vec<Statistics>,
    /// Whether it was stopped, and so is incomplete.
    pub stopped: bool,
}

impl Report {
    /// The path of an item.
    ///
    /// # Panics
    ///
    /// If there is no such item.
    #[must_use]
    pub fn path_of(&self, item: usize) -> PathBuf {
        let up = std::iter::successors(Some(item), |item| self.items[*item].parent);
        let names: Vec<&[u8]> = up.map(|item| self.items[item].name.as_bytes()).collect();
        let mut path = Vec::new();
        for name in names.into_iter().rev() {
            if !path.is_empty() && path.last() != Some(&b'/') {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        PathBuf::from(OsString::from_vec(path))
    }
}

/// An item as the thread saw it that completed it.
#[derive(Debug)]
pub(super) struct Part {
    /// The directory itself, or that which the file is in.
    dir: Option<Arc<Dir>>,
    /// The file's name.
    file: Option<Box<[u8]>>,
    root: usize,
    kind: Kind,
    own: Totals,
    total: Totals,
    incomplete: bool,
}

impl Part {
    pub(super) fn directory(dir: &Arc<Dir>, sum: &Sum) -> Self {
        Self {
            dir: Some(Arc::clone(dir)),
            file: None,
            root: dir.root(),
            kind: Kind::Directory,
            own: sum.own,
            total: sum.total(),
            incomplete: sum.incomplete,
        }
    }

    pub(super) fn file(entry: &Entry<'_>, totals: Totals) -> Self {
        Self {
            dir: entry.dir().cloned(),
            file: Some(entry.name_bytes().into()),
            root: entry.root(),
            kind: entry.kind(),
            own: totals,
            total: totals,
            incomplete: false,
        }
    }

    fn sighted(sighting: Sighting) -> Self {
        let Sighting { totals, kind, root, dir, name } = sighting;
        let file = Some(name);
        Self { dir, file, root, kind, own: totals, total: totals, incomplete: false }
    }

    /// The directory it is in.
    fn parent(&self) -> Option<DirId> {
        match (&self.file, &self.dir) {
            (Some(_), dir) => dir.as_ref().map(|dir| dir.id()),
            (None, dir) => dir.as_ref().and_then(|dir| dir.parent()).map(|dir| dir.id()),
        }
    }

    fn depth(&self) -> u32 {
        let dir = self.dir.as_ref().map(|dir| dir.depth());
        match &self.file {
            Some(_) => dir.map_or(0, |depth| depth + 1),
            None => dir.unwrap_or(0),
        }
    }

    fn name(&self) -> &[u8] {
        match (&self.file, &self.dir) {
            (Some(name), _) => name,
            (None, Some(dir)) => dir.name().as_bytes(),
            (None, None) => b"",
        }
    }
}

pub(super) fn assemble<R: Rules, O: Observer>(
    paths: &[PathBuf],
    outcome: Outcome<Gauge<'_, R, O>>,
    inodes: &Inodes,
    detail: Detail,
) -> (Report, Vec<O>) {
    let Outcome { visitors, roots: sums, statistics, stopped } = outcome;
    let mut roots: Vec<RootReport> = paths
        .iter()
        .zip(&sums)
        .map(|(path, sum)| RootReport {
            path: path.clone(),
            totals: sum.total(),
            state: match sum {
                Sum { repeated: true, .. } => RootState::Repeated,
                sum if sum.own.inodes > 0 => RootState::Counted,
                Sum { incomplete: true, .. } => RootState::Failed,
                _ => RootState::LeftOut,
            },
        })
        .collect();
    let (mut parts, mut errors, mut observers) = (Vec::new(), Vec::new(), Vec::new());
    let mut error_count = 0;
    for gauge in visitors {
        parts.extend(gauge.parts);
        errors.extend(gauge.errors);
        observers.push(gauge.observer);
        error_count += gauge.error_count;
    }
    errors.sort_by(|one: &Error, two| one.path().cmp(two.path()));
    award(&mut parts, &mut roots, inodes, detail);
    let mut total = Totals::default();
    for root in &roots {
        total.add(&root.totals);
    }
    let items = in_order(&parts);
    (Report { total, roots, items, errors, error_count, statistics, stopped }, observers)
}

/// Gives each inode with several names to the first of them, and so to all directories above it.
fn award(parts: &mut Vec<Part>, roots: &mut [RootReport], inodes: &Inodes, detail: Detail) {
    if detail == Detail::Totals {
        return;
    }
    let by_id = index(parts);
    for sighting in inodes.take_sightings() {
        let root = &mut roots[sighting.root];
        root.totals.add(&sighting.totals);
        if sighting.dir.is_none() {
            root.state = RootState::Counted;
        }
        let own_dir = sighting.dir.as_ref().map(|dir| dir.id());
        let up = std::iter::successors(sighting.dir.as_ref(), |dir| dir.parent());
        for dir in up {
            let Some(part) = by_id.get(&dir.id()) else { continue };
            parts[*part].total.add(&sighting.totals);
            if own_dir == Some(dir.id()) {
                parts[*part].own.add(&sighting.totals);
            }
        }
        let part = Part::sighted(sighting);
        if detail.has_file(part.depth()) {
            parts.push(part);
        }
    }
}

/// Where the directories are.
fn index(parts: &[Part]) -> HashMap<DirId, usize> {
    let directories = parts.iter().enumerate().filter(|(_, part)| part.file.is_none());
    directories.filter_map(|(index, part)| part.dir.as_ref().map(|dir| (dir.id(), index))).collect()
}

/// Parts as items in sorted preorder.
fn in_order(parts: &[Part]) -> Vec<Item> {
    let by_id = index(parts);
    let mut below: Vec<Vec<usize>> = parts.iter().map(|_part| Vec::new()).collect();
    let mut waiting: Vec<(usize, Option<usize>)> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        match part.parent() {
            None => waiting.push((index, None)),
            // A directory without a part was not completed: the walk was stopped.
            Some(parent) => {
                if let Some(parent) = by_id.get(&parent) {
                    below[*parent].push(index);
                }
            }
        }
    }
    waiting.sort_by_key(|(index, _)| std::cmp::Reverse(parts[*index].root));
    let mut items = Vec::with_capacity(parts.len());
    while let Some((index, parent)) = waiting.pop() {
        let part = &parts[index];
        let children = &mut below[index];
        children.sort_by(|one, two| parts[*two].name().cmp(parts[*one].name()));
        let own_index = items.len();
        waiting.extend(children.iter().map(|child| (*child, Some(own_index))));
        items.push(Item {
            parent,
            name: OsString::from_vec(part.name().to_vec()),
            depth: part.depth(),
            root: part.root,
            kind: part.kind,
            own: part.own,
            total: part.total,
            incomplete: part.incomplete,
        });
    }
    items
}
