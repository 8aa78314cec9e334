//! Tests of the store as a whole, on real files.

mod chunking;
mod full_disk;
mod index;
mod reading;
mod restart;
mod scrubbing;
mod segments;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use librorum_format::{ChunkId, Encoding, Extent, Location, SegmentId};
use rustix::fs::Advice;
use tempfile::TempDir;

use crate::{Chunk, Store, StoreOptions};

/// Small chunks, so that small files have many.
fn options() -> StoreOptions {
    StoreOptions { chunking: "cdc:16K".parse().unwrap(), ..StoreOptions::default() }
}

fn empty_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    Store::create(dir.path()).unwrap();
    let store = Store::open(dir.path(), &options()).unwrap();
    (dir, store)
}

/// Bytes without a pattern, different for each seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A staging file with these bytes.
fn stage(store: &Store, bytes: &[u8]) -> (SegmentId, File) {
    let (segment, mut file) = store.create_staging(1).unwrap().remove(0);
    file.write_all(bytes).unwrap();
    (segment, file)
}

fn chunk(store: &Store, file: &File, len: u64) -> Vec<Chunk> {
    store.chunk_file(file, len, &|| false).unwrap().unwrap()
}

/// A sealed and indexed verbatim segment with these bytes.
fn seal(store: &Store, bytes: &[u8]) -> (SegmentId, Vec<Chunk>) {
    let (segment, file) = stage(store, bytes);
    let chunks = chunk(store, &file, bytes.len() as u64);
    store.seal_verbatim(segment, &file, bytes.len() as u64, &chunks).unwrap();
    store.index_segment(segment).unwrap();
    (segment, chunks)
}

fn raw_location(segment: SegmentId, chunk: &Chunk) -> Location {
    Location {
        segment,
        offset_bytes: chunk.file_offset_bytes,
        stored_len_bytes: chunk.len_bytes,
        encoding: Encoding::Raw,
    }
}

fn extents(segment: SegmentId, chunks: &[Chunk]) -> Vec<Extent> {
    let extent = |chunk: &Chunk| Extent {
        file_offset_bytes: chunk.file_offset_bytes,
        len_bytes: chunk.len_bytes,
        chunk_offset_bytes: 0,
        chunk_len_bytes: chunk.len_bytes,
        chunk: chunk.id,
        location: raw_location(segment, chunk),
    };
    chunks.iter().map(extent).collect()
}

fn packed_extent(bytes: &[u8], chunk: ChunkId, location: Location) -> Extent {
    let len_bytes = u32::try_from(bytes.len()).unwrap();
    Extent {
        file_offset_bytes: 0,
        len_bytes,
        chunk_offset_bytes: 0,
        chunk_len_bytes: len_bytes,
        chunk,
        location,
    }
}

fn read(store: &Store, extent: &Extent) -> Result<Vec<u8>, crate::StoreError> {
    let mut buf = vec![0; extent.len_bytes as usize];
    store.read_extent(extent, extent.file_offset_bytes, &mut buf)?;
    Ok(buf)
}

/// Flips one bit of a segment, as if the medium had done it: the kernel's copy is gone.
fn flip(store: &Store, segment: SegmentId, offset: u64) {
    let file = store.open_bytes(segment, true).unwrap();
    flip_in_memory(&file, offset);
    forget_page_cache(&file);
}

fn flip_in_memory(file: &File, offset: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

fn forget_page_cache(file: &File) {
    rustix::fs::fsync(file).unwrap();
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
}
