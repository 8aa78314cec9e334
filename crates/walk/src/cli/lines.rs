//! Which items of a scan become lines, in which order, with which number.

use super::options::{Counting, Shown, SortKey, TimeStyle};
use super::scan::Scan;
use super::size::Threshold;
use super::zone::Zone;
use crate::du::{Item, Totals};
use crate::{Kind, Time};

/// The number that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Disk,
    Apparent,
    Inodes,
}

impl Measure {
    pub(crate) fn new(counting: &Counting) -> Self {
        if counting.inodes {
            Self::Inodes
        } else if counting.apparent_size || counting.bytes {
            Self::Apparent
        } else {
            Self::Disk
        }
    }

    pub(crate) fn of(self, totals: &Totals) -> u64 {
        match self {
            Self::Disk => totals.disk_bytes,
            Self::Apparent => totals.apparent_bytes,
            Self::Inodes => totals.inodes,
        }
    }
}

/// Which kinds of item are lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinds {
    All,
    /// And whatever was given as a path: du's default.
    DirectoriesAndRoots,
    Directories,
    Files,
}

/// A choice of lines.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) kinds: Kinds,
    pub(crate) min_depth: u32,
    pub(crate) max_depth: u32,
    pub(crate) threshold: Option<Threshold>,
    pub(crate) measure: Measure,
    pub(crate) separate: bool,
    pub(crate) sort: Option<SortKey>,
    pub(crate) reverse: bool,
}

impl Choice {
    pub(crate) fn new(shown: &Shown, counting: &Counting) -> Self {
        let kinds = match (shown.all, shown.dirs_only, shown.files_only) {
            (true, _, _) => Kinds::All,
            (_, true, _) => Kinds::Directories,
            (_, _, true) => Kinds::Files,
            (false, false, false) => Kinds::DirectoriesAndRoots,
        };
        let max_depth = if shown.summarize { 0 } else { shown.max_depth.unwrap_or(u32::MAX) };
        Self {
            kinds,
            min_depth: shown.min_depth.unwrap_or(0),
            max_depth,
            threshold: shown.threshold,
            measure: Measure::new(counting),
            separate: shown.separate_dirs,
            sort: shown.sort,
            reverse: shown.reverse,
        }
    }

    /// The sums that a line shows.
    pub(crate) fn totals<'i>(&self, item: &'i Item) -> &'i Totals {
        if self.separate { &item.own } else { &item.total }
    }

    pub(crate) fn size(&self, item: &Item) -> u64 {
        self.measure.of(self.totals(item))
    }

    fn admits(&self, scan: &Scan, item: &Item) -> bool {
        let is_directory = item.kind == Kind::Directory;
        let kind = match self.kinds {
            Kinds::All => true,
            Kinds::DirectoriesAndRoots => is_directory || item.depth == 0,
            Kinds::Directories => is_directory,
            Kinds::Files => !is_directory,
        };
        kind && (self.min_depth..=self.max_depth).contains(&item.depth)
            && self.threshold.is_none_or(|threshold| threshold.admits(self.size(item)))
            && scan.is_counted(item)
    }

    /// Whether an item comes before another. Indexes are in the order of names already.
    pub(crate) fn compare(&self, scan: &Scan, one: usize, other: usize) -> std::cmp::Ordering {
        let (first, second) = (&scan.items[one], &scan.items[other]);
        let (first, second) = (self.totals(first), self.totals(second));
        let by_key = match self.sort {
            None | Some(SortKey::Name) => std::cmp::Ordering::Equal,
            Some(SortKey::Size) => self.measure.of(second).cmp(&self.measure.of(first)),
            Some(SortKey::Count) => second.inodes.cmp(&first.inodes),
            Some(SortKey::Time) => second.newest.cmp(&first.newest),
        };
        let ordering = by_key.then(one.cmp(&other));
        if self.reverse { ordering.reverse() } else { ordering }
    }

    /// The items that become lines, in their order.
    pub(crate) fn lines(&self, scan: &Scan) -> Vec<usize> {
        let mut lines = Vec::new();
        if self.sort.is_some() {
            lines
                .extend((0..scan.items.len()).filter(|item| self.admits(scan, &scan.items[*item])));
            lines.sort_by(|one, other| self.compare(scan, *one, *other));
            return lines;
        }
        // A directory comes after what is in it.
        let mut open: Vec<usize> = Vec::new();
        for (index, item) in scan.items.iter().enumerate() {
            while let Some(done) = open.pop_if(|last| scan.items[*last].depth >= item.depth) {
                lines.push(done);
            }
            open.push(index);
        }
        lines.extend(open.into_iter().rev());
        lines.retain(|item| self.admits(scan, &scan.items[*item]));
        lines
    }
}

/// A name for a kind.
pub(crate) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::File => "file",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "char_device",
        Kind::BlockDevice => "block_device",
        Kind::Unknown => "unknown",
    }
}

/// A letter for a kind: those of `find -type`.
pub(crate) fn kind_letter(kind: Kind) -> char {
    match kind {
        Kind::Directory => 'd',
        Kind::File => 'f',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Unknown => 'U',
    }
}

/// Local time as du writes it.
pub(crate) fn local_time(time: Option<Time>, zone: &Zone, style: TimeStyle) -> String {
    let Some(time) = time else { return "?".to_owned() };
    let at = zone.at(time.secs);
    let date = format!("{:04}-{:02}-{:02}", at.year, at.month, at.day);
    match style {
        TimeStyle::Iso => date,
        TimeStyle::LongIso => format!("{date} {:02}:{:02}", at.hour, at.minute),
        TimeStyle::FullIso => {
            let sign = if at.offset_secs < 0 { '-' } else { '+' };
            let offset = at.offset_secs.abs() / 60;
            format!(
                "{date} {:02}:{:02}:{:02}.{:09} {sign}{:02}{:02}",
                at.hour,
                at.minute,
                at.second,
                time.nanos,
                offset / 60,
                offset % 60
            )
        }
    }
}

/// RFC 3339 in UTC, to the nanosecond.
pub(crate) fn utc_time(time: Time) -> String {
    let at = Zone::default().at(time.secs);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        at.year, at.month, at.day, at.hour, at.minute, at.second, time.nanos
    )
}
