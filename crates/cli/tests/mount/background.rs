//! What goes on behind the user's back: sealing, its bound, and giving space back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::harness::{Mode, Mount, bytes, in_modes, within};

/// The files below a volume's data, by inode, with the bytes that the disk holds for each.
fn files_on_disk(volume: &Path) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![volume.join("data")];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            // One that was given back since it was listed counts nothing.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                waiting.push(path);
            } else {
                found.insert(metadata.ino(), metadata.blocks() * 512);
            }
        }
    }
    found
}

in_modes!(sealing_copies_nothing: passthrough, cached, unprivileged);

/// The staging file becomes the segment: the same inode on the disk below, before and after.
fn sealing_copies_nothing(mode: Mode) {
    // Late enough that only `status --seal` seals.
    let mount = Mount::with(mode, &["seal_after=3600000"]);
    let content = bytes(1, 12 << 20);
    let big = || -> Vec<(u64, u64)> {
        let found = files_on_disk(mount.volume());
        found.into_iter().filter(|(_, bytes)| *bytes >= content.len() as u64).collect()
    };
    fs::write(mount.path("file"), &content).unwrap();
    rustix::fs::fsync(fs::File::open(mount.path("file")).unwrap()).unwrap();
    let staged = big();
    assert_eq!(staged.len(), 1, "{staged:?}");
    let before: u64 = files_on_disk(mount.volume()).values().sum();
    let status = mount.seal_everything();
    assert_eq!(status["staged_bytes"], 0, "{status}");
    assert_eq!(big(), staged, "the same file holds the same bytes");
    let after: u64 = files_on_disk(mount.volume()).values().sum();
    assert!(after <= before + (64 << 10), "{before} bytes became {after}");
    assert!(fs::read(mount.path("file")).unwrap() == content);
}

in_modes!(deleted_files_give_their_space_back: passthrough, cached, unprivileged);

fn deleted_files_give_their_space_back(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=20"]);
    for sealed in [false, true] {
        for index in 0..8 {
            fs::write(mount.path(&format!("big-{index}")), bytes(index, 3 << 20)).unwrap();
            fs::write(mount.path(&format!("small-{index}")), bytes(index, 30_000)).unwrap();
        }
        if sealed {
            mount.seal();
        }
        for index in 0..8 {
            fs::remove_file(mount.path(&format!("big-{index}"))).unwrap();
            fs::remove_file(mount.path(&format!("small-{index}"))).unwrap();
        }
        within("the space to come back", || {
            (files_on_disk(mount.volume()).values().sum::<u64>() < 1 << 20).then_some(())
        });
    }
    mount.remount();
    assert_eq!(mount.status()["stored_bytes"], 0);
}

in_modes!(unsealed_bytes_stay_within_their_bound: passthrough, cached);

/// Writers may not run away from sealing, however late it is otherwise due.
fn unsealed_bytes_stay_within_their_bound(mode: Mode) {
    let mount = Mount::with(mode, &["unsealed=16M", "seal_after=3600000"]);
    let file_len = 2 << 20;
    for index in 0..40 {
        fs::write(mount.path(&format!("{index}")), bytes(index, file_len)).unwrap();
        let status = mount.status();
        let waiting = status["background"]["waiting_bytes"].as_u64().unwrap();
        assert!(waiting <= (16 << 20) + 2 * file_len as u64, "{status}");
    }
    for index in 0..40 {
        assert!(fs::read(mount.path(&format!("{index}"))).unwrap() == bytes(index, file_len));
    }
}

in_modes!(a_read_only_mount_shows_everything_and_changes_nothing: passthrough, cached);

fn a_read_only_mount_shows_everything_and_changes_nothing(mode: Mode) {
    let mut mount = Mount::with(mode, &["seal_after=3600000"]);
    for (name, len) in [("inline", 100), ("small", 50_000), ("big", 5 << 20)] {
        fs::write(mount.path(name), bytes(len as u64, len)).unwrap();
    }
    fs::write(mount.path("staged"), bytes(9, 300_000)).unwrap();
    mount.unmount();
    let before = files_on_disk(mount.volume());
    mount.add_option("ro");
    mount.mount();
    for (name, len) in [("inline", 100), ("small", 50_000), ("big", 5 << 20)] {
        assert!(fs::read(mount.path(name)).unwrap() == bytes(len as u64, len), "{name}");
    }
    assert!(fs::read(mount.path("staged")).unwrap() == bytes(9, 300_000));
    let refused = [
        fs::write(mount.path("new"), "x"),
        fs::File::options().write(true).open(mount.path("big")).map(drop),
        fs::remove_file(mount.path("big")),
        fs::rename(mount.path("big"), mount.path("moved")),
        fs::create_dir(mount.path("dir")),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    mount.unmount();
    assert_eq!(files_on_disk(mount.volume()), before);
}
