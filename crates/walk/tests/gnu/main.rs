//! The figures of [`fdu::du`] are those of GNU du, byte for byte.
//!
//! Needs GNU du; tests that mount or change the user need root, and say so if they skip.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fixture;
mod mounts;
mod shapes;

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fdu::du::{Detail, Links, Report, RootState, Totals, Usage};
use fdu::{Devices, Follow, Threads};
use fixture::Fixture;

/// How often a figure is taken, with so many threads.
const THREADS: [usize; 3] = [1, 2, 8];

fn threads(count: usize) -> Threads {
    Threads::Exactly(NonZeroUsize::new(count).unwrap())
}

/// What GNU du prints: figures and paths, and how many complaints.
#[derive(Debug, PartialEq, Eq)]
struct Printed {
    lines: Vec<(u64, PathBuf)>,
    complaints: usize,
}

fn run(mut command: Command) -> Printed {
    let output = command.stdin(Stdio::null()).env("LC_ALL", "C").output().unwrap();
    let lines = output.stdout.split(|byte| *byte == 0).filter(|line| !line.is_empty());
    let lines = lines
        .map(|line| {
            let tab = line.iter().position(|byte| *byte == b'\t').unwrap();
            let figure = std::str::from_utf8(&line[..tab]).unwrap().parse().unwrap();
            (figure, PathBuf::from(OsStr::from_bytes(&line[tab + 1..])))
        })
        .collect();
    let complaints = output.stderr.split(|byte| *byte == b'\n');
    let complaints = complaints.filter(|line| line.starts_with(b"du: ")).count();
    assert_eq!(output.status.success(), complaints == 0, "{output:?}");
    Printed { lines, complaints }
}

fn gnu(options: &[&str], roots: &[PathBuf]) -> Printed {
    let mut command = Command::new("du");
    command.args(["-0", "-B1"]).args(options).arg("--").args(roots);
    run(command)
}

/// The figures of `--apparent-size` changed with coreutils 9.2: the installed one decides.
fn apparent(totals: &Totals) -> u64 {
    let output = Command::new("du").arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let version = text.lines().next().unwrap().rsplit(' ').next().unwrap();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap_or(0));
    if version >= (9, 2) { totals.apparent_bytes } else { totals.apparent_all_bytes }
}

/// What du would print of a report made with [`Detail::Totals`].
fn summary(report: &Report, figure: fn(&Totals) -> u64) -> Printed {
    let counted = report.roots.iter().filter(|root| root.state == RootState::Counted);
    let lines = counted.map(|root| (figure(&root.totals), root.path.clone())).collect();
    Printed { lines, complaints: usize::try_from(report.error_count).unwrap() }
}

/// All items as du prints them, sorted by path.
fn all(report: &Report, figure: impl Fn(&fdu::du::Item) -> u64) -> Vec<(u64, PathBuf)> {
    let lines = report.items.iter().enumerate();
    let mut lines: Vec<_> =
        lines.map(|(index, item)| (figure(item), report.path_of(index))).collect();
    lines.sort_by(|one, two| one.1.as_os_str().cmp(two.1.as_os_str()));
    lines
}

fn sorted(mut printed: Printed) -> Vec<(u64, PathBuf)> {
    printed.lines.sort_by(|one, two| one.1.as_os_str().cmp(two.1.as_os_str()));
    printed.lines
}

fn disk(totals: &Totals) -> u64 {
    totals.disk_bytes
}

fn inodes(totals: &Totals) -> u64 {
    totals.inodes
}

/// An option of du, and how ours is set.
type Case = (&'static [&'static str], fn(Usage) -> Usage, fn(&Totals) -> u64);

