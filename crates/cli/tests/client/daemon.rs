//! The daemon's life: start, stop, restart, and what is wrong with its configuration.

use std::ffi::OsStr;
use std::fs;

use serde_json::Value;

use crate::setup::{Setup, Way, end};

fn run(setup: &Setup, words: &[&str]) -> (i32, Value, String) {
    let config = setup.path("librorum.toml");
    let ended = end(setup.program().arg("--json").args(words).arg("--config").arg(config));
    let said = serde_json::from_slice(&ended.stdout).unwrap_or(Value::Null);
    (ended.code.unwrap(), said, ended.stderr)
}

#[test]
fn it_starts_stops_and_starts_again() {
    let setup = Setup::new(Way::Embedded);
    let (code, first, stderr) = run(&setup, &["start"]);
    assert_eq!(code, 0, "{stderr}");
    let (_, again, _) = run(&setup, &["start"]);
    assert_eq!((&again["pid"], &again["already"]), (&first["pid"], &Value::Bool(true)));
    // A second one at the same socket is refused.
    let (code, said, _) = run(&setup, &["daemon"]);
    assert_eq!(code, 1, "{said}");
    // The volume is reached by its folder, through the daemon that holds it.
    setup.say("mkdir /a");
    let status = end(setup.program().args(["--json", "status"])).json();
    let all = status.as_array().unwrap();
    assert!(all.iter().any(|one| one["daemon"]["pid"] == first["pid"]), "{status}");
    let (code, second, _) = run(&setup, &["restart"]);
    assert_eq!(code, 0);
    assert_ne!(second["pid"], first["pid"]);
    assert_eq!(setup.say("ls /").as_array().unwrap().len(), 1);
    assert_eq!(run(&setup, &["stop"]).0, 0);
    assert_eq!(run(&setup, &["stop"]).0, 4);
    // Nobody holds the volume now.
    assert_eq!(setup.say("ls /").as_array().unwrap().len(), 1);
    assert!(!setup.path("run/daemon.sock").exists());
}

#[test]
fn what_is_wrong_with_the_configuration_is_said_with_its_line() {
    let setup = Setup::new(Way::Embedded);
    setup.write_config("[daemon2]\nx = 1\n");
    for words in [&["config", "check"][..], &["start"], &["daemon"]] {
        let (code, said, stderr) = run(&setup, words);
        assert_eq!(code, 1, "{words:?}: {said}");
        let message = format!("{said}{stderr}");
        assert!(message.contains("librorum.toml:") && message.contains("daemon2"), "{message}");
    }
}

#[test]
fn a_volume_that_fails_does_not_keep_the_others() {
    let setup = Setup::new(Way::Embedded);
    setup.write_config("[[volume]]\nname = 'gone'\npath = '/nonexistent/volume'\n");
    let (code, said, stderr) = run(&setup, &["start"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(said["troubles"][0].as_str().unwrap().contains("gone"), "{said}");
    setup.say("ls /");
    assert_eq!(run(&setup, &["stop"]).0, 0);
    fs::rename(setup.volume(), setup.path("away")).unwrap();
    assert_eq!(run(&setup, &["start"]).0, 1);
}

#[test]
fn the_daemon_tells_of_itself() {
    let setup = Setup::new(Way::Socket);
    setup.say("mkdir /a");
    let top = setup.say("top --once");
    let operations = top["operations"].as_array().unwrap();
    assert!(operations.iter().any(|line| line["count"].as_u64().unwrap() > 0), "{top}");
    let transport = setup.say("transport -n 5");
    assert!(!transport["daemon"].as_array().unwrap().is_empty(), "{transport}");
    assert!(setup.say("nodes")["own_id"].is_string());
    let logs = end(&mut setup.command(["logs", "-n", "1"]));
    assert_eq!(logs.code, Some(0), "{logs:?}");
}

#[test]
fn the_daemon_mounts_what_it_holds() {
    let setup = Setup::new(Way::Socket);
    let mounted = setup.path("mnt");
    let mut mount = setup.program();
    mount.args(["--json", "mount"]).arg(setup.volume()).arg(&mounted);
    let ended = end(&mut mount);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    setup.say("mkdir /a");
    assert!(mounted.join("a").is_dir());
    let unmounted = end(setup.program().arg("umount").arg(&mounted));
    assert_eq!(unmounted.code, Some(0), "{unmounted:?}");
    setup.ok(&[OsStr::new("ls"), OsStr::new("/a")]);
}
