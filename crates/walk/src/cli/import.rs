//! Reads what `ncdu -o` and `--save` wrote.
//!
//! What is not known is passed over. Of several names of one inode the first counts, as in a walk.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

pub(crate) use super::json::ImportError;
use super::json::Parser;
use super::scan::Scan;
use crate::du::{Item, RootReport, RootState, Totals};
use crate::{Kind, Time};

/// Reads a scan.
pub(crate) fn import(input: impl Read) -> Result<Scan, ImportError> {
    let mut parser = Parser::new(input);
    parser.expect(b'[', "[")?;
    let major = parser.number()?;
    if major != 1 {
        return Err(ImportError::Version(major));
    }
    parser.expect(b',', "a comma")?;
    parser.number()?;
    parser.expect(b',', "a comma")?;
    parser.skip_value()?;
    parser.expect(b',', "a comma")?;
    let found = parser.tree()?;
    // Later versions may add something behind the tree.
    while parser.token()? == Some(b',') {
        parser.take();
        parser.skip_value()?;
    }
    parser.expect(b']', "]")?;
    match parser.token()? {
        None => Ok(arrange(&found)),
        Some(_) => Err(parser.wrong("the end")),
    }
}

/// An entry as it was read.
#[derive(Debug, Default)]
struct Found {
    name: Vec<u8>,
    given: Option<Vec<u8>>,
    parent: Option<usize>,
    is_directory: bool,
    asize: u64,
    dsize: u64,
    mtime: Option<i64>,
    nanos: u32,
    mode: Option<u64>,
    kind: Option<Kind>,
    notreg: bool,
    read_error: bool,
    excluded: bool,
    wraps_roots: bool,
    dev: Option<u64>,
    ino: Option<u64>,
    several_links: bool,
}

impl<R: Read> Parser<R> {
    /// A directory with everything in it, in preorder.
    fn tree(&mut self) -> Result<Vec<Found>, ImportError> {
        let mut found: Vec<Found> = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        loop {
            let is_directory = match self.token()? {
                Some(b'[') => true,
                Some(b'{') if !open.is_empty() => false,
                _ => return Err(self.wrong("a directory")),
            };
            if is_directory {
                self.take();
            }
            let mut entry = self.entry()?;
            entry.parent = open.last().copied();
            entry.is_directory = is_directory;
            if entry.dev.is_none() {
                entry.dev = entry.parent.and_then(|parent| found[parent].dev);
            }
            if is_directory {
                open.push(found.len());
            }
            found.push(entry);
            while self.token()? == Some(b']') {
                self.take();
                open.pop();
                if open.is_empty() {
                    return Ok(found);
                }
            }
            self.expect(b',', "a comma or ]")?;
        }
    }

    fn entry(&mut self) -> Result<Found, ImportError> {
        let mut entry = Found::default();
        let mut has_name = false;
        self.expect(b'{', "{")?;
        if self.token()? == Some(b'}') {
            return Err(self.wrong("a name"));
        }
        loop {
            let key = self.string()?;
            self.expect(b':', "a colon")?;
            self.token()?;
            match key.as_slice() {
                b"name" => {
                    entry.name = self.string()?;
                    has_name = true;
                }
                b"fdu_path" => entry.given = Some(self.string()?),
                b"asize" => entry.asize = self.number()?,
                b"dsize" => entry.dsize = self.number()?,
                b"mtime" => entry.mtime = i64::try_from(self.signed()?).ok(),
                b"fdu_nanos" => {
                    let nanos = u32::try_from(self.number()?).unwrap_or(0);
                    entry.nanos = if nanos < 1_000_000_000 { nanos } else { 0 };
                }
                b"mode" => entry.mode = Some(self.number()?),
                b"fdu_kind" => entry.kind = kind_named(&self.string()?),
                b"notreg" => entry.notreg = self.boolean()?,
                b"read_error" => entry.read_error = self.boolean()?,
                b"fdu_roots" => entry.wraps_roots = self.boolean()?,
                b"excluded" => {
                    self.skip_value()?;
                    entry.excluded = true;
                }
                b"dev" => entry.dev = Some(self.number()?),
                b"ino" => entry.ino = Some(self.number()?),
                b"hlnkc" => entry.several_links |= self.boolean()?,
                b"nlink" => entry.several_links |= self.number()? > 1,
                _ => self.skip_value()?,
            }
            match self.token()? {
                Some(b',') => self.take(),
                Some(b'}') if has_name => {
                    self.take();
                    return Ok(entry);
                }
                _ => return Err(self.wrong("a comma or }, and a name")),
            }
        }
    }
}

