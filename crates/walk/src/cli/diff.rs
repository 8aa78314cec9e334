//! `fdu diff`: what has changed between two scans.

use std::cmp::Ordering;
use std::io::{self, Write};
use std::path::Path;

use super::import;
use super::lines::Measure;
use super::names;
use super::options::{DiffArguments, DiffOutput};
use super::render::TableStyle;
use super::rules::{SelectError, Selection};
use super::scan::{Failures, Scan, Walked, Walker};
use super::size::SizeFormat;
use crate::Kind;
use crate::du::Detail;

/// Something that is not as it was.
#[derive(Debug)]
struct Change {
    /// What it is on either side. Its path is built when it is written: all together may be long.
    pair: Pair,
    kind: Kind,
    before: Option<u64>,
    after: Option<u64>,
}

impl Change {
    fn by(&self) -> i128 {
        i128::from(self.after.unwrap_or(0)) - i128::from(self.before.unwrap_or(0))
    }
}

/// A side of the comparison could not be had at all.
#[derive(Debug)]
pub(crate) enum DiffError {
    Select(SelectError),
    Load(String),
}

/// Both sides, loaded or walked.
#[derive(Debug)]
pub(crate) struct Sides {
    before: Scan,
    after: Scan,
    pub(crate) failures: Vec<Failures>,
}

impl Sides {
    pub(crate) fn load(arguments: &DiffArguments) -> Result<Self, DiffError> {
        let selection = Selection::new(&arguments.walking).map_err(DiffError::Select)?;
        let mut failures = Vec::new();
        let mut load = |path: &Path| -> Result<Scan, DiffError> {
            if !path.is_dir() {
                return load_file(path).map_err(DiffError::Load);
            }
            let max_depth = arguments.max_depth.unwrap_or(u32::MAX);
            let walker = Walker {
                paths: vec![path.to_owned()],
                from_list: false,
                walking: &arguments.walking,
                selection: &selection,
                running: &arguments.running,
                detail: if arguments.all {
                    Detail::Files { max_depth }
                } else {
                    Detail::Directories { max_depth }
                },
                time: None,
            };
            let Walked { scan, failures: found, .. } = walker.walk(|_worker| ());
            failures.push(found);
            Ok(scan)
        };
        let (before, after) = (load(&arguments.before)?, load(&arguments.after)?);
        Ok(Self { before, after, failures })
    }

    pub(crate) fn write(
        &self,
        out: &mut dyn Write,
        arguments: &DiffArguments,
        style: &TableStyle,
    ) -> io::Result<()> {
        let output = arguments.output();
        if output == DiffOutput::Csv {
            out.write_all(b"change,before,after,kind,path\n")?;
        }
        for change in self.changes(arguments) {
            let path = match change.pair {
                (_, Some(other)) => self.after.path_of(other),
                (Some(one), None) => self.before.path_of(one),
                (None, None) => Vec::new(),
            };
            change.write(out, &path, output, style)?;
        }
        Ok(())
    }

    /// The largest change first.
    fn changes(&self, arguments: &DiffArguments) -> Vec<Change> {
        let measure = Measure::new(&arguments.counting);
        let (before, after) = (Side::new(&self.before), Side::new(&self.after));
        let mut changes = Vec::new();
        let mut waiting = Vec::new();
        match (before.roots.as_slice(), after.roots.as_slice()) {
            // Of one root each, the path may have changed: a copy, a snapshot, a mount elsewhere.
            ([one], [other]) => waiting.push((Some(*one), Some(*other))),
            _ => before.join(&after, &before.roots, &after.roots, &mut waiting),
        }
        waiting.reverse();
        while let Some((one, other)) = waiting.pop() {
            let item = |side: &Side<'_>, index: Option<usize>| {
                index.map(|index| side.scan.items[index].clone())
            };
            let (was, is) = (item(&before, one), item(&after, other));
            let Some(any) = is.as_ref().or(was.as_ref()) else { continue };
            let (depth, kind) = (any.depth, any.kind);
            let size =
                |item: &Option<crate::du::Item>| item.as_ref().map(|item| measure.of(&item.total));
            let change = Change { pair: (one, other), kind, before: size(&was), after: size(&is) };
            let is_wanted = arguments.all || kind == Kind::Directory || depth == 0;
            let amount = u64::try_from(change.by().unsigned_abs()).unwrap_or(u64::MAX);
            let threshold = arguments.threshold;
            if is_wanted && amount > 0 && threshold.is_none_or(|limit| limit.admits(amount)) {
                changes.push(change);
            }
            if depth < arguments.max_depth.unwrap_or(u32::MAX) {
                let below = |side: &'_ Side<'_>, index: Option<usize>| {
                    index.map(|index| side.children[index].clone()).unwrap_or_default()
                };
                let start = waiting.len();
                before.join(&after, &below(&before, one), &below(&after, other), &mut waiting);
                // So that they come out by name.
                waiting[start..].reverse();
            }
        }
        // Equal ones stay in the order of the trees.
        changes.sort_by_key(|change| std::cmp::Reverse(change.by().unsigned_abs()));
        changes
    }
}

