//! The frames of `docs/protocol.md`: headers, and a byte stream with descriptors cut into frames.
//!
//! What holds: nothing that a peer sends makes this code panic, hold more than one frame beyond the
//! agreed limits in memory, or keep a descriptor that no frame has claimed. An error is the end of
//! the connection, since nothing behind it can be trusted.

mod opcode;
mod splitter;

use bytes::Bytes;
use std::os::fd::OwnedFd;

pub use opcode::Opcode;
pub use splitter::Splitter;

/// How long a header is.
pub const HEADER_LEN: usize = 32;

/// What a frame begins with.
pub const MAGIC: [u8; 4] = *b"LBRU";

/// The version in every header.
pub const VERSION: u8 = 1;

/// No payload is ever longer.
pub const PAYLOAD_LEN_MAX: u32 = 1 << 20;

/// The payload limit unless agreed otherwise: it fits the CPU's cache beside its copy.
pub const PAYLOAD_LEN_DEFAULT: u32 = 256 << 10;

/// The longest payload of a PING.
pub const PING_LEN_MAX: u32 = 64;

/// The flags of a header.
pub mod flag {
    /// This PING is an answer.
    pub const ACK: u32 = 0x0000_0001;
    /// An idempotency key follows the request prefix.
    pub const KEY: u32 = 0x0001_0000;
    /// Who does not know one of these refuses the frame.
    pub const MUST_UNDERSTAND: u32 = 0xffff_0000;
}

/// The features that HELLO agrees on.
pub mod feature {
    /// READ_OPEN may answer with descriptors.
    pub const FD_READ: u64 = 1;
    /// WRITE_OPEN may.
    pub const FD_WRITE: u64 = 2;
    /// There may be an arena.
    pub const ARENA: u64 = 4;
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A request.
    Req = 1,
    /// The last frame of an answer.
    Res = 2,
    /// Payload of an answer whose [`Kind::Res`] follows.
    Data = 3,
    /// New limits.
    Credit = 4,
    /// A request is no longer wanted.
    Cancel = 5,
    /// To be sent back.
    Ping = 6,
    /// No further request is taken.
    GoAway = 7,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Req, Self::Res, Self::Data, Self::Credit, Self::Cancel, Self::Ping, Self::GoAway];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == number)
    }
}

/// Why bytes are not the frame that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum FrameError {
    /// It does not begin with [`MAGIC`].
    #[error("a frame begins with {found:02x?} instead of \"LBRU\"")]
    Magic { found: [u8; 4] },
    /// It is of a protocol that is not known here.
    #[error("a frame has version {found}, not {VERSION}")]
    Version { found: u8 },
    /// The header was damaged, or never was one.
    #[error("a frame header has checksum {found:08x}, its bytes {computed:08x}")]
    Checksum { found: u32, computed: u32 },
    /// It is of an unknown kind.
    #[error("a frame has kind {found}")]
    Kind { found: u8 },
    /// A flag that has to be understood is not.
    #[error("a frame has flags {found:08x}, of which some high ones are unknown")]
    Flags { found: u32 },
    /// The payload is longer than agreed.
    #[error("a frame has {len} bytes of payload, agreed are at most {max}")]
    Payload { len: u32, max: u32 },
    /// The meta is longer than agreed.
    #[error("a frame has {len} bytes of meta, agreed are at most {max}")]
    Meta { len: u16, max: u16 },
    /// There are more descriptors than agreed.
    #[error("a frame has {count} descriptors, agreed are at most {max}")]
    Descriptors { count: u8, max: u8 },
    /// Other descriptors came than the header says.
    #[error("a frame has {found} descriptors, its header says {expected}")]
    Claim { expected: u8, found: usize },
    /// Descriptors came where no frame begins.
    #[error("{count} descriptors came that belong to no frame")]
    Stray { count: usize },
    /// The meta is too short for what has to be in it.
    #[error("{what} has {len} bytes of meta, needed are {needed}")]
    Short { what: &'static str, len: usize, needed: usize },
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// The operation.
    pub opcode: Opcode,
    /// Bits of [`flag`].
    pub flags: u32,
    /// How long the payload is.
    pub payload_len: u32,
    /// Which request it belongs to; odd for those of clients.
    pub request_id: u64,
    /// How long the meta is.
    pub meta_len: u16,
    /// How many descriptors come with the frame.
    pub fd_count: u8,
    /// A status code of gRPC in a response, else 0.
    pub status: u8,
}

