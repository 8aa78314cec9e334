//! What is left out of a measurement: patterns, caches, what git ignores.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::gitignore::{self, UserFile};
use super::names;
use super::options::Walking;
use super::patterns::{Meaning, Patterns};
use crate::du::Rules;
use crate::{Entered, Entry, Kind};

/// What a CACHEDIR.TAG starts with; <https://bford.info/cachedir/>.
const CACHE_SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// Why there are no rules.
#[derive(Debug)]
pub(crate) enum SelectError {
    /// A pattern is none: wrong usage.
    Pattern(String),
    /// A file of patterns cannot be read.
    File(String),
}

/// The rules of one run.
#[derive(Debug)]
pub(crate) struct Selection {
    exclude: Patterns,
    include: Option<Patterns>,
    caches: bool,
    git: Option<UserFile>,
}

impl Selection {
    /// Reads the files that options name, so that mistakes show before the walk.
    pub(crate) fn new(walking: &Walking) -> Result<Self, SelectError> {
        let mut exclude = walking.exclude.clone();
        for file in &walking.exclude_from {
            let lines = read_lines(file);
            let named = |error| {
                let file = names::escaped(file.as_os_str().as_encoded_bytes());
                SelectError::File(format!("{file}: {error}"))
            };
            exclude.extend(lines.map_err(named)?);
        }
        let include = match walking.include.as_slice() {
            [] => None,
            patterns => {
                Some(Patterns::new(patterns, Meaning::Include).map_err(SelectError::Pattern)?)
            }
        };
        Ok(Self {
            exclude: Patterns::new(&exclude, Meaning::Exclude).map_err(SelectError::Pattern)?,
            include,
            caches: walking.exclude_caches,
            git: walking.gitignore.then(UserFile::read),
        })
    }

    /// Whether anything is left out.
    pub(crate) fn leaves_out(&self) -> bool {
        !self.exclude.is_empty() || self.include.is_some() || self.caches || self.git.is_some()
    }

    /// Whether a path on the command line is counted: as du, patterns hold for it too.
    pub(crate) fn keeps_given(&self, path: &Path) -> bool {
        !self.exclude.matches_given(path.as_os_str().as_bytes())
    }
}

impl Rules for Selection {
    type Scope = gitignore::Scope;

    fn enter(&self, dir: &Entered<'_>, parent: Option<&Self::Scope>) -> Option<Self::Scope> {
        // A cache that is given on the command line is meant.
        if self.caches && parent.is_some() && is_cache(dir) {
            return None;
        }
        Some(self.git.as_ref().and_then(|git| git.enter(dir, parent)))
    }

    fn keep(&self, entry: &Entry<'_>, scope: &Self::Scope) -> bool {
        if self.exclude.matches(entry.name_bytes(), || entry.path()) {
            return false;
        }
        if scope.is_some() && gitignore::is_ignored(entry, scope) {
            return false;
        }
        match &self.include {
            // A listing that does not tell kinds is not enough to leave out what may be a directory.
            Some(include) if !matches!(entry.kind(), Kind::Directory | Kind::Unknown) => {
                include.matches(entry.name_bytes(), || entry.path())
            }
            Some(_) | None => true,
        }
    }
}

fn is_cache(dir: &Entered<'_>) -> bool {
    let tag = dir.fd().and_then(|fd| gitignore::read_at(fd, "CACHEDIR.TAG"));
    tag.is_some_and(|bytes| bytes.starts_with(CACHE_SIGNATURE))
}

fn read_lines(file: &Path) -> std::io::Result<Vec<OsString>> {
    let input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file)?)
    };
    let lines: Result<Vec<Vec<u8>>, _> = BufReader::new(input).split(b'\n').collect();
    Ok(lines?.into_iter().filter(|line| !line.is_empty()).map(OsString::from_vec).collect())
}

/// The paths of `--files0-from`; what is wrong with some of them is told at once, as du says it.
pub(crate) fn read_files0(
    file: &Path,
    mut complain: impl FnMut(&str),
) -> std::io::Result<Vec<PathBuf>> {
    let is_stdin = file == Path::new("-");
    let input: Box<dyn Read> =
        if is_stdin { Box::new(std::io::stdin()) } else { Box::new(std::fs::File::open(file)?) };
    let mut paths = Vec::new();
    for (index, name) in BufReader::new(input).split(0).enumerate() {
        let name = name?;
        if name.is_empty() {
            let file = names::escaped(file.as_os_str().as_encoded_bytes());
            complain(&format!("{file}:{}: invalid zero-length file name", index + 1));
        } else if is_stdin && name == b"-" {
            complain("when reading file names from standard input, '-' is not allowed");
        } else {
            paths.push(PathBuf::from(OsString::from_vec(name)));
        }
    }
    Ok(paths)
}
