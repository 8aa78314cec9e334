//! Values as they are written, and what they mean.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each reader names the forms that it takes and refuses every other"
)]

use std::path::PathBuf;
use std::time::Duration;

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// In the environment or a flag, where everything is text.
    Word(String),
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Self>),
    /// What no key takes, by the name of its type.
    Other(&'static str),
}

type Result<T> = std::result::Result<T, String>;

impl Raw {
    fn describe(&self) -> &'static str {
        match self {
            Self::Word(_) | Self::Text(_) => "text",
            Self::Integer(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Other(name) => name,
        }
    }

    fn mismatch<T>(&self, wanted: &str) -> Result<T> {
        Err(match self {
            Self::Word(word) => format!("'{word}' is not {wanted}"),
            Self::Text(text) => format!("\"{text}\" is not {wanted}"),
            other => format!("{wanted} is needed, not {}", other.describe()),
        })
    }

    pub(super) fn text(&self) -> Result<String> {
        match self {
            Self::Word(text) | Self::Text(text) => Ok(text.clone()),
            other => other.mismatch("text"),
        }
    }

    /// Text, where an empty one means that there is none.
    pub(super) fn optional_text(&self) -> Result<Option<String>> {
        Ok(Some(self.text()?).filter(|text| !text.is_empty()))
    }

    /// A path that does not depend on where the daemon was started.
    pub(super) fn path(&self) -> Result<PathBuf> {
        let path = PathBuf::from(self.text()?);
        if path.is_absolute() {
            Ok(path)
        } else {
            Err(format!("'{}' is not an absolute path", path.display()))
        }
    }

    pub(super) fn optional_path(&self) -> Result<Option<PathBuf>> {
        if self.optional_text()?.is_none() { Ok(None) } else { self.path().map(Some) }
    }

    pub(super) fn boolean(&self) -> Result<bool> {
        match self {
            Self::Boolean(value) => Ok(*value),
            Self::Word(word) if word == "true" => Ok(true),
            Self::Word(word) if word == "false" => Ok(false),
            other => other.mismatch("true or false"),
        }
    }

    /// A whole number that is not zero: a limit of nothing would be a daemon that does nothing.
    pub(super) fn positive(&self) -> Result<u32> {
        match self.number()? {
            0 => Err("it must be at least 1".to_owned()),
            number => Ok(number),
        }
    }

    pub(super) fn number(&self) -> Result<u32> {
        let number = match self {
            Self::Integer(number) => u32::try_from(*number).ok(),
            Self::Word(word) => word.parse().ok(),
            other => return other.mismatch("a number"),
        };
        number.ok_or_else(|| format!("it must be a number from 0 to {}", u32::MAX))
    }

    /// A size such as 64K or 16MiB.
    pub(super) fn bytes(&self) -> Result<u64> {
        match self {
            Self::Integer(number) => {
                u64::try_from(*number).map_err(|_negative| "it is less than zero".to_owned())
            }
            Self::Word(text) | Self::Text(text) => librorum_format::parse_size(text),
            other => other.mismatch("a size, like \"16M\""),
        }
    }

    /// A time such as 500ms, 5s, 2m or 1h.
    pub(super) fn duration(&self) -> Result<Duration> {
        match self {
            Self::Word(text) | Self::Text(text) => parse_duration(text),
            Self::Integer(number) => {
                Err(format!("a time needs a unit: \"{number}s\" or \"{number}ms\""))
            }
            other => other.mismatch("a time, like \"5s\""),
        }
    }

    pub(super) fn positive_duration(&self) -> Result<Duration> {
        match self.duration()? {
            Duration::ZERO => Err("it must be more than nothing".to_owned()),
            duration => Ok(duration),
        }
    }

    /// A list; in the environment, with commas.
    pub(super) fn list(&self) -> Result<Vec<Self>> {
        match self {
            Self::List(list) => Ok(list.clone()),
            Self::Word(word) if word.is_empty() => Ok(Vec::new()),
            Self::Word(word) => {
                Ok(word.split(',').map(|part| Self::Word(part.trim().to_owned())).collect())
            }
            other => other.mismatch("a list"),
        }
    }

    pub(super) fn each<T>(&self, read: impl Fn(&Self) -> Result<T>) -> Result<Vec<T>> {
        self.list()?.iter().map(read).collect()
    }

    /// `name=value`.
    pub(super) fn pair(&self) -> Result<(String, String)> {
        let text = self.text()?;
        match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            }
            // Its end may be a secret.
            _ => Err("each must be NAME=VALUE".to_owned()),
        }
    }
}

/// Reads a time with its unit.
fn parse_duration(text: &str) -> Result<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("'{text}' is not a time; write it like 500ms, 5s, 2m or 1h");
    let number: u64 = number.parse().map_err(|_unparsed| wrong())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(ms).map(Duration::from_millis).ok_or_else(wrong)
}

/// As [`parse_duration`] reads it.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms != 0 && ms.is_multiple_of(3_600_000) {
        format!("{}h", ms / 3_600_000)
    } else if ms != 0 && ms.is_multiple_of(60_000) {
        format!("{}m", ms / 60_000)
    } else if ms.is_multiple_of(1_000) {
        format!("{}s", ms / 1_000)
    } else {
        format!("{ms}ms")
    }
}

/// As `parse_size` reads it.
pub(super) fn bytes_text(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}