impl Header {
    /// A header with nothing behind it.
    #[must_use]
    pub const fn new(kind: Kind, opcode: Opcode, request_id: u64) -> Self {
        Self {
            kind,
            opcode,
            flags: 0,
            payload_len: 0,
            request_id,
            meta_len: 0,
            fd_count: 0,
            status: 0,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.kind as u8;
        bytes[6..8].copy_from_slice(&self.opcode.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.request_id.to_le_bytes());
        bytes[24..26].copy_from_slice(&self.meta_len.to_le_bytes());
        bytes[26] = self.fd_count;
        bytes[27] = self.status;
        let checksum = crc32c::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// What bytes say.
    ///
    /// # Errors
    ///
    /// A wrong magic, version or checksum, and unknown kinds and high flags, looked for in this order.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let magic = array(bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        if bytes[4] != VERSION {
            return Err(FrameError::Version { found: bytes[4] });
        }
        let found = u32::from_le_bytes(array(bytes, 28));
        let computed = crc32c::crc32c(&bytes[..28]);
        if found != computed {
            return Err(FrameError::Checksum { found, computed });
        }
        let kind = Kind::from_number(bytes[5]).ok_or(FrameError::Kind { found: bytes[5] })?;
        let flags = u32::from_le_bytes(array(bytes, 8));
        if flags & flag::MUST_UNDERSTAND & !flag::KEY != 0 {
            return Err(FrameError::Flags { found: flags });
        }
        Ok(Self {
            kind,
            opcode: Opcode(u16::from_le_bytes(array(bytes, 6))),
            flags,
            payload_len: u32::from_le_bytes(array(bytes, 12)),
            request_id: u64::from_le_bytes(array(bytes, 16)),
            meta_len: u16::from_le_bytes(array(bytes, 24)),
            fd_count: bytes[26],
            status: bytes[27],
        })
    }

    /// How many bytes follow the header.
    #[must_use]
    pub fn body_len(&self) -> usize {
        usize::from(self.meta_len).saturating_add(
            // A `usize` of fewer bits than 32 cannot run this crate's dependencies.
            usize::try_from(self.payload_len).unwrap_or(usize::MAX),
        )
    }
}

/// How much a frame may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of payload.
    pub payload_bytes_max: u32,
    /// Of meta.
    pub meta_bytes_max: u16,
    /// Of descriptors.
    pub descriptors_max: u8,
}

impl Limits {
    /// Those of a connection that has not agreed on any.
    pub const BEFORE_HELLO: Self =
        Self { payload_bytes_max: 0, meta_bytes_max: 4096, descriptors_max: 0 };

    /// Whether a frame keeps within them.
    ///
    /// # Errors
    ///
    /// Too much payload, meta or descriptors.
    pub fn check(&self, header: &Header) -> Result<(), FrameError> {
        let max = if header.kind == Kind::Ping {
            self.payload_bytes_max.min(PING_LEN_MAX)
        } else {
            self.payload_bytes_max.min(PAYLOAD_LEN_MAX)
        };
        if header.payload_len > max {
            return Err(FrameError::Payload { len: header.payload_len, max });
        }
        if header.meta_len > self.meta_bytes_max {
            return Err(FrameError::Meta { len: header.meta_len, max: self.meta_bytes_max });
        }
        if header.fd_count > self.descriptors_max {
            return Err(FrameError::Descriptors {
                count: header.fd_count,
                max: self.descriptors_max,
            });
        }
        Ok(())
    }
}

/// What the meta of a request begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// Milliseconds from receipt, 0 for none.
    pub deadline_ms: u32,
    /// The CPU on which the client waits for the answer, plus one; 0 if it does not wait for this one
    /// alone. A hint: whoever answers on that CPU need not wake another.
    pub cpu: u32,
    /// 0 or what the client calls this request.
    pub trace_id: u64,
    /// The same key asks for the same thing: it is done once.
    pub key: Option<[u8; 16]>,
}

