//! The kernel's protocol, byte by byte: `<linux/fuse.h>`, version 7.
//!
//! Requests are decoded from borrowed bytes; whatever they hold, decoding answers a request or an
//! error and never panics. Numbers are in the machine's order. The layouts are those since 7.23; what
//! came later was only ever added.

use std::time::Duration;

use librorum_format::Timestamp;

use super::{Attr, NodeKind};

/// The newest version whose layouts are known here. The kernel adapts to it.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 41;

/// Kernels before this (Linux 5.1) insist on opening directories.
pub(super) const MINOR_MIN: u32 = 29;

pub(super) const OUT_HEADER_BYTES: usize = 16;

/// What a request may be longer than the largest write: its header and a little more.
pub(super) const REQUEST_OVERHEAD_BYTES: usize = 4096;

/// `FUSE_NOTIFY_INVAL_INODE`.
const NOTIFY_INVAL_INODE: i32 = 2;

/// `FUSE_NOTIFY_INVAL_ENTRY`.
const NOTIFY_INVAL_ENTRY: i32 = 3;

/// Flags of INIT, both words as one.
pub(super) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub(crate) const PASSTHROUGH: u64 = 1 << 37;
}

/// Flags of an answer to OPEN, OPENDIR and CREATE.
pub(super) mod fopen {
    pub(crate) const KEEP_CACHE: u32 = 1 << 1;
    pub(crate) const NOFLUSH: u32 = 1 << 5;
    pub(crate) const PASSTHROUGH: u32 = 1 << 7;
}

/// Bits of `fuse_setattr_in.valid`.
mod fattr {
    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const FH: u32 = 1 << 6;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
    pub(super) const CTIME: u32 = 1 << 10;
    pub(super) const KILL_SUIDGID: u32 = 1 << 11;
}

