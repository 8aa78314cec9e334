use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;

use librorum_format::{Compression, ErrorKind, SegmentKind};

use super::*;
use crate::StoreError;

#[test]
fn sealing_moves_no_byte_and_every_byte_reads_back() {
    let (_dir, store) = empty_store();
    let bytes = noise(1, 3_000_001);
    let (segment, file) = stage(&store, &bytes);
    rustix::fs::fsync(&file).unwrap();
    let chunks = chunk(&store, &file, bytes.len() as u64);
    let before = file.metadata().unwrap();
    let written_before = bytes_written();
    store.seal_verbatim(segment, &file, bytes.len() as u64, &chunks).unwrap();
    let written = bytes_written() - written_before;
    let after = store.open_bytes(segment, false).unwrap().metadata().unwrap();

    assert_eq!(before.ino(), after.ino());
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    assert_eq!((before.len(), before.blocks()), (after.len(), after.blocks()));
    // The chunk table and nothing else: 61 bytes and 49 for each chunk.
    assert!(written < 200 + 49 * chunks.len() as u64 + 200, "{written} bytes written");

    let table = store.load_table(segment).unwrap().unwrap();
    assert_eq!((table.kind, table.len_bytes), (SegmentKind::Verbatim, bytes.len() as u64));
    let read: Vec<u8> =
        extents(segment, &chunks).iter().flat_map(|extent| read(&store, extent).unwrap()).collect();
    assert_eq!(read, bytes);
}

/// What this thread has handed to `write` so far. Other tests write at the same time, so not the
/// whole process.
fn bytes_written() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    line.parse().unwrap()
}

#[test]
fn packed_chunks_read_back_under_every_compression() {
    for compression in [Compression::Off, Compression::Lz4, Compression::Zstd] {
        let dir = tempfile::tempdir().unwrap();
        Store::create(dir.path()).unwrap();
        let store = Store::open(dir.path(), &StoreOptions { compression, ..options() }).unwrap();
        let text = b"a line that compresses very well\n".repeat(900);
        let chunks = [text.clone(), noise(1, 60_000), noise(2, 1), text.clone(), noise(3, 4096)];
        let slices: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let (segment, places) = store.write_packed(&slices).unwrap();

        let table = store.load_table(segment).unwrap().unwrap();
        assert_eq!((table.kind, table.entries.len()), (SegmentKind::Packed, 4));
        assert_eq!(table.len_bytes, store.bytes_len(segment).unwrap());
        assert_eq!(places[0], places[3], "equal chunks are stored once");
        let stored = places[0].1.stored_len_bytes as usize;
        assert_eq!(stored < text.len() / 2, compression != Compression::Off);
        assert_eq!(places[1].1.encoding, Encoding::Raw, "noise does not shrink");
        for (bytes, (chunk, location)) in chunks.iter().zip(places) {
            let extent = packed_extent(bytes, chunk, location);
            for _ in 0..2 {
                assert_eq!(&read(&store, &extent).unwrap(), bytes);
            }
            let mut part = vec![0; bytes.len() / 3];
            store.read_extent(&extent, bytes.len() as u64 / 2, &mut part).unwrap();
            assert_eq!(part, bytes[bytes.len() / 2..][..bytes.len() / 3]);
        }
    }
}

