//! What goes wrong, and with which exit code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::{FDU, Folder, code, has, is_root, stderr};

#[test]
fn wrong_usage_exits_with_2() {
    let folder = Folder::with_tree();
    for arguments in [
        &["--no-such-option"][..],
        &["-d", "-f"],
        &["-a", "-s"],
        &["-a", "-d"],
        &["-s", "-L", "1"],
        &["-L", "1", "--min-depth", "2"],
        &["-t", "many"],
        &["-t", "-0"],
        &["-B", "0"],
        &["-j", "1001"],
        &["-r"],
        &["--exclude", "re:("],
        &["--include", "re:["],
        &["-o", "json", "-k"],
        &["-o", "tree", "-0"],
        &["-o", "ncdu", "-a"],
        &["-o", "tree", "--time"],
        &["--inodes", "-k"],
        &["--inodes", "-b"],
        &["--inodes", "--apparent-size"],
        &["--top", "3", "-o", "tree"],
        &["--top", "3", "-a"],
        &["--top", "3", "-r"],
        &["--json", "-b", "-k"],
        &["--by", "ext", "--time"],
        &["--by", "ext", "-S", "time"],
        &["--by", "owner", "--import", "x"],
        &["--import", "x", "-x"],
        &["--import", "x", "tree"],
        &["--import", "x", "-j", "2"],
        &["--import", "x", "--save", "y"],
        &["--files0-from", "x", "tree"],
        &["-i", "-o", "tree"],
        &["--time-style", "iso"],
        &["diff", "x"],
        &["diff", "x", "y", "-o", "tree"],
        &["diff", "x", "y", "-x"],
        &["diff", "x", "y", "--progress"],
        &["diff", "tree", "tree", "--json", "-0"],
        &["diff", "tree", "tree", "--json", "-k"],
    ] {
        let output = folder.fdu(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_read_exits_with_1() {
    let folder = Folder::with_tree();
    folder.write("no-scan", b"[1,2,{},[{}]]");
    for (arguments, message) in [
        (&["missing"][..], "fdu: cannot access 'missing': No such file or directory\n"),
        (&["--files0-from", "missing"], "fdu: cannot read file names from 'missing'"),
        (&["-X", "missing"], "fdu: missing: No such file"),
        (&["--import", "missing"], "fdu: missing: No such file"),
        (&["--import", "no-scan"], "fdu: no-scan: not a scan: a name expected at byte 10\n"),
        (&["diff", "no-scan", "tree"], "fdu: no-scan: not a scan"),
        (&["--save", "missing/x"], "fdu: cannot save to 'missing/x'"),
        (&["--import", "\u{1b}[2J"], "fdu: \\u{1b}[2J: No such file"),
        (&["-s", "missing\u{1b}[2J"], "fdu: cannot access 'missing\\u{1b}[2J'"),
    ] {
        let output = folder.fdu(arguments);
        assert_eq!(code(&output), 1, "{arguments:?}: {output:?}");
        assert!(stderr(&output).starts_with(message), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn the_others_are_measured_nevertheless() {
    let folder = Folder::with_tree();
    let output = folder.fdu(&["-s", "missing", "tree/a/b"]);
    assert_eq!(output.stdout, b"136K\ttree/a/b\n");
    assert_eq!(code(&output), 1);
}

/// Another program that runs the same command gives its own name.
#[test]
fn usage_shows_the_name_it_was_called_by() {
    let folder = Folder::new();
    let script = format!("exec -a 'librorum du' {FDU} --no-such-option");
    let output = folder.command("bash", &["-c", &script]).output().unwrap();
    assert!(stderr(&output).contains("Usage: librorum du "), "{output:?}");
}

#[test]
fn nothing_to_measure_is_no_error() {
    let folder = Folder::with_tree();
    folder.write("none", b"");
    assert_eq!(folder.text(&["--files0-from", "none", "-c"]), "0\ttotal\n");
    assert_eq!(folder.text(&["--exclude", "tree", "tree"]), "");
    let output = folder.fdu(&[""]);
    assert_eq!(stderr(&output), "fdu: cannot access '': No such file or directory\n");
    assert_eq!(code(&output), 1);
    assert_eq!(folder.text(&["--files0-from", "none", "-o", "ncdu"]).lines().count(), 2);
    folder.stdout(&["--files0-from", "none", "--save", "scan"]);
    assert_eq!(folder.text(&["--import", "scan", "-c"]), "0\ttotal\n");
}

#[test]
fn help_has_examples_and_exit_codes() {
    let folder = Folder::new();
    let help = folder.text(&["--help"]);
    assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{help}");
    assert!(help.contains("What differs from du:"));
    assert!(folder.text(&["diff", "--help"]).contains("Examples:"));
    assert!(folder.text(&["--version"]).starts_with("fdu "));
}

/// What is not allowed to be read is an error each, in the order of paths; du complains of the same.
#[test]
fn forbidden_directories_are_summarised_at_the_end() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let folder = Folder::with_tree();
    for index in 0..30 {
        let name = format!("tree/closed{index:02}");
        folder.write(&format!("{name}/file"), b"x");
        fs::set_permissions(folder.path(&name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    fs::set_permissions(folder.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    // The binary may lie where nobody else can read.
    let binary = folder.path("fdu");
    fs::copy(FDU, &binary).unwrap();
    let as_nobody = |program: &str, arguments: &[&str]| {
        folder
            .command("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups", program])
            .args(arguments)
            .output()
            .unwrap()
    };
    let theirs = as_nobody("du", &["-s", "-k", "tree"]);
    let ours = as_nobody(binary.to_str().unwrap(), &["-s", "-k", "tree"]);
    assert_eq!(ours.stdout, theirs.stdout);
    assert_eq!((code(&ours), code(&theirs)), (1, 1));
    let text = stderr(&ours);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 21, "{text}");
    assert_eq!(lines[0], "fdu: cannot read directory 'tree/closed00': Permission denied");
    assert_eq!(lines[20], "fdu: 10 more errors; --buffer-errors shows more");

    let all = stderr(&as_nobody(binary.to_str().unwrap(), &["-s", "--buffer-errors", "tree"]));
    let mut du: Vec<String> = stderr(&theirs).lines().map(|line| format!("f{line}")).collect();
    du.sort();
    assert_eq!(all.lines().map(str::to_owned).collect::<Vec<_>>(), du);
    // The tree says where.
    let tree = as_nobody(binary.to_str().unwrap(), &["-o", "tree", "tree"]);
    assert!(String::from_utf8_lossy(&tree.stdout).contains("closed00/ (not all could be read)"));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let folder = Folder::new();
    for index in 0..3_000 {
        folder.write(&format!("tree/a-rather-long-name-{index}"), b"");
    }
    for form in ["table", "json", "csv", "tree", "ncdu", "raw"] {
        let all = if form == "ncdu" { "" } else { "-a" };
        let script =
            format!("{FDU} -o {form} {all} tree | head -c 10 >/dev/null; echo ${{PIPESTATUS[0]}}");
        let output = folder.command("bash", &["-c", &script]).output().unwrap();
        assert_eq!(output.stdout, b"0\n", "{form}");
        assert_eq!(stderr(&output), "", "{form}");
    }
    let script = format!("{FDU} -a tree > /dev/full");
    let output = folder.command("sh", &["-c", &script]).output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("write error"), "{output:?}");
}

#[test]
fn progress_and_statistics_are_on_standard_error() {
    let folder = Folder::with_tree();
    let output = folder.fdu(&["-s", "--statistics", "tree"]);
    assert!(stderr(&output).starts_with("fdu: thread 0: "), "{output:?}");
    assert_eq!(code(&output), 0);
    // Short walks show no progress.
    let output = folder.fdu(&["-s", "--progress", "tree"]);
    assert_eq!(stderr(&output), "");
}

#[test]
fn whatever_arguments_are_given_nothing_panics() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    let folder = Folder::with_tree();
    let word = prop_oneof![
        "-[a-zA-Z0-9]{1,3}",
        "--[a-z-]{1,14}(=[a-z0-9:*]{0,4})?",
        "-[0-9.]{1,5}[KMGkBi]{0,2}",
        Just("tree".to_owned()),
        Just("diff".to_owned()),
        Just("-o".to_owned()),
        Just("json".to_owned()),
        Just("-S".to_owned()),
        Just("size".to_owned()),
        Just("--by".to_owned()),
        Just("ext".to_owned()),
        Just("--top".to_owned()),
    ];
    let mut runner = TestRunner::new(Config { cases: 150, ..Config::default() });
    runner
        .run(&proptest::collection::vec(word, 0..6), |arguments| {
            // The browser waits for keys, and whatever is saved would be in the way.
            if arguments.iter().any(|word| {
                word.starts_with("-s") || word.starts_with("--sav") || word.contains('i')
            }) {
                return Ok(());
            }
            let output = Command::new("timeout")
                .args(["20", FDU])
                .args(&arguments)
                .current_dir(folder.path(""))
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let code = output.status.code();
            prop_assert!(matches!(code, Some(0..=2)), "{:?}: {:?}", arguments, output);
            Ok(())
        })
        .unwrap();
}
