//! The terminal: raw mode, keys, and what is drawn. ECMA-48 sequences that every terminal knows.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{
    OptionalActions, QueueSelector, Termios, tcflush, tcgetattr, tcgetwinsize, tcsetattr,
};

/// How long to wait for a key before looking at the size of the window again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    First,
    Last,
    Enter,
    Escape,
    Backspace,
    Character(char),
    /// Nobody is there any more.
    End,
}

/// A terminal in raw mode, on its other screen; dropping gives it back as it was.
#[derive(Debug)]
pub(super) struct Terminal {
    file: File,
    before: Termios,
    pending: Vec<u8>,
}

/// The controlling terminal: standard input may be a scan, standard output a file.
fn device() -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/tty");
    file.map_err(|error| io::Error::new(error.kind(), "-i needs a terminal"))
}

impl Terminal {
    /// Whether there is one.
    pub(super) fn check() -> io::Result<()> {
        device().map(drop)
    }

    pub(super) fn open() -> io::Result<Self> {
        let file = device()?;
        let before = tcgetattr(&file)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&file, OptionalActions::Flush, &raw)?;
        let mut terminal = Self { file, before, pending: Vec::new() };
        // The other screen, without a cursor. Characters may be wider than we think: no line goes on
        // in the next.
        terminal.file.write_all(b"\x1b[?1049h\x1b[?25l\x1b[?7l")?;
        Ok(terminal)
    }

    /// Columns and rows; what terminals once had if this one does not say.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(&self.file) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (size.ws_col.into(), size.ws_row.into())
            }
            _ => (80, 24),
        }
    }

    /// Replaces what is shown. Lines end in CR LF.
    pub(super) fn draw(&mut self, screen: &str) -> io::Result<()> {
        // In one write, so that nothing half-drawn is seen.
        let frame = format!("\x1b[H{}\x1b[J", screen.replace("\r\n", "\x1b[K\r\n"));
        self.file.write_all(frame.as_bytes())
    }

    /// Passes over what was typed so far.
    pub(super) fn forget_keys(&mut self) {
        self.pending.clear();
        // If it cannot be done, a key more is read.
        let _not_done = tcflush(&self.file, QueueSelector::IFlush);
    }

    /// The next key; `None` if none comes for a while.
    pub(super) fn key(&mut self) -> io::Result<Option<Key>> {
        loop {
            if let Some((key, len)) = parse(&self.pending) {
                self.pending.drain(..len);
                match key {
                    Some(key) => return Ok(Some(key)),
                    None => continue,
                }
            }
            let timeout =
                rustix::time::Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.subsec_nanos().into() };
            let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            let mut bytes = [0; 256];
            match self.file.read(&mut bytes) {
                Ok(0) => return Ok(Some(Key::End)),
                Ok(len) => self.pending.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What a terminal answers that has hung up.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
                {
                    return Ok(Some(Key::End));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Whoever has hung up sees nothing of it.
        let _gone = self.file.write_all(b"\x1b[?7h\x1b[?25h\x1b[?1049l");
        let _gone = tcsetattr(&self.file, OptionalActions::Flush, &self.before);
    }
}

/// The first key of some bytes, if they mean one, and how many bytes it has.
fn parse(bytes: &[u8]) -> Option<(Option<Key>, usize)> {
    let first = *bytes.first()?;
    if first == 0x1b {
        if !matches!(bytes.get(1), Some(b'[' | b'O')) {
            return Some((Some(Key::Escape), 1));
        }
        // Parameters, then a letter or ~.
        let len = bytes[2..].iter().position(|byte| (0x40..0x7f).contains(byte));
        let Some(len) = len else { return Some((None, bytes.len())) };
        let key = match &bytes[2..=2 + len] {
            b"A" => Some(Key::Up),
            b"B" => Some(Key::Down),
            b"C" => Some(Key::Right),
            b"D" => Some(Key::Left),
            b"H" | b"1~" | b"7~" => Some(Key::First),
            b"F" | b"4~" | b"8~" => Some(Key::Last),
            b"5~" => Some(Key::PageUp),
            b"6~" => Some(Key::PageDown),
            _ => None,
        };
        return Some((key, len + 3));
    }
    let key = match first {
        b'\r' | b'\n' => Some(Key::Enter),
        0x7f | 0x08 => Some(Key::Backspace),
        // Control-C and Control-D: raw mode hands them to us.
        3 | 4 => Some(Key::Character('q')),
        b' '..0x7f => Some(Key::Character(char::from(first))),
        _ => None,
    };
    Some((key, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_told_apart() {
        assert_eq!(parse(b"\x1b[Aq"), Some((Some(Key::Up), 3)));
        assert_eq!(parse(b"\x1bOB"), Some((Some(Key::Down), 3)));
        assert_eq!(parse(b"\x1b[5~"), Some((Some(Key::PageUp), 4)));
        assert_eq!(parse(b"\x1b"), Some((Some(Key::Escape), 1)));
        assert_eq!(parse(b"\x1b[1;5X"), Some((None, 6)));
        assert_eq!(parse(b"q"), Some((Some(Key::Character('q')), 1)));
        assert_eq!(parse(b""), None);
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_used_up(bytes in any::<Vec<u8>>()) {
            let mut rest = bytes.as_slice();
            while let Some((_, len)) = parse(rest) {
                prop_assert!(len > 0 && len <= rest.len());
                rest = &rest[len..];
            }
            prop_assert!(rest.is_empty());
        }
    }
}
