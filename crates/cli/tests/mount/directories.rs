//! Directories that change while they are read.

use std::collections::HashMap;
use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Mode, Mount, Rng, in_modes};

const STABLE_COUNT: usize = 20_000;

in_modes!(reading_a_changing_directory_shows_what_stays_exactly_once: passthrough, unprivileged);

fn reading_a_changing_directory_shows_what_stays_exactly_once(mode: Mode) {
    let mut mount = Mount::new(mode);
    let dir = mount.path("dir");
    fs::create_dir(&dir).unwrap();
    for index in 0..STABLE_COUNT {
        File::create(dir.join(format!("stable-{index}"))).unwrap();
    }
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for changer in 0..2 {
            let (dir, ended) = (&dir, &ended);
            scope.spawn(move || {
                let mut rng = Rng::new(changer);
                let mut round = 0_u64;
                while !ended.load(Ordering::Relaxed) {
                    // Short and long names, so that the pages of the answers shift.
                    let long = "x".repeat(usize::try_from(rng.below(200)).unwrap());
                    let name = dir.join(format!("passing-{changer}-{round}-{long}"));
                    File::create(&name).unwrap();
                    if round.is_multiple_of(3) {
                        let new = dir.join(format!("renamed-{changer}-{round}"));
                        fs::rename(&name, &new).unwrap();
                        fs::remove_file(&new).unwrap();
                    } else {
                        fs::remove_file(&name).unwrap();
                    }
                    round += 1;
                }
            });
        }
        let looks = (0..6).map(|look| {
            let mut seen: HashMap<_, u32> = HashMap::new();
            for entry in fs::read_dir(&dir).unwrap() {
                let entry = entry.unwrap();
                if look % 2 == 1 {
                    // READDIRPLUS gave attributes along; they must fit the name.
                    if let Ok(metadata) = entry.metadata() {
                        assert!(metadata.is_file());
                    }
                }
                *seen.entry(entry.file_name()).or_default() += 1;
            }
            seen
        });
        for seen in looks.collect::<Vec<_>>() {
            let stable =
                seen.iter().filter(|(name, _)| name.to_string_lossy().starts_with("stable-"));
            let mut count = 0;
            for (name, times) in stable {
                assert_eq!(*times, 1, "{}", name.display());
                count += 1;
            }
            assert_eq!(count, STABLE_COUNT);
        }
        ended.store(true, Ordering::Relaxed);
    });
    mount.remount();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), STABLE_COUNT);
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(fs::read_dir(mount.root()).unwrap().count(), 0);
}

in_modes!(removing_while_reading_empties_a_directory: passthrough, cached, unprivileged);

/// As `rm -r` does it; and a position that was told before stays good.
fn removing_while_reading_empties_a_directory(mode: Mode) {
    let mount = Mount::new(mode);
    let dir = mount.path("dir");
    fs::create_dir(&dir).unwrap();
    for index in 0..3000 {
        fs::write(dir.join(format!("{index}-{}", "y".repeat(index % 100))), "x").unwrap();
    }
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    fs::remove_dir(&dir).unwrap();
}
