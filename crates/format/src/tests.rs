use super::*;

fn extent(file_offset_bytes: u64, len_bytes: u32) -> Extent {
    Extent {
        file_offset_bytes,
        len_bytes,
        chunk_offset_bytes: 3,
        chunk_len_bytes: len_bytes + 5,
        chunk: ChunkId::of(b"chunk"),
        location: Location {
            segment: SegmentId(7),
            offset_bytes: 1 << 40,
            stored_len_bytes: 99,
            encoding: Encoding::Zstd,
        },
    }
}

#[test]
fn page_round_trips_and_its_name_detects_every_flipped_bit() {
    let extents = [extent(0, 10), extent(10, 20), extent(4096, 1)];
    let (id, bytes) = encode_page(&extents);
    assert_eq!(decode_page(id, &bytes).unwrap(), extents);
    for index in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[index / 8] ^= 1 << (index % 8);
        assert!(decode_page(id, &damaged).is_err());
    }
}

#[test]
fn page_with_a_true_name_but_invalid_extents_is_refused() {
    let (_, mut bytes) = encode_page(&[extent(0, 10), extent(10, 20)]);
    // The second run's file offset, moved into the first.
    bytes[8 + 73] = 9;
    assert!(matches!(decode_page(PageId::of(&bytes), &bytes), Err(DecodeError::Invalid { .. })));
}

#[test]
fn table_round_trips_and_refuses_damage_and_truncation() {
    let table = SegmentTable {
        segment: SegmentId(3),
        kind: SegmentKind::Packed,
        len_bytes: 100,
        entries: vec![TableEntry {
            chunk: ChunkId::of(b"x"),
            offset_bytes: 10,
            stored_len_bytes: 90,
            chunk_len_bytes: 400,
            encoding: Encoding::Lz4,
        }],
    };
    let bytes = table.encode();
    assert_eq!(SegmentTable::decode(&bytes).unwrap(), table);
    for len in 0..bytes.len() {
        assert!(SegmentTable::decode(&bytes[..len]).is_err());
    }
    for index in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[index] ^= 0x10;
        assert!(SegmentTable::decode(&damaged).is_err());
    }
}

#[test]
fn clip_keeps_the_chunk_and_moves_inside_it() {
    let clipped = extent(100, 50).clip(110, 120).unwrap();
    assert_eq!((clipped.file_offset_bytes, clipped.len_bytes), (110, 10));
    assert_eq!(clipped.chunk_offset_bytes, 13);
    assert_eq!(extent(100, 50).clip(0, 100), None);
    assert_eq!(extent(100, 50).clip(150, 200), None);
}

#[test]
fn chunking_parses_what_it_prints_and_refuses_nonsense() {
    for text in ["fixed:4194304", "cdc:1048576", "cdc:65536"] {
        assert_eq!(text.parse::<Chunking>().unwrap().to_string(), text);
    }
    assert_eq!("cdc:1M".parse::<Chunking>().unwrap(), Chunking::default());
    for text in
        ["", "cdc", "cdc:", "cdc:3M", "fixed:1", "fixed:1G", "cdc:99999999999999999999", "x:1M"]
    {
        assert!(text.parse::<Chunking>().is_err(), "{text}");
    }
}