/// Reads a saved scan; - is standard input.
pub(crate) fn load_file(path: &Path) -> Result<Scan, String> {
    let named = |error: &dyn std::fmt::Display| {
        format!("{}: {error}", names::escaped(path.as_os_str().as_encoded_bytes()))
    };
    if path == Path::new("-") {
        return import::import(io::stdin().lock()).map_err(|error| named(&error));
    }
    let file = std::fs::File::open(path).map_err(|error| named(&error))?;
    import::import(file).map_err(|error| named(&error))
}

/// A scan with what is in each directory, by name.
struct Side<'s> {
    scan: &'s Scan,
    roots: Vec<usize>,
    children: Vec<Vec<usize>>,
}

type Pair = (Option<usize>, Option<usize>);

impl<'s> Side<'s> {
    fn new(scan: &'s Scan) -> Self {
        let mut children = vec![Vec::new(); scan.items.len()];
        let mut roots = Vec::new();
        for (index, item) in scan.items.iter().enumerate().filter(|(_, item)| scan.is_counted(item))
        {
            match item.parent {
                Some(parent) => children[parent].push(index),
                None => roots.push(index),
            }
        }
        let mut side = Self { scan, roots: Vec::new(), children };
        roots.sort_by(|one, other| side.name(*one).cmp(side.name(*other)));
        side.roots = roots;
        side
    }

    fn name(&self, index: usize) -> &[u8] {
        self.scan.items[index].name.as_encoded_bytes()
    }

    /// Pairs what has the same name; both lists are sorted.
    fn join(&self, other: &Side<'_>, mine: &[usize], theirs: &[usize], pairs: &mut Vec<Pair>) {
        let (mut mine, mut theirs) = (mine.iter().peekable(), theirs.iter().peekable());
        loop {
            let ordering = match (mine.peek(), theirs.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(two)) => self.name(**one).cmp(other.name(**two)),
            };
            let one = if ordering.is_le() { mine.next().copied() } else { None };
            let two = if ordering.is_ge() { theirs.next().copied() } else { None };
            pairs.push((one, two));
        }
    }
}

impl Change {
    fn write(
        &self,
        out: &mut dyn Write,
        path: &[u8],
        output: DiffOutput,
        style: &TableStyle,
    ) -> io::Result<()> {
        let kind = super::lines::kind_name(self.kind);
        match output {
            DiffOutput::Json => {
                let side =
                    |size: Option<u64>| size.map_or("null".to_owned(), |size| size.to_string());
                out.write_all(b"{")?;
                names::json_fields(out, "path", path)?;
                writeln!(
                    out,
                    ",\"kind\":\"{kind}\",\"change\":{},\"before\":{},\"after\":{}}}",
                    self.by(),
                    side(self.before),
                    side(self.after)
                )
            }
            DiffOutput::Csv => {
                let side =
                    |size: Option<u64>| size.map(|size| size.to_string()).unwrap_or_default();
                write!(out, "{},{},{},{kind},", self.by(), side(self.before), side(self.after))?;
                names::csv_field(out, path)?;
                out.write_all(b"\n")
            }
            DiffOutput::Table => {
                let sign = if self.by() < 0 { '-' } else { '+' };
                let amount = u64::try_from(self.by().unsigned_abs()).unwrap_or(u64::MAX);
                let write_side = |size: Option<u64>, format: &SizeFormat| {
                    size.map_or("-".to_owned(), |size| format.write(size))
                };
                write!(
                    out,
                    "{sign}{}\t{}\t{}\t",
                    style.format.write(amount),
                    write_side(self.before, &style.format),
                    write_side(self.after, &style.format)
                )?;
                style.name(out, path)
            }
        }
    }
}