const CASES: &[Case] = &[
    (&[], |usage| usage, disk),
    (&["-l"], |usage| usage.links(Links::Each), disk),
    (&["-x"], |usage| usage.devices(Devices::SameAsRoot), disk),
    (&["-L"], |usage| usage.follow(Follow::Always), disk),
    (&["-D"], |usage| usage.follow(Follow::Roots), disk),
    (&["--apparent-size"], |usage| usage, apparent),
    (&["--inodes"], |usage| usage, inodes),
    (&["-l", "-L"], |usage| usage.links(Links::Each).follow(Follow::Always), disk),
    (&["-l", "--inodes"], |usage| usage.links(Links::Each), inodes),
    (
        &["-L", "-x", "--inodes"],
        |usage| usage.follow(Follow::Always).devices(Devices::SameAsRoot),
        inodes,
    ),
    (&["-L", "--apparent-size"], |usage| usage.follow(Follow::Always), apparent),
];

/// Compares totals of some roots, every option, several numbers of threads.
fn assert_totals_equal(roots: &[PathBuf]) {
    for (options, set, figure) in CASES {
        let with_s: Vec<&str> = std::iter::once("-s").chain(options.iter().copied()).collect();
        let theirs = gnu(&with_s, roots);
        for count in THREADS {
            let usage = set(Usage::new(roots)).threads(threads(count));
            let ours = summary(&usage.measure(), *figure);
            assert_eq!(ours, theirs, "du {options:?} {roots:?}, {count} threads");
            let detail = Detail::Files { max_depth: u32::MAX };
            let ours = summary(&usage.detail(detail).measure(), *figure);
            assert_eq!(ours, theirs, "with detail: du {options:?} {roots:?}, {count} threads");
        }
    }
}

#[test]
fn totals_equal_gnu_du_with_every_option() {
    let fixture = Fixture::new();
    fixture.link_across();
    assert_totals_equal(&[fixture.path("")]);
}

#[test]
fn roots_that_overlap_are_counted_once() {
    let fixture = Fixture::new();
    fixture.link_across();
    let path = |name: &str| fixture.path(name);
    for roots in [
        &["plain", "links"][..],
        &["", "plain"],
        &["plain/below", "plain", ""],
        &["plain", "plain"],
        &["links/first", "links/second", "plain/across"],
        &["plain/across", "links"],
        &["missing", "plain"],
        &["to-plain", "plain"],
        &["to-plain/", "plain"],
        &["dangling"],
        &["fifo", "sparse", "circle-a"],
    ] {
        assert_totals_equal(&roots.iter().map(|name| path(name)).collect::<Vec<_>>());
    }
}

#[test]
fn a_grand_total_is_the_sum_of_what_is_new_under_each_root() {
    let fixture = Fixture::new();
    fixture.link_across();
    let roots = [fixture.path("plain"), fixture.path("links"), fixture.path("")];
    let theirs = gnu(&["-s", "-c"], &roots);
    let report = Usage::new(&roots).measure();
    assert_eq!(theirs.lines.last().unwrap(), &(report.total.disk_bytes, PathBuf::from("total")));
}

#[test]
fn every_file_and_directory_equals_gnu_du() {
    // Without links across directories du's figures do not depend on the order of its walk.
    let fixture = Fixture::new();
    let roots = [fixture.path("")];
    let without_links = |path: &Path| !path.starts_with(fixture.path("links")) || path.is_dir();
    for count in THREADS {
        let usage = Usage::new(&roots).threads(threads(count));
        let files = usage.clone().detail(Detail::Files { max_depth: u32::MAX }).measure();
        let mut ours = all(&files, |item| item.total.disk_bytes);
        let mut theirs = sorted(gnu(&["-a"], &roots));
        ours.retain(|(_, path)| without_links(path));
        theirs.retain(|(_, path)| without_links(path));
        assert_eq!(ours, theirs);

        let max_depth = u32::MAX;
        let directories = usage.clone().detail(Detail::Directories { max_depth }).measure();
        let own = all(&directories, |item| item.own.disk_bytes);
        assert_eq!(own, sorted(gnu(&["-S"], &roots)));
        let counts = all(&directories, |item| item.total.inodes);
        assert_eq!(counts, sorted(gnu(&["--inodes"], &roots)));
        let lengths = all(&directories, |item| apparent(&item.total));
        assert_eq!(lengths, sorted(gnu(&["--apparent-size"], &roots)));

        for max_depth in 0..3 {
            let shallow = usage.clone().detail(Detail::Directories { max_depth }).measure();
            let option = format!("--max-depth={max_depth}");
            let ours = all(&shallow, |item| item.total.disk_bytes);
            assert_eq!(ours, sorted(gnu(&[&option], &roots)));
        }
    }
}

