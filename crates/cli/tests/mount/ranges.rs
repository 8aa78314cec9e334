//! Parts of files: allocated, punched, copied, searched for; and how much room is left.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::harness::{Mode, Mount, Rng, bytes, data_runs, in_modes};

const KEEP_SIZE: FallocateFlags = FallocateFlags::KEEP_SIZE;

fn create(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

in_modes!(allocating_and_punching_do_as_on_ext4: passthrough, cached, unprivileged);

fn allocating_and_punching_do_as_on_ext4(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    let native = mount.outside("native").join("file");
    // Fresh, inline, packed, one segment, an overlay.
    for (name, len) in [("empty", 0), ("inline", 3000), ("packed", 50_000), ("big", 6 << 20)] {
        for sealed in [false, true] {
            let path = mount.path(&format!("{name}-{sealed}"));
            let content = bytes(len as u64, len);
            fs::write(&path, &content).unwrap();
            fs::write(&native, &content).unwrap();
            if sealed {
                // Shared with another file, so that a big one cannot be unsealed in place.
                fs::write(mount.path(&format!("{name}-shared")), &content).unwrap();
                mount.seal();
            }
            for target in [&path, &native] {
                let file = open(target);
                fallocate(&file, KEEP_SIZE, 0, 100_000).unwrap();
                assert_eq!(file.metadata().unwrap().len(), len as u64, "the size is kept");
                fallocate(&file, FallocateFlags::empty(), 90_000, 20_000).unwrap();
                fallocate(&file, KEEP_SIZE | FallocateFlags::PUNCH_HOLE, 5000, 20_000).unwrap();
                fallocate(&file, FallocateFlags::ZERO_RANGE, 40_000, 1234).unwrap();
                fallocate(&file, KEEP_SIZE | FallocateFlags::ZERO_RANGE, 60_001, 80_000).unwrap();
                file.write_all_at(b"after all", 45_000).unwrap();
            }
            let expected = fs::read(&native).unwrap();
            for at in ["open", "sealed", "remounted"] {
                assert!(fs::read(&path).unwrap() == expected, "{name}, {at}");
                match at {
                    "open" => drop(mount.seal()),
                    _ => mount.remount(),
                }
            }
        }
    }
}

in_modes!(collapsing_and_inserting_are_refused: passthrough, cached, unprivileged);

fn collapsing_and_inserting_are_refused(mode: Mode) {
    let mount = Mount::new(mode);
    let file = create(&mount.path("file"));
    let content = bytes(1, 64 << 10);
    file.write_all_at(&content, 0).unwrap();
    for flag in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(fallocate(&file, flag, 4096, 4096), Err(Errno::OPNOTSUPP));
    }
    assert_eq!(fs::read(mount.path("file")).unwrap(), content);
}

in_modes!(data_and_holes_are_where_ext4_has_them: passthrough, cached, unprivileged);

fn data_and_holes_are_where_ext4_has_them(mode: Mode) {
    let mut mount = Mount::new(mode);
    let native = mount.outside("native");
    let mut rng = Rng::from_environment();
    let mut layouts: Vec<(u64, Vec<(u64, usize)>)> = vec![
        (0, vec![]),
        (1 << 20, vec![]),
        (10_000, vec![(0, 10_000)]),
        (29_739, vec![(5713, 24_026)]),
        (3 << 20, vec![(0, 1), (4096 * 9, 4096), ((3 << 20) - 1, 1)]),
    ];
    for _ in 0..12 {
        let len = 1 + rng.below(4 << 20);
        let writes = (0..rng.below(6))
            .map(|_| {
                let at = rng.below(len);
                (at, usize::try_from((1 + rng.below(300_000)).min(len - at)).unwrap())
            })
            .collect();
        layouts.push((len, writes));
    }
    let write = |dir: &Path| {
        for (index, (len, writes)) in layouts.iter().enumerate() {
            let file = create(&dir.join(format!("{index}")));
            file.set_len(*len).unwrap();
            for (at, len) in writes {
                file.write_all_at(&bytes(*at, *len), *at).unwrap();
            }
        }
    };
    write(&native);
    write(mount.root());
    for at in ["written", "sealed", "remounted"] {
        for (index, (len, writes)) in layouts.iter().enumerate() {
            let name = index.to_string();
            let expected = data_runs(&File::open(native.join(&name)).unwrap(), *len);
            let found = data_runs(&File::open(mount.path(&name)).unwrap(), *len);
            assert_eq!(found, expected, "{at}: length {len}, written {writes:?}");
            let end = rustix::fs::SeekFrom::Data(*len);
            let beyond = rustix::fs::seek(File::open(mount.path(&name)).unwrap(), end);
            assert_eq!(beyond, Err(Errno::NXIO));
        }
        match at {
            "written" => drop(mount.seal()),
            _ => mount.remount(),
        }
    }
}

