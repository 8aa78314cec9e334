//! The visitor that adds up.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::inodes::Inodes;
use super::report::{ERRORS_KEPT, Part};
use super::{Counted, Detail, Links, Observer, Progress, Rules, TimeOf, Totals};
use crate::{Descend, Dir, Entered, Entry, Error, FileId, Operation, Visitor};

/// What all gauges of a measurement share.
#[derive(Debug)]
pub(super) struct Measuring<'m> {
    pub(super) inodes: Inodes,
    pub(super) links: Links,
    /// Every inode is remembered, not only those with several names.
    pub(super) all_inodes: bool,
    pub(super) detail: Detail,
    pub(super) time_of: TimeOf,
    pub(super) progress: Option<&'m Progress>,
}

/// What is known of a directory so far, or, of one that is complete and not a root, all in `below`.
#[derive(Debug, Default)]
pub(super) struct Sum {
    /// The directory and the files in it.
    pub(super) own: Totals,
    /// The directories in it, with all that is below them.
    pub(super) below: Totals,
    /// Something in it could not be read.
    pub(super) incomplete: bool,
    /// It is a root that was counted before.
    pub(super) repeated: bool,
}

impl Sum {
    pub(super) fn total(&self) -> Totals {
        let mut total = self.own;
        total.add(&self.below);
        total
    }
}

pub(super) struct Gauge<'m, R, O> {
    measuring: &'m Measuring<'m>,
    rules: &'m R,
    pub(super) observer: O,
    pub(super) parts: Vec<Part>,
    pub(super) errors: Vec<Error>,
    pub(super) error_count: u64,
    /// Not told to `progress` yet.
    recent: Totals,
}

impl<'m, R: Rules, O: Observer> Gauge<'m, R, O> {
    pub(super) fn new(measuring: &'m Measuring<'m>, rules: &'m R, observer: O) -> Self {
        Self {
            measuring,
            rules,
            observer,
            parts: Vec::new(),
            errors: Vec::new(),
            error_count: 0,
            recent: Totals::default(),
        }
    }

    fn report_progress(&mut self) {
        if let Some(progress) = self.measuring.progress {
            let recent = std::mem::take(&mut self.recent);
            progress.files.fetch_add(recent.inodes - recent.directories, Relaxed);
            progress.directories.fetch_add(recent.directories, Relaxed);
            progress.disk_bytes.fetch_add(recent.disk_bytes, Relaxed);
        }
    }
}

impl<R: Rules, O: Observer> Visitor for Gauge<'_, R, O> {
    type Scope = R::Scope;
    type Tally = Sum;

    fn enter(
        &mut self,
        entered: &Entered<'_>,
        parent: Option<&R::Scope>,
        tally: &mut Sum,
    ) -> Descend<R::Scope> {
        let Some(metadata) = entered.metadata() else { return Descend::Skip };
        let Some(scope) = self.rules.enter(entered, parent) else { return Descend::Skip };
        if self.measuring.all_inodes && !self.measuring.inodes.insert(metadata.file_id()) {
            tally.repeated = true;
            return Descend::Skip;
        }
        let totals = Totals::of(metadata, self.measuring.time_of);
        tally.own.add(&totals);
        self.observer.counted(Counted::Directory(entered));
        if self.measuring.progress.is_some() {
            self.recent.add(&totals);
            self.report_progress();
        }
        Descend::Into(scope)
    }

    fn keep(&mut self, entry: &Entry<'_>, scope: &R::Scope) -> bool {
        self.rules.keep(entry, scope)
    }

    fn wants_metadata(&mut self, entry: &Entry<'_>, _scope: &R::Scope) -> bool {
        self.measuring.links == Links::Each
            || listed_id(entry)
                .is_none_or(|id| !self.measuring.inodes.knows(id, entry.name_bytes()))
    }

    fn file(&mut self, entry: &Entry<'_>, _scope: Option<&R::Scope>, tally: &mut Sum) {
        let Measuring { inodes, detail, .. } = self.measuring;
        let Some(metadata) = entry.metadata() else {
            // Counted under another name.
            if let Some(id) = listed_id(entry)
                && *detail != Detail::Totals
            {
                inodes.sight(id, None, entry);
            }
            return;
        };
        let totals = Totals::of(metadata, self.measuring.time_of);
        let has_names = metadata.links() > 1;
        if self.measuring.links == Links::Once && (has_names || self.measuring.all_inodes) {
            let id = metadata.file_id();
            let given_later = has_names && *detail != Detail::Totals;
            let is_new = match given_later {
                true => inodes.sight(id, Some(&totals), entry),
                false => inodes.insert(id),
            };
            if !is_new {
                tally.repeated = entry.dir().is_none();
                return;
            }
            if given_later {
                self.observer.counted(Counted::File(entry));
                return;
            }
        }
        tally.own.add(&totals);
        self.observer.counted(Counted::File(entry));
        if self.measuring.progress.is_some() {
            self.recent.add(&totals);
            if self.recent.inodes == 1024 {
                self.report_progress();
            }
        }
        if detail.has_file(entry.depth()) {
            self.parts.push(Part::file(entry, totals));
        }
    }

    fn exit(&mut self, dir: &Arc<Dir>, _scope: &R::Scope, tally: &mut Sum) {
        let max_depth = match self.measuring.detail {
            Detail::Totals => None,
            Detail::Directories { max_depth } | Detail::Files { max_depth } => Some(max_depth),
        };
        if max_depth.is_some_and(|max_depth| dir.depth() <= max_depth) {
            self.parts.push(Part::directory(dir, tally));
        }
        if dir.depth() > 0 {
            *tally = Sum { below: tally.total(), ..Sum::default() };
        }
    }

    fn fold(&mut self, into: &mut Sum, part: Sum) {
        into.own.add(&part.own);
        into.below.add(&part.below);
        into.incomplete |= part.incomplete;
    }

    fn error(&mut self, error: Error, tally: &mut Sum) {
        // It is counted where it was met first.
        if error.operation() == Operation::Loop {
            return;
        }
        tally.incomplete = true;
        self.error_count += 1;
        self.observer.failed(&error);
        if self.errors.len() < ERRORS_KEPT {
            self.errors.push(error);
        }
    }
}

/// The inode that the listing says, on the device of its directory.
fn listed_id(entry: &Entry<'_>) -> Option<FileId> {
    let device = entry.dir()?.file_id()?.device;
    Some(FileId { device, inode: entry.inode() })
}
