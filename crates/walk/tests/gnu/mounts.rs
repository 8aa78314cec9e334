//! Trees with other file systems in them. They need root, and skip without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fdu::du::Usage;

use super::fixture::{Fixture, write};
use super::{assert_totals_equal, threads};

/// A mount that is gone with the test.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], source: &Path, target: &Path) -> Option<Self> {
        let mut command = Command::new("mount");
        let is_mounted = command.args(arguments).args([source, target]).status().unwrap().success();
        if !is_mounted {
            eprintln!("skipped: cannot mount");
        }
        is_mounted.then(|| Self(target.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(&self.0).status().unwrap().success());
    }
}

#[test]
fn another_file_system_within_counts_or_is_left_out() {
    let fixture = Fixture::new();
    let point = fixture.path("empty");
    let Some(_mount) = Mount::new(&["-t", "tmpfs"], Path::new("tmpfs"), &point) else { return };
    fs::create_dir(point.join("inside")).unwrap();
    write(&point.join("inside/file"), 70_000);
    assert_totals_equal(&[fixture.path("")]);
    assert_totals_equal(&[fixture.path("empty"), fixture.path("")]);
}

#[test]
fn what_is_mounted_twice_counts_as_in_du() {
    let fixture = Fixture::new();
    let (source, point) = (fixture.path("plain"), fixture.path("empty"));
    let Some(_mount) = Mount::new(&["--bind"], &source, &point) else { return };
    assert_totals_equal(&[fixture.path("")]);
}

#[test]
fn a_directory_mounted_within_itself_is_left_out_there() {
    let fixture = Fixture::new();
    let (source, point) = (fixture.path(""), fixture.path("plain/below/deeper"));
    let Some(_mount) = Mount::new(&["--bind"], &source, &point) else { return };
    assert_totals_equal(&[fixture.path("")]);
}

/// The listing says that the name leads to an inode with several names that was counted; what is
/// mounted there is another.
#[test]
fn a_file_mounted_over_a_counted_link_counts() {
    let fixture = Fixture::new();
    let source = fixture.path("plain/file6");
    for point in ["links/first", "links/second", "links/third"] {
        let Some(_mount) = Mount::new(&["--bind"], &source, &fixture.path(point)) else { return };
        assert_totals_equal(&[fixture.path("")]);
    }
    let report = Usage::new([fixture.path("links")]).threads(threads(1)).measure();
    assert_eq!(report.total.inodes, 2);
}
