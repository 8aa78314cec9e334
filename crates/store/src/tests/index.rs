use super::*;
use crate::StoreError;

#[test]
fn find_returns_what_is_stored_and_nothing_else() {
    let (_dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 300_000));
    let unknown = ChunkId::of(b"never stored");
    let ids: Vec<ChunkId> = chunks.iter().map(|c| c.id).chain([unknown]).collect();
    let found = store.find(&ids).unwrap();
    for (chunk, found) in chunks.iter().zip(&found) {
        assert_eq!(*found, Some((raw_location(segment, chunk), chunk.len_bytes)));
    }
    assert_eq!(found[chunks.len()], None);
}

#[test]
fn find_ignores_entries_that_no_table_confirms() {
    let (_dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 300_000));
    let right = raw_location(segment, &chunks[0]);
    let wrong = [
        (Location { offset_bytes: 1, ..right }, chunks[0].len_bytes),
        (Location { encoding: Encoding::Zstd, ..right }, chunks[0].len_bytes),
        (Location { stored_len_bytes: 1, ..right }, chunks[0].len_bytes),
        (right, chunks[0].len_bytes + 1),
        (Location { segment: SegmentId(12345), ..right }, chunks[0].len_bytes),
        (raw_location(segment, &chunks[1]), chunks[1].len_bytes),
    ];
    for (location, len) in wrong {
        store.index_chunks(&[(chunks[0].id, location, len)]).unwrap();
        assert_eq!(store.find(&[chunks[0].id]).unwrap(), [None], "{location:?}");
    }
    store.index_chunks(&[(chunks[0].id, right, chunks[0].len_bytes)]).unwrap();
    assert_eq!(store.find(&[chunks[0].id]).unwrap(), [Some((right, chunks[0].len_bytes))]);

    // A staging file has no table, whatever the index says.
    let (staged, _file) = stage(&store, &noise(1, 300_000));
    let location = Location { segment: staged, ..right };
    store.index_chunks(&[(chunks[0].id, location, chunks[0].len_bytes)]).unwrap();
    assert_eq!(store.find(&[chunks[0].id]).unwrap(), [None]);
    assert!(matches!(store.index_segment(staged), Err(StoreError::NotSealed { .. })));
}

#[test]
fn removal_takes_its_own_entries_and_leaves_newer_ones() {
    let (_dir, store) = empty_store();
    let bytes = noise(1, 300_000);
    let (first, chunks) = seal(&store, &bytes);
    let shared = &bytes[..chunks[0].len_bytes as usize];
    let (second, _) = seal(&store, shared);
    store.remove(first).unwrap();
    let found = store.find(&[chunks[0].id, chunks[1].id]).unwrap();
    assert_eq!(found[0].unwrap().0.segment, second);
    assert_eq!(found[1], None);
    assert_eq!(store.index.get(chunks[1].id), None, "not only ignored: gone");
    store.remove(second).unwrap();
    assert_eq!(store.find(&[chunks[0].id]).unwrap(), [None]);
}

#[test]
fn files_deleted_behind_our_back_are_not_found() {
    let (dir, store) = empty_store();
    let (segment, chunks) = seal(&store, &noise(1, 300_000));
    drop(store);
    let folder = dir.path().join(format!("data/{:02x}", segment.0 >> 6 & 0xff));
    std::fs::remove_file(folder.join(format!("{segment}.bytes"))).unwrap();
    let store = Store::open(dir.path(), &options()).unwrap();
    assert_eq!(store.find(&[chunks[0].id]).unwrap(), [None]);
}

#[test]
fn the_index_survives_reopening() {
    let (dir, store) = empty_store();
    assert!(!store.index_was_lost());
    let (segment, chunks) = seal(&store, &noise(1, 300_000));
    store.sync_index().unwrap();
    drop(store);
    let store = Store::open(dir.path(), &options()).unwrap();
    assert!(!store.index_was_lost());
    let found = store.find(&[chunks[0].id]).unwrap();
    assert_eq!(found, [Some((raw_location(segment, &chunks[0]), chunks[0].len_bytes))]);
}

