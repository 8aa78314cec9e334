//! The harness sees what it is there to see: each test has a program that is wrong on purpose and
//! must be caught, and the right one beside it, which must not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use librorum_sim::{Choice, Failing, Model, Plan, Replay, SimDisk, Survival, explore, seed};

/// All values that `look` finds in the images of the points from `from` on.
fn sights<T: Ord>(
    disk: &SimDisk,
    models: &[Model],
    from: usize,
    look: impl Fn(&Path) -> T,
) -> BTreeSet<T> {
    let recording = disk.recording();
    let seed = seed();
    let plan =
        Plan { models: models.to_vec(), ..Plan::at((from..=recording.len()).collect(), seed, 60) };
    let mut seen = BTreeSet::new();
    explore(&recording, &plan, |_, dir| {
        seen.insert(look(dir));
    })
    .unwrap();
    seen
}

const BOTH: [Model; 2] = [Model::Ext4, Model::Posix];

fn sync(path: &Path) {
    rustix::fs::fsync(File::open(path).unwrap()).unwrap();
}

fn content(dir: &Path, name: &str) -> Option<Vec<u8>> {
    fs::read(dir.join(name)).ok()
}

#[test]
fn a_program_that_never_syncs_loses_data_and_one_that_does_never_does() {
    for model in BOTH {
        for synced in [false, true] {
            let Some(disk) = SimDisk::for_test() else { return };
            let path = disk.path().join("f");
            fs::write(&path, [7; 9000]).unwrap();
            if synced {
                sync(&path);
            }
            let acknowledged = disk.mark("acknowledged");
            let whole = Some(vec![7; 9000]);
            let seen = sights(&disk, &[model], acknowledged, |dir| content(dir, "f"));
            if synced {
                assert_eq!(seen, BTreeSet::from([whole]), "{model:?}");
            } else {
                assert!(seen.contains(&None), "{model:?}: the name was never lost");
                assert!(seen.contains(&Some(Vec::new())), "{model:?}: the bytes were never lost");
                assert!(seen.contains(&whole), "{model:?}: nothing ever survived");
                let foreign = |bytes: &Option<Vec<u8>>| {
                    bytes.iter().flatten().any(|byte| *byte != 0 && *byte != 7)
                };
                assert!(!seen.iter().any(foreign), "{model:?}: bytes from nowhere");
            }
        }
    }
}

#[test]
fn a_rename_without_a_sync_of_the_data_shows_an_empty_file() {
    for model in BOTH {
        for synced in [false, true] {
            let Some(disk) = SimDisk::for_test() else { return };
            let (new, name) = (disk.path().join("f.new"), disk.path().join("f"));
            fs::write(&name, b"old").unwrap();
            sync(&name);
            sync(disk.path());
            let begun = disk.mark("begun");
            fs::write(&new, b"the new").unwrap();
            if synced {
                sync(&new);
            }
            fs::rename(&new, &name).unwrap();
            sync(disk.path());
            let acknowledged = disk.mark("acknowledged");
            let seen = sights(&disk, &[model], begun, |dir| content(dir, "f"));
            let after = sights(&disk, &[model], acknowledged, |dir| content(dir, "f"));
            let (old, new) = (Some(b"old".to_vec()), Some(b"the new".to_vec()));
            if synced {
                assert_eq!(seen, BTreeSet::from([old, new.clone()]), "{model:?}");
                assert_eq!(after, BTreeSet::from([new]), "{model:?}");
            } else {
                assert!(seen.contains(&Some(Vec::new())), "{model:?}: {seen:?}");
                assert!(after.contains(&Some(Vec::new())), "{model:?}: {after:?}");
            }
            assert!(!seen.contains(&None), "{model:?}: a rename is never half done");
        }
    }
}

#[test]
fn only_a_strict_disk_loses_a_name_whose_directory_was_not_synced() {
    for (model, forgets) in [(Model::Ext4, false), (Model::Posix, true)] {
        let Some(disk) = SimDisk::for_test() else { return };
        let (new, name) = (disk.path().join("f.new"), disk.path().join("f"));
        fs::write(&new, b"bytes").unwrap();
        sync(&new);
        fs::rename(&new, &name).unwrap();
        sync(&name);
        let acknowledged = disk.mark("acknowledged");
        let seen = sights(&disk, &[model], acknowledged, |dir| content(dir, "f"));
        assert_eq!(seen.contains(&None), forgets, "{model:?}");
        assert!(seen.contains(&Some(b"bytes".to_vec())), "{model:?}");
    }
}

#[test]
fn names_in_two_directories_survive_in_any_order_on_a_strict_disk_only() {
    for (model, reorders) in [(Model::Ext4, false), (Model::Posix, true)] {
        let Some(disk) = SimDisk::for_test() else { return };
        for name in ["a", "b"] {
            fs::create_dir(disk.path().join(name)).unwrap();
        }
        sync(disk.path());
        drop(File::create(disk.path().join("a/first")).unwrap());
        drop(File::create(disk.path().join("b/second")).unwrap());
        let seen = sights(&disk, &[model], disk.log_len(), |dir| {
            (dir.join("a/first").exists(), dir.join("b/second").exists())
        });
        assert_eq!(seen.contains(&(false, true)), reorders, "{model:?}");
        assert!(seen.contains(&(true, false)), "{model:?}");
    }
}

