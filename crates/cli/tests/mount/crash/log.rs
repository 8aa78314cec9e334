//! What one worker did, and what may therefore be found after a kill.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Files are written in whole blocks, each of which says whose it is.
pub(super) const BLOCK: usize = 4096;

/// An inode that was asked for; the kill came before its number did.
const UNKNOWN: u64 = 0;

pub(super) type Names = BTreeMap<String, u64>;

/// What was written to a block, in the order of versions. Version 0 is "nothing yet".
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// The newest version that was begun.
    newest: u64,
    /// The newest version that was begun is a truncation.
    newest_is_zero: bool,
    /// At least this version is durable.
    durable: u64,
    /// Zeros are a state since `durable`, or `durable` itself.
    may_be_zero: bool,
}

/// A file of the worker, by a number that is in all its blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct FileLog {
    pub(super) id: u64,
    blocks: Vec<Block>,
    /// Lengths in blocks that are possible: least and most since the last fsync, and now.
    least: usize,
    most: usize,
    pub(super) len: usize,
}

impl FileLog {
    pub(super) fn new(id: u64) -> Self {
        Self { id, ..Self::default() }
    }

    /// A write of blocks begins.
    pub(super) fn writes(&mut self, first: usize, count: usize, version: u64) {
        let end = first + count;
        self.grow(end);
        for block in &mut self.blocks[first..end] {
            block.newest = version;
            block.newest_is_zero = false;
            if block.durable == 0 {
                block.may_be_zero = true;
            }
        }
        self.len = self.len.max(end);
        self.most = self.most.max(end);
    }

    /// A truncation to `len` blocks begins.
    pub(super) fn truncates(&mut self, len: usize, version: u64) {
        self.grow(len);
        for block in &mut self.blocks[len..] {
            block.newest = version;
            block.newest_is_zero = true;
            block.may_be_zero = true;
        }
        self.len = len;
        self.least = self.least.min(len);
        self.most = self.most.max(len);
    }

    /// An fsync that began after everything so far has returned.
    pub(super) fn synced(&mut self) {
        for block in &mut self.blocks {
            block.durable = block.newest;
            block.may_be_zero = block.newest_is_zero || block.newest == 0;
        }
        self.least = self.len;
        self.most = self.len;
    }

    fn grow(&mut self, len: usize) {
        if self.blocks.len() < len {
            let zero = Block { may_be_zero: true, newest_is_zero: true, ..Block::default() };
            self.blocks.resize(len, zero);
        }
    }

    /// Compares what is found with what may be, and takes it as the state to go on from.
    fn check(&mut self, found: &[u8]) -> Result<(), String> {
        // A write that the kill interrupted may have got anywhere.
        let len = found.len().div_ceil(BLOCK);
        if !found.len().is_multiple_of(BLOCK) || len < self.least || len > self.most {
            let (least, most) = (self.least * BLOCK, self.most * BLOCK);
            return Err(format!("{} bytes long, not {least} to {most}", found.len()));
        }
        self.grow(len);
        for (index, (bytes, block)) in found.chunks(BLOCK).zip(&mut self.blocks).enumerate() {
            let version = parse(bytes, self.id, index as u64)
                .map_err(|wrong| format!("block {index}: {wrong}"))?;
            let fits = match version {
                None => block.may_be_zero,
                Some(version) => {
                    // A durable truncation may not come undone, a durable version may.
                    version >= block.durable && version <= block.newest
                }
            };
            if !fits {
                return Err(format!("block {index} is {version:?}, known: {block:?}"));
            }
            block.newest = version.unwrap_or(0);
            block.newest_is_zero = version.is_none();
        }
        for block in &mut self.blocks[len..] {
            block.newest = 0;
            block.newest_is_zero = true;
        }
        self.len = len;
        self.synced();
        Ok(())
    }
}

/// A block of file `id`: its words are the file, the place and the version, over and over.
pub(super) fn block(id: u64, index: u64, version: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        for word in [id, index, version, id ^ version.rotate_left(17) ^ index.rotate_left(41)] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// The version of a block, `None` for zeros.
fn parse(bytes: &[u8], id: u64, index: u64) -> Result<Option<u64>, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at * 8..][..8].try_into().unwrap());
    let version = word(2);
    if bytes == block(id, index, version) {
        return Ok(Some(version));
    }
    Err(format!("foreign or torn: begins with {} {} {}", word(0), word(1), word(2)))
}

/// The log of one worker.
#[derive(Clone, Debug)]
pub(super) struct Log {
    /// The names after each operation since the last known state; the first is that state.
    states: Vec<Names>,
    /// What an operation that has not returned would make of them.
    begun: Option<Names>,
    /// States before this one are no longer possible.
    durable: usize,
    pub(super) files: BTreeMap<u64, FileLog>,
    acknowledged: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            states: vec![Names::new()],
            begun: None,
            durable: 0,
            files: BTreeMap::new(),
            acknowledged: 0,
        }
    }
}

impl Log {
    /// The names now.
    pub(super) fn names(&self) -> &Names {
        self.states.last().unwrap()
    }

    pub(super) fn operation_count(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    pub(super) fn acknowledged_count(&self) -> u64 {
        self.acknowledged
    }

    /// An operation that changes names begins.
    pub(super) fn begin(&mut self, change: impl FnOnce(&mut Names)) {
        let mut names = self.names().clone();
        change(&mut names);
        self.begun = Some(names);
    }

    /// A creation begins; its inode is told by [`Log::created`].
    pub(super) fn begin_create(&mut self, name: &str) {
        self.begin(|names| {
            names.insert(name.to_owned(), UNKNOWN);
        });
    }

    pub(super) fn created(&mut self, name: &str, ino: u64, id: u64) {
        self.begin(|names| {
            names.insert(name.to_owned(), ino);
        });
        self.files.insert(ino, FileLog::new(id));
        self.done();
    }

    /// The operation that began has returned.
    pub(super) fn done(&mut self) {
        self.states.push(self.begun.take().unwrap());
    }

    /// The state that an fsync that begins now will make durable.
    pub(super) fn position(&self) -> usize {
        self.states.len() - 1
    }

    /// An fsync that began at `position` has returned, to this worker or to another.
    pub(super) fn durable_from(&mut self, position: usize) {
        self.durable = self.durable.max(position);
        self.acknowledged += 1;
    }

    /// Compares what is found with what may be, and goes on from there.
    pub(super) fn check(&mut self, found: &Names, dir: &Path) -> Result<(), String> {
        let is_state = |names: &Names| {
            names.len() == found.len()
                && names.iter().zip(found).all(|((name, ino), (found_name, found_ino))| {
                    name == found_name && (ino == found_ino || *ino == UNKNOWN)
                })
        };
        let possible = self.states[self.durable..].iter().chain(&self.begun);
        if !possible.into_iter().any(is_state) {
            let older = self.states.iter().rposition(is_state);
            return Err(format!(
                "the names are {found:?}; of {} states those from {} on are possible, and this is \
                 {older:?}; the newest is {:?}",
                self.states.len(),
                self.durable,
                self.names(),
            ));
        }
        let mut files = BTreeMap::new();
        for (name, ino) in found {
            let bytes = fs::read(dir.join(name)).map_err(|error| format!("{name}: {error}"))?;
            // One whose number was never told was never written either.
            let mut file = self.files.get(ino).cloned().unwrap_or_default();
            file.check(&bytes).map_err(|wrong| format!("{name}, inode {ino}: {wrong}"))?;
            files.insert(*ino, file);
        }
        *self = Self { states: vec![found.clone()], files, ..Self::default() };
        Ok(())
    }
}
