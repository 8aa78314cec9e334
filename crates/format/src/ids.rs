//! Names of things. None of them is ever a bare integer.

use std::fmt;

macro_rules! integer_id {
    ($(#[$doc:meta])* $name:ident, $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

integer_id!(
    /// An inode's number. Never reused within a volume.
    Ino,
    "ino {}"
);
integer_id!(
    /// A local container of bytes: a staging file while it is written, a segment once sealed.
    ///
    /// Never reused, and never given to other bytes after sealing: unsealing a file in place gives
    /// the same bytes a new id first, so an index entry or a page that outlived a segment can
    /// only miss, never point at foreign bytes.
    SegmentId,
    "{:016x}"
);
integer_id!(
    /// The position of a metadata operation in the volume's total order. Zero is "before all".
    TxnId,
    "txn {}"
);

impl Ino {
    /// The root directory of every volume.
    pub const ROOT: Self = Self(1);
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The name of `bytes`. Costs one BLAKE3 pass over them.
            #[must_use]
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

hash_id!(
    /// The BLAKE3-256 of a chunk's plaintext.
    ChunkId
);
hash_id!(
    /// The BLAKE3-256 of an encoded manifest page.
    PageId
);

/// A volume's identity: 128 random bits, drawn when it is formatted.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl VolumeId {
    /// Reads the form that [`fmt::Display`] writes: 32 hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