in_modes!(copying_a_range_copies_just_that: passthrough, cached, unprivileged);

fn copying_a_range_copies_just_that(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    let content = bytes(4, 5 << 20);
    let source = mount.path("source");
    fs::write(&source, &content).unwrap();
    let copy = |from: u64, to_path: &Path, to: u64, len: usize| {
        let (input, output) = (File::open(&source).unwrap(), open(to_path));
        let (mut from, mut to, mut left) = (from, to, len);
        while left > 0 {
            let (at, at_to) = (Some(&mut from), Some(&mut to));
            let copied = rustix::fs::copy_file_range(&input, at, &output, at_to, left).unwrap();
            assert!(copied > 0, "nothing was copied, {left} bytes were left");
            left -= copied;
        }
    };
    for sealed in [false, true] {
        if sealed {
            mount.seal();
        }
        let whole = mount.path(&format!("whole-{sealed}"));
        create(&whole);
        copy(0, &whole, 0, content.len());
        assert!(fs::read(&whole).unwrap() == content);
        let part = mount.path(&format!("part-{sealed}"));
        let before = bytes(5, 100_000);
        fs::write(&part, &before).unwrap();
        copy(1_234_567, &part, 50_001, 1_000_000);
        let mut expected = before;
        expected.truncate(50_001);
        expected.extend_from_slice(&content[1_234_567..2_234_567]);
        assert!(fs::read(&part).unwrap() == expected);
        // What shares bytes does not share changes.
        open(&whole).write_all_at(b"changed", 2 << 20).unwrap();
        assert!(fs::read(&source).unwrap() == content);
        mount.seal();
        assert!(fs::read(&part).unwrap() == expected);
    }
    // Beyond the end nothing is copied.
    let (input, output) = (File::open(&source).unwrap(), open(&mount.path("part-true")));
    let mut from = content.len() as u64;
    let copied = rustix::fs::copy_file_range(&input, Some(&mut from), &output, None, 10).unwrap();
    assert_eq!(copied, 0);
    drop((input, output));
    mount.remount();
    assert!(fs::read(&source).unwrap() == content);
}

in_modes!(free_space_is_the_disks: passthrough, unprivileged);

fn free_space_is_the_disks(mode: Mode) {
    let mount = Mount::new(mode);
    let ours = rustix::fs::statvfs(mount.root()).unwrap();
    let disk = rustix::fs::statvfs(mount.volume()).unwrap();
    assert_eq!(ours.f_blocks * ours.f_frsize, disk.f_blocks * disk.f_frsize);
    assert_eq!(ours.f_files, disk.f_files);
    assert_eq!(ours.f_namemax, 255);
    // Others write to the disk too, so free space may differ by a little.
    let (ours, disk) = (ours.f_bavail * ours.f_frsize, disk.f_bavail * disk.f_frsize);
    assert!(ours.abs_diff(disk) < 1 << 30, "{ours} against {disk}");
}

in_modes!(truncating_and_extending_leave_zeros: passthrough, cached, unprivileged);

fn truncating_and_extending_leave_zeros(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=1"]);
    let path = mount.path("file");
    let mut expected = bytes(6, 6 << 20);
    fs::write(&path, &expected).unwrap();
    let mut rng = Rng::from_environment();
    for round in 0..40 {
        if round % 3 == 0 {
            mount.seal();
        }
        if round % 10 == 9 {
            mount.remount();
        }
        let len = usize::try_from(rng.below(8 << 20)).unwrap();
        open(&path).set_len(len as u64).unwrap();
        expected.resize(len, 0);
        if rng.below(2) == 0 && len > 0 {
            let at = usize::try_from(rng.below(len as u64)).unwrap();
            let end = len.min(at + 10_000);
            let patch = bytes(rng.next(), end - at);
            open(&path).write_all_at(&patch, at as u64).unwrap();
            expected[at..end].copy_from_slice(&patch);
        }
        assert_eq!(fs::metadata(&path).unwrap().size(), len as u64, "round {round}");
        assert!(fs::read(&path).unwrap() == expected, "round {round}, length {len}");
    }
}
