//! Lines as text: table, JSON, CSV, raw.

use std::io::{self, Write};

use super::lines::{self, Choice};
use super::names;
use super::options::TimeStyle;
use super::scan::Scan;
use super::size::SizeFormat;
use super::zone::Zone;
use crate::Kind;
use crate::du::Totals;

/// How a table is written.
#[derive(Debug)]
pub(crate) struct TableStyle {
    pub(crate) format: SizeFormat,
    pub(crate) time: Option<(Zone, TimeStyle)>,
    /// Names with escapes, for a terminal.
    pub(crate) escaped: bool,
    /// Zero or newline.
    pub(crate) end: u8,
}

impl TableStyle {
    pub(crate) fn line(
        &self,
        out: &mut dyn Write,
        size: u64,
        totals: &Totals,
        name: &[u8],
    ) -> io::Result<()> {
        write!(out, "{}\t", self.format.write(size))?;
        if let Some((zone, style)) = &self.time {
            write!(out, "{}\t", lines::local_time(totals.newest, zone, *style))?;
        }
        self.name(out, name)
    }

    pub(crate) fn name(&self, out: &mut dyn Write, name: &[u8]) -> io::Result<()> {
        if self.escaped {
            out.write_all(names::escaped(name).as_bytes())?;
        } else {
            out.write_all(name)?;
        }
        out.write_all(&[self.end])
    }
}

/// As du: size, perhaps time, path.
pub(crate) fn table(
    out: &mut dyn Write,
    scan: &Scan,
    choice: &Choice,
    with_total: bool,
    style: &TableStyle,
) -> io::Result<()> {
    for item in choice.lines(scan) {
        let totals = choice.totals(&scan.items[item]);
        style.line(out, choice.measure.of(totals), totals, &scan.path_of(item))?;
    }
    if with_total {
        style.line(out, choice.measure.of(&scan.total), &scan.total, b"total")?;
    }
    Ok(())
}

/// An object a line. Sizes are in bytes, times in UTC.
pub(crate) fn json(
    out: &mut dyn Write,
    scan: &Scan,
    choice: &Choice,
    with_total: bool,
) -> io::Result<()> {
    for index in choice.lines(scan) {
        let item = &scan.items[index];
        write!(out, "{{")?;
        names::json_fields(out, "path", &scan.path_of(index))?;
        write!(out, ",\"kind\":\"{}\",\"depth\":{},", lines::kind_name(item.kind), item.depth)?;
        json_totals(out, choice, choice.totals(item))?;
        if item.incomplete {
            write!(out, ",\"incomplete\":true")?;
        }
        writeln!(out, "}}")?;
    }
    if with_total {
        write!(out, "{{\"kind\":\"total\",")?;
        json_totals(out, choice, &scan.total)?;
        writeln!(out, "}}")?;
    }
    Ok(())
}

fn json_totals(out: &mut dyn Write, choice: &Choice, totals: &Totals) -> io::Result<()> {
    write!(
        out,
        "\"size\":{},\"disk_bytes\":{},\"apparent_bytes\":{},\"inodes\":{}",
        choice.measure.of(totals),
        totals.disk_bytes,
        totals.apparent_bytes,
        totals.inodes
    )?;
    match totals.newest {
        Some(newest) => write!(out, ",\"time\":\"{}\"", lines::utc_time(newest)),
        None => Ok(()),
    }
}

/// The same with commas and a heading.
pub(crate) fn csv(
    out: &mut dyn Write,
    scan: &Scan,
    choice: &Choice,
    with_total: bool,
) -> io::Result<()> {
    out.write_all(b"size,disk_bytes,apparent_bytes,inodes,time,kind,depth,path\n")?;
    let totals_fields = |out: &mut dyn Write, totals: &Totals| {
        write!(
            out,
            "{},{},{},{},{}",
            choice.measure.of(totals),
            totals.disk_bytes,
            totals.apparent_bytes,
            totals.inodes,
            totals.newest.map(lines::utc_time).unwrap_or_default()
        )
    };
    for index in choice.lines(scan) {
        let item = &scan.items[index];
        totals_fields(out, choice.totals(item))?;
        write!(out, ",{},{},", lines::kind_name(item.kind), item.depth)?;
        names::csv_field(out, &scan.path_of(index))?;
        out.write_all(b"\n")?;
    }
    if with_total {
        totals_fields(out, &scan.total)?;
        out.write_all(b",total,,\n")?;
    }
    Ok(())
}

/// For programs that split at tabulators: the path comes last, and nothing is rounded or escaped.
pub(crate) fn raw(
    out: &mut dyn Write,
    scan: &Scan,
    choice: &Choice,
    with_total: bool,
    end: u8,
) -> io::Result<()> {
    let line = |out: &mut dyn Write, totals: &Totals, letter: char, name: &[u8]| {
        let (secs, nanos) = totals.newest.map_or((0, 0), |time| (time.secs, time.nanos));
        write!(
            out,
            "{}\t{}\t{}\t{}\t{secs}.{nanos:09}\t{letter}\t",
            choice.measure.of(totals),
            totals.disk_bytes,
            totals.apparent_bytes,
            totals.inodes
        )?;
        out.write_all(name)?;
        out.write_all(&[end])
    };
    for index in choice.lines(scan) {
        let item = &scan.items[index];
        let letter = lines::kind_letter(item.kind);
        line(out, choice.totals(item), letter, &scan.path_of(index))?;
    }
    if with_total {
        line(out, &scan.total, 'T', b"total")?;
    }
    Ok(())
}

