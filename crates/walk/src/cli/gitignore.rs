//! `--gitignore`: what git would ignore, by gitignore(5).
//!
//! Rules hold inside repositories only: from a directory with a `.git` down to the next one. Those
//! of a directory come before those of the directories above it, then `.git/info/exclude`, then the
//! user's file; in each the last pattern that matches decides. What is ignored is not entered, so
//! nothing in it can be taken back.
//!
//! Git does not ignore what it tracks. That is in its index, which is not read here: a tracked file
//! that matches a pattern is left out. `.git` itself is counted.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex::bytes::{RegexSet, RegexSetBuilder};
use rustix::fs::{AtFlags, Mode, OFlags};

use super::glob::{self, Dialect};
use crate::{Entered, Entry, Kind};

/// More is no list of patterns, and would take a hundred times as much memory: as if it were not there.
const FILE_BYTES_MAX: usize = 1 << 20;

const COMPILED_BYTES_MAX: usize = 1 << 28;

/// The patterns of one file, and those of lower precedence.
#[derive(Debug)]
pub(crate) struct Level {
    above: Option<Arc<Self>>,
    file: Arc<IgnoreFile>,
    /// Where its directory is.
    base: Base,
}

#[derive(Clone, Debug)]
enum Base {
    /// In the walk, at this depth.
    Depth(u32),
    /// So many components above the root, which has this path from there.
    Above(Arc<[u8]>),
}

/// What holds in a directory; `None` outside repositories, or without any pattern.
pub(crate) type Scope = Option<Arc<Level>>;

/// The user's own file, read once.
#[derive(Debug)]
pub(crate) struct UserFile(Arc<IgnoreFile>);

impl UserFile {
    pub(crate) fn read() -> Self {
        let bytes = user_path().and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        Self(Arc::new(IgnoreFile::parse(&bytes)))
    }

    /// What holds in a directory that was just opened.
    pub(crate) fn enter(&self, entered: &Entered<'_>, above: Option<&Scope>) -> Scope {
        let depth = entered.dir().depth();
        let fd = entered.fd();
        let is_repository = fd.is_some_and(is_repository);
        let base = Base::Depth(depth);
        let mut scope = match above {
            _ if is_repository => fd.and_then(|fd| self.of_repository(exclude_file(fd), base)),
            Some(above) => above.clone(),
            None => self.above_root(&entered.dir().path()),
        };
        // Whether this is inside a repository is not kept when there are no patterns at all; a
        // level without patterns marks it.
        if scope.is_some()
            && let Some(fd) = fd
            && let Some(bytes) = read_at(fd, ".gitignore")
        {
            scope = with_file(scope, &bytes, Base::Depth(depth));
        }
        scope
    }

    /// The levels that a repository starts with.
    fn of_repository(&self, exclude: Option<Vec<u8>>, base: Base) -> Scope {
        let user = Level { above: None, file: Arc::clone(&self.0), base: base.clone() };
        let file = Arc::new(IgnoreFile::parse(&exclude.unwrap_or_default()));
        Some(Arc::new(Level { above: Some(Arc::new(user)), file, base }))
    }

    /// What holds at a root by the files of directories above it.
    fn above_root(&self, root: &Path) -> Scope {
        let root = std::fs::canonicalize(root).ok()?;
        let directories: Vec<&Path> = root.ancestors().skip(1).collect();
        let top = directories.iter().position(|directory| directory.join(".git").exists())?;
        let base_of = |directory: &Path| -> Option<Base> {
            let below = root.strip_prefix(directory).ok()?;
            Some(Base::Above(below.as_os_str().as_bytes().into()))
        };
        let fd = open(directories[top])?;
        let mut scope = self.of_repository(exclude_file(fd.as_fd()), base_of(directories[top])?);
        for directory in directories[..=top].iter().rev() {
            if let Some(bytes) = read_at(rustix::fs::CWD, directory.join(".gitignore")) {
                scope = with_file(scope, &bytes, base_of(directory)?);
            }
        }
        scope
    }
}

fn with_file(above: Scope, bytes: &[u8], base: Base) -> Scope {
    let file = IgnoreFile::parse(bytes);
    if file.patterns.is_empty() {
        return above;
    }
    Some(Arc::new(Level { above, file: Arc::new(file), base }))
}

