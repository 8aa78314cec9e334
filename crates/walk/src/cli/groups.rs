//! `--by`: sums over all files, grouped by what they have in common.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use librorum_sys::clock;

use super::lines::{Choice, Measure};
use super::names;
use super::options::{GroupBy, Output, SortKey};
use super::render::TableStyle;
use super::scan::Scan;
use crate::du::{Counted, Observer, Totals};
use crate::{Kind, Metadata, Time};

/// A group, in a form that sorts as people would sort it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Group {
    Directories,
    Extension(Option<Box<[u8]>>),
    Owner(u32),
    Age(usize),
}

const DAY_SECS: i64 = 86_400;

/// Upper ends of ages, and what they are called. A month is 30 days here, a year 365.
const AGES: [(i64, &str); 8] = [
    (0, "in the future"),
    (DAY_SECS, "up to a day"),
    (7 * DAY_SECS, "up to a week"),
    (30 * DAY_SECS, "up to a month"),
    (91 * DAY_SECS, "up to three months"),
    (365 * DAY_SECS, "up to a year"),
    (2 * 365 * DAY_SECS, "up to two years"),
    (i64::MAX, "older"),
];

/// Sums by group, of one thread or of all.
#[derive(Debug)]
pub(crate) struct Groups {
    by: GroupBy,
    now_secs: i64,
    sums: HashMap<Group, Totals>,
}

impl Groups {
    pub(crate) fn new(by: GroupBy) -> Self {
        Self { by, now_secs: clock::now().secs, sums: HashMap::new() }
    }

    fn add(&mut self, group: Group, totals: &Totals) {
        self.sums.entry(group).or_default().add(totals);
    }

    fn group(&self, name: Option<&[u8]>, owner: Option<u32>, time: Option<Time>) -> Group {
        match self.by {
            GroupBy::Ext => {
                name.map_or(Group::Directories, |name| Group::Extension(extension(name)))
            }
            GroupBy::Owner => Group::Owner(owner.unwrap_or(u32::MAX)),
            GroupBy::Age => {
                let age = time.map_or(i64::MAX, |time| self.now_secs.saturating_sub(time.secs));
                // Nothing is older than the last.
                Group::Age(AGES.iter().position(|(end, _)| age < *end).unwrap_or(AGES.len() - 1))
            }
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (group, totals) in other.sums {
            self.add(group, &totals);
        }
    }

    /// The same from a saved scan.
    pub(crate) fn of_scan(by: GroupBy, scan: &Scan) -> Self {
        let mut groups = Self::new(by);
        // What a directory is without its files.
        let mut own: Vec<Totals> = scan.items.iter().map(|item| item.own).collect();
        for item in scan.items.iter().filter(|item| item.kind != Kind::Directory) {
            if let Some(parent) = item.parent {
                let of = &mut own[parent];
                of.disk_bytes = of.disk_bytes.saturating_sub(item.own.disk_bytes);
                of.apparent_bytes = of.apparent_bytes.saturating_sub(item.own.apparent_bytes);
                of.inodes = of.inodes.saturating_sub(item.own.inodes);
            }
        }
        for (item, own) in scan.items.iter().zip(&own) {
            let name = item.name.as_encoded_bytes();
            let name = (item.kind != Kind::Directory).then_some(name);
            let group = groups.group(name, None, own.newest);
            groups.add(group, own);
        }
        groups
    }

    pub(crate) fn write(
        self,
        out: &mut dyn Write,
        choice: &Choice,
        output: Output,
        total: Option<&Totals>,
        style: &TableStyle,
    ) -> io::Result<()> {
        let owners = if self.by == GroupBy::Owner { owner_names() } else { BTreeMap::new() };
        let mut groups: Vec<(Group, Totals)> = self.sums.into_iter().collect();
        groups.retain(|(_, totals)| {
            choice.threshold.is_none_or(|limit| limit.admits(choice.measure.of(totals)))
        });
        groups.sort_by(|(one, first), (other, second)| {
            let by_key = match choice.sort {
                Some(SortKey::Name) => std::cmp::Ordering::Equal,
                Some(SortKey::Count) => second.inodes.cmp(&first.inodes),
                None | Some(SortKey::Size | SortKey::Time) => {
                    choice.measure.of(second).cmp(&choice.measure.of(first))
                }
            };
            let ordering = by_key.then_with(|| one.cmp(other));
            if choice.reverse { ordering.reverse() } else { ordering }
        });
        if output == Output::Csv {
            out.write_all(b"size,disk_bytes,apparent_bytes,inodes,group\n")?;
        }
        for (group, totals) in &groups {
            line(out, choice, output, style, &group.name(&owners), totals)?;
        }
        if let Some(total) = total {
            line(out, choice, output, style, b"total", total)?;
        }
        Ok(())
    }
}

fn line(
    out: &mut dyn Write,
    choice: &Choice,
    output: Output,
    style: &TableStyle,
    name: &[u8],
    totals: &Totals,
) -> io::Result<()> {
    let size = choice.measure.of(totals);
    let Totals { disk_bytes, apparent_bytes, inodes, .. } = totals;
    match output {
        Output::Json => {
            out.write_all(b"{")?;
            names::json_fields(out, "group", name)?;
            writeln!(
                out,
                ",\"size\":{size},\"disk_bytes\":{disk_bytes},\"apparent_bytes\":{apparent_bytes},\"inodes\":{inodes}}}"
            )
        }
        Output::Csv => {
            write!(out, "{size},{disk_bytes},{apparent_bytes},{inodes},")?;
            names::csv_field(out, name)?;
            out.write_all(b"\n")
        }
        Output::Table | Output::Tree | Output::Ncdu | Output::Raw => {
            write!(out, "{}\t", style.format.write(size))?;
            if choice.measure != Measure::Inodes {
                write!(out, "{inodes}\t")?;
            }
            style.name(out, name)
        }
    }
}

impl Group {
    fn name(&self, owners: &BTreeMap<u32, Vec<u8>>) -> Vec<u8> {
        match self {
            Self::Directories => b"(directories)".to_vec(),
            Self::Extension(None) => b"(none)".to_vec(),
            Self::Extension(Some(extension)) => [b".", extension.as_ref()].concat(),
            Self::Owner(owner) => {
                owners.get(owner).cloned().unwrap_or_else(|| owner.to_string().into_bytes())
            }
            Self::Age(age) => AGES.get(*age).map_or("older", |(_, name)| *name).as_bytes().to_vec(),
        }
    }
}

/// What follows the last point, in small letters; not of names that begin with their only point.
fn extension(name: &[u8]) -> Option<Box<[u8]>> {
    let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
    let point = name.iter().rposition(|byte| *byte == b'.')?;
    let extension = &name[point + 1..];
    if point == 0 || extension.is_empty() {
        return None;
    }
    Some(extension.to_ascii_lowercase().into())
}

/// Users that /etc/passwd knows. Others, of directory services, are shown by number.
fn owner_names() -> BTreeMap<u32, Vec<u8>> {
    let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
    let mut names = BTreeMap::new();
    for line in passwd.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, uid) = (fields.next(), fields.nth(1));
        let uid = uid.and_then(|uid| std::str::from_utf8(uid).ok()?.parse().ok());
        if let (Some(name), Some(uid)) = (name, uid) {
            // The first is the name that other programs show.
            names.entry(uid).or_insert_with(|| name.to_vec());
        }
    }
    names
}

