//! Who may come in over TCP: a file with a line for each token,
//!
//! ```text
//! token [uid] [name]
//! ```
//!
//! where the uid is whom it acts as (the daemon's own user if it is left out) and the name is for
//! people. The file is read again when it changes, so that a token can be taken back at once. What others
//! can read is no secret: such a file is refused.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use librorum_sys::clock;

use super::ServeError;

/// How long a token that was taken out of the file may still work.
const RECHECK_AFTER: Duration = Duration::from_secs(1);

/// Shorter ones could be guessed. Those that we make have 64 characters.
const TOKEN_LEN_MIN: usize = 16;

/// Only a mistake makes it longer.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What identifies a version of the file.
type Stamp = (u64, u64, u64, Option<SystemTime>);

/// Tokens by their BLAKE3: comparing these hashes takes the same time wherever they differ, and a
/// dump of our memory shows no token.
type Known = Vec<(blake3::Hash, u32)>;

/// The tokens of a file.
#[derive(Debug)]
pub(super) struct Tokens {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: Known,
    stamp: Option<Stamp>,
    checked_at: Duration,
}

impl Tokens {
    /// Reads the file; makes one, with a random token for the daemon's own user, if there is none.
    pub(super) fn open(path: &Path) -> Result<Self, ServeError> {
        let (known, stamp) = match read(path) {
            Err(ServeError::Tokens { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                make(path)?;
                read(path)?
            }
            read => read?,
        };
        let state = State { known, stamp: Some(stamp), checked_at: clock::monotonic() };
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// Whom this token acts as.
    pub(super) fn uid(&self, token: &[u8]) -> Option<u32> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::monotonic();
        if now.saturating_sub(state.checked_at) >= RECHECK_AFTER {
            state.checked_at = now;
            if stamp_of(&self.path) != state.stamp {
                match read(&self.path) {
                    Ok((known, stamp)) => {
                        tracing::info!(path = %self.path.display(), "the tokens have changed");
                        (state.known, state.stamp) = (known, Some(stamp));
                    }
                    // Whatever the file was meant to say now, it no longer says what it said.
                    Err(error) => {
                        tracing::error!(%error, "no token is taken any more");
                        (state.known, state.stamp) = (Vec::new(), None);
                    }
                }
            }
        }
        let hash = blake3::hash(token);
        // All of them are compared, so that the time tells nothing about which one it is.
        let mut found = None;
        for (known, uid) in &state.known {
            if *known == hash {
                found = Some(*uid);
            }
        }
        found
    }
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    (metadata.dev(), metadata.ino(), metadata.len(), metadata.modified().ok())
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    path.metadata().ok().as_ref().map(stamp)
}

fn make(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Tokens { path: path.to_owned(), source };
    let bytes: [u8; 32] = librorum_sys::entropy::random();
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let own_uid = rustix::process::geteuid().as_raw();
    let text = format!(
        "# Who may come in over TCP: lines of `token [uid] [name]`. Keep this file to yourself.\n\
         {token} {own_uid} first\n"
    );
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    rustix::fs::fsync(&file).map_err(|error| failed(error.into()))?;
    tracing::info!(path = %path.display(), "made a token");
    Ok(())
}

fn read(path: &Path) -> Result<(Known, Stamp), ServeError> {
    let failed = |source| ServeError::Tokens { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let own_uid = rustix::process::geteuid().as_raw();
    if metadata.mode() & 0o077 != 0 || (metadata.uid() != own_uid && metadata.uid() != 0) {
        return Err(ServeError::TokensNotSecret { path: path.to_owned() });
    }
    let mut text = String::new();
    (&file).take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    let mut known = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |why| ServeError::BadToken { path: path.to_owned(), line: index + 1, why };
        let mut words = line.split_ascii_whitespace();
        let token = words.next().unwrap_or_default();
        if token.len() < TOKEN_LEN_MIN {
            return Err(bad("a token of fewer than 16 characters can be guessed"));
        }
        let uid = match words.next() {
            None => own_uid,
            Some(word) => {
                word.parse().map_err(|_nan| bad("the second word must be a user's number"))?
            }
        };
        if words.nth(1).is_some() {
            return Err(bad("a line has a token, a user's number and a name, and no more"));
        }
        known.push((blake3::hash(token.as_bytes()), uid));
    }
    Ok((known, stamp(&metadata)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_first_start_makes_a_token_for_the_own_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let tokens = Tokens::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        let token = text.lines().nth(1).unwrap().split(' ').next().unwrap();
        assert_eq!(token.len(), 64);
        assert_eq!(tokens.uid(token.as_bytes()), Some(rustix::process::geteuid().as_raw()));
        assert_eq!(tokens.uid(b""), None);
        assert_eq!(tokens.uid(&token.as_bytes()[..63]), None);
        // The second start keeps it.
        assert!(Tokens::open(&path).unwrap().uid(token.as_bytes()).is_some());
    }

    #[test]
    fn lines_say_whom_a_token_acts_as() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        write(&path, "# a comment\n\n0123456789abcdef 1000 ada\nfedcba9876543210\n", 0o600);
        let tokens = Tokens::open(&path).unwrap();
        assert_eq!(tokens.uid(b"0123456789abcdef"), Some(1000));
        assert_eq!(tokens.uid(b"fedcba9876543210"), Some(rustix::process::geteuid().as_raw()));
        for bad in ["short\n", "0123456789abcdef ada\n", "0123456789abcdef 1 a b\n"] {
            write(&path, bad, 0o600);
            assert!(
                matches!(Tokens::open(&path), Err(ServeError::BadToken { line: 1, .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        for mode in [0o640, 0o604, 0o666, 0o620] {
            write(&path, "0123456789abcdef\n", mode);
            let refused = Tokens::open(&path).unwrap_err();
            assert!(refused.to_string().contains("chmod 600"), "{refused}");
        }
    }

    #[test]
    fn a_token_that_is_taken_out_works_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        write(&path, "0123456789abcdef\n", 0o600);
        let tokens = Tokens::open(&path).unwrap();
        assert!(tokens.uid(b"0123456789abcdef").is_some());
        write(&path, "another-0123456789 5\n", 0o600);
        clock::sleep(RECHECK_AFTER + Duration::from_millis(50));
        assert_eq!(tokens.uid(b"0123456789abcdef"), None);
        assert_eq!(tokens.uid(b"another-0123456789"), Some(5));
        write(&path, "another-0123456789 5\n\n", 0o644);
        clock::sleep(RECHECK_AFTER + Duration::from_millis(50));
        assert_eq!(tokens.uid(b"another-0123456789"), None);
    }
}
