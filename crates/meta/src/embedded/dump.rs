//! The engine-neutral form of a volume's metadata: a stream of records, checked as a whole.
//!
//! A dump is a consistent state, taken from a snapshot while the volume goes on working. A load
//! goes into an empty volume and either succeeds or leaves it empty: what a crash leaves of one
//! is wiped when the volume is opened next. Both hold one record in memory at a time.

use std::io::{Read, Write};
use std::ops::Bound;

use fjall::Slice;
use librorum_format::{DecodeError, Ino, PageId, Reader, SegmentId, TxnId, Writer, decode_page};

use super::Core;
use super::edit::{corrupt, decode_count, encode_count};
use super::engine::Change;
use super::space::Growth;
use crate::record::key::Referrer;
use crate::record::{Body, Condemnation, PageEntry, Record, State, TABLES, Table, Target, key};
use crate::{Content, FileKind, MetaError, MetaStats, Result};

const MAGIC: [u8; 8] = *b"LbrmDump";
const VERSION: u32 = 1;
const WHAT: &str = "metadata dump";

const INODE: u8 = 1;
const DENTRY: u8 = 2;
const INLINE: u8 = 3;
const SYMLINK: u8 = 4;
const EXTENTS: u8 = 5;
const XATTR: u8 = 6;
const CONDEMNED: u8 = 7;
const END: u8 = 255;

/// No record is longer: an inline file's bytes or a page are far below.
const RECORD_LEN_MAX: u32 = 64 << 20;

/// Writes of a load gather up to this before they become an operation.
const LOAD_STEP_BYTES: usize = 1 << 20;

fn io(what: &str) -> impl FnOnce(std::io::Error) -> MetaError {
    let what = what.to_owned();
    move |source| MetaError::Io { what, source }
}

/// Hashes what goes through.
struct Sink<'a> {
    inner: std::io::BufWriter<&'a mut dyn Write>,
    hasher: blake3::Hasher,
    record_count: u64,
}

impl Sink<'_> {
    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes).map_err(io("write a dump"))
    }

    fn record(&mut self, kind: u8, parts: &[&[u8]]) -> Result<()> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let len = u32::try_from(len)
            .ok()
            .filter(|len| *len <= RECORD_LEN_MAX)
            .ok_or_else(|| io("write a dump")(std::io::ErrorKind::FileTooLarge.into()))?;
        let mut head = Writer::with_capacity(5);
        head.u8(kind).u32(len);
        self.raw(head.as_slice())?;
        self.record_count += 1;
        parts.iter().try_for_each(|part| self.raw(part))
    }
}

pub(super) fn dump(core: &Core, sink: &mut dyn Write) -> Result<TxnId> {
    let view = core.engine.view()?;
    let state = view
        .get(Table::Small, &key::STATE)?
        .ok_or_else(|| MetaError::Missing { key: "small/state".into() })?;
    let state = State::decode(&state).map_err(|source| corrupt("small", "state", source))?;
    let mut sink = Sink {
        inner: std::io::BufWriter::with_capacity(256 << 10, sink),
        hasher: blake3::Hasher::new(),
        record_count: 0,
    };
    let mut head = Writer::with_capacity(28);
    head.raw(&MAGIC).u32(VERSION).u64(state.txn.0).u64(state.ino_bound);
    sink.raw(head.as_slice())?;

    view.scan_all(Table::Inodes, &mut |key, value| {
        let ino = key::parse_inode(key).ok_or_else(|| odd_key("inodes", key))?;
        // Decoded first: a dump holds nothing that cannot be loaded.
        Record::decode(ino, value).map_err(|source| corrupt("inodes", ino, source))?;
        sink.record(INODE, &[&number(ino.0), value])?;
        Ok(true)
    })?;
    view.scan_all(Table::Dentries, &mut |key, value| {
        let (parent, _, name) = key::parse_dentry(key).ok_or_else(|| odd_key("dentries", key))?;
        Target::decode(value).map_err(|source| corrupt("dentries", parent, source))?;
        sink.record(DENTRY, &[&number(parent.0), value, name])?;
        Ok(true)
    })?;
    view.scan_all(Table::Bodies, &mut |key, value| {
        let ino = key::parse_inode(key).ok_or_else(|| odd_key("bodies", key))?;
        let number = number(ino.0);
        match Body::decode(value).map_err(|source| corrupt("bodies", ino, source))? {
            Body::Inline(bytes) => sink.record(INLINE, &[&number, &bytes])?,
            Body::Symlink(target) => sink.record(SYMLINK, &[&number, &target])?,
            Body::Manifest(entries) if entries.is_empty() => sink.record(EXTENTS, &[&number])?,
            Body::Manifest(entries) => {
                for entry in entries {
                    let bytes = view.get(Table::Pages, &entry.page.0)?.ok_or_else(|| {
                        MetaError::Missing { key: format!("pages/{}", entry.page) }
                    })?;
                    decode_page(entry.page, &bytes)
                        .map_err(|source| corrupt("pages", entry.page, source))?;
                    sink.record(EXTENTS, &[&number, &bytes])?;
                }
            }
        }
        Ok(true)
    })?;
    view.scan_all(Table::Xattrs, &mut |key, value| {
        let (ino, name) = key::parse_xattr(key).ok_or_else(|| odd_key("xattrs", key))?;
        let len = u8::try_from(name.len()).ok().ok_or_else(|| odd_key("xattrs", key))?;
        sink.record(XATTR, &[&number(ino.0), &[len], name, value])?;
        Ok(true)
    })?;
    let start = [key::CONDEMNED];
    view.scan(Table::Small, Bound::Included(&start), &[key::CONDEMNED + 1], &mut |key, value| {
        let segment = key::parse_condemned(key).ok_or_else(|| odd_key("small", key))?;
        let condemnation =
            Condemnation::decode(value).map_err(|source| corrupt("condemned", segment, source))?;
        let claimed = u8::from(condemnation.claimed);
        sink.record(CONDEMNED, &[&number(segment.0), &[claimed]])?;
        Ok(true)
    })?;
    let count = number(sink.record_count);
    sink.record(END, &[&count])?;
    let hash = sink.hasher.finalize();
    sink.inner.write_all(hash.as_bytes()).map_err(io("write a dump"))?;
    sink.inner.flush().map_err(io("write a dump"))?;
    Ok(state.txn)
}

