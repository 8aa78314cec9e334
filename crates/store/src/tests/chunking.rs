use std::io;

use fastcdc::v2020::FastCDC;
use librorum_format::{ChunkId, Chunking};
use proptest::prelude::*;
use rustix::fs::{FallocateFlags, fallocate};

use super::*;

/// Bytes in which cut points are about as frequent as in real files, and repeats are.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![
        (any::<u64>(), 0..300_000_usize).prop_map(|(seed, len)| noise(seed, len)),
        (any::<u8>(), 0..200_000_usize).prop_map(|(byte, len)| vec![byte; len]),
        (0..4_u64, 1..20_000_usize).prop_map(|(seed, len)| noise(seed, len).repeat(5)),
    ];
    proptest::collection::vec(run, 0..4).prop_map(|runs| runs.concat())
}

fn chunking() -> impl Strategy<Value = Chunking> {
    prop_oneof![Just("cdc:16K"), Just("cdc:64K"), Just("fixed:4K"), Just("fixed:64K")]
        .prop_map(|text| text.parse().unwrap())
}

/// A reader that returns as little as the pattern says, as a network or a signal would.
fn chunk_in_pieces(
    store: &Store,
    bytes: &[u8],
    start: u64,
    pieces: &[usize],
) -> Vec<(u64, u32, ChunkId)> {
    let mut sizes = pieces.iter().copied().cycle();
    let mut read_at = |buf: &mut [u8], offset: u64| -> io::Result<usize> {
        let from = usize::try_from(offset - start).unwrap();
        let len = buf.len().min(bytes.len() - from).min(sizes.next().unwrap());
        buf[..len].copy_from_slice(&bytes[from..from + len]);
        Ok(len)
    };
    let end = start + bytes.len() as u64;
    let chunks = store.chunk_reader(&mut read_at, start, end, &|| false).unwrap().unwrap();
    chunks.into_iter().map(|c| (c.file_offset_bytes, c.len_bytes, c.id)).collect()
}

fn store_with(chunking: Chunking) -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    Store::create(dir.path()).unwrap();
    let store = Store::open(dir.path(), &StoreOptions { chunking, ..options() }).unwrap();
    (dir, store)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn chunks_depend_on_the_bytes_alone_and_keep_their_bounds(
        bytes in bytes(),
        chunking in chunking(),
        pieces in proptest::collection::vec(1..70_000_usize, 1..8),
        start_pages in 0..100_u64,
    ) {
        let (_dir, store) = store_with(chunking);
        let start = start_pages * 4096;
        let whole = chunk_in_pieces(&store, &bytes, start, &[usize::MAX]);
        prop_assert_eq!(&whole, &chunk_in_pieces(&store, &bytes, start, &pieces));

        let (min, _, max) = chunking.bounds_bytes();
        let mut at = start;
        for (index, &(offset, len, id)) in whole.iter().enumerate() {
            prop_assert_eq!(offset, at);
            prop_assert!(len > 0 && len <= max);
            let is_edge = index == whole.len() - 1
                || (index == 0 && matches!(chunking, Chunking::Fixed { .. }));
            prop_assert!(len >= min || is_edge);
            let from = usize::try_from(offset - start).unwrap();
            prop_assert_eq!(id, ChunkId::of(&bytes[from..from + len as usize]));
            at += u64::from(len);
        }
        prop_assert_eq!(at, start + bytes.len() as u64);
    }

    #[test]
    fn cut_points_are_those_of_the_fastcdc_crate(bytes in bytes()) {
        let (_dir, store) = store_with("cdc:16K".parse().unwrap());
        let ours = chunk_in_pieces(&store, &bytes, 0, &[usize::MAX]);
        let theirs: Vec<(u64, u32)> = FastCDC::new(&bytes, 4 << 10, 16 << 10, 64 << 10)
            .map(|chunk| (chunk.offset as u64, u32::try_from(chunk.length).unwrap()))
            .collect();
        let ours: Vec<(u64, u32)> = ours.into_iter().map(|(offset, len, _)| (offset, len)).collect();
        prop_assert_eq!(ours, theirs);
    }
}

#[test]
fn default_cut_points_are_those_of_the_fastcdc_crate() {
    let (_dir, store) = store_with(Chunking::default());
    let bytes = noise(1, 20 << 20);
    let ours = chunk_in_pieces(&store, &bytes, 0, &[1_000_003]);
    let theirs: Vec<u64> = FastCDC::new(&bytes, 256 << 10, 1 << 20, 4 << 20)
        .map(|chunk| chunk.offset as u64)
        .collect();
    assert!(theirs.len() > 10);
    assert_eq!(ours.into_iter().map(|(offset, _, _)| offset).collect::<Vec<_>>(), theirs);
}

