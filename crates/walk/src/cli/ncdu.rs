//! Scans as files: the export format of ncdu, which `ncdu -f` opens.
//!
//! The format is described at <https://dev.yorhel.nl/ncdu/jsonfmt>. Names are written as the bytes they
//! are, as ncdu does, so a file with names that are not UTF-8 is not JSON to the letter, and nothing is
//! lost. Each inode is written once, with the name that it was counted under.
//!
//! Additions, which ncdu passes over: `fdu_kind` for what is neither file nor directory, `fdu_nanos`
//! behind `mtime`, `fdu_path` for a root as it was given (ncdu wants it absolute), and `fdu_roots`
//! for a directory that only holds several roots together. `mtime` of a directory is the newest time
//! of it and the files in it.

use std::io::{self, Write};
use std::path::Path;

use super::lines::kind_name;
use super::names::{NotUtf8, json_string};
use super::scan::{Scan, absolute};
use crate::Kind;
use crate::du::{Item, RootState, Totals};

/// Writes a scan that has all its files.
pub(crate) fn export(out: &mut dyn Write, scan: &Scan, now_secs: i64) -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    write!(
        out,
        "[1,2,{{\"progname\":\"fdu\",\"progver\":\"{version}\",\"timestamp\":{now_secs}}},"
    )?;
    let counted: Vec<usize> = scan
        .roots
        .iter()
        .enumerate()
        .filter(|(_, root)| root.state == RootState::Counted)
        .map(|(index, _)| index)
        .collect();
    let own = own_totals(scan);
    let roots = scan.items.iter().filter(|item| item.depth == 0);
    let is_wrapped = counted.len() != 1 || roots.clone().any(|root| root.kind != Kind::Directory);
    if is_wrapped {
        out.write_all(b"\n[{\"name\":\"/\",\"fdu_roots\":true}")?;
    }
    let mut open: Vec<u32> = Vec::new();
    let mut is_first = !is_wrapped;
    for (item, own) in scan.items.iter().zip(&own) {
        if !scan.is_counted(item) {
            continue;
        }
        while open.pop_if(|depth| *depth >= item.depth).is_some() {
            out.write_all(b"]")?;
        }
        out.write_all(if is_first { b"\n" } else { b",\n" })?;
        is_first = false;
        if item.kind == Kind::Directory {
            out.write_all(b"[")?;
            open.push(item.depth);
        }
        object(out, item, own)?;
    }
    for _ in &open {
        out.write_all(b"]")?;
    }
    out.write_all(if is_wrapped { b"]]\n" } else { b"]\n" })
}

/// What each item occupies without anything in it.
fn own_totals(scan: &Scan) -> Vec<Totals> {
    let mut own: Vec<Totals> = scan.items.iter().map(|item| item.own).collect();
    for item in scan.items.iter().filter(|item| item.kind != Kind::Directory) {
        if let Some(parent) = item.parent {
            let of = &mut own[parent];
            of.disk_bytes = of.disk_bytes.saturating_sub(item.own.disk_bytes);
            of.apparent_all_bytes =
                of.apparent_all_bytes.saturating_sub(item.own.apparent_all_bytes);
        }
    }
    own
}

fn object(out: &mut dyn Write, item: &Item, own: &Totals) -> io::Result<()> {
    let name = item.name.as_encoded_bytes();
    out.write_all(b"{\"name\":")?;
    if item.depth == 0 && item.kind == Kind::Directory {
        let path = absolute(Path::new(&item.name));
        json_string(out, path.as_os_str().as_encoded_bytes(), NotUtf8::Kept)?;
        out.write_all(b",\"fdu_path\":")?;
    }
    json_string(out, name, NotUtf8::Kept)?;
    if own.apparent_all_bytes > 0 {
        write!(out, ",\"asize\":{}", own.apparent_all_bytes)?;
    }
    if own.disk_bytes > 0 {
        write!(out, ",\"dsize\":{}", own.disk_bytes)?;
    }
    if let Some(newest) = own.newest {
        write!(out, ",\"mtime\":{}", newest.secs)?;
        if newest.nanos > 0 {
            write!(out, ",\"fdu_nanos\":{}", newest.nanos)?;
        }
    }
    if !matches!(item.kind, Kind::Directory | Kind::File) {
        write!(out, ",\"notreg\":true,\"fdu_kind\":\"{}\"", kind_name(item.kind))?;
    }
    if item.incomplete {
        out.write_all(b",\"read_error\":true")?;
    }
    out.write_all(b"}")
}