#[test]
fn a_lost_index_is_noticed_until_a_rebuild_has_ended() {
    let (dir, store) = empty_store();
    let (_, chunks) = seal(&store, &noise(1, 300_000));
    let (_, places) = store.write_packed(&[b"small", b"smaller"]).unwrap();
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();

    let store = Store::open(dir.path(), &options()).unwrap();
    assert!(store.index_was_lost());
    assert_eq!(store.find(&[chunks[0].id]).unwrap(), [None]);
    // A rebuild cut short is not a rebuild.
    let cut_short =
        store.index.rebuild(|| Err::<(), _>(StoreError::NotSealed { segment: SegmentId(1) }));
    assert!(cut_short.is_err());
    drop(store);
    let store = Store::open(dir.path(), &options()).unwrap();
    assert!(store.index_was_lost());

    let mut seen = 0;
    let count = store.rebuild_index(&mut |segments| seen = segments).unwrap();
    assert_eq!((count, seen), (chunks.len() as u64 + 2, 2));
    assert!(!store.index_was_lost());
    let ids: Vec<ChunkId> = chunks.iter().map(|c| c.id).chain(places.iter().map(|p| p.0)).collect();
    assert!(store.find(&ids).unwrap().iter().all(Option::is_some));
    drop(store);
    let store = Store::open(dir.path(), &options()).unwrap();
    assert!(!store.index_was_lost());
    assert!(store.find(&ids).unwrap().iter().all(Option::is_some));

    // Also a rebuild of a good index that is cut short.
    let cut_short =
        store.index.rebuild(|| Err::<(), _>(StoreError::NotSealed { segment: SegmentId(1) }));
    assert!(cut_short.is_err() && store.index_was_lost());
}

#[test]
fn a_damaged_index_never_keeps_the_store_from_opening() {
    let (dir, store) = empty_store();
    let (_, chunks) = seal(&store, &noise(1, 3_000_000));
    let ids: Vec<ChunkId> = chunks.iter().map(|c| c.id).collect();
    drop(store);
    let mut files = Vec::new();
    let mut folders = vec![dir.path().join("index")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    assert!(!files.is_empty());
    for (round, path) in files.iter().enumerate() {
        // The file may be gone: an index that was made anew has other names.
        let Ok(mut bytes) = std::fs::read(path) else { continue };
        match round % 3 {
            0 => bytes = noise(round as u64, 5000),
            1 => bytes.truncate(bytes.len() / 2),
            _ => bytes.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x41),
        }
        std::fs::write(path, bytes).unwrap();
        let store = Store::open(dir.path(), &options()).unwrap();
        assert_eq!(store.find(&ids).unwrap().len(), ids.len());
        store.rebuild_index(&mut |_| {}).unwrap();
        assert!(store.find(&ids).unwrap().iter().all(Option::is_some), "{}", path.display());
    }
}

#[test]
fn many_small_writes_reach_the_disk_instead_of_filling_memory() {
    // The engine's single worker used to wait forever for room in the channel that only it empties,
    // once enough commits had poked it. From then on everything stayed in memory.
    let (_dir, store) = empty_store();
    let location = raw_location(
        SegmentId(64),
        &Chunk { file_offset_bytes: 0, len_bytes: 9, id: ChunkId::of(b"x") },
    );
    for first in (0..200_000_u64).step_by(20) {
        let entries: Vec<_> =
            (first..first + 20).map(|n| (ChunkId::of(&n.to_le_bytes()), location, 9)).collect();
        store.index_chunks(&entries).unwrap();
    }
    assert!(!store.index_was_lost());
    let written = (0..1000).any(|_| {
        librorum_sys::clock::sleep(std::time::Duration::from_millis(10));
        store.index.is_at_rest()
    });
    assert!(written, "memtables wait to be written");
}