#[test]
fn unsynced_pages_survive_in_any_order() {
    let Some(disk) = SimDisk::for_test() else { return };
    let path = disk.path().join("f");
    fs::write(&path, [0; 8192]).unwrap();
    sync(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.write_all_at(&[2; 4096], 4096).unwrap();
    let seen = sights(&disk, &BOTH, disk.log_len(), |dir| {
        let bytes = content(dir, "f").unwrap();
        (bytes[0], bytes[4096])
    });
    assert_eq!(seen, BTreeSet::from([(0, 0), (0, 2), (1, 0), (1, 2)]));
}

#[test]
fn one_page_may_be_torn_at_its_sectors_and_a_sector_never() {
    let Some(disk) = SimDisk::for_test() else { return };
    let path = disk.path().join("f");
    fs::write(&path, [1; 4096]).unwrap();
    sync(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[2; 4096], 0).unwrap();
    let recording = disk.recording();
    for torn in [false, true] {
        let plan = Plan { torn, ..Plan::at(vec![recording.len()], seed(), 200) };
        let mut mixed = 0;
        explore(&recording, &plan, |_, dir| {
            let bytes = content(dir, "f").unwrap();
            for sector in bytes.chunks(512) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "half a sector");
            }
            mixed += u32::from(bytes.iter().any(|byte| *byte != bytes[0]));
        })
        .unwrap();
        assert_eq!(mixed > 0, torn);
    }
}

#[test]
fn what_is_written_while_a_sync_runs_is_not_synced_by_it() {
    let Some(disk) = SimDisk::for_test() else { return };
    let path = disk.path().join("f");
    fs::write(&path, [0; 4096]).unwrap();
    sync(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"before", 0).unwrap();
    disk.set_sync_latency(Duration::from_millis(300));
    let started = disk.log_len();
    std::thread::scope(|scope| {
        scope.spawn(|| rustix::fs::fsync(&file).unwrap());
        while disk.log_len() == started {
            std::thread::yield_now();
        }
        file.write_all_at(b"during", 100).unwrap();
    });
    let seen = sights(&disk, &BOTH, disk.mark("both returned"), |dir| {
        let bytes = content(dir, "f").unwrap();
        (&bytes[..6] == b"before", &bytes[100..106] == b"during")
    });
    assert_eq!(seen, BTreeSet::from([(true, false), (true, true)]));
}

/// Linux marks pages clean when their writeback fails, so the next sync has nothing to do.
#[test]
fn a_sync_after_a_failed_one_proves_nothing() {
    for rewritten in [false, true] {
        let Some(disk) = SimDisk::for_test() else { return };
        let path = disk.path().join("f");
        fs::write(&path, b"old").unwrap();
        sync(&path);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"new", 0).unwrap();
        disk.fail_after(0, 5, Failing::Syncs);
        assert!(rustix::fs::fsync(&file).is_err());
        disk.heal();
        if rewritten {
            file.write_all_at(b"new", 0).unwrap();
        }
        rustix::fs::fsync(&file).unwrap();
        let seen = sights(&disk, &BOTH, disk.mark("acknowledged"), |dir| content(dir, "f"));
        assert_eq!(seen.contains(&Some(b"old".to_vec())), !rewritten);
    }
}

#[test]
fn an_unsynced_truncation_happens_as_a_whole_or_not_at_all() {
    let Some(disk) = SimDisk::for_test() else { return };
    let path = disk.path().join("f");
    fs::write(&path, [5; 20_000]).unwrap();
    sync(&path);
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(5000).unwrap();
    let cut = disk.log_len();
    let seen = sights(&disk, &BOTH, cut, |dir| content(dir, "f").unwrap());
    assert_eq!(seen, BTreeSet::from([vec![5; 5000], vec![5; 20_000]]));
    // What is written after it needs it: the old bytes are never mixed with the new.
    file.set_len(0).unwrap();
    file.write_all(&[6; 20_000]).unwrap();
    let seen = sights(&disk, &BOTH, disk.log_len(), |dir| content(dir, "f").unwrap());
    let mixed = |bytes: &Vec<u8>| bytes.contains(&5) && bytes.contains(&6);
    assert!(!seen.iter().any(mixed));
    assert!(seen.contains(&vec![6; 20_000]) && seen.contains(&Vec::new()));
}

#[test]
fn a_seed_brings_the_same_image_back() {
    let Some(disk) = SimDisk::for_test() else { return };
    for number in 0..20 {
        fs::write(disk.path().join(format!("f{number}")), [number; 20_000]).unwrap();
    }
    let recording = disk.recording();
    let fingerprints = |seed| -> Vec<[u8; 32]> {
        let points = [recording.len() / 2, recording.len()];
        let mut replay = Replay::new(&recording);
        points
            .iter()
            .flat_map(|point| BOTH.map(|model| (*point, model)))
            .map(|(point, model)| {
                replay.advance_to(point);
                let survival = Survival::Random(seed);
                replay.image(&Choice { model, survival, torn: true }).fingerprint()
            })
            .collect()
    };
    assert_eq!(fingerprints(1), fingerprints(1));
    assert_ne!(fingerprints(1), fingerprints(2));
}
