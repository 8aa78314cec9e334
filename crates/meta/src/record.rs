//! The keys and values of the embedded engine, byte by byte as in `docs/format.md`.
//!
//! Keys are big-endian so that their byte order is their numeric order; this is the one place in
//! the project that says `to_be_bytes`. Values are little-endian, as everywhere.
//!
//! Every decoder takes bytes from a disk that may have lied: it answers with an error, never a
//! panic, and accepts nothing that the encoder does not write.

use crate::{Content, FileKind, Inode, MetaError, MetaStats, Result};
use fjall::Slice;
use librorum_format::{DecodeError, Ino, PageId, Reader, SegmentId, Timestamp, TxnId, Writer};

/// The schema that this program reads and writes.
pub(crate) const SCHEMA: u32 = 1;

/// The tables of the engine, in the order of `TABLE_NAMES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// inode number → [`Record`].
    Inodes,
    /// directory, cookie, name → inode number and kind.
    Dentries,
    /// inode number → [`Body`].
    Bodies,
    /// page name → encoded page.
    Pages,
    /// page name → count of manifests that list it; segment → what names it.
    References,
    /// inode number, name → value.
    Xattrs,
    /// Header, state, and the sets: orphans, staged, condemned.
    Small,
}

/// How many tables there are.
pub(crate) const TABLE_COUNT: usize = 7;

/// The engine's names of the tables.
pub(crate) const TABLE_NAMES: [&str; TABLE_COUNT] =
    ["inodes", "dentries", "bodies", "pages", "references", "xattrs", "small"];

/// All tables, in order.
pub(crate) const TABLES: [Table; TABLE_COUNT] = [
    Table::Inodes,
    Table::Dentries,
    Table::Bodies,
    Table::Pages,
    Table::References,
    Table::Xattrs,
    Table::Small,
];

impl Table {
    /// Its place in an array of tables.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// An inode with what only the engine needs to know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// What callers see.
    pub inode: Inode,
    /// Entries of a directory, so that `rmdir` need not scan for the first one through the
    /// tombstones of everything that was ever deleted there. Zero for anything else.
    pub entry_count: u64,
}

impl FileKind {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::Symlink => 3,
            Self::Fifo => 4,
            Self::Socket => 5,
            Self::CharDevice => 6,
            Self::BlockDevice => 7,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Regular),
            2 => Some(Self::Directory),
            3 => Some(Self::Symlink),
            4 => Some(Self::Fifo),
            5 => Some(Self::Socket),
            6 => Some(Self::CharDevice),
            7 => Some(Self::BlockDevice),
            _ => None,
        }
    }
}

const FLAG_XATTRS: u8 = 1;

fn write_timestamp(writer: &mut Writer, time: Timestamp) {
    writer.i64(time.secs).u32(time.nanos);
}

fn read_timestamp(reader: &mut Reader<'_>) -> std::result::Result<Timestamp, DecodeError> {
    let secs = reader.i64()?;
    let nanos = reader.u32()?;
    if nanos >= 1_000_000_000 {
        return Err(reader.invalid(u64::from(nanos)));
    }
    Ok(Timestamp { secs, nanos })
}

fn read_kind(reader: &mut Reader<'_>) -> std::result::Result<FileKind, DecodeError> {
    let byte = reader.u8()?;
    FileKind::from_byte(byte).ok_or_else(|| reader.invalid(u64::from(byte)))
}

