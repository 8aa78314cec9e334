//! One worker: operations by chance until the mount is gone.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::log::{BLOCK, Log, block};
use crate::harness::Rng;

const NAME_COUNT: u64 = 12;

/// Versions and file numbers never come again, in no round.
static NEXT: AtomicU64 = AtomicU64::new(1);

fn next() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Works in `dir` until a call fails, which it may only once the mount is being killed.
pub(super) fn run(
    dir: &Path,
    index: usize,
    logs: &[Mutex<Log>],
    mut rng: Rng,
    killed: &AtomicBool,
) {
    loop {
        if let Err(error) = step(dir, index, logs, &mut rng) {
            assert!(killed.load(Ordering::SeqCst), "failed before the kill: {error}");
            return;
        }
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap()
}

fn step(dir: &Path, index: usize, logs: &[Mutex<Log>], rng: &mut Rng) -> std::io::Result<()> {
    let log = &logs[index];
    let name = format!("file-{}", rng.below(NAME_COUNT));
    let path = dir.join(&name);
    let Some(&ino) = lock(log).names().get(&name) else {
        return create(&path, &name, index, logs, rng);
    };
    match rng.below(10) {
        0 => {
            lock(log).begin(|names| {
                names.remove(&name);
            });
            fs::remove_file(&path)?;
            lock(log).done();
        }
        1 | 2 => {
            let target = format!("file-{}", rng.below(NAME_COUNT));
            if target != name {
                lock(log).begin(|names| {
                    names.remove(&name);
                    names.insert(target.clone(), ino);
                });
                fs::rename(&path, dir.join(&target))?;
                lock(log).done();
            }
        }
        3 => {
            let file = File::options().write(true).truncate(false).open(&path)?;
            let len = usize::try_from(rng.below(40)).unwrap();
            change(log, ino, |file| file.truncates(len, next()));
            file.set_len((len * BLOCK) as u64)?;
            maybe_sync(&file, ino, index, logs, rng)?;
        }
        4 => {
            // Truncated by being opened.
            change(log, ino, |file| file.truncates(0, next()));
            let file = File::options().write(true).truncate(true).open(&path)?;
            write_some(&file, ino, log, rng)?;
            maybe_sync(&file, ino, index, logs, rng)?;
        }
        _ => {
            let file = File::options().write(true).open(&path)?;
            for _ in 0..=rng.below(4) {
                write_some(&file, ino, log, rng)?;
            }
            maybe_sync(&file, ino, index, logs, rng)?;
        }
    }
    Ok(())
}

fn create(
    path: &Path,
    name: &str,
    index: usize,
    logs: &[Mutex<Log>],
    rng: &mut Rng,
) -> std::io::Result<()> {
    let log = &logs[index];
    lock(log).begin_create(name);
    let file = File::create_new(path)?;
    let ino = file.metadata()?.ino();
    lock(log).created(name, ino, next());
    write_some(&file, ino, log, rng)?;
    maybe_sync(&file, ino, index, logs, rng)
}

fn change(log: &Mutex<Log>, ino: u64, change: impl FnOnce(&mut super::log::FileLog)) {
    change(lock(log).files.get_mut(&ino).unwrap());
}

/// Writes a run of blocks somewhere, now and then a long one: big files have other states.
fn write_some(file: &File, ino: u64, log: &Mutex<Log>, rng: &mut Rng) -> std::io::Result<()> {
    let is_big = rng.below(40) == 0;
    let first = usize::try_from(rng.below(40)).unwrap();
    let count = if is_big { 1100 } else { 1 + usize::try_from(rng.below(20)).unwrap() };
    let version = next();
    let mut id = 0;
    change(log, ino, |file| {
        id = file.id;
        file.writes(first, count, version);
    });
    let mut bytes = Vec::with_capacity(count * BLOCK);
    for index in first..first + count {
        bytes.extend_from_slice(&block(id, index as u64, version));
    }
    file.write_all_at(&bytes, (first * BLOCK) as u64)
}

/// Syncs half of the time. What returned covers every operation of every worker before it, and this
/// file's bytes.
fn maybe_sync(
    file: &File,
    ino: u64,
    index: usize,
    logs: &[Mutex<Log>],
    rng: &mut Rng,
) -> std::io::Result<()> {
    if rng.below(2) == 0 {
        return Ok(());
    }
    let positions: Vec<usize> = logs.iter().map(|log| lock(log).position()).collect();
    rustix::fs::fsync(file)?;
    for (log, position) in logs.iter().zip(positions) {
        lock(log).durable_from(position);
    }
    change(&logs[index], ino, super::log::FileLog::synced);
    Ok(())
}
