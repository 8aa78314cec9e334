//! Transfers that are killed halfway and go on: what was there is not sent again.

use std::ffi::OsStr;
use std::fs;
use std::process::Stdio;

use crate::setup::{Setup, Way, bytes, until};

const LEN: usize = 48 << 20;
const RATE: &str = "24M";

/// Starts a transfer at a slow pace, and kills it when some of it has moved.
fn interrupt(setup: &Setup, words: &[&OsStr], has_begun: impl FnMut() -> bool) {
    let mut child = setup
        .command(words.iter().chain(&[OsStr::new("--limit"), OsStr::new(RATE)]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the beginning of the transfer", has_begun);
    librorum_sys::clock::sleep(std::time::Duration::from_millis(900));
    child.kill().unwrap();
    child.wait().unwrap();
}

fn put_goes_on(way: Way, kills_daemon: bool) {
    let mut setup = Setup::new(way);
    let (local, content) = (setup.path("large"), bytes(LEN, 3));
    fs::write(&local, &content).unwrap();
    let put = [OsStr::new("put"), local.as_os_str(), OsStr::new("/large"), OsStr::new("--resume")];
    interrupt(&setup, &put, || true);
    if kills_daemon {
        setup.kill();
        setup.start();
    }
    assert_eq!(setup.fails("stat /large").0, 1, "half a file has no name");
    let said = setup.ok(&put);
    let (moved, kept) =
        (said["moved_bytes"].as_u64().unwrap(), said["kept_bytes"].as_u64().unwrap());
    assert!(kept > 4 << 20, "{way:?}: {said}");
    assert!(moved + kept <= (LEN + (4 << 20)) as u64, "{way:?}: {said}");
    let back = setup.path("back");
    setup.ok(&[OsStr::new("get"), OsStr::new("/large"), back.as_os_str()]);
    assert!(fs::read(back).unwrap() == content, "{way:?}: the file is another");
}

#[test]
fn a_killed_put_goes_on_over_the_socket() {
    put_goes_on(Way::Socket, false);
}

#[test]
fn a_killed_put_goes_on_over_grpc() {
    put_goes_on(Way::Grpc, false);
}

#[test]
fn a_killed_put_goes_on_with_another_daemon() {
    put_goes_on(Way::Socket, true);
}

#[test]
fn a_killed_get_goes_on() {
    let setup = Setup::new(Way::Socket);
    let (local, content) = (setup.path("large"), bytes(LEN, 5));
    fs::write(&local, &content).unwrap();
    setup.ok(&[OsStr::new("put"), local.as_os_str(), OsStr::new("/large")]);
    setup.say("sync --seal");
    let back = setup.path("back");
    let get = [OsStr::new("get"), OsStr::new("/large"), back.as_os_str(), OsStr::new("--resume")];
    interrupt(&setup, &get, || setup.path("back.librorum-part").exists());
    assert!(!back.exists(), "half a file has no name");
    let said = setup.ok(&get);
    let (moved, kept) =
        (said["moved_bytes"].as_u64().unwrap(), said["kept_bytes"].as_u64().unwrap());
    assert!(kept > 4 << 20, "{said}");
    assert_eq!(moved + kept, LEN as u64, "{said}");
    assert!(fs::read(&back).unwrap() == content);
    assert!(!setup.path("back.librorum-part").exists());
}