fn kind_named(name: &[u8]) -> Option<Kind> {
    Some(match name {
        b"symlink" => Kind::Symlink,
        b"fifo" => Kind::Fifo,
        b"socket" => Kind::Socket,
        b"char_device" => Kind::CharDevice,
        b"block_device" => Kind::BlockDevice,
        b"unknown" => Kind::Unknown,
        _ => return None,
    })
}

impl Found {
    fn kind(&self) -> Kind {
        if self.is_directory {
            return Kind::Directory;
        }
        match (self.kind, self.mode.map(|mode| mode & 0o170_000)) {
            (Some(kind), _) => kind,
            (None, Some(0o120_000)) => Kind::Symlink,
            (None, Some(0o010_000)) => Kind::Fifo,
            (None, Some(0o140_000)) => Kind::Socket,
            (None, Some(0o020_000)) => Kind::CharDevice,
            (None, Some(0o060_000)) => Kind::BlockDevice,
            (None, _) if self.notreg => Kind::Unknown,
            (None, _) => Kind::File,
        }
    }

    fn totals(&self) -> Totals {
        let kind = self.kind();
        // ncdu does not tell symlinks from pipes and devices, but those have no length.
        let has_length = matches!(kind, Kind::File | Kind::Symlink | Kind::Unknown);
        Totals {
            disk_bytes: self.dsize,
            apparent_bytes: if has_length { self.asize } else { 0 },
            apparent_all_bytes: self.asize,
            inodes: 1,
            directories: u64::from(self.is_directory),
            newest: self.mtime.map(|secs| Time { secs, nanos: self.nanos }),
        }
    }
}

/// What was read as a scan: sorted, each inode once, with sums.
fn arrange(found: &[Found]) -> Scan {
    let mut seen = HashSet::new();
    let mut children: HashMap<Option<usize>, Vec<usize>> = HashMap::new();
    let wrapper = found.first().filter(|first| first.wraps_roots).map(|_first| 0);
    for (index, entry) in found.iter().enumerate() {
        let is_again = !entry.is_directory
            && entry.several_links
            && entry.ino.is_some_and(|ino| !seen.insert((entry.dev, ino)));
        let counts = !entry.excluded && !is_again && Some(index) != wrapper;
        if counts {
            let parent = entry.parent.filter(|parent| Some(*parent) != wrapper);
            children.entry(parent).or_default().push(index);
        }
    }
    let mut scan = Scan::default();
    // Roots keep their order.
    let mut waiting: Vec<(usize, Option<usize>)> = children
        .remove(&None)
        .unwrap_or_default()
        .into_iter()
        .rev()
        .map(|root| (root, None))
        .collect();
    while let Some((index, parent)) = waiting.pop() {
        let entry = &found[index];
        let name = match (&entry.given, parent) {
            (Some(given), None) => given.clone(),
            _ => entry.name.clone(),
        };
        let above = parent.map(|parent| &scan.items[parent]);
        let depth = above.map_or(0, |item| item.depth + 1);
        let root = above.map_or(scan.roots.len(), |item| item.root);
        let name = OsString::from_vec(name);
        if parent.is_none() {
            scan.roots.push(RootReport {
                path: PathBuf::from(&name),
                totals: Totals::default(),
                state: RootState::Counted,
            });
        }
        let totals = entry.totals();
        let own_index = scan.items.len();
        scan.items.push(Item {
            parent,
            name,
            depth,
            root,
            kind: entry.kind(),
            own: totals,
            total: totals,
            incomplete: entry.read_error,
        });
        if let Some(mut below) = children.remove(&Some(index)) {
            below.sort_by(|one, other| found[*other].name.cmp(&found[*one].name));
            waiting.extend(below.into_iter().map(|child| (child, Some(own_index))));
        }
    }
    sum_up(&mut scan);
    scan
}