const BAR_COLUMNS: u64 = 10;

/// Which characters trees and bars are drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drawing {
    Unicode,
    Ascii,
}

impl Drawing {
    /// By the locale.
    pub(crate) fn of_locale() -> Self {
        let names = ["LC_ALL", "LC_CTYPE", "LANG"];
        let locale =
            names.iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        let is_utf8 = locale.contains("utf-8") || locale.contains("utf8");
        if is_utf8 { Self::Unicode } else { Self::Ascii }
    }

    /// A bar for a part of a whole, in eighths of a column where characters allow it.
    pub(crate) fn bar(self, part: u64, whole: u64) -> String {
        let eighths = match whole {
            0 => 0,
            _ => {
                let scaled = u128::from(part.min(whole)) * u128::from(BAR_COLUMNS * 8);
                u64::try_from(scaled / u128::from(whole)).unwrap_or(0)
            }
        };
        let (full, rest) = (eighths / 8, eighths % 8);
        let mut bar = String::new();
        let mut columns = full;
        for _ in 0..full {
            bar.push(if self == Self::Unicode { '█' } else { '#' });
        }
        let partial = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
        if self == Self::Unicode && rest > 0 {
            bar.push_str(partial.get(usize::try_from(rest).unwrap_or(0)).unwrap_or(&""));
            columns += 1;
        }
        for _ in columns..BAR_COLUMNS {
            bar.push(' ');
        }
        bar
    }
}

/// A part of a whole in percent, rounded down.
pub(crate) fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 100;
    }
    u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(u64::MAX)
}

/// Directories above what is in them, with bars that show parts of the root.
pub(crate) fn tree(
    out: &mut dyn Write,
    scan: &Scan,
    choice: &Choice,
    with_total: bool,
    format: &SizeFormat,
    drawing: Drawing,
) -> io::Result<()> {
    let lines = choice.lines(scan);
    let mut is_shown = vec![false; scan.items.len()];
    for item in &lines {
        // With everything above it, so that it hangs on something.
        let mut next = Some(*item);
        while let Some(item) = next.filter(|item| !is_shown[*item]) {
            is_shown[item] = true;
            next = scan.items[item].parent;
        }
    }
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); scan.items.len()];
    let mut roots = Vec::new();
    for (index, item) in scan.items.iter().enumerate().filter(|(index, _)| is_shown[*index]) {
        match item.parent {
            Some(parent) => children[parent].push(index),
            None => roots.push(index),
        }
    }
    let sized = |item: usize| format.write(choice.size(&scan.items[item]));
    let sizes = (0..scan.items.len()).filter(|item| is_shown[*item]);
    let total = format.write(choice.measure.of(&scan.total));
    let width = sizes.map(|item| sized(item).len()).max().unwrap_or(0).max(total.len());
    let [tee, corner, along, blank] = match drawing {
        Drawing::Unicode => ["├── ", "└── ", "│   ", "    "],
        Drawing::Ascii => ["|-- ", "`-- ", "|   ", "    "],
    };
    if choice.sort.is_some() {
        roots.sort_by(|one, other| choice.compare(scan, *one, *other));
        for siblings in &mut children {
            siblings.sort_by(|one, other| choice.compare(scan, *one, *other));
        }
    }
    // Items still to be written; whether each item up to the root is the last in its directory.
    let mut waiting: Vec<(usize, usize, bool)> =
        roots.iter().rev().map(|root| (*root, 0, true)).collect();
    let mut lasts: Vec<bool> = Vec::new();
    while let Some((index, level, is_last)) = waiting.pop() {
        lasts.truncate(level.saturating_sub(1));
        let item = &scan.items[index];
        let whole = scan.roots.get(item.root).map_or(0, |root| choice.measure.of(&root.totals));
        let size = choice.size(item);
        write!(
            out,
            "{:>width$} {} {:>3}%  ",
            format.write(size),
            drawing.bar(size, whole),
            percent(size, whole)
        )?;
        for last in &lasts {
            out.write_all(if *last { blank } else { along }.as_bytes())?;
        }
        if level > 0 {
            out.write_all(if is_last { corner } else { tee }.as_bytes())?;
            lasts.push(is_last);
        }
        let mark = if item.kind == Kind::Directory && item.depth > 0 { "/" } else { "" };
        let note = if item.incomplete { " (not all could be read)" } else { "" };
        writeln!(out, "{}{mark}{note}", names::escaped(item.name.as_encoded_bytes()))?;
        let below = &children[index];
        for (place, child) in below.iter().enumerate().rev() {
            waiting.push((*child, level + 1, place + 1 == below.len()));
        }
    }
    if with_total {
        writeln!(out, "{total:>width$} {}       total", " ".repeat(10))?;
    }
    Ok(())
}
