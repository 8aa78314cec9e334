//! The stored forms of a chunk.

use std::cell::RefCell;
use std::io;

use librorum_format::{CHUNK_LEN_MAX_BYTES, ChunkId, Compression, Encoding};

use crate::error::Corruption;

/// Level 1 packs 2.9 to 5.4 times smaller at LZ4's speed (`docs/design`, measured); higher levels
/// cost more time than they save space.
const ZSTD_LEVEL: i32 = 1;

/// A stored form may be this much longer than the longest chunk: nothing that grew is ever stored,
/// so anything beyond is a damaged location, not worth a buffer.
const STORED_LEN_MAX_BYTES: u32 = CHUNK_LEN_MAX_BYTES;

/// Compresses chunks, one after the other.
pub(crate) struct Encoder {
    compression: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    out: Vec<u8>,
}

impl Encoder {
    /// An encoder for a volume's compression.
    pub(crate) fn new(compression: Compression) -> io::Result<Self> {
        let zstd = match compression {
            Compression::Zstd => Some(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
            Compression::Off | Compression::Lz4 => None,
        };
        Ok(Self { compression, zstd, out: Vec::new() })
    }

    /// The stored form of a chunk: compressed if that saves a twentieth, else as it is.
    pub(crate) fn encode<'a>(&'a mut self, chunk: &'a [u8]) -> (Encoding, &'a [u8]) {
        // Less than that is not worth decoding every time it is read.
        let worth = chunk.len() - chunk.len() / 20;
        let compressed = match (self.compression, &mut self.zstd) {
            (Compression::Zstd, Some(zstd)) => {
                self.out.resize(zstd::zstd_safe::compress_bound(chunk.len()), 0);
                zstd.compress_to_buffer(chunk, self.out.as_mut_slice())
                    .ok()
                    .map(|len| (Encoding::Zstd, len))
            }
            (Compression::Lz4, _) => {
                self.out.resize(lz4_flex::block::get_maximum_output_size(chunk.len()), 0);
                lz4_flex::block::compress_into(chunk, &mut self.out)
                    .ok()
                    .map(|len| (Encoding::Lz4, len))
            }
            _ => None,
        };
        match compressed {
            Some((encoding, len)) if len < worth => (encoding, &self.out[..len]),
            // A codec that fails on bytes it could have stored costs space, not the chunk.
            _ => (Encoding::Raw, chunk),
        }
    }
}

/// Whether a chunk of this length can be stored so.
pub(crate) fn is_plausible(
    encoding: Encoding,
    stored_len_bytes: u32,
    chunk_len_bytes: u32,
) -> bool {
    chunk_len_bytes > 0
        && chunk_len_bytes <= CHUNK_LEN_MAX_BYTES
        && stored_len_bytes > 0
        && stored_len_bytes <= STORED_LEN_MAX_BYTES
        && (encoding != Encoding::Raw || stored_len_bytes == chunk_len_bytes)
}

/// Decodes a stored form into `chunk`, which has the chunk's length, and checks its name.
pub(crate) fn decode(
    encoding: Encoding,
    stored: &[u8],
    id: ChunkId,
    chunk: &mut [u8],
) -> Result<(), Corruption> {
    thread_local! {
        // A decompressor holds 160 KiB of tables; a new one for each 4 KiB chunk costs more than
        // the decoding.
        static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
            const { RefCell::new(None) };
    }
    let len = match encoding {
        Encoding::Raw if stored.len() == chunk.len() => {
            chunk.copy_from_slice(stored);
            Some(chunk.len())
        }
        Encoding::Raw => None,
        Encoding::Lz4 => lz4_flex::block::decompress_into(stored, chunk).ok(),
        Encoding::Zstd => ZSTD.with_borrow_mut(|zstd| {
            if zstd.is_none() {
                *zstd = zstd::bulk::Decompressor::new().ok();
            }
            zstd.as_mut().and_then(|zstd| zstd.decompress_to_buffer(stored, chunk).ok())
        }),
    };
    if len != Some(chunk.len()) {
        return Err(Corruption::Undecodable);
    }
    check(id, chunk)
}

/// Checks that bytes are the chunk of this name.
pub(crate) fn check(id: ChunkId, chunk: &[u8]) -> Result<(), Corruption> {
    let found = ChunkId::of(chunk);
    if found == id { Ok(()) } else { Err(Corruption::Hash { found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shrinks_is_compressed_and_what_does_not_stays_raw() {
        let text = b"the same words again and again; ".repeat(100);
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            state.to_le_bytes()[7]
        })
        .take(4096)
        .collect();
        for (compression, expected) in [
            (Compression::Off, Encoding::Raw),
            (Compression::Lz4, Encoding::Lz4),
            (Compression::Zstd, Encoding::Zstd),
        ] {
            let mut encoder = Encoder::new(compression).unwrap();
            for (chunk, expected) in [(&text, expected), (&noise, Encoding::Raw)] {
                let (encoding, stored) = encoder.encode(chunk);
                assert_eq!(encoding, expected);
                let mut back = vec![0; chunk.len()];
                decode(encoding, stored, ChunkId::of(chunk), &mut back).unwrap();
                assert_eq!(&back, chunk);
            }
        }
    }

    #[test]
    fn a_stored_form_of_the_wrong_length_or_content_is_refused() {
        let chunk = vec![7; 1000];
        let mut encoder = Encoder::new(Compression::Zstd).unwrap();
        let (encoding, stored) = encoder.encode(&chunk);
        let id = ChunkId::of(&chunk);
        for len in [999, 1001] {
            assert!(decode(encoding, stored, id, &mut vec![0; len]).is_err());
        }
        let mut back = vec![0; 1000];
        assert!(decode(encoding, &stored[1..], id, &mut back).is_err());
        assert!(decode(encoding, stored, ChunkId::of(b"other"), &mut back).is_err());
    }
}