/// The opcode of a read.
const READ: u32 = 15;
/// `FUSE_OPEN_KILL_SUIDGID`.
const OPEN_KILL_SUIDGID: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`.
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_GETATTR_FH`.
const GETATTR_FH: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`.
const FSYNC_DATA_ONLY: u32 = 1;

/// What every request begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) header: Header,
    pub(super) operation: Operation<'a>,
}

/// What is asked.
#[derive(Debug)]
pub(super) enum Operation<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u64,
    },
    Destroy,
    Interrupt {
        unique: u64,
    },
    Lookup {
        name: &'a [u8],
    },
    Forget {
        count: u64,
    },
    BatchForget {
        nodes: Forgets<'a>,
    },
    Getattr {
        handle: Option<u64>,
    },
    Setattr(Setattr),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
    },
    Mkdir {
        name: &'a [u8],
        mode: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_parent: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        node: u64,
        new_name: &'a [u8],
    },
    Open {
        flags: u32,
        kill_set_id: bool,
    },
    Create {
        name: &'a [u8],
        flags: u32,
        mode: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        data: &'a [u8],
        kill_set_id: bool,
    },
    Flush,
    Release {
        handle: u64,
    },
    Fsync {
        handle: u64,
        data_only: bool,
    },
    Opendir,
    Readdir {
        cookie: u64,
        size: u32,
    },
    ReaddirPlus {
        cookie: u64,
        size: u32,
    },
    Releasedir,
    Fsyncdir,
    Statfs,
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
    },
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Fallocate {
        handle: u64,
        offset: u64,
        len: u64,
        mode: u32,
    },
    Lseek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyFileRange {
        from: (u64, u64),
        to: (u64, u64, u64),
        len: u64,
    },
    /// Nothing that is served here: the answer is `ENOSYS`, which the kernel remembers.
    Other,
}

/// A change of attributes.
#[derive(Debug)]
pub(super) struct Setattr {
    pub(super) handle: Option<u64>,
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    /// `None` inside: now.
    pub(super) atime: Option<Option<Timestamp>>,
    pub(super) mtime: Option<Option<Timestamp>>,
    pub(super) ctime: Option<Timestamp>,
    pub(super) kill_set_id: bool,
}

/// Nodes that the kernel has forgotten, with how many references of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forgets<'a>(Input<'a>);

impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        Some((self.0.u64().ok()?, self.0.u64().ok()?))
    }
}

/// Why bytes are not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("the request ends early")]
    Short,
    #[error("a name has no end")]
    NoNul,
    #[error("the header says {said} bytes, {read} were read")]
    Length { said: usize, read: usize },
}

type Result<T> = std::result::Result<T, DecodeError>;

/// The rest of a request.
#[derive(Clone, Copy, Debug)]
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    fn skip(&mut self, len: usize) -> Result<()> {
        self.bytes(len).map(|_skipped| ())
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    /// A name that ends with NUL.
    fn name(&mut self) -> Result<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(DecodeError::NoNul)?;
        let name = self.bytes(end)?;
        self.skip(1)?;
        Ok(name)
    }
}

/// Reads a request.
pub(super) fn decode(bytes: &[u8]) -> Result<Request<'_>> {
    let mut input = Input(bytes);
    let (header, opcode) = decode_header(&mut input, bytes.len())?;
    let operation = decode_operation(opcode, &mut input)?;
    Ok(Request { header, operation })
}

/// Reads only who waits for an answer, where [`decode`] failed.
pub(super) fn decode_unique(bytes: &[u8]) -> Option<u64> {
    let mut input = Input(bytes);
    input.skip(8).ok()?;
    input.u64().ok()
}

/// The thread that asks, 0 where it is not known, and how many bytes the request carries or, for a
/// READ, asks for.
pub(super) fn decode_caller(bytes: &[u8]) -> (u32, u32) {
    let decode = || -> Result<(u32, u32)> {
        let mut input = Input(bytes);
        let len = input.u32()?;
        let opcode = input.u32()?;
        input.skip(24)?;
        let thread = input.u32()?;
        input.skip(4)?;
        let bytes = if opcode == READ { decode_read(&mut input)?.2 } else { len };
        Ok((thread, bytes))
    };
    decode().unwrap_or((0, 0))
}

fn decode_header(input: &mut Input<'_>, read: usize) -> Result<(Header, u32)> {
    let said = usize::try_from(input.u32()?).unwrap_or(usize::MAX);
    if said != read {
        return Err(DecodeError::Length { said, read });
    }
    let opcode = input.u32()?;
    let unique = input.u64()?;
    let node = input.u64()?;
    let uid = input.u32()?;
    let gid = input.u32()?;
    // The pid tells nothing that can be relied on; extensions come last, and none is asked for.
    input.skip(8)?;
    Ok((Header { unique, node, uid, gid }, opcode))
}

fn decode_operation<'a>(opcode: u32, input: &mut Input<'a>) -> Result<Operation<'a>> {
    Ok(match opcode {
        1 => Operation::Lookup { name: input.name()? },
        2 => Operation::Forget { count: input.u64()? },
        3 => {
            let flags = input.u32()?;
            input.skip(4)?;
            let handle = input.u64()?;
            Operation::Getattr { handle: (flags & GETATTR_FH != 0).then_some(handle) }
        }
        4 => Operation::Setattr(decode_setattr(input)?),
        5 => Operation::Readlink,
        6 => Operation::Symlink { name: input.name()?, target: input.name()? },
        8 => {
            let mode = input.u32()?;
            let rdev = input.u32()?;
            input.skip(8)?;
            Operation::Mknod { name: input.name()?, mode, rdev }
        }
        9 => {
            let mode = input.u32()?;
            input.skip(4)?;
            Operation::Mkdir { name: input.name()?, mode }
        }
        10 => Operation::Unlink { name: input.name()? },
        11 => Operation::Rmdir { name: input.name()? },
        12 => {
            let new_parent = input.u64()?;
            let (name, new_name) = (input.name()?, input.name()?);
            Operation::Rename { name, new_parent, new_name, flags: 0 }
        }
        13 => Operation::Link { node: input.u64()?, new_name: input.name()? },
        14 => {
            let flags = input.u32()?;
            let kill_set_id = input.u32()? & OPEN_KILL_SUIDGID != 0;
            Operation::Open { flags, kill_set_id }
        }
        READ => {
            let (handle, offset, size) = decode_read(input)?;
            Operation::Read { handle, offset, size }
        }
        16 => {
            let handle = input.u64()?;
            let offset = input.u64()?;
            let size = input.u32()?;
            let kill_set_id = input.u32()? & WRITE_KILL_SUIDGID != 0;
            input.skip(16)?;
            let data = input.bytes(usize::try_from(size).unwrap_or(usize::MAX))?;
            Operation::Write { handle, offset, data, kill_set_id }
        }
        17 => Operation::Statfs,
        18 => Operation::Release { handle: input.u64()? },
        20 => {
            let handle = input.u64()?;
            Operation::Fsync { handle, data_only: input.u32()? & FSYNC_DATA_ONLY != 0 }
        }
        21 => {
            let size = input.u32()?;
            let flags = input.u32()?;
            let name = input.name()?;
            let value = input.bytes(usize::try_from(size).unwrap_or(usize::MAX))?;
            Operation::Setxattr { name, value, flags }
        }
        22 => {
            let size = input.u32()?;
            input.skip(4)?;
            Operation::Getxattr { name: input.name()?, size }
        }
        23 => Operation::Listxattr { size: input.u32()? },
        24 => Operation::Removexattr { name: input.name()? },
        25 => Operation::Flush,
        26 => decode_init(input)?,
        27 => Operation::Opendir,
        28 => {
            let (_handle, cookie, size) = decode_read(input)?;
            Operation::Readdir { cookie, size }
        }
        29 => Operation::Releasedir,
        30 => Operation::Fsyncdir,
        35 => {
            let flags = input.u32()?;
            let mode = input.u32()?;
            input.skip(8)?;
            Operation::Create { name: input.name()?, flags, mode }
        }
        36 => Operation::Interrupt { unique: input.u64()? },
        38 => Operation::Destroy,
        42 => {
            let count = usize::try_from(input.u32()?).unwrap_or(usize::MAX);
            input.skip(4)?;
            Operation::BatchForget { nodes: Forgets(Input(input.bytes(count.saturating_mul(16))?)) }
        }
        43 => {
            let handle = input.u64()?;
            let offset = input.u64()?;
            let len = input.u64()?;
            Operation::Fallocate { handle, offset, len, mode: input.u32()? }
        }
        44 => {
            let (_handle, cookie, size) = decode_read(input)?;
            Operation::ReaddirPlus { cookie, size }
        }
        45 => {
            let new_parent = input.u64()?;
            let flags = input.u32()?;
            input.skip(4)?;
            let (name, new_name) = (input.name()?, input.name()?);
            Operation::Rename { name, new_parent, new_name, flags }
        }
        46 => {
            let handle = input.u64()?;
            let offset = input.u64()?;
            Operation::Lseek { handle, offset, whence: input.u32()? }
        }
        47 => {
            let from = (input.u64()?, input.u64()?);
            let to = (input.u64()?, input.u64()?, input.u64()?);
            Operation::CopyFileRange { from, to, len: input.u64()? }
        }
        _ => Operation::Other,
    })
}

fn decode_init<'a>(input: &mut Input<'_>) -> Result<Operation<'a>> {
    let major = input.u32()?;
    let minor = input.u32()?;
    let max_readahead = input.u32()?;
    let low = u64::from(input.u32()?);
    let high = if low & init::INIT_EXT != 0 { u64::from(input.u32()?) } else { 0 };
    Ok(Operation::Init { major, minor, max_readahead, flags: low | (high << 32) })
}

/// A handle, an offset and a size.
fn decode_read(input: &mut Input<'_>) -> Result<(u64, u64, u32)> {
    Ok((input.u64()?, input.u64()?, input.u32()?))
}

fn decode_setattr(input: &mut Input<'_>) -> Result<Setattr> {
    let valid = input.u32()?;
    input.skip(4)?;
    let handle = input.u64()?;
    let size = input.u64()?;
    input.skip(8)?;
    // Seconds before 1970 are negative numbers in the same bits.
    let [atime, mtime, ctime] = [input.u64()?, input.u64()?, input.u64()?].map(u64::cast_signed);
    let [atime_nanos, mtime_nanos, ctime_nanos] = [input.u32()?, input.u32()?, input.u32()?];
    let mode = input.u32()?;
    input.skip(4)?;
    let uid = input.u32()?;
    let gid = input.u32()?;
    let has = |bit: u32| valid & bit != 0;
    let time = |bit, now_bit, secs, nanos| {
        has(bit).then(|| (!has(now_bit)).then(|| Timestamp::new(secs, nanos)))
    };
    Ok(Setattr {
        handle: has(fattr::FH).then_some(handle),
        mode: has(fattr::MODE).then_some(mode),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nanos),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nanos),
        ctime: has(fattr::CTIME).then(|| Timestamp::new(ctime, ctime_nanos)),
        kill_set_id: has(fattr::KILL_SUIDGID),
    })
}

/// Bytes that go to the kernel.
#[derive(Debug, Default)]
pub(super) struct Output(Vec<u8>);

#[expect(clippy::host_endian_bytes, reason = "the kernel's structures are in the machine's order")]
impl Output {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn zeros(&mut self, len: usize) -> &mut Self {
        self.0.resize(self.0.len() + len, 0);
        self
    }

    /// What every answer begins with, `body_len` being what follows. `errno` is 0 or positive.
    pub(super) fn header(&mut self, unique: u64, errno: i32, body_len: usize) -> &mut Self {
        let len = u32::try_from(OUT_HEADER_BYTES + body_len).unwrap_or(u32::MAX);
        self.u32(len).u32(errno.wrapping_neg().cast_unsigned()).u64(unique)
    }

    /// `struct fuse_init_out`.
    pub(super) fn init(&mut self, agreed: &Agreed) -> &mut Self {
        let low = u32::try_from(agreed.flags & 0xffff_ffff).unwrap_or(0);
        let high = u32::try_from(agreed.flags >> 32).unwrap_or(0);
        self.u32(MAJOR).u32(MINOR).u32(agreed.max_readahead).u32(low);
        self.u16(agreed.max_background).u16(agreed.max_background / 4 * 3);
        // Times are kept to the nanosecond.
        self.u32(agreed.max_write_bytes).u32(1);
        self.u16(u16::try_from(agreed.max_write_bytes / 4096).unwrap_or(u16::MAX)).u16(0);
        self.u32(high).u32(agreed.max_stack_depth).zeros(24)
    }

    fn attr(&mut self, attr: &Attr) -> &mut Self {
        self.u64(attr.ino).u64(attr.size_bytes).u64(attr.allocated_bytes.div_ceil(512));
        for time in [attr.atime, attr.mtime, attr.ctime] {
            self.u64(time.secs.cast_unsigned());
        }
        for time in [attr.atime, attr.mtime, attr.ctime] {
            self.u32(time.nanos);
        }
        self.u32(type_bits(attr.kind) | u32::from(attr.mode));
        self.u32(attr.nlink).u32(attr.uid).u32(attr.gid).u32(attr.rdev);
        // The block size that programs copy by, and no flags.
        self.u32(4096).u32(0)
    }

    /// `struct fuse_entry_out`.
    pub(super) fn entry(&mut self, attr: &Attr, entry_ttl: Duration) -> &mut Self {
        self.u64(attr.ino).u64(0).u64(entry_ttl.as_secs()).u64(attr.ttl.as_secs());
        self.u32(entry_ttl.subsec_nanos()).u32(attr.ttl.subsec_nanos()).attr(attr)
    }

    /// `struct fuse_entry_out` of a name that does not exist, which the kernel may keep.
    pub(super) fn absent(&mut self, entry_ttl: Duration) -> &mut Self {
        self.u64(0).u64(0).u64(entry_ttl.as_secs()).u64(0);
        self.u32(entry_ttl.subsec_nanos()).u32(0).zeros(88)
    }

    /// `struct fuse_attr_out`.
    pub(super) fn attributes(&mut self, attr: &Attr) -> &mut Self {
        self.u64(attr.ttl.as_secs()).u32(attr.ttl.subsec_nanos()).u32(0).attr(attr)
    }

    /// `struct fuse_open_out`.
    pub(super) fn opened(&mut self, handle: u64, flags: u32, backing: i32) -> &mut Self {
        self.u64(handle).u32(flags).u32(backing.cast_unsigned())
    }

    /// `struct fuse_write_out` and `struct fuse_getxattr_out`.
    pub(super) fn size(&mut self, size: u32) -> &mut Self {
        self.u32(size).u32(0)
    }

    /// `struct fuse_lseek_out`.
    pub(super) fn offset(&mut self, offset: u64) -> &mut Self {
        self.u64(offset)
    }

    /// `struct fuse_statfs_out`.
    pub(super) fn statfs(&mut self, usage: &super::FsUsage) -> &mut Self {
        self.u64(usage.blocks).u64(usage.blocks_free).u64(usage.blocks_available);
        self.u64(usage.files).u64(usage.files_free);
        self.u32(usage.block_size).u32(255).u32(usage.block_size).zeros(28)
    }

    /// Adds a `struct fuse_dirent`, or with `attr` a `struct fuse_direntplus`, unless the answer
    /// would pass `limit` bytes.
    #[must_use]
    pub(super) fn dir_entry(
        &mut self,
        entry: &super::DirEntry,
        attr: Option<(&Attr, Duration)>,
        limit: usize,
    ) -> bool {
        let attr_len = if attr.is_some() { 128 } else { 0 };
        let len = (attr_len + 24 + entry.name.len()).next_multiple_of(8);
        let end = self.0.len() + len;
        if end > limit {
            return false;
        }
        if let Some((attr, entry_ttl)) = attr {
            self.entry(attr, entry_ttl);
        }
        self.u64(entry.ino).u64(entry.cookie);
        self.u32(u32::try_from(entry.name.len()).unwrap_or(0)).u32(type_bits(entry.kind) >> 12);
        self.0.extend_from_slice(&entry.name);
        self.0.resize(end, 0);
        true
    }
}

/// What INIT is answered with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    pub(super) flags: u64,
    pub(super) max_readahead: u32,
    pub(super) max_background: u16,
    pub(super) max_write_bytes: u32,
    pub(super) max_stack_depth: u32,
}

/// A message that tells the kernel to ask again for an inode's attributes. A negative offset leaves
/// its page cache alone.
pub(super) fn attributes_invalid(ino: u64) -> Output {
    let mut out = Output::with_capacity(40);
    let code = NOTIFY_INVAL_INODE.wrapping_neg();
    out.header(0, code, 24).u64(ino).u64((-1_i64).cast_unsigned()).u64(0);
    out
}

/// A message that tells the kernel to forget an inode's attributes and all that its page cache has of
/// it: a file's bytes, a directory's entries.
pub(super) fn data_invalid(ino: u64) -> Output {
    let mut out = Output::with_capacity(40);
    let code = NOTIFY_INVAL_INODE.wrapping_neg();
    // No length: all of it.
    out.header(0, code, 24).u64(ino).u64(0).u64(0);
    out
}

/// A message that tells the kernel to forget what a name in a directory leads to, or that it leads
/// nowhere.
pub(super) fn entry_invalid(parent: u64, name: &[u8]) -> Output {
    let mut out = Output::with_capacity(33 + name.len());
    let code = NOTIFY_INVAL_ENTRY.wrapping_neg();
    let len = u32::try_from(name.len()).unwrap_or(0);
    out.header(0, code, 17 + name.len()).u64(parent).u32(len).u32(0);
    out.0.extend_from_slice(name);
    out.0.push(0);
    out
}

/// The type bits of `st_mode`.
fn type_bits(kind: NodeKind) -> u32 {
    match kind {
        NodeKind::Regular => 0o100_000,
        NodeKind::Directory => 0o040_000,
        NodeKind::Symlink => 0o120_000,
        NodeKind::Fifo => 0o010_000,
        NodeKind::Socket => 0o140_000,
        NodeKind::CharDevice => 0o020_000,
        NodeKind::BlockDevice => 0o060_000,
    }
}

/// The kind that the type bits of `st_mode` say; none: a regular file, as mknod(2) has it.
pub(super) fn kind(mode: u32) -> Option<NodeKind> {
    Some(match mode & 0o170_000 {
        0 | 0o100_000 => NodeKind::Regular,
        0o010_000 => NodeKind::Fifo,
        0o140_000 => NodeKind::Socket,
        0o020_000 => NodeKind::CharDevice,
        0o060_000 => NodeKind::BlockDevice,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
