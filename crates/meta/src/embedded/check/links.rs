//! M1 to M9 and M15: inodes, dentries, sets, attributes.

use std::collections::{BTreeMap, BTreeSet};

use fjall::Slice;
use librorum_format::Ino;

use super::super::names::check_name;
use super::{Checker, Mend, from, lost_record};
use crate::record::{Record, Table, Target, key};
use crate::{Content, FileKind, Inode, MetaStats, Result};

/// What the pass over all inodes learns for the others.
#[derive(Debug)]
pub(super) struct Found {
    pub stats: MetaStats,
    pub ino_max: Ino,
}

type Window = BTreeMap<Ino, Tally>;

/// What the dentries say about an inode of the window.
#[derive(Debug)]
struct Tally {
    kind: FileKind,
    nlink: u32,
    parent: Ino,
    entry_count: u64,
    is_staged: bool,
    has_xattrs: bool,
    /// Dentries that lead here.
    name_count: u32,
    /// Whether one of them is in the directory that a directory says is its parent.
    in_parent: bool,
    /// The directory of the first one.
    first_parent: Option<Ino>,
    /// Dentries in here.
    found_entries: u64,
    /// Directories among them.
    found_directories: u32,
}

impl Checker<'_> {
    pub(super) fn links(&mut self) -> Result<Found> {
        let mut found = Found { stats: MetaStats::default(), ino_max: Ino(0) };
        let mut low = 0;
        loop {
            let (mut window, high) = self.inode_window(low, &mut found)?;
            self.dentries_against(low, high, &mut window)?;
            self.sets_against(low, high, &window)?;
            self.xattrs_against(low, high, &window)?;
            if high == u64::MAX {
                break;
            }
            low = high + 1;
        }
        self.reachability(found.stats.directory_count)?;
        Ok(found)
    }

    /// Reads the next inodes from `low` on: the window, and the last number that it speaks for.
    fn inode_window(&mut self, low: u64, found: &mut Found) -> Result<(Window, u64)> {
        let mut window = BTreeMap::new();
        let mut damaged = Vec::new();
        let mut odd = Vec::new();
        let limit = self.windows.inodes;
        let mut high = u64::MAX;
        let start = key::inode(Ino(low));
        self.view.scan(Table::Inodes, from(&start), &[0xff; 9], &mut |key, value| {
            let Some(ino) = key::parse_inode(key) else {
                odd.push(key.clone());
                return Ok(true);
            };
            match Record::decode(ino, value) {
                Ok(record) => {
                    count(&record.inode, found);
                    odd.extend(violations_of(&record).then(|| key.clone()));
                    window.insert(ino, Tally::new(&record));
                }
                Err(error) => damaged.push((ino, error)),
            }
            if window.len() + damaged.len() >= limit {
                high = ino.0;
                return Ok(false);
            }
            Ok(true)
        })?;
        for (ino, error) in damaged {
            if self.violation("M1", Mend::Possible, format_args!("the record of {ino}: {error}")) {
                self.replace_lost(ino, &mut window)?;
            }
        }
        for key in odd {
            match key::parse_inode(&key) {
                Some(ino) => {
                    let what =
                        format_args!("{ino} has content or a size that its kind cannot have");
                    if self.violation("M18", Mend::Possible, what) {
                        self.fix_record(ino, settle)?;
                    }
                }
                None => self.odd_key(Table::Inodes, &key)?,
            }
        }
        if low <= Ino::ROOT.0
            && Ino::ROOT.0 <= high
            && !window.contains_key(&Ino::ROOT)
            && self.violation("M4", Mend::Possible, format_args!("the root is missing"))
        {
            self.replace_lost(Ino::ROOT, &mut window)?;
        }
        Ok((window, high))
    }

    /// Puts what can be salvaged in place of a record, so that what it led to keeps its names.
    fn replace_lost(&mut self, ino: Ino, window: &mut Window) -> Result<()> {
        let salvaged = self.salvage(ino)?;
        if let Some(record) = &salvaged {
            window.insert(ino, Tally::new(record));
        }
        let value = salvaged.map(|record| Slice::from(record.encode()));
        self.set(Table::Inodes, key::inode(ino), value)
    }

    fn odd_key(&mut self, table: Table, key: &Slice) -> Result<()> {
        let what = format_args!("{table:?} has a key that cannot be: {}", key.escape_ascii());
        if self.violation("M1", Mend::Possible, what) {
            self.set(table, key.clone(), None)?;
        }
        Ok(())
    }

    /// M2 to M6: one pass over all dentries, counting what concerns the window.
    fn dentries_against(&mut self, low: u64, high: u64, window: &mut Window) -> Result<()> {
        let within = |ino: Ino| ino.0 >= low && ino.0 <= high;
        // A handful, unless the volume is in ruins.
        let mut faults = Vec::new();
        let mut lost_directories = BTreeSet::new();
        let view = &self.view;
        let core = self.core;
        view.scan_all(Table::Dentries, &mut |key, value| {
            let parts = key::parse_dentry(key)
                .map(|(parent, cookie, name)| (parent, cookie, name, Target::decode(value)));
            let Some((parent, cookie, name, Ok(target))) = parts else {
                // Once, not once per window.
                if low == 0 {
                    faults.push((key.clone(), Fault::Damaged));
                }
                return Ok(true);
            };
            if low == 0 && (check_name(name).is_err() || core.cookie(name) != cookie) {
                faults.push((key.clone(), Fault::Misplaced(target)));
            }
            if within(parent) {
                match window.get_mut(&parent) {
                    Some(tally) if tally.kind == FileKind::Directory && tally.nlink > 0 => {
                        tally.found_entries += 1;
                        tally.found_directories += u32::from(target.kind == FileKind::Directory);
                    }
                    Some(_) | None if lost_directories.insert(parent) => {
                        faults.push((key.clone(), Fault::NoDirectory));
                    }
                    Some(_) | None => {}
                }
            }
            if within(target.ino) {
                match window.get_mut(&target.ino) {
                    Some(tally) => {
                        // Of a directory's dentries the one in its parent counts, else the first.
                        let is_extra = tally.kind == FileKind::Directory
                            && (target.ino == Ino::ROOT
                                || (tally.name_count > 0
                                    && (tally.in_parent || tally.parent != parent)));
                        if tally.kind != target.kind {
                            let kind = tally.kind;
                            let right = Target { kind, ..target };
                            faults.push((key.clone(), Fault::WrongKind(right)));
                        }
                        if is_extra {
                            faults.push((key.clone(), Fault::SecondName));
                        } else {
                            tally.name_count += 1;
                            tally.in_parent |= tally.parent == parent;
                            tally.first_parent.get_or_insert(parent);
                        }
                    }
                    None => faults.push((key.clone(), Fault::NoInode(target.ino))),
                }
            }
            Ok(true)
        })?;
        for (key, fault) in faults {
            self.dentry_fault(&key, &fault)?;
        }
        for (&ino, tally) in &*window {
            self.tally(ino, tally)?;
        }
        Ok(())
    }

    fn dentry_fault(&mut self, key: &Slice, fault: &Fault) -> Result<()> {
        let (parent, name) = match key::parse_dentry(key) {
            Some((parent, _, name)) => (parent, name.to_vec()),
            None => (Ino(0), key.to_vec()),
        };
        let what = format!("the dentry '{}' in {parent}", name.escape_ascii());
        let (rule, why) = match fault {
            Fault::Damaged => ("M1", "cannot be read"),
            Fault::Misplaced(_) => ("M3", "has a bad name or another name's cookie"),
            Fault::NoDirectory => ("M2", "is in no directory"),
            Fault::NoInode(_) => ("M2", "leads to no inode"),
            Fault::WrongKind(_) => ("M2", "has another kind than its inode"),
            Fault::SecondName => ("M4", "is one too many for a directory"),
        };
        if !self.violation(rule, Mend::Possible, format_args!("{what} {why}")) {
            return Ok(());
        }
        let value = match fault {
            Fault::WrongKind(right) => Some(Slice::from(right.encode())),
            Fault::NoDirectory => match self.record(parent)? {
                // Without a name, the next round takes the directory in with all its entries.
                Some(record) if record.inode.kind == FileKind::Directory => {
                    return self.fix_record(parent, |record| record.inode.nlink = 2);
                }
                Some(_) => None,
                None => {
                    let record = lost_record(parent, FileKind::Directory).encode();
                    return self.set(Table::Inodes, key::inode(parent), Some(record.into()));
                }
            },
            Fault::NoInode(ino) => match self.salvage(*ino)? {
                Some(record) => {
                    return self.set(Table::Inodes, key::inode(*ino), Some(record.encode().into()));
                }
                None => None,
            },
            Fault::Damaged | Fault::Misplaced(_) | Fault::SecondName => None,
        };
        self.set(Table::Dentries, key.clone(), value)?;
        if let Fault::Misplaced(target) = fault
            && check_name(&name).is_ok()
        {
            let right = key::dentry(parent, self.core.cookie(&name), &name);
            self.set(Table::Dentries, right, Some(Slice::from(target.encode())))?;
        }
        Ok(())
    }

    fn tally(&mut self, ino: Ino, tally: &Tally) -> Result<()> {
        let is_directory = tally.kind == FileKind::Directory;
        if tally.nlink > 0 && tally.name_count == 0 && ino != Ino::ROOT {
            // Its links are right again when the next round finds it there.
            if self.violation("M4", Mend::Possible, format_args!("{ino} has lost its name")) {
                self.rescue(ino, tally.kind)?;
            }
            return Ok(());
        }
        let is_orphan = tally.name_count == 0 && ino != Ino::ROOT;
        let nlink = match (is_directory, is_orphan) {
            (_, true) => 0,
            (true, false) => 2 + tally.found_directories,
            (false, false) => tally.name_count,
        };
        let wrong_links = format_args!("{ino} has link count {}, not {nlink}", tally.nlink);
        if nlink != tally.nlink && self.violation("M4", Mend::Possible, wrong_links) {
            self.fix_record(ino, |record| record.inode.nlink = nlink)?;
        }
        let parent = if ino == Ino::ROOT || is_orphan {
            ino
        } else if tally.in_parent {
            tally.parent
        } else {
            tally.first_parent.unwrap_or(ino)
        };
        let wrong_parent = format_args!("{ino} says its parent is {}, not {parent}", tally.parent);
        if is_directory
            && parent != tally.parent
            && self.violation("M5", Mend::Possible, wrong_parent)
        {
            self.fix_record(ino, |record| record.inode.parent = parent)?;
        }
        let found = tally.found_entries;
        let wrong_count = format_args!("{ino} counts {} entries, not {found}", tally.entry_count);
        if found != tally.entry_count && self.violation("M6", Mend::Possible, wrong_count) {
            self.fix_record(ino, |record| record.entry_count = found)?;
        }
        Ok(())
    }

    /// M7: every directory leads to the root. Each has one dentry, in its parent, by M4 and M5,
    /// so that only a circle of directories can be cut off.
    fn reachability(&mut self, directory_count: u64) -> Result<()> {
        // What was found to lead to the root, forgotten when it gets large.
        let mut reaching = BTreeSet::from([Ino::ROOT]);
        let mut circles = Vec::new();
        let view = &self.view;
        let windows = self.windows;
        view.scan_all(Table::Inodes, &mut |key, value| {
            let Some(ino) = key::parse_inode(key) else { return Ok(true) };
            let Ok(record) = Record::decode(ino, value) else { return Ok(true) };
            let inode = &record.inode;
            if inode.kind != FileKind::Directory || inode.nlink == 0 || ino == Ino::ROOT {
                return Ok(true);
            }
            let mut path = vec![ino];
            let mut at = record.inode.parent;
            let mut low = ino;
            while !reaching.contains(&at) && at != ino {
                let above = view.get(Table::Inodes, &key::inode(at))?;
                let Some(Ok(above)) = above.map(|bytes| Record::decode(at, &bytes)) else { break };
                low = low.min(at);
                path.push(at);
                if path.len() as u64 > directory_count {
                    break;
                }
                at = above.inode.parent;
            }
            if at == ino {
                // Every member of the circle comes by; the lowest speaks for all.
                if low == ino {
                    circles.push((ino, record.inode.parent));
                }
            } else if reaching.contains(&at) {
                if reaching.len() > windows.inodes {
                    reaching = BTreeSet::from([Ino::ROOT]);
                }
                reaching.extend(path);
            }
            Ok(true)
        })?;
        for (ino, parent) in circles {
            let what = format_args!("{ino} is part of a circle of directories");
            if !self.violation("M7", Mend::Possible, what) {
                continue;
            }
            let mut doomed = Vec::new();
            let start = key::dentry_start(parent, 0);
            self.view.scan(
                Table::Dentries,
                from(&start),
                &key::behind(parent.0),
                &mut |key, value| {
                    if Target::decode(value).is_ok_and(|target| target.ino == ino) {
                        doomed.push(key.clone());
                    }
                    Ok(true)
                },
            )?;
            for key in doomed {
                self.set(Table::Dentries, key, None)?;
            }
            self.rescue(ino, FileKind::Directory)?;
        }
        Ok(())
    }

    /// Gives an inode without a name one in `/lost+found`.
    fn rescue(&mut self, ino: Ino, kind: FileKind) -> Result<()> {
        let shelter = self.shelter()?;
        if shelter == ino {
            return Ok(());
        }
        let name = format!("#{}", ino.0);
        let cookie = self.core.cookie(name.as_bytes());
        let key = key::dentry(shelter, cookie, name.as_bytes());
        self.set(Table::Dentries, key, Some(Target { ino, kind }.encode().into()))?;
        if kind == FileKind::Directory {
            self.fix_record(ino, |record| record.inode.parent = shelter)?;
        }
        Ok(())
    }

    /// The directory for what is lost, made if there is none.
    fn shelter(&mut self) -> Result<Ino> {
        // What this round wrote must be readable below.
        self.step()?;
        for attempt in 0_u32.. {
            let name = match attempt {
                0 => "lost+found".to_owned(),
                _ => format!("lost+found.{attempt}"),
            };
            let cookie = self.core.cookie(name.as_bytes());
            let key = key::dentry(Ino::ROOT, cookie, name.as_bytes());
            let Some(bytes) = self.core.engine.get(Table::Dentries, &key)? else {
                let ino = self.core.engine.allocate_ino();
                let record = lost_record(ino, FileKind::Directory);
                self.set(Table::Inodes, key::inode(ino), Some(record.encode().into()))?;
                let target = Target { ino, kind: FileKind::Directory };
                self.set(Table::Dentries, key, Some(target.encode().into()))?;
                self.step()?;
                return Ok(ino);
            };
            if let Ok(target) = Target::decode(&bytes)
                && let Ok(Some(record)) = self.core.record_uncached(target.ino)
                && record.inode.kind == FileKind::Directory
                && record.inode.nlink > 0
            {
                return Ok(target.ino);
            }
        }
        Ok(Ino::ROOT)
    }

    /// M8 and M9: the sets have exactly the inodes of the window that belong in them.
    fn sets_against(&mut self, low: u64, high: u64, window: &Window) -> Result<()> {
        for set in &SETS {
            let mut members = BTreeSet::new();
            let mut odd = Vec::new();
            let (start, end) = ((set.key)(Ino(low)), [set.tag + 1]);
            self.view.scan(Table::Small, from(&start), &end, &mut |key, _| {
                match (set.parse)(key) {
                    Some(ino) if ino.0 > high => return Ok(false),
                    Some(ino) => {
                        members.insert(ino);
                    }
                    None => odd.push(key.clone()),
                }
                Ok(true)
            })?;
            for key in odd {
                self.odd_key(Table::Small, &key)?;
            }
            for (ino, tally) in window {
                let what = format_args!("{ino} is missing from the {} inodes", set.name);
                if (set.belongs)(tally)
                    && !members.remove(ino)
                    && self.violation(set.rule, Mend::Possible, what)
                {
                    self.set(Table::Small, (set.key)(*ino), Some(Slice::empty()))?;
                }
            }
            // What belonged has been taken out.
            for ino in members {
                let what = format_args!("{ino} is wrongly among the {} inodes", set.name);
                if self.violation(set.rule, Mend::Possible, what) {
                    self.set(Table::Small, (set.key)(ino), None)?;
                }
            }
        }
        Ok(())
    }

    /// M15: attributes belong to inodes that say they have some.
    fn xattrs_against(&mut self, low: u64, high: u64, window: &Window) -> Result<()> {
        let mut owners = BTreeSet::new();
        let mut odd = Vec::new();
        let start = key::inode(Ino(low));
        self.view.scan(Table::Xattrs, from(&start), &[0xff; 300], &mut |key, _| {
            match key::parse_xattr(key) {
                Some((ino, _)) if ino.0 > high => return Ok(false),
                Some((ino, name)) if !name.is_empty() => {
                    owners.insert(ino);
                }
                Some(_) | None => odd.push(key.clone()),
            }
            Ok(true)
        })?;
        for key in odd {
            self.odd_key(Table::Xattrs, &key)?;
        }
        for (ino, tally) in window {
            let has = owners.remove(ino);
            let what = format_args!("whether {ino} has attributes should be {has}");
            if has != tally.has_xattrs && self.violation("M15", Mend::Possible, what) {
                self.fix_record(*ino, |record| record.inode.has_xattrs = has)?;
            }
        }
        for ino in owners {
            let what = format_args!("{ino} has attributes but does not exist");
            if self.violation("M15", Mend::Possible, what) {
                let mut doomed = Vec::new();
                let start = key::inode(ino);
                self.view.scan(
                    Table::Xattrs,
                    from(&start),
                    &key::behind(ino.0),
                    &mut |key, _| {
                        doomed.push(key.clone());
                        Ok(true)
                    },
                )?;
                for key in doomed {
                    self.set(Table::Xattrs, key, None)?;
                }
            }
        }
        Ok(())
    }
}

