//! Checks every invariant of the metadata, M1 to M18 of `docs/format.md`, and mends what it can.
//!
//! Without repair it reads a snapshot while the volume goes on working. With repair nothing else
//! may change; then it works in rounds: find everything, mend what can be mended on its own, look
//! again, until a round mends nothing. One fault often shows as several, and a mend may make the
//! next one possible, so rounds are simpler than an order that is right in one go.
//!
//! What a mend never does is invent file bytes: a manifest or page that is damaged or missing is
//! reported and stays, so that reading it goes on failing instead of returning zeros.
//!
//! Memory is bounded: counts that need the whole volume are made in windows of inodes or pages,
//! with one pass over dentries or manifests for each window.

mod content;
mod links;

use std::ops::Bound;

use fjall::Slice;
use librorum_format::{Ino, TxnId};
use librorum_sys::clock;

use super::Core;
use super::edit::corrupt;
use super::engine::{Change, View};
use super::space::Growth;
use crate::record::{Body, Record, State, Table, key};
use crate::{Content, FileKind, Inode, MetaError, MetaStats, Result};

/// A repair that is still finding things after this many rounds goes in circles.
const ROUNDS_MAX: usize = 12;

/// Mends gather up to this before they become an operation.
const STEP_BYTES: usize = 1 << 20;

/// How large the windows are: inodes and pages whose counts are held at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    pub inodes: usize,
    pub pages: usize,
}

impl Default for Windows {
    /// About 32 MiB each.
    fn default() -> Self {
        Self { inodes: 256 << 10, pages: 256 << 10 }
    }
}

pub(super) fn check(core: &Core, repair: bool, report: &mut dyn FnMut(String)) -> Result<()> {
    check_in(core, repair, Windows::default(), report)
}

pub(super) fn check_in(
    core: &Core,
    repair: bool,
    windows: Windows,
    report: &mut dyn FnMut(String),
) -> Result<()> {
    let _frozen = repair.then(|| core.freeze());
    for _ in 0..ROUNDS_MAX {
        let mut checker = Checker {
            core,
            view: core.engine.view()?,
            windows,
            repair,
            report,
            change: Change::default(),
            mended: 0,
            new_stats: None,
        };
        checker.run()?;
        if checker.finish()? == 0 {
            break;
        }
        // Whatever was cached may be what was wrong.
        core.records.clear();
        core.targets.clear();
    }
    Ok(())
}

struct Checker<'a> {
    core: &'a Core,
    view: View,
    windows: Windows,
    repair: bool,
    report: &'a mut dyn FnMut(String),
    change: Change,
    mended: usize,
    new_stats: Option<MetaStats>,
}

/// Whether a violation can be mended on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mend {
    Possible,
    Impossible,
}

