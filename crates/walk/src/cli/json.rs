//! A reader of JSON whose strings are bytes.
//!
//! ncdu writes names as they are, so a file may not be JSON to the letter; and trees may be deep, so
//! there is no recursion. What reads the values decides what they mean, token by token.

use std::fmt;
use std::io::{self, Read};

/// Why a file is not a scan.
#[derive(Debug)]
pub(crate) enum ImportError {
    Read(io::Error),
    Format { offset: u64, expected: &'static str },
    Version(u64),
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "{error}"),
            Self::Format { offset, expected } => {
                write!(f, "not a scan: {expected} expected at byte {offset}")
            }
            Self::Version(major) => write!(f, "version {major} of the format is not known"),
        }
    }
}

/// Numbers of ours have 20 digits at most; longer ones are cut off, not kept.
const NUMBER_LEN_MAX: usize = 40;

/// Reads tokens and values.
pub(super) struct Parser<R: Read> {
    input: io::BufReader<R>,
    peeked: Option<u8>,
    offset: u64,
}

impl<R: Read> Parser<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input: io::BufReader::new(input), peeked: None, offset: 0 }
    }

    pub(super) fn wrong(&self, expected: &'static str) -> ImportError {
        ImportError::Format { offset: self.offset, expected }
    }

    /// The next byte, which stays where it is.
    pub(super) fn peek(&mut self) -> Result<Option<u8>, ImportError> {
        if self.peeked.is_none() {
            let mut byte = [0];
            loop {
                match self.input.read(&mut byte) {
                    Ok(0) => return Ok(None),
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(ImportError::Read(error)),
                }
            }
            self.peeked = Some(byte[0]);
        }
        Ok(self.peeked)
    }

    pub(super) fn take(&mut self) {
        if self.peeked.take().is_some() {
            self.offset += 1;
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<u8>, ImportError> {
        let byte = self.peek()?;
        self.take();
        Ok(byte)
    }

    /// The next byte that is not white space, which stays where it is.
    pub(super) fn token(&mut self) -> Result<Option<u8>, ImportError> {
        loop {
            match self.peek()? {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.take(),
                other => return Ok(other),
            }
        }
    }

    pub(super) fn expect(&mut self, byte: u8, name: &'static str) -> Result<(), ImportError> {
        if self.token()? != Some(byte) {
            return Err(self.wrong(name));
        }
        self.take();
        Ok(())
    }

    /// A number that is not negative; 0 for one that is. Fractions are dropped.
    pub(super) fn number(&mut self) -> Result<u64, ImportError> {
        let number = self.signed()?.max(0);
        u64::try_from(number).map_err(|_too_large| self.wrong("a number below 2^64"))
    }

    pub(super) fn signed(&mut self) -> Result<i128, ImportError> {
        self.token()?;
        let mut text = String::new();
        while let Some(byte @ (b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')) = self.peek()? {
            self.take();
            if text.len() < NUMBER_LEN_MAX {
                text.push(char::from(byte));
            }
        }
        // With an exponent what is before the point is another number.
        let whole = text.split('.').next().unwrap_or("");
        let has_exponent = text.contains(['e', 'E']);
        let number = if has_exponent { None } else { whole.parse().ok() };
        number.ok_or_else(|| self.wrong("a number in digits"))
    }

    fn skip_number(&mut self) -> Result<(), ImportError> {
        while let Some(b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E') = self.peek()? {
            self.take();
        }
        Ok(())
    }

    pub(super) fn boolean(&mut self) -> Result<bool, ImportError> {
        let is_true = self.token()? == Some(b't');
        self.skip_word()?;
        Ok(is_true)
    }

    /// `true`, `false`, `null`.
    pub(super) fn skip_word(&mut self) -> Result<(), ImportError> {
        let mut word = Vec::new();
        while let Some(byte @ b'a'..=b'z') = self.peek()? {
            self.take();
            if word.len() > 5 {
                break;
            }
            word.push(byte);
        }
        match word.as_slice() {
            b"true" | b"false" | b"null" => Ok(()),
            _ => Err(self.wrong("a value")),
        }
    }

    pub(super) fn string(&mut self) -> Result<Vec<u8>, ImportError> {
        self.expect(b'"', "a string")?;
        let mut text = Vec::new();
        loop {
            match self.next()?.ok_or_else(|| self.wrong("the end of a string"))? {
                b'"' => return Ok(text),
                b'\\' => self.escape(&mut text)?,
                byte => text.push(byte),
            }
        }
    }

    pub(super) fn escape(&mut self, text: &mut Vec<u8>) -> Result<(), ImportError> {
        let plain = match self.next()? {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                let mut unit = self.hex4()?;
                // Beyond 16 bits there are two halves.
                if (0xd800..0xdc00).contains(&unit) {
                    if self.next()? != Some(b'\\') || self.next()? != Some(b'u') {
                        return Err(self.wrong("the second half of a character"));
                    }
                    let low = self.hex4()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(self.wrong("the second half of a character"));
                    }
                    unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                }
                let character = char::from_u32(unit).ok_or_else(|| self.wrong("a character"))?;
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.wrong("an escape")),
        };
        text.push(plain);
        Ok(())
    }

    pub(super) fn hex4(&mut self) -> Result<u32, ImportError> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.next()?.and_then(|byte| char::from(byte).to_digit(16));
            unit = unit * 16 + digit.ok_or_else(|| self.wrong("four hexadecimal digits"))?;
        }
        Ok(unit)
    }

    /// Passes over any value, however deep: brackets are counted, not checked against each other.
    pub(super) fn skip_value(&mut self) -> Result<(), ImportError> {
        let mut depth = 0_u64;
        loop {
            match self.token()? {
                Some(b'[' | b'{') => {
                    depth += 1;
                    self.take();
                    continue;
                }
                Some(b']' | b'}') if depth > 0 => {
                    depth -= 1;
                    self.take();
                }
                Some(b',' | b':') if depth > 0 => {
                    self.take();
                    continue;
                }
                Some(b'"') => drop(self.string()?),
                Some(b'-' | b'0'..=b'9') => self.skip_number()?,
                Some(b'a'..=b'z') => self.skip_word()?,
                _ => return Err(self.wrong("a value")),
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }
}
