//! Paths on the other side: `/a/b`, or `VOLUME:/a/b` where a daemon serves several.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use bytes::Bytes;
use clap::builder::TypedValueParser;

/// A path in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemotePath {
    /// The volume, if one is named.
    pub(crate) volume: Option<String>,
    /// Below its root, beginning with a slash, as bytes.
    pub(crate) path: Vec<u8>,
}

impl RemotePath {
    /// Reads what a user wrote.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        if bytes.starts_with(b"/") {
            return Ok(Self { volume: None, path: bytes.to_vec() });
        }
        let malformed = || {
            format!(
                "'{}' is no path in a volume: write /a/b, or VOLUME:/a/b",
                text.to_string_lossy()
            )
        };
        let colon = bytes.windows(2).position(|pair| pair == b":/").ok_or_else(malformed)?;
        let (volume, path) = (&bytes[..colon], &bytes[colon + 1..]);
        let volume = match volume {
            b"" => None,
            name if name.contains(&b'/') => return Err(malformed()),
            name => match std::str::from_utf8(name) {
                Ok(name) => Some(name.to_owned()),
                Err(_not_utf8) => return Err(malformed()),
            },
        };
        Ok(Self { volume, path: path.to_vec() })
    }

    /// For messages of the protocol.
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.path)
    }

    /// The path without slashes at its end.
    pub(crate) fn trimmed(&self) -> &[u8] {
        let mut path = self.path.as_slice();
        while let [rest @ .., b'/'] = path {
            path = rest;
        }
        path
    }

    /// The last name; empty for the root.
    pub(crate) fn name(&self) -> &[u8] {
        self.trimmed().rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// Whether it says that it is a directory.
    pub(crate) fn has_slash(&self) -> bool {
        self.path.ends_with(b"/")
    }

    /// What lies below it under a relative path.
    pub(crate) fn join(&self, relative: &[u8]) -> Self {
        if relative.is_empty() {
            return self.clone();
        }
        let mut path = self.trimmed().to_vec();
        path.push(b'/');
        path.extend_from_slice(relative);
        Self { volume: self.volume.clone(), path }
    }

    /// As a path of this machine, for relative ones.
    pub(crate) fn shown(&self) -> String {
        let path = shown(&self.path);
        match &self.volume {
            Some(volume) => format!("{volume}:{path}"),
            None => path,
        }
    }
}

/// Bytes of a path as people read them; what a terminal could take for commands is written as escapes.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() {
                text.extend(char.escape_default());
            } else {
                text.push(char);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// A relative path in a listing as one of this machine.
pub(crate) fn local(path: &[u8]) -> PathBuf {
    OsString::from_vec(path.to_vec()).into()
}

/// How `clap` reads one: names need not be UTF-8.
#[derive(Clone, Debug)]
pub(crate) struct Parser;

impl TypedValueParser for Parser {
    type Value = RemotePath;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<RemotePath, clap::Error> {
        RemotePath::parse(value).map_err(|message| {
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, message + "\n")
                .with_cmd(command)
        })
    }
}

impl clap::builder::ValueParserFactory for RemotePath {
    type Parser = Parser;

    fn value_parser() -> Parser {
        Parser
    }
}

impl std::str::FromStr for RemotePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(OsStr::new(text))
    }
}

/// A path in JSON: text where it is, else its bytes with escapes, so that none is lost.
pub(crate) fn json(path: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(path) {
        Ok(text) => text.into(),
        Err(_not_utf8) => {
            let bytes: Vec<u8> = path.to_vec();
            serde_json::json!({ "bytes": bytes })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_stands_before_a_colon() {
        let parse = |text: &str| RemotePath::parse(OsStr::new(text));
        let plain = parse("/a/b").unwrap();
        assert_eq!((plain.volume, plain.path.as_slice()), (None, b"/a/b".as_slice()));
        let named = parse("media:/a").unwrap();
        assert_eq!(
            (named.volume.as_deref(), named.path.as_slice()),
            (Some("media"), b"/a".as_slice())
        );
        // A colon behind a slash belongs to the name.
        assert_eq!(parse("/a:/b").unwrap().path, b"/a:/b");
        assert!(parse("a/b").is_err());
        assert!(parse("a/b:/c").is_err());
        assert_eq!(parse("/a/b/").unwrap().name(), b"b");
        assert_eq!(parse("/").unwrap().join(b"x").path, b"/x");
    }

    #[test]
    fn names_reach_no_terminal_as_commands() {
        assert_eq!(shown(b"a\x1b[2Jb\xff"), "a\\u{1b}[2Jb\\xff");
    }
}