#[test]
fn relink_gives_the_same_file_a_new_id_and_keeps_the_old_until_removed() {
    let (_dir, store) = empty_store();
    let bytes = noise(1, 100_000);
    let (old, chunks) = seal(&store, &bytes);
    let new = store.relink(old).unwrap();
    assert_ne!(new, old);
    assert_eq!(store.bytes_stat(old).unwrap().st_ino, store.bytes_stat(new).unwrap().st_ino);
    assert!(store.load_table(new).unwrap().is_none(), "a staging file again");
    assert_eq!(
        read(&store, &extents(old, &chunks)[0]).unwrap(),
        bytes[..chunks[0].len_bytes as usize]
    );

    store.remove(old).unwrap();
    let mut back = vec![0; bytes.len()];
    store.open_bytes(new, true).unwrap().read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, bytes);
    let error = store.open_bytes(old, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = read(&store, &extents(old, &chunks)[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "a chunk that something still names is lost");
    assert_eq!(store.find(&[chunks[0].id]).unwrap(), [None]);
}

#[test]
fn relink_of_a_missing_segment_leaves_nothing() {
    let (_dir, store) = empty_store();
    let error = store.relink(SegmentId(999)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(store.segments().count(), 0);
}

#[test]
fn punching_frees_blocks_and_leaves_other_chunks_alone() {
    let (_dir, store) = empty_store();
    let bytes = noise(1, 1_000_001);
    let (segment, file) = stage(&store, &bytes);
    let chunks = chunk(&store, &file, bytes.len() as u64);
    let end = |chunk: &Chunk| chunk.file_offset_bytes + u64::from(chunk.len_bytes);
    // Every third chunk is a duplicate, and so is the last, which ends inside a block.
    let is_kept = |index: usize| !index.is_multiple_of(3) && index != chunks.len() - 1;
    let kept: Vec<Chunk> = (0..chunks.len()).filter(|i| is_kept(*i)).map(|i| chunks[i]).collect();
    let ranges: Vec<(u64, u64)> = (0..chunks.len())
        .filter(|i| !is_kept(*i))
        .map(|i| (chunks[i].file_offset_bytes, end(&chunks[i])))
        .collect();
    store.seal_verbatim(segment, &file, bytes.len() as u64, &kept).unwrap();

    let listed = (kept[0].file_offset_bytes, end(&kept[0]));
    let error = store.punch(segment, &[ranges[0], listed]).unwrap_err();
    assert!(matches!(error, StoreError::PunchListed { .. }));
    let before = store.bytes_stat(segment).unwrap();
    let freed = store.punch(segment, &ranges).unwrap();
    let after = store.bytes_stat(segment).unwrap();
    let wanted: u64 = ranges.iter().map(|(start, end)| end - start).sum();
    assert!(freed > wanted / 2, "{freed} of {wanted}");
    assert_eq!(freed, (before.st_blocks - after.st_blocks).cast_unsigned() * 512);
    assert_eq!(before.st_size, after.st_size);
    // Also the block that the file ends in: no data is left behind the last kept chunk's.
    let behind =
        end(&kept[kept.len() - 1]).next_multiple_of(u64::try_from(after.st_blksize).unwrap());
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(behind));
    assert_eq!(data, Err(rustix::io::Errno::NXIO));

    for (extent, chunk) in extents(segment, &kept).iter().zip(&kept) {
        let from = usize::try_from(chunk.file_offset_bytes).unwrap();
        assert_eq!(read(&store, extent).unwrap(), bytes[from..][..chunk.len_bytes as usize]);
    }
    assert!(store.scrub_segment(segment, &mut |_| {}).unwrap().is_empty());
}

#[test]
fn punching_a_staging_file_is_refused() {
    let (_dir, store) = empty_store();
    let (segment, _file) = stage(&store, &noise(1, 10_000));
    let error = store.punch(segment, &[(0, 4096)]).unwrap_err();
    assert!(matches!(error, StoreError::NotSealed { .. }));
}

#[test]
fn a_seal_taken_back_and_done_again_describes_the_new_bytes() {
    // A metadata transaction may fail after the table was written; the file is then written to
    // again under the same id, and nothing remembered about the first seal may survive.
    let (_dir, store) = empty_store();
    let (first, second) = (noise(1, 300_000), noise(2, 200_000));
    let (segment, file) = stage(&store, &first);
    let chunks = chunk(&store, &file, 300_000);
    store.seal_verbatim(segment, &file, 300_000, &chunks).unwrap();
    for extent in extents(segment, &chunks) {
        read(&store, &extent).unwrap();
    }
    store.unseal(segment).unwrap();
    assert!(store.load_table(segment).unwrap().is_none());
    file.set_len(0).unwrap();
    file.write_all_at(&second, 0).unwrap();
    let error = read(&store, &extents(segment, &chunks)[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);

    let chunks = chunk(&store, &file, 200_000);
    store.seal_verbatim(segment, &file, 200_000, &chunks).unwrap();
    assert_eq!(store.load_table(segment).unwrap().unwrap().len_bytes, 200_000);
    let read: Vec<u8> =
        extents(segment, &chunks).iter().flat_map(|extent| read(&store, extent).unwrap()).collect();
    assert_eq!(read, second);
}

#[test]
#[should_panic(expected = "unsound chunk table")]
fn overlapping_chunks_are_never_written() {
    let (_dir, store) = empty_store();
    let (segment, file) = stage(&store, &noise(1, 100_000));
    let mut chunks = chunk(&store, &file, 100_000);
    chunks[1].file_offset_bytes -= 1;
    let _unreachable = store.seal_verbatim(segment, &file, 100_000, &chunks);
}

#[test]
fn the_walk_finds_every_segment_once_and_usage_counts_them() {
    let (dir, store) = empty_store();
    let (sealed, _) = seal(&store, &noise(1, 100_000));
    let staged: Vec<SegmentId> =
        store.create_staging(200).unwrap().into_iter().map(|(id, _)| id).collect();
    let (packed, _) = store.write_packed(&[b"packed"]).unwrap();
    // What a crash in the middle of a removal leaves.
    let (half, _) = seal(&store, &noise(2, 100_000));
    store.layout.remove(half, crate::layout::Part::Bytes).unwrap();
    std::fs::write(dir.path().join("data/00/README"), "a foreign file").unwrap();

    let found: HashMap<SegmentId, (bool, bool)> =
        store.segments().map(|item| item.map(|(id, b, t)| (id, (b, t))).unwrap()).collect();
    assert_eq!(store.segments().count(), found.len());
    assert_eq!(found.len(), 203);
    assert!(staged.iter().all(|id| found[id] == (true, false)));
    assert_eq!((found[&sealed], found[&packed]), ((true, true), (true, true)));
    assert_eq!(found[&half], (false, true));

    let usage = store.usage().unwrap();
    assert_eq!(usage.segment_count, 203);
    assert!(usage.stored_bytes >= 100_000 && usage.stored_bytes < 200_000, "{usage:?}");
    assert!(usage.table_bytes > 0 && usage.index_bytes > 0);
    for (segment, _) in found {
        store.remove(segment).unwrap();
        store.remove(segment).unwrap();
    }
    assert_eq!(store.segments().count(), 0);
}

#[test]
fn files_from_outside_become_staging_files_without_a_copy() {
    use std::io::Write as _;
    let (dir, store) = empty_store();
    let mut file = store.create_unnamed().unwrap().expect("the disk has files without a name");
    file.write_all(b"unnamed").unwrap();
    let ino = file.metadata().unwrap().ino();
    let segment = store.adopt(&file).unwrap();
    let adopted = store.open_bytes(segment, true).unwrap().metadata().unwrap();
    assert_eq!((adopted.ino(), adopted.len(), adopted.mode() & 0o7777), (ino, 7, 0o600));
    // One that lost its name cannot have another.
    store.remove(segment).unwrap();
    assert!(store.adopt(&file).is_err());

    let path = dir.path().join("upload");
    std::fs::write(&path, b"named").unwrap();
    let ino = path.metadata().unwrap().ino();
    let segment = store.take_in(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(store.open_bytes(segment, false).unwrap().metadata().unwrap().ino(), ino);
    store.put_out(segment, &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"named");
    assert!(store.open_bytes(segment, false).is_err());
}