/// Whether git would ignore an entry.
pub(crate) fn is_ignored(entry: &Entry<'_>, scope: &Scope) -> bool {
    let name = entry.name_bytes();
    let is_directory = entry.kind() == Kind::Directory;
    let mut level = scope.as_deref();
    while let Some(at) = level {
        let path = || at.base.path_of(entry);
        if let Some(verdict) = at.file.verdict(name, path, is_directory) {
            return verdict == Verdict::Ignored;
        }
        level = at.above.as_deref();
    }
    false
}

impl Base {
    /// The path of an entry from here.
    fn path_of(&self, entry: &Entry<'_>) -> Vec<u8> {
        let (depth, prefix): (u32, &[u8]) = match self {
            Self::Depth(depth) => (*depth, b""),
            Self::Above(prefix) => (0, prefix),
        };
        let mut names = vec![entry.name_bytes()];
        let own = entry.dir();
        let dirs = own.into_iter().chain(own.into_iter().flat_map(|dir| dir.ancestors()));
        names.extend(dirs.take_while(|dir| dir.depth() > depth).map(|dir| dir.name().as_bytes()));
        let mut path = prefix.to_vec();
        for name in names.into_iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        path
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ignored,
    TakenBack,
}

#[derive(Debug)]
struct Pattern {
    verdict: Verdict,
    only_directories: bool,
}

/// A parsed file. Its patterns are in two sets, which remember their places in the file.
#[derive(Debug)]
struct IgnoreFile {
    patterns: Vec<Pattern>,
    names: Set,
    paths: Set,
}

#[derive(Debug, Default)]
struct Set {
    set: Option<RegexSet>,
    places: Vec<usize>,
}

#[derive(Default)]
struct Sources {
    sources: Vec<String>,
    places: Vec<usize>,
}

impl Sources {
    fn compile(self) -> Set {
        if self.sources.is_empty() {
            return Set::default();
        }
        let set = RegexSetBuilder::new(&self.sources).size_limit(COMPILED_BYTES_MAX).build();
        match set {
            Ok(set) => Set { set: Some(set), places: self.places },
            // Larger than any real list: as if it were not there.
            Err(_too_large) => Set::default(),
        }
    }
}

impl IgnoreFile {
    fn parse(bytes: &[u8]) -> Self {
        let mut patterns = Vec::new();
        let (mut names, mut paths) = (Sources::default(), Sources::default());
        let bytes = if bytes.len() > FILE_BYTES_MAX { b"" } else { bytes };
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        for line in bytes.split(|byte| *byte == b'\n') {
            let line = without_trailing_blanks(line.strip_suffix(b"\r").unwrap_or(line));
            let (verdict, line) = match line.split_first() {
                None | Some((b'#', _)) => continue,
                Some((b'!', rest)) => (Verdict::TakenBack, rest),
                Some(_) => (Verdict::Ignored, line),
            };
            let (only_directories, line) = match line.strip_suffix(b"/") {
                Some(line) => (true, line),
                None => (false, line),
            };
            if line.is_empty() {
                continue;
            }
            let is_path = line.contains(&b'/');
            let line = line.strip_prefix(b"/").unwrap_or(line);
            let Some(regex) = glob::to_regex(line, Dialect::Git) else { continue };
            let list = if is_path { &mut paths } else { &mut names };
            list.sources.push(format!("^{regex}$"));
            list.places.push(patterns.len());
            patterns.push(Pattern { verdict, only_directories });
        }
        Self { patterns, names: names.compile(), paths: paths.compile() }
    }

