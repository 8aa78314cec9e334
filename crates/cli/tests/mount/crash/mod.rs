//! `kill -9` of the mount's process at chance moments, under load, again and again.
//!
//! Workers create, write, fsync, rename, unlink and truncate, and note in this process, outside of
//! the mount, what they did and what was acknowledged. After each kill the volume must be clean,
//! and what is found must be what the promises of design §5 allow:
//!
//! * the names in each worker's directory are those after some operation of its log, not older than
//!   the last fsync that any worker was acknowledged;
//! * every block of a file is one that was written to that block of that file, not older than what
//!   the file's last acknowledged fsync covered, and not zeros in place of it.
//!
//! In every other round, the first among them, the kill waits until an fsync was acknowledged, and
//! then for some time more; in the rest it comes after some time whatever was done by then, perhaps
//! before the first file.
//!
//! Eight rounds by default, `LIBRORUM_CRASH_ROUNDS` of them otherwise.

mod log;
mod worker;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Mode, Mount, Rng, Run, in_modes, within};
use log::Log;

const WORKER_COUNT: usize = 4;

in_modes!(kills_at_any_moment_lose_nothing_acknowledged: passthrough, cached, unprivileged);

fn kills_at_any_moment_lose_nothing_acknowledged(mode: Mode) {
    let rounds = match std::env::var("LIBRORUM_CRASH_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("LIBRORUM_CRASH_ROUNDS is a number"),
        Err(_) => 8_u64,
    };
    let mut rng = Rng::from_environment();
    // So that sealing, unsealing and overlays are among what is interrupted.
    let mut mount = Mount::with(mode, &["seal_after=5"]);
    let dirs: Vec<_> = (0..WORKER_COUNT).map(|worker| mount.path(&worker.to_string())).collect();
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    rustix::fs::fsync(fs::File::open(mount.root()).unwrap()).unwrap();
    let mut logs: Vec<Log> = (0..WORKER_COUNT).map(|_| Log::default()).collect();
    let mut totals = (0, 0);
    let mut waits = 0;
    for round in 0..rounds {
        let shared: Vec<Mutex<Log>> = logs.into_iter().map(Mutex::new).collect();
        let killed = AtomicBool::new(false);
        let delay = Duration::from_millis(1 + rng.below(if round % 4 < 2 { 30 } else { 700 }));
        std::thread::scope(|scope| {
            for (worker, dir) in dirs.iter().enumerate() {
                let (shared, killed) = (&shared, &killed);
                let rng = Rng::new(rng.next());
                scope.spawn(move || worker::run(dir, worker, shared, rng, killed));
            }
            if round % 2 == 0 {
                waits += 1;
                let is_acknowledged =
                    |log: &Mutex<Log>| log.lock().unwrap().acknowledged_count() > 0;
                within("an fsync", || shared.iter().any(is_acknowledged).then_some(()));
            }
            librorum_sys::clock::sleep(delay);
            killed.store(true, Ordering::SeqCst);
            mount.kill();
        });
        mount.librorum(&["umount", "--lazy"]).arg(mount.root()).ok();
        mount.assert_clean();
        mount.mount();
        logs = shared.into_iter().map(|log| log.into_inner().unwrap()).collect();
        for (log, dir) in logs.iter_mut().zip(&dirs) {
            totals.0 += log.operation_count();
            totals.1 += log.acknowledged_count();
            let found = log.check(&names(dir), dir);
            if let Err(wrong) = found {
                panic!("round {round}, killed after {delay:?}: {}: {wrong}", dir.display());
            }
        }
    }
    println!("{rounds} kills, {} operations, {} acknowledged fsyncs", totals.0, totals.1);
    // Sure for every seed: the first round waits, and a file is made before it is synced.
    assert!(totals.0 > 0 && totals.1 >= waits, "the workers did nothing");
}

/// The names in a directory and the inodes that they lead to.
fn names(dir: &Path) -> BTreeMap<String, u64> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let ino = entry.metadata().unwrap().ino();
            (entry.file_name().into_string().unwrap(), ino)
        })
        .collect()
}

/// The log sees what it is there to see: each case is a promise broken on purpose, in a native
/// directory.
#[test]
fn the_log_notices_every_kind_of_loss() {
    use log::{BLOCK, block};
    let ino_of = |path: &Path| fs::metadata(path).unwrap().ino();
    // A file of three blocks, synced at version 7; the second block rewritten as version 8.
    let prepare = |dir: &Path| {
        let path = dir.join("a");
        let content = [block(1, 0, 7), block(1, 1, 8), block(1, 2, 7)].concat();
        fs::write(&path, content).unwrap();
        let ino = ino_of(&path);
        let mut log = Log::default();
        log.begin_create("a");
        log.created("a", ino, 1);
        log.files.get_mut(&ino).unwrap().writes(0, 3, 7);
        let position = log.position();
        log.durable_from(position);
        log.files.get_mut(&ino).unwrap().synced();
        log.files.get_mut(&ino).unwrap().writes(1, 1, 8);
        log
    };
    type Break = fn(&Path);
    let cases: [(&str, bool, Break); 9] = [
        ("nothing", true, |_| {}),
        ("an older version that was synced", true, |dir| patch(dir, 1, &block(1, 1, 7))),
        ("zeros in place of what was synced", false, |dir| patch(dir, 0, &[0; BLOCK])),
        ("an older version than was synced", false, |dir| patch(dir, 2, &block(1, 2, 6))),
        ("a version that never was", false, |dir| patch(dir, 1, &block(1, 1, 9))),
        ("another file's block", false, |dir| patch(dir, 1, &block(2, 1, 7))),
        ("another place's block", false, |dir| patch(dir, 1, &block(1, 0, 7))),
        ("a file cut short", false, |dir| {
            fs::File::options().write(true).open(dir.join("a")).unwrap().set_len(8192).unwrap();
        }),
        ("a name that is gone", false, |dir| fs::remove_file(dir.join("a")).unwrap()),
    ];
    for (what, is_fine, break_it) in cases {
        let dir = crate::harness::temp_dir();
        let mut log = prepare(dir.path());
        break_it(dir.path());
        let found = log.check(&names(dir.path()), dir.path());
        assert_eq!(found.is_ok(), is_fine, "{what}: {found:?}");
    }
}

/// Overwrites a block of the file `a`.
fn patch(dir: &Path, index: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(dir.join("a")).unwrap();
    file.write_all_at(bytes, index * log::BLOCK as u64).unwrap();
}
