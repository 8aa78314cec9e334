use super::*;
use crate::layout::Part;
use crate::{Corruption, Damage};

fn scrub(store: &Store, segment: SegmentId) -> Vec<Damage> {
    let mut last = 0;
    store
        .scrub_segment(segment, &mut |bytes| {
            assert!(bytes > last, "progress moves on");
            last = bytes;
        })
        .unwrap()
}

#[test]
fn scrub_finds_exactly_the_damaged_chunks() {
    let (_dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 500_000));
    assert!(scrub(&store, segment).is_empty());
    flip(&store, segment, chunks[2].file_offset_bytes);
    flip(&store, segment, chunks[5].file_offset_bytes + 1000);
    let found: Vec<ChunkId> = scrub(&store, segment)
        .into_iter()
        .map(|damage| {
            let Damage::Chunk { chunk, reason: Corruption::Hash { .. }, .. } = damage else {
                panic!("{damage:?}")
            };
            chunk
        })
        .collect();
    assert_eq!(found, [chunks[2].id, chunks[5].id]);
}

#[test]
fn scrub_sees_the_medium_although_the_chunk_was_verified() {
    let (_dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 100_000));
    read(&store, &extents(segment, &chunks)[0]).unwrap();
    flip(&store, segment, 10);
    assert_eq!(scrub(&store, segment).len(), 1);
    assert!(read(&store, &extents(segment, &chunks)[0]).is_err());
}

#[test]
fn scrub_reports_damaged_packed_chunks() {
    let (_dir, store) = empty_store();
    let (segment, places) = store.write_packed(&[&b"text ".repeat(2000), &noise(1, 999)]).unwrap();
    assert!(scrub(&store, segment).is_empty());
    for (_, location) in &places {
        flip(&store, segment, location.offset_bytes + 9);
    }
    assert_eq!(scrub(&store, segment).len(), 2);
}

#[test]
fn scrub_reports_what_is_missing_short_or_damaged() {
    let (dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 100_000));
    let file = store.open_bytes(segment, true).unwrap();
    file.set_len(50_000).unwrap();
    let damage = scrub(&store, segment);
    assert!(matches!(
        damage[0],
        Damage::Short { table_len_bytes: 100_000, file_len_bytes: 50_000 }
    ));
    let lost = chunks.iter().filter(|c| c.file_offset_bytes + u64::from(c.len_bytes) > 50_000);
    assert_eq!(damage.len(), 1 + lost.count());

    let path = dir.path().join(format!("data/{:02x}/{segment}.table", segment.0 >> 6 & 0xff));
    let intact = std::fs::read(&path).unwrap();
    let mut damaged = intact.clone();
    damaged[40] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert!(matches!(scrub(&store, segment)[..], [Damage::Table(_)]));
    // An intact table under another segment's name.
    let (other, _) = seal(&store, b"other");
    let other_path = dir.path().join(format!("data/{:02x}/{other}.table", other.0 >> 6 & 0xff));
    std::fs::write(&other_path, &intact).unwrap();
    assert!(matches!(scrub(&store, other)[..], [Damage::Table(_)]));

    std::fs::write(&path, &intact).unwrap();
    store.layout.remove(segment, Part::Bytes).unwrap();
    assert!(matches!(scrub(&store, segment)[..], [Damage::BytesMissing]));
    store.remove(segment).unwrap();
    assert!(matches!(scrub(&store, segment)[..], [Damage::TableMissing]));
}