/// Sums of directories from what is in them, given what each item is on its own.
fn sum_up(scan: &mut Scan) {
    for index in (0..scan.items.len()).rev() {
        let Item { parent, root, kind, own, total, .. } = scan.items[index].clone();
        match parent {
            Some(parent) => {
                scan.items[parent].total.add(&total);
                if kind != Kind::Directory {
                    scan.items[parent].own.add(&own);
                }
            }
            None => scan.roots[root].totals = total,
        }
    }
    for root in &scan.roots {
        scan.total.add(&root.totals);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &str = r#"[1,2,{"progname":"ncdu","progver":"1.18","timestamp":1},
        [{"name":"/top","asize":10,"dsize":4096,"dev":7,"new":{"x":[1,{"y":null}]}},
         {"name":"b","asize":5,"dsize":4096,"ino":3,"hlnkc":true,"nlink":2},
         {"name":"a","asize":5,"dsize":4096,"ino":3,"hlnkc":true,"nlink":2},
         {"name":"out","excluded":"pattern"},
         [{"name":"sub","dsize":4096,"read_error":true},{"name":"l","asize":3,"notreg":true,"mode":41471}],
         {"name":"\u00e9\ud83d\ude00\n"}]]"#;

    #[test]
    fn an_export_of_ncdu_is_read() {
        let scan = import(SAMPLE.as_bytes()).unwrap();
        let paths: Vec<String> = (0..scan.items.len())
            .map(|item| String::from_utf8(scan.path_of(item)).unwrap())
            .collect();
        assert_eq!(paths, ["/top", "/top/b", "/top/sub", "/top/sub/l", "/top/é😀\n"]);
        assert_eq!(scan.total.disk_bytes, 3 * 4096);
        assert_eq!(scan.total.apparent_bytes, 8);
        assert_eq!(scan.total.apparent_all_bytes, 18);
        assert_eq!(scan.items[0].own.disk_bytes, 2 * 4096);
        assert_eq!(scan.items[3].kind, Kind::Symlink);
        assert!(scan.items[2].incomplete);
    }

    #[test]
    fn what_is_no_scan_says_where() {
        for (text, message) in [
            ("", "not a scan: [ expected at byte 0"),
            ("[2,0,{},[{}]]", "version 2 of the format is not known"),
            ("[1,0,{},{\"name\":\"x\"}]", "not a scan: a directory expected at byte 8"),
            ("[1,0,{},[{}]]", "not a scan: a name expected at byte 10"),
            (
                "[1,0,{\"t\":1e9},[{\"name\":\"x\",\"dsize\":18446744073709551616}]]",
                "not a scan: a number below 2^64 expected at byte 56",
            ),
            (
                "[1,0,{},[{\"name\":\"x\",\"dsize\":1e6}]]",
                "not a scan: a number in digits expected at byte 32",
            ),
        ] {
            assert_eq!(import(text.as_bytes()).unwrap_err().to_string(), message, "{text}");
        }
        assert!(import(&SAMPLE.as_bytes()[..SAMPLE.len() - 1]).is_err());
    }

    #[test]
    fn depth_does_not_matter() {
        let depth = 100_000;
        let mut text = "[1,0,".to_owned() + &"[".repeat(depth) + &"]".repeat(depth);
        text += ",";
        text += &"[{\"name\":\"d\",\"dsize\":1},".repeat(depth);
        text += "{\"name\":\"f\",\"dsize\":1}";
        text += &"]".repeat(depth + 1);
        let scan = import(text.as_bytes()).unwrap();
        assert_eq!(scan.total.disk_bytes, 100_001);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
            drop(import(bytes.as_slice()));
        }

        #[test]
        fn no_mutation_makes_it_panic(at in 0..SAMPLE.len(), byte in any::<u8>(), cut in 0..SAMPLE.len()) {
            let mut bytes = SAMPLE.as_bytes().to_vec();
            bytes[at] = byte;
            drop(import(bytes.as_slice()));
            bytes.truncate(cut);
            drop(import(bytes.as_slice()));
        }

        #[test]
        fn no_sequence_of_tokens_makes_it_panic(tokens in proptest::collection::vec(
            prop_oneof![
                Just("[".to_owned()), Just("]".to_owned()), Just("{".to_owned()), Just("}".to_owned()),
                Just(",".to_owned()), Just(":".to_owned()), Just("\"name\"".to_owned()),
                Just("\"asize\"".to_owned()), Just("\"mtime\"".to_owned()), Just("-9e99".to_owned()),
                Just("18446744073709551616".to_owned()), Just("\"\\ud800\\u0041\"".to_owned()),
                Just("[{\"name\":\"d\"},".to_owned()), Just("true".to_owned()),
            ], 0..40)) {
            drop(import(("[1,2,{},".to_owned() + &tokens.concat()).as_bytes()));
        }
    }
}
