//! Trees of extreme shape.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fdu::du::{Detail, Usage};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{assert_totals_equal, gnu, threads};

fn open(dir: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, path, flags, Mode::empty()).unwrap()
}

fn make_dir(dir: &OwnedFd, name: &str) {
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)).unwrap();
}

fn make_file(dir: &OwnedFd, name: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)).unwrap();
}

/// Something too deep for those who remove directories by recursion.
struct Deep(Option<TempDir>);

impl Deep {
    /// A chain of directories; `each` adds to every level.
    fn new(levels: usize, each: impl Fn(&OwnedFd, usize)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut at = open(CWD, dir.path());
        for level in 0..levels {
            each(&at, level);
            make_dir(&at, "level");
            at = open(&at, "level");
        }
        each(&at, levels);
        Self(Some(dir))
    }

    fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        let path = self.0.take().unwrap().keep();
        assert!(Command::new("rm").arg("-rf").arg(path).status().unwrap().success());
    }
}

#[test]
fn a_chain_of_20_000_levels_is_counted_to_its_end() {
    let chain = Deep::new(20_000, |_dir, _level| {});
    let roots = [chain.path().to_owned()];
    let theirs = gnu(&["-s"], &roots).lines[0].0;
    for count in [1, 2] {
        let usage = Usage::new(&roots).threads(threads(count));
        let report = usage.measure();
        assert_eq!((report.total.disk_bytes, report.error_count), (theirs, 0));
        let report = usage.detail(Detail::Directories { max_depth: u32::MAX }).measure();
        assert_eq!(report.items.len(), 20_001);
        assert_eq!(report.items[0].total.disk_bytes, theirs);
        assert_eq!(report.items[20_000].depth, 20_000);
    }
}

/// Two directories at each level keep all of them waiting, which no number of descriptors covers.
#[test]
fn a_deep_comb_is_counted_with_few_descriptors() {
    // Names differ, so that listings have them in different orders.
    let comb = Deep::new(3_000, |dir, level| {
        for side in ["left", "right"] {
            let name = format!("{side}-{level}");
            make_dir(dir, &name);
            make_file(&open(dir, &*name), "file");
        }
    });
    let roots = [comb.path().to_owned()];
    let theirs = gnu(&["-s"], &roots).lines[0].0;
    for count in [1, 2, 8] {
        for open_max in [0, 3, 100] {
            let usage = Usage::new(&roots).threads(threads(count)).open_directories_max(open_max);
            let report = usage.measure();
            assert_eq!(report.errors.len(), 0, "{}", report.errors[0]);
            assert_eq!(report.total.disk_bytes, theirs);
            // Several threads may take the waiting ones away before they are too many.
            let reopens: u64 = report.statistics.iter().map(|worker| worker.reopens).sum();
            assert!(reopens > 1_000 || (count > 1 && open_max > 0), "{reopens}");
        }
    }
}

/// The same with the process's limit, which also says how many threads there may be.
#[test]
fn a_process_with_few_descriptors_counts_everything() {
    let comb = Deep::new(300, |dir, level| {
        for side in ["left", "right", "middle"] {
            make_dir(dir, &format!("{side}-{level}"));
        }
    });
    let theirs = gnu(&["-s"], &[comb.path().to_owned()]).lines[0].0;
    for limit in [8, 24, 100] {
        let output = Command::new("sh")
            .args(["-c", "ulimit -n $1; shift; \"$@\"", "sh", &limit.to_string()])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "measure_for_others", "--ignored", "--nocapture"])
            .args(["--test-threads=1"])
            .env("FDU_TEST_ROOT", comb.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&format!("figures {theirs} 0\n")), "limit {limit}: {text}");
    }
}

#[test]
fn a_flat_directory_is_shared_and_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = open(CWD, dir.path());
    for index in 0..100_000 {
        make_file(&at, &format!("file-{index}"));
    }
    let roots = [dir.path().to_owned()];
    let theirs = gnu(&["-s", "--inodes"], &roots).lines[0].0;
    for count in [1, 2, 8] {
        let report = Usage::new(&roots).threads(threads(count)).measure();
        assert_eq!((report.total.inodes, report.error_count), (theirs, 0));
        if count > 1 && cfg!(all(target_os = "linux", not(fdu_portable))) {
            let steals: u64 = report.statistics.iter().map(|worker| worker.steals).sum();
            assert!(steals > 3, "{:?}", report.statistics);
        }
    }
}

/// A process that is stopped gets less of a listing than there is, and the rest when it goes on: what
/// looks like the last part of a directory is not.
#[test]
fn a_walk_that_is_stopped_and_continued_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for group in 0..20 {
        let at = dir.path().join(format!("group{group}"));
        fs::create_dir(&at).unwrap();
        let at = open(CWD, &*at);
        for index in 0..2_000 {
            make_file(&at, &format!("file-{index}"));
        }
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "measure_for_others", "--ignored", "--nocapture"])
        .env("FDU_TEST_ROOT", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    // What it prints fits into the pipe.
    while child.try_wait().unwrap().is_none() {
        // It may have ended meanwhile; then there is nobody to tell.
        let is_there = kill_process(pid, Signal::STOP).is_ok();
        assert!(!is_there || kill_process(pid, Signal::CONT).is_ok());
        // It has to get on, too.
        librorum_sys::clock::sleep(Duration::from_micros(500));
    }
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(text.contains("inodes 40021\n"), "{text}");
}

#[test]
fn an_empty_directory_and_nothing_at_all_are_fine() {
    let dir = tempfile::tempdir().unwrap();
    assert_totals_equal(&[dir.path().to_owned()]);
    let report = Usage::new(Vec::<PathBuf>::new()).measure();
    assert_eq!((report.total.inodes, report.error_count), (0, 0));
}

/// `/` as a root, and roots that end in slashes, keep their paths.
#[test]
fn paths_of_items_are_those_of_du() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("within")).unwrap();
    let mut root = dir.path().to_owned();
    root.push("");
    let usage = Usage::new([&root]).detail(Detail::Directories { max_depth: 9 });
    let report = usage.measure();
    assert_eq!(report.path_of(0), root);
    assert_eq!(report.path_of(1), dir.path().join("within"));
}
