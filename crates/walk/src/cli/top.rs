//! `--top`: the largest files and directories.
//!
//! Files are not kept but for the largest of each thread, so memory does not grow with the tree.
//! Of a file with several names, which one is shown depends on which thread met it first.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;

use super::groups::totals_of;
use super::lines::{Choice, Kinds, Measure, kind_name};
use super::names;
use super::options::Output;
use super::render::TableStyle;
use super::scan::Scan;
use super::size::Threshold;
use crate::Kind;
use crate::du::{Counted, Observer, Totals};

/// Something large. The larger is greater, of two alike the one whose path comes first.
#[derive(Debug)]
struct Candidate {
    size: u64,
    path: Vec<u8>,
    kind: Kind,
    totals: Totals,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.size.cmp(&other.size).then_with(|| other.path.cmp(&self.path))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// The largest of what was shown to it.
#[derive(Debug)]
pub(crate) struct Largest {
    count: usize,
    measure: Measure,
    threshold: Option<Threshold>,
    /// The smallest of them is on top.
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Largest {
    pub(crate) fn new(count: u32, choice: &Choice) -> Self {
        Self {
            count: usize::try_from(count).unwrap_or(usize::MAX),
            measure: choice.measure,
            threshold: choice.threshold,
            heap: BinaryHeap::new(),
        }
    }

    fn offer(&mut self, kind: Kind, totals: &Totals, path: impl FnOnce() -> Vec<u8>) {
        let size = self.measure.of(totals);
        let is_full = self.heap.len() >= self.count;
        let is_small = is_full && self.heap.peek().is_none_or(|smallest| size < smallest.0.size);
        if is_small || self.threshold.is_some_and(|threshold| !threshold.admits(size)) {
            return;
        }
        self.heap.push(Reverse(Candidate { size, path: path(), kind, totals: *totals }));
        if is_full {
            self.heap.pop();
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for Reverse(candidate) in other.heap {
            self.offer(candidate.kind, &candidate.totals, || candidate.path);
        }
    }

    /// Those of a scan, files or directories.
    pub(crate) fn of_scan(count: u32, choice: &Choice, scan: &Scan, kinds: Kinds) -> Self {
        let mut largest = Self::new(count, choice);
        for (index, item) in scan.items.iter().enumerate().filter(|(_, item)| scan.is_counted(item))
        {
            if (item.kind == Kind::Directory) == (kinds == Kinds::Directories) {
                largest.offer(item.kind, choice.totals(item), || scan.path_of(index));
            }
        }
        largest
    }
}

impl Observer for Largest {
    fn counted(&mut self, what: Counted<'_>) {
        if let Counted::File(entry) = what
            && let Some(metadata) = entry.metadata()
        {
            let path = || entry.path().into_os_string().into_vec();
            self.offer(metadata.kind(), &totals_of(metadata), path);
        }
    }
}

/// Files, then directories; each only if it was asked for.
pub(crate) fn write(
    out: &mut dyn Write,
    files: Option<Largest>,
    directories: Option<Largest>,
    output: Output,
    style: &TableStyle,
) -> io::Result<()> {
    let headings =
        output == Output::Table && style.end == b'\n' && files.is_some() && directories.is_some();
    if output == Output::Csv {
        out.write_all(b"size,disk_bytes,apparent_bytes,inodes,kind,path\n")?;
    }
    for (index, (heading, largest)) in
        [("Largest files:", files), ("Largest directories:", directories)].into_iter().enumerate()
    {
        let Some(largest) = largest else { continue };
        if headings {
            writeln!(out, "{}{heading}", if index > 0 { "\n" } else { "" })?;
        }
        for Reverse(candidate) in largest.heap.into_sorted_vec() {
            line(out, &candidate, output, style)?;
        }
    }
    Ok(())
}

fn line(
    out: &mut dyn Write,
    candidate: &Candidate,
    output: Output,
    style: &TableStyle,
) -> io::Result<()> {
    let Candidate { size, path, kind, totals } = candidate;
    let Totals { disk_bytes, apparent_bytes, inodes, .. } = totals;
    let kind = kind_name(*kind);
    match output {
        Output::Json => {
            out.write_all(b"{")?;
            names::json_fields(out, "path", path)?;
            writeln!(
                out,
                ",\"kind\":\"{kind}\",\"size\":{size},\"disk_bytes\":{disk_bytes},\"apparent_bytes\":{apparent_bytes},\"inodes\":{inodes}}}"
            )
        }
        Output::Csv => {
            write!(out, "{size},{disk_bytes},{apparent_bytes},{inodes},{kind},")?;
            names::csv_field(out, path)?;
            out.write_all(b"\n")
        }
        Output::Table | Output::Tree | Output::Ncdu | Output::Raw => {
            style.line(out, *size, totals, path)
        }
    }
}
