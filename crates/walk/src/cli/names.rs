//! Names in output. A name is bytes; only zero and the slash cannot be in it.
//!
//! Where output goes to a program, names are written as they are (table, raw, CSV) or in a way that
//! loses nothing (JSON, see [`json_fields`]). Where it goes to a person they are [`escaped`]: a
//! name must not move the cursor, clear the screen, or pretend to be another line.

use std::io::{self, Write};

/// For people: control characters, direction marks and bytes that are not UTF-8 as escapes.
pub(crate) fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                _ if character.is_control() || is_direction_mark(character) => {
                    text.extend(character.escape_unicode());
                }
                _ => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// They reorder what is shown around them, or are not shown at all.
fn is_direction_mark(character: char) -> bool {
    matches!(character,
        '\u{61c}' | '\u{200b}' | '\u{2060}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// How many columns a text takes on a terminal, near enough: wide scripts count two.
pub(crate) fn columns(text: &str) -> usize {
    text.chars().map(char_columns).sum()
}

pub(crate) fn char_columns(character: char) -> usize {
    match u32::from(character) {
        0x300..=0x36f | 0x200b..=0x200d | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// What becomes of bytes that are not UTF-8 in a JSON string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotUtf8 {
    /// U+FFFD, as the standard wants text to be.
    Replaced,
    /// Left as they are: ncdu's convention, which loses nothing but is not JSON to the letter.
    Kept,
}

/// A JSON string with its quotes.
pub(crate) fn json_string(out: &mut dyn Write, text: &[u8], not_utf8: NotUtf8) -> io::Result<()> {
    out.write_all(b"\"")?;
    for chunk in text.utf8_chunks() {
        let valid = chunk.valid();
        let mut start = 0;
        for (index, byte) in valid.bytes().enumerate() {
            if !matches!(byte, b'"' | b'\\' | 0..0x20 | 0x7f) {
                continue;
            }
            out.write_all(&valid.as_bytes()[start..index])?;
            match byte {
                b'"' => out.write_all(b"\\\"")?,
                b'\\' => out.write_all(b"\\\\")?,
                b'\n' => out.write_all(b"\\n")?,
                b'\t' => out.write_all(b"\\t")?,
                b'\r' => out.write_all(b"\\r")?,
                _ => write!(out, "\\u{byte:04x}")?,
            }
            start = index + 1;
        }
        out.write_all(&valid.as_bytes()[start..])?;
        if !chunk.invalid().is_empty() {
            match not_utf8 {
                NotUtf8::Replaced => out.write_all("\u{fffd}".as_bytes())?,
                NotUtf8::Kept => out.write_all(chunk.invalid())?,
            }
        }
    }
    out.write_all(b"\"")
}

/// `"path":"…"`, and, if it is not UTF-8, `"path_hex":"…"` with its exact bytes behind it.
pub(crate) fn json_fields(out: &mut dyn Write, key: &str, name: &[u8]) -> io::Result<()> {
    write!(out, "\"{key}\":")?;
    json_string(out, name, NotUtf8::Replaced)?;
    if std::str::from_utf8(name).is_err() {
        write!(out, ",\"{key}_hex\":\"")?;
        for byte in name {
            write!(out, "{byte:02x}")?;
        }
        out.write_all(b"\"")?;
    }
    Ok(())
}

/// A field of RFC 4180, in quotes if anything in it needs them.
pub(crate) fn csv_field(out: &mut dyn Write, field: &[u8]) -> io::Result<()> {
    if !field.iter().any(|byte| matches!(byte, b'"' | b',' | b'\n' | b'\r')) {
        return out.write_all(field);
    }
    out.write_all(b"\"")?;
    for part in field.split_inclusive(|byte| *byte == b'"') {
        out.write_all(part)?;
        if part.ends_with(b"\"") {
            out.write_all(b"\"")?;
        }
    }
    out.write_all(b"\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl Fn(&mut dyn Write) -> io::Result<()>) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        out
    }

    #[test]
    fn names_for_people_cannot_control_the_terminal() {
        assert_eq!(escaped(b"plain name"), "plain name");
        assert_eq!(escaped(b"a\nb\tc"), "a\\nb\\tc");
        assert_eq!(escaped(b"\x1b[2J"), "\\u{1b}[2J");
        assert_eq!(escaped(b"caf\xe9"), "caf\\xe9");
        assert_eq!(escaped("\u{202e}gnp.exe".as_bytes()), "\\u{202e}gnp.exe");
        assert_eq!(escaped("\u{61c}a\u{feff}".as_bytes()), "\\u{61c}a\\u{feff}");
    }

    #[test]
    fn csv_fields_are_quoted_when_they_have_to_be() {
        assert_eq!(written(|out| csv_field(out, b"plain")), b"plain");
        assert_eq!(written(|out| csv_field(out, b"a,\"b\"\n")), b"\"a,\"\"b\"\"\n\"");
    }

    proptest! {
        #[test]
        fn json_strings_are_json_and_lose_nothing(name in any::<Vec<u8>>()) {
            let json = written(|out| {
                out.write_all(b"{")?;
                json_fields(out, "path", &name)?;
                out.write_all(b"}")
            });
            let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let restored = match value["path_hex"].as_str() {
                None => value["path"].as_str().unwrap().as_bytes().to_vec(),
                Some(hex) => (0..hex.len() / 2)
                    .map(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).unwrap())
                    .collect(),
            };
            prop_assert_eq!(restored, name);
        }

        #[test]
        fn escaped_names_hold_no_control_characters(name in any::<Vec<u8>>()) {
            prop_assert!(!escaped(&name).chars().any(char::is_control));
        }
    }
}