impl Record {
    /// The value under the inode's number, which it does not repeat.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let inode = &self.inode;
        let mut writer = Writer::with_capacity(160);
        writer
            .u8(inode.kind.to_byte())
            .u8(if inode.has_xattrs { FLAG_XATTRS } else { 0 })
            .u16(inode.mode)
            .u32(inode.uid)
            .u32(inode.gid)
            .u32(inode.nlink)
            .u32(inode.rdev)
            .u64(inode.size_bytes)
            .u64(inode.allocated_bytes);
        write_timestamp(&mut writer, inode.atime);
        write_timestamp(&mut writer, inode.mtime);
        write_timestamp(&mut writer, inode.ctime);
        write_timestamp(&mut writer, inode.btime);
        writer.u64(inode.parent.0).u64(inode.content_version).u64(self.entry_count);
        match inode.content {
            Content::Empty => writer.u8(0),
            Content::Inline => writer.u8(1),
            Content::Staged { segment } => writer.u8(2).u64(segment.0),
            Content::Overlay { segment, base_len_bytes } => {
                writer.u8(3).u64(segment.0).u64(base_len_bytes)
            }
            Content::Sealed => writer.u8(4),
        };
        writer.finish()
    }

    /// The inverse of [`Record::encode`].
    pub(crate) fn decode(ino: Ino, bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut reader = Reader::new("inode", bytes);
        let kind = read_kind(&mut reader)?;
        let flags = reader.u8()?;
        if flags & !FLAG_XATTRS != 0 {
            return Err(reader.invalid(u64::from(flags)));
        }
        let mode = reader.u16()?;
        if mode > 0o7777 {
            return Err(reader.invalid(u64::from(mode)));
        }
        let uid = reader.u32()?;
        let gid = reader.u32()?;
        let nlink = reader.u32()?;
        let rdev = reader.u32()?;
        let size_bytes = reader.u64()?;
        let allocated_bytes = reader.u64()?;
        let atime = read_timestamp(&mut reader)?;
        let mtime = read_timestamp(&mut reader)?;
        let ctime = read_timestamp(&mut reader)?;
        let btime = read_timestamp(&mut reader)?;
        let parent = Ino(reader.u64()?);
        let content_version = reader.u64()?;
        let entry_count = reader.u64()?;
        let tag = reader.u8()?;
        let content = match tag {
            0 => Content::Empty,
            1 => Content::Inline,
            2 => Content::Staged { segment: SegmentId(reader.u64()?) },
            3 => Content::Overlay {
                segment: SegmentId(reader.u64()?),
                base_len_bytes: reader.u64()?,
            },
            4 => Content::Sealed,
            _ => return Err(reader.invalid(u64::from(tag))),
        };
        reader.end()?;
        Ok(Self {
            inode: Inode {
                ino,
                kind,
                mode,
                uid,
                gid,
                nlink,
                rdev,
                size_bytes,
                allocated_bytes,
                atime,
                mtime,
                ctime,
                btime,
                content,
                content_version,
                has_xattrs: flags & FLAG_XATTRS != 0,
                parent,
            },
            entry_count,
        })
    }
}

/// One page of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageEntry {
    /// Where its first extent starts in the file.
    pub start_bytes: u64,
    /// Where its last extent ends in the file.
    pub end_bytes: u64,
    /// The page.
    pub page: PageId,
}

/// What is stored beside an inode, one value at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// The bytes of a file with inline content.
    Inline(Vec<u8>),
    /// Where a symbolic link leads.
    Symlink(Vec<u8>),
    /// The pages of a sealed file or of an overlay's base, in file order.
    Manifest(Vec<PageEntry>),
}

impl Body {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        match self {
            Self::Inline(bytes) => {
                writer.u8(1).raw(bytes);
            }
            Self::Symlink(target) => {
                writer.u8(2).raw(target);
            }
            Self::Manifest(entries) => {
                writer.u8(3);
                for entry in entries {
                    writer.u64(entry.start_bytes).u64(entry.end_bytes).raw(&entry.page.0);
                }
            }
        }
        writer.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut reader = Reader::new("inode body", bytes);
        match reader.u8()? {
            1 => Ok(Self::Inline(bytes[1..].to_vec())),
            2 => Ok(Self::Symlink(bytes[1..].to_vec())),
            3 => {
                let mut entries: Vec<PageEntry> = Vec::with_capacity(reader.left() / 48);
                while reader.left() > 0 {
                    let entry = PageEntry {
                        start_bytes: reader.u64()?,
                        end_bytes: reader.u64()?,
                        page: PageId(reader.array()?),
                    };
                    let floor = entries.last().map_or(0, |last| last.end_bytes);
                    if entry.start_bytes < floor || entry.end_bytes <= entry.start_bytes {
                        return Err(reader.invalid(entry.start_bytes));
                    }
                    entries.push(entry);
                }
                Ok(Self::Manifest(entries))
            }
            tag => Err(reader.invalid(u64::from(tag))),
        }
    }
}

/// Where a dentry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub ino: Ino,
    pub kind: FileKind,
}

impl Target {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(9);
        writer.u64(self.ino.0).u8(self.kind.to_byte());
        writer.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut reader = Reader::new("dentry", bytes);
        let ino = Ino(reader.u64()?);
        let kind = read_kind(&mut reader)?;
        reader.end()?;
        Ok(Self { ino, kind })
    }
}

/// Whether a segment that nothing names may still be named again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condemnation {
    pub txn: TxnId,
    pub claimed: bool,
}

impl Condemnation {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(9);
        writer.u64(self.txn.0).u8(u8::from(self.claimed));
        writer.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut reader = Reader::new("condemned segment", bytes);
        let txn = TxnId(reader.u64()?);
        let claimed = match reader.u8()? {
            0 => false,
            1 => true,
            other => return Err(reader.invalid(u64::from(other))),
        };
        reader.end()?;
        Ok(Self { txn, claimed })
    }
}

const HEADER_MAGIC: [u8; 8] = *b"LbrmMeta";

/// What never changes in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub schema: u32,
    /// The key of the hash that makes cookies of names: without it, nobody can craft names that
    /// collide.
    pub cookie_key: [u8; 16],
}

