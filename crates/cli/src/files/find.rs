//! `librorum find`.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use clap::Args;
use librorum_rpc::proto::v1;
use serde_json::Value;

use super::entry::entry_json;
use super::{Troubles, is_directory, list, stat};
use crate::output::parse_time;
use crate::remote::{self, Intent, RemotePath, To, shown};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  librorum find /photos --name '*.jpg' --size +1M\n  librorum find / --type f --newer 2d -0 | xargs -0 -n1 librorum cat\n\nAll conditions have to hold. Exit codes: 0 done, 1 failed, 3 the volume is in use, 4 nobody answers, 5 some could not be searched."
)]
pub(crate) struct Find {
    #[arg(required = true)]
    paths: Vec<RemotePath>,
    /// The name matches: * any bytes, ? one, [a-z] one of these, \ takes the next as it is.
    #[arg(long, value_name = "GLOB")]
    name: Option<OsString>,
    /// More than (+N), less than (-N) or exactly N bytes; K, M, G and T count.
    #[arg(long, value_name = "[+-]N", allow_hyphen_values = true)]
    size: Option<Size>,
    /// Modified after: so long ago (90s, 10m, 3h, 2d), a date (2026-01-31, UTC) or @SECONDS.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    newer: Option<i64>,
    /// Modified before.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    older: Option<i64>,
    /// Files, directories or symlinks.
    #[arg(long = "type", value_name = "f|d|l")]
    kind: Option<Kind>,
    /// End names with a zero byte, as they are.
    #[arg(short = '0')]
    zero: bool,
    #[command(flatten)]
    to: To,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    #[value(name = "f")]
    File,
    #[value(name = "d")]
    Directory,
    #[value(name = "l")]
    Symlink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Over(u64),
    Under(u64),
    Exactly(u64),
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(size) = text.strip_prefix('+') {
            return librorum_format::parse_size(size).map(Self::Over);
        }
        if let Some(size) = text.strip_prefix('-') {
            return librorum_format::parse_size(size).map(Self::Under);
        }
        librorum_format::parse_size(text).map(Self::Exactly)
    }
}

impl Find {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        anyhow::ensure!(!(json && self.zero), "-0 and --json exclude each other");
        remote::with(&self.to, Intent::Read, |remote| {
            let mut out = BufWriter::new(std::io::stdout().lock());
            let mut troubles = Troubles::default();
            let mut all = Vec::new();
            for path in &self.paths {
                let mut entries = vec![stat(remote, path)?];
                entries[0].path = bytes::Bytes::new();
                if is_directory(&entries[0]) {
                    let mut unread = Vec::new();
                    entries.extend(list(remote, path, true, &mut unread)?);
                    for message in unread {
                        troubles.add(message, json);
                    }
                }
                for entry in entries.iter().filter(|entry| self.wants(path, entry)) {
                    let found = path.join(&entry.path);
                    if json {
                        all.push(entry_json(&found.path, entry));
                    } else if self.zero {
                        out.write_all(&found.path)?;
                        out.write_all(b"\0")?;
                    } else {
                        writeln!(out, "{}", shown(&found.path))?;
                    }
                }
            }
            if json {
                all.sort_by_key(|entry| entry["path"].to_string());
                writeln!(out, "{}", Value::Array(all))?;
            }
            out.flush()?;
            Ok(troubles.code())
        })
    }

    fn wants(&self, root: &RemotePath, entry: &v1::Entry) -> bool {
        let name = match entry.path.rsplit(|byte| *byte == b'/').next() {
            Some(name) if !name.is_empty() => name,
            _ => root.name(),
        };
        let modified = entry.mtime.as_ref().map_or(0, |time| time.seconds);
        self.name.as_ref().is_none_or(|glob| matches_glob(glob.as_bytes(), name))
            && self.size.is_none_or(|size| {
                entry.kind() == v1::Kind::Regular
                    && match size {
                        Size::Over(than) => entry.size_bytes > than,
                        Size::Under(than) => entry.size_bytes < than,
                        Size::Exactly(this) => entry.size_bytes == this,
                    }
            })
            && self.newer.is_none_or(|time| modified > time)
            && self.older.is_none_or(|time| modified < time)
            && self.kind.is_none_or(|kind| match kind {
                Kind::File => entry.kind() == v1::Kind::Regular,
                Kind::Directory => is_directory(entry),
                Kind::Symlink => entry.kind() == v1::Kind::Symlink,
            })
    }
}

/// Whether a name is one that the pattern means. Names are bytes, so no crate for text will do.
fn matches_glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut pattern_at) = (0, 0);
    // Where to go on when what follows the last star does not fit: the star takes one byte more.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(pattern_at) == Some(&b'*') {
            star = Some((pattern_at + 1, at));
            pattern_at += 1;
            continue;
        }
        if at == name.len() && pattern_at == pattern.len() {
            return true;
        }
        if let Some(&byte) = name.get(at)
            && let Some(used) = matches_one(&pattern[pattern_at..], byte)
        {
            pattern_at += used;
            at += 1;
            continue;
        }
        match star {
            Some((after, from)) if from < name.len() => {
                star = Some((after, from + 1));
                pattern_at = after;
                at = from + 1;
            }
            _ => return false,
        }
    }
}

/// How much of the pattern stands for this byte.
fn matches_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', rest @ ..] => {
            let (negated, set) = match rest {
                [b'!' | b'^', set @ ..] => (true, set),
                set => (false, set),
            };
            // A bracket that comes first is one of the set.
            let end = set.iter().skip(1).position(|byte| *byte == b']').map(|end| end + 1);
            let Some(end) = end else { return (byte == b'[').then_some(1) };
            let mut members = &set[..end];
            let mut found = false;
            while let Some((&first, more)) = members.split_first() {
                if let [b'-', last, more @ ..] = more {
                    found |= (first..=*last).contains(&byte);
                    members = more;
                } else {
                    found |= first == byte;
                    members = more;
                }
            }
            let len = 1 + usize::from(negated) + end + 1;
            (found != negated).then_some(len)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_the_shell() {
        for (pattern, name, expected) in [
            ("*.jpg", "a.jpg", true),
            ("*.jpg", "a.jpeg", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "xxaxxbx", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("", "", true),
            ("*", "", true),
            ("[]]", "]", true),
        ] {
            assert_eq!(
                matches_glob(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
        assert!(matches_glob(b"*\xff*", b"a\xffb"));
    }

    #[test]
    fn sizes_have_signs() {
        assert_eq!("+1K".parse::<Size>(), Ok(Size::Over(1024)));
        assert_eq!("-5".parse::<Size>(), Ok(Size::Under(5)));
        assert_eq!("7".parse::<Size>(), Ok(Size::Exactly(7)));
    }
}