#[test]
fn shifted_bytes_share_all_but_the_first_chunks() {
    let (_dir, store) = store_with("cdc:16K".parse().unwrap());
    let bytes = noise(2, 2 << 20);
    let shifted = [b"a few bytes in front".as_slice(), &bytes].concat();
    let ids = |bytes: &[u8]| -> Vec<ChunkId> {
        chunk_in_pieces(&store, bytes, 0, &[usize::MAX]).into_iter().map(|c| c.2).collect()
    };
    let (plain, shifted) = (ids(&bytes), ids(&shifted));
    let shared = plain.iter().filter(|id| shifted.contains(id)).count();
    assert!(shared + 2 >= plain.len(), "{shared} of {}", plain.len());
}

#[test]
fn holes_are_gaps_and_end_a_chunk() {
    let (_dir, store) = empty_store();
    let (_, file) = store.create_staging(1).unwrap().remove(0);
    let (first, second) = (noise(1, 200_000), noise(2, 100_000));
    file.write_all_at(&first, 0).unwrap();
    file.write_all_at(&second, 1 << 20).unwrap();
    file.set_len(4 << 20).unwrap();
    let chunks = chunk(&store, &file, 4 << 20);

    // The file system rounds data up to its blocks; what it adds is zeros.
    let data_end = 200_000_u64.next_multiple_of(4096);
    let mut padded = first.clone();
    padded.resize(usize::try_from(data_end).unwrap(), 0);
    let expected = chunk_in_pieces(&store, &padded, 0, &[usize::MAX]);
    let found: Vec<_> = chunks
        .iter()
        .filter(|chunk| chunk.file_offset_bytes < data_end)
        .map(|c| (c.file_offset_bytes, c.len_bytes, c.id))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(chunks[found.len()].file_offset_bytes, 1 << 20);
    let last = chunks.last().unwrap();
    assert!(last.file_offset_bytes + u64::from(last.len_bytes) <= (1 << 20) + 102_400);
}

#[test]
fn empty_files_all_holes_and_unwritten_space_have_no_chunks() {
    let (_dir, store) = empty_store();
    let (_, file) = store.create_staging(1).unwrap().remove(0);
    assert!(chunk(&store, &file, 0).is_empty());
    file.set_len(1 << 30).unwrap();
    assert!(chunk(&store, &file, 1 << 30).is_empty());
    // Longer than the file: a truncation that the caller has not seen yet.
    assert!(chunk(&store, &file, 1 << 31).is_empty());
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert!(chunk(&store, &file, 1 << 20).is_empty());
}

#[test]
fn fixed_chunks_of_a_sparse_file_are_those_of_a_full_one() {
    let (_dir, store) = store_with("fixed:64K".parse().unwrap());
    let bytes = noise(3, 1 << 20);
    let (_, full) = stage(&store, &bytes);
    let full = chunk(&store, &full, 1 << 20);
    let (_, sparse) = store.create_staging(1).unwrap().remove(0);
    // From inside a chunk on: the rest of that chunk differs, all others are shared.
    sparse.write_all_at(&bytes[300 << 10..], 300 << 10).unwrap();
    let sparse = chunk(&store, &sparse, 1 << 20);
    assert_eq!(sparse[0].file_offset_bytes, 300 << 10);
    assert_eq!(sparse[1..], full[5..]);
}

#[test]
fn cancelling_stops_the_pass() {
    let (_dir, store) = empty_store();
    let (_, file) = stage(&store, &noise(4, 3 << 20));
    let asked = std::cell::Cell::new(0);
    let cancelled = || {
        asked.set(asked.get() + 1);
        asked.get() > 3
    };
    assert_eq!(store.chunk_file(&file, 3 << 20, &cancelled).unwrap(), None);
    assert_eq!(asked.get(), 4);
}

#[test]
fn a_reader_that_fails_fails_the_pass_with_the_place() {
    let (_dir, store) = empty_store();
    let mut read_at = |buf: &mut [u8], offset: u64| match offset {
        0 => Ok(buf.len().min(1000)),
        _ => Err(io::Error::other("broken overlay")),
    };
    let error = store.chunk_reader(&mut read_at, 0, 1 << 20, &|| false).unwrap_err();
    assert!(matches!(error, crate::StoreError::Source { offset_bytes: 1000, .. }), "{error:?}");
}
