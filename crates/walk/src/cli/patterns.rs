//! `--include` and `--exclude`: which names and paths match.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use regex::bytes::{RegexSet, RegexSetBuilder};

use super::glob::{self, Dialect};

/// Marks a regular expression.
const REGEX_PREFIX: &str = "re:";

/// Enough for some 100,000 plain patterns.
const COMPILED_BYTES_MAX: usize = 1 << 30;

/// Which list it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// What matches is left out with everything below it.
    Exclude,
    /// Only files that match count.
    Include,
}

/// Some patterns of one meaning.
#[derive(Debug)]
pub(crate) struct Patterns {
    /// Compared with the last component alone: no path has to be built.
    names: OnText,
    /// Compared with the path.
    paths: OnText,
}

/// Expressions for names that are UTF-8, and for those that are not.
/// `None` is the usual case, and building an empty set takes as long as walking a small directory.
#[derive(Debug)]
struct OnText(Option<Sets>);

#[derive(Debug)]
struct Sets {
    characters: RegexSet,
    bytes: RegexSet,
}

impl OnText {
    fn is_match(&self, text: &[u8]) -> bool {
        let Some(sets) = &self.0 else { return false };
        let set = if std::str::from_utf8(text).is_ok() { &sets.characters } else { &sets.bytes };
        set.is_match(text)
    }

    fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

#[derive(Default)]
struct Sources {
    characters: Vec<String>,
    bytes: Vec<String>,
}

impl Sources {
    fn add(&mut self, glob: &[u8], before: &str) {
        for (dialect, list) in
            [(Dialect::GnuCharacters, &mut self.characters), (Dialect::GnuBytes, &mut self.bytes)]
        {
            if let Some(regex) = glob::to_regex(glob, dialect) {
                list.push(format!("{before}{regex}$"));
            }
        }
    }

    fn compile(self) -> Result<OnText, String> {
        if self.characters.is_empty() && self.bytes.is_empty() {
            return Ok(OnText(None));
        }
        let set = |sources: Vec<String>| {
            RegexSetBuilder::new(sources)
                .size_limit(COMPILED_BYTES_MAX)
                .build()
                .map_err(|error| error.to_string())
        };
        let sets = Sets { characters: set(self.characters)?, bytes: set(self.bytes)? };
        Ok(OnText(Some(sets)))
    }
}

impl Patterns {
    pub(crate) fn new(patterns: &[OsString], meaning: Meaning) -> Result<Self, String> {
        let (mut names, mut paths) = (Sources::default(), Sources::default());
        for pattern in patterns {
            let bytes = pattern.as_bytes();
            if let Some(expression) = bytes.strip_prefix(REGEX_PREFIX.as_bytes()) {
                let expression = std::str::from_utf8(expression)
                    .map_err(|_not_utf8| format!("{} is not UTF-8", pattern.display()))?;
                // Alone first, so that a message shows what was typed.
                regex::bytes::Regex::new(expression).map_err(|error| error.to_string())?;
                paths.characters.push(format!("(?:{expression})"));
                paths.bytes.push(format!("(?:{expression})"));
            } else if is_about_names(bytes, meaning) {
                names.add(bytes, "^");
            } else {
                // The path, or any end of it that starts a component.
                paths.add(bytes, "(?:^|/)");
            }
        }
        Ok(Self { names: names.compile()?, paths: paths.compile()? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.paths.is_empty()
    }

    /// A path as it would be printed; for what is given on the command line.
    pub(crate) fn matches_given(&self, path: &[u8]) -> bool {
        let starts = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut ends = std::iter::once(0).chain(starts.map(|(index, _)| index + 1));
        self.paths.is_match(path) || ends.any(|start| self.names.is_match(&path[start..]))
    }

    /// Something that was found; its path is built if it is needed.
    pub(crate) fn matches(&self, name: &[u8], path: impl FnOnce() -> std::path::PathBuf) -> bool {
        self.names.is_match(name)
            || (!self.paths.is_empty() && self.paths.is_match(&path().into_os_string().into_vec()))
    }
}

/// Whether looking at the name alone gives the same answer.
///
/// Included files: that is how patterns without a slash are meant. Excluded ones are compared as du
/// compares them, where `a*b` matches `a/x/b`. But if the only stars are at the ends, whatever
/// matches across a slash is below something that matches itself, and so left out already.
fn is_about_names(pattern: &[u8], meaning: Meaning) -> bool {
    if pattern.contains(&b'/') {
        return false;
    }
    let inner = pattern.strip_prefix(b"*").unwrap_or(pattern);
    let inner = inner.strip_suffix(b"*").unwrap_or(inner);
    meaning == Meaning::Include || !inner.iter().any(|byte| b"*?[\\".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(pattern: &str, path: &str) -> bool {
        let patterns = Patterns::new(&[pattern.into()], Meaning::Exclude).unwrap();
        let name = path.rsplit('/').next().unwrap();
        patterns.matches(name.as_bytes(), || path.into())
    }

    #[test]
    fn excluding_compares_all_ends_of_a_path() {
        assert!(excludes("*.o", "src/a.o"));
        assert!(excludes("a.o", "src/a.o"));
        assert!(excludes("src/*", "x/src/deep/a.o"));
        assert!(!excludes("rc/*", "src/a.o"));
        assert!(excludes("s*o", "src/a.o"));
        assert!(excludes("re:^src/.*o$", "src/a.o"));
        assert!(!excludes("re:^a", "src/a.o"));
        assert!(Patterns::new(&["re:(".into()], Meaning::Exclude).is_err());
    }

    #[test]
    fn including_without_a_slash_is_about_the_name() {
        let patterns = Patterns::new(&["s*o".into()], Meaning::Include).unwrap();
        assert!(!patterns.matches(b"a.o", || "src/a.o".into()));
        assert!(patterns.matches(b"s.o", || "src/s.o".into()));
    }

    #[test]
    fn given_paths_are_compared_too() {
        let patterns = Patterns::new(&["*.o".into(), "b".into()], Meaning::Exclude).unwrap();
        assert!(patterns.matches_given(b"x.o"));
        assert!(patterns.matches_given(b"a/b"));
        assert!(!patterns.matches_given(b"b/a"));
    }
}
