//! Makes trees to measure walks on: `tree KIND DIR [SCALE] [SEED]`.
//!
//! | kind | what, at scale 100 |
//! |---|---|
//! | `wide` | 200,000 empty files in 20 directories |
//! | `flat` | 200,000 empty files in one |
//! | `deep` | 100 chains of 200 levels, 4 files in each |
//! | `chain` | one chain of 20,000 levels |
//! | `snap` | 10 hard-linked snapshots of 20,000 files |
//! | `mixed` | like source trees: 65,000 directories, 450,000 files of all sizes |
//! | `small` | 1,000 files in 100 directories, whatever the scale |
//!
//! The same seed makes the same names and sizes. Sizes are allocated, not written.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "there is nobody to go on for")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};

/// Numbers that look random and are the same every time (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % limit
    }

    /// A file's size: half are below 4 KiB, one in a hundred up to 4 MiB.
    fn size(&mut self) -> u64 {
        match self.below(100) {
            0..50 => self.below(4 << 10),
            50..90 => self.below(32 << 10),
            90..99 => self.below(256 << 10),
            _ => self.below(4 << 20),
        }
    }
}

fn open(dir: impl AsFd, name: &str) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).unwrap()
}

fn make_dir(dir: impl AsFd, name: &str) -> OwnedFd {
    rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)).unwrap();
    open(dir, name)
}

fn make_file(dir: impl AsFd, name: &str, size: u64) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)).unwrap();
    if size > 0 {
        rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size).unwrap();
    }
}

fn flat(dir: &OwnedFd, files: u64) {
    for index in 0..files {
        make_file(dir, &format!("file-{index:07}"), 0);
    }
}

/// A chain of directories, with files in each.
fn chain(dir: &OwnedFd, levels: u64, files: u64) {
    let mut at = make_dir(dir, "level");
    for _level in 1..levels {
        flat(&at, files);
        at = make_dir(&at, "level");
    }
    flat(&at, files);
}

/// Directories in a shape like that of source trees: most have a few files, some many; depth up to
/// a dozen. `budget` is how many directories are left to make.
fn mixed(dir: &OwnedFd, depth: u64, budget: &mut u64, dice: &mut Dice) {
    let files = match dice.below(20) {
        0 => 40 + dice.below(60),
        1..5 => 8 + dice.below(16),
        5..17 => 1 + dice.below(6),
        _ => 0,
    };
    for index in 0..files {
        let extension =
            ["rs", "c", "h", "txt", "json", "o"][usize::try_from(dice.below(6)).unwrap()];
        make_file(dir, &format!("item_{index}_{:x}.{extension}", dice.below(1 << 24)), dice.size());
    }
    let dirs = if depth == 0 { 24 } else { dice.below(6) };
    for index in 0..dirs {
        if *budget == 0 || depth > 12 {
            return;
        }
        *budget -= 1;
        mixed(&make_dir(dir, &format!("part{index}")), depth + 1, budget, dice);
    }
}

/// Snapshots as backup programs make them: directories anew, files linked, one in fifty changed.
fn snap(dir: &OwnedFd, files: u64, dice: &mut Dice) {
    for snapshot in 0..10 {
        let top = make_dir(dir, &format!("snap{snapshot}"));
        for group in 0..files.div_ceil(50) {
            let name = format!("dir{group:05}");
            let part = make_dir(&top, &name);
            for index in 0..50 {
                let file = format!("file{index}");
                if snapshot == 0 || dice.below(50) == 0 {
                    make_file(&part, &file, dice.size());
                } else {
                    let from = open(open(dir, &format!("snap{}", snapshot - 1)), &name);
                    rustix::fs::linkat(from, &*file, &part, &*file, AtFlags::empty()).unwrap();
                }
            }
        }
    }
}

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let kind = arguments.next().and_then(|kind| kind.into_string().ok()).unwrap_or_default();
    let dir = arguments.next().map(PathBuf::from).expect("tree KIND DIR [SCALE] [SEED]");
    let mut number = |otherwise| -> u64 {
        let text = arguments.next().and_then(|text| text.into_string().ok());
        text.map_or(otherwise, |text| text.parse().unwrap())
    };
    let (scale, seed) = (number(100), number(1));
    let mut dice = Dice(seed.max(1));
    let share = |count: u64| (count * scale / 100).max(1);

    fs::create_dir_all::<&Path>(&dir).unwrap();
    let dir = rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let dir = open(&dir, ".");
    match &*kind {
        "wide" => {
            for index in 0..20 {
                flat(&make_dir(&dir, &format!("dir{index}")), share(10_000));
            }
        }
        "flat" => flat(&dir, share(200_000)),
        "deep" => {
            for index in 0..share(100) {
                chain(&make_dir(&dir, &format!("chain{index}")), 199, 4);
            }
        }
        "chain" => chain(&dir, share(20_000), 0),
        "snap" => snap(&dir, share(20_000), &mut dice),
        "mixed" => {
            // A random tree may end early; the next begins beside it.
            let mut budget = share(65_000);
            let mut trees = 0;
            while budget > 0 {
                budget -= 1;
                mixed(&make_dir(&dir, &format!("tree{trees}")), 0, &mut budget, &mut dice);
                trees += 1;
            }
        }
        "small" => {
            for index in 0..100 {
                flat(&make_dir(&dir, &format!("dir{index}")), 10);
            }
        }
        _ => panic!("no such kind: {kind}"),
    }
}
