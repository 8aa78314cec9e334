//! One story told over every way: all commands, with the same answers.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::setup::{Setup, WAYS, Way, bytes, end, snapshot};

/// A tree with all that has to survive: modes, times, links, holes, names that are not UTF-8.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("small"), "words\n").unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join("deep/er/large"), bytes(3 << 20, 7)).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"odd \xff name")), "odd").unwrap();
    symlink("../small", root.join("deep/link")).unwrap();
    fs::set_permissions(root.join("small"), PermissionsExt::from_mode(0o640)).unwrap();
    fs::set_permissions(root.join("empty"), PermissionsExt::from_mode(0o701)).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (8 << 20) - 3).unwrap();
    // A minute that is over, so that nothing has it by accident.
    for name in ["small", "deep/er/large", "empty"] {
        let file = fs::File::open(root.join(name)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123);
        file.set_modified(time).unwrap();
    }
}

/// What may differ between volumes and runs.
fn comparable(mut value: Value) -> Value {
    fn clean(value: &mut Value) {
        match value {
            Value::Array(all) => all.iter_mut().for_each(clean),
            Value::Object(fields) => {
                for key in [
                    "ino",
                    "atime_ns",
                    "mtime_ns",
                    "ctime_ns",
                    "btime_ns",
                    "state",
                    "milliseconds",
                    "transports",
                    "allocated_bytes",
                ] {
                    fields.remove(key);
                }
                fields.values_mut().for_each(clean);
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    clean(&mut value);
    value
}

fn story(setup: &Setup) -> Vec<Value> {
    let tree = setup.path("tree");
    fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    let own = format!("{0}:{0}", setup.uid);
    assert!(Command::new("chown").args(["-Rh", &own]).arg(&tree).status().unwrap().success());
    let mut told = Vec::new();
    let say = |line: &str| comparable(setup.say(line));
    let word = |text: &'static str| OsStr::new(text);
    told.push(say("mkdir -p /a/b/c"));
    told.push(say("mkdir -m 700 /private"));
    let put = [word("put"), word("-r"), word("--verify"), tree.as_os_str(), word("/copy")];
    told.push(comparable(setup.ok(&put)));
    told.push(say("ls -R -a /copy"));
    told.push(say("ls -d /copy"));
    told.push(say("stat /copy/small /copy/deep/link"));
    told.push(say("find /copy --name *l* --type f"));
    told.push(say("find /copy --size +1M"));
    told.push(say("cp -r /copy /again"));
    told.push(say("mv /copy/small /copy/renamed"));
    told.push(say("mv --exchange /copy/renamed /copy/nothing"));
    told.push(say("ln /again/small /a/second"));
    told.push(say("ln -s ../x /a/symlink"));
    told.push(say("rm /copy/renamed"));
    told.push(say("sync --seal"));
    told.push(say("du /again"));
    told.push(say("stat --chunks /again/deep/er/large"));
    told.push(say("rm -r /copy"));
    told.push(say("rm -f /copy"));
    for line in
        ["stat /copy", "rm /a", "mkdir /a", "mv -n /again/small /a/second", "cat /a", "ls /a/../b"]
    {
        let (code, answer) = setup.fails(line);
        told.push(json!({ "code": code, "kind": answer["kind"], "errno": answer["errno"] }));
    }
    let back = setup.path("back");
    let get = [word("get"), word("-r"), word("--verify"), word("/again"), back.as_os_str()];
    told.push(comparable(setup.ok(&get)));
    assert_eq!(snapshot(&back), snapshot(&tree), "{:?}", setup.way);
    let blocks = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap());
    assert!(blocks(&back.join("sparse")) < 1024, "a hole is a hole still");
    let part = setup.path("part");
    let get = [
        word("get"),
        word("--range"),
        word("100-199"),
        word("/again/deep/er/large"),
        part.as_os_str(),
    ];
    setup.ok(&get);
    assert_eq!(fs::read(&part).unwrap(), bytes(3 << 20, 7)[100..200]);
    let out = end(&mut setup.command(["get", "/again/small", "-"]));
    assert_eq!(out.stdout, b"words\n");
    told
}

#[test]
fn every_way_answers_the_same() {
    let told: Vec<Vec<Value>> = WAYS
        .iter()
        .map(|way| {
            let mut setup = Setup::new(*way);
            let told = story(&setup);
            setup.stop();
            told
        })
        .collect();
    for (way, other) in WAYS.iter().zip(&told).skip(1) {
        for (step, (first, here)) in told[0].iter().zip(other).enumerate() {
            assert_eq!(first, here, "step {step} of {way:?}");
        }
    }
}

#[test]
fn another_user_keeps_to_the_permissions() {
    for way in [Way::Embedded, Way::Socket] {
        let setup = Setup::of_user(way, 65534);
        let told = story(&setup);
        assert!(!told.is_empty());
    }
}

#[test]
fn a_mount_shows_at_once_what_clients_do() {
    let setup = Setup::new(Way::Mounted);
    let mounted = setup.path("mnt");
    let local = setup.path("file");
    fs::write(&local, "first").unwrap();
    let put = [OsStr::new("put"), local.as_os_str(), OsStr::new("/file")];
    setup.ok(&put);
    assert_eq!(fs::read(mounted.join("file")).unwrap(), b"first");
    fs::write(&local, "second, and longer").unwrap();
    setup.ok(&put);
    assert_eq!(fs::read(mounted.join("file")).unwrap(), b"second, and longer");
    fs::remove_file(mounted.join("file")).unwrap();
    assert_eq!(setup.fails("stat /file").0, 1);
    fs::write(mounted.join("new"), "mount").unwrap();
    assert_eq!(end(&mut setup.command(["get", "/new", "-"])).stdout, b"mount");
    setup.say("rm /new");
    assert!(!mounted.join("new").exists());
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_others_go_on() {
    let setup = Setup::of_user(Way::Socket, 65534);
    let tree = setup.path("tree");
    fs::create_dir(&tree).unwrap();
    for name in ["a", "secret", "z"] {
        fs::write(tree.join(name), name).unwrap();
    }
    fs::set_permissions(tree.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let mut put = setup.command(["put", "-r", "--continue-on-error"]);
    let ended = end(put.arg(&tree).arg("/tree"));
    assert_eq!(ended.code, Some(5), "{ended:?}");
    let said = ended.json();
    assert_eq!(said["files"], 2);
    assert!(said["errors"][0].as_str().unwrap().contains("secret"), "{said}");
    let listed = setup.say("ls /tree");
    assert_eq!(listed.as_array().unwrap().len(), 2);
}
