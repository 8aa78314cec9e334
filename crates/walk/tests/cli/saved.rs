//! Scans that are kept: ncdu's format out and in, comparison.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{FDU, Folder, code, has};

/// Every report of an import equals that of the walk.
#[test]
fn an_export_gives_the_same_reports_again() {
    let folder = Folder::with_tree();
    folder.stdout(&["--save", "scan", "-s", "tree"]);
    fs::write(folder.path("scan2"), folder.stdout(&["-o", "ncdu", "tree"])).unwrap();
    for scan in ["scan", "scan2"] {
        for options in [
            &["-a", "-k"][..],
            &["-a", "-b", "-c"],
            &["-c", "-s"],
            &["--inodes"],
            &["-a", "--json", "-c"],
            &["-a", "-o", "csv"],
            &["-a", "-o", "raw", "-0"],
            &["-a", "-o", "tree", "-S", "size"],
            &["-f", "--time", "-S", "time"],
            &["--separate-dirs", "-k"],
            &["--top", "100"],
            &["--by", "age"],
        ] {
            let walked = folder.stdout(&[options, &["tree"]].concat());
            let imported = folder.stdout(&[options, &["--import", scan]].concat());
            assert_eq!(
                String::from_utf8_lossy(&imported),
                String::from_utf8_lossy(&walked),
                "{options:?}"
            );
        }
    }
    // And the import can be written again.
    let again = folder.stdout(&["--import", "scan", "-o", "ncdu"]);
    fs::write(folder.path("again"), again).unwrap();
    assert_eq!(folder.stdout(&["--import", "again", "-a"]), folder.stdout(&["-a", "tree"]));
}

#[test]
fn several_roots_and_files_are_kept_apart() {
    let folder = Folder::with_tree();
    for roots in [
        &["tree/d", "tree/a"][..],
        &["tree/a/two.rs"],
        &["tree/a/two.rs", "tree/d"],
        &["tree/d", "tree"],
    ] {
        let walked = folder.stdout(&[&["-a", "-c", "--save", "scan"], roots].concat());
        assert_eq!(folder.stdout(&["-a", "-c", "--import", "scan"]), walked, "{roots:?}");
    }
}

#[test]
fn an_export_looks_like_this() {
    let folder = Folder::new();
    folder.write("t/sub/x\ty", b"123");
    let times = ["-d", "2024-02-03 04:05:06.5Z", "t/sub/x\ty", "t/sub", "t"];
    let mut touched = folder.command("touch", &times);
    assert!(touched.status().unwrap().success());
    let output = folder.text(&["-o", "ncdu", "t"]);
    // As JSON, which it is when names are text.
    let value: Value = serde_json::from_str(&output).unwrap();
    assert_eq!((&value[0], &value[1]), (&Value::from(1), &Value::from(2)));
    assert_eq!(value[2]["progname"], "fdu");
    let root = &value[3];
    assert_eq!(root[0]["name"], folder.path("t").to_str().unwrap());
    assert_eq!(root[0]["fdu_path"], "t");
    let file = &root[1][1];
    assert_eq!(file["name"], "x\ty");
    assert_eq!(file["asize"], 3);
    assert_eq!(file["mtime"], 1_706_933_106);
    assert_eq!(file["fdu_nanos"], 500_000_000);
}

