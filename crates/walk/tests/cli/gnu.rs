//! Options that GNU du has: the same lines, byte for byte.

use std::io::Write;
use std::process::Stdio;

use crate::{Folder, code, has, is_root};

/// Lines that end in zero, sorted: the order of a directory's entries is du's own affair.
fn sorted(output: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = output
        .split(|byte| *byte == 0)
        .filter(|line| !line.is_empty())
        .map(|line| line.escape_ascii().to_string())
        .collect();
    lines.sort();
    lines
}

fn assert_same(folder: &Folder, du: &[&str], fdu: &[&str]) {
    let theirs = folder.command("du", &[&["-0"], du].concat()).output().unwrap();
    let ours = folder.fdu(&[&["-0"], fdu].concat());
    assert_eq!(sorted(&ours.stdout), sorted(&theirs.stdout), "du {du:?}, fdu {fdu:?}");
    assert_eq!(code(&ours), code(&theirs), "du {du:?}, fdu {fdu:?}");
}

#[test]
fn options_with_the_same_letters() {
    let folder = Folder::with_tree();
    for options in [
        &["-k"][..],
        &["-h"],
        &["--si"],
        &["-m"],
        &["-B1", "-a"],
        &["-B512"],
        &["-B1000"],
        &["-BM", "-a"],
        &["-BkB", "-a"],
        &["-BKiB"],
        &["-B", "si"],
        &["-a", "-h"],
        &["-a", "--si"],
        &["-s", "-h"],
        &["-s", "-k", "tree/a", "tree/d"],
        &["-c", "-k", "tree/a", "tree/d"],
        &["-k", "tree", "tree/a"],
        &["-k", "tree/a", "tree"],
        &["-k", "tree/a", "tree/a"],
        &["-k", "-a", "-l"],
        &["-k", "-l", "tree/a", "tree/a"],
        &["--inodes"],
        &["--inodes", "-a"],
        &["--inodes", "-l", "-c"],
        &["--inodes", "-h"],
        &["-k", "--exclude", "*.rs", "-a"],
        &["-k", "--exclude", "b", "-a"],
        &["-k", "--exclude", "a/b", "-a"],
        &["-k", "--exclude", "t*b", "-a"],
        &["-k", "--exclude", "tree/*", "-a", "tree"],
        &["-k", "--exclude", "./tree", "-a"],
        &["-k", "--exclude", "tree", "tree", "to-tree"],
        &["-k", "--exclude", "[a-c]", "-a"],
        &["-k", "--exclude", "not?utf8", "-a"],
        &["-k", "--exclude", "*.TXT", "--exclude", "three*", "-a"],
        &["-a", "-h", "-t", "10K"],
        &["-a", "-h", "-t", "-10K"],
        &["-a", "-h", "-t", "5kB"],
        &["-a", "-h", "--threshold=-0x", "-t", "1"],
        &["--inodes", "-t", "3"],
        &["--inodes", "-t", "-3"],
        &["-k", "--time", "-a"],
        &["-k", "--time"],
        &["-k", "--time=atime", "-a"],
        &["-k", "--time=ctime", "-a"],
        &["-k", "--time", "--time-style=full-iso", "-a"],
        &["-k", "--time", "--time-style=iso", "-c"],
        &["-k", "to-tree"],
        &["-k", "to-tree/"],
        &["-k", "-D", "to-tree"],
        &["-k", "-P", "to-tree"],
        &["-k", "tree/a/one.txt", "tree/dangling"],
        &["-k", "tree/d/sparse", "tree/a", "tree/dangling", "tree/a/one.txt", "tree/d"],
        &["-k", "-l", "tree/a/one.txt", "tree/a/one.txt", "tree/a/copy.txt", "tree/d"],
        &["-bh", "tree/a/one.txt"],
        &["-hb", "tree/a/one.txt"],
        &["-b", "-k", "tree/a/one.txt"],
        &["-b", "-BK", "tree/a/one.txt"],
        &["-k", "missing", "tree"],
        &["-k", "tree/"],
        &["-k", "-x"],
    ] {
        // Some are refused by both; the code of a usage error is 1 there and 2 here.
        if options.contains(&"--threshold=-0x") {
            continue;
        }
        assert_same(&folder, options, options);
    }
}

#[test]
fn options_with_other_letters() {
    let folder = Folder::with_tree();
    for (du, fdu) in [
        (&["-k", "-d0"][..], &["-k", "-L0"][..]),
        (&["-k", "-d1"], &["-k", "-L1"]),
        (&["-k", "-a", "--max-depth=2"], &["-k", "-a", "--max-depth=2"]),
        (&["-k", "-S"], &["-k", "--separate-dirs"]),
        (&["-k", "-S", "-a", "-c"], &["-k", "--separate-dirs", "-a", "-c"]),
        (&["-k", "-S", "-s"], &["-k", "--separate-dirs", "-s"]),
        (&["-h"], &[]),
        (&["-k", "-H", "to-tree"], &["-k", "-D", "to-tree"]),
        (&["-k", "-L", "-s", "to-tree"], &["-k", "-H", "-s", "to-tree"]),
        (&["-k", "-L", "-s"], &["-k", "-H", "-s"]),
        (&["-B1", "-a"], &["-F", "bytes", "-a"]),
        (&["-B512", "-a"], &["-F", "blocks", "-a"]),
        (&["-B1K", "-a"], &["-F", "kilo", "-a"]),
        (&["-B1M", "-a"], &["-F", "mega", "-a"]),
        (&["-B1G", "-a"], &["-F", "giga", "-a"]),
        (&["-a", "--si"], &["-F", "si", "-a"]),
        (&["-a", "-h"], &["-F", "human", "-a"]),
        (&["-m", "-k"], &["-m", "-k"]),
        (&["-B1"], &["-h", "-B1"]),
    ] {
        assert_same(&folder, du, fdu);
    }
}