/// A set of inodes that is stored beside them.
struct Set {
    rule: &'static str,
    name: &'static str,
    tag: u8,
    key: fn(Ino) -> [u8; 9],
    parse: fn(&[u8]) -> Option<Ino>,
    belongs: fn(&Tally) -> bool,
}

const SETS: [Set; 2] = [
    Set {
        rule: "M8",
        name: "orphaned",
        tag: key::ORPHAN,
        key: key::orphan,
        parse: key::parse_orphan,
        belongs: |tally| tally.nlink == 0,
    },
    Set {
        rule: "M9",
        name: "staged",
        tag: key::STAGED,
        key: key::staged,
        parse: key::parse_staged,
        belongs: |tally| tally.is_staged,
    },
];

#[derive(Debug)]
enum Fault {
    Damaged,
    Misplaced(Target),
    NoDirectory,
    NoInode(Ino),
    WrongKind(Target),
    SecondName,
}

impl Tally {
    fn new(record: &Record) -> Self {
        Self {
            kind: record.inode.kind,
            nlink: record.inode.nlink,
            parent: record.inode.parent,
            entry_count: record.entry_count,
            is_staged: record.inode.content.staging().is_some(),
            has_xattrs: record.inode.has_xattrs,
            name_count: 0,
            in_parent: false,
            first_parent: None,
            found_entries: 0,
            found_directories: 0,
        }
    }
}

