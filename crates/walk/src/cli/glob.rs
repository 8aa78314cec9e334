//! Glob patterns as regular expressions over bytes.
//!
//! Two dialects: that of GNU's `--exclude` (fnmatch without flags: `*`, `?` and `[…]` match slashes
//! and leading points) and that of gitignore (they do not match slashes; `**` between slashes matches any
//! number of directories). All matching is linear in the length of the name.

/// How wildcards read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Characters are UTF-8. For names that are, as GNU does in such a locale.
    GnuCharacters,
    /// Characters are bytes. For all other names.
    GnuBytes,
    /// Characters are bytes, and slashes are special.
    Git,
}

/// The regular expression of a pattern, without anchors. `None` if it cannot match anything.
pub(crate) fn to_regex(glob: &[u8], dialect: Dialect) -> Option<String> {
    let characters: Vec<u32> = match dialect {
        Dialect::GnuCharacters => std::str::from_utf8(glob).ok()?.chars().map(u32::from).collect(),
        Dialect::GnuBytes | Dialect::Git => glob.iter().copied().map(u32::from).collect(),
    };
    let mode = if dialect == Dialect::GnuCharacters { "(?s:" } else { "(?s-u:" };
    let mut regex = mode.to_owned();
    let mut rest = characters.as_slice();
    let mut is_segment_start = true;
    while let Some((&first, after)) = rest.split_first() {
        let was_segment_start = std::mem::replace(&mut is_segment_start, false);
        rest = after;
        match char::from_u32(first) {
            Some('*') if dialect == Dialect::Git => {
                rest = git_stars(&mut regex, after, was_segment_start);
                is_segment_start = rest.len() < after.len() && was_segment_start;
            }
            Some('*') => regex.push_str(".*"),
            Some('?') => regex.push_str(if dialect == Dialect::Git { "[^/]" } else { "." }),
            Some('[') => match class(after) {
                Some((class, after)) => {
                    push_class(&mut regex, &class, dialect);
                    rest = after;
                }
                // Without its end a bracket is a character; git lets nothing match.
                None if dialect == Dialect::Git => return None,
                None => push_literal(&mut regex, first),
            },
            Some('\\') => match after.split_first() {
                Some((&escaped, after)) => {
                    push_literal(&mut regex, escaped);
                    rest = after;
                }
                None => return None,
            },
            _ => {
                is_segment_start = first == u32::from('/');
                push_literal(&mut regex, first);
            }
        }
    }
    regex.push(')');
    Some(regex)
}

/// Stars of a git pattern, the first of which is taken; returns what is left of the pattern.
fn git_stars<'p>(regex: &mut String, after: &'p [u32], is_segment_start: bool) -> &'p [u32] {
    let (star, slash) = (u32::from('*'), u32::from('/'));
    let more = after.iter().take_while(|character| **character == star).count();
    let rest = &after[more..];
    if more == 1 && is_segment_start {
        match rest.split_first() {
            // `**/`: any number of directories, none included.
            Some((&next, rest)) if next == slash => {
                regex.push_str("(?:[^/]+/)*");
                return rest;
            }
            // `/**` at the end: everything inside.
            None => {
                regex.push_str(".+");
                return rest;
            }
            Some(_) => {}
        }
    }
    regex.push_str("[^/]*");
    rest
}

fn push_literal(regex: &mut String, character: u32) {
    // Two digits are a byte where characters are bytes; in braces it would be a character always.
    if character <= 0xff {
        regex.push_str(&format!("\\x{character:02x}"));
    } else {
        regex.push_str(&format!("\\x{{{character:x}}}"));
    }
}

struct Class {
    negated: bool,
    ranges: Vec<(u32, u32)>,
    /// Such as `alpha`.
    named: Vec<String>,
}

const NAMED: [&str; 12] = [
    "alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "xdigit",
];

/// A bracket expression, from behind its bracket, and what follows it.
fn class(text: &[u32]) -> Option<(Class, &[u32])> {
    let is = |character: Option<&u32>, wanted: char| character == Some(&u32::from(wanted));
    let mut class = Class { negated: false, ranges: Vec::new(), named: Vec::new() };
    let mut at = 0;
    if is(text.first(), '!') || is(text.first(), '^') {
        class.negated = true;
        at = 1;
    }
    let start = at;
    loop {
        let character = text.get(at)?;
        if is(Some(character), ']') && at > start {
            return Some((class, &text[at + 1..]));
        }
        if is(Some(character), '[') && is(text.get(at + 1), ':') {
            let end = text[at + 2..].iter().position(|c| *c == u32::from(':'))? + at + 2;
            let name: String =
                text[at + 2..end].iter().filter_map(|c| char::from_u32(*c)).collect();
            if is(text.get(end + 1), ']') && NAMED.contains(&name.as_str()) {
                class.named.push(name);
                at = end + 2;
                continue;
            }
        }
        let (low, next) = class_character(text, at)?;
        at = next;
        let mut high = low;
        if is(text.get(at), '-') && text.get(at + 1).is_some() && !is(text.get(at + 1), ']') {
            (high, at) = class_character(text, at + 1)?;
        }
        // A range in the wrong order holds nothing.
        if low <= high {
            class.ranges.push((low, high));
        }
    }
}

