//! What is left out.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use crate::{Folder, has};

/// The paths of a listing.
fn paths(folder: &Folder, options: &[&str]) -> BTreeSet<String> {
    let output = folder.stdout(&[&["-a", "-0"], options].concat());
    let lines = output.split(|byte| *byte == 0).filter(|line| !line.is_empty());
    lines.map(|line| String::from_utf8_lossy(line).split_once('\t').unwrap().1.to_owned()).collect()
}

#[test]
fn included_files_are_counted_with_the_directories_above() {
    let folder = Folder::with_tree();
    let files = |options: &[&str]| {
        let found = paths(&folder, &[options, &["tree"]].concat());
        let is_file = |path: &&String| !folder.path(path).is_dir() || path.ends_with("to-d");
        found.iter().filter(is_file).cloned().collect::<Vec<_>>()
    };
    assert_eq!(files(&["--include", "*.rs"]), ["tree/a/b/three.rs", "tree/a/two.rs"]);
    assert_eq!(files(&["--include", "b/*"]), ["tree/a/b/c/four.TXT", "tree/a/b/three.rs"]);
    assert_eq!(files(&["--include", r"re:(?i)\.txt$"]).len(), 2);
    assert_eq!(files(&["--include", "*.rs", "--exclude", "two*"]), ["tree/a/b/three.rs"]);
    assert_eq!(files(&["--include", "*.rs", "--include", "spar?e"]).len(), 3);
    assert_eq!(files(&["--exclude", "re:^tree/[ad]/"]), ["tree/dangling", "tree/empty/.keep"]);
}

#[test]
fn caches_are_left_out_by_their_signature() {
    let folder = Folder::with_tree();
    let signature = b"Signature: 8a477f597d28d172789f06886806bc55\n# made by a test\n";
    folder.write("tree/cache/CACHEDIR.TAG", signature);
    folder.write("tree/cache/deep/file", b"x");
    folder.write("tree/fake/CACHEDIR.TAG", b"Signature: none");
    folder.write("tree/fifo/file", b"x");
    let made = folder.command("mkfifo", &["tree/fifo/CACHEDIR.TAG"]).status().unwrap();
    assert!(made.success());
    let found = paths(&folder, &["--exclude-caches", "tree"]);
    assert!(!found.iter().any(|path| path.starts_with("tree/cache")), "{found:?}");
    assert!(found.contains("tree/fake/CACHEDIR.TAG") && found.contains("tree/fifo/file"));
    // One that is asked for by name is meant.
    assert!(paths(&folder, &["--exclude-caches", "tree/cache"]).contains("tree/cache/deep/file"));
}

/// A repository with rules of every kind.
fn repository() -> Folder {
    let folder = Folder::new();
    folder.write("home/.config/git/ignore", b"*.user\n");
    folder.write(
        "repo/.gitignore",
        b"# rules\n*.o\n!keep.o\n/top\nbuild/\ndocs/*.html\n**/gen\nlogs/**\n!logs/x.txt\nd?x[0-9]\nsp\\ \na/**/z\n\\!bang\n",
    );
    folder.write("repo/src/.gitignore", b"local\n!*.o\n/only-here\n");
    for file in [
        "a.o",
        "keep.o",
        "top",
        "src/top",
        "build/x",
        "src/build",
        "docs/a.html",
        "docs/sub/a.html",
        "gen",
        "x/y/gen/f",
        "logs/x.txt",
        "logs/y/z.txt",
        "dax7",
        "da7",
        "sp ",
        "sp",
        "a/z",
        "a/b/c/z",
        "!bang",
        "bang",
        "src/b.o",
        "src/local",
        "src/deep/local/f",
        "src/only-here",
        "src/deep/only-here",
        "f.user",
        "excl",
        "sub/excl/f",
        ".hidden",
        "src/caf\u{e9}.o",
    ] {
        // `gen` and others are files here and directories there.
        folder.write(&format!("repo/{file}"), b"x");
    }
    symlink("src", folder.path("repo/build-link")).unwrap();
    folder
}

#[test]
fn git_ignores_the_same() {
    if !has("git") {
        return;
    }
    let folder = repository();
    let git = |arguments: &[&str], dir: &str| {
        let mut command = folder.command("git", arguments);
        command
            .current_dir(folder.path(dir))
            .env("HOME", folder.path("home"))
            .env_remove("XDG_CONFIG_HOME");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env_remove("GIT_DIR");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    git(&["init", "-q"], "repo");
    fs::write(folder.path("repo/.git/info/exclude"), "excl\n").unwrap();
    fs::create_dir(folder.path("repo/inner")).unwrap();
    git(&["init", "-q"], "repo/inner");
    folder.write("repo/inner/a.o", b"x");

    for start in ["repo", "repo/src", "repo/src/deep"] {
        // Not ignored and not tracked: everything, one by one.
        let listed = git(&["ls-files", "-z", "--others", "--exclude-standard"], start);
        let theirs: BTreeSet<String> = listed
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty() && !name.starts_with(b"inner"))
            .map(|name| format!("{start}/{}", String::from_utf8_lossy(name)))
            .collect();
        let mut command =
            folder.command(crate::FDU, &["-f", "-0", "--gitignore", "--exclude", ".git", start]);
        let output = command
            .env("HOME", folder.path("home"))
            .env_remove("XDG_CONFIG_HOME")
            .output()
            .unwrap();
        let ours: BTreeSet<String> = output
            .stdout
            .split(|byte| *byte == 0)
            .filter(|line| !line.is_empty())
            .map(|line| String::from_utf8_lossy(line).split_once('\t').unwrap().1.to_owned())
            .filter(|path| !path.starts_with("repo/inner"))
            .collect();
        assert_eq!(ours, theirs, "{start}");
        assert!(ours.len() > usize::from(start == "repo") * 10);
    }
    // Another repository has rules of its own.
    assert!(paths(&folder, &["--gitignore", "repo"]).contains("repo/inner/a.o"));
}

#[test]
fn a_list_that_is_none_neither_waits_nor_takes_memory() {
    if !has("git") {
        return;
    }
    let folder = Folder::new();
    folder.write("repo/sub/f.o", b"x");
    let git = folder.command("git", &["init", "-q", "repo"]).status().unwrap();
    assert!(git.success());
    assert!(folder.command("mkfifo", &["repo/.gitignore"]).status().unwrap().success());
    let list = fs::File::create(folder.path("repo/sub/.gitignore")).unwrap();
    list.set_len(1 << 40).unwrap();
    assert!(paths(&folder, &["--gitignore", "repo/sub"]).contains("repo/sub/f.o"));
}

#[test]
fn outside_repositories_nothing_is_ignored() {
    let folder = repository();
    // The rules of a repository around the test's folder do not reach in: there is none.
    assert!(paths(&folder, &["--gitignore", "repo"]).contains("repo/a.o"));
}

#[test]
fn links_that_are_followed_count_once_and_end() {
    let folder = Folder::with_tree();
    symlink("..", folder.path("tree/d/up")).unwrap();
    let output = folder.fdu(&["-H", "-s", "-k", "tree"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stderr).matches("contains itself").count(),
        0,
        "{output:?}"
    );
    let theirs = folder.command("du", &["-L", "-s", "-k", "tree"]).output().unwrap();
    assert_eq!(output.stdout, theirs.stdout);
}