#[test]
fn the_newest_time_is_that_of_gnu_du() {
    let fixture = Fixture::new();
    let roots = [fixture.path("plain")];
    let mut command = Command::new("du");
    command.args(["-0", "-s", "--time", "--time-style=+%s"]).args(&roots);
    let printed = command.output().unwrap().stdout;
    let text = String::from_utf8(printed).unwrap();
    let theirs: i64 = text.split('\t').nth(1).unwrap().parse().unwrap();
    let report = Usage::new(&roots).measure();
    assert_eq!(report.total.newest.unwrap().secs, theirs);
}

/// A link's directories are awarded by name, however the walk went.
#[test]
fn an_inode_belongs_to_its_first_name_in_sorted_order() {
    let fixture = Fixture::new();
    fixture.link_across();
    for count in THREADS {
        for _again in 0..5 {
            let usage = Usage::new([fixture.path("")]).threads(threads(count));
            let report = usage.detail(Detail::Files { max_depth: 9 }).measure();
            let names: Vec<PathBuf> =
                (0..report.items.len()).map(|index| report.path_of(index)).collect();
            // Of `links/first`, `links/second`, `plain/across`, `plain/below/across`.
            assert!(names.contains(&fixture.path("links/first")));
            assert!(!names.contains(&fixture.path("links/second")));
            assert!(!names.contains(&fixture.path("plain/across")));
            assert_eq!(report.items[0].total, report.roots[0].totals);
        }
    }
}

/// Everything that one user cannot read, as `nobody`; the test runs itself as that user.
#[test]
fn unreadable_directories_count_themselves_and_are_errors() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to become another user");
        return;
    }
    let fixture = Fixture::new();
    fixture.close_to_others();
    let program = fixture.path("test-program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let as_nobody = |program: &OsStr| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
        command
    };
    let mut du = as_nobody(OsStr::new("du"));
    du.args(["-0", "-B1", "-s"]).arg(fixture.path(""));
    let theirs = run(du);
    assert!(theirs.complaints >= 2, "{theirs:?}");
    let mut ours = as_nobody(program.as_os_str());
    ours.args(["--exact", "measure_for_others", "--ignored", "--nocapture"]);
    let output = ours.env("FDU_TEST_ROOT", fixture.path("")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let figures = format!("figures {} {}\n", theirs.lines[0].0, theirs.complaints);
    assert!(text.contains(&figures), "{theirs:?} {text}");
}

#[test]
#[ignore = "a part of tests that run it as another user, or with other limits"]
fn measure_for_others() {
    let root = std::env::var_os("FDU_TEST_ROOT").unwrap();
    let report = Usage::new([root]).threads(threads(8)).measure();
    println!("\nfigures {} {}", report.total.disk_bytes, report.error_count);
    println!("inodes {}", report.total.inodes);
    for error in &report.errors {
        println!("{error}");
    }
}

#[test]
fn proc_is_walked_to_its_end() {
    let report = Usage::new(["/proc"]).threads(threads(4)).measure();
    assert!(!report.stopped);
    assert_eq!(report.roots[0].state, RootState::Counted);
    assert!(report.total.inodes > 1_000);
    // Processes end meanwhile, and some of their files are nobody's to read.
    assert!(report.error_count < report.total.inodes);
}

#[test]
fn a_path_with_a_zero_byte_is_an_error_like_any_other() {
    let fixture = Fixture::new();
    let odd = PathBuf::from(OsString::from_vec(b"a\0b".to_vec()));
    let report = Usage::new([odd, fixture.path("plain")]).measure();
    assert_eq!(report.error_count, 1);
    assert_eq!(report.roots[0].state, RootState::Failed);
    assert_eq!(report.roots[1].state, RootState::Counted);
}