impl Prefix {
    /// Puts it behind what is in `meta`. The header needs [`Self::flags`].
    pub fn encode_to(&self, meta: &mut Vec<u8>) {
        meta.extend_from_slice(&self.deadline_ms.to_le_bytes());
        meta.extend_from_slice(&self.cpu.to_le_bytes());
        meta.extend_from_slice(&self.trace_id.to_le_bytes());
        if let Some(key) = &self.key {
            meta.extend_from_slice(key);
        }
    }

    /// The flags that it puts on the header.
    #[must_use]
    pub fn flags(&self) -> u32 {
        if self.key.is_some() { flag::KEY } else { 0 }
    }

    /// Takes it from the meta of a request with these flags; answers the control message, too.
    ///
    /// # Errors
    ///
    /// [`FrameError::Short`].
    pub fn decode(meta: &Bytes, flags: u32) -> Result<(Self, Bytes), FrameError> {
        let keyed = flags & flag::KEY != 0;
        let needed = if keyed { 32 } else { 16 };
        let short = || FrameError::Short { what: "a request", len: meta.len(), needed };
        let (fixed, rest) = meta.split_first_chunk::<16>().ok_or_else(short)?;
        let key = match rest.first_chunk::<16>() {
            _ if !keyed => None,
            Some(key) => Some(*key),
            None => return Err(short()),
        };
        let prefix = Self {
            deadline_ms: u32::from_le_bytes(array(fixed, 0)),
            cpu: u32::from_le_bytes(array(fixed, 4)),
            trace_id: u64::from_le_bytes(array(fixed, 8)),
            key,
        };
        Ok((prefix, meta.slice(needed..)))
    }
}

/// The control message of READ and WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The handle of READ_OPEN or the upload of WRITE_OPEN.
    pub handle: u64,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
    /// Where in the arena, if not in the frame.
    pub slot: Option<u32>,
}

impl Transfer {
    /// How long it is.
    pub const LEN: usize = 24;

    /// The number of no slot.
    const NO_SLOT: u32 = u32::MAX;

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&self.handle.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.len.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.slot.unwrap_or(Self::NO_SLOT).to_le_bytes());
        bytes
    }

    /// What bytes say.
    ///
    /// # Errors
    ///
    /// [`FrameError::Short`], also if there are too many.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let Ok(bytes): Result<&[u8; Self::LEN], _> = bytes.try_into() else {
            let len = bytes.len();
            return Err(FrameError::Short { what: "a READ or WRITE", len, needed: Self::LEN });
        };
        let slot = u32::from_le_bytes(array(bytes, 20));
        Ok(Self {
            handle: u64::from_le_bytes(array(bytes, 0)),
            offset: u64::from_le_bytes(array(bytes, 8)),
            len: u32::from_le_bytes(array(bytes, 16)),
            slot: (slot != Self::NO_SLOT).then_some(slot),
        })
    }
}

/// What a CREDIT frame carries: how much a client may have under way from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Requests.
    pub requests_max: u32,
    /// Their bytes.
    pub bytes_max: u64,
}

impl Credit {
    /// How long it is.
    pub const LEN: usize = 16;

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&self.requests_max.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.bytes_max.to_le_bytes());
        bytes
    }

    /// What bytes say.
    ///
    /// # Errors
    ///
    /// [`FrameError::Short`], also if there are too many.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let Ok(bytes): Result<&[u8; Self::LEN], _> = bytes.try_into() else {
            let len = bytes.len();
            return Err(FrameError::Short { what: "a CREDIT", len, needed: Self::LEN });
        };
        Ok(Self {
            requests_max: u32::from_le_bytes(array(bytes, 0)),
            bytes_max: u64::from_le_bytes(array(bytes, 8)),
        })
    }
}

/// `N` bytes of a fixed layout.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// A frame with everything that came with it.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub header: Header,
    /// The control message, behind a [`Prefix`] in requests.
    pub meta: Bytes,
    /// The bytes.
    pub payload: Bytes,
    /// The descriptors, as many as the header says.
    pub descriptors: Vec<OwnedFd>,
}

#[cfg(test)]
mod tests;