#[test]
fn lengths_equal_those_of_du() {
    let folder = Folder::with_tree();
    // Of files they did not change with coreutils 9.2; of directories they did.
    let theirs = folder.command("du", &["-0", "-a", "-b"]).output().unwrap().stdout;
    let files: Vec<u8> = theirs
        .split_inclusive(|byte| *byte == 0)
        .filter(|line| {
            let path =
                &line[line.iter().position(|byte| *byte == b'\t').unwrap() + 1..line.len() - 1];
            let path = std::os::unix::ffi::OsStrExt::from_bytes(path);
            let path: &std::ffi::OsStr = path;
            !folder.path("").join(path).symlink_metadata().unwrap().is_dir()
        })
        .flatten()
        .copied()
        .collect();
    assert_eq!(sorted(&folder.stdout(&["-0", "-f", "-b"])), sorted(&files));
    assert_eq!(
        folder.stdout(&["-0", "-f", "--apparent-size", "-F", "bytes"]),
        folder.stdout(&["-0", "-f", "-b"])
    );
}

#[test]
fn paths_come_from_a_list() {
    let folder = Folder::with_tree();
    folder.write("list", b"tree/d\0tree/a\0tree\0");
    assert_same(&folder, &["-k", "--files0-from=list"], &["-k", "--files0-from=list"]);
    folder.write("holes", b"tree/d\0\0tree/a");
    assert_same(&folder, &["-k", "--files0-from=holes"], &["-k", "--files0-from=holes"]);

    let mut child = folder
        .command(crate::FDU, &["-s", "-k", "--files0-from", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"tree/d\0-\0").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.ends_with(b"\ttree/d\n"));
    assert_eq!(code(&output), 1);
}

#[test]
fn patterns_come_from_a_file() {
    let folder = Folder::with_tree();
    folder.write("patterns", b"*.rs\n\n.hidden\n");
    assert_same(
        &folder,
        &["-k", "-a", "-X", "patterns", "tree"],
        &["-k", "-a", "-X", "patterns", "tree"],
    );
}

#[test]
fn other_file_systems_are_left_out() {
    if !is_root() || !has("mount") {
        return;
    }
    let folder = Folder::with_tree();
    let target = folder.path("tree/empty");
    let mounted = folder.command("mount", &["-t", "tmpfs", "tmpfs"]).arg(&target).status().unwrap();
    if !mounted.success() {
        eprintln!("skipped: cannot mount");
        return;
    }
    folder.write("tree/empty/inside", &[0; 50_000]);
    for options in [&["-k", "-a", "-x", "tree"][..], &["-k", "-a", "tree"]] {
        let theirs = folder.command("du", &[&["-0"], options].concat()).output().unwrap();
        let ours = folder.fdu(&[&["-0"], options].concat());
        assert_eq!(sorted(&ours.stdout), sorted(&theirs.stdout), "{options:?}");
    }
    assert!(folder.command("umount", &[]).arg(&target).status().unwrap().success());
}

#[test]
fn time_zones_are_those_of_du() {
    let folder = Folder::with_tree();
    for zone in
        ["UTC0", "Europe/Berlin", "America/St_Johns", ":Asia/Kathmandu", "EST5EDT,M3.2.0,M11.1.0"]
    {
        for when in [
            "2024-07-01 12:00:00Z",
            "2037-12-01 01:30:00Z",
            "2090-07-01 00:00:00Z",
            "1969-12-31 23:59:58Z",
        ] {
            let touched =
                folder.command("touch", &["-d", when, "tree/a/one.txt"]).status().unwrap();
            assert!(touched.success());
            let options = ["--time", "--time-style=full-iso", "tree/a/one.txt"];
            let theirs = folder.command("du", &options).env("TZ", zone).output().unwrap().stdout;
            let ours = folder
                .command(crate::FDU, &options)
                .arg("-k")
                .env("TZ", zone)
                .output()
                .unwrap()
                .stdout;
            assert_eq!(
                String::from_utf8_lossy(&ours),
                String::from_utf8_lossy(&theirs),
                "{zone} {when}"
            );
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let folder = Folder::with_tree();
    let expected = folder.stdout(&["-a", "-0", "-j1"]);
    for jobs in ["-j0", "-j2", "-j16", "-j1000"] {
        assert_eq!(folder.stdout(&["-a", "-0", jobs]), expected);
    }
}
