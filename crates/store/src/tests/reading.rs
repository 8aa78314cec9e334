use std::sync::atomic::Ordering;

use librorum_format::ErrorKind;
use proptest::prelude::*;

use super::*;
use crate::{Corruption, StoreError, VerifyPolicy};

fn always() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    Store::create(dir.path()).unwrap();
    let options = StoreOptions { verify: VerifyPolicy::Always, ..options() };
    let store = Store::open(dir.path(), &options).unwrap();
    (dir, store)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn every_part_of_every_extent_is_what_was_written(
        seed in any::<u64>(),
        parts in proptest::collection::vec((0..300_000_u64, any::<usize>(), any::<bool>()), 1..40),
        policy in prop_oneof![Just(VerifyPolicy::Always), Just(VerifyPolicy::PageCache)],
        nowait_works in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        Store::create(dir.path()).unwrap();
        let store = Store::open(dir.path(), &StoreOptions { verify: policy, ..options() }).unwrap();
        store.nowait_works.store(nowait_works, Ordering::Relaxed);
        let bytes = noise(seed, 300_000);
        let (segment, chunks) = seal(&store, &bytes);
        let file = store.open_bytes(segment, false).unwrap();
        for (at, some, forget) in parts {
            let extents = extents(segment, &chunks);
            let extent = extents.iter().find(|extent| extent.file_end_bytes() > at).unwrap();
            // A run that is only a part of its chunk, as an overlay leaves it.
            let clipped = extent.clip(at, extent.file_end_bytes()).unwrap();
            let len = 1 + some % clipped.len_bytes as usize;
            if forget {
                forget_page_cache(&file);
            }
            let mut buf = vec![0; len];
            let from = usize::try_from(at).unwrap();
            if store.read_extent_cached(&clipped, at, &mut buf).unwrap() {
                prop_assert_eq!(&buf, &bytes[from..from + len]);
            }
            store.read_extent(&clipped, at, &mut buf).unwrap();
            prop_assert_eq!(&buf, &bytes[from..from + len]);
        }
    }
}

#[test]
fn a_flipped_bit_is_found_when_the_bytes_come_back_from_the_medium() {
    let (_dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 500_000));
    let extents = extents(segment, &chunks);
    for extent in &extents {
        read(&store, extent).unwrap();
    }
    let (victim, offset) = (&extents[3], extents[3].file_offset_bytes + 77);
    flip(&store, segment, offset);
    // Any part of the chunk fails, also one that the bit is not in.
    let mut byte = [0];
    let error = store.read_extent(victim, victim.file_offset_bytes, &mut byte).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    let StoreError::Corrupt { chunk, segment: at, offset_bytes, reason } = error else {
        panic!("{error:?}")
    };
    assert_eq!((chunk, at, offset_bytes), (victim.chunk, segment, victim.file_offset_bytes));
    assert!(matches!(reason, Corruption::Hash { .. }));
    assert!(
        !store.read_extent_cached(victim, victim.file_offset_bytes, &mut byte).unwrap_or(false)
    );
    let location = victim.location;
    assert!(store.verify_stored(victim.chunk, location, victim.chunk_len_bytes).is_err());
    for other in extents.iter().filter(|extent| extent.chunk != victim.chunk) {
        read(&store, other).unwrap();
    }
    flip(&store, segment, offset);
    read(&store, victim).unwrap();
    store.verify_stored(victim.chunk, location, victim.chunk_len_bytes).unwrap();
}

#[test]
fn the_strict_policy_finds_what_the_page_cache_hides() {
    for (policy, is_found) in [(VerifyPolicy::Always, true), (VerifyPolicy::PageCache, false)] {
        let (_dir, store) = if is_found { always() } else { empty_store() };
        assert_eq!(store.options().verify, policy);
        let (segment, chunks) = seal(&store, &noise(1, 100_000));
        let extent = &extents(segment, &chunks)[0];
        read(&store, extent).unwrap();
        // Nobody but a bug or an intruder writes to a sealed segment's page cache, and hashing it
        // on each read is what this policy is not for.
        flip_in_memory(&store.open_bytes(segment, true).unwrap(), 5);
        assert_eq!(read(&store, extent).is_err(), is_found, "{policy:?}");
    }
}

#[test]
fn a_chunk_that_was_never_verified_is_hashed_even_in_the_page_cache() {
    let (_dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 100_000));
    flip_in_memory(&store.open_bytes(segment, true).unwrap(), 5);
    assert!(read(&store, &extents(segment, &chunks)[0]).is_err());
}