impl Header {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(28);
        writer.raw(&HEADER_MAGIC).u32(self.schema).raw(&self.cookie_key);
        writer.finish()
    }

    /// Reads the schema before anything whose shape depends on it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |source| MetaError::Corrupt { key: "small/header".into(), source };
        let mut reader = Reader::new("metadata header", bytes);
        let magic = reader.array::<8>().map_err(corrupt)?;
        if magic != HEADER_MAGIC {
            return Err(corrupt(reader.invalid(u64::from_le_bytes(magic))));
        }
        let schema = reader.u32().map_err(corrupt)?;
        if schema != SCHEMA {
            return Err(MetaError::Schema { found: schema, supported: SCHEMA });
        }
        let cookie_key = reader.array().map_err(corrupt)?;
        reader.end().map_err(corrupt)?;
        Ok(Self { schema, cookie_key })
    }
}

/// What changes with every batch: written in each, so that it is true of exactly that prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The newest operation in the database.
    pub txn: TxnId,
    /// No inode has had this number or a higher one.
    pub ino_bound: u64,
    pub stats: MetaStats,
}

impl State {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(56);
        writer
            .u64(self.txn.0)
            .u64(self.ino_bound)
            .u64(self.stats.inode_count)
            .u64(self.stats.directory_count)
            .u64(self.stats.logical_bytes)
            .u64(self.stats.staged_count)
            .u64(self.stats.orphan_count);
        writer.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut reader = Reader::new("metadata state", bytes);
        let state = Self {
            txn: TxnId(reader.u64()?),
            ino_bound: reader.u64()?,
            stats: MetaStats {
                inode_count: reader.u64()?,
                directory_count: reader.u64()?,
                logical_bytes: reader.u64()?,
                staged_count: reader.u64()?,
                orphan_count: reader.u64()?,
            },
        };
        reader.end()?;
        Ok(state)
    }
}

/// The keys. Every function that takes one apart answers `None` to a key of another shape.
pub(crate) mod key {
    #![expect(clippy::big_endian_bytes, reason = "the byte order of keys is their numeric order")]

    use super::{Ino, PageId, SegmentId, Slice};

    /// In [`super::Table::Small`].
    pub(crate) const HEADER: [u8; 1] = [0];
    /// In [`super::Table::Small`].
    pub(crate) const STATE: [u8; 1] = [1];
    /// In [`super::Table::Small`]; there while a dump is being loaded.
    pub(crate) const LOADING: [u8; 1] = [5];
    /// First byte of an orphan's key in [`super::Table::Small`].
    pub(crate) const ORPHAN: u8 = 2;
    /// First byte of a staged inode's key in [`super::Table::Small`].
    pub(crate) const STAGED: u8 = 3;
    /// First byte of a condemned segment's key in [`super::Table::Small`].
    pub(crate) const CONDEMNED: u8 = 4;

    /// First byte of a page's count in [`super::Table::References`].
    pub(crate) const PAGE_COUNT: u8 = 1;
    /// First byte of a segment's reference in [`super::Table::References`].
    pub(crate) const SEGMENT: u8 = 2;
    const BY_INODE: u8 = 1;
    const BY_PAGE: u8 = 2;

    /// In [`super::Table::Inodes`] and [`super::Table::Bodies`].
    pub(crate) fn inode(ino: Ino) -> [u8; 8] {
        ino.0.to_be_bytes()
    }

    /// The inverse of [`inode`].
    pub(crate) fn parse_inode(key: &[u8]) -> Option<Ino> {
        Some(Ino(u64::from_be_bytes(key.try_into().ok()?)))
    }

    /// In [`super::Table::Dentries`].
    pub(crate) fn dentry(parent: Ino, cookie: u64, name: &[u8]) -> Slice {
        // On the stack, because this is on the path of every lookup.
        let mut buffer = [0; 16 + 255];
        let len = 16 + name.len().min(255);
        buffer[..8].copy_from_slice(&parent.0.to_be_bytes());
        buffer[8..16].copy_from_slice(&cookie.to_be_bytes());
        buffer[16..len].copy_from_slice(&name[..len - 16]);
        Slice::new(&buffer[..len])
    }