/// What one thing occupies by itself.
pub(crate) fn totals_of(metadata: &Metadata) -> Totals {
    let has_length = matches!(metadata.kind(), Kind::File | Kind::Symlink);
    Totals {
        disk_bytes: metadata.disk_bytes(),
        apparent_bytes: if has_length { metadata.len_bytes() } else { 0 },
        apparent_all_bytes: metadata.len_bytes(),
        inodes: 1,
        directories: u64::from(metadata.kind() == Kind::Directory),
        newest: Some(metadata.modified()),
    }
}

impl Observer for Groups {
    fn counted(&mut self, what: Counted<'_>) {
        let (name, metadata) = match &what {
            Counted::File(entry) => (Some(entry.name_bytes()), entry.metadata()),
            Counted::Directory(entered) => (None, entered.metadata()),
        };
        if let Some(metadata) = metadata {
            let group = self.group(name, Some(metadata.uid()), Some(metadata.modified()));
            self.add(group, &totals_of(metadata));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_follow_the_last_point() {
        for (name, expected) in [
            ("a.tar.GZ", Some("gz")),
            ("a", None),
            (".bashrc", None),
            (".a.b", Some("b")),
            ("a.", None),
            ("dir.d/a", None),
        ] {
            let found = extension(name.as_bytes());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn ages_start_with_the_future() {
        let groups = Groups { by: GroupBy::Age, now_secs: 1_000_000_000, sums: HashMap::new() };
        let age = |secs| {
            let group = groups.group(None, None, Some(Time { secs, nanos: 0 }));
            String::from_utf8(group.name(&BTreeMap::new())).unwrap()
        };
        assert_eq!(age(1_000_000_001), "in the future");
        assert_eq!(age(1_000_000_000), "up to a day");
        assert_eq!(age(1_000_000_000 - 8 * DAY_SECS), "up to a month");
        assert_eq!(age(i64::MIN), "older");
    }
}