/// One character of a bracket expression, which may be escaped, and where the next is.
fn class_character(text: &[u32], at: usize) -> Option<(u32, usize)> {
    let character = *text.get(at)?;
    if character == u32::from('\\') {
        return Some((*text.get(at + 1)?, at + 2));
    }
    Some((character, at + 1))
}

fn push_class(regex: &mut String, class: &Class, dialect: Dialect) {
    if class.ranges.is_empty() && class.named.is_empty() {
        // Nothing, or everything.
        let any = if dialect == Dialect::Git { "[^/]" } else { "." };
        regex.push_str(if class.negated { any } else { "[a&&b]" });
        return;
    }
    regex.push_str(if class.negated { "[[^" } else { "[[" });
    for (low, high) in &class.ranges {
        push_literal(regex, *low);
        regex.push('-');
        push_literal(regex, *high);
    }
    for name in &class.named {
        regex.push_str(&format!("[:{name}:]"));
    }
    regex.push_str(if dialect == Dialect::Git { "]&&[^/]]" } else { "]]" });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::bytes::Regex;

    fn matches(glob: &str, dialect: Dialect, name: &str) -> bool {
        to_regex(glob.as_bytes(), dialect).is_some_and(|regex| {
            Regex::new(&format!("^{regex}$")).unwrap().is_match(name.as_bytes())
        })
    }

    #[test]
    fn gnu_wildcards_match_slashes() {
        for (glob, name, expected) in [
            ("*.o", "a.o", true),
            ("*.o", "a/b.o", true),
            ("*.o", "a.oo", false),
            ("a?c", "a/c", true),
            ("?", "é", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "éx", true),
            ("[]x]", "]", true),
            ("[]-a]", "^", true),
            ("[[:digit:]]*", "7up", true),
            ("[a", "[a", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("[z-a]", "z", false),
            ("[!z-a]", "z", true),
            ("a&&b", "a&&b", true),
            ("[&&~]", "&", true),
            ("", "", true),
        ] {
            assert_eq!(matches(glob, Dialect::GnuCharacters, name), expected, "{glob} {name}");
        }
        assert!(!matches("?", Dialect::GnuBytes, "é"));
    }

    #[test]
    fn git_wildcards_stop_at_slashes() {
        for (glob, name, expected) in [
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", false),
            ("**/a", "a", true),
            ("**/a", "x/y/a", true),
            ("a/**", "a", false),
            ("a/**", "a/b/c", true),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/xb", false),
            ("a**b", "axxb", true),
            ("a**b", "a/b", false),
            ("a?b", "a/b", false),
            ("a[!x]b", "a/b", false),
            ("**/x/**/y", "x/y", true),
            ("[", "[", false),
        ] {
            assert_eq!(matches(glob, Dialect::Git, name), expected, "{glob} {name}");
        }
    }

    #[test]
    fn bytes_beyond_ascii_are_bytes() {
        for glob in [&b"a\xe9"[..], b"a[\xe0-\xff]", b"a?", b"a[!x]", b"a*"] {
            for dialect in [Dialect::GnuBytes, Dialect::Git] {
                let regex = to_regex(glob, dialect).unwrap();
                let regex = Regex::new(&format!("^{regex}$")).unwrap();
                assert!(regex.is_match(b"a\xe9"), "{regex}");
            }
        }
        assert_eq!(to_regex(b"\xe9", Dialect::GnuCharacters), None);
    }

    proptest! {
        #[test]
        fn every_pattern_gives_a_valid_expression(glob in any::<Vec<u8>>()) {
            for dialect in [Dialect::GnuCharacters, Dialect::GnuBytes, Dialect::Git] {
                if let Some(regex) = to_regex(&glob, dialect) {
                    prop_assert!(Regex::new(&regex).is_ok(), "{}", regex);
                }
            }
        }

        #[test]
        fn patterns_of_wildcards_too(glob in "[]\\[!^*?/a-c\\\\:é-]{0,12}") {
            for dialect in [Dialect::GnuCharacters, Dialect::GnuBytes, Dialect::Git] {
                if let Some(regex) = to_regex(glob.as_bytes(), dialect) {
                    prop_assert!(Regex::new(&regex).is_ok(), "{}", regex);
                }
            }
        }
    }
}