fn number(number: u64) -> [u8; 8] {
    number.to_le_bytes()
}

fn odd_key(table: &str, key: &[u8]) -> MetaError {
    MetaError::Missing { key: format!("{table}/{}: no such key can be", key.escape_ascii()) }
}

/// Hashes what comes through.
struct Source<'a> {
    inner: std::io::BufReader<&'a mut dyn Read>,
    hasher: blake3::Hasher,
}

impl Source<'_> {
    fn exact(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.inner.read_exact(bytes).map_err(io("read a dump"))?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn record(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.exact(&mut head)?;
        let [kind, len @ ..] = head;
        let len = u32::from_le_bytes(len);
        if len > RECORD_LEN_MAX {
            return Err(bad(DecodeError::Invalid { what: WHAT, value: u64::from(len) }));
        }
        // Grown as bytes arrive: a length that lies costs no memory.
        let mut bytes = Vec::new();
        let taken = (&mut self.inner)
            .take(u64::from(len))
            .read_to_end(&mut bytes)
            .map_err(io("read a dump"))?;
        if taken as u64 != u64::from(len) {
            return Err(io("read a dump")(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.hasher.update(&bytes);
        Ok((kind, bytes))
    }
}

fn bad(source: DecodeError) -> MetaError {
    MetaError::Corrupt { key: "dump".into(), source }
}

pub(super) fn load(core: &Core, source: &mut dyn Read) -> Result<()> {
    core.engine.admit(Growth::Grows)?;
    let _frozen = core.freeze();
    let root = core
        .record_uncached(Ino::ROOT)?
        .ok_or_else(|| MetaError::Missing { key: "inodes/root".into() })?;
    let mut has_condemned = false;
    let start = [key::CONDEMNED];
    let end = [key::CONDEMNED + 1];
    core.engine.scan(Table::Small, Bound::Included(&start), &end, &mut |_, _| {
        has_condemned = true;
        Ok(false)
    })?;
    if core.engine.stats().inode_count > 1 || root.entry_count > 0 || has_condemned {
        return Err(MetaError::NotEmpty { ino: Ino::ROOT });
    }

    let mut change = Change::default();
    change.layer.set(Table::Small, Slice::from(key::LOADING), Some(Slice::from(root.encode())));
    core.engine.append(change)?;
    let loaded = Loader::new(core).and_then(|loader| loader.run(source));
    let result = match loaded {
        Ok(stats) => {
            let mut change = Change::default();
            change.layer.set(Table::Small, Slice::from(key::LOADING), None);
            core.engine.append(change)?;
            core.engine.set_stats(stats)
        }
        Err(error) => wipe(core).and(Err(error)),
    };
    core.records.clear();
    core.targets.clear();
    result
}

/// Empties a volume that a load was interrupted in, back to the root directory it had. Does
/// nothing to any other. The caller lets nobody else at it.
pub(super) fn wipe(core: &Core) -> Result<()> {
    let Some(root) = core.engine.get(Table::Small, &key::LOADING)? else { return Ok(()) };
    tracing::warn!("removing what an interrupted load left");
    for table in TABLES {
        let mut doomed = Vec::new();
        loop {
            core.engine.scan(table, Bound::Unbounded, &[0xff; 300], &mut |key, _| {
                let is_kept =
                    table == Table::Small && (**key <= key::STATE[..] || **key == key::LOADING[..]);
                if !is_kept {
                    doomed.push(key.clone());
                }
                Ok(doomed.len() < 10_000)
            })?;
            if doomed.is_empty() {
                break;
            }
            core.engine.admit(Growth::Frees)?;
            let mut change = Change::default();
            for key in doomed.drain(..) {
                change.layer.set(table, key, None);
            }
            core.engine.append(change)?;
        }
    }
    let mut change = Change::default();
    change.layer.set(Table::Inodes, Slice::from(key::inode(Ino::ROOT)), Some(root));
    change.layer.set(Table::Small, Slice::from(key::LOADING), None);
    core.engine.append(change)?;
    core.engine.set_stats(MetaStats { inode_count: 1, directory_count: 1, ..MetaStats::default() })
}

struct Loader<'a> {
    core: &'a Core,
    change: Change,
    stats: MetaStats,
    /// The manifest that the newest extents belong to.
    manifest: Option<(Ino, Vec<PageEntry>)>,
    record_count: u64,
}

impl<'a> Loader<'a> {
    /// Removes the attributes of the root, which are all that an empty volume can have.
    fn new(core: &'a Core) -> Result<Self> {
        let mut change = Change::default();
        core.scan_xattrs(Ino::ROOT, &mut |key, _| {
            change.layer.set(Table::Xattrs, key.clone(), None);
            Ok(true)
        })?;
        let stats = MetaStats::default();
        Ok(Self { core, change, stats, manifest: None, record_count: 0 })
    }

    fn run(mut self, source: &mut dyn Read) -> Result<MetaStats> {
        let mut source = Source {
            inner: std::io::BufReader::with_capacity(256 << 10, source),
            hasher: blake3::Hasher::new(),
        };
        let mut head = [0; 28];
        source.exact(&mut head)?;
        let mut reader = Reader::new(WHAT, &head);
        let magic = reader.array::<8>().map_err(bad)?;
        if magic != MAGIC {
            return Err(bad(reader.invalid(u64::from_le_bytes(magic))));
        }
        let version = reader.u32().map_err(bad)?;
        if version != VERSION {
            return Err(MetaError::Schema { found: version, supported: VERSION });
        }
        let _txn = reader.u64().map_err(bad)?;
        let ino_bound = reader.u64().map_err(bad)?;
        reader.end().map_err(bad)?;
        loop {
            let (kind, bytes) = source.record()?;
            let mut reader = Reader::new(WHAT, &bytes);
            let id = reader.u64().map_err(bad)?;
            let rest = &bytes[8..];
            if kind != EXTENTS {
                self.end_manifest();
            }
            if kind == END {
                if id != self.record_count {
                    return Err(bad(DecodeError::Invalid { what: WHAT, value: id }));
                }
                break;
            }
            self.record_count += 1;
            match kind {
                INODE => self.inode(Ino(id), rest)?,
                DENTRY => self.dentry(Ino(id), rest)?,
                INLINE => self.body(Ino(id), &Body::Inline(rest.to_vec())),
                SYMLINK => self.body(Ino(id), &Body::Symlink(rest.to_vec())),
                EXTENTS => self.extents(Ino(id), rest)?,
                XATTR => self.xattr(Ino(id), rest)?,
                CONDEMNED => self.condemned(SegmentId(id), rest)?,
                other => {
                    return Err(bad(DecodeError::Invalid { what: WHAT, value: u64::from(other) }));
                }
            }
            if self.change.layer.cost_bytes() > LOAD_STEP_BYTES {
                self.step()?;
            }
        }
        let found = source.hasher.finalize();
        let mut expected = [0; 32];
        source.inner.read_exact(&mut expected).map_err(io("read a dump"))?;
        if found != expected {
            return Err(bad(DecodeError::Checksum { what: WHAT }));
        }
        self.step()?;
        if let Some(last) = ino_bound.checked_sub(1) {
            self.core.engine.reserve_ino(Ino(last));
        }
        Ok(self.stats)
    }

    fn step(&mut self) -> Result<()> {
        self.core.engine.admit(Growth::Grows)?;
        self.core.engine.append(std::mem::take(&mut self.change)).map(|_| ())
    }

    fn set(&mut self, table: Table, key: impl Into<Slice>, value: impl Into<Slice>) {
        self.change.layer.set(table, key.into(), Some(value.into()));
    }

    fn inode(&mut self, ino: Ino, bytes: &[u8]) -> Result<()> {
        let record = Record::decode(ino, bytes).map_err(bad)?;
        let inode = &record.inode;
        self.set(Table::Inodes, key::inode(ino), bytes);
        self.core.engine.reserve_ino(ino);
        self.stats.inode_count += 1;
        match inode.kind {
            FileKind::Directory => self.stats.directory_count += 1,
            FileKind::Regular => {
                self.stats.logical_bytes =
                    self.stats.logical_bytes.saturating_add(inode.size_bytes);
            }
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => {}
        }
        if inode.nlink == 0 {
            self.stats.orphan_count += 1;
            self.set(Table::Small, key::orphan(ino), Slice::empty());
        }
        if let Some(segment) = inode.content.staging() {
            self.stats.staged_count += 1;
            self.set(Table::Small, key::staged(ino), Slice::empty());
            let reference = key::reference(segment, Referrer::Inode(ino));
            self.set(Table::References, reference, Slice::empty());
        }
        if inode.content == Content::Sealed && inode.kind != FileKind::Regular {
            return Err(bad(DecodeError::Invalid { what: WHAT, value: ino.0 }));
        }
        Ok(())
    }

    fn dentry(&mut self, parent: Ino, bytes: &[u8]) -> Result<()> {
        let (target, name) = bytes
            .split_at_checked(9)
            .ok_or_else(|| bad(DecodeError::Invalid { what: WHAT, value: parent.0 }))?;
        Target::decode(target).map_err(bad)?;
        super::names::check_name(name)?;
        let cookie = self.core.cookie(name);
        self.set(Table::Dentries, key::dentry(parent, cookie, name), target);
        Ok(())
    }

    fn body(&mut self, ino: Ino, body: &Body) {
        self.set(Table::Bodies, key::inode(ino), body.encode());
    }

    fn extents(&mut self, ino: Ino, bytes: &[u8]) -> Result<()> {
        if self.manifest.as_ref().is_none_or(|(current, _)| *current != ino) {
            self.end_manifest();
            self.manifest = Some((ino, Vec::new()));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let page = PageId::of(bytes);
        let extents = decode_page(page, bytes).map_err(bad)?;
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return Ok(()) };
        let entry = PageEntry {
            start_bytes: first.file_offset_bytes,
            end_bytes: last.file_end_bytes(),
            page,
        };
        if let Some((_, entries)) = &mut self.manifest {
            if entries.last().is_some_and(|last| last.end_bytes > entry.start_bytes) {
                return Err(bad(DecodeError::Invalid { what: WHAT, value: entry.start_bytes }));
            }
            entries.push(entry);
        }
        let count_key = key::page_count(page);
        let count = match self.change.layer.get(Table::References, &count_key) {
            Some(value) => value.clone(),
            None => self.core.engine.get(Table::References, &count_key)?,
        };
        let count = count.map_or(Ok(0), |value| decode_count(page, &value))?;
        if count == 0 {
            self.set(Table::Pages, page.0, bytes);
            for extent in extents {
                let reference = key::reference(extent.location.segment, Referrer::Page(page));
                self.set(Table::References, reference, Slice::empty());
            }
        }
        self.set(Table::References, count_key, encode_count(count + 1));
        Ok(())
    }

    fn end_manifest(&mut self) {
        if let Some((ino, entries)) = self.manifest.take() {
            self.body(ino, &Body::Manifest(entries));
        }
    }

    fn xattr(&mut self, ino: Ino, bytes: &[u8]) -> Result<()> {
        let parts = bytes
            .split_first()
            .and_then(|(len, rest)| rest.split_at_checked(usize::from(*len)))
            .filter(|(name, _)| !name.is_empty());
        let Some((name, value)) = parts else {
            return Err(bad(DecodeError::Invalid { what: WHAT, value: ino.0 }));
        };
        self.set(Table::Xattrs, key::xattr(ino, name), value);
        Ok(())
    }

    fn condemned(&mut self, segment: SegmentId, bytes: &[u8]) -> Result<()> {
        let claimed = match bytes {
            [0] => false,
            [1] => true,
            _ => return Err(bad(DecodeError::Invalid { what: WHAT, value: segment.0 })),
        };
        // Nothing else changes anything meanwhile, so this is the position that the step gets.
        let txn = TxnId(self.core.engine.newest_txn().0 + 1);
        self.set(Table::Small, key::condemned(segment), Condemnation { txn, claimed }.encode());
        Ok(())
    }
}