fn count(inode: &Inode, found: &mut Found) {
    let stats = &mut found.stats;
    stats.inode_count += 1;
    stats.directory_count += u64::from(inode.kind == FileKind::Directory);
    stats.staged_count += u64::from(inode.content.staging().is_some());
    stats.orphan_count += u64::from(inode.nlink == 0);
    if inode.kind == FileKind::Regular {
        stats.logical_bytes = stats.logical_bytes.saturating_add(inode.size_bytes);
    }
    found.ino_max = found.ino_max.max(inode.ino);
}

/// M18: whether an inode has what its kind cannot have.
fn violations_of(record: &Record) -> bool {
    let inode = &record.inode;
    let is_regular = inode.kind == FileKind::Regular;
    let has_size = is_regular || inode.kind == FileKind::Symlink;
    (!is_regular && inode.content != Content::Empty)
        || (!has_size && inode.size_bytes != 0)
        || (inode.kind != FileKind::Directory && record.entry_count != 0)
}

fn settle(record: &mut Record) {
    let inode = &mut record.inode;
    if inode.kind != FileKind::Regular {
        inode.content = Content::Empty;
        if inode.kind != FileKind::Symlink {
            inode.size_bytes = 0;
        }
    }
    if inode.kind != FileKind::Directory {
        record.entry_count = 0;
    }
}