    /// What the last pattern that matches says.
    fn verdict(
        &self,
        name: &[u8],
        path: impl FnOnce() -> Vec<u8>,
        is_directory: bool,
    ) -> Option<Verdict> {
        let last = |Set { set, places }: &Set, text: &[u8]| {
            let matched = set.as_ref()?.matches(text);
            let places = matched.iter().map(|index| places[index]);
            places.filter(|place| is_directory || !self.patterns[*place].only_directories).max()
        };
        let by_name = last(&self.names, name);
        let by_path = if self.paths.set.is_none() { None } else { last(&self.paths, &path()) };
        by_name.max(by_path).map(|place| self.patterns[place].verdict)
    }
}

/// Blanks at the end do not count, unless a backslash stands before them.
fn without_trailing_blanks(mut line: &[u8]) -> &[u8] {
    while let Some(shorter) = line.strip_suffix(b" ") {
        let backslashes = shorter.iter().rev().take_while(|byte| **byte == b'\\').count();
        if backslashes % 2 == 1 {
            break;
        }
        line = shorter;
    }
    line
}

fn is_repository(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::statat(fd, ".git", AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// `.git/info/exclude`, also where `.git` is a file that says where it is (worktrees, submodules).
fn exclude_file(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    if let Some(bytes) = read_at(fd, ".git/info/exclude") {
        return Some(bytes);
    }
    let link = read_at(fd, ".git")?;
    let target = link.strip_prefix(b"gitdir: ")?;
    let git_dir = PathBuf::from(OsString::from_vec(target.trim_ascii_end().to_vec()));
    let directory = open_at(fd, &git_dir)?;
    let common = match read_at(directory.as_fd(), "commondir") {
        Some(common) => PathBuf::from(OsString::from_vec(common.trim_ascii_end().to_vec())),
        None => PathBuf::from("."),
    };
    read_at(directory.as_fd(), common.join("info/exclude"))
}

fn open(path: &Path) -> Option<std::os::fd::OwnedFd> {
    open_at(rustix::fs::CWD, path)
}

fn open_at(at: BorrowedFd<'_>, path: &Path) -> Option<std::os::fd::OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    rustix::fs::openat(at, path, flags, Mode::empty()).ok()
}

/// A regular file's content, or so much of it that it is too long; `None` for whatever cannot be read, as git passes over it.
pub(crate) fn read_at(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Option<Vec<u8>> {
    // A FIFO of that name must not keep us waiting.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(at, path, flags, Mode::empty()).ok()?;
    let file = std::fs::File::from(fd);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    // A byte more tells that it is too long.
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// `core.excludesFile` of the user, or its default.
fn user_path() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| home.as_ref().map(|home| home.join(".config")))?;
    let mut chosen = None;
    let files =
        [Some(config.join("git/config")), home.as_ref().map(|home| home.join(".gitconfig"))];
    for file in files.into_iter().flatten() {
        if let Ok(text) = std::fs::read(&file) {
            chosen = excludes_file_in(&text).or(chosen);
        }
    }
    let Some(chosen) = chosen else { return Some(config.join("git/ignore")) };
    match (chosen.strip_prefix(b"~/"), home) {
        (Some(rest), Some(home)) => Some(home.join(OsString::from_vec(rest.to_vec()))),
        _ => Some(PathBuf::from(OsString::from_vec(chosen))),
    }
}

/// `excludesFile` of the section `core`; included files and conditions are not looked at.
fn excludes_file_in(config: &[u8]) -> Option<Vec<u8>> {
    let mut is_core = false;
    let mut found = None;
    for line in config.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if let Some(section) = line.strip_prefix(b"[") {
            is_core = section.len() > 4 && section[..5].eq_ignore_ascii_case(b"core]");
            continue;
        }
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else { continue };
        if is_core && line[..equals].trim_ascii().eq_ignore_ascii_case(b"excludesfile") {
            let value = line[equals + 1..].trim_ascii();
            let value = value.strip_prefix(b"\"").unwrap_or(value);
            found = Some(value.strip_suffix(b"\"").unwrap_or(value).to_vec());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(file: &str, path: &str, is_directory: bool) -> Option<Verdict> {
        let name = path.rsplit('/').next().unwrap();
        let file = IgnoreFile::parse(file.as_bytes());
        file.verdict(name.as_bytes(), || path.as_bytes().to_vec(), is_directory)
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let file =
            "# objects\n*.o\n!keep.o\n/top\nsub/x\nbuild/\n\\#odd\n\\!odd\nblank\\ \ntrail   \n";
        let ignored = Some(Verdict::Ignored);
        for (path, is_directory, expected) in [
            ("a/b.o", false, ignored),
            ("keep.o", false, Some(Verdict::TakenBack)),
            ("top", false, ignored),
            ("a/top", false, None),
            ("sub/x", false, ignored),
            ("a/sub/x", false, None),
            ("build", true, ignored),
            ("a/build", true, ignored),
            ("build", false, None),
            ("#odd", false, ignored),
            ("!odd", false, ignored),
            ("blank ", false, ignored),
            ("blank", false, None),
            ("trail", false, ignored),
        ] {
            assert_eq!(verdict(file, path, is_directory), expected, "{path}");
        }
    }

    #[test]
    fn the_users_file_is_found_in_the_configuration() {
        let config = b"[user]\nexcludesfile = no\n[core]\n  excludesFile = \"~/ign\"\n";
        assert_eq!(excludes_file_in(config), Some(b"~/ign".to_vec()));
        assert_eq!(excludes_file_in(b"[corex]\nexcludesfile=a"), None);
    }
}