    /// Where the entries of `parent` from `cookie` on start.
    pub(crate) fn dentry_start(parent: Ino, cookie: u64) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&parent.0.to_be_bytes());
        key[8..].copy_from_slice(&cookie.to_be_bytes());
        key
    }

    /// The inverse of [`dentry`].
    pub(crate) fn parse_dentry(key: &[u8]) -> Option<(Ino, u64, &[u8])> {
        let (parent, rest) = key.split_first_chunk()?;
        let (cookie, name) = rest.split_first_chunk()?;
        Some((Ino(u64::from_be_bytes(*parent)), u64::from_be_bytes(*cookie), name))
    }

    /// In [`super::Table::Xattrs`].
    pub(crate) fn xattr(ino: Ino, name: &[u8]) -> Slice {
        let mut key = Vec::with_capacity(8 + name.len());
        key.extend_from_slice(&ino.0.to_be_bytes());
        key.extend_from_slice(name);
        Slice::from(key)
    }

    /// The inverse of [`xattr`].
    pub(crate) fn parse_xattr(key: &[u8]) -> Option<(Ino, &[u8])> {
        let (ino, name) = key.split_first_chunk()?;
        Some((Ino(u64::from_be_bytes(*ino)), name))
    }

    /// The first key behind all keys that start with the number `prefix`.
    pub(crate) fn behind(prefix: u64) -> Vec<u8> {
        match prefix.checked_add(1) {
            Some(next) => next.to_be_bytes().to_vec(),
            // Longer than any key that starts so.
            None => vec![0xff; 8 + 8 + 256],
        }
    }

    fn tagged(tag: u8, number: u64) -> [u8; 9] {
        let mut key = [tag; 9];
        key[1..].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn parse_tagged(tag: u8, key: &[u8]) -> Option<u64> {
        let (first, rest) = key.split_first()?;
        (*first == tag).then_some(u64::from_be_bytes(rest.try_into().ok()?))
    }

    /// In [`super::Table::Small`].
    pub(crate) fn orphan(ino: Ino) -> [u8; 9] {
        tagged(ORPHAN, ino.0)
    }

    /// The inverse of [`orphan`].
    pub(crate) fn parse_orphan(key: &[u8]) -> Option<Ino> {
        parse_tagged(ORPHAN, key).map(Ino)
    }

    /// In [`super::Table::Small`].
    pub(crate) fn staged(ino: Ino) -> [u8; 9] {
        tagged(STAGED, ino.0)
    }

    /// The inverse of [`staged`].
    pub(crate) fn parse_staged(key: &[u8]) -> Option<Ino> {
        parse_tagged(STAGED, key).map(Ino)
    }

    /// In [`super::Table::Small`].
    pub(crate) fn condemned(segment: SegmentId) -> [u8; 9] {
        tagged(CONDEMNED, segment.0)
    }

    /// The inverse of [`condemned`].
    pub(crate) fn parse_condemned(key: &[u8]) -> Option<SegmentId> {
        parse_tagged(CONDEMNED, key).map(SegmentId)
    }

    /// In [`super::Table::References`].
    pub(crate) fn page_count(page: PageId) -> [u8; 33] {
        let mut key = [PAGE_COUNT; 33];
        key[1..].copy_from_slice(&page.0);
        key
    }

    /// The inverse of [`page_count`].
    pub(crate) fn parse_page_count(key: &[u8]) -> Option<PageId> {
        let (first, rest) = key.split_first()?;
        (*first == PAGE_COUNT).then_some(PageId(rest.try_into().ok()?))
    }

    /// What names a segment.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Referrer {
        /// An inode, as its staging file.
        Inode(Ino),
        /// A manifest page.
        Page(PageId),
    }

    /// In [`super::Table::References`].
    pub(crate) fn reference(segment: SegmentId, referrer: Referrer) -> Slice {
        let mut key = [0; 42];
        key[..9].copy_from_slice(&tagged(SEGMENT, segment.0));
        match referrer {
            Referrer::Inode(ino) => {
                key[9] = BY_INODE;
                key[10..18].copy_from_slice(&ino.0.to_be_bytes());
                Slice::new(&key[..18])
            }
            Referrer::Page(page) => {
                key[9] = BY_PAGE;
                key[10..].copy_from_slice(&page.0);
                Slice::new(&key)
            }
        }
    }

    /// Where the references to `segment` start.
    pub(crate) fn reference_start(segment: SegmentId) -> [u8; 9] {
        tagged(SEGMENT, segment.0)
    }

    /// The first key behind all references to `segment`.
    pub(crate) fn reference_end(segment: SegmentId) -> [u8; 9] {
        match segment.0.checked_add(1) {
            Some(next) => tagged(SEGMENT, next),
            None => tagged(SEGMENT + 1, 0),
        }
    }

    /// The inverse of [`reference`].
    pub(crate) fn parse_reference(key: &[u8]) -> Option<(SegmentId, Referrer)> {
        let (head, rest) = key.split_first_chunk::<9>()?;
        let segment = SegmentId(parse_tagged(SEGMENT, head)?);
        let (kind, id) = rest.split_first()?;
        let referrer = match *kind {
            BY_INODE => Referrer::Inode(parse_inode(id)?),
            BY_PAGE => Referrer::Page(PageId(id.try_into().ok()?)),
            _ => return None,
        };
        Some((segment, referrer))
    }
}
