//! How many system calls a walk makes, as strace counts them: what a slow or busy machine cannot blur.

#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;

use fdu::du::Usage;
use fdu::{Descend, Entered, Entry, Error, Threads, Visitor, Walk};

/// Where the tests' trees are, and which of the workloads below to run.
const ROOT: &str = "FDU_TEST_ROOT";
const WORKLOAD: &str = "FDU_TEST_WORKLOAD";

struct Nothing;

impl Visitor for Nothing {
    type Scope = ();
    type Tally = ();
    fn enter(&mut self, _: &Entered<'_>, _: Option<&()>, (): &mut ()) -> Descend<()> {
        Descend::Into(())
    }
    fn file(&mut self, _: &Entry<'_>, _: Option<&()>, (): &mut ()) {}
    fn fold(&mut self, (): &mut (), (): ()) {}
    fn error(&mut self, error: Error, (): &mut ()) {
        panic!("{error}");
    }
}

#[test]
#[ignore = "a part of the tests below, which watch it"]
fn workload() {
    let root = std::env::var_os(ROOT).unwrap();
    let threads = Threads::Exactly(NonZeroUsize::new(2).unwrap());
    match &*std::env::var(WORKLOAD).unwrap() {
        "list" => drop(Walk::new([root]).threads(threads).run(|_worker| Nothing)),
        "total" => assert_eq!(Usage::new([root]).threads(threads).measure().error_count, 0),
        "nothing" => {}
        other => panic!("{other}"),
    }
}

/// Calls by name, without those of a test that does nothing. `None` if there is no strace.
fn calls(workload: &str, root: &Path) -> Option<HashMap<String, i64>> {
    let count = |workload: &str| {
        let output = Command::new("strace")
            .args(["-f", "-c", "-U", "name,calls"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "workload", "--ignored"])
            .env(ROOT, root)
            .env(WORKLOAD, workload)
            .output()
            .ok()?;
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        let lines = text.lines().filter_map(|line| {
            let (name, calls) = line.trim().split_once(' ')?;
            Some((name.to_owned(), calls.trim().parse::<i64>().ok()?))
        });
        Some(lines.collect::<HashMap<_, _>>())
    };
    let (mut with, without) = (count(workload)?, count("nothing")?);
    for (name, calls) in without {
        *with.entry(name).or_default() -= calls;
    }
    Some(with)
}

/// Whether listings on this file system say where they end.
fn is_ext4(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == 0xEF53)
}

/// `count` is about `expected`: threads and the test around take some calls.
fn assert_about(what: &str, count: i64, expected: i64) {
    assert!((expected..=expected + 60).contains(&count), "{what}: {count}, not about {expected}");
}

fn small_directories(root: &Path, dirs: i64, files: i64) {
    for dir in 0..dirs {
        let path = root.join(format!("group{}/dir{dir}", dir % 20));
        fs::create_dir_all(&path).unwrap();
        for file in 0..files {
            File::create(path.join(format!("file{file}"))).unwrap();
        }
    }
}

#[test]
fn a_small_directory_costs_an_open_a_listing_and_a_close() {
    let dir = tempfile::tempdir().unwrap();
    small_directories(dir.path(), 2_000, 3);
    let dirs = 2_000 + 20 + 1;
    for (workload, files_asked, dirs_asked) in [("list", 0, 0), ("total", 6_000, dirs)] {
        let Some(calls) = calls(workload, dir.path()) else {
            eprintln!("skipped: no strace");
            return;
        };
        let count = |name: &str| calls.get(name).copied().unwrap_or(0);
        assert_about("openat", count("openat"), dirs);
        assert_about("close", count("close"), dirs);
        let listings = if is_ext4(dir.path()) { dirs } else { 2 * dirs };
        assert_about("getdents64", count("getdents64"), listings);
        assert_about("newfstatat", count("newfstatat") + count("statx"), files_asked);
        assert_about("fstat", count("fstat"), dirs_asked);
        // Waits are slow under strace, and so are more than they are without.
        assert!(count("futex") < 60 + dirs / 10, "{calls:?}");
    }
}

#[test]
fn further_names_of_a_counted_inode_are_not_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let names = |snapshot: i64| dir.path().join(format!("snap{snapshot}"));
    small_directories(&names(0), 100, 20);
    for snapshot in 1..10 {
        let (from, to) = (names(0), names(snapshot));
        assert!(Command::new("cp").arg("-al").args([from, to]).status().unwrap().success());
    }
    let Some(calls) = calls("total", dir.path()) else { return };
    let asked = calls.get("newfstatat").copied().unwrap_or(0);
    let all = 20_000;
    if is_ext4(dir.path()) {
        assert!((2_000..all * 35 / 100).contains(&asked), "{asked} of {all}");
    } else {
        assert_about("newfstatat", asked, all);
    }
}