#[test]
fn names_that_are_not_utf8_survive() {
    let folder = Folder::with_tree();
    let export = folder.stdout(&["-o", "ncdu", "tree"]);
    assert!(export.windows(8).any(|bytes| bytes == b"not\xffutf8"[..8].as_ref()));
    let mut child = folder
        .command(FDU, &["--import", "-", "-a", "-0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&export).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, folder.stdout(&["-a", "-0", "tree"]));
}

/// ncdu itself opens what we write, and shows what we show; and we read what it writes.
#[test]
fn ncdu_understands_it() {
    if !has("ncdu") || !has("script") {
        return;
    }
    let folder = Folder::with_tree();
    // Any bytes would do, but this looks for text on a screen.
    fs::write(folder.path("scan"), folder.stdout(&["-o", "ncdu", "tree"])).unwrap();
    let command = "stty rows 30 cols 100; TERM=xterm ncdu -f scan -e";
    let mut child = Command::new("timeout")
        .args(["20", "script", "-qefc", command, "/dev/null"])
        .current_dir(folder.path(""))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let screen = crate::browsing::read_until(&mut stdout, "Total disk usage");
    stdin.write_all(b"q").unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {screen}");
    for text in ["/a", "/d", "/empty", "dangling"] {
        assert!(screen.contains(text), "{text}: {screen}");
    }
    let screen = crate::browsing::without_escapes(&screen);
    let items = folder.text(&["-s", "--inodes", "tree"]);
    let items: u64 = items.split('\t').next().unwrap().parse().unwrap();
    assert!(screen.contains(&format!("Items: {}", items - 1)), "{screen}");

    for options in [&[][..], &["-e"]] {
        let export = folder
            .command("ncdu", &[options, &["-0", "-o", "theirs", "tree"]].concat())
            .output()
            .unwrap();
        assert_eq!(code(&export), 0, "{export:?}");
        for measure in [&["-k"][..], &["-b"], &["--inodes"]] {
            let sizes = |output: Vec<u8>| -> Vec<u64> {
                let text = String::from_utf8_lossy(&output).into_owned();
                text.lines().map(|line| line.split('\t').next().unwrap().parse().unwrap()).collect()
            };
            let mut options = vec!["-S", "name"];
            options.extend_from_slice(measure);
            let theirs =
                sizes(folder.stdout(&[options.clone(), vec!["--import", "theirs"]].concat()));
            let ours = sizes(folder.stdout(&[options, vec!["tree"]].concat()));
            assert_eq!(theirs, ours, "{measure:?}");
        }
    }
}

#[test]
fn differences_are_found() {
    let folder = Folder::with_tree();
    folder.stdout(&["--save", "before", "-s", "tree"]);
    assert_eq!(folder.text(&["diff", "before", "tree"]), "");
    folder.write("tree/a/b/new", &[1; 1_000]);
    fs::write(folder.path("tree/a/two.rs"), [1; 60_000]).unwrap();
    fs::remove_dir_all(folder.path("tree/empty")).unwrap();
    fs::create_dir(folder.path("tree/another")).unwrap();
    folder.stdout(&["--save", "after", "-s", "tree"]);
    let expected = "-10000\t70000\t60000\ttree/a/two.rs
-9000\t10693258\t10684258\ttree
-9000\t198461\t189461\ttree/a
+1000\t123457\t124457\ttree/a/b
+1000\t-\t1000\ttree/a/b/new
";
    for after in ["after", "tree"] {
        assert_eq!(folder.text(&["diff", "-a", "-b", "before", after]), expected);
    }
    let text = folder.text(&["diff", "-b", "-L1", "before", "tree"]);
    assert_eq!(
        text,
        expected.lines().skip(1).take(2).map(|line| format!("{line}\n")).collect::<String>()
    );
    assert!(
        folder.text(&["diff", "--inodes", "before", "after"]).contains("-2\t2\t-\ttree/empty\n")
    );
    assert!(
        folder.text(&["diff", "--inodes", "before", "after"]).contains("+1\t-\t1\ttree/another\n")
    );
    assert_eq!(
        folder.text(&["diff", "-a", "-b", "-t", "9500", "before", "after"]).lines().count(),
        1
    );
    let json = folder.text(&["diff", "-a", "-b", "--json", "before", "after"]);
    let first: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(first["change"], -10_000);
    assert!(
        folder
            .text(&["diff", "-a", "-b", "-o", "csv", "before", "after"])
            .contains("1000,,1000,file,tree/a/b/new\n")
    );
    // Trees that lie elsewhere are compared by what is in them.
    fs::rename(folder.path("tree"), folder.path("moved")).unwrap();
    assert_eq!(folder.text(&["diff", "-a", "after", "moved"]), "");
}
