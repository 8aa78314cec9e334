//! What was decided when a volume was formatted, and never changes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::CHUNK_LEN_MAX_BYTES;

/// How file bytes are cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunking {
    /// Every chunk has this length but the last.
    Fixed {
        /// The length.
        size_bytes: u32,
    },
    /// FastCDC v2020 with this average; the smallest chunk is a quarter of it, the largest four
    /// times it.
    Cdc {
        /// The average length.
        average_bytes: u32,
    },
}

impl Chunking {
    /// The smallest chunk but the last of a file, the average, and the largest.
    #[must_use]
    pub fn bounds_bytes(&self) -> (u32, u32, u32) {
        match *self {
            Self::Fixed { size_bytes } => (size_bytes, size_bytes, size_bytes),
            Self::Cdc { average_bytes } => (average_bytes / 4, average_bytes, average_bytes * 4),
        }
    }
}

impl Default for Chunking {
    /// 256 KiB / 1 MiB / 4 MiB.
    fn default() -> Self {
        Self::Cdc { average_bytes: 1 << 20 }
    }
}

impl fmt::Display for Chunking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { size_bytes } => write!(f, "fixed:{size_bytes}"),
            Self::Cdc { average_bytes } => write!(f, "cdc:{average_bytes}"),
        }
    }
}

impl FromStr for Chunking {
    type Err = String;

    /// Reads `fixed:SIZE` or `cdc:AVERAGE`; sizes take `K`, `M` and `KiB`, `MiB`, all binary.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, size) = text
            .split_once(':')
            .ok_or_else(|| format!("'{text}': use fixed:SIZE or cdc:AVERAGE, such as cdc:1M"))?;
        let size_bytes = parse_size(size)?;
        let bytes = u32::try_from(size_bytes).unwrap_or(u32::MAX);
        match kind {
            "fixed"
                if (4096..=CHUNK_LEN_MAX_BYTES).contains(&bytes) && bytes.is_multiple_of(4096) =>
            {
                Ok(Self::Fixed { size_bytes: bytes })
            }
            "fixed" => Err(format!("fixed:{size}: a multiple of 4K between 4K and 16M is needed")),
            "cdc"
                if (16384..=CHUNK_LEN_MAX_BYTES / 4).contains(&bytes)
                    && bytes.is_power_of_two() =>
            {
                Ok(Self::Cdc { average_bytes: bytes })
            }
            "cdc" => Err(format!("cdc:{size}: a power of two between 16K and 4M is needed")),
            _ => Err(format!("'{kind}': use fixed:SIZE or cdc:AVERAGE, such as cdc:1M")),
        }
    }
}

/// Reads a size with an optional binary unit.
///
/// # Errors
///
/// A sentence that says what was expected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err(format!("'{text}': units are K, M, G and T")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("'{text}' is not a size; write it like 64K or 1M"))
}

/// How chunks in packed segments are compressed; what does not shrink stays raw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    Off,
    /// LZ4: the fastest to read.
    Lz4,
    /// zstd level 1: measured 2.9 to 5.4 times smaller at LZ4's speed of writing.
    #[default]
    Zstd,
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            _ => Err(format!("'{text}': use off, lz4 or zstd")),
        }
    }
}

/// The configuration of a volume, as `volume.json` holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// The version of everything on disk.
    pub format_version: u32,
    /// The volume's identity, 32 hex digits.
    pub volume_id: String,
    /// `fixed:BYTES` or `cdc:BYTES`.
    pub chunking: String,
    /// Compression of packed segments.
    pub compression: Compression,
    /// Files up to this size live inside the metadata.
    pub inline_max_bytes: u32,
}

impl VolumeConfig {
    /// The largest inline limit: one page of the metadata engine.
    pub const INLINE_LIMIT_MAX_BYTES: u32 = 16384;

    /// The default inline limit.
    pub const INLINE_LIMIT_DEFAULT_BYTES: u32 = 4096;
}