#[test]
fn flipped_bits_in_packed_chunks_are_found() {
    let (_dir, store) = empty_store();
    let chunks = [b"text ".repeat(2000), noise(1, 5000)];
    let (segment, places) =
        store.write_packed(&chunks.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    for (bytes, (chunk, location)) in chunks.iter().zip(places) {
        flip(&store, segment, location.offset_bytes + u64::from(location.stored_len_bytes) / 2);
        let extent = packed_extent(bytes, chunk, location);
        assert_eq!(read(&store, &extent).unwrap_err().kind(), ErrorKind::DataLoss);
        let mut byte = [0];
        assert!(!matches!(store.read_extent_cached(&extent, 0, &mut byte), Ok(true)));
    }
}

#[test]
fn cached_reads_answer_once_the_chunk_is_verified_and_not_before() {
    let (_dir, store) = empty_store();
    let bytes = noise(1, 2_000_000);
    let (segment, file) = stage(&store, &bytes);
    let big = Chunk {
        file_offset_bytes: 0,
        len_bytes: u32::try_from(bytes.len()).unwrap(),
        id: ChunkId::of(&bytes),
    };
    store.seal_verbatim(segment, &file, bytes.len() as u64, &[big]).unwrap();
    let extent = extents(segment, &[big])[0];
    let mut buf = vec![0; 1000];
    assert!(!store.read_extent_cached(&extent, 7, &mut buf).unwrap(), "no file is open");
    store.read_extent(&extent, 0, &mut buf).unwrap();
    assert!(store.read_extent_cached(&extent, 7, &mut buf).unwrap());
    assert_eq!(buf, bytes[7..1007]);
    forget_page_cache(&file);
    assert!(!store.read_extent_cached(&extent, 7, &mut buf).unwrap(), "it left the page cache");
    assert!(!store.read_extent_cached(&extent, 7, &mut buf).unwrap(), "and needs verification");

    let text = b"text ".repeat(2000);
    let (_, places) = store.write_packed(&[&text]).unwrap();
    let extent = packed_extent(&text, places[0].0, places[0].1);
    read(&store, &extent).unwrap();
    assert!(store.read_extent_cached(&extent, 5, &mut buf).unwrap());
    assert_eq!(buf, text[5..1005]);
}

#[test]
fn a_right_place_with_a_wrong_name_is_refused_also_when_verified() {
    let (_dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 100_000));
    let extent = extents(segment, &chunks)[0];
    read(&store, &extent).unwrap();
    let wrong = Extent { chunk: ChunkId::of(b"another"), ..extent };
    assert!(matches!(read(&store, &wrong), Err(StoreError::Corrupt { .. })));
    let short = Extent { chunk_len_bytes: extent.chunk_len_bytes - 1, ..extent };
    assert!(store.verify_stored(short.chunk, short.location, short.chunk_len_bytes).is_err());
}

#[test]
fn a_segment_cut_short_is_data_loss_not_zeros() {
    let (_dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 100_000));
    let file = store.open_bytes(segment, true).unwrap();
    file.set_len(chunks[0].len_bytes.into()).unwrap();
    let extents = extents(segment, &chunks);
    read(&store, &extents[0]).unwrap();
    let error = read(&store, &extents[1]).unwrap_err();
    let StoreError::Corrupt { reason: Corruption::Short { missing_bytes }, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(missing_bytes, chunks[1].len_bytes.into());
}

#[test]
fn many_readers_of_few_chunks_all_get_the_right_bytes() {
    let (_dir, store) = empty_store();
    let bytes = noise(1, 400_000);
    let (segment, chunks) = seal(&store, &bytes);
    let extents = extents(segment, &chunks);
    let file = store.open_bytes(segment, false).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let (store, extents, bytes, file) = (&store, &extents, &bytes, &file);
            scope.spawn(move || {
                for round in 0..200 {
                    let extent = &extents[(round * (thread + 1)) % extents.len()];
                    if round % 17 == thread {
                        forget_page_cache(file);
                    }
                    let from = usize::try_from(extent.file_offset_bytes).unwrap();
                    let expected = &bytes[from..][..extent.len_bytes as usize];
                    assert_eq!(read(store, extent).unwrap(), expected);
                }
            });
        }
    });
}