impl Checker<'_> {
    fn run(&mut self) -> Result<()> {
        let found = self.links()?;
        self.content(found.stats.staged_count)?;
        self.state(&found)
    }

    /// Reports a violation; true if it shall be mended now.
    fn violation(&mut self, rule: &str, mend: Mend, what: std::fmt::Arguments<'_>) -> bool {
        let fate = match (self.repair, mend) {
            (false, _) => "",
            (true, Mend::Possible) => "; mended",
            (true, Mend::Impossible) => "; cannot be mended",
        };
        (self.report)(format!("{rule}: {what}{fate}"));
        let mends = self.repair && mend == Mend::Possible;
        self.mended += usize::from(mends);
        mends
    }

    /// Writes a mend. Later ones of the same round see it through [`Core`], not through the view.
    fn set(&mut self, table: Table, key: impl Into<Slice>, value: Option<Slice>) -> Result<()> {
        self.change.layer.set(table, key.into(), value);
        if self.change.layer.cost_bytes() > STEP_BYTES { self.step() } else { Ok(()) }
    }

    fn step(&mut self) -> Result<()> {
        if !self.change.layer.is_empty() {
            self.core.engine.admit(Growth::Frees)?;
            self.core.engine.append(std::mem::take(&mut self.change))?;
        }
        Ok(())
    }

    /// Changes an inode record on top of what this round has already done to it.
    fn fix_record(&mut self, ino: Ino, fix: impl FnOnce(&mut Record)) -> Result<()> {
        let pending = self.change.layer.get(Table::Inodes, &key::inode(ino)).cloned();
        let record = match pending {
            Some(Some(bytes)) => {
                Some(Record::decode(ino, &bytes).map_err(|source| corrupt("inodes", ino, source))?)
            }
            Some(None) => None,
            None => self.core.record_uncached(ino)?,
        };
        match record {
            Some(mut record) => {
                fix(&mut record);
                self.set(Table::Inodes, key::inode(ino), Some(record.encode().into()))
            }
            None => Ok(()),
        }
    }

    /// What can be said of an inode whose record is lost, from what is stored beside it.
    fn salvage(&self, ino: Ino) -> Result<Option<Record>> {
        let mut record = lost_record(ino, FileKind::Regular);
        let inode = &mut record.inode;
        let body = self.view.get(Table::Bodies, &key::inode(ino))?;
        match body.map(|bytes| Body::decode(&bytes)) {
            Some(Ok(Body::Inline(bytes))) => {
                inode.content = Content::Inline;
                inode.size_bytes = bytes.len() as u64;
            }
            Some(Ok(Body::Symlink(target))) => {
                inode.kind = FileKind::Symlink;
                inode.size_bytes = target.len() as u64;
            }
            Some(Ok(Body::Manifest(entries))) => {
                inode.content = Content::Sealed;
                inode.size_bytes = entries.last().map_or(0, |last| last.end_bytes);
            }
            Some(Err(_)) | None => {
                let mut has_entries = ino == Ino::ROOT;
                let start = key::dentry_start(ino, 0);
                self.view.scan(
                    Table::Dentries,
                    from(&start),
                    &key::behind(ino.0),
                    &mut |_, _| {
                        has_entries = true;
                        Ok(false)
                    },
                )?;
                return Ok(has_entries.then(|| lost_record(ino, FileKind::Directory)));
            }
        }
        inode.allocated_bytes = inode.size_bytes;
        Ok(Some(record))
    }

    fn finish(mut self) -> Result<usize> {
        self.step()?;
        if let Some(stats) = self.new_stats {
            self.core.engine.set_stats(stats)?;
        }
        Ok(self.mended)
    }

    /// The record of an inode as the view has it; `None` too if it is damaged, which
    /// [`Checker::links`] reports.
    fn record(&self, ino: Ino) -> Result<Option<Record>> {
        let bytes = self.view.get(Table::Inodes, &key::inode(ino))?;
        Ok(bytes.and_then(|bytes| Record::decode(ino, &bytes).ok()))
    }

    /// M16 and M17: the counters, and the bound of inode numbers.
    fn state(&mut self, found: &links::Found) -> Result<()> {
        let bytes = self
            .view
            .get(Table::Small, &key::STATE)?
            .ok_or_else(|| MetaError::Missing { key: "small/state".into() })?;
        let state = State::decode(&bytes).map_err(|source| corrupt("small", "state", source))?;
        if state.stats != found.stats
            && self.violation(
                "M16",
                Mend::Possible,
                format_args!("the counters are {:?}, not {:?}", state.stats, found.stats),
            )
        {
            self.new_stats = Some(found.stats);
        }
        if found.ino_max.0 >= state.ino_bound
            && self.violation(
                "M17",
                Mend::Possible,
                format_args!("{} is not below the bound {}", found.ino_max, state.ino_bound),
            )
        {
            self.core.engine.reserve_ino(found.ino_max);
        }
        if state.txn > self.core.engine.newest_txn() || state.txn == TxnId(0) {
            self.violation("M17", Mend::Impossible, format_args!("{} is impossible", state.txn));
        }
        Ok(())
    }
}

/// A record for an inode of which little is known: for its owner's eyes only.
fn lost_record(ino: Ino, kind: FileKind) -> Record {
    let now = clock::now();
    let is_directory = kind == FileKind::Directory;
    Record {
        inode: Inode {
            ino,
            kind,
            mode: if ino == Ino::ROOT { 0o755 } else { 0o700 },
            uid: 0,
            gid: 0,
            nlink: if is_directory { 2 } else { 1 },
            rdev: 0,
            size_bytes: 0,
            allocated_bytes: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            content: Content::Empty,
            content_version: 0,
            has_xattrs: false,
            parent: Ino::ROOT,
        },
        entry_count: 0,
    }
}

/// A bound for scans from a key on.
fn from(key: &[u8]) -> Bound<&[u8]> {
    Bound::Included(key)
}
