//! Reads fjall's journals before fjall does.
//!
//! A power cut may keep any part of what was not synced: a batch with a hole in it, and later
//! batches behind it. fjall 3.1 then either refuses to open at all (a hole inside a value is a
//! checksum mismatch) or drops the rest without a word (a hole elsewhere; its issue 311). We want
//! neither. The newest journal may end in such a ruin: it is cut off there, with a warning, and
//! the high-water mark says whether anything durable went with it. An older journal was synced
//! before the next one began, so a ruin in it is damage, and the volume is refused.
//!
//! The format is fjall's (`src/journal/entry.rs` of the pinned version): little-endian entries
//! that begin with a tag, START item count, sequence number; ITEM kind, compression, keyspace,
//! lengths of key, value and stored value, key, stored value; CLEAR keyspace; END XXH3 of all
//! items as stored, and a magic. Journals are allocated in advance, so zeros may follow.

use std::fs::{File, TryLockError};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use librorum_format::DecodeError;
use xxhash_rust::xxh3::Xxh3;

use super::engine::engine_error;
use super::io_error;
use crate::{MetaError, Result};

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const END_MAGIC: [u8; 4] = *b"FJL\x03";

/// How a journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// Behind the last whole batch.
    valid_len: u64,
    /// Whether anything but zeros follows.
    has_ruin: bool,
}

/// Cuts a torn end off the newest journal in `db`, and refuses torn older ones.
///
/// Costs one read of all journals, which fjall is about to replay. Holds fjall's lock meanwhile:
/// what looks torn in the journal of a running process is a batch that it is writing.
pub(super) fn settle(db: &Path) -> Result<()> {
    let lock_path = db.join("lock");
    let lock = File::options().read(true).write(true).open(&lock_path);
    let lock = lock.map_err(|source| io_error("open", &lock_path, source))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(engine_error(fjall::Error::Locked)),
        Err(TryLockError::Error(source)) => return Err(io_error("lock", &lock_path, source)),
    }
    let mut journals = Vec::new();
    for entry in std::fs::read_dir(db).map_err(|source| io_error("read", db, source))? {
        let path = entry.map_err(|source| io_error("read", db, source))?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
            name.strip_suffix(".jnl").and_then(|number| number.parse::<u64>().ok())
        });
        journals.extend(number.map(|number| (number, path)));
    }
    journals.sort();
    let Some((_, newest)) = journals.pop() else { return Ok(()) };
    for (_, path) in journals {
        let extent = inspect(&path)?;
        if extent.has_ruin {
            return Err(damaged(&path, extent.valid_len));
        }
    }
    let extent = inspect(&newest)?;
    if extent.has_ruin {
        cut(&newest, extent.valid_len)?;
    }
    Ok(())
}

fn damaged(path: &Path, at: u64) -> MetaError {
    let source = DecodeError::Invalid { what: "journal batch", value: at };
    MetaError::Corrupt { key: format!("{} at byte {at}", path.display()), source }
}

/// Drops everything behind `len`. What is dropped is kept beside the database, for whoever wants
/// to know what it was.
fn cut(path: &Path, len: u64) -> Result<()> {
    let failed = |source| io_error("cut", path, source);
    tracing::warn!(journal = %path.display(), valid_bytes = len, "cutting a torn end off");
    let mut ruin = PathBuf::from(path);
    ruin.set_extension("torn");
    std::fs::copy(path, &ruin).map_err(failed)?;
    let file = File::options().write(true).open(path).map_err(failed)?;
    file.set_len(len).and_then(|()| file.sync_data()).map_err(failed)
}

fn inspect(path: &Path) -> Result<Extent> {
    let failed = |source| io_error("read", path, source);
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let mut batches = Batches {
        reader: BufReader::with_capacity(256 << 10, file),
        at: 0,
        len,
        scratch: vec![0; 4096],
    };
    let mut valid_len = 0;
    while batches.next_is_whole().map_err(failed)? {
        valid_len = batches.at;
    }
    let has_ruin =
        has_data_behind(&File::open(path).map_err(failed)?, valid_len).map_err(failed)?;
    Ok(Extent { valid_len, has_ruin })
}

/// Whether anything but zeros follows `start`. What was allocated in advance is mostly holes, which
/// are not read.
fn has_data_behind(file: &File, start: u64) -> std::io::Result<bool> {
    use rustix::fs::SeekFrom;
    use rustix::io::Errno;
    let mut at = start;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let run_end = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => {
                at = data;
                rustix::fs::seek(file, SeekFrom::Hole(at))?
            }
            Err(Errno::NXIO) => return Ok(false),
            // A disk that knows no holes: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => u64::MAX,
            Err(errno) => return Err(errno.into()),
        };
        while at < run_end {
            let room = usize::try_from(run_end - at).unwrap_or(usize::MAX).min(buffer.len());
            let read = std::os::unix::fs::FileExt::read_at(file, &mut buffer[..room], at)?;
            if read == 0 {
                return Ok(false);
            }
            if buffer[..read].iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
            at += read as u64;
        }
    }
}

struct Batches {
    reader: BufReader<File>,
    at: u64,
    len: u64,
    scratch: Vec<u8>,
}

impl Batches {
    /// Reads one batch; false if there is none, or not all of it.
    fn next_is_whole(&mut self) -> std::io::Result<bool> {
        let mut hasher = Xxh3::new();
        let Some([START, start @ ..]) = self.array::<13>()? else { return Ok(false) };
        let mut item_count = u32::from_le_bytes([start[0], start[1], start[2], start[3]]);
        loop {
            let Some([tag]) = self.array()? else { return Ok(false) };
            match tag {
                ITEM | CLEAR if item_count == 0 => return Ok(false),
                ITEM => {
                    let Some(head) = self.array::<20>()? else { return Ok(false) };
                    let key_len = u16::from_le_bytes([head[10], head[11]]);
                    let value_len = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
                    let stored_len = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
                    let is_odd = !matches!(head[0], 0 | 1 | 2 | 4)
                        || head[1] > 1
                        || (head[1] == 0 && value_len != stored_len);
                    if is_odd {
                        return Ok(false);
                    }
                    hasher.update(&[ITEM]);
                    hasher.update(&head);
                    let body_len = u64::from(key_len) + u64::from(stored_len);
                    if !self.body(body_len, &mut hasher)? {
                        return Ok(false);
                    }
                }
                CLEAR => {
                    let Some(keyspace) = self.array::<8>()? else { return Ok(false) };
                    hasher.update(&[CLEAR]);
                    hasher.update(&keyspace);
                }
                END => {
                    let Some(end) = self.array::<12>()? else { return Ok(false) };
                    let (checksum, magic) = end.split_at(8);
                    return Ok(item_count == 0
                        && magic == END_MAGIC
                        && checksum == hasher.digest().to_le_bytes());
                }
                _ => return Ok(false),
            }
            item_count = item_count.saturating_sub(1);
        }
    }

    fn array<const N: usize>(&mut self) -> std::io::Result<Option<[u8; N]>> {
        if self.len - self.at < N as u64 {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(Some(bytes))
    }

    /// Hashes the next bytes; false if there are not as many.
    fn body(&mut self, len: u64, hasher: &mut Xxh3) -> std::io::Result<bool> {
        if self.len - self.at < len {
            return Ok(false);
        }
        let mut left = len;
        while left > 0 {
            let step = self.scratch.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.reader.read_exact(&mut self.scratch[..step])?;
            hasher.update(&self.scratch[..step]);
            left -= step as u64;
        }
        self.at += len;
        Ok(true)
    }
}
