use std::ffi::CString;
use std::path::Path;

use librorum_format::{Compression, ErrorKind};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;
use crate::layout::Part;

/// A disk of its own, small enough to fill. Unmounted when dropped.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// `None`, with a word about it, where this process may not mount.
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let data = CString::new(format!("size={mib}m")).unwrap();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), data.as_c_str()) {
            Ok(()) => Some(Self { dir }),
            Err(Errno::PERM) => {
                println!("skipped: mounting a tmpfs needs root");
                None
            }
            Err(errno) => panic!("mount: {errno}"),
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves less than a page; returns what to delete to have room again.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.path().join("filler");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        path
    }

    /// Leaves room for so much more: the failure then comes later.
    fn leave(filler: &Path, bytes: u64) {
        let file = File::options().write(true).open(filler).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len - bytes).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(errno) = unmount(self.dir.path(), UnmountFlags::DETACH) {
            println!("unmount: {errno}");
        }
    }
}

fn open(disk: &SmallDisk) -> Store {
    let options = StoreOptions { compression: Compression::Off, ..options() };
    Store::open(disk.path(), &options).unwrap()
}

#[test]
fn a_packed_segment_that_does_not_fit_leaves_nothing() {
    let Some(disk) = SmallDisk::mount(160) else { return };
    Store::create(disk.path()).unwrap();
    let store = open(&disk);
    let filler = disk.fill();
    let chunks: Vec<Vec<u8>> = (0..100).map(|seed| noise(seed, 60_000)).collect();
    let slices: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
    for more in [0, 8192, 1 << 20, 4 << 20] {
        SmallDisk::leave(&filler, more);
        let error = store.write_packed(&slices).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
        assert_eq!(store.segments().count(), 0);
    }
    std::fs::remove_file(filler).unwrap();
    let (segment, places) = store.write_packed(&slices).unwrap();
    assert!(store.scrub_segment(segment, &mut |_| {}).unwrap().is_empty());
    let extent = packed_extent(&chunks[9], places[9].0, places[9].1);
    assert_eq!(read(&store, &extent).unwrap(), chunks[9]);
}

#[test]
fn a_seal_without_room_for_its_table_leaves_a_staging_file() {
    let Some(disk) = SmallDisk::mount(160) else { return };
    Store::create(disk.path()).unwrap();
    let store = open(&disk);
    let bytes = noise(1, 8_000_000);
    let (segment, file) = stage(&store, &bytes);
    let chunks = chunk(&store, &file, bytes.len() as u64);
    assert!(chunks.len() * 49 > 4 * 4096);
    let filler = disk.fill();
    for more in [0, 4096, 8192] {
        SmallDisk::leave(&filler, more);
        let error = store.seal_verbatim(segment, &file, bytes.len() as u64, &chunks).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
        assert!(store.load_table(segment).unwrap().is_none());
        for part in [Part::Table, Part::TableDraft] {
            assert!(!store.layout.exists(segment, part).unwrap(), "{part:?}");
        }
    }
    std::fs::remove_file(filler).unwrap();
    store.seal_verbatim(segment, &file, bytes.len() as u64, &chunks).unwrap();
    assert!(store.scrub_segment(segment, &mut |_| {}).unwrap().is_empty());
}

#[test]
fn a_lease_without_room_gives_out_no_id_and_the_next_one_repeats_none() {
    let Some(disk) = SmallDisk::mount(160) else { return };
    Store::create(disk.path()).unwrap();
    let store = open(&disk);
    let last = store.ids.take(4096).unwrap().pop().unwrap();
    let filler = disk.fill();
    while store.ids.take(4096).is_ok() {}
    let error = store.create_staging(5000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert!(!disk.path().join("ids.draft").exists());
    std::fs::remove_file(filler).unwrap();
    let (id, _file) = store.create_staging(1).unwrap().remove(0);
    assert!(id > last);
    drop(store);
    let store = open(&disk);
    assert!(store.create_staging(1).unwrap()[0].0 > id);
}

#[test]
fn a_full_disk_neither_stops_opening_nor_reading_nor_removing() {
    let Some(disk) = SmallDisk::mount(160) else { return };
    Store::create(disk.path()).unwrap();
    let store = open(&disk);
    let bytes = noise(1, 1_000_000);
    let (segment, chunks) = seal(&store, &bytes);
    drop(store);
    let filler = disk.fill();
    // Without an index it cannot make a new one either.
    std::fs::remove_dir_all(disk.path().join("index")).unwrap();
    let mut file = File::options().append(true).open(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    let store = open(&disk);
    assert!(store.index_was_lost());
    let extents = extents(segment, &chunks);
    assert_eq!(read(&store, &extents[0]).unwrap(), bytes[..chunks[0].len_bytes as usize]);
    store.index_segment(segment).unwrap();
    store.remove(segment).unwrap();
    assert_eq!(store.segments().count(), 0);
    std::fs::remove_file(filler).unwrap();
    let (_, chunks) = seal(&store, &bytes);
    store.rebuild_index(&mut |_| {}).unwrap();
    assert!(!store.index_was_lost());
    assert!(store.find(&[chunks[0].id]).unwrap()[0].is_some());
}
